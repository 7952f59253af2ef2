//! The incremental parser of a proxy's reply (RFC 9112).
//!
//! It keeps no header fields except some of a 407: a few bytes of state are enough for any number and size of fields,
//! however the reply is cut into pieces. It stops at the end of the header section, so whatever follows a 2xx is tunnel
//! data: "any Content-Length or Transfer-Encoding header fields in a 2xx response to CONNECT" mean nothing (RFC 9110
//! section 9.3.6). It is lenient where RFC 9112 allows that; anything other than HTTP/1 (a TLS alert, an SSH banner)
//! fails at the first wrong byte rather than at a time-out.

use alloc::boxed::Box;
use core::fmt;

use super::field;

/// The most bytes a reply may have up to the end of its header section, interim (1xx) replies included.
pub const MAX_REPLY: u32 = 64 * 1024;

/// What [`ReplyParser::feed`] knows so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The reply goes on: feed more.
    Partial,
    /// The reply's header section is complete.
    Done {
        /// The final status code, 200..=999: 2xx if the tunnel is open, anything else if it is refused.
        status: u16,
        /// How many bytes of this call's input the reply took. After a 2xx the rest belongs to the client.
        consumed: usize,
    },
}

/// Why the bytes received are not a reply to a CONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyError {
    /// It does not start with `HTTP/1.x` and a blank.
    NotHttp,
    /// The status code is not three digits, or below 100.
    BadStatus,
    /// 101 Switching Protocols, which nobody asked for.
    SwitchedProtocols,
    /// A NUL byte in the status line or a header field.
    Nul,
    /// It is longer than [`MAX_REPLY`].
    TooLong,
}

impl fmt::Display for ReplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotHttp => "not HTTP/1",
            Self::BadStatus => "bad status code",
            Self::SwitchedProtocols => "switched protocols unasked",
            Self::Nul => "NUL byte in the reply",
            Self::TooLong => "reply over 64 KiB",
        })
    }
}

impl core::error::Error for ReplyError {}

/// Reads one reply to a CONNECT in pieces of any size; after an error it is of no further use.
///
/// ```
/// use tcp_over_http::http::{ReplyParser, Status};
///
/// let mut parser = ReplyParser::new();
/// assert_eq!(parser.feed(b"HTTP/1.1 200 OK\r\nVia: pro"), Ok(Status::Partial));
/// // "hello" has come through the tunnel.
/// assert_eq!(parser.feed(b"xy\r\n\r\nhello"), Ok(Status::Done { status: 200, consumed: 6 }));
/// ```
#[derive(Clone, Debug)]
pub struct ReplyParser {
    left: u32,
    status: u16,
    state: State,
    /// The lines of a 407.
    lines: Option<Box<Lines>>,
}

/// The lines of a reply that are needed.
#[derive(Clone, Debug, Default)]
struct Lines {
    bytes: heapless::Vec<u8, MAX_LINES>,
    /// How many of the bytes are complete lines.
    whole: usize,
}

impl Lines {
    fn push(&mut self, byte: u8) {
        _ = self.bytes.push(byte);
        if byte == b'\n' {
            // Lines that are not needed may be long.
            let line = self.bytes.get(self.whole..).unwrap_or_default();
            let is_one = |name: &&str| {
                line.get(..name.len()).is_some_and(|it| it.eq_ignore_ascii_case(name.as_bytes()))
            };
            match TELLING.iter().any(is_one) {
                true => self.whole = self.bytes.len(),
                false => self.bytes.truncate(self.whole),
            }
        }
    }
}

impl Default for ReplyParser {
    fn default() -> Self {
        Self { left: MAX_REPLY, status: 0, state: State::Version(0), lines: None }
    }
}

