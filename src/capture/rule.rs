//! A policy rule, and its netlink messages.

use alloc::borrow::ToOwned;
use alloc::string::String;
use core::net::IpAddr;

use super::V4;
use super::netlink::{self, Message, NLM_F_CREATE, NLM_F_EXCL};
use crate::net::IpNet;

// <linux/rtnetlink.h>

/// The kind of a message: a rule is new, or to be added.
pub const RTM_NEWRULE: u16 = 32;
/// A rule is gone, or to be deleted.
pub const RTM_DELRULE: u16 = 33;
/// Rules are asked for.
pub const RTM_GETRULE: u16 = 34;

// <linux/fib_rules.h>

/// Look in a table.
pub const FR_ACT_TO_TBL: u8 = 1;
/// Go on at another priority.
pub const FR_ACT_GOTO: u8 = 2;
/// Nothing: a place to go on at.
pub const FR_ACT_NOP: u8 = 3;
/// Drop it.
pub const FR_ACT_BLACKHOLE: u8 = 6;

/// A flag.
const FIB_RULE_INVERT: u32 = 2;

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

/// A policy rule; the fields are the kernel's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Address family, `AF_*`.
    pub family: u8,
    /// Lower is asked first.
    pub priority: u32,
    /// Device that the packet came from; empty = any.
    pub iif: String,
    /// It is for the packets that are otherwise.
    pub is_not: bool,
    /// Mark that the packet bears in the bits of `mask`.
    pub mark: u32,
    /// 0 = any mark.
    pub mask: u32,
    /// Network that the packet comes from; never one of all addresses.
    pub src: Option<IpNet>,
    /// Network that it goes to, likewise.
    pub dst: Option<IpNet>,
    /// IP protocol; 0 = any.
    pub ip_proto: u8,
    /// First and last destination port (`struct fib_rule_port_range`).
    pub dport: Option<(u16, u16)>,
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

impl Rule {
    /// A rule for every packet, which has yet to get its family, priority and action.
    pub const EVERY_PACKET: Self = Self {
        family: 0,
        priority: 0,
        iif: String::new(),
        is_not: false,
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

    /// The request that adds it; fails with EEXIST if it is there.
    pub fn add(&self) -> Message {
        self.message(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// The request that deletes it; fails with ENOENT if it is not there.
    pub fn delete(&self) -> Message {
        self.message(RTM_DELRULE, 0)
    }

    fn message(&self, kind: u16, flags: u16) -> Message {
        let (dst, src) = (self.dst.map_or(0, IpNet::prefix), self.src.map_or(0, IpNet::prefix));
        let [a, b, c, d] = if self.is_not { FIB_RULE_INVERT } else { 0 }.to_ne_bytes();
        let body = [self.family, dst, src, 0, 0, 0, 0, self.action, a, b, c, d];
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
        let mut rule = Rule {
            family: header[0],
            action: header[7],
            table: header[4].into(),
            is_not: netlink::u32_at(body, 8) & FIB_RULE_INVERT != 0,
            ..Rule::EVERY_PACKET
        };
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
                FRA_DST => rule.dst = network(header[0], value, header[1]),
                FRA_SRC => rule.src = network(header[0], value, header[2]),
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

/// A network of a rule's family.
fn network(family: u8, address: &[u8], prefix: u8) -> Option<IpNet> {
    let address = match family {
        V4 => IpAddr::from(netlink::array_at::<4>(address, 0)?),
        _ => IpAddr::from(netlink::array_at::<16>(address, 0)?),
    };
    Some(IpNet::new(address, prefix))
}

#[cfg(test)]
mod tests {
    use super::super::{OURS, V6};
    use super::*;
    use crate::config::MARK_MASK;

    /// The most that may follow the last value.
    const PADDING: usize = 3;

    fn rule() -> Rule {
        Rule { family: V4, priority: 901, action: FR_ACT_NOP, protocol: OURS, ..Rule::EVERY_PACKET }
    }

    fn some_rules() -> [Rule; 4] {
        let mark = Rule {
            iif: "toh0".to_owned(),
            is_not: true,
            mark: 0x7400_0000,
            mask: MARK_MASK,
            target: 904,
            action: FR_ACT_GOTO,
            ..rule()
        };
        let lookup =
            Rule { family: V6, ip_proto: 6, suppress: 0, table: 7480, action: FR_ACT_TO_TBL, ..rule() };
        let port = Rule {
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
            assert_eq!(Rule::parse(rule.add().body()), Some(rule));
        }
    }

    #[test]
    fn any_cut_is_another_value_or_none() {
        for rule in some_rules() {
            let message = rule.add();
            for cut in 0..message.body().len() - PADDING {
                assert_ne!(Rule::parse(&message.body()[..cut]), Some(rule.clone()));
            }
        }
    }
}
