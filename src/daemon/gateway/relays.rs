//! The relays: when each gets a turn, and how it ends.

use std::fmt;
use std::io;
use std::mem;
use std::net::{IpAddr, TcpStream};
use std::rc::Rc;
use std::task::{Context, Poll};

use tcp_over_http::flow::Slot;
use tcp_over_http::upstream::health::Alarm;

use super::Gateway;
use crate::dns::AddressLease;
use crate::gateway::kept::{Kept, Relayed, Traffic};
use crate::relay::{Moved, Next, Relay};
use crate::sys;
use crate::upstream::Opened;
use crate::upstream::proxy::Account;

/// How many batches of events are handled before the event loop goes on.
const TURNS: usize = 4;

impl Gateway {
    /// Gives a turn to relays whose sockets are ready, and to those that had not finished in their last turn.
    pub fn poll_relays(&self, cx: &mut Context) {
        let mut turns = 0;
        while turns < TURNS
            && let Poll::Ready(events) = self.resources.poller.poll(cx)
        {
            for event in events {
                self.run(event.key.slot, |relayed| relayed.relay.note(event));
            }
            turns += 1;
        }
        let queued = self.queue.borrow().len();
        for _ in 0..queued {
            let Some(slot) = self.queue.borrow_mut().pop_front() else { break };
            self.run(slot, |relayed| relayed.queued = false);
        }
        if turns == TURNS || self.again.take() || self.resources.pipes.have_been_freed() && queued > 0 {
            cx.waker().wake_by_ref();
        }
    }

    /// Ends all relays and dials, and resets their clients.
    pub fn abort_all(&self) {
        // Moved out first, because a drop may borrow `kept` again.
        let kept = self.kept.take();
        for (slot, kept) in kept.into_all() {
            self.abort(slot, kept, io::ErrorKind::ConnectionAborted);
        }
    }

