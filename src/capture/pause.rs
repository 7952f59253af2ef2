//! Pauses: clients whose new connections go out directly, each until a time.

use alloc::vec::Vec;
use core::net::IpAddr;

use crate::time::Instant;

/// The longest pause, in seconds.
pub const MAX_PAUSE: u32 = 3600;
/// The most pauses at once.
pub const MAX_PAUSES: usize = 64;

/// The pauses, at most one for each client. The client `None` stands for all clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pauses(Vec<(Option<IpAddr>, Instant)>);

impl Pauses {
    /// No pauses.
    pub const NONE: Self = Self(Vec::new());

    /// Lets a client out directly until a time. Replaces an earlier pause of this client. Returns false if
    /// there are too many.
    pub fn begin(&mut self, client: Option<IpAddr>, until: Instant) -> bool {
        let is_room = self.0.len() < MAX_PAUSES || self.0.iter().any(|(it, _)| *it == client);
        if is_room {
            self.0.retain(|(it, _)| *it != client);
            self.0.push((client, until));
        }
        is_room
    }

    /// Ends the pause of a client, or with `None` all pauses. Returns whether there was any.
    pub fn end(&mut self, client: Option<IpAddr>) -> bool {
        let before = self.0.len();
        self.0.retain(|(it, _)| client.is_some() && *it != client);
        self.0.len() < before
    }

    /// Removes pauses that are over. Returns whether there was any.
    pub fn expire(&mut self, now: Instant) -> bool {
        let before = self.0.len();
        self.0.retain(|(_, until)| *until > now);
        self.0.len() < before
    }

    /// Whether this client goes out directly. `None` is an unknown client, for whom only a pause of all
    /// clients counts.
    pub fn cover(&self, client: Option<IpAddr>, now: Instant) -> bool {
        self.left(now).any(|(paused, _)| paused.is_none() || paused == client)
    }

    /// The clients of all pauses, including those that are over.
    pub fn clients(&self) -> impl Iterator<Item = Option<IpAddr>> {
        self.0.iter().map(|(client, _)| *client)
    }

    /// The clients of pauses that are not over, each with the milliseconds that are left.
    pub fn left(&self, now: Instant) -> impl Iterator<Item = (Option<IpAddr>, u32)> {
        self.0.iter().map(move |(client, until)| (*client, until.since(now))).filter(|(_, left)| *left > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Instant {
        Instant::from_millis(1000 * seconds)
    }

    fn client(last: u8) -> Option<IpAddr> {
        Some([10, 1, 0, last].into())
    }

    #[test]
    fn a_pause_ends_by_itself() {
        let mut pauses = Pauses::default();
        assert!(pauses.begin(client(2), at(10)));
        assert!(
            pauses.cover(client(2), at(9)) && !pauses.cover(client(3), at(9)) && !pauses.cover(None, at(9))
        );
        assert!(!pauses.cover(client(2), at(10)), "although nobody has had it expire");
        assert!(!pauses.expire(at(9)) && pauses.expire(at(10)));
        assert_eq!(pauses, Pauses::NONE);
    }

    #[test]
    fn the_last_word_counts() {
        let mut pauses = Pauses::default();
        pauses.begin(client(2), at(100));
        pauses.begin(client(2), at(5));
        assert_eq!(pauses.left(at(4)).collect::<Vec<_>>(), [(client(2), 1000)]);
        pauses.begin(None, at(5));
        assert!(pauses.cover(None, at(4)) && pauses.cover(client(9), at(4)));
        assert!(pauses.end(client(2)) && !pauses.end(client(2)) && pauses.cover(client(2), at(4)));
        assert!(pauses.end(None) && !pauses.end(None));
    }

    #[test]
    fn there_are_not_too_many() {
        let mut pauses = Pauses::default();
        for number in 0..MAX_PAUSES {
            assert!(pauses.begin(client(number as u8), at(1)));
        }
        assert!(!pauses.begin(None, at(1)) && pauses.begin(client(0), at(2)));
    }
}
