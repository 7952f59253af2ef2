//! Operations on the flow table, held against the model.
#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;

use common::flow_script::Script;

libfuzzer_sys::fuzz_target!(|script: Script| script.run());
