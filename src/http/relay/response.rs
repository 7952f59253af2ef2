//! A proxy's response, and its form for the client.

use alloc::vec::Vec;

use super::Refusal;
use super::body::Body;
use super::head::{Fields, Head, check, push};
use super::request::Facts;

/// A response's head, checked.
pub struct Response<'a> {
    head: &'a Head,
    is_1_0: bool,
    pub status: u16,
    /// The status and the rest of its line.
    line: &'a [u8],
    fields: Fields<'a>,
    request: Facts,
}

impl<'a> Response<'a> {
    /// Reads and checks the complete head of a response to `request`.
    pub fn read(head: &'a Head, request: Facts) -> Result<Self, Refusal> {
        let line = head.first_line();
        let (version, line) = line.split_first_chunk().ok_or(Refusal::BadGateway)?;
        let is_1_0 = version == b"HTTP/1.0 ";
        check(is_1_0 || version == b"HTTP/1.1 ")?;
        let (code, reason) = line.split_first_chunk::<3>().ok_or(Refusal::BadGateway)?;
        check(code.iter().all(u8::is_ascii_digit) && code[0] != b'0')?;
        check(matches!(reason, [] | [b' ', ..]))?;
        let status = code.iter().fold(0, |status, digit| status * 10 + u16::from(digit - b'0'));
        let fields = Fields::read(head)?;
        let response = Self { head, is_1_0, status, line, fields, request };
        match status {
            // Without a challenge it is the server's, not the proxy's (RFC 9110 section 15.5.8): proxies pass it on.
            407 if response.fields.has_challenge => Err(Refusal::Unauthorized),
            101 if !request.is_upgrade => Err(Refusal::BadGateway),
            _ => Ok(response),
        }
    }

    /// Whether another response follows.
    pub fn is_interim(&self) -> bool {
        self.status < 200 && self.status != 101
    }

    /// Whether another protocol follows.
    pub fn is_upgrade(&self) -> bool {
        self.status == 101
    }

    /// Whether its body ends with the connection.
    pub fn is_endless(&self) -> bool {
        self.body().is_endless()
    }

    /// Whether its body ends with the connection for the client: a 1.0 client can't read chunks, so it gets what is in
    /// them.
    pub fn is_endless_for_client(&self) -> bool {
        self.is_endless() || self.request.is_1_0 && self.is_chunked()
    }

    /// Whether the proxy's connection goes on to another request. Not behind a message of two lengths, or of chunks that its
    /// version does not know (RFC 9112 section 6.1).
    pub fn is_kept(&self) -> bool {
        let fields = &self.fields;
        let is_asked = !fields.is_close && (!self.is_1_0 && !self.request.is_1_0 || fields.is_keep_alive);
        is_asked && !self.is_endless() && !(fields.is_chunked && (self.is_1_0 || fields.length.is_some()))
    }

    /// Its body (RFC 9112 section 6.3), at the beginning.
    pub fn body(&self) -> Body {
        match self.fields.length {
            _ if self.is_upgrade() => Body::endless(),
            _ if self.request.is_head || !self.may_have_body() => Body::Plain(0),
            _ if self.fields.is_chunked => Body::chunked(),
            Some(length) => Body::Plain(length),
            None => Body::endless(),
        }
    }

    /// Appends the response in its form for the client. `request`: the current facts, since whether the connection is
    /// kept may have changed.
    pub fn write(&self, request: Facts, out: &mut Vec<u8>) {
        push(out, &[b"HTTP/1.1 ", self.line, b"\r\n"]);
        let has_length = self.may_have_body() && !self.fields.is_chunked || self.status == 304;
        self.fields.write(self.head, has_length, &[], out);
        if self.is_chunked() && !request.is_1_0 {
            push(out, &[b"Transfer-Encoding: chunked\r\n"]);
        }
        match self.fields.upgrade {
            Some(upgrade) if self.is_upgrade() => {
                push(out, &[b"Connection: Upgrade\r\nUpgrade: ", upgrade, b"\r\n"]);
            }
            _ if self.is_interim() => {}
            _ if !request.is_kept => push(out, &[b"Connection: close\r\n"]),
            _ if request.is_1_0 => push(out, &[b"Connection: keep-alive\r\n"]),
            _ => {}
        }
        push(out, &[b"\r\n"]);
    }

    fn is_chunked(&self) -> bool {
        self.fields.is_chunked && self.may_have_body()
    }

    fn may_have_body(&self) -> bool {
        !matches!(self.status, 100..=199 | 204 | 304)
    }
}
