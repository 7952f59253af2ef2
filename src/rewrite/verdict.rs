//! What the rewriter says of a packet, and how often it has.

use core::fmt;

use crate::flow::{Refusal, Slot};
use crate::packet::Malformed;
use crate::packet::reject::Reject;

/// What to do with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Write it back as it is now, behind the header it came with.
    Forward,
    /// Write it back, and let go of what was kept for the flow: the client has taken its connection back
    /// before it was accepted.
    ForwardAbandoned(Slot),
    /// Keep it: it is the SYN of the held flow. With `dial`, ask the proxy; otherwise it only replaces an
    /// earlier one.
    Hold {
        /// The flow.
        slot: Slot,
        /// Whether the flow is new.
        dial: bool,
    },
    /// Drop it, and let go of what was kept for the held flow: the client has taken its SYN back.
    Abandoned(Slot),
    /// It is a UDP datagram to a resolver: answer what it asks in that one's place.
    Dns,
    /// Drop it and write back the answer that [`Reject::build`] makes of it.
    Reject(Reject),
    /// Drop it.
    Drop(DropReason),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Forward => f.write_str("forwarded"),
            Self::Hold { slot, .. } => write!(f, "held, {slot}"),
            Self::ForwardAbandoned(slot) | Self::Abandoned(slot) => write!(f, "abandons {slot}"),
            Self::Dns => f.write_str("a query"),
            Self::Reject(_) => f.write_str("rejected"),
            Self::Drop(reason) => write!(f, "dropped, {}", DropReason::NAMES[*reason as usize]),
        }
    }
}

/// Why a packet was dropped. Each reason is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// Cut off, or its headers contradict each other, or its virtio header contradicts it.
    Malformed,
    /// A fragment.
    Fragment,
    /// An extension header that can't be translated.
    Extension,
    /// A source or destination that no connection can have.
    Address,
    /// IPv6, which is off.
    Ipv6Off,
    /// A held SYN that has come again, maybe as another: the last one is kept.
    Repeated,
    /// A packet of a held flow that is no SYN.
    Unexpected,
    /// Of no flow.
    Unknown,
    /// Not TCP, and no error can be sent about it.
    NotTcp,
    /// More errors than may be sent.
    RateLimited,
    /// SYN: no slot is free, see [`Refusal::TableFull`].
    TableFull,
    /// SYN: too many are being opened, see [`Refusal::TooManyHeld`].
    TooManyDials,
    /// SYN: too many of this client are being opened, see [`Refusal::TooManyHeldByClient`].
    TooManyDialsOfClient,
    /// SYN: the daemon is about to end.
    Draining,
}

impl DropReason {
    /// How many reasons there are.
    pub const COUNT: usize = 14;

    /// Each reason's name, in the order of the counters.
    pub const NAMES: [&str; Self::COUNT] = [
        "malformed",
        "fragment",
        "extension",
        "address",
        "ipv6_off",
        "repeated_syn",
        "unexpected",
        "unknown_flow",
        "not_tcp",
        "rate_limited",
        "table_full",
        "too_many_dials",
        "too_many_dials_of_client",
        "draining",
    ];
}

impl From<Malformed> for DropReason {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::Header => Self::Malformed,
            Malformed::Fragment => Self::Fragment,
            Malformed::Extension => Self::Extension,
            Malformed::Address => Self::Address,
        }
    }
}

impl From<Refusal> for DropReason {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::TableFull => Self::TableFull,
            Refusal::TooManyHeld => Self::TooManyDials,
            Refusal::TooManyHeldByClient => Self::TooManyDialsOfClient,
        }
    }
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Packets handled.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packets forwarded.
    pub forwarded: u64,
    /// Flows opened.
    pub flows: u64,
    /// Queries to resolvers that were answered in their place.
    pub queries: u64,
    /// Packets rejected.
    pub rejected: u64,
    /// Packets dropped, by reason.
    pub dropped: [u64; DropReason::COUNT],
}
