//! The rules, in the order of the table in `policy.rs`.

use tcp_over_http::rewrite::Path;

use super::rule::{FR_ACT_GOTO, FR_ACT_NOP, FR_ACT_TO_TBL, Rule};
use super::{OURS, Route, V4, V6, family_of};
use crate::config::{Config, MARK_MASK, NonTcp, Quic};

// Priorities, from `rule_priority` on.

const LEAVES_TUN: u32 = 6;
const MARKED: u32 = 7;
const FAKE: u32 = 8;
const LOCAL: u32 = 9;
const DEVICES: u32 = 10;
const NO_DEVICE: u32 = 11;
const NOT_CLIENTS: u32 = 12;
const CLIENTS: u32 = 13;
const NO_CLIENT: u32 = 14;
const CAPTURE: u32 = 15;
const MAIN_FIRST: u32 = 16;
const CAPTURED: u32 = 17;
const LEFT_ALONE: u32 = 18;
const REJECTED: u32 = 19;
const END: u32 = 20;

/// The rule behind all others, P + this.
pub const LAST_RULE: u32 = END;

const MAIN: u32 = libc::RT_TABLE_MAIN as u32;
const TCP: u8 = libc::IPPROTO_TCP as u8;
const UDP: u8 = libc::IPPROTO_UDP as u8;
/// QUIC's port (RFC 9114 section 3.1).
const HTTPS: u16 = 443;
/// The port of resolvers (RFC 1035 section 4.2).
const DOMAIN: u16 = 53;

/// The rules that lead to these routes, in the order to add them: the capture last, so that neither our
/// own connections nor local networks are captured meanwhile.
pub fn rules(config: &Config, path: Path, tun: &str, routes: &[Route]) -> Vec<Rule> {
    let mut all = Vec::new();
    for family in [V4, V6] {
        let has = |table: u32| routes.iter().any(|it| family_of(&it.net) == family && it.table == table);
        let captures =
            routes.iter().any(|it| family_of(&it.net) == family && it.table == config.table && it.oif != 0);
        if !captures && !has(config.table.saturating_add(1)) {
            continue;
        }
        let mut rules = Rules { config, family, all: &mut all };
        rules.add(rules.rule(END, FR_ACT_NOP)); // a jump needs its target
        if path == Path::Express {
            rules.deliver(tun);
        }
        rules.add(Rule { iif: tun.to_owned(), ..rules.goto(LEAVES_TUN, END) });
        if config.mark != 0 {
            for mark in [config.mark, config.exempt_mark()] {
                rules.add(Rule { mark, mask: MARK_MASK, ..rules.goto(MARKED, END) });
            }
        }
        if captures {
            for range in config.dns.fake_ranges().filter(|range| family_of(range) == family) {
                rules.add(Rule { dst: Some(range), ..rules.lookup(FAKE, config.table) });
            }
            rules.select();
            rules.capture();
        }
    }
    all
}

/// The rules of one family in the making.
struct Rules<'a> {
    config: &'a Config,
    family: u8,
    all: &'a mut Vec<Rule>,
}

