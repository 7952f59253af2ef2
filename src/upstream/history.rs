//! The last changes of the proxies' states.

use alloc::collections::VecDeque;
use alloc::rc::Rc;
use core::fmt;

use super::Failure;
use crate::time::Instant;

/// How many changes are kept.
pub const MAX: usize = 64;

/// The kinds of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It is asked after all others.
    Rests(Failure),
    /// It has answered, but is held back for a while.
    Answers,
    /// It is as good as any other.
    Ok,
    /// There is no route to it.
    UplinkDown,
    /// There is one again.
    UplinkUp,
    /// Its connections have been reset.
    Dead,
    /// Somebody has chosen it.
    Chosen,
    /// It is no longer the chosen one.
    Released,
}

/// A change of a proxy's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateChange {
    /// When.
    pub at: Instant,
    /// The proxy's name.
    pub upstream: Rc<str>,
    /// What has changed.
    pub kind: ChangeKind,
}

/// The last [`MAX`] changes, the oldest first.
#[derive(Clone, Debug, Default)]
pub struct History {
    changes: VecDeque<StateChange>,
    /// How many of the newest have not been [reported](Self::news).
    untold: usize,
}

impl History {
    /// Adds one.
    pub fn push(&mut self, change: StateChange) {
        if self.changes.len() == MAX {
            self.changes.pop_front();
        }
        self.changes.push_back(change);
        self.untold = (self.untold + 1).min(MAX);
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &StateChange> {
        self.changes.iter()
    }

    /// The changes since the last call.
    pub fn news(&mut self) -> impl Iterator<Item = &StateChange> {
        let untold = core::mem::take(&mut self.untold);
        self.changes.iter().skip(self.changes.len() - untold)
    }
}

/// In words that follow the proxy's name.
impl fmt::Display for ChangeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rests(why) => {
                f.write_str("rests: ")?;
                return why.fmt(f);
            }
            Self::Answers => "answers again",
            Self::Ok => "ok",
            Self::UplinkDown => "uplink down",
            Self::UplinkUp => "uplink up",
            Self::Dead => "silent: connections reset",
            Self::Chosen => "chosen",
            Self::Released => "no longer chosen",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn the_last_ones_are_kept_and_told_once() {
        let mut history = History::default();
        let push = |history: &mut History, number: u64| {
            history.push(StateChange {
                at: Instant::from_millis(number),
                upstream: "a".into(),
                kind: ChangeKind::Ok,
            });
        };
        (0..3).for_each(|number| push(&mut history, number));
        assert_eq!((history.iter().count(), history.news().count(), history.news().count()), (3, 3, 0));
        (3..100).for_each(|number| push(&mut history, number));
        let times: Vec<_> = history.iter().map(|change| change.at.since(Instant::default())).collect();
        assert_eq!(times, (36..100).collect::<Vec<_>>());
        assert_eq!(history.news().count(), 64);
    }
}
