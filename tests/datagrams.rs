//! What isn't TCP: queries to resolvers, pings, and the rest, which is refused.

mod common;

use std::net::{Ipv4Addr, Ipv6Addr};

use common::packets::{self, Shape};
use common::rewrite_script::{check_reject, settings};
use tcp_over_http::flow::Limits;
use tcp_over_http::net::Family;
use tcp_over_http::packet::builder::{self, MAX_LEN};
use tcp_over_http::packet::datagram::Datagram;
use tcp_over_http::packet::reject::Reject;
use tcp_over_http::packet::vnet;
use tcp_over_http::packet::{Packet, Tuple};
use tcp_over_http::rewrite::{DropReason, Rewriter, Settings, Verdict};
use tcp_over_http::time::Instant;

fn rewriter(dns: bool, ping: bool) -> Rewriter {
    let limits = Limits { flows: 16, held: 16, held_per_client: 16 };
    Rewriter::new(Settings { dns, ping, ..settings(true, false) }, limits, [1, 2])
}

fn tuple(ipv4: bool, port: u16) -> Tuple {
    let mapped = |octets| Ipv4Addr::from(octets).to_ipv6_mapped();
    let (source, destination): (Ipv6Addr, Ipv6Addr) = match ipv4 {
        true => (mapped([192, 168, 1, 7]), mapped([198, 18, 0, 1])),
        false => ("fd00::7".parse().unwrap(), "2001:2::1".parse().unwrap()),
    };
    Tuple { source, destination, source_port: 40_000, destination_port: port }
}

fn datagram(tuple: &Tuple, payload: &[u8]) -> Vec<u8> {
    let mut out = [0; MAX_LEN];
    let length = builder::datagram(tuple, payload, &mut out);
    packets::assert_checksums(&out[..length], false);
    out[..length].to_vec()
}

fn handle(rewriter: &mut Rewriter, header: [u8; vnet::LEN], packet: &mut [u8]) -> Verdict {
    rewriter.handle(vnet::Header::parse(&header), packet, Instant::default())
}

const PROHIBITED: Verdict = Verdict::Reject(Reject::Prohibited);
const REFUSED: Verdict = Verdict::Reject(Reject::Port);
const PLAIN: [u8; vnet::LEN] = vnet::Header::PLAIN;

#[test]
fn queries_to_resolvers_are_told_from_the_rest() {
    for ipv4 in [true, false] {
        for (dns, port, expected) in
            [(true, 53, Verdict::Dns), (true, 5353, REFUSED), (true, 443, REFUSED), (false, 53, REFUSED)]
        {
            let mut rewriter = rewriter(dns, false);
            let before = datagram(&tuple(ipv4, port), b"query");
            let mut packet = before.clone();
            assert_eq!(handle(&mut rewriter, PLAIN, &mut packet), expected);
            assert_eq!(packet, before);
            assert_eq!(rewriter.counters().queries, u64::from(expected == Verdict::Dns));
            let packet = Packet::parse(&mut packet).unwrap();
            assert_eq!(Datagram::of(&packet).unwrap().payload, b"query");
        }
    }
}

/// The router's own queries, whose checksum the kernel leaves to the device.
#[test]
fn queries_with_partial_checksums_are_taken_and_broken_ones_are_not() {
    for ipv4 in [true, false] {
        let mut rewriter = rewriter(true, false);
        let mut packet = datagram(&tuple(ipv4, 53), b"query");
        let start = packet.len() as u8 - 13;
        packet[usize::from(start) + 6] ^= 0x55;
        assert_eq!(handle(&mut rewriter, PLAIN, &mut packet), Verdict::Drop(DropReason::Malformed));
        let partial = |offset| [1, 0, 0, 0, 0, 0, start, 0, offset, 0];
        assert_eq!(handle(&mut rewriter, partial(6), &mut packet), Verdict::Dns);
        assert_eq!(handle(&mut rewriter, partial(16), &mut packet), Verdict::Drop(DropReason::Malformed));
    }
}

#[test]
fn nobody_answers_for_a_group() {
    let mut rewriter = rewriter(true, true);
    let tuple = Tuple { destination: "::ffff:224.0.0.251".parse().unwrap(), ..tuple(true, 53) };
    assert_eq!(
        handle(&mut rewriter, PLAIN, &mut datagram(&tuple, b"query")),
        Verdict::Drop(DropReason::NotTcp)
    );
}

