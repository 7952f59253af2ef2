//! A client's request: what it asks for, and its form for a proxy.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;
use core::net::Ipv6Addr;

use super::body::Body;
use super::head::{Fields, Head, check, cut, is, push};
use super::{Authorize, PORT, Refusal};

/// A request's head, checked.
pub struct Request<'a> {
    head: &'a Head,
    method: &'a [u8],
    /// Path and query as received; may be empty.
    path: &'a [u8],
    /// The host that it names, if any, without a port.
    pub host: Option<&'a str>,
    /// Whether the URI names the host, so that the request is meant for a proxy.
    pub is_absolute: bool,
    is_1_0: bool,
    fields: Fields<'a>,
}

/// What the handling of the response depends on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts {
    pub is_head: bool,
    pub is_1_0: bool,
    pub is_upgrade: bool,
    pub is_repeatable: bool,
    /// Whether the client's connection is kept for another request.
    pub is_kept: bool,
    /// The length of its body; the maximum if it is chunked.
    pub length: u64,
}

impl<'a> Request<'a> {
    /// Reads and checks a complete head.
    pub fn read(head: &'a Head) -> Result<Self, Refusal> {
        let line = head.first_line();
        let (method, rest) = cut(line, b' ').ok_or(Refusal::BadRequest)?;
        let (target, version) = cut(rest, b' ').ok_or(Refusal::BadRequest)?;
        let is_1_0 = version == b"HTTP/1.0";
        check(is_1_0 || version == b"HTTP/1.1")?;
        // "head" is a different method than HEAD, which not every reader knows. To TRACE a proxy may answer with what it
        // was sent, the password included (RFC 9110 section 9.3.8).
        check(!matches!(method, b"CONNECT" | b"TRACE") && !method.iter().any(u8::is_ascii_lowercase))?;
        check(!target.contains(&b'\t'))?;
        let (authority, path) = match target {
            b"*" if method == b"OPTIONS" => (None, &b""[..]),
            [b'/', ..] => (None, target),
            _ => absolute(target)
                .map(|(authority, path)| (Some(authority), path))
                .ok_or(Refusal::BadRequest)?,
        };
        let fields = Fields::read(head)?;
        // A 1.0 client can't mean that (RFC 9112 section 6.1).
        check(!fields.is_chunked || fields.length.is_none() && !is_1_0)?;
        check(is_1_0 || fields.host.is_some())?;
        let named = fields.host.filter(|host| !host.is_empty());
        check(authority.is_none() || named.is_none() || authority == named)?;
        let host =
            authority.or(named).map(|authority| host(authority).ok_or(Refusal::BadRequest)).transpose()?;
        Ok(Self { head, method, path, host, is_absolute: authority.is_some(), is_1_0, fields })
    }

    /// What the handling of its response depends on.
    pub fn facts(&self) -> Facts {
        Facts {
            is_head: self.method == b"HEAD",
            is_1_0: self.is_1_0,
            is_upgrade: self.upgrade().is_some(),
            is_repeatable: matches!(self.method, b"GET" | b"HEAD" | b"OPTIONS"),
            is_kept: !self.fields.is_close && (!self.is_1_0 || self.fields.is_keep_alive),
            length: if self.fields.is_chunked { u64::MAX } else { self.fields.length.unwrap_or(0) },
        }
    }

    /// Its body, at the beginning.
    pub fn body(&self) -> Body {
        if self.fields.is_chunked { Body::chunked() } else { Body::Plain(self.fields.length.unwrap_or(0)) }
    }

    /// Appends the request in its form for a proxy.
    pub fn write(&self, authority: &str, authorize: &mut Authorize<'_>, out: &mut Vec<u8>) {
        let mut uri = [b"http://", authority.as_bytes()].concat();
        for byte in self.path {
            match byte {
                // No URI has these. They would end the quotes that Digest puts around it, and say more there.
                b'"' => push(&mut uri, &[b"%22"]),
                b'\\' => push(&mut uri, &[b"%5C"]),
                _ => uri.push(*byte),
            }
        }
        let version: &[u8] = if self.is_1_0 { b" HTTP/1.0\r\nHost: " } else { b" HTTP/1.1\r\nHost: " };
        push(out, &[self.method, b" ", &uri, version, authority.as_bytes(), b"\r\n"]);
        let mut ours = Vec::new();
        authorize(self.method, &uri, &mut ours);
        push(out, &[&ours]);
        self.fields.write(self.head, true, &ours, out);
        if self.fields.is_chunked {
            push(out, &[b"Transfer-Encoding: chunked\r\n"]);
        }
        if let Some(upgrade) = self.upgrade() {
            push(out, &[b"Connection: Upgrade\r\nUpgrade: ", upgrade, b"\r\n"]);
        }
        push(out, &[b"\r\n"]);
    }

    /// The protocols in Upgrade, which a 1.0 client can't ask for (RFC 9110 section 7.8).
    fn upgrade(&self) -> Option<&'a [u8]> {
        self.fields.upgrade.filter(|_| !self.is_1_0)
    }
}

/// A URI's authority: host, and port unless it is the default one.
pub fn authority(host: &str, port: u16) -> String {
    let mut authority = String::from(host);
    if port != PORT {
        _ = write!(authority, ":{port}");
    }
    authority
}

/// Authority and path of `http://AUTHORITY/PATH`. Only a slash ends the authority: of `http://a?@b/` some readers take `b`
/// for the host, so that is none.
fn absolute(target: &[u8]) -> Option<(&[u8], &[u8])> {
    let (scheme, rest) = target.split_at_checked(7).filter(|(scheme, _)| is(scheme, "http://"))?;
    _ = scheme;
    let end = rest.iter().position(|&byte| byte == b'/').unwrap_or(rest.len());
    Some(rest.split_at(end))
}

/// The host of an authority, which has no user: a name, an IPv4 address, or an IPv6 address in brackets.
fn host(authority: &[u8]) -> Option<&str> {
    let text = str::from_utf8(authority).ok()?;
    let end = match text.strip_prefix('[') {
        Some(rest) => rest.find(']')? + 2,
        None => text.find(':').unwrap_or(text.len()),
    };
    let (host, port) = text.split_at_checked(end)?;
    let is_port = port.is_empty()
        || port.len() <= 6 && port.starts_with(':') && port.bytes().skip(1).all(|b| b.is_ascii_digit());
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => {
            host.len() <= 253
                && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
        }
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    (is_port && is_host && !host.is_empty()).then_some(host)
}
