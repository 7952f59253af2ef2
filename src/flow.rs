//! The flow table: which client connection has which NAT source.
//!
//! # Theory of operation
//!
//! A flow is a slot of a fixed array. Its NAT source, a port and an address of the TUN's subnet, is one of those that
//! belong to the slot (see `nat.rs`). So a packet from the listener finds its flow by an array index, and a packet from
//! a client by one hash of its addresses and ports.
//!
//! ```text
//!         open          release           accept           close
//!   Free ------> Held ------------> Opening ------> Live ------------> Closing
//!    ^            | remove              | expire      | close, both ends   | both ends finished,
//!    | expire     v                     v             v finished           v or idle for 4 min
//!    +--------- Closed <----------------+-------------+--------------------+
//! ```
//!
//! - **Held**: the SYN waits outside the kernel until the proxy has answered.
//! - **Opening**: the SYN has been given to the kernel, but the connection has not been accepted yet. The number of
//!   held and opening flows is bounded, in all and per client.
//! - **Live**: a relay has it. Ends only when the relay does, whatever happens in the table.
//! - **Closing**: the relay has ended, but the kernel still delivers what it was given. Ends when both ends have sent a
//!   FIN or one has sent a RST, or after [`CLOSING_IDLE`] without a packet (RFC 5382 REQ-5: at least 4 minutes for a
//!   connection in transition).
//! - **Closed**: still translated for [`LINGER`], in case a FIN is sent again, unless its slot is needed.
//! - **Free**: only the slot is left.
//!
//! A new flow takes the slot that has been free the longest, else one never used, else the one that has been
//! closed the longest, if its next NAT source has rested.
//!
//! Where a bound is reached, a flow of the client that has the most **yields** to one of a client that has fewer, and
//! is closed; equals don't take from each other. A client's own flows yield to its new ones, but only after some time,
//! which limits what a flood of SYNs can end. Where each client has only one flow being opened, the oldest yields to a
//! client that has none, after the same time: source addresses may be forged. For the same reason a
//! [neighbour](crate::neighbours), which has its address, comes before those that may not have theirs: they give up
//! flows that they open, until it opens a quarter of what one client may, and take none of these.
//! See `clients.rs` and [`FlowTable::open`].
//!
//! A packet changes the state only if the kernel would accept it: if it has the expected sequence number (RFC 5961),
//! which is tracked for each flow.

mod clients;
mod nat;
pub mod subnet;
mod table;

use core::fmt;

pub use nat::{NatSource, REST};
pub use table::{FlowTable, Limits, MAX_FLOWS, Refusal};

use crate::packet::reject::Reject;
use crate::packet::{ACK, ChecksumChange, FIN, RST, SYN, Segment, Tuple};
use crate::time::{Instant, Stamp};
use clients::ClientId;
use nat::Turn;

/// How long a flow may have no packets after its relay has ended, in ms (RFC 5382 REQ-5).
pub const CLOSING_IDLE: u32 = 240_000;
/// How long a released SYN may wait to be accepted, in ms: by then the kernel has sent its SYN-ACK five times.
pub const OPENING_IDLE: u32 = 20_000;
/// How long a flow that is being opened is safe from newer ones of its client, in ms: until a SYN that could not
/// replace it is repeated.
pub const OPENED_SAFE: u32 = 1_000;
/// How long an established flow without packets is safe from newer ones of its client, in ms.
pub const IDLE_SAFE: u32 = 60_000;
/// How long the SYN of a refused flow is refused again, in ms. A late error makes Linux repeat its SYN at once (RFC
/// 6069).
pub const REFUSED: u32 = 3_000;
/// How long a closed flow is still translated, in ms. By then all NAT sources of its slot have rested.
pub const LINGER: u32 = REST;

/// The number of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(u16);

impl Slot {
    /// The number as an array index.
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The number, to find the flow by later.
    pub const fn number(self) -> u16 {
        self.0
    }

    /// The flow with a number that [`Slot::number`] returned.
    pub const fn from_number(number: u16) -> Self {
        Self(number)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "flow {}", self.0)
    }
}

