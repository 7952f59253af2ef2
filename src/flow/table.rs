//! The table of all flows: what each slot holds, and the moves between states.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::net::Ipv6Addr;

use super::{
    CLOSING_IDLE, FIN_BOTH, Flow, IDLE_SAFE, LINGER, NatSource, OPENED_SAFE, OPENING_IDLE, Side, Slot, State,
};
use crate::flow::clients::{ClientId, Clients, Group};
use crate::flow::nat::{NatSources, Turn};
use crate::neighbours::Neighbours;
use crate::net::Family;
use crate::packet::reject::Reject;
use crate::packet::{ChecksumChange, Segment, Tuple};
use crate::siphash::{self, Key};
use crate::slots::Slots;
use crate::time::Instant;

/// The most slots a table can have.
pub const MAX_FLOWS: u16 = 65_000;
/// How many established flows of a client are compared to find one that yields, the one that has been silent the
/// longest. They are those that were not compared for the longest time.
const SAMPLE: usize = 8;

/// Why a new flow was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No slot is free, and no client with more flows can give one up.
    TableFull,
    /// Too many flows are being opened, and no client opens more than this one, or all for a short time yet.
    TooManyHeld,
    /// Too many flows of this client are being opened, all of them begun just now.
    TooManyHeldByClient,
}

/// How large a table is.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Slots, at most [`MAX_FLOWS`].
    pub flows: u16,
    /// The most flows that may be being opened (held or opening), in all.
    pub held: u16,
    /// The same for one client.
    pub held_per_client: u16,
}

/// All flows. Memory is taken once, when the table is made; slots are touched when first used.
///
/// ```
/// use tcp_over_http::flow::{FlowTable, Limits, State};
/// use tcp_over_http::packet::{ChecksumChange, Tuple};
/// use tcp_over_http::time::Instant;
///
/// let limits = Limits { flows: 64, held: 16, held_per_client: 16 };
/// let mut table = FlowTable::new(limits, 252, [1, 2]); // a random key, in earnest
/// let tuple = Tuple {
///     source: "fd00::7".parse()?,
///     destination: "2001:db8::1".parse()?,
///     source_port: 40_000,
///     destination_port: 443,
/// };
/// let now = Instant::from_millis(0);
/// let slot = table.open(tuple, 1, now, |_| ChecksumChange::default()).expect("there is room");
/// table.release(slot, now);
/// assert!(table.accept(slot, now));
///
/// assert_eq!(table.find(&tuple), Some(slot));
/// assert_eq!(table.find_nat(table.get(slot).nat.port), Some(slot));
/// assert_eq!(table.get(slot).state(), State::Live);
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
pub struct FlowTable {
    flows: Vec<Flow>,
    limits: Limits,
    /// A list for each state, in the order in which flows entered it, and the hash of tuples.
    slots: Slots,
    key: Key,
    nat: NatSources,
    /// How many flows are in each state.
    counts: [u16; 6],
    clients: Clients,
    neighbours: Rc<Neighbours>,
    /// The flow that has yielded to the last new one.
    yielded: Option<Slot>,
}

impl FlowTable {
    /// An empty table, whose NAT sources are taken from `hosts` addresses, at least 1. `key` must be random: it keeps
    /// clients from choosing tuples that collide.
    pub fn new(mut limits: Limits, hosts: u8, key: Key) -> Self {
        limits.flows = limits.flows.clamp(1, MAX_FLOWS);
        let first = siphash::hash(key, &[0]);
        Self {
            flows: Vec::with_capacity(limits.flows.into()),
            slots: Slots::new(limits.flows),
            nat: NatSources::new(limits.flows, hosts.max(1), first),
            limits,
            key,
            counts: [0; 6],
            clients: Clients::new(limits.flows, key),
            neighbours: Rc::default(),
            yielded: None,
        }
    }

    /// The flow that a client's packet belongs to.
    pub fn find(&self, tuple: &Tuple) -> Option<Slot> {
        self.find_hashed(tuple, self.hash_of(tuple))
    }

