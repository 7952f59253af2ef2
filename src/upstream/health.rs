//! The state of one proxy, as it follows from failures and answers.
//!
//! ```text
//!            blame                  answer                30 s pass
//!   Ok ----------------> Resting ------------> Holding ----------------> Ok
//!                        ^     | blame            |
//!                        +-----+------------------+
//! ```
//!
//! A rest lasts 10 s, and twice as long each time the proxy fails again, up to 300 s. After that, it ends with the
//! proxy's next answer, to a confirmation or to a client that no other proxy could serve.

use super::Failure;
use crate::time::Instant;

/// The shortest rest, in ms.
pub const REST: u32 = 10_000;
/// The longest rest, in ms. A proxy that has been well for that long starts again with the shortest.
pub const LONGEST_REST: u32 = 300_000;
/// How long a proxy that has come back is held back, in ms.
pub const HOLD: u32 = 30_000;
/// After how many failed confirmations in a row, all of them silent, its connections are given up.
const DEAD: u8 = 3;

/// The state of a proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Clients' connections go there. So it begins.
    #[default]
    Ok,
    /// It is asked after all others: until that moment, and then until it has answered.
    Resting(Instant, Failure),
    /// It has answered, but is asked after those that are ok until that moment.
    Holding(Instant),
}

/// What to do with the connections through a silent proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// It has stopped answering: remember what they have received so far.
    Silent,
    /// It is gone: reset those that have received nothing since.
    Dead,
}

/// The state of a proxy, and what determines it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Health {
    state: State,
    /// The length of its last rest, in ms; 0: none yet.
    rest: u32,
    /// Since when it has been ok.
    ok_since: Instant,
    /// How many confirmations in a row have failed, all of them silent.
    silent: u8,
    alarm: Option<Alarm>,
}

impl Health {
    /// Its state, as it was at the last [`advance`](Self::advance).
    pub const fn state(&self) -> State {
        self.state
    }

    /// Whether it is asked after all others.
    pub const fn is_resting(&self) -> bool {
        matches!(self.state, State::Resting(..))
    }

    /// Whether its rest is over, so that it may be asked whether it is back.
    pub fn is_rested(&self, now: Instant) -> bool {
        matches!(self.state, State::Resting(until, _) if until <= now)
    }

    /// Lets time pass. Returns whether it is ok from now on.
    pub fn advance(&mut self, now: Instant) -> bool {
        let is_back = matches!(self.state, State::Holding(until) if until <= now);
        if is_back {
            self.state = State::Ok;
            self.ok_since = now;
        }
        is_back
    }

    /// Notes that it has failed by its own fault. Returns whether it begins to rest, or rests for another reason than
    /// before.
    pub fn blame(&mut self, why: Failure, now: Instant) -> bool {
        let (longer, before) = match self.state {
            State::Ok => (self.rest != 0 && now.since(self.ok_since) < LONGEST_REST, None),
            State::Holding(_) => (true, None),
            State::Resting(until, before) if until <= now => (true, Some(before)),
            State::Resting(..) => return false,
        };
        self.silent = match (why.is_silent(), before) {
            (true, Some(_)) => self.silent.saturating_add(1),
            _ => 0,
        };
        if self.silent == 0 && why.is_silent() {
            self.alarm = Some(Alarm::Silent);
        } else if self.silent == DEAD {
            self.alarm = Some(Alarm::Dead);
        }
        self.rest = if longer { (self.rest * 2).clamp(REST, LONGEST_REST) } else { REST };
        self.state = State::Resting(now.plus(self.rest), why);
        before != Some(why)
    }

    /// Notes that it has answered. Returns whether that ends a rest.
    pub fn answered(&mut self, now: Instant) -> bool {
        self.silent = 0;
        self.alarm = None;
        let was_resting = self.is_resting();
        if was_resting {
            self.state = State::Holding(now.plus(HOLD));
        }
        was_resting
    }

    /// What to do with the connections through it; returned once.
    pub const fn take_alarm(&mut self) -> Option<Alarm> {
        self.alarm.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Failure::{Unanswered, Unreachable};

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    #[test]
    fn a_rest_doubles_up_to_its_limit() {
        let (mut health, mut now) = (Health::default(), at(0));
        for seconds in [10, 20, 40, 80, 160, 300, 300] {
            health.blame(Unreachable, now);
            let end = now.plus(seconds * 1000);
            assert_eq!(health.state(), State::Resting(end, Unreachable));
            assert!(!health.is_rested(at(0)) && health.is_rested(end));
            now = end;
        }
    }

    #[test]
    fn who_rests_is_not_blamed_again() {
        let mut health = Health::default();
        assert!(health.blame(Unreachable, at(0)));
        assert!(!health.blame(Unanswered, at(9_999)));
        assert_eq!(health.state(), State::Resting(at(10_000), Unreachable));
        assert!(!health.blame(Unreachable, at(10_000)), "nothing new");
        assert!(health.blame(Unanswered, at(30_000)), "another reason");
    }

    #[test]
    fn an_answer_and_thirty_seconds_bring_it_back() {
        let mut health = Health::default();
        assert!(!health.answered(at(0)));
        health.blame(Unreachable, at(0));
        assert!(health.answered(at(1)) && !health.answered(at(2)));
        assert!(!health.advance(at(30_000)));
        assert_eq!(health.state(), State::Holding(at(30_001)));
        assert!(health.advance(at(30_001)));
        assert_eq!(health.state(), State::Ok);
    }

    #[test]
    fn flapping_prolongs_and_a_good_time_forgives() {
        let mut health = Health::default();
        let rest = |health: &mut Health, now: u64| {
            health.advance(at(now));
            health.blame(Unreachable, at(now));
            health.answered(at(now + 1));
            health.rest
        };
        assert_eq!(rest(&mut health, 0), 10_000);
        assert_eq!(rest(&mut health, 20_000), 20_000, "while it held");
        assert_eq!(rest(&mut health, 60_000), 40_000, "soon after");
        health.advance(at(90_001));
        assert_eq!(rest(&mut health, 390_000), 80_000);
        health.advance(at(420_001));
        assert_eq!(rest(&mut health, 720_001), 10_000);
    }

    #[test]
    fn three_silent_confirmations_are_its_end() {
        let mut health = Health::default();
        health.blame(Unanswered, at(0));
        assert_eq!(health.take_alarm(), Some(Alarm::Silent));
        for now in [10_000, 30_000] {
            health.blame(Unanswered, at(now));
            assert_eq!(health.take_alarm(), None);
        }
        health.blame(Unanswered, at(70_000));
        assert_eq!(health.take_alarm(), Some(Alarm::Dead));
        health.blame(Unanswered, at(150_000));
        assert_eq!(health.take_alarm(), None, "once");

        let mut alive = Health::default();
        for (now, why) in [(0, Unanswered), (10_000, Unanswered), (30_000, Unreachable), (70_000, Unanswered)]
        {
            alive.blame(why, at(now));
            assert_ne!(alive.take_alarm(), Some(Alarm::Dead), "it has said something in between");
        }
    }
}
