//! Where addresses are taken from.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Network and prefix length for each family. The first address of a range is never handed out,
/// and neither is the last one of IPv4.
#[derive(Clone, Copy, Debug)]
pub struct Ranges {
    /// At most 30 bits.
    pub v4: (Ipv4Addr, u8),
    /// At most 126 bits; none: names have no IPv6 address.
    pub v6: Option<(Ipv6Addr, u8)>,
}

impl Ranges {
    /// The ranges with prefixes that leave addresses, and how many addresses both have.
    pub(super) fn checked(self) -> (Self, u32) {
        let prefix = self.v4.1.min(30);
        let v4 = (Ipv4Addr::from_bits(self.v4.0.to_bits() & high_bits(prefix, 32) as u32), prefix);
        let v6 = self.v6.map(|(network, prefix)| {
            let prefix = prefix.min(126);
            (Ipv6Addr::from_bits(network.to_bits() & high_bits(prefix, 128)), prefix)
        });
        let addresses = v6.map_or(u128::MAX, |(_, prefix)| !high_bits(prefix, 128));
        (Self { v4, v6 }, addresses.min((1 << (32 - prefix)) - 2) as u32)
    }

    /// Whether an address, IPv4 perhaps mapped, lies in one of them.
    pub(super) fn contain(&self, address: IpAddr) -> bool {
        match (address.to_canonical(), self.v6) {
            (IpAddr::V4(ip), _) => {
                let (network, prefix) = self.v4;
                (ip.to_bits() ^ network.to_bits()) & high_bits(prefix, 32) as u32 == 0
            }
            (IpAddr::V6(ip), Some((network, prefix))) => {
                (ip.to_bits() ^ network.to_bits()) & high_bits(prefix, 128) == 0
            }
            (IpAddr::V6(_), None) => false,
        }
    }

    /// The address of a number below the count of addresses.
    pub(super) fn nth_v4(&self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.v4.0.to_bits() + 1 + number)
    }

    /// The same for IPv6.
    pub(super) fn nth_v6(&self, number: u32) -> Option<Ipv6Addr> {
        Some(Ipv6Addr::from_bits(self.v6?.0.to_bits() + 1 + u128::from(number)))
    }

    /// The number of an address. It may be too large, but not that of another address.
    pub(super) fn number(&self, address: IpAddr) -> Option<u32> {
        let far = match address.to_canonical() {
            IpAddr::V4(ip) => ip.to_bits().checked_sub(self.v4.0.to_bits())?.into(),
            IpAddr::V6(ip) => ip.to_bits().checked_sub(self.v6?.0.to_bits())?,
        };
        u32::try_from(far).ok()?.checked_sub(1)
    }
}

/// The first `prefix` of `width` bits.
fn high_bits(prefix: u8, width: u8) -> u128 {
    let all = u128::MAX >> (128 - width);
    all & !(all >> prefix)
}
