//! The request for a tunnel: CONNECT (RFC 9110 section 9.3.6).
//!
//! A [`Request`] is made once per proxy and holds what never changes; each connection only adds its [`Target`].

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::net::SocketAddr;

use super::field::push;
use super::login::{AuthChoice, Authorization};
use super::{auth, field};

/// The destination of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// An address; IPv6 is sent in brackets, without a zone.
    Ip(SocketAddr),
    /// A host name that the proxy resolves, and a port.
    Name(&'a str, u16),
}

impl Target<'_> {
    /// Its port.
    pub const fn port(&self) -> u16 {
        match self {
            Self::Ip(address) => address.port(),
            Self::Name(_, port) => *port,
        }
    }
}

impl fmt::Display for Target<'_> {
    /// The authority form of RFC 9112 section 3.2.3.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Ip(SocketAddr::V4(addr)) => write!(f, "{addr}"),
            Target::Ip(SocketAddr::V6(addr)) => write!(f, "[{}]:{}", addr.ip(), addr.port()),
            Target::Name(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

/// What one proxy is sent with every CONNECT; built once, when the configuration is checked.
///
/// ```
/// use tcp_over_http::http::connect::{Request, Target};
/// use tcp_over_http::http::login::Authorization;
///
/// let request = Request::new(Some(("user", "password")), &["X-Extra: a".into()])?;
/// let target = Target::Name("www.example.com", 443);
/// let bytes = request.bytes(target, &mut { Authorization::BASIC }).expect("a host name");
/// assert_eq!(
///     str::from_utf8(&bytes),
///     Ok("CONNECT www.example.com:443 HTTP/1.1\r\n\
///         Host: www.example.com:443\r\n\
///         Proxy-Authorization: Basic dXNlcjpwYXNzd29yZA==\r\n\
///         X-Extra: a\r\n\r\n")
/// );
/// # Ok::<(), tcp_over_http::http::connect::RequestError>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    /// `list header`, each with its line end.
    fields: Box<[u8]>,
    /// User name and password.
    credentials: Option<(Box<str>, Box<str>)>,
    /// How they are sent.
    pub auth: AuthChoice,
    /// The value of Host in place of the target, in CONNECT requests only.
    pub host: Option<Box<str>>,
}

/// Redacts it: credentials and headers are secrets.
impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Request(..)")
    }
}

impl Request {
    /// Prepares the header fields: credentials (`username`, `password`; RFC 7617), then `headers`, each
    /// `"Name: value"`.
    ///
    /// # Errors
    /// [`RequestError`] for anything that would break the request apart or make it ambiguous.
    pub fn new(credentials: Option<(&str, &str)>, headers: &[String]) -> Result<Self, RequestError> {
        if let Some((username, password)) = credentials
            && auth::check_username(username).and(auth::check_password(password)).is_err()
        {
            return Err(RequestError::Credentials);
        }
        let mut fields = Vec::new();
        for (index, header) in headers.iter().enumerate() {
            match field::parse(header) {
                Ok((name, _)) if credentials.is_none() || !name.eq_ignore_ascii_case(AUTHORIZATION) => {}
                _ => return Err(RequestError::Header(index)),
            }
            push(&mut fields, &[header.as_bytes(), b"\r\n"]);
        }
        let credentials = credentials.map(|(username, password)| (username.into(), password.into()));
        Ok(Self { fields: fields.into(), credentials, auth: AuthChoice::default(), host: None })
    }

    /// Whether it has credentials from the options for them, not just from a header.
    pub const fn has_credentials(&self) -> bool {
        self.credentials.is_some()
    }

    /// The whole request for one tunnel. The use of `authorization` is counted.
    ///
    /// # Errors
    /// [`BadName`] if the target is a name that cannot stand in a request.
    pub fn bytes(&self, target: Target<'_>, authorization: &mut Authorization) -> Result<Vec<u8>, BadName> {
        if let Target::Name(name, _) = target {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
            if name.is_empty() || !name.bytes().all(allowed) {
                return Err(BadName);
            }
        }
        let mut authority = heapless::String::<MAX_AUTHORITY>::new();
        write!(authority, "{target}").map_err(|_| BadName)?;
        let authority = authority.as_bytes();
        let host = self.host.as_ref().map_or(authority, |host| host.as_bytes());
        let mut bytes = [b"CONNECT ", authority, b" HTTP/1.1\r\nHost: ", host, b"\r\n"].concat();
        self.authorize(authorization, b"CONNECT", authority, &mut bytes);
        push(&mut bytes, &[b"\r\n"]);
        Ok(bytes)
    }

    /// Appends the fields of a request that are meant for the proxy, each with its line end.
    pub fn authorize(&self, authorization: &mut Authorization, method: &[u8], uri: &[u8], out: &mut Vec<u8>) {
        if let Some((username, password)) = &self.credentials
            && *authorization != Authorization::Nothing
        {
            push(out, &[AUTHORIZATION.as_bytes(), b": "]);
            match authorization {
                Authorization::Digest { challenge, .. } => {
                    challenge.answer(username, password, method, uri, out)
                }
                _ => auth::push_basic(out, username, password),
            }
            push(out, &[b"\r\n"]);
        }
        push(out, &[&self.fields]);
    }
}

