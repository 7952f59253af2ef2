//! The configuration.

pub mod uci;
