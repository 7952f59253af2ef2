//! The head of a message (RFC 9112 sections 2 to 5): its lines, and what its fields say about the connection.

use alloc::vec::Vec;

use super::Refusal;
use crate::http::field::is_token;
pub use crate::http::field::push;

/// The most bytes of a head, or of a trailer section.
pub const MAX_HEAD: usize = 16 * 1024;
/// The most bytes of a method; anything longer is not HTTP.
const MAX_METHOD: u8 = 32;
/// How a request's first line ends.
const VERSIONS: [&[u8]; 2] = [b" HTTP/1.1\r\n", b" HTTP/1.0\r\n"];
/// The most fields that Connection may name.
const MAX_NAMED: usize = 16;

/// What kind of head it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A client's: any error is refused.
    Request,
    /// A proxy's: a line may end in a lone LF.
    Response,
    /// Fields after a chunked body, without a first line.
    Trailers,
}

/// A head that is being received.
#[derive(Clone, Debug)]
pub struct Head {
    kind: Kind,
    place: Place,
    bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Before the first line, where empty lines are ignored (RFC 9112 section 2.2).
    Before,
    /// Within the method, after this many bytes.
    Method(u8),
    /// Within the rest of a request's first line.
    Line,
    Within,
    /// After the empty line that ends it.
    Behind,
}

impl Head {
    /// A head of which nothing has been received.
    pub const fn new(kind: Kind) -> Self {
        let place = if matches!(kind, Kind::Trailers) { Place::Within } else { Place::Before };
        Self { kind, place, bytes: Vec::new() }
    }

    /// Takes bytes up to the empty line that ends it. Returns how many.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        let before = self.bytes.len();
        for (index, &byte) in bytes.iter().enumerate() {
            // Bytes that are not taken must not be kept either.
            self.push(byte).inspect_err(|_| self.bytes.truncate(before))?;
            if self.is_whole() {
                return Ok(index + 1);
            }
        }
        Ok(bytes.len())
    }

    /// Whether it is complete.
    pub fn is_whole(&self) -> bool {
        self.place == Place::Behind
    }

    /// Whether nothing has been received.
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// How many bytes it keeps in memory.
    pub const fn size(&self) -> usize {
        self.bytes.capacity()
    }

    /// The bytes as received.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its first line, which trailers don't have.
    pub fn first_line(&self) -> &[u8] {
        Lines(&self.bytes).next().unwrap_or_default()
    }

    /// Its field lines.
    pub fn fields(&self) -> impl Iterator<Item = &[u8]> {
        let mut lines = Lines(&self.bytes);
        if self.kind != Kind::Trailers {
            lines.next();
        }
        lines
    }

    fn push(&mut self, byte: u8) -> Result<(), Refusal> {
        if self.bytes.len() >= MAX_HEAD {
            return Err(Refusal::TooLarge);
        }
        self.place = match (self.place, byte) {
            (Place::Before, b'\r' | b'\n') => Place::Before,
            (Place::Before | Place::Method(_), _) if self.kind != Kind::Request => Place::Within,
            (Place::Method(_), b' ') => Place::Line,
            (Place::Before, _) if is_token(byte) => Place::Method(1),
            (Place::Method(length), _) if is_token(byte) && length < MAX_METHOD => Place::Method(length + 1),
            (Place::Before | Place::Method(_), _) => return Err(Refusal::NotHttp),
            (place, _) => place,
        };
        match (self.bytes.last(), byte) {
            (Some(b'\r'), b'\n') => {}
            (_, b'\n') if self.kind == Kind::Response => self.bytes.push(b'\r'),
            (Some(b'\r'), _) | (_, b'\n') => return Err(Refusal::BadRequest),
            (_, b'\r' | b'\t') => {}
            _ if byte.is_ascii_control() => return Err(Refusal::BadRequest),
            _ => {}
        }
        self.bytes.push(byte);
        if self.place == Place::Line && byte == b'\n' {
            // HTTP/2 that is spoken at once, RTSP, and what just resembles a request.
            let is_http = VERSIONS.iter().any(|version| self.bytes.ends_with(version));
            self.place = if is_http { Place::Within } else { return Err(Refusal::NotHttp) };
        }
        let is_empty_line = self.bytes.ends_with(b"\r\n\r\n") || self.bytes == b"\r\n";
        if self.place == Place::Within && is_empty_line {
            self.place = Place::Behind;
        }
        Ok(())
    }
}

/// The lines of a head, without the empty ones in front and at the end.
struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    #[inline(never)]
    fn next(&mut self) -> Option<&'a [u8]> {
        loop {
            let (line, rest) = cut(self.0, b'\n')?;
            self.0 = rest;
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if !line.is_empty() {
                return Some(line);
            }
        }
    }
}

