//! The flow table: which client connection stands behind which NAT source.
//!
//! # Theory of operation
//!
//! A flow is one slot of a fixed array. Its NAT source, a port and an address of the TUN's subnet, is one
//! of those that belong to the slot (see `nat.rs`), so that a packet from the listener finds its flow
//! by an array index, and a packet from a client by one hash of its 5-tuple.
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
//! - **Opening**: the SYN has been given to the kernel, the connection has not been accepted yet. These and the held
//!   ones are bounded, in all and per client.
//! - **Live**: a relay has it. Ends only when the relay does; nothing that happens to the table hurts it.
//! - **Closing**: the relay has ended, the kernel still delivers what it was given. Ends when both ends have
//!   sent a FIN or one has sent a RST, or after [`CLOSING_IDLE`] without a packet (RFC 5382 REQ-5: at least
//!   4 minutes for a connection in transition).
//! - **Closed**: still translated for [`LINGER`], for a FIN that is sent again, unless its slot is needed.
//! - **Free**: nothing is left but the slot.
//!
//! A new flow takes the slot that has been free the longest, else one never used, else the one that has been
//! closed the longest, if its next NAT source has rested.
//!
//! Where a bound is reached, a flow of the client that has the most **yields** to one of a client that has fewer, and is
//! closed; of equals, nobody takes from another. A client's own flows yield to its new ones, but only those that have
//! waited some time: a flood of SYNs ends no more than there are places. See `clients.rs` and [`FlowTable::open`].
//!
//! What packets say counts only if the kernel takes them: those with the sequence number that it expects
//! (RFC 5961), which is followed for each flow.

mod clients;
mod nat;
pub mod subnet;
mod table;

use core::fmt;

pub use nat::{NatSource, REST};
pub use table::{FlowTable, Limits, MAX_FLOWS, Refusal};

use crate::packet::reject::Reject;
use crate::packet::{ACK, Change, FIN, RST, SYN, Segment, Tuple};
use crate::time::{Instant, Stamp};
use clients::Client;
use nat::Turn;

/// How long a flow whose relay has ended may be without a packet, in ms (RFC 5382 REQ-5).
pub const CLOSING_IDLE: u32 = 240_000;
/// How long a released SYN may wait to be accepted, in ms: the kernel has sent its SYN-ACK five times then.
pub const OPENING_IDLE: u32 = 20_000;
/// How long a flow that is being opened is safe from newer ones of its client, in ms: until the SYN that did not replace
/// it is repeated.
pub const OPENED_SAFE: u32 = 1_000;
/// How long an established flow without packets is safe from newer ones of its client, in ms.
pub const IDLE_SAFE: u32 = 60_000;
/// For how long the SYN of a refused flow is refused again, in ms. An error that comes late makes Linux repeat its SYN at
/// once (RFC 6069).
pub const REFUSED: u32 = 3_000;
/// How long a closed flow is still translated, in ms. All NAT sources of its slot have rested then.
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

    /// The flow of a number that [`Slot::number`] gave.
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
    /// What translating a packet from the client changes in its checksums.
    pub change: Change,
    /// Where the listener sees it come from.
    pub nat: NatSource,
    state: State,
    /// Which ends have finished: bits `FIN_*`.
    finished: u8,
    /// Closed: how the client was refused, if it was.
    refused: Option<Reject>,
    /// Whose it is.
    client: Client,
    /// The client's initial sequence number.
    isn: u32,
    /// The sequence number that the kernel expects of the client.
    expected: u32,
    /// Held: first SYN. Live and closing: last packet. Otherwise: when the state was entered.
    since: Stamp,
    /// Held: last SYN.
    last_syn: Stamp,
    /// Which of the slot's NAT sources it has...
    turn: Turn,
    /// ...and, if it is free, whether that was never seen: it need not rest.
    is_unseen: bool,
    /// Whether packets find the flow: no longer, once a newer flow has its tuple.
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

    /// How a SYN is refused that was refused just now.
    pub fn refusal(&self, isn: u32, now: Instant) -> Option<Reject> {
        self.refused.filter(|_| self.isn == isn && self.since.age(now) < REFUSED)
    }

    /// Notes what a segment says. False if the kernel does not take it, or not before others.
    #[inline] // into each packet's way
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

    /// Whether a client that repeats its SYN with the usual back-off would have done so by now.
    const fn is_given_up(&self, now: Instant) -> bool {
        let (begun, waited) = (self.since.age(now), self.last_syn.age(now));
        waited > begun.saturating_sub(waited).saturating_mul(2).saturating_add(7_000)
    }
}
