//! NAT sources: the address and port from which a client's connection reaches the listener.
//!
//! Each slot of the flow table has NAT sources of its own and uses them in turn, so that no connection meets its
//! predecessor's 4-tuple in the kernel's TIME_WAIT (60 s). The turns of a slot form two halves (three, if their number
//! is odd), and no half begins until [`REST`] after the start of the one before:
//!
//! ```text
//! half      |  A: sources 0 1 2 3  |  B: sources 4 5 6 7  |  A: sources 0 1 2 3 ...
//!                                  |<----- REST at least ---->|
//!             all closed by here --^                          ^-- not taken again before here
//! ```

use crate::time::{Instant, Stamp};

/// How long a NAT source rests before it is used again, in ms: the kernel's TIME_WAIT, 60 s, whose timer may be
/// late by a few seconds.
pub const REST: u32 = 65_000;
/// The lowest NAT source port.
const FIRST_PORT: u16 = 512;
/// How many ports there are from [`FIRST_PORT`] on.
const PORTS: u32 = 65_536 - FIRST_PORT as u32;

/// A NAT source: the n-th address of the subnet's NAT sources, and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NatSource {
    /// Which of the subnet's addresses.
    pub host: u8,
    /// The port.
    pub port: u16,
}

/// Which of its NAT sources a slot uses, or used last.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    number: u32,
    /// When the half that the source belongs to began.
    half_began: Stamp,
}

/// The NAT sources of all slots. A port belongs to one slot, whatever the address.
pub struct NatSources {
    /// Ports from one of a slot to its next: a power of two, so that finding the slot takes no division.
    stride: u32,
    hosts: u32,
    /// The number of the first turn, so that a restarted daemon does not begin with sources that the previous run left
    /// in TIME_WAIT.
    first: u32,
}

impl NatSources {
    /// NAT sources for `slots` slots, at most 65,000, from `hosts` addresses. The turns of each slot begin
    /// at number `first`, modulo their number.
    pub fn new(slots: u16, hosts: u8, first: u32) -> Self {
        Self { stride: (slots as u32).next_power_of_two(), hosts: hosts as u32, first }
    }

    /// The slot that has `port`, if it is one of a slot.
    pub fn slot(&self, port: u16) -> Option<u16> {
        let nth = port.checked_sub(FIRST_PORT)?;
        Some((nth as u32 & (self.stride - 1)) as u16)
    }

    /// The NAT source that a slot uses in a turn.
    pub fn source(&self, slot: u16, turn: Turn) -> NatSource {
        let port = slot as u32 + turn.number / self.hosts * self.stride;
        NatSource { host: (turn.number % self.hosts) as u8, port: FIRST_PORT + port as u16 }
    }

    /// A slot's first turn.
    pub fn first(&self, slot: u16, now: Instant) -> Turn {
        Turn { number: self.first % self.count(slot), half_began: now.stamp() }
    }

    /// The turn after `turn`, if its NAT source has rested.
    pub fn next(&self, slot: u16, turn: Turn, now: Instant) -> Option<Turn> {
        let rested = self.next_rested(slot, turn, now);
        // A single source has no halves.
        let begins_half = rested.number.checked_rem(self.count(slot) / 2)? == 0;
        if !begins_half {
            return Some(Turn { half_began: turn.half_began, ..rested });
        }
        (turn.half_began.age(now) >= REST).then_some(rested)
    }

    /// The turn after `turn` of a slot that has not been in use for [`REST`].
    pub fn next_rested(&self, slot: u16, turn: Turn, now: Instant) -> Turn {
        Turn { number: (turn.number + 1) % self.count(slot), half_began: now.stamp() }
    }

    /// How many NAT sources a slot has.
    fn count(&self, slot: u16) -> u32 {
        ((PORTS - 1 - slot as u32) / self.stride + 1) * self.hosts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashMap, HashSet};

    const SIZES: [(u16, u8); 8] =
        [(1, 1), (2, 4), (16, 252), (100, 3), (4096, 1), (4097, 2), (65_000, 1), (65_000, 253)];

    #[test]
    fn a_port_is_one_slots_alone() {
        for (slots, hosts) in SIZES {
            let nat = NatSources::new(slots, hosts, 12_345);
            let mut owners = HashMap::new();
            for slot in (0..slots).step_by(1 + slots as usize / 5_000) {
                let mut turn = nat.first(slot, Instant::default());
                let mut seen = HashSet::new();
                // All, or as far as the second port.
                let some = if slot == 0 { 100_000 } else { hosts as u32 + 1 };
                for _ in 0..nat.count(slot).min(some) {
                    let source = nat.source(slot, turn);
                    assert!(source.port >= FIRST_PORT && source.host < hosts);
                    assert!(seen.insert(source), "{source:?} twice in a round");
                    assert_eq!(*owners.entry(source.port).or_insert(slot), slot);
                    assert_eq!(nat.slot(source.port), Some(slot));
                    turn = nat.next_rested(slot, turn, Instant::default());
                }
            }
        }
    }

    #[test]
    fn low_ports_are_no_slots() {
        assert_eq!(NatSources::new(65_000, 1, 0).slot(FIRST_PORT - 1), None);
        assert_eq!(NatSources::new(65_000, 1, 0).slot(0), None);
    }

    /// However long each use of a slot lasts, and however early it starts again.
    #[test]
    fn sources_rest() {
        for (slots, hosts) in [(65_000, 1), (65_000, 2), (65_000, 5), (20_000, 1)] {
            let slot = slots - 1;
            for long in 0..7 {
                let nat = NatSources::new(slots, hosts, 3);
                let mut now = Instant::from_millis(u32::MAX as u64 - 500_000);
                let mut turn = nat.first(slot, now);
                let mut closed = HashMap::new();
                for nth in 0..100 {
                    now = now.plus(if nth % 7 == long { 90_000 } else { 10 });
                    closed.insert(nat.source(slot, turn), now);
                    turn = loop {
                        match nat.next(slot, turn, now) {
                            Some(turn) => break turn,
                            None if now.since(closed[&nat.source(slot, turn)]) >= REST => {
                                break nat.next_rested(slot, turn, now);
                            }
                            None => now = now.plus(1_000),
                        }
                    };
                    if let Some(closed) = closed.get(&nat.source(slot, turn)) {
                        assert!(now.since(*closed) >= REST, "{slots} {hosts} {long} {nth}");
                    }
                }
            }
        }
    }
}
