//! What the kernel is asked for: the TUN, the rules, routes and tables that capture traffic, the listeners, the
//! connections that it forwards.

pub mod capture;
pub mod conntrack;
pub mod firewall;
pub mod listener;
pub mod neighbour;
pub mod netlink;
pub mod nft;
pub mod probe;
pub mod route;
pub mod self_test;
pub mod sysctl;
pub mod tun;
