//! What is counted for each client. Nothing about destinations is ever kept.

use alloc::vec::Vec;
use core::net::IpAddr;

use crate::time::Instant;

/// How many clients are remembered; beyond that, the one that was not seen for the longest time is dropped.
pub const MAX: usize = 64;

/// One client's tally. Its counters wrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Its address.
    pub address: IpAddr,
    /// When its last connection began or ended.
    pub seen: Instant,
    /// How many connections it has asked for.
    pub opened: u32,
    /// How many of them were refused.
    pub refused: u32,
    /// Bytes from it, of connections that have ended.
    pub up: u64,
    /// Bytes to it, likewise.
    pub down: u64,
}

/// The tallies of the last [`MAX`] clients.
#[derive(Debug, Default)]
pub struct Tallies {
    list: Vec<Tally>,
}

impl Tallies {
    /// The tally of a client, to be changed.
    pub fn note(&mut self, address: IpAddr, now: Instant) -> &mut Tally {
        let known = self.list.iter().position(|tally| tally.address == address);
        let index = known.unwrap_or_else(|| {
            let new = Tally { address, seen: now, opened: 0, refused: 0, up: 0, down: 0 };
            if self.list.len() < MAX {
                self.list.push(new);
                return self.list.len() - 1;
            }
            let oldest = (0..MAX).min_by_key(|&index| self.list[index].seen).unwrap_or(0);
            self.list[oldest] = new;
            oldest
        });
        let tally = &mut self.list[index];
        tally.seen = now;
        tally
    }

    /// Those of all clients that are remembered.
    pub fn iter(&self) -> impl Iterator<Item = &Tally> {
        self.list.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_not_seen_for_longest_is_dropped() {
        let mut clients = Tallies::default();
        let address = |number: u8| IpAddr::from([10, 0, 0, number]);
        for number in 0..64 {
            clients.note(address(number), Instant::from_millis(number.into())).opened += 1;
        }
        clients.note(address(0), Instant::from_millis(100)).opened += 1;
        clients.note(address(64), Instant::from_millis(101)).refused += 1;
        assert_eq!(clients.iter().count(), MAX);
        let find = |wanted| clients.iter().find(|client| client.address == wanted);
        assert_eq!(find(address(0)).unwrap().opened, 2);
        assert!(find(address(1)).is_none());
        assert_eq!(find(address(64)).map(|client| (client.opened, client.refused)), Some((0, 1)));
    }
}
