//! Packets that we make ourselves, read by another reader and summed whole.

mod common;

use std::net::{Ipv4Addr, Ipv6Addr};

use common::packets::{self, ACK, SYN, Shape};
use common::rewrite_script::{check_reject, connection};
use etherparse::{Icmpv4Slice, Icmpv6Slice, IpSlice, TcpSlice};
use tcp_over_http::packet::reject::Reject;
use tcp_over_http::packet::{Packet, RST};

const FIN: u8 = 0x01;
/// Connections over IPv4 and IPv6.
const V4: u8 = 2;
const V6: u8 = 3;

fn error_source(nth: u8) -> Ipv6Addr {
    match nth {
        V4 => Ipv4Addr::new(10, 45, 39, 2).to_ipv6_mapped(),
        _ => "fd45:39::2".parse().unwrap(),
    }
}

/// The answer to a packet.
fn answer(reject: Reject, nth: u8, shape: &Shape) -> Vec<u8> {
    let mut packet = packets::tcp(&connection(nth), shape);
    let packet = Packet::parse(&mut packet).unwrap();
    check_reject(reject, &packet, error_source(nth))
}

/// Sequence number, acknowledgement, flags of a RST; that the rest is as it must be.
fn reset(nth: u8, shape: &Shape) -> (u32, u32, u8) {
    let answer = answer(Reject::Reset, nth, shape);
    let ip = IpSlice::from_slice(&answer).unwrap();
    let tcp = TcpSlice::from_slice(ip.payload().payload).unwrap();
    let tuple = connection(nth);
    assert_eq!(tcp.source_port(), tuple.destination_port);
    assert_eq!(tcp.destination_port(), tuple.source_port);
    assert_eq!((tcp.data_offset(), tcp.payload().len()), (5, 0));
    assert_eq!((tcp.window_size(), tcp.urgent_pointer()), (0, 0));
    match &ip {
        IpSlice::Ipv4(ip) => {
            assert_eq!(answer.len(), 40);
            assert_eq!(ip.header().ttl(), 64);
            assert!(ip.header().dont_fragment());
            let (from, to) = (ip.header().source(), ip.header().destination());
            assert_eq!(tcp.calc_checksum_ipv4(from, to).unwrap(), tcp.checksum());
        }
        IpSlice::Ipv6(ip) => {
            assert_eq!(answer.len(), 60);
            assert_eq!(ip.header().hop_limit(), 64);
            let (from, to) = (ip.header().source(), ip.header().destination());
            assert_eq!(tcp.calc_checksum_ipv6(from, to).unwrap(), tcp.checksum());
        }
    }
    let flags = tcp.to_header();
    let flags = (flags.rst as u8 * RST) | (flags.ack as u8 * ACK);
    (tcp.sequence_number(), tcp.acknowledgment_number(), flags)
}

/// RFC 9293 section 3.10.7.1.
#[test]
fn a_reset_has_the_numbers_that_its_receiver_takes() {
    for nth in [V4, V6] {
        let shape = |flags, payload| Shape {
            flags,
            payload,
            sequence: u32::MAX - 1,
            acknowledgement: if flags & ACK != 0 { 77 } else { 0 },
            hop_by_hop: Some(1),
            ipv4_options: vec![1; 8],
            tcp_options: vec![1; 12],
            ..Shape::default()
        };
        assert_eq!(reset(nth, &shape(SYN, 0)), (0, u32::MAX, RST | ACK));
        assert_eq!(reset(nth, &shape(SYN, 5)), (0, 4, RST | ACK));
        assert_eq!(reset(nth, &shape(SYN | FIN, 5)), (0, 5, RST | ACK));
        assert_eq!(reset(nth, &shape(0, 0)), (0, u32::MAX - 1, RST | ACK));
        assert_eq!(reset(nth, &shape(ACK, 100)), (77, 0, RST));
        assert_eq!(reset(nth, &shape(SYN | ACK, 0)), (77, 0, RST));
    }
}

/// RFC 1812 section 4.3.2.3, RFC 4443 section 2.4 (c): as much of the packet as fits.
#[test]
fn icmp_errors_quote_what_they_are_about() {
    for payload in [0, 1, 507, 508, 509, 1171, 1172, 1173, 65_000] {
        let shape = Shape { flags: SYN, payload, ..Shape::default() };
        for nth in [V4, V6] {
            let packet = packets::tcp(&connection(nth), &shape);
            let answer = answer(Reject::Host, nth, &shape);
            let (headers, most) = if nth == V4 { (28, 576) } else { (48, 1280) };
            assert_eq!(answer.len(), (headers + packet.len()).min(most));
            let quote = &answer[headers..];
            assert_eq!(quote, &packet[..quote.len()]);
        }
    }
}

#[test]
fn icmp_errors_say_why() {
    for (reject, code4, code6) in
        [(Reject::Network, 0, 0), (Reject::Host, 1, 3), (Reject::Port, 3, 4), (Reject::Prohibited, 13, 1)]
    {
        let answer4 = answer(reject, V4, &Shape::default());
        let ip = IpSlice::from_slice(&answer4).unwrap();
        let icmp = Icmpv4Slice::from_slice(ip.payload().payload).unwrap();
        assert_eq!((icmp.type_u8(), icmp.code_u8()), (3, code4));
        assert_eq!(icmp.bytes5to8(), [0; 4]);

        let answer6 = answer(reject, V6, &Shape::default());
        let ip = IpSlice::from_slice(&answer6).unwrap();
        let header = ip.ipv6().unwrap().header();
        let icmp = Icmpv6Slice::from_slice(ip.payload().payload).unwrap();
        assert_eq!((icmp.type_u8(), icmp.code_u8()), (1, code6));
        assert_eq!(icmp.bytes5to8(), [0; 4]);
        assert!(icmp.is_checksum_valid(header.source(), header.destination()));
    }
}
