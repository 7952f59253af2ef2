//! The TUN's subnet: its own address, NAT sources, and an address that errors come from.

use core::net::Ipv6Addr;

use crate::net::{Family, Ipv4Net, Ipv6Net};

/// The most addresses of a subnet that are used as NAT sources.
const MAX_HOSTS: u32 = 253;

/// A subnet of the TUN, IPv4 mapped (`::ffff:a.b.c.d`). Its addresses:
///
/// - the TUN's **own**, where the listener is;
/// - the lowest other one, from which our ICMP errors come: it must not be a local address, or the kernel would drop
///   them as martians;
/// - up to 253 more, the **NAT sources**: they stand for the clients on the listener's side.
#[derive(Clone, Copy, Debug)]
pub struct Subnet {
    own: Ipv6Addr,
    network: Ipv6Addr,
    mask: Ipv6Addr,
    hosts: u8,
    /// The last byte of the own address, or the largest value if the own address lies beyond those used.
    skip: u8,
}

impl Subnet {
    /// The subnet around the own address. Prefixes are 96 + 16..=29 for IPv4 and 64..=120 for IPv6; others are clamped
    /// to 64..=125.
    pub fn new(own: Ipv6Net) -> Self {
        let net = Ipv6Net { prefix: own.prefix.clamp(64, 125), ..own };
        let (own, network, mask) = (net.addr, net.network(), Ipv6Addr::from_bits(!net.host_mask()));
        // All but network, broadcast, own address and error source.
        let hosts = (1_u32 << (128 - net.prefix as u32).min(16)) - 4;
        let near = own.to_bits() - network.to_bits() <= 255;
        Self {
            own,
            network,
            mask,
            hosts: hosts.min(MAX_HOSTS) as u8,
            skip: if near { own.octets()[15] } else { u8::MAX },
        }
    }

    /// The TUN's own address.
    pub const fn own(&self) -> Ipv6Addr {
        self.own
    }

    /// Where errors come from.
    pub fn error_source(&self) -> Ipv6Addr {
        self.nth(0)
    }

    /// The NAT source address of number `host`, below [`Subnet::hosts`].
    pub fn nat_source(&self, host: u8) -> Ipv6Addr {
        self.nth(host + 1)
    }

    /// How many NAT source addresses there are: at least 4.
    pub const fn hosts(&self) -> u8 {
        self.hosts
    }

    /// Whether `address` is in the subnet.
    pub fn contains(&self, address: Ipv6Addr) -> bool {
        address & self.mask == self.network
    }

    /// The n-th address that is neither the network's nor our own, for n up to 253. Only the last byte
    /// counts up: at least three of its bits are the host's, and there are fewer than 256 of them.
    fn nth(&self, n: u8) -> Ipv6Addr {
        let mut octets = self.network.octets();
        octets[15] += n + 1;
        octets[15] += (octets[15] >= self.skip) as u8;
        Ipv6Addr::from(octets)
    }
}

/// The TUN's subnets.
#[derive(Clone, Copy, Debug)]
pub struct Subnets {
    ipv4: Subnet,
    /// `None`: IPv6 is off.
    ipv6: Option<Subnet>,
}

impl Subnets {
    /// The subnets around the own addresses.
    pub fn new(ipv4: Ipv4Net, ipv6: Option<Ipv6Net>) -> Self {
        Self { ipv4: Subnet::new(ipv4.to_ipv6_mapped()), ipv6: ipv6.map(Subnet::new) }
    }

    /// The subnet of a family, unless that is off.
    pub const fn of(&self, family: Family) -> Option<&Subnet> {
        match family {
            Family::V4 => Some(&self.ipv4),
            Family::V6 => self.ipv6.as_ref(),
        }
    }

    /// The subnets of the families that are on, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = &Subnet> {
        [Some(&self.ipv4), self.ipv6.as_ref()].into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv4Addr;
    use std::collections::HashSet;

    fn v4(own: [u8; 4], prefix: u8) -> Subnet {
        Subnet::new(Ipv4Net { addr: own.into(), prefix }.to_ipv6_mapped())
    }

    #[test]
    fn the_default() {
        let subnet = v4([10, 45, 39, 1], 24);
        assert_eq!(subnet.hosts(), 252);
        assert_eq!(subnet.error_source(), Ipv4Addr::new(10, 45, 39, 2).to_ipv6_mapped());
        assert_eq!(subnet.nat_source(0), Ipv4Addr::new(10, 45, 39, 3).to_ipv6_mapped());
        assert_eq!(subnet.nat_source(251), Ipv4Addr::new(10, 45, 39, 254).to_ipv6_mapped());
    }

    #[test]
    fn addresses_are_distinct_inside_and_never_reserved() {
        let v6 = |addr: &str, prefix| Subnet::new(Ipv6Net { addr: addr.parse().unwrap(), prefix });
        let mut subnets = std::vec![v6("fd00::1:0:0:1", 64), v6("fd45:39::80", 120)];
        for prefix in 16..=29 {
            for last in 0..8 {
                subnets.push(v4([172, 16, 200, 248 + last], prefix));
                subnets.push(v4([172, 16, 1, last], prefix));
            }
        }
        for subnet in subnets {
            let mut seen = HashSet::from([subnet.own(), subnet.error_source()]);
            for host in 0..subnet.hosts() {
                let address = subnet.nat_source(host);
                assert!(seen.insert(address), "{subnet:?} {address}");
            }
            assert!(seen.remove(&subnet.own()));
            for address in seen {
                assert!(subnet.contains(address));
                let host = (address & !subnet.mask).to_bits();
                assert_ne!(host, 0, "{subnet:?} {address}");
                let is_v4 = address.to_ipv4_mapped().is_some();
                assert!(!is_v4 || host != (!subnet.mask).to_bits(), "{subnet:?} {address}");
            }
        }
    }

    #[test]
    fn neighbours_are_outside() {
        let subnet = v4([10, 45, 39, 1], 24);
        assert!(!subnet.contains(Ipv4Addr::new(10, 45, 40, 1).to_ipv6_mapped()));
        assert!(!subnet.contains("fd45:39::1".parse().unwrap()));
    }
}
