use std::format;
use std::vec;

use proptest::prelude::*;

use super::*;
use crate::upstream::health::{HOLD, LONGEST_REST};
use Failure::{BadReply, Closed, Credentials, TimedOut, Unanswered, Unreachable, UplinkDown};

const REFUSED: Failure = Failure::Refused { status: 403 };

fn at(ms: u64) -> Instant {
    Instant::from_millis(ms)
}

fn target(port: u16) -> Target<'static> {
    Target::Name("a.example", port)
}

fn choice_with(count: usize, policy: Policy) -> Choice {
    Choice::new((0..count).map(|index| (format!("p{index}").into(), false)), policy)
}

fn choice(count: usize) -> Choice {
    choice_with(count, Policy::default())
}

/// Whom an attempt for this target asks at the time `now` if each proxy fails as `failures` says, and its failure.
fn attempt_for(choice: &mut Choice, port: u16, now: Instant, failures: &[Failure]) -> (Vec<usize>, Failure) {
    let (mut attempt, mut order) = (Attempt::new(target(port), None), vec![]);
    while let Some(asked) = choice.next(&mut attempt, now) {
        order.push(asked.index);
        choice.failed(&mut attempt, asked, failures[asked.index], now);
    }
    (order, attempt.failure())
}

fn attempt(choice: &mut Choice, now: Instant, failures: &[Failure]) -> (Vec<usize>, Failure) {
    attempt_for(choice, 80, now, failures)
}

/// Whom an attempt asks first.
fn first(choice: &mut Choice, now: Instant) -> usize {
    choice.next(&mut Attempt::new(target(1), None), now).unwrap().index
}

/// A choice of which the first of two proxies was unreachable at the time 0.
fn first_rests() -> Choice {
    let mut choice = choice(2);
    let (order, failure) = attempt(&mut choice, at(0), &[Unreachable, REFUSED]);
    assert_eq!((order, failure), (vec![0, 1], REFUSED));
    choice
}

fn history(choice: &mut Choice) -> Vec<(Rc<str>, ChangeKind)> {
    choice.history().iter().map(|change| (Rc::clone(&change.upstream), change.kind)).collect()
}

#[test]
fn those_whose_uplink_is_up_are_asked_before_the_others() {
    let mut choice = choice_with(4, Policy { pin_fallback: true, ..Policy::default() });
    assert!(choice.prefer(&|index| index >= 2) && !choice.prefer(&|index| index >= 2));
    let order = |choice: &mut Choice, now| attempt(choice, now, &[UplinkDown; 4]).0;
    assert_eq!(order(&mut choice, at(0)), [2, 3, 0, 1]);
    choice.choose(Some("p1"), at(0));
    assert_eq!(order(&mut choice, at(0)), [1, 2, 3, 0], "whoever is chosen comes first");
    choice.choose(None, at(0));
    attempt(&mut choice, at(1), &[REFUSED, REFUSED, Unreachable, REFUSED]);
    assert_eq!(order(&mut choice, at(2)), [3, 0, 1, 2], "one that rests comes last");
    let mut new = choice_with(4, Policy::default());
    new.prefer(&|index| index == 1);
    new.inherit_proxy(1, &choice, 1);
    assert!(new.is_preferred(1), "by its new configuration");
    assert!(new.prefer(&|_| false));
    assert_eq!(first(&mut new, at(3)), 0, "the usual order");
}

#[test]
fn all_are_asked_in_the_order_of_the_configuration() {
    assert_eq!(attempt(&mut choice(3), at(0), &[BadReply; 3]), (vec![0, 1, 2], BadReply));
    assert_eq!(attempt(&mut choice(0), at(0), &[]), (vec![], Unreachable));
    assert_eq!(attempt(&mut choice(64), at(0), &[BadReply; 64]).0, (0..64).collect::<Vec<_>>());
}

