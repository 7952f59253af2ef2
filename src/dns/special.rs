//! Names that we answer for ourselves, whoever answers for the others.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::wire::header::Rcode;
use super::wire::message::Kind;
use super::wire::name::MAX_NAME;
use super::wire::query::Query;
use super::wire::reply::Reply;
use super::wire::reverse::Reverse;

/// TTL of special names: they never change, but our rules might.
const TTL: u32 = 600;

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
}

/// Names that must not be asked for on the Internet, nor any name below them; [reversed](super::name::NameRef::reversed).
const SPECIAL: [(&[u8], Special); 9] = [
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
    // RFC 9462 section 6.4: we offer no encrypted DNS, and an upstream's does not concern our clients.
    (b"\x04arpa\x08resolver", Special::Empty),
    (b"\x04arpa\x08ipv4only", Special::Ipv4Only),
    // Tells browsers to use the network's resolver, as it decides how connections are routed.
    (b"\x03net\x13use-application-dns", Special::Nonexistent),
];

/// The reply to a query that needs no resolver: special names, and questions that we refuse.
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
        (_, Kind::ANY) => Reply::Any,
        _ => Reply::NoData(TTL),
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::query::tests::query;
    use super::*;

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
        assert_eq!(local("_dns.resolver.arpa", Kind::SVCB), Some(Reply::NoData(TTL)));
        for name in [
            "x.invalid",
            "printer.local",
            "abc.onion",
            "x.alt",
            "tv.home.arpa",
            "use-application-dns.net",
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
        ] {
            assert_eq!(local(name, Kind::A), None, "{name}");
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
