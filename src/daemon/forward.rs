//! The I/O of the forward path's handshakes ([`tcp_over_http::forward`]). Packets from the TUN go to their
//! handshake; what a handshake sends leaves by raw sockets, with a mark that nft reads.
//!
//! ```text
//! TUN ── client's SYN ────► gateway ── dial ──► PendingHandshake ─┐
//! TUN ── proxy's packets ─► Forwarder::take ──► Handshakes ───────┴─► raw socket, marked ──► proxy, client
//! TUN ── client's ACK ────► Forwarder::take: the handshake is released, and forgotten
//! ```

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::rc::Rc;
use std::task::{Poll, Waker};

use tcp_over_http::capture::conntrack::Entry;
use tcp_over_http::capture::nft::{ALIVE, ANSWERED, HANDSHAKE, PROBE, TO_CLIENT};
use tcp_over_http::config::{Config, Host};
pub use tcp_over_http::forward::Taken;
use tcp_over_http::forward::{Handshakes, Id, Outcome, Route, To};
use tcp_over_http::neighbours::Neighbours;
use tcp_over_http::net::{Family, mapped};
use tcp_over_http::packet::vnet::{self, Header};
use tcp_over_http::packet::{ACK, Packet, SYN, Transport, Tuple};
use tcp_over_http::siphash::Key;
use tcp_over_http::time::Instant;

use crate::clock::Clock;
use crate::netlink::conntrack::{self, Ended};
use crate::sys;
use crate::sys::RawSocket;

/// Ticks (seconds) between two signs of life. The firewall counts the daemon as dead after ten seconds
/// without one.
const SIGN: u8 = 3;
/// Milliseconds that answers of the kernel are cached: whether an address is this machine's, and the MTU of a
/// route.
const TTL: u32 = 10_000;
/// How many clients are cached whose address is not this machine's.
const CLIENTS: usize = 64;
/// Bytes of the IP and TCP headers that the MSS leaves out: MTU - MSS (RFC 6691), for IPv4 and IPv6.
const HEADERS: [u16; 2] = [40, 60];

/// A sign of life: a packet without payload from loopback to itself (protocol and next header 59: none).
const LIFE: [u8; 20] = [0x45, 0, 0, 20, 0, 0, 0, 0, 1, 59, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1];
const LIFE6: [u8; 40] = {
    let mut packet = [0; 40];
    (packet[0], packet[6], packet[7], packet[23], packet[39]) = (0x60, 59, 1, 1, 1);
    packet
};

/// All handshakes under way, and the sockets for their packets.
pub struct Forwarder {
    clock: Clock,
    ipv4: RefCell<RawSocket>,
    ipv6: Option<RefCell<RawSocket>>,
    mark: u32,
    handshakes: RefCell<Handshakes>,
    /// The task that waits for each handshake, by the handshake's slot.
    wakers: RefCell<Vec<Option<Waker>>>,
    proxies: RefCell<Vec<ProxyAddress>>,
    ticks: Cell<u8>,
    /// Whether connections have begun, or made room, since the last tick: then conntrack's table may be
    /// nearly full.
    has_begun: Cell<bool>,
    ended: Option<Ended>,
    /// Whether nothing is sent to proxies.
    is_held: Cell<bool>,
    /// A cache, indexed by the last byte of the address: clients whose address is not this machine's, and
    /// when the kernel said so.
    clients: RefCell<[Option<(Ipv6Addr, Instant)>; CLIENTS]>,
}

/// An address of an upstream. Its number in the firewall is its place in the list, from 1.
struct ProxyAddress {
    upstream: Rc<str>,
    address: SocketAddr,
    /// Whether the firewall's tables have it.
    is_installed: bool,
    /// The MSS of the route, and when it was asked for. `None` inside: the address is this machine's, to
    /// which nothing is forwarded.
    mss: Option<(Option<u16>, Instant)>,
    /// The source address of that route.
    source: Option<IpAddr>,
}

/// One handshake under way. If it is dropped before the client has released it, the connection to the proxy
/// is reset.
pub struct PendingHandshake {
    forwarder: Rc<Forwarder>,
    id: Id,
}

