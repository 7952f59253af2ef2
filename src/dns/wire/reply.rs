//! Replies of our own.

use alloc::vec::Vec;
use core::net::IpAddr;

use super::edns::push_opt;
use super::header::{HEADER, Rcode, push_fields};
use super::message::{CLASS_IN, Kind};
use super::query::Query;

/// A pointer to the question's name.
const TO_QUESTION: u16 = 0xc000 | HEADER as u16;
/// TTL of the answer to ANY.
const ANY_TTL: u32 = 3600;

/// A reply of our own. TTLs are in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// One address, of the type asked for.
    Address(IpAddr, u32),
    /// The name of an address.
    Pointer(&'a str, u32),
    /// The minimal answer to ANY (RFC 8482 section 4.2).
    Any,
    /// The name has no records of that type; the TTL says for how long that may be cached (RFC 2308).
    NoData(u32),
    /// The name does not exist; the TTL likewise.
    NoSuchName(u32),
    /// No answer.
    Failed(Rcode),
}

impl Query<'_> {
    /// Appends a reply. It has at most 512 bytes, so it is never truncated.
    pub fn reply(&self, reply: &Reply<'_>, out: &mut Vec<u8>) {
        let rcode = match reply {
            Reply::NoSuchName(_) => Rcode::NXDomain,
            Reply::Failed(rcode) => *rcode,
            _ => Rcode::NoError,
        } as u16;
        let (answers, authorities) = match reply {
            Reply::Address(..) | Reply::Pointer(..) | Reply::Any => (1, 0),
            Reply::NoData(_) | Reply::NoSuchName(_) => (0, 1),
            Reply::Failed(_) => (0, 0),
        };
        let edns = self.edns();
        let counts = [answers, authorities, u16::from(edns.is_some())];
        self.push_head(self.reply_flags(rcode & 0xf), counts, out);
        match *reply {
            Reply::Address(IpAddr::V4(ip), ttl) => push_record(out, TO_QUESTION, Kind::A, ttl, &ip.octets()),
            Reply::Address(IpAddr::V6(ip), ttl) => {
                push_record(out, TO_QUESTION, Kind::AAAA, ttl, &ip.octets())
            }
            Reply::Pointer(host, ttl) => push_pointer(out, host, ttl),
            Reply::Any => push_record(out, TO_QUESTION, Kind::HINFO, ANY_TTL, b"\x07RFC8482\0"),
            Reply::NoData(ttl) => push_soa(out, TO_QUESTION, ttl),
            Reply::NoSuchName(ttl) => push_soa(out, self.parent(), ttl),
            Reply::Failed(_) => {}
        }
        if let Some(edns) = edns {
            push_opt(out, (rcode >> 4) as u8, edns.dnssec_ok);
        }
    }

    /// A pointer to the name above the question's, since a name that does not exist can't be a zone.
    fn parent(&self) -> u16 {
        let first = self.name().labels().next().map_or(0, |label| 1 + label.len());
        TO_QUESTION + first as u16
    }
}

fn push_record(out: &mut Vec<u8>, owner: u16, kind: Kind, ttl: u32, data: &[u8]) {
    push_fields(out, &[owner, kind.0, CLASS_IN, (ttl >> 16) as u16, ttl as u16, data.len() as u16]);
    out.extend_from_slice(data);
}

