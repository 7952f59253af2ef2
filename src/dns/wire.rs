//! The format of messages (RFC 1035 section 4): [`header`], [`name`], and [`message`] made of both; [`query`], and the
//! two ways to answer it, [`reply`] (ours, to a client) and [`answer`] (a resolver's, to us).

pub mod answer;
pub mod edns;
#[cfg(test)]
pub mod fixture;
pub mod header;
pub mod message;
pub mod name;
pub mod query;
pub mod reply;
pub mod reverse;
