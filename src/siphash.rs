//! HalfSipHash-1-3: the keyed hash that the kernel, too, uses for its tables on 32-bit machines
//! (<linux/siphash.h>, hsiphash). Not cryptographic, but nobody without the key can aim at a bucket.

/// A secret, random key.
pub type Key = [u32; 2];

/// The hash of `words` under `key`.
pub fn hash(key: Key, words: &[u32]) -> u32 {
    let mut v = [key[0], key[1], key[0] ^ 0x6c79_6765, key[1] ^ 0x7465_6462];
    // The last block has the length in bytes in its top byte, and nothing else, since there are only whole words.
    for word in words.iter().copied().chain([(words.len() as u32 * 4) << 24]) {
        v[3] ^= word;
        round(&mut v);
        v[0] ^= word;
    }
    v[2] ^= 0xff;
    for _ in 0..3 {
        round(&mut v);
    }
    v[1] ^ v[3]
}

/// FNV-1a, without a key: it saves comparisons where nobody gains by a collision.
pub fn fnv(bytes: impl Iterator<Item = u8>) -> u32 {
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

fn round(v: &mut [u32; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(5) ^ v[0];
    v[0] = v[0].rotate_left(16);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(8) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(7) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[2];
    v[2] = v[2].rotate_left(16);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hashes of the bytes 0, 1, 2... under the key 0, 1, ... 7, by their number of words: the vectors of the
    /// kernel's lib/tests/siphash_kunit.c for 32-bit machines, which are the reference code's.
    #[test]
    fn reference_vectors() {
        let key = [0x0302_0100, 0x0706_0504];
        let words: [u32; 9] = core::array::from_fn(|nth| key[0] + nth as u32 * 0x0404_0404);
        for (length, expected) in [
            (0, 0x5814_c896),
            (1, 0x7e05_9ea6),
            (2, 0x5779_99b1),
            (3, 0x6b28_096c),
            (4, 0x8b31_d501),
            (5, 0x911b_b605),
            (6, 0x5715_0ad7),
            (7, 0x0a41_00d0),
            (8, 0xbc6d_da8d),
            (9, 0x7c46_fb7f),
        ] {
            assert_eq!(hash(key, &words[..length]), expected, "{length} words");
        }
    }
}
