//! MD5 (RFC 1321) and SHA-256 (RFC 6234), for texts of some hundred bytes: small, not fast.

use alloc::string::String;
use alloc::vec::Vec;

/// A hash function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    Md5,
    Sha256,
}

impl Hash {
    /// The hash of `text` in lowercase hexadecimal.
    pub fn hex(self, text: &[u8]) -> String {
        let bits = (text.len() as u64) << 3;
        let mut bytes = Vec::from(text);
        bytes.push(0x80);
        while bytes.len() % BLOCK != BLOCK - 8 {
            bytes.push(0);
        }
        // MD5's words are little-endian, SHA-256's big-endian.
        let (mut state, used, end) = match self {
            Self::Md5 => (MD5_START, 4, bits.to_le_bytes()),
            Self::Sha256 => (SHA256_START, 8, bits.to_be_bytes()),
        };
        let order = |word: u32| if self == Self::Md5 { word.swap_bytes() } else { word };
        bytes.extend_from_slice(&end);
        for block in bytes.chunks_exact(BLOCK) {
            let mut words = [0; 16];
            for (word, bytes) in words.iter_mut().zip(block.chunks_exact(4)) {
                *word = order(u32::from_be_bytes(bytes.try_into().unwrap_or_default()));
            }
            match self {
                Self::Md5 => md5(&mut state, &words),
                Self::Sha256 => sha256(&mut state, words),
            }
        }
        let mut hex = String::new();
        state.iter().take(used).for_each(|&word| push_hex(&mut hex, order(word).to_be_bytes()));
        hex
    }
}

/// The size of a block in bytes.
const BLOCK: usize = 64;

fn push_hex(out: &mut String, bytes: [u8; 4]) {
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            out.push(char::from(digit + if digit < 10 { b'0' } else { b'a' - 10 }));
        }
    }
}

fn md5(state: &mut [u32; 8], block: &[u32; 16]) {
    let [mut a, mut b, mut c, mut d, ..] = *state;
    for (i, &k) in MD5_SINES.iter().enumerate() {
        let (mix, word) = match i / 16 {
            0 => (b & c | !b & d, i),
            1 => (d & b | !d & c, 5 * i + 1),
            2 => (b ^ c ^ d, 3 * i + 5),
            _ => (c ^ (b | !d), 7 * i),
        };
        let sum = a.wrapping_add(mix).wrapping_add(k).wrapping_add(block[word % 16]);
        let turned = sum.rotate_left(MD5_TURNS[i / 16][i % 4]);
        (a, d, c, b) = (d, c, b, b.wrapping_add(turned));
    }
    for (word, more) in state.iter_mut().zip([a, b, c, d]) {
        *word = word.wrapping_add(more);
    }
}

fn sha256(state: &mut [u32; 8], mut block: [u32; 16]) {
    let mut s = *state;
    for (i, &k) in SHA256_ROOTS.iter().enumerate() {
        let at = |ahead: usize| (i + ahead) % 16;
        if i >= 16 {
            let (x, y) = (block[at(1)], block[at(14)]);
            let x = x.rotate_right(7) ^ x.rotate_right(18) ^ x >> 3;
            let y = y.rotate_right(17) ^ y.rotate_right(19) ^ y >> 10;
            block[at(0)] = block[at(0)].wrapping_add(x).wrapping_add(block[at(9)]).wrapping_add(y);
        }
        let [a, b, c, d, e, f, g, h] = s;
        let one = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let choice = e & f ^ !e & g;
        let first = h.wrapping_add(one).wrapping_add(choice).wrapping_add(k).wrapping_add(block[at(0)]);
        let zero = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let majority = a & b ^ a & c ^ b & c;
        s = [first.wrapping_add(zero).wrapping_add(majority), a, b, c, d.wrapping_add(first), e, f, g];
    }
    for (word, more) in state.iter_mut().zip(s) {
        *word = word.wrapping_add(more);
    }
}

/// The rotation of each step.
const MD5_TURNS: [[u32; 4]; 4] = [[7, 12, 17, 22], [5, 9, 14, 20], [4, 11, 16, 23], [6, 10, 15, 21]];

