//! Names that stand for addresses: `1.2.0.192.in-addr.arpa` (RFC 1035 section 3.5), and nibbles below `ip6.arpa`
//! (RFC 3596 section 2.5).

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::net::{IpNet, Ipv4Net, Ipv6Net};

/// What a reverse name says about an address: all of it, or its first bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reverse {
    /// The bits that the name gives are the prefix; the others are 0.
    net: IpNet,
    /// Whether the name is that of an address, not of a zone or of something below an address.
    is_whole: bool,
}

/// Ranges that mean something else in every network, so that nobody outside can tell their names (RFC 6303
/// section 4, RFC 7793), or nothing at all.
const PRIVATE: [IpNet; 13] = [
    v4([0, 0, 0, 0], 8),
    v4([10, 0, 0, 0], 8),
    v4([100, 64, 0, 0], 10),
    v4([127, 0, 0, 0], 8),
    v4([169, 254, 0, 0], 16),
    v4([172, 16, 0, 0], 12),
    v4([192, 0, 2, 0], 24),
    v4([192, 168, 0, 0], 16),
    v4([198, 18, 0, 0], 15),
    v4([198, 51, 100, 0], 24),
    v4([203, 0, 113, 0], 24),
    v4([240, 0, 0, 0], 4),
    // Documentation.
    v6([0x2001, 0xdb8], 32),
];
/// The globally routed part of IPv6 (RFC 4291 section 2.4).
const GLOBAL: IpNet = v6([0x2000, 0], 3);

const fn v4([a, b, c, d]: [u8; 4], prefix: u8) -> IpNet {
    IpNet::V4(Ipv4Net { addr: Ipv4Addr::new(a, b, c, d), prefix })
}

const fn v6([a, b]: [u16; 2], prefix: u8) -> IpNet {
    IpNet::V6(Ipv6Net { addr: Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0), prefix })
}

impl Reverse {
    /// Reads a name, its labels [reversed](super::name::NameRef::reversed). `None` outside the reverse zones.
    pub(crate) fn parse(name: &[u8]) -> Option<Self> {
        let ipv4 = name.strip_prefix(b"\x04arpa\x07in-addr");
        let (mut rest, radix, step, width) = match ipv4 {
            Some(rest) => (rest, 10, 8, 32),
            None => (name.strip_prefix(b"\x04arpa\x03ip6")?, 16, 4, 128),
        };
        let (mut address, mut bits) = (0u128, 0);
        while let Some((&length, labels)) = rest.split_first()
            && let Some((label, below)) = labels.split_at_checked(length.into())
            && let Some(number) = number(label, radix)
            && bits < width
        {
            bits += step;
            address |= u128::from(number) << (128 - bits);
            rest = below;
        }
        let net = match ipv4 {
            Some(_) => IpNet::V4(Ipv4Net { addr: Ipv4Addr::from_bits((address >> 96) as u32), prefix: bits }),
            None => IpNet::V6(Ipv6Net { addr: Ipv6Addr::from_bits(address), prefix: bits }),
        };
        Some(Self { net, is_whole: bits == width && rest.is_empty() })
    }

    /// The address, if the name is that of an address.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        self.is_whole.then_some(self.net.addr())
    }

    /// Whether the name lies in a private zone.
    pub(crate) fn is_private(&self) -> bool {
        let lies_elsewhere = match self.net {
            IpNet::V4(_) => false,
            IpNet::V6(net) => net.prefix > 0 && !GLOBAL.contains(self.net),
        };
        lies_elsewhere || PRIVATE.iter().any(|zone| zone.contains(self.net))
    }
}

/// A decimal byte, or one hexadecimal digit.
fn number(label: &[u8], radix: u8) -> Option<u8> {
    let longest = if radix == 10 { 3 } else { 1 };
    let digit = |byte: u8| char::from(byte).to_digit(radix.into()).map(|digit| digit as u8);
    let add = |sum: u8, &byte: &u8| sum.checked_mul(radix)?.checked_add(digit(byte)?);
    if (1..=longest).contains(&label.len()) { label.iter().try_fold(0, add) } else { None }
}

