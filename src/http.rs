//! HTTP between the daemon and a proxy.
//!
//! | file | what it has |
//! |---|---|
//! | `connect`, `reply` | the request for a tunnel, and the parser of the reply |
//! | `login`, `auth`, `digest` | how requests log in to a proxy: the schemes Basic and Digest |
//! | `field` | header fields that may be added |
//! | `relay` | plain HTTP as requests in absolute form |

pub mod auth;
pub mod connect;
pub mod digest;
pub mod field;
pub mod login;
pub mod relay;
mod reply;

pub use reply::{MAX_REPLY, ReplyError, ReplyParser, Status};
