//! Names that are always answered here, whoever answers for the others.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::wire::header::Rcode;
use super::wire::message::Kind;
use super::wire::name::{MAX_NAME, NameRef};
use super::wire::query::Query;
use super::wire::reply::Reply;
use super::wire::reverse::Reverse;

/// TTL of special names: they never change, but the rules of this file might.
const TTL: u32 = 600;

const NCSI: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(131, 107, 255, 255), Ipv6Addr::new(0xfd3e, 0x4f5a, 0x5b81, 0, 0, 0, 0, 1));

/// What a special name is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Special {
    /// The name does not exist.
    Nonexistent,
    /// The name exists, but has no records.
    Empty,
    /// The machine that asks (RFC 6761 section 6.3).
    Localhost,
    /// Has no IPv6 address, by which clients learn that there is no NAT64 here (RFC 7050).
    Ipv4Only,
    /// Has the addresses that Windows expects when it probes names (NCSI).
    Ncsi,
}

/// Names that must not be looked up on the Internet, nor any name below them;
/// [reversed](super::name::NameRef::reversed).
const SPECIAL: [(&[u8], Special); 12] = [
    (b"\x09localhost", Special::Localhost),
    // RFC 6761 section 6.4.
    (b"\x07invalid", Special::Nonexistent),
    // RFC 6762 section 22.1: multicast DNS.
    (b"\x05local", Special::Nonexistent),
    // RFC 7686 section 2: Tor.
    (b"\x05onion", Special::Nonexistent),
    // RFC 9476 section 2.
    (b"\x03alt", Special::Nonexistent),
    // RFC 8375 section 4: names of this home.
    (b"\x04arpa\x04home", Special::Nonexistent),
    // RFC 9462 section 6.4: we offer no encrypted DNS, and a resolver's does not concern our clients.
    (b"\x04arpa\x08resolver", Special::Empty),
    (b"\x04arpa\x08ipv4only", Special::Ipv4Only),
    // Tells browsers to use the network's resolver, as it decides how connections are routed.
    (b"\x03net\x13use-application-dns", Special::Nonexistent),
    // The same for iCloud Private Relay ("Prepare your network for iCloud Private Relay", Apple).
    (b"\x03com\x06icloud\x04mask", Special::Nonexistent),
    (b"\x03com\x06icloud\x07mask-h2", Special::Nonexistent),
    // With other addresses Windows says that there is no Internet.
    (b"\x03com\x08msftncsi\x03dns", Special::Ncsi),
];

