//! The log: warnings and errors go to stderr, the rest to stdout, by which procd and journald tell the two apart. A
//! reload may change the level.

use std::io::Write;
use std::{env, fmt};

use env_logger::{Builder, Logger, Target};
use log::{Level, LevelFilter, Log, Metadata, Record};
use tcp_over_http::config::LogLevel;

/// The environment variable that overrides `log_level`, with one of its words.
const VARIABLE: &str = "RUST_LOG";

/// Logs: `log!(level, "{}", ...)`, or `error!` and so on. The `log` crate's own macros take 100 bytes more at each of a
/// hundred places.
macro_rules! log {
    ($level:expr, $($what:tt)+) => {
        $crate::report::logger::log($level, module_path!(), format_args!($($what)+))
    };
}
macro_rules! error { ($($what:tt)+) => { log!(::log::Level::Error, $($what)+) } }
macro_rules! warn { ($($what:tt)+) => { log!(::log::Level::Warn, $($what)+) } }
macro_rules! info { ($($what:tt)+) => { log!(::log::Level::Info, $($what)+) } }
macro_rules! debug { ($($what:tt)+) => { log!(::log::Level::Debug, $($what)+) } }
/// For messages about each packet: the message is built only if it is logged.
macro_rules! trace {
    ($($what:tt)+) => {
        if ::log::max_level() == ::log::LevelFilter::Trace {
            log!(::log::Level::Trace, $($what)+)
        }
    };
}

/// Logs a message of a module, unless the level excludes it.
pub fn log(level: Level, module: &str, what: fmt::Arguments) {
    if level <= log::max_level() {
        log::logger().log(&Record::builder().level(level).target(module).args(what).build());
    }
}

/// Starts logging; called once per process.
pub fn init(level: LogLevel) {
    _ = log::set_boxed_logger(Box::new(Streams {
        wrong: logger(Target::Stderr),
        said: logger(Target::Stdout),
    }));
    set_level(level);
}

/// Changes the level, unless the variable sets it.
pub fn set_level(level: LogLevel) {
    let given = env::var(VARIABLE).ok().and_then(|word| word.parse().ok());
    log::set_max_level(given.unwrap_or(match level {
        LogLevel::Error => LevelFilter::Error,
        LogLevel::Warn => LevelFilter::Warn,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Debug => LevelFilter::Debug,
        LogLevel::Trace => LevelFilter::Trace,
    }));
}

fn logger(target: Target) -> Logger {
    // Everything passes here: `log` itself filters, which is cheaper.
    Builder::new()
        .filter_level(LevelFilter::Trace)
        .target(target)
        // As env_logger does by default. Its own code for that can do much more, and takes 2 KB.
        .format(|out, line| writeln!(out, "[{:<5} {}] {}", line.level(), line.target(), line.args()))
        .build()
}

struct Streams {
    wrong: Logger,
    said: Logger,
}

impl Streams {
    fn of(&self, level: Level) -> &Logger {
        if level <= Level::Warn { &self.wrong } else { &self.said }
    }
}

impl Log for Streams {
    fn enabled(&self, metadata: &Metadata) -> bool {
        self.of(metadata.level()).enabled(metadata)
    }

    fn log(&self, record: &Record) {
        self.of(record.level()).log(record);
    }

    fn flush(&self) {
        self.said.flush();
        self.wrong.flush();
    }
}
