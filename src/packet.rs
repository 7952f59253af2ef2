//! A checked, mutable view of one IP packet.
//!
//! `etherparse` decides once whether the bytes are a packet and where its transport header lies; after
//! that every accessor works at fixed offsets and none can fail. A packet may be a *super-packet* of up to
//! 64 KiB that the kernel will cut up later: nothing here looks at the payload.
//!
//! ```text
//! IPv4 (RFC 791)                     IPv6 (RFC 8200)                  TCP (RFC 9293)
//!  0 version, header length           0 version, class, flow label     0 source port
//!  2 total length                     4 payload length                 2 destination port
//!  6 flags, fragment offset           6 next header                    4 sequence number
//!  8 TTL                              7 hop limit                      8 acknowledgement number
//!  9 protocol                         8 source address                12 header length
//! 10 header checksum                 24 destination address           13 flags
//! 12 source address                  40 extension headers             16 checksum
//! 16 destination address                                              20 options
//! 20 options
//! ```

use core::net::Ipv6Addr;

use etherparse::{IpSlice, Ipv6ExtensionSlice, TcpSlice, ip_number};

pub mod builder;
pub mod checksum;
pub mod datagram;
mod echo;
mod icmp;
pub mod reject;
mod tuple;
pub mod vnet;

pub use tuple::{ChecksumChange, Tuple};

use crate::net::Family;
use checksum::Delta;

/// Bytes of an IPv4 header without options.
pub const IPV4_HEADER: usize = 20;
/// Bytes of an IPv6 header without extensions.
pub const IPV6_HEADER: usize = 40;
/// Bytes of an IP header without options and extensions.
pub const fn ip_header(family: Family) -> usize {
    match family {
        Family::V4 => IPV4_HEADER,
        Family::V6 => IPV6_HEADER,
    }
}

/// Bytes of a TCP header without options.
pub const TCP_HEADER: usize = 20;
/// Offset of the checksum in a TCP header.
pub const TCP_CHECKSUM: usize = 16;
/// Bytes of a UDP header.
pub const UDP_HEADER: usize = 8;
/// Offset of the checksum in a UDP header.
pub const UDP_CHECKSUM: usize = 6;

/// TCP flag FIN, in byte 13 of the header.
pub const FIN: u8 = 0x01;
/// TCP flag SYN.
pub const SYN: u8 = 0x02;
/// TCP flag RST.
pub const RST: u8 = 0x04;
/// TCP flag ACK.
pub const ACK: u8 = 0x10;

/// Who fills in the TCP checksum of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChecksumState {
    /// The field holds the checksum.
    Complete,
    /// The field holds the folded pseudo-header sum; whoever sends the packet out does the rest
    /// (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
    Partial,
}

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP, header and options checked.
    Tcp,
    /// UDP whose length fits.
    Udp,
    /// ICMP of the packet's own family, at least 8 bytes.
    Icmp,
    /// Anything else.
    Other,
}

/// Where a TCP packet is in its connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Its sequence number.
    pub sequence: u32,
    /// Its acknowledgement number, which counts only if `flags` say so.
    pub acknowledgement: u32,
    /// How much sequence space it takes.
    pub length: u32,
    /// Its flags.
    pub flags: u8,
}

/// Why bytes are not a packet that can be handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// A header is cut off, contradicts itself, or the length fields don't fit the bytes.
    Header,
    /// A fragment: its transport header or a part of its payload is elsewhere.
    Fragment,
    /// An authentication or routing header (RFC 4302, RFC 8200 section 4.4): not translatable.
    Extension,
    /// A multicast, unspecified or mapped source, or a mapped destination.
    Address,
}

/// One IP packet, checked.
///
/// ```
/// use tcp_over_http::packet::{Packet, SYN, Tuple, builder};
///
/// let tuple = Tuple {
///     source: "::ffff:192.0.2.1".parse()?,
///     destination: "::ffff:203.0.113.10".parse()?,
///     source_port: 40_000,
///     destination_port: 443,
/// };
/// let mut bytes = [0; builder::MAX_LEN];
/// let length = builder::segment(&tuple, 1, 0, SYN, &mut bytes);
/// assert!(Packet::parse(&mut bytes[..length - 1]).is_err(), "cut off");
///
/// let packet = Packet::parse(&mut bytes[..length]).expect("a whole packet");
/// assert_eq!((packet.tuple(), packet.flags()), (tuple, SYN));
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
pub struct Packet<'a> {
    bytes: &'a mut [u8],
    family: Family,
    /// Offset of the transport header.
    transport_at: usize,
    transport: Transport,
}

