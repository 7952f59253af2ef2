//! What connection tracking knows of connections that the kernel forwards.

use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;

use tcp_over_http::capture::conntrack::{BODY, CTA_MARK, DESTROYED, Entry, yielding};
use tcp_over_http::capture::netlink::{self, Message};
use tcp_over_http::capture::nft::{HANDSHAKE, PROXIES, RELEASED, STATES};
use tcp_over_http::config::MARK_MASK;
use tcp_over_http::neighbours::Neighbours;
use tcp_over_http::packet::Tuple;

use super::{Error, Socket};
use crate::sys;

/// Bytes of notifications that wait to be read, each of which takes some 800.
const BUFFER: i32 = 512 << 10;
/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;

// Operations of classic BPF (<linux/filter.h>).

const LD_IMM: u32 = libc::BPF_LD | libc::BPF_IMM;
const LDX_IMM: u32 = libc::BPF_LDX | libc::BPF_IMM;
const LD_ABS: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const LD_IND: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_IND;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const JEQ: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const TAX: u32 = libc::BPF_MISC | libc::BPF_TAX;
const RET: u32 = libc::BPF_RET | libc::BPF_K;
/// `SKF_AD_OFF + SKF_AD_NLATTR`: the offset of the attribute of type X among those from A on; 0 if there is none.
const FIND_ATTRIBUTE: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_NLATTR) as u32;

/// The entries of connections that clients have released, with this mark.
pub fn forwarded(mark: u32) -> Result<Vec<Entry>, Error> {
    let mut socket = Socket::open(libc::NETLINK_NETFILTER)?;
    let mut entries = Vec::new();
    socket.list(Entry::list(mark | RELEASED, STATES), &mut |received| {
        entries.push(Entry::parse(received.body));
    })?;
    // Kernels before 3.15 list all.
    entries.retain(|entry| entry.mark & STATES == mark | RELEASED);
    Ok(entries)
}

/// Notifications about forwarded connections that conntrack has forgotten. They are read only when somebody wants to
/// know, so that the end of a connection never wakes the daemon. Those that don't fit the buffer are lost.
pub struct Ended {
    socket: File,
}

impl Ended {
    /// Watches connections with this mark.
    pub fn watch(mark: u32) -> io::Result<Self> {
        let socket = sys::netlink(libc::NETLINK_NETFILTER, DESTROYED)?;
        let step = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
        sys::attach_filter(
            &socket,
            &mut [
                step(LD_IMM, 0, 0, (HEADER + BODY) as u32),
                step(LDX_IMM, 0, 0, CTA_MARK.into()),
                step(LD_ABS, 0, 0, FIND_ATTRIBUTE),
                step(JEQ, 5, 0, 0),
                step(TAX, 0, 0, 0),
                step(LD_IND, 0, 0, 4), // after the attribute's header
                step(AND, 0, 0, STATES),
                step(JEQ, 0, 1, mark | RELEASED),
                step(RET, 0, 0, u32::MAX),
                step(RET, 0, 0, 0),
            ],
        )?;
        sys::set_receive_buffer(&socket, BUFFER)?;
        Ok(Self { socket })
    }

    /// Passes what has been notified since the last call to `each`.
    pub fn take(&self, each: &mut dyn FnMut(Entry)) {
        let mut buffer = [0; 2048]; // one entry
        loop {
            match (&self.socket).read(&mut buffer) {
                Ok(length) => netlink::messages(buffer.get(..length).unwrap_or_default())
                    .for_each(|received| each(Entry::parse(received.body))),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {} // some were lost
                Err(_) => return,
            }
        }
    }
}

/// How many connections conntrack knows, and how many it has room for. `None` without conntrack.
pub fn tracked() -> Option<(u32, u32)> {
    let number = |path| sys::read_text(path).trim_ascii_end().parse().ok();
    Some((
        number("/proc/sys/net/netfilter/nf_conntrack_count")?,
        number("/proc/sys/net/netfilter/nf_conntrack_max")?,
    ))
}

/// If the table is more than seven eighths full, forgets connections with this mark of the client that has the most:
/// whoever sends a packet of one is then reset. Returns whether that was necessary.
pub fn make_room(mark: u32, neighbours: &Neighbours) -> bool {
    let Some((count, max)) = tracked().filter(|(count, max)| *count > max - max / 8) else {
        return false;
    };
    let mut entries = forwarded(mark).unwrap_or_default();
    let yielding = yielding(&mut entries, (count - (max - max / 4)) as usize, neighbours);
    yielding.iter().for_each(|entry| _ = forget(&entry.tuple));
    !yielding.is_empty()
}

/// Forgets the connections through the proxy with this number: whoever sends a packet of one is then reset.
pub fn forget_proxy(mark: u32, number: u8) -> Result<(), Error> {
    request(Entry::delete(mark | RELEASED | u32::from(number), STATES | PROXIES))
}

/// Forgets the handshakes of a run that was killed: NAT would still lead the SYNs that their clients repeat to the
/// proxy.
pub fn forget_handshakes(mark: u32) -> Result<(), Error> {
    request(Entry::delete(mark | HANDSHAKE, STATES))
}

/// Forgets the connections that went out directly during a pause, which have this mark.
pub fn forget_paused(mark: u32) -> Result<(), Error> {
    request(Entry::delete(mark, MARK_MASK))
}

/// Where a connection was to that NAT has led elsewhere, to where a packet of this tuple is. `None` if none was.
pub fn original_destination(tuple: &Tuple) -> Option<SocketAddr> {
    let mut found = None;
    let mut socket = Socket::open(libc::NETLINK_NETFILTER).ok()?;
    socket.get(Entry::find(tuple), &mut |received| found = Some(Entry::parse(received.body).tuple)).ok()?;
    let Tuple { destination, destination_port, .. } =
        found.filter(|it| it.destination != tuple.destination)?;
    Some(SocketAddr::new(destination.to_canonical(), destination_port))
}

/// Forgets the connection that began with this tuple; an error if there is none.
pub fn forget(tuple: &Tuple) -> Result<(), Error> {
    request(Entry::delete_one(tuple))
}

fn request(message: Message) -> Result<(), Error> {
    Socket::open(libc::NETLINK_NETFILTER)?.request(message)
}
