//! A route, and its netlink messages.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::netlink::{self, Message, NLM_F_CREATE, NLM_F_REPLACE};
use super::{V4, V6, family_of};
use crate::net::IpNet;

// <linux/rtnetlink.h>

/// Message type: a route is new; as a request: add it.
pub const RTM_NEWROUTE: u16 = 24;
/// Message type: a route is gone; as a request: delete it.
pub const RTM_DELROUTE: u16 = 25;
/// Message type: a request for routes.
pub const RTM_GETROUTE: u16 = 26;

/// Route type: through a device.
pub const RTN_UNICAST: u8 = 1;
/// Route type: refused with an ICMP error.
pub const RTN_UNREACHABLE: u8 = 7;
/// Route type: the lookup goes on with the next policy rule.
pub const RTN_THROW: u8 = 9;

const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;

pub(super) const RTA_DST: u16 = 1;
pub(super) const RTA_OIF: u16 = 4;
const RTA_PRIORITY: u16 = 6;
pub(super) const RTA_TABLE: u16 = 15;

/// Length of `struct rtmsg`.
const BODY: usize = 12;

/// A route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The destination.
    pub net: IpNet,
    /// `RTN_UNICAST` through the TUN, `RTN_UNREACHABLE` or `RTN_THROW`.
    pub kind: u8,
    /// Priority; the lowest wins.
    pub metric: u32,
    /// The routing table.
    pub table: u32,
    /// Index of the device; 0 for a type that needs none.
    pub oif: u32,
    /// Who made the route (`RTPROT_*`).
    pub protocol: u8,
}

impl Route {
    /// The kernel has one route of each key: `NLM_F_REPLACE` replaces another route with the same key.
    pub const fn key(&self) -> (IpNet, u32, u32) {
        (self.net, self.table, self.metric)
    }

    /// The request for all routes.
    pub fn list() -> Message {
        Message::new(RTM_GETROUTE, 0, &[0; BODY])
    }

    /// The request that adds this route, or replaces one with the same key.
    pub fn add(&self) -> Message {
        let scope = match self.kind {
            RTN_UNICAST => RT_SCOPE_LINK,
            _ => RT_SCOPE_UNIVERSE,
        };
        let (family, prefix) = (family_of(self.net), self.net.prefix());
        let (protocol, kind) = (self.protocol, self.kind);
        let body = [family, prefix, 0, 0, 0, protocol, scope, kind, 0, 0, 0, 0];
        let mut message = Message::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &body);
        message = message
            .attr_addr(RTA_DST, self.net.addr())
            .attr_u32(RTA_TABLE, self.table)
            .attr_u32(RTA_PRIORITY, self.metric);
        match self.oif {
            0 => message,
            oif => message.attr_u32(RTA_OIF, oif),
        }
    }

    /// Reads the body of an `RTM_NEWROUTE`; `None` for families other than IPv4 and IPv6.
    pub fn parse(body: &[u8]) -> Option<Self> {
        let header: [u8; BODY] = netlink::array_at(body, 0)?;
        let unspecified = match header[0] {
            V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            _ => return None,
        };
        let mut route = Route {
            net: IpNet::new(unspecified, header[1]),
            kind: header[7],
            metric: 0,
            table: header[4].into(),
            oif: 0,
            protocol: header[5],
        };
        for (kind, value) in netlink::attrs(body, BODY) {
            let number = netlink::u32_at(value, 0);
            match kind {
                RTA_DST => route.net = IpNet::new(netlink::address(value)?, route.net.prefix()),
                RTA_TABLE => route.table = number,
                RTA_PRIORITY => route.metric = number,
                // The kernel reports IPv6 routes without a device as if they were through `lo`.
                RTA_OIF if route.kind == RTN_UNICAST => route.oif = number,
                _ => {}
            }
        }
        Some(route)
    }
}

#[cfg(test)]
mod tests {
    use std::vec;

    use super::super::OURS;
    use super::*;

    /// The most padding after the last attribute.
    const PADDING: usize = 3;

    fn some_routes() -> [Route; 2] {
        let throw = Route {
            net: IpNet::parse("10.0.0.0/8").unwrap(),
            kind: RTN_THROW,
            metric: 1024,
            table: 7480,
            oif: 0,
            protocol: OURS,
        };
        let unicast =
            Route { net: IpNet::parse("2001:db8::/32").unwrap(), kind: RTN_UNICAST, oif: 3, ..throw };
        [throw, unicast]
    }

    #[test]
    fn reads_what_it_writes() {
        for route in some_routes() {
            assert_eq!(Route::parse(route.add().body()), Some(route));
        }
    }

    /// `ip route replace 10.0.0.0/8 dev IFINDEX-3 table 7480 proto 116 metric 1024`, as strace shows it.
    #[test]
    fn writes_a_route_as_iproute2_does() {
        let mut route = some_routes()[0];
        route.kind = RTN_UNICAST;
        route.oif = 3;
        let attr =
            |kind: u16, value: [u8; 4]| [&8u16.to_ne_bytes()[..], &kind.to_ne_bytes(), &value].concat();
        let expected = [
            vec![2, 8, 0, 0, 0, 116, 253, 1, 0, 0, 0, 0],
            attr(1, [10, 0, 0, 0]),
            attr(15, 7480u32.to_ne_bytes()),
            attr(6, 1024u32.to_ne_bytes()),
            attr(4, 3u32.to_ne_bytes()),
        ];
        assert_eq!(route.add().body(), expected.concat());
    }

    #[test]
    fn any_cut_is_another_value_or_none() {
        for route in some_routes() {
            let message = route.add();
            for cut in 0..message.body().len() - PADDING {
                assert_ne!(Route::parse(&message.body()[..cut]), Some(route));
            }
        }
    }
}
