//! Who has how many flows.
//!
//! # Theory of operation
//! A client is an IPv4 address, an IPv6 neighbour or an IPv6 /64 (see [`crate::neighbours`]). Its flows form two groups,
//! each a list: those being **opened** (held or opening) and those **established** (live or closing).
//! Clients are ranked twice, by the number of flows they open and by the number they have in all, so that the one with
//! the most is known at once: its flows make room for those of others.
//!
//! A ranking holds the clients in order of their counts. A count changes by one at a time, so the client changes places
//! with the first or last one of its count, whose place follows from how many clients have more:
//!
//! ```text
//! counts        5  2  2  2  1      one more for the last 2:   5  3  2  2  1
//! above[2] = 1 -----^     ^-- moves to place above[2], which then is 2
//! ```

use alloc::vec::Vec;

use super::State;
use crate::net::ClientKey;
use crate::siphash::{self, Key};
use crate::slots::Slots;

/// A group of a client's flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Held or opening.
    Opened,
    /// Live or closing.
    Established,
}

impl Group {
    /// The group of flows in this state; none if they are over.
    const fn of(state: State) -> Option<Self> {
        match state {
            State::Held | State::Opening => Some(Self::Opened),
            State::Live | State::Closing => Some(Self::Established),
            State::Closed | State::Free => None,
        }
    }
}

/// The number of a client that has flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientId(u16);

/// All clients that have flows. Grows with them.
pub struct Clients {
    key: Key,
    identities: Vec<ClientKey>,
    /// The slots in use, the free ones, and the hash of identities.
    slots: Slots,
    opened: Ranking,
    all: Ranking,
    /// Rings: of flow n at 3 n, the heads of client n's lists after it.
    links: Vec<Links>,
}

/// The lists of [`Clients::slots`].
const USED: u16 = 0;
const UNUSED: u16 = 1;

#[derive(Clone, Copy)]
struct Links {
    previous: u32,
    next: u32,
}

impl Clients {
    /// No clients yet; for at most `limit` flows. `key` must be random.
    pub fn new(limit: u16, key: Key) -> Self {
        Self {
            key,
            identities: Vec::new(),
            slots: Slots::new(limit),
            opened: Ranking::default(),
            all: Ranking::default(),
            links: Vec::new(),
        }
    }

    /// The client, if it has flows.
    pub fn find(&self, identity: ClientKey) -> Option<ClientId> {
        let is_it = |number| self.identities[usize::from(number)] == identity;
        self.slots.find(self.hash_of(identity), is_it).map(ClientId)
    }

    /// How many flows the client opens.
    pub fn opened(&self, client: Option<ClientId>) -> u16 {
        client.map_or(0, |client| self.opened.count(client))
    }

    /// How many flows the client has.
    pub fn all(&self, client: Option<ClientId>) -> u16 {
        client.map_or(0, |client| self.all.count(client))
    }

    /// The client that opens the most flows.
    pub fn most_opened(&self) -> Option<ClientId> {
        self.opened.first()
    }

    /// The client that has the most flows.
    pub fn most(&self) -> Option<ClientId> {
        self.all.first()
    }

    /// The first flow of the client's group: the one that has been there the longest since it entered or was put last.
    pub fn first(&self, client: ClientId, group: Group) -> Option<u16> {
        let head = head(client, group);
        let first = self.links.get(head)?.next;
        (first as usize != head).then_some((first / 3) as u16)
    }

    /// Moves a flow of the client to the end of its group.
    pub fn put_last(&mut self, flow: u16, client: ClientId, group: Group) {
        self.unlink(flow);
        self.link(flow, client, group);
    }

    /// Adds a new flow, which is held.
    pub fn take(&mut self, flow: u16, identity: ClientKey) -> ClientId {
        // No more heads than flows are needed, since each client has a flow.
        while self.links.len() <= usize::from(flow) * 3 {
            let at = self.links.len() as u32;
            self.links.extend([at, at + 1, at + 2].map(|at| Links { previous: at, next: at }));
        }
        let client = self.find(identity).unwrap_or_else(|| self.enroll(identity));
        self.enter(flow, client, State::Free, State::Held);
        client
    }

    /// Notes that a flow of the client changes its state. A client without flows is forgotten.
    pub fn enter(&mut self, flow: u16, client: ClientId, was: State, is: State) {
        let (was, is) = (Group::of(was), Group::of(is));
        if was == is {
            return;
        }
        self.unlink(flow);
        if let Some(group) = is {
            self.link(flow, client, group);
        }
        if is == Some(Group::Opened) {
            self.opened.raise(client);
        }
        if was == Some(Group::Opened) {
            self.opened.lower(client);
        }
        if was.is_none() {
            self.all.raise(client);
        }
        if is.is_none() {
            self.all.lower(client);
            if self.all.count(client) == 0 {
                self.slots.unhash(client.0, self.hash_of(self.identities[usize::from(client.0)]));
                self.slots.move_to_front(client.0, UNUSED);
            }
        }
    }

    fn enroll(&mut self, identity: ClientKey) -> ClientId {
        let number = match self.slots.first(UNUSED) {
            Some(number) => {
                self.identities[usize::from(number)] = identity;
                number
            }
            None => {
                self.identities.push(identity);
                self.opened.add();
                self.all.add();
                self.slots.add()
            }
        };
        self.slots.move_to_back(number, USED);
        self.slots.hash(number, self.hash_of(identity));
        ClientId(number)
    }

    fn unlink(&mut self, flow: u16) {
        let at = usize::from(flow) * 3;
        let Links { previous, next } = self.links[at];
        self.links[previous as usize].next = next;
        self.links[next as usize].previous = previous;
        self.links[at] = Links { previous: at as u32, next: at as u32 };
    }

