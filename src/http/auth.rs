//! Credentials for a proxy: the Basic scheme (RFC 7617).

use alloc::vec::Vec;

use super::field::push;

/// Checks that a username has no colon and no control character (RFC 7617 section 2).
///
/// # Errors
/// What is wrong with it, in words that follow its name.
pub fn check_username(text: &str) -> Result<(), &'static str> {
    if text.contains(':') { Err("has a colon in the user name") } else { check_password(text) }
}

/// Checks that a password has no control character (RFC 7617 section 2).
///
/// # Errors
/// What is wrong with it, in words that follow its name.
pub fn check_password(text: &str) -> Result<(), &'static str> {
    let has_control = text.bytes().any(|byte| byte.is_ascii_control());
    if has_control { Err("has a control character") } else { Ok(()) }
}

/// Appends `Basic` and the credentials.
pub fn push_basic(out: &mut Vec<u8>, username: &str, password: &str) {
    push(out, &[b"Basic "]);
    push_base64(out, &[username.as_bytes(), b":", password.as_bytes()].concat());
}

/// Base64 with padding (RFC 4648 section 4).
fn push_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for chunk in bytes.chunks(3) {
        let byte = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            out.push(match digit <= chunk.len() {
                true => ALPHABET[(word >> (18 - 6 * digit) & 63) as usize],
                false => b'=',
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    #[test]
    fn base64_is_that_of_rfc_4648() {
        let cases = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
            ("\u{fffd}~?", "77+9fj8="),
        ];
        for (plain, encoded) in cases {
            let mut out = vec![];
            push_base64(&mut out, plain.as_bytes());
            assert_eq!(out, encoded.as_bytes());
        }
    }
}
