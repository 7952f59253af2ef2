//! The addresses that a resolver's reply holds.

use alloc::vec::Vec;
use core::net::IpAddr;

use super::header::Rcode;
use super::message::{CLASS_IN, Kind, Message};
use super::query::Query;

/// The most addresses that are taken from one answer.
pub const MAX_ADDRESSES: usize = 8;
/// Aliases followed inside one answer before it counts as a loop.
const MAX_ALIASES: usize = 8;

/// The addresses that an answer holds; none if the name has no record of that type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// In the answer's order, the first [`MAX_ADDRESSES`] of them.
    pub addresses: Vec<IpAddr>,
    /// Seconds for which all records used are valid, aliases included; 0 without addresses.
    pub ttl: u32,
}

/// Why a reply holds no [`Answer`] to a [`Query`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyError {
    /// Not a reply to this query: a late one, or a forgery. The real one may still come.
    Stray,
    /// The reply is malformed, or its aliases form a loop.
    Malformed,
    /// The reply did not fit into a datagram: ask again over TCP.
    Truncated,
    /// The name does not exist.
    NoSuchName,
    /// The server could not or would not answer (RFC 1035 section 4.1.1, RCODE).
    Failed {
        /// Its reason.
        rcode: u8,
    },
}

impl Query<'_> {
    /// Reads a resolver's reply to this query, and follows aliases (CNAME) inside it.
    ///
    /// # Errors
    /// [`ReplyError`]; after [`ReplyError::Stray`] the caller keeps waiting.
    pub fn answer(&self, reply: &[u8]) -> Result<Answer, ReplyError> {
        let message = Message::parse(reply).filter(|reply| self.matches(reply)).ok_or(ReplyError::Stray)?;
        if message.is_truncated() {
            return Err(ReplyError::Truncated);
        }
        match message.rcode() {
            0 => self.addresses(&message).ok_or(ReplyError::Malformed),
            rcode if rcode == Rcode::NXDomain as u8 => Err(ReplyError::NoSuchName),
            rcode => Err(ReplyError::Failed { rcode }),
        }
    }

    /// The records may come in any order, so each alias takes a pass of its own.
    fn addresses(&self, message: &Message<'_>) -> Option<Answer> {
        let mut addresses = Vec::new();
        let mut owner = self.name();
        let mut ttl = u32::MAX;
        for _ in 0..=MAX_ALIASES {
            let mut alias = None;
            for record in message.answers() {
                let record = record?;
                if record.class != CLASS_IN || record.name != owner {
                    continue;
                }
                if record.kind == self.kind() {
                    let address = record.ip()?;
                    if addresses.len() < MAX_ADDRESSES {
                        addresses.push(address);
                    }
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
    use super::super::name::Name;
    use super::*;
    use proptest::prelude::*;

    const ID: u16 = 0x1234;
    const OK: u16 = 0x8180;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    /// A reply whose records are (owner, type, TTL, data).
    fn reply(flags: u16, question: &Name, kind: Kind, records: &[(&[u8], Kind, u32, &[u8])]) -> Vec<u8> {
        let mut out = Query::compose(ID, question, kind);
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

    /// What a reply to the question about a name holds.
    fn answer(name: &Name, kind: Kind, reply: &[u8]) -> Result<Answer, ReplyError> {
        Query::parse(&Query::compose(ID, name, kind)).unwrap().answer(reply)
    }

    /// Points to the question's name.
    const SELF: &[u8] = b"\xc0\x0c";

    #[test]
    fn queries_are_what_rfc_1035_says() {
        assert_eq!(
            Query::compose(ID, &name("p.example"), Kind::AAAA),
            b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01p\x07example\x00\x00\x1c\x00\x01"
        );
    }

    #[test]
    fn answers_hold_addresses_and_the_least_ttl() {
        let proxy = name("Proxy.example");
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
        let found = answer(&proxy, Kind::A, &bytes).unwrap();
        let expected: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()];
        assert_eq!((&found.addresses[..], found.ttl), (&expected[..], 60));

        let bytes = reply(OK, &proxy, Kind::AAAA, &[(SELF, Kind::AAAA, 0x8000_0000, &[0x20; 16])]);
        let found = answer(&proxy, Kind::AAAA, &bytes).unwrap();
        assert_eq!((found.addresses.len(), found.ttl), (1, 0));

        let many = [(SELF, Kind::A, 9, &[192, 0, 2, 1][..]); 20];
        let found = answer(&proxy, Kind::A, &reply(OK, &proxy, Kind::A, &many)).unwrap();
        assert_eq!((found.addresses.len(), found.ttl), (MAX_ADDRESSES, 9));
    }

    #[test]
    fn aliases_are_followed_in_any_order_but_not_in_circles() {
        let (a, b, c) = (name("a.example"), name("b.example"), name("c.example"));
        let mut records = [
            (a.wire(), Kind::CNAME, 50, b.wire()),
            (b.wire(), Kind::CNAME, 40, c.wire()),
            (c.wire(), Kind::A, 60, &[192, 0, 2, 3][..]),
        ];
        for _ in 0..2 {
            let found = answer(&a, Kind::A, &reply(OK, &a, Kind::A, &records)).unwrap();
            assert_eq!((found.addresses.len(), found.ttl), (1, 40));
            records.reverse();
        }
        let dangling = answer(&a, Kind::A, &reply(OK, &a, Kind::A, &records[..2])).unwrap();
        assert_eq!((dangling.addresses.len(), dangling.ttl), (0, 0));
        let circle = [(a.wire(), Kind::CNAME, 1, b.wire()), (b.wire(), Kind::CNAME, 1, a.wire())];
        assert_eq!(answer(&a, Kind::A, &reply(OK, &a, Kind::A, &circle)), Err(ReplyError::Malformed));
    }

    #[test]
    fn replies_to_something_else_are_strays() {
        let proxy = name("proxy.example");
        let good = reply(OK, &proxy, Kind::A, &[(SELF, Kind::A, 9, &[192, 0, 2, 1])]);
        assert!(answer(&proxy, Kind::A, &good).is_ok());
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
            assert_eq!(answer(&proxy, Kind::A, &stray), Err(ReplyError::Stray), "{stray:?}");
        }
    }

    #[test]
    fn failures_are_told_apart() {
        let proxy = name("proxy.example");
        let record: (&[u8], Kind, u32, &[u8]) = (SELF, Kind::A, 9, &[192, 0, 2, 1]);
        let outcome = |flags| answer(&proxy, Kind::A, &reply(flags, &proxy, Kind::A, &[record]));
        assert_eq!(outcome(OK | 3), Err(ReplyError::NoSuchName));
        assert_eq!(outcome(OK | 2), Err(ReplyError::Failed { rcode: 2 }));
        let whole = reply(OK | 0x0200, &proxy, Kind::A, &[record]);
        for end in whole.len() - 16..whole.len() {
            assert_eq!(answer(&proxy, Kind::A, &whole[..end]), Err(ReplyError::Truncated), "cut at {end}");
        }
        let cut = reply(OK, &proxy, Kind::A, &[record]);
        assert_eq!(answer(&proxy, Kind::A, &cut[..cut.len() - 1]), Err(ReplyError::Malformed));
        let short = reply(OK, &proxy, Kind::A, &[(SELF, Kind::A, 9, &[192, 0, 2])]);
        assert_eq!(answer(&proxy, Kind::A, &short), Err(ReplyError::Malformed));
        assert_eq!(
            answer(&proxy, Kind::A, b"\x12\x34\x81\x81\0\0\0\0\0\0\0\0"),
            Err(ReplyError::Failed { rcode: 1 })
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), keep in 0usize..40) {
            let proxy = name("proxy.example");
            let start = reply(OK, &proxy, Kind::A, &[(SELF, Kind::CNAME, 9, SELF)]);
            let keep = keep.min(bytes.len());
            bytes[..keep].copy_from_slice(&start[..keep]);
            if let Ok(answer) = answer(&proxy, Kind::A, &bytes) {
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
            let answer = answer(&proxy, Kind::AAAA, &reply(OK, &proxy, Kind::AAAA, &records)).unwrap();
            let expected: Vec<IpAddr> = addresses.iter().map(|&a| a.into()).collect();
            prop_assert_eq!(&answer.addresses[..], &expected[..]);
            prop_assert_eq!(answer.ttl, if expected.is_empty() { 0 } else { ttl });
        }
    }
}
