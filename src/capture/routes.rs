//! The routes that a configuration needs: those of our routing table, and the fallback in the main table.

use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::route::{RTN_THROW, RTN_UNICAST, RTN_UNREACHABLE, Route};
use super::{MAIN, OURS, family_of};
use crate::config::{Config, OnFailure};
use crate::net::{IpNet, Ipv4Net};

/// Metrics in our table; the lowest wins. They are explicit because the defaults of IPv4 and IPv6 differ.
const METRIC_TUN: u32 = 1024;
const METRIC_BLOCK: u32 = 4096;

/// The reason why a configured network is not captured.
const BYPASSED: &str = "it is bypassed";

/// TCP has no multicast. Without a `throw` route for it, multicast would follow our default route into the
/// TUN.
const MULTICAST: IpNet = IpNet::V4(Ipv4Net { addr: Ipv4Addr::new(224, 0, 0, 0), prefix: 4 });

/// The default routes' destinations.
const ALL: [IpNet; 2] =
    [IpNet::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0), IpNet::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0)];

/// Routes that differ only in their destination.
pub struct Group {
    /// The destinations, sorted.
    pub nets: Rc<[IpNet]>,
    /// One of the routes.
    template: Route,
}

impl Group {
    /// The route for a network.
    pub const fn route(&self, net: IpNet) -> Route {
        Route { net, ..self.template }
    }

    /// Whether some of these routes are of this family and capture (or refuse) traffic.
    pub fn captures(&self, family: u8) -> bool {
        self.template.kind != RTN_THROW && self.nets.iter().any(|net| family_of(*net) == family)
    }

    /// The index of the route in this group that has the same key as `route`.
    pub fn find(&self, route: &Route) -> Option<usize> {
        let is_here = self.route(route.net).key() == route.key();
        self.nets.binary_search(&route.net).ok().filter(|_| is_here)
    }
}

/// The routes for a configuration, in the order in which they must be added, and a sentence for each
/// configured network that can't be captured. Without a TUN, the routes refuse what would be captured,
/// whatever `on_failure` says.
pub fn routes(config: &Config, tun: Option<u32>) -> (Vec<Group>, Vec<String>) {
    let (bypass, captured, ignored) = networks(config);
    let mut groups = Vec::new();
    let mut add = |nets: &Rc<[IpNet]>, kind, metric, oif| {
        if let Some(&net) = nets.first() {
            let template = Route { net, kind, metric, table: config.table, oif, protocol: OURS };
            groups.push(Group { nets: Rc::clone(nets), template });
        }
    };
    if !captured.is_empty() {
        // Exceptions come first, so that nothing bypassed is captured meanwhile.
        add(&bypass, RTN_THROW, METRIC_TUN, 0);
        if let Some(tun) = tun {
            add(&captured, RTN_UNICAST, METRIC_TUN, tun);
        }
        if tun.is_none() || config.on_failure == OnFailure::Block {
            add(&captured, RTN_UNREACHABLE, METRIC_BLOCK, 0);
        }
    }
    (groups, ignored)
}

/// The TUN's subnets as `unreachable`, in the main table. They matter when the TUN is gone: packets that NAT
/// leads there must not follow a default route.
pub fn fallback(config: &Config) -> Group {
    let nets: Vec<_> = config.own().map(|own| IpNet::new(own.network(), own.prefix())).collect();
    let metric = fallback_metric(config.table);
    let template = Route { net: ALL[0], kind: RTN_UNREACHABLE, metric, table: MAIN, oif: 0, protocol: OURS };
    Group { nets: nets.into(), template }
}

/// The metric of [`fallback`]'s routes. It depends on the table's number, so that a daemon tells its own from
/// those of another daemon on this machine.
pub const fn fallback_metric(table: u32) -> u32 {
    METRIC_BLOCK.saturating_add(table)
}

