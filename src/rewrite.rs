//! The rewriter decides what happens to a packet that came out of the TUN.
//!
//! ```text
//!            client's packets                      listener's packets
//!   client:p ------> server:q                 own:listen ------> nat:n
//!            translate                                  translate
//!      nat:n ------> own:listen                 server:q ------> client:p
//! ```
//!
//! Every packet is changed in place and written back to the TUN it came from; the kernel does the rest. A SYN without a
//! flow is held until the daemon has the proxy's answer. Then the daemon either releases the flow and has the same SYN
//! handled again, which now passes, or refuses it.

use crate::flow::subnet::Subnets;
use crate::packet::Tuple;

mod judge;
mod rewriter;
mod verdict;

pub use rewriter::Rewriter;
pub use verdict::{Counters, DropReason, Verdict};

/// The rewriter's settings.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The TUN's subnets; without one of IPv6, IPv6 is dropped.
    pub subnets: Subnets,
    /// The listener's port on the TUN's own addresses.
    pub listen_port: u16,
    /// The TUN's MTU in bytes.
    pub mtu: u16,
    /// Whether to answer clients' queries to resolvers over UDP.
    pub dns: bool,
    /// Whether to answer pings rather than reject them.
    pub ping: bool,
}

impl Settings {
    /// Whether a connection is this machine's own: routes give it the TUN's address to come from, or it [is
    /// diverted](Self::is_diverted).
    pub fn is_own(&self, tuple: &Tuple) -> bool {
        self.subnets.iter().any(|subnet| subnet.own() == tuple.source) || self.is_diverted(tuple)
    }

    /// Whether the firewall has led a connection of this machine's own here: to the address that is behind the TUN.
    pub fn is_diverted(&self, tuple: &Tuple) -> bool {
        self.subnets.iter().any(|subnet| subnet.error_source() == tuple.destination)
    }
}
