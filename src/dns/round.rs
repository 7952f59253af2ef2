//! Which server is asked next, and for how long.

use core::net::SocketAddr;
use core::time::Duration;

/// How long each server has to answer in the first round, and in the second.
const PATIENCE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];

/// The servers to ask, one after the other until one answers: all of them in each of two rounds, with more patience in
/// the second.
pub struct Rounds<'a> {
    servers: &'a [SocketAddr],
    /// How many servers have been asked in this round.
    asked: usize,
    /// The time limits of this round and the following ones.
    patience: &'static [Duration],
}

impl<'a> Rounds<'a> {
    /// Begins with the first of `servers`.
    pub const fn new(servers: &'a [SocketAddr]) -> Self {
        Self { servers, asked: 0, patience: &PATIENCE }
    }

    /// Makes the current round the last.
    pub fn finish(&mut self) {
        self.patience = self.patience.get(..1).unwrap_or_default();
    }
}

impl Iterator for Rounds<'_> {
    /// A server, and how long to wait for it.
    type Item = (SocketAddr, Duration);

    fn next(&mut self) -> Option<Self::Item> {
        if self.asked == self.servers.len() {
            self.asked = 0;
            self.patience = self.patience.get(1..)?;
        }
        let next = (*self.servers.get(self.asked)?, *self.patience.first()?);
        self.asked += 1;
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn server(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], crate::dns::PORT))
    }

    #[test]
    fn every_server_is_asked_twice() {
        let servers = [server(1), server(2)];
        let asked: Vec<_> = Rounds::new(&servers).map(|(it, patience)| (it, patience.as_secs())).collect();
        assert_eq!(asked, [(servers[0], 1), (servers[1], 1), (servers[0], 3), (servers[1], 3)]);
        assert_eq!(Rounds::new(&[]).next(), None);
    }

    #[test]
    fn the_present_round_may_be_the_last() {
        let servers = [server(1), server(2)];
        for (asked, left) in [(0, 2), (1, 1), (2, 0), (3, 1), (4, 0)] {
            let mut rounds = Rounds::new(&servers);
            assert_eq!(rounds.by_ref().take(asked).count(), asked);
            rounds.finish();
            assert_eq!(rounds.count(), left, "after {asked}");
        }
    }
}