    /// The flow that a NAT source's port belongs to. The caller compares the address.
    pub fn find_nat(&self, port: u16) -> Option<Slot> {
        let slot = self.nat.slot(port)?;
        let flow = self.flows.get(slot as usize)?;
        (flow.nat.port == port).then_some(Slot(slot))
    }

    /// A flow. Slots come from this table only, so there is always one.
    #[inline] // on every packet's path
    pub fn get(&self, slot: Slot) -> &Flow {
        &self.flows[slot.index()]
    }

    /// Changes how many flows may be held, in all and for one client.
    pub const fn limit_held(&mut self, held: u16, held_per_client: u16) {
        self.limits.held = held;
        self.limits.held_per_client = held_per_client;
    }

    /// How many flows are in `state`.
    pub const fn count(&self, state: State) -> u16 {
        self.counts[state as usize]
    }

    /// Whether no flow is left that has anything to do.
    pub fn is_idle(&self) -> bool {
        [State::Held, State::Opening, State::Live, State::Closing].iter().all(|state| self.count(*state) == 0)
    }

    /// How many flows to the same server are held: all, and those from the same address.
    pub fn held_to(&self, tuple: &Tuple) -> (u16, u16) {
        let (mut all, mut same) = (0, 0);
        let mut next = self.slots.first(State::Held as u16);
        while let Some(slot) = next {
            let of = &self.get(Slot(slot)).tuple;
            if (of.destination, of.destination_port) == (tuple.destination, tuple.destination_port) {
                all += 1;
                same += u16::from(of.source == tuple.source);
            }
            next = self.slots.next(slot);
        }
        (all, same)
    }

    /// How many flows a client opens.
    pub fn opened(&self, client: Ipv6Addr) -> u16 {
        self.clients.opened(self.clients.find(self.neighbours.key(client)))
    }

    /// The neighbours, none of which are known at first: they tell clients apart.
    pub const fn neighbours(&self) -> &Rc<Neighbours> {
        &self.neighbours
    }

    /// Opens a flow for a client's SYN; it is held. A flow with the same tuple makes way: if it is live it lives on,
    /// but packets no longer find it. Another flow may have yielded, see [`FlowTable::take_yielded`].
    ///
    /// `change` works out what the translation to the NAT source will change in checksums.
    ///
    /// # Errors
    /// [`Refusal`] if a bound is reached; nothing has changed then.
    pub fn open(
        &mut self,
        tuple: Tuple,
        isn: u32,
        now: Instant,
        change: impl FnOnce(NatSource) -> ChecksumChange,
    ) -> Result<Slot, Refusal> {
        let identity = self.neighbours.key(tuple.source);
        let is_neighbour = self.neighbours.has(tuple.source);
        let mut yielding = self.yielding_opened(self.clients.find(identity), is_neighbour, now)?;
        let (slot, turn) = match self.vacant(now) {
            Some(vacant) => vacant,
            None if self.first(State::Closed).is_some() => return Err(Refusal::TableFull),
            None => {
                let client = self.clients.find(identity);
                let slot = yielding.or_else(|| self.yielding_any(client, now)).ok_or(Refusal::TableFull)?;
                yielding = Some(slot);
                let turn = self.nat.next(slot.0, self.get(slot).turn, now).ok_or(Refusal::TableFull)?;
                (slot, turn)
            }
        };
        if let Some(slot) = yielding {
            self.remove(slot, now);
            self.end(slot, now);
        }
        self.yielded = yielding;
        match slot.0 < self.slots.len() {
            true => {
                self.unhash(slot);
                self.counts[self.get(slot).state as usize] -= 1;
            }
            false => _ = self.slots.add(),
        }
        let hash = self.hash_of(&tuple);
        if let Some(old) = self.find_hashed(&tuple, hash) {
            self.unhash(old);
            // No packet will find it any more, so none can end it.
            if self.get(old).state == State::Closing {
                self.enter(old, State::Closed, now);
            }
        }
        let nat = self.nat.source(slot.0, turn);
        let flow = Flow {
            tuple,
            change: change(nat),
            nat,
            state: State::Held,
            finished: 0,
            refused: None,
            client: self.clients.take(slot.0, identity),
            isn,
            expected: isn.wrapping_add(1),
            since: now.stamp(),
            last_syn: now.stamp(),
            turn,
            is_unseen: false,
            is_neighbour,
            hashed: true,
        };
        match self.flows.get_mut(slot.index()) {
            Some(place) => *place = flow,
            None => self.flows.push(flow),
        }
        self.slots.hash(slot.0, hash);
        self.slots.move_to_back(slot.0, State::Held as u16);
        self.counts[State::Held as usize] += 1;
        Ok(slot)
    }

