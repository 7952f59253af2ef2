//! Conntrack entries as netlink messages (ctnetlink). Connections that the kernel forwards are found by their
//! mark.
//!
//! All clients share conntrack's table. When it is nearly full, [`yielding`] picks connections of the client
//! that has the most.

use core::net::{IpAddr, Ipv6Addr};

use super::netlink::{self, Message};
use super::nft::PROXIES;
use super::{V4, V6};
use crate::neighbours::Neighbours;
use crate::net::mapped;
use crate::packet::Tuple;

/// `NFNL_SUBSYS_CTNETLINK << 8` with `IPCTNL_MSG_CT_GET`, `IPCTNL_MSG_CT_DELETE`
/// (<linux/netfilter/nfnetlink_conntrack.h>).
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
/// Length of `struct nfgenmsg`.
pub const BODY: usize = 4;
/// Bit of the multicast group for destroyed entries: `NFNLGRP_CONNTRACK_DESTROY`
/// (<linux/netfilter/nfnetlink.h>).
pub const DESTROYED: u32 = 1 << (3 - 1);

// Attributes of an entry; numbers are big-endian.

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
/// Source and destination.
const CTA_IP_V4: [u16; 2] = [1, 2];
const CTA_IP_V6: [u16; 2] = [3, 4];
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_TIMEOUT: u16 = 7;
/// The attribute of the mark.
pub const CTA_MARK: u16 = 8;
const CTA_COUNTERS_ORIG: u16 = 9;
const CTA_COUNTERS_REPLY: u16 = 10;
const CTA_MARK_MASK: u16 = 21;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
const CTA_COUNTERS_BYTES: u16 = 2;

/// `IPPROTO_TCP`
const TCP: u8 = 6;
/// `TCP_CONNTRACK_TIME_WAIT` (<linux/netfilter/nf_conntrack_tcp.h>): from this state on neither end sends
/// data.
const TIME_WAIT: u8 = 7;

/// A connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Addresses and ports of the original direction, before NAT: from the client to the server.
    pub tuple: Tuple,
    /// `ct mark`.
    pub mark: u32,
    /// Seconds until conntrack forgets the connection, unless it sees a packet. `u32::MAX` if the entry has
    /// no time-out, as when a flowtable carries the connection.
    pub left: u32,
    /// Whether either end may still send data: the TCP state is one before TIME_WAIT.
    pub is_live: bool,
    /// Bytes of packets from the client, and to it. 0 without `nf_conntrack_acct`.
    pub bytes: [u64; 2],
}

impl Entry {
    /// The request for all entries with this mark in the bits of `mask`.
    pub fn list(mark: u32, mask: u32) -> Message {
        filtered(GET, mark, mask)
    }

    /// The request that deletes all entries with this mark in the bits of `mask`.
    pub fn delete(mark: u32, mask: u32) -> Message {
        filtered(DELETE, mark, mask)
    }

    /// The number of the connection's proxy, part of the mark ([`PROXIES`]).
    pub const fn number(&self) -> u8 {
        (self.mark & PROXIES) as u8
    }

    /// The request that deletes the TCP connection with this tuple in the original direction, before NAT.
    pub fn delete_one(tuple: &Tuple) -> Message {
        one(DELETE, CTA_TUPLE_ORIG, tuple)
    }

    /// The request for the TCP connection whose packets have this tuple after NAT: the reply direction has
    /// its reverse.
    pub fn find(tuple: &Tuple) -> Message {
        one(GET, CTA_TUPLE_REPLY, &tuple.reversed())
    }

    /// Reads the body of an `IPCTNL_MSG_CT_NEW` or `IPCTNL_MSG_CT_DELETE`.
    pub fn parse(body: &[u8]) -> Self {
        let mut entry = Self { tuple: tuple(&[]), mark: 0, left: u32::MAX, is_live: true, bytes: [0; 2] };
        for (kind, value) in netlink::attrs(body, BODY) {
            match kind {
                CTA_TUPLE_ORIG => entry.tuple = tuple(value),
                CTA_MARK | CTA_TIMEOUT => {
                    let number = netlink::array_at(value, 0).map_or(0, u32::from_be_bytes);
                    *if kind == CTA_MARK { &mut entry.mark } else { &mut entry.left } = number;
                }
                CTA_PROTOINFO => {
                    let state =
                        within(value, CTA_PROTOINFO_TCP).and_then(|tcp| within(tcp, CTA_PROTOINFO_TCP_STATE));
                    entry.is_live =
                        state.and_then(|state| state.first()).is_none_or(|state| *state < TIME_WAIT);
                }
                CTA_COUNTERS_ORIG | CTA_COUNTERS_REPLY => {
                    let bytes =
                        within(value, CTA_COUNTERS_BYTES).and_then(|value| netlink::array_at(value, 0));
                    entry.bytes[usize::from(kind - CTA_COUNTERS_ORIG)] = bytes.map_or(0, u64::from_be_bytes);
                }
                _ => {}
            }
        }
        entry
    }
}

