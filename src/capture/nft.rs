//! The firewall's tables of our own, one a family (`dup` is not to be had in `inet`), as text for nft(8).
//!
//! What is **captured** is what the machine is about to forward: its routing and its firewall have decided already.
//! Chain `forwarded` asks whose it is and to where, `captured` what of it; `take` is the end: on the forward path it goes
//! into the TUN, and otherwise it is refused. So nothing leaks, whatever becomes of the daemon, of policy rules or of
//! routes: on the relay path rules lead it into the TUN, and what comes here has lost its way.
//!
//! Chain `sent` asks the same of what the machine itself sends. That can't be taken with `dup` and `drop`, of which its TCP
//! would hear: NAT leads it to the address behind the TUN, and conntrack tells the daemon to where it was.
//!
//! On the **forward path** conntrack's mark tells where a connection is in its life:
//!
//! | mark | the connection |
//! |---|---|
//! | configured mark + [`HANDSHAKE`] + number of the proxy | belongs to a handshake: all that comes back goes into the TUN |
//! | [`ANSWERED`] | its client has its SYN-ACK; the next packet of the client releases it |
//! | [`RELEASED`] | is the kernel's alone, and conntrack's NAT is its way |
//!
//! Packets of ours bear the same marks; [`TO_CLIENT`] is for those to clients, which conntrack must not see.
//!
//! On the **relay path** answers to connections from outside are exempt from being captured: connection tracking knows
//! who began, unless it was told to forget or did so after hours of silence: then whoever speaks first seems to. Hence a
//! mark on connections that seem to begin with us.
//!
//! Replaced as a whole by `nft -f`, so that there is never half of them, while their chains stay: a packet that is between
//! a new chain, which has no rules yet, and the old one, which has none any more, would get through. Firewalls that are
//! restarted may delete them; notifications tell.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Display, Write as _};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::netlink::{self, Message};
use super::pause::{MAX_PAUSES, Pauses};
use super::rules as policy;
use super::{Path, Subnets, Uplinks};
use crate::config::{Config, Host, MARK_MASK, NonTcp, OnFailure, Quic};
use crate::dns;
use crate::net::IpNet;
use crate::rules::{Action, Rule};
use crate::time::Instant;

