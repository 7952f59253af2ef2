//! HTTP as it is spoken to a proxy.

pub mod connect;
mod reply;

pub use reply::{MAX_REPLY, ReplyError, ReplyParser, Status};
