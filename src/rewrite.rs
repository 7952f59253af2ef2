//! The rewriter: what is to become of a packet that came out of the TUN.
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

use core::fmt;
use core::net::Ipv6Addr;

use crate::flow::subnet::Subnet;

mod judge;
mod rewriter;
mod token_bucket;
mod verdict;

pub use rewriter::Rewriter;
pub use verdict::{Counters, DropReason, Verdict};

/// How a connection gets from the client to the listener once its SYN is released. This is all that tells
/// the two paths apart here; everything before and after is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Through the TUN, translated, packet by packet: works on any kernel.
    Rewrite,
    /// The SYN alone goes back to the TUN, unchanged; a firewall rule gives it to a transparent listener,
    /// and all further packets go to that connection's socket without coming here.
    Express,
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Rewrite => "rewrite",
            Self::Express => "express",
        })
    }
}

impl Settings {
    /// Whether an address, IPv4 perhaps mapped, is one of the TUN's own.
    pub fn is_own(&self, address: Ipv6Addr) -> bool {
        [Some(self.ipv4), self.ipv6].into_iter().flatten().any(|subnet| subnet.own() == address)
    }
}

/// What the rewriter has to know.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How connections get to the listener.
    pub path: Path,
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
