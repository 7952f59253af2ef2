//! Lists of operations on a flow table, held against a model of vectors and maps that is too simple to be
//! wrong in the same way.

use std::collections::{HashMap, VecDeque};
use std::net::{Ipv4Addr, Ipv6Addr};

use arbitrary::Arbitrary;
use tcp_over_http::flow::{
    CLOSING_IDLE, Flow, FlowTable, IDLE_SAFE, LINGER, Limits, NatSource, OPENED_SAFE, OPENING_IDLE, REST,
    Refusal, Side, Slot, State,
};
use tcp_over_http::net::ClientKey;
use tcp_over_http::packet::reject::Reject;
use tcp_over_http::packet::{ACK, ChecksumChange, FIN, RST, SYN, Segment, Tuple};
use tcp_over_http::time::Instant;

/// A table's size, and what is done to it.
#[derive(Clone, Debug, Arbitrary)]
pub struct Script {
    flows: u8,
    held: u8,
    held_per_client: u8,
    hosts: u8,
    key: [u32; 2],
    start: u32,
    #[arbitrary(with = super::list)]
    operations: Vec<Operation>,
}

/// Tuples and flows are given by numbers that are taken modulo how many there are.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub enum Operation {
    Open {
        tuple: u8,
        isn: u8,
    },
    Release(u8),
    Accept(u8),
    Close(u8),
    Remove(u8),
    Refuse(u8),
    Vacate(u8),
    /// A segment so far from where the flow is: mostly there.
    Note {
        flow: u8,
        listener: bool,
        flags: u8,
        length: u8,
        far: i8,
    },
    Expire,
    Wait {
        milliseconds: u16,
    },
    WaitSeconds(u8),
    WaitDays(u8),
}

impl Script {
    pub fn run(&self) {
        let limits = Limits {
            flows: (self.flows % 12 + 1) as u16,
            held: (self.held % 8 + 1) as u16,
            held_per_client: (self.held_per_client % 4 + 1) as u16,
        };
        let mut model = Model::new(limits, self.hosts % 5 + 1, self.key, self.start as u64);
        for operation in &self.operations {
            model.apply(*operation);
            model.check();
        }
    }
}

/// What is known of a slot.
#[derive(Clone, Debug)]
struct Entry {
    slot: Slot,
    tuple: Tuple,
    nat: NatSource,
    state: State,
    found: bool,
    finished: [bool; 2],
    refused: bool,
    /// Whether a packet was translated.
    seen: bool,
    isn: u32,
    /// The client's next sequence number, as far as the kernel knows.
    expected: u32,
    since: u64,
    last_syn: u64,
    /// When it was opened, or had its relay: as a number of operations.
    entered: u64,
}

impl Entry {
    fn is_opened(&self) -> bool {
        matches!(self.state, State::Held | State::Opening)
    }

    fn is_established(&self) -> bool {
        matches!(self.state, State::Live | State::Closing)
    }
}

pub struct Model {
    table: FlowTable,
    limits: Limits,
    hosts: u8,
    now: u64,
    /// By slot number.
    entries: Vec<Entry>,
    /// Slots in the order of their closing.
    over: VecDeque<usize>,
    /// When a NAT source's flow was last closed.
    closed: HashMap<(u8, u16), u64>,
    /// How many NAT sources were taken again.
    pub retaken: usize,
    /// How many flows have yielded.
    pub yielded: usize,
    operations: u64,
    /// Where the table's flows lie.
    memory: Option<usize>,
}

const TUPLES: u8 = 40;

/// 5 clients of both families with 8 ports each.
fn tuple(nth: u8) -> Tuple {
    let nth = nth % TUPLES;
    many_tuples(nth as u32 % 5, nth as u32 / 5)
}

/// Tuples of any number of clients.
pub fn many_tuples(client: u32, port: u32) -> Tuple {
    let (source, destination) = match client % 2 {
        0 => (
            Ipv4Addr::from_bits(0x0a00_0001 + client).to_ipv6_mapped(),
            Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped(),
        ),
        _ => (Ipv6Addr::from_bits(0xfd00 << 112 | client as u128), "2001:db8::1".parse().unwrap()),
    };
    Tuple { source, destination, source_port: 40_000 + port as u16, destination_port: 443 }
}

