//! Addresses that stand for names.
//!
//! A client that asks for a name gets an address that belongs to nobody. When it connects there, the name is found
//! again and goes into CONNECT, so that only the proxy ever resolves it.
//!
//! # Addresses
//!
//! The table has slots, each for one name, and each slot has a number of addresses, of which one at a time is the
//! name's: both an IPv4 and an IPv6 one, as far into their ranges. A slot that gets another name gets another
//! address, in turn, so that an address rests as long as the range allows. A client that connects to one that
//! rests has kept it for too long, and is refused rather than brought to the wrong host. Each run takes turns in an order of
//! its own: after a crash, it does not know what the last one has handed out lately, and is not to repeat it.
//!
//! # Which name makes way
//!
//! The one whose use is the longest ago: but none that a flow holds ([`FakeIp::hold`]), and none that a client may
//! still have in its cache, for the TTL of an answer. TTLs get short when names come faster than the table is large.
//!
//! If there is no such name, somebody asks for more than there is, and must not take it from others. Nobody can tell
//! who asks often: dnsmasq asks for all. But who connects is known, and clients connect at once. So names that nobody has
//! connected to make way for each other, the oldest first, and have a quarter of the table at least; the others belong
//! to a client each, and the client with the most gives up its own. Its flows hold a quarter of the table at most.
//!
//! An address that was promised for longer than its name lasted is refused until it has rested: a slot takes less than
//! all its turns until then.

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
/// ...and of slots that have lost their name.
const VACANT: u16 = 2;
/// Words of the longest name.
const MAX_WORDS: usize = 64;
/// Names that are looked at for one that no cache has.
const SEARCHED: usize = 128;
/// A name's share of the table: 1 for each so many bytes.
const UNIT: usize = 32;

/// A name's place in the table. Good as long as a flow [holds](FakeIp::hold) it, else until the next name comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry(u16);

struct Slot {
    /// Where the name is, or [`NO_NAME`].
    name_at: u32,
    /// When the last client that was told has forgotten.
    expires: Stamp,
    /// Which of its addresses the slot has.
    turn: u16,
    /// Flows that use the name.
    holds: u16,
    /// The place of the client whose name it is, or [`NOBODY`].
    owner: u16,
    /// So many turns has the slot taken lately, less than half of all...
    hurried: u16,
    /// ...and until when addresses are promised of which these took the name...
    rests: Stamp,
    /// ...and as many turns before these.
    rested: Stamp,
}

impl Slot {
    /// The list that it belongs to, with its name.
    const fn list(&self) -> u16 {
        match (self.holds, self.owner) {
            (0, NOBODY) => NEW,
            (0, _) => IDLE,
            _ => HELD,
        }
    }

    /// Whether its next address is promised to nobody any more.
    fn may_turn(&self, turns: u16, now: Instant) -> bool {
        let has_rested = self.rested.instant(now) <= now;
        let half = half(turns);
        self.hurried < half
            || has_rested && (half > 0 || !is_fresh(self, now) && self.rests.instant(now) <= now)
    }

    /// Counts that it loses its name.
    fn count_turn(&mut self, turns: u16, now: Instant) {
        if self.hurried >= half(turns) {
            (self.rested, self.rests, self.hurried) = (self.rests, now.stamp(), 0);
        }
        self.rests = self.rests.instant(now).max(self.expires.instant(now)).stamp();
        self.hurried += 1;
    }
}

/// After twice as many turns no address has come back.
const fn half(turns: u16) -> u16 {
    (turns - 1) / 2
}

/// The table. It takes its memory when it is made, and touches it when there are names for it: 32 bytes for each,
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

    /// The entry of a name in lowercase, a new one if it has none, safe from others for `ttl` seconds (at most
    /// [`FAKE_TTL`]). None if the table is full of names in use.
    pub fn assign(&mut self, name: &str, ttl: u32, now: Instant) -> Option<Entry> {
        let ttl = 1000 * ttl.min(FAKE_TTL);
        if let Some(slot) = self.find_name(name) {
            // A longer promise given before still holds.
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

    /// The name that an address stands for, IPv4 perhaps mapped. None: it stands for none, or not any more.
    pub fn find(&self, address: IpAddr) -> Option<Entry> {
        let number = self.ranges.number(address)?;
        let (turn, slot) = (number / u32::from(self.limit), number % u32::from(self.limit));
        let found = self.slots.get(slot as usize)?;
        (found.name_at != NO_NAME && u32::from(found.turn) == turn).then_some(Entry(slot as u16))
    }

    /// Whether an address, IPv4 perhaps mapped, lies in our ranges.
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

    /// A client connects to the name. True if a flow holds it then: it keeps its address until as many flows have
    /// [released](Self::release) it. False if the client's flows, or all, hold as much as they may: it is the client's
    /// as long as there is room.
    pub fn hold(&mut self, entry: Entry, client: ClientKey) -> bool {
        let weight = self.weight(entry.0);
        let Some(slot) = self.slots.get_mut(usize::from(entry.0)).filter(|slot| slot.name_at != NO_NAME)
        else {
            return false;
        };
        if slot.holds == 0 {
            let place = self.shares.place(client);
            // Clients with few names take from those with more, never the reverse: the largest loses its names first.
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

    /// Counts the names that got an address: when it has moved, [`FakeIp::save`] would save something new.
    pub const fn changes(&self) -> u32 {
        self.changes
    }

    /// A slot without a name, and room for a name of `length` bytes.
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

    /// Takes away the name that may make way.
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

    /// The slot whose name may make way.
    fn makes_way(&mut self, now: Instant) -> Option<u16> {
        // Those that have to wait for addresses to rest would be looked at again and again.
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

    /// The first slot of a list, among so many, that is such and may lose its name.
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

    /// Gives a name, for which there is room, to a slot that has none: the first unused one or a vacant one. The
    /// caller moves it to another list.
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

    /// A slot that has had no name, and is in no list.
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

    /// How far into its ranges an entry's addresses are.
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
        // The longest name fits, and of longer ones these words are enough.
        let _ = words.push(chunk.iter().fold(0, |word, &byte| word << 8 | u32::from(byte)));
    }
    siphash::hash(key, &words)
}

const fn greatest_common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests;
