//! The policy rules, as in the table of `capture.rs`.

use alloc::borrow::ToOwned;
use alloc::vec::Vec;

use super::routes::Group;
use super::rule::{FR_ACT_BLACKHOLE, FR_ACT_GOTO, FR_ACT_NOP, FR_ACT_TO_TBL, PolicyRule};
use super::uplinks::default_prefix;
use super::{MAIN, OURS, V4, V6, family_of};
use crate::config::{Config, Host, MARK_MASK, NonTcp, Quic};
use crate::dns;
use crate::net::IpNet;

// Priorities, relative to `rule_priority` (P in the table).

const LOST_EXEMPT: u32 = 0;
const LOST: u32 = 1;
const LEAVES_TUN: u32 = 2;
const MARKED: u32 = 3;
const FAKE: u32 = 4;
const LOCAL: u32 = 5;
const DEVICES: u32 = 6;
const NO_DEVICE: u32 = 7;
const NOT_CLIENTS: u32 = 8;
const CLIENTS: u32 = 9;
const NO_CLIENT: u32 = 10;
const CAPTURE: u32 = 11;
const MAIN_FIRST: u32 = 12;
const CAPTURED: u32 = 13;
const LEFT_ALONE: u32 = 14;
const REJECTED: u32 = 15;
const END: u32 = 16;

/// Offset of the last rule's priority.
pub const LAST_RULE: u32 = END;

/// The incoming device of packets that this machine itself sends.
const SELF: &str = "lo";
const TCP: u8 = 6;
const UDP: u8 = 17;
/// QUIC's port (RFC 9114 section 3.1).
const HTTPS: u16 = 443;

/// The rules that look up these routes, in the order in which they must be added: the capture comes last, so
/// that meanwhile neither our own connections nor local networks are captured. A family (IPv4, IPv6) that the
/// firewall captures has none.
pub fn rules(
    config: &Config,
    forwards: bool,
    are_firewalls: [bool; 2],
    tun: &str,
    groups: &[Group],
) -> Vec<PolicyRule> {
    let mut all = Vec::new();
    for (family, is_firewalls) in [V4, V6].into_iter().zip(are_firewalls) {
        if is_firewalls || !groups.iter().any(|group| group.captures(family)) {
            continue;
        }
        let mut rules = Rules { config, family, all: &mut all };
        rules.add(END, FR_ACT_NOP); // a jump needs its target
        rules.goto(LEAVES_TUN, END).device(tun);
        if config.mark != 0 {
            rules.goto(MARKED, END).marked(config.mark);
            rules.goto(MARKED, END).marked(config.exempt_mark());
            if !forwards {
                rules.lookup(MARKED, config.table).marked(config.begun_mark());
            }
        }
        rules.spare_proxies(forwards);
        for range in config.dns.fake_ranges().filter(|range| family_of(*range) == family) {
            rules.lookup(FAKE, config.table).dst = Some(range);
        }
        if config.dns.spares_own() {
            for protocol in [TCP, UDP] {
                rules.goto(FAKE, END).device(SELF).of(protocol, Some((dns::PORT, dns::PORT)));
            }
        }
        rules.select();
        rules.capture();
    }
    all
}

/// The rules that drop what would be captured while the firewall's tables are missing, in the order in which they
/// must be added. Policy rules are asked about every packet, so they also stop a connection that NAT no longer
/// leads to its proxy.
pub fn lost(config: &Config) -> Vec<PolicyRule> {
    let mut all = Vec::new();
    for family in [Some(V4), config.address6.map(|_| V6)].into_iter().flatten() {
        let mut rules = Rules { config, family, all: &mut all };
        rules.add(LEAVES_TUN, FR_ACT_NOP);
        if config.local {
            rules.goto(LOST_EXEMPT, LEAVES_TUN).marked(config.mark);
            rules.lookup(LOST_EXEMPT, MAIN).but_default().device(SELF);
        } else {
            rules.goto(LOST_EXEMPT, LEAVES_TUN).device(SELF);
        }
        rules.add(LOST, FR_ACT_BLACKHOLE).ip_proto = rules.protocol();
        for port in rules.udp().into_iter().flatten() {
            rules.add(LOST, FR_ACT_BLACKHOLE).of(UDP, Some((port, port)));
        }
    }
    all
}

/// Writes the rules of one family.
struct Rules<'a> {
    config: &'a Config,
    family: u8,
    all: &'a mut Vec<PolicyRule>,
}