#[test]
fn what_says_most_about_the_target_wins() {
    for failures in [[Unreachable, TimedOut, BadReply], [TimedOut, BadReply, Unreachable]] {
        assert_eq!(attempt(&mut choice(3), at(0), &failures), (vec![0, 1, 2], TimedOut));
    }
}

#[test]
fn an_answer_is_final() {
    for failure in [REFUSED, Failure::BadTarget] {
        let mut choice = choice(2);
        assert_eq!(attempt(&mut choice, at(0), &[failure; 2]), (vec![0], failure));
        assert!(!choice.is_resting(0));
    }
}

/// Nobody is to blame for it, and the next one has ports of its own.
#[test]
fn exhaustion_is_nobodys_fault() {
    use Failure::Exhausted;
    let mut choice = choice(2);
    assert_eq!(attempt(&mut choice, at(0), &[Exhausted, Unreachable]), (vec![0, 1], Exhausted));
    assert!(!choice.is_resting(0) && choice.is_resting(1));
}

#[test]
fn who_fails_by_its_own_fault_rests_at_once() {
    for failure in [Unreachable, Unanswered, Credentials, TimedOut, BadReply, Closed] {
        let mut choice = choice(2);
        assert_eq!(attempt(&mut choice, at(0), &[failure, REFUSED]), (vec![0, 1], REFUSED));
        assert!(choice.is_resting(0), "{failure:?}");
        assert_eq!(history(&mut choice), [("p0".into(), ChangeKind::Rests(failure))]);
    }
}

/// A choice of one proxy that is sent credentials.
fn with_credentials() -> Choice {
    Choice::new([("p0".into(), true)].into_iter(), Policy::default())
}

#[test]
fn credentials_that_were_refused_are_sent_once_a_rest() {
    let mut choice = with_credentials();
    let asked = |choice: &mut Choice, now: u64| {
        let (order, failure) = attempt_for(choice, now as u16, at(now), &[Credentials]);
        assert_eq!(failure, Credentials);
        order.len()
    };
    let times =
        [0, 1, 9_999, 10_000, 10_001, 29_999, 30_000, 69_999, 70_000].map(|now| asked(&mut choice, now));
    assert_eq!(times, [1, 0, 0, 1, 0, 0, 1, 0, 1]);
    // A connect says nothing of them.
    let confirmed = choice.ask(0).unwrap();
    choice.confirmed(confirmed, Ok(()), target(0), at(200_003));
    assert_eq!([200_004, 200_005].map(|now| asked(&mut choice, now)), [1, 0]);
    // A 4xx may come before anybody has looked at them.
    choice.answered(0, 403, at(300_000));
    assert_eq!([300_001, 300_002].map(|now| asked(&mut choice, now)), [1, 0]);
    // They are right now: what is refused may be the target's, as squid says 407 to those who may not go there.
    choice.answered(0, 200, at(400_000));
    assert_eq!([500_000, 500_001, 500_002, 500_003].map(|now| asked(&mut choice, now)), [1; 4]);
}

#[test]
fn others_are_asked_while_credentials_are_not_sent() {
    let mut choice = Choice::new([("p0".into(), true), ("p1".into(), false)].into_iter(), Policy::default());
    assert_eq!(attempt(&mut choice, at(0), &[Credentials, Unreachable]), (vec![0, 1], Credentials));
    assert_eq!(attempt(&mut choice, at(1), &[Credentials, Unreachable]), (vec![1], Credentials));
}