/// Reads the attributes of `CTA_TUPLE_*`.
fn tuple(attrs: &[u8]) -> Tuple {
    let [ip, ports] = [CTA_TUPLE_IP, CTA_TUPLE_PROTO].map(|kind| within(attrs, kind).unwrap_or_default());
    let address = |end: usize| {
        let value = within(ip, CTA_IP_V4[end]).or_else(|| within(ip, CTA_IP_V6[end]));
        value.and_then(netlink::address).map_or(Ipv6Addr::UNSPECIFIED, mapped)
    };
    let port = |kind| {
        within(ports, kind).and_then(|value| netlink::array_at(value, 0)).map_or(0, u16::from_be_bytes)
    };
    let [source, destination] = [0, 1].map(address);
    let [source_port, destination_port] = [CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT].map(port);
    Tuple { source, destination, source_port, destination_port }
}

/// The connections to end when the table is nearly full: `count` at most, and at most half of those of the
/// client with the most. Connections that have been idle for longer than that client's average come first.
/// Reorders `entries`.
pub fn yielding<'a>(entries: &'a mut [Entry], count: usize, neighbours: &Neighbours) -> &'a [Entry] {
    let mut most: &mut [Entry] = &mut [];
    let mut rest = entries;
    while let Some(first) = rest.first() {
        let client = neighbours.key(first.tuple.source);
        let its = bring_forward(rest, &|entry| neighbours.key(entry.tuple.source) == client);
        let (its, others) = rest.split_at_mut(its);
        if its.len() > most.len() {
            most = its;
        }
        rest = others;
    }
    let left: u64 = most.iter().map(|entry| u64::from(entry.left)).sum();
    let all = most.len();
    bring_forward(most, &|entry| u64::from(entry.left) * all as u64 <= left);
    &most[..count.min(all / 2)]
}

/// Moves entries for which `are_meant` is true to the front. Returns their number.
fn bring_forward(entries: &mut [Entry], are_meant: &dyn Fn(&Entry) -> bool) -> usize {
    let mut count = 0;
    for at in 0..entries.len() {
        if are_meant(&entries[at]) {
            entries.swap(count, at);
            count += 1;
        }
    }
    count
}

/// The value of the first attribute of this kind.
fn within(attrs: &[u8], kind: u16) -> Option<&[u8]> {
    netlink::attrs(attrs, 0).find_map(|(it, value)| (it == kind).then_some(value))
}

/// A request for one TCP entry, by the tuple of a direction (`CTA_TUPLE_ORIG` or `CTA_TUPLE_REPLY`).
fn one(kind: u16, direction: u16, tuple: &Tuple) -> Message {
    let attrs = || Message::new(0, 0, &[]);
    let (source, destination) = (tuple.source.to_canonical(), tuple.destination.to_canonical());
    let (family, [from, to]) = match source {
        IpAddr::V4(_) => (V4, CTA_IP_V4),
        IpAddr::V6(_) => (V6, CTA_IP_V6),
    };
    let addresses = attrs().attr_addr(from, source).attr_addr(to, destination);
    let ports = attrs()
        .attr(CTA_PROTO_NUM, &[TCP])
        .attr(CTA_PROTO_SRC_PORT, &tuple.source_port.to_be_bytes())
        .attr(CTA_PROTO_DST_PORT, &tuple.destination_port.to_be_bytes());
    let tuple = attrs().nest(CTA_TUPLE_IP, addresses).nest(CTA_TUPLE_PROTO, ports);
    Message::new(kind, 0, &[family, 0, 0, 0]).nest(direction, tuple)
}

