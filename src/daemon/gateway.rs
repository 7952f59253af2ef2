//! What happens to a connection from its SYN to its end: it is held, dialled, released or refused, accepted,
//! and relayed (or forwarded by the kernel).
//!
//! [`Gateway::handle_frame`] takes a packet from the TUN straight to the rewriter, and carries the verdict
//! out at once.
//!
//! | file | what it does |
//! |---|---|
//! | `dial` | takes a held SYN to the proxy's answer |
//! | `relays` | gives relays their turns, ends them, counts bytes |
//! | `http` | carries plain HTTP as requests |
//! | `queries` | answers captured queries to resolvers |
//! | `loops` | detects a proxy whose own connections are captured |
//! | `kept` | what the daemon keeps for each flow |
//! | `served` | flows that a task serves |

mod dial;
mod http;
mod kept;
mod loops;
mod queries;
mod relays;
mod served;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;

use tcp_over_http::capture::Path;
use tcp_over_http::capture::conntrack::Entry;
use tcp_over_http::config::{Config, ConnectMode};
use tcp_over_http::flow::{Slot, State};
use tcp_over_http::neighbours::Neighbours;
use tcp_over_http::net::mapped;
use tcp_over_http::packet::reject::Reject;
use tcp_over_http::packet::{Packet, vnet};
use tcp_over_http::rewrite::{Rewriter, Verdict};
use tcp_over_http::tally::Tallies;
use tcp_over_http::time::Instant;

use crate::clock::Clock;
use crate::dns::Dns;
use crate::forward::{Forwarder, Taken};
use crate::gateway::http::Shared;
use crate::gateway::kept::{DialState, Kept, KeptFlows};
use crate::gateway::loops::Loops;
use crate::kernel::self_test::SelfTest;
use crate::kernel::tun::Tun;
use crate::netlink::neighbour;
use crate::pause::Paused;
use crate::relay::{Moved, Resources};
use crate::sys;
use crate::upstream::Upstreams;

/// Everything that a packet or a connection may need. The event loop and the dials share it.
pub struct Gateway {
    clock: Clock,
    tun: Rc<Tun>,
    self_test: SelfTest,
    rewriter: RefCell<Rewriter>,
    neighbours: Rc<Neighbours>,
    upstreams: RefCell<Rc<Upstreams>>,
    dns: Option<Rc<Dns>>,
    resources: Resources,
    forwarder: Option<Rc<Forwarder>>,
    paused: Rc<Paused>,
    mode: Cell<ConnectMode>,
    loops: Loops,
    /// What the daemon keeps for each flow, by slot.
    kept: RefCell<KeptFlows>,
    /// Flows whose relays get a turn without an event.
    queue: RefCell<VecDeque<Slot>>,
    /// Whether one of these relays can use a turn at once.
    again: Cell<bool>,
    totals: Cell<Totals>,
    clients: RefCell<Tallies>,
    /// What connections carried as HTTP requests keep in memory.
    shared: Rc<RefCell<Shared>>,
}

/// Counters since the start, except the rewriter's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// Bytes moved by relays.
    pub moved: Moved,
    /// Bytes of forwarded connections that conntrack has forgotten.
    pub ended: Moved,
    /// Flows refused because of the proxy's answer, by a rule, or because their server is no longer known.
    pub refused: u64,
    /// Connections that the kernel has begun to forward.
    pub forwarded: u64,
    /// Flows ended to make room for others.
    pub yielded: u64,
    /// Flows refused because they were a proxy's own connections.
    pub looped: u64,
    /// Flows of other machines. (Those of this machine have the TUN's address as source, or NAT has led them
    /// into the TUN.)
    pub from_lan: u64,
}

impl Gateway {
    /// A gateway without flows.
    #[expect(clippy::too_many_arguments, reason = "each is made elsewhere, and needed by the first packet")]
    pub fn new(
        clock: Clock,
        tun: Rc<Tun>,
        rewriter: Rewriter,
        upstreams: Rc<Upstreams>,
        dns: Option<Rc<Dns>>,
        resources: Resources,
        forwarder: Option<Rc<Forwarder>>,
        paused: Rc<Paused>,
        mode: ConnectMode,
    ) -> Self {
        neighbour::read(rewriter.neighbours());
        Self {
            clock,
            tun,
            self_test: SelfTest::new(rewriter.settings()),
            neighbours: Rc::clone(rewriter.neighbours()),
            rewriter: RefCell::new(rewriter),
            upstreams: RefCell::new(upstreams),
            dns,
            resources,
            forwarder,
            paused,
            mode: Cell::new(mode),
            loops: Loops::default(),
            kept: RefCell::default(),
            queue: RefCell::default(),
            again: Cell::default(),
            totals: Cell::default(),
            clients: RefCell::default(),
            shared: Rc::default(),
        }
    }

