//! What sends traffic into the TUN: policy rules and a routing table of our own, as values.
//!
//! With P = `rule_priority`, for each family that has anything to capture:
//!
//! | priority | rule | why |
//! |---|---|---|
//! | P | `fwmark DELIVER/MASK iif lo lookup main suppress_prefixlength 0` | express path: what our sockets send to clients goes its way, ... |
//! | P+1 | `fwmark DELIVER/MASK iif lo lookup TABLE+2` | ... but where the client's network is gone, not to the outside |
//! | P+2 | `fwmark DELIVER/MASK iif lo goto P+10` | |
//! | P+3 | `fwmark DELIVER/MASK lookup TABLE+1` | express path: what an own socket takes is local, whatever its destination |
//! | P+4 | `iif TUN lookup main suppress_prefixlength 0` | express path: our RSTs and ICMP errors go to clients, ... |
//! | P+5 | `iif TUN lookup TABLE+2` | ... and a released SYN that no firewall rule takes is refused, not forwarded |
//! | P+6 | `iif TUN goto P+10` | what leaves the TUN can't enter it again: no loops |
//! | P+7 | `fwmark MARK/MASK goto P+10` | nor can our connections to the proxies |
//! | P+8 | `to FAKE lookup TABLE` | `dns 'fakeip'` only: addresses that only we know |
//! | P+8 | `[ipproto tcp] lookup main suppress_prefixlength 0` | `auto_route` only: any route but a default one comes before us |
//! | P+9 | `[ipproto tcp] lookup TABLE` | the capture |
//! | P+10 | `nop` | the way on to everybody else's rules |
//!
//! `iif lo` is what we send ourselves, and also what a look-up of a packet's way back looks like
//! (`src_valid_mark`): both want the way to a client.
//!
//! Rules can't say "TCP without the mark": `not` negates the whole selector, so that
//! `not fwmark M ipproto tcp` takes UDP too. Hence the jumps. `ipproto tcp` is missing with
//! `non_tcp 'reject'`. If queries to resolvers are answered, both rules are there once more for `ipproto udp dport 53`.
//!
//! The table has each captured prefix twice: through the TUN, and with `on_failure 'block'` as `unreachable`
//! with a worse metric, which needs no device and so refuses the traffic when the TUN died with the daemon.
//! A bypassed prefix is a `throw`: the rules behind ours decide.
//!
//! TABLE+1 has one route, which makes everything local; TABLE+2 has each captured prefix as `unreachable`.
//!
//! All we make bears the protocol number [`OURS`]; what doesn't, somebody else made and we leave alone.

mod route;
mod rule;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use log::warn;
use tcp_over_http::rewrite::Path;

pub use route::Route;
pub use rule::Rule;

use rule::{FR_ACT_GOTO, FR_ACT_NOP, FR_ACT_TO_TBL};

use crate::config::{Config, IpNet, Ipv4Net, Ipv6Net, MARK_MASK, NonTcp, OnFailure};

/// Who made a rule or a route (`rtm_protocol`, `FRA_PROTOCOL`); not in iproute2's `rt_protos`.
pub const OURS: u8 = 0x74;

/// Metrics in our table, lower wins. Explicit, since the families' defaults differ.
const METRIC_TUN: u32 = 1024;
const METRIC_BLOCK: u32 = 4096;

/// Multicast can't be TCP; without its own route it would follow the default one into the TUN.
const MULTICAST: IpNet = IpNet::V4(Ipv4Net { addr: Ipv4Addr::new(224, 0, 0, 0), prefix: 4 });

/// The rule behind all others, P + this.
pub const LAST_RULE: u32 = 10;

/// How many tables there are, from `table` on.
pub const TABLES: u32 = 3;

/// The index of `lo`: the kernel's LOOPBACK_IFINDEX.
const LOOPBACK: u32 = 1;

const V4: u8 = libc::AF_INET as u8;
const V6: u8 = libc::AF_INET6 as u8;