impl<'a> Packet<'a> {
    /// Checks that `bytes` are exactly one whole packet.
    ///
    /// # Errors
    /// [`Malformed`] says why they are not.
    pub fn parse(bytes: &'a mut [u8]) -> Result<Self, Malformed> {
        let ip = IpSlice::from_slice(bytes).map_err(|_| Malformed::Header)?;
        let (family, is_translatable) = match &ip {
            IpSlice::Ipv4(_) => (Family::V4, bytes[9] != ip_number::AUTH.0),
            IpSlice::Ipv6(ip) => {
                use Ipv6ExtensionSlice::{Authentication, Routing};
                let bars = |it| matches!(it, Authentication(_) | Routing(_));
                (Family::V6, !ip.extensions().clone().into_iter().any(bars))
            }
        };
        if !is_translatable {
            return Err(Malformed::Extension);
        }
        let payload = ip.payload();
        if payload.fragmented {
            return Err(Malformed::Fragment);
        }
        let transport = transport(family, payload.ip_number.0);
        let fits = match transport {
            Transport::Tcp => TcpSlice::from_slice(payload.payload).is_ok(),
            Transport::Udp => match payload.payload {
                [_, _, _, _, high, low, _, _, ..] => {
                    (8..=payload.payload.len()).contains(&u16::from_be_bytes([*high, *low]).into())
                }
                _ => false,
            },
            Transport::Icmp => payload.payload.len() >= 8,
            Transport::Other => true,
        };
        let transport_at = bytes.len().wrapping_sub(payload.payload.len());
        let total = match family {
            Family::V4 => be16(bytes, 2) as usize,
            Family::V6 => IPV6_HEADER + be16(bytes, 4) as usize,
        };
        if !fits || total != bytes.len() {
            return Err(Malformed::Header);
        }
        let packet = Self { bytes, family, transport_at, transport };
        let (source, destination) = (packet.source(), packet.destination());
        let mapped = |address: Ipv6Addr| address.to_ipv4_mapped().is_some();
        if family == Family::V6 && (mapped(source) || mapped(destination)) || !is_unicast(source) {
            return Err(Malformed::Address);
        }
        Ok(packet)
    }

    /// The packet's family.
    pub const fn family(&self) -> Family {
        self.family
    }

    /// What the packet carries.
    pub const fn transport(&self) -> Transport {
        self.transport
    }

    /// The whole packet.
    pub const fn bytes(&self) -> &[u8] {
        self.bytes
    }

    /// Offset of the transport header.
    pub const fn transport_at(&self) -> usize {
        self.transport_at
    }

    /// The source address.
    pub fn source(&self) -> Ipv6Addr {
        match self.family {
            Family::V4 => self.ipv4_address(12),
            Family::V6 => self.ipv6_address(8),
        }
    }

    /// The destination address.
    pub fn destination(&self) -> Ipv6Addr {
        match self.family {
            Family::V4 => self.ipv4_address(16),
            Family::V6 => self.ipv6_address(24),
        }
    }

    /// Source and destination of a TCP or UDP packet.
    pub fn tuple(&self) -> Tuple {
        Tuple {
            source: self.source(),
            destination: self.destination(),
            source_port: be16(self.bytes, self.transport_at),
            destination_port: be16(self.bytes, self.transport_at + 2),
        }
    }

    /// The sequence number of a TCP packet.
    pub fn sequence(&self) -> u32 {
        be32(self.bytes, self.transport_at + 4)
    }

    /// The acknowledgement number of a TCP packet.
    pub fn acknowledgement(&self) -> u32 {
        be32(self.bytes, self.transport_at + 8)
    }

    /// The flags of a TCP packet.
    pub fn flags(&self) -> u8 {
        self.bytes[self.transport_at + 13]
    }

    /// The window of a TCP packet, as it is in the header.
    pub fn window(&self) -> u16 {
        be16(self.bytes, self.transport_at + 14)
    }

    /// The options of a TCP packet.
    pub fn tcp_options(&self) -> &[u8] {
        &self.bytes[self.transport_at + TCP_HEADER..self.transport_at + self.tcp_header()]
    }

    /// The payload of a TCP packet.
    pub fn tcp_payload(&self) -> &[u8] {
        &self.bytes[self.transport_at + self.tcp_header()..]
    }

    /// How much sequence space a TCP packet takes: payload bytes, SYN and FIN (RFC 9293 section 3.4).
    pub fn sequence_length(&self) -> u32 {
        self.segment().length
    }

    /// Where a TCP packet is in its connection.
    #[inline] // on every packet's path
    pub fn segment(&self) -> Segment {
        // One bounds check instead of one for each byte. The header is known to be there.
        let [_, _, _, _, s0, s1, s2, s3, a0, a1, a2, a3, offset, flags, ..] = self.bytes[self.transport_at..]
        else {
            return Segment::default();
        };
        let payload = self.bytes.len() - self.transport_at - (offset >> 4) as usize * 4;
        Segment {
            sequence: u32::from_be_bytes([s0, s1, s2, s3]),
            acknowledgement: u32::from_be_bytes([a0, a1, a2, a3]),
            length: payload as u32 + (flags & SYN != 0) as u32 + (flags & FIN != 0) as u32,
            flags,
        }
    }