    /// The path of clients' connections to proxies.
    pub const fn path(&self) -> Path {
        if self.forwarder.is_some() { Path::Forward } else { Path::Relay }
    }

    /// The connections that the kernel forwards, and closed ones that conntrack still has, each with its
    /// upstream. Counts those that conntrack has forgotten, so that each connection is counted once.
    pub fn forwarded(&self) -> Vec<(Rc<str>, Entry)> {
        self.count_ended();
        self.forwarder.as_ref().map(|forwarder| forwarder.forwarded()).unwrap_or_default()
    }

    /// The TUN.
    pub fn tun(&self) -> &Tun {
        &self.tun
    }

    /// The test whether connections get to the listener.
    pub const fn self_test(&self) -> &SelfTest {
        &self.self_test
    }

    /// The rewriter, for its counters and settings.
    pub const fn rewriter(&self) -> &RefCell<Rewriter> {
        &self.rewriter
    }

    /// The upstreams for new connections.
    pub fn upstreams(&self) -> Rc<Upstreams> {
        Rc::clone(&self.upstreams.borrow())
    }

    /// Applies a new configuration to new connections. Dials in flight go on as they are.
    pub fn configure(&self, old: &Config, new: &Config, mut upstreams: Upstreams) {
        upstreams.inherit(&self.upstreams());
        let upstreams = Rc::new(upstreams);
        self.upstreams.replace(Rc::clone(&upstreams));
        self.mode.set(new.connect);
        if let Some(dns) = &self.dns {
            dns.configure(old, new, upstreams);
        }
        self.rewriter.borrow_mut().limit_held(new.max_dials, new.max_dials_per_client);
    }

    /// The daemon's resolver; `None` with `dns 'off'`.
    pub const fn dns(&self) -> Option<&Rc<Dns>> {
        self.dns.as_ref()
    }

    /// The clients that go out directly for a while.
    pub const fn paused(&self) -> &Rc<Paused> {
        &self.paused
    }

    /// The counters.
    pub const fn totals(&self) -> Totals {
        self.totals.get()
    }

    /// Counters of each client.
    pub const fn clients(&self) -> &RefCell<Tallies> {
        &self.clients
    }

    /// The current time.
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// The daemon's clock.
    pub const fn clock(&self) -> Clock {
        self.clock
    }

    /// Handles one frame from the TUN. After a batch of frames, call [`Self::flush`].
    pub fn handle_frame(self: &Rc<Self>, frame: &mut [u8], now: Instant) {
        let Some((header, packet)) = frame.split_first_chunk_mut::<{ vnet::LEN }>() else {
            return;
        };
        if self.self_test.take(&self.tun, packet) {
            return;
        }
        let header = vnet::Header::parse(header);
        let taken = self.forwarder.as_ref().map(|forwarder| forwarder.take(header, packet, now));
        if let Some(Taken::Yes(_)) = taken {
            return;
        }
        let is_anew = matches!(taken, Some(Taken::Restarted(_)));
        if is_anew && let Ok(packet) = Packet::parse(packet) {
            let forgotten = self.rewriter.borrow_mut().forget(&packet.tuple(), now);
            forgotten.into_iter().for_each(|slot| self.keep(slot, Kept::Nothing));
        }
        let verdict = self.rewriter.borrow_mut().handle(header, packet, now);
        self.carry_out(verdict, frame, is_anew, now);
    }

    /// Sends queued packets of handshakes, which leave by raw sockets.
    pub fn flush(&self) {
        if let Some(forwarder) = &self.forwarder {
            _ = forwarder.flush();
        }
    }

