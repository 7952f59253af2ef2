//! Which proxy is asked next, and which ones rest.
//!
//! # Theory of operation
//! The proxies are asked in the order of the configuration, each at one address after the other, the one that worked
//! last first. An answer, whatever its status, is final: only a proxy that cannot be reached, hangs up, sends garbage
//! or stays silent makes the next one worth a try.
//!
//! A proxy that cannot be reached **rests**: for 10 s it is asked after all others, so that a dead first proxy costs
//! its time-out once and not once per connection. After that, one connection tries it again; the others go on without
//! it until it has answered.
//!
//! Silence is ambiguous: the proxy may hang, or wait for a target that drops packets. If it has answered anybody
//! since it was asked, it is the target: the attempt times out, and the proxy is as good as before. If not, the proxy
//! rests and the next one is asked. Otherwise, a port scan would send everybody to another proxy.

use alloc::vec;
use alloc::vec::Vec;
use core::net::IpAddr;

use super::Failure;
use crate::time::Instant;

/// How long a proxy rests, in milliseconds.
const REST: u32 = 10_000;

/// What connections have taught about each proxy. A proxy is named by its index in the configuration.
#[derive(Debug)]
pub struct Choice {
    proxies: Vec<Proxy>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Proxy {
    /// When its rest began; `None`: it is awake.
    resting_since: Option<Instant>,
    /// How many times it has answered, whatever the status. Wraps.
    answers: u32,
    /// The address that was connected last.
    good_address: Option<IpAddr>,
}

/// One connection's way through the proxies.
#[derive(Debug)]
pub struct Attempt {
    /// How many turns have been given: first each proxy's, then those of `resting`.
    turns: usize,
    /// The proxies that were passed over.
    resting: Vec<usize>,
    /// The most telling failure so far.
    failure: Failure,
    /// No other proxy is worth a try.
    is_over: bool,
}

/// A proxy that is being asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Which one.
    pub index: usize,
    /// [`Proxy::answers`] when it was asked.
    answers: u32,
}

impl Choice {
    /// For `count` proxies of which nothing is known.
    pub fn new(count: usize) -> Self {
        Self { proxies: vec![Proxy::default(); count] }
    }

    /// Takes over what `old` knows of the proxy that has not moved, but had the index `old_index` there.
    pub fn inherit(&mut self, index: usize, old: &Self, old_index: usize) {
        if let (Some(new), Some(old)) = (self.proxies.get_mut(index), old.proxies.get(old_index)) {
            *new = Proxy { answers: new.answers, ..*old };
        }
    }

    /// Which proxy to ask next, at the time `now`. `None`: the attempt has failed, with [`Attempt::failure`].
    pub fn next(&mut self, attempt: &mut Attempt, now: Instant) -> Option<Asked> {
        if attempt.is_over {
            return None;
        }
        while let Some(proxy) = self.proxies.get_mut(attempt.turns) {
            let index = attempt.turns;
            attempt.turns += 1;
            if !proxy.rests(now) {
                return Some(Asked { index, answers: proxy.answers });
            }
            attempt.resting.push(index);
        }
        let index = *attempt.resting.get(attempt.turns - self.proxies.len())?;
        attempt.turns += 1;
        Some(Asked { index, answers: self.proxies.get(index)?.answers })
    }

    /// The proxy has answered, whatever the status.
    pub fn answered(&mut self, index: usize) {
        if let Some(proxy) = self.proxies.get_mut(index) {
            proxy.answers = proxy.answers.wrapping_add(1);
            proxy.resting_since = None;
        }
    }

    /// The proxy has opened no tunnel.
    pub fn failed(&mut self, attempt: &mut Attempt, asked: Asked, failure: Failure, now: Instant) {
        attempt.failure = attempt.failure.max(failure);
        let Some(proxy) = self.proxies.get_mut(asked.index) else { return };
        match failure {
            Failure::TimedOut if proxy.answers != asked.answers => attempt.is_over = true,
            Failure::Unreachable | Failure::TimedOut => proxy.resting_since = Some(now),
            // Another proxy may have a place, and has other ports.
            Failure::Closed | Failure::BadReply | Failure::Exhausted => {}
            Failure::Refused { .. } | Failure::BadTarget => attempt.is_over = true,
        }
    }

