//! Packets made from scratch: TCP segments, UDP datagrams and the headers of ICMP errors.

use core::net::Ipv6Addr;
use core::ops::Range;

use crate::net::Family;
use crate::packet::checksum;
use crate::packet::{IPV4_HEADER, IPV6_HEADER, RST, TCP_CHECKSUM, TCP_HEADER, Tuple};
use crate::packet::{UDP_CHECKSUM, UDP_HEADER};

/// The longest packet made here: an ICMPv6 error with its quote (RFC 4443 section 2.4 (c): no longer than the
/// minimum MTU).
pub const MAX_LEN: usize = 1280;
/// The longest payload of a UDP datagram that fits [`MAX_LEN`].
pub const MAX_DATAGRAM: usize = MAX_LEN - IPV6_HEADER - UDP_HEADER;
/// TTL or hop limit of all packets made here. Not a token value, since these packets are forwarded.
pub(super) const HOP_LIMIT: u8 = 64;

/// Writes a TCP segment without options or payload into `out` and returns the packet's length.
pub fn segment(
    tuple: &Tuple,
    sequence: u32,
    acknowledgement: u32,
    flags: u8,
    out: &mut [u8; MAX_LEN],
) -> usize {
    let window = if flags & RST == 0 { 0xff00 } else { 0 };
    let header = Tcp { tuple: *tuple, sequence, acknowledgement, flags, window };
    header.write(&[], &[], out)
}

/// A TCP header without its options (RFC 9293 section 3.1).
#[derive(Clone, Copy, Debug)]
pub struct Tcp {
    /// Source and destination.
    pub tuple: Tuple,
    /// The sequence number.
    pub sequence: u32,
    /// The acknowledgement number.
    pub acknowledgement: u32,
    /// Byte 13 of the header.
    pub flags: u8,
    /// The window as it is in the header.
    pub window: u16,
}

impl Tcp {
    /// Writes the packet with `options`, a multiple of 4 bytes, and `payload` into `out`, which must have room for
    /// it, and returns its length.
    pub(crate) fn write(&self, options: &[u8], payload: &[u8], out: &mut [u8]) -> usize {
        let family = self.tuple.family();
        let header = TCP_HEADER + options.len();
        let length = header + payload.len();
        let at = ip_header(family, 6, self.tuple.source, self.tuple.destination, length, out);
        let tcp = &mut out[at..at + length];
        tcp[0..2].copy_from_slice(&self.tuple.source_port.to_be_bytes());
        tcp[2..4].copy_from_slice(&self.tuple.destination_port.to_be_bytes());
        tcp[4..8].copy_from_slice(&self.sequence.to_be_bytes());
        tcp[8..12].copy_from_slice(&self.acknowledgement.to_be_bytes());
        tcp[12..14].copy_from_slice(&[(header as u8 / 4) << 4, self.flags]);
        tcp[14..16].copy_from_slice(&self.window.to_be_bytes());
        tcp[16..TCP_HEADER].fill(0);
        tcp[TCP_HEADER..header].copy_from_slice(options);
        tcp[header..].copy_from_slice(payload);
        let pseudo = checksum::pseudo_header(&out[addresses(family)], 6, length);
        set_checksum(out, at, TCP_CHECKSUM, at + length, pseudo)
    }
}

/// Writes a UDP datagram (RFC 768) into `out` and returns the packet's length; 0 if `payload` is longer than
/// [`MAX_DATAGRAM`].
pub fn datagram(tuple: &Tuple, payload: &[u8], out: &mut [u8; MAX_LEN]) -> usize {
    if payload.len() > MAX_DATAGRAM {
        return 0;
    }
    let family = tuple.family();
    let length = UDP_HEADER + payload.len();
    let at = ip_header(family, 17, tuple.source, tuple.destination, length, out);
    out[at..at + 2].copy_from_slice(&tuple.source_port.to_be_bytes());
    out[at + 2..at + 4].copy_from_slice(&tuple.destination_port.to_be_bytes());
    out[at + 4..at + 6].copy_from_slice(&(length as u16).to_be_bytes());
    out[at + 6..at + 8].fill(0);
    out[at + UDP_HEADER..at + length].copy_from_slice(payload);
    let pseudo = checksum::pseudo_header(&out[addresses(family)], 17, length);
    let end = set_checksum(out, at, UDP_CHECKSUM, at + length, pseudo);
    // Zero would mean no checksum; 0xffff is the same sum.
    if out[at + 6..at + 8] == [0, 0] {
        out[at + 6..at + 8].fill(0xff);
    }
    end
}

/// Writes an IP header for `length` bytes of `protocol`; returns where those begin.
pub(super) fn ip_header(
    family: Family,
    protocol: u8,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    length: usize,
    out: &mut [u8],
) -> usize {
    let (source, destination) = (source.octets(), destination.octets());
    if family == Family::V6 {
        out[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 0, protocol, HOP_LIMIT]);
        out[4..6].copy_from_slice(&(length as u16).to_be_bytes());
        out[8..24].copy_from_slice(&source);
        out[24..40].copy_from_slice(&destination);
        return IPV6_HEADER;
    }
    // Don't fragment, so the identification may be zero (RFC 6864 section 4.1).
    out[..12].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, HOP_LIMIT, protocol, 0, 0]);
    out[2..4].copy_from_slice(&((IPV4_HEADER + length) as u16).to_be_bytes());
    out[12..16].copy_from_slice(&source[12..]);
    out[16..20].copy_from_slice(&destination[12..]);
    set_checksum(out, 0, 10, IPV4_HEADER, 0);
    IPV4_HEADER
}

/// Where an IP header has its addresses.
pub(super) const fn addresses(family: Family) -> Range<usize> {
    match family {
        Family::V4 => 12..20,
        Family::V6 => 8..40,
    }
}

/// Sums `out[at..end]`, whose checksum field at `at + field` is zero, on top of `start`. Returns `end`.
pub(super) fn set_checksum(out: &mut [u8], at: usize, field: usize, end: usize, start: u16) -> usize {
    let value = !checksum::sum(start, &out[at..end]);
    out[at + field..at + field + 2].copy_from_slice(&value.to_be_bytes());
    end
}
