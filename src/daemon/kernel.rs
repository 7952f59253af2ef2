//! What the kernel is asked for: the TUN, the rules, routes and tables that capture traffic, the listeners.

pub mod capture;
pub mod firewall;
pub mod listener;
pub mod nft;
pub mod probe;
pub mod route;
pub mod self_test;
pub mod sysctl;
pub mod tun;
