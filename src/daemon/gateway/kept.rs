//! What the daemon keeps for each flow, from its SYN until its relay ends.

use std::cell::RefCell;
use std::net::{IpAddr, TcpStream};
use std::rc::Rc;

use tcp_over_http::flow::Slot;
use tokio::task::AbortHandle;

use crate::dns::Held;
use crate::relay::Relay;
use crate::sys;
use crate::upstream::Opened;
use crate::upstream::proxy::Account;

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
    pub fn relayed(&mut self, slot: Slot) -> Option<&mut Relayed> {
        match self.slots.get_mut(slot.index()) {
            Some(Kept::Relayed(relayed)) => Some(relayed),
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

    /// All relays.
    pub fn relays(&mut self) -> impl Iterator<Item = (Slot, &mut Relayed)> {
        (0..).zip(&mut self.slots).filter_map(|(number, kept)| match kept {
            Kept::Relayed(relayed) => Some((Slot::from_number(number), &mut **relayed)),
            _ => None,
        })
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
    /// Nothing yet, or nothing any more.
    #[default]
    Nothing,
    /// A dial, until the client is accepted.
    Parked(Box<Parked>),
    /// A relay, until it ends.
    Relayed(Box<Relayed>),
    /// A task that answers the client's queries, until it ends.
    Served(AbortHandle),
}

/// A flow that is dialled, or waits to be accepted.
pub struct Parked {
    /// The SYN: virtio header and packet.
    pub syn: Rc<RefCell<Box<[u8]>>>,
    /// How far the dial is.
    pub dial: DialState,
    /// The client, if accepted before the proxy has answered (`connect 'early'`).
    pub client: Option<TcpStream>,
    /// Keeps the fake address that the client connects to.
    pub held: Option<Held>,
}

/// A flow that is relayed.
pub struct Relayed {
    /// Moves its bytes.
    pub relay: Relay,
    /// Whether it is queued for a turn without an event.
    pub queued: bool,
    /// Of its proxy.
    pub account: Rc<Account>,
    /// Whose connection it is.
    pub client: IpAddr,
    /// How many bytes the client had received when the proxy stopped to answer.
    pub received: u64,
    /// Keeps the fake address that the client has connected to.
    pub _held: Option<Held>,
}

/// How far a dial is.
pub enum DialState {
    /// In flight, in this task while there is one.
    InFlight(Option<AbortHandle>),
    /// The tunnel is there.
    Opened(Opened),
    /// There is none: the client wants a resolver, and gets ours.
    Unneeded,
    /// No tunnel can be had.
    Failed,
}

impl Drop for Parked {
    fn drop(&mut self) {
        match &self.dial {
            DialState::InFlight(Some(dial)) => dial.abort(),
            // The client has gone: reset the tunnel too.
            DialState::Opened(opened) => _ = sys::set_resetting(&opened.stream),
            _ => {}
        }
    }
}
