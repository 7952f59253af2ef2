//! The forward path's handshakes under way ([`tcp_over_http::forward`]): packets from the TUN go to the one that they
//! belong to, and what it makes leaves by raw sockets.
//!
//! ```text
//! TUN ── client's SYN ────► gateway ── dial ──► Attempt ──┐
//! TUN ── proxy's packets ─► Forwarder::take ─► Handshakes ─┴─► raw socket, marked ──► proxy, client
//! TUN ── client's ACK ────► Forwarder::take: released, forgotten
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
use tcp_over_http::net::{Family, mapped};
use tcp_over_http::packet::vnet::{self, Header};
use tcp_over_http::packet::{ACK, Packet, SYN, Transport, Tuple};
use tcp_over_http::siphash::Key;
use tcp_over_http::time::Instant;

use crate::clock::Clock;
use crate::netlink::conntrack::{self, Ended};
use crate::sys;
use crate::sys::RawSocket;

/// Ticks between two signs of life, to which the firewall gives three times as long.
const SIGN: u8 = 3;
/// Milliseconds that what the kernel has said of an address is believed: whether it is our own, and the MTU of the way.
const TTL: u32 = 10_000;
/// Of how many clients it is remembered that their address is not our own.
const CLIENTS: usize = 64;
/// Bytes of the headers of a packet with the longest payload that counts as MSS (RFC 6691).
const HEADERS: [u16; 2] = [40, 60];

/// Packets without a payload (IPv4's protocol and IPv6's next header 59: none), from this machine to itself.
const LIFE: [u8; 20] = [0x45, 0, 0, 20, 0, 0, 0, 0, 1, 59, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1];
const LIFE6: [u8; 40] = {
    let mut packet = [0; 40];
    (packet[0], packet[6], packet[7], packet[23], packet[39]) = (0x60, 59, 1, 1, 1);
    packet
};

/// All handshakes under way, and the way out for their packets.
pub struct Forwarder {
    clock: Clock,
    ipv4: RefCell<RawSocket>,
    ipv6: Option<RefCell<RawSocket>>,
    mark: u32,
    handshakes: RefCell<Handshakes>,
    /// Who waits for a handshake, by its place.
    wakers: RefCell<Vec<Option<Waker>>>,
    proxies: RefCell<Vec<Proxy>>,
    ticks: Cell<u8>,
    /// Whether connections have begun, or been made to yield, since the last tick: whether there may be too many.
    has_begun: Cell<bool>,
    ended: Option<Ended>,
    /// Clients whose address is not our own, each at its place, and when that was asked.
    clients: RefCell<[Option<(Ipv6Addr, Instant)>; CLIENTS]>,
}

/// An address of an upstream, which the firewall knows by its place in the list, from 1.
struct Proxy {
    upstream: Rc<str>,
    address: SocketAddr,
    /// Whether the firewall knows it.
    is_installed: bool,
    /// What the way there takes (nothing is forwarded to this machine itself), and when that was asked.
    mss: Option<(Option<u16>, Instant)>,
    /// Where it began then.
    source: Option<IpAddr>,
}

/// One handshake under way. Dropped before its client has released it, its connection to the proxy is reset.
pub struct Attempt {
    forwarder: Rc<Forwarder>,
    id: Id,
}

