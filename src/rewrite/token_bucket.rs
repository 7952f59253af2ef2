//! The rate limit of ICMP errors (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 (f)).

use crate::time::Instant;

/// Limits how many errors are sent.
#[derive(Default)]
pub(super) struct TokenBucket {
    /// How much of the burst has been used, in ms of refilling.
    used: u32,
    last: Instant,
}

impl TokenBucket {
    /// One more error each millisecond...
    const REFILL: u32 = 1;
    /// ...up to this many.
    const BURST: u32 = 100;

    /// Whether one more error may be sent; if so, counts it.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        self.used = self.used.saturating_sub(now.since(self.last) / Self::REFILL);
        self.last = now;
        let some = self.used < Self::BURST;
        self.used += some as u32;
        some
    }
}
