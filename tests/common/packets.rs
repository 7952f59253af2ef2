//! Packets made from scratch, byte for byte and with sums over all of them: the core's incremental ways
//! must come to the same bytes.

use std::net::Ipv6Addr;

use arbitrary::{Arbitrary, Unstructured};
use tcp_over_http::net::Family;
use tcp_over_http::packet::Tuple;

pub const SYN: u8 = 0x02;
pub const ACK: u8 = 0x10;

/// What there is in a TCP packet beside addresses and ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Options of an IPv4 header, at most 40 bytes; padded to 4.
    pub ipv4_options: Vec<u8>,
    /// Lengths, in 8 bytes beyond the first 8, of IPv6 extension headers: hop-by-hop options, if any, then
    /// destination options.
    pub hop_by_hop: Option<u8>,
    pub destination_options: Vec<u8>,
    /// An atomic fragment header (RFC 6946).
    pub atomic_fragment: bool,
    pub sequence: u32,
    pub acknowledgement: u32,
    pub flags: u8,
    pub window: u16,
    pub urgent: u16,
    /// At most 40 bytes; padded to 4.
    pub tcp_options: Vec<u8>,
    pub payload: usize,
    /// Whether the TCP checksum is left to the device.
    pub partial: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            ipv4_options: Vec::new(),
            hop_by_hop: None,
            destination_options: Vec::new(),
            atomic_fragment: false,
            sequence: 1000,
            acknowledgement: 0,
            flags: ACK,
            window: 0xfaf0,
            urgent: 0,
            tcp_options: Vec::new(),
            payload: 0,
            partial: false,
        }
    }
}

impl<'a> Arbitrary<'a> for Shape {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let ipv4_options = match u.int_in_range(0..=3)? {
            0 => u.bytes_of(40)?,
            _ => Vec::new(),
        };
        let mut shape = Self {
            // A source route's addresses would belong to the pseudo-header; the rest may be anything.
            ipv4_options: ipv4_options.iter().map(|byte| byte & 0x47).collect(),
            hop_by_hop: Option::arbitrary(u)?,
            atomic_fragment: u.ratio(1, 8)?,
            sequence: u32::arbitrary(u)?,
            acknowledgement: u32::arbitrary(u)?,
            flags: u8::arbitrary(u)?,
            window: u16::arbitrary(u)?,
            urgent: u16::arbitrary(u)?,
            tcp_options: match bool::arbitrary(u)? {
                true => tcp_options(u)?,
                false => u.bytes_of(40)?,
            },
            partial: bool::arbitrary(u)?,
            ..Self::default()
        };
        shape.hop_by_hop = shape.hop_by_hop.map(|length: u8| length % 4);
        for _ in 0..u.int_in_range(0..=2)? {
            shape.destination_options.push(u.int_in_range(0..=20)?);
        }
        let longest = 65_535 - 450; // the longest headers
        shape.payload = match u.int_in_range(0..=9)? {
            0..=3 => 0,
            4..=7 => u.int_in_range(0..=1460)?,
            8 => u.int_in_range(0..=longest)?,
            _ => longest,
        };
        Ok(shape)
    }
}

/// Options one behind the other, the MSS among them more often than not.
fn tcp_options(u: &mut Unstructured) -> arbitrary::Result<Vec<u8>> {
    let mut options = Vec::new();
    for _ in 0..u.int_in_range(1..=6)? {
        match u.int_in_range(0..=6)? {
            0..=2 => options.extend([1; 3].iter().take(u.int_in_range(1..=3)?)),
            3 | 4 => {
                options.extend([2, 4]);
                options.extend(u16::arbitrary(u)?.to_be_bytes());
            }
            5 => options.extend([3, 3, 7]),
            _ => options.extend([8, 10, 1, 2, 3, 4, 5, 6, 7, 8]),
        }
    }
    options.truncate(40);
    Ok(options)
}

