//! The upstream proxies: which one is asked next, and what it means for the client if none opens a tunnel.

pub mod choice;

use crate::packet::reject::Reject;

/// Why no tunnel was opened. The later variants say more about the target, and win when proxies failed differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// No proxy could be connected.
    Unreachable,
    /// A proxy was connected, and closed before a byte of its answer.
    Closed,
    /// A proxy was connected, and sent garbage or half an answer.
    BadReply,
    /// A proxy was connected, and did not answer in time.
    TimedOut,
    /// A proxy answered with another status than 2xx.
    Refused {
        /// 300..=999.
        status: u16,
    },
    /// The target cannot be named in a request.
    BadTarget,
    /// This machine is out of file descriptors, memory or ports.
    Exhausted,
}

impl Failure {
    /// How the client is refused; `None`: not at all, it will retransmit its SYN.
    pub const fn rejection(self) -> Option<Reject> {
        match self {
            Self::Refused { status: 502 } => Some(Reject::Reset),
            Self::Refused { status: 400..=499 } => Some(Reject::Prohibited),
            Self::Refused { .. } | Self::TimedOut => Some(Reject::Host),
            Self::Unreachable | Self::Closed | Self::BadReply => Some(Reject::Network),
            Self::BadTarget => Some(Reject::Prohibited),
            Self::Exhausted => None,
        }
    }
}
