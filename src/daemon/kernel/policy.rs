//! What sends traffic into the TUN: policy rules and routing tables of our own, as values.
//!
//! **Rules capture; the firewall only exempts.** Where its tables are gone, more is captured, never less.
//!
//! With P = `rule_priority`, for each family that has anything to capture:
//!
//! | priority | rule | why |
//! |---|---|---|
//! | P | `fwmark DELIVER/MASK iif lo lookup main suppress_prefixlength 0` | express path: what our sockets send to clients goes its way, ... |
//! | P+1 | `fwmark DELIVER/MASK iif lo lookup TABLE+2` | ... but where the client's network is gone, not to the outside |
//! | P+2 | `fwmark DELIVER/MASK iif lo goto END` | |
//! | P+3 | `fwmark DELIVER/MASK lookup TABLE+1` | express path: what an own socket takes is local, whatever its destination |
//! | P+4 | `iif TUN lookup main suppress_prefixlength 0` | express path: our RSTs and ICMP errors go to clients, ... |
//! | P+5 | `iif TUN lookup TABLE+2` | ... and a released SYN that no firewall rule takes is refused, not forwarded |
//! | P+6 | `iif TUN goto END` | what leaves the TUN can't enter it again: no loops |
//! | P+7 | `fwmark MARK/MASK goto END`, `from PROXY goto END` each, `fwmark EXEMPT/MASK goto END` | nor can our connections to the proxies, nor theirs; what `firewall.rs` exempts |
//! | P+8 | `to FAKE lookup TABLE` | `dns 'fakeip'`: addresses that only we know |
//! | P+8 | `iif lo ipproto PROTO dport 53 goto END` each | `dns_domain`: what dnsmasq asks others |
//! | P+9 | `iif lo goto CAPTURE` or `goto END` | `local`: our own connections |
//! | P+10 | `iif DEVICE goto P+12` each | `interface`: these devices, ... |
//! | P+11 | `goto END` | ... and no others |
//! | P+12 | `nop`, `from NET goto END` each | `client_bypass` |
//! | P+13 | `from NET goto CAPTURE` each | `client`: these clients, ... |
//! | P+14 | `goto END` | ... and no others |
//! | P+15 = CAPTURE | `nop` | |
//! | P+16 | `[ipproto ...] lookup main suppress_prefixlength 0` each | `auto_route` only: any route but a default one comes before us |
//! | P+17 | `ipproto tcp [dport PORTS] lookup TABLE` each, `ipproto udp dport PORT lookup TABLE` each | the capture: TCP, and of UDP what is refused (`quic`) or answered (`dns_hijack`) |
//! | P+18 | `ipproto tcp goto END`, `ipproto udp dport 443 goto END` | `non_tcp 'reject'`: not TCP to other ports, not what `quic` lets go, ... |
//! | P+19 | `lookup TABLE` | ... but all else |
//! | P+20 = END | `nop` | the way on to everybody else's rules |
//!
//! Stages that select nothing are left out. Rules of one priority can be in any order: one that somebody deleted
//! and we put back is the last of them.
//!
//! `iif lo` is what we send ourselves, and also what a look-up of a packet's way back looks like
//! (`src_valid_mark`): both want the way to a client.
//!
//! Rules can't say "TCP without the mark": `not` negates the whole selector, so that
//! `not fwmark M ipproto tcp` takes UDP too. Hence the jumps.
//!
//! The table has each captured prefix twice: through the TUN, and with `on_failure 'block'` as `unreachable`
//! with a worse metric, which needs no device and so refuses the traffic when the TUN died with the daemon.
//! A bypassed prefix is a `throw`: the rules behind ours decide.
//!
//! TABLE+1 has one route, which makes everything local; TABLE+2 has each captured prefix as `unreachable`
//! and each bypassed one as `throw`.
//!
//! All we make bears the protocol number [`OURS`]; what doesn't, somebody else made and we leave alone.

mod route;
mod rule;
mod rules;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use log::warn;
use tcp_over_http::rewrite::Path;

pub use route::Route;
pub use rule::Rule;
pub use rules::{LAST_RULE, rules};

use tcp_over_http::config::{Config, OnFailure};
use tcp_over_http::net::{IpNet, Ipv4Net, Ipv6Net};

/// Who made a rule or a route (`rtm_protocol`, `FRA_PROTOCOL`); not in iproute2's `rt_protos`.
pub const OURS: u8 = 0x74;

/// Metrics in our table, lower wins. Explicit, since the families' defaults differ.
const METRIC_TUN: u32 = 1024;
const METRIC_BLOCK: u32 = 4096;

/// Multicast can't be TCP; without its own route it would follow the default one into the TUN.
const MULTICAST: IpNet = IpNet::V4(Ipv4Net { addr: Ipv4Addr::new(224, 0, 0, 0), prefix: 4 });

/// The index of `lo`: the kernel's LOOPBACK_IFINDEX.
pub const LOOPBACK: u32 = 1;

const V4: u8 = libc::AF_INET as u8;
const V6: u8 = libc::AF_INET6 as u8;

/// The routes that a configuration asks for; without a TUN those that refuse what is captured, whatever
/// `on_failure` says. Prefixes that can't be captured are left out with a warning.
pub fn routes(config: &Config, path: Path, tun: Option<u32>) -> Vec<Route> {
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
        if tun.is_none() || config.on_failure == OnFailure::Block {
            routes.push(route(net, libc::RTN_UNREACHABLE, METRIC_BLOCK, 0));
        }
        routes.extend(tun.map(|tun| route(net, libc::RTN_UNICAST, METRIC_TUN, tun)));
    }
    routes
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
