//! The header before each packet on a TUN with `IFF_VNET_HDR`.

use crate::packet::UDP_CHECKSUM;
use crate::packet::{ChecksumState, Packet, TCP_CHECKSUM, Transport};

/// Bytes of the header.
pub const LEN: usize = 10;

const NEEDS_CSUM: u8 = 1;

/// `struct virtio_net_hdr` (<linux/virtio_net.h>), little-endian on every machine (`TUNSETVNETLE`):
///
/// ```text
/// 0 flags  1 gso_type  2 hdr_len  4 gso_size  6 csum_start  8 csum_offset
/// ```
///
/// A translation does not change it: it is written back with the packet, and the kernel treats a super-packet as if it
/// had never left.
#[derive(Clone, Copy, Debug, Default)]
pub struct Header {
    flags: u8,
    csum_start: u16,
    csum_offset: u16,
}

impl Header {
    /// A header that leaves nothing to the device: for complete packets.
    pub const PLAIN: [u8; LEN] = [0; LEN];

    /// Reads the header.
    pub const fn parse(bytes: &[u8; LEN]) -> Self {
        Self {
            flags: bytes[0],
            csum_start: u16::from_le_bytes([bytes[6], bytes[7]]),
            csum_offset: u16::from_le_bytes([bytes[8], bytes[9]]),
        }
    }

    /// Who fills in the packet's checksum. None if the header points at something that is not the TCP or UDP
    /// checksum of `packet`.
    pub fn checksum_state(&self, packet: &Packet) -> Option<ChecksumState> {
        if self.flags & NEEDS_CSUM == 0 {
            return Some(ChecksumState::Complete);
        }
        let offset = match packet.transport() {
            Transport::Tcp => TCP_CHECKSUM,
            Transport::Udp => UDP_CHECKSUM,
            _ => return None,
        };
        let fits = self.csum_start as usize == packet.transport_at() && self.csum_offset as usize == offset;
        fits.then_some(ChecksumState::Partial)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    /// A TCP packet of nothing but headers, from 192.0.2.1 to 192.0.2.2; with `protocol` 17, UDP, and with others
    /// something else.
    fn packet(protocol: u8) -> Vec<u8> {
        let mut bytes = std::vec![0; 40];
        (bytes[0], bytes[3], bytes[9], bytes[32]) = (0x45, 40, protocol, 0x50);
        bytes[25] = 20; // the length, if it is UDP
        bytes[12..20].copy_from_slice(&[192, 0, 2, 1, 192, 0, 2, 2]);
        bytes
    }

    fn state(header: [u8; LEN], protocol: u8) -> Option<ChecksumState> {
        let mut bytes = packet(protocol);
        let packet = Packet::parse(&mut bytes).unwrap();
        Header::parse(&header).checksum_state(&packet)
    }

    #[test]
    fn nothing_left_to_the_device() {
        let complete = Some(ChecksumState::Complete);
        assert_eq!(state(Header::PLAIN, 6), complete);
        assert_eq!(state(Header::PLAIN, 17), complete);
        // VIRTIO_NET_HDR_F_DATA_VALID; what the offsets say does not matter then.
        assert_eq!(state([2, 0, 0, 0, 0, 0, 9, 9, 9, 9], 6), complete);
    }

    #[test]
    fn the_tcp_checksum_is_left_to_the_device() {
        // A TSO super-packet, as the kernel writes it.
        let header = [1, 1, 40, 0, 0xb4, 5, 20, 0, 16, 0];
        assert_eq!(state(header, 6), Some(ChecksumState::Partial));
    }

    #[test]
    fn the_udp_checksum_is_left_to_the_device() {
        assert_eq!(state([1, 0, 0, 0, 0, 0, 20, 0, 6, 0], 17), Some(ChecksumState::Partial));
    }

    #[test]
    fn anything_else_left_to_the_device_is_wrong() {
        for (start, offset) in [(20, 6), (0, 16), (40, 16), (0, 36)] {
            let header = [1, 0, 0, 0, 0, 0, start, 0, offset, 0];
            assert_eq!(state(header, 6), None);
        }
        assert_eq!(state([1, 0, 0, 0, 0, 0, 0, 20, 0, 16], 6), None, "big-endian");
        assert_eq!(state([1, 0, 0, 0, 0, 0, 20, 0, 16, 0], 17), None, "where TCP has it");
        assert_eq!(state([1, 0, 0, 0, 0, 0, 20, 0, 6, 0], 132), None, "not TCP, not UDP");
    }
}
