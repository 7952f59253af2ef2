//! Addresses that stand for names.
//!
//! A client that asks for a name gets an address that belongs to nobody. When it connects there, the name is found
//! again and goes into CONNECT, so that only the proxy ever resolves it.
//!
//! # Addresses
//!
//! The table has slots, each for one name. Each slot has a number of addresses (pairs of an IPv4 and an IPv6 address,
//! equally far into their ranges), of which the name has one at a time. A slot that gets another name takes its next
//! address, so that an address rests as long as the range allows. A client that connects to a resting address has kept
//! it for too long, and is refused rather than brought to the wrong host. Each run takes the addresses in an order of
//! its own: after a crash it does not know what the last run has handed out lately, and must not repeat it.
//!
//! # Which name makes way
//!
//! The least recently used one; but none that a flow holds ([`FakeIp::hold`]), and none that a client may still have in
//! its cache, for the TTL of an answer. TTLs get short when names come too fast for the size of the table.
//!
//! If there is no such name, somebody asks for too many, and must not take them from others. Who asks is unknown, since
//! dnsmasq asks for everybody. But it is known who connects, and clients connect at once. So names that nobody has
//! connected to make way for each other, the oldest first, and have at least a quarter of the table. Each of the others
//! belongs to a client, and the client with the most gives up its own. A client's flows hold at most a quarter of the
//! table.
//!
//! An address that was promised for longer than its name lasted is refused until the promise has expired: until then, a
//! slot takes fewer turns than it has addresses.

mod answer;
mod file;
mod names;
mod ranges;
mod shares;

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::net::ClientKey;
use crate::siphash::{self, Key};
use crate::slots::Slots;
use crate::time::{Instant, Stamp};
pub use answer::FAKE_TTL;
use names::{NO_NAME, Names};
pub use ranges::Ranges;
use shares::{NOBODY, Shares};

/// The most names a table can have.
const MAX_NAMES: u16 = 65_000;
/// The list of the names that nobody has connected to, the longest not asked for first...
const NEW: u16 = 0;
/// ...of those without flows, the longest unused first...
const IDLE: u16 = 3;
/// ...of those that flows use...
const HELD: u16 = 1;
/// ...and of slots that have lost their names.
const VACANT: u16 = 2;
/// Hash words of the longest name.
const MAX_WORDS: usize = 64;
/// How many names are searched for one that no cache has.
const SEARCHED: usize = 128;
/// A name's weight is 1 for each this many bytes.
const UNIT: usize = 32;

/// A name's place in the table. Valid while a flow [holds](FakeIp::hold) it, otherwise until the next name is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry(u16);

struct Slot {
    /// Where the name is, or [`NO_NAME`].
    name_at: u32,
    /// When the answer has expired in every client's cache.
    expires: Stamp,
    /// Which of its addresses the slot uses.
    turn: u16,
    /// Flows that use the name.
    holds: u16,
    /// The place of the client that the name belongs to, or [`NOBODY`].
    owner: u16,
    /// How many turns the slot has taken lately, less than half of all...
    hurried: u16,
    /// ...until when addresses are still promised whose names these turns took...
    rests: Stamp,
    /// ...and the same for the turns before these.
    rested: Stamp,
}

impl Slot {
    /// The list that a slot with a name belongs in.
    const fn list(&self) -> u16 {
        match (self.holds, self.owner) {
            (0, NOBODY) => NEW,
            (0, _) => IDLE,
            _ => HELD,
        }
    }

    /// Whether its next address is no longer promised to anybody.
    fn may_turn(&self, turns: u16, now: Instant) -> bool {
        let has_rested = self.rested.instant(now) <= now;
        let half = half(turns);
        self.hurried < half
            || has_rested && (half > 0 || !is_fresh(self, now) && self.rests.instant(now) <= now)
    }

    /// Counts the turn in which it loses its name.
    fn count_turn(&mut self, turns: u16, now: Instant) {
        if self.hurried >= half(turns) {
            (self.rested, self.rests, self.hurried) = (self.rests, now.stamp(), 0);
        }
        self.rests = self.rests.instant(now).max(self.expires.instant(now)).stamp();
        self.hurried += 1;
    }
}

/// Half of the turns: within two halves no address comes back.
const fn half(turns: u16) -> u16 {
    (turns - 1) / 2
}

