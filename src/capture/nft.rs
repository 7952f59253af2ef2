//! The firewall's tables, as commands for nft(8). Each address family has a table of its own, because `dup`
//! does not exist in family `inet`. `nft/forward.nft` is the whole text for one configuration of the forward
//! path.
//!
//! # The chains
//!
//! By hook and priority. Parentheses: what else is at that place, of the kernel or of the router's own
//! firewall.
//!
//! ```text
//!  prerouting                    forward                    postrouting
//!  -300 arrived                  -139 tunnelled               99 source
//!  -200 (conntrack)                 0 (the firewall)         100 (source NAT)
//!  -139 exempt_forwarded           10 forwarded
//!       spare_forwarded
//!       past_rules, paused       input                      output
//!  -100 (destination NAT)          -1 stale                 -301 learn
//!   -90 handshakes                                          -300 to_client
//!       (routing)                                           -200 (conntrack)
//!                                                           -150 to_proxy
//!                                                           -139 exempt_local
//!                                                           -101 sent
//!                                                           -100 destination
//!                                                             -1 guard
//! ```
//!
//! | chain | on | purpose |
//! |---|---|---|
//! | `arrived` | both paths | with `handshakes`: no conntrack entries for packets that relays send to clients; without: drops forged addresses of the TUN's subnet |
//! | `forwarded` | both | decides which forwarded packets are captured; ends in `take` |
//! | `sent` | both | the same for packets that this machine itself sends (`local`) |
//! | `direct`, `spare` | both | not at a hook: connections that the configured rules let go directly |
//! | `captured`, `take` | both | not at a hook: which protocols and ports are captured; what happens to a captured packet |
//! | `learn` | both | takes addresses of names that rules let go directly from the daemon's datagrams |
//! | `paused` | both | marks connections that begin while their client is paused |
//! | `past_rules` | both | while no daemon runs: brings TCP past the policy rules to `forwarded`, which resets it |
//! | `handshakes` | forward | packets of handshakes go into the TUN; a client's first ACK releases its connection; drops forged addresses of the TUN's subnet |
//! | `to_client`, `to_proxy` | forward | packets that the daemon sends in a handshake |
//! | `destination`, `source`, `guard` | forward | NAT of handshakes, and the check that it has been applied |
//! | `stale` | forward | ends connections that a proxy remembers and conntrack does not |
//! | `spare_forwarded` | forward | keeps policy rules from capturing what NAT leads to a proxy |
//! | `tunnelled` | relay | marks connections that are routed into the TUN |
//! | `exempt_forwarded`, `exempt_local` | where policy rules capture | keeps them from capturing answers to connections from outside |
//!
//! # What is captured
//!
//! A packet is captured when this machine is about to forward it, after routing and after the firewall's own
//! chains. `take` copies it into the TUN and drops the original (forward path), or refuses it. Nothing leaks,
//! even if the daemon, policy rules or routes are gone. On the relay path policy rules lead packets into the
//! TUN; a packet that `forwarded` would capture there has got past them, and is refused.
//!
//! This machine's own packets can't be copied and dropped, because the sending socket gets an error (EPERM)
//! for the drop. Instead, DNAT leads these connections to an address behind the TUN, and the daemon asks
//! conntrack for the original destination.
//!
//! # The marks of the forward path
//!
//! The connection's mark (`ct mark`) is its state:
//!
//! | `ct mark` | state |
//! |---|---|
//! | configured mark + [`HANDSHAKE`] + number of the proxy | the daemon's handshake with the proxy is under way: all packets go into the TUN |
//! | [`ANSWERED`] | the client has been sent its SYN-ACK; its ACK releases the connection |
//! | [`RELEASED`] | the kernel forwards the connection with conntrack's NAT; the daemon takes no part |
//!
//! Packets from the daemon's raw sockets have the same marks. [`TO_CLIENT`] marks its packets to clients,
//! which conntrack must not see.
//!
//! # The relay path
//!
//! Answers to connections from outside must not be captured. Conntrack tells them by their direction,
//! `reply`. That is not enough: conntrack may lose the entry of a relayed connection (by a flush, or after
//! hours of silence). The next packet then makes a new entry, with its own direction as `original`. If the
//! daemon sends that packet, the client's packets become replies. So a connection whose first packet comes
//! out of the TUN gets the mark `begun`, and its replies are not exempt.
//!
//! # Replacement
//!
//! `nft -f` gives the tables their new rules in one transaction, so no chain has half of them. The chains stay. If
//! they were deleted and created anew, a packet could pass the new one before the transaction, while it has no rules
//! yet, and the old one after it, when it has none any more: the kernel asks each chain of a hook by itself.
//!
//! A packet that is on its way may still have met the old rules in prerouting or output, and meet the new ones in a
//! later chain: what the old ones have marked for NAT, chain `guard` of tables without a daemon rejects.
//!
//! A firewall that restarts may delete the tables; the daemon learns of it by notifications ([`follow`]) and puts
//! them back.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Display, Write as _};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::netlink::{self, Message};
use super::pause::{MAX_PAUSES, Pauses};
use super::rules as policy;
use super::{Path, Uplinks, V6};
use crate::config::{Config, Host, MARK_MASK, NonTcp, OnFailure, Quic};
use crate::dns;
use crate::net::IpNet;
use crate::rules::{Action, Rule};
use crate::time::Instant;

