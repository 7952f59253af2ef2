//! The kernel's side of the gateway: the TUN, the listeners, and what captures traffic.
//! `tcp_over_http::capture` decides what the kernel should have; this room puts it there, watches it, and
//! restores it.
//!
//! | file | what it does |
//! |---|---|
//! | `capture` | sets all of it up, follows changes, hands over to the next run, removes it |
//! | `firewall`, `nft` | the firewall's tables; runs nft(8) |
//! | `route` | the TUN's addresses, policy rules and routes |
//! | `tun`, `listener` | reads and writes frames; accepts connections |
//! | `probe`, `self_test` | test the forward path at the start, and all the time the way from the TUN to the listener |
//! | `sysctl` | settings below /proc/sys |

pub mod capture;
pub mod firewall;
pub mod listener;
pub mod nft;
pub mod probe;
pub mod route;
pub mod self_test;
pub mod sysctl;
pub mod tun;
