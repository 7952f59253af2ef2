//! Addresses that stand for names.
//!
//! A client that asks for a name gets an address that belongs to nobody. When it connects there, the name is found
//! again and goes into CONNECT, so that only the proxy ever resolves it.
//!
//! # Addresses
//!
//! The table has slots, each for one name, and each slot has a number of addresses, of which one at a time is the
//! name's: both an IPv4 and an IPv6 one, as far into their ranges. A slot that gets another name gets another
//! address, in turn, so that an address rests as long as the range allows. Who connects to one that rests has
//! kept it for too long, and is refused rather than brought to the wrong host. Each run takes turns in an order of
//! its own: after a crash, it does not know what the last one has handed out lately, and is not to repeat it.
//!
//! # Which name makes way
//!
//! The one whose use is the longest ago: but none that a flow uses ([`FakeIp::hold`]), and none that a client may
//! still have in its cache, for the TTL of an answer. If there is no other, there is no address. TTLs get short
//! when names come faster than the table is large, so that this ends soon.

mod answer;
mod file;
mod names;
mod ranges;

use alloc::{vec, vec::Vec};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::siphash::{self, Key};
use crate::time::Instant;
pub use answer::FAKE_TTL;
use names::Names;
pub use ranges::Ranges;

/// The most names a table can have.
const MAX_NAMES: u16 = 65_000;
/// The end of a list.
const NIL: u16 = u16::MAX;
/// Words of the longest name.
const MAX_WORDS: usize = 64;

/// A name's place in the table. Good as long as a flow [holds](FakeIp::hold) it, else until the next name comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry(u16);

struct Slot {
    /// Where the name is; unused if there is none.
    name_at: u32,
    /// When the last client that was told has forgotten.
    expires: Instant,
    /// Which of its addresses the slot has.
    turn: u16,
    /// Flows that use the name.
    holds: u16,
    has_name: bool,
    /// The next slot in the same bucket.
    chain: u16,
    previous: u16,
    /// The next slot that may make way, or the next without a name.
    next: u16,
}

/// The table. It takes its memory when it is made, and touches it when there are names for it: 22 bytes for each,
/// and the name itself with 3 bytes more, at most 32 on average.
pub struct FakeIp {
    ranges: Ranges,
    limit: u16,
    /// How many addresses a slot has.
    turns: u16,
    /// The first address that a slot has is not always the same, in case the last run's are not known any more.
    first_turn: u16,
    /// From an address of a slot to its next: has no divisor in common with `turns`, so that all have their turn.
    step: u16,
    slots: Vec<Slot>,
    names: Names,
    /// Heads of the hash chains; the length is a power of two.
    buckets: Vec<u16>,
    key: Key,
    /// Names without flows, the longest unused first.
    oldest: u16,
    newest: u16,
    /// Slots that have lost their name.
    vacant: u16,
    live: u16,
    changes: u32,
    refused: u32,
}

impl FakeIp {
    /// An empty table for `names` names, or as many as there are addresses. `key` must be random: it keeps clients
    /// from choosing names that collide.
    pub fn new(ranges: Ranges, names: u16, key: Key) -> Self {
        let (ranges, addresses) = ranges.checked();
        let limit = u32::from(names.clamp(1, MAX_NAMES)).min(addresses) as u16;
        let turns = (addresses / u32::from(limit)).min(u16::MAX.into()) as u16;
        let first = 1 + siphash::hash(key, &[1]) % u32::from(turns);
        let is_step = |step: &u32| greatest_common_divisor(*step, turns.into()) == 1;
        let step = (first..).find(is_step).unwrap_or(1) % u32::from(turns);
        Self {
            ranges,
            limit,
            turns,
            first_turn: (siphash::hash(key, &[]) % u32::from(turns)) as u16,
            step: step as u16,
            slots: Vec::with_capacity(limit.into()),
            names: Names::new(limit),
            buckets: vec![NIL; usize::from(limit).next_power_of_two()],
            key,
            oldest: NIL,
            newest: NIL,
            vacant: NIL,
            live: 0,
            changes: 0,
            refused: 0,
        }
    }

