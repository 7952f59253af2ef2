//! The pure core of tcp-over-http: bytes and a time come in, verdicts go out. No clock, no sockets, no
//! `unsafe`, bounded memory. Everything hard is here, where it can be tested on any machine; the daemon
//! (`src/daemon/`) touches the world.
//!
//! # The life of a packet
//!
//! 1. A client's SYN to `server:443` is routed into the TUN and read as one frame: a virtio header
//!    ([`vnet`](packet::vnet)) and the packet. [`packet::Packet`] checks it once; after that no accessor can fail.
//! 2. [`rewrite::Rewriter::handle`] finds no flow for it and opens one ([`flow`]): a slot, whose number
//!    gives it a NAT source on the TUN's [subnet](flow::subnet). Verdict: hold. The daemon keeps the SYN and asks the
//!    proxy ([CONNECT](http::connect); which one is asked, [`upstream::choice`] says; its name is resolved with [`dns`]).
//! 3. The proxy refuses: the daemon forgets the flow and answers what [`Reject`](packet::reject::Reject) makes of the SYN. Or it
//!    opens a tunnel: the daemon releases the flow and has the same SYN handled again.
//! 4. Now the SYN is translated, `client:p > server:443` to `nat:n > own:listen`, by storing the new
//!    addresses and adding a constant to its checksums ([`checksum`](packet::checksum)), and written back to the TUN. The
//!    kernel takes it for a connection to the daemon's listener and answers.
//! 5. Its SYN-ACK, `own:listen > nat:n`, is routed into the TUN as well: `n` gives the slot, the packet
//!    becomes `server:443 > client:p`, and the kernel forwards it to the client.
//! 6. The connection is accepted; its peer, `nat:n`, tells the flow, and a relay joins it with the tunnel.
//!    All further packets go as in 4 and 5, whole super-packets of up to 64 KiB among them.
//! 7. When the relay has ended and both sides have said FIN, the slot waits for its next use.
//!
//! That is how a connection is **relayed**. Where the kernel can **forward** it ([`forward`], [`capture::Path`]), steps 4 to
//! 7 fall away: the daemon speaks CONNECT with the proxy in the client's own name, packet by packet, and the result is one
//! connection from the client to the proxy, which conntrack and NAT carry.
//!
//! What isn't TCP is refused, except queries to resolvers ([`datagram`](packet::datagram)) and pings, which the daemon can
//! answer.
//!
//! # Glossary
//!
//! - **flow**: a client's TCP connection, from its SYN until its last packet.
//! - **slot**: a flow's place in the table, and its number.
//! - **NAT source**: the address and port that the listener sees a flow come from.
//! - **fake address**: one that stands for a name, which goes to the proxy in its place.
//! - **own address**: the TUN's, where the listener is.
//! - **to hold, to release**: to keep a SYN from the kernel, to let it pass.
//! - **upstream**: a proxy of the configuration.
//! - **dial**: to connect to a proxy and ask it for a tunnel.
//! - **tunnel**: a connection to a proxy that has answered CONNECT with 2xx.
//! - **super-packet**: several TCP segments in one packet, which the kernel cuts up when it must.
//! - **partial checksum**: the sum of the pseudo-header alone; whoever sends the packet does the rest.
//!
//! # The rooms
//!
//! A room uses only those below it (`tests/rooms.rs` checks that).
//!
//! | room | what it has |
//! |---|---|
//! | [`rewrite`] | the verdict about a packet: translate, hold, reject, drop |
//! | [`capture`] | what the kernel is told so that packets come here: policy rules, routes, the firewall's text |
//! | [`config`] | the options, and how they are read from a file, a variable and flags |
//! | [`flow`] | the table of flows, their NAT sources, the TUN's subnet |
//! | [`forward`] | the handshake with a proxy in a client's name |
//! | [`upstream`] | which proxy is asked next, and the state of each |
//! | [`rules`] | which proxy a connection is for, or that it goes directly or is refused |
//! | [`dns`] | messages, fake addresses, domains, the cache |
//! | [`http`] | CONNECT, its replies, credentials, plain HTTP as requests for a proxy |
//! | [`packet`] | checked views of packets, checksums, packets made from scratch |
//! | [`tally`] | what is counted for each client |
//! | [`neighbours`] | which addresses are one machine's |
//! | [`net`], [`time`], [`json`], [`siphash`], `slots` | networks, time, JSON, the keyed hash, lists and a hash by slot number |
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod capture;
pub mod config;
pub mod dns;
pub mod flow;
pub mod forward;
pub mod http;
pub mod json;
pub mod neighbours;
pub mod net;
pub mod packet;
pub mod rewrite;
pub mod rules;
pub mod siphash;
mod slots;
pub mod tally;
pub mod time;
pub mod upstream;
