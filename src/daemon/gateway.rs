//! What happens to a connection from its SYN to its end: held, dialled, released or refused, accepted,
//! relayed.

mod kept;
mod relays;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream};
use std::rc::Rc;
use std::time::Duration;

use tcp_over_http::dns::PORT;
use tcp_over_http::flow::{Slot, State};
use tcp_over_http::http::connect::Target;
use tcp_over_http::packet::datagram::Datagram;
use tcp_over_http::packet::make::{self, Reject};
use tcp_over_http::packet::vnet;
use tcp_over_http::packet::{Packet, Tuple};
use tcp_over_http::rewrite::{Rewriter, Verdict};
use tcp_over_http::time::Instant;

use crate::clock::Clock;
use crate::dns::{Dns, Meaning};
use crate::gateway::kept::{Kept, KeptFlows, Parked, Tunnel};
use crate::kernel::self_test::ListenerTest;
use crate::kernel::tun::Tun;
use crate::relay::{Moved, Supplies};
use crate::sys;
use crate::task::spawn;
use crate::upstream::{Failure, Opened, Upstreams};
use tcp_over_http::config::{Config, ConnectMode};

/// All that one packet or connection may need. The event loop and the dials share it.
pub struct Gateway {
    clock: Clock,
    tun: Rc<Tun>,
    listener_test: ListenerTest,
    rewriter: RefCell<Rewriter>,
    upstreams: RefCell<Rc<Upstreams>>,
    dns: Option<Rc<Dns>>,
    supplies: Supplies,
    mode: Cell<ConnectMode>,
    /// What is kept for a flow, by slot.
    kept: RefCell<KeptFlows>,
    /// Whose relays have a turn without an event...
    queue: RefCell<VecDeque<Slot>>,
    /// ...and whether one of them can make use of it at once.
    again: Cell<bool>,
    totals: Cell<Totals>,
}

/// What has happened so far, beside what the rewriter counts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// Bytes moved by relays.
    pub moved: Moved,
    /// Flows refused because of what the proxy said.
    pub refused: u64,
}

impl Gateway {
    /// A gateway without flows.
    pub fn new(
        clock: Clock,
        tun: Rc<Tun>,
        rewriter: Rewriter,
        upstreams: Rc<Upstreams>,
        dns: Option<Rc<Dns>>,
        supplies: Supplies,
        mode: ConnectMode,
    ) -> Self {
        Self {
            clock,
            tun,
            listener_test: ListenerTest::new(rewriter.settings()),
            rewriter: RefCell::new(rewriter),
            upstreams: RefCell::new(upstreams),
            dns,
            supplies,
            mode: Cell::new(mode),
            kept: RefCell::default(),
            queue: RefCell::default(),
            again: Cell::default(),
            totals: Cell::default(),
        }
    }

    /// The TUN.
    pub fn tun(&self) -> &Tun {
        &self.tun
    }

    /// Tries whether connections get to the listener, and tells what the last test has found.
    pub const fn listener_test(&self) -> &ListenerTest {
        &self.listener_test
    }

    /// The rewriter, for what it has counted.
    pub const fn rewriter(&self) -> &RefCell<Rewriter> {
        &self.rewriter
    }

    /// The proxies, for what they have counted.
    pub fn upstreams(&self) -> Rc<Upstreams> {
        Rc::clone(&self.upstreams.borrow())
    }

    /// Takes over how connections are opened from now on, and by whom. Dials that are under way go on.
    pub fn configure(&self, old: &Config, new: &Config, upstreams: Upstreams) {
        upstreams.inherit(&self.upstreams());
        let upstreams = Rc::new(upstreams);
        self.upstreams.replace(Rc::clone(&upstreams));
        self.mode.set(new.connect);
        if let Some(dns) = &self.dns {
            dns.configure(old, new, upstreams);
        }
        self.rewriter.borrow_mut().flows.limit_held(new.max_dials, new.max_dials_per_client);
    }

    /// The resolver, unless `dns` is 'off'.
    pub const fn dns(&self) -> Option<&Rc<Dns>> {
        self.dns.as_ref()
    }

    /// What has happened so far.
    pub const fn totals(&self) -> Totals {
        self.totals.get()
    }

    /// The time, for the rewriter.
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Since the start.
    pub fn uptime(&self) -> Duration {
        self.clock.uptime()
    }

    /// Handles one frame from the TUN.
    pub fn handle_frame(self: &Rc<Self>, frame: &mut [u8], now: Instant) {
        let Some((header, packet)) = frame.split_first_chunk_mut::<{ vnet::LEN }>() else {
            return;
        };
        if self.listener_test.take(&self.tun, packet) {
            return;
        }
        let header = vnet::Header::parse(header);
        let verdict = self.rewriter.borrow_mut().handle(header, packet, now);
        log::trace!("{} bytes: {verdict}", packet.len());
        match verdict {
            Verdict::Forward => _ = self.tun.write(frame), // which counts what is lost
            Verdict::ForwardAbandoned(slot) => {
                _ = self.tun.write(frame);
                self.keep(slot, Kept::Nothing);
            }
            Verdict::Hold { slot, dial: true } => self.hold(slot, frame, now),
            Verdict::Hold { slot, dial: false } => self.hold_instead(slot, frame),
            Verdict::Abandoned(slot) => self.keep(slot, Kept::Nothing),
            Verdict::Dns => self.answer_query(packet),
            Verdict::Reject(reject) => self.reject(reject, packet),
            Verdict::Drop(_) => {}
        }
    }

