//! The log, to stderr. A configuration that is read anew may change how much it is.

use std::env;

use log::LevelFilter;

/// The variable that beats `log_level`: one of its words.
const VARIABLE: &str = "RUST_LOG";

/// Begins to log.
pub fn init(level: LevelFilter) {
    // All may pass here: what is cheaper, `log` itself holds back what is too much.
    env_logger::Builder::new().filter_level(LevelFilter::Trace).init();
    set_level(level);
}

/// Changes how much is logged, unless the variable says that.
pub fn set_level(level: LevelFilter) {
    let given = env::var(VARIABLE).ok().and_then(|word| word.parse().ok());
    log::set_max_level(given.unwrap_or(level));
}
