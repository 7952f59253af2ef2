//! What the kernel is told so that traffic comes to us, as values: policy rules and routing tables of our own
//! ([`Desired`]), what it takes to get there ([`Plan`]), the messages for it ([`netlink`]), the firewall's text ([`nft`]).
//!
//! There are two ways to capture what the machine forwards, by [`Path`]:
//!
//! - **forward**: the firewall's tables alone, without a policy rule or a routing table. Rules and routes are for a family
//!   without a default route: what has no route is neither forwarded nor sent.
//! - **relay**, for kernels without conntrack, NAT or `dup`: rules capture; the firewall exempts, and refuses what should
//!   have been captured and was not. Where its tables are gone, more is captured, never less.
//!
//! With P = `rule_priority`, for each family that has anything to capture:
//!
//! | priority | rule | why |
//! |---|---|---|
//! | P | `fwmark MARK/MASK goto P+2`, `iif lo lookup main suppress_prefixlength 0`; without `local`: `iif lo goto P+2` | forward path, for as long as somebody else has deleted the firewall's tables: ... |
//! | P+1 | `ipproto tcp blackhole` | ... what is captured is dropped |
//! | P+2 | `iif TUN goto END` | what leaves the TUN can't enter it again: no loops |
//! | P+3 | `fwmark MARK/MASK goto END`, `from PROXY goto END` each, `fwmark EXEMPT/MASK goto END` | nor can our connections to the proxies, nor theirs; what [`nft`] exempts |
//! | P+3 | `fwmark BEGUN/MASK lookup TABLE` | relay path: errors about what a relay has sent, which [`nft`] knows |
//! | P+4 | `to FAKE lookup TABLE` | `dns 'fakeip'`: addresses that only we know |
//! | P+4 | `iif lo ipproto PROTO dport 53 goto END` each | `dns_domain`: what dnsmasq asks others |
//! | P+5 | `iif lo goto CAPTURE` or `goto END` | `local`: our own connections |
//! | P+6 | `iif DEVICE goto P+8` each | `interface`: these devices, ... |
//! | P+7 | `goto END` | ... and no others |
//! | P+8 | `nop`, `from NET goto END` each | `client_bypass` |
//! | P+9 | `from NET goto CAPTURE` each | `client`: these clients, ... |
//! | P+10 | `goto END` | ... and no others |
//! | P+11 = CAPTURE | `nop` | |
//! | P+12 | `[ipproto ...] lookup main suppress_prefixlength N` each | `auto_route` only: any route but a default one comes before us |
//! | P+13 | `ipproto tcp [dport PORTS] lookup TABLE` each, `ipproto udp dport PORT lookup TABLE` each | the capture: TCP, and of UDP what is refused (`quic`) or answered (`dns_hijack`) |
//! | P+14 | `ipproto tcp goto END`, `ipproto udp dport 443 goto END` | `non_tcp 'reject'`: not TCP to other ports, not what `quic` lets go, ... |
//! | P+15 | `lookup TABLE` | ... but all else |
//! | P+16 = END | `nop` | the way on to everybody else's rules |
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
//! A bypassed prefix is a `throw`: the rules behind ours decide. On the forward path the main table has the TUN's subnets as
//! `unreachable`, likewise: the machine's own connections are led there by NAT.
//!
//! All we make bears the protocol number [`OURS`]; what doesn't, somebody else made, and we leave it alone.

pub mod conntrack;
mod desired;
pub mod link;
pub mod neighbour;
pub mod netlink;
pub mod nft;
pub mod pause;
mod plan;
mod route;
mod routes;
mod rule;
mod rules;
mod uplinks;
mod watch;

pub use desired::Desired;
pub use plan::{Action, Owner, Plan, Requests};
pub use route::Route;
pub use rule::Rule;
pub use uplinks::Uplinks;
pub use watch::{Events, judge};

use core::fmt;

use crate::config::Config;
use crate::flow::subnet::Subnet;
use crate::net::IpNet;

/// Who made a rule or a route (`rtm_protocol`, `FRA_PROTOCOL`); not in iproute2's `rt_protos`.
pub const OURS: u8 = 0x74;

/// The index of `lo`: the kernel's LOOPBACK_IFINDEX.
pub const LOOPBACK: u32 = 1;

/// `RT_TABLE_MAIN` (<linux/rtnetlink.h>)
const MAIN: u32 = 254;

/// `AF_INET` (<linux/socket.h>)
const V4: u8 = 2;
/// `AF_INET6`
const V6: u8 = 10;

/// How a client's connection gets to the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// It is the connection to the proxy, which the kernel forwards. What can't be is relayed.
    Forward,
    /// The daemon takes it and moves its bytes.
    Relay,
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Forward => "forward",
            Self::Relay => "relay",
        })
    }
}

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

/// Rules that have these networks bypassed.
#[cfg(test)]
fn bypassing(mut networks: alloc::vec::Vec<IpNet>) -> alloc::rc::Rc<crate::rules::Rules> {
    use crate::rules::{Action, Rule, Rules};
    IpNet::widest(&mut networks);
    let rule = Rule { networks, action: Action::Direct, ..Rule::default() };
    let mut rules = Rules::default();
    rules.push(rule, true);
    alloc::rc::Rc::new(rules)
}

const fn family_of(net: IpNet) -> u8 {
    match net {
        IpNet::V4(_) => V4,
        IpNet::V6(_) => V6,
    }
}
