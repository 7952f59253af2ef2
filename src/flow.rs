//! The flow table: which client connection stands behind which NAT source.
//!
//! # Theory of operation
//!
//! A flow is one slot of a fixed array. Its NAT source, a port and an address of the TUN's subnet, is
//! worked out from the slot number and from how often the slot has been used, so that a packet from the
//! listener finds its flow by an array index, and a packet from a client by one hash of its 5-tuple.
//!
//! ```text
//!            open          release           accept           close
//!   (rested) ----> Held ------------> Opening ------> Live ------------> Closing
//!      ^            | remove              | expire      | close, both ends     | both ends finished,
//!      |            v                     v             v finished             v or idle for 4 min
//!      +--------- Closed <----------------+-------------+----------------------+
//! ```
//!
//! - **Held**: the SYN waits outside the kernel until the proxy has answered. Bounded, in all and per client.
//! - **Opening**: the SYN has been given to the kernel, the connection has not been accepted yet.
//! - **Live**: a relay has it. Ends only when the relay does; nothing that happens to the table hurts it.
//! - **Closing**: the relay has ended, the kernel still delivers what it was given. Ends when both ends have
//!   sent a FIN or one has sent a RST, or after [`CLOSING_IDLE`] without a packet (RFC 5382 REQ-5: at least
//!   4 minutes for a connection in transition).
//! - **Closed**: still translated for [`LINGER`], for a FIN that is sent again, unless its slot is needed.
//!
//! Closed slots queue up and are reused oldest first. Every use of a slot takes the next NAT source, so the
//! kernel's TIME_WAIT (60 s) does not meet the same 4-tuple again: 65,000 ports times up to 253 addresses go
//! round before one returns, and if that should take less than [`REST`], the slot is not reused. A full
//! table refuses the new flow.

use alloc::{vec, vec::Vec};
use core::fmt;
use core::net::Ipv6Addr;

use heapless::index_map::FnvIndexMap;

use crate::packet::{Change, FIN, RST, Tuple};
use crate::siphash::{self, Key};
use crate::time::Instant;

/// The most slots a table can have.
pub const MAX_FLOWS: u16 = 65_000;
/// How long a flow whose relay has ended may be without a packet, in ms (RFC 5382 REQ-5).
pub const CLOSING_IDLE: u32 = 240_000;
/// How long a released SYN may wait to be accepted, in ms: longer than the kernel repeats its SYN-ACK.
pub const OPENING_IDLE: u32 = 75_000;
/// How long a closed flow is still translated, in ms.
pub const LINGER: u32 = 60_000;
/// How long a NAT source rests before it is used again, in ms: the kernel's TIME_WAIT.
pub const REST: u32 = 60_000;
/// Most clients that can have held flows at a time.
const MAX_HOLDERS: usize = 512;
/// The lowest NAT source port.
const FIRST_PORT: u16 = 512;
/// How many ports there are from [`FIRST_PORT`] on.
const PORTS: u32 = 65_536 - FIRST_PORT as u32;
/// The end of a list.
const NIL: u16 = u16::MAX;

/// The number of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(u16);

impl Slot {
    /// The number as an array index.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "flow {}", self.0)
    }
}

/// Where a flow is in its life; see the module's theory of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// SYN held back.
    Held,
    /// SYN released, not accepted yet.
    Opening,
    /// Relayed.
    Live,
    /// Relay ended, packets still under way.
    Closing,
    /// Over.
    Closed,
}

/// The side a packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// From the client.
    Client,
    /// From the listener.
    Listener,
}

/// Why a new flow was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No slot is free.
    TableFull,
    /// Too many flows are held.
    TooManyHeld,
    /// Too many flows of this client are held.
    TooManyHeldByClient,
}

/// How large a table is.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Slots, at most [`MAX_FLOWS`].
    pub flows: u16,
    /// Held flows in all.
    pub held: u16,
    /// Held flows of one client address.
    pub held_per_client: u16,
    /// Addresses that NAT sources are taken from, at least 1.
    pub hosts: u8,
}

/// A NAT source: the n-th address of the subnet's NAT sources, and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NatSource {
    /// Which of [`Limits::hosts`] addresses.
    pub host: u8,
    /// The port.
    pub port: u16,
}

