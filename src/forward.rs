//! The forward path: a client's connection *is* the connection to the proxy.
//!
//! # Theory of operation
//! Honest connect holds the client's SYN until the proxy has answered, so both initial sequence numbers can still be
//! chosen. [`Handshake`] speaks CONNECT with the proxy in the client's name, packet by packet, with numbers that end
//! where the client's connection begins; after that the kernel's conntrack and NAT carry the connection, with no
//! sequence number to translate (TCP splicing as in Maltz and Bhagwat, 1998, with an offset of zero).
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
//! This is not a TCP stack, and must not become one: one request, one reply, in order. What is out of order is dropped,
//! and the sender repeats it; a client's repetitions trigger ours where possible. Only the two SYNs and the request are
//! retransmitted by timers.
//!
//! Both ends see each other's MSS, window scale, SACK and timestamps. MPTCP and Fast Open are removed. Data in the SYN
//! is not acknowledged, so the client sends it again. Windows after the SYN are scaled (RFC 7323 section 2.2).

mod handshake;
mod handshakes;
mod options;
mod segment;

pub use handshake::{Handshake, Outcome, To};
pub use handshakes::{Handshakes, Id, Route, Send, Taken};
pub use options::{Options, Timestamps};
pub use segment::{MAX_SEGMENT, Segment};
