//! Families, and addresses with a prefix length as `option address` and the CIDR lists have them.

use alloc::vec::Vec;
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address as an IPv6 one: unchanged, or IPv4-mapped (RFC 4291 section 2.5.5.2).
pub const fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

/// A version of the Internet Protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What counts as one client where clients share something, see [`Neighbours::key`](crate::neighbours::Neighbours::key).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientKey(pub(crate) u64);

impl ClientKey {
    /// The client of which only the address is known (IPv4 mapped): an IPv4 address, or an IPv6 /64, in which a machine
    /// may have any address.
    pub const fn of(address: Ipv6Addr) -> Self {
        let bits = address.to_bits();
        match address.to_ipv4_mapped() {
            Some(ipv4) => Self(ipv4.to_bits() as u64), // not a client's /64, whose first 32 bits are not 0
            None => Self((bits >> 64) as u64),
        }
    }

    /// The client with this Ethernet address.
    pub const fn machine([a, b, c, d, e, f]: [u8; 6]) -> Self {
        Self(u64::from_be_bytes([0, 1, a, b, c, d, e, f])) // neither a client's /64 nor IPv4
    }
}

/// An IPv4 address and the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ipv4Net {
    /// The address; in a CIDR the network's first one.
    pub addr: Ipv4Addr,
    /// Bits of the network part, 0..=32.
    pub prefix: u8,
}

/// An IPv6 address and the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ipv6Net {
    /// The address; in a CIDR the network's first one.
    pub addr: Ipv6Addr,
    /// Bits of the network part, 0..=128.
    pub prefix: u8,
}

/// All addresses: `0.0.0.0/0`.
impl Default for Ipv4Net {
    fn default() -> Self {
        Ipv4Net { addr: Ipv4Addr::UNSPECIFIED, prefix: 0 }
    }
}

/// A network of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum IpNet {
    /// An IPv4 network.
    V4(Ipv4Net),
    /// An IPv6 network.
    V6(Ipv6Net),
}

impl Ipv4Net {
    /// The first address: all host bits 0.
    pub fn network(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.addr.to_bits() & !self.host_mask())
    }

    /// The last address: all host bits 1.
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.addr.to_bits() | self.host_mask())
    }

    /// Whether `addr` is one of the network's.
    pub fn contains(self, addr: Ipv4Addr) -> bool {
        Self { addr, ..self }.network() == self.network()
    }

    /// The same among mapped addresses (`::ffff:a.b.c.d`).
    pub const fn to_ipv6_mapped(self) -> Ipv6Net {
        Ipv6Net { addr: self.addr.to_ipv6_mapped(), prefix: 96 + self.prefix }
    }

    /// The bits after the prefix.
    pub(crate) fn host_mask(self) -> u32 {
        u32::MAX.checked_shr(self.prefix.into()).unwrap_or(0)
    }
}

impl Ipv6Net {
    /// The first address: all host bits 0 (the subnet-router anycast address, RFC 4291 section 2.6.1).
    pub fn network(self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.addr.to_bits() & !self.host_mask())
    }

    /// Whether `addr` is one of the network's.
    pub fn contains(self, addr: Ipv6Addr) -> bool {
        Self { addr, ..self }.network() == self.network()
    }

    /// The bits after the prefix.
    pub(crate) fn host_mask(self) -> u128 {
        u128::MAX.checked_shr(self.prefix.into()).unwrap_or(0)
    }
}

impl IpNet {
    /// Reads `ADDRESS[/PREFIX]`; without a prefix it is that one address. `None` if it is neither.
    pub fn parse(text: &str) -> Option<Self> {
        let (addr, prefix) = match text.split_once('/') {
            Some((addr, prefix)) => (addr, Some(prefix)),
            None => (text, None),
        };
        let addr: IpAddr = addr.parse().ok()?;
        let longest = Self::host(addr).prefix();
        let prefix = match prefix {
            None => longest,
            // No sign, no leading zero, which `u8::from_str` alone would take.
            Some(digits) if digits != "0" && !digits.starts_with(|c| matches!(c, '1'..='9')) => {
                return None;
            }
            Some(digits) => digits.parse().ok().filter(|&bits| bits <= longest)?,
        };
        Some(IpNet::new(addr, prefix))
    }

    /// The network that consists of this one address.
    pub const fn host(addr: IpAddr) -> Self {
        Self::new(addr, if addr.is_ipv4() { 32 } else { 128 })
    }

    /// A network of the address's family; `prefix` is at most 32 or 128.
    pub const fn new(addr: IpAddr, prefix: u8) -> Self {
        match addr {
            IpAddr::V4(addr) => IpNet::V4(Ipv4Net { addr, prefix }),
            IpAddr::V6(addr) => IpNet::V6(Ipv6Net { addr, prefix }),
        }
    }