fn push_pointer(out: &mut Vec<u8>, host: &str, ttl: u32) {
    push_record(out, TO_QUESTION, Kind::PTR, ttl, &[]);
    let length_at = out.len() - 2;
    for label in host.split('.') {
        out.push(label.len() as u8);
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    let length = (out.len() - length_at - 2) as u16;
    if let Some(field) = out.get_mut(length_at..length_at + 2) {
        field.copy_from_slice(&length.to_be_bytes());
    }
}

/// Appends the record that lets a client cache an absence, for the smaller of its TTL and its last field (RFC 2308
/// section 5). Server and mailbox are the root, since there are none.
fn push_soa(out: &mut Vec<u8>, owner: u16, ttl: u32) {
    let mut data = [0; 22];
    data[5] = 1; // serial number
    data[18..].copy_from_slice(&ttl.to_be_bytes());
    push_record(out, owner, Kind::SOA, ttl, &data);
}

#[cfg(test)]
mod tests {
    use super::super::message::Message;
    use super::*;
    use crate::dns::wire::fixture::{SELF, query, reply};
    use std::vec;
    use std::vec::Vec;

    const RD: u16 = 0x0100;
    const OK: u16 = 0x8180;

    fn replied(bytes: &[u8], reply: Reply<'_>) -> Vec<u8> {
        let mut out = vec![];
        Query::parse(bytes).unwrap().reply(&reply, &mut out);
        out
    }

    #[test]
    fn replies_are_what_rfc_1035_says() {
        let bytes = query(7, RD, "Www.Example", Kind::A, None);
        let data = [192, 0, 2, 1];
        assert_eq!(
            replied(&bytes, Reply::Address(IpAddr::from(data), 60)),
            reply(&bytes, OK, [&[(SELF, Kind::A, 60, &data)], &[], &[]])
        );
        let bytes = query(7, RD, "Www.Example", Kind::AAAA, None);
        let data = [0x20; 16];
        assert_eq!(
            replied(&bytes, Reply::Address(IpAddr::from(data), 70_000)),
            reply(&bytes, OK, [&[(SELF, Kind::AAAA, 70_000, &data)], &[], &[]])
        );
        let bytes = query(7, RD, "1.0.18.198.in-addr.arpa", Kind::PTR, None);
        assert_eq!(
            replied(&bytes, Reply::Pointer("www.example", 9)),
            reply(&bytes, OK, [&[(SELF, Kind::PTR, 9, b"\x03www\x07example\0")], &[], &[]])
        );
        let bytes = query(7, 0, "www.example", Kind::ANY, None);
        assert_eq!(
            replied(&bytes, Reply::Any),
            reply(&bytes, OK & !RD, [&[(SELF, Kind::HINFO, ANY_TTL, b"\x07RFC8482\0")], &[], &[]])
        );
        assert_eq!(replied(&bytes, Reply::Failed(Rcode::ServFail)), reply(&bytes, 0x8082, [&[], &[], &[]]));
    }

    #[test]
    fn absences_may_be_remembered() {
        let bytes = query(7, RD, "www.example", Kind::HTTPS, None);
        let soa = [&[0, 0, 0, 0, 0, 1], &[0; 12][..], &[0, 0, 0, 60]].concat();
        assert_eq!(
            replied(&bytes, Reply::NoData(60)),
            reply(&bytes, OK, [&[], &[(SELF, Kind::SOA, 60, &soa)], &[]])
        );
        let out = replied(&bytes, Reply::NoSuchName(60));
        assert_eq!(out, reply(&bytes, OK | 3, [&[], &[(b"\xc0\x10", Kind::SOA, 60, &soa)], &[]]));
        let record = Message::parse(&out).unwrap().records().next().unwrap().unwrap();
        assert_eq!(std::format!("{}", record.name), "example");
        let root = b"\0\x07\0\0\0\x01\0\0\0\0\0\0\0\0\x01\0\x01";
        let out = replied(root, Reply::NoSuchName(60));
        let record = Message::parse(&out).unwrap().records().next().unwrap().unwrap();
        assert_eq!(record.name.labels().count(), 0);
    }

    #[test]
    fn extensions_are_answered() {
        let bytes = query(7, RD, "www.example", Kind::A, Some((4096, 1, true)));
        let mut expected = reply(&bytes, OK, [&[], &[], &[]]);
        expected[11] = 1;
        expected.extend_from_slice(b"\0\0\x29\x04\xd0\x01\0\x80\0\0\0");
        assert_eq!(replied(&bytes, Reply::Failed(Rcode::BadVers)), expected);
    }

    #[test]
    fn the_longest_reply_fits_a_datagram() {
        let host = [&*"x".repeat(63), &"x".repeat(63), &"x".repeat(63), &"x".repeat(61)].join(".");
        let zeros = "0.".repeat(32);
        let bytes = query(7, RD, &(zeros + "ip6.arpa"), Kind::PTR, Some((0, 0, true)));
        assert!(replied(&bytes, Reply::Pointer(&host, 9)).len() <= 512);
        let bytes = query(7, RD, &host, Kind::AAAA, Some((0, 0, true)));
        for reply in [Reply::Address(IpAddr::from([0; 16]), 9), Reply::Any, Reply::NoData(9)] {
            assert!(replied(&bytes, reply).len() <= 512);
        }
    }
}
