//! The log: warnings and errors to stderr, the rest to stdout, as procd and journald tell what is wrong from what is
//! said. A reload may change how much is logged.

use std::{env, fmt};

use env_logger::{Builder, Logger, Target};
use log::{Level, LevelFilter, Log, Metadata, Record};
use tcp_over_http::config::LogLevel;

/// The variable that beats `log_level`: one of its words.
const VARIABLE: &str = "RUST_LOG";

/// Logs: `log!(level, "{}", ...)`, or `error!` and so on. What `log`'s own macros put together at each of a hundred
/// places takes 100 bytes more there.
macro_rules! log {
    ($level:expr, $($what:tt)+) => {
        $crate::report::logger::log($level, module_path!(), format_args!($($what)+))
    };
}
macro_rules! error { ($($what:tt)+) => { log!(::log::Level::Error, $($what)+) } }
macro_rules! warn { ($($what:tt)+) => { log!(::log::Level::Warn, $($what)+) } }
macro_rules! info { ($($what:tt)+) => { log!(::log::Level::Info, $($what)+) } }
macro_rules! debug { ($($what:tt)+) => { log!(::log::Level::Debug, $($what)+) } }
/// For what is said of each packet: nothing is put together unless it is logged.
macro_rules! trace {
    ($($what:tt)+) => {
        if ::log::max_level() == ::log::LevelFilter::Trace {
            log!(::log::Level::Trace, $($what)+)
        }
    };
}

/// Logs what a module has to say, unless that is too much.
pub fn log(level: Level, module: &str, what: fmt::Arguments) {
    if level <= log::max_level() {
        log::logger().log(&Record::builder().level(level).target(module).args(what).build());
    }
}

/// Begins to log. Once in a process.
pub fn init(level: LogLevel) {
    _ = log::set_boxed_logger(Box::new(Streams {
        wrong: logger(Target::Stderr),
        said: logger(Target::Stdout),
    }));
    set_level(level);
}

/// Changes how much is logged, unless the variable says that.
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
    // All may pass here: what is cheaper, `log` itself holds back what is too much.
    Builder::new().filter_level(LevelFilter::Trace).target(target).build()
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
