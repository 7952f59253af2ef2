//! What property tests and fuzz targets share: packets made from scratch, and scripts of operations that
//! are run against the core and checked at each step.
#![allow(dead_code, missing_docs)]

use std::net::Ipv4Addr;

use arbitrary::{Arbitrary, Unstructured};
use tcp_over_http::net::Family;
use tcp_over_http::packet::builder::{self, MAX_DATAGRAM, MAX_LEN};
use tcp_over_http::packet::datagram::{Datagram, is_intact};
use tcp_over_http::packet::reject::Reject;
use tcp_over_http::packet::{ChecksumChange, ChecksumState, Packet, Transport, is_unicast};

pub mod flow_script;
pub mod packets;
pub mod rewrite_script;

/// All that the rest of the bytes give.
pub fn list<'a, T: Arbitrary<'a>>(u: &mut Unstructured<'a>) -> arbitrary::Result<Vec<T>> {
    let mut list = Vec::new();
    while !u.is_empty() {
        list.push(T::arbitrary(u)?);
    }
    Ok(list)
}

/// Whatever `Packet::parse` lets pass can be read, answered and translated without harm.
pub fn any_packet(bytes: &[u8]) {
    let mut buffer = bytes.to_vec();
    let Ok(mut packet) = Packet::parse(&mut buffer) else {
        return;
    };
    let source = match packet.family() {
        Family::V4 => Ipv4Addr::new(10, 45, 39, 2).to_ipv6_mapped(),
        Family::V6 => "fd45:39::2".parse().unwrap(),
    };
    let answers = [Reject::Network, Reject::Host, Reject::Prohibited];
    let [mut answer, ..] = answers.map(|reject| rewrite_script::check_reject(reject, &packet, source));
    // An error about it can be translated if it quotes TCP, and only then.
    if let Ok(mut error) = Packet::parse(&mut answer)
        && let Some(quoted) = error.quoted_tuple()
    {
        assert_eq!(packet.transport(), Transport::Tcp);
        assert_eq!(quoted, packet.tuple());
        error.translate_icmp_error(&quoted.reversed(), source, source);
        assert_eq!(error.quoted_tuple(), Some(quoted.reversed()));
        packets::assert_checksums(&answer, false);
    }
    match packet.transport() {
        Transport::Tcp => {
            if is_unicast(packet.destination()) {
                rewrite_script::check_reject(Reject::Reset, &packet, source);
            }
            let tuple = packet.tuple();
            let new = tuple.reversed();
            let change = ChecksumChange::between(&tuple, &new);
            for state in [ChecksumState::Complete, ChecksumState::Partial] {
                packet.translate(&new, change, state);
                assert_eq!(packet.tuple(), new);
                packet.translate(&tuple, change.reversed(), state);
            }
            packet.clamp_mss(1300, ChecksumState::Complete);
            _ = (packet.sequence_length(), packet.acknowledgement());
            let at = packet.transport_at();
            let same = |(at, (old, new)): (usize, (&u8, &u8))| (old != new).then_some(at);
            let pairs = bytes.iter().zip(packet.bytes()).enumerate();
            for changed in pairs.filter_map(same) {
                let is_checksum = |field: usize| (field..field + 2).contains(&changed);
                let options = at + 20..packet.transport_at() + 60;
                assert!(
                    is_checksum(at + 16)
                        || packet.family() == Family::V4 && is_checksum(10)
                        || options.contains(&changed),
                    "byte {changed}"
                );
            }
        }
        Transport::Icmp if packet.is_echo_request() => {
            packet.answer_echo();
            packet.answer_echo();
            assert!(!packet.is_echo_request());
        }
        Transport::Icmp => {
            let destination = packet.destination();
            if let Some(quoted) = packet.quoted_tuple() {
                packet.translate_icmp_error(&quoted.reversed(), source, destination);
            }
        }
        Transport::Udp => {
            _ = is_intact(&packet, ChecksumState::Complete);
            let Datagram { tuple, payload } = Datagram::of(&packet).unwrap();
            let mut out = [0; MAX_LEN];
            let length = builder::datagram(&tuple, payload, &mut out);
            assert_eq!(length == 0, payload.len() > MAX_DATAGRAM);
            if let Ok(made) = Packet::parse(&mut out[..length]) {
                assert!(is_intact(&made, ChecksumState::Complete));
                assert_eq!(Datagram::of(&made).unwrap().payload, payload);
            }
        }
        Transport::Other => {}
    }
}
