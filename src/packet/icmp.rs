//! ICMP errors and the packets that they quote (RFC 792, RFC 4443 section 2.4).

use core::net::Ipv6Addr;

use etherparse::LaxIpSlice;

use super::{ChecksumChange, ChecksumState, Packet, TCP_HEADER, Transport, Tuple, transport};
use crate::net::Family;
use crate::packet::checksum::{self, Delta};

impl Packet<'_> {
    /// Type and code of an ICMP packet.
    pub fn icmp_type(&self) -> (u8, u8) {
        (self.bytes[self.transport_at], self.bytes[self.transport_at + 1])
    }

    /// Whether this is an ICMP packet that no ICMP error may answer: an error itself, or a redirect
    /// (RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e)).
    pub fn is_icmp_error(&self) -> bool {
        let (kind, _) = match self.transport {
            Transport::Icmp => self.icmp_type(),
            _ => return false,
        };
        match self.family {
            Family::V4 => matches!(kind, 3 | 4 | 5 | 11 | 12),
            Family::V6 => kind < 128 || kind == 137,
        }
    }

    /// Whether this is an ICMP redirect (RFC 792, RFC 4861 section 4.5), which concerns only the link that it came
    /// over.
    pub fn is_redirect(&self) -> bool {
        let redirect = match self.family {
            Family::V4 => 5,
            Family::V6 => 137,
        };
        self.transport == Transport::Icmp && self.icmp_type().0 == redirect
    }

    /// Source and destination of the TCP packet that this ICMP error quotes (RFC 792, RFC 4443 section 2.4),
    /// which may be as short as the first 8 bytes of TCP. None if it quotes anything else.
    pub fn quoted_tuple(&mut self) -> Option<Tuple> {
        self.quoted().map(|(tuple, _)| tuple)
    }

    /// The same, and its sequence number.
    pub fn quoted(&mut self) -> Option<(Tuple, u32)> {
        self.quote().map(|quote| (quote.tuple(), quote.sequence()))
    }

    /// Translates an ICMP error: the TCP packet that it quotes becomes one of `quoted`, and the error itself
    /// goes from `source` to `destination` (RFC 5508 section 4).
    ///
    /// Does nothing if the packet quotes no TCP.
    pub fn translate_icmp_error(&mut self, quoted: &Tuple, source: Ipv6Addr, destination: Ipv6Addr) {
        let (family, at) = (self.family, self.transport_at);
        let Some(mut quote) = self.quote() else {
            return;
        };
        let change = ChecksumChange::between(&quote.tuple(), quoted);
        // Only headers change, so only they are summed; all of them end at or before this offset.
        let end = (quote.transport_at + TCP_HEADER).min(quote.bytes.len());
        let before = checksum::sum(0, &quote.bytes[..end]);
        quote.translate(quoted, change, ChecksumState::Complete);
        let after = checksum::sum(0, &quote.bytes[..end]);
        let inside = Delta::default().replace_word(before, after);

        let outer = Tuple {
            source: self.source(),
            destination: self.destination(),
            source_port: 0,
            destination_port: 0,
        };
        let outside = ChecksumChange::between(&outer, &Tuple { source, destination, ..outer }).addresses;
        self.set_addresses(source, destination);
        if family == Family::V4 {
            self.update(10, |field| outside.update(field));
            self.update(at + 2, |field| inside.update(field));
        } else {
            self.update(at + 2, |field| (inside + outside).update(field));
        }
    }

    /// The quoted beginning of a packet in this ICMP error, from its IP header on.
    fn quote(&mut self) -> Option<Packet<'_>> {
        if self.transport != Transport::Icmp {
            return None;
        }
        let bytes = self.bytes.get_mut(self.transport_at + 8..)?;
        let (ip, _) = LaxIpSlice::from_slice(bytes).ok()?;
        let payload = ip.payload();
        let family = if matches!(ip, LaxIpSlice::Ipv4(_)) { Family::V4 } else { Family::V6 };
        let (transport, length) = (transport(family, payload.ip_number.0), payload.payload.len());
        if payload.fragmented || family != self.family || transport != Transport::Tcp || length < 8 {
            return None;
        }
        let transport_at = payload.payload.as_ptr() as usize - bytes.as_ptr() as usize;
        Some(Packet {
            // What follows does not belong to the quote, but is an extension of the ICMP message (RFC 4884).
            bytes: &mut bytes[..transport_at + length],
            family,
            transport_at,
            transport,
        })
    }
}
