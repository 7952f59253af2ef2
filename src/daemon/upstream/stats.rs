//! What is counted of one proxy.

use crate::relay::Moved;

/// The outcome of the tunnels that one proxy was asked for since the start. Counters wrap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// How many it was asked for.
    pub attempts: u32,
    /// How many it opened.
    pub opened: u32,
    /// How many it answered with a status other than 2xx, by class: [`Stats::REFUSED`].
    pub refused: [u32; Self::REFUSED.len()],
    /// How often it could not be connected.
    pub unreachable: u32,
    /// How often it did not answer in time.
    pub timed_out: u32,
    /// How often it closed, or sent garbage.
    pub bad_reply: u32,
    /// How many of the attempts were repeated because it had closed before it answered.
    pub retried: u32,
    /// The shortest time from the connect to the answer, in milliseconds.
    pub shortest: u32,
    /// The last such time.
    pub last: u32,
    /// The sum of all such times.
    pub sum: u64,
    /// Bytes that went through those of its tunnels that have ended.
    pub moved: Moved,
}

impl Stats {
    /// The classes of refusals.
    pub const REFUSED: [&str; 5] =
        ["refused_403", "refused_407", "refused_4xx", "refused_5xx", "refused_other"];

    /// Counts an answer: its status, and how long it took in milliseconds.
    pub fn answered(&mut self, status: u16, latency: u32) {
        self.shortest = if self.answers() == 0 { latency } else { self.shortest.min(latency) };
        self.last = latency;
        self.sum = self.sum.wrapping_add(latency.into());
        let count = match status {
            200..=299 => &mut self.opened,
            403 => &mut self.refused[0],
            407 => &mut self.refused[1],
            400..=499 => &mut self.refused[2],
            500..=599 => &mut self.refused[3],
            _ => &mut self.refused[4],
        };
        *count = count.wrapping_add(1);
    }

    /// The mean time to an answer, in milliseconds.
    pub fn mean(&self) -> u64 {
        self.sum / u64::from(self.answers().max(1))
    }

    /// How many ended without an answer.
    pub const fn failed(&self) -> u32 {
        self.unreachable.wrapping_add(self.timed_out).wrapping_add(self.bad_reply)
    }

    fn answers(&self) -> u32 {
        self.refused.iter().fold(self.opened, |sum, count| sum.wrapping_add(*count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_class() {
        let mut stats = Stats::default();
        for (status, latency) in [(200, 40), (403, 10), (407, 10), (400, 10), (502, 10), (302, 10), (999, 1)]
        {
            stats.answered(status, latency);
        }
        assert_eq!((stats.opened, stats.refused), (1, [1, 1, 1, 1, 2]));
        assert_eq!((stats.shortest, stats.mean(), stats.last), (1, 13, 1));
        assert_eq!(Stats::default().mean(), 0);
    }
}
