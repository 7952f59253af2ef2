//! What the daemon keeps for each flow, from its SYN until its relay ends.

use std::net::TcpStream;

use tcp_over_http::flow::Slot;
use tokio::task::AbortHandle;

use crate::dns::Held;
use crate::relay::Relay;
use crate::sys;
use crate::upstream::Opened;

/// What is kept, by slot. Grows to the highest slot that was ever used.
#[derive(Default)]
pub struct KeptFlows {
    slots: Vec<Kept>,
}

impl KeptFlows {
    /// The flow, if it is parked.
    pub fn parked(&mut self, slot: Slot) -> Option<&mut Parked> {
        match self.slots.get_mut(slot.index()) {
            Some(Kept::Parked(parked)) => Some(parked),
            _ => None,
        }
    }

    /// The flow's relay, if it has one.
    pub fn relay(&mut self, slot: Slot) -> Option<&mut Relay> {
        match self.slots.get_mut(slot.index()) {
            Some(Kept::Relayed(relayed)) => Some(&mut relayed.relay),
            _ => None,
        }
    }

    /// Keeps `new`; returns what was kept before.
    pub fn replace(&mut self, slot: Slot, new: Kept) -> Kept {
        if self.slots.len() <= slot.index() {
            self.slots.resize_with(slot.index() + 1, Kept::default);
        }
        std::mem::replace(&mut self.slots[slot.index()], new)
    }

    /// All relays. Ends all else.
    pub fn into_relays(self) -> impl Iterator<Item = (Slot, Box<Relayed>)> {
        (0..).zip(self.slots).filter_map(|(number, kept)| match kept {
            Kept::Relayed(relayed) => Some((Slot::from_number(number), relayed)),
            Kept::Served(task) => {
                task.abort();
                None
            }
            _ => None,
        })
    }
}

/// What is kept for one flow.
#[derive(Default)]
pub enum Kept {
    /// It has not come so far, or it is over.
    #[default]
    Nothing,
    /// Until it is accepted.
    Parked(Box<Parked>),
    /// Until its relay ends.
    Relayed(Box<Relayed>),
    /// Until this task, which answers the client itself, ends.
    Served(AbortHandle),
}

/// A flow that is being dialled, or waits to be accepted.
pub struct Parked {
    /// Virtio header and packet.
    pub syn: Box<[u8]>,
    /// What has become of the dial.
    pub tunnel: Tunnel,
    /// Accepted before the proxy has answered (`connect 'early'`).
    pub client: Option<TcpStream>,
    /// The fake address that the client connects to.
    pub held: Option<Held>,
}

/// A flow that is being relayed.
pub struct Relayed {
    /// Its two connections.
    pub relay: Relay,
    /// The fake address that the client has connected to is in use until then.
    pub _held: Option<Held>,
}

/// The way to the server.
pub enum Tunnel {
    /// Being dialled, by this task while there is one.
    Dialled(Option<AbortHandle>),
    /// There.
    Opened(Opened),
    /// None is needed: the client wants a resolver, and gets ours.
    Dns,
    /// It can't be had.
    Failed,
}

impl Drop for Parked {
    fn drop(&mut self) {
        match &self.tunnel {
            Tunnel::Dialled(Some(dial)) => dial.abort(),
            // The client has reset its side.
            Tunnel::Opened(opened) => _ = sys::set_resetting(&opened.stream),
            _ => {}
        }
    }
}
