//! Uplinks: which devices have default routes, and which networks the main table reaches without one. The
//! latter are not captured with `auto_route`.
//!
//! The capture goes by destination, not by device. A new uplink or network is therefore captured until the
//! firewall's tables know it, rather than let go.

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::netlink;
use super::route::{RTA_DST, RTA_OIF, RTA_TABLE, RTN_THROW, RTN_UNICAST};
use super::{MAIN, OURS, V4, V6};
use crate::net::IpNet;

/// <linux/rtnetlink.h>
const RTA_MULTIPATH: u16 = 9;
/// The protocol number of routes that the kernel makes for an address.
const RTPROT_KERNEL: u8 = 2;
/// Lengths of `struct rtmsg` and `struct rtnexthop`.
const BODY: usize = 12;
const NEXT_HOP: usize = 8;

/// The longest prefix of a route that counts as a default route. VPNs split theirs: 0.0.0.0/1 and
/// 128.0.0.0/1, or 2000::/3.
pub const fn default_prefix(family: u8) -> u8 {
    match family {
        V4 => 1,
        _ => 3,
    }
}

/// Directly reachable networks, and the devices of default routes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Uplinks {
    /// Indexes of the devices of default routes in all tables, sorted. Empty if no other route of the main
    /// table has another device: on a gateway with one arm, clients come in by that device.
    pub devices: Vec<u32>,
    /// The destinations of all other routes of the main table, sorted, none within another.
    pub networks: Vec<IpNet>,
    /// Routes of others into the TUN, each with its table.
    pub(super) into_tun: Vec<(IpNet, u32)>,
    /// `throw` routes of others, each with its table.
    pub(super) thrown: Vec<(IpNet, u32)>,
    /// Whether IPv4 and IPv6 have a default route.
    pub has_default: [bool; 2],
    /// The devices of routes other than default ones, until [`Self::finish`].
    pub(super) others: Vec<u32>,
}

impl Uplinks {
    /// Takes the body of an `RTM_NEWROUTE`. Routes of ours are ignored, and the device `tun` is no uplink.
    pub fn see(&mut self, body: &[u8], tun: u32) {
        let Some([family, prefix, _, _, table, protocol, _, kind]) = netlink::array_at(body, 0) else {
            return;
        };
        if protocol == OURS || !matches!(kind, RTN_UNICAST | RTN_THROW) {
            return;
        }
        let mut destination = match family {
            V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            _ => return,
        };
        let (mut table, mut devices) = (u32::from(table), Vec::new());
        for (kind, value) in netlink::attrs(body, BODY) {
            match kind {
                RTA_TABLE => table = netlink::u32_at(value, 0),
                RTA_DST => destination = netlink::address(value).unwrap_or(destination),
                RTA_OIF => devices.push(netlink::u32_at(value, 0)),
                RTA_MULTIPATH => {
                    let mut hops = value;
                    // `struct rtnexthop`: length, flags, hops, index.
                    while let Some([a, b, _, _, index @ ..]) = netlink::array_at::<NEXT_HOP>(hops, 0) {
                        devices.push(u32::from_ne_bytes(index));
                        let length = usize::from(u16::from_ne_bytes([a, b])).max(NEXT_HOP);
                        hops = hops.get(length.next_multiple_of(4)..).unwrap_or_default();
                    }
                }
                _ => {}
            }
        }
        let net = IpNet::new(destination, prefix);
        if kind == RTN_THROW {
            return self.thrown.push((net, table));
        }
        if protocol != RTPROT_KERNEL && devices.contains(&tun) {
            self.into_tun.push((net, table));
        }
        devices.retain(|device| *device != tun);
        if prefix <= default_prefix(family) && !devices.is_empty() {
            self.has_default[usize::from(family == V6)] = true;
            for device in devices {
                if let Err(place) = self.devices.binary_search(&device) {
                    self.devices.insert(place, device);
                }
            }
        } else if table == MAIN && !devices.is_empty() {
            self.others.extend(devices);
            self.networks.push(net);
        }
    }

    /// A table in which somebody else's route leads packets to this proxy into the TUN. On the forward path,
    /// connections would end there: the kernel's packets to a proxy must not enter the TUN.
    pub fn detour(&self, proxy: IpAddr) -> Option<u32> {
        let host = IpNet::host(proxy);
        let best = |routes: &[(IpNet, u32)], of: u32| {
            let matching = routes.iter().filter(|(net, table)| *table == of && net.contains(host));
            matching.map(|(net, _)| net.prefix()).max()
        };
        let mut tables = self.into_tun.iter().map(|(_, table)| *table);
        tables.find(|table| best(&self.into_tun, *table) > best(&self.thrown, *table))
    }

    /// To be called after the last route.
    pub fn finish(mut self) -> Self {
        let others = core::mem::take(&mut self.others);
        if others.iter().all(|device| self.devices.contains(device)) {
            self.devices.clear();
        }
        IpNet::widest(&mut self.networks);
        self
    }
}