/// The routes that a configuration asks for. Prefixes that can't be captured are left out with a warning.
pub fn routes(config: &Config, path: Path, tun: u32) -> Vec<Route> {
    let usable = |net: &IpNet| config.address6.is_some() || matches!(net, IpNet::V4(_));
    let mut bypass: Vec<IpNet> = config.bypass.iter().filter(|net| usable(net)).copied().collect();
    let mut wanted = config.routes.clone();
    if config.auto_route {
        wanted.push(net(Ipv4Addr::UNSPECIFIED.into(), 0));
        if config.address6.is_some() {
            wanted.push(net(Ipv6Addr::UNSPECIFIED.into(), 0));
        }
        bypass.push(MULTICAST);
    }
    wanted.retain(|net| {
        if !usable(net) {
            warn!("route {net} is not captured: IPv6 is off");
            return false;
        }
        let bypassed = bypass.iter().any(|bypass| bypass.contains(*net));
        if bypassed {
            warn!("route {net} is not captured: it is bypassed");
        }
        !bypassed
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
        for family in families(config) {
            let local = route(any(family), libc::RTN_LOCAL, METRIC_TUN, LOOPBACK);
            routes.push(Route { table: deliver, ..local });
        }
        for net in if wanted.is_empty() { &[] } else { &bypass[..] } {
            routes.push(Route { table: guard, ..route(*net, libc::RTN_THROW, METRIC_TUN, 0) });
        }
        for net in &wanted {
            routes.push(Route { table: guard, ..route(*net, libc::RTN_UNREACHABLE, METRIC_TUN, 0) });
        }
    }
    if wanted.is_empty() {
        return routes;
    }
    // First what must not be captured.
    for net in bypass {
        routes.push(route(net, libc::RTN_THROW, METRIC_TUN, 0));
    }
    for net in wanted {
        if config.on_failure == OnFailure::Block {
            routes.push(route(net, libc::RTN_UNREACHABLE, METRIC_BLOCK, 0));
        }
        routes.push(route(net, libc::RTN_UNICAST, METRIC_TUN, tun));
    }
    routes
}

/// The rules that lead to these routes, in the order to add them: the capture last, so that neither our
/// own connections nor local networks are captured meanwhile.
pub fn rules(config: &Config, path: Path, tun: &str, routes: &[Route]) -> Vec<Rule> {
    let first = config.rule_priority;
    let end = first.saturating_add(LAST_RULE);
    let mut rules = Vec::new();
    for family in [V4, V6] {
        let has = |table: u32| routes.iter().any(|it| family_of(&it.net) == family && it.table == table);
        let captures =
            routes.iter().any(|it| family_of(&it.net) == family && it.table == config.table && it.oif != 0);
        if !captures && !has(config.table.saturating_add(1)) {
            continue;
        }
        let rule = |offset: u32, action| Rule {
            family,
            priority: first.saturating_add(offset),
            iif: String::new(),
            mark: 0,
            mask: 0,
            src: None,
            dst: None,
            ip_proto: 0,
            dport: None,
            action,
            table: 0,
            suppress: u32::MAX,
            target: 0,
            protocol: OURS,
        };
        rules.push(rule(LAST_RULE, FR_ACT_NOP)); // a jump needs its target
        if path == Path::Express {
            let (main, guard) = (libc::RT_TABLE_MAIN.into(), config.table.saturating_add(2));
            let delivered = |offset, action| Rule {
                mark: config.deliver_mark(),
                mask: MARK_MASK,
                ..rule(offset, action)
            };
            let sent = |offset, action| Rule { iif: "lo".to_owned(), ..delivered(offset, action) };
            let written = |offset, action| Rule { iif: tun.to_owned(), ..rule(offset, action) };
            rules.push(Rule { table: main, suppress: 0, ..sent(0, FR_ACT_TO_TBL) });
            rules.push(Rule { table: guard, ..sent(1, FR_ACT_TO_TBL) });
            rules.push(Rule { target: end, ..sent(2, FR_ACT_GOTO) });
            rules.push(Rule { table: config.table.saturating_add(1), ..delivered(3, FR_ACT_TO_TBL) });
            rules.push(Rule { table: main, suppress: 0, ..written(4, FR_ACT_TO_TBL) });
            rules.push(Rule { table: guard, ..written(5, FR_ACT_TO_TBL) });
        }
        rules.push(Rule { iif: tun.to_owned(), target: end, ..rule(6, FR_ACT_GOTO) });
        if config.mark != 0 {
            rules.push(Rule { mark: config.mark, mask: MARK_MASK, target: end, ..rule(7, FR_ACT_GOTO) });
        }
        if !captures {
            continue;
        }
        for range in config.dns.fake_ranges().filter(|range| family_of(range) == family) {
            rules.push(Rule { dst: Some(range), table: config.table, ..rule(8, FR_ACT_TO_TBL) });
        }
        for &(ip_proto, dport) in captured(config) {
            let captured = |offset| Rule { ip_proto, dport, ..rule(offset, FR_ACT_TO_TBL) };
            if config.auto_route {
                rules.push(Rule { table: libc::RT_TABLE_MAIN.into(), suppress: 0, ..captured(8) });
            }
            rules.push(Rule { table: config.table, ..captured(9) });
        }
    }
    rules
}

/// The protocols and destination ports that are captured: queries to resolvers, too, if they are answered.
fn captured(config: &Config) -> &'static [(u8, Option<(u16, u16)>)] {
    const TCP: (u8, Option<(u16, u16)>) = (libc::IPPROTO_TCP as u8, None);
    const QUERIES: (u8, Option<(u16, u16)>) = (libc::IPPROTO_UDP as u8, Some((53, 53)));
    match (config.non_tcp, config.dns.hijacks()) {
        (NonTcp::Reject, _) => &[(0, None)],
        (NonTcp::Direct, true) => &[TCP, QUERIES],
        (NonTcp::Direct, false) => &[TCP],
    }
}

fn net(addr: IpAddr, prefix: u8) -> IpNet {
    match addr {
        IpAddr::V4(addr) => IpNet::V4(Ipv4Net { addr, prefix }),
        IpAddr::V6(addr) => IpNet::V6(Ipv6Net { addr, prefix }),
    }
}

/// The families that are on.
fn families(config: &Config) -> impl Iterator<Item = u8> {
    [Some(V4), config.address6.map(|_| V6)].into_iter().flatten()
}

/// All addresses of a family.
fn any(family: u8) -> IpNet {
    match family {
        V4 => net(Ipv4Addr::UNSPECIFIED.into(), 0),
        _ => net(Ipv6Addr::UNSPECIFIED.into(), 0),
    }
}

fn family_of(net: &IpNet) -> u8 {
    match net {
        IpNet::V4(_) => V4,
        IpNet::V6(_) => V6,
    }
}

/// The address as the kernel has it, 4 or 16 bytes.
fn octets(net: &IpNet) -> Vec<u8> {
    match net {
        IpNet::V4(net) => net.addr.octets().to_vec(),
        IpNet::V6(net) => net.addr.octets().to_vec(),
    }
}

fn prefix_of(net: &IpNet) -> u8 {
    match net {
        IpNet::V4(net) => net.prefix,
        IpNet::V6(net) => net.prefix,
    }
}