    /// A connection has come to the listener.
    pub fn handle_accepted(self: &Rc<Self>, client: TcpStream, peer: SocketAddr, now: Instant) {
        let local = || client.local_addr().ok().map(|local| (mapped(local.ip()), local.port()));
        let accepted = self.rewriter.borrow_mut().accept(mapped(peer.ip()), peer.port(), local, now);
        let Some(slot) = accepted else {
            log::debug!("accepted {peer}, which is no flow's; reset");
            _ = sys::set_resetting(&client);
            return;
        };
        let mut kept = self.kept.borrow_mut();
        let Some(parked) = kept.parked(slot) else {
            drop(kept);
            return self.reset(slot, &client);
        };
        match std::mem::replace(&mut parked.tunnel, Tunnel::Failed) {
            Tunnel::Opened(opened) => {
                drop(kept);
                self.relay(slot, client, opened);
            }
            Tunnel::Dialled(dial) => {
                parked.tunnel = Tunnel::Dialled(dial);
                parked.client = Some(client);
            }
            Tunnel::Dns => {
                drop(kept);
                self.serve_dns(slot, client);
            }
            Tunnel::Failed => {
                drop(kept);
                self.reset(slot, &client);
            }
        }
    }

    /// Lets go of flows that have waited too long.
    pub fn handle_tick(self: &Rc<Self>, now: Instant) {
        self.listener_test.tick(&self.tun);
        if let Some(dns) = &self.dns {
            dns.tick(now);
        }
        loop {
            let expired = self.rewriter.borrow_mut().flows.expire(now);
            match expired {
                None => return,
                Some((slot, State::Held | State::Opening)) => self.keep(slot, Kept::Nothing),
                Some(_) => {}
            }
        }
    }

    /// From now on new flows are not taken.
    pub fn drain(&self) {
        self.rewriter.borrow_mut().drain();
    }

    /// Whether no flow has anything left to do.
    pub fn is_idle(&self) -> bool {
        self.rewriter.borrow().flows.is_idle()
    }

    fn hold(self: &Rc<Self>, slot: Slot, frame: &mut [u8], now: Instant) {
        let tuple = self.rewriter.borrow().flows.get(slot).tuple;
        log::debug!("{slot}: {}:{} wants {}", tuple.source, tuple.source_port, server(&tuple));
        let target = server(&tuple);
        let mut parked =
            Parked { syn: Box::from(&*frame), tunnel: Tunnel::Dialled(None), client: None, held: None };
        if self.rewriter.borrow().settings().dns && target.port() == PORT {
            parked.tunnel = Tunnel::Dns;
            self.keep(slot, Kept::Parked(Box::new(parked)));
            return self.release(slot, frame, now);
        }
        let name = match self.dns.as_ref().map(|dns| dns.meaning(target.ip())) {
            Some(Meaning::Name(name, held)) => {
                log::debug!("{slot}: {} is {name}", target.ip());
                parked.held = Some(held);
                Some(name)
            }
            Some(Meaning::Nothing) => {
                self.rewriter.borrow_mut().flows.remove(slot, now);
                self.count(|totals| totals.refused += 1);
                if let Some((_, packet)) = frame.split_first_chunk_mut::<{ vnet::LEN }>() {
                    self.reject(Reject::Reset, packet);
                }
                return;
            }
            Some(Meaning::Address) | None => None,
        };
        self.keep(slot, Kept::Parked(Box::new(parked)));
        let gateway = Rc::clone(self);
        let dial = spawn(async move {
            let target = match &name {
                Some(name) => Target::Name(name, target.port()),
                None => Target::Ip(target),
            };
            let upstreams = gateway.upstreams();
            let result = upstreams.open(target).await;
            gateway.handle_dialled(slot, result);
        });
        if let Some(parked) = self.kept.borrow_mut().parked(slot) {
            parked.tunnel = Tunnel::Dialled(Some(dial));
        }
        if self.mode.get() == ConnectMode::Early {
            self.release(slot, frame, now);
        }
    }

    /// The client has begun anew from the same port; the proxy is being asked for the same already.
    fn hold_instead(&self, slot: Slot, frame: &[u8]) {
        if let Some(parked) = self.kept.borrow_mut().parked(slot) {
            parked.syn = Box::from(frame);
        }
    }