/// 2^32 * |sin(i + 1)|.
#[rustfmt::skip]
const MD5_SINES: [u32; 64] = [
    0xd76a_a478, 0xe8c7_b756, 0x2420_70db, 0xc1bd_ceee, 0xf57c_0faf, 0x4787_c62a, 0xa830_4613, 0xfd46_9501,
    0x6980_98d8, 0x8b44_f7af, 0xffff_5bb1, 0x895c_d7be, 0x6b90_1122, 0xfd98_7193, 0xa679_438e, 0x49b4_0821,
    0xf61e_2562, 0xc040_b340, 0x265e_5a51, 0xe9b6_c7aa, 0xd62f_105d, 0x0244_1453, 0xd8a1_e681, 0xe7d3_fbc8,
    0x21e1_cde6, 0xc337_07d6, 0xf4d5_0d87, 0x455a_14ed, 0xa9e3_e905, 0xfcef_a3f8, 0x676f_02d9, 0x8d2a_4c8a,
    0xfffa_3942, 0x8771_f681, 0x6d9d_6122, 0xfde5_380c, 0xa4be_ea44, 0x4bde_cfa9, 0xf6bb_4b60, 0xbebf_bc70,
    0x289b_7ec6, 0xeaa1_27fa, 0xd4ef_3085, 0x0488_1d05, 0xd9d4_d039, 0xe6db_99e5, 0x1fa2_7cf8, 0xc4ac_5665,
    0xf429_2244, 0x432a_ff97, 0xab94_23a7, 0xfc93_a039, 0x655b_59c3, 0x8f0c_cc92, 0xffef_f47d, 0x8584_5dd1,
    0x6fa8_7e4f, 0xfe2c_e6e0, 0xa301_4314, 0x4e08_11a1, 0xf753_7e82, 0xbd3a_f235, 0x2ad7_d2bb, 0xeb86_d391,
];

/// The initial state: four words, padded to eight.
const MD5_START: [u32; 8] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0, 0, 0, 0];

/// The fractions of the square roots of the first primes.
#[rustfmt::skip]
const SHA256_START: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// The fractions of the cube roots of the first primes.
#[rustfmt::skip]
const SHA256_ROOTS: [u32; 64] = [
    0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5, 0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5,
    0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3, 0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174,
    0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc, 0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da,
    0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7, 0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967,
    0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13, 0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85,
    0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3, 0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070,
    0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5, 0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3,
    0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208, 0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_rfc_1321_and_rfc_6234() {
        for (text, md5, sha256) in [
            (
                &b""[..],
                "d41d8cd98f00b204e9800998ecf8427e",
                "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            ),
            (
                b"abc",
                "900150983cd24fb0d6963f7d28e17f72",
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            ),
            (
                b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
                "8215ef0796a20bcaaae116d3876c664a",
                "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
            ),
            (
                b"12345678901234567890123456789012345678901234567890123456789012345678901234567890",
                "57edf4a22be3c955ac49da2e2107b67a",
                "f371bc4a311f2b009eef952dd83ca80e2b60026c8e935592d0f9c308453c813e",
            ),
        ] {
            assert_eq!((&*Hash::Md5.hex(text), &*Hash::Sha256.hex(text)), (md5, sha256));
        }
    }

    /// At all lengths around a block's end: the hash of all their hashes, as Python's hashlib has it.
    #[test]
    fn texts_of_any_length_are_padded() {
        let all = |hash: Hash| (0..200).map(|length| hash.hex(&[b'x'; 200][..length])).collect::<String>();
        assert_eq!(Hash::Md5.hex(all(Hash::Md5).as_bytes()), "0f0e2ac786e6a42eac7e7de3a518cd0c");
        assert_eq!(
            Hash::Sha256.hex(all(Hash::Sha256).as_bytes()),
            "f61ffcc417e1f0e59eba2da7fa32fbe05b64e478b68c6bacf990455f00248b98"
        );
    }
}
