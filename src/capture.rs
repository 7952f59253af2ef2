//! Captures traffic: decides what the kernel must have so that packets come into the TUN, or are refused.
//! Everything here is a value: policy rules, routes, netlink messages, commands for nft(8). The daemon
//! (`kernel`) hands them to the kernel.
//!
//! | file | what it has |
//! |---|---|
//! | [`nft`], [`pause`] | the firewall's tables, with a drawing of their chains; which clients are paused |
//! | `rules`, `rule` | the policy rules, as in the table below; one rule, and its netlink messages |
//! | `routes`, `route` | the routes of our routing table; one route, and its netlink messages |
//! | `desired`, `plan` | the rules and routes that the kernel should have; the requests that get it there |
//! | `uplinks` | default routes and directly reachable networks, as the kernel's routing tables have them |
//! | `watch` | what notifications of the kernel mean: something to restore, other uplinks, the TUN gone |
//! | [`netlink`], [`link`], [`neighbour`], [`conntrack`] | netlink messages in general; for devices and addresses; for where a client is; for conntrack entries |
//!
//! # The two paths
//!
//! [`Path`] decides how traffic that this machine forwards is captured:
//!
//! - **forward**: by the firewall's tables ([`nft`]). A family without a default route has policy rules and a
//!   routing table as well, because a packet without a route is neither forwarded nor sent.
//! - **relay**, for kernels without conntrack, NAT or `dup`: by policy rules and a routing table. The
//!   firewall's tables exempt some traffic, and refuse what has got past the rules. Where the tables are
//!   missing, more is captured, never less.
//!
//! # The policy rules
//!
//! P is `rule_priority`. A family has these rules if it has anything to capture (on the forward path, if it
//! has no default route):
//!
//! | priority | rule | why |
//! |---|---|---|
//! | P | `fwmark MARK/MASK goto P+2`, `iif lo lookup main suppress_prefixlength N`; without `local`: `iif lo goto P+2` | P and P+1: forward path, `on_failure 'block'`, only while somebody else has deleted the firewall's tables. This machine's own packets that are not captured go on ... |
//! | P+1 | `[ipproto tcp] blackhole`, `ipproto udp dport PORT blackhole` each | ... and all else that may be captured is dropped |
//! | P+2 | `iif TUN goto END` | no loops: what leaves the TUN can't enter it again |
//! | P+3 | `fwmark MARK/MASK goto END` | the daemon's own connections to proxies |
//! | P+3 | `fwmark EXEMPT/MASK goto END` | what [`nft`] exempts |
//! | P+3 | `from PROXY goto END` each | a proxy's own connections |
//! | P+3 | `to PROXY goto END` each | forward path: where NAT leads forwarded connections |
//! | P+3 | `fwmark BEGUN/MASK lookup TABLE` | relay path: ICMP errors about packets of a relay, which [`nft`] marks |
//! | P+4 | `to FAKE lookup TABLE` | `dns 'fakeip'`: fake addresses exist only here |
//! | P+4 | `iif lo ipproto PROTO dport 53 goto END` each | `dns_hijack` with `dns_domain`: dnsmasq's queries to other resolvers |
//! | P+5 | `iif lo goto CAPTURE` or `goto END` | `local`: this machine's own connections |
//! | P+6 | `iif DEVICE goto P+8` each | `interface`: packets from these devices, ... |
//! | P+7 | `goto END` | ... and from no others |
//! | P+8 | `nop`, `from NET goto END` each | `client_bypass` |
//! | P+9 | `from NET goto CAPTURE` each | `client`: these clients, ... |
//! | P+10 | `goto END` | ... and no others |
//! | P+11 = CAPTURE | `nop` | the target of jumps |
//! | P+12 | `[ipproto ...] lookup main suppress_prefixlength N` each | `auto_route` only: every route of the main table but a default one comes before the capture |
//! | P+13 | `ipproto tcp [dport PORTS] lookup TABLE` each, `ipproto udp dport PORT lookup TABLE` each | the capture: TCP, and the UDP that is refused (`quic`) or answered (`dns_hijack`) |
//! | P+14 | `ipproto tcp goto END`, `ipproto udp dport 443 goto END` | `non_tcp 'reject'`: not TCP to other ports, not QUIC if it may go directly, ... |
//! | P+15 | `lookup TABLE` | ... but all else |
//! | P+16 = END | `nop` | the rules of others follow |
//!
//! N is the longest prefix that counts as a default route: 1 for IPv4, 3 for IPv6. Rules that a configuration
//! doesn't need are left out. The order of rules of one priority does not matter: the kernel appends one that
//! is added again.
//!
//! `iif lo` matches what this machine sends. It also matches the lookup of the reverse path of a packet that
//! is delivered locally (`fib_validate_source`, which knows the packet's mark only with `src_valid_mark`).
//! Both ask for the route to the same host, and get the same answer.
//!
//! A rule can't match "TCP without the mark", because `not` negates the whole selector: `not fwmark M ipproto
//! tcp` matches UDP, too. Hence the jumps.
//!
//! # The routes
//!
//! TABLE has each captured prefix as a route through the TUN, and with `on_failure 'block'` as `unreachable`
//! with a worse metric. The latter needs no device, so it refuses the traffic when the TUN has died with the
//! daemon. A bypassed prefix is a `throw` route: the lookup goes on with the rules behind ours.
//!
//! On the forward path with `local`, the main table has the TUN's subnets as `unreachable`, for when the TUN
//! is gone: NAT leads this machine's own connections there.
//!
//! All rules and routes of ours have the protocol number [`OURS`]. Those without it belong to others, and are
//! left alone.

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
pub use rule::PolicyRule;
pub use uplinks::Uplinks;
pub use watch::{Events, judge};

use core::fmt;

use crate::net::IpNet;

/// The protocol number of our rules and routes (`rtm_protocol`, `FRA_PROTOCOL`). iproute2's `rt_protos`
/// doesn't use it.
pub const OURS: u8 = 0x74;

/// The index of `lo`: the kernel's LOOPBACK_IFINDEX.
pub const LOOPBACK: u32 = 1;

/// `RT_TABLE_MAIN` (<linux/rtnetlink.h>)
const MAIN: u32 = 254;

/// `AF_INET` (<linux/socket.h>)
const V4: u8 = 2;
/// `AF_INET6`
const V6: u8 = 10;

/// How clients' connections are carried to the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// A client's connection becomes the connection to the proxy, and the kernel forwards it. Those that
    /// can't are relayed.
    Forward,
    /// The daemon accepts the client's connection, and moves its bytes to and from a second one to the proxy.
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

/// Rules that bypass these networks.
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