impl Model {
    pub fn new(limits: Limits, hosts: u8, key: [u32; 2], now: u64) -> Self {
        Self {
            table: FlowTable::new(limits, hosts, key),
            limits,
            hosts,
            now,
            entries: Vec::new(),
            over: VecDeque::new(),
            closed: HashMap::new(),
            retaken: 0,
            yielded: 0,
            operations: 0,
            memory: None,
        }
    }

    pub fn apply(&mut self, operation: Operation) {
        self.operations += 1;
        match operation {
            Operation::Open { tuple: nth, isn } => {
                self.open(tuple(nth), isn as u32);
            }
            Operation::Release(nth) => self.with(nth, Self::release),
            Operation::Accept(nth) => self.with(nth, Self::accept),
            Operation::Close(nth) => self.with(nth, Self::close),
            Operation::Remove(nth) => self.with(nth, Self::remove),
            Operation::Refuse(nth) => self.with(nth, Self::refuse),
            Operation::Vacate(nth) => self.with(nth, Self::vacate),
            Operation::Note { flow, listener, flags, length, far } => self.with(flow, |model, nth| {
                let far = if far % 3 == 0 { 0 } else { (far as i32) << (far as u32 % 24) };
                model.note(nth, listener, flags, length.into(), far as u32)
            }),
            Operation::Expire => self.expire(),
            Operation::Wait { milliseconds } => self.now += milliseconds as u64,
            Operation::WaitSeconds(seconds) => self.now += seconds as u64 * 1_000,
            Operation::WaitDays(days) => self.idle(days as u64 * 86_400_000),
        }
    }

    fn with(&mut self, nth: u8, then: impl FnOnce(&mut Self, usize)) {
        if !self.entries.is_empty() {
            let nth = nth as usize % self.entries.len();
            then(self, nth);
        }
    }

    fn instant(&self) -> Instant {
        Instant::from_millis(self.now)
    }

    /// Time passes; nothing comes, dials end, and the daemon goes on calling `expire`.
    fn idle(&mut self, milliseconds: u64) {
        let end = self.now + milliseconds;
        (0..self.entries.len()).for_each(|nth| self.remove(nth));
        // By then all has happened that can.
        for _ in 0..5 {
            self.now += 100_000;
            self.expire();
        }
        self.now = self.now.max(end);
        self.expire();
    }

    /// Opens a flow as the rewriter does; true if there is one more.
    pub fn open(&mut self, tuple: Tuple, isn: u32) -> bool {
        let now = self.instant();
        let old =
            (0..self.entries.len()).find(|nth| self.entries[*nth].found && self.entries[*nth].tuple == tuple);
        if let Some(old) = old {
            let entry = &mut self.entries[old];
            match entry.state {
                State::Held => {
                    let new = self.table.repeat(entry.slot, isn, now);
                    assert_eq!(new, entry.isn != isn);
                    entry.last_syn = self.now;
                    if new {
                        (entry.isn, entry.expected) = (isn, isn.wrapping_add(1));
                    }
                    return false;
                }
                State::Opening | State::Live => return false,
                _ => {}
            }
        }

        let unused = self.entries.len();
        let is_full = self.over.is_empty() && unused == self.limits.flows as usize;
        let mut asked = None;
        let result = self.table.open(tuple, isn, now, |nat| {
            asked = Some(nat);
            ChecksumChange::default()
        });
        let yielded = self.table.take_yielded();
        self.check_yielded(ClientKey::of(tuple.source), result, yielded, is_full);
        if let Some(yielded) = yielded {
            let nth = yielded.index();
            self.entries[nth].found &= self.entries[nth].state != State::Held;
            self.enter(nth, State::Closed);
            self.yielded += 1;
        }
        let oldest = self.over.front().copied();
        let is_free = oldest.is_some_and(|nth| self.entries[nth].state == State::Free);
        let expected = match oldest {
            Some(oldest) if is_free => Some(oldest),
            _ if unused < self.limits.flows as usize => Some(unused),
            oldest => oldest,
        };
        let Ok(slot) = result else {
            if let (Err(Refusal::TableFull), Some(expected)) = (result, expected) {
                // Only a NAT source that might not have rested is a reason.
                assert!(expected < unused && !is_free);
                let ago = self.now - self.entries[expected].since;
                assert!(self.hosts == 1 || ago < REST as u64);
            }
            return false;
        };
        assert_eq!(Some(slot.index()), expected, "not the oldest");
        if slot.index() < unused {
            self.over.pop_front();
            self.entries[slot.index()].found = false;
        }
        if let Some(old) = old.filter(|old| *old != slot.index()) {
            self.entries[old].found = false;
            if self.entries[old].state == State::Closing {
                self.enter(old, State::Closed);
            }
        }

        let nat = self.table.get(slot).nat;
        assert_eq!(asked, Some(nat));
        assert!(nat.host < self.hosts);
        if let Some(closed) = self.closed.get(&(nat.host, nat.port)) {
            assert!(self.now - closed >= REST as u64, "{nat:?} has not rested");
            self.retaken += 1;
        }
        let entry = Entry {
            slot,
            tuple,
            nat,
            state: State::Held,
            found: true,
            finished: [false; 2],
            refused: false,
            seen: false,
            isn,
            expected: isn.wrapping_add(1),
            since: self.now,
            last_syn: self.now,
            entered: self.operations,
        };
        match self.entries.get_mut(slot.index()) {
            Some(place) => *place = entry,
            None => self.entries.push(entry),
        }
        true
    }

