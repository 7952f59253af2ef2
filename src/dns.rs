//! DNS (RFC 1035), on both sides: we ask for the addresses of a proxy, and answer the clients of the network.
//!
//! **Asking.** [`Query::compose`] makes a query, [`Query::answer`] finds the addresses in the reply, and [`Rounds`] says
//! which server is asked next.
//!
//! **Answering.** A client's [`Query`] may get a [`Reply`] of our own: from [`FakeIp`], the table of addresses that
//! stand for names, or from [`local_reply`]. Otherwise a resolver is asked; queries wait in [`Pending`] for its replies,
//! which are kept in [`Cache`] and [relayed](Query::relay).
//!
//! | file | what |
//! |---|---|
//! | `wire` | the format: names, messages, queries, replies |
//! | `special` | names that are answered here |
//! | `fakeip` | addresses that stand for names |
//! | `domains` | a set of domains |
//! | `budgets` | how many queries each client may ask |
//! | `pending` | queries that a resolver has not answered yet |
//! | `cache` | replies of resolvers |
//! | `round` | which server is asked next, and for how long |

mod budgets;
mod cache;
mod domains;
mod fakeip;
mod pending;
mod round;
mod special;
mod wire;

pub use budgets::Budgets;
pub use cache::{Cache, limit_ttls};
pub use domains::Domains;
pub use fakeip::{Entry, FAKE_TTL, FakeIp, Ranges};
pub use pending::{Ask, Pending};
pub use round::Rounds;
pub use special::{is_time_server, local_reply};
pub use wire::answer::{Answer, MAX_ADDRESSES, ReplyError};
pub use wire::edns::Edns;
pub use wire::header::Rcode;
pub use wire::message::{Kind, Message, Question, Record, Records};
pub use wire::name::{BadName, HostName, Name, NameRef};
pub use wire::query::{BadQuery, Query};
pub use wire::reply::Reply;

/// The port of DNS servers (RFC 1035 section 4.2).
pub const PORT: u16 = 53;
