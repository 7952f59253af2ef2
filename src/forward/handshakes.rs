//! All handshakes in progress, found by the packets that belong to them.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::net::Ipv6Addr;

use super::{Handshake, Outcome, To};
use crate::net::Family;
use crate::packet::vnet::Header;
use crate::packet::{ChecksumChange, Packet, RST, SYN, Transport, Tuple};
use crate::siphash::{self, Key};
use crate::slots::Slots;
use crate::time::Instant;

/// The most handshakes at once; further connections are relayed.
const LIMIT: u16 = 4096;

// The lists of slots.

const FREE: u16 = 0;
const BUSY: u16 = 1;

/// Between which addresses a handshake's packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// From the client to the server that it wants.
    pub tuple: Tuple,
    /// The proxy's address and port.
    pub proxy: (Ipv6Addr, u16),
    /// The proxy's number in the firewall.
    pub number: u8,
}

impl Route {
    /// Whether a packet's tuple is from the proxy to the client, as NAT has it before routing.
    fn is_from_proxy(&self, tuple: &Tuple) -> bool {
        (tuple.source, tuple.source_port) == self.proxy
            && (tuple.destination, tuple.destination_port) == (self.tuple.source, self.tuple.source_port)
    }
}

/// Sends a packet.
pub type Send<'a> = &'a mut dyn FnMut(&Route, To, &[u8]);

/// Identifies a handshake. It never identifies a later one in the same slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id {
    slot: u16,
    serial: u32,
}

impl Id {
    /// Its slot, for use as an index.
    pub const fn index(self) -> usize {
        self.slot as usize
    }
}

/// Whether a packet belongs to a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It does, and has been handled. The outcome of this handshake may have changed.
    Yes(Option<Id>),
    /// It is the SYN of a client that starts over: this handshake has ended, and the packet is unchanged.
    Restarted(Id),
    /// It does not, or it is the reset of a held client: the packet is unchanged.
    No,
}

/// The handshakes, by the client's address and port.
pub struct Handshakes {
    entries: Vec<Option<Box<Entry>>>,
    slots: Slots,
    key: Key,
    serial: u32,
}

struct Entry {
    handshake: Handshake,
    route: Route,
    /// The client's initial sequence number.
    sequence: u32,
    serial: u32,
    is_connected: bool,
    outcome: Outcome,
    /// Whether the client has acknowledged its SYN-ACK, so that the kernel forwards the connection.
    is_released: bool,
}

impl Handshakes {
    /// No handshakes yet. `key` must be random.
    pub fn new(key: Key) -> Self {
        Self { entries: Vec::new(), slots: Slots::new(LIMIT), key, serial: 0 }
    }

    /// Begins a handshake. `syn` is the client's, the rest as in [`Handshake::new`]. `None` if there are too
    /// many.
    pub fn begin(
        &mut self,
        syn: &Packet,
        request: Box<[u8]>,
        route: Route,
        mss_limit: u16,
        now: Instant,
        send: Send,
    ) -> Option<Id> {
        let slot = match self.slots.first(FREE) {
            Some(slot) => slot,
            None if self.slots.len() == LIMIT => return None,
            None => {
                self.entries.push(None);
                self.slots.add()
            }
        };
        let handshake =
            Handshake::new(syn, request, mss_limit, now, &mut |to, packet| send(&route, to, packet));
        self.serial = self.serial.wrapping_add(1);
        self.entries[usize::from(slot)] = Some(Box::new(Entry {
            handshake,
            route,
            sequence: syn.sequence(),
            serial: self.serial,
            is_connected: false,
            outcome: Outcome::Pending,
            is_released: false,
        }));
        self.slots.move_to_back(slot, BUSY);
        self.slots.hash(slot, hash(self.key, route.tuple.source, route.tuple.source_port));
        Some(Id { slot, serial: self.serial })
    }