impl ReplyParser {
    /// A parser at the start of a reply.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes of the reply. Once it is [`Status::Done`], it stays so and consumes nothing more.
    ///
    /// # Errors
    /// [`ReplyError`] at the first byte that no reply can have there.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Status, ReplyError> {
        let mut consumed = 0;
        for &byte in bytes {
            if self.state == State::Done {
                break;
            }
            self.left = self.left.checked_sub(1).ok_or(ReplyError::TooLong)?;
            self.step(byte)?;
            consumed += 1;
        }
        Ok(match self.state {
            State::Done => Status::Done { status: self.status, consumed },
            _ => Status::Partial,
        })
    }

    /// Whether a byte of the reply has been received.
    pub const fn has_begun(&self) -> bool {
        self.left < MAX_REPLY
    }

    /// The needed lines of a 407: its challenges (RFC 9110 section 11.7.1), and those about its body.
    pub fn lines(&self) -> &[u8] {
        self.lines.as_deref().map_or(&[], |lines| &lines.bytes)
    }

    /// The length of a 407's body, if its lines say that the connection can be used again after it.
    pub fn body(&self) -> Option<usize> {
        let lines = self.lines();
        // Lines that were cut off may say otherwise.
        let (mut length, mut is_kept, mut is_doubtful) = (None, false, lines.len() == MAX_LINES);
        field::visit(lines, &mut |name, value| {
            if name.eq_ignore_ascii_case("Content-Length") {
                is_doubtful |= length.is_some();
                length = value.parse().ok();
            } else if name.eq_ignore_ascii_case("Connection") {
                is_kept = value.eq_ignore_ascii_case("keep-alive");
                is_doubtful |= !is_kept;
            }
            is_doubtful |= name.eq_ignore_ascii_case("Transfer-Encoding");
        });
        length.filter(|&length| is_kept && !is_doubtful && length <= MAX_REPLY as usize)
    }

    fn step(&mut self, byte: u8) -> Result<(), ReplyError> {
        self.state = match (self.state, byte) {
            (State::Version(0), b'\r') => State::EmptyLine,
            (State::Version(0) | State::EmptyLine, b'\n') => State::Version(0),
            (State::EmptyLine, _) => return Err(ReplyError::NotHttp),
            (State::Version(seen), _) => match VERSION.get(usize::from(seen)) {
                Some(&expected) if expected == byte.to_ascii_uppercase() => State::Version(seen + 1),
                None if byte.is_ascii_digit() => State::Blank { seen: false },
                _ => return Err(ReplyError::NotHttp),
            },
            (State::Blank { .. }, b' ' | b'\t') => State::Blank { seen: true },
            (State::Blank { seen: false }, _) => return Err(ReplyError::NotHttp),
            (State::Blank { seen: true }, b'0'..=b'9') => {
                self.status = u16::from(byte - b'0');
                State::Code(1)
            }
            (State::Code(digits @ 1..=2), b'0'..=b'9') => {
                self.status = self.status * 10 + u16::from(byte - b'0');
                State::Code(digits + 1)
            }
            (State::Code(3), _) => match (self.status, byte) {
                (0..=99, _) | (_, b'0'..=b'9') => return Err(ReplyError::BadStatus),
                (101, _) => return Err(ReplyError::SwitchedProtocols),
                (_, 0) => return Err(ReplyError::Nul),
                (_, b'\n') => State::LineStart,
                _ => State::Line,
            },
            (State::Blank { .. } | State::Code(_), _) => return Err(ReplyError::BadStatus),
            (_, 0) => return Err(ReplyError::Nul),
            (State::LineStart, b'\n') if self.status < 200 => State::Version(0),
            (State::LineStart, b'\n') => State::Done,
            (State::LineStart, b'\r') => State::LineStart,
            (_, b'\n') => State::LineStart,
            _ => State::Line,
        };
        if self.status == 407 && matches!(self.state, State::Line | State::LineStart) {
            self.lines.get_or_insert_default().push(byte);
        }
        Ok(())
    }
}

