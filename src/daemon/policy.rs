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
//! | P+8 | `[ipproto tcp] lookup main suppress_prefixlength 0` | `auto_route` only: any route but a default one comes before us |
//! | P+9 | `[ipproto tcp] lookup TABLE` | the capture |
//! | P+10 | `nop` | the way on to everybody else's rules |
//!
//! `iif lo` is what we send ourselves, and also what a look-up of a packet's way back looks like
//! (`src_valid_mark`): both want the way to a client.
//!
//! Rules can't say "TCP without the mark": `not` negates the whole selector, so that
//! `not fwmark M ipproto tcp` takes UDP too. Hence the jumps. `ipproto tcp` is missing with
//! `non_tcp 'reject'`.
//!
//! The table has each captured prefix twice: through the TUN, and with `on_failure 'block'` as `unreachable`
//! with a worse metric, which needs no device and so refuses the traffic when the TUN died with the daemon.
//! A bypassed prefix is a `throw`: the rules behind ours decide.
//!
//! TABLE+1 has one route, which makes everything local; TABLE+2 has each captured prefix as `unreachable`.
//!
//! All we make bears the protocol number [`OURS`]; what doesn't, somebody else made and we leave alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use log::warn;
use tcp_over_http::rewrite::Path;

use super::config::{Config, IpNet, Ipv4Net, Ipv6Net, MARK_MASK, NonTcp, OnFailure};
use super::netlink::{self, Message, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};

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

/// `<linux/fib_rules.h>`
const FR_ACT_TO_TBL: u8 = 1;
const FR_ACT_GOTO: u8 = 2;
const FR_ACT_NOP: u8 = 3;
const FRA_IIFNAME: u16 = 3;
const FRA_GOTO: u16 = 4;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_PROTOCOL: u16 = 21;
const FRA_IP_PROTO: u16 = 22;

/// Length of `struct fib_rule_hdr` and of `struct rtmsg`.
const BODY: usize = 12;

/// A policy rule; the fields are the kernel's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Address family, `AF_*`.
    pub family: u8,
    /// Lower is asked first.
    pub priority: u32,
    /// Device that the packet came from; empty = any.
    pub iif: String,
    /// Mark that the packet bears in the bits of `mask`.
    pub mark: u32,
    /// 0 = any mark.
    pub mask: u32,
    /// IP protocol; 0 = any.
    pub ip_proto: u8,
    /// `FR_ACT_*`
    pub action: u8,
    /// Table to look in; 0 = none.
    pub table: u32,
    /// Find no route with a prefix of at most this length; `u32::MAX` = find all.
    pub suppress: u32,
    /// Priority to go on at; 0 = none.
    pub target: u32,
    /// Who made it.
    pub protocol: u8,
}

/// A route in our table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// What it leads to.
    pub net: IpNet,
    /// `RTN_UNICAST` through the TUN, `RTN_UNREACHABLE` or `RTN_THROW`.
    pub kind: u8,
    /// Lower wins.
    pub metric: u32,
    /// The table it is in.
    pub table: u32,
    /// Index of the TUN; 0 for a kind that needs no device.
    pub oif: u32,
    /// Who made it.
    pub protocol: u8,
}

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
        let bypassed = bypass.iter().any(|bypass| contains(bypass, net));
        if bypassed {
            warn!("route {net} is not captured: it is bypassed");
        }
        !bypassed
    });

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
    let ip_proto = match config.non_tcp {
        NonTcp::Direct => libc::IPPROTO_TCP as u8,
        NonTcp::Reject => 0,
    };
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
            ip_proto: 0,
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
        if config.auto_route {
            rules.push(Rule {
                ip_proto,
                table: libc::RT_TABLE_MAIN.into(),
                suppress: 0,
                ..rule(8, FR_ACT_TO_TBL)
            });
        }
        rules.push(Rule { ip_proto, table: config.table, ..rule(9, FR_ACT_TO_TBL) });
    }
    rules
}

impl Rule {
    /// The request that adds it; fails with EEXIST if it is there.
    pub fn add(&self) -> Message {
        let body = [self.family, 0, 0, 0, 0, 0, 0, self.action, 0, 0, 0, 0];
        let mut message = Message::new(libc::RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, &body)
            .attr_u32(FRA_PRIORITY, self.priority)
            .attr(FRA_PROTOCOL, &[self.protocol]);
        if !self.iif.is_empty() {
            message = message.attr_text(FRA_IIFNAME, &self.iif);
        }
        if self.mask != 0 {
            message = message.attr_u32(FRA_FWMARK, self.mark).attr_u32(FRA_FWMASK, self.mask);
        }
        if self.ip_proto != 0 {
            message = message.attr(FRA_IP_PROTO, &[self.ip_proto]);
        }
        match self.action {
            FR_ACT_GOTO => message.attr_u32(FRA_GOTO, self.target),
            FR_ACT_TO_TBL => {
                message.attr_u32(FRA_TABLE, self.table).attr_u32(FRA_SUPPRESS_PREFIXLEN, self.suppress)
            }
            _ => message,
        }
    }

