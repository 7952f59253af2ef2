//! Internet checksums: incremental updates (RFC 1624) and, for the packets we make, full sums (RFC 1071).
//!
//! The payload of a translated packet is never summed. What a translation changes in the one's complement sum of a
//! packet is the same for each packet of a flow, so it is computed once, kept as a [`Delta`], and costs one addition
//! per packet.

/// What the replacement of 16-bit words changes in a one's complement sum: the folded sum of `~old + new` over the
/// words. Deltas of separate replacements add up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Delta(u16);

impl Delta {
    /// Also replaces `old` by `new`: slices of the same, even length that begin at an even offset of
    /// what is summed. An odd last byte is ignored.
    pub fn replace(self, old: &[u8], new: &[u8]) -> Self {
        self + Self(!sum(0, old)) + Self(sum(0, new))
    }

    /// Also replaces the word `old` by `new`.
    pub fn replace_word(self, old: u16, new: u16) -> Self {
        self + Self(!old) + Self(new)
    }

    /// The delta that undoes this one.
    pub const fn reversed(self) -> Self {
        Self(!self.0)
    }

    /// The new value of a checksum field (RFC 1624 equation 3: HC' = ~(~HC + ~m + m')).
    pub fn update(self, checksum: u16) -> u16 {
        !fold(!checksum as u32 + self.0 as u32)
    }

    /// The new value of a checksum field that holds a plain sum, not its complement: the pseudo-header
    /// sum of a packet whose checksum is left to the device (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
    pub fn update_partial(self, sum: u16) -> u16 {
        fold(sum as u32 + self.0 as u32)
    }
}

impl core::ops::Add for Delta {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(fold(self.0 as u32 + other.0 as u32))
    }
}

/// The folded one's complement sum of `bytes`, added to `start`. An odd last byte counts as the high
/// byte of a word (RFC 1071 section 4.1).
pub fn sum(start: u16, bytes: &[u8]) -> u16 {
    let (words, rest) = bytes.as_chunks::<2>();
    // 2^16 words of 16 bits can't overflow 32 bits, and no packet is longer than 2^15 words.
    let total: u32 = words.iter().map(|word| u16::from_be_bytes(*word) as u32).sum();
    let odd = rest.first().map_or(0, |byte| (*byte as u32) << 8);
    fold_wide(total + odd + start as u32)
}

/// The folded sum of the TCP, UDP or ICMPv6 pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1) for
/// `addresses`, source and destination as they lie in the IP header, `protocol`, and the `length` of the
/// transport header and payload in bytes.
pub fn pseudo_header(addresses: &[u8], protocol: u8, length: usize) -> u16 {
    let start = fold(protocol as u32 + (length as u32 & 0xffff));
    sum(fold(start as u32 + (length as u32 >> 16)), addresses)
}

fn fold_wide(sum: u32) -> u16 {
    fold((sum & 0xffff) + (sum >> 16))
}

/// Folds a sum below 2^17 into 16 bits with end-around carry.
const fn fold(sum: u32) -> u16 {
    (sum as u16).wrapping_add((sum >> 16) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    #[test]
    fn rfc_1071_example() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(sum(0, &bytes), 0xddf2);
    }

    #[test]
    fn rfc_1624_example() {
        // Section 4: a header whose checksum is 0xDD2F has a word changed from 0x5555 to 0x3285.
        let delta = Delta::default().replace_word(0x5555, 0x3285);
        assert_eq!(delta.update(0xdd2f), 0x0000);
    }

    #[test]
    fn odd_byte_is_the_high_one() {
        assert_eq!(sum(0, &[0x12, 0x34, 0x56]), 0x1234 + 0x5600);
    }

    proptest! {
        #[test]
        fn update_equals_a_full_sum(
            mut bytes in proptest::collection::vec(any::<u8>(), 4..200),
            new in proptest::collection::vec(any::<u8>(), 4),
            at in any::<prop::sample::Index>(),
        ) {
            bytes[0] |= 1; // a header is never all zero, or 0x0000 and 0xffff would both be right
            let at = 2 + at.index((bytes.len() - 2) / 2) * 2;
            let end = (at + new.len()).min(bytes.len() & !1);
            let before = !sum(0, &bytes);
            let delta = Delta::default().replace(&bytes[at..end], &new[..end - at]);
            let old: Vec<u8> = bytes[at..end].to_vec();
            bytes[at..end].copy_from_slice(&new[..end - at]);
            prop_assert_eq!(delta.update(before), !sum(0, &bytes));
            prop_assert_eq!(delta.update_partial(!before), sum(0, &bytes));
            let back = Delta::default().replace(&new[..end - at], &old);
            prop_assert_eq!(delta.reversed().update(delta.update(before)), before);
            prop_assert_eq!(back.update(delta.update(before)), before);
        }
    }
}