impl Forwarder {
    /// Opens the sockets, and adds the proxies that have a fixed address.
    ///
    /// # Errors
    /// A raw socket can't be opened.
    pub fn new(config: &Config, clock: Clock, key: Key) -> io::Result<Self> {
        let ipv6 = config.address6.is_some().then(|| RawSocket::new(false)).transpose()?;
        let ipv6 = ipv6.map(RefCell::new);
        let ended = Ended::watch(config.mark);
        if let Err(error) = &ended {
            info!("bytes of forwarded connections are not counted any more once they have ended: {error}");
        }
        let forwarder = Self {
            clock,
            ipv4: RefCell::new(RawSocket::new(true)?),
            ipv6,
            mark: config.mark,
            handshakes: RefCell::new(Handshakes::new(key)),
            wakers: RefCell::default(),
            proxies: RefCell::default(),
            ticks: Cell::default(),
            has_begun: Cell::default(),
            ended: ended.ok(),
            is_held: Cell::default(),
            clients: RefCell::new([None; CLIENTS]),
        };
        forwarder.configure(config);
        Ok(forwarder)
    }

    /// Adds the proxies of a configuration that have a fixed address.
    pub fn configure(&self, config: &Config) {
        for upstream in &config.upstreams {
            if let Host::Ip(ip) = upstream.host {
                self.number(&upstream.name.as_str().into(), SocketAddr::new(ip, upstream.port));
            }
        }
    }

    /// The proxies' addresses, in the order of their numbers.
    pub fn proxies(&self) -> Vec<SocketAddr> {
        self.proxies.borrow().iter().map(|proxy| proxy.address).collect()
    }

    /// The connections that the kernel forwards, and closed ones that conntrack still has, each with its
    /// upstream.
    pub fn forwarded(&self) -> Vec<(Rc<str>, Entry)> {
        let entries = conntrack::forwarded(self.mark).unwrap_or_default().into_iter();
        entries.filter_map(|entry| Some((self.upstream(&entry)?, entry))).collect()
    }

    /// Calls `each` for the forwarded connections that conntrack has forgotten since the last call.
    pub fn take_ended(&self, each: &mut dyn FnMut(Rc<str>, Entry)) {
        let Some(ended) = &self.ended else { return };
        ended.take(&mut |entry| {
            if let Some(upstream) = self.upstream(&entry) {
                each(upstream, entry);
            }
        });
    }

    fn upstream(&self, entry: &Entry) -> Option<Rc<str>> {
        let index = usize::from(entry.number()).checked_sub(1)?;
        self.proxies.borrow().get(index).map(|proxy| Rc::clone(&proxy.upstream))
    }

    /// Ends the forwarded connections through upstreams for which `is_meant` is true. Returns how many there
    /// were.
    pub fn reset(&self, is_meant: &dyn Fn(&str) -> bool) -> usize {
        let (mut count, mut numbers) = (0, Vec::new());
        for (upstream, entry) in self.forwarded() {
            if entry.is_live && is_meant(&upstream) {
                count += 1;
                if !numbers.contains(&entry.number()) {
                    numbers.push(entry.number());
                }
            }
        }
        for number in numbers {
            if let Err(error) = conntrack::forget_proxy(self.mark, number) {
                warn!("forwarded connections go on: {error}");
            }
        }
        count
    }

    /// The number of proxies.
    pub fn count_proxies(&self) -> usize {
        self.proxies.borrow().len()
    }

    /// The firewall's tables have the first `count` proxies.
    pub fn set_installed(&self, count: usize) {
        self.proxies.borrow_mut().iter_mut().take(count).for_each(|proxy| proxy.is_installed = true);
    }

    /// Sends nothing to proxies from now on, or (false) what is due again. To be called while the firewall's tables
    /// are missing: without their NAT, a request to a proxy, with its password, would go to the server itself.
    pub fn hold(&self, is_held: bool) {
        self.is_held.set(is_held);
    }

