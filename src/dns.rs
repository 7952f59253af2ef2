//! DNS (RFC 1035), on both sides: asking for the addresses of a proxy, and answering the clients of the network.
//!
//! To ask: [`Query`] makes the question and reads the answer.
//!
//! To answer: [`Request`] is a client's query. Either we have the [`Reply`], perhaps from [`FakeIp`], the table of
//! addresses that stand for names; or an upstream has it, chosen by [`Domains`], whose replies are awaited in
//! [`Pending`], kept in [`Cache`] and [relayed](Request::relay).
//!
//! Underneath is the format: [`Message`] and [`Name`].

mod cache;
mod domains;
mod fakeip;
mod pending;
mod special;
mod wire;

pub use cache::Cache;
pub use domains::Domains;
pub use fakeip::{Entry, FAKE_TTL, FakeIp, Ranges};
pub use pending::{Ask, Pending};
pub use special::local_reply;
pub use wire::message::{Kind, Message, Question, Record, Records};
pub use wire::name::{BadName, HostName, Name, NameRef};
pub use wire::reply::{Rcode, Reply};
pub use wire::request::{BadRequest, Edns, Request};

use core::net::IpAddr;

/// The most addresses that are taken from one answer.
pub const MAX_ADDRESSES: usize = 8;
/// Aliases followed inside one answer before it counts as a loop.
const MAX_ALIASES: usize = 8;
/// Header, one name, type and class.
const MAX_QUERY: usize = wire::message::HEADER + wire::name::MAX_NAME + 4;
/// "Recursion desired" and nothing else.
const QUERY_FLAGS: u16 = 0x0100;

/// One question to a recursive resolver, class IN.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// Unpredictable, so that an answer cannot be forged blindly.
    pub id: u16,
    /// Whose addresses.
    pub name: &'a Name,
    /// [`Kind::A`] or [`Kind::AAAA`].
    pub kind: Kind,
}

/// The addresses that an answer holds; none if the name has no record of that kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// In the answer's order, the first [`MAX_ADDRESSES`] of them.
    pub addresses: heapless::Vec<IpAddr, MAX_ADDRESSES>,
    /// Seconds that all of it is good for, the aliases too; 0 without addresses.
    pub ttl: u32,
}

/// Why a message holds no [`Answer`] to a [`Query`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyError {
    /// No reply to this query: a late one, or a forgery. The real one may still come.
    Stray,
    /// The reply breaks the format, or its aliases lead in a circle.
    Malformed,
    /// The reply did not fit into a datagram: ask again over TCP.
    Truncated,
    /// The name does not exist.
    NoSuchName,
    /// The server could or would not answer (RFC 1035 section 4.1.1, RCODE).
    Failed {
        /// Its reason.
        rcode: u8,
    },
}

