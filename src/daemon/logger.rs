//! The log, to stderr. A configuration that is read anew may change how much it is.

use std::env;

use env_logger::{Builder, DEFAULT_FILTER_ENV};
use log::LevelFilter;

/// Begins to log.
pub fn init(level: LevelFilter) {
    // All may pass here; what is cheaper, `log` itself holds back what is too much.
    Builder::new().filter_level(LevelFilter::Trace).parse_default_env().init();
    set_level(level);
}

/// Changes how much is logged, unless the environment says that.
pub fn set_level(level: LevelFilter) {
    if env::var_os(DEFAULT_FILTER_ENV).is_none() {
        log::set_max_level(level);
    }
}