#[test]
fn others_wait_a_moment_for_what_is_said_to_credentials() {
    let waits = |choice: &mut Choice, times: [u64; 4]| {
        times.map(|now| {
            let mut attempt = Attempt::new(target(1), None);
            let asked = choice.next(&mut attempt, at(now));
            assert!(asked.is_none() || !attempt.must_wait());
            attempt.must_wait()
        })
    };
    let mut choice = with_credentials();
    assert_eq!(waits(&mut choice, [5, 5, 2_004, 2_005]), [false, true, true, false]);
    choice.answered(0, 200, at(3_000));
    assert_eq!(waits(&mut choice, [3_001, 3_002, 3_003, 3_004]), [false; 4]);
    // One goes on every two seconds.
    let mut slow = with_credentials();
    assert_eq!(waits(&mut slow, [0, 2_000, 2_001, 3_999]), [false, false, true, true]);
    assert_eq!(waits(&mut slow, [4_000, 4_001, 5_999, 6_000]), [false, true, true, false]);
    attempt(&mut slow, at(20_000), &[Credentials]);
    assert_eq!(waits(&mut slow, [20_001, 20_002, 20_003, 20_004]), [false; 4], "all is said");
    assert_eq!(waits(&mut self::choice(1), [1, 2, 3, 4]), [false; 4]);
    // Whoever fails for another reason has nothing to tell.
    let mut dead = with_credentials();
    assert_eq!([1, 2, 3].map(|now| attempt(&mut dead, at(now), &[Unreachable]).0.len()), [1; 3]);
}

#[test]
fn who_only_connects_does_not_wait_but_its_requests_do() {
    let connects = |choice: &mut Choice, now| {
        choice.next(&mut Attempt::new(target(1), None).quiet(0), at(now)).is_some()
    };
    use Admission::{Denied, Granted, Later};
    let mut choice = with_credentials();
    assert_eq!([0, 1, 2].map(|now| connects(&mut choice, now)), [true; 3]);
    assert_eq!([3, 4].map(|now| choice.admit(0, false, at(now))), [Granted, Later]);
    assert!(connects(&mut choice, 5));
    choice.undecided(0);
    assert_eq!([6, 7].map(|now| choice.admit(0, false, at(now))), [Granted, Later]);
    choice.blamed(0, Credentials, at(8));
    assert!(!connects(&mut choice, 9) && choice.admit(0, false, at(9)) == Denied);
    // One request a rest tells.
    assert!([10_008, 10_009].map(|now| connects(&mut choice, now)) == [true; 2]);
    assert_eq!([10_010, 10_011].map(|now| choice.admit(0, false, at(now))), [Granted, Denied]);
    assert!(!connects(&mut choice, 10_012));
    choice.answered(0, 200, at(10_013));
    assert_eq!([10_014, 10_015].map(|now| choice.admit(0, false, at(now))), [Granted; 2]);
}

#[test]
fn without_a_route_nobody_is_to_blame() {
    let mut choice = choice(2);
    assert_eq!(attempt(&mut choice, at(0), &[UplinkDown; 2]), (vec![0, 1], UplinkDown));
    assert!(!choice.is_resting(0) && !choice.is_resting(1));
    assert_eq!(choice.state(0), None);
    choice.answered(0, 200, at(1));
    assert_eq!(choice.state(0), Some(State::Ok));
    let expected =
        [("p0", ChangeKind::UplinkDown), ("p1", ChangeKind::UplinkDown), ("p0", ChangeKind::UplinkUp)];
    assert_eq!(history(&mut choice), expected.map(|(name, what)| (name.into(), what)));
}

#[test]
fn who_rests_is_the_last_resort() {
    let mut choice = first_rests();
    assert!(choice.is_resting(0) && !choice.is_resting(1));
    assert_eq!(attempt(&mut choice, at(9_999), &[REFUSED; 2]).0, [1]);
    assert_eq!(attempt(&mut choice, at(10_000), &[Unreachable; 2]).0, [1, 0], "also when its rest is over");
}

#[test]
fn those_who_rest_are_asked_in_order_too() {
    let mut choice = choice(3);
    attempt(&mut choice, at(0), &[Unreachable, REFUSED, Unreachable]);
    attempt(&mut choice, at(0), &[Unreachable, Unreachable, Unreachable]);
    assert_eq!(attempt(&mut choice, at(1), &[Unreachable; 3]).0, [0, 1, 2]);
}