    /// Whether the right flow has yielded to a client's new one, or none with reason.
    fn check_yielded(
        &self,
        client: ClientKey,
        result: Result<Slot, Refusal>,
        yielded: Option<Slot>,
        is_full: bool,
    ) {
        let is_opened: &dyn Fn(&Entry) -> bool = &Entry::is_opened;
        let (held, held_per_client) = (self.limits.held as usize, self.limits.held_per_client as usize);
        let count_all = self.entries.iter().filter(|entry| entry.is_opened()).count();
        let few = count_all < held.min(held_per_client);
        let opened = if few { 0 } else { self.count_of(client, is_opened) };
        let (too_many, of_client) = (count_all >= held, opened >= held_per_client);
        let of_group = too_many || of_client;
        if !of_group && !is_full {
            assert_eq!(yielded, None);
            assert!(matches!(result, Ok(_) | Err(Refusal::TableFull)));
            return;
        }
        let counted =
            if of_group { is_opened } else { &|entry: &Entry| entry.is_opened() || entry.is_established() };
        let has = self.count_of(client, counted);
        let mut counts: Vec<(ClientKey, usize)> = Vec::new();
        for entry in self.entries.iter().filter(|entry| counted(entry)) {
            let identity = ClientKey::of(entry.tuple.source);
            // Many clients have one each in the largest tables: those are not told apart.
            match counts.iter_mut().take(8).find(|(known, _)| *known == identity) {
                Some((_, count)) => *count += 1,
                None => counts.push((identity, 1)),
            }
        }
        let most = counts.iter().map(|(_, count)| *count).max().unwrap_or(0);
        let from_other = most > has + 1 && (too_many || !of_group);
        let from_any = too_many && !from_other && has == 0;
        let is_donor = |entry: &Entry| {
            let identity = ClientKey::of(entry.tuple.source);
            match from_other {
                true => identity != client && self.count_of(identity, counted) == most,
                false => from_any || identity == client,
            }
        };
        // As the table's stamps have it: a flow that has been silent for longer than 49 days looks younger.
        let age = |entry: &Entry| Instant::from_millis(entry.since).stamp().age(self.instant());
        let Some(slot) = yielded else {
            let refusal = match (too_many, of_client) {
                (true, _) => Refusal::TooManyHeld,
                (_, true) => Refusal::TooManyHeldByClient,
                _ => Refusal::TableFull,
            };
            // Or else a NAT source has not rested.
            if result != Err(Refusal::TableFull) {
                assert_eq!(result, Err(refusal));
            }
            if of_group && result == Err(refusal) {
                assert!(!from_other);
                let own = self.entries.iter().filter(|entry| entry.is_opened() && is_donor(entry));
                let oldest = own.min_by_key(|entry| entry.entered);
                assert!(oldest.is_none_or(|oldest| age(oldest) < OPENED_SAFE));
            }
            return;
        };
        let entry = &self.entries[slot.index()];
        assert!(is_donor(entry), "{entry:?} yields to {client:?}");
        let mut donated = self.entries.iter().filter(|other| match from_any {
            true => other.state == entry.state,
            false => ClientKey::of(other.tuple.source) == ClientKey::of(entry.tuple.source),
        });
        if entry.is_opened() {
            // A client's are in the order of their SYNs, all of a state in that in which they came to it.
            let older = |other: &Entry| match from_any && entry.state == State::Opening {
                true => other.since < entry.since,
                false => other.is_opened() && other.entered < entry.entered,
            };
            assert!(!donated.clone().any(older), "not the oldest");
        }
        if of_group {
            assert!(entry.is_opened());
            assert!(from_other || age(entry) >= OPENED_SAFE);
        } else {
            assert!(counted(entry));
            assert!(from_other || age(entry) >= IDLE_SAFE);
            if donated.clone().filter(|other| other.is_established()).count() <= 8 {
                let silent = |other: &Entry| other.is_established() && age(other) > age(entry);
                assert!(!donated.any(silent), "another is more silent");
            }
        }
    }