    fn link(&mut self, flow: u16, client: ClientId, group: Group) {
        let (at, head) = (usize::from(flow) * 3, head(client, group));
        let last = core::mem::replace(&mut self.links[head].previous, at as u32);
        self.links[last as usize].next = at as u32;
        self.links[at] = Links { previous: last, next: head as u32 };
    }

    fn hash_of(&self, identity: ClientKey) -> u32 {
        siphash::hash(self.key, &[identity.0 as u32, (identity.0 >> 32) as u32])
    }
}

fn head(client: ClientId, group: Group) -> usize {
    usize::from(client.0) * 3 + 1 + group as usize
}

/// Clients in order of a count.
#[derive(Default)]
struct Ranking {
    /// By place, the largest count first.
    clients: Vec<u16>,
    /// By client.
    ranks: Vec<Rank>,
    /// How many clients have a larger count than this.
    above: Vec<u16>,
}

#[derive(Clone, Copy)]
struct Rank {
    count: u16,
    place: u16,
}

impl Ranking {
    /// Adds a client, whose count is 0.
    fn add(&mut self) {
        let next = self.clients.len() as u16;
        self.clients.push(next);
        self.ranks.push(Rank { count: 0, place: next });
    }

    fn count(&self, client: ClientId) -> u16 {
        self.ranks[usize::from(client.0)].count
    }

    /// The client with the largest count.
    fn first(&self) -> Option<ClientId> {
        self.clients.first().copied().map(ClientId)
    }

    fn raise(&mut self, client: ClientId) {
        let count = self.count(client);
        if self.above.len() <= usize::from(count) {
            self.above.push(0);
        }
        self.swap(client, self.above[usize::from(count)]);
        self.above[usize::from(count)] += 1;
        self.ranks[usize::from(client.0)].count = count + 1;
    }

    fn lower(&mut self, client: ClientId) {
        let count = self.count(client) - 1;
        self.above[usize::from(count)] -= 1;
        self.swap(client, self.above[usize::from(count)]);
        self.ranks[usize::from(client.0)].count = count;
    }

    /// Swaps a client with the one at `place`.
    fn swap(&mut self, client: ClientId, place: u16) {
        let other = self.clients[usize::from(place)];
        let was = core::mem::replace(&mut self.ranks[usize::from(client.0)].place, place);
        self.ranks[usize::from(other)].place = was;
        self.clients[usize::from(was)] = other;
        self.clients[usize::from(place)] = client.0;
        self.ranks[usize::from(client.0)].place = place;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STATES: [State; 6] =
        [State::Held, State::Opening, State::Live, State::Closing, State::Closed, State::Free];

    #[test]
    fn a_client_is_an_address_or_a_64() {
        let identity = |address: &str| ClientKey::of(address.parse().unwrap());
        assert_ne!(identity("::ffff:192.0.2.1"), identity("::ffff:192.0.2.2"));
        assert_eq!(identity("2001:db8:1:2::7"), identity("2001:db8:1:2:ffff::8"));
        assert_ne!(identity("2001:db8:1:2::7"), identity("2001:db8:1:3::7"));
    }

    proptest! {
        /// Held against counts made anew each time.
        #[test]
        fn counts_ranks_and_lists(steps in proptest::collection::vec((0..12_u16, 0..5_u64, 0..7_usize), 0..300)) {
            let mut clients = Clients::new(12, [1, 2]);
            // Identity, number, state; in the order of entering their groups.
            let mut flows: Vec<(u16, ClientKey, ClientId, State)> = Vec::new();
            for (flow, identity, state) in steps {
                let Some(&state) = STATES.get(state) else {
                    if let Some(at) = flows.iter().position(|known| known.0 == flow)
                        && let Some(group) = Group::of(flows[at].3)
                    {
                        clients.put_last(flow, flows[at].2, group);
                        let known = flows.remove(at);
                        flows.push(known);
                    }
                    continue;
                };
                let known = flows.iter().position(|known| known.0 == flow);
                let mut entry = match known {
                    Some(at) => flows.remove(at),
                    None => {
                        let identity = ClientKey(identity);
                        (flow, identity, clients.take(flow, identity), State::Held)
                    }
                };
                clients.enter(flow, entry.2, entry.3, state);
                let stays = Group::of(entry.3) == Group::of(state);
                entry.3 = state;
                match (Group::of(state), known) {
                    (None, _) => {}
                    (Some(_), Some(at)) if stays => flows.insert(at, entry),
                    _ => flows.push(entry),
                }

                let count = |identity, is: &dyn Fn(Group) -> bool| {
                    let counts = |known: &&(u16, ClientKey, ClientId, State)| {
                        known.1 == identity && Group::of(known.3).is_some_and(is)
                    };
                    flows.iter().filter(counts).count() as u16
                };
                let (mut most, mut most_opened) = (0, 0);
                for identity in (0..5).map(ClientKey) {
                    let client = clients.find(identity);
                    let (all, opened) = (count(identity, &|_| true), count(identity, &|group| group == Group::Opened));
                    prop_assert_eq!(client.is_some(), all > 0);
                    prop_assert_eq!((clients.all(client), clients.opened(client)), (all, opened));
                    most = most.max(all);
                    most_opened = most_opened.max(opened);
                    for group in [Group::Opened, Group::Established] {
                        let first = flows.iter().find(|known| known.1 == identity && Group::of(known.3) == Some(group));
                        let found = client.and_then(|client| clients.first(client, group));
                        prop_assert_eq!(found, first.map(|known| known.0));
                    }
                }
                prop_assert_eq!(clients.all(clients.most()), most);
                prop_assert_eq!(clients.opened(clients.most_opened()), most_opened);
            }
        }
    }
}