/// Where a TCP header's flags are, with the window behind them, `@th,96,32`: what fits a register nft tests the fastest, and
/// this is asked of every packet. What bears [`RELEASED`] is TCP, or an error about it: that may pass as well.
const SYN_BIT: u32 = 0x0002_0000;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWTABLE` (<linux/netfilter/nfnetlink.h>, nf_tables.h).
const NEW_TABLE: u16 = 10 << 8;
/// The same with `NFT_MSG_GETTABLE`.
const GET_TABLE: u16 = 10 << 8 | 1;
/// The same with `NFT_MSG_DELTABLE`.
const DELETE_TABLE: u16 = 10 << 8 | 2;
/// `NFT_MSG_NEWCHAIN`
const NEW_CHAIN: u16 = 10 << 8 | 3;
/// `NFT_MSG_DELCHAIN`
const DELETE_CHAIN: u16 = 10 << 8 | 5;
/// `NFTA_TABLE_NAME`, and `NFTA_CHAIN_TABLE`.
const TABLE_NAME: u16 = 1;
/// `NFTA_CHAIN_NAME`
const CHAIN_NAME: u16 = 3;
/// The chain that tables have as long as no daemon runs.
const PAST_RULES: &str = "past_rules";
/// The chains that meet packets by themselves, of which a table may lack any. (Others that nobody needs any more cost nothing.)
const HOOKED: &str = "learn paused forwarded sent past_rules to_client to_proxy source guard destination stale \
                      handshakes spare_forwarded tunnelled exempt_forwarded exempt_local";
/// The sets that each table has.
const SETS: [&str; 3] = ["alive", "direct", "paused"];
/// As nft calls them.
const FAMILIES: [&str; 2] = ["ip", "ip6"];
/// Length of `struct nfgenmsg`.
const BODY: usize = 4;

/// Of a mark: which state, beside the bits of `MARK_MASK`, which are the configured mark's.
pub const STATES: u32 = MARK_MASK | 0xc000;
/// Of a mark: which of [`Tables::proxies`], counted from 1.
pub const PROXIES: u32 = 0xff;
/// Of [`PROXIES`]: the one that stands for the daemon itself, which tests the way to it.
pub const PROBE: u8 = 0xff;
/// The number of no proxy: a packet that bears it says that the daemon is alive, and goes nowhere.
pub const ALIVE: u8 = 0;
/// For so many seconds after the last.
const ALIVE_TIMEOUT: u8 = 10;
/// A released connection that conntrack forgets within so many seconds is over: its time-out of TIME_WAIT.
const OVER: u8 = 120;
/// The port of [`PROBE`]: discard (RFC 863).
pub const PROBE_PORT: u16 = 9;
/// The state of packets, and their connection, that belong to a handshake.
pub const HANDSHAKE: u32 = 0x4000;
/// The state once the client has been answered.
pub const ANSWERED: u32 = 0x8000;
/// The state of a connection that the client has released...
pub const RELEASED: u32 = 0xc000;
/// ...and of packets that we send to clients.
pub const TO_CLIENT: u32 = 0xc000;

/// Never takes a default route: what is for many, or for a link.
const LINK: [IpNet; 4] = [
    IpNet::new(IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4),
    IpNet::new(IpAddr::V4(Ipv4Addr::BROADCAST), 32),
    IpNet::new(IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10),
    IpNet::new(IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8),
];

/// The tables' name, in both families.
pub fn name(config: &Config) -> String {
    format!("tcp_over_http_{}", config.tun.replace(|c: char| !c.is_ascii_alphanumeric(), "_"))
}

/// The commands that delete the tables whether they are there or not.
pub fn delete(name: &str) -> String {
    FAMILIES.map(|family| delete_one(family, name)).concat()
}

fn delete_one(family: &str, name: &str) -> String {
    format!("add table {family} {name}\ndelete table {family} {name}\n")
}

/// The commands that give a table this text in place of what it has.
fn renew(family: &str, name: &str, text: &str, rules: &mut String) {
    _ = writeln!(rules, "table {family} {name} {{");
    for (head, line) in text.lines().zip(text.lines().skip(1)) {
        if line.starts_with("type ") {
            _ = writeln!(rules, "{head}\n{line}\n}}");
        }
    }
    _ = writeln!(rules, "}}\nflush table {family} {name}");
    for set in SETS {
        _ = writeln!(rules, "flush set {family} {name} {set}");
    }
    for chain in HOOKED.split_ascii_whitespace() {
        if !text.contains(&["chain ", chain, " {"].concat()) {
            _ = writeln!(rules, "add chain {family} {name} {chain}\ndelete chain {family} {name} {chain}");
        }
    }
    _ = write!(rules, "table {family} {name} {{\n{text}}}\n");
}

/// The commands that leave of the tables what the connections need that the kernel forwards: that there is a NAT chain at
/// all, for without any the kernel stops translating.
pub fn leave_nat(name: &str) -> String {
    let chain = "chain source {\ntype nat hook postrouting priority srcnat - 1; policy accept;\n}";
    let tables = FAMILIES.map(|family| format!("table {family} {name} {{\n{chain}\n}}\n"));
    delete(name) + &tables.concat()
}

/// The request for the table of a family (`AF_*`), which fails with ENOENT if there is none.
pub fn find(name: &str, family: u8) -> Message {
    Message::new(GET_TABLE, 0, &[family, 0, 0, 0]).attr_text(TABLE_NAME, name)
}

/// The commands that put tables in place, at whatever time: a pause ends when it was to.
#[derive(Debug)]
pub struct Commands {
    name: String,
    rules: String,
    /// Whether a family has a table.
    has_table: [bool; 2],
    pauses: Pauses,
    /// The policy rules that are to be there while the tables, which somebody else has deleted, are not.
    pub lost: Vec<super::Rule>,
}

impl Commands {
    /// Their text. The rules hold nobody who is paused: that is added, for the time that is left of it now.
    pub fn at(&self, now: Instant) -> String {
        let mut text = self.rules.clone();
        for (client, left) in self.pauses.left(now) {
            for ((family, everybody), has_table) in EVERYBODY.into_iter().zip(self.has_table) {
                let client = client.unwrap_or(everybody);
                if has_table && client.is_ipv4() == everybody.is_ipv4() {
                    let name = &self.name;
                    _ = writeln!(text, "add element {family} {name} paused {{ {client} timeout {left}ms }}");
                }
            }
        }
        text
    }
}

/// Who stands for everybody, in each family.
const EVERYBODY: [(&str, IpAddr); 2] =
    [("ip", IpAddr::V4(Ipv4Addr::UNSPECIFIED)), ("ip6", IpAddr::V6(Ipv6Addr::UNSPECIFIED))];

/// What the tables are made of.
#[derive(Clone, Copy)]
pub struct Tables<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// How connections get to proxies.
    pub path: Path,
    /// Whether a daemon reads the TUN.
    pub is_running: bool,
    /// Whether it takes what is captured by now, which would be in the way of its test.
    pub is_tested: bool,
    /// What is nearby, and where default routes lead.
    pub uplinks: &'a Uplinks,
    /// The proxies' addresses: the first has the number 1.
    pub proxies: &'a [SocketAddr],
    /// Who goes out directly for a while.
    pub pauses: &'a Pauses,
    /// What becomes of captured traffic that no daemon takes.
    pub on_failure: OnFailure,
}

impl Tables<'_> {
    /// The commands that replace the tables, or delete them where none are needed.
    pub fn replace(&self) -> Commands {
        let (name, texts) = (name(self.config), self.texts());
        let mut rules = String::new();
        for (family, text) in FAMILIES.into_iter().zip(&texts) {
            match text {
                Some(text) => renew(family, &name, text, &mut rules),
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

    /// The commands that put the tables in place, and fail if there are some.
    pub fn create(&self) -> String {
        let (name, mut rules) = (name(self.config), String::new());
        for (family, text) in FAMILIES.into_iter().zip(self.texts()) {
            let text = text.unwrap_or_default();
            _ = write!(rules, "create table {family} {name}\ntable {family} {name} {{\n{text}}}\n");
        }
        rules
    }

    /// Whether a daemon takes what belongs to handshakes.
    fn handshakes(&self) -> bool {
        self.path == Path::Forward && self.is_running
    }

    /// What is in each family's table, if it is to have one.
    fn texts(&self) -> [Option<String>; 2] {
        let Self { config, path, .. } = self;
        let has_any = *path == Path::Forward || config.captures();
        let Subnets { ipv4, ipv6 } = Subnets::new(config);
        let ipv6 = ipv6.zip(config.address6.map(IpNet::V6));
        [("ip", Some((ipv4, IpNet::V4(config.address)))), ("ip6", ipv6)].map(|(family, net)| {
            let (subnet, own) = net.filter(|_| has_any)?;
            let (behind, mut rules) = (subnet.error_source().to_canonical(), String::new());
            Chains { tables: self, family, own, behind, rules: &mut rules }.write();
            Some(rules)
        })
    }
}

/// The chains of one family.
struct Chains<'a> {
    tables: &'a Tables<'a>,
    family: &'static str,
    /// The TUN's address and subnet.
    own: IpNet,
    /// Any address behind the TUN.
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

    /// Whether NAT leads into the TUN what the machine itself begins.
    fn diverts(&self) -> bool {
        self.tables.handshakes() && self.tables.config.local
    }

    /// Whether policy rules capture, since what has no route is neither forwarded nor sent.
    fn rules_capture(&self) -> bool {
        let Tables { path, uplinks, .. } = self.tables;
        *path == Path::Relay || !uplinks.has_default[usize::from(!self.behind.is_ipv4())]
    }

    /// What the chains' text calls `$name`.
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

    /// Whether the daemon lives, the addresses of direct names, and who is paused.
    fn sets(&mut self) {
        let address = if self.behind.is_ipv4() { "ipv4_addr" } else { "ipv6_addr" };
        _ = write!(
            self.rules,
            "set alive {{\n\
             type ether_type; size 2; flags dynamic, timeout; timeout {ALIVE_TIMEOUT}s\n\
             {}\
             }}\n\
             set direct {{\n\
             type {address}; size 65535; flags dynamic, timeout; timeout 1d\n\
             }}\n\
             set paused {{\n\
             type {address}; size {MAX_PAUSES}; flags timeout;\n\
             }}\n",
            if self.tables.is_tested {
                ["elements = { ", self.family, " }\n"].concat()
            } else {
                String::new()
            }
        );
    }

    /// What rules let go: the kernel decides that by itself, once a connection. What the daemon carries stays with it, and
    /// what policy rules lead to it of what the machine itself sends: that comes from the TUN's address.
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

    /// One of the rules, as far as it concerns addresses.
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

    /// What a relay sends to a client conntrack must not see, which would take it for invalid: it has not seen the SYN.
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

    /// Nobody else has the TUN's addresses: its listener's answers are told by them.
    fn foreign(&mut self) {
        _ = writeln!(self.rules, "{} saddr {} iifname != {{ $tun, \"lo\" }} drop", self.family, self.own);
    }

    /// Who goes out directly for a while: connections that begin meanwhile, as long as the element lives. Those that the
    /// proxy has go on there.
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
        // Fake addresses are nobody's.
        let fakes: Vec<_> = config.dns.fake_ranges().collect();
        self.nets("daddr", &fakes, "return");
        // A connection that conntrack has forgotten does not begin.
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

    const IS_PAUSED: &'static str = "ct direction original ct mark & $ours == $paused";

    /// What is looked for among the paused, if there are any: a client, or everybody, who is the address without a bit.
    fn paused_client(&self) -> Option<String> {
        let everybody = if self.behind.is_ipv4() { "0.0.0.0" } else { "::" };
        let clients = || self.tables.pauses.clients();
        if clients().any(|client| client.is_none()) {
            return Some(format!("{} saddr & {everybody}", self.family));
        }
        let is_of_family = |client: IpAddr| client.is_ipv4() == self.behind.is_ipv4();
        clients().flatten().any(is_of_family).then(|| format!("{} saddr", self.family))
    }

    /// Where what is captured ends: with the daemon, as long as it lives.
    fn take(&mut self) {
        let Tables { path, is_running, on_failure, .. } = *self.tables;
        let is_taken = path == Path::Forward && is_running;
        self.rules.push_str("chain take {\n");
        if is_taken {
            // What is forwarded, that is. Its own TCP would hear of the drop: NAT leads there what the machine itself begins.
            self.rules.push_str("meta iif != 0 meta protocol @alive dup to $behind device $tun drop\n");
            if self.diverts() {
                self.rules.push_str(DIVERT);
            }
        }
        self.rules.push_str(match on_failure {
            OnFailure::Block => "meta l4proto tcp reject with tcp reset\nreject\n}\n",
            OnFailure::Direct => "accept\n}\n",
        });
    }

    /// What of it.
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
        // An error about what a relay has sent, of which conntrack knows nothing.
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

    /// Whose traffic it is, and to where: behind the firewall's own chain.
    fn forwarded(&mut self) {
        let Tables { config, path, is_running, uplinks, .. } = *self.tables;
        self.rules
            .push_str("chain forwarded {\ntype filter hook forward priority filter + 10; policy accept;\n");
        match path {
            // A SYN where a connection has ended, or is about to, begins anew: conntrack would lead it to the proxy.
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
            // Led there by routes: ours, where there is no default one, or the owner's.
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
        // Clients of the other family only: none of this one.
        if !config.clients.is_empty() && !self.nets("saddr !=", &config.clients, "accept") {
            self.rules.push_str("accept\n");
        }
        self.destinations("goto captured");
    }

    /// Policy rules refuse with errors, of which the kernel sends a client one a second, and to its other connections
    /// nothing: what `forwarded` takes, whatever is nearby by now, gets there, and all of it is reset.
    fn past_rules(&mut self) {
        self.rules.push_str(
            "chain past_rules {\n\
             type filter hook prerouting priority mangle + 11; policy accept;\n\
             meta l4proto != tcp accept\n\
             meta mark & $ours != 0 accept\n",
        );
        self.destinations("meta mark set meta mark & $others | $exempt");
    }

    /// What the machine itself sends, and policy rules have not led into the TUN. Before NAT, which leads there what begins.
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

    /// Answers to connections from outside, and what a proxy within the LAN sends, which would come back to it for ever.
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

    /// To where: the end of a chain.
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

    /// A rule about networks of this family, if there are any.
    fn nets(&mut self, before: &str, nets: &[IpNet], after: &str) -> bool {
        let matching = self.matching(before, nets);
        if let Some(matching) = &matching {
            _ = writeln!(self.rules, "{matching}{after}");
        }
        matching.is_some()
    }

    /// What matches networks of this family, if there are any.
    fn matching(&self, before: &str, nets: &[IpNet]) -> Option<String> {
        let mut nets: Vec<_> = nets.to_vec();
        nets.retain(|net| net.addr().is_ipv4() == self.behind.is_ipv4());
        IpNet::widest(&mut nets);
        (!nets.is_empty()).then(|| format!("{} {before} {} ", self.family, Set(&nets)))
    }

    /// What the machine itself sends, before conntrack and before NAT: signs of life, which go nowhere, and a handshake's
    /// packets. Errors that it makes about a client's packets go to the relay.
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

    /// What NAT needs beside [`Self::destination`], and what it has to have done.
    fn nat(&mut self) {
        self.rules.push_str(SOURCE);
        if self.diverts() {
            // A socket that is bound to another device does not get there.
            _ = writeln!(self.rules, "{} daddr $behind oifname != $tun drop", self.family);
        }
        self.rules.push_str("}\n");
        self.rules.push_str(GUARD);
        if self.diverts() {
            _ = writeln!(
                self.rules,
                "meta mark & $ours == $begun ct reply {} saddr != $behind reject",
                self.family
            );
        }
        self.rules.push_str("}\n");
    }

    /// Which proxy a handshake's packets go to; what comes back, conntrack knows.
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
        // A proxy that still remembers an earlier connection from the port that NAT has chosen answers a SYN with an ACK,
        // which conntrack knows nothing of: the reset makes it forget (RFC 9293 section 3.10.7.3), for the next SYN.
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

    /// Matches errors that somebody whose packet it is about must hear of.
    const fn icmp_error(&self) -> &'static str {
        match self.behind {
            IpAddr::V4(_) => "icmp type destination-unreachable",
            IpAddr::V6(_) => "icmpv6 type { destination-unreachable, packet-too-big }",
        }
    }

    /// Marks the answers to connections from outside, unless they bear a mark of ours, where policy rules capture, and on
    /// the relay path what comes in by an uplink: neighbours there have no business with the proxy.
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

    /// Marks errors about what a relay has sent, of which the router may be the maker: a policy rule leads them into the TUN.
    fn errors(&mut self) {
        _ = writeln!(
            self.rules,
            "{} ct direction original ct state related ct mark & $ours == $begun meta mark set meta mark & $others | $begun",
            self.icmp_error()
        );
    }
}

/// What the machine itself begins. (What is no beginning for NAT, `guard` refuses.)
const DIVERT: &str = "\
meta iif == 0 ct state new meta protocol @alive meta mark set meta mark & $others | $begun accept
";

/// Our own connections go past, and what has found its way.
const SENT: &str = "\
chain sent {
type filter hook output priority -101; policy accept;
oifname { $tun, \"lo\" } accept
meta mark & $ours { $upstream, $exempt } accept
";

/// What a link can't do without.
const NEIGHBOURS: &str = "\
icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } accept
";

/// The way of a handshake's packets. A reset that comes too late must not end what the kernel has, and a SYN
/// would meet what is over: the daemon has it forgotten. The whole mark is set only once: others keep theirs in it.
const TO_PROXY: &str = "\
meta mark & $state { $handshake, $answered } ct mark & $state == $released tcp flags & (syn | rst) != 0 drop
meta mark & $state { $handshake, $answered } ct mark & $ours != $upstream ct mark set meta mark
meta mark & $state == $answered ct mark & $state == $handshake ct mark set ct mark & $stateless | $answered
}
";

/// A handshake's packets have this machine's address.
const SOURCE: &str = "\
chain source {
type nat hook postrouting priority srcnat - 1; policy accept;
ct mark & $state == $handshake masquerade
";

/// Without NAT, as for a stale entry of the same addresses, a packet would go to the server itself.
const GUARD: &str = "\
chain guard {
type filter hook output priority filter - 1; policy accept;
meta mark & $state { $handshake, $answered } ct status & dnat == 0 drop
meta mark & $state { $handshake, $answered } ct state invalid,untracked drop
";

/// What belongs to a handshake, both ways; a released connection's packets meet one rule here. The first packet of a client
/// that was answered releases its connection, and the daemon sees it. Before the firewall's chains: a repeated SYN would
/// have their flowtable take the connection, and the proxy's answer past us.
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

/// Policy rules must not capture, or refuse, what NAT leads to a proxy.
const SPARE_FORWARDED: &str = "\
chain spare_forwarded {
type filter hook prerouting priority mangle + 11; policy accept;
ct mark & $ours == $upstream meta mark set meta mark & $others | $exempt
}
";

/// Connections that go into the TUN: errors about them belong there, and rules that come later don't let them go.
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

/// Connections that seem to begin with what we send to clients.
const BEGUN: &str = "\
iifname $tun ct direction original ct mark set ct mark & $others | $begun
";

const ANSWERS: &str = "\
ct direction reply ct mark & $ours != $begun meta mark & $ours == 0 meta mark set meta mark & $others | $exempt
";

/// What is let go stays so for as long as the connection is tracked, whatever becomes of the rules.
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

/// On the forward path, conntrack knows nothing of that: such packets seem to be new.
const RELAYED: &str = "ct state new tcp flags & syn == 0 return\n";

/// Ports, as nft has them.
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

/// Reads notifications: `deleted` becomes whether somebody has deleted tables of this name and not put them back, or has
/// put those there that refuse until a daemon runs, which has not put back its own.
pub fn follow(name: &str, notifications: &[u8], deleted: &mut bool) {
    for message in netlink::messages(notifications) {
        let has = |kind, text: &str| {
            let is_it =
                |(it, value): (u16, &[u8])| it == kind && value.strip_suffix(b"\0") == Some(text.as_bytes());
            netlink::attrs(message.body, BODY).any(is_it)
        };
        match message.kind {
            NEW_TABLE | DELETE_TABLE if has(TABLE_NAME, name) => *deleted = message.kind == DELETE_TABLE,
            // (We delete it whether it is there or not.)
            NEW_CHAIN | DELETE_CHAIN if has(TABLE_NAME, name) && has(CHAIN_NAME, PAST_RULES) => {
                *deleted = message.kind == NEW_CHAIN;
            }
            _ => {}
        }
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
        let tables = Tables {
            config,
            path,
            is_running,
            is_tested: true,
            uplinks: &uplinks,
            proxies: &proxies,
            pauses,
            on_failure,
        };
        tables.replace().rules
    }

    /// The whole text, that a change of it is seen.
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
            is_tested: true,
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
                let is_known = HOOKED.split_ascii_whitespace().any(|known| known == name);
                assert!(is_known || name == "arrived", "{name}");
                assert_eq!(text.matches(&format!("\ndelete chain ip {NAME} {name}\n")).count(), 0);
            }
        }
        let text = replace(&config, Path::Relay, true);
        assert!(text.contains("delete chain ip6 tcp_over_http_toh0 past_rules\n"));
        assert!(
            text.contains("flush table ip6 tcp_over_http_toh0\nflush set ip6 tcp_over_http_toh0 alive\n")
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
        assert!(replace(&config, Path::Forward, true).contains(&[DIVERT, "accept\n}\n"].concat()));
    }

    #[test]
    fn without_a_daemon_released_connections_go_on() {
        let mut config = config("0");
        config.auto_route = true;
        let text = replace(&config, Path::Forward, false);
        assert!(text.contains("reject with tcp reset") && !text.contains("dup to"));
        assert!(text.contains("ct mark & $state == $released accept\n") && text.contains(SPARE_FORWARDED));
    }

    /// A client that asks for much is refused all of it: a reset for each, not an error a second.
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

    /// By whom it is, whatever becomes of the rules.
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

    /// What the machine itself sends jumps past what drops the rest, before that is there.
    #[test]
    fn rules_stand_in_for_tables() {
        let lost = |config: &Config, path| {
            let (uplinks, pauses) = (Uplinks::default(), &Pauses::NONE);
            let on_failure = config.on_failure;
            Tables {
                config,
                path,
                is_running: true,
                is_tested: true,
                uplinks: &uplinks,
                proxies: &[],
                pauses,
                on_failure,
            }
            .replace()
            .lost
        };
        let mut config = config("1");
        config.auto_route = true;
        let places = |rules: &[crate::capture::Rule]| {
            rules.iter().map(|rule| (rule.priority - config.rule_priority, rule.target)).collect::<Vec<_>>()
        };
        let end = config.rule_priority + 2;
        let rules = lost(&config, Path::Forward);
        assert_eq!(places(&rules), [[(2, 0), (0, end), (0, 0), (1, 0)]; 2].concat());
        config.local = false;
        assert_eq!(places(&lost(&config, Path::Forward)), [[(2, 0), (0, end), (1, 0)]; 2].concat());
        assert!(lost(&config, Path::Relay).is_empty(), "there rules capture");
        config.on_failure = OnFailure::Direct;
        assert!(lost(&config, Path::Forward).is_empty());
    }

    /// In order, up to the last that is direct; what concerns another family, or names alone, is left out.
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

    /// Neighbours must not guess fake addresses, and who is behind the TUN has an address that nobody else has.
    #[test]
    fn the_uplinks_come_before_fake_addresses() {
        let mut config = config("0");
        config.dns.mode = crate::config::DnsMode::FakeIp;
        let uplinks = Uplinks { devices: alloc::vec![3], ..Uplinks::default() };
        let tables = Tables {
            config: &config,
            path: Path::Forward,
            is_running: true,
            is_tested: true,
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
                is_tested: true,
                uplinks: &uplinks,
                proxies: &[],
                pauses,
                on_failure: config.on_failure,
            }
            .replace()
        };
        let elements = |pauses: &Pauses| {
            let commands = text(pauses, Path::Relay);
            commands.at(Instant::from_millis(400))[commands.rules.len()..].to_owned()
        };
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
            let mut deleted = false;
            follow(NAME, &bytes, &mut deleted);
            // A cut message says nothing.
            follow(
                NAME,
                bytes.get(..bytes.len().saturating_sub(1)).unwrap_or_default(),
                &mut deleted.clone(),
            );
            deleted
        };
        assert!(!after(&[]));
        assert!(after(&[(DELETE_TABLE, NAME)]));
        assert!(!after(&[(DELETE_TABLE, "others")]));
        assert!(!after(&[(DELETE_TABLE, "tcp_over_http_toh01")]));
        // As we do it.
        assert!(!after(&[(DELETE_TABLE, NAME), (NEW_TABLE, NAME)]));
        // A restart of the firewall.
        assert!(after(&[(DELETE_TABLE, NAME), (NEW_TABLE, "fw4")]));
        // Rules and chains bear the table's name as well.
        assert!(!after(&[(10 << 8 | 8, NAME)]));
        assert!(!after(&[(NEW_CHAIN, NAME)]));
        // What refuses until a daemon runs, of ours and of others.
        let refusing = |kind, name| {
            let mut bytes = notification(kind, name);
            bytes.extend([&15_u16.to_ne_bytes()[..], &CHAIN_NAME.to_ne_bytes(), b"past_rules\0\0"].concat());
            let length = bytes.len() as u32;
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            bytes
        };
        let after = |messages: &[Vec<u8>]| {
            let mut deleted = false;
            follow(NAME, &messages.concat(), &mut deleted);
            deleted
        };
        let [new, others] = [NAME, "others"].map(|name| refusing(NEW_CHAIN, name));
        assert!(after(&[notification(NEW_TABLE, NAME), new.clone()]) && !after(&[others]));
        assert!(!after(&[new, refusing(DELETE_CHAIN, NAME)]));
    }
}