    /// Begins a handshake with the upstream's proxy at `address`, in the name of the client whose SYN is in
    /// `frame`. `None` if the connection must be relayed: it can't be forwarded, or the firewall's tables
    /// don't have the proxy yet.
    pub fn begin(
        self: &Rc<Self>,
        frame: &mut [u8],
        request: &[u8],
        upstream: &Rc<str>,
        address: SocketAddr,
    ) -> Option<PendingHandshake> {
        let (_, bytes) = frame.split_first_chunk_mut::<{ vnet::LEN }>()?;
        let syn = Packet::parse(bytes).ok()?;
        let (tuple, proxy) = (syn.tuple(), (mapped(address.ip()), address.port()));
        // NAT would not change a connection to the proxy itself, which the firewall's chain `guard` then
        // drops. Conntrack has entries for this machine's own connections already.
        let is_forwardable = (syn.family() == Family::V4) == address.is_ipv4()
            && (address.is_ipv4() || self.ipv6.is_some())
            && (tuple.destination, tuple.destination_port) != proxy
            && !self.is_own(tuple.source);
        if !is_forwardable {
            return None;
        }
        let number = self.number(upstream, address)?;
        let now = self.clock.now();
        let mss = self.mss(number, now)?;
        let route = Route { tuple, proxy, number };
        let mut send = |route: &Route, to: To, packet: &[u8]| self.queue(route, to, packet);
        let id = self.handshakes.borrow_mut().begin(&syn, request.into(), route, mss, now, &mut send)?;
        self.has_begun.set(true);
        _ = self.flush();
        let mut wakers = self.wakers.borrow_mut();
        if wakers.len() <= id.index() {
            wakers.resize_with(id.index() + 1, || None);
        }
        wakers[id.index()] = None;
        Some(PendingHandshake { forwarder: Rc::clone(self), id })
    }

    /// Handles a packet from the TUN if it belongs to a handshake. A late packet of a proxy, whose handshake
    /// is over, is dropped. [`Self::flush`] sends what the handshake has sent in return.
    pub fn take(&self, header: Header, bytes: &mut [u8], now: Instant) -> Taken {
        let mut send = |route: &Route, to: To, packet: &[u8]| self.queue(route, to, packet);
        let taken = self.handshakes.borrow_mut().take(header, bytes, now, &mut send);
        if let Taken::Yes(Some(id)) = taken {
            self.wake(id);
        }
        match taken {
            Taken::No if self.is_from_proxy(bytes) => Taken::Yes(None),
            taken => taken,
        }
    }

    fn is_from_proxy(&self, bytes: &mut [u8]) -> bool {
        let Ok(packet) = Packet::parse(bytes) else { return false };
        let Tuple { source, source_port, .. } = packet.tuple();
        let from = SocketAddr::new(source.to_canonical(), source_port);
        packet.transport() == Transport::Tcp
            && packet.flags() & (SYN | ACK) != SYN
            && self.proxies.borrow().iter().any(|proxy| proxy.address == from)
    }

    fn wake(&self, id: Id) {
        if let Some(waker) = self.wakers.borrow_mut().get_mut(id.index()).and_then(Option::take) {
            waker.wake();
        }
    }

    /// Retransmits what is due, gives the firewall a sign of life, and makes room in conntrack's table.
    /// Called about once a second.
    pub fn tick(&self, neighbours: &Neighbours, now: Instant) {
        self.ticks.set((self.ticks.get() + 1) % SIGN);
        if self.ticks.get() == 0 {
            self.give_sign();
        }
        self.handshakes.borrow_mut().tick(now, &mut |route, to, packet| self.queue(route, to, packet));
        _ = self.flush();
        // Checked even if no connection has begun: none can, if the table is full.
        if (self.has_begun.take() || self.ticks.get() == 0) && conntrack::make_room(self.mark, neighbours) {
            self.has_begun.set(true);
            info!("connection tracking is nearly full: the client with the most made room");
        }
    }

    /// Gives the firewall a sign of life, which its chain `to_client` drops.
    pub fn give_sign(&self) {
        self.queue_numbered(ALIVE, &LIFE, Ipv4Addr::LOCALHOST.into());
        self.queue_numbered(ALIVE, &LIFE6, Ipv6Addr::LOCALHOST.into());
        _ = self.flush();
    }

