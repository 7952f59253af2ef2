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
/// TTL or hop limit of all packets made here. It must be real: these packets are forwarded.
pub(super) const HOP_LIMIT: u8 = 64;

/// Writes a TCP segment without options or payload into `out` and returns the packet's length.
pub fn segment(
    tuple: &Tuple,
    sequence: u32,
    acknowledgement: u32,
    flags: u8,
    out: &mut [u8; MAX_LEN],
) -> usize {
    let family = tuple.family();
    let at = ip_header(family, 6, tuple.source, tuple.destination, TCP_HEADER, out);
    let tcp = &mut out[at..at + TCP_HEADER];
    tcp.fill(0);
    tcp[0..2].copy_from_slice(&tuple.source_port.to_be_bytes());
    tcp[2..4].copy_from_slice(&tuple.destination_port.to_be_bytes());
    tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
    tcp[8..12].copy_from_slice(&acknowledgement.to_be_bytes());
    tcp[12] = (TCP_HEADER as u8 / 4) << 4;
    tcp[13] = flags;
    if flags & RST == 0 {
        tcp[14] = u8::MAX; // window
    }
    let pseudo = checksum::pseudo_header(&out[addresses(family)], 6, TCP_HEADER);
    set_checksum(out, at, TCP_CHECKSUM, at + TCP_HEADER, pseudo)
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
    // Zero would say that there is none; the sum is the same.
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
    out: &mut [u8; MAX_LEN],
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
pub(super) fn set_checksum(
    out: &mut [u8; MAX_LEN],
    at: usize,
    field: usize,
    end: usize,
    start: u16,
) -> usize {
    let value = !checksum::sum(start, &out[at..end]);
    out[at + field..at + field + 2].copy_from_slice(&value.to_be_bytes());
    end
}