#[test]
fn a_confirmation_and_thirty_seconds_bring_it_back() {
    let mut choice = first_rests();
    assert_eq!(choice.confirm(at(20_000)), None, "nobody dials");
    assert_eq!(first(&mut choice, at(9_999)), 1);
    assert_eq!(choice.confirm(at(9_999)), None, "it rests");
    assert_eq!(first(&mut choice, at(10_000)), 1, "no client tries it");
    let asked = choice.confirm(at(10_000)).unwrap();
    assert_eq!(asked.index, 0);
    first(&mut choice, at(10_001));
    assert_eq!(choice.confirm(at(10_001)), None, "one at a time");
    choice.confirmed(asked, Ok(()), target(1), at(10_100));
    assert_eq!(choice.state(0), Some(State::Holding(at(40_100))));
    assert_eq!(first(&mut choice, at(40_099)), 1);
    assert_eq!(first(&mut choice, at(40_100)), 0);
    assert_eq!(history(&mut choice).len(), 3);
}

#[test]
fn a_failed_confirmation_prolongs() {
    let mut choice = first_rests();
    first(&mut choice, at(10_000));
    let asked = choice.confirm(at(10_000)).unwrap();
    choice.confirmed(asked, Err(Unreachable), target(1), at(10_000));
    first(&mut choice, at(29_999));
    assert_eq!(choice.confirm(at(29_999)), None);
    first(&mut choice, at(30_000));
    assert!(choice.confirm(at(30_000)).is_some());
}

#[test]
fn an_answer_ends_a_rest() {
    let mut choice = first_rests();
    choice.answered(0, 200, at(1));
    assert!(!choice.is_resting(0));
    assert_eq!(first(&mut choice, at(2)), 1, "it is held back");
    assert_eq!(first(&mut choice, at(1 + u64::from(HOLD))), 0);
}

#[test]
fn silence_is_the_proxys_fault_unless_it_answers_others_meanwhile() {
    let mut choice = choice(2);
    let mut silent = Attempt::new(target(1), None);
    let asked = choice.next(&mut silent, at(0)).unwrap();
    choice.failed(&mut silent, asked, TimedOut, at(9));
    assert!(choice.is_resting(0));
    assert_eq!(choice.next(&mut silent, at(9)).unwrap().index, 1);

    choice.answered(0, 200, at(10));
    let mut silent = Attempt::new(target(1), None);
    choice.next(&mut silent, at(40_010)).unwrap();
    let asked = choice.ask(0).unwrap();
    choice.answered(0, 200, at(40_011)); // meanwhile
    choice.failed(&mut silent, asked, TimedOut, at(40_019));
    assert!(!choice.is_resting(0));
    assert_eq!(choice.next(&mut silent, at(40_019)), None);
    assert_eq!(silent.failure(), TimedOut);
}

#[test]
fn one_target_does_not_make_a_proxy_rest_that_has_answered() {
    for failure in [TimedOut, BadReply, Closed] {
        let mut choice = choice(2);
        choice.answered(0, 200, at(0));
        let mut strike = |port, ms| {
            assert_eq!(attempt_for(&mut choice, port, at(ms), &[failure, REFUSED]).0, [0, 1]);
            let rests = choice.is_resting(0);
            choice.answered(1, 200, at(ms));
            rests
        };
        assert!(!strike(80, 1) && !strike(80, 2));
        assert!(strike(443, 3), "a second target");

        let mut choice = choice_with(2, Policy::default());
        choice.answered(0, 200, at(0));
        attempt(&mut choice, at(1), &[failure, REFUSED]);
        choice.answered(0, 200, at(2)); // somebody else
        attempt_for(&mut choice, 443, at(3), &[failure, REFUSED]);
        assert!(!choice.is_resting(0), "it begins anew");
        attempt_for(&mut choice, 443, at(10_003), &[failure, REFUSED]);
        assert!(choice.is_resting(0), "the same one, later");
    }
}

#[test]
fn one_target_blames_one_proxy() {
    let mut choice = choice(3);
    assert_eq!(attempt(&mut choice, at(0), &[BadReply; 3]).0, [0, 1, 2]);
    assert_eq!([0, 1, 2].map(|index| choice.is_resting(index)), [true, false, false]);
}

