//! Queries that a resolver has not answered yet, and the clients that wait for them.

use alloc::{vec, vec::Vec};

use super::wire::query::Query;
use crate::time::Instant;

/// The queries in flight. Replies may come in any order (RFC 7766 section 7), and equal questions share one query.
pub struct Pending {
    queries: Vec<InFlight>,
    limit: u16,
    waiters: u16,
}

struct InFlight {
    /// The query as it was sent, with an id of its own.
    message: Vec<u8>,
    id: u16,
    since: Instant,
    waiters: Vec<u32>,
}

/// What happens with a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Send [`Query::encode`] with this id.
    New(u16),
    /// The same question is in flight.
    Joined,
    /// Too many questions are in flight, or too many clients wait for them.
    Full,
}

impl Pending {
    /// No queries in flight; there will be at most `limit` queries for at most `waiters` clients in all.
    pub const fn new(limit: u16, waiters: u16) -> Self {
        Self { queries: Vec::new(), limit, waiters }
    }

    /// Asks a question for `waiter`, a number of the caller's. `id` must be random; the next free one is taken.
    pub fn ask(&mut self, query: &Query<'_>, waiter: u32, mut id: u16, now: Instant) -> Ask {
        while self.queries.iter().any(|other| other.id == id) {
            id = id.wrapping_add(1);
        }
        if self.queries.iter().map(|other| other.waiters.len()).sum::<usize>() >= self.waiters.into() {
            return Ask::Full;
        }
        let mut message = Vec::new();
        query.encode(id, &mut message);
        let is_full = self.queries.len() >= self.limit.into();
        // Apart from the id in front, equal questions are equal bytes.
        match self.queries.iter_mut().find(|other| other.message.get(2..) == message.get(2..)) {
            Some(same) => {
                same.waiters.push(waiter);
                Ask::Joined
            }
            None if is_full => Ask::Full,
            None => {
                self.queries.push(InFlight { message, id, since: now, waiters: vec![waiter] });
                Ask::New(id)
            }
        }
    }

    /// Returns the waiters that a reply is for. `None` if it comes too late, or answers something that was not asked.
    pub fn answer(&mut self, reply: &[u8]) -> Option<Vec<u32>> {
        self.take(|query| Query::parse(&query.message).is_ok_and(|query| query.is_answered_by(reply)))
    }

    /// Removes the query that was sent as `message`, and returns its waiters.
    pub fn give_up(&mut self, message: &[u8]) -> Option<Vec<u32>> {
        self.take(|query| query.message == message)
    }

    /// Removes a query that has waited for `patience` milliseconds, and returns its waiters; to be called until `None`.
    pub fn expire(&mut self, now: Instant, patience: u32) -> Option<Vec<u32>> {
        self.take(|query| now.since(query.since) >= patience)
    }

    fn take(&mut self, is_over: impl FnMut(&InFlight) -> bool) -> Option<Vec<u32>> {
        let at = self.queries.iter().position(is_over)?;
        Some(self.queries.swap_remove(at).waiters)
    }

    /// Appends all queries, each after its length, to be sent on a new connection (RFC 7766 section 6.2.4: queries that
    /// a broken connection leaves unanswered are sent again).
    pub fn encode_all(&self, out: &mut Vec<u8>) {
        for query in &self.queries {
            out.extend_from_slice(&(query.message.len() as u16).to_be_bytes());
            out.extend_from_slice(&query.message);
        }
    }

