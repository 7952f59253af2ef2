//! What the kernel is told so that traffic comes to us, as values: policy rules and routing tables of our own
//! ([`Desired`]), what it takes to get there ([`Plan`]), the messages for it ([`netlink`]), the firewall's text ([`nft`]).
//!
//! **Rules capture; the firewall only exempts.** Where its tables are gone, more is captured, never less.
//!
//! With P = `rule_priority`, for each family that has anything to capture:
//!
//! | priority | rule | why |
//! |---|---|---|
//! | P | `fwmark DELIVER/MASK iif lo lookup main suppress_prefixlength 0` | express path: what our sockets send to clients goes its way, ... |
//! | P+1 | `fwmark DELIVER/MASK iif lo lookup TABLE+2` | ... but where the client's network is gone, not to the outside |
//! | P+2 | `fwmark DELIVER/MASK iif lo goto END` | |
//! | P+3 | `fwmark DELIVER/MASK lookup TABLE+1` | express path: what an own socket takes is local, whatever its destination |
//! | P+4 | `iif TUN lookup main suppress_prefixlength 0` | express path: our RSTs and ICMP errors go to clients, ... |
//! | P+5 | `iif TUN lookup TABLE+2` | ... and a released SYN that no firewall rule takes is refused, not forwarded |
//! | P+6 | `iif TUN goto END` | what leaves the TUN can't enter it again: no loops |
//! | P+7 | `fwmark MARK/MASK goto END`, `from PROXY goto END` each, `fwmark EXEMPT/MASK goto END` | nor can our connections to the proxies, nor theirs; what [`nft`] exempts |
//! | P+8 | `to FAKE lookup TABLE` | `dns 'fakeip'`: addresses that only we know |
//! | P+8 | `iif lo ipproto PROTO dport 53 goto END` each | `dns_domain`: what dnsmasq asks others |
//! | P+9 | `iif lo goto CAPTURE` or `goto END` | `local`: our own connections |
//! | P+10 | `iif DEVICE goto P+12` each | `interface`: these devices, ... |
//! | P+11 | `goto END` | ... and no others |
//! | P+12 | `nop`, `from NET goto END` each | `client_bypass` |
//! | P+13 | `from NET goto CAPTURE` each | `client`: these clients, ... |
//! | P+14 | `goto END` | ... and no others |
//! | P+15 = CAPTURE | `nop` | |
//! | P+16 | `[ipproto ...] lookup main suppress_prefixlength 0` each | `auto_route` only: any route but a default one comes before us |
//! | P+17 | `ipproto tcp [dport PORTS] lookup TABLE` each, `ipproto udp dport PORT lookup TABLE` each | the capture: TCP, and of UDP what is refused (`quic`) or answered (`dns_hijack`) |
//! | P+18 | `ipproto tcp goto END`, `ipproto udp dport 443 goto END` | `non_tcp 'reject'`: not TCP to other ports, not what `quic` lets go, ... |
//! | P+19 | `lookup TABLE` | ... but all else |
//! | P+20 = END | `nop` | the way on to everybody else's rules |
//!
//! Stages that select nothing are left out. Rules of one priority can be in any order: one that somebody deleted
//! and we put back is the last of them.
//!
//! `iif lo` is what we send ourselves, and also what a look-up of a packet's way back looks like
//! (`src_valid_mark`): both want the way to a client.
//!
//! Rules can't say "TCP without the mark": `not` negates the whole selector, so that
//! `not fwmark M ipproto tcp` takes UDP too. Hence the jumps.
//!
//! The table has each captured prefix twice: through the TUN, and with `on_failure 'block'` as `unreachable`
//! with a worse metric, which needs no device and so refuses the traffic when the TUN died with the daemon.
//! A bypassed prefix is a `throw`: the rules behind ours decide.
//!
//! TABLE+1 has one route, which makes everything local; TABLE+2 has each captured prefix as `unreachable`
//! and each bypassed one as `throw`.
//!
//! All we make bears the protocol number [`OURS`]; what doesn't, somebody else made, and we leave it alone.

mod desired;
pub mod link;
pub mod netlink;
pub mod nft;
mod plan;
mod route;
mod routes;
mod rule;
mod rules;
mod watch;

pub use desired::Desired;
pub use plan::{Action, Owner, Plan, Requests};
pub use route::Route;
pub use routes::{NotCaptured, Why};
pub use rule::Rule;
pub use watch::{Event, judge};

use crate::config::Config;
use crate::flow::subnet::Subnet;
use crate::net::IpNet;

/// Who made a rule or a route (`rtm_protocol`, `FRA_PROTOCOL`); not in iproute2's `rt_protos`.
pub const OURS: u8 = 0x74;

/// The index of `lo`: the kernel's LOOPBACK_IFINDEX.
pub const LOOPBACK: u32 = 1;

/// `AF_INET` (<linux/socket.h>)
const V4: u8 = 2;
/// `AF_INET6`
const V6: u8 = 10;

/// The TUN's subnets.
#[derive(Clone, Copy)]
pub struct Subnets {
    /// IPv4.
    pub ipv4: Subnet,
    /// IPv6, unless it is off.
    pub ipv6: Option<Subnet>,
}

impl Subnets {
    /// Those of a configuration.
    pub fn new(config: &Config) -> Self {
        Self { ipv4: Subnet::new(config.address.to_ipv6_mapped()), ipv6: config.address6.map(Subnet::new) }
    }
}

const fn family_of(net: IpNet) -> u8 {
    match net {
        IpNet::V4(_) => V4,
        IpNet::V6(_) => V6,
    }
}