impl Query<'_> {
    /// The message to send; over TCP its length goes in front (RFC 1035 section 4.2.2).
    pub fn encode(&self) -> heapless::Vec<u8, MAX_QUERY> {
        let mut out = heapless::Vec::new();
        for field in [self.id, QUERY_FLAGS, 1, 0, 0, 0] {
            // MAX_QUERY has room for the longest name, so no push fails.
            let _ = out.extend_from_slice(&field.to_be_bytes());
        }
        let _ = out.extend_from_slice(self.name.wire());
        for field in [self.kind.0, wire::message::CLASS_IN] {
            let _ = out.extend_from_slice(&field.to_be_bytes());
        }
        out
    }

    /// Reads a reply, and follows aliases (CNAME) as far as they lead inside it.
    ///
    /// # Errors
    /// [`ReplyError`]; after [`ReplyError::Stray`] the caller keeps waiting.
    pub fn answer(&self, reply: &[u8]) -> Result<Answer, ReplyError> {
        let message = Message::parse(reply).ok_or(ReplyError::Stray)?;
        if message.id() != self.id || !message.is_reply() {
            return Err(ReplyError::Stray);
        }
        match message.question() {
            Some(question) if self.is(&question) => {}
            // A server that did not understand the question may leave it out.
            None if message.rcode() != 0 => {}
            _ => return Err(ReplyError::Stray),
        }
        if message.is_truncated() {
            return Err(ReplyError::Truncated);
        }
        match message.rcode() {
            0 => self.addresses(&message).ok_or(ReplyError::Malformed),
            rcode if rcode == Rcode::NXDomain as u8 => Err(ReplyError::NoSuchName),
            rcode => Err(ReplyError::Failed { rcode }),
        }
    }

    fn is(&self, question: &Question<'_>) -> bool {
        question.class == wire::message::CLASS_IN
            && question.kind == self.kind
            && question.name == self.name.as_ref()
    }

    /// The records may come in any order, so each alias takes a walk of its own.
    fn addresses(&self, message: &Message<'_>) -> Option<Answer> {
        let mut addresses = heapless::Vec::new();
        let mut owner = self.name.as_ref();
        let mut ttl = u32::MAX;
        for _ in 0..=MAX_ALIASES {
            let mut alias = None;
            for record in message.answers() {
                let record = record?;
                if record.class != wire::message::CLASS_IN || record.name != owner {
                    continue;
                }
                if record.kind == self.kind {
                    // Addresses beyond the capacity are left out.
                    let _ = addresses.push(record.ip()?);
                    ttl = ttl.min(record.ttl);
                } else if record.kind == Kind::CNAME {
                    alias = Some((record.cname()?, record.ttl));
                }
            }
            match alias {
                Some((target, alias_ttl)) if addresses.is_empty() => {
                    owner = target;
                    ttl = ttl.min(alias_ttl);
                }
                _ => {
                    let ttl = if addresses.is_empty() { 0 } else { ttl };
                    return Some(Answer { addresses, ttl });
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    const ID: u16 = 0x1234;
    const OK: u16 = 0x8180;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    /// A reply whose records are (owner, type, TTL, data).
    fn reply(flags: u16, question: &Name, kind: Kind, records: &[(&[u8], Kind, u32, &[u8])]) -> Vec<u8> {
        let mut out = Query { id: ID, name: question, kind }.encode().to_vec();
        out[2..4].copy_from_slice(&flags.to_be_bytes());
        out[6..8].copy_from_slice(&(records.len() as u16).to_be_bytes());
        for (owner, kind, ttl, data) in records {
            out.extend_from_slice(owner);
            out.extend_from_slice(&kind.0.to_be_bytes());
            out.extend_from_slice(&[0, 1]);
            out.extend_from_slice(&ttl.to_be_bytes());
            out.extend_from_slice(&(data.len() as u16).to_be_bytes());
            out.extend_from_slice(data);
        }
        out
    }

    /// Points to the question's name.
    const SELF: &[u8] = b"\xc0\x0c";

    #[test]
    fn queries_are_what_rfc_1035_says() {
        let query = Query { id: ID, name: &name("p.example"), kind: Kind::AAAA };
        assert_eq!(
            query.encode(),
            b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01p\x07example\x00\x00\x1c\x00\x01"
        );
    }

    #[test]
    fn answers_hold_addresses_and_the_least_ttl() {
        let proxy = name("Proxy.example");
        let query = Query { id: ID, name: &proxy, kind: Kind::A };
        let bytes = reply(
            OK,
            &name("proxy.EXAMPLE"),
            Kind::A,
            &[
                (SELF, Kind::A, 300, &[192, 0, 2, 1]),
                (name("other.example").wire(), Kind::A, 1, &[192, 0, 2, 66]),
                (SELF, Kind(16), 2, b"\x01x"),
                (SELF, Kind::A, 60, &[192, 0, 2, 2]),
            ],
        );
        let answer = query.answer(&bytes).unwrap();
        let expected: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()];
        assert_eq!((&answer.addresses[..], answer.ttl), (&expected[..], 60));

        let query = Query { kind: Kind::AAAA, ..query };
        let bytes = reply(OK, &proxy, Kind::AAAA, &[(SELF, Kind::AAAA, 0x8000_0000, &[0x20; 16])]);
        let answer = query.answer(&bytes).unwrap();
        assert_eq!((answer.addresses.len(), answer.ttl), (1, 0));

        let many = [(SELF, Kind::A, 9, &[192, 0, 2, 1][..]); 20];
        let query = Query { kind: Kind::A, ..query };
        let answer = query.answer(&reply(OK, &proxy, Kind::A, &many)).unwrap();
        assert_eq!((answer.addresses.len(), answer.ttl), (MAX_ADDRESSES, 9));
    }

    #[test]
    fn aliases_are_followed_in_any_order_but_not_in_circles() {
        let (a, b, c) = (name("a.example"), name("b.example"), name("c.example"));
        let query = Query { id: ID, name: &a, kind: Kind::A };
        let mut records = [
            (a.wire(), Kind::CNAME, 50, b.wire()),
            (b.wire(), Kind::CNAME, 40, c.wire()),
            (c.wire(), Kind::A, 60, &[192, 0, 2, 3][..]),
        ];
        for _ in 0..2 {
            let answer = query.answer(&reply(OK, &a, Kind::A, &records)).unwrap();
            assert_eq!((answer.addresses.len(), answer.ttl), (1, 40));
            records.reverse();
        }
        let dangling = query.answer(&reply(OK, &a, Kind::A, &records[..2])).unwrap();
        assert_eq!((dangling.addresses.len(), dangling.ttl), (0, 0));
        let circle = [(a.wire(), Kind::CNAME, 1, b.wire()), (b.wire(), Kind::CNAME, 1, a.wire())];
        assert_eq!(query.answer(&reply(OK, &a, Kind::A, &circle)), Err(ReplyError::Malformed));
    }

    #[test]
    fn replies_to_something_else_are_strays() {
        let proxy = name("proxy.example");
        let query = Query { id: ID, name: &proxy, kind: Kind::A };
        let good = reply(OK, &proxy, Kind::A, &[(SELF, Kind::A, 9, &[192, 0, 2, 1])]);
        assert!(query.answer(&good).is_ok());
        let strays = [
            reply(OK, &name("proxy.example.net"), Kind::A, &[]),
            reply(OK, &proxy, Kind::AAAA, &[]),
            reply(0x0100, &proxy, Kind::A, &[]),      // our own query
            reply(OK | 0x0800, &proxy, Kind::A, &[]), // another opcode
            [&[0], &good[1..]].concat(),
            [&good[..5], &[0], &good[6..]].concat(), // success without a question
            [&good[..5], &[2], &good[6..]].concat(),
            good[..11].to_vec(),
            std::vec![],
        ];
        for stray in strays {
            assert_eq!(query.answer(&stray), Err(ReplyError::Stray), "{stray:?}");
        }
    }

    #[test]
    fn failures_are_told_apart() {
        let proxy = name("proxy.example");
        let query = Query { id: ID, name: &proxy, kind: Kind::A };
        let record: (&[u8], Kind, u32, &[u8]) = (SELF, Kind::A, 9, &[192, 0, 2, 1]);
        let outcome = |flags| query.answer(&reply(flags, &proxy, Kind::A, &[record]));
        assert_eq!(outcome(OK | 3), Err(ReplyError::NoSuchName));
        assert_eq!(outcome(OK | 2), Err(ReplyError::Failed { rcode: 2 }));
        let whole = reply(OK | 0x0200, &proxy, Kind::A, &[record]);
        for end in whole.len() - 16..whole.len() {
            assert_eq!(query.answer(&whole[..end]), Err(ReplyError::Truncated), "cut at {end}");
        }
        let cut = reply(OK, &proxy, Kind::A, &[record]);
        assert_eq!(query.answer(&cut[..cut.len() - 1]), Err(ReplyError::Malformed));
        let short = reply(OK, &proxy, Kind::A, &[(SELF, Kind::A, 9, &[192, 0, 2])]);
        assert_eq!(query.answer(&short), Err(ReplyError::Malformed));
        assert_eq!(query.answer(b"\x12\x34\x81\x81\0\0\0\0\0\0\0\0"), Err(ReplyError::Failed { rcode: 1 }));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), keep in 0usize..40) {
            let proxy = name("proxy.example");
            let query = Query { id: ID, name: &proxy, kind: Kind::A };
            let start = reply(OK, &proxy, Kind::A, &[(SELF, Kind::CNAME, 9, SELF)]);
            let keep = keep.min(bytes.len());
            bytes[..keep].copy_from_slice(&start[..keep]);
            if let Ok(answer) = query.answer(&bytes) {
                prop_assert!(bytes.len() >= 12 + 16 * answer.addresses.len());
            }
        }

        #[test]
        fn any_addresses_come_back(
            labels in proptest::collection::vec("[a-z0-9_-]{1,30}", 1..6),
            addresses in proptest::collection::vec(any::<[u8; 16]>(), 0..MAX_ADDRESSES),
            ttl in 0u32..1 << 31,
        ) {
            let proxy = name(&labels.join("."));
            let records: Vec<_> = addresses.iter().map(|a| (SELF, Kind::AAAA, ttl, &a[..])).collect();
            let query = Query { id: ID, name: &proxy, kind: Kind::AAAA };
            let answer = query.answer(&reply(OK, &proxy, Kind::AAAA, &records)).unwrap();
            let expected: Vec<IpAddr> = addresses.iter().map(|&a| a.into()).collect();
            prop_assert_eq!(&answer.addresses[..], &expected[..]);
            prop_assert_eq!(answer.ttl, if expected.is_empty() { 0 } else { ttl });
        }
    }
}
