//! The daemon's clock.

use std::time::{Duration, Instant};

use tcp_over_http::time;

/// A monotonic clock that begins when the daemon starts.
#[derive(Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    /// Starts a clock.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// The time in the library's type.
    pub fn now(self) -> time::Instant {
        time::Instant::from_millis(self.uptime().as_millis() as u64)
    }

    /// The time since the start.
    pub fn uptime(self) -> Duration {
        self.0.elapsed()
    }
}