    /// The entry of a name in lowercase, a new one if it has none, safe from others for `ttl` seconds (at most
    /// [`FAKE_TTL`]). None if the table is full of names in use.
    pub fn assign(&mut self, name: &str, ttl: u32, now: Instant) -> Option<Entry> {
        let ttl = 1000 * ttl.min(FAKE_TTL);
        if let Some(slot) = self.find_name(name) {
            // A longer promise given before still holds.
            let entry = self.slots.get_mut(usize::from(slot))?;
            if entry.expires.since(now) < ttl || !is_fresh(entry, now) {
                entry.expires = now.plus(ttl);
            }
            if entry.holds == 0 {
                self.unlink(slot);
                self.link_newest(slot);
            }
            return Some(Entry(slot));
        }
        let Some(slot) = self.make_way(name.len(), now) else {
            self.refused = self.refused.wrapping_add(1);
            return None;
        };
        let turn = match self.slots.get(usize::from(slot)) {
            Some(slot) => ((u32::from(slot.turn) + u32::from(self.step)) % u32::from(self.turns)) as u16,
            None => self.first_turn,
        };
        self.fill(slot, turn, name, now.plus(ttl));
        self.link_newest(slot);
        Some(Entry(slot))
    }

    /// The name that an address stands for, IPv4 perhaps mapped. None: it stands for none, or not any more.
    pub fn find(&self, address: IpAddr) -> Option<Entry> {
        let number = self.ranges.number(address)?;
        let (turn, slot) = (number / u32::from(self.limit), number % u32::from(self.limit));
        let found = self.slots.get(slot as usize)?;
        (found.has_name && u32::from(found.turn) == turn).then_some(Entry(slot as u16))
    }

