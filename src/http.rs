//! HTTP between the daemon and a proxy.

pub mod auth;
pub mod connect;
pub mod digest;
pub mod field;
pub mod login;
pub mod relay;
mod reply;

pub use reply::{MAX_REPLY, ReplyError, ReplyParser, Status};