    /// The flow that has yielded to the last new one: the caller drops what it keeps for it. Must be called at once,
    /// since the new flow may have its slot.
    pub const fn take_yielded(&mut self) -> Option<Slot> {
        self.yielded.take()
    }

    /// Notes that the client repeats the SYN of a held flow. True if it is a new attempt (with another sequence
    /// number), which takes the old one's place: it is as old, or a new one each second would never yield.
    pub fn repeat(&mut self, slot: Slot, isn: u32, now: Instant) -> bool {
        let flow = &mut self.flows[slot.index()];
        flow.last_syn = now.stamp();
        let new = flow.isn != isn;
        if new {
            (flow.isn, flow.expected) = (isn, isn.wrapping_add(1));
        }
        new
    }

    /// Lets a held flow's SYN pass.
    pub fn release(&mut self, slot: Slot, now: Instant) {
        if self.get(slot).state == State::Held {
            self.enter(slot, State::Opening, now);
        }
    }

    /// Notes that the kernel has accepted the flow's connection. False if the flow does not wait for that.
    pub fn accept(&mut self, slot: Slot, now: Instant) -> bool {
        let opening = self.get(slot).state == State::Opening;
        if opening {
            self.enter(slot, State::Live, now);
        }
        opening
    }

    /// Notes that the flow's relay has ended, or that nobody will accept it any more.
    pub fn close(&mut self, slot: Slot, now: Instant) {
        let flow = self.get(slot);
        match (flow.state, flow.finished) {
            (State::Opening | State::Live, FIN_BOTH) => self.enter(slot, State::Closed, now),
            (State::Opening | State::Live, _) => self.enter(slot, State::Closing, now),
            _ => {}
        }
    }

    /// No more packets of the flow are expected.
    fn end(&mut self, slot: Slot, now: Instant) {
        if matches!(self.get(slot).state, State::Opening | State::Live | State::Closing) {
            self.enter(slot, State::Closed, now);
        }
    }

    /// Frees the slot of a flow of which no packet was translated and no more are expected. It is the next to be used.
    pub fn vacate(&mut self, slot: Slot, now: Instant) {
        if self.get(slot).state == State::Opening {
            self.unhash(slot);
            self.enter(slot, State::Free, now);
            self.flows[slot.index()].is_unseen = true;
            self.slots.move_to_front(slot.0, State::Free as u16);
        }
    }

    /// Forgets a held flow at once: its next SYN opens a new one.
    pub fn remove(&mut self, slot: Slot, now: Instant) {
        if self.get(slot).state == State::Held {
            self.unhash(slot);
            self.enter(slot, State::Closed, now);
        }
    }

    /// Forgets a held flow whose client is refused; if its SYN comes again soon, it is refused again.
    pub fn refuse(&mut self, slot: Slot, reject: Reject, now: Instant) {
        if self.get(slot).state == State::Held {
            self.enter(slot, State::Closed, now);
            self.flows[slot.index()].refused = Some(reject);
        }
    }

    /// Notes a translated packet of the flow.
    #[inline] // on every packet's path
    pub fn note(&mut self, slot: Slot, side: Side, segment: &Segment, now: Instant) {
        let flow = &mut self.flows[slot.index()];
        if !flow.note(side, segment) {
            return;
        }
        match flow.state {
            State::Live => flow.since = now.stamp(),
            State::Closing => {
                let next = if flow.finished == FIN_BOTH { State::Closed } else { State::Closing };
                self.enter(slot, next, now);
            }
            _ => {}
        }
    }

