//! The routes of our tables.

use alloc::vec::Vec;
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::route::{RTN_LOCAL, RTN_THROW, RTN_UNICAST, RTN_UNREACHABLE, Route};
use super::{LOOPBACK, OURS};
use crate::config::{Config, OnFailure};
use crate::net::{IpNet, Ipv4Net};
use crate::rewrite::Path;

/// Metrics in our table, lower wins. Explicit, since the families' defaults differ.
const METRIC_TUN: u32 = 1024;
const METRIC_BLOCK: u32 = 4096;

/// Multicast can't be TCP; without its own route it would follow the default one into the TUN.
const MULTICAST: IpNet = IpNet::V4(Ipv4Net { addr: Ipv4Addr::new(224, 0, 0, 0), prefix: 4 });

/// All addresses, of each family.
const ALL: [IpNet; 2] =
    [IpNet::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0), IpNet::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0)];

/// A configured network that can't be captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotCaptured {
    /// The network.
    pub net: IpNet,
    /// The reason.
    pub why: Why,
}

/// Why a network isn't captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is one of IPv6, which is off.
    Ipv6Off,
    /// It is part of a network that is bypassed.
    Bypassed,
}

impl fmt::Display for NotCaptured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self.why {
            Why::Ipv6Off => "IPv6 is off",
            Why::Bypassed => "it is bypassed",
        };
        write!(f, "route {} is not captured: {why}", self.net)
    }
}

/// The routes that a configuration asks for, in the order to add them, and what it asks for in vain. Without a TUN
/// those that refuse what is captured, whatever `on_failure` says.
pub fn routes(config: &Config, path: Path, tun: Option<u32>) -> (Vec<Route>, Vec<NotCaptured>) {
    let usable = |net: &IpNet| config.address6.is_some() || matches!(net, IpNet::V4(_));
    let mut bypass: Vec<IpNet> = config.bypass.iter().filter(|net| usable(net)).copied().collect();
    let mut wanted = config.routes.clone();
    if config.auto_route {
        wanted.extend(ALL.iter().filter(|net| usable(net)));
        bypass.push(MULTICAST);
    }
    for nets in [&mut bypass, &mut wanted] {
        nets.sort_unstable();
        nets.dedup();
    }
    let mut widest = bypass.clone();
    widest.dedup_by(|net, before| before.contains(*net));
    let mut ignored = Vec::new();
    wanted.retain(|net| {
        let why = match net {
            net if !usable(net) => Why::Ipv6Off,
            net if is_within(*net, &widest) => Why::Bypassed,
            _ => return true,
        };
        ignored.push(NotCaptured { net: *net, why });
        false
    });
    // Fake addresses lead nowhere else, whatever is bypassed.
    for range in config.dns.fake_ranges() {
        bypass.retain(|net| !range.contains(*net));
        wanted.retain(|net| !range.contains(*net));
        wanted.push(range);
    }

    let route =
        |net, kind, metric, oif| Route { net, kind, metric, table: config.table, oif, protocol: OURS };
    let mut routes = Vec::new();
    if path == Path::Express {
        let (deliver, guard) = (config.table.saturating_add(1), config.table.saturating_add(2));
        for net in ALL.into_iter().filter(usable) {
            routes.push(Route { table: deliver, ..route(net, RTN_LOCAL, METRIC_TUN, LOOPBACK) });
        }
        for net in if wanted.is_empty() { &[] } else { &bypass[..] } {
            routes.push(Route { table: guard, ..route(*net, RTN_THROW, METRIC_TUN, 0) });
        }
        for net in &wanted {
            routes.push(Route { table: guard, ..route(*net, RTN_UNREACHABLE, METRIC_TUN, 0) });
        }
    }
    if wanted.is_empty() {
        return (routes, ignored);
    }
    // First what must not be captured.
    for net in bypass {
        routes.push(route(net, RTN_THROW, METRIC_TUN, 0));
    }
    for net in wanted {
        if tun.is_none() || config.on_failure == OnFailure::Block {
            routes.push(route(net, RTN_UNREACHABLE, METRIC_BLOCK, 0));
        }
        routes.extend(tun.map(|tun| route(net, RTN_UNICAST, METRIC_TUN, tun)));
    }
    (routes, ignored)
}