    /// Handles a packet from the TUN if it belongs to a handshake: the proxy's, the client's, or an ICMP
    /// error about one of ours.
    pub fn take(&mut self, header: Header, bytes: &mut [u8], now: Instant, send: Send) -> Taken {
        if self.slots.first(BUSY).is_none() {
            return Taken::No;
        }
        let Ok(mut packet) = Packet::parse(bytes) else { return Taken::No };
        match packet.transport() {
            Transport::Tcp => {}
            Transport::Icmp => return self.take_error(&mut packet),
            _ => return Taken::No,
        }
        let tuple = packet.tuple();
        let from_proxy = [false, true].into_iter().find_map(|is_earlier| {
            self.find(tuple.destination, tuple.destination_port, &mut |_, entry| {
                let Entry { handshake, route, .. } = entry;
                // A packet that no handshake owns may belong to an earlier connection, which is in the way of
                // one that is connecting.
                let is_its = if is_earlier { handshake.is_connecting() } else { handshake.owns(&packet) };
                is_its && route.is_from_proxy(&tuple)
            })
        });
        match from_proxy {
            Some(slot) => self.take_proxys(slot, &packet, now, send),
            None => self.take_clients(header, packet, &tuple, send),
        }
    }

    fn take_proxys(&mut self, slot: u16, packet: &Packet, now: Instant, send: Send) -> Taken {
        let Some(entry) = &mut self.entries[usize::from(slot)] else { return Taken::No };
        let Entry { handshake, route, .. } = &mut **entry;
        match handshake.handle_proxy(packet, now, &mut |to, packet| send(route, to, packet)) {
            Outcome::Pending => return Taken::Yes(None),
            Outcome::Connected => entry.is_connected = true,
            outcome => entry.outcome = outcome,
        }
        Taken::Yes(Some(Id { slot, serial: entry.serial }))
    }

    /// Handles a client's packet, addressed to the server or, if NAT has already translated it, to the proxy.
    /// In the latter case only sequence numbers tell which of several servers the packet is for.
    fn take_clients(&mut self, header: Header, mut packet: Packet, tuple: &Tuple, send: Send) -> Taken {
        let (mut ahead, mut nearest) = (u32::MAX, None);
        self.find(tuple.source, tuple.source_port, &mut |slot, entry| {
            let this = packet.sequence().wrapping_sub(entry.sequence);
            let is_it = entry.route.tuple == *tuple || entry.route.is_from_proxy(&tuple.reversed());
            if is_it && this <= ahead {
                (ahead, nearest) = (this, Some(slot));
            }
            false
        });
        let Some(slot) = nearest else { return Taken::No };
        let Some(entry) = &mut self.entries[usize::from(slot)] else { return Taken::No };
        let (route, id) = (entry.route, Id { slot, serial: entry.serial });
        let is_opened = matches!(entry.outcome, Outcome::Opened { .. });
        let mut send = |to: To, packet: &[u8]| send(&route, to, packet);
        let taken = match packet.flags() {
            flags if flags & SYN != 0 && ahead == 0 && entry.handshake.is_repetition(&packet) => {
                entry.handshake.handle_client_syn(&packet, &mut send);
                return Taken::Yes(None);
            }
            flags if flags & SYN != 0 => {
                entry.handshake.abort(&mut send);
                self.free(slot);
                Taken::Restarted(id)
            }
            // Left to the rewriter, which forgets the held flow.
            flags if flags & RST != 0 && !is_opened => Taken::No,
            _ => {
                entry.is_released = is_opened;
                return Taken::Yes(Some(id).filter(|_| is_opened));
            }
        };
        if let Some(state) = header.checksum_state(&packet).filter(|_| route.tuple != *tuple) {
            packet.translate(&route.tuple, ChecksumChange::between(tuple, &route.tuple), state);
        }
        taken
    }