    /// Notes that the kernel no longer has a connection for the flow.
    pub fn finish(&mut self, slot: Slot, now: Instant) {
        let flow = &mut self.flows[slot.index()];
        flow.finished = FIN_BOTH;
        if flow.state == State::Closing {
            self.enter(slot, State::Closed, now);
        }
    }

    /// Ends the state of one flow that has waited too long: a held flow whose client has given up is forgotten, an
    /// opening or closing one is closed. Returns the flow and that state. To be called until `None`, at least every few
    /// seconds.
    pub fn expire(&mut self, now: Instant) -> Option<(Slot, State)> {
        while let Some(slot) = self.first(State::Closed)
            && self.get(slot).since.age(now) >= LINGER
        {
            self.unhash(slot);
            self.enter(slot, State::Free, now);
        }
        for (state, idle) in [(State::Opening, OPENING_IDLE), (State::Closing, CLOSING_IDLE)] {
            if let Some(slot) = self.first(state)
                && self.get(slot).since.age(now) >= idle
            {
                self.enter(slot, State::Closed, now);
                return Some((slot, state));
            }
        }
        // Held flows are few and wait for different times, so all of them are checked.
        let mut at = self.first(State::Held);
        while let Some(slot) = at {
            if self.get(slot).is_given_up(now) {
                self.remove(slot, now);
                return Some((slot, State::Held));
            }
            at = self.slots.next(slot.0).map(Slot);
        }
        None
    }

    /// The slot to use next and which of its NAT sources: one that has been vacated, else the one that has been free
    /// the longest, else one never used (so that memory is touched only if the rate of new flows demands it), else the
    /// one that has been closed the longest.
    fn vacant(&self, now: Instant) -> Option<(Slot, Turn)> {
        if let Some(slot) = self.first(State::Free) {
            let Flow { is_unseen, turn, .. } = *self.get(slot);
            return Some((slot, if is_unseen { turn } else { self.nat.next_rested(slot.0, turn, now) }));
        }
        let unused = self.flows.len() as u16;
        if unused < self.limits.flows {
            return Some((Slot(unused), self.nat.first(unused, now)));
        }
        let slot = self.first(State::Closed)?;
        let turn = self.nat.next(slot.0, self.get(slot).turn, now)?;
        Some((slot, turn))
    }

    /// The flow that yields to one that `client` is about to open, if too many are being opened.
    fn yielding_opened(
        &self,
        client: Option<ClientId>,
        is_neighbour: bool,
        now: Instant,
    ) -> Result<Option<Slot>, Refusal> {
        let opened = self.clients.opened(client);
        let (from, refusal) = if self.count(State::Held) + self.count(State::Opening) >= self.limits.held {
            let most = self.clients.most_opened();
            let has_most = self.clients.opened(most);
            let from = donor(client, opened, most, has_most);
            let few = self.limits.held_per_client / 4;
            let from = match is_neighbour {
                true if from == client && opened < few => {
                    if let Some(slot) = self.oldest_opened(true, now) {
                        return Ok(Some(slot));
                    }
                    from
                }
                false if from != client && has_most <= few && self.is_of_neighbour(from) => None,
                _ => from,
            };
            (from, Refusal::TooManyHeld)
        } else if opened >= self.limits.held_per_client {
            (client, Refusal::TooManyHeldByClient)
        } else {
            return Ok(None);
        };
        // All have one each, as where a machine sends SYNs in the name of many.
        let of_all = || self.oldest_opened(!is_neighbour, now).or_else(|| self.oldest_opened(false, now));
        let oldest = from.and_then(|from| self.clients.first(from, Group::Opened)).map(Slot).or_else(of_all);
        let is_safe =
            |slot| (from == client || from.is_none()) && self.get(slot).since.age(now) < OPENED_SAFE;
        oldest.filter(|slot| !is_safe(*slot)).map(Some).ok_or(refusal)
    }