    /// The proxy has answered, or not.
    fn handle_dialled(self: &Rc<Self>, slot: Slot, result: Result<Opened, Failure>) {
        let now = self.now();
        let mut kept = self.kept.borrow_mut();
        let Some(parked) = kept.parked(slot) else {
            return;
        };
        parked.tunnel = Tunnel::Dialled(None); // has ended: nothing to abort
        let held = self.rewriter.borrow().flows.get(slot).state() == State::Held;
        match (result, parked.client.take()) {
            (Ok(opened), Some(client)) => {
                drop(kept);
                self.relay(slot, client, opened);
            }
            (Ok(opened), None) => {
                parked.tunnel = Tunnel::Opened(opened);
                let mut syn = std::mem::take(&mut parked.syn);
                drop(kept);
                if held {
                    self.release(slot, &mut syn, now);
                }
            }
            (Err(_), Some(client)) => {
                drop(kept);
                self.count(|totals| totals.refused += 1);
                self.reset(slot, &client);
            }
            (Err(_), None) if !held => parked.tunnel = Tunnel::Failed,
            (Err(failure), None) => {
                let mut syn = std::mem::take(&mut parked.syn);
                drop(kept);
                self.count(|totals| totals.refused += 1);
                self.rewriter.borrow_mut().flows.remove(slot, now);
                self.keep(slot, Kept::Nothing);
                let packet = syn.split_first_chunk_mut::<{ vnet::LEN }>();
                if let (Some(reject), Some((_, packet))) = (answer(&failure), packet) {
                    self.reject(reject, packet);
                }
            }
        }
    }

    /// Lets the held SYN pass into the kernel.
    fn release(self: &Rc<Self>, slot: Slot, syn: &mut [u8], now: Instant) {
        self.rewriter.borrow_mut().flows.release(slot, now);
        self.handle_frame(syn, now);
    }

    /// Answers the query in a captured datagram.
    fn answer_query(&self, packet: &mut [u8]) {
        if let (Some(dns), Ok(packet)) = (&self.dns, Packet::parse(packet))
            && let Some(Datagram { tuple, payload }) = Datagram::of(&packet)
        {
            dns.ask_captured(payload, tuple);
        }
    }

    /// Answers the queries of a client that has connected to another resolver.
    fn serve_dns(self: &Rc<Self>, slot: Slot, client: TcpStream) {
        _ = sys::set_lingering(&client);
        // Not who the listener sees: that may be a NAT source.
        let source = self.rewriter.borrow().flows.get(slot).tuple.source;
        let task = DnsTask { slot, gateway: Rc::clone(self) };
        let task = spawn(async move {
            if let (Some(dns), Ok(client)) = (task.gateway.dns(), tokio::net::TcpStream::from_std(client)) {
                dns.serve(client, Some(source)).await;
            }
            task.gateway.keep(task.slot, Kept::Nothing);
        });
        self.keep(slot, Kept::Served(task));
    }

    /// Resets the client of an accepted flow.
    fn reset(&self, slot: Slot, client: &TcpStream) {
        _ = sys::set_resetting(client);
        self.rewriter.borrow_mut().close(slot, self.now());
        self.keep(slot, Kept::Nothing);
    }

    /// Answers `packet` with a rejection.
    fn reject(&self, reject: Reject, packet: &mut [u8]) {
        let Ok(packet) = Packet::parse(packet) else {
            return;
        };
        let source = self.rewriter.borrow().error_source(packet.is_ipv4());
        let mut frame = [0; vnet::LEN + make::MAX_LEN];
        let Some((_, out)) = frame.split_first_chunk_mut::<{ vnet::LEN }>() else {
            return;
        };
        let Some((out, _)) = out.split_first_chunk_mut::<{ make::MAX_LEN }>() else {
            return;
        };
        let length = reject.build(&packet, source, out);
        _ = self.tun.write(&frame[..vnet::LEN + length]);
    }

    fn keep(&self, slot: Slot, new: Kept) {
        let old = self.kept.borrow_mut().replace(slot, new);
        // Outside of the borrow: what is dropped may ask for it.
        drop(old);
    }

    fn count(&self, change: impl FnOnce(&mut Totals)) {
        let mut totals = self.totals.get();
        change(&mut totals);
        self.totals.set(totals);
    }
}

/// A client's connection to our resolver, until it ends.
struct DnsTask {
    slot: Slot,
    gateway: Rc<Gateway>,
}

impl Drop for DnsTask {
    /// Also when it is aborted.
    fn drop(&mut self) {
        self.gateway.rewriter.borrow_mut().close(self.slot, self.gateway.now());
    }
}

/// What a client is told of a dial that failed. None: nothing, it will try again.
const fn answer(failure: &Failure) -> Option<Reject> {
    match failure {
        Failure::Refused { status: 502 } => Some(Reject::Reset),
        Failure::Refused { status: 400..=499 } => Some(Reject::Prohibited),
        Failure::Refused { .. } | Failure::TimedOut => Some(Reject::Host),
        Failure::Unreachable | Failure::BadReply => Some(Reject::Network),
        Failure::BadTarget => Some(Reject::Prohibited),
        Failure::Exhausted => None,
    }
}

const fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

/// The server that a client wants.
fn server(tuple: &Tuple) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::to_canonical(&tuple.destination), tuple.destination_port)
}
