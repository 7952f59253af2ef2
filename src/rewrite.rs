//! The rewriter: what becomes of a packet that came out of the TUN.
//!
//! ```text
//!            client's packets                      listener's packets
//!   client:p ------> server:q                 own:listen ------> nat:n
//!            translate                                  translate
//!      nat:n ------> own:listen                 server:q ------> client:p
//! ```
//!
//! Every packet is changed in place and written back to the TUN it came from; the kernel does the rest. A
//! SYN without a flow is held until the daemon has heard from the proxy: it then either releases the flow
//! and has the same SYN handled again, which now passes, or refuses it.

use core::net::Ipv6Addr;

use crate::flow::subnet::Subnet;

mod judge;
mod rewriter;
mod token_bucket;
mod verdict;

pub use rewriter::Rewriter;
pub use verdict::{Counters, DropReason, Verdict};

impl Settings {
    /// Whether an address, IPv4 perhaps mapped, is one of the TUN's own.
    pub fn is_own(&self, address: Ipv6Addr) -> bool {
        [Some(self.ipv4), self.ipv6].into_iter().flatten().any(|subnet| subnet.own() == address)
    }
}

/// What the rewriter has to know.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The TUN's IPv4 subnet.
    pub ipv4: Subnet,
    /// The TUN's IPv6 subnet; without one, IPv6 is dropped.
    pub ipv6: Option<Subnet>,
    /// The listener's port on the TUN's own addresses.
    pub listen_port: u16,
    /// The TUN's MTU in bytes.
    pub mtu: u16,
    /// Answer what clients ask resolvers over UDP.
    pub dns: bool,
    /// Answer pings, rather than reject them.
    pub ping: bool,
}