    /// Whether the client was known as a neighbour when it opened its oldest flow.
    fn is_of_neighbour(&self, client: Option<ClientId>) -> bool {
        let flow = client.and_then(|client| self.clients.first(client, Group::Opened));
        flow.is_some_and(|flow| self.get(Slot(flow)).is_neighbour)
    }

    /// The oldest flow being opened, or with `of_stranger` the oldest of those whose client is no neighbour.
    fn oldest_opened(&self, of_stranger: bool, now: Instant) -> Option<Slot> {
        let first = |state| {
            let mut at = self.first(state);
            while let Some(slot) = at
                && of_stranger
                && self.get(slot).is_neighbour
            {
                at = self.slots.next(slot.0).map(Slot);
            }
            at
        };
        [State::Held, State::Opening]
            .into_iter()
            .filter_map(first)
            .max_by_key(|slot| self.get(*slot).since.age(now))
    }

    /// The flow that yields to one that `client` is about to open in a full table: roughly the one that has been silent
    /// the longest.
    fn yielding_any(&mut self, client: Option<ClientId>, now: Instant) -> Option<Slot> {
        let most = self.clients.most();
        let from = donor(client, self.clients.all(client), most, self.clients.all(most))?;
        let age = |table: &Self, slot: u16| table.get(Slot(slot)).since.age(now);
        let mut found = self.clients.first(from, Group::Opened).map(|slot| (age(self, slot), slot));
        for _ in 0..SAMPLE {
            let Some(slot) = self.clients.first(from, Group::Established) else { break };
            self.clients.put_last(slot, from, Group::Established);
            found = found.max(Some((age(self, slot), slot)));
        }
        let (age, slot) = found?;
        (Some(from) != client || age >= IDLE_SAFE).then_some(Slot(slot))
    }

    /// The flow that has been in `state` for the longest time.
    fn first(&self, state: State) -> Option<Slot> {
        self.slots.first(state as u16).map(Slot)
    }

    /// Moves a flow to the end of the list of `state`.
    fn enter(&mut self, slot: Slot, state: State, now: Instant) {
        let flow = &mut self.flows[slot.index()];
        let was = core::mem::replace(&mut flow.state, state);
        flow.since = now.stamp();
        let client = flow.client;
        self.clients.enter(slot.0, client, was, state);
        self.counts[was as usize] -= 1;
        self.counts[state as usize] += 1;
        self.slots.move_to_back(slot.0, state as u16);
    }

    /// Makes a flow impossible to find for packets.
    fn unhash(&mut self, slot: Slot) {
        let flow = &mut self.flows[slot.index()];
        if core::mem::take(&mut flow.hashed) {
            let tuple = flow.tuple;
            self.slots.unhash(slot.0, self.hash_of(&tuple));
        }
    }

    fn find_hashed(&self, tuple: &Tuple, hash: u32) -> Option<Slot> {
        self.slots.find(hash, |slot| self.flows[slot as usize].tuple == *tuple).map(Slot)
    }

    fn hash_of(&self, tuple: &Tuple) -> u32 {
        let words = |address: Ipv6Addr| {
            let o = address.octets();
            [0, 4, 8, 12].map(|at| u32::from_ne_bytes([o[at], o[at + 1], o[at + 2], o[at + 3]]))
        };
        let ports = (tuple.source_port as u32) << 16 | tuple.destination_port as u32;
        let ([a, b, c, d], [e, f, g, h]) = (words(tuple.source), words(tuple.destination));
        match tuple.family() {
            Family::V4 => siphash::hash(self.key, &[d, h, ports]),
            Family::V6 => siphash::hash(self.key, &[a, b, c, d, e, f, g, h, ports]),
        }
    }
}

/// The client that gives a flow up for a client that has `has`, when `most` has the most: that one, unless it would
/// then have fewer; otherwise the client itself.
fn donor(client: Option<ClientId>, has: u16, most: Option<ClientId>, has_most: u16) -> Option<ClientId> {
    if has_most > has + 1 { most } else { client }
}