/// The field with the credentials for a proxy (RFC 9110 section 11.7.2).
const AUTHORIZATION: &str = "Proxy-Authorization";

/// A DNS name in text (RFC 1035 section 2.3.4), a colon and a port.
const MAX_AUTHORITY: usize = 253 + 6;

/// Why a proxy's settings don't make a [`Request`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// A colon in the username, or a control character in either part (RFC 7617 section 2).
    Credentials,
    /// The header with this index is not `Name: value`, or is one that the request sets itself.
    Header(usize),
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Credentials => {
                f.write_str("a colon in the username, or a control character in the credentials")
            }
            Self::Header(index) => write!(f, "header {} is no field that a CONNECT may carry", index + 1),
        }
    }
}

impl core::error::Error for RequestError {}

/// The target's name is empty, too long or has characters that do not belong in a host name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadName;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::format;
    use std::string::ToString;

    fn text(request: &Request, target: Target<'_>) -> String {
        String::from_utf8(request.bytes(target, &mut { Authorization::BASIC }).unwrap()).unwrap()
    }

    #[test]
    fn requests_name_their_target() {
        let request = Request::new(None, &[]).unwrap();
        let cases = [
            (Target::Ip("192.0.2.7:443".parse().unwrap()), "192.0.2.7:443"),
            (Target::Ip("[2001:db8::7]:80".parse().unwrap()), "[2001:db8::7]:80"),
            (Target::Ip("[fe80::1%3]:80".parse().unwrap()), "[fe80::1]:80"),
            (Target::Name("www.example.com", 65535), "www.example.com:65535"),
        ];
        for (target, authority) in cases {
            let expected = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
            assert_eq!(text(&request, target), expected);
        }
    }

    #[test]
    fn host_may_be_another() {
        let mut request = Request::new(None, &[]).unwrap();
        request.host = Some("front.example".into());
        let expected = "CONNECT a:1 HTTP/1.1\r\nHost: front.example\r\n\r\n";
        assert_eq!(text(&request, Target::Name("a", 1)), expected);
    }

    #[test]
    fn credentials_and_headers_are_sent_at_once() {
        let headers = ["X-Extra: a b".to_string(), "Empty:".to_string()];
        let request = Request::new(Some(("Aladdin", "open:sesame")), &headers).unwrap();
        assert_eq!(
            text(&request, Target::Name("h", 1)),
            "CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\
             Proxy-Authorization: Basic QWxhZGRpbjpvcGVuOnNlc2FtZQ==\r\nX-Extra: a b\r\nEmpty:\r\n\r\n"
        );
    }

    #[test]
    fn nothing_can_break_a_request_apart() {
        for (username, password) in [("a:b", "c"), ("a\r\n", "c"), ("a", "c\n"), ("a\0", "")] {
            let error = Request::new(Some((username, password)), &[]).err();
            assert_eq!(error, Some(RequestError::Credentials), "{username:?}");
        }
        for header in [
            "",
            "X",
            ": x",
            "X : y",
            "X: y\r\nZ: w",
            "X: y\n",
            "X\u{fc}: y",
            "Host: x",
            "content-length: 5",
            "Transfer-Encoding: chunked",
            "proxy-authorization: Bearer x",
        ] {
            let headers = ["Fine: x".to_string(), header.to_string()];
            let error = Request::new(Some(("u", "p")), &headers).err();
            assert_eq!(error, Some(RequestError::Header(1)), "{header:?}");
        }
        assert!(Request::new(None, &["Proxy-Authorization: Bearer x".to_string()]).is_ok());
        let request = Request::new(None, &[]).unwrap();
        let longest = "x".repeat(253);
        assert!(request.bytes(Target::Name(&longest, 65535), &mut { Authorization::BASIC }).is_ok());
        for name in ["", "a b", "a\r\nb", "a:b", "[::1]", "a/b", "\u{fc}", &"x".repeat(300)] {
            assert_eq!(
                request.bytes(Target::Name(name, 1), &mut { Authorization::BASIC }),
                Err(BadName),
                "{name:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_request_has_its_lines_and_no_more(
            username in "[ -~]{0,9}\\PC{0,2}[\r\n:]?", password in "\\PC{0,9}[\r\n:]?",
            headers in proptest::collection::vec("(X: ?)?[ -~]{0,9}\\PC{0,2}[\r\n:]?", 0..3),
            name in "[a-z0-9.-]{1,20}[\r\n: /]?", port in any::<u16>(),
        ) {
            let Ok(request) = Request::new(Some((&username, &password)), &headers) else { return Ok(()) };
            let target = Target::Name(&name, port);
            let Ok(bytes) = request.bytes(target, &mut { Authorization::BASIC }) else { return Ok(()) };
            let text = String::from_utf8(bytes).unwrap();
            prop_assert!(text.ends_with("\r\n\r\n"));
            prop_assert_eq!(text.matches(['\r', '\n']).count(), 2 * (4 + headers.len()));
        }
    }
}
