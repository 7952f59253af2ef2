//! Where a proxy is.

use alloc::borrow::ToOwned;
use alloc::string::String;
use core::fmt;
use core::net::IpAddr;

/// A proxy's address, or the name that a resolver knows it by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// An address.
    Ip(IpAddr),
    /// A name.
    Name(String),
}

impl Host {
    /// Reads an IPv4 address, an IPv6 address with or without brackets, or a name as RFC 1123
    /// section 2.1 has it, with underscores. `None` if it is none of these.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(inner) = text.strip_prefix('[') {
            return Some(Host::Ip(IpAddr::V6(inner.strip_suffix(']')?.parse().ok()?)));
        }
        if let Ok(ip) = text.parse() {
            return Some(Host::Ip(ip));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_'))
        };
        // A name that ends in a number is a mistyped address.
        let last = name.rsplit('.').next().unwrap_or_default();
        let valid =
            name.len() <= 253 && name.split('.').all(label) && last.bytes().any(|c| !c.is_ascii_digit());
        valid.then(|| Host::Name(name.to_owned()))
    }
}

/// As in a URL: IPv6 in brackets.
impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Ip(IpAddr::V4(ip)) => ip.fmt(f),
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
            Host::Name(name) => f.write_str(name),
        }
    }
}