impl Forwarder {
    /// Opens the sockets. The proxies with fixed addresses are known from the start.
    ///
    /// # Errors
    /// No raw socket can be had.
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
            clients: RefCell::new([None; CLIENTS]),
        };
        forwarder.configure(config);
        Ok(forwarder)
    }

    /// Takes over the proxies with fixed addresses.
    pub fn configure(&self, config: &Config) {
        for upstream in &config.upstreams {
            if let Host::Ip(ip) = upstream.host {
                self.number(&upstream.name.as_str().into(), SocketAddr::new(ip, upstream.port));
            }
        }
    }

    /// The proxies' addresses in order.
    pub fn proxies(&self) -> Vec<SocketAddr> {
        self.proxies.borrow().iter().map(|proxy| proxy.address).collect()
    }

    /// The connections that the kernel forwards, and those that conntrack has yet to forget, each with its upstream.
    pub fn forwarded(&self) -> Vec<(Rc<str>, Entry)> {
        let entries = conntrack::forwarded(self.mark).unwrap_or_default().into_iter();
        entries.filter_map(|entry| Some((self.upstream(&entry)?, entry))).collect()
    }

    /// Those that it has forgotten since the last call.
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

    /// Ends those through the upstreams that `is_meant` for. Returns how many.
    pub fn reset(&self, is_meant: &dyn Fn(&str) -> bool) -> usize {
        let mut numbers: Vec<_> = self
            .forwarded()
            .into_iter()
            .filter(|(upstream, entry)| entry.is_live && is_meant(upstream))
            .map(|(_, entry)| entry.number())
            .collect();
        let count = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        for number in numbers {
            if let Err(error) = conntrack::forget_proxy(self.mark, number) {
                warn!("forwarded connections go on: {error}");
            }
        }
        count
    }

    /// How many there are.
    pub fn count_proxies(&self) -> usize {
        self.proxies.borrow().len()
    }

    /// The firewall knows the first so many proxies.
    pub fn set_installed(&self, count: usize) {
        self.proxies.borrow_mut().iter_mut().take(count).for_each(|proxy| proxy.is_installed = true);
    }

    /// Begins to ask the upstream's proxy at `address` in the name of the client whose SYN is in `frame`. `None` if it can't be
    /// asked in this way, or not yet: the connection is to be relayed.
    pub fn begin(
        self: &Rc<Self>,
        frame: &mut [u8],
        request: &[u8],
        upstream: &Rc<str>,
        address: SocketAddr,
    ) -> Option<Attempt> {
        let (_, bytes) = frame.split_first_chunk_mut::<{ vnet::LEN }>()?;
        let syn = Packet::parse(bytes).ok()?;
        let (tuple, proxy) = (syn.tuple(), (mapped(address.ip()), address.port()));
        // One to the proxy itself NAT would not change, and this machine's own conntrack knows already.
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
        Some(Attempt { forwarder: Rc::clone(self), id })
    }

    /// Takes a packet from the TUN if it belongs to a handshake, or did: what a proxy sends late is for nobody. What it has
    /// sent in return leaves with [`Self::flush`].
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

    /// Repeats what is to be repeated, tells the firewall that somebody is there, and sees to it that there is room.
    pub fn tick(&self, now: Instant) {
        self.ticks.set((self.ticks.get() + 1) % SIGN);
        if self.ticks.get() == 0 {
            self.give_sign();
        }
        self.handshakes.borrow_mut().tick(now, &mut |route, to, packet| self.queue(route, to, packet));
        _ = self.flush();
        // Where there is no room at all, none begins.
        if (self.has_begun.take() || self.ticks.get() == 0) && conntrack::make_room(self.mark) {
            self.has_begun.set(true);
            info!("connection tracking is nearly full: the client with the most made room");
        }
    }

    /// Tells the firewall that somebody is there.
    pub fn give_sign(&self) {
        // The firewall drops it, and says so.
        self.queue_numbered(ALIVE, &LIFE, Ipv4Addr::LOCALHOST.into());
        self.queue_numbered(ALIVE, &LIFE6, Ipv6Addr::LOCALHOST.into());
        _ = self.flush();
    }

    /// Gives up what waits for answers of proxies to an address that this machine has lost.
    pub fn lose_ways(&self, is_lost: &dyn Fn(IpAddr) -> bool) {
        for (number, proxy) in (1..).zip(&mut *self.proxies.borrow_mut()) {
            if proxy.source.is_some_and(is_lost) {
                proxy.mss = None;
                self.handshakes.borrow_mut().lose_way(number, &mut |id| self.wake(id));
            }
        }
    }

    /// Sends a packet of ours from anybody to anybody, for the test of the way to a proxy.
    ///
    /// # Errors
    /// What the kernel says.
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

    /// What sends to an address.
    const fn socket(&self, next: IpAddr) -> Option<&RefCell<RawSocket>> {
        if next.is_ipv4() { Some(&self.ipv4) } else { self.ipv6.as_ref() }
    }

    /// Whether a client is this machine itself.
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

    /// What the firewall is to know a proxy by. `None` if there are too many.
    fn number(&self, upstream: &Rc<str>, address: SocketAddr) -> Option<u8> {
        let mut proxies = self.proxies.borrow_mut();
        let is_it = |proxy: &Proxy| proxy.address == address && proxy.upstream == *upstream;
        let index = proxies.iter().position(is_it).unwrap_or_else(|| {
            let upstream = Rc::clone(upstream);
            proxies.push(Proxy { upstream, address, is_installed: false, mss: None, source: None });
            proxies.len() - 1
        });
        let number = u8::try_from(index + 1).ok().filter(|number| *number < PROBE);
        if number.is_none() {
            proxies.truncate(index);
        }
        number
    }

    /// The longest segment that the way to a proxy takes, in bytes. `None` until the firewall knows it.
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

    /// Sends what has been queued: of all handshakes that a turn of the event loop has furthered, with one call.
    ///
    /// # Errors
    /// What the kernel has said last. What is lost is repeated, or given up.
    pub fn flush(&self) -> io::Result<()> {
        let mut result = Ok(());
        for socket in [Some(&self.ipv4), self.ipv6.as_ref()].into_iter().flatten() {
            socket.borrow_mut().flush(&mut |packet, next, error| {
                // The firewall drops a SYN where conntrack still has another connection of the same addresses.
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

/// From where to where, if it is a SYN.
fn syn_tuple(packet: &[u8]) -> Option<Tuple> {
    let mut bytes = packet.to_vec();
    let packet = Packet::parse(&mut bytes).ok()?;
    (packet.transport() == Transport::Tcp && packet.flags() & (SYN | ACK) == SYN).then(|| packet.tuple())
}

/// Whether an address is this machine's: the kernel lets a socket be bound to no other.
fn is_own(address: Ipv6Addr) -> bool {
    UdpSocket::bind((address.to_canonical(), 0)).is_ok()
}

impl Attempt {
    /// Waits until the proxy has accepted the connection.
    ///
    /// # Errors
    /// It refuses, or can't be reached.
    pub async fn connected(&self) -> io::Result<()> {
        match self.wait(Outcome::Pending).await {
            // Closed may be what it is by the time that anybody looks.
            Outcome::Unreachable => Err(ErrorKind::ConnectionRefused.into()),
            _ => Ok(()),
        }
    }

    /// The challenges of the 407 that it was refused with, a line each.
    pub fn challenges(&self) -> Vec<u8> {
        self.forwarder.handshakes.borrow().challenges(self.id).into()
    }

    /// Waits until the proxy has answered, or can't any more.
    pub async fn answered(&self) -> Outcome {
        self.wait(Outcome::Connected).await
    }

    /// Waits until the client, which has been answered, has gone on: the connection is the kernel's from there.
    pub async fn released(&self) {
        self.poll(|handshakes| handshakes.is_released(self.id).then_some(())).await;
    }

    /// Waits until it is further than that.
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

impl Drop for Attempt {
    fn drop(&mut self) {
        let forwarder = &self.forwarder;
        let mut send = |route: &Route, to: To, packet: &[u8]| forwarder.queue(route, to, packet);
        forwarder.handshakes.borrow_mut().end(self.id, &mut send);
        _ = forwarder.flush();
    }
}