    /// The proxy has been connected at `address`.
    pub fn connected(&mut self, index: usize, address: IpAddr) {
        if let Some(proxy) = self.proxies.get_mut(index) {
            proxy.good_address = Some(address);
        }
    }

    /// Which of the proxy's `addresses`, by index, to connect first; the others follow in turn.
    pub fn first_address(&self, index: usize, addresses: &[IpAddr]) -> usize {
        let good = self.good_address(index);
        addresses.iter().position(|&address| Some(address) == good).unwrap_or(0)
    }

    /// The address at which the proxy was connected last.
    pub fn good_address(&self, index: usize) -> Option<IpAddr> {
        self.proxies.get(index)?.good_address
    }

    /// Whether the proxy has not answered since it was sent to rest.
    pub fn is_resting(&self, index: usize) -> bool {
        self.proxies.get(index).is_some_and(|proxy| proxy.resting_since.is_some())
    }
}

impl Proxy {
    /// Whether to ask it after all others. The first to learn that its rest is over prolongs it for the others.
    fn rests(&mut self, now: Instant) -> bool {
        match self.resting_since {
            None => false,
            Some(since) if now.since(since) < REST => true,
            Some(_) => {
                self.resting_since = Some(now);
                false
            }
        }
    }
}

impl Attempt {
    /// Why it has failed: the answer of the one that answered, or the most telling failure of all.
    pub const fn failure(&self) -> Failure {
        self.failure
    }
}

