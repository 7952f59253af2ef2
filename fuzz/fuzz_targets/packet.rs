//! Any bytes as a packet: every accessor and every change works on whatever `Packet::parse` lets pass.
#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| common::any_packet(bytes));