const VERSION: &[u8] = b"HTTP/1.";
/// The most bytes of a 407's lines that are kept.
const MAX_LINES: usize = 4096;
/// The names of the lines that are kept.
const TELLING: [&str; 4] = ["Proxy-Authenticate:", "Content-Length:", "Connection:", "Transfer-Encoding:"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// After this many bytes of [`VERSION`]; the minor version follows.
    Version(u8),
    /// After the CR of an empty line before [`VERSION`].
    EmptyLine,
    /// Before the status code.
    Blank { seen: bool },
    /// After this many digits of the status code.
    Code(u8),
    /// Nothing but CR on this line so far: LF ends the header section.
    LineStart,
    /// Inside a line: the reason phrase or a header field.
    Line,
    /// The empty line has been seen.
    Done,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::digest::Offer;
    use proptest::prelude::*;
    use std::format;
    use std::string::String;
    use std::vec::Vec;

    /// The outcome of a reply that arrives in `pieces`: consumed counts from the start of the first.
    fn feed_all<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Status, ReplyError> {
        let mut parser = ReplyParser::new();
        let mut before = 0;
        for piece in pieces {
            match parser.feed(piece)? {
                Status::Partial => before += piece.len(),
                Status::Done { status, consumed } => {
                    return Ok(Status::Done { status, consumed: before + consumed });
                }
            }
        }
        Ok(Status::Partial)
    }

    /// What is not RFC 9112's grammar, and yet clear, is taken as browsers take it.
    const LENIENT: &[(&str, u16)] = &[
        // A recipient ignores empty lines in front (section 2.2 asks it of servers; Chrome skips some bytes of anything).
        ("\r\nHTTP/1.1 200 OK\r\n\r\n", 200),
        ("\n\r\n\nHTTP/1.1 407 No\r\n\r\n", 407),
        ("HTTP/1.1 100 Continue\r\n\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", 200),
        // The version's letters are uppercase (section 2.3); Chrome and Firefox compare them in any case.
        ("http/1.1 200 OK\r\n\r\n", 200),
        ("Http/1.0 403 No\r\n\r\n", 403),
        // A space follows the three digits (section 4); Chrome and Firefox stop at what is no digit.
        ("HTTP/1.1 200OK\r\n\r\n", 200),
        ("HTTP/1.1 200-Connection established\n\n", 200),
        // Lines end in CR LF; a recipient may take a lone LF (section 2.2).
        ("HTTP/1.1 200 OK\nContent-Length: 9\n\n", 200),
    ];

    const REPLIES: &[(&str, u16)] = &[
        ("HTTP/1.1 200 OK\r\n\r\n", 200),
        ("HTTP/1.0 200 Connection established\r\n\r\n", 200),
        ("HTTP/1.1 200\r\n\r\n", 200),
        ("HTTP/1.1 200 \r\n\r\n", 200),
        ("HTTP/1.1 202\n\n", 202),
        ("HTTP/1.1  299 \tfine\nVia: x\r\n\n", 299),
        ("HTTP/1.1 204 x\r\r\nA: b\r\r\n\r\r\n", 204),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 200),
        ("HTTP/1.1 200 OK\r\nFolded: a\r\n b\r\nno colon\r\n: no name\r\n\r\n", 200),
        ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", 200),
        ("HTTP/1.1 200 \u{fc}\r\nServer: \u{20ac}\r\n\r\n", 200),
        ("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", 403),
        ("HTTP/1.0 407 \r\nProxy-Authenticate: Basic realm=x\r\n\r\n", 407),
        ("HTTP/1.1 502 Bad Gateway\r\n\r\n", 502),
        ("HTTP/1.9 302 Found\r\nLocation: /\r\n\r\n", 302),
        ("HTTP/1.1 999 LinkedIn\r\n\r\n", 999),
    ];

    #[test]
    fn replies_cut_anywhere_are_understood() {
        for &(reply, status) in [REPLIES, LENIENT].concat().iter() {
            let stream = format!("{reply}\0tunnel HTTP/1.1");
            let bytes = stream.as_bytes();
            let expected = Ok(Status::Done { status, consumed: reply.len() });
            for cut in 0..=bytes.len() {
                assert_eq!(feed_all([&bytes[..cut], &bytes[cut..]]), expected, "{reply:?} cut at {cut}");
            }
            assert_eq!(feed_all(bytes.chunks(1)), expected, "{reply:?} byte by byte");
            for end in 0..reply.len() {
                assert_eq!(feed_all([&bytes[..end]]), Ok(Status::Partial), "{reply:?} up to {end}");
            }
        }
    }

    #[test]
    fn garbage_fails_at_its_first_wrong_byte() {
        use ReplyError::*;
        let cases: &[(&[u8], usize, ReplyError)] = &[
            (b"\x15\x03\x01\x00\x02\x02\x46", 1, NotHttp), // a TLS alert
            (b"SSH-2.0-OpenSSH_9.9\r\n", 1, NotHttp),
            (b"220 mail.example ESMTP\r\n", 1, NotHttp),
            (b"\rHTTP/1.1 200 OK\r\n\r\n", 2, NotHttp),
            (b" HTTP/1.1 200 OK\r\n\r\n", 1, NotHttp),
            (b"\r\n\r\n\x15\x03", 5, NotHttp),
            (b"hello\r\n", 2, NotHttp),
            (b"HTTP/2 200\r\n\r\n", 6, NotHttp),
            (b"HTTP/1.x 200\r\n\r\n", 8, NotHttp),
            (b"HTTP/1.10 200\r\n\r\n", 9, NotHttp),
            (b"HTTP/1.1\r\n", 9, NotHttp),
            (b"HTTP/1.1 \r\n", 10, BadStatus),
            (b"HTTP/1.1 -20", 10, BadStatus),
            (b"HTTP/1.1 20 OK", 12, BadStatus),
            (b"HTTP/1.1 2000", 13, BadStatus),
            (b"HTTP/1.1 200\0", 13, Nul),
            (b"HTTP/1.1200 OK", 9, NotHttp),
            (b"HTTP/1.1 099 ", 13, BadStatus),
            (b"HTTP/1.1 101 ", 13, SwitchedProtocols),
            (b"HTTP/1.1 200 O\0", 15, Nul),
            (b"HTTP/1.1 200\r\n\0", 15, Nul),
            (b"HTTP/1.1 200\nA\0", 15, Nul),
            (b"HTTP/1.1 407\nProxy-Authenticate: \0", 34, Nul),
        ];
        for &(bytes, wrong, error) in cases {
            let text = String::from_utf8_lossy(bytes);
            assert_eq!(feed_all([&bytes[..wrong - 1]]), Ok(Status::Partial), "{text:?}");
            assert_eq!(feed_all([&bytes[..wrong]]), Err(error), "{text:?}");
        }
    }

    #[test]
    fn replies_are_bounded() {
        let reply = |size: usize| {
            let mut bytes = Vec::from(b"HTTP/1.1 200 OK\r\n");
            while bytes.len() < size - 2 {
                bytes.extend_from_slice(b"X: y\n");
            }
            bytes.truncate(size - 3);
            bytes.extend_from_slice(b"\n\r\n");
            bytes
        };
        let max = MAX_REPLY as usize;
        assert_eq!(feed_all([&*reply(max)]), Ok(Status::Done { status: 200, consumed: max }));
        assert_eq!(feed_all([&*reply(max + 1)]), Err(ReplyError::TooLong));
        let interim = b"HTTP/1.1 100 Continue\r\n\r\n".repeat(max);
        assert_eq!(feed_all(interim.chunks(1000)), Err(ReplyError::TooLong));
    }

    #[test]
    fn a_parser_that_is_done_stays_done() {
        let mut parser = ReplyParser::new();
        assert_eq!(parser.feed(b"HTTP/1.1 200\n\n"), Ok(Status::Done { status: 200, consumed: 14 }));
        assert_eq!(parser.feed(b"\0tunnel"), Ok(Status::Done { status: 200, consumed: 0 }));
        assert!(size_of::<ReplyParser>() <= 16);
    }

    #[test]
    fn challenges_are_searched_for_basic() {
        let cases = [
            ("Proxy-Authenticate: Basic realm=\"x\"", true),
            ("proxy-authenticate:BASIC", true),
            ("PROXY-AUTHENTICATE: \t basic\trealm=x", true),
            ("Proxy-Authenticate: Digest realm=\"a\", qop=auth, Basic realm=\"b\"", true),
            ("Proxy-Authenticate: Negotiate, NTLM,,Basic,X", true),
            ("Proxy-Authenticate: NTLM\r\nProxy-Authenticate: Basic realm=x", true),
            ("Proxy-Authenticate: Digest realm=\"a\\\", Basic x\", n=1", false),
            ("Proxy-Authenticate: Digest realm=\"a, Basic x", false),
            ("Proxy-Authenticate: Digest realm=basic", false),
            ("Proxy-Authenticate: Digest a=b, basic=c", false),
            ("Proxy-Authenticate: Basically", false),
            ("Proxy-Authenticate: Basi", false),
            ("Proxy-Authenticate : Basic", false),
            ("X-Proxy-Authenticate: Basic", false),
            ("WWW-Authenticate: Basic", false),
            ("Server: Proxy-Authenticate: Basic", false),
        ];
        for (fields, offers) in cases {
            for (status, expected) in [(407, offers), (401, false)] {
                let reply = format!("HTTP/1.1 {status} x\r\n{fields}\r\n\r\n");
                for size in [1, 7, reply.len()] {
                    let mut parser = ReplyParser::new();
                    let last = reply.as_bytes().chunks(size).map(|c| parser.feed(c)).last();
                    assert!(matches!(last, Some(Ok(Status::Done { .. }))), "{reply:?}");
                    assert_eq!(Offer::read(parser.lines()).basic, expected, "{reply:?}");
                }
            }
        }
    }

    #[test]
    fn a_connection_can_be_used_again_if_a_407_says_so() {
        for (fields, expected) in [
            ("Connection: keep-alive\r\nContent-Length: 3500\r\n", Some(3500)),
            ("content-length: 65536\r\nconnection: Keep-Alive\r\n", Some(65536)),
            ("Connection: keep-alive\r\nContent-Length: 65537\r\n", None),
            ("Connection: keep-alive\r\nContent-Length: -1\r\n", None),
            ("Connection: keep-alive\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n", None),
            ("Connection: close\r\nContent-Length: 1\r\n", None),
            ("Connection: keep-alive\r\nConnection: close\r\nContent-Length: 1\r\n", None),
            ("Connection: close\r\nConnection: keep-alive\r\nContent-Length: 1\r\n", None),
            ("Connection: keep-alive\r\nContent-Length: 1\r\nContent-Length: 2\r\n", None),
            ("Connection: keep-alive\r\n", None),
            ("Content-Length: 1\r\n", None),
        ] {
            for (status, expected) in [(407, expected), (403, None)] {
                let mut parser = ReplyParser::new();
                parser.feed(format!("HTTP/1.1 {status} x\r\n{fields}\r\n").as_bytes()).unwrap();
                assert_eq!(parser.body(), expected, "{fields}");
            }
        }
    }

    #[test]
    fn what_tells_nothing_takes_no_room() {
        let long = format!("Set-Cookie: {}\r\n", "x".repeat(3 * MAX_LINES / 2)).repeat(5);
        let reply = format!(
            "HTTP/1.1 407 x\r\n{long}Proxy-Authenticate: Basic\r\nConnection: keep-alive\r\n{long}Content-Length: 7\r\n\r\n"
        );
        let mut parser = ReplyParser::new();
        assert!(matches!(parser.feed(reply.as_bytes()), Ok(Status::Done { .. })));
        assert!(Offer::read(parser.lines()).basic);
        assert_eq!(parser.body(), Some(7));
        // What has no room is not taken for what it would have been.
        let reply = format!(
            "HTTP/1.1 407 x\r\nContent-Length: 7\r\nConnection: keep-alive\r\nProxy-Authenticate: {long}\r\n"
        );
        let mut parser = ReplyParser::new();
        parser.feed(reply.as_bytes()).unwrap();
        assert_eq!(parser.body(), None);
    }

    const PARTS: &[&str] = &[
        "HTTP/1.1 ",
        "200",
        "407 x",
        "100",
        "\r\n",
        "\n",
        "Proxy-Authenticate: ",
        "Basic",
        ",",
        "\"",
        "\0",
        " ",
    ];

    proptest! {
        #[test]
        fn any_well_formed_reply_ends_where_it_should(
            status in 200u16..1000,
            fields in proptest::collection::vec("[A-Za-z-]{1,20}: ?[ -~]{0,60}\r\n", 0..40),
            tunnel in proptest::collection::vec(any::<u8>(), 0..50),
            size in 1usize..200,
        ) {
            let reply = format!("HTTP/1.1 {status} x\r\n{}\r\n", fields.concat());
            let bytes = [reply.as_bytes(), &tunnel].concat();
            let done = Status::Done { status, consumed: reply.len() };
            prop_assert_eq!(feed_all(bytes.chunks(size)), Ok(done));
        }

        #[test]
        fn no_cut_changes_what_any_bytes_mean(
            parts in proptest::collection::vec(proptest::sample::select(PARTS), 0..30),
            size in 1usize..20,
        ) {
            let bytes = ["HTTP/1.1 ", &parts.concat()].concat().into_bytes();
            prop_assert_eq!(feed_all(bytes.chunks(size)), feed_all([&bytes[..]]));
        }
    }
}