    /// Ends the relays that `is_meant` selects and resets their clients. Returns how many.
    fn reset_relays(&self, is_meant: &dyn Fn(Traffic<'_>) -> bool) -> usize {
        let mut slots = Vec::new();
        self.kept.borrow_mut().visit(&mut |slot, traffic| {
            if is_meant(traffic) {
                slots.push(slot);
            }
        });
        for &slot in &slots {
            let kept = self.kept.borrow_mut().replace(slot, Kept::Nothing);
            self.abort(slot, kept, io::ErrorKind::ConnectionReset);
        }
        slots.len()
    }

    /// Ends a flow early and resets its client. `kept` is what was kept for it.
    fn abort(&self, slot: Slot, kept: Kept, why: io::ErrorKind) {
        match kept {
            Kept::Relayed(relayed) => self.end(slot, relayed, Err(why.into())),
            Kept::Http(flow) => {
                _ = sys::set_resetting(&*flow.socket);
                flow.task.abort();
                self.count_moved(&flow.account, flow.client, flow.moved.get());
            }
            Kept::Served(task) => task.abort(),
            Kept::Parked(_) | Kept::Nothing => {}
        }
    }

    /// Ends all connections through the upstreams that `is_meant` selects. Returns how many.
    pub fn reset_through(&self, is_meant: &dyn Fn(&str) -> bool) -> usize {
        let forwarded = self.forwarder.as_ref().map_or(0, |forwarder| forwarder.reset(is_meant));
        forwarded + self.reset_relays(&|traffic| is_meant(&traffic.account.name))
    }

    /// Calls `look` for each flow that carries bytes.
    pub fn visit_relays(&self, look: &mut dyn FnMut(Traffic<'_>)) {
        self.kept.borrow_mut().visit(&mut |_, traffic| look(traffic));
    }

    /// Handles an alarm about a silent proxy. `Silent`: remembers how many bytes its connections have
    /// received. `Dead`: resets those that have received nothing since. Connections that the kernel forwards
    /// are reset all together or not at all.
    pub(super) fn handle_alarm(&self, upstream: &str, alarm: Alarm) {
        let upstreams = self.upstreams();
        let Some(proxy) = upstreams.named(upstream) else { return };
        let forwarded = self.forwarded().into_iter().filter(|(name, _)| **name == *upstream);
        let received = forwarded.map(|(_, entry)| entry.bytes[1]).sum();
        match alarm {
            Alarm::Silent => {
                proxy.account.received.set(received);
                self.visit_relays(&mut |traffic| {
                    if *traffic.account.name == *upstream {
                        *traffic.received = traffic.moved.down;
                    }
                });
            }
            Alarm::Dead => {
                let has_ended = |traffic: Traffic<'_>| {
                    *traffic.account.name == *upstream && traffic.moved.down == *traffic.received
                };
                let mut count = self.reset_relays(&has_ended);
                if proxy.account.received.get() == received {
                    count += self.forwarder.as_ref().map_or(0, |it| it.reset(&|name| name == upstream));
                }
                warn!("upstream {upstream}: silent; {count} connections reset");
            }
        }
    }

    /// Ends a flow that has made room for another.
    pub(super) fn end_yielded(&self, slot: Slot) {
        debug!("{slot} yields to a newer one");
        self.count(|totals| totals.yielded += 1);
        let kept = self.kept.borrow_mut().replace(slot, Kept::Nothing);
        self.abort(slot, kept, io::ErrorKind::ConnectionAborted);
    }

    /// Starts to carry an accepted connection: as plain bytes, or as HTTP requests.
    pub(super) fn relay(self: &Rc<Self>, slot: Slot, client: TcpStream, opened: Opened) {
        let lease = self.kept.borrow_mut().parked(slot).and_then(|parked| parked.lease.take());
        match opened.http {
            None => self.relay_bytes(slot, client, opened, lease),
            Some(_) => self.serve_http(slot, client, opened, lease),
        }
    }

    /// Starts a relay of plain bytes.
    pub(super) fn relay_bytes(
        &self,
        slot: Slot,
        client: TcpStream,
        opened: Opened,
        lease: Option<AddressLease>,
    ) {
        let Opened { stream, leftover, account, .. } = opened;
        let client_address = self.client(slot);
        let relay = stream
            .into_std()
            .and_then(|upstream| Relay::new(slot, client, upstream, &leftover, &self.resources));
        match relay {
            Ok(relay) => {
                let relayed = Relayed {
                    relay,
                    queued: false,
                    account,
                    client: client_address,
                    received: 0,
                    _lease: lease,
                };
                self.keep(slot, Kept::Relayed(Box::new(relayed)));
                self.run(slot, |_| ());
            }
            Err(error) => {
                warn!("cannot start relay: {error}");
                self.rewriter.borrow_mut().close(slot, self.now());
                self.keep(slot, Kept::Nothing);
            }
        }
    }

    /// Calls `tell` for a flow's relay, then gives the relay a turn. Does nothing if there is no relay.
    fn run(&self, slot: Slot, tell: impl FnOnce(&mut Relayed)) {
        let mut kept = self.kept.borrow_mut();
        let Some(relayed) = kept.relayed(slot) else { return };
        tell(relayed);
        let relay = &mut relayed.relay;
        let before = relay.moved();
        let next = relay.run(&self.resources);
        let after = relay.moved();
        self.count_progress(before, after);
        let result = match next {
            Ok(Next::Event) => return,
            Ok(next @ (Next::Later | Next::Turn)) => {
                if !mem::replace(&mut relayed.queued, true) {
                    self.queue.borrow_mut().push_back(slot);
                }
                if next == Next::Turn {
                    self.again.set(true);
                }
                return;
            }
            Ok(Next::End) => Ok(()),
            Err(error) => Err(error),
        };
        if let Kept::Relayed(relayed) = kept.replace(slot, Kept::Nothing) {
            drop(kept);
            self.end(slot, relayed, result);
        }
    }

    /// Ends a relay, with a reset if `result` is an error.
    fn end(&self, slot: Slot, mut relayed: Box<Relayed>, result: io::Result<()>) {
        let relay = &mut relayed.relay;
        let Moved { up, down } = relay.moved();
        let how: &dyn fmt::Display = match &result {
            Ok(()) => &"closed",
            Err(error) => error,
        };
        debug!("{slot}: ended after {up} bytes up, {down} bytes down: {how}");
        match result {
            Ok(()) => relay.finish(),
            Err(_) => relay.reset(),
        }
        relay.release(&self.resources.pipes);
        self.count_moved(&relayed.account, relayed.client, Moved { up, down });
        drop(relayed);
        self.rewriter.borrow_mut().close(slot, self.now());
    }

    /// Counts the bytes of forwarded connections that conntrack has forgotten since the last call.
    pub(super) fn count_ended(&self) {
        let Some(forwarder) = &self.forwarder else { return };
        forwarder.take_ended(&mut |upstream, entry| {
            let moved = Moved::from(&entry);
            self.count(|totals| totals.ended.add(moved));
            let upstreams = self.upstreams();
            if let Some(proxy) = upstreams.named(&upstream) {
                self.count_moved(&proxy.account, entry.tuple.source.to_canonical(), moved);
            }
        });
    }

    /// Counts the bytes that a relay has moved between two readings.
    pub(super) fn count_progress(&self, before: Moved, after: Moved) {
        self.count(|totals| {
            totals.moved.up += after.up - before.up;
            totals.moved.down += after.down - before.down;
        });
    }

    /// Counts the bytes of an ended connection for its proxy and its client.
    pub(super) fn count_moved(&self, account: &Account, client: IpAddr, moved: Moved) {
        account.count(|stats| stats.moved.add(moved));
        let mut clients = self.clients.borrow_mut();
        let client = clients.note(client, self.now());
        client.up = client.up.wrapping_add(moved.up);
        client.down = client.down.wrapping_add(moved.down);
    }
}