    /// Handles an ICMP error about a handshake's SYN: the proxy is unreachable, if it has not answered yet.
    /// An error that quotes another sequence number is forged, or about something else (RFC 5927 section
    /// 4.1).
    fn take_error(&mut self, packet: &mut Packet) -> Taken {
        let is_unreachable = match packet.family() {
            Family::V4 => packet.icmp_type().0 == 3, // RFC 792
            Family::V6 => packet.icmp_type().0 == 1, // RFC 4443 section 3.1
        };
        let Some((quoted, sequence)) = packet.quoted() else { return Taken::No };
        let found = self.find(quoted.source, quoted.source_port, &mut |_, entry| {
            let Entry { handshake, route, .. } = entry;
            let is_its = route.tuple == quoted || route.is_from_proxy(&quoted.reversed());
            is_its && handshake.is_syn(sequence)
        });
        let Some(slot) = found else { return Taken::No };
        let Some(entry) = &mut self.entries[usize::from(slot)] else { return Taken::No };
        if !is_unreachable || entry.is_connected {
            return Taken::Yes(None);
        }
        entry.outcome = Outcome::Unreachable;
        Taken::Yes(Some(Id { slot, serial: entry.serial }))
    }

    /// The state of a handshake; [`Outcome::Closed`] if it no longer exists.
    pub fn outcome(&self, id: Id) -> Outcome {
        match self.get(id) {
            None => Outcome::Closed,
            Some(Entry { outcome: Outcome::Pending, is_connected: true, .. }) => Outcome::Connected,
            Some(entry) => entry.outcome,
        }
    }

    /// The challenges of the 407 that has refused it, one per line.
    pub fn challenges(&self, id: Id) -> &[u8] {
        self.get(id).map_or(&[], |entry| entry.handshake.challenges())
    }

    /// Whether the client has acknowledged its SYN-ACK, so that the kernel forwards the connection.
    pub fn is_released(&self, id: Id) -> bool {
        self.get(id).is_some_and(|entry| entry.is_released)
    }

    /// Ends a handshake. Resets the connection to the proxy, unless the kernel forwards it. It does so even
    /// if the proxy has reset it already, because only our reset makes conntrack take the client's next SYN
    /// for a new connection. Returns the client's tuple if the proxy has refused it.
    pub fn end(&mut self, id: Id, send: Send) -> Option<Tuple> {
        let entry = self.get(id)?;
        let refused = matches!(entry.outcome, Outcome::Refused { .. }).then_some(entry.route.tuple);
        if !entry.is_released {
            // The client may have acknowledged meanwhile, unknown to us; then the firewall (chain `to_proxy`)
            // drops this reset.
            entry.handshake.abort(&mut |to, packet| send(&entry.route, to, packet));
        }
        self.free(id.slot);
        refused
    }

    /// Retransmits what is due. To be called about once a second.
    pub fn tick(&mut self, now: Instant, send: Send) {
        let mut next = self.slots.first(BUSY);
        while let Some(slot) = next {
            next = self.slots.next(slot);
            let Some(entry) = &mut self.entries[usize::from(slot)] else { continue };
            let Entry { handshake, route, .. } = &mut **entry;
            if handshake.timeout().is_some_and(|at| now.since(at) > 0) {
                handshake.handle_timeout(now, &mut |to, packet| send(route, to, packet));
            }
        }
    }

    /// Notes that the route to the proxy with this number has a new source address: answers to the old one
    /// will never arrive. Calls `tell` for each handshake that is still unanswered.
    pub fn lose_way(&mut self, number: u8, tell: &mut dyn FnMut(Id)) {
        for (slot, entry) in (0..).zip(&mut self.entries) {
            if let Some(entry) = entry
                && entry.route.number == number
                && entry.outcome == Outcome::Pending
            {
                entry.outcome = Outcome::Closed;
                tell(Id { slot, serial: entry.serial });
            }
        }
    }

    /// The first slot of this client for which `is_it` is true.
    fn find(&self, address: Ipv6Addr, port: u16, is_it: &mut dyn FnMut(u16, &Entry) -> bool) -> Option<u16> {
        self.slots.find(hash(self.key, address, port), |slot| {
            let entry = self.entries.get(usize::from(slot)).and_then(Option::as_deref);
            entry.is_some_and(|entry| {
                (entry.route.tuple.source, entry.route.tuple.source_port) == (address, port)
                    && is_it(slot, entry)
            })
        })
    }

    fn get(&self, id: Id) -> Option<&Entry> {
        self.entries.get(id.index())?.as_deref().filter(|entry| entry.serial == id.serial)
    }