    fn count_of(&self, client: ClientKey, counted: &dyn Fn(&Entry) -> bool) -> usize {
        let is_it = |entry: &&Entry| ClientKey::of(entry.tuple.source) == client && counted(entry);
        self.entries.iter().filter(is_it).count()
    }

    pub fn release(&mut self, nth: usize) {
        self.table.release(self.entries[nth].slot, self.instant());
        if self.entries[nth].state == State::Held {
            self.enter(nth, State::Opening);
        }
    }

    pub fn accept(&mut self, nth: usize) {
        let accepted = self.table.accept(self.entries[nth].slot, self.instant());
        assert_eq!(accepted, self.entries[nth].state == State::Opening);
        if accepted {
            self.enter(nth, State::Live);
        }
    }

    pub fn close(&mut self, nth: usize) {
        self.table.close(self.entries[nth].slot, self.instant());
        if let State::Opening | State::Live = self.entries[nth].state {
            let state = match self.entries[nth].finished {
                [true, true] => State::Closed,
                _ => State::Closing,
            };
            self.enter(nth, state);
        }
    }

    fn remove(&mut self, nth: usize) {
        self.table.remove(self.entries[nth].slot, self.instant());
        if self.entries[nth].state == State::Held {
            self.entries[nth].found = false;
            self.enter(nth, State::Closed);
        }
    }

    fn refuse(&mut self, nth: usize) {
        self.table.refuse(self.entries[nth].slot, Reject::Host, self.instant());
        if self.entries[nth].state == State::Held {
            self.entries[nth].refused = true;
            self.enter(nth, State::Closed);
        }
    }

    /// The kernel has taken the connection before a packet was translated.
    fn vacate(&mut self, nth: usize) {
        let entry = &mut self.entries[nth];
        if entry.state == State::Opening && !entry.seen {
            self.table.vacate(entry.slot, Instant::from_millis(self.now));
            entry.found = false;
            self.enter(nth, State::Free);
            self.over.push_front(nth);
        }
    }

    /// Notes a segment, if the rewriter would.
    pub fn note(&mut self, nth: usize, listener: bool, flags: u8, length: u32, far: u32) {
        let entry = &mut self.entries[nth];
        let now = Instant::from_millis(self.now);
        if !self.table.get(entry.slot).is_translated(now) {
            return;
        }
        entry.seen = true;
        let flags = flags & (FIN | RST | ACK | SYN);
        let side = if listener { Side::Listener } else { Side::Client };
        let at = entry.expected.wrapping_add(far);
        let segment = Segment { sequence: at, acknowledgement: at, length, flags };
        self.table.note(entry.slot, side, &segment, now);
        match listener {
            false => {
                // Nobody who does not know where the flow is changes it.
                let is_there = (0..=length).any(|known| at.wrapping_add(known) == entry.expected);
                if flags & SYN != 0 || !is_there || flags & RST != 0 && at != entry.expected {
                    return;
                }
                entry.expected = at.wrapping_add(length);
            }
            true if flags & ACK != 0 && far < 1 << 31 => entry.expected = at,
            true => {}
        }
        if entry.state == State::Live {
            entry.since = self.now;
        }
        if flags & RST != 0 {
            entry.finished = [true; 2];
        } else if flags & FIN != 0 {
            entry.finished[listener as usize] = true;
        }
        if entry.state == State::Closing {
            let state = match entry.finished {
                [true, true] => State::Closed,
                _ => State::Closing,
            };
            self.enter(nth, state);
        }
    }

