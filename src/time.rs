//! The only time types of the library, and the limit of a rate. Nothing here reads a clock: the caller passes the time in.

/// A moment on the caller's monotonic clock, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Instant(u64);

impl Instant {
    /// A moment `ms` milliseconds after the clock's origin.
    pub const fn from_millis(ms: u64) -> Self {
        Self(ms)
    }

    /// Milliseconds from `earlier` to `self`: 0 if `earlier` is later, at most [`u32::MAX`] (49 days).
    pub const fn since(self, earlier: Self) -> u32 {
        let passed = self.0.saturating_sub(earlier.0);
        if passed > u32::MAX as u64 { u32::MAX } else { passed as u32 }
    }

    /// The moment `ms` milliseconds after this one.
    pub const fn plus(self, ms: u32) -> Self {
        Self(self.0 + ms as u64)
    }

    /// This moment in four bytes.
    pub const fn stamp(self) -> Stamp {
        Stamp(self.0 as u32)
    }
}

/// An [`Instant`] in four bytes, modulo 2^32 ms, for tables with thousands of slots. Read with the present moment, it is
/// right from 49 days ago to 2 minutes ahead.
#[derive(Clone, Copy, Debug)]
pub struct Stamp(u32);

impl Stamp {
    /// How far ahead a stamp may lie, in ms; beyond that it is taken for a moment long ago.
    const AHEAD: u32 = 1 << 17;

    /// The moment that it stands for.
    pub const fn instant(self, now: Instant) -> Instant {
        let latest = now.plus(Self::AHEAD);
        Instant(latest.0.saturating_sub(self.before(latest) as u64))
    }

    /// Milliseconds that have passed since then; 0 if it is still to come.
    pub const fn age(self, now: Instant) -> u32 {
        self.before(now.plus(Self::AHEAD)).saturating_sub(Self::AHEAD)
    }

    const fn before(self, latest: Instant) -> u32 {
        (latest.0 as u32).wrapping_sub(self.0)
    }
}

/// A token bucket, full at first: one more token each `REFILL` ms, up to `BURST` tokens.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokenBucket<const REFILL: u32, const BURST: u32> {
    /// How much of the burst has been used, in ms of refilling.
    used: u32,
    last: Instant,
}

impl<const REFILL: u32, const BURST: u32> TokenBucket<REFILL, BURST> {
    /// Takes a token; false if there is none.
    pub fn take(&mut self, now: Instant) -> bool {
        self.used = self.used.saturating_sub(now.since(self.last));
        self.last = now;
        let is_left = self.used < BURST * REFILL;
        self.used += u32::from(is_left) * REFILL;
        is_left
    }

    /// When a token was last wanted.
    pub const fn last(&self) -> Instant {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRAP: u64 = 1 << 32;

    #[test]
    fn differences_survive_the_wrap() {
        let before = Instant::from_millis(u32::MAX as u64 - 5);
        assert_eq!(before.plus(10).since(before), 10);
        assert_eq!(Instant::from_millis(WRAP + 4).since(before), 10);
        assert_eq!(before.stamp().age(before.plus(10)), 10);
        assert_eq!(before.plus(10).stamp().instant(before), before.plus(10));
    }

    #[test]
    fn a_later_moment_is_not_in_the_far_past() {
        let now = Instant::from_millis(100);
        assert_eq!(now.since(now.plus(1)), 0);
        assert_eq!(now.plus(1).stamp().age(now), 0);
    }

    #[test]
    fn stamps_are_right_for_weeks() {
        for start in [0, 5, WRAP - 1, WRAP, 9 * WRAP + 7] {
            let start = Instant::from_millis(start);
            for ms in [0, 1, 1 << 31, u32::MAX - (1 << 17)] {
                assert_eq!(start.stamp().instant(start.plus(ms)), start, "{ms} ms later");
                assert_eq!(start.stamp().age(start.plus(ms)), ms);
            }
            for ms in [1, 1 << 17] {
                assert_eq!(start.plus(ms).stamp().instant(start), start.plus(ms), "{ms} ms before");
            }
        }
    }
}