/// Up to `most` bytes.
trait BytesOf {
    fn bytes_of(&mut self, most: usize) -> arbitrary::Result<Vec<u8>>;
}

impl BytesOf for Unstructured<'_> {
    fn bytes_of(&mut self, most: usize) -> arbitrary::Result<Vec<u8>> {
        let length = self.int_in_range(0..=most)?.min(self.len());
        Ok(self.bytes(length)?.to_vec())
    }
}

/// The TCP packet of this shape from `tuple.source` to `tuple.destination`, all checksums right.
pub fn tcp(tuple: &Tuple, shape: &Shape) -> Vec<u8> {
    let ipv4 = tuple.family() == Family::V4;
    let mut segment = Vec::new();
    segment.extend(tuple.source_port.to_be_bytes());
    segment.extend(tuple.destination_port.to_be_bytes());
    segment.extend(shape.sequence.to_be_bytes());
    segment.extend(shape.acknowledgement.to_be_bytes());
    let options = padded(&shape.tcp_options);
    segment.push((5 + options.len() as u8 / 4) << 4);
    segment.push(shape.flags);
    segment.extend(shape.window.to_be_bytes());
    segment.extend([0, 0]);
    segment.extend(shape.urgent.to_be_bytes());
    segment.extend(options);
    segment.extend((0..shape.payload).map(|at| (at * 7 + at / 251) as u8));

    let pseudo = pseudo_header(ipv4, tuple.source, tuple.destination, 6, segment.len());
    let field = match shape.partial {
        true => sum(&[&pseudo]),
        false => !sum(&[&pseudo, &segment]),
    };
    segment[16..18].copy_from_slice(&field.to_be_bytes());
    ip(tuple.source, tuple.destination, 6, shape, &segment)
}

/// The ICMP error of this type and code about `quote`; `rest` are the four bytes before it.
pub fn icmp_error(
    source: Ipv6Addr,
    destination: Ipv6Addr,
    (kind, code): (u8, u8),
    rest: [u8; 4],
    quote: &[u8],
) -> Vec<u8> {
    let ipv4 = source.to_ipv4_mapped().is_some();
    let mut message = vec![kind, code, 0, 0];
    message.extend(rest);
    message.extend(quote);
    let protocol = if ipv4 { 1 } else { 58 };
    let pseudo = match ipv4 {
        true => Vec::new(),
        false => pseudo_header(false, source, destination, 58, message.len()),
    };
    let field = !sum(&[&pseudo, &message]);
    message[2..4].copy_from_slice(&field.to_be_bytes());
    ip(source, destination, protocol, &Shape::default(), &message)
}

/// A whole IP packet with the headers of `shape`.
pub fn ip(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, shape: &Shape, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    if let (Some(source), Some(destination)) = (source.to_ipv4_mapped(), destination.to_ipv4_mapped()) {
        let options = padded(&shape.ipv4_options);
        let length = 20 + options.len();
        packet.extend([0x40 | (length / 4) as u8, 0x28]);
        packet.extend(((length + payload.len()) as u16).to_be_bytes());
        packet.extend([0x12, 0x34, 0x40, 0, 63, protocol, 0, 0]);
        packet.extend(source.octets());
        packet.extend(destination.octets());
        packet.extend(options);
        let field = !sum(&[&packet]);
        packet[10..12].copy_from_slice(&field.to_be_bytes());
    } else {
        let mut kinds: Vec<(u8, Vec<u8>)> = Vec::new();
        let options = |length: &u8| {
            // One PadN option (RFC 8200 section 4.2) fills the header.
            let mut header = vec![0; 8 + *length as usize * 8];
            header[1] = *length;
            header[2] = 1;
            header[3] = header.len() as u8 - 4;
            header
        };
        kinds.extend(shape.hop_by_hop.iter().map(|length| (0, options(length))));
        let lengths = shape.destination_options.iter();
        kinds.extend(lengths.map(|length| (60, options(length))));
        if shape.atomic_fragment {
            kinds.push((44, vec![0, 0, 0, 0, 9, 9, 9, 9]));
        }
        let length = kinds.iter().map(|(_, header)| header.len()).sum::<usize>() + payload.len();
        let first = kinds.first().map_or(protocol, |(kind, _)| *kind);
        packet.extend([0x62, 0x81, 0x23, 0x45]);
        packet.extend((length as u16).to_be_bytes());
        packet.extend([first, 63]);
        packet.extend(source.octets());
        packet.extend(destination.octets());
        for nth in 0..kinds.len() {
            let next = kinds.get(nth + 1).map_or(protocol, |(kind, _)| *kind);
            packet.push(next);
            packet.extend(&kinds[nth].1[1..]);
        }
    }
    packet.extend(payload);
    packet
}

