//! The only time type of the library. Nothing here reads a clock: whoever calls passes the time in.

/// A moment on the caller's monotonic clock, in milliseconds, modulo 2^32.
///
/// Four bytes, because every slot of the flow table stores some. Differences are right up to 24 days,
/// and nothing that the library measures lasts longer: what has waited for minutes is done with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Instant(u32);

impl Instant {
    /// A moment `ms` milliseconds after the clock's origin; higher bits are cut off.
    pub const fn from_millis(ms: u64) -> Self {
        Self(ms as u32)
    }

    /// Milliseconds from `earlier` to `self`. A moment later than `self` counts as "just now".
    pub const fn since(self, earlier: Self) -> u32 {
        let passed = self.0.wrapping_sub(earlier.0);
        if passed > u32::MAX / 2 { 0 } else { passed }
    }

    /// The moment `ms` milliseconds after this one.
    pub const fn plus(self, ms: u32) -> Self {
        Self(self.0.wrapping_add(ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_survive_the_wrap() {
        let before = Instant::from_millis(u32::MAX as u64 - 5);
        assert_eq!(before.plus(10).since(before), 10);
        assert_eq!(Instant::from_millis((1 << 32) + 4).since(before), 10);
    }

    #[test]
    fn a_later_moment_is_not_in_the_far_past() {
        let now = Instant::from_millis(100);
        assert_eq!(now.since(now.plus(1)), 0);
    }
}
