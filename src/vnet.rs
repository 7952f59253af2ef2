//! The header that stands before each packet on a TUN with `IFF_VNET_HDR`.

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
/// A translation changes none of it: what was read is handed back with the packet, and the kernel goes on
/// with a super-packet as if it had never left.
#[derive(Clone, Copy, Debug, Default)]
pub struct Header {
    flags: u8,
    csum_start: u16,
    csum_offset: u16,
}

impl Header {
    /// A header that leaves nothing to the device: for packets that are whole.
    pub const PLAIN: [u8; LEN] = [0; LEN];

    /// Reads the header.
    pub const fn parse(bytes: &[u8; LEN]) -> Self {
        Self {
            flags: bytes[0],
            csum_start: u16::from_le_bytes([bytes[6], bytes[7]]),
            csum_offset: u16::from_le_bytes([bytes[8], bytes[9]]),
        }
    }

    /// Who fills in the packet's checksum. None if the header points at something that is not the TCP
    /// checksum of `packet`.
    pub fn checksum_state(&self, packet: &Packet) -> Option<ChecksumState> {
        if self.flags & NEEDS_CSUM == 0 {
            return Some(ChecksumState::Complete);
        }
        let fits = packet.transport() == Transport::Tcp
            && self.csum_start as usize == packet.transport_at()
            && self.csum_offset as usize == TCP_CHECKSUM;
        fits.then_some(ChecksumState::Partial)
    }
}