/// The table. Reserves its memory when it is made, and touches it as names come: 32 bytes for each, and 3 bytes more
/// than the name itself, at most 32 on average.
pub struct FakeIp {
    ranges: Ranges,
    limit: u16,
    /// How many addresses a slot has.
    turns: u16,
    /// Where slots begin: different in each run, in case the last run's addresses are no longer known.
    first_turn: u16,
    /// The step from a slot's address to its next one; coprime to `turns`, so that all addresses are used.
    step: u16,
    slots: Vec<Slot>,
    /// The lists of slots, and the hash of names.
    links: Slots,
    names: Names,
    key: Key,
    shares: Shares,
    /// Weights of names: of those that nobody has connected to...
    new: u32,
    /// ...and of those that flows hold.
    held: u32,
    live: u16,
    changes: u32,
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
            links: Slots::new(limit),
            names: Names::new(limit),
            key,
            shares: Shares::default(),
            new: 0,
            held: 0,
            live: 0,
            changes: 0,
        }
    }

    /// The entry of a lowercase name, a new one if it has none, kept for at least `ttl` seconds (at most [`FAKE_TTL`]).
    /// `None` if the table is full of names in use.
    pub fn assign(&mut self, name: &str, ttl: u32, now: Instant) -> Option<Entry> {
        let ttl = 1000 * ttl.min(FAKE_TTL);
        if let Some(slot) = self.find_name(name) {
            // An earlier, longer promise still holds.
            let entry = self.slots.get_mut(usize::from(slot))?;
            entry.expires = entry.expires.instant(now).max(now.plus(ttl)).stamp();
            let list = entry.list();
            if list != HELD {
                self.links.move_to_back(slot, list);
            }
            return Some(Entry(slot));
        }
        let slot = self.make_way(name.len(), now)?;
        let turn = match self.slots.get(usize::from(slot)) {
            Some(slot) => ((u32::from(slot.turn) + u32::from(self.step)) % u32::from(self.turns)) as u16,
            None => self.first_turn,
        };
        self.fill(slot, turn, name, now.plus(ttl));
        self.links.move_to_back(slot, NEW);
        Some(Entry(slot))
    }

    /// The entry of the name that an address stands for; IPv4 may be mapped. `None` if it stands for none, or no
    /// longer.
    pub fn find(&self, address: IpAddr) -> Option<Entry> {
        let number = self.ranges.number(address)?;
        let (turn, slot) = (number / u32::from(self.limit), number % u32::from(self.limit));
        let found = self.slots.get(slot as usize)?;
        (found.name_at != NO_NAME && u32::from(found.turn) == turn).then_some(Entry(slot as u16))
    }

    /// Whether an address is in the ranges; IPv4 may be mapped.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.ranges.contain(address)
    }

    /// The name of an entry.
    pub fn name(&self, entry: Entry) -> &str {
        self.slots.get(usize::from(entry.0)).map_or("", |slot| self.names.get(slot.name_at))
    }

    /// The IPv4 address of an entry.
    pub fn v4(&self, entry: Entry) -> Ipv4Addr {
        self.ranges.nth_v4(self.number_of(entry))
    }

    /// The IPv6 address of an entry, if there is a range for it.
    pub fn v6(&self, entry: Entry) -> Option<Ipv6Addr> {
        self.ranges.nth_v6(self.number_of(entry))
    }

    /// Notes that a client connects to the name. True: a flow now holds it, and it keeps its address until as many
    /// flows have [released](Self::release) it. False: the client's flows, or all flows, already hold as many as they
    /// may; the name is the client's as long as there is room.
    pub fn hold(&mut self, entry: Entry, client: ClientKey) -> bool {
        let weight = self.weight(entry.0);
        let Some(slot) = self.slots.get_mut(usize::from(entry.0)).filter(|slot| slot.name_at != NO_NAME)
        else {
            return false;
        };
        if slot.holds == 0 {
            let place = self.shares.place(client);
            // A name passes to a client with fewer names, never to one with more, since the largest client loses its
            // names first.
            if slot.owner == NOBODY || self.shares.all(place) + weight < self.shares.all(slot.owner) {
                match slot.owner {
                    NOBODY => self.new -= weight,
                    owner => self.shares.add(owner, -(weight as i32)),
                }
                slot.owner = place;
                self.shares.add(place, weight as i32);
            }
            let quarter = u32::from(self.limit).div_ceil(4);
            if self.shares.held(slot.owner) >= quarter || self.held >= 3 * quarter {
                self.links.move_to_back(entry.0, IDLE);
                return false;
            }
            self.held += weight;
            self.shares.hold(slot.owner, weight as i32);
        }
        slot.holds += 1;
        self.links.move_to_back(entry.0, HELD);
        true
    }

    /// A flow has ended.
    pub fn release(&mut self, entry: Entry) {
        let weight = self.weight(entry.0);
        if let Some(slot) = self.slots.get_mut(usize::from(entry.0))
            && slot.holds > 0
        {
            slot.holds -= 1;
            if slot.holds == 0 {
                self.held -= weight;
                self.shares.hold(slot.owner, -(weight as i32));
                self.links.move_to_back(entry.0, IDLE);
            }
        }
    }

    /// How many names there are.
    pub const fn count(&self) -> u16 {
        self.live
    }

    /// How many names have got an address so far. If it has changed, [`FakeIp::save`] would save something new.
    pub const fn changes(&self) -> u32 {
        self.changes
    }

    /// Makes room for a name of `length` bytes; returns a slot without a name.
    fn make_way(&mut self, length: usize, now: Instant) -> Option<u16> {
        while !self.names.has_room(length) {
            self.vacate(now)?;
        }
        if self.links.first(VACANT).is_none() {
            let unused = self.links.len();
            if unused < self.limit {
                return Some(unused);
            }
            self.vacate(now)?;
        }
        self.links.first(VACANT)
    }

    /// Removes the name that makes way first.
    fn vacate(&mut self, now: Instant) -> Option<()> {
        let at = self.makes_way(now)?;
        let weight = self.weight(at);
        let slot = self.slots.get_mut(usize::from(at))?;
        match slot.owner {
            NOBODY => self.new -= weight,
            owner => self.shares.add(owner, -(weight as i32)),
        }
        slot.count_turn(self.turns, now);
        let name_at = core::mem::replace(&mut slot.name_at, NO_NAME);
        self.links.unhash(at, hash(self.key, self.names.get(name_at)));
        self.links.move_to_front(at, VACANT);
        self.names.remove(name_at);
        self.live -= 1;
        Some(())
    }

    /// The slot whose name makes way first.
    fn makes_way(&mut self, now: Instant) -> Option<u16> {
        // Bounded, since slots whose addresses have to rest would be visited again and again.
        for _ in 0..self.links.len() {
            match self.links.first(NEW) {
                Some(at) if !self.may_turn(at, now) => self.links.move_to_back(at, NEW),
                _ => break,
            }
        }
        let is_old = |slot: &Slot| !is_fresh(slot, now);
        for list in [NEW, IDLE] {
            if let Some(at) = self.search(list, SEARCHED, now, &is_old) {
                return Some(at);
            }
        }
        if self.new * 4 < self.limit.into()
            && let Some(largest) = self.shares.largest()
            && let Some(at) = self.search(IDLE, usize::MAX, now, &|slot| slot.owner == largest)
        {
            return Some(at);
        }
        self.links.first(NEW).filter(|&at| self.may_turn(at, now))
    }

    /// The first among the first `most` slots of a list that `is_such` and may lose its name.
    fn search(&self, list: u16, most: usize, now: Instant, is_such: &dyn Fn(&Slot) -> bool) -> Option<u16> {
        let mut next = self.links.first(list);
        for _ in 0..most {
            let at = next?;
            let slot = self.slots.get(usize::from(at))?;
            if is_such(slot) && slot.may_turn(self.turns, now) {
                return Some(at);
            }
            next = self.links.next(at);
        }
        None
    }

    fn may_turn(&self, at: u16, now: Instant) -> bool {
        self.slots.get(usize::from(at)).is_some_and(|slot| slot.may_turn(self.turns, now))
    }

    /// How much of the table a slot's name takes.
    fn weight(&self, at: u16) -> u32 {
        1 + (self.name(Entry(at)).len() / UNIT) as u32
    }

    /// Gives a name, for which there is room, to a slot that has none: the first unused one or a vacant one. The caller
    /// moves the slot to another list.
    fn fill(&mut self, at: u16, turn: u16, name: &str, expires: Instant) {
        let slots = &mut self.slots;
        let name_at = self.names.add(at, name, |moved, name_at| {
            if let Some(slot) = slots.get_mut(usize::from(moved)) {
                slot.name_at = name_at;
            }
        });
        if usize::from(at) == self.slots.len() {
            self.add_slot();
        }
        if let Some(slot) = self.slots.get_mut(usize::from(at)) {
            *slot = Slot { name_at, expires: expires.stamp(), turn, owner: NOBODY, ..*slot };
        }
        self.new += self.weight(at);
        self.links.hash(at, hash(self.key, name));
        self.live += 1;
        self.changes = self.changes.wrapping_add(1);
    }

    /// Adds a slot that has never had a name and is in no list.
    fn add_slot(&mut self) -> u16 {
        let never = Instant::default().stamp();
        let turn = self.first_turn;
        self.slots.push(Slot {
            name_at: NO_NAME,
            expires: never,
            turn,
            holds: 0,
            owner: NOBODY,
            hurried: 0,
            rests: never,
            rested: never,
        });
        self.links.add()
    }

    fn find_name(&self, name: &str) -> Option<u16> {
        self.links.find(hash(self.key, name), |slot| self.name(Entry(slot)) == name)
    }

    /// How far an entry's addresses are into their ranges.
    fn number_of(&self, entry: Entry) -> u32 {
        let turn = self.slots.get(usize::from(entry.0)).map_or(0, |slot| slot.turn);
        u32::from(turn) * u32::from(self.limit) + u32::from(entry.0)
    }
}

/// Whether a client may still have the address in its cache.
fn is_fresh(slot: &Slot, now: Instant) -> bool {
    slot.expires.instant(now) > now
}

fn hash(key: Key, name: &str) -> u32 {
    let mut words = heapless::Vec::<u32, MAX_WORDS>::new();
    for chunk in name.as_bytes().chunks(4) {
        // The longest name fits; of a longer one these words are enough.
        let _ = words.push(chunk.iter().fold(0, |word, &byte| word << 8 | u32::from(byte)));
    }
    siphash::hash(key, &words)
}

const fn greatest_common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests;