    /// Ends handshakes that wait for a proxy's answer to an address that this machine has lost.
    pub fn lose_ways(&self, is_lost: &dyn Fn(IpAddr) -> bool) {
        for (number, proxy) in (1..).zip(&mut *self.proxies.borrow_mut()) {
            if proxy.source.is_some_and(is_lost) {
                proxy.mss = None;
                self.handshakes.borrow_mut().lose_way(number, &mut |id| self.wake(id));
            }
        }
    }

    /// Sends a packet with the mark of a handshake with [`PROBE`], for the test of the forward path.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn send_probe(&self, packet: &[u8], next: IpAddr) -> io::Result<()> {
        self.queue_numbered(PROBE, packet, next);
        self.flush()
    }

    fn queue_numbered(&self, number: u8, packet: &[u8], next: IpAddr) {
        let mark = self.mark | HANDSHAKE | u32::from(number);
        if let Some(socket) = self.socket(next) {
            socket.borrow_mut().queue(packet, next, mark);
        }
    }

    /// The socket that sends to an address.
    const fn socket(&self, next: IpAddr) -> Option<&RefCell<RawSocket>> {
        if next.is_ipv4() { Some(&self.ipv4) } else { self.ipv6.as_ref() }
    }

    /// Whether a client's address is this machine's; a negative answer is cached.
    fn is_own(&self, client: Ipv6Addr) -> bool {
        let now = self.clock.now();
        let mut clients = self.clients.borrow_mut();
        let known = &mut clients[usize::from(client.octets()[15]) % CLIENTS];
        if known.is_some_and(|(address, asked)| address == client && now.since(asked) < TTL) {
            return false;
        }
        let is_own = is_own(client);
        if !is_own {
            *known = Some((client, now));
        }
        is_own
    }

    /// The proxy's number in the firewall, an added one if it is new. `None` if there are too many.
    fn number(&self, upstream: &Rc<str>, address: SocketAddr) -> Option<u8> {
        let mut proxies = self.proxies.borrow_mut();
        let is_it = |proxy: &ProxyAddress| proxy.address == address && proxy.upstream == *upstream;
        let index = proxies.iter().position(is_it).unwrap_or_else(|| {
            let upstream = Rc::clone(upstream);
            proxies.push(ProxyAddress { upstream, address, is_installed: false, mss: None, source: None });
            proxies.len() - 1
        });
        let number = u8::try_from(index + 1).ok().filter(|number| *number < PROBE);
        if number.is_none() {
            proxies.truncate(index);
        }
        number
    }

    /// The longest segment that the route to a proxy allows, in bytes. `None` if the firewall's tables don't
    /// have the proxy yet, or the proxy is on this machine.
    fn mss(&self, number: u8, now: Instant) -> Option<u16> {
        let mut proxies = self.proxies.borrow_mut();
        let proxy = proxies.get_mut(usize::from(number) - 1).filter(|proxy| proxy.is_installed)?;
        if let Some((mss, asked)) = proxy.mss
            && now.since(asked) < TTL
        {
            return mss;
        }
        let mss = match is_own(mapped(proxy.address.ip())) {
            true => None,
            false => {
                let route = sys::route_to(proxy.address, self.mark).ok();
                proxy.source = route.map(|(_, source)| source);
                let mtu = route.map_or(1500, |(mtu, _)| mtu);
                Some(mtu.saturating_sub(HEADERS[usize::from(proxy.address.is_ipv6())]).max(500))
            }
        };
        proxy.mss = Some((mss, now));
        mss
    }

    fn queue(&self, route: &Route, to: To, packet: &[u8]) {
        if self.is_held.get() && !matches!(to, To::Client) {
            return; // it is retransmitted
        }
        let (next, state) = match to {
            To::Proxy => (route.proxy.0, HANDSHAKE),
            To::ProxyAnswered => (route.proxy.0, ANSWERED),
            To::Client => (route.tuple.source, TO_CLIENT),
        };
        let next = next.to_canonical();
        let mark = self.mark | state | u32::from(route.number);
        if let Some(socket) = self.socket(next) {
            socket.borrow_mut().queue(packet, next, mark);
        }
    }

    /// Sends the queued packets of all handshakes together, with few system calls.
    ///
    /// # Errors
    /// The last error of the kernel. Lost packets are retransmitted, or the handshake ends.
    pub fn flush(&self) -> io::Result<()> {
        let mut result = Ok(());
        for socket in [Some(&self.ipv4), self.ipv6.as_ref()].into_iter().flatten() {
            socket.borrow_mut().flush(&mut |packet, next, error| {
                if next.is_loopback() {
                    return false; // a sign of life, which chain `to_client` drops
                }
                // Chain `to_proxy` drops a SYN (EPERM) if conntrack still has an earlier connection of the
                // same addresses. Once that entry is deleted, the SYN is sent again.
                if error.kind() == ErrorKind::PermissionDenied
                    && let Some(tuple) = syn_tuple(packet)
                    && conntrack::forget(&tuple).is_ok()
                {
                    return true;
                }
                debug!("a packet of a handshake to {next}: {error}");
                result = Err(error);
                false
            });
        }
        result
    }
}