impl Rules<'_> {
    /// Express path: the ways to and from our sockets.
    fn deliver(&mut self, tun: &str) {
        let (deliver, guard) = (self.config.table.saturating_add(1), self.config.table.saturating_add(2));
        let delivered = |rule| Rule { mark: self.config.deliver_mark(), mask: MARK_MASK, ..rule };
        let sent = |rule| Rule { iif: "lo".to_owned(), ..delivered(rule) };
        let written = |rule| Rule { iif: tun.to_owned(), ..rule };
        let rules = [
            sent(Rule { suppress: 0, ..self.lookup(0, MAIN) }),
            sent(self.lookup(1, guard)),
            sent(self.goto(2, END)),
            delivered(self.lookup(3, deliver)),
            written(Rule { suppress: 0, ..self.lookup(4, MAIN) }),
            written(self.lookup(5, guard)),
        ];
        self.all.extend(rules);
    }

    /// Whose traffic it is.
    fn select(&mut self) {
        let Config { interfaces, clients, client_bypass, local, .. } = self.config;
        let selective = !(interfaces.is_empty() && clients.is_empty() && client_bypass.is_empty());
        let (own, family) = (|rule| Rule { iif: "lo".to_owned(), ..rule }, self.family);
        match (local, selective) {
            (true, false) => return,
            (false, false) => return self.add(own(self.goto(LOCAL, END))),
            (true, true) => self.add(own(self.goto(LOCAL, CAPTURE))),
            (false, true) => self.add(own(self.goto(LOCAL, END))),
        }
        self.add(self.rule(CAPTURE, FR_ACT_NOP));
        self.add(self.rule(NOT_CLIENTS, FR_ACT_NOP));
        for device in interfaces {
            self.add(Rule { iif: device.clone(), ..self.goto(DEVICES, NOT_CLIENTS) });
        }
        if !interfaces.is_empty() {
            self.add(self.goto(NO_DEVICE, END));
        }
        for (nets, offset, target) in [(client_bypass, NOT_CLIENTS, END), (clients, CLIENTS, CAPTURE)] {
            for net in nets.iter().filter(|net| family_of(net) == family) {
                self.add(Rule { src: Some(*net), ..self.goto(offset, target) });
            }
        }
        // Clients of the other family only: none of this one.
        if !clients.is_empty() {
            self.add(self.goto(NO_CLIENT, END));
        }
    }

    /// What of it.
    fn capture(&mut self) {
        let config = self.config;
        let rejects_all = config.non_tcp == NonTcp::Reject;
        let udp_ports =
            [(config.quic == Quic::Reject).then_some(HTTPS), config.dns.hijacks().then_some(DOMAIN)];
        let udp_ports = udp_ports.into_iter().flatten().filter(|_| !rejects_all);
        let tcp = |rule| Rule { ip_proto: TCP, ..rule };
        let udp = |rule, port| Rule { ip_proto: UDP, dport: Some((port, port)), ..rule };
        if config.auto_route {
            let main = Rule { suppress: 0, ..self.lookup(MAIN_FIRST, MAIN) };
            match rejects_all {
                true => self.add(main.clone()),
                false => self.add(tcp(main.clone())),
            }
            for port in udp_ports.clone() {
                self.add(udp(main.clone(), port));
            }
        }
        let captured = self.lookup(CAPTURED, config.table);
        if config.ports.is_empty() {
            self.add(tcp(captured.clone()));
        } else if config.dns.hijacks() {
            self.add(tcp(Rule { dport: Some((DOMAIN, DOMAIN)), ..captured.clone() }));
        }
        for &ports in &config.ports {
            self.add(tcp(Rule { dport: Some(ports), ..captured.clone() }));
        }
        for port in udp_ports {
            self.add(udp(captured.clone(), port));
        }
        if rejects_all {
            self.add(tcp(self.goto(LEFT_ALONE, END)));
            if config.quic == Quic::Direct {
                self.add(udp(self.goto(LEFT_ALONE, END), HTTPS));
            }
            self.add(self.lookup(REJECTED, config.table));
        }
    }

    fn add(&mut self, rule: Rule) {
        self.all.push(rule);
    }

    fn lookup(&self, offset: u32, table: u32) -> Rule {
        Rule { table, ..self.rule(offset, FR_ACT_TO_TBL) }
    }

    fn goto(&self, offset: u32, target: u32) -> Rule {
        let target = self.config.rule_priority.saturating_add(target);
        Rule { target, ..self.rule(offset, FR_ACT_GOTO) }
    }

    fn rule(&self, offset: u32, action: u8) -> Rule {
        Rule {
            family: self.family,
            priority: self.config.rule_priority.saturating_add(offset),
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
        }
    }
}
