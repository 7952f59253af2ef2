//! Dials: from a held SYN to the proxy's answer.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::rc::Rc;

use tcp_over_http::config::ConnectMode;
use tcp_over_http::dns::PORT;
use tcp_over_http::flow::{Slot, State};
use tcp_over_http::http::connect::Target;
use tcp_over_http::packet::reject::Reject;
use tcp_over_http::packet::{Tuple, vnet};
use tcp_over_http::rules::Action;
use tcp_over_http::time::Instant;

use super::Gateway;
use super::kept::{DialState, Kept, Parked};
use crate::dns::Meaning;
use crate::netlink::conntrack;
use crate::task::spawn;
use crate::upstream::{Carried, Failure, HeldSyn, Opened};

impl Gateway {
    /// Holds the SYN of a new flow, and has an upstream asked for a tunnel.
    pub(super) fn hold(self: &Rc<Self>, slot: Slot, frame: &mut [u8], now: Instant) {
        let yielded = self.rewriter.borrow_mut().take_yielded();
        if let Some(yielded) = yielded {
            self.end_yielded(yielded);
        }
        let tuple = self.rewriter.borrow().flow(slot).tuple;
        let Some(target) = self.target(&tuple) else { return self.turn_away(slot, frame, now) };
        let source = tuple.source.to_canonical();
        debug!("{slot}: {}:{} wants {target}", tuple.source, tuple.source_port);
        let is_own = self.rewriter.borrow().settings().is_own(&tuple);
        self.count(|totals| totals.from_lan += u64::from(!is_own));
        if self.is_loop(&tuple, target, now) {
            self.count(|totals| totals.looped += 1);
            self.rewriter.borrow_mut().refuse(slot, Reject::Reset, now);
            return self.reject(Reject::Reset, frame);
        }
        self.clients.borrow_mut().note(self.client(slot), now).opened += 1;
        let syn = Rc::new(RefCell::new(Box::from(&*frame)));
        let mut parked =
            Parked { syn: Rc::clone(&syn), dial: DialState::InFlight(None), client: None, lease: None };
        if self.rewriter.borrow().settings().dns && target.port() == PORT {
            parked.dial = DialState::Unneeded;
            self.keep(slot, Kept::Parked(Box::new(parked)));
            return self.release(slot, frame, now);
        }
        let client = self.neighbours.key(tuple.source);
        let name = match self.dns.as_ref().map(|dns| dns.meaning(target.ip(), client)) {
            Some(Meaning::Name(name, lease)) => {
                debug!("{slot}: {} is {name}", target.ip());
                parked.lease = lease;
                Some(name)
            }
            Some(Meaning::Nothing) => return self.turn_away(slot, frame, now),
            Some(Meaning::Address) | None => None,
        };
        let upstreams = self.upstreams();
        let action = upstreams.decide(name.as_deref(), target, source);
        if action == Some(Action::Reject) {
            return self.turn_away(slot, frame, now);
        }
        self.keep(slot, Kept::Parked(Box::new(parked)));
        let gateway = Rc::clone(self);
        let can_be_forwarded = self.mode.get() == ConnectMode::Honest && !is_own;
        let dial = spawn(async move {
            let target = match &name {
                Some(name) => Target::Name(name, target.port()),
                None => Target::Ip(target),
            };
            let forwarder = gateway.forwarder.as_ref().filter(|_| can_be_forwarded);
            let held = forwarder.map(|forwarder| HeldSyn { forwarder, syn: &syn });
            let carried = match &name {
                // A paused client may still have a fake address in its cache, or get one from dnsmasq.
                Some(_) if gateway.paused.covers(Some(source)) => {
                    match Box::pin(upstreams.connect_paused(target)).await {
                        // The pause has ended meanwhile.
                        Ok(_) if !gateway.paused.covers(Some(source)) => Err(Failure::UplinkDown),
                        carried => carried,
                    }
                }
                _ => upstreams.carry(target, held, action).await,
            };
            match carried {
                Ok(Carried::Forwarded(attempt)) => {
                    gateway.rewriter.borrow_mut().release(slot, gateway.now());
                    attempt.released().await;
                    gateway.handle_released(slot);
                }
                Ok(Carried::Relayed(opened)) => gateway.handle_dialled(slot, Ok(*opened)),
                Err(failure) => gateway.handle_dialled(slot, Err(failure)),
            }
        });
        if let Some(parked) = self.kept.borrow_mut().parked(slot) {
            parked.dial = DialState::InFlight(Some(dial));
        }
        if self.mode.get() == ConnectMode::Early {
            self.release(slot, frame, now);
        }
    }

