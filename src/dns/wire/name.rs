//! Domain names on the wire (RFC 1035 sections 3.1 and 4.1.4).

use core::fmt::{self, Write};

use super::header::HEADER;

/// Bytes of the longest name on the wire (RFC 1035 section 2.3.4).
pub(crate) const MAX_NAME: usize = 255;
const MAX_LABEL: usize = 63;
/// No honest name has more pointers than it can have labels.
const MAX_POINTERS: u8 = 127;

/// An owned name, in wire format without compression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(heapless::Vec<u8, MAX_NAME>);

/// A host name as text, without a trailing dot (two bytes less than on the wire, RFC 1035 section 2.3.4).
pub type HostName = heapless::String<{ MAX_NAME - 2 }>;

/// A text is not a domain name: empty, a label of 0 or over 63 bytes, over 255 bytes in all, or not printable ASCII.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadName;

impl Name {
    /// Reads `www.example.com`, with or without a dot at the end.
    ///
    /// # Errors
    /// [`BadName`]
    pub fn new(text: &str) -> Result<Self, BadName> {
        let mut wire = heapless::Vec::new();
        for label in text.strip_suffix('.').unwrap_or(text).split('.') {
            let length = u8::try_from(label.len()).map_err(|_| BadName)?;
            if !(1..=MAX_LABEL).contains(&label.len()) || !label.bytes().all(|b| b.is_ascii_graphic()) {
                return Err(BadName);
            }
            wire.push(length).map_err(|_| BadName)?;
            wire.extend_from_slice(label.as_bytes()).map_err(|_| BadName)?;
        }
        wire.push(0).map_err(|_| BadName)?;
        Ok(Self(wire))
    }

    /// The name as it goes into a message.
    pub fn wire(&self) -> &[u8] {
        &self.0
    }

    /// The name in a form that compares with those in a message.
    pub fn as_ref(&self) -> NameRef<'_> {
        NameRef { message: &self.0, at: 0 }
    }
}

/// A name inside a message, perhaps compressed; known to be well-formed. Comparison ignores case.
#[derive(Clone, Copy)]
pub struct NameRef<'a> {
    message: &'a [u8],
    at: usize,
}

impl<'a> NameRef<'a> {
    /// Reads the name at the offset `at`; returns it and the offset of its end. `None` if it is malformed: it runs over
    /// the end of the message, is too long, or has a pointer to the header or to bytes that are not before it.
    pub(crate) fn parse(message: &'a [u8], at: usize) -> Option<(Self, usize)> {
        let name = Self { message, at };
        let mut labels = name.labels();
        labels.by_ref().for_each(drop);
        labels.is_complete.then_some((name, labels.end))
    }

    /// The name as lowercase text, if a host on the Internet may have it: letters, digits, hyphens and underscores in
    /// two labels or more, the last of which begins with a letter, so that no address is mistaken for a name (RFC 1123
    /// section 2.1). Names without a dot only have a local meaning (RFC 7085 section 4).
    pub fn host(&self) -> Option<HostName> {
        let mut host = HostName::new();
        let mut last = &[][..];
        for label in self.labels() {
            if !host.is_empty() {
                host.push('.').ok()?;
            }
            for &byte in label {
                let allowed = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
                host.push(allowed.then_some(byte.to_ascii_lowercase())?.into()).ok()?;
            }
            last = label;
        }
        (last.len() < host.len() && last.first()?.is_ascii_alphabetic()).then_some(host)
    }

    /// The labels from right to left in lowercase, each after its length: `\x03com\x07example`. The names above it are
    /// prefixes of this.
    pub(crate) fn reversed<'b>(&self, buffer: &'b mut [u8; MAX_NAME]) -> &'b [u8] {
        let mut start = buffer.len();
        for label in self.labels() {
            let end = start;
            start = end.saturating_sub(1 + label.len());
            if let Some((length, bytes)) = buffer.get_mut(start..end).and_then(<[u8]>::split_first_mut)
                && bytes.len() == label.len()
            {
                *length = label.len() as u8;
                bytes.copy_from_slice(label);
                bytes.make_ascii_lowercase();
            }
        }
        buffer.get(start..).unwrap_or_default()
    }

    /// The labels from left to right, without the root.
    pub fn labels(&self) -> Labels<'a> {
        Labels {
            message: self.message,
            at: self.at,
            start: self.at,
            end: 0,
            left: MAX_NAME - 1,
            pointers: 0,
            is_complete: false,
        }
    }
}

impl PartialEq for NameRef<'_> {
    fn eq(&self, other: &Self) -> bool {
        let (mut ours, mut theirs) = (self.labels(), other.labels());
        loop {
            match (ours.next(), theirs.next()) {
                (None, None) => return true,
                (Some(a), Some(b)) if a.eq_ignore_ascii_case(b) => {}
                _ => return false,
            }
        }
    }
}

impl fmt::Display for NameRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, label) in self.labels().enumerate() {
            if index > 0 {
                f.write_char('.')?;
            }
            write!(f, "{}", label.escape_ascii())?;
        }
        Ok(())
    }
}

impl fmt::Debug for NameRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An iterator over the labels of a name; ends early where the name is malformed.
#[derive(Clone)]
pub struct Labels<'a> {
    /// The part of the message that may contain the current run of labels.
    message: &'a [u8],
    at: usize,
    /// Where the current run of labels began. A pointer's target must end before that (RFC 1035 section 4.1.4: a prior
    /// occurrence), so the iteration is finite.
    start: usize,
    /// The offset of the name's end, where the message goes on; 0 until the first pointer or the root.
    end: usize,
    /// Bytes that the name may still have, without the root.
    left: usize,
    pointers: u8,
    is_complete: bool,
}

