//! The log: lines to stderr, `[LEVEL module] text`. Own code, since a crate for it has a language for filters.

use std::env;
use std::fmt::Write as _;
use std::io::{self, Write};

use log::{LevelFilter, Log, Metadata, Record};

/// The variable that beats `log_level`: one of its words.
const VARIABLE: &str = "RUST_LOG";

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, _: &Metadata) -> bool {
        true // the level has been looked at
    }

    fn log(&self, record: &Record) {
        let mut line = String::new();
        _ = writeln!(line, "[{:5} {}] {}", record.level(), record.target(), record.args());
        // In one piece, whoever else writes there; a closed stderr leaves nowhere to say so.
        _ = io::stderr().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

/// Begins to log.
pub fn init(level: LevelFilter) {
    _ = log::set_logger(&Stderr);
    set_level(level);
}

/// Changes how much is logged, unless the variable says that.
pub fn set_level(level: LevelFilter) {
    let given = env::var(VARIABLE).ok().and_then(|word| word.parse().ok());
    log::set_max_level(given.unwrap_or(level));
}
