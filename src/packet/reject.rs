//! Rejections: the honest answers to the packet of a connection that has failed.

use core::net::Ipv6Addr;

use crate::net::Family;
use crate::packet::builder::{MAX_LEN, ip_header, segment, set_checksum};
use crate::packet::{ACK, IPV4_HEADER, IPV6_HEADER, Packet, RST, checksum};

/// The longest ICMPv4 error (RFC 1812 section 4.3.2.3).
const MAX_ICMPV4: usize = 576;

/// How a packet is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// A RST, as if nobody were listening (RFC 9293 section 3.10.7.1).
    Reset,
    /// ICMP: network unreachable.
    Network,
    /// ICMP: host unreachable.
    Host,
    /// ICMP: port unreachable.
    Port,
    /// ICMP: communication administratively prohibited.
    Prohibited,
}

impl Reject {
    /// ICMPv4 code of a destination unreachable message (type 3; RFC 792, RFC 1812 section 5.2.7.1).
    const fn icmpv4_code(self) -> u8 {
        match self {
            Self::Network => 0,
            Self::Host | Self::Reset => 1,
            Self::Port => 3,
            Self::Prohibited => 13,
        }
    }

    /// ICMPv6 code of a destination unreachable message (type 1; RFC 4443 section 3.1).
    const fn icmpv6_code(self) -> u8 {
        match self {
            Self::Network => 0,
            Self::Host | Self::Reset => 3,
            Self::Port => 4,
            Self::Prohibited => 1,
        }
    }

    /// Writes the answer to `packet` into `out` and returns its length. ICMP errors come from
    /// `error_source`; a [`Reject::Reset`] comes from the destination of the packet, which must
    /// be unicast and carry TCP.
    pub fn build(self, packet: &Packet, error_source: Ipv6Addr, out: &mut [u8; MAX_LEN]) -> usize {
        match (self, packet.family()) {
            (Self::Reset, _) => reset(packet, out),
            (_, Family::V4) => icmpv4(self.icmpv4_code(), packet, error_source, out),
            (_, Family::V6) => icmpv6(self.icmpv6_code(), packet, error_source, out),
        }
    }
}

fn reset(packet: &Packet, out: &mut [u8; MAX_LEN]) -> usize {
    // RFC 9293 section 3.10.7.1: use the acknowledged number if there is one, else acknowledge what came.
    let (sequence, acknowledgement, flags) = match packet.flags() & ACK {
        0 => (0, packet.sequence().wrapping_add(packet.sequence_length()), RST | ACK),
        _ => (packet.acknowledgement(), 0, RST),
    };
    segment(&packet.tuple().reversed(), sequence, acknowledgement, flags, out)
}

fn icmpv4(code: u8, packet: &Packet, source: Ipv6Addr, out: &mut [u8; MAX_LEN]) -> usize {
    let quote = packet.bytes().len().min(MAX_ICMPV4 - IPV4_HEADER - 8);
    let at = ip_header(Family::V4, 1, source, packet.source(), 8 + quote, out);
    out[at..at + 8].copy_from_slice(&[3, code, 0, 0, 0, 0, 0, 0]);
    out[at + 8..at + 8 + quote].copy_from_slice(&packet.bytes()[..quote]);
    set_checksum(out, at, 2, at + 8 + quote, 0)
}

fn icmpv6(code: u8, packet: &Packet, source: Ipv6Addr, out: &mut [u8; MAX_LEN]) -> usize {
    let quote = packet.bytes().len().min(MAX_LEN - IPV6_HEADER - 8);
    let at = ip_header(Family::V6, 58, source, packet.source(), 8 + quote, out);
    out[at..at + 8].copy_from_slice(&[1, code, 0, 0, 0, 0, 0, 0]);
    out[at + 8..at + 8 + quote].copy_from_slice(&packet.bytes()[..quote]);
    let pseudo = checksum::pseudo_header(&out[8..40], 58, 8 + quote);
    set_checksum(out, at, 2, at + 8 + quote, pseudo)
}