    /// Reads the body of an `RTM_NEWRULE` or `RTM_DELRULE`.
    pub fn parse(body: &[u8]) -> Option<Self> {
        let header: [u8; BODY] = netlink::array_at(body, 0)?;
        let mut rule = Rule {
            family: header[0],
            priority: 0,
            iif: String::new(),
            mark: 0,
            mask: 0,
            ip_proto: 0,
            action: header[7],
            table: header[4].into(),
            suppress: u32::MAX,
            target: 0,
            protocol: 0,
        };
        for (kind, value) in netlink::attrs(body, BODY) {
            let number = netlink::u32_at(value, 0);
            let byte = value.first().copied().unwrap_or(0);
            match kind {
                FRA_IIFNAME => {
                    let name = value.split(|&byte| byte == 0).next().unwrap_or_default();
                    rule.iif = String::from_utf8_lossy(name).into_owned();
                }
                FRA_GOTO => rule.target = number,
                FRA_PRIORITY => rule.priority = number,
                FRA_FWMARK => rule.mark = number,
                FRA_FWMASK => rule.mask = number,
                FRA_SUPPRESS_PREFIXLEN => rule.suppress = number,
                FRA_TABLE => rule.table = number,
                FRA_PROTOCOL => rule.protocol = byte,
                FRA_IP_PROTO => rule.ip_proto = byte,
                _ => {}
            }
        }
        Some(rule)
    }
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
        message = match self.net {
            IpNet::V4(net) => message.attr(libc::RTA_DST, &net.addr.octets()),
            IpNet::V6(net) => message.attr(libc::RTA_DST, &net.addr.octets()),
        };
        message = message.attr_u32(libc::RTA_TABLE, self.table).attr_u32(libc::RTA_PRIORITY, self.metric);
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

fn prefix_of(net: &IpNet) -> u8 {
    match net {
        IpNet::V4(net) => net.prefix,
        IpNet::V6(net) => net.prefix,
    }
}

fn contains(outer: &IpNet, inner: &IpNet) -> bool {
    if prefix_of(outer) > prefix_of(inner) {
        return false;
    }
    match (*outer, *inner) {
        (IpNet::V4(outer), IpNet::V4(inner)) => {
            let prefix = outer.prefix;
            outer.network() == Ipv4Net { prefix, ..inner }.network()
        }
        (IpNet::V6(outer), IpNet::V6(inner)) => {
            let prefix = outer.prefix;
            outer.network() == Ipv6Net { prefix, ..inner }.network()
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The most that may follow the last value.
    const PADDING: usize = 3;

    const RULE: Rule = Rule {
        family: V4,
        priority: 901,
        iif: String::new(),
        mark: 0,
        mask: 0,
        ip_proto: 0,
        action: FR_ACT_NOP,
        table: 0,
        suppress: u32::MAX,
        target: 0,
        protocol: OURS,
    };

    fn some_rules() -> [Rule; 3] {
        let mark = Rule {
            iif: "toh0".to_owned(),
            mark: 0x7400_0000,
            mask: MARK_MASK,
            target: 904,
            action: FR_ACT_GOTO,
            ..RULE
        };
        let lookup =
            Rule { family: V6, ip_proto: 6, suppress: 0, table: 7480, action: FR_ACT_TO_TBL, ..RULE };
        [RULE, mark, lookup]
    }

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
        for rule in some_rules() {
            assert_eq!(Rule::parse(rule.add().body()), Some(rule));
        }
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
        for rule in some_rules() {
            let message = rule.add();
            for cut in 0..message.body().len() - PADDING {
                assert_ne!(Rule::parse(&message.body()[..cut]), Some(rule.clone()));
            }
        }
        for route in some_routes() {
            let message = route.add();
            for cut in 0..message.body().len() - PADDING {
                assert_ne!(Route::parse(&message.body()[..cut]), Some(route.clone()));
            }
        }
    }

    #[test]
    fn containment() {
        let contains = |outer, inner| contains(&IpNet::parse(outer).unwrap(), &IpNet::parse(inner).unwrap());
        assert!(contains("10.0.0.0/8", "10.1.0.0/16"));
        assert!(contains("10.0.0.0/8", "10.0.0.0/8"));
        assert!(contains("0.0.0.0/0", "192.0.2.1/32"));
        assert!(!contains("10.1.0.0/16", "10.0.0.0/8"));
        assert!(!contains("10.0.0.0/8", "11.0.0.0/16"));
        assert!(!contains("0.0.0.0/0", "::/0"));
        assert!(contains("2001:db8::/32", "2001:db8:1::/48"));
        assert!(!contains("2001:db8::/32", "2001:db9::/48"));
    }
}
