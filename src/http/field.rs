//! Header fields (RFC 9110 section 5): what a request may contain.

use alloc::vec::Vec;

/// Fields that a CONNECT always has, or can't have (RFC 9110 section 9.3.6).
const RESERVED: [&str; 3] = ["Host", "Content-Length", "Transfer-Encoding"];

/// Name and value of a field `Name: value` that may be added to a CONNECT; the value is trimmed.
///
/// # Errors
/// What is wrong with it, in words that follow its name.
pub fn parse(field: &str) -> Result<(&str, &str), &'static str> {
    let (name, value) = field.split_once(':').ok_or("is not `Name: value`")?;
    if name.is_empty() || !name.bytes().all(is_token) {
        return Err("has no valid header name");
    }
    if RESERVED.iter().any(|reserved| name.eq_ignore_ascii_case(reserved)) {
        return Err("is a header that can't be added");
    }
    let value = value.trim_matches([' ', '\t']);
    if value.bytes().any(|byte| byte != b'\t' && byte.is_ascii_control()) {
        return Err("has a control character");
    }
    Ok((name, value))
}

/// A character of a token (RFC 9110 section 5.6.2), which the name of a field is.
pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Calls `visit` with the name and the trimmed value of each field in these lines. Lines that are not UTF-8 are left
/// out.
pub fn visit(lines: &[u8], visit: &mut dyn FnMut(&str, &str)) {
    for line in lines.split(|&byte| byte == b'\n').filter_map(|line| str::from_utf8(line).ok()) {
        if let Some((name, value)) = line.split_once(':') {
            visit(name, value.trim_ascii());
        }
    }
}

/// Appends all parts. One copy of the code for all callers.
#[inline(never)]
pub fn push(out: &mut Vec<u8>, parts: &[&[u8]]) {
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_have_a_token_a_colon_and_a_value() {
        for (field, expected) in [
            ("X-Extra: a b", ("X-Extra", "a b")),
            ("!#$%&'*+-.^_`|~:", ("!#$%&'*+-.^_`|~", "")),
            ("a:\t b:c\td \t", ("a", "b:c\td")),
            ("x: \u{e9}", ("x", "\u{e9}")),
        ] {
            assert_eq!(parse(field), Ok(expected));
        }
        for field in
            ["", "x", ": y", "x : y", "x\u{fc}: y", "x: y\r\nz: w", "x: \0", "x: \x7f", "hOST: x", "(x): y"]
        {
            assert!(parse(field).is_err(), "{field:?}");
        }
    }
}
