//! UDP datagrams (RFC 768), of which the daemon answers only DNS queries.

use crate::net::Family;
use crate::packet::builder::addresses;
use crate::packet::checksum;
use crate::packet::{ChecksumState, Packet, Transport, Tuple};
use crate::packet::{UDP_CHECKSUM, UDP_HEADER};

/// A datagram in a packet.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// Source and destination.
    pub tuple: Tuple,
    /// Its payload.
    pub payload: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// The datagram that a packet carries. `None` if it carries something else.
    pub fn of(packet: &'a Packet) -> Option<Self> {
        (packet.transport() == Transport::Udp).then(|| {
            let bytes = &packet.bytes()[packet.transport_at()..];
            let length = u16::from_be_bytes([bytes[4], bytes[5]]) as usize; // fits, as the packet has checked
            Datagram { tuple: packet.tuple(), payload: &bytes[UDP_HEADER..length] }
        })
    }
}

/// Whether a UDP packet's checksum is right. An IPv4 packet may have none; an IPv6 packet must have one (RFC 8200
/// section 8.1).
pub fn is_intact(packet: &Packet, state: ChecksumState) -> bool {
    let bytes = packet.bytes();
    let datagram = &bytes[packet.transport_at()..];
    if state == ChecksumState::Partial
        || packet.family() == Family::V4 && datagram[UDP_CHECKSUM..UDP_HEADER] == [0, 0]
    {
        return true;
    }
    let length = u16::from_be_bytes([datagram[4], datagram[5]]) as usize;
    let pseudo = checksum::pseudo_header(&bytes[addresses(packet.family())], 17, length);
    checksum::sum(pseudo, &datagram[..length]) == u16::MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::builder::{MAX_DATAGRAM, MAX_LEN, datagram};
    use core::net::Ipv4Addr;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// 192.0.2.1:1000 > 198.51.100.53:53, "hi!".
    const V4: [u8; 31] = [
        0x45, 0, 0, 31, 0, 0, 0x40, 0, 64, 17, 0x4e, 0x64, 192, 0, 2, 1, 198, 51, 100, 53, //
        0x03, 0xe8, 0, 53, 0, 11, 0x85, 0xe7, b'h', b'i', b'!',
    ];

    fn tuples() -> [Tuple; 2] {
        let mapped = |octets| Ipv4Addr::from(octets).to_ipv6_mapped();
        let v4 = Tuple {
            source: mapped([192, 0, 2, 1]),
            destination: mapped([198, 51, 100, 53]),
            source_port: 1000,
            destination_port: 53,
        };
        let (source, destination) = ("fd00::7".parse().unwrap(), "2001:db8::53".parse().unwrap());
        [v4, Tuple { source, destination, ..v4 }]
    }

    fn build(tuple: &Tuple, payload: &[u8]) -> Vec<u8> {
        let mut out = [0xaa; MAX_LEN];
        let length = datagram(tuple, payload, &mut out);
        out[..length].to_vec()
    }

    #[test]
    fn byte_for_byte() {
        assert_eq!(build(&tuples()[0], b"hi!"), V4);
    }

    #[test]
    fn the_longest_fits_and_what_is_longer_is_not_made() {
        for tuple in tuples() {
            assert!(!build(&tuple, &[1; MAX_DATAGRAM]).is_empty());
            assert!(build(&tuple, &[1; MAX_DATAGRAM + 1]).is_empty());
        }
    }

    #[test]
    fn a_sum_of_zero_is_sent_as_ones() {
        for tuple in tuples() {
            let mut bytes = build(&tuple, &[0, 0]);
            let at = bytes.len() - 10;
            // The payload that brings the sum to zero.
            let field: [u8; 2] = [bytes[at + 6], bytes[at + 7]];
            bytes = build(&tuple, &field);
            assert_eq!(bytes[at + 6..at + 8], [0xff, 0xff]);
            let packet = Packet::parse(&mut bytes).unwrap();
            assert!(is_intact(&packet, ChecksumState::Complete));
        }
    }

    #[test]
    fn no_checksum_will_do_for_ipv4_only() {
        for (tuple, will_do) in tuples().iter().zip([true, false]) {
            let mut bytes = build(tuple, b"query");
            let at = bytes.len() - 13;
            bytes[at + 6..at + 8].fill(0);
            let packet = Packet::parse(&mut bytes).unwrap();
            assert_eq!(is_intact(&packet, ChecksumState::Complete), will_do);
            assert!(is_intact(&packet, ChecksumState::Partial));
        }
    }

    #[test]
    fn lengths_that_do_not_fit_are_found() {
        for (length, fits) in [(7, false), (8, true), (11, true), (12, false), (0, false)] {
            let mut bytes = V4;
            bytes[25] = length;
            let packet = Packet::parse(&mut bytes);
            assert_eq!(packet.is_ok(), fits, "{length}");
            if let Ok(packet) = packet {
                assert_eq!(Datagram::of(&packet).unwrap().payload.len(), usize::from(length) - 8);
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_made_is_read(payload in proptest::collection::vec(any::<u8>(), 0..=MAX_DATAGRAM), flip in any::<prop::sample::Index>()) {
            for tuple in tuples() {
                let mut bytes = build(&tuple, &payload);
                let packet = Packet::parse(&mut bytes).unwrap();
                prop_assert!(is_intact(&packet, ChecksumState::Complete));
                let datagram = Datagram::of(&packet).unwrap();
                prop_assert_eq!((datagram.tuple, datagram.payload), (tuple, &payload[..]));
                if !payload.is_empty() {
                    let at = bytes.len() - 1 - flip.index(payload.len());
                    bytes[at] ^= 0x10;
                    let packet = Packet::parse(&mut bytes).unwrap();
                    prop_assert!(!is_intact(&packet, ChecksumState::Complete));
                }
            }
        }
    }
}