    /// Whether no query is in flight.
    pub const fn is_empty(&self) -> bool {
        self.queries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::message::Kind;
    use super::*;
    use crate::dns::wire::fixture::{query, reply};

    const OK: u16 = 0x8180;

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    fn ask(pending: &mut Pending, bytes: &[u8], waiter: u32, id: u16) -> Ask {
        pending.ask(&Query::parse(bytes).unwrap(), waiter, id, at(u64::from(waiter)))
    }

    fn answer(id: u16, name: &str) -> Vec<u8> {
        reply(&query(id, 0, name, Kind::A, None), OK, [&[], &[], &[]])
    }

    #[test]
    fn equal_questions_wait_for_one_answer() {
        let mut pending = Pending::new(9, 9);
        let [a, same, b] =
            ["a.example", "A.Example", "b.example"].map(|name| query(7, 0, name, Kind::A, None));
        assert_eq!(ask(&mut pending, &a, 1, 5), Ask::New(5));
        assert_eq!(ask(&mut pending, &b, 2, 5), Ask::New(6));
        assert_eq!(ask(&mut pending, &same, 3, 9), Ask::Joined);
        let secure = query(7, 0, "a.example", Kind::A, Some((512, 0, true)));
        assert_eq!(ask(&mut pending, &secure, 4, u16::MAX), Ask::New(u16::MAX));
        let aaaa = query(7, 0, "a.example", Kind::AAAA, None);
        assert_eq!(ask(&mut pending, &aaaa, 5, u16::MAX), Ask::New(0));

        assert_eq!(pending.answer(&answer(6, "a.example")), None, "an id of another question");
        assert_eq!(pending.answer(&answer(7, "a.example")), None);
        assert_eq!(pending.answer(&a), None, "no reply");
        assert_eq!(pending.answer(&answer(6, "b.EXAMPLE")), Some(vec![2]));
        assert_eq!(pending.answer(&answer(6, "b.example")), None, "twice");
        assert_eq!(pending.answer(&answer(5, "a.example")), Some(vec![1, 3]));
        assert_eq!(pending.answer(b"\xff\xff\x80\x01\0\0\0\0\0\0\0\0"), Some(vec![4]));
        assert_eq!(pending.queries.len(), 1);
    }

    #[test]
    fn queries_and_waiters_are_bounded() {
        let mut pending = Pending::new(2, 5);
        let [a, b, c] = ["a", "b", "c"].map(|name| query(7, 0, name, Kind::A, None));
        for (bytes, expected) in [
            (&a, Ask::New(1)),
            (&a, Ask::Joined),
            (&b, Ask::New(2)),
            (&c, Ask::Full),
            (&b, Ask::Joined),
            (&a, Ask::Joined),
            (&a, Ask::Full),
        ] {
            assert_eq!(ask(&mut pending, bytes, 0, 1), expected);
        }
        assert_eq!(pending.answer(&answer(2, "b")).map(|waiters| waiters.len()), Some(2));
        assert_eq!(ask(&mut pending, &c, 0, 1), Ask::New(2));
    }

    #[test]
    fn patience_ends_from_the_first_who_waits() {
        let mut pending = Pending::new(2, 9);
        let [a, b] = ["a", "b"].map(|name| query(7, 0, name, Kind::A, None));
        ask(&mut pending, &a, 100, 1);
        ask(&mut pending, &b, 200, 1);
        ask(&mut pending, &a, 300, 1);
        assert_eq!(pending.expire(at(1099), 1000), None);
        assert_eq!(pending.expire(at(1200), 1000), Some(vec![100, 300]));
        assert_eq!(pending.expire(at(1200), 1000), Some(vec![200]));
        assert_eq!(pending.expire(at(1200), 1000), None);
    }

    #[test]
    fn what_nobody_answers_is_given_up() {
        let mut pending = Pending::new(2, 9);
        let [a, b] = ["a", "b"].map(|name| query(7, 0, name, Kind::A, None));
        for (bytes, waiter, id) in [(&a, 1, 5), (&b, 2, 6), (&a, 3, 9)] {
            ask(&mut pending, bytes, waiter, id);
        }
        let sent = |id, name| query(id, 0x0120, name, Kind::A, None);
        assert_eq!(pending.give_up(&sent(6, "a")), None, "an id of another question");
        assert_eq!(pending.give_up(&sent(5, "a")), Some(vec![1, 3]));
        assert_eq!(pending.give_up(&sent(5, "a")), None, "twice");
        assert_eq!(pending.give_up(&sent(6, "b")), Some(vec![2]));
    }

    #[test]
    fn a_fresh_connection_takes_all_up_again() {
        let mut pending = Pending::new(2, 9);
        let (a, b) = (query(7, 0x0120, "a", Kind::A, None), query(8, 0x0120, "b", Kind::A, None));
        ask(&mut pending, &a, 1, 7);
        ask(&mut pending, &b, 2, 8);
        let mut out = vec![];
        pending.encode_all(&mut out);
        assert_eq!(out, [&[0, a.len() as u8][..], &a, &[0, b.len() as u8], &b].concat());
    }
}
