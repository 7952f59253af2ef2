//! The meaning of a value's text; an error says what is wrong with it.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::{Ipv6Addr, SocketAddr};

use super::MARK_MASK;
use super::host::Host;
use crate::dns;
use crate::http::{auth, field};
use crate::net::{IpNet, Ipv4Net, Ipv6Net};

pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "on" | "true" | "yes" | "enabled" => Some(true),
        "0" | "off" | "false" | "no" | "disabled" => Some(false),
        _ => None,
    }
}

/// Decimal, or hexadecimal after `0x`; no sign.
pub fn number(text: &str) -> Option<u32> {
    let (digits, radix) = match text.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    if digits.starts_with('+') {
        return None;
    }
    u32::from_str_radix(digits, radix).ok()
}

/// 1-65535, decimal.
pub fn port(text: &str) -> Option<u16> {
    if text.starts_with('+') {
        return None;
    }
    text.parse().ok().filter(|&port| port != 0)
}

/// A device name that the kernel takes (`dev_valid_name`), but without `%`, which would make it choose a name.
pub fn device(name: &str) -> Result<String, &'static str> {
    let valid = (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|c| c.is_ascii_graphic() && !matches!(c, b'/' | b':' | b'%'));
    if valid { Ok(name.to_owned()) } else { Err("is not a device name (1-15 characters)") }
}

pub fn own_ipv4(text: &str) -> Result<Ipv4Net, &'static str> {
    let Some(IpNet::V4(net)) = IpNet::parse(text) else {
        return Err("is not an IPv4 address with a prefix length");
    };
    if !(16..=29).contains(&net.prefix) {
        return Err("has a prefix length out of 16-29");
    }
    if net.addr == net.network() || net.addr == net.broadcast() {
        return Err("is its network's own or broadcast address");
    }
    if net.addr.is_multicast() || net.addr.is_loopback() || net.addr.octets()[0] == 0 {
        return Err("is not an address for a device");
    }
    Ok(net)
}

pub fn own_ipv6(text: &str) -> Result<Ipv6Net, &'static str> {
    let Some(IpNet::V6(net)) = IpNet::parse(text) else {
        return Err("is not an IPv6 address with a prefix length");
    };
    if !(64..=120).contains(&net.prefix) {
        return Err("has a prefix length out of 64-120");
    }
    if net.addr == net.network() {
        return Err("is its network's own address");
    }
    if net.addr.is_multicast() || net.addr == Ipv6Addr::LOCALHOST || net.addr.is_unicast_link_local() {
        return Err("is not an address for a device");
    }
    Ok(net)
}

/// A network of fake addresses.
pub fn fake_ipv4(text: &str) -> Result<Ipv4Net, &'static str> {
    match cidr(text)? {
        IpNet::V4(net) if !(8..=27).contains(&net.prefix) => Err("has a prefix length out of 8-27"),
        IpNet::V4(net)
            if !net.addr.is_multicast() && !net.addr.is_loopback() && net.addr.octets()[0] != 0 =>
        {
            Ok(net)
        }
        _ => Err("is not an IPv4 network that hosts can have"),
    }
}

pub fn fake_ipv6(text: &str) -> Result<Ipv6Net, &'static str> {
    match cidr(text)? {
        IpNet::V6(net) if !(16..=112).contains(&net.prefix) => Err("has a prefix length out of 16-112"),
        IpNet::V6(net)
            if !net.addr.is_multicast()
                && !net.addr.is_unicast_link_local()
                && net.addr.segments()[0] != 0 =>
        {
            Ok(net)
        }
        _ => Err("is not an IPv6 network that hosts can have"),
    }
}

/// A domain name; a leading or trailing dot is dropped.
pub fn domain(text: &str) -> Result<String, &'static str> {
    match Host::parse(text.strip_prefix('.').unwrap_or(text)) {
        Some(Host::Name(name)) => Ok(name.strip_suffix('.').unwrap_or(&name).to_owned()),
        _ => Err("is not a domain name"),
    }
}

/// An absolute path of a file.
pub fn path(text: &str) -> Result<String, &'static str> {
    let valid = text.starts_with('/') && !text.ends_with('/') && !text.bytes().any(|c| c.is_ascii_control());
    if valid { Ok(text.to_owned()) } else { Err("is not a file's absolute path") }
}

