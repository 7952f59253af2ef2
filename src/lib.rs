//! The pure core of tcp-over-http: packets and a time come in, verdicts go out.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod connect;
pub mod dns;
pub mod uci;
