//! A policy rule, and its netlink messages.

use alloc::borrow::ToOwned;
use alloc::string::String;

use super::netlink::{self, Message, NLM_F_CREATE, NLM_F_EXCL};
use crate::net::IpNet;

// <linux/rtnetlink.h>

/// Message type: a rule is new; as a request: add it.
pub const RTM_NEWRULE: u16 = 32;
/// Message type: a rule is gone; as a request: delete it.
pub const RTM_DELRULE: u16 = 33;
/// Message type: a request for rules.
pub const RTM_GETRULE: u16 = 34;

// <linux/fib_rules.h>

/// Action: look up the route in a table.
pub const FR_ACT_TO_TBL: u8 = 1;
/// Action: jump to the rules of another priority.
pub const FR_ACT_GOTO: u8 = 2;
/// Action: none; the target of jumps.
pub const FR_ACT_NOP: u8 = 3;
/// Action: drop the packet.
pub const FR_ACT_BLACKHOLE: u8 = 6;

const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_IIFNAME: u16 = 3;
const FRA_GOTO: u16 = 4;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_PROTOCOL: u16 = 21;
const FRA_IP_PROTO: u16 = 22;
const FRA_DPORT_RANGE: u16 = 24;

/// Length of `struct fib_rule_hdr`.
const BODY: usize = 12;

/// A policy rule, with the kernel's fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRule {
    /// Address family, `AF_*`.
    pub family: u8,
    /// Place in the list of rules; the lowest comes first.
    pub priority: u32,
    /// Incoming device; empty = any. `lo` matches packets of this machine itself.
    pub iif: String,
    /// Mark of the packet, in the bits of `mask`.
    pub mark: u32,
    /// 0 = any mark.
    pub mask: u32,
    /// Source network; never one with prefix length 0.
    pub src: Option<IpNet>,
    /// Destination network; never one with prefix length 0.
    pub dst: Option<IpNet>,
    /// IP protocol; 0 = any.
    pub ip_proto: u8,
    /// First and last destination port (`struct fib_rule_port_range`).
    pub dport: Option<(u16, u16)>,
    /// `FR_ACT_*`
    pub action: u8,
    /// Routing table to look up; 0 = none.
    pub table: u32,
    /// Ignore routes with a prefix of at most this length; `u32::MAX` = ignore none.
    pub suppress: u32,
    /// Priority to jump to; 0 = none.
    pub target: u32,
    /// Who made the rule (`RTPROT_*`).
    pub protocol: u8,
}

impl PolicyRule {
    /// A rule that matches every packet. Family, priority and action have yet to be set.
    pub const EVERY_PACKET: Self = Self {
        family: 0,
        priority: 0,
        iif: String::new(),
        mark: 0,
        mask: 0,
        src: None,
        dst: None,
        ip_proto: 0,
        dport: None,
        action: 0,
        table: 0,
        suppress: u32::MAX,
        target: 0,
        protocol: 0,
    };

    /// The request for all rules.
    pub fn list() -> Message {
        Message::new(RTM_GETRULE, 0, &[0; BODY])
    }

    /// The request that adds this rule. It fails with EEXIST if the rule exists.
    pub fn add(&self) -> Message {
        self.message(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// The request that deletes this rule. It fails with ENOENT if the rule does not exist.
    pub fn delete(&self) -> Message {
        self.message(RTM_DELRULE, 0)
    }

    fn message(&self, kind: u16, flags: u16) -> Message {
        let (dst, src) = (self.dst.map_or(0, IpNet::prefix), self.src.map_or(0, IpNet::prefix));
        let body = [self.family, dst, src, 0, 0, 0, 0, self.action, 0, 0, 0, 0];
        let mut message = Message::new(kind, flags, &body)
            .attr_u32(FRA_PRIORITY, self.priority)
            .attr(FRA_PROTOCOL, &[self.protocol]);
        if !self.iif.is_empty() {
            message = message.attr_text(FRA_IIFNAME, &self.iif);
        }
        if self.mask != 0 {
            message = message.attr_u32(FRA_FWMARK, self.mark).attr_u32(FRA_FWMASK, self.mask);
        }
        for (kind, net) in [(FRA_DST, self.dst), (FRA_SRC, self.src)] {
            if let Some(net) = net {
                message = message.attr_addr(kind, net.addr());
            }
        }
        if self.ip_proto != 0 {
            message = message.attr(FRA_IP_PROTO, &[self.ip_proto]);
        }
        if let Some((first, last)) = self.dport {
            message = message.attr(FRA_DPORT_RANGE, &[first.to_ne_bytes(), last.to_ne_bytes()].concat());
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
        let mut rule =
            Self { family: header[0], action: header[7], table: header[4].into(), ..Self::EVERY_PACKET };
        for (kind, value) in netlink::attrs(body, BODY) {
            let number = netlink::u32_at(value, 0);
            let byte = value.first().copied().unwrap_or(0);
            match kind {
                FRA_IIFNAME => {
                    let name = value.split(|&byte| byte == 0).next().unwrap_or_default();
                    rule.iif = str::from_utf8(name).unwrap_or_default().to_owned();
                }
                FRA_GOTO => rule.target = number,
                FRA_PRIORITY => rule.priority = number,
                FRA_FWMARK => rule.mark = number,
                FRA_FWMASK => rule.mask = number,
                FRA_SUPPRESS_PREFIXLEN => rule.suppress = number,
                FRA_TABLE => rule.table = number,
                FRA_PROTOCOL => rule.protocol = byte,
                FRA_DST => rule.dst = netlink::address(value).map(|addr| IpNet::new(addr, header[1])),
                FRA_SRC => rule.src = netlink::address(value).map(|addr| IpNet::new(addr, header[2])),
                FRA_IP_PROTO => rule.ip_proto = byte,
                FRA_DPORT_RANGE => {
                    let port = |at| netlink::array_at(value, at).map(u16::from_ne_bytes);
                    rule.dport = port(0).zip(port(2));
                }
                _ => {}
            }
        }
        Some(rule)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{OURS, V4, V6};
    use super::*;
    use crate::config::MARK_MASK;

    /// The most padding after the last attribute.
    const PADDING: usize = 3;

    fn rule() -> PolicyRule {
        PolicyRule {
            family: V4,
            priority: 901,
            action: FR_ACT_NOP,
            protocol: OURS,
            ..PolicyRule::EVERY_PACKET
        }
    }

    fn some_rules() -> [PolicyRule; 4] {
        let mark = PolicyRule {
            iif: "toh0".to_owned(),
            mark: 0x7400_0000,
            mask: MARK_MASK,
            target: 904,
            action: FR_ACT_GOTO,
            ..rule()
        };
        let lookup =
            PolicyRule { family: V6, ip_proto: 6, suppress: 0, table: 7480, action: FR_ACT_TO_TBL, ..rule() };
        let port = PolicyRule {
            family: V6,
            src: IpNet::parse("2001:db8::/32"),
            dst: IpNet::parse("2001:db8:1::/48"),
            ip_proto: 17,
            dport: Some((443, 8443)),
            ..rule()
        };
        [rule(), mark, lookup, port]
    }

    #[test]
    fn reads_what_it_writes() {
        for rule in some_rules() {
            assert_eq!(PolicyRule::parse(rule.add().body()), Some(rule));
        }
    }

    #[test]
    fn any_cut_is_another_value_or_none() {
        for rule in some_rules() {
            let message = rule.add();
            for cut in 0..message.body().len() - PADDING {
                assert_ne!(PolicyRule::parse(&message.body()[..cut]), Some(rule.clone()));
            }
        }
    }
}