    /// `is_anew`: the client has started over with other sequence numbers than those that a proxy has been
    /// told, so the SYN is dialled again.
    fn carry_out(self: &Rc<Self>, verdict: Verdict, frame: &mut [u8], is_anew: bool, now: Instant) {
        trace!("{} bytes: {verdict}", frame.len() - vnet::LEN);
        match verdict {
            Verdict::Forward => self.tun.write(frame),
            Verdict::ForwardAbandoned(slot) => {
                self.tun.write(frame);
                self.keep(slot, Kept::Nothing);
            }
            Verdict::Hold { slot, dial } if dial || is_anew => self.hold(slot, frame, now),
            Verdict::Hold { slot, .. } => self.replace_syn(slot, frame),
            Verdict::Abandoned(slot) => self.keep(slot, Kept::Nothing),
            Verdict::Dns => self.answer_query(&mut frame[vnet::LEN..]),
            Verdict::Reject(reject) => self.reject(reject, frame),
            Verdict::Drop(_) => {}
        }
    }

    /// Answers the packet of a frame with a rejection.
    fn reject(&self, reject: Reject, frame: &mut [u8]) {
        if let Some(Ok(packet)) = frame.get_mut(vnet::LEN..).map(Packet::parse) {
            let source = self.rewriter.borrow().error_source(packet.family());
            self.tun.write_made(&|rejection| reject.build(&packet, source, rejection));
        }
    }

    /// Handles a connection that the listener has accepted.
    pub fn handle_accepted(self: &Rc<Self>, client: TcpStream, peer: SocketAddr, now: Instant) {
        let accepted = self.rewriter.borrow_mut().accept(mapped(peer.ip()), peer.port(), now);
        let Some(slot) = accepted else {
            debug!("accepted {peer}, which belongs to no flow; reset");
            _ = sys::set_resetting(&client);
            return;
        };
        let mut kept = self.kept.borrow_mut();
        let Some(parked) = kept.parked(slot) else {
            drop(kept);
            return self.reset(slot, &client);
        };
        match std::mem::replace(&mut parked.dial, DialState::Failed) {
            DialState::Opened(opened) => {
                drop(kept);
                self.relay(slot, client, opened);
            }
            DialState::InFlight(dial) => {
                parked.dial = DialState::InFlight(dial);
                parked.client = Some(client);
            }
            DialState::Unneeded => {
                drop(kept);
                self.serve_dns(slot, client);
            }
            DialState::Failed => {
                drop(kept);
                self.reset(slot, &client);
            }
        }
    }

    /// Does what is due with time: tests, health checks, retransmissions, counting, and the end of flows that
    /// have waited too long. Called about once a second.
    pub fn handle_tick(self: &Rc<Self>, now: Instant) {
        if self.neighbours.is_due(now) {
            neighbour::read(&self.neighbours);
        }
        self.self_test.tick(&self.tun);
        self.upstreams().tick(&mut |upstream, alarm| self.handle_alarm(upstream, alarm));
        if let Some(forwarder) = &self.forwarder {
            forwarder.tick(&self.neighbours, now);
            self.count_ended();
        }
        if let Some(dns) = &self.dns {
            dns.tick(now);
        }
        loop {
            let expired = self.rewriter.borrow_mut().expire(now);
            match expired {
                None => return,
                Some((slot, State::Held | State::Opening)) => self.keep(slot, Kept::Nothing),
                Some(_) => {}
            }
        }
    }

    /// From now on new SYNs are dropped, because the daemon is about to end.
    pub fn drain(&self) {
        self.rewriter.borrow_mut().drain();
    }

    /// Whether no flow is active any more.
    pub fn is_idle(&self) -> bool {
        self.rewriter.borrow().is_idle()
    }

    /// Resets an accepted client, and ends its flow.
    fn reset(&self, slot: Slot, client: &TcpStream) {
        _ = sys::set_resetting(client);
        self.rewriter.borrow_mut().close(slot, self.now());
        self.keep(slot, Kept::Nothing);
    }

    fn keep(&self, slot: Slot, new: Kept) {
        let old = self.kept.borrow_mut().replace(slot, new);
        // Dropped after the borrow of `kept` has ended, because a drop may borrow it again.
        drop(old);
    }

    fn count(&self, change: impl FnOnce(&mut Totals)) {
        let mut totals = self.totals.get();
        change(&mut totals);
        self.totals.set(totals);
    }
}
