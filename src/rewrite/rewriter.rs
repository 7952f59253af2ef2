//! The rewriter itself: its state, and what the daemon asks and tells it about flows.

use alloc::rc::Rc;
use core::net::Ipv6Addr;

use super::{Counters, DropReason, Settings, Verdict};
use crate::flow::subnet::Subnet;
use crate::flow::{Flow, FlowTable, Limits, Slot, State};
use crate::neighbours::Neighbours;
use crate::net::Family;
use crate::packet::reject::Reject;
use crate::packet::{Tuple, vnet};
use crate::siphash::Key;
use crate::time::{Instant, TokenBucket};

/// Handles packets; owns the flow table.
///
/// ```
/// use tcp_over_http::flow::{Limits, subnet::Subnets};
/// use tcp_over_http::net::Ipv4Net;
/// use tcp_over_http::packet::{Packet, SYN, Tuple, builder, vnet};
/// use tcp_over_http::rewrite::{Rewriter, Settings, Verdict};
/// use tcp_over_http::time::Instant;
///
/// let own = Ipv4Net { addr: [10, 45, 39, 1].into(), prefix: 24 };
/// let subnets = Subnets::new(own, None);
/// let settings = Settings { subnets, listen_port: 12_345, mtu: 1500, dns: true, ping: true };
/// let limits = Limits { flows: 64, held: 16, held_per_client: 16 };
/// let mut rewriter = Rewriter::new(settings, limits, [1, 2]); // random, in earnest
///
/// // A client's SYN.
/// let tuple = Tuple {
///     source: "::ffff:192.168.1.7".parse()?,
///     destination: "::ffff:203.0.113.10".parse()?,
///     source_port: 40_000,
///     destination_port: 443,
/// };
/// let mut bytes = [0; builder::MAX_LEN];
/// let length = builder::segment(&tuple, 1, 0, SYN, &mut bytes);
/// let (header, now) = (vnet::Header::parse(&vnet::Header::PLAIN), Instant::from_millis(0));
/// let Verdict::Hold { slot, dial: true } = rewriter.handle(header, &mut bytes[..length], now) else { panic!() };
///
/// // The proxy has opened a tunnel: the same SYN passes, and looks as if a NAT source had sent it to the listener.
/// rewriter.release(slot, now);
/// assert_eq!(rewriter.handle(header, &mut bytes[..length], now), Verdict::Forward);
/// let translated = Packet::parse(&mut bytes[..length]).expect("a packet").tuple();
/// let listener = (own.addr.to_ipv6_mapped(), 12_345);
/// assert_eq!((translated.destination, translated.destination_port), listener);
///
/// let accepted = rewriter.accept(translated.source, translated.source_port, now);
/// assert_eq!(accepted, Some(slot));
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
pub struct Rewriter {
    pub(super) flows: FlowTable,
    pub(super) settings: Settings,
    counters: Counters,
    /// The rate limit of ICMP errors (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 (f)).
    pub(super) errors: TokenBucket<1, 100>,
    pub(super) draining: bool,
}

impl Rewriter {
    /// A rewriter without flows. `key` must be random.
    pub fn new(settings: Settings, limits: Limits, key: Key) -> Self {
        let hosts = settings.subnets.iter().map(|subnet| subnet.hosts()).min().unwrap_or(1);
        Self {
            flows: FlowTable::new(limits, hosts, key),
            settings,
            counters: Counters::default(),
            errors: TokenBucket::default(),
            draining: false,
        }
    }

    /// What has happened so far.
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The settings it was made with.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Changes how many flows may be held, in all and for one client.
    pub const fn limit_held(&mut self, held: u16, held_per_client: u16) {
        self.flows.limit_held(held, held_per_client);
    }

    /// From now on, refuses new flows.
    pub const fn drain(&mut self) {
        self.draining = true;
    }

    /// Whether new flows are refused.
    pub const fn is_draining(&self) -> bool {
        self.draining
    }

    /// Whether no flow is left that has anything to do.
    pub fn is_idle(&self) -> bool {
        self.flows.is_idle()
    }

    /// How many flows are in `state`.
    pub const fn count(&self, state: State) -> u16 {
        self.flows.count(state)
    }

    /// The neighbours, to be filled by the caller.
    pub const fn neighbours(&self) -> &Rc<Neighbours> {
        self.flows.neighbours()
    }

    /// See [`FlowTable::held_to`].
    pub fn held_to(&self, tuple: &Tuple) -> (u16, u16) {
        self.flows.held_to(tuple)
    }

