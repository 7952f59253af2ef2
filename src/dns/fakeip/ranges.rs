//! The networks that fake addresses are taken from.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::net::{Ipv4Net, Ipv6Net};

/// A network of each family. The first address of one is never handed out, and neither is the last one of IPv4.
#[derive(Clone, Copy, Debug)]
pub struct Ranges {
    /// Prefix of at most 30 bits.
    pub v4: Ipv4Net,
    /// Prefix of at most 126 bits; none: names have no IPv6 address.
    pub v6: Option<Ipv6Net>,
}

impl Ranges {
    /// The ranges, with prefixes limited so that there are addresses, and how many addresses both have.
    pub(super) fn checked(self) -> (Self, u32) {
        let v4 = Ipv4Net { prefix: self.v4.prefix.min(30), ..self.v4 };
        let v6 = self.v6.map(|v6| Ipv6Net { prefix: v6.prefix.min(126), ..v6 });
        let addresses = v6.map_or(u128::MAX, Ipv6Net::host_mask).min(u128::from(v4.host_mask() - 1));
        let v4 = Ipv4Net { addr: v4.network(), ..v4 };
        (Self { v4, v6: v6.map(|v6| Ipv6Net { addr: v6.network(), ..v6 }) }, addresses as u32)
    }

    /// Whether an address is in one of them; IPv4 may be mapped.
    pub(super) fn contain(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(ip) => self.v4.contains(ip),
            IpAddr::V6(ip) => self.v6.is_some_and(|v6| v6.contains(ip)),
        }
    }

    /// The address of a number below the count of addresses.
    pub(super) fn nth_v4(&self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.v4.addr.to_bits() + 1 + number)
    }

    /// The same for IPv6.
    pub(super) fn nth_v6(&self, number: u32) -> Option<Ipv6Addr> {
        Some(Ipv6Addr::from_bits(self.v6?.addr.to_bits() + 1 + u128::from(number)))
    }

    /// The number of an address. It may be too large, but no other address has it.
    pub(super) fn number(&self, address: IpAddr) -> Option<u32> {
        let far = match address.to_canonical() {
            IpAddr::V4(ip) => ip.to_bits().checked_sub(self.v4.addr.to_bits())?.into(),
            IpAddr::V6(ip) => ip.to_bits().checked_sub(self.v6?.addr.to_bits())?,
        };
        u32::try_from(far).ok()?.checked_sub(1)
    }
}
