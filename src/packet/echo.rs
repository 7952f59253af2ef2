//! Pings: ICMP echo (RFC 792, RFC 4443 section 4).

use super::{Packet, Transport, be16};
use crate::net::Family;
use crate::packet::builder::HOP_LIMIT;
use crate::packet::checksum::Delta;

/// Type of a request and of a reply, in both families.
const ICMPV4: (u8, u8) = (8, 0);
const ICMPV6: (u8, u8) = (128, 129);

impl Packet<'_> {
    /// Whether this is an ICMP echo request.
    pub fn is_echo_request(&self) -> bool {
        self.transport == Transport::Icmp && self.icmp_type().0 == self.echo_types().0
    }

    /// Turns an echo request into its reply, which differs only in the type. A wrong checksum stays wrong.
    pub fn answer_echo(&mut self) {
        let (source, destination) = (self.source(), self.destination());
        self.set_addresses(destination, source); // swapping addresses changes no sum
        let at = self.transport_at;
        let before = be16(self.bytes, at);
        self.bytes[at] = self.echo_types().1;
        let icmp = Delta::default().replace_word(before, be16(self.bytes, at));
        self.update(at + 2, |field| icmp.update(field));
        if self.family == Family::V6 {
            self.bytes[7] = HOP_LIMIT;
            return;
        }
        let before = be16(self.bytes, 8);
        self.bytes[8] = HOP_LIMIT;
        let ip = Delta::default().replace_word(before, be16(self.bytes, 8));
        self.update(10, |field| ip.update(field));
    }

    const fn echo_types(&self) -> (u8, u8) {
        match self.family {
            Family::V4 => ICMPV4,
            Family::V6 => ICMPV6,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::checksum;
    use std::vec::Vec;

    /// 192.168.1.7 > 198.18.0.1, id 0x1234, sequence 1, "ping!".
    const REQUEST_V4: [u8; 33] = [
        0x45, 0x00, 0x00, 0x21, 0x1c, 0x46, 0x40, 0x00, 0x3f, 0x01, 0x97, 0xd3, //
        0xc0, 0xa8, 0x01, 0x07, 0xc6, 0x12, 0x00, 0x01, //
        0x08, 0x00, 0xe5, 0xf9, 0x12, 0x34, 0x00, 0x01, 0x70, 0x69, 0x6e, 0x67, 0x21,
    ];
    const REPLY_V4: [u8; 33] = [
        0x45, 0x00, 0x00, 0x21, 0x1c, 0x46, 0x40, 0x00, 0x40, 0x01, 0x96, 0xd3, //
        0xc6, 0x12, 0x00, 0x01, 0xc0, 0xa8, 0x01, 0x07, //
        0x00, 0x00, 0xed, 0xf9, 0x12, 0x34, 0x00, 0x01, 0x70, 0x69, 0x6e, 0x67, 0x21,
    ];

    fn request_v6() -> Vec<u8> {
        let mut bytes =
            [&[0x60, 0, 0, 0, 0, 12, 58, 63][..], &[0; 32], &[128, 0, 0, 0, 1, 2, 0, 9, 1, 2, 3, 4]].concat();
        bytes[8..12].copy_from_slice(&[0xfd, 0, 0, 7]);
        bytes[24..28].copy_from_slice(&[0xfd, 0x45, 0, 0x3a]);
        let sum = checksum::sum(checksum::pseudo_header(&bytes[8..40], 58, 12), &bytes[40..]);
        bytes[42..44].copy_from_slice(&(!sum).to_be_bytes());
        bytes
    }

    #[test]
    fn a_request_becomes_its_reply() {
        let mut bytes = REQUEST_V4;
        let mut packet = Packet::parse(&mut bytes).unwrap();
        assert!(packet.is_echo_request());
        packet.answer_echo();
        assert!(!packet.is_echo_request());
        assert_eq!(bytes, REPLY_V4);
        assert_eq!((checksum::sum(0, &bytes[..20]), checksum::sum(0, &bytes[20..])), (0xffff, 0xffff));
    }

    #[test]
    fn the_same_for_ipv6() {
        let mut bytes = request_v6();
        let mut packet = Packet::parse(&mut bytes).unwrap();
        assert!(packet.is_echo_request());
        packet.answer_echo();
        let mut expected = request_v6();
        expected[7] = 64;
        expected[8..40].rotate_left(16);
        expected[40] = 129;
        let sum = u16::from_be_bytes([expected[42], expected[43]]) - 0x100; // one's complement: no borrow here
        expected[42..44].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(bytes, expected);
        let sum = checksum::sum(checksum::pseudo_header(&bytes[8..40], 58, 12), &bytes[40..]);
        assert_eq!(sum, 0xffff);
    }

    #[test]
    fn a_wrong_checksum_is_not_put_right() {
        let mut bytes = REQUEST_V4;
        bytes[28] ^= 1;
        Packet::parse(&mut bytes).unwrap().answer_echo();
        assert_ne!(checksum::sum(0, &bytes[20..]), 0xffff);
    }
}
