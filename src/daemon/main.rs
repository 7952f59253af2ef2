//! The tcp-over-http daemon.

#[allow(dead_code)] // until `run` uses it
mod config;
#[allow(dead_code)] // until `run` uses it
mod net;

fn main() {}