/// The virtio header of a packet of this shape.
pub fn vnet_header(packet: &[u8], shape: &Shape) -> [u8; 10] {
    let mut header = [0; 10];
    if shape.partial {
        header[0] = 1;
        header[6..8].copy_from_slice(&(transport_at(packet) as u16).to_le_bytes());
        header[8..10].copy_from_slice(&16_u16.to_le_bytes());
    }
    header
}

/// Asserts that all checksums of a packet are right, summing all of it.
pub fn assert_checksums(packet: &[u8], partial: bool) {
    let ipv4 = packet[0] >> 4 == 4;
    let at = transport_at(packet);
    if ipv4 {
        let header = (packet[0] & 15) as usize * 4;
        assert_eq!(sum(&[&packet[..header]]), 0xffff, "IPv4 header");
    }
    let (protocol, addresses) = match ipv4 {
        true => (packet[9], &packet[12..20]),
        false => (final_protocol(packet), &packet[8..40]),
    };
    let mut pseudo = addresses.to_vec();
    pseudo.extend(((packet.len() - at) as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, protocol]);
    match (protocol, partial) {
        (6, true) => {
            let field = u16::from_be_bytes([packet[at + 16], packet[at + 17]]);
            assert_eq!(sum(&[&pseudo]), field, "partial TCP");
        }
        (1, _) => assert_eq!(sum(&[&packet[at..]]), 0xffff, "ICMPv4"),
        (6 | 17 | 58, _) => assert_eq!(sum(&[&pseudo, &packet[at..]]), 0xffff, "TCP, UDP or ICMPv6"),
        _ => panic!("protocol {protocol}"),
    }
}

/// Where the transport header of a packet made here begins.
pub fn transport_at(packet: &[u8]) -> usize {
    match packet[0] >> 4 {
        4 => (packet[0] & 15) as usize * 4,
        _ => walk(packet).0,
    }
}

fn final_protocol(packet: &[u8]) -> u8 {
    walk(packet).1
}

fn walk(packet: &[u8]) -> (usize, u8) {
    let (mut at, mut protocol) = (40, packet[6]);
    while let 0 | 44 | 60 = protocol {
        protocol = packet[at];
        at += 8 + packet[at + 1] as usize * 8;
    }
    (at, protocol)
}

fn padded(options: &[u8]) -> Vec<u8> {
    let mut options = options.to_vec();
    options.resize(options.len().next_multiple_of(4), 0);
    options
}

fn pseudo_header(
    ipv4: bool,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    protocol: u8,
    length: usize,
) -> Vec<u8> {
    let skip = if ipv4 { 12 } else { 0 };
    let mut header = source.octets()[skip..].to_vec();
    header.extend(&destination.octets()[skip..]);
    header.extend((length as u32).to_be_bytes());
    header.extend([0, 0, 0, protocol]);
    header
}

/// The one's complement sum, the plain way: word by word, each piece padded to a whole word.
fn sum(pieces: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for piece in pieces {
        for word in piece.chunks(2) {
            sum += (word[0] as u64) << 8 | *word.get(1).unwrap_or(&0) as u64;
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