/// The bypassed networks and the captured ones, both sorted, and a sentence for each that can't be captured.
fn networks(config: &Config) -> (Rc<[IpNet]>, Rc<[IpNet]>, Vec<String>) {
    let mut bypass = Vec::new();
    config.rules.short_forms().iter().for_each(|rule| bypass.extend_from_slice(&rule.networks));
    let mut captured = config.routes.clone();
    if config.auto_route {
        bypass.push(MULTICAST);
        captured.extend(ALL.iter().filter(|net| is_usable(**net, config)));
    }
    bypass.retain(|net| is_usable(*net, config));
    sort(&mut bypass);
    sort(&mut captured);
    let mut widest = bypass.clone();
    IpNet::widest(&mut widest);
    let mut ignored = Vec::new();
    captured.retain(|&net| {
        let why = if !is_usable(net, config) {
            "IPv6 is off"
        } else if net.is_within(&widest) {
            BYPASSED
        } else {
            return true;
        };
        ignored.push(format!("route {net} is not captured: {why}"));
        false
    });
    // Fake addresses exist only here, so they are captured even if `bypass` contains them.
    for range in config.dns.fake_ranges() {
        bypass.retain(|net| !range.contains(*net));
        captured.retain(|net| !range.contains(*net));
        captured.push(range);
    }
    sort(&mut captured);
    (bypass.into(), captured.into(), ignored)
}

fn is_usable(net: IpNet, config: &Config) -> bool {
    config.address6.is_some() || matches!(net, IpNet::V4(_))
}

/// Sorts networks and removes duplicates.
fn sort(nets: &mut Vec<IpNet>) {
    nets.sort_unstable();
    nets.dedup();
}

#[cfg(test)]
mod tests {
    use std::vec;

    use proptest::prelude::*;

    use super::super::bypassing;
    use super::*;

    fn config() -> Config {
        Config::from_uci("config tcp-over-http main\nlist upstream http://192.0.2.1\n").unwrap()
    }

    fn all(groups: &[Group]) -> Vec<Route> {
        groups.iter().flat_map(|group| group.nets.iter().map(|net| group.route(*net))).collect()
    }

    fn nets(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|text| IpNet::parse(text).unwrap()).collect()
    }

    #[test]
    fn what_is_asked_for_in_vain() {
        let mut config = config();
        config.address6 = None;
        config.routes = nets(&["2001:db8::/32", "10.1.0.0/16", "192.0.2.0/24", "10.0.0.0/8"]);
        config.rules = bypassing(nets(&["2001:db8::/48", "10.0.0.0/8", "10.1.2.0/24", "192.0.2.128/25"]));
        let (groups, ignored) = routes(&config, Some(7));
        let routes = all(&groups);
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

    /// Up to eleven networks, many of them within others.
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
            (config.routes, config.rules) = (wanted.clone(), bypassing(bypass.clone()));
            let (groups, ignored) = routes(&config, Some(7));
            let routes = all(&groups);
            for net in wanted {
                let bypassed = bypass.iter().any(|it| it.contains(net));
                let captured = routes.iter().any(|it| it.net == net && it.kind == RTN_UNICAST);
                prop_assert_eq!(captured, !bypassed);
                let said = ignored.contains(&format!("route {net} is not captured: {BYPASSED}"));
                prop_assert_eq!(said, bypassed);
            }
        }
    }

    #[test]
    fn nothing_twice() {
        let mut config = config();
        config.auto_route = true;
        config.routes = nets(&["0.0.0.0/0", "192.0.2.0/24", "192.0.2.0/24"]);
        config.rules = bypassing(vec![MULTICAST; 3]);
        let (groups, ignored) = routes(&config, Some(7));
        let routes = all(&groups);
        assert!(ignored.is_empty());
        for (index, route) in routes.iter().enumerate() {
            assert!(routes[..index].iter().all(|it| it.key() != route.key()), "{route:?}");
        }
    }
}