/// What the fields of a head say about the connection and the body.
#[derive(Default)]
pub struct Fields<'a> {
    pub length: Option<u64>,
    pub is_chunked: bool,
    pub host: Option<&'a [u8]>,
    pub upgrade: Option<&'a [u8]>,
    /// Whether a proxy wants credentials.
    pub has_challenge: bool,
    /// From Connection.
    pub is_close: bool,
    pub is_keep_alive: bool,
    is_upgrade: bool,
    /// The fields that Connection names, which concern this connection only.
    named: [&'a [u8]; MAX_NAMED],
}

impl<'a> Fields<'a> {
    /// Reads and checks the field lines of a head.
    pub fn read(head: &'a Head) -> Result<Self, Refusal> {
        let mut fields = Self::default();
        for line in head.fields() {
            let (name, value) = split(line)?;
            if is(name, "Content-Length") {
                let is_doubled = fields.length.replace(length(value)?).is_some();
                check(!is_doubled)?;
            } else if is(name, "Transfer-Encoding") {
                check(!fields.is_chunked && is(value, "chunked"))?;
                fields.is_chunked = true;
            } else if is(name, "Host") {
                let is_doubled = fields.host.replace(value).is_some();
                check(!is_doubled)?;
            } else if is(name, "Upgrade") {
                fields.upgrade = Some(value);
            } else if is(name, "Proxy-Authenticate") {
                fields.has_challenge = true;
            } else if is(name, "Connection") || is(name, "Proxy-Connection") {
                value.split(|&byte| byte == b',').try_for_each(|option| fields.connection(option))?;
            }
        }
        fields.upgrade = fields.upgrade.filter(|_| fields.is_upgrade);
        Ok(fields)
    }

    fn connection(&mut self, option: &'a [u8]) -> Result<(), Refusal> {
        let option = option.trim_ascii();
        if is(option, "close") {
            self.is_close = true;
        } else if is(option, "keep-alive") {
            self.is_keep_alive = true;
        } else if is(option, "upgrade") {
            self.is_upgrade = true;
        } else if !option.is_empty() {
            check(!is(option, "Content-Length"))?;
            let free = self.named.iter_mut().find(|named| named.is_empty());
            *free.ok_or(Refusal::BadRequest)? = option;
        }
        Ok(())
    }

    /// Appends the field lines for the other side, with or without the body's length, except fields whose name is in
    /// the lines `given`.
    pub fn write(&self, head: &Head, has_length: bool, given: &[u8], out: &mut Vec<u8>) {
        for line in head.fields() {
            let Ok((name, _)) = split(line) else { continue };
            let is_ours = OURS.iter().any(|ours| is(name, ours))
                || !has_length && is(name, "Content-Length")
                || self.named.iter().any(|named| named.eq_ignore_ascii_case(name))
                || Lines(given).any(|line| cut(line, b':').is_some_and(|it| it.0.eq_ignore_ascii_case(name)));
            if !is_ours {
                push(out, &[line, b"\r\n"]);
            }
        }
    }
}

/// Fields that concern one connection only (RFC 9110 section 7.6.1), or that are rewritten.
const OURS: [&str; 10] = [
    "Connection",
    "Proxy-Connection",
    "Keep-Alive",
    "TE",
    "Upgrade",
    "Transfer-Encoding",
    "Host",
    "Proxy-Authorization",
    "Proxy-Authenticate",
    "Proxy-Authentication-Info",
];

/// Name and value of a field line. A blank before the colon is an error; so is one at the beginning: that is obs-fold,
/// which readers understand differently.
pub fn split(line: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    let (name, value) = cut(line, b':').ok_or(Refusal::BadRequest)?;
    check(!name.is_empty() && name.iter().all(|&byte| is_token(byte)))?;
    Ok((name, value.trim_ascii()))
}

/// Splits at the first such byte.
#[inline(never)]
pub fn cut(bytes: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let (before, behind) = bytes.split_at_checked(bytes.iter().position(|&byte| byte == at)?)?;
    Some((before, behind.get(1..)?))
}

/// Whether a text is this word, in upper or lower case.
pub fn is(text: &[u8], word: &str) -> bool {
    text.eq_ignore_ascii_case(word.as_bytes())
}

/// An error of the message unless `is_fine`.
pub const fn check(is_fine: bool) -> Result<(), Refusal> {
    if is_fine { Ok(()) } else { Err(Refusal::BadRequest) }
}

/// Reads a length: nothing but digits, few enough for any reader.
fn length(value: &[u8]) -> Result<u64, Refusal> {
    check((1..=18).contains(&value.len()) && value.iter().all(u8::is_ascii_digit))?;
    Ok(value.iter().fold(0, |length, digit| length * 10 + u64::from(digit - b'0')))
}
