//! The tcp-over-http daemon.

fn main() {}