#[test]
fn the_chosen_one_is_never_left() {
    let mut choice = choice(3);
    assert!(!choice.choose(Some("p3"), at(0)) && choice.choose(Some("p1"), at(0)));
    assert_eq!(choice.chosen(), Some(1));
    for ms in [0, 1, 10_000, 99_000] {
        assert_eq!(attempt(&mut choice, at(ms), &[Unanswered; 3]), (vec![1], Unanswered));
    }
    assert!(choice.is_resting(1), "what is known of it goes on");
    assert!(choice.choose(None, at(99_001)));
    assert_eq!(attempt(&mut choice, at(99_001), &[Unanswered; 3]).0, [0, 2, 1]);
    let told = history(&mut choice);
    assert_eq!((&*told[0].0, told[0].1), ("p1", ChangeKind::Chosen));
    assert!(told.contains(&("p1".into(), ChangeKind::Released)));
}

#[test]
fn with_a_fallback_the_chosen_one_comes_first() {
    let mut choice = choice_with(3, Policy { pin_fallback: true, ..Policy::default() });
    choice.choose(Some("p2"), at(0));
    assert_eq!(attempt(&mut choice, at(0), &[Unanswered; 3]).0, [2, 0, 1]);
    let mut choice = choice_with(3, Policy { pin_fallback: true, ..Policy::default() });
    choice.choose(Some("p2"), at(0));
    attempt(&mut choice, at(0), &[REFUSED, REFUSED, Unanswered]);
    assert_eq!(attempt(&mut choice, at(1), &[Unreachable; 3]).0, [0, 1, 2]);
}

#[test]
fn a_switch_concerns_attempts_under_way() {
    let mut choice = choice(3);
    let mut attempt = Attempt::new(target(1), None);
    let asked = choice.next(&mut attempt, at(0)).unwrap();
    choice.choose(Some("p2"), at(0));
    choice.failed(&mut attempt, asked, Unreachable, at(0));
    assert_eq!(choice.next(&mut attempt, at(0)).unwrap().index, 2);
    assert_eq!(choice.next(&mut attempt, at(0)), None);
}

#[test]
fn a_hedge_waits_for_three_times_the_usual() {
    let address = IpAddr::from([192, 0, 2, 1]);
    let mut choice = choice_with(2, Policy { hedge_delay: 300, ..Policy::default() });
    let mut attempt = Attempt::new(target(1), None);
    let asked = choice.next(&mut attempt, at(0)).unwrap();
    assert_eq!(choice.hedge(&attempt, asked), Some(300));
    choice.connected(0, address, 200);
    assert_eq!((choice.connect_time(0), choice.hedge(&attempt, asked)), (200, Some(600)));
    (0..100).for_each(|_| choice.connected(0, address, 20));
    assert_eq!(choice.hedge(&attempt, asked), Some(300));
    let last = choice.next(&mut attempt, at(0)).unwrap();
    assert_eq!(choice.hedge(&attempt, last), None, "nobody is left");

    choice.overtaken(asked);
    let check = choice.confirm(at(1)).unwrap();
    assert_eq!(check.index, 0);
    choice.confirmed(check, Err(Unanswered), target(1), at(5_000));
    assert!(choice.is_resting(0));
    let mut attempt = Attempt::new(target(1), None);
    let asked = choice.next(&mut attempt, at(5_001)).unwrap();
    assert_eq!((asked.index, choice.hedge(&attempt, asked)), (1, None), "not to one that rests");
}

#[test]
fn an_interval_confirms_while_nobody_dials() {
    let mut choice = choice_with(2, Policy { probe_interval: 30_000, ..Policy::default() });
    assert_eq!(choice.confirm(at(29_999)), None);
    choice.answered(0, 200, at(29_999));
    let asked = choice.confirm(at(30_000)).unwrap();
    assert_eq!((asked.index, choice.confirm(at(30_000))), (1, None));
    choice.confirmed(asked, Err(Unreachable), target(1), at(30_000));
    assert_eq!(choice.confirm(at(30_001)), None);
    assert_eq!(choice.confirm(at(60_000)).unwrap().index, 0);
}