    /// Whether an address, IPv4 perhaps mapped, lies in our ranges.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.ranges.contain(address)
    }

    /// The name of an entry.
    pub fn name(&self, entry: Entry) -> &str {
        match self.slots.get(usize::from(entry.0)) {
            Some(slot) if slot.has_name => self.names.get(slot.name_at),
            _ => "",
        }
    }

    /// The IPv4 address of an entry.
    pub fn v4(&self, entry: Entry) -> Ipv4Addr {
        self.ranges.nth_v4(self.number_of(entry))
    }

    /// The IPv6 address of an entry, if there is a range for it.
    pub fn v6(&self, entry: Entry) -> Option<Ipv6Addr> {
        self.ranges.nth_v6(self.number_of(entry))
    }

    /// A flow uses the name: it keeps its address until as many flows have [released](Self::release) it.
    pub fn hold(&mut self, entry: Entry) {
        if let Some(slot) = self.slots.get_mut(usize::from(entry.0))
            && slot.has_name
        {
            slot.holds += 1;
            if slot.holds == 1 {
                self.unlink(entry.0);
            }
        }
    }

    /// A flow has ended.
    pub fn release(&mut self, entry: Entry) {
        if let Some(slot) = self.slots.get_mut(usize::from(entry.0))
            && slot.holds > 0
        {
            slot.holds -= 1;
            if slot.holds == 0 {
                self.link_newest(entry.0);
            }
        }
    }

    /// How many names there are.
    pub const fn len(&self) -> u16 {
        self.live
    }

    /// Whether there is no name.
    pub const fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// Counts the names that got an address: when it has moved, [`FakeIp::save`] would save something new.
    pub const fn changes(&self) -> u32 {
        self.changes
    }

    /// Counts the names that got no address.
    pub const fn refused(&self) -> u32 {
        self.refused
    }

    /// A slot without a name, and room for a name of `length` bytes.
    fn make_way(&mut self, length: usize, now: Instant) -> Option<u16> {
        while !self.names.has_room(length) {
            let slot = self.evictable(now)?;
            self.vacate(slot);
        }
        if self.vacant == NIL {
            let unused = self.slots.len() as u16;
            if unused < self.limit {
                return Some(unused);
            }
            let slot = self.evictable(now)?;
            self.vacate(slot);
        }
        let slot = self.vacant;
        self.vacant = self.slots.get(usize::from(slot))?.next;
        Some(slot)
    }

    /// The name that may make way.
    fn evictable(&self, now: Instant) -> Option<u16> {
        let mut at = self.oldest;
        while let Some(slot) = self.slots.get(usize::from(at)) {
            if !is_fresh(slot, now) {
                return Some(at);
            }
            at = slot.next;
        }
        None
    }

    /// Takes a slot's name away.
    fn vacate(&mut self, at: u16) {
        self.unlink(at);
        self.unhash(at);
        let vacant = self.vacant;
        if let Some(slot) = self.slots.get_mut(usize::from(at)) {
            slot.has_name = false;
            slot.next = vacant;
            self.names.remove(slot.name_at);
            self.vacant = at;
            self.live -= 1;
        }
    }

    /// Gives a name, for which there is room, to a slot that has none: the first unused one or one that was taken
    /// from the vacant. The slot is in no list yet.
    fn fill(&mut self, at: u16, turn: u16, name: &str, expires: Instant) {
        let slots = &mut self.slots;
        let name_at = self.names.add(at, name, |moved, name_at| {
            if let Some(slot) = slots.get_mut(usize::from(moved)) {
                slot.name_at = name_at;
            }
        });
        let bucket = self.bucket(name);
        let chain = self.buckets[bucket];
        self.buckets[bucket] = at;
        let slot = Slot { name_at, expires, turn, holds: 0, has_name: true, chain, previous: NIL, next: NIL };
        match self.slots.get_mut(usize::from(at)) {
            Some(place) => *place = slot,
            None => self.slots.push(slot),
        }
        self.live += 1;
        self.changes = self.changes.wrapping_add(1);
    }

    fn find_name(&self, name: &str) -> Option<u16> {
        let mut at = self.buckets[self.bucket(name)];
        while let Some(slot) = self.slots.get(usize::from(at)) {
            if self.names.get(slot.name_at) == name {
                return Some(at);
            }
            at = slot.chain;
        }
        None
    }

    fn unhash(&mut self, at: u16) {
        let Some(gone) = self.slots.get(usize::from(at)) else {
            return;
        };
        let (chain, bucket) = (gone.chain, self.bucket(self.names.get(gone.name_at)));
        let mut before = self.buckets[bucket];
        if before == at {
            self.buckets[bucket] = chain;
        }
        while let Some(slot) = self.slots.get_mut(usize::from(before)) {
            if slot.chain == at {
                slot.chain = chain;
                return;
            }
            before = slot.chain;
        }
    }

    fn link_newest(&mut self, at: u16) {
        let previous = core::mem::replace(&mut self.newest, at);
        *self.next_of(previous) = at;
        if let Some(slot) = self.slots.get_mut(usize::from(at)) {
            (slot.previous, slot.next) = (previous, NIL);
        }
    }

    fn unlink(&mut self, at: u16) {
        let Some(&Slot { previous, next, .. }) = self.slots.get(usize::from(at)) else {
            return;
        };
        *self.next_of(previous) = next;
        match self.slots.get_mut(usize::from(next)) {
            Some(slot) => slot.previous = previous,
            None => self.newest = previous,
        }
    }

    /// What links to the slot behind `at`.
    fn next_of(&mut self, at: u16) -> &mut u16 {
        match self.slots.get_mut(usize::from(at)) {
            Some(slot) => &mut slot.next,
            None => &mut self.oldest,
        }
    }

    fn bucket(&self, name: &str) -> usize {
        let mut words = heapless::Vec::<u32, MAX_WORDS>::new();
        for chunk in name.as_bytes().chunks(4) {
            // The longest name fits, and of longer ones these words are enough.
            let _ = words.push(chunk.iter().fold(0, |word, &byte| word << 8 | u32::from(byte)));
        }
        siphash::hash(self.key, &words) as usize & (self.buckets.len() - 1)
    }

    /// How far into its ranges an entry's addresses are.
    fn number_of(&self, entry: Entry) -> u32 {
        let turn = self.slots.get(usize::from(entry.0)).map_or(0, |slot| slot.turn);
        u32::from(turn) * u32::from(self.limit) + u32::from(entry.0)
    }
}

/// Whether a client may still have the address in its cache.
fn is_fresh(slot: &Slot, now: Instant) -> bool {
    slot.expires.since(now) > 0 && !is_long_gone(slot, now)
}

/// Whether it was used weeks ago: such moments look as if they were to come, but lie further ahead than any TTL.
fn is_long_gone(slot: &Slot, now: Instant) -> bool {
    slot.expires.since(now) > 1000 * FAKE_TTL
}

const fn greatest_common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests;
