//! Keeps a repeated warning from flooding the log.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// The time between two lines of one kind.
const INTERVAL: Duration = Duration::from_secs(10);

/// Lets one line of its kind pass every 10 s, and counts the rest.
#[derive(Debug, Default)]
pub struct Limiter {
    next: Cell<Option<Instant>>,
    suppressed: Cell<u32>,
}

impl Limiter {
    /// Whether a line may be logged at the time `now`: if so, how many were suppressed since the last one.
    pub fn pass(&self, now: Instant) -> Option<u32> {
        if self.next.get().is_some_and(|next| now < next) {
            self.suppressed.set(self.suppressed.get().saturating_add(1));
            return None;
        }
        self.next.set(Some(now + INTERVAL));
        Some(self.suppressed.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_passes_and_the_next_tells_what_was_left_out() {
        let limiter = Limiter::default();
        let start = Instant::now();
        assert_eq!(limiter.pass(start), Some(0));
        assert_eq!(limiter.pass(start), None);
        assert_eq!(limiter.pass(start + INTERVAL - Duration::from_nanos(1)), None);
        assert_eq!(limiter.pass(start + INTERVAL), Some(2));
        assert_eq!(limiter.pass(start + INTERVAL), None);
        assert_eq!(limiter.pass(start + 3 * INTERVAL), Some(1));
    }
}