impl Default for Attempt {
    /// An attempt that has asked nobody yet.
    fn default() -> Self {
        Self { turns: 0, resting: Vec::new(), failure: Failure::Unreachable, is_over: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSED: Failure = Failure::Refused { status: 403 };

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    /// Whom an attempt asks at the time `now` if each proxy fails as `failures` says, and its failure.
    fn attempt(choice: &mut Choice, now: Instant, failures: &[Failure]) -> (Vec<usize>, Failure) {
        let (mut attempt, mut order) = (Attempt::default(), vec![]);
        while let Some(asked) = choice.next(&mut attempt, now) {
            order.push(asked.index);
            choice.failed(&mut attempt, asked, failures[asked.index], now);
        }
        (order, attempt.failure())
    }

    /// Whom an attempt asks first.
    fn first(choice: &mut Choice, now: Instant) -> usize {
        choice.next(&mut Attempt::default(), now).unwrap().index
    }

    /// A choice of which the first of two proxies was unreachable at the time 0.
    fn first_rests() -> Choice {
        let mut choice = Choice::new(2);
        let (order, failure) = attempt(&mut choice, at(0), &[Failure::Unreachable, REFUSED]);
        assert_eq!((order, failure), (vec![0, 1], REFUSED));
        choice
    }

    #[test]
    fn all_are_asked_in_the_order_of_the_configuration() {
        let mut choice = Choice::new(3);
        assert_eq!(attempt(&mut choice, at(0), &[Failure::BadReply; 3]), (vec![0, 1, 2], Failure::BadReply));
        assert_eq!(attempt(&mut Choice::new(0), at(0), &[]), (vec![], Failure::Unreachable));
    }

    #[test]
    fn what_says_most_about_the_target_wins() {
        use Failure::{BadReply, TimedOut, Unreachable};
        for failures in [[Unreachable, TimedOut, BadReply], [TimedOut, BadReply, Unreachable]] {
            assert_eq!(attempt(&mut Choice::new(3), at(0), &failures), (vec![0, 1, 2], TimedOut));
        }
    }

    #[test]
    fn an_answer_is_final() {
        for failure in [REFUSED, Failure::BadTarget] {
            let mut choice = Choice::new(2);
            assert_eq!(attempt(&mut choice, at(0), &[failure; 2]), (vec![0], failure));
            assert!(!choice.is_resting(0));
        }
    }

    /// Nobody is to blame for it, and the next one has ports of its own.
    #[test]
    fn exhaustion_is_nobodys_fault() {
        use Failure::{Exhausted, Unreachable};
        let mut choice = Choice::new(2);
        assert_eq!(attempt(&mut choice, at(0), &[Exhausted, Unreachable]), (vec![0, 1], Exhausted));
        assert!(!choice.is_resting(0) && choice.is_resting(1));
    }

    #[test]
    fn only_unreachable_and_silent_proxies_rest() {
        let rests = |failure| {
            let mut choice = Choice::new(1);
            attempt(&mut choice, at(0), &[failure]);
            choice.is_resting(0)
        };
        assert!(rests(Failure::Unreachable) && rests(Failure::TimedOut));
        assert!(!rests(Failure::BadReply) && !rests(Failure::Closed));
    }

    #[test]
    fn who_rests_is_the_last_resort_for_ten_seconds() {
        let mut choice = first_rests();
        assert!(choice.is_resting(0) && !choice.is_resting(1));
        let broken = [Failure::BadReply; 2];
        assert_eq!(attempt(&mut choice, at(9_999), &broken), (vec![1, 0], Failure::BadReply));
        assert_eq!(attempt(&mut choice, at(10_000), &broken), (vec![0, 1], Failure::BadReply));
    }

    #[test]
    fn those_who_rest_are_asked_in_order_too() {
        let mut choice = Choice::new(3);
        attempt(&mut choice, at(0), &[Failure::Unreachable, Failure::BadReply, Failure::Unreachable]);
        assert_eq!(attempt(&mut choice, at(1), &[Failure::BadReply; 3]).0, [1, 0, 2]);
    }

    #[test]
    fn one_connection_tries_who_has_rested_and_the_others_go_on_without_it() {
        let mut choice = first_rests();
        assert_eq!(first(&mut choice, at(10_000)), 0);
        assert_eq!(first(&mut choice, at(10_000)), 1);
        assert_eq!(first(&mut choice, at(19_999)), 1);
        assert_eq!(first(&mut choice, at(20_000)), 0);
    }

    #[test]
    fn an_answer_wakes() {
        let mut choice = first_rests();
        choice.answered(0);
        assert!(!choice.is_resting(0));
        assert_eq!((first(&mut choice, at(1)), first(&mut choice, at(1))), (0, 0));
    }

    #[test]
    fn silence_is_the_proxys_fault_unless_it_answers_others_meanwhile() {
        let mut choice = Choice::new(2);
        choice.answered(0); // before
        let mut silent = Attempt::default();
        let asked = choice.next(&mut silent, at(0)).unwrap();
        choice.failed(&mut silent, asked, Failure::TimedOut, at(9));
        assert!(choice.is_resting(0));
        assert_eq!(choice.next(&mut silent, at(9)).unwrap().index, 1);

        choice.answered(0);
        let mut silent = Attempt::default();
        let asked = choice.next(&mut silent, at(10)).unwrap();
        choice.answered(0); // meanwhile
        choice.failed(&mut silent, asked, Failure::TimedOut, at(19));
        assert!(!choice.is_resting(0));
        assert_eq!(choice.next(&mut silent, at(19)), None);
        assert_eq!(silent.failure(), Failure::TimedOut);
    }

    #[test]
    fn the_good_address_comes_first() {
        let [a, b, c] = [1, 2, 3].map(|last| IpAddr::from([192, 0, 2, last]));
        let mut choice = Choice::new(2);
        assert_eq!(choice.first_address(0, &[a, b]), 0);
        choice.connected(0, b);
        assert_eq!(choice.first_address(0, &[a, b, c]), 1);
        assert_eq!(choice.first_address(0, &[c, a]), 0, "it is not among them any more");
        assert_eq!(choice.first_address(1, &[a, b]), 0);
    }

    #[test]
    fn a_reload_keeps_rest_and_good_address() {
        let mut old = first_rests();
        let address = IpAddr::from([192, 0, 2, 1]);
        old.connected(0, address);
        let mut new = Choice::new(3);
        new.inherit(1, &old, 0);
        assert!(new.is_resting(1) && !new.is_resting(0));
        assert_eq!(new.first_address(1, &[[192, 0, 2, 9].into(), address]), 1);
        assert_eq!(attempt(&mut new, at(9_999), &[Failure::BadReply; 3]).0, [0, 2, 1]);
        assert_eq!(attempt(&mut new, at(10_000), &[Failure::BadReply; 3]).0, [0, 1, 2]);
    }
}