#[test]
fn the_good_address_comes_first() {
    let [a, b, c] = [1, 2, 3].map(|last| IpAddr::from([192, 0, 2, last]));
    let mut choice = choice(2);
    assert_eq!(choice.first_address(0, &[a, b]), 0);
    choice.connected(0, b, 1);
    assert_eq!(choice.first_address(0, &[a, b, c]), 1);
    assert_eq!(choice.first_address(0, &[c, a]), 0, "it is not among them any more");
    assert_eq!(choice.first_address(1, &[a, b]), 0);
}

#[test]
fn a_reload_keeps_state_choice_and_good_address() {
    let mut old = first_rests();
    let address = IpAddr::from([192, 0, 2, 1]);
    old.connected(0, address, 1);
    let mut new = choice(3);
    new.inherit(&old);
    new.inherit_proxy(1, &old, 0);
    assert!(new.is_resting(1) && !new.is_resting(0));
    assert_eq!(new.first_address(1, &[[192, 0, 2, 9].into(), address]), 1);
    assert_eq!(history(&mut new).len(), 1);

    old.choose(Some("p1"), at(1));
    let mut without = choice(1);
    without.inherit(&old);
    assert_eq!((without.chosen(), first(&mut without, at(2))), (None, 0));
    let mut again = choice(2);
    again.inherit(&without);
    assert_eq!(again.chosen(), Some(1), "it has come back");
}

/// What happens in a simulation.
#[derive(Clone, Debug)]
enum Step {
    /// A client dials this target.
    Dial(u8),
    /// Time passes, and confirmations are made.
    Wait(u32),
    /// A proxy begins to fail like that; `None`: to answer.
    Become(usize, Option<Failure>),
    /// A target begins to be as this one for whoever asks for it.
    Target(u8, Option<Failure>),
    /// Somebody chooses.
    Choose(Option<usize>),
}

const COUNT: usize = 3;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let fault = || {
        proptest::sample::select(vec![
            None,
            None,
            Some(Unreachable),
            Some(Unanswered),
            Some(TimedOut),
            Some(BadReply),
            Some(Closed),
            Some(Credentials),
            Some(UplinkDown),
        ])
    };
    let of_target = proptest::sample::select(vec![None, Some(TimedOut), Some(Closed), Some(REFUSED)]);
    let step = prop_oneof![
        8 => (0..4u8).prop_map(Step::Dial),
        4 => (0..40_000u32).prop_map(Step::Wait),
        2 => (0..COUNT, fault()).prop_map(|(index, fault)| Step::Become(index, fault)),
        1 => (0..4u8, of_target).prop_map(|(target, fault)| Step::Target(target, fault)),
        1 => proptest::option::of(0..COUNT).prop_map(Step::Choose),
    ];
    proptest::collection::vec(step, 0..120)
}

/// A world that does what it is told, and a choice in it.
struct World {
    choice: Choice,
    now: Instant,
    proxies: [Option<Failure>; COUNT],
    targets: [Option<Failure>; 4],
    /// For whose sake each proxy rests, if it may be the target's fault.
    blamed: [Option<u8>; COUNT],
    has_dialled: bool,
}

impl World {
    fn new() -> Self {
        let (now, proxies, targets) = (at(0), [None; COUNT], [None; 4]);
        Self { choice: choice(COUNT), now, proxies, targets, blamed: [None; COUNT], has_dialled: false }
    }