    /// Gives the TCP packet (or what an ICMP error quotes of one) the source and destination `new` of its
    /// own family, and brings its checksums up to date with `change`.
    pub fn translate(&mut self, new: &Tuple, change: ChecksumChange, state: ChecksumState) {
        self.set_addresses(new.source, new.destination);
        let at = self.transport_at;
        self.bytes[at..at + 2].copy_from_slice(&new.source_port.to_be_bytes());
        self.bytes[at + 2..at + 4].copy_from_slice(&new.destination_port.to_be_bytes());
        if self.family == Family::V4 {
            self.update(10, |field| change.addresses.update(field));
        }
        // A quote may end before the checksum, or continue with padding (RFC 4884 section 5.1) that can't be told from
        // it; nobody verifies it there.
        if self.bytes.len() >= at + TCP_CHECKSUM + 2 {
            self.update(at + TCP_CHECKSUM, |field| match state {
                ChecksumState::Complete => (change.addresses + change.ports).update(field),
                ChecksumState::Partial => change.addresses.update_partial(field),
            });
        }
    }

    /// Lowers the MSS option of a SYN to `limit` bytes (RFC 9293 section 3.7.1), if it has one.
    pub fn clamp_mss(&mut self, limit: u16, state: ChecksumState) {
        let end = self.transport_at + self.tcp_header();
        let mut at = self.transport_at + TCP_HEADER;
        // An option consists of its kind, its whole length and its value; kinds 0 (end) and 1 (padding) have neither
        // length nor value.
        while at + 4 <= end {
            at += match (self.bytes[at], self.bytes[at + 1]) {
                (1, _) => 1,
                (0, _) | (_, 0 | 1) => return,
                (2, 4) => {
                    let old = be16(self.bytes, at + 2);
                    if old > limit {
                        self.set_mss(at + 2, old, limit, state);
                    }
                    4 // go on: some systems use the last one of several
                }
                (_, length) => length as usize,
            }
        }
    }

    /// Bytes of a TCP packet's header.
    fn tcp_header(&self) -> usize {
        (self.bytes[self.transport_at + 12] >> 4) as usize * 4
    }

    fn set_mss(&mut self, at: usize, old: u16, new: u16, state: ChecksumState) {
        self.bytes[at..at + 2].copy_from_slice(&new.to_be_bytes());
        if state == ChecksumState::Complete {
            // At an odd offset the two bytes lie in the low and high halves of two words, which sums as
            // one word with its bytes swapped.
            let odd = (at - self.transport_at) % 2 == 1;
            let word = |value: u16| if odd { value.swap_bytes() } else { value };
            let delta = Delta::default().replace_word(word(old), word(new));
            self.update(self.transport_at + TCP_CHECKSUM, |field| delta.update(field));
        }
    }

    fn set_addresses(&mut self, source: Ipv6Addr, destination: Ipv6Addr) {
        if self.family == Family::V4 {
            self.bytes[12..16].copy_from_slice(&source.octets()[12..]);
            self.bytes[16..20].copy_from_slice(&destination.octets()[12..]);
        } else {
            self.bytes[8..24].copy_from_slice(&source.octets());
            self.bytes[24..40].copy_from_slice(&destination.octets());
        }
    }

    fn update(&mut self, at: usize, new: impl FnOnce(u16) -> u16) {
        let value = new(be16(self.bytes, at));
        self.bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
    }

    fn ipv4_address(&self, at: usize) -> Ipv6Addr {
        let mut octets = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0];
        octets[12..].copy_from_slice(&self.bytes[at..at + 4]);
        Ipv6Addr::from(octets)
    }

    fn ipv6_address(&self, at: usize) -> Ipv6Addr {
        let mut octets = [0; 16];
        octets.copy_from_slice(&self.bytes[at..at + 16]);
        Ipv6Addr::from(octets)
    }
}

/// Whether an address, mapped or not, names one host: not multicast, broadcast or unspecified.
pub const fn is_unicast(address: Ipv6Addr) -> bool {
    match address.to_ipv4_mapped() {
        Some(v4) => !v4.is_multicast() && !v4.is_broadcast() && v4.octets()[0] != 0,
        None => !address.is_multicast() && !address.is_unspecified(),
    }
}

const fn transport(family: Family, protocol: u8) -> Transport {
    match (family, protocol) {
        (_, 6) => Transport::Tcp,
        (_, 17) => Transport::Udp,
        (Family::V4, 1) | (Family::V6, 58) => Transport::Icmp,
        _ => Transport::Other,
    }
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests;
