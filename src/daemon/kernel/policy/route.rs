//! A route of our tables, and its netlink messages.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{V4, V6, family_of, net, octets, prefix_of};
use crate::kernel::netlink::{self, Message, NLM_F_CREATE, NLM_F_REPLACE};
use tcp_over_http::net::IpNet;

/// Length of `struct rtmsg`.
const BODY: usize = 12;

/// A route in our table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// What it leads to.
    pub net: IpNet,
    /// `RTN_UNICAST` through the TUN, `RTN_LOCAL`, `RTN_UNREACHABLE` or `RTN_THROW`.
    pub kind: u8,
    /// Lower wins.
    pub metric: u32,
    /// The table it is in.
    pub table: u32,
    /// Index of the TUN or of `lo`; 0 for a kind that needs no device.
    pub oif: u32,
    /// Who made it.
    pub protocol: u8,
}

impl Route {
    /// The request that adds it, in the place of one with the same prefix and metric if there is one.
    pub fn add(&self) -> Message {
        let scope = match self.kind {
            libc::RTN_UNICAST => libc::RT_SCOPE_LINK,
            libc::RTN_LOCAL => libc::RT_SCOPE_HOST,
            _ => libc::RT_SCOPE_UNIVERSE,
        };
        let (family, prefix) = (family_of(&self.net), prefix_of(&self.net));
        let (protocol, kind) = (self.protocol, self.kind);
        let body = [family, prefix, 0, 0, 0, protocol, scope, kind, 0, 0, 0, 0];
        let mut message = Message::new(libc::RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &body);
        message = message
            .attr(libc::RTA_DST, &octets(&self.net))
            .attr_u32(libc::RTA_TABLE, self.table)
            .attr_u32(libc::RTA_PRIORITY, self.metric);
        match self.oif {
            0 => message,
            oif => message.attr_u32(libc::RTA_OIF, oif),
        }
    }

    /// Reads the body of an `RTM_NEWROUTE`; `None` for another family's.
    pub fn parse(body: &[u8]) -> Option<Self> {
        let header: [u8; BODY] = netlink::array_at(body, 0)?;
        let unspecified = match header[0] {
            V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            _ => return None,
        };
        let mut route = Route {
            net: net(unspecified, header[1]),
            kind: header[7],
            metric: 0,
            table: header[4].into(),
            oif: 0,
            protocol: header[5],
        };
        for (kind, value) in netlink::attrs(body, BODY) {
            let number = netlink::u32_at(value, 0);
            match (kind, &mut route.net) {
                (libc::RTA_DST, IpNet::V4(net)) => net.addr = netlink::array_at(value, 0)?.into(),
                (libc::RTA_DST, IpNet::V6(net)) => {
                    net.addr = netlink::array_at::<16>(value, 0)?.into();
                }
                (libc::RTA_TABLE, _) => route.table = number,
                (libc::RTA_PRIORITY, _) => route.metric = number,
                // IPv6 shows routes without a device as if they were through `lo`.
                (libc::RTA_OIF, _) if matches!(route.kind, libc::RTN_UNICAST | libc::RTN_LOCAL) => {
                    route.oif = number
                }
                _ => {}
            }
        }
        Some(route)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{METRIC_TUN, OURS};
    use super::*;

    /// The most that may follow the last value.
    const PADDING: usize = 3;

    fn some_routes() -> [Route; 2] {
        let throw = Route {
            net: IpNet::parse("10.0.0.0/8").unwrap(),
            kind: libc::RTN_THROW,
            metric: METRIC_TUN,
            table: 7480,
            oif: 0,
            protocol: OURS,
        };
        let unicast = Route {
            net: IpNet::parse("2001:db8::/32").unwrap(),
            kind: libc::RTN_UNICAST,
            oif: 3,
            ..throw.clone()
        };
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
        let mut route = some_routes()[0].clone();
        route.kind = libc::RTN_UNICAST;
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
                assert_ne!(Route::parse(&message.body()[..cut]), Some(route.clone()));
            }
        }
    }
}