    fn dial(&mut self, number: u8) -> Option<usize> {
        self.has_dialled = true;
        let mut attempt = Attempt::new(target(number.into()), None);
        let chosen = self.choice.chosen();
        let better = (0..COUNT).any(|index| !self.choice.is_resting(index));
        let mut asked_one = false;
        while let Some(asked) = self.choice.next(&mut attempt, self.now) {
            let index = asked.index;
            assert!(chosen.is_none_or(|chosen| chosen == index), "a chosen one is never left");
            assert!(
                chosen.is_some() || asked_one || !better || !self.choice.is_resting(index),
                "no client is the guinea pig"
            );
            asked_one = true;
            let fault = self.proxies[index].or(self.targets[usize::from(number)]);
            match fault {
                None => {
                    self.choice.answered(index, 200, self.now);
                    return Some(index);
                }
                Some(fault) => {
                    if fault == REFUSED {
                        self.choice.answered(index, 200, self.now);
                    }
                    let was_resting = self.choice.is_resting(index);
                    self.choice.failed(&mut attempt, asked, fault, self.now);
                    let is_blamed = self.choice.is_resting(index);
                    if is_blamed && !was_resting {
                        self.blamed[index] = fault.is_ambiguous().then_some(number);
                    }
                    assert!(!is_blamed || was_resting || fault != UplinkDown);
                }
            }
        }
        None
    }

    fn wait(&mut self, ms: u32) {
        self.now = self.now.plus(ms);
        while let Some(asked) = self.choice.confirm(self.now) {
            assert!(self.has_dialled, "a probe while nobody dials");
            let result = self.proxies[asked.index].map_or(Ok(()), Err);
            if result.is_ok() {
                self.choice.answered(asked.index, 200, self.now);
            }
            self.choice.confirmed(asked, result, target(9), self.now);
        }
        self.has_dialled = false;
    }

    fn check(&self) {
        let resting = |index: &usize| self.choice.is_resting(*index);
        let mut blamed: Vec<_> = (0..COUNT).filter(resting).filter_map(|index| self.blamed[index]).collect();
        let count = blamed.len();
        blamed.sort();
        blamed.dedup();
        assert_eq!(blamed.len(), count, "two are blamed for one target");
    }
}

proptest! {
    #[test]
    fn in_any_weather(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            match step {
                Step::Dial(target) => _ = world.dial(target),
                Step::Wait(ms) => world.wait(ms),
                Step::Become(index, fault) => world.proxies[index] = fault,
                Step::Target(target, fault) => world.targets[usize::from(target)] = fault,
                Step::Choose(index) => {
                    let name = index.map(|index| format!("p{index}"));
                    prop_assert!(world.choice.choose(name.as_deref(), world.now));
                }
            }
            world.check();
        }
        // All is well again: somebody is served at once, unless all have refused credentials, and after the longest rest, a
        // confirmation and the holding time it is the first one.
        world.choice.choose(None, world.now);
        (world.proxies, world.targets) = ([None; COUNT], [None; 4]);
        for _ in 0..=(LONGEST_REST + HOLD) / 1000 + 2 {
            let have_refused = world.choice.proxies.iter().all(|proxy| proxy.login == LoginState::Refused);
            prop_assert!(world.dial(0).is_some() || have_refused);
            world.wait(1000);
        }
        prop_assert_eq!(world.dial(0), Some(0));
        prop_assert_eq!(world.choice.state(0), Some(State::Ok));
    }

    /// From a confirmation on it takes 30 s, to the millisecond, whatever happens to others meanwhile.
    #[test]
    fn who_is_confirmed_is_back_in_time(dials in proptest::collection::vec(1..5_000u32, 0..20)) {
        let mut world = World::new();
        world.proxies[0] = Some(Unanswered);
        prop_assert_eq!(world.dial(0), Some(1));
        world.proxies[0] = None;
        world.now = at(10_000);
        prop_assert_eq!(world.dial(1), Some(1));
        world.wait(0);
        let back = world.now.plus(HOLD);
        for ms in dials {
            world.wait(ms);
            prop_assert_eq!(world.dial(2), Some(usize::from(world.now < back)));
        }
        world.now = back;
        prop_assert_eq!(world.dial(2), Some(0));
    }
}
