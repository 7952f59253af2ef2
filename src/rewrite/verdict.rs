//! The rewriter's verdicts about packets, and their counters.

use core::fmt;

use crate::flow::{Refusal, Slot};
use crate::packet::Malformed;
use crate::packet::reject::Reject;

/// What to do with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Write it back as it is now, after the header it came with.
    Forward,
    /// Write it back, and drop what was kept for the flow: the client has given its connection up before it was
    /// accepted.
    ForwardAbandoned(Slot),
    /// Keep it: it is the SYN of the held flow. With `dial`, ask the proxy; otherwise it only replaces an
    /// earlier one.
    Hold {
        /// The flow.
        slot: Slot,
        /// Whether the flow is new.
        dial: bool,
    },
    /// Drop it, and drop what was kept for the held flow: the client has given up.
    Abandoned(Slot),
    /// It is a UDP datagram to a resolver: answer its query in the resolver's place.
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

macro_rules! drop_reasons {
    ($($(#[$meaning:meta])* $reason:ident = $name:literal,)+) => {
        /// Why a packet was dropped. Each reason is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum DropReason { $($(#[$meaning])* $reason,)+ }

        impl DropReason {
            /// Each reason's name, in the order of the counters.
            pub const NAMES: &'static [&'static str] = &[$($name),+];
        }
    };
}

drop_reasons! {
    /// It is cut off, its headers contradict each other, or its virtio header contradicts it.
    Malformed = "malformed",
    /// A fragment.
    Fragment = "fragment",
    /// An extension header that can't be translated.
    Extension = "extension",
    /// A source or destination that no connection can have.
    Address = "address",
    /// IPv6, which is off.
    Ipv6Off = "ipv6_off",
    /// A repetition of a held SYN, perhaps with changes: the last one is kept.
    Repeated = "repeated_syn",
    /// A packet of a held flow that is not a SYN.
    Unexpected = "unexpected",
    /// A packet without a flow.
    Unknown = "unknown_flow",
    /// Not TCP, and no error may be sent about it.
    NotTcp = "not_tcp",
    /// No error is sent about it, because there were too many.
    RateLimited = "rate_limited",
    /// A SYN: no slot is free, see [`Refusal::TableFull`].
    TableFull = "table_full",
    /// A SYN: too many flows are being opened, see [`Refusal::TooManyHeld`].
    TooManyDials = "too_many_dials",
    /// A SYN: too many flows of this client are being opened, see [`Refusal::TooManyHeldByClient`].
    TooManyDialsOfClient = "too_many_dials_of_client",
    /// A SYN: the daemon is about to end.
    Draining = "draining",
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

/// Counts of what has happened so far.
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
    /// Queries answered in a resolver's place.
    pub queries: u64,
    /// Packets rejected.
    pub rejected: u64,
    /// Packets dropped, by reason.
    pub dropped: [u64; DropReason::NAMES.len()],
}