impl Rules<'_> {
    /// Exempts a proxy within the LAN: its connections to servers would be sent back to it, for ever. (If it
    /// connects from another address, or runs on this machine, they still are.)
    fn spare_proxies(&mut self, forwards: bool) {
        for upstream in &self.config.upstreams {
            let Host::Ip(address) = upstream.host else { continue };
            let host = IpNet::host(address);
            if family_of(host) == self.family {
                self.goto(MARKED, END).src = Some(host);
                if forwards {
                    self.goto(MARKED, END).dst = Some(host); // NAT leads forwarded connections to it
                }
            }
        }
    }

    /// Whose traffic is captured: by device and client.
    fn select(&mut self) {
        let Config { interfaces, clients, rules, local, .. } = self.config;
        let mut spared = Vec::new();
        rules.short_forms().iter().for_each(|rule| spared.extend_from_slice(&rule.clients));
        let selective = !(interfaces.is_empty() && clients.is_empty() && spared.is_empty());
        if !local {
            self.goto(LOCAL, END).device(SELF);
        } else if selective {
            self.goto(LOCAL, CAPTURE).device(SELF);
        }
        if !selective {
            return;
        }
        self.add(CAPTURE, FR_ACT_NOP);
        self.add(NOT_CLIENTS, FR_ACT_NOP);
        for device in interfaces {
            self.goto(DEVICES, NOT_CLIENTS).device(device);
        }
        if !interfaces.is_empty() {
            self.goto(NO_DEVICE, END);
        }
        for (nets, offset, target) in [(&spared, NOT_CLIENTS, END), (clients, CLIENTS, CAPTURE)] {
            for net in nets {
                if family_of(*net) == self.family {
                    self.goto(offset, target).src = Some(*net);
                }
            }
        }
        // If all `client`s are of the other family, no client of this one is captured.
        if !clients.is_empty() {
            self.goto(NO_CLIENT, END);
        }
    }

    /// Which protocols and ports are captured.
    fn capture(&mut self) {
        let Config { ports, table, auto_route, .. } = self.config;
        let (table, rejects_all) = (*table, self.protocol() != TCP);
        let rejects_quic = self.config.quic == Quic::Reject;
        if *auto_route {
            self.lookup(MAIN_FIRST, MAIN).but_default().ip_proto = self.protocol();
        }
        if ports.is_empty() {
            self.lookup(CAPTURED, table).of(TCP, None);
        } else if self.config.dns.hijacks() {
            self.lookup(CAPTURED, table).of(TCP, Some((dns::PORT, dns::PORT)));
        }
        for &ports in ports {
            self.lookup(CAPTURED, table).of(TCP, Some(ports));
        }
        for port in self.udp().into_iter().flatten() {
            if *auto_route {
                self.lookup(MAIN_FIRST, MAIN).but_default().of(UDP, Some((port, port)));
            }
            self.lookup(CAPTURED, table).of(UDP, Some((port, port)));
        }
        if rejects_all {
            self.goto(LEFT_ALONE, END).of(TCP, None);
            if !rejects_quic {
                self.goto(LEFT_ALONE, END).of(UDP, Some((HTTPS, HTTPS)));
            }
            self.lookup(REJECTED, table);
        }
    }

    /// The protocol that is captured; 0: all of them.
    fn protocol(&self) -> u8 {
        if self.config.non_tcp == NonTcp::Reject { 0 } else { TCP }
    }

    /// The ports of UDP that are captured where not all protocols are.
    fn udp(&self) -> [Option<u16>; 2] {
        let Config { quic, dns, .. } = self.config;
        let udp = [(*quic == Quic::Reject, HTTPS), (dns.hijacks(), dns::PORT)];
        udp.map(|(is, port)| (is && self.protocol() == TCP).then_some(port))
    }

    fn lookup(&mut self, offset: u32, table: u32) -> &mut PolicyRule {
        let rule = self.add(offset, FR_ACT_TO_TBL);
        rule.table = table;
        rule
    }

    fn goto(&mut self, offset: u32, target: u32) -> &mut PolicyRule {
        let target = self.config.rule_priority.saturating_add(target);
        let rule = self.add(offset, FR_ACT_GOTO);
        rule.target = target;
        rule
    }

    /// Adds a rule that matches all packets of the family; the caller narrows it.
    fn add(&mut self, offset: u32, action: u8) -> &mut PolicyRule {
        let at = self.all.len();
        let priority = self.config.rule_priority.saturating_add(offset);
        self.all.push(PolicyRule {
            family: self.family,
            priority,
            action,
            protocol: OURS,
            ..PolicyRule::EVERY_PACKET
        });
        &mut self.all[at]
    }
}

impl PolicyRule {
    fn device(&mut self, device: &str) -> &mut Self {
        self.iif = device.to_owned();
        self
    }

    fn marked(&mut self, mark: u32) -> &mut Self {
        (self.mark, self.mask) = (mark, MARK_MASK);
        self
    }

    fn but_default(&mut self) -> &mut Self {
        self.suppress = default_prefix(self.family).into();
        self
    }

    fn of(&mut self, protocol: u8, ports: Option<(u16, u16)>) -> &mut Self {
        (self.ip_proto, self.dport) = (protocol, ports);
        self
    }
}