/// The SYN flag within `@th,96,32`, the 32 bits of a TCP header with data offset, flags and window. nft tests
/// 32 bits faster than one flag (`nft_bitwise_fast_ops`), and every forwarded packet meets this test. The
/// connection is [`RELEASED`], so the packet is TCP or an ICMP error about it. An error may pass whatever the
/// test says.
const SYN_BIT: u32 = 0x0002_0000;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWTABLE` (<linux/netfilter/nfnetlink.h>, nf_tables.h).
const NEW_TABLE: u16 = 10 << 8;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETTABLE`
const GET_TABLE: u16 = 10 << 8 | 1;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_DELTABLE`
const DELETE_TABLE: u16 = 10 << 8 | 2;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWCHAIN`
const NEW_CHAIN: u16 = 10 << 8 | 3;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_DELCHAIN`
const DELETE_CHAIN: u16 = 10 << 8 | 5;
/// `NFTA_TABLE_NAME`, and `NFTA_CHAIN_TABLE`.
const TABLE_NAME: u16 = 1;
/// `NFTA_CHAIN_NAME`
const CHAIN_NAME: u16 = 3;
/// The chain by which tables without a daemon are recognised.
const PAST_RULES: &str = "past_rules";
/// The chains at a hook that only some tables have. A table that needs one no more must not keep it, even empty: each
/// costs every packet. (Chains that are only jumped to cost nothing.)
const HOOKED: [&str; 16] = [
    "learn",
    "paused",
    "forwarded",
    "sent",
    PAST_RULES,
    "to_client",
    "to_proxy",
    "source",
    "guard",
    "destination",
    "stale",
    "handshakes",
    "spare_forwarded",
    "tunnelled",
    "exempt_forwarded",
    "exempt_local",
];
/// The sets that each table has.
const SETS: [&str; 3] = ["alive", "direct", "paused"];
/// The address families, as nft names them.
const FAMILIES: [&str; 2] = ["ip", "ip6"];
/// Length of `struct nfgenmsg`.
const BODY: usize = 4;

/// Mask of a mark: the configured mark (`MARK_MASK`) and the state.
pub const STATES: u32 = MARK_MASK | 0xc000;
/// Mask of a mark: the proxy's number, which is its place in [`Tables::proxies`], counted from 1.
pub const PROXIES: u32 = 0xff;
/// The proxy number for the daemon's test of the forward path. NAT leads it to [`PROBE_PORT`] of the address
/// behind the TUN.
pub const PROBE: u8 = 0xff;
/// The proxy number of the daemon's sign of life. Chain `to_client` renews the packet's family in the set
/// `alive`, and drops the packet.
pub const ALIVE: u8 = 0;
/// Seconds after the last sign of life until the daemon counts as dead.
const ALIVE_TIMEOUT: u8 = 10;
/// A released connection that conntrack will forget within this many seconds is over. It is the time-out of
/// TIME_WAIT (`nf_conntrack_tcp_timeout_time_wait`), the longest of a closing connection.
const OVER: u8 = 120;
/// The port for [`PROBE`]: discard (RFC 863).
pub const PROBE_PORT: u16 = 9;
/// State: the daemon is in its handshake with the proxy.
pub const HANDSHAKE: u32 = 0x4000;
/// State: the client has been sent its SYN-ACK. (With proxy number 0, on a datagram: its destination is an
/// address of a direct name, for chain `learn`.)
pub const ANSWERED: u32 = 0x8000;
/// State of a connection: the client has acknowledged its SYN-ACK, and the kernel forwards the connection.
pub const RELEASED: u32 = 0xc000;
/// State of a packet: the daemon sends it to a client. It has the value of [`RELEASED`], which only
/// connections have.
pub const TO_CLIENT: u32 = 0xc000;

/// Destinations that never take a default route: multicast, limited broadcast and link-local.
const LINK: [IpNet; 4] = [
    IpNet::new(IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4),
    IpNet::new(IpAddr::V4(Ipv4Addr::BROADCAST), 32),
    IpNet::new(IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10),
    IpNet::new(IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8),
];

/// The name of the tables, the same in both families.
pub fn name(config: &Config) -> String {
    format!("tcp_over_http_{}", config.tun.replace(|c: char| !c.is_ascii_alphanumeric(), "_"))
}

/// The commands that delete the tables, whether or not they exist.
pub fn delete(name: &str) -> String {
    FAMILIES.map(|family| delete_one(family, name)).concat()
}

fn delete_one(family: &str, name: &str) -> String {
    format!("add table {family} {name}\ndelete table {family} {name}\n")
}

/// The commands that give a table this text in place of its rules and elements. They begin with its sets and its
/// chains at hooks, without rules, so that the rest also works on a table that lacks them.
///
/// The set `alive` is left to tables of a running daemon. A packet may be halfway through the old rules, and
/// those ask the new sets: with `on_failure 'direct'`, they would let it go if the daemon were not alive there.
fn renew(family: &str, name: &str, text: &str, is_running: bool, rules: &mut String) {
    _ = writeln!(rules, "table {family} {name} {{");
    let (mut head, mut heads) = ("", Vec::new());
    for line in text.lines() {
        if line.starts_with("type ") {
            _ = writeln!(rules, "{head}\n{line}\n}}");
            heads.push(head);
        }
        head = line;
    }
    _ = writeln!(rules, "}}\nflush table {family} {name}");
    for set in SETS.into_iter().filter(|&set| is_running || set != "alive") {
        _ = writeln!(rules, "flush set {family} {name} {set}");
    }
    for chain in HOOKED {
        let is_it =
            |head: &&str| head.strip_prefix("chain ").and_then(|it| it.strip_suffix(" {")) == Some(chain);
        if !heads.iter().any(is_it) {
            _ = writeln!(rules, "add chain {family} {name} {chain}\ndelete chain {family} {name} {chain}");
        }
    }
    _ = write!(rules, "table {family} {name} {{\n{text}}}\n");
}

/// The commands that replace the tables by an empty NAT chain, for the connections that the kernel goes on to
/// forward: without any NAT chain it stops translating.
pub fn leave_nat(name: &str) -> String {
    let chain = "chain source {\ntype nat hook postrouting priority srcnat - 1; policy accept;\n}";
    let tables = FAMILIES.map(|family| format!("table {family} {name} {{\n{chain}\n}}\n"));
    delete(name) + &tables.concat()
}

/// The request for the table of a family (`AF_*`). It fails with ENOENT if there is none.
pub fn find(name: &str, family: u8) -> Message {
    Message::new(GET_TABLE, 0, &[family, 0, 0, 0]).attr_text(TABLE_NAME, name)
}

/// The commands that put the tables in place. They run again whenever somebody has deleted the tables.
#[derive(Debug)]
pub struct Commands {
    name: String,
    rules: String,
    /// Whether IPv4 and IPv6 have a table.
    pub has_table: [bool; 2],
    pauses: Pauses,
    /// The policy rules that drop captured traffic while somebody else has deleted the tables.
    pub lost: Vec<super::PolicyRule>,
}

impl Commands {
    /// The text to run at the time `now`. Each pause becomes an element of the set `paused`, with a time-out
    /// of what is left of the pause. With `is_alive`, the daemon takes captured packets at once; otherwise from
    /// its first sign of life on.
    pub fn at(&self, now: Instant, is_alive: bool) -> String {
        let mut text = self.rules.clone();
        let name = &self.name;
        for ((family, everybody), has_table) in FAMILIES.into_iter().zip(EVERYBODY).zip(self.has_table) {
            if has_table && is_alive {
                _ = writeln!(text, "add element {family} {name} alive {{ {family} }}");
            }
            for (client, left) in self.pauses.left(now) {
                let client = client.unwrap_or(everybody);
                if has_table && client.is_ipv4() == everybody.is_ipv4() {
                    _ = writeln!(text, "add element {family} {name} paused {{ {client} timeout {left}ms }}");
                }
            }
        }
        text
    }
}

/// The element that stands for all clients of a family, in the set `paused`.
const EVERYBODY: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];

/// What the tables depend on.
#[derive(Clone, Copy)]
pub struct Tables<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// The path of connections to proxies.
    pub path: Path,
    /// Whether a daemon reads the TUN.
    pub is_running: bool,
    /// Directly reachable networks, and the devices of default routes.
    pub uplinks: &'a Uplinks,
    /// The proxies' addresses: the first has the number 1.
    pub proxies: &'a [SocketAddr],
    /// Clients that go out directly for a while.
    pub pauses: &'a Pauses,
    /// What happens to captured traffic that no daemon takes.
    pub on_failure: OnFailure,
}

impl Tables<'_> {
    /// The commands that replace the tables, or only delete them if none are needed.
    pub fn replace(&self) -> Commands {
        let (name, texts) = (name(self.config), self.texts());
        let mut rules = String::new();
        for (family, text) in FAMILIES.into_iter().zip(&texts) {
            match text {
                Some(text) => renew(family, &name, text, self.is_running, &mut rules),
                None => rules += &delete_one(family, &name),
            }
        }
        Commands {
            rules,
            name,
            has_table: texts.each_ref().map(Option::is_some),
            pauses: self.pauses.clone(),
            lost: match (self.path, self.on_failure) {
                (Path::Forward, OnFailure::Block) => policy::lost(self.config),
                _ => Vec::new(),
            },
        }
    }

    /// The commands that create the tables, and fail if they exist.
    pub fn create(&self) -> String {
        let (name, mut rules) = (name(self.config), String::new());
        for (family, text) in FAMILIES.into_iter().zip(self.texts()) {
            let text = text.unwrap_or_default();
            _ = write!(rules, "create table {family} {name}\ntable {family} {name} {{\n{text}}}\n");
        }
        rules
    }

    /// Whether a daemon makes handshakes with proxies.
    fn handshakes(&self) -> bool {
        self.path == Path::Forward && self.is_running
    }

    /// The text of each family's table, if it is to have one.
    fn texts(&self) -> [Option<String>; 2] {
        let mut texts = [None, None];
        if self.path == Path::Relay && !self.config.captures() {
            return texts;
        }
        let families = FAMILIES.into_iter().zip(&mut texts);
        for ((subnet, own), (family, text)) in
            self.config.subnets().iter().zip(self.config.own()).zip(families)
        {
            let (behind, mut rules) = (subnet.error_source().to_canonical(), String::new());
            Chains { tables: self, family, own, behind, rules: &mut rules }.write();
            *text = Some(rules);
        }
        texts
    }
}

/// Writes the table of one family.
struct Chains<'a> {
    tables: &'a Tables<'a>,
    family: &'static str,
    /// The TUN's address, with its subnet.
    own: IpNet,
    /// An address of the TUN's subnet that no host has. `dup` and DNAT send packets to it, and so into the
    /// TUN.
    behind: IpAddr,
    rules: &'a mut String,
}

impl Chains<'_> {
    fn write(&mut self) {
        let Tables { config, path, is_running, on_failure, .. } = *self.tables;
        self.define();
        self.sets();
        self.arrived();
        self.direct();
        self.paused();
        if path == Path::Forward || on_failure == OnFailure::Block {
            self.take();
            self.captured();
            self.forwarded();
        }
        if self.diverts() || config.local && on_failure == OnFailure::Block {
            self.sent();
        }
        if !is_running && on_failure == OnFailure::Block {
            self.past_rules();
        }
        if path == Path::Forward {
            self.sending();
            self.rules.push_str(TO_PROXY);
            self.nat();
            self.destination();
            if is_running {
                self.rules.push_str(HANDSHAKES);
                self.foreign();
                self.rules.push_str(BEGUN);
                self.rules.push_str("}\n");
            }
            if !is_running || self.rules_capture() {
                self.rules.push_str(SPARE_FORWARDED);
            }
        }
        if config.captures() && self.rules_capture() && (path == Path::Relay || config.local) {
            self.exempt();
        }
    }

    /// Whether NAT leads connections that this machine begins into the TUN.
    fn diverts(&self) -> bool {
        self.tables.handshakes() && self.tables.config.local
    }

    /// Whether policy rules capture: always on the relay path; on the forward path for a family without a
    /// default route. A packet without a route is dropped before it gets to the chains that capture.
    fn rules_capture(&self) -> bool {
        let Tables { path, uplinks, .. } = self.tables;
        *path == Path::Relay || !uplinks.has_default[usize::from(!self.behind.is_ipv4())]
    }

    /// Defines the `$name`s that the chains use.
    fn define(&mut self) {
        let Config { tun, mark, .. } = self.tables.config;
        _ = write!(self.rules, "define tun = \"{tun}\"\ndefine behind = {}\n", self.behind);
        for (name, value) in [
            ("state", STATES),
            ("upstream", *mark),
            ("handshake", mark | HANDSHAKE),
            ("answered", mark | ANSWERED),
            ("released", mark | RELEASED),
            ("stateless", !STATES),
            ("numbered", STATES | PROXIES),
            ("ours", MARK_MASK),
            ("others", !MARK_MASK),
            ("begun", self.tables.config.begun_mark()),
            ("exempt", self.tables.config.exempt_mark()),
            ("paused", self.tables.config.paused_mark()),
            ("syn", SYN_BIT),
        ] {
            _ = writeln!(self.rules, "define {name} = {value:#010x}");
        }
    }

    /// The sets: whether the daemon is alive, the addresses of direct names, and the paused clients. Each table has all
    /// of them, so that it is known what to empty.
    fn sets(&mut self) {
        let address = if self.behind.is_ipv4() { "ipv4_addr" } else { "ipv6_addr" };
        _ = write!(
            self.rules,
            "set alive {{\n\
             type ether_type; size 2; flags dynamic, timeout; timeout {ALIVE_TIMEOUT}s\n\
             }}\n\
             set direct {{\n\
             type {address}; size 65535; flags dynamic, timeout; timeout 1d\n\
             }}\n\
             set paused {{\n\
             type {address}; size {MAX_PAUSES}; flags timeout;\n\
             }}\n"
        );
    }

    /// Chain `direct`: connections that the configured rules let go directly. It decides once for each
    /// connection, whose mark then has the result (`exempt`).
    ///
    /// Connections that the daemon carries stay with it. So do those of this machine that policy rules have
    /// led into the TUN: the kernel has given them the TUN's address as source, with which they would get no
    /// answer elsewhere. Hence `exempt_local` does not jump here.
    fn direct(&mut self) {
        let Tables { config, path, .. } = *self.tables;
        let has_names = config.rules.have_direct_names();
        if has_names {
            _ = write!(
                self.rules,
                "chain learn {{\n\
                 type filter hook output priority raw - 1; policy accept;\n\
                 meta mark & $numbered == $answered update @direct {{ {} daddr }} drop\n\
                 }}\n",
                self.family
            );
        }
        self.rules.push_str(DIRECT);
        self.fakes("return");
        let shorts = config.rules.short_forms();
        shorts.iter().for_each(|rule| self.rule(rule));
        if path == Path::Forward {
            self.rules.push_str(RELAYED);
        }
        if has_names {
            _ = writeln!(self.rules, "{} daddr @direct goto spare", self.family);
        }
        config.rules.up_to_direct().iter().skip(shorts.len()).for_each(|rule| self.rule(rule));
        self.rules.push_str("}\n");
    }

    /// Writes a configured rule, as far as nft can match it: everything but domains.
    fn rule(&mut self, rule: &Rule) {
        let verdict = if rule.action == Action::Direct { "goto spare" } else { "return" };
        let to = match rule.has_destinations() {
            true => self.matching("daddr", &rule.networks),
            false => Some(String::new()),
        };
        let Some(mut line) = to else { return };
        if !rule.devices.is_empty() {
            let names: Vec<_> = rule.devices.iter().map(|name| format!("\"{name}\"")).collect();
            _ = write!(line, "iifname {} ", Set(&names));
        }
        if !rule.ports.is_empty() {
            _ = write!(line, "meta l4proto {{ tcp, udp }} th dport {} ", Set(&ranges(&rule.ports)));
        }
        if !rule.has_clients() {
            _ = writeln!(self.rules, "{line}{verdict}");
        }
        if let Some(clients) = self.matching("saddr", &rule.clients) {
            _ = writeln!(self.rules, "{line}{clients}{verdict}");
        }
        if !rule.macs.is_empty() {
            _ = writeln!(self.rules, "{line}ether saddr {} {verdict}", Set(&rule.macs));
        }
    }

    /// Chain `arrived`. Packets that a relay sends to a client, on the forward path, are not tracked.
    /// Conntrack would call them invalid: `take` drops the client's SYN, and with it the entry that conntrack
    /// was about to make.
    fn arrived(&mut self) {
        self.rules.push_str("chain arrived {\ntype filter hook prerouting priority raw; policy accept;\n");
        if self.tables.handshakes() {
            _ = writeln!(
                self.rules,
                "iif $tun fib daddr type != local {} saddr != $behind notrack",
                self.family
            );
        } else {
            self.foreign();
        }
        self.rules.push_str("}\n");
    }

    /// Drops packets that come in by another device with a source in the TUN's subnet. The rewriter
    /// recognises the listener's answers by that source, so nobody else may use it.
    fn foreign(&mut self) {
        _ = writeln!(self.rules, "{} saddr {} iifname != {{ $tun, \"lo\" }} drop", self.family, self.own);
    }

    /// Set and chain `paused`. A connection that begins while its client is paused gets the mark `paused`. It
    /// goes out directly as long as the client is in the set. Connections through the proxy stay there.
    fn paused(&mut self) {
        let Some(client) = self.paused_client() else { return };
        let Tables { config, uplinks, path, .. } = *self.tables;
        self.rules.push_str(
            "chain paused {\n\
             type filter hook prerouting priority mangle + 11; policy accept;\n\
             iifname $tun return\n",
        );
        if !uplinks.devices.is_empty() {
            _ = writeln!(self.rules, "iif {} return", Set(&uplinks.devices));
        }
        // No server has a fake address, so connections to them can't go out directly.
        let fakes: Vec<_> = config.dns.fake_ranges().collect();
        self.nets("daddr", &fakes, "return");
        // Conntrack calls any packet without an entry `new`, also one from the middle of a connection that it
        // has forgotten. Such a connection may be the proxy's.
        _ = writeln!(
            self.rules,
            "ct state new tcp flags & (syn | ack) != syn return\n\
             ct state new {client} @paused ct mark set ct mark & $others | $paused"
        );
        if path == Path::Relay {
            _ = writeln!(
                self.rules,
                "{} {client} @paused meta mark set meta mark & $others | $exempt",
                Self::IS_PAUSED
            );
        }
        self.rules.push_str("}\n");
    }

    /// Matches packets of connections that began while their client was paused.
    const IS_PAUSED: &'static str = "ct direction original ct mark & $ours == $paused";

    /// The expression to look up in the set `paused`; `None` if nobody of this family is paused. It is the
    /// client's address or, if all clients are paused, that address with all bits masked out, which is their
    /// common element.
    fn paused_client(&self) -> Option<String> {
        let everybody = if self.behind.is_ipv4() { "0.0.0.0" } else { "::" };
        let clients = || self.tables.pauses.clients();
        if clients().any(|client| client.is_none()) {
            return Some(format!("{} saddr & {everybody}", self.family));
        }
        let is_of_family = |client: IpAddr| client.is_ipv4() == self.behind.is_ipv4();
        clients().flatten().any(is_of_family).then(|| format!("{} saddr", self.family))
    }

    /// Chain `take`: a captured packet goes into the TUN while the daemon gives signs of life (set `alive`).
    /// Otherwise it is refused or let go, as `on_failure` says.
    fn take(&mut self) {
        let Tables { path, is_running, on_failure, .. } = *self.tables;
        let is_taken = path == Path::Forward && is_running;
        self.rules.push_str("chain take {\n");
        if is_taken {
            // `meta iif` is 0 in the output hook. There the socket would get an error for the drop, so this
            // machine's own packets take the way of DNAT ([`DIVERT`]).
            self.rules.push_str("meta iif != 0 meta protocol @alive dup to $behind device $tun drop\n");
            if self.diverts() {
                self.rules.push_str(DIVERT);
            }
        }
        self.rules.push_str(match on_failure {
            OnFailure::Block => REFUSE,
            OnFailure::Direct if self.diverts() => REFUSE_WHILE_ALIVE,
            OnFailure::Direct => "accept\n}\n",
        });
    }

    /// Chain `captured`: which protocols and ports are captured, of packets whose client and destination are.
    fn captured(&mut self) {
        let Config { ports, non_tcp, quic, dns, .. } = self.tables.config;
        self.rules.push_str("chain captured {\n");
        if dns.hijacks() {
            _ = writeln!(self.rules, "meta l4proto {{ tcp, udp }} th dport {} goto take", dns::PORT);
        }
        if ports.is_empty() {
            self.rules.push_str("meta l4proto tcp goto take\n");
        } else {
            _ = writeln!(self.rules, "tcp dport {} goto take", Set(&ranges(ports)));
        }
        if *quic == Quic::Reject {
            self.rules.push_str("udp dport 443 goto take\n");
        }
        // An ICMP error about a packet that a relay has sent: conntrack does not know that packet
        // (`arrived`). The daemon passes the error on to the relay's socket.
        if self.tables.path == Path::Forward {
            _ = writeln!(self.rules, "{} ct state invalid,untracked goto take", self.icmp_error());
        }
        if *non_tcp == NonTcp::Reject {
            if *quic != Quic::Reject {
                self.rules.push_str("udp dport 443 accept\n");
            }
            self.rules.push_str("meta l4proto != tcp goto take\n");
        }
        self.rules.push_str("}\n");
    }

    /// Chain `forwarded`: which forwarded packets are captured, by client and destination. It comes after the
    /// firewall's own forward chains (priority `filter`), so what these reject is not captured.
    fn forwarded(&mut self) {
        let Tables { config, path, is_running, uplinks, .. } = *self.tables;
        self.rules
            .push_str("chain forwarded {\ntype filter hook forward priority filter + 10; policy accept;\n");
        match path {
            // The second rule is for a client that uses a port again soon. Conntrack still has the old entry,
            // and would lead the new SYN to the proxy. If that entry is about to expire (`OVER`), its
            // connection is over: the SYN gets its original destination back and is captured. The last rule
            // is for a client's packet during a handshake that `handshakes` has not taken, because no daemon
            // is alive.
            Path::Forward => {
                _ = write!(
                    self.rules,
                    "ct mark & $state == $released @th,96,32 & $syn == 0 accept\n\
                     ct direction original ct mark & $state == $released meta l4proto tcp ct expiration <= {OVER}s \
                     {0} daddr set ct original {0} daddr tcp dport set ct original proto-dst goto take\n\
                     ct mark & $state == $released accept\n\
                     ct direction original ct mark & $state {{ $handshake, $answered }} tcp flags & rst == 0 goto take\n",
                    self.family
                );
            }
            Path::Relay if is_running => self.rules.push_str("oifname $tun accept\n"),
            Path::Relay => {}
        }
        self.rules.push_str("iifname $tun oifname $tun drop\niifname $tun accept\n");
        if path == Path::Forward {
            // Routes lead these packets into the TUN: ours, for a family without a default route, or the
            // administrator's.
            self.rules.push_str("oifname $tun goto take\n");
        }
        self.exempted();
        if config.interfaces.is_empty() && !uplinks.devices.is_empty() {
            _ = writeln!(self.rules, "iif {} accept", Set(&uplinks.devices));
        }
        self.fakes("goto take");
        if let Some(client) = self.paused_client() {
            _ = writeln!(self.rules, "{} {client} @paused accept", Self::IS_PAUSED);
        }
        if !config.interfaces.is_empty() {
            let names: Vec<_> = config.interfaces.iter().map(|name| format!("\"{name}\"")).collect();
            _ = writeln!(self.rules, "iifname != {} accept", Set(&names));
        }
        // If all `client`s are of the other family, no client of this one is captured.
        if !config.clients.is_empty() && !self.nets("saddr !=", &config.clients, "accept") {
            self.rules.push_str("accept\n");
        }
        self.destinations("goto captured");
    }

    /// Chain `past_rules`, while no daemon runs. Policy rules lead captured packets to an `unreachable`
    /// route, for which the kernel sends a client one ICMP error a second: most of its connections would hang
    /// until they time out. So TCP gets the mark `exempt`, which takes it past the policy rules to chain
    /// `forwarded`, and that resets every connection. What was directly reachable when the tables were
    /// written is left to the policy rules: if that network is gone, they refuse.
    fn past_rules(&mut self) {
        self.rules.push_str(
            "chain past_rules {\n\
             type filter hook prerouting priority mangle + 11; policy accept;\n\
             meta l4proto != tcp accept\n\
             meta mark & $ours != 0 accept\n",
        );
        self.destinations("meta mark set meta mark & $others | $exempt");
    }

    /// Chain `sent`: this machine's own packets that policy rules have not led into the TUN. It is just
    /// before NAT, because the mark that `take` sets makes chain `destination` lead a connection into the
    /// TUN.
    fn sent(&mut self) {
        self.rules.push_str(SENT);
        if self.diverts() {
            _ = writeln!(self.rules, "ct reply {} saddr $behind accept", self.family);
        }
        self.exempted();
        if self.behind.is_ipv6() {
            self.rules.push_str(NEIGHBOURS);
        }
        self.fakes("goto take");
        if self.tables.config.dns.spares_own() {
            _ = writeln!(self.rules, "meta l4proto {{ tcp, udp }} th dport {} accept", dns::PORT);
        }
        self.destinations("goto captured");
    }

    /// Accepts answers to connections from outside, and connections of a proxy within the LAN, which the
    /// daemon would send back to that proxy, for ever.
    fn exempted(&mut self) {
        self.rules.push_str("ct direction reply ct mark & $ours != $begun accept\n");
        for upstream in &self.tables.config.upstreams {
            if let Host::Ip(ip) = upstream.host
                && ip.is_ipv4() == self.behind.is_ipv4()
            {
                _ = writeln!(self.rules, "{} saddr {ip} accept", self.family);
            }
        }
    }

    fn fakes(&mut self, verdict: &str) {
        let fakes: Vec<_> = self.tables.config.dns.fake_ranges().collect();
        self.nets("daddr", &fakes, verdict);
    }

    /// Decides by destination; ends a chain. `captured` is the statement for what is captured.
    fn destinations(&mut self, captured: &str) {
        let Tables { config, uplinks, .. } = *self.tables;
        self.rules.push_str("jump direct\n");
        self.nets("daddr", &config.routes, captured);
        if config.auto_route {
            let networks = [&uplinks.networks[..], &LINK].concat();
            self.nets("daddr", &networks, "accept");
            self.rules.push_str(captured);
            self.rules.push('\n');
        }
        self.rules.push_str("}\n");
    }

    /// Writes a rule for those of the networks that are of this family. Returns false if none is.
    fn nets(&mut self, before: &str, nets: &[IpNet], after: &str) -> bool {
        let matching = self.matching(before, nets);
        if let Some(matching) = &matching {
            _ = writeln!(self.rules, "{matching}{after}");
        }
        matching.is_some()
    }

    /// The expression that matches those of the networks that are of this family; `None` if none is.
    fn matching(&self, before: &str, nets: &[IpNet]) -> Option<String> {
        let mut nets: Vec<_> = nets.to_vec();
        nets.retain(|net| net.addr().is_ipv4() == self.behind.is_ipv4());
        IpNet::widest(&mut nets);
        (!nets.is_empty()).then(|| format!("{} {before} {} ", self.family, Set(&nets)))
    }

    /// Chain `to_client`, before conntrack, and the first rule of `to_proxy`, before NAT. `to_client` takes
    /// signs of life out, and has conntrack ignore packets to clients.
    ///
    /// The rule of `to_proxy` is about ICMP errors. If this machine can't forward a relay's packet to a
    /// client, its error is for the packet's source, the server, and would leave by an uplink. It goes into
    /// the TUN, for the relay. (Errors that leave by other devices are for clients.)
    fn sending(&mut self) {
        let Tables { uplinks, is_running, .. } = *self.tables;
        self.rules.push_str("chain to_client {\ntype filter hook output priority raw; policy accept;\n");
        if is_running {
            self.rules.push_str("meta mark & $numbered == $handshake update @alive { meta protocol } drop\n");
        }
        self.rules.push_str("meta mark & $state == $released notrack\n}\n");
        self.rules.push_str("chain to_proxy {\ntype filter hook output priority mangle; policy accept;\n");
        if is_running {
            let towards = match &uplinks.devices[..] {
                [] => "oifname != $tun".to_owned(),
                uplinks => format!("oif {}", Set(uplinks)),
            };
            let error = self.icmp_error();
            _ = writeln!(
                self.rules,
                "{towards} {error} ct state invalid,untracked dup to $behind device $tun drop"
            );
        }
    }

    /// Chains `source` and `guard`: source NAT, and the check that destination NAT has been applied.
    fn nat(&mut self) {
        self.rules.push_str(SOURCE);
        // Also while no daemon runs: a packet may have its mark from the tables before.
        let local = self.tables.config.local;
        if local {
            // A socket that is bound to an uplink (SO_BINDTODEVICE) keeps its route, also after DNAT: its
            // packet would leave there.
            _ = writeln!(self.rules, "{} daddr $behind oifname != $tun drop", self.family);
        }
        self.rules.push_str("}\n");
        self.rules.push_str(GUARD);
        if local {
            _ = writeln!(
                self.rules,
                "meta mark & $ours == $begun ct reply {} saddr != $behind reject",
                self.family
            );
        }
        self.rules.push_str("}\n");
    }

    /// Chains `destination` and `stale`. DNAT leads the packets of a handshake to the proxy whose number
    /// their mark has. Conntrack translates the proxy's answers back.
    fn destination(&mut self) {
        self.rules.push_str("chain destination {\ntype nat hook output priority -100; policy accept;\n");
        if self.diverts() {
            self.rules.push_str("meta mark & $ours == $begun dnat to $behind\n");
        }
        let probe = (u32::from(PROBE), SocketAddr::new(self.behind, PROBE_PORT));
        let proxies = (1..PROBE.into()).zip(self.tables.proxies.iter().copied());
        for (number, proxy) in proxies.chain([probe]) {
            if proxy.is_ipv4() == self.behind.is_ipv4() {
                let mark = self.tables.config.mark | HANDSHAKE | number;
                _ = writeln!(
                    self.rules,
                    "meta l4proto tcp meta mark & $numbered == {mark:#010x} dnat to {proxy}"
                );
            }
        }
        self.rules.push_str("}\n");
        // NAT may choose a source port from which the proxy still remembers a connection. Then the proxy
        // answers the SYN with an ACK, which conntrack calls invalid. A reset makes the proxy forget that
        // connection (RFC 9293 section 3.10.7.3), and the repeated SYN connects.
        self.rules.push_str("chain stale {\ntype filter hook input priority filter - 1; policy accept;\n");
        for proxy in self.tables.proxies.iter().filter(|proxy| proxy.is_ipv4() == self.behind.is_ipv4()) {
            _ = writeln!(
                self.rules,
                "ct state invalid {} saddr {} tcp sport {} tcp flags & (syn | rst | ack) == ack reject with tcp reset",
                self.family,
                proxy.ip(),
                proxy.port()
            );
        }
        self.rules.push_str("}\n");
    }

    /// Matches the ICMP errors that the sender of the quoted packet must receive.
    const fn icmp_error(&self) -> &'static str {
        match self.behind {
            IpAddr::V4(_) => "icmp type destination-unreachable",
            IpAddr::V6(_) => "icmpv6 type { destination-unreachable, packet-too-big }",
        }
    }

    /// Chains `exempt_forwarded` and `exempt_local`, where policy rules capture. Answers to connections from
    /// outside get the mark `exempt`, unless they have another mark of ours. On the relay path so do packets
    /// that come in by an uplink: neighbours there are not clients.
    fn exempt(&mut self) {
        let Tables { config, path, uplinks, .. } = *self.tables;
        if path == Path::Relay {
            self.rules.push_str(TUNNELLED);
        }
        self.rules.push_str(EXEMPT_FORWARDED);
        self.rules.push_str(BEGUN);
        if path == Path::Relay {
            self.rules.push_str(ANSWERS);
            self.errors();
            if config.interfaces.is_empty() && !uplinks.devices.is_empty() {
                let devices = Set(&uplinks.devices);
                _ = writeln!(
                    self.rules,
                    "iif {devices} meta mark & $ours == 0 meta mark set meta mark & $others | $exempt"
                );
            }
        }
        self.rules.push_str("jump direct\n}\n");
        self.rules
            .push_str("chain exempt_local {\ntype route hook output priority mangle + 11; policy accept;\n");
        self.rules.push_str(ANSWERS);
        if path == Path::Relay {
            self.errors();
        }
        self.rules.push_str("}\n");
    }

    /// Marks ICMP errors about packets of relays with `begun`; a policy rule leads them into the TUN. Other
    /// hosts may have made the error, or this machine itself, so both chains have this rule.
    fn errors(&mut self) {
        _ = writeln!(
            self.rules,
            "{} ct direction original ct state related ct mark & $ours == $begun meta mark set meta mark & $others | $begun",
            self.icmp_error()
        );
    }
}

/// Marks a connection that this machine begins, for chain `destination`. Conntrack may call a packet new
/// although NAT has already decided about its connection; chain `guard` rejects that.
const DIVERT: &str = "\
meta iif == 0 ct state new meta protocol @alive meta mark set meta mark & $others | $begun accept
";

/// The end of chain `take` with `on_failure 'block'`.
const REFUSE: &str = "meta l4proto tcp reject with tcp reset\nreject\n}\n";

/// The same with `on_failure 'direct'`, where this machine's own packets can be taken: a daemon that is alive
/// can't take those that conntrack does not call new, and they must not leave.
const REFUSE_WHILE_ALIVE: &str = "\
meta protocol @alive meta l4proto tcp reject with tcp reset
meta protocol @alive reject
accept
}
";

/// Accepts packets into the TUN or to this machine itself, the daemon's own packets, and exempt ones.
const SENT: &str = "\
chain sent {
type filter hook output priority -101; policy accept;
oifname { $tun, \"lo\" } accept
meta mark & $ours { $upstream, $exempt } accept
";

/// IPv6 does not work on a link without neighbour discovery (RFC 4861).
const NEIGHBOURS: &str = "\
icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } accept
";

/// Packets of handshakes to the proxy:
///
/// - The first rule drops the daemon's SYN or RST where the connection's entry is released. A late reset must
///   not end a connection that the kernel forwards. A SYN has met the entry of an earlier connection: the
///   daemon learns of the drop (EPERM), and has conntrack forget the entry.
/// - The second writes the whole mark, once for each connection. Later only the bits of the state change,
///   because other software (mwan3) keeps bits of its own in the connection's mark.
/// - The third notes that the client has been answered.
const TO_PROXY: &str = "\
meta mark & $state { $handshake, $answered } ct mark & $state == $released tcp flags & (syn | rst) != 0 drop
meta mark & $state { $handshake, $answered } ct mark & $ours != $upstream ct mark set meta mark
meta mark & $state == $answered ct mark & $state == $handshake ct mark set ct mark & $stateless | $answered
}
";

/// The daemon sends a handshake's packets with the client's address. Masquerading gives them this machine's.
const SOURCE: &str = "\
chain source {
type nat hook postrouting priority srcnat - 1; policy accept;
ct mark & $state == $handshake masquerade
";

/// A packet of a handshake that NAT does not translate would go to the server itself, in the client's name.
/// That happens if conntrack has a stale entry of the same addresses, or calls the packet invalid.
const GUARD: &str = "\
chain guard {
type filter hook output priority filter - 1; policy accept;
meta mark & $state { $handshake, $answered } ct status & dnat == 0 drop
meta mark & $state { $handshake, $answered } ct state invalid,untracked drop
";

/// Packets of a handshake, in both directions, go into the TUN. In order:
///
/// - A packet of a released connection meets only the first rule.
/// - The ACK of a client that has been answered releases its connection. The packet goes on to the proxy; the
///   daemon gets a copy. A reset of such a client goes on to the proxy, too.
/// - All other packets of the client (a repeated SYN) are copied into the TUN and dropped.
/// - So are the proxy's, among them a SYN-ACK that it repeats after the release.
///
/// The hook is before the firewall's forward chain. There a repeated SYN would let a flowtable take the
/// connection, and the proxy's answer would bypass the daemon.
const HANDSHAKES: &str = "\
chain handshakes {
type filter hook prerouting priority dstnat + 10; policy accept;
ct mark & $state == $released @th,96,32 & $syn == 0 accept
ct direction original ct mark & $state == $answered tcp flags & (syn | rst | ack) == ack \
ct mark set ct mark & $stateless | $released dup to $behind device $tun accept
ct direction original ct mark & $state == $answered tcp flags & (syn | rst) == rst accept
ct direction original ct mark & $state { $handshake, $answered } meta protocol @alive dup to $behind device $tun drop
ct direction reply ct mark & $state { $handshake, $answered } dup to $behind device $tun drop
ct direction reply ct mark & $state == $released tcp flags & syn == syn dup to $behind device $tun drop
";

/// Takes packets of handshakes and of released connections past the policy rules: these must neither capture
/// nor refuse what NAT leads to a proxy.
const SPARE_FORWARDED: &str = "\
chain spare_forwarded {
type filter hook prerouting priority mangle + 11; policy accept;
ct mark & $ours == $upstream meta mark set meta mark & $others | $exempt
}
";

/// Marks connections that are routed into the TUN with `begun`. ICMP errors about them go there, too
/// ([`Chains::errors`]), and rules of a later configuration don't let them go (chain `direct`).
const TUNNELLED: &str = "\
chain tunnelled {
type filter hook forward priority mangle + 11; policy accept;
oifname $tun meta l4proto tcp ct mark & $ours == 0 ct mark set ct mark & $others | $begun
}
";

const EXEMPT_FORWARDED: &str = "\
chain exempt_forwarded {
type filter hook prerouting priority mangle + 11; policy accept;
";

/// Marks connections whose first packet comes out of the TUN, for conntrack: those to the listener, and those
/// of clients whose entry conntrack has lost.
const BEGUN: &str = "\
iifname $tun ct direction original ct mark set ct mark & $others | $begun
";

/// Exempts answers to connections from outside. A packet that has a mark of ours keeps it.
const ANSWERS: &str = "\
ct direction reply ct mark & $ours != $begun meta mark & $ours == 0 meta mark set meta mark & $others | $exempt
";

/// A connection that goes directly has that in its mark. It goes on directly as long as conntrack has its
/// entry, even if the rules change.
const DIRECT: &str = "\
chain spare {
ct mark & $ours == 0 ct mark set ct mark & $others | $exempt
meta mark & $ours == 0 meta mark set meta mark & $others | $exempt
accept
}
chain direct {
ct mark & $ours == $exempt goto spare
ct mark & $ours == $begun return
meta mark & $ours == $upstream return
";

/// Conntrack has no entries for connections that the daemon relays on the forward path, so it calls their
/// packets new. Such packets stay with the daemon.
const RELAYED: &str = "ct state new tcp flags & syn == 0 return\n";

/// Port ranges in nft's notation.
fn ranges(ports: &[(u16, u16)]) -> Vec<String> {
    ports.iter().map(|(first, last)| format!("{first}-{last}")).collect()
}

struct Set<'a, T>(&'a [T]);

impl<T: Display> Display for Set<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, element) in self.0.iter().enumerate() {
            write!(f, "{}{element}", if index == 0 { "{ " } else { ", " })?;
        }
        f.write_str(" }")
    }
}

/// Reads notifications. For a family (IPv4, IPv6), `deleted` becomes true if somebody has deleted its table of this name,
/// or has put that of a machine without a daemon in its place (`tcp-over-http block`). It becomes false if the table is
/// created again, or what belongs to one without a daemon is deleted.
pub fn follow(name: &str, notifications: &[u8], deleted: &mut [bool; 2]) {
    for message in netlink::messages(notifications) {
        let has = |kind, text: &str| {
            let is_it =
                |(it, value): (u16, &[u8])| it == kind && value.strip_suffix(b"\0") == Some(text.as_bytes());
            netlink::attrs(message.body, BODY).any(is_it)
        };
        let is_deleted = match message.kind {
            NEW_TABLE | DELETE_TABLE if has(TABLE_NAME, name) => message.kind == DELETE_TABLE,
            // The daemon's own tables delete it, whether or not it exists.
            NEW_CHAIN | DELETE_CHAIN if has(TABLE_NAME, name) && has(CHAIN_NAME, PAST_RULES) => {
                message.kind == NEW_CHAIN
            }
            _ => continue,
        };
        deleted[usize::from(message.body.first() == Some(&V6))] = is_deleted;
    }
}

#[cfg(test)]
mod tests {
    use alloc::borrow::ToOwned;
    use alloc::vec::Vec;

    use super::*;

    const NAME: &str = "tcp_over_http_toh0";

    fn config(ipv6: &str) -> Config {
        let text = format!(
            "config tcp-over-http 'main'\n\toption tun 'toh0'\n\toption ipv6 '{ipv6}'\n\tlist upstream 'http://192.0.2.1'\n"
        );
        Config::from_uci(&text).unwrap()
    }

    fn replace(config: &Config, path: Path, is_running: bool) -> String {
        let uplinks = Uplinks::default();
        let proxies = ["192.0.2.1:80".parse().unwrap(), "[2001:db8::1]:3128".parse().unwrap()];
        let pauses = &Pauses::NONE;
        let on_failure = config.on_failure;
        let tables =
            Tables { config, path, is_running, uplinks: &uplinks, proxies: &proxies, pauses, on_failure };
        tables.replace().rules
    }

    /// The whole text, so that a diff shows each change of it.
    #[test]
    fn the_forward_path() {
        let mut config = config("0");
        config.auto_route = true;
        config.on_failure = OnFailure::Block;
        let uplinks = Uplinks {
            devices: alloc::vec![3, 5],
            networks: alloc::vec![IpNet::parse("192.168.1.0/24").unwrap()],
            ..Uplinks::default()
        };
        let proxies = ["192.0.2.1:80".parse().unwrap()];
        let tables = Tables {
            config: &config,
            path: Path::Forward,
            is_running: true,
            uplinks: &uplinks,
            proxies: &proxies,
            pauses: &Pauses::NONE,
            on_failure: config.on_failure,
        };
        let text = tables.replace().rules;
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write("src/capture/nft/forward.nft", &text).unwrap();
        }
        assert_eq!(text, include_str!("nft/forward.nft"));
    }

    #[test]
    fn ipv6_has_a_table_of_its_own() {
        let text = replace(&config("1"), Path::Forward, true);
        assert!(text.contains("table ip6 tcp_over_http_toh0 {\n"));
        assert!(text.contains("== 0x74004002 dnat to [2001:db8::1]:3128\n"));
        let without = replace(&config("0"), Path::Forward, true);
        let (ipv4, deleted) = without.split_once("add table ip6 ").unwrap();
        assert!(text.starts_with(ipv4) && deleted.ends_with("\ndelete table ip6 tcp_over_http_toh0\n"));
    }

    /// Chains stay as they are: what has a hook and is not wanted any more is deleted, and nothing else.
    #[test]
    fn chains_stay() {
        let text = "config tcp-over-http 'main'\noption dns fakeip\nlist direct_server 192.0.2.53\noption auto_route 1\n\
                    list upstream 'http://192.0.2.1'\nconfig rule\nlist domain home.example\noption direct 1\n";
        let config = Config::from_uci(text).unwrap();
        for (path, is_running) in [(Path::Forward, true), (Path::Forward, false), (Path::Relay, true)] {
            let text = replace(&config, path, is_running);
            let lines: Vec<_> = text.lines().collect();
            for two in
                lines.windows(2).filter(|two| two[1].starts_with("type ") && two[0].starts_with("chain "))
            {
                let name = two[0].split(' ').nth(1).unwrap();
                let is_known = HOOKED.contains(&name);
                assert!(is_known || name == "arrived", "{name}");
                assert_eq!(text.matches(&format!("\ndelete chain ip {NAME} {name}\n")).count(), 0);
            }
        }
        let text = replace(&config, Path::Relay, true);
        assert!(text.contains("delete chain ip6 tcp_over_http_toh0 past_rules\n"));
        let alive = "flush table ip6 tcp_over_http_toh0\nflush set ip6 tcp_over_http_toh0 alive\n";
        assert!(text.contains(alive));
        assert!(
            !replace(&config, Path::Forward, false).contains(alive),
            "the rules of before may ask for it"
        );
    }

    #[test]
    fn what_lost_its_way_is_refused_unless_it_may_go_directly() {
        let mut config = config("0");
        config.auto_route = true;
        let text = replace(&config, Path::Relay, true);
        assert!(text.contains("chain take {\nmeta l4proto tcp reject with tcp reset\nreject\n}\n"));
        assert!(text.contains("oifname $tun accept\n"));
        config.on_failure = OnFailure::Direct;
        assert!(!replace(&config, Path::Relay, true).contains("reject"));
        assert!(replace(&config, Path::Forward, true).contains(&[DIVERT, REFUSE_WHILE_ALIVE].concat()));
        config.local = false;
        assert!(replace(&config, Path::Forward, true).contains("device $tun drop\naccept\n}\n"));
    }

    #[test]
    fn without_a_daemon_released_connections_go_on() {
        let mut config = config("0");
        config.auto_route = true;
        let text = replace(&config, Path::Forward, false);
        assert!(text.contains("reject with tcp reset") && !text.contains("dup to"));
        assert!(text.contains("ct mark & $state == $released accept\n") && text.contains(SPARE_FORWARDED));
        let guard = "meta mark & $ours == $begun ct reply ip saddr != $behind reject\n";
        assert!(text.contains(guard), "tables of a daemon may have marked a packet that is on its way");
    }

    /// Each of a client's connections gets a reset, rather than one of them a second an ICMP error.
    #[test]
    fn without_a_daemon_rules_refuse_nothing_that_can_be_reset() {
        let mut config = config("0");
        config.auto_route = true;
        let chain = "meta mark & $ours != 0 accept\n\
                     jump direct\n\
                     ip daddr { 224.0.0.0/4, 255.255.255.255/32 } accept\n\
                     meta mark set meta mark & $others | $exempt\n}\n";
        assert!(replace(&config, Path::Forward, false).contains(chain));
        assert!(!replace(&config, Path::Forward, true).contains("chain past_rules {"));
        let relay = replace(&config, Path::Relay, false);
        assert!(relay.contains(chain) && !relay.contains("oifname $tun accept"));
        assert!(!replace(&config, Path::Relay, true).contains("chain past_rules {"));
        config.on_failure = OnFailure::Direct;
        assert!(!replace(&config, Path::Forward, false).contains("chain past_rules {"));
    }

    #[test]
    fn answers_to_connections_from_outside_are_exempt() {
        let mut config = config("0");
        config.auto_route = true;
        config.on_failure = OnFailure::Direct;
        let text = replace(&config, Path::Relay, true);
        let local = "chain exempt_local {\ntype route hook output priority mangle + 11; policy accept;\n";
        let errors = text.lines().find(|line| line.contains("state related")).unwrap().to_owned() + "\n";
        let end = [BEGUN, ANSWERS, &errors, "jump direct\n}\n", local, ANSWERS, &errors, "}\n}\n"].concat();
        assert!(text.contains(&end), "{text}");
        config.local = false;
        assert!(!replace(&config, Path::Forward, true).contains(ANSWERS));
    }

    /// The tables refuse it, even if others delete the policy rules.
    #[test]
    fn what_the_machine_itself_sends_is_refused() {
        let mut config = config("1");
        config.auto_route = true;
        for (path, is_running) in [(Path::Forward, true), (Path::Forward, false), (Path::Relay, true)] {
            config.local = true;
            let text = replace(&config, path, is_running);
            assert_eq!(text.matches(SENT).count(), 2);
            assert_eq!(text.contains(DIVERT), path == Path::Forward && is_running);
            assert_eq!(text.matches(NEIGHBOURS).count(), 1, "IPv6 alone");
            config.local = false;
            let text = replace(&config, path, is_running);
            assert!(!text.contains(SENT) && !text.contains(DIVERT));
        }
        config.local = true;
        config.on_failure = OnFailure::Direct;
        assert!(replace(&config, Path::Forward, true).contains(SENT), "diverted, but not refused");
        assert!(!replace(&config, Path::Forward, false).contains(SENT));
    }

    /// Order matters: the rules that exempt this machine's own packets are added before the one that drops.
    #[test]
    fn rules_stand_in_for_tables() {
        let lost = |config: &Config, path| {
            let (uplinks, pauses) = (Uplinks::default(), &Pauses::NONE);
            let on_failure = config.on_failure;
            Tables { config, path, is_running: true, uplinks: &uplinks, proxies: &[], pauses, on_failure }
                .replace()
                .lost
        };
        let mut config = config("1");
        config.auto_route = true;
        let places = |rules: &[crate::capture::PolicyRule]| {
            rules.iter().map(|rule| (rule.priority - config.rule_priority, rule.target)).collect::<Vec<_>>()
        };
        let end = config.rule_priority + 2;
        let rules = lost(&config, Path::Forward);
        assert_eq!(places(&rules), [[(2, 0), (0, end), (0, 0), (1, 0), (1, 0)]; 2].concat());
        assert_eq!(rules[4].dport, Some((443, 443)));
        config.local = false;
        config.non_tcp = NonTcp::Reject;
        let rules = lost(&config, Path::Forward);
        assert_eq!(places(&rules), [[(2, 0), (0, end), (1, 0)]; 2].concat());
        assert_eq!(rules[2].ip_proto, 0);
        assert!(lost(&config, Path::Relay).is_empty(), "there rules capture");
        config.on_failure = OnFailure::Direct;
        assert!(lost(&config, Path::Forward).is_empty());
    }

    /// In the configured order, up to the last direct rule. What concerns the other family, or names alone,
    /// is left out.
    #[test]
    fn rules_are_the_firewalls() {
        let text = "config tcp-over-http 'main'\noption dns fakeip\nlist direct_server 192.0.2.53\n\
                    list upstream 'http://192.0.2.1'\nlist bypass 10.0.0.0/8\nlist client_bypass fd00::/64\n\
                    config rule\nlist dest 203.0.113.0/24\nlist domain corp.example\noption reject 1\n\
                    config rule\nlist client 192.168.1.7\nlist client 02:00:00:00:0A:01\nlist port 80-90\n\
                    list interface br-lan\noption direct 1\n\
                    config rule\nlist dest 2001:db8::/32\noption direct 1\n\
                    config rule\nlist domain home.example\noption direct 1\n\
                    config rule\nlist port 25\noption reject 1\n";
        let mut config = Config::from_uci(text).unwrap();
        let text = replace(&config, Path::Forward, true);
        let (ipv4, ipv6) = text.split_once("table ip6 tcp_over_http_toh0 {\n").unwrap();
        let rules = |text: &str| -> String {
            let (_, chain) = text.split_once("chain direct {\n").unwrap();
            chain.lines().skip(3).take_while(|line| *line != "}").map(|line| format!("{line}\n")).collect()
        };
        assert_eq!(
            rules(ipv4),
            "ip daddr { 198.18.0.0/15 } return\n\
             ip daddr { 10.0.0.0/8 } goto spare\n\
             ct state new tcp flags & syn == 0 return\n\
             ip daddr @direct goto spare\n\
             ip daddr { 203.0.113.0/24 } return\n\
             iifname { \"br-lan\" } meta l4proto { tcp, udp } th dport { 80-90 } ip saddr { 192.168.1.7/32 } goto spare\n\
             iifname { \"br-lan\" } meta l4proto { tcp, udp } th dport { 80-90 } ether saddr { 02:00:00:00:0a:01 } goto spare\n"
        );
        assert_eq!(
            rules(ipv6),
            "ip6 daddr { 2001:2::/64 } return\n\
             ip6 saddr { fd00::/64 } goto spare\n\
             ct state new tcp flags & syn == 0 return\n\
             ip6 daddr @direct goto spare\n\
             iifname { \"br-lan\" } meta l4proto { tcp, udp } th dport { 80-90 } ether saddr { 02:00:00:00:0a:01 } goto spare\n\
             ip6 daddr { 2001:db8::/32 } goto spare\n"
        );
        assert!(
            ipv4.contains("update @direct { ip daddr } drop")
                && ipv6.contains("update @direct { ip6 daddr } drop")
        );
        config.rules = alloc::rc::Rc::default();
        assert!(!replace(&config, Path::Forward, true).contains("@direct"), "no names, no set");
    }

    /// Hosts on the uplink can't connect to fake addresses, and nobody else uses an address of the TUN's
    /// subnet.
    #[test]
    fn the_uplinks_come_before_fake_addresses() {
        let mut config = config("0");
        config.dns.mode = crate::config::DnsMode::FakeIp;
        let uplinks = Uplinks { devices: alloc::vec![3], ..Uplinks::default() };
        let tables = Tables {
            config: &config,
            path: Path::Forward,
            is_running: true,
            uplinks: &uplinks,
            proxies: &[],
            pauses: &Pauses::NONE,
            on_failure: config.on_failure,
        };
        let text = tables.replace().rules;
        let (uplink, fakes) =
            (text.find("iif { 3 } accept"), text.find("ip daddr { 198.18.0.0/15 } goto take"));
        assert!(uplink.is_some() && uplink < fakes, "{text}");
        assert!(text.contains("ip saddr 10.45.39.1/24 iifname != { $tun, \"lo\" } drop\n"));
    }

    #[test]
    fn pauses_hold_nobody_by_themselves() {
        let mut config = config("1");
        config.auto_route = true;
        let uplinks = Uplinks { devices: alloc::vec![3], ..Uplinks::default() };
        let mut pauses = Pauses::default();
        let text = |pauses: &Pauses, path| {
            Tables {
                config: &config,
                path,
                is_running: true,
                uplinks: &uplinks,
                proxies: &[],
                pauses,
                on_failure: config.on_failure,
            }
            .replace()
        };
        let elements = |pauses: &Pauses| {
            let commands = text(pauses, Path::Relay);
            commands.at(Instant::from_millis(400), false)[commands.rules.len()..].to_owned()
        };
        let alive = "alive { ip }\nadd element ip6 tcp_over_http_toh0 alive { ip6 }\n";
        assert!(text(&pauses, Path::Forward).at(Instant::from_millis(400), true).ends_with(alive));
        pauses.begin(Some(IpAddr::from([10, 1, 0, 2])), Instant::from_millis(1000));
        let said = "add element ip tcp_over_http_toh0 paused { 10.1.0.2 timeout 600ms }\n";
        assert_eq!(elements(&pauses), said);
        for path in [Path::Forward, Path::Relay] {
            let text = text(&pauses, path).rules;
            assert_eq!(text.matches("chain paused {").count(), 2, "of one family: told, then filled");
            assert_eq!(text.matches("$paused ip saddr @paused accept\n").count(), 1);
            assert!(text.contains("iifname $tun return\niif { 3 } return\nct state new tcp"));
            assert_eq!(
                text.contains("@paused meta mark set"),
                path == Path::Relay,
                "routes are asked there alone"
            );
        }
        pauses.begin(None, Instant::from_millis(900));
        assert_eq!(elements(&pauses).lines().count(), 3);
        assert!(elements(&pauses).contains("ip6 tcp_over_http_toh0 paused { :: timeout 500ms }\n"));
        assert!(text(&pauses, Path::Relay).rules.contains("$paused ip6 saddr & :: @paused accept\n"));
    }

    #[test]
    fn names_are_words() {
        let mut config = config("0");
        config.tun = "br-0.7".to_owned();
        assert_eq!(name(&config), "tcp_over_http_br_0_7");
    }

    #[test]
    fn marks_are_told_apart() {
        let mut config = config("0");
        for byte in 1..=0xff_u32 {
            config.mark = byte << 24;
            let mut marks = [0, config.mark, config.exempt_mark(), config.begun_mark(), config.paused_mark()];
            assert!(marks.iter().all(|mark| mark & !MARK_MASK == 0));
            marks.sort_unstable();
            assert!(marks.is_sorted_by(|a, b| a < b));
        }
    }

    /// `struct nlmsghdr`, `struct nfgenmsg` and a name.
    fn notification(kind: u16, name: &str) -> Vec<u8> {
        let name = [name.as_bytes(), b"\0"].concat();
        let mut attr =
            [&(4 + name.len() as u16).to_ne_bytes()[..], &TABLE_NAME.to_ne_bytes(), &name].concat();
        attr.resize(attr.len().next_multiple_of(4), 0);
        let length = (16 + BODY + attr.len()) as u32;
        let header = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10]].concat();
        [&header[..], &[2, 0, 0, 0], &attr].concat()
    }

    #[test]
    fn follows_its_own_tables() {
        let after = |list: &[(u16, &str)]| {
            let bytes: Vec<u8> = list.iter().flat_map(|(kind, name)| notification(*kind, name)).collect();
            let mut deleted = [false; 2];
            follow(NAME, &bytes, &mut deleted);
            // A cut message says nothing.
            follow(
                NAME,
                bytes.get(..bytes.len().saturating_sub(1)).unwrap_or_default(),
                &mut deleted.clone(),
            );
            deleted[0]
        };
        assert!(!after(&[]));
        assert!(after(&[(DELETE_TABLE, NAME)]));
        assert!(!after(&[(DELETE_TABLE, "others")]));
        assert!(!after(&[(DELETE_TABLE, "tcp_over_http_toh01")]));
        // A replacement by the daemon itself.
        assert!(!after(&[(DELETE_TABLE, NAME), (NEW_TABLE, NAME)]));
        // A restart of the firewall.
        assert!(after(&[(DELETE_TABLE, NAME), (NEW_TABLE, "fw4")]));
        // Messages about rules and chains have the table's name, too.
        assert!(!after(&[(10 << 8 | 8, NAME)]));
        assert!(!after(&[(NEW_CHAIN, NAME)]));
        // Tables without a daemon, of this name and of another.
        let refusing = |kind, name| {
            let mut bytes = notification(kind, name);
            bytes.extend([&15_u16.to_ne_bytes()[..], &CHAIN_NAME.to_ne_bytes(), b"past_rules\0\0"].concat());
            let length = bytes.len() as u32;
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            bytes
        };
        let after = |messages: &[Vec<u8>]| {
            let mut deleted = [false; 2];
            follow(NAME, &messages.concat(), &mut deleted);
            deleted[0]
        };
        // The other family's.
        let mut ipv6 = notification(DELETE_TABLE, NAME);
        ipv6[16] = V6;
        assert!(!after(&[ipv6.clone()]) && after(&[notification(DELETE_TABLE, NAME), ipv6]));
        let [new, others] = [NAME, "others"].map(|name| refusing(NEW_CHAIN, name));
        assert!(after(&[notification(NEW_TABLE, NAME), new.clone()]) && !after(&[others]));
        assert!(!after(&[new, refusing(DELETE_CHAIN, NAME)]));
    }
}