impl<'a> Iterator for Labels<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        while !self.is_complete {
            let length = *self.message.get(self.at)?;
            match length >> 6 {
                0b00 if length == 0 => {
                    self.leave(1);
                    self.is_complete = true;
                }
                0b00 => {
                    let label = self.message.get(self.at + 1..)?.get(..usize::from(length))?;
                    self.left = self.left.checked_sub(1 + label.len())?;
                    self.at += 1 + label.len();
                    return Some(label);
                }
                0b11 => {
                    let low = *self.message.get(self.at + 1)?;
                    let target = usize::from(u16::from_be_bytes([length & 0x3f, low]));
                    // The header is not a name, and changes when a message is passed on.
                    if target < HEADER || self.pointers == MAX_POINTERS {
                        return None;
                    }
                    self.message = self.message.get(..self.start)?;
                    self.leave(2);
                    self.pointers += 1;
                    (self.at, self.start) = (target, target);
                }
                _ => return None,
            }
        }
        None
    }
}

impl Labels<'_> {
    fn leave(&mut self, length: usize) {
        if self.end == 0 {
            self.end = self.at + length;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;
    use std::string::{String, ToString};

    #[test]
    fn names_are_read_from_text() {
        assert_eq!(Name::new("a.Example.").unwrap().wire(), b"\x01a\x07Example\0");
        assert_eq!(Name::new("a.Example").unwrap().as_ref().to_string(), "a.Example");
        assert!(Name::new("A.eXAMPLE").unwrap().as_ref() == Name::new("a.example").unwrap().as_ref());
        for (a, b) in [("a.example", "b.example"), ("a.example", "example"), ("example", "example.a")] {
            assert!(Name::new(a).unwrap().as_ref() != Name::new(b).unwrap().as_ref());
        }
        let label = "x".repeat(63);
        let longest = format!("{label}.{label}.{label}.{}", "x".repeat(61));
        assert_eq!(Name::new(&longest).unwrap().wire().len(), MAX_NAME);
        for bad in
            ["", ".", "a..b", ".a", "a b", "\u{fc}", &"x".repeat(64), &"x".repeat(300), &(longest + "x")]
        {
            assert_eq!(Name::new(bad), Err(BadName), "{bad:?}");
        }
    }

    #[test]
    fn hosts_are_names_that_cannot_be_anything_else() {
        let host = |text: &str| Name::new(text).unwrap().as_ref().host().map(|host| host.to_string());
        let longest = [&*"x".repeat(63), &"x".repeat(63), &"x".repeat(63), &"x".repeat(61)].join(".");
        for good in ["www.example.com", "_x.a-1.xn--p1ai", "1.2.3.a4", &longest] {
            assert_eq!(host(good).as_deref(), Some(good));
        }
        assert_eq!(host("WWW.Example.COM.").as_deref(), Some("www.example.com"));
        for bad in ["com", "192.0.2.1", "a.0x7f", "a.-b", "a b.c", "a/b.c", "a:1.c", "a\\.b"] {
            assert_eq!(Name::new(bad).ok().and_then(|name| name.as_ref().host()), None, "{bad}");
        }
        assert_eq!(NameRef::parse(b"\0", 0).unwrap().0.host(), None);
        assert_eq!(NameRef::parse(b"\x03a.b\x01c\0", 0).unwrap().0.host(), None);
    }

    fn parse(message: &[u8], at: usize) -> Option<(String, usize)> {
        NameRef::parse(message, at).map(|(name, end)| (name.to_string(), end))
    }

    #[test]
    fn pointers_are_followed_backwards_only() {
        let header = [1, b'h', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let parse = |message: &[u8], at| parse(&[&header, message].concat(), HEADER + at);
        let message = b"\x01b\x00\x01a\xc0\x0c\xc0\x0f\xc0\x13";
        assert_eq!(parse(message, 0), Some(("b".into(), 15)));
        assert_eq!(parse(message, 3), Some(("a.b".into(), 19)));
        assert_eq!(parse(message, 7), Some(("a.b".into(), 21)));
        assert_eq!(parse(message, 9), Some(("a.b".into(), 23)));
        for loops in
            [&b"\xc0\x0c"[..], b"\xc0\x0e\xc0\x0c", b"\x01a\xc0\x0c", b"\xc0\x0d\x00", b"\x01a\xc0\x0e"]
        {
            assert_eq!(parse(loops, 0), None, "{loops:?}");
        }
        for cut in [&b""[..], b"\x01", b"\x02a", b"\x01a", b"\xc0", b"\x40a\0", b"\x80a\0"] {
            assert_eq!(parse(cut, 0), None, "{cut:?}");
        }
        assert_eq!(parse(b"\0", 2), None);
        assert_eq!(parse(b"\xc0\x00", 0), None, "into the header");
        assert_eq!(parse(b"\x03\xc0\x0cx\x00", 0), Some(("\\xc0\\x0cx".into(), 17)));
        assert_eq!(parse(b"\x02\xc0\x0cx\x00", 3), None, "not a label");
        assert_eq!(parse(b"\x03\xc0\x0cx\x00", 1), None, "over itself");
    }

    #[test]
    fn names_are_bounded_by_bytes_and_by_pointers() {
        let labels = |count: usize| [b"\x01a".repeat(count), b"\0".to_vec()].concat();
        assert!(parse(&labels(127), 0).is_some());
        assert!(parse(&labels(128), 0).is_none());
        let mut chain = [0; HEADER + 2].to_vec();
        for nth in 6..206u16 {
            chain.extend_from_slice(&(0xc000 + 2 * nth).to_be_bytes());
        }
        assert!(parse(&chain, HEADER + 2 * 127).is_some());
        assert!(parse(&chain, HEADER + 2 * 128).is_none());
    }
}
