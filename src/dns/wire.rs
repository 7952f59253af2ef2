//! The format of DNS messages (RFC 1035 section 4).

pub mod message;
pub mod name;
pub mod reply;
pub mod request;
pub mod reverse;
