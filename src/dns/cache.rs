//! Replies of resolvers, kept for as long as their TTLs allow.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::wire::header::Rcode;
use super::wire::message::{Kind, Message, Record};
use super::wire::query::Query;
use crate::siphash::fnv;
use crate::time::Instant;

/// The most seconds that a reply is kept.
const MAX_TTL: u32 = 86_400;
/// The same for a reply that denies something (RFC 2308 section 5).
const MAX_NEGATIVE_TTL: u32 = 10_800;
/// Seconds that a server's failure is kept, so that it is not asked again and again (RFC 9520 section 3.2).
const FAILURE_TTL: u32 = 5;
/// One reply may take 1/8 of the memory.
const MAX_SHARE: usize = 8;

/// The cache. Its key is the question and the client's DNSSEC flags; the oldest replies make room for new ones.
pub struct Cache {
    /// Oldest first.
    replies: Vec<Kept>,
    bytes: usize,
    limit: usize,
}

struct Kept {
    /// Hash of the question.
    hash: u32,
    expires: Instant,
    /// Milliseconds from the last update of the TTLs in the reply until it expires.
    lifetime: u32,
    variant: u8,
    reply: Box<[u8]>,
}

impl Cache {
    /// An empty cache that takes at most `limit` bytes.
    pub const fn new(limit: usize) -> Self {
        Self { replies: Vec::new(), bytes: 0, limit }
    }

    /// Keeps a resolver's reply to the query, whatever its id, unless it must not be cached: if it is truncated, has a
    /// TTL of 0, or denies something without a TTL for the denial.
    pub fn put(&mut self, query: &Query<'_>, reply: &[u8], now: Instant) {
        let Some(message) = Message::parse(reply).filter(|message| query.is_question_of(message)) else {
            return;
        };
        let Some(ttl) = lifetime(&message).filter(|&ttl| ttl > 0) else {
            return;
        };
        let size = size_of::<Kept>() + reply.len();
        if size > self.limit / MAX_SHARE {
            return;
        }
        if let Some(old) = self.find(query) {
            self.remove(old);
        }
        self.expire(now);
        while self.bytes + size > self.limit {
            self.remove(0);
        }
        let (hash, variant) = (hash(query), query.variant());
        let mut reply: Box<[u8]> = reply.into();
        change_ttls(&mut reply, |ttl| ttl.min(MAX_TTL));
        self.bytes += size;
        let lifetime = 1000 * ttl;
        self.replies.push(Kept { hash, expires: now.plus(lifetime), lifetime, variant, reply });
    }

    /// Appends the reply for a client, if there is one, with what is left of its TTLs; for `limit` see
    /// [`Query::relay`].
    pub fn get(&mut self, query: &Query<'_>, limit: usize, out: &mut Vec<u8>, now: Instant) -> bool {
        let Some(found) = self.find(query).and_then(|found| self.replies.get_mut(found)) else {
            return false;
        };
        if !found.is_fresh(now) {
            return false;
        }
        // The age in whole seconds, rounded up, so that no client keeps a record for longer than it may.
        let age = found.lifetime.saturating_sub(found.expires.since(now)).div_ceil(1000);
        if age > 0 {
            change_ttls(&mut found.reply, |ttl| ttl.saturating_sub(age));
            found.lifetime = found.lifetime.saturating_sub(1000 * age);
        }
        query.relay(&found.reply, limit, out)
    }

    /// Forgets what has expired.
    pub fn expire(&mut self, now: Instant) {
        self.replies.retain(|kept| kept.is_fresh(now));
        self.bytes = self.replies.iter().map(Kept::size).sum();
    }

    /// How many replies there are.
    pub const fn count(&self) -> usize {
        self.replies.len()
    }

    fn find(&self, query: &Query<'_>) -> Option<usize> {
        let (hash, variant) = (hash(query), query.variant());
        self.replies.iter().position(|kept| {
            kept.hash == hash
                && kept.variant == variant
                && Message::parse(&kept.reply).is_some_and(|message| query.is_question_of(&message))
        })
    }

    fn remove(&mut self, at: usize) {
        self.bytes -= self.replies.remove(at).size();
    }
}

impl Kept {
    fn is_fresh(&self, now: Instant) -> bool {
        self.expires > now
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.reply.len()
    }
}

/// Hash of name, type and class. It only saves comparisons: the search is linear anyway.
fn hash(query: &Query<'_>) -> u32 {
    fnv(query.question_bytes().iter().map(u8::to_ascii_lowercase))
}

/// Seconds that a reply may be kept; `None` if it has no TTL or must not be cached.
fn lifetime(message: &Message<'_>) -> Option<u32> {
    if message.is_truncated() {
        return None;
    }
    let (mut ttl, mut tells_absence) = (MAX_TTL, false);
    for record in message.records() {
        let record = record?;
        if record.kind != Kind::OPT {
            ttl = ttl.min(ttl_of(&record));
            tells_absence |= record.kind == Kind::SOA;
        }
    }
    let denies = message.rcode() == Rcode::NXDomain as u8 || message.counts()[0] == 0;
    match message.rcode() {
        0 | 3 if denies => tells_absence.then_some(ttl.min(MAX_NEGATIVE_TTL)),
        0 => Some(ttl),
        2 => Some(FAILURE_TTL),
        _ => None,
    }
}