    /// The server that the client wants. `None` for a connection of this machine whose original destination
    /// conntrack has forgotten.
    fn target(&self, tuple: &Tuple) -> Option<SocketAddr> {
        match self.rewriter.borrow().settings().is_diverted(tuple) {
            true => conntrack::original_destination(tuple),
            false => Some(server(tuple)),
        }
    }

    /// Refuses a held SYN without asking a proxy.
    fn turn_away(&self, slot: Slot, frame: &mut [u8], now: Instant) {
        self.count_refused(slot);
        self.rewriter.borrow_mut().remove(slot, now);
        self.reject(Reject::Reset, frame);
    }

    /// Keeps another SYN that a held client has sent. The dial under way is for the same server, and
    /// continues.
    pub(super) fn replace_syn(&self, slot: Slot, frame: &[u8]) {
        if let Some(parked) = self.kept.borrow_mut().parked(slot) {
            parked.syn.replace(Box::from(frame));
        }
    }

    /// Ends the flow of a client that has acknowledged its SYN-ACK: from here on the kernel forwards the
    /// connection.
    fn handle_released(&self, slot: Slot) {
        if let Some(parked) = self.kept.borrow_mut().parked(slot) {
            parked.dial = DialState::InFlight(None); // the task has ended: nothing to abort
        }
        self.rewriter.borrow_mut().vacate(slot, self.now());
        self.keep(slot, Kept::Nothing);
        self.count(|totals| totals.forwarded += 1);
    }

    /// Handles the end of a dial.
    fn handle_dialled(self: &Rc<Self>, slot: Slot, result: Result<Opened, Failure>) {
        let now = self.now();
        let mut kept = self.kept.borrow_mut();
        let Some(parked) = kept.parked(slot) else {
            return;
        };
        parked.dial = DialState::InFlight(None); // the task has ended: nothing to abort
        let held = self.rewriter.borrow().flow(slot).state() == State::Held;
        match (result, parked.client.take()) {
            (Ok(opened), Some(client)) => {
                drop(kept);
                self.relay(slot, client, opened);
            }
            (Ok(opened), None) => {
                parked.dial = DialState::Opened(opened);
                let mut syn = parked.syn.take();
                drop(kept);
                if held {
                    self.release(slot, &mut syn, now);
                }
            }
            (Err(_), Some(client)) => {
                drop(kept);
                self.count_refused(slot);
                self.reset(slot, &client);
            }
            (Err(_), None) if !held => parked.dial = DialState::Failed,
            (Err(failure), None) => {
                let mut syn = parked.syn.take();
                drop(kept);
                self.count_refused(slot);
                match failure.rejection() {
                    Some(reject) => {
                        self.rewriter.borrow_mut().refuse(slot, reject, now);
                        self.reject(reject, &mut syn);
                    }
                    None => self.rewriter.borrow_mut().remove(slot, now),
                }
                self.keep(slot, Kept::Nothing);
            }
        }
    }

    /// The address of a flow's client.
    pub(super) fn client(&self, slot: Slot) -> IpAddr {
        self.rewriter.borrow().flow(slot).tuple.source.to_canonical()
    }

    /// Counts a refused flow. The flow must still be in its slot.
    pub(super) fn count_refused(&self, slot: Slot) {
        self.count(|totals| totals.refused += 1);
        self.clients.borrow_mut().note(self.client(slot), self.now()).refused += 1;
    }

    /// Lets a held SYN pass to the kernel.
    fn release(self: &Rc<Self>, slot: Slot, syn: &mut [u8], now: Instant) {
        let Some((header, packet)) = syn.split_first_chunk_mut::<{ vnet::LEN }>() else { return };
        let mut rewriter = self.rewriter.borrow_mut();
        rewriter.release(slot, now);
        let verdict = rewriter.handle_again(vnet::Header::parse(header), packet, now);
        drop(rewriter);
        self.carry_out(verdict, syn, false, now);
    }
}

/// The server that a client wants.
pub(super) fn server(tuple: &Tuple) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::to_canonical(&tuple.destination), tuple.destination_port)
}