/// The packet's addresses and ports, if it is a SYN.
fn syn_tuple(packet: &[u8]) -> Option<Tuple> {
    let mut bytes = packet.to_vec();
    let packet = Packet::parse(&mut bytes).ok()?;
    (packet.transport() == Transport::Tcp && packet.flags() & (SYN | ACK) == SYN).then(|| packet.tuple())
}

/// Whether an address is this machine's: a socket can be bound to no other.
fn is_own(address: Ipv6Addr) -> bool {
    UdpSocket::bind((address.to_canonical(), 0)).is_ok()
}

impl PendingHandshake {
    /// Waits until the proxy has accepted the connection.
    ///
    /// # Errors
    /// The proxy refuses the connection, or can't be reached.
    pub async fn connected(&self) -> io::Result<()> {
        match self.wait(Outcome::Pending).await {
            // Every other outcome comes after the proxy's SYN-ACK, even `Closed`.
            Outcome::Unreachable => Err(ErrorKind::ConnectionRefused.into()),
            _ => Ok(()),
        }
    }

    /// The challenges of the proxy's 407, one per line.
    pub fn challenges(&self) -> Vec<u8> {
        self.forwarder.handshakes.borrow().challenges(self.id).into()
    }

    /// Waits for the proxy's answer, or the end of its connection.
    pub async fn answered(&self) -> Outcome {
        self.wait(Outcome::Connected).await
    }

    /// Waits until the client has acknowledged its SYN-ACK: from then on the kernel forwards the connection.
    pub async fn released(&self) {
        self.poll(|handshakes| handshakes.is_released(self.id).then_some(())).await;
    }

    /// Waits until the outcome is neither pending nor `than`.
    async fn wait(&self, than: Outcome) -> Outcome {
        self.poll(|handshakes| {
            let outcome = handshakes.outcome(self.id);
            Some(outcome).filter(|outcome| *outcome != than && *outcome != Outcome::Pending)
        })
        .await
    }

    async fn poll<T>(&self, is_there: impl Fn(&Handshakes) -> Option<T>) -> T {
        poll_fn(|cx| match is_there(&self.forwarder.handshakes.borrow()) {
            Some(it) => Poll::Ready(it),
            None => {
                self.forwarder.wakers.borrow_mut()[self.id.index()] = Some(cx.waker().clone());
                Poll::Pending
            }
        })
        .await
    }
}

impl Drop for PendingHandshake {
    fn drop(&mut self) {
        let forwarder = &self.forwarder;
        let mut send = |route: &Route, to: To, packet: &[u8]| forwarder.queue(route, to, packet);
        let refused = forwarder.handshakes.borrow_mut().end(self.id, &mut send);
        _ = forwarder.flush();
        // The client may go on by requests: until conntrack forgets the handshake, its packets would go to the proxy.
        if let Some(tuple) = refused {
            _ = conntrack::forget(&tuple);
        }
    }
}