    /// How many flows of a client are being opened.
    pub fn opened(&self, client: Ipv6Addr) -> u16 {
        self.flows.opened(client)
    }

    /// The flow of a slot that a verdict named.
    pub fn flow(&self, slot: Slot) -> &Flow {
        self.flows.get(slot)
    }

    /// The source of ICMP errors about packets of a family that is on.
    pub fn error_source(&self, family: Family) -> Ipv6Addr {
        self.settings.subnets.of(family).map_or(Ipv6Addr::UNSPECIFIED, Subnet::error_source)
    }

    /// Lets a held flow's SYN pass: handle it again.
    pub fn release(&mut self, slot: Slot, now: Instant) {
        self.flows.release(slot, now);
    }

    /// Forgets a held flow at once: its next SYN opens a new one.
    pub fn remove(&mut self, slot: Slot, now: Instant) {
        self.flows.remove(slot, now);
    }

    /// Forgets a held flow whose client is refused; the same SYN is refused again for a short time.
    pub fn refuse(&mut self, slot: Slot, reject: Reject, now: Instant) {
        self.flows.refuse(slot, reject, now);
    }

    /// The flow that has yielded to the new one of the last verdict. The caller must drop what it keeps for that flow
    /// before it keeps anything for the new one, which may have the same slot.
    pub const fn take_yielded(&mut self) -> Option<Slot> {
        self.flows.take_yielded()
    }

    /// The flow of a connection that the listener has accepted from `address` and `port`, if it was waiting for that;
    /// it becomes live.
    pub fn accept(&mut self, address: Ipv6Addr, port: u16, now: Instant) -> Option<Slot> {
        let slot = self.flows.find_nat(port)?;
        let is_it = self.nat_source(self.flows.get(slot))? == address && self.flows.accept(slot, now);
        is_it.then_some(slot)
    }

    /// Notes that the flow's relay has ended, or that nobody will accept its connection any more.
    pub fn close(&mut self, slot: Slot, now: Instant) {
        self.flows.close(slot, now);
    }

    /// Notes that the kernel carries the flow's connection: no packet of it has been translated, and no more are
    /// expected.
    pub fn vacate(&mut self, slot: Slot, now: Instant) {
        self.flows.vacate(slot, now);
    }

    /// Ends a flow whose client starts over before it has used the connection that it asked for.
    pub fn forget(&mut self, tuple: &Tuple, now: Instant) -> Option<Slot> {
        let slot = self.flows.find(tuple).filter(|slot| self.flows.get(*slot).state() == State::Opening)?;
        self.flows.vacate(slot, now);
        Some(slot)
    }

    /// Ends one flow that has waited too long, and returns the state it was in. To be called until `None`, every few
    /// seconds.
    pub fn expire(&mut self, now: Instant) -> Option<(Slot, State)> {
        self.flows.expire(now)
    }

    /// Decides about the packet `bytes`, which came after `header`, and changes it in place.
    pub fn handle(&mut self, header: vnet::Header, bytes: &mut [u8], now: Instant) -> Verdict {
        self.counters.packets += 1;
        self.counters.bytes += bytes.len() as u64;
        self.handle_again(header, bytes, now)
    }

    /// The same for a packet that was held and has already been counted.
    pub fn handle_again(&mut self, header: vnet::Header, bytes: &mut [u8], now: Instant) -> Verdict {
        let verdict = self.judge(header, bytes, now).unwrap_or_else(Verdict::Drop);
        match verdict {
            Verdict::Forward | Verdict::ForwardAbandoned(_) => self.counters.forwarded += 1,
            Verdict::Hold { dial: true, .. } => self.counters.flows += 1,
            // The earlier of the two SYNs is dropped.
            Verdict::Hold { dial: false, .. } => self.counters.dropped[DropReason::Repeated as usize] += 1,
            Verdict::Dns => self.counters.queries += 1,
            Verdict::Reject(_) => self.counters.rejected += 1,
            Verdict::Drop(reason) => self.counters.dropped[reason as usize] += 1,
            Verdict::Abandoned(_) => {}
        }
        verdict
    }

    #[inline] // on every packet's path
    pub(super) fn nat_source(&self, flow: &Flow) -> Option<Ipv6Addr> {
        let subnet = self.settings.subnets.of(flow.tuple.family())?;
        Some(subnet.nat_source(flow.nat.host))
    }
}
