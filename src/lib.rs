//! The pure core of tcp-over-http: bytes and a time come in, verdicts go out. No clock, no sockets, no
//! unsafe code, bounded memory.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod checksum;
pub mod connect;
pub mod dns;
pub mod flow;
pub mod packet;
pub mod reject;
pub mod rewrite;
mod siphash;
pub mod subnet;
pub mod time;
pub mod uci;
pub mod vnet;
