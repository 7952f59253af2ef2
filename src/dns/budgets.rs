//! How many queries each client may ask, so that a client that asks without end leaves time for others.

use alloc::vec::Vec;

use crate::net::ClientKey;
use crate::time::{Instant, TokenBucket};

/// One more query each time this many milliseconds pass...
const REFILL: u32 = 4;
/// ...up to this many: what a browser asks when it opens all its tabs.
const BURST: u32 = 1000;
/// How many clients are known at once; the one that has not asked for the longest time is forgotten.
const MAX_CLIENTS: usize = 256;

/// The clients that have asked lately.
#[derive(Default)]
pub struct Budgets(Vec<(ClientKey, TokenBucket<REFILL, BURST>)>);

impl Budgets {
    /// Whether a client may ask one more query; if so, counts it.
    pub fn take(&mut self, client: ClientKey, now: Instant) -> bool {
        if let Some((_, bucket)) = self.0.iter_mut().find(|(known, _)| *known == client) {
            return bucket.take(now);
        }
        let mut bucket = TokenBucket::default();
        let may_ask = bucket.take(now);
        if self.0.len() < MAX_CLIENTS {
            self.0.push((client, bucket));
        } else if let Some(oldest) = self.0.iter_mut().min_by_key(|(_, bucket)| bucket.last()) {
            *oldest = (client, bucket);
        }
        may_ask
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv6Addr;

    fn client(nth: u16) -> ClientKey {
        ClientKey::of(Ipv6Addr::new(0x2001, 0xdb8, 0, nth, 0, 0, 0, 1))
    }

    #[test]
    fn a_burst_and_then_a_rate() {
        let mut budgets = Budgets::default();
        let mut ask = |nth, ms| budgets.take(client(nth), Instant::from_millis(ms));
        assert_eq!((0..5000).filter(|_| ask(1, 0)).count(), 1000);
        assert!(ask(2, 0), "another has its own");
        assert_eq!((0..4000).filter(|&ms| ask(1, ms)).count(), 1000);
        assert_eq!((0..5000).filter(|_| ask(1, 100_000)).count(), 1000, "after a rest");
    }

    #[test]
    fn clients_are_bounded() {
        let mut budgets = Budgets::default();
        for ms in 0..1000 {
            assert!(budgets.take(client(ms), Instant::from_millis(ms.into())));
            assert!(
                (0..2000).filter(|_| budgets.take(client(0), Instant::from_millis(ms.into()))).count() < 1000
            );
        }
        assert_eq!(budgets.0.len(), MAX_CLIENTS);
    }
}