fn ping(ipv4: bool) -> Vec<u8> {
    let Tuple { source, destination, .. } = tuple(ipv4, 0);
    let kind = if ipv4 { 8 } else { 128 };
    // An error with this type and 4 bytes of its own is laid out like an echo request.
    packets::icmp_error(source, destination, (kind, 0), [0x12, 0x34, 0, 1], &[0x5a; 56])
}

#[test]
fn pings_are_answered_or_refused() {
    for ipv4 in [true, false] {
        let before = ping(ipv4);
        let mut packet = before.clone();
        assert_eq!(handle(&mut rewriter(true, false), PLAIN, &mut packet), PROHIBITED);
        assert_eq!(packet, before);

        assert_eq!(handle(&mut rewriter(false, true), PLAIN, &mut packet), Verdict::Forward);
        packets::assert_checksums(&packet, false);
        let (at, hops) = if ipv4 { (20, 8) } else { (40, 7) };
        assert_eq!((packet[at], packet[hops]), (if ipv4 { 0 } else { 129 }, 64));
        assert_eq!(packet[at + 4..], before[at + 4..]);
        let answer = Packet::parse(&mut packet).unwrap();
        let tuple = tuple(ipv4, 0);
        assert_eq!((answer.source(), answer.destination()), (tuple.destination, tuple.source));
        // An answer is not answered.
        assert_eq!(handle(&mut rewriter(false, true), PLAIN, &mut packet), PROHIBITED);
    }
}

/// A browser's first QUIC packet is 1,200 bytes or more (RFC 9000 section 14.1). It must get its error all the same,
/// with as much of it as RFC 1812 section 4.3.2.3 and RFC 4443 section 2.4 (c) allow, and a lifetime to get there.
#[test]
fn quic_is_refused_byte_for_byte() {
    let payload: Vec<u8> = (0..1200).map(|at| at as u8).collect();
    let mut packet = datagram(&tuple(true, 443), &payload);
    assert_eq!(handle(&mut rewriter(true, true), PLAIN, &mut packet), REFUSED);
    let source = rewriter(true, true).error_source(Family::V4);
    let answer = check_reject(Reject::Port, &Packet::parse(&mut packet).unwrap(), source);
    let expected = [
        &[0x45, 0, 2, 0x40, 0, 0, 0x40, 0, 64, 1, 0x46, 0x4e, 10, 45, 39, 2, 192, 168, 1, 7][..],
        &[3, 3, 0, 0, 0, 0, 0, 0],
        &packet[..548],
    ];
    assert_eq!(without_checksums(&answer, 20), without_checksums(&expected.concat(), 20));
    assert_eq!(answer.len(), 576);

    let mut packet = datagram(&tuple(false, 443), &payload);
    assert_eq!(handle(&mut rewriter(true, true), PLAIN, &mut packet), REFUSED);
    let source = rewriter(true, true).error_source(Family::V6);
    let answer = check_reject(Reject::Port, &Packet::parse(&mut packet).unwrap(), source);
    let expected = [
        &[0x60, 0, 0, 0, 4, 0xd8, 58, 64][..],
        &source.octets(),
        &tuple(false, 443).source.octets(),
        &[1, 4, 0, 0, 0, 0, 0, 0],
        &packet[..1232],
    ];
    assert_eq!(without_checksums(&answer, 40), without_checksums(&expected.concat(), 40));
    assert_eq!(answer.len(), 1280);
}

/// `check_reject` has summed them.
fn without_checksums(packet: &[u8], transport: usize) -> Vec<u8> {
    let mut packet = packet.to_vec();
    packet[transport + 2..transport + 4].fill(0);
    if transport == 20 {
        packet[10..12].fill(0);
    }
    packet
}

#[test]
fn errors_are_bounded_in_number() {
    let mut rewriter = rewriter(true, true);
    let mut packet = datagram(&tuple(true, 443), &Shape::default().payload.to_be_bytes());
    let refused = (0..1000).filter(|_| handle(&mut rewriter, PLAIN, &mut packet) == REFUSED).count();
    assert_eq!(refused, 100);
    // What is answered has no part in that.
    let mut query = datagram(&tuple(true, 53), b"query");
    assert_eq!(handle(&mut rewriter, PLAIN, &mut query), Verdict::Dns);
    assert_eq!(handle(&mut rewriter, PLAIN, &mut ping(true)), Verdict::Forward);
}