/// The TTL of a record. That of an SOA is for the absence of other records, and limited by its last field (RFC 2308
/// section 5).
fn ttl_of(record: &Record<'_>) -> u32 {
    match record.data.last_chunk() {
        Some(&minimum) if record.kind == Kind::SOA => record.ttl.min(u32::from_be_bytes(minimum)),
        _ => record.ttl,
    }
}

/// Limits all TTLs of a reply to this many seconds.
pub fn limit_ttls(reply: &mut [u8], seconds: u32) {
    change_ttls(reply, |ttl| ttl.min(seconds));
}

/// Applies `change` to the TTL of each record.
fn change_ttls(reply: &mut [u8], change: impl Fn(u32) -> u32) {
    let Some(message) = Message::parse(reply) else {
        return;
    };
    let mut at = message.question_end();
    let count: u32 = message.counts().into_iter().map(u32::from).sum();
    for _ in 0..count {
        let Some(record) = Record::parse(reply, at) else {
            return;
        };
        let (kind, data_at, ttl) = (record.kind, record.data_at, change(ttl_of(&record)));
        at = data_at + record.data.len();
        // The TTL comes before the length of the data. In OPT the field has another meaning.
        if let Some(field) = reply.get_mut(data_at - 6..data_at - 2)
            && kind != Kind::OPT
        {
            field.copy_from_slice(&ttl.to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::wire::fixture::{Fields, SELF, query, reply};
    use proptest::prelude::*;
    use std::format;
    use std::vec;

    const OK: u16 = 0x8180;
    const A: &[u8] = &[192, 0, 2, 1];

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    fn parsed(bytes: &[u8]) -> Query<'_> {
        Query::parse(bytes).unwrap()
    }

    fn ask(name: &str) -> Vec<u8> {
        query(7, 0x0100, name, Kind::A, None)
    }

    /// The TTLs of the cached reply.
    fn get(cache: &mut Cache, bytes: &[u8], now: Instant) -> Option<Vec<u32>> {
        let mut out = b"..".to_vec();
        if !cache.get(&parsed(bytes), 65_535, &mut out, now) {
            assert_eq!(out, b"..");
            return None;
        }
        let message = Message::parse(&out[2..]).unwrap();
        assert!(parsed(bytes).is_answered_by(&out[2..]));
        Some(message.records().map(|record| record.unwrap().ttl).collect())
    }

    fn soa(minimum: u32) -> Vec<u8> {
        [&[0; 18][..], &minimum.to_be_bytes()].concat()
    }

    #[test]
    fn ttls_are_counted_down_until_the_least_is_over() {
        let mut cache = Cache::new(65_536);
        let bytes = ask("www.example");
        let opt: Fields<'_> = (b"\0", Kind::OPT, 77, b"");
        let theirs = reply(
            &bytes,
            OK,
            [&[(SELF, Kind::A, 10, A), (SELF, Kind::A, 4, A)], &[], &[(SELF, Kind::A, 99, A), opt]],
        );
        cache.put(&parsed(&bytes), &theirs, at(500));
        for (now, expected) in [
            (500, Some(vec![10, 4, 99, 77])),
            (501, Some(vec![9, 3, 98, 77])),
            (1500, Some(vec![9, 3, 98, 77])),
            (3600, Some(vec![6, 0, 95, 77])),
            (4499, Some(vec![6, 0, 95, 77])),
            (4500, None),
        ] {
            assert_eq!(get(&mut cache, &ask("WWW.example"), at(now)), expected, "{now} ms");
        }
        assert_eq!(get(&mut cache, &ask("www.example"), at(1 << 31)), None);
        cache.expire(at(4500));
        assert_eq!((cache.count(), cache.bytes), (0, 0));
    }

    #[test]
    fn questions_are_told_apart() {
        let mut cache = Cache::new(65_536);
        let bytes = ask("www.example");
        cache.put(&parsed(&bytes), &reply(&bytes, OK, [&[(SELF, Kind::A, 9, A)], &[], &[]]), at(0));
        for other in [
            query(7, 0x0100, "www.example", Kind::AAAA, None),
            query(7, 0x0110, "www.example", Kind::A, None),
            query(7, 0x0100, "www.example", Kind::A, Some((512, 0, true))),
            ask("ww.example"),
        ] {
            assert_eq!(get(&mut cache, &other, at(0)), None);
        }
        let plain = query(9, 0, "Www.Example", Kind::A, Some((512, 0, false)));
        assert_eq!(get(&mut cache, &plain, at(0)), Some(vec![9, 0]), "with an OPT of ours");
        let https = query(7, 0x0100, "www.example", Kind(0x41), None);
        cache.put(&parsed(&https), &reply(&https, OK, [&[(SELF, Kind(0x41), 9, b"x")], &[], &[]]), at(0));
        assert_eq!(get(&mut cache, &query(7, 0x0100, "www.example", Kind(0x61), None), at(0)), None);
        cache.put(&parsed(&bytes), &reply(&https, OK, [&[], &[], &[]]), at(0));
        assert_eq!(cache.count(), 2);
    }

    #[test]
    fn absences_are_kept_as_long_as_the_zone_says() {
        let bytes = ask("www.example");
        let kept = |flags: u16, sections: [&[Fields<'_>]; 3]| {
            let mut cache = Cache::new(65_536);
            cache.put(&parsed(&bytes), &reply(&bytes, flags, sections), at(0));
            let ttls = get(&mut cache, &bytes, at(0));
            let last = (0..20_000).take_while(|s| get(&mut cache, &bytes, at(1000 * s)).is_some()).count();
            ttls.map(|ttls| (ttls, last))
        };
        let zone = soa(30);
        for flags in [OK, OK | 3] {
            assert_eq!(kept(flags, [&[], &[(b"\0", Kind::SOA, 50, &zone)], &[]]), Some((vec![30], 30)));
            assert_eq!(kept(flags, [&[], &[(b"\0", Kind::SOA, 20, &zone)], &[]]), Some((vec![20], 20)));
            assert_eq!(kept(flags, [&[], &[], &[]]), None);
            let alias: Fields<'_> = (SELF, Kind::CNAME, 9, b"\x01x\0");
            assert_eq!(
                kept(flags, [&[alias], &[(b"\0", Kind::SOA, 50, &zone)], &[]]),
                Some((vec![9, 30], 9))
            );
        }
        assert_eq!(kept(OK | 3, [&[(SELF, Kind::CNAME, 9, b"\x01x\0")], &[], &[]]), None);
        assert_eq!(kept(OK, [&[], &[(b"\0", Kind::SOA, 99_999, &soa(99_999))], &[]]).unwrap().1, 10_800);
        assert_eq!(kept(OK | 2, [&[], &[], &[]]), Some((vec![], 5)));
        assert_eq!(kept(OK | 5, [&[(SELF, Kind::A, 9, A)], &[], &[]]), None, "refused");
        assert_eq!(kept(OK | 0x0200, [&[(SELF, Kind::A, 9, A)], &[], &[]]), None, "truncated");
        assert_eq!(kept(OK, [&[(SELF, Kind::A, 0, A)], &[], &[]]), None);
        assert_eq!(kept(OK, [&[(SELF, Kind::A, 1 << 30, A)], &[], &[]]).unwrap().0, [86_400]);
    }

    #[test]
    fn the_oldest_make_way() {
        let mut cache = Cache::new(4096);
        let put = |cache: &mut Cache, nth: u64, ttl: u32| {
            let bytes = ask(&format!("{nth}.example"));
            cache.put(&parsed(&bytes), &reply(&bytes, OK, [&[(SELF, Kind::A, ttl, A)], &[], &[]]), at(nth));
        };
        for nth in 100..999 {
            put(&mut cache, nth, 9);
            assert!(cache.bytes <= 4096);
        }
        let count = cache.count() as u64;
        assert!(count > 40, "{count}");
        assert!(get(&mut cache, &ask(&format!("{}.example", 999 - count)), at(999)).is_some());
        assert!(get(&mut cache, &ask(&format!("{}.example", 998 - count)), at(999)).is_none());
        put(&mut cache, 998, 5);
        assert_eq!((cache.count() as u64, cache.bytes), (count, cache.replies.iter().map(Kept::size).sum()));
        let large = [0; 600];
        let bytes = ask("large.example");
        cache.put(&parsed(&bytes), &reply(&bytes, OK, [&[(SELF, Kind::A, 9, &large)], &[], &[]]), at(0));
        assert!(get(&mut cache, &bytes, at(0)).is_none());
        put(&mut cache, 99_000, 9);
        assert_eq!(cache.count(), 1, "what has expired goes first");
    }

    proptest! {
        /// No client is told to keep a record beyond the moment until which the resolver let us.
        #[test]
        fn nothing_is_served_for_too_long(
            steps in proptest::collection::vec((0u8..5, 0u32..20, 0u32..20, 0u64..5000), 0..60),
        ) {
            let mut cache = Cache::new(1024);
            let mut now = 0;
            let mut until = [[0; 2]; 5];
            for (nth, first, second, wait) in steps {
                now += wait;
                let bytes = ask(&format!("{nth}.example"));
                let untils = &mut until[usize::from(nth)];
                match get(&mut cache, &bytes, at(now)) {
                    Some(ttls) => for (ttl, until) in ttls.iter().zip(untils) {
                        prop_assert!(now < *until && now + 1000 * u64::from(*ttl) <= *until);
                    },
                    None => {
                        let records = [(SELF, Kind::A, first, A), (SELF, Kind::A, second, A)];
                        cache.put(&parsed(&bytes), &reply(&bytes, OK, [&records, &[], &[]]), at(now));
                        *untils = [first, second].map(|ttl| now + 1000 * u64::from(ttl));
                    }
                }
            }
        }
    }
}