/// Whether a notification about a route may change the uplinks.
pub fn concerns(body: &[u8]) -> bool {
    let header = netlink::array_at::<8>(body, 0);
    matches!(header, Some([V4 | V6, _, _, _, _, protocol, _, RTN_UNICAST | RTN_THROW]) if protocol != OURS)
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::capture::netlink::Message;
    use crate::capture::route::RTM_NEWROUTE;

    fn net(text: &str) -> IpNet {
        IpNet::parse(text).unwrap()
    }

    fn route(destination: &str, table: u32) -> Message {
        let net = net(destination);
        let family = if matches!(net, IpNet::V4(_)) { V4 } else { V6 };
        let body = [family, net.prefix(), 0, 0, 0, 4, 0, RTN_UNICAST, 0, 0, 0, 0];
        let message = Message::new(RTM_NEWROUTE, 0, &body).attr_u32(RTA_TABLE, table);
        if net.prefix() == 0 { message } else { message.attr_addr(RTA_DST, net.addr()) }
    }

    fn uplinks(routes: &[Message]) -> Uplinks {
        let mut uplinks = Uplinks::default();
        for route in routes {
            uplinks.see(route.body(), 9);
        }
        uplinks.finish()
    }

    fn lan() -> Message {
        route("192.168.1.0/24", MAIN).attr_u32(RTA_OIF, 4)
    }

    #[test]
    fn default_routes_of_all_tables_and_what_is_nearer() {
        let found = uplinks(&[
            route("0.0.0.0/0", MAIN).attr_u32(RTA_OIF, 3),
            route("::/0", 100).attr_u32(RTA_OIF, 2),
            route("0.0.0.0/0", 7480).attr_u32(RTA_OIF, 9),
            route("10.45.39.0/24", MAIN).attr_u32(RTA_OIF, 9),
            route("192.0.2.0/24", MAIN).attr_u32(RTA_OIF, 3),
            route("192.0.2.128/25", MAIN).attr_u32(RTA_OIF, 3),
            route("198.51.100.0/24", 100).attr_u32(RTA_OIF, 3),
            lan(),
        ]);
        let networks = vec![net("192.0.2.0/24"), net("192.168.1.0/24")];
        assert_eq!((found.devices, found.networks), (vec![2, 3], networks));
    }

    #[test]
    fn halves_count_as_default() {
        for half in ["0.0.0.0/1", "128.0.0.0/1", "2000::/3"] {
            let found = uplinks(&[route(half, MAIN).attr_u32(RTA_OIF, 5), lan()]);
            assert_eq!((found.devices, found.networks), (vec![5], vec![net("192.168.1.0/24")]));
        }
        let found = uplinks(&[route("64.0.0.0/2", MAIN).attr_u32(RTA_OIF, 5), lan()]);
        assert_eq!((found.devices, found.networks.len()), (vec![], 2));
    }

    #[test]
    fn one_arm() {
        let default = route("0.0.0.0/0", MAIN).attr_u32(RTA_OIF, 4);
        assert_eq!(uplinks(&[default, lan()]).devices, []);
    }

    #[test]
    fn all_hops_of_one_route() {
        let hop = |index: u32| [&8_u16.to_ne_bytes()[..], &[0, 0], &index.to_ne_bytes()].concat();
        let hops = [hop(3), hop(6)].concat();
        assert_eq!(uplinks(&[route("0.0.0.0/0", MAIN).attr(RTA_MULTIPATH, &hops), lan()]).devices, [3, 6]);
        for cut in 0..hops.len() {
            uplinks(&[route("0.0.0.0/0", MAIN).attr(RTA_MULTIPATH, &hops[..cut])]);
        }
    }

    #[test]
    fn routes_of_others_into_the_tun() {
        let into_tun = route("0.0.0.0/0", 777).attr_u32(RTA_OIF, 9);
        let proxy = IpAddr::from([192, 0, 2, 10]);
        assert_eq!(uplinks(&[lan()]).detour(proxy), None);
        assert_eq!(uplinks(&[into_tun, lan()]).detour(proxy), Some(777));
        let throw = |table| {
            let body = [V4, 32, 0, 0, 0, 4, 0, RTN_THROW, 0, 0, 0, 0];
            let message = Message::new(RTM_NEWROUTE, 0, &body).attr_u32(RTA_TABLE, table);
            message.attr_addr(RTA_DST, proxy)
        };
        let into_tun = || route("0.0.0.0/0", 777).attr_u32(RTA_OIF, 9);
        assert_eq!(uplinks(&[throw(777), into_tun()]).detour(proxy), None);
        assert_eq!(uplinks(&[throw(778), into_tun()]).detour(proxy), Some(777));
        let narrow = route("198.51.100.0/24", 777).attr_u32(RTA_OIF, 9);
        assert_eq!(uplinks(&[narrow]).detour(proxy), None);
    }

    #[test]
    fn what_notifications_concern() {
        assert!(concerns(route("0.0.0.0/0", MAIN).body()));
        let mut ours = route("0.0.0.0/0", MAIN).body().to_vec();
        ours[5] = OURS;
        assert!(!concerns(&ours) && !concerns(&[]));
    }
}