/// One flow.
#[derive(Clone, Debug)]
pub struct Flow {
    /// The connection as the client sees it.
    pub tuple: Tuple,
    /// What translating a packet from the client changes in its checksums.
    pub change: Change,
    /// Where the listener sees it come from.
    pub nat: NatSource,
    state: State,
    /// Which ends have finished: bits `FIN_*`.
    finished: u8,
    /// The client's initial sequence number.
    isn: u32,
    /// Held: first SYN. Otherwise: when the state or, while closing, a packet was last seen.
    since: Instant,
    /// Held: last SYN.
    last_syn: Instant,
    /// How many times the slot has been used.
    uses: u32,
    /// When the NAT sources of this slot last began their round.
    round: Instant,
    /// Next flow of the same hash bucket; meaningless unless `hashed`.
    chain: u16,
    /// Whether packets find the flow: no longer, once a newer flow has its tuple.
    hashed: bool,
    /// Neighbours in the queue of the state.
    previous: u16,
    next: u16,
}

const FIN_CLIENT: u8 = 1;
const FIN_LISTENER: u8 = 2;
const FIN_BOTH: u8 = FIN_CLIENT | FIN_LISTENER;

impl Flow {
    /// Where the flow is in its life.
    pub const fn state(&self) -> State {
        self.state
    }

    /// Whether packets of the flow may still be translated at `now`.
    pub const fn is_translated(&self, now: Instant) -> bool {
        let over = match self.state {
            State::Held => true,
            State::Closed => now.since(self.since) >= LINGER,
            _ => false,
        };
        self.hashed && !over
    }

    /// The client's initial sequence number.
    pub const fn isn(&self) -> u32 {
        self.isn
    }

    /// Whether a client that repeats its SYN with the usual back-off would have done so by now.
    const fn is_given_up(&self, now: Instant) -> bool {
        let patience = 2 * self.last_syn.since(self.since) + 7_000;
        now.since(self.last_syn) > patience
    }
}

/// A doubly linked list through the slots.
#[derive(Clone, Copy)]
struct Queue {
    head: u16,
    tail: u16,
}

/// All flows. Memory is taken once, when the table is made; slots are touched when first used.
pub struct FlowTable {
    flows: Vec<Flow>,
    limits: Limits,
    /// Heads of the hash chains; the length is a power of two.
    buckets: Vec<u16>,
    key: Key,
    /// Where the NAT sources of each slot begin, so that a restarted daemon does not begin with those
    /// that its forerunner left in TIME_WAIT.
    first_use: u32,
    queues: [Queue; 5],
    holders: FnvIndexMap<[u8; 16], u16, MAX_HOLDERS>,
    held: u16,
    live: u16,
}

impl FlowTable {
    /// An empty table. `key` must be random: it keeps clients from choosing tuples that collide.
    pub fn new(mut limits: Limits, key: Key) -> Self {
        limits.flows = limits.flows.clamp(1, MAX_FLOWS);
        limits.hosts = limits.hosts.max(1);
        Self {
            flows: Vec::with_capacity(limits.flows as usize),
            buckets: vec![NIL; (limits.flows as usize).next_power_of_two()],
            limits,
            key,
            first_use: siphash::hash(key, &[0]),
            queues: [Queue { head: NIL, tail: NIL }; 5],
            holders: FnvIndexMap::new(),
            held: 0,
            live: 0,
        }
    }

    /// The flow that a client's packet belongs to.
    pub fn find(&self, tuple: &Tuple) -> Option<Slot> {
        let mut at = self.buckets[self.bucket(tuple)];
        while at != NIL {
            let flow = &self.flows[at as usize];
            if flow.tuple == *tuple {
                return Some(Slot(at));
            }
            at = flow.chain;
        }
        None
    }

    /// The flow that a NAT source's port belongs to. The caller compares the address.
    pub fn find_nat(&self, port: u16) -> Option<Slot> {
        let slot = port.checked_sub(FIRST_PORT)? % self.limits.flows;
        let flow = self.flows.get(slot as usize)?;
        (flow.nat.port == port).then_some(Slot(slot))
    }

    /// A flow. Slots come from this table only, so there is always one.
    pub fn get(&self, slot: Slot) -> &Flow {
        &self.flows[slot.index()]
    }

    /// How many flows are held, and how many are live.
    pub const fn occupancy(&self) -> (u16, u16) {
        (self.held, self.live)
    }

    /// Whether no flow is left that has anything to do.
    pub fn is_idle(&self) -> bool {
        let busy = [State::Held, State::Opening, State::Live, State::Closing];
        busy.iter().all(|state| self.queues[*state as usize].head == NIL)
    }

