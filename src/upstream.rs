//! The upstream proxies: which one is asked next, the state of each, and what it means for the client if none opens a
//! tunnel.

pub mod choice;
pub mod health;
pub mod history;
pub mod plain;

use core::fmt;

use crate::packet::reject::Reject;

/// Why no tunnel was opened. The later variants say more about the target, and win when proxies failed differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// There is no route to the proxy, which is not its fault.
    UplinkDown,
    /// The proxy refuses connections, is said to be unreachable, or its name does not resolve.
    Unreachable,
    /// The proxy does not answer connects at all.
    Unanswered,
    /// A proxy was connected, but closed before the first byte of its answer.
    Closed,
    /// A proxy was connected, but sent garbage or half an answer.
    BadReply,
    /// A proxy answered the configured credentials with 407.
    Credentials,
    /// A proxy was connected, but did not answer in time.
    TimedOut,
    /// A proxy answered with a status other than 2xx.
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
    /// How the client is refused; `None`: not at all, since it will retransmit its SYN.
    pub const fn rejection(self) -> Option<Reject> {
        match self {
            Self::Refused { status: 502 } => Some(Reject::Reset),
            Self::Refused { status: 400..=499 } | Self::Credentials => Some(Reject::Prohibited),
            Self::Refused { .. } | Self::TimedOut => Some(Reject::Host),
            Self::UplinkDown | Self::Unreachable | Self::Unanswered | Self::Closed | Self::BadReply => {
                Some(Reject::Network)
            }
            Self::BadTarget => Some(Reject::Prohibited),
            Self::Exhausted => None,
        }
    }

    /// Whether it may be the target's fault.
    pub const fn is_ambiguous(self) -> bool {
        matches!(self, Self::Closed | Self::BadReply | Self::TimedOut)
    }

    /// Whether nothing at all has come from the proxy.
    pub const fn is_silent(self) -> bool {
        matches!(self, Self::Unanswered | Self::TimedOut)
    }
}

/// In words, with the proxy as the subject.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UplinkDown => "uplink down",
            Self::Unreachable => "cannot be reached",
            Self::Unanswered => "does not answer",
            Self::Closed => "closed without an answer",
            Self::BadReply => "spoke no HTTP",
            Self::Credentials => "407: refuses the credentials",
            Self::TimedOut => "no answer to CONNECT",
            Self::Refused { .. } => "refused",
            Self::BadTarget => "bad target",
            Self::Exhausted => "out of resources",
        })
    }
}
