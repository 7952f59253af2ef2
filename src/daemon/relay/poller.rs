//! Tells which sockets of relays have become ready.
//!
//! A socket registered with tokio takes more memory than the rest of an idle relay. So a separate epoll instance
//! watches the relays' sockets, and tokio watches that instance.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::task::{Context, Poll, ready};

use tcp_over_http::flow::Slot;
use tokio::io::unix::AsyncFd;

use crate::sys;

/// How many events are taken at once.
const EVENTS: usize = 64;

/// Watches sockets. Closing a socket ends that.
pub struct Poller {
    epoll: AsyncFd<File>,
}

/// A side of a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// The client.
    Client,
    /// The proxy.
    Upstream,
}

/// Which socket it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The relay's flow.
    pub slot: Slot,
    /// Which of the relay's two.
    pub peer: Peer,
}

/// What has happened to a socket.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// Which socket.
    pub key: Key,
    /// There is something to read: bytes, the stream's end or an error.
    pub readable: bool,
    /// There is room to write, or an error.
    pub writable: bool,
    /// The connection is broken: reset, or timed out.
    pub broken: bool,
    /// A byte that TCP calls urgent has been received, or is announced.
    pub urgent: bool,
    /// The stream's end has been received, and no byte that TCP calls urgent is left before it.
    pub ended: bool,
}

impl Poller {
    /// A poller that watches nothing yet. Must be called within the tokio runtime.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: sys::watch(sys::epoll()?)? })
    }

    /// Watches a socket: there will be an event each time there is more to read.
    pub fn watch_reads(&self, socket: impl AsFd, key: Key) -> io::Result<()> {
        sys::epoll_control(self.epoll.get_ref(), libc::EPOLL_CTL_ADD, socket, READS, key.into_bits())
    }

    /// From now on there will also be an event each time there is room to write again. Most sockets never lack it.
    pub fn watch_writes(&self, socket: impl AsFd, key: Key) -> io::Result<()> {
        let events = READS | libc::EPOLLOUT;
        sys::epoll_control(self.epoll.get_ref(), libc::EPOLL_CTL_MOD, socket, events, key.into_bits())
    }

    /// Waits for events.
    pub fn poll(&self, cx: &mut Context) -> Poll<impl Iterator<Item = Event> + use<>> {
        // Cannot fail: neither tokio, while it runs, nor epoll_wait(2) on an epoll instance.
        let Ok(mut ready) = ready!(self.epoll.poll_read_ready(cx)) else { return Poll::Pending };
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS];
        let count = sys::epoll_take(self.epoll.get_ref(), &mut events).unwrap_or_default();
        if count < EVENTS {
            ready.clear_ready();
        }
        Poll::Ready(events.into_iter().take(count).map(|event| Event::from(&event)))
    }
}

/// Edge-triggered: each event is a change.
const READS: i32 = libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLPRI | libc::EPOLLET;
const ENDS: i32 = libc::EPOLLHUP | libc::EPOLLERR;
const UPSTREAM: u32 = 1 << 16;

impl Key {
    const fn into_bits(self) -> u32 {
        let peer = match self.peer {
            Peer::Client => 0,
            Peer::Upstream => UPSTREAM,
        };
        self.slot.number() as u32 | peer
    }

    const fn from_bits(bits: u32) -> Self {
        let peer = if bits & UPSTREAM == 0 { Peer::Client } else { Peer::Upstream };
        Self { slot: Slot::from_number(bits as u16), peer }
    }
}

impl From<&libc::epoll_event> for Event {
    fn from(event: &libc::epoll_event) -> Self {
        let happened = event.events as i32;
        Self {
            key: Key::from_bits(event.u64 as u32),
            readable: happened & (READS | ENDS) != 0,
            writable: happened & (libc::EPOLLOUT | ENDS) != 0,
            broken: happened & libc::EPOLLERR != 0,
            urgent: happened & libc::EPOLLPRI != 0,
            ended: happened & (libc::EPOLLRDHUP | libc::EPOLLPRI) == libc::EPOLLRDHUP,
        }
    }
}
