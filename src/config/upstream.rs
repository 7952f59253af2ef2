//! An HTTP proxy, and its form as a URL: `http://[USER[:PASSWORD]@]HOST[:PORT]` (RFC 3986 section 3).

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::host::Host;
use super::values::{self, host, password, username};
use crate::http::connect::Request;

/// The port of a URL without one (RFC 9110 section 4.2.1).
const DEFAULT_PORT: u16 = 80;

/// What to do with a proxy that wants TLS. The lines are stunnel's, in its words.
const TLS: &str = "wants TLS to the proxy; let stunnel speak it (client = yes, accept = 127.0.0.1:3128, \
                   connect = HOST:PORT, checkHost = HOST, verifyChain = yes, CApath = /etc/ssl/certs) \
                   and name http://127.0.0.1:3128 here";

/// One HTTP proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamConfig {
    /// For logs: the section's name, or `host:port`; never a secret.
    pub name: String,
    /// Where the proxy is.
    pub host: Host,
    /// Its TCP port.
    pub port: u16,
    /// What each CONNECT to it contains: credentials and headers.
    pub request: Request,
    /// The uplinks, each an interface or a Wi-Fi network, at which it is asked first.
    pub uplinks: Vec<String>,
}

impl UpstreamConfig {
    /// Reads a URL.
    ///
    /// # Errors
    /// What is wrong with the URL, as a continuation of "the value ..."; never a part of it.
    pub fn from_url(url: &str) -> Result<Self, &'static str> {
        // Split at the colon alone: std's search for a longer text takes 1 KB.
        let parts = url.split_once(':').and_then(|(scheme, rest)| Some((scheme, rest.strip_prefix("//")?)));
        let Some((scheme, rest)) = parts else {
            return Err("is not a URL (http://HOST:PORT)");
        };
        if scheme.eq_ignore_ascii_case("https") {
            return Err(TLS);
        }
        if !scheme.eq_ignore_ascii_case("http") {
            return Err("is not an http URL");
        }
        // In a password, "/?#" must be percent-encoded; so must @, but people often leave it bare.
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#']) {
            return Err("has something behind the host and port");
        }
        let (userinfo, address) = match authority.rsplit_once('@') {
            Some((userinfo, address)) => (Some(userinfo), address),
            None => (None, authority),
        };
        let credentials = match userinfo {
            None | Some("") => None,
            Some(userinfo) => Some(credentials(userinfo)?),
        };
        let (name, port) = split_port(address)?;
        let host = host(name)?;
        let credentials =
            credentials.as_ref().map(|(username, password)| (username.as_str(), password.as_str()));
        let request = Request::new(credentials, &[]).map_err(|_| "has credentials that cannot be sent")?;
        Ok(Self { name: Self::default_name(&host, port), host, port, request, uplinks: Vec::new() })
    }

    /// The name of an upstream that has none of its own.
    pub fn default_name(host: &Host, port: u16) -> String {
        format!("{host}:{port}")
    }
}

fn credentials(userinfo: &str) -> Result<(String, String), &'static str> {
    let (user, pass) = userinfo.split_once(':').unwrap_or((userinfo, ""));
    Ok((username(&percent_decoded(user)?)?, password(&percent_decoded(pass)?)?))
}

/// Splits host and port; brackets stay.
fn split_port(address: &str) -> Result<(&str, u16), &'static str> {
    let port_at = match address.rfind(']') {
        Some(bracket) => address.get(bracket + 1..).unwrap_or_default().find(':').map(|at| bracket + 1 + at),
        None => address.find(':'),
    };
    match port_at.and_then(|at| address.split_at_checked(at)) {
        None => Ok((address, DEFAULT_PORT)),
        Some((host, port)) => {
            let port = port.strip_prefix(':').and_then(values::port);
            Ok((host, port.ok_or("has no valid port (1-65535)")?))
        }
    }
}

fn percent_decoded(text: &str) -> Result<String, &'static str> {
    const BAD: &str = "has a % without two hexadecimal digits (%25 is a %)";
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let (high, low) = (digit(rest.next()), digit(rest.next()));
                (high.ok_or(BAD)? * 16 + low.ok_or(BAD)?) as u8
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8 when percent-decoded")
}

#[cfg(test)]
mod tests {
    use std::borrow::ToOwned;
    use std::format;

    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let ip = |text: &str| Host::Ip(text.parse().unwrap());
        let name = |text: &str| Host::Name(text.to_owned());
        for (url, host, port, expected) in [
            ("http://192.0.2.1:3128", ip("192.0.2.1"), 3128, None),
            ("HTTP://192.0.2.1/", ip("192.0.2.1"), 80, None),
            ("http://proxy.example.:65535", name("proxy.example"), 65535, None),
            ("http://my_proxy", name("my_proxy"), 80, None),
            ("http://[2001:db8::1]:8080/", ip("2001:db8::1"), 8080, None),
            ("http://[::1]", ip("::1"), 80, None),
            ("http://@a:1", name("a"), 1, None),
            ("http://u:p@a:1", name("a"), 1, Some(("u", "p"))),
            ("http://u@a", name("a"), 80, Some(("u", ""))),
            ("http://u:@a", name("a"), 80, Some(("u", ""))),
            ("http://u:p:q@r@a", name("a"), 80, Some(("u", "p:q@r"))),
            ("http://u%40b:%70%3a%2F%25%C3%A9@[::1]:1", ip("::1"), 1, Some(("u@b", "p:/%\u{e9}"))),
        ] {
            let upstream = UpstreamConfig::from_url(url).unwrap_or_else(|reason| panic!("{url} {reason}"));
            assert_eq!((&upstream.host, upstream.port), (&host, port), "{url}");
            assert_eq!(upstream.request, Request::new(expected, &[]).unwrap(), "{url}");
            assert_eq!(upstream.name, format!("{host}:{port}"));
        }
    }

    #[test]
    fn other_urls_are_refused() {
        for url in [
            "",
            "192.0.2.1:3128",
            "proxy.example",
            "socks5://a",
            "http://",
            "http:///",
            "http://:80",
            "http://a:",
            "http://a:0",
            "http://a:65536",
            "http://a:+1",
            "http://a:b",
            "http://a/path",
            "http://a?b",
            "http://a//",
            "http://a#b",
            "http://u:p@",
            "http://:p@a",
            "http://u%3ab:p@a",
            "http://u:%0d%0a@a",
            "http://u:%0@a",
            "http://u:%@a",
            "http://u:%+1@a",
            "http://u:%ff@a",
            "http://2001:db8::1",
            "http://[::1",
            "http://::1]",
            "http://[::1]x",
            "http://[::1]x:1",
            "http://[192.0.2.1]",
            "http://1.2.3",
            "http://1.2.3.256",
            "http://a b",
            "http://-a",
            "http://a..b",
            "http://.",
            "http://a b:1",
        ] {
            assert!(UpstreamConfig::from_url(url).is_err(), "{url}");
        }
        for url in ["https://a", "HTTPS://u:hunter2@a:443/"] {
            let reason = UpstreamConfig::from_url(url).unwrap_err();
            assert!(reason.contains("stunnel") && reason.contains("http://127.0.0.1:3128"), "{url}");
        }
        let long = "a".repeat(64);
        assert!(UpstreamConfig::from_url(&format!("http://{long}")).is_err());
        assert!(UpstreamConfig::from_url(&format!("http://{}", "abc.".repeat(64))).is_err());
    }
}