    /// Bits of the network part.
    pub const fn prefix(self) -> u8 {
        match self {
            IpNet::V4(net) => net.prefix,
            IpNet::V6(net) => net.prefix,
        }
    }

    /// The address; in a CIDR the network's first one.
    pub const fn addr(self) -> IpAddr {
        match self {
            IpNet::V4(net) => IpAddr::V4(net.addr),
            IpNet::V6(net) => IpAddr::V6(net.addr),
        }
    }

    /// Whether every address of `other` is one of this network too.
    pub fn contains(self, other: Self) -> bool {
        match (self, other) {
            (IpNet::V4(outer), IpNet::V4(inner)) => {
                outer.prefix <= inner.prefix && outer.contains(inner.addr)
            }
            (IpNet::V6(outer), IpNet::V6(inner)) => {
                outer.prefix <= inner.prefix && outer.contains(inner.addr)
            }
            _ => false,
        }
    }

    /// Sorts networks, and keeps only those that no other one contains.
    pub fn widest(nets: &mut Vec<Self>) {
        nets.sort_unstable();
        nets.dedup_by(|net, before| before.contains(*net));
    }

    /// Whether one of these networks contains this one; they are as [`widest`](Self::widest) leaves them.
    pub fn is_within(self, nets: &[Self]) -> bool {
        let behind = nets.partition_point(|net| *net <= self);
        behind.checked_sub(1).and_then(|last| nets.get(last)).is_some_and(|net| net.contains(self))
    }

    /// The first address: all host bits 0.
    pub fn network(self) -> IpAddr {
        match self {
            IpNet::V4(net) => net.network().into(),
            IpNet::V6(net) => net.network().into(),
        }
    }

    /// Whether the two have an address in common.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other) || other.contains(self)
    }

    /// Whether the address is the network's first one, as in a CIDR: no bit is set after the prefix.
    pub fn is_network(self) -> bool {
        match self {
            IpNet::V4(net) => net.addr == net.network(),
            IpNet::V6(net) => net.addr == net.network(),
        }
    }
}

impl fmt::Display for Ipv4Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

impl fmt::Display for Ipv6Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

impl fmt::Display for IpNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IpNet::V4(net) => net.fmt(f),
            IpNet::V6(net) => net.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    #[test]
    fn networks_are_read_and_written() {
        for (text, written) in [
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("192.0.2.1", "192.0.2.1/32"),
            ("192.0.2.1/32", "192.0.2.1/32"),
            ("::/0", "::/0"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("::1", "::1/128"),
        ] {
            let net = IpNet::parse(text).unwrap();
            assert_eq!(net.to_string(), written);
            assert!(net.is_network(), "{text}");
        }
        for text in [
            "",
            "/8",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.0/08",
            "10.0.0/8",
            "10.0.0.0/8/8",
            "::/129",
            "[::]/0",
            "a/8",
        ] {
            assert_eq!(IpNet::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_client_is_an_ipv4_address_or_a_64() {
        let key = |text: &str| match text.parse().unwrap() {
            IpAddr::V4(v4) => ClientKey::of(v4.to_ipv6_mapped()),
            IpAddr::V6(v6) => ClientKey::of(v6),
        };
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:0:0:2"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
        assert_ne!(key("192.0.2.1"), key("2001:db8::c000:201"));
    }

    #[test]
    fn containment() {
        let contains = |outer, inner| IpNet::parse(outer).unwrap().contains(IpNet::parse(inner).unwrap());
        assert!(contains("10.0.0.0/8", "10.1.0.0/16"));
        assert!(contains("10.0.0.0/8", "10.0.0.0/8"));
        assert!(contains("0.0.0.0/0", "192.0.2.1/32"));
        assert!(!contains("10.1.0.0/16", "10.0.0.0/8"));
        assert!(!contains("10.0.0.0/8", "11.0.0.0/16"));
        assert!(!contains("0.0.0.0/0", "::/0"));
        assert!(contains("2001:db8::/32", "2001:db8:1::/48"));
        assert!(!contains("2001:db8::/32", "2001:db9::/48"));
        let [wide, narrow] = ["10.0.0.0/8", "10.1.0.0/16"].map(|net| IpNet::parse(net).unwrap());
        assert!(wide.overlaps(narrow) && narrow.overlaps(wide));
    }

    #[test]
    fn host_bits_are_found() {
        for text in ["10.0.0.1/8", "128.0.0.0/0", "192.0.2.1/31", "2001:db8::1/127", "8000::/0"] {
            assert!(!IpNet::parse(text).unwrap().is_network(), "{text}");
        }
        let net = Ipv4Net { addr: Ipv4Addr::new(10, 45, 39, 1), prefix: 24 };
        assert_eq!(net.network(), Ipv4Addr::new(10, 45, 39, 0));
        assert_eq!(net.broadcast(), Ipv4Addr::new(10, 45, 39, 255));
    }
}