    fn free(&mut self, slot: u16) {
        if let Some(entry) = self.entries[usize::from(slot)].take() {
            let Tuple { source, source_port, .. } = entry.route.tuple;
            self.slots.unhash(slot, hash(self.key, source, source_port));
            self.slots.move_to_front(slot, FREE);
        }
    }
}

fn hash(key: Key, address: Ipv6Addr, port: u16) -> u32 {
    let [a, b, c, d, e, f, g, h] = address.segments().map(u32::from);
    siphash::hash(key, &[a << 16 | b, c << 16 | d, e << 16 | f, g << 16 | h, port.into()])
}

#[cfg(test)]
mod tests {
    use std::vec;

    use super::*;
    use crate::packet::builder::{MAX_LEN, Tcp};
    use crate::packet::reject::Reject;
    use crate::packet::{ACK, vnet};

    const PROXY: (&str, u16) = ("::ffff:192.0.2.1", 3128);
    const REQUEST: &[u8] = b"CONNECT a:1 HTTP/1.1\r\n\r\n";
    const NOW: Instant = Instant::from_millis(1000);

    fn tuple(server: &str) -> Tuple {
        Tuple {
            source: "::ffff:10.0.0.7".parse().unwrap(),
            source_port: 40_000,
            destination: server.parse().unwrap(),
            destination_port: 443,
        }
    }

    fn route(server: &str) -> Route {
        Route { tuple: tuple(server), proxy: (PROXY.0.parse().unwrap(), PROXY.1), number: 1 }
    }