/// The reply to a query that needs no resolver: one for a special name, or one that is refused.
pub fn local_reply(query: &Query<'_>) -> Option<Reply<'static>> {
    if let Some(rcode) = refusal(query) {
        return Some(Reply::Failed(rcode));
    }
    let mut buffer = [0; MAX_NAME];
    let name = query.name().reversed(&mut buffer);
    for (zone, special) in SPECIAL {
        if name.starts_with(zone) {
            return Some(special_reply(special, query.kind()));
        }
    }
    Reverse::parse(name).is_some_and(|reverse| reverse.is_private()).then_some(Reply::NoSuchName(TTL))
}

/// Whether a name looks like that of a time server, which is asked over UDP, so not through an HTTP proxy:
/// `time1.example.com`, `ntp-1.example.com` and everything in `pool.ntp.org`.
pub fn is_time_server(name: NameRef<'_>) -> bool {
    let mut buffer = [0; MAX_NAME];
    if name.reversed(&mut buffer).starts_with(b"\x03org\x03ntp\x04pool") {
        return true;
    }
    let first = name.labels().next().unwrap_or_default().to_ascii_lowercase();
    let behind = first.strip_prefix(b"ntp").or_else(|| first.strip_prefix(b"time"));
    behind.is_some_and(|rest| !rest.first().is_some_and(u8::is_ascii_alphabetic)) && name.labels().count() > 2
}

/// Why a question is refused, whatever its name.
fn refusal(query: &Query<'_>) -> Option<Rcode> {
    let is_new = query.edns().is_some_and(|edns| edns.version > 0);
    match query.kind() {
        _ if is_new => Some(Rcode::BadVers),
        _ if !query.is_internet() => Some(Rcode::Refused),
        // RFC 6895 section 3.1: types that are not data. Transfers are not for clients, the others have no meaning here.
        Kind::OPT => Some(Rcode::FormErr),
        Kind::ANY => None,
        Kind(128..=254) => Some(Rcode::Refused),
        _ => None,
    }
}

fn special_reply(special: Special, kind: Kind) -> Reply<'static> {
    match (special, kind) {
        (Special::Nonexistent, _) => Reply::NoSuchName(TTL),
        (Special::Localhost, Kind::A) => Reply::Address(IpAddr::V4(Ipv4Addr::LOCALHOST), TTL),
        (Special::Localhost, Kind::AAAA) => Reply::Address(IpAddr::V6(Ipv6Addr::LOCALHOST), TTL),
        (Special::Ipv4Only, Kind::A) => Reply::Address(IpAddr::V4(Ipv4Addr::new(192, 0, 0, 170)), TTL),
        (Special::Ncsi, Kind::A) => Reply::Address(IpAddr::V4(NCSI.0), TTL),
        (Special::Ncsi, Kind::AAAA) => Reply::Address(IpAddr::V6(NCSI.1), TTL),
        (_, Kind::ANY) => Reply::Any,
        _ => Reply::NoData(TTL),
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::name::Name;
    use super::*;
    use crate::dns::wire::fixture::query;

    fn local(name: &str, kind: Kind) -> Option<Reply<'static>> {
        let bytes = query(7, 0x0100, name, kind, None);
        local_reply(&Query::parse(&bytes).unwrap())
    }

    #[test]
    fn special_names_go_nowhere() {
        let address = |text: &str| Some(Reply::Address(text.parse().unwrap(), TTL));
        assert_eq!(local("localhost", Kind::A), address("127.0.0.1"));
        assert_eq!(local("a.LocalHost", Kind::AAAA), address("::1"));
        assert_eq!(local("localhost", Kind(16)), Some(Reply::NoData(TTL)));
        assert_eq!(local("localhost", Kind::ANY), Some(Reply::Any));
        assert_eq!(local("ipv4only.arpa", Kind::A), address("192.0.0.170"));
        assert_eq!(local("ipv4only.arpa", Kind::AAAA), Some(Reply::NoData(TTL)));
        assert_eq!(local("dns.msftncsi.com", Kind::A), address("131.107.255.255"));
        assert_eq!(local("DNS.msftncsi.com", Kind::AAAA), address("fd3e:4f5a:5b81::1"));
        assert_eq!(local("dns.msftncsi.com", Kind::HTTPS), Some(Reply::NoData(TTL)));
        assert_eq!(local("_dns.resolver.arpa", Kind::SVCB), Some(Reply::NoData(TTL)));
        for name in [
            "x.invalid",
            "printer.local",
            "abc.onion",
            "x.alt",
            "tv.home.arpa",
            "use-application-dns.net",
            "mask.icloud.com",
            "mask-h2.icloud.com",
            "1.1.168.192.in-addr.arpa",
            "lb._dns-sd._udp.0.0.10.in-addr.arpa",
            "d.f.ip6.arpa",
        ] {
            assert_eq!(local(name, Kind::PTR), Some(Reply::NoSuchName(TTL)), "{name}");
        }
        for name in [
            "www.example",
            "localhost.example",
            "notlocal",
            "arpa",
            "home",
            "dns.net",
            "8.8.8.8.in-addr.arpa",
            "2.ip6.arpa",
            "icloud.com",
            "mask-api.icloud.com",
            "www.msftncsi.com",
        ] {
            assert_eq!(local(name, Kind::A), None, "{name}");
        }
    }

    #[test]
    fn time_servers_are_known_by_their_names() {
        let is_one = |name: &str| is_time_server(Name::new(name).unwrap().as_ref());
        for name in [
            "0.openwrt.pool.ntp.org",
            "pool.NTP.org",
            "time.windows.com",
            "Time1.google.com",
            "time-ios.apple.com",
            "ntp.ubuntu.com",
            "ntp2.aliyun.com",
        ] {
            assert!(is_one(name), "{name}");
        }
        for name in [
            "time.com",
            "www.time.com",
            "times.example.com",
            "timeline.example.com",
            "ntp.org",
            "www.ntp.org",
            "pool.example.org",
        ] {
            assert!(!is_one(name), "{name}");
        }
    }

    #[test]
    fn questions_without_an_answer_are_refused() {
        assert_eq!(local("www.example", Kind(252)), Some(Reply::Failed(Rcode::Refused)), "AXFR");
        assert_eq!(local("www.example", Kind::OPT), Some(Reply::Failed(Rcode::FormErr)));
        assert_eq!(local("www.example", Kind::ANY), None);
        let mut bytes = query(7, 0x0100, "version.bind", Kind(16), None);
        let last = bytes.len() - 1;
        bytes[last] = 3;
        let chaos = local_reply(&Query::parse(&bytes).unwrap());
        assert_eq!(chaos, Some(Reply::Failed(Rcode::Refused)));
        let bytes = query(7, 0x0100, "localhost", Kind::A, Some((512, 1, false)));
        let newer = local_reply(&Query::parse(&bytes).unwrap());
        assert_eq!(newer, Some(Reply::Failed(Rcode::BadVers)));
    }
}
