//! What the daemon keeps for each flow, from its SYN until its relay ends.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, TcpStream};
use std::rc::Rc;

use tcp_over_http::flow::Slot;
use tokio::task::AbortHandle;

use crate::dns::AddressLease;
use crate::relay::{Moved, Relay};
use crate::sys;
use crate::upstream::Opened;
use crate::upstream::proxy::Account;

/// What is kept for all flows, by slot. Grows to the highest slot ever used.
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

    /// The flow, if its requests are carried to a proxy.
    pub fn http(&mut self, slot: Slot) -> Option<&mut HttpFlow> {
        match self.slots.get_mut(slot.index()) {
            Some(Kept::Http(flow)) => Some(flow),
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

    /// Calls `look` for each flow that carries bytes.
    pub fn visit(&mut self, look: &mut dyn FnMut(Slot, Traffic<'_>)) {
        for (number, kept) in (0..).zip(&mut self.slots) {
            let traffic = match kept {
                Kept::Relayed(relayed) => {
                    let Relayed { relay, account, client, received, .. } = &mut **relayed;
                    Traffic { account, client: *client, moved: relay.moved(), received }
                }
                Kept::Http(flow) => {
                    let HttpFlow { account, client, moved, received, .. } = &mut **flow;
                    Traffic { account, client: *client, moved: moved.get(), received }
                }
                _ => continue,
            };
            look(Slot::from_number(number), traffic);
        }
    }

    /// Takes everything that is kept, by slot.
    pub fn into_all(self) -> impl Iterator<Item = (Slot, Kept)> {
        (0..).zip(self.slots).map(|(number, kept)| (Slot::from_number(number), kept))
    }
}

/// What is kept for one flow.
#[derive(Default)]
pub enum Kept {
    /// Nothing yet, or no longer anything.
    #[default]
    Nothing,
    /// A dial, until the client is accepted.
    Parked(Box<Parked>),
    /// A relay, until it ends.
    Relayed(Box<Relayed>),
    /// A task that carries the client's requests to a proxy, until it ends.
    Http(Box<HttpFlow>),
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
    pub lease: Option<AddressLease>,
}

/// A flow that is relayed.
pub struct Relayed {
    /// The relay that moves its bytes.
    pub relay: Relay,
    /// Whether it is queued for a turn without an event.
    pub queued: bool,
    /// The account of its proxy.
    pub account: Rc<Account>,
    /// The address of its client.
    pub client: IpAddr,
    /// How many bytes the client had received when the proxy fell silent.
    pub received: u64,
    /// Keeps the fake address that the client has connected to.
    pub _lease: Option<AddressLease>,
}

/// A flow whose requests are carried to a proxy.
pub struct HttpFlow {
    /// The task that does so.
    pub task: AbortHandle,
    /// The client's socket.
    pub socket: Rc<tokio::net::TcpStream>,
    /// What it has moved so far.
    pub moved: Rc<Cell<Moved>>,
    /// The account of its proxy.
    pub account: Rc<Account>,
    /// The address of its client.
    pub client: IpAddr,
    /// How many bytes the client had received when the proxy fell silent.
    pub received: u64,
}

/// A flow that carries bytes, by a relay or as HTTP requests.
pub struct Traffic<'a> {
    /// The account of its proxy.
    pub account: &'a Account,
    /// The address of its client.
    pub client: IpAddr,
    /// What it has moved so far.
    pub moved: Moved,
    /// How many bytes the client had received when the proxy fell silent.
    pub received: &'a mut u64,
}

/// The state of a dial.
pub enum DialState {
    /// Under way, in this task. Without a task there is nothing to abort.
    InFlight(Option<AbortHandle>),
    /// The tunnel is open.
    Opened(Opened),
    /// No tunnel is needed: the client connects to a resolver, and the daemon's answers.
    Unneeded,
    /// No tunnel could be opened.
    Failed,
}

impl Drop for Parked {
    fn drop(&mut self) {
        match &self.dial {
            DialState::InFlight(Some(dial)) => dial.abort(),
            // The client has gone, so reset the tunnel too.
            DialState::Opened(opened) => _ = sys::set_resetting(&opened.stream),
            _ => {}
        }
    }
}