    fn packet(tuple: Tuple, sequence: u32, acknowledgement: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 1500];
        let header = Tcp { tuple, sequence, acknowledgement, flags, window: 1000 };
        let length = header.write(&[], payload, &mut bytes);
        bytes.truncate(length);
        bytes
    }

    /// The sent packets: route, direction, flags and sequence number.
    #[derive(Default)]
    struct Sent(Vec<(Route, To, u8, u32)>);

    impl Sent {
        fn send(&mut self, route: &Route, to: To, bytes: &[u8]) {
            let mut bytes = bytes.to_vec();
            let packet = Packet::parse(&mut bytes).unwrap();
            self.0.push((*route, to, packet.flags(), packet.sequence()));
        }
    }

    struct World {
        handshakes: Handshakes,
        sent: Sent,
    }

    impl World {
        fn new() -> Self {
            Self { handshakes: Handshakes::new([1, 2]), sent: Sent::default() }
        }

        fn begin(&mut self, server: &str, sequence: u32) -> Id {
            let Self { handshakes, sent } = self;
            let mut bytes = packet(tuple(server), sequence, 0, SYN, &[]);
            let syn = Packet::parse(&mut bytes).unwrap();
            let mut send = |route: &Route, to: To, packet: &[u8]| sent.send(route, to, packet);
            handshakes.begin(&syn, REQUEST.into(), route(server), 1460, NOW, &mut send).unwrap()
        }

        fn take(&mut self, mut bytes: Vec<u8>) -> (Taken, Tuple) {
            let Self { handshakes, sent } = self;
            let mut send = |route: &Route, to: To, packet: &[u8]| sent.send(route, to, packet);
            let header = Header::parse(&vnet::Header::PLAIN);
            let taken = handshakes.take(header, &mut bytes, NOW, &mut send);
            (taken, Packet::parse(&mut bytes).unwrap().tuple())
        }

        /// Has the proxy send a packet, with the addresses that NAT gives it before routing.
        fn proxy_sends(&mut self, sequence: u32, acknowledgement: u32, flags: u8, payload: &[u8]) -> Taken {
            let back =
                Tuple { destination: tuple("::").source, destination_port: 40_000, ..to_proxy().reversed() };
            self.take(packet(back, sequence, acknowledgement, flags, payload)).0
        }

        /// Has the proxy accept the connection, and answer 200.
        fn open(&mut self, client: u32) {
            let first = client.wrapping_add(1).wrapping_sub(REQUEST.len() as u32);
            self.proxy_sends(7000, first, SYN | ACK, &[]);
            self.proxy_sends(7001, client.wrapping_add(1), ACK, b"HTTP/1.1 200 OK\r\n\r\n");
        }
    }

    /// The tuple of the client's packets after NAT.
    fn to_proxy() -> Tuple {
        let (destination, destination_port) = route("::").proxy;
        Tuple { destination, destination_port, ..tuple("::") }
    }

    #[test]
    fn from_the_syn_until_the_client_goes_on() {
        let mut world = World::new();
        let id = world.begin("::ffff:203.0.113.1", 5000);
        assert_eq!(world.handshakes.outcome(id), Outcome::Pending);
        assert_eq!(
            world.proxy_sends(7000, 5001 - REQUEST.len() as u32, SYN | ACK, &[]),
            Taken::Yes(Some(id))
        );
        assert_eq!(world.handshakes.outcome(id), Outcome::Connected);
        // A packet of the client before its SYN-ACK does not release the connection.
        assert_eq!(world.take(packet(to_proxy(), 5001, 7020, ACK, &[])).0, Taken::Yes(None));
        world.open(5000);
        assert_eq!(world.handshakes.outcome(id), Outcome::Opened { status: 200 });
        assert!(!world.handshakes.is_released(id));
        assert_eq!(world.take(packet(to_proxy(), 5001, 7020, ACK, &[])).0, Taken::Yes(Some(id)));
        assert!(world.handshakes.is_released(id));
        world.handshakes.end(id, &mut |_, _, _| panic!("it is the kernel's"));
        assert_eq!(world.handshakes.outcome(id), Outcome::Closed);
        assert_eq!(world.take(packet(to_proxy(), 5001, 7020, ACK, &[])).0, Taken::No);
    }

    #[test]
    fn a_client_that_does_not_go_on() {
        let mut world = World::new();
        let id = world.begin("::ffff:203.0.113.1", 5000);
        world.open(5000);
        let mut flags = Vec::new();
        world.handshakes.end(id, &mut |_, to, bytes| {
            assert_eq!(to, To::Proxy);
            flags.push(Packet::parse(&mut bytes.to_vec()).unwrap().flags());
        });
        assert_eq!(flags, [RST]);
    }

    /// A client connects from one port to two servers, through one proxy. Sequence numbers tell the
    /// connections apart.
    #[test]
    fn one_port_for_several_servers() {
        let mut world = World::new();
        let one = world.begin("::ffff:203.0.113.1", 5000);
        let other = world.begin("::ffff:203.0.113.2", 900_000);
        world.open(900_000);
        assert_eq!(world.handshakes.outcome(one), Outcome::Pending);
        assert_eq!(world.handshakes.outcome(other), Outcome::Opened { status: 200 });
        world.take(packet(to_proxy(), 900_001, 7020, ACK, &[]));
        assert!(world.handshakes.is_released(other) && !world.handshakes.is_released(one));
    }

    /// NAT has chosen the port of a connection that conntrack has forgotten and the proxy has not. A reset
    /// ends that, and the SYN is repeated at once, but not for ever.
    #[test]
    fn a_proxy_that_remembers_an_earlier_connection() {
        let mut world = World::new();
        let id = world.begin("::ffff:203.0.113.1", 5000);
        let first = 5000 - REQUEST.len() as u32;
        let to_proxy = |sent: &Sent| sent.0.iter().map(|sent| (sent.2, sent.3)).collect::<Vec<_>>();
        assert_eq!(world.proxy_sends(1, 800_000, ACK, &[]), Taken::Yes(None));
        assert_eq!(to_proxy(&world.sent), [(SYN, first), (RST, 800_000), (SYN, first)]);
        for _ in 0..100 {
            world.proxy_sends(1, 800_000, ACK, &[]);
        }
        let syns = to_proxy(&world.sent).into_iter().filter(|sent| sent.0 == SYN);
        assert_eq!((syns.count(), to_proxy(&world.sent).last()), (9, Some(&(RST, 800_000))));
        world.open(5000);
        assert_eq!(world.handshakes.outcome(id), Outcome::Opened { status: 200 });
        // There is no handshake that is connecting.
        assert_eq!(world.proxy_sends(1, 800_000, ACK, &[]), Taken::No);
    }

    /// A client connects from one port to two servers, through one proxy. The error quotes the second SYN. An
    /// error with a wrong sequence number is forged, and ends neither.
    #[test]
    fn an_error_ends_the_one_that_it_is_about() {
        let mut world = World::new();
        let ids = [("::ffff:203.0.113.1", 5000), ("::ffff:203.0.113.2", 900_000)]
            .map(|(server, sequence)| world.begin(server, sequence));
        let syn = 900_000 - REQUEST.len() as u32;
        for (sequence, taken) in [(syn + 1, Taken::No), (7, Taken::No), (syn, Taken::Yes(Some(ids[1])))] {
            let mut quoted = packet(to_proxy(), sequence, 0, SYN, &[]);
            let mut error = [0; MAX_LEN];
            let quoted = Packet::parse(&mut quoted).unwrap();
            let length = Reject::Host.build(&quoted, tuple("::").source, &mut error);
            assert_eq!(world.take(error[..length].to_vec()).0, taken);
        }
        assert_eq!(ids.map(|id| world.handshakes.outcome(id)), [Outcome::Pending, Outcome::Unreachable]);
    }

    #[test]
    fn another_syn_begins_anew() {
        let mut world = World::new();
        let id = world.begin("::ffff:203.0.113.1", 5000);
        assert_eq!(world.take(packet(tuple("::ffff:203.0.113.1"), 5000, 0, SYN, &[])).0, Taken::Yes(None));
        // Captured after NAT; `take` gives it the addresses back that the client has used.
        let (taken, seen) = world.take(packet(to_proxy(), 6000, 0, SYN, &[]));
        assert_eq!((taken, seen), (Taken::Restarted(id), tuple("::ffff:203.0.113.1")));
        assert_eq!(world.sent.0.last().map(|sent| sent.2), Some(RST));
        // The next handshake gets the same slot, and is not taken for the first.
        let next = world.begin("::ffff:203.0.113.1", 6000);
        assert_eq!(next.index(), id.index());
        assert_eq!(world.handshakes.outcome(id), Outcome::Closed);
        assert_eq!(world.handshakes.outcome(next), Outcome::Pending);
        world.handshakes.end(id, &mut |_, _, _| panic!("it is gone"));
        assert_eq!(world.handshakes.outcome(next), Outcome::Pending);
    }

    /// A client's repeated SYN may offer fewer options, as a fallback; the proxy has been told the first
    /// ones.
    #[test]
    fn a_syn_that_offers_less_begins_anew() {
        let mut world = World::new();
        let id = world.begin("::ffff:203.0.113.1", 5000);
        let offers = |options: &[u8]| {
            let mut bytes = vec![0; 100];
            let tuple = tuple("::ffff:203.0.113.1");
            let header = Tcp { tuple, sequence: 5000, acknowledgement: 0, flags: SYN, window: 1000 };
            let length = header.write(options, &[], &mut bytes);
            bytes.truncate(length);
            bytes
        };
        assert_eq!(world.take(offers(&[])).0, Taken::Yes(None));
        assert_eq!(world.take(offers(&[1, 3, 3, 7])).0, Taken::Restarted(id));
    }

    #[test]
    fn no_more_than_there_is_room_for() {
        let mut handshakes = Handshakes::new([1, 2]);
        let mut bytes = packet(tuple("::ffff:203.0.113.1"), 1, 0, SYN, &[]);
        let syn = Packet::parse(&mut bytes).unwrap();
        let mut begin = || handshakes.begin(&syn, REQUEST.into(), route("::"), 1460, NOW, &mut |_, _, _| ());
        let ids: Vec<_> = (0..LIMIT).map(|_| begin().unwrap()).collect();
        assert_eq!(begin(), None);
        handshakes.end(ids[7], &mut |_, _, _| ());
        let again = handshakes.begin(&syn, REQUEST.into(), route("::"), 1460, NOW, &mut |_, _, _| ());
        assert_eq!(again.map(Id::index), Some(7));
    }
}
