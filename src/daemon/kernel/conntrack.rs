//! What connection tracking knows of connections that the kernel forwards.

use tcp_over_http::capture::conntrack::Entry;
use tcp_over_http::capture::nft::{HANDSHAKE, PROXIES, RELEASED, STATES};
use tcp_over_http::config::MARK_MASK;
use tcp_over_http::packet::Tuple;

use crate::kernel::netlink::{Error, Socket};

/// The entries of connections that clients have released, with this mark.
///
/// # Errors
/// The kernel has no connection tracking, or does not tell.
pub fn forwarded(mark: u32) -> Result<Vec<Entry>, Error> {
    let mut socket = Socket::open(libc::NETLINK_NETFILTER)?;
    let mut entries = Vec::new();
    socket.begin_dump(Entry::list(mark | RELEASED, STATES))?;
    while !socket.receive(&mut |received| entries.push(Entry::parse(received.body)))? {}
    // Kernels before 3.15 list all.
    entries.retain(|entry| entry.mark & STATES == mark | RELEASED);
    Ok(entries)
}

/// Forgets those through the proxy of a number: who sends a packet of one then is reset.
///
/// # Errors
/// As above.
pub fn forget_proxy(mark: u32, number: u8) -> Result<(), Error> {
    let mark = mark | RELEASED | u32::from(number);
    Socket::open(libc::NETLINK_NETFILTER)?.request(Entry::delete(mark, STATES | PROXIES))
}

/// Forgets the handshakes of a run that was killed: the SYNs that their clients repeat would still be led to the proxy.
///
/// # Errors
/// As [`forwarded`].
pub fn forget_handshakes(mark: u32) -> Result<(), Error> {
    Socket::open(libc::NETLINK_NETFILTER)?.request(Entry::delete(mark | HANDSHAKE, STATES))
}

/// Forgets the connections that went out directly in a pause, which bear this mark.
///
/// # Errors
/// As [`forwarded`].
pub fn forget_paused(mark: u32) -> Result<(), Error> {
    Socket::open(libc::NETLINK_NETFILTER)?.request(Entry::delete(mark, MARK_MASK))
}

/// Forgets the connection that began with this tuple.
///
/// # Errors
/// As [`forwarded`]; or there is none.
pub fn forget(tuple: &Tuple) -> Result<(), Error> {
    Socket::open(libc::NETLINK_NETFILTER)?.request(Entry::delete_one(tuple))
}