pub fn cidr(text: &str) -> Result<IpNet, &'static str> {
    let net = IpNet::parse(text).ok_or("is not a network (ADDRESS/PREFIX)")?;
    if net.is_network() { Ok(net) } else { Err("has bits set behind its prefix") }
}

/// A file's text without the byte order mark that some editors put in front.
pub fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text)
}

/// Adds the networks in `text`, the file at `path`: one a line, `#` begins a comment.
///
/// # Errors
/// `PATH:LINE: the line ...`
pub fn lines(
    path: &str,
    text: &[u8],
    add: &mut dyn FnMut(&str) -> Result<(), &'static str>,
) -> Result<(), String> {
    for (index, line) in without_mark(text).split(|&byte| byte == b'\n').enumerate() {
        let line = line.split(|&byte| byte == b'#').next().unwrap_or_default().trim_ascii();
        if line.is_empty() {
            continue;
        }
        let added = str::from_utf8(line).map_err(|_| "is not UTF-8").and_then(&mut *add);
        added.map_err(|reason| format!("{path}:{}: the line {reason}", index + 1))?;
    }
    Ok(())
}

/// A network of clients, but not one with prefix 0: the kernel takes a policy rule with that for one without a network.
pub fn clients(text: &str) -> Result<IpNet, &'static str> {
    let net = cidr(text)?;
    let all = matches!(net, IpNet::V4(Ipv4Net { prefix: 0, .. }) | IpNet::V6(Ipv6Net { prefix: 0, .. }));
    if all { Err("is everybody") } else { Ok(net) }
}

/// `PORT` or `FIRST-LAST`.
pub fn ports(text: &str) -> Result<(u16, u16), &'static str> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let ports = port(first).zip(port(last)).filter(|(first, last)| first <= last);
    ports.ok_or("is not PORT or FIRST-LAST (1-65535)")
}

/// Adds a DNS server, `IP[:PORT]`, to `list`.
pub fn resolver(text: &str, list: &mut Vec<SocketAddr>) -> Result<(), &'static str> {
    let addr = match text.parse() {
        Ok(ip) => Some(SocketAddr::new(ip, dns::PORT)),
        Err(_) => text.parse().ok().filter(|addr: &SocketAddr| addr.port() != 0),
    };
    list.push(addr.ok_or("is not IP, IP:PORT or [IP]:PORT")?);
    Ok(())
}

/// A proxy's host.
pub fn host(text: &str) -> Result<Host, &'static str> {
    Host::parse(text).ok_or("has no valid host (address or name)")
}

/// An absolute path that fits into `sockaddr_un` with its NUL (unix(7)).
pub fn socket(path: &str) -> Result<String, &'static str> {
    let valid = path.starts_with('/') && path.len() < 108 && !path.contains(char::is_control);
    if valid { Ok(path.to_owned()) } else { Err("is not an absolute path of at most 107 bytes") }
}

/// A routing table that is not the kernel's own: 0 unspecified, 253 default, 254 main, 255 local (rtnetlink.h).
pub fn table(text: &str) -> Result<u32, &'static str> {
    let usable = number(text).filter(|table| !matches!(table, 0 | 253..=255));
    usable.ok_or("is not a table to use (1-252, 256-4294967295)")
}

pub fn mark(text: &str) -> Result<u32, &'static str> {
    number(text).filter(|mark| mark & !MARK_MASK == 0).ok_or("is not a mark within 0xff000000")
}

/// Checks a user name.
pub fn username(text: &str) -> Result<String, &'static str> {
    match text {
        "" => Err("has no user name"),
        _ => auth::check_username(text).map(|()| text.to_owned()),
    }
}

/// Checks a password.
pub fn password(text: &str) -> Result<String, &'static str> {
    auth::check_password(text).map(|()| text.to_owned())
}

/// A value for the Host field.
pub fn header_host(text: &str) -> Result<String, &'static str> {
    match !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(text.to_owned()),
        false => Err("is not HOST or HOST:PORT"),
    }
}

/// `Name: value`, in this form.
pub fn header(text: &str) -> Result<String, &'static str> {
    let (name, value) = field::parse(text)?;
    Ok([name, ": ", value].concat())
}
