//! Sequences of packets, daemon operations and time on a rewriter: every packet that is forwarded is what
//! it would be if made anew, checksums and all.
#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;

use common::rewrite_script::Script;

libfuzzer_sys::fuzz_target!(|script: Script| script.run());