/// Where a flow is in its life; see the module's theory of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// SYN held back.
    Held,
    /// SYN released, not accepted yet.
    Opening,
    /// Relayed.
    Live,
    /// Relay ended, packets still under way.
    Closing,
    /// Over.
    Closed,
    /// Forgotten.
    Free,
}

/// The side a packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// From the client.
    Client,
    /// From the listener.
    Listener,
}

/// One flow.
#[derive(Clone, Debug)]
pub struct Flow {
    /// The connection as the client sees it.
    pub tuple: Tuple,
    /// What the translation of a packet from the client changes in its checksums.
    pub change: ChecksumChange,
    /// Where the listener sees the flow come from.
    pub nat: NatSource,
    state: State,
    /// Which ends have finished: bits `FIN_*`.
    finished: u8,
    /// Closed: how the client was refused, if it was.
    refused: Option<Reject>,
    /// The client that it belongs to.
    client: ClientId,
    /// The client's initial sequence number.
    isn: u32,
    /// The sequence number that the kernel expects of the client.
    expected: u32,
    /// Held: first SYN. Live and closing: last packet. Otherwise: when the state was entered.
    since: Stamp,
    /// Held: last SYN.
    last_syn: Stamp,
    /// Which of the slot's NAT sources it uses...
    turn: Turn,
    /// ...and, in a free slot, whether no packet had that source, so that it need not rest.
    is_unseen: bool,
    /// Whether its client was known as a neighbour when it was opened.
    is_neighbour: bool,
    /// Whether packets find the flow; not once a newer flow has its tuple.
    hashed: bool,
}

const FIN_CLIENT: u8 = 1;
const FIN_LISTENER: u8 = 2;
const FIN_BOTH: u8 = FIN_CLIENT | FIN_LISTENER;

impl Flow {
    /// Where the flow is in its life.
    pub const fn state(&self) -> State {
        self.state
    }

    /// Whether packets of the flow are translated at `now`.
    pub const fn is_translated(&self, now: Instant) -> bool {
        let over = match self.state {
            State::Held | State::Free => true,
            State::Closed => self.refused.is_some() || self.since.age(now) >= LINGER,
            _ => false,
        };
        self.hashed && !over
    }

    /// The client's initial sequence number.
    pub const fn isn(&self) -> u32 {
        self.isn
    }

    /// How to refuse a SYN again that was refused a moment ago.
    pub fn refusal(&self, isn: u32, now: Instant) -> Option<Reject> {
        self.refused.filter(|_| self.isn == isn && self.since.age(now) < REFUSED)
    }

    /// Notes the contents of a segment. False if the kernel does not accept it, or only after missing ones.
    #[inline] // on every packet's path
    fn note(&mut self, side: Side, segment: &Segment) -> bool {
        let Segment { sequence, acknowledgement, length, flags } = *segment;
        match side {
            // No SYN changes a connection (RFC 5961 section 4).
            Side::Client if flags & SYN != 0 => return false,
            Side::Client => {
                let known = self.expected.wrapping_sub(sequence);
                // A RST must be exact (section 3).
                if known > if flags & RST != 0 { 0 } else { length } {
                    return false;
                }
                self.expected = sequence.wrapping_add(length);
            }
            Side::Listener => {
                let more = acknowledgement.wrapping_sub(self.expected) as i32;
                if flags & ACK != 0 && more > 0 {
                    self.expected = acknowledgement;
                }
            }
        }
        if flags & RST != 0 {
            self.finished = FIN_BOTH;
        } else if flags & FIN != 0 {
            self.finished |= if side == Side::Client { FIN_CLIENT } else { FIN_LISTENER };
        }
        true
    }

    /// Whether both ends have sent a FIN, or one of them a RST.
    pub const fn is_finished(&self) -> bool {
        self.finished == FIN_BOTH
    }

    /// Whether the client has given up: with the usual back-off it would have repeated its SYN by now.
    const fn is_given_up(&self, now: Instant) -> bool {
        let (begun, waited) = (self.since.age(now), self.last_syn.age(now));
        waited > begun.saturating_sub(waited).saturating_mul(2).saturating_add(7_000)
    }
}