    pub fn expire(&mut self) {
        for nth in 0..self.entries.len() {
            let entry = &mut self.entries[nth];
            if entry.state == State::Closed && self.now - entry.since >= LINGER as u64 {
                (entry.state, entry.found) = (State::Free, false);
            }
        }
        while let Some((slot, state)) = self.table.expire(self.instant()) {
            let nth = slot.index();
            assert_eq!(self.entries[nth].state, state);
            assert!(self.is_due(&self.entries[nth]), "{state:?} too early");
            self.entries[nth].found &= state != State::Held;
            self.enter(nth, State::Closed);
        }
        assert!(!self.entries.iter().any(|entry| self.is_due(entry)));
    }

    fn is_due(&self, entry: &Entry) -> bool {
        let idle = self.now - entry.since;
        match entry.state {
            State::Held => {
                let patience = 7_000 + 2 * (entry.last_syn - entry.since);
                self.now - entry.last_syn > patience
            }
            State::Opening => idle >= OPENING_IDLE as u64,
            State::Closing => idle >= CLOSING_IDLE as u64,
            _ => false,
        }
    }

    fn enter(&mut self, nth: usize, state: State) {
        let entry = &mut self.entries[nth];
        (entry.state, entry.since) = (state, self.now);
        if state == State::Live {
            entry.entered = self.operations;
        }
        if state == State::Closed {
            self.over.push_back(nth);
            self.closed.insert((entry.nat.host, entry.nat.port), self.now);
        }
    }

    /// Makes `count` live flows, of as many clients, in an empty table.
    pub fn fill(&mut self, count: u32) {
        for client in 0..count {
            let tuple = many_tuples(1_000 + client, 0);
            let now = self.instant();
            let slot = self.table.open(tuple, 0, now, |_| ChecksumChange::default()).unwrap();
            self.table.release(slot, now);
            assert!(self.table.accept(slot, now));
            self.entries.push(Entry {
                slot,
                tuple,
                nat: self.table.get(slot).nat,
                state: State::Live,
                found: true,
                finished: [false; 2],
                refused: false,
                seen: true,
                isn: 0,
                expected: 1,
                since: self.now,
                last_syn: self.now,
                entered: 0,
            });
        }
    }

    pub fn exists(&self, nth: usize) -> bool {
        nth < self.entries.len()
    }

    pub fn state(&self, nth: usize) -> State {
        self.entries[nth].state
    }

    pub fn wait(&mut self, milliseconds: u64) {
        self.now += milliseconds;
    }

    /// Compares all that can be seen of the table with the model.
    pub fn check(&mut self) {
        let count = |state| {
            let of_state = |entry: &&Entry| entry.state == state;
            self.entries.iter().filter(of_state).count() as u16
        };
        let (held, live) = (count(State::Held), count(State::Live));
        assert_eq!((self.table.count(State::Held), self.table.count(State::Live)), (held, live));
        let busy = held + live + count(State::Opening) + count(State::Closing);
        assert_eq!(self.table.is_idle(), busy == 0);

        let mut sources = HashMap::new();
        for (nth, entry) in self.entries.iter().enumerate() {
            let flow = self.table.get(entry.slot);
            assert_eq!(flow.state(), entry.state);
            assert_eq!((flow.tuple, flow.nat), (entry.tuple, entry.nat));
            assert_eq!(flow.isn(), entry.isn);
            let expected = match entry.state {
                State::Held | State::Free => false,
                State::Closed => entry.found && !entry.refused && self.now - entry.since < LINGER as u64,
                _ => entry.found,
            };
            assert_eq!(flow.is_translated(self.instant()), expected, "{entry:?}");
            assert_eq!(self.table.find_nat(entry.nat.port), Some(entry.slot));
            if entry.found {
                assert_eq!(self.table.find(&entry.tuple), Some(entry.slot));
            }
            if !matches!(entry.state, State::Closed | State::Free) {
                assert_eq!(sources.insert((entry.nat.host, entry.nat.port), nth), None);
                assert!(entry.found, "{entry:?} is lost");
            }
            let at = flow as *const Flow as usize - nth * size_of::<Flow>();
            assert_eq!(*self.memory.get_or_insert(at), at, "moved in memory");
        }
        for tuple in (0..TUPLES).map(tuple) {
            let known = |entry: &Entry| entry.found && entry.tuple == tuple;
            let found = self.table.find(&tuple).is_some();
            assert_eq!(found, self.entries.iter().any(known));
        }
    }
}