#[cfg(test)]
mod tests {
    use super::super::name::{MAX_NAME, Name};
    use super::*;
    use proptest::prelude::*;
    use std::format;
    use std::string::String;
    use std::vec::Vec;

    fn parse(text: &str) -> Option<Reverse> {
        Reverse::parse(Name::new(text).unwrap().as_ref().reversed(&mut [0; MAX_NAME]))
    }

    #[test]
    fn addresses_are_read() {
        let address = |text: &str| parse(text).unwrap().address();
        assert_eq!(address("4.3.2.1.In-Addr.Arpa"), Some("1.2.3.4".parse().unwrap()));
        assert_eq!(address("255.0.18.198.in-addr.arpa"), Some("198.18.0.255".parse().unwrap()));
        let nibbles = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.D.0.1.0.0.2.ip6.arpa";
        assert_eq!(address(nibbles), Some("2001:db8::1".parse().unwrap()));
        for part in ["3.2.1.in-addr.arpa", "in-addr.arpa", "x.4.3.2.1.in-addr.arpa", "5.4.3.2.1.in-addr.arpa"]
        {
            assert_eq!(address(part), None, "{part}");
        }
        for part in
            ["256.3.2.1.in-addr.arpa", "0004.3.2.1.in-addr.arpa", "a.3.2.1.in-addr.arpa", "0.ip6.arpa"]
        {
            assert_eq!(address(part), None, "{part}");
        }
        assert_eq!(address(&format!("0.{nibbles}")), None);
        for outside in ["arpa", "4.3.2.1.in-addr.arpa.net", "4.3.2.1.in-addr", "x.arpa", "4.3.2.1.in-addr.x"]
        {
            assert_eq!(parse(outside), None, "{outside}");
        }
    }

    #[test]
    fn zones_are_private_as_a_whole_or_not_at_all() {
        let private = |text: &str| parse(text).unwrap().is_private();
        for name in [
            "10.in-addr.arpa",
            "4.3.2.10.in-addr.arpa",
            "b._dns-sd._udp.0.1.168.192.in-addr.arpa",
            "16.172.in-addr.arpa",
            "1.31.172.in-addr.arpa",
            "1.0.0.127.in-addr.arpa",
            "127.100.in-addr.arpa",
            "255.255.255.255.in-addr.arpa",
            "0.in-addr.arpa",
            "d.f.ip6.arpa",
            "0.ip6.arpa",
            "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa",
            "b.e.f.ip6.arpa",
            "8.b.d.0.1.0.0.2.ip6.arpa",
        ] {
            assert!(private(name), "{name}");
        }
        for name in [
            "in-addr.arpa",
            "ip6.arpa",
            "172.in-addr.arpa",
            "15.172.in-addr.arpa",
            "32.172.in-addr.arpa",
            "192.in-addr.arpa",
            "169.192.in-addr.arpa",
            "128.100.in-addr.arpa",
            "8.8.8.8.in-addr.arpa",
            "x.11.in-addr.arpa",
            "2.ip6.arpa",
            "3.ip6.arpa",
            "b.d.0.1.0.0.2.ip6.arpa",
            "9.b.d.0.1.0.0.2.ip6.arpa",
        ] {
            assert!(!private(name), "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_address_comes_back(v4: [u8; 4], v6: [u8; 16]) {
            let decimals: Vec<String> = v4.iter().rev().map(|byte| format!("{byte}")).collect();
            let reverse = parse(&format!("{}.in-addr.arpa", decimals.join("."))).unwrap();
            prop_assert_eq!(reverse.address(), Some(v4.into()));
            let nibbles: Vec<String> = v6.iter().rev().map(|b| format!("{:x}.{:X}", b & 15, b >> 4)).collect();
            let reverse = parse(&format!("{}.ip6.arpa", nibbles.join("."))).unwrap();
            prop_assert_eq!(reverse.address(), Some(v6.into()));
        }
    }
}
