//! Source and destination of a connection, and how replacing them changes checksums.

use core::net::Ipv6Addr;

use crate::net::Family;
use crate::packet::checksum::Delta;

/// Source and destination of a TCP segment. IPv4 addresses are held mapped (`::ffff:a.b.c.d`, RFC 4291
/// section 2.5.5.2), which never occur on the wire, so one type serves both families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// Source address.
    pub source: Ipv6Addr,
    /// Destination address.
    pub destination: Ipv6Addr,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
}

impl Tuple {
    /// The same connection seen from the other end.
    pub const fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
        }
    }

    /// The family of both addresses.
    #[inline] // on every packet's path
    pub const fn family(&self) -> Family {
        match self.source.to_ipv4_mapped() {
            Some(_) => Family::V4,
            None => Family::V6,
        }
    }
}

/// What a translation changes in a packet's checksums: the same for each packet of a flow's direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ChecksumChange {
    pub(crate) addresses: Delta,
    pub(crate) ports: Delta,
}

impl ChecksumChange {
    /// The change from `old` to `new`, which must be of one family.
    pub fn between(old: &Tuple, new: &Tuple) -> Self {
        Self {
            addresses: Delta::default()
                .replace(&old.source.octets(), &new.source.octets())
                .replace(&old.destination.octets(), &new.destination.octets()),
            ports: Delta::default()
                .replace_word(old.source_port, new.source_port)
                .replace_word(old.destination_port, new.destination_port),
        }
    }

    /// The change in the other direction of the flow, since a sum does not depend on the order of its words.
    pub const fn reversed(self) -> Self {
        Self { addresses: self.addresses.reversed(), ports: self.ports.reversed() }
    }
}