    /// A new flow for the SYN of a client, held. A flow of the same tuple that is over makes way.
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
        change: impl FnOnce(NatSource) -> Change,
    ) -> Result<Slot, Refusal> {
        if self.held >= self.limits.held {
            return Err(Refusal::TooManyHeld);
        }
        let holder = tuple.source.octets();
        let count = self.holders.get(&holder).copied().unwrap_or(0);
        if count >= self.limits.held_per_client {
            return Err(Refusal::TooManyHeldByClient);
        }
        let (slot, uses, round) = self.vacant(now).ok_or(Refusal::TableFull)?;
        self.holders.insert(holder, count + 1).map_err(|_| Refusal::TooManyHeld)?;
        self.held += 1;

        if slot.index() < self.flows.len() {
            self.unlink(slot);
            self.unhash(slot);
        }
        if let Some(old) = self.find(&tuple) {
            self.unhash(old);
        }
        let nat = self.nat_source(slot, uses);
        let flow = Flow {
            tuple,
            change: change(nat),
            nat,
            state: State::Held,
            finished: 0,
            isn,
            since: now,
            last_syn: now,
            uses,
            round,
            chain: NIL,
            hashed: false,
            previous: NIL,
            next: NIL,
        };
        match self.flows.get_mut(slot.index()) {
            Some(place) => *place = flow,
            None => self.flows.push(flow),
        }
        self.hash(slot);
        self.link(slot);
        Ok(slot)
    }

    /// The client repeats the SYN of a held flow. True if it is a new attempt (another sequence number),
    /// which takes the old one's place.
    pub fn repeat(&mut self, slot: Slot, isn: u32, now: Instant) -> bool {
        let flow = &mut self.flows[slot.index()];
        flow.last_syn = now;
        let new = flow.isn != isn;
        if new {
            flow.isn = isn;
            flow.since = now;
        }
        new
    }

    /// Lets a held flow's SYN pass.
    pub fn release(&mut self, slot: Slot, now: Instant) {
        if self.get(slot).state == State::Held {
            self.enter(slot, State::Opening, now);
        }
    }

    /// The kernel has accepted the flow's connection. False if the flow does not wait for that.
    pub fn accept(&mut self, slot: Slot, now: Instant) -> bool {
        let opening = self.get(slot).state == State::Opening;
        if opening {
            self.enter(slot, State::Live, now);
        }
        opening
    }

    /// The flow's relay has ended, or nobody will accept it any more.
    pub fn close(&mut self, slot: Slot, now: Instant) {
        let flow = self.get(slot);
        match (flow.state, flow.finished) {
            (State::Opening | State::Live, FIN_BOTH) => self.enter(slot, State::Closed, now),
            (State::Opening | State::Live, _) => self.enter(slot, State::Closing, now),
            _ => {}
        }
    }

    /// Forgets a held flow at once: its next SYN is a new flow.
    pub fn remove(&mut self, slot: Slot, now: Instant) {
        if self.get(slot).state == State::Held {
            self.unhash(slot);
            self.enter(slot, State::Closed, now);
        }
    }

    /// Notes a translated packet of the flow with TCP `flags`.
    pub fn note(&mut self, slot: Slot, side: Side, flags: u8, now: Instant) {
        let flow = &mut self.flows[slot.index()];
        if flags & RST != 0 {
            flow.finished = FIN_BOTH;
        } else if flags & FIN != 0 {
            flow.finished |= if side == Side::Client { FIN_CLIENT } else { FIN_LISTENER };
        }
        if flow.state == State::Closing {
            let next = if flow.finished == FIN_BOTH { State::Closed } else { State::Closing };
            self.enter(slot, next, now);
        }
    }

    /// Takes one flow that has waited too long out of its state: a held flow whose client has given up
    /// is forgotten, an opening or closing one is closed. Returns what it was; call until None.
    pub fn expire(&mut self, now: Instant) -> Option<(Slot, State)> {
        for (state, idle) in [(State::Opening, OPENING_IDLE), (State::Closing, CLOSING_IDLE)] {
            let slot = Slot(self.queues[state as usize].head);
            if slot.0 != NIL && now.since(self.get(slot).since) >= idle {
                self.enter(slot, State::Closed, now);
                return Some((slot, state));
            }
        }
        // Held flows are few, and their patience differs, so they are looked through.
        let mut at = self.queues[State::Held as usize].head;
        while at != NIL {
            let flow = &self.flows[at as usize];
            if flow.is_given_up(now) {
                self.remove(Slot(at), now);
                return Some((Slot(at), State::Held));
            }
            at = flow.next;
        }
        None
    }

    /// The slot to use next, which use of it this is, and when its NAT sources' round began: the oldest
    /// closed one if it has rested, else one never used (memory is touched only when the rate of new
    /// flows asks for it), else the oldest closed one all the same.
    fn vacant(&self, now: Instant) -> Option<(Slot, u32, Instant)> {
        let oldest = Slot(self.queues[State::Closed as usize].head);
        let unused = self.flows.len() as u16;
        let rested = oldest.0 != NIL && now.since(self.get(oldest).since) >= LINGER;
        if !rested && unused < self.limits.flows {
            return Some((Slot(unused), 0, now));
        }
        if oldest.0 == NIL {
            return None;
        }
        let flow = self.get(oldest);
        let uses = flow.uses + 1;
        if uses < self.sources(oldest) {
            return Some((oldest, uses, flow.round));
        }
        (now.since(flow.round) >= REST).then_some((oldest, 0, now))
    }

    /// How many ports a slot has: those that are its number modulo the number of slots.
    fn ports(&self, slot: Slot) -> u32 {
        (PORTS - 1 - slot.0 as u32) / self.limits.flows as u32 + 1
    }

    /// How many NAT sources a slot has.
    fn sources(&self, slot: Slot) -> u32 {
        self.ports(slot) * self.limits.hosts as u32
    }

    fn nat_source(&self, slot: Slot, uses: u32) -> NatSource {
        let nth = (uses + self.first_use % self.sources(slot)) % self.sources(slot);
        let hosts = self.limits.hosts as u32;
        let port = slot.0 as u32 + nth / hosts * self.limits.flows as u32;
        NatSource { host: (nth % hosts) as u8, port: FIRST_PORT + port as u16 }
    }

    /// Moves a flow to the end of the queue of `state`.
    fn enter(&mut self, slot: Slot, state: State, now: Instant) {
        self.unlink(slot);
        let flow = &mut self.flows[slot.index()];
        let (was, holder) = (flow.state, flow.tuple.source.octets());
        flow.state = state;
        flow.since = now;
        self.link(slot);
        match was {
            State::Held => {
                self.held -= 1;
                match self.holders.get_mut(&holder) {
                    Some(count) if *count > 1 => *count -= 1,
                    _ => _ = self.holders.swap_remove(&holder),
                }
            }
            State::Live => self.live -= 1,
            _ => {}
        }
        if state == State::Live {
            self.live += 1;
        }
    }

    fn link(&mut self, slot: Slot) {
        let state = self.flows[slot.index()].state as usize;
        let tail = self.queues[state].tail;
        self.flows[slot.index()].previous = tail;
        self.flows[slot.index()].next = NIL;
        match tail {
            NIL => self.queues[state].head = slot.0,
            _ => self.flows[tail as usize].next = slot.0,
        }
        self.queues[state].tail = slot.0;
    }

    fn unlink(&mut self, slot: Slot) {
        let Flow { state, previous, next, .. } = self.flows[slot.index()];
        match previous {
            NIL => self.queues[state as usize].head = next,
            _ => self.flows[previous as usize].next = next,
        }
        match next {
            NIL => self.queues[state as usize].tail = previous,
            _ => self.flows[next as usize].previous = previous,
        }
    }

    fn hash(&mut self, slot: Slot) {
        let bucket = self.bucket(&self.flows[slot.index()].tuple);
        let flow = &mut self.flows[slot.index()];
        flow.chain = self.buckets[bucket];
        flow.hashed = true;
        self.buckets[bucket] = slot.0;
    }

    fn unhash(&mut self, slot: Slot) {
        let flow = &mut self.flows[slot.index()];
        if !flow.hashed {
            return;
        }
        flow.hashed = false;
        let (tuple, chain) = (flow.tuple, flow.chain);
        let bucket = self.bucket(&tuple);
        let mut at = self.buckets[bucket];
        if at == slot.0 {
            self.buckets[bucket] = chain;
            return;
        }
        while at != NIL {
            let next = self.flows[at as usize].chain;
            if next == slot.0 {
                self.flows[at as usize].chain = chain;
                return;
            }
            at = next;
        }
    }

    fn bucket(&self, tuple: &Tuple) -> usize {
        let words = |address: Ipv6Addr| {
            let o = address.octets();
            [0, 4, 8, 12].map(|at| u32::from_ne_bytes([o[at], o[at + 1], o[at + 2], o[at + 3]]))
        };
        let ports = (tuple.source_port as u32) << 16 | tuple.destination_port as u32;
        let ([a, b, c, d], [e, f, g, h]) = (words(tuple.source), words(tuple.destination));
        let hash = match tuple.is_ipv4() {
            true => siphash::hash(self.key, &[d, h, ports]),
            false => siphash::hash(self.key, &[a, b, c, d, e, f, g, h, ports]),
        };
        hash as usize & (self.buckets.len() - 1)
    }
}