/// Whether one of `nets`, which are in order and none of which contains another, contains the network.
fn is_within(net: IpNet, nets: &[IpNet]) -> bool {
    let behind = nets.partition_point(|it| *it <= net);
    nets.get(behind.wrapping_sub(1)).is_some_and(|it| it.contains(net))
}

#[cfg(test)]
mod tests {
    use std::vec;

    use proptest::prelude::*;

    use super::*;

    fn config() -> Config {
        Config::from_uci("config tcp-over-http main\nlist upstream http://192.0.2.1\n").unwrap()
    }

    fn nets(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|text| IpNet::parse(text).unwrap()).collect()
    }

    #[test]
    fn what_is_asked_for_in_vain() {
        let mut config = config();
        config.address6 = None;
        config.routes = nets(&["2001:db8::/32", "10.1.0.0/16", "192.0.2.0/24", "10.0.0.0/8"]);
        config.bypass = nets(&["2001:db8::/48", "10.0.0.0/8", "10.1.2.0/24", "192.0.2.128/25"]);
        let (routes, ignored) = routes(&config, Path::Rewrite, Some(7));
        assert!(routes.iter().any(|it| it.kind == RTN_UNICAST && it.oif == 7));
        let said: Vec<_> = ignored.iter().map(std::string::ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "route 10.0.0.0/8 is not captured: it is bypassed",
                "route 10.1.0.0/16 is not captured: it is bypassed",
                "route 2001:db8::/32 is not captured: IPv6 is off",
            ]
        );
        let left = nets(&["192.0.2.0/24"]);
        assert!(routes.iter().filter(|it| it.kind != RTN_THROW).all(|it| left.contains(&it.net)));
    }

    /// A handful of networks, many of them within others.
    fn some_nets() -> impl Strategy<Value = Vec<IpNet>> {
        let net = |(bits, prefix): (u32, u8)| {
            let addr = Ipv4Addr::from_bits(bits.checked_shl(27).unwrap_or(0));
            IpNet::V4(Ipv4Net { addr: Ipv4Net { addr, prefix }.network(), prefix })
        };
        prop::collection::vec((0..32_u32, 0..=6_u8).prop_map(net), 0..12)
    }

    proptest! {
        #[test]
        fn none_that_is_bypassed_is_captured(wanted in some_nets(), bypass in some_nets()) {
            let mut config = config();
            (config.routes, config.bypass) = (wanted.clone(), bypass.clone());
            let (routes, ignored) = routes(&config, Path::Rewrite, Some(7));
            for net in wanted {
                let bypassed = bypass.iter().any(|it| it.contains(net));
                let captured = routes.iter().any(|it| it.net == net && it.kind == RTN_UNICAST);
                prop_assert_eq!(captured, !bypassed);
                let said = ignored.contains(&NotCaptured { net, why: Why::Bypassed });
                prop_assert_eq!(said, bypassed);
            }
        }
    }

    #[test]
    fn nothing_twice() {
        let mut config = config();
        config.auto_route = true;
        config.routes = nets(&["0.0.0.0/0", "192.0.2.0/24", "192.0.2.0/24"]);
        config.bypass = vec![MULTICAST; 3];
        for path in [Path::Rewrite, Path::Express] {
            let (routes, ignored) = routes(&config, path, Some(7));
            assert_eq!(ignored, []);
            for (index, route) in routes.iter().enumerate() {
                assert!(routes[..index].iter().all(|it| it.key() != route.key()), "{route:?}");
            }
        }
    }
}
