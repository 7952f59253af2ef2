//! The forward path: a client's connection *is* the connection to the proxy.
//!
//! # Theory of operation
//! The gateway holds the client's SYN until the proxy has answered ("honest connect"). Until then, both
//! initial sequence numbers of the client's connection can still be chosen. [`Handshake`] speaks CONNECT with
//! the proxy in the client's name, packet by packet, with sequence numbers that end where the client's
//! connection begins. After that, conntrack and NAT carry the connection, and no sequence number has to be
//! translated (TCP splicing as in Maltz and Bhagwat, 1998, with an offset of zero).
//!
//! ```text
//! client c:p                    gateway                                          proxy
//!   SYN seq=c  ───────────────►  hold; L = length of the CONNECT request
//!                                SYN seq=c-L, the client's options  ──DNAT────►
//!                                ◄──────────────── SYN-ACK seq=q ack=c-L+1 ────
//!                                ACK + request, seq c-L+1 … c  ───────────────►
//!                                ◄──────── 200, R bytes, seq q+1 … q+R ────────
//!                                ACK seq=c+1 ack=q+R+1  ──────────────────────►
//!   ◄── SYN-ACK seq=q+R ack=c+1, the proxy's options
//!   ACK ─────────── releases it: one conntrack entry, sequence offset zero ──────────►
//! ```
//!
//! This is not a TCP stack, and must not become one: it sends one request and reads one reply, in order. It
//! drops segments that are out of order; their sender repeats them. A client's repeated SYN makes it repeat
//! its SYN-ACK. Timers retransmit only the two SYNs (to the proxy, and the SYN-ACK to the client) and the
//! request.
//!
//! Both ends see each other's MSS, window scale, SACK and timestamps. MPTCP and Fast Open are removed. Data
//! in the client's SYN is not acknowledged, so the client sends it again. Windows after the SYN are scaled
//! (RFC 7323 section 2.2).

mod handshake;
mod handshakes;
mod options;
mod segment;

pub use handshake::{Handshake, Outcome, To};
pub use handshakes::{Handshakes, Id, Route, Send, Taken};
pub use options::{Options, Timestamps};
pub use segment::{MAX_SEGMENT, Segment};