fn filtered(kind: u16, mark: u32, mask: u32) -> Message {
    Message::new(kind, 0, &[0; BODY])
        .attr(CTA_MARK, &mark.to_be_bytes())
        .attr(CTA_MARK_MASK, &mask.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use super::*;

    fn attr(kind: u16, value: &[u8]) -> Vec<u8> {
        Message::new(0, 0, &[]).attr(kind, value).body().to_vec()
    }

    fn body(mark: u32, state: u8) -> Vec<u8> {
        let bytes = |count: u64| attr(CTA_COUNTERS_BYTES, &count.to_be_bytes());
        let ip = [attr(CTA_IP_V4[0], &[10, 1, 0, 2]), attr(CTA_IP_V4[1], &[192, 0, 2, 1])].concat();
        let ports = [attr(CTA_PROTO_SRC_PORT, &[0x9c, 0x40]), attr(CTA_PROTO_DST_PORT, &[1, 0xbb])].concat();
        [
            vec![2, 0, 0, 0],
            attr(CTA_TUPLE_ORIG, &[attr(CTA_TUPLE_IP, &ip), attr(CTA_TUPLE_PROTO, &ports)].concat()),
            attr(CTA_PROTOINFO, &attr(CTA_PROTOINFO_TCP, &attr(CTA_PROTOINFO_TCP_STATE, &[state]))),
            attr(CTA_TIMEOUT, &7440_u32.to_be_bytes()),
            attr(CTA_MARK, &mark.to_be_bytes()),
            attr(CTA_COUNTERS_ORIG, &bytes(300)),
            attr(CTA_COUNTERS_REPLY, &bytes(1 << 40)),
        ]
        .concat()
    }

    #[test]
    fn reads_an_entry() {
        let tuple = Tuple {
            source: "::ffff:10.1.0.2".parse().unwrap(),
            destination: "::ffff:192.0.2.1".parse().unwrap(),
            source_port: 40_000,
            destination_port: 443,
        };
        let entry = Entry { tuple, mark: 0x7400_c001, left: 7440, is_live: true, bytes: [300, 1 << 40] };
        assert_eq!(Entry::parse(&body(0x7400_c001, 3)), entry);
        assert_eq!(entry.number(), 1);
        assert!(!Entry::parse(&body(1, TIME_WAIT)).is_live);
        let whole = body(7, 3);
        for cut in 0..whole.len() {
            Entry::parse(&whole[..cut]);
        }
    }

    /// An IPv6 client counts by its /64. Other clients lose nothing.
    #[test]
    fn the_one_with_the_most_makes_room() {
        let client = |address: &str| {
            let mut entry = Entry::parse(&[]);
            entry.tuple.source = address.parse().unwrap();
            entry
        };
        let most = (0..10).map(|number| client(&alloc::format!("2001:db8::{number}")));
        let others = (0..9).flat_map(|_| [client("::ffff:10.0.0.1"), client("2001:db8:0:1::1")]);
        let all: Vec<_> = others.chain(most).collect();
        let count_yielding = |count| {
            let mut entries = all.clone();
            let entries = yielding(&mut entries, count, &Neighbours::default());
            assert!(entries.iter().all(|entry| entry.tuple.source.segments()[..4] == [0x2001, 0xdb8, 0, 0]));
            entries.len()
        };
        assert_eq!([0, 3, 100].map(count_yielding), [0, 3, 5]);
        assert!(yielding(&mut [], 3, &Neighbours::default()).is_empty());
    }

    /// If there are too few idle connections, busy ones follow.
    #[test]
    fn idle_ones_make_room_first() {
        let entry = |left| Entry { left, ..Entry::parse(&[]) };
        let all: Vec<_> = [7440, 90, 7440, 80, 7000, 7440, 7440, 60, 7300, 7440].map(entry).to_vec();
        let left = |count| {
            yielding(&mut all.clone(), count, &Neighbours::default())
                .iter()
                .map(|entry| entry.left)
                .collect::<Vec<_>>()
        };
        assert_eq!(left(2), [90, 80]);
        assert_eq!(left(9)[..3], [90, 80, 60]);
        assert_eq!(left(9).len(), 5);
    }

    /// The kernel expects these numbers big-endian, also on little-endian machines.
    #[test]
    fn asks_by_mark() {
        let message = Entry::list(0x7400_c000, 0xff00_c000);
        let expected =
            [vec![0; 4], attr(CTA_MARK, &[0x74, 0, 0xc0, 0]), attr(CTA_MARK_MASK, &[0xff, 0, 0xc0, 0])];
        assert_eq!(message.body(), expected.concat());
    }

    /// The entry is found by its reply direction: from the address that NAT has chosen to the client.
    #[test]
    fn asks_for_what_nat_has_led_elsewhere() {
        let tuple = Tuple {
            source: "::ffff:192.0.2.2".parse().unwrap(),
            destination: "::ffff:10.45.39.2".parse().unwrap(),
            source_port: 40_000,
            destination_port: 443,
        };
        let nest = |kind: u16, attrs: &[Vec<u8>]| attr(kind | 1 << 15, &attrs.concat());
        let addresses =
            nest(CTA_TUPLE_IP, &[attr(CTA_IP_V4[0], &[10, 45, 39, 2]), attr(CTA_IP_V4[1], &[192, 0, 2, 2])]);
        let ports = [(CTA_PROTO_SRC_PORT, 443_u16), (CTA_PROTO_DST_PORT, 40_000)];
        let ports = ports.map(|(kind, port)| attr(kind, &port.to_be_bytes())).concat();
        let protocol = nest(CTA_TUPLE_PROTO, &[attr(CTA_PROTO_NUM, &[TCP]), ports]);
        let expected = [vec![2, 0, 0, 0], nest(CTA_TUPLE_REPLY, &[addresses, protocol])].concat();
        assert_eq!(Entry::find(&tuple).body(), expected);
    }
}
