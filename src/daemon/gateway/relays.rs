//! The relays of a gateway: who has a turn, and how they end.

use std::fmt;
use std::io;
use std::mem;
use std::net::TcpStream;
use std::task::{Context, Poll};

use tcp_over_http::flow::Slot;

use super::Gateway;
use crate::gateway::kept::{Kept, Relayed};
use crate::relay::{Moved, Next, Relay};
use crate::upstream::Opened;

/// How many times events are taken before others than relays have their turn.
const TURNS: usize = 4;

impl Gateway {
    /// Lets relays move bytes: those whose sockets are ready, and those whose last turn left some to move.
    pub fn poll_relays(&self, cx: &mut Context) {
        let mut turns = 0;
        while turns < TURNS
            && let Poll::Ready(events) = self.supplies.poller.poll(cx)
        {
            for event in events {
                self.run(event.key.slot, |relay| relay.note(event));
            }
            turns += 1;
        }
        let queued = self.queue.borrow().len();
        for _ in 0..queued {
            let Some(slot) = self.queue.borrow_mut().pop_front() else { break };
            self.run(slot, |relay| relay.queued = false);
        }
        if turns == TURNS || self.again.take() || self.supplies.pipes.have_been_freed() && queued > 0 {
            cx.waker().wake_by_ref();
        }
    }

    /// Ends all relays and dials; the clients are reset.
    pub fn abort_all(&self) {
        // Out of the borrow first: what is dropped may ask for it.
        let kept = self.kept.take();
        for (slot, relayed) in kept.into_relays() {
            self.end(slot, relayed, Err(io::ErrorKind::ConnectionAborted.into()));
        }
    }

    /// Begins to relay.
    pub(super) fn relay(&self, slot: Slot, client: TcpStream, opened: Opened) {
        let held = self.kept.borrow_mut().parked(slot).and_then(|parked| parked.held.take());
        let Opened { stream, leftover } = opened;
        let relay = stream
            .into_std()
            .and_then(|upstream| Relay::new(slot, client, upstream, &leftover, &self.supplies));
        match relay {
            Ok(relay) => {
                self.keep(slot, Kept::Relayed(Box::new(Relayed { relay, _held: held })));
                self.run(slot, |_| ());
            }
            Err(error) => {
                log::warn!("cannot start relay: {error}");
                self.rewriter.borrow_mut().close(slot, self.now());
                self.keep(slot, Kept::Nothing);
            }
        }
    }

    /// Gives a relay its turn, if it still is there; first it is told something.
    fn run(&self, slot: Slot, tell: impl FnOnce(&mut Relay)) {
        let mut kept = self.kept.borrow_mut();
        let Some(relay) = kept.relay(slot) else { return };
        tell(relay);
        let before = relay.moved();
        let next = relay.run(&self.supplies);
        let after = relay.moved();
        self.count(|totals| {
            totals.moved.up += after.up - before.up;
            totals.moved.down += after.down - before.down;
        });
        let result = match next {
            Ok(Next::Event) => return,
            Ok(next @ (Next::Later | Next::Turn)) => {
                if !mem::replace(&mut relay.queued, true) {
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

    /// Ends a relay: in order, or with a reset.
    fn end(&self, slot: Slot, mut relayed: Box<Relayed>, result: io::Result<()>) {
        let relay = &mut relayed.relay;
        let Moved { up, down } = relay.moved();
        let how: &dyn fmt::Display = match &result {
            Ok(()) => &"closed",
            Err(error) => error,
        };
        log::debug!("{slot}: ended after {up} bytes up, {down} bytes down: {how}");
        match result {
            Ok(()) => relay.finish(),
            Err(_) => relay.reset(),
        }
        relay.release(&self.supplies.pipes);
        drop(relayed);
        self.rewriter.borrow_mut().close(slot, self.now());
    }
}
