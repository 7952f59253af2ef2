//! The log: lines to stderr.

use std::env;
use std::io::{self, Write};

use log::{LevelFilter, Log, Metadata, Record};

/// The variable that says how much is logged, whatever the configuration says.
const VARIABLE: &str = "RUST_LOG";

/// Begins to log up to `level`, or up to what `RUST_LOG` says (`error` to `trace`, or `off`).
pub fn init(level: LevelFilter) {
    // Fails only if there is a logger already.
    if log::set_logger(&Stderr).is_err() {
        return;
    }
    let wanted = env::var_os(VARIABLE);
    let wanted = wanted.as_deref().and_then(|text| text.to_str()?.parse().ok());
    log::set_max_level(wanted.unwrap_or(level));
}

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() <= log::max_level()
    }

    /// Makes one write of one line, so that whoever collects it never sees a part.
    fn log(&self, record: &Record) {
        let mut line = Vec::with_capacity(128);
        // Nothing that is written to memory fails; a closed stderr leaves nowhere to say so.
        _ = writeln!(line, "[{:<5} {}] {}", record.level(), record.target(), record.args());
        _ = io::stderr().write_all(&line);
    }

    fn flush(&self) {}
}
