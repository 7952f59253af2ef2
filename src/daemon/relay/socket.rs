//! A relay's socket, with what is known of its readiness.

use std::io;
use std::net::TcpStream;

use crate::relay::pipe::Pipe;
use crate::relay::poller::{Event, Key, Poller};
use crate::sys;

/// The most bytes that one call may move; in practice the size of the pipe limits it.
const CHUNK: usize = 1 << 20;

/// A connected, non-blocking socket. Calls that would block return `None`, and are not tried again until an event says
/// that it is worthwhile.
pub struct Socket {
    stream: TcpStream,
    key: Key,
    readable: bool,
    writable: bool,
    writes_watched: bool,
    /// See [`Event::broken`].
    broken: bool,
    /// See [`Event::urgent`].
    urgent: bool,
    /// See [`Event::ended`].
    ended: bool,
}

impl Socket {
    /// Registers `stream` with `poller`; its events will carry `key`.
    pub fn new(stream: TcpStream, key: Key, poller: &Poller) -> io::Result<Self> {
        poller.watch_reads(&stream, key)?;
        Ok(Self {
            stream,
            key,
            readable: false,
            writable: true,
            writes_watched: false,
            broken: false,
            urgent: false,
            ended: false,
        })
    }

    /// Notes what has happened.
    pub const fn note(&mut self, event: Event) {
        self.readable |= event.readable;
        self.writable |= event.writable;
        self.broken |= event.broken;
        self.urgent |= event.urgent;
        self.ended |= event.ended;
    }

    /// Whether the connection is broken and takes nothing more.
    pub const fn is_broken(&self) -> bool {
        self.broken
    }

    /// Whether there may be something to read.
    pub const fn is_readable(&self) -> bool {
        self.readable
    }

    /// Splices what was received into an empty pipe. 0 means the end of the stream, or an urgent byte.
    pub fn splice_to(&mut self, pipe: &Pipe) -> io::Result<Option<usize>> {
        let spliced = self.read(|stream| sys::splice(stream, &pipe.write, CHUNK))?;
        // Before an urgent byte the kernel returns EAGAIN, and 0 only once the stream has ended (`tcp_splice_read()`).
        if spliced.is_none() && self.urgent && self.at_urgent_mark()? {
            self.readable = true;
            return Ok(Some(0));
        }
        Ok(spliced)
    }

    /// Splices up to `length` bytes from a pipe.
    pub fn splice_from(&mut self, pipe: &Pipe, length: usize, poller: &Poller) -> io::Result<Option<usize>> {
        if !self.writable {
            return Ok(None);
        }
        let result = sys::splice(&pipe.read, &self.stream, length);
        if is_blocked(&result) {
            self.writable = false;
            if !self.writes_watched {
                poller.watch_writes(&self.stream, self.key)?;
                self.writes_watched = true;
            }
            return Ok(None);
        }
        result.map(Some)
    }

    /// Receives what is there, urgent bytes in their place among the others.
    pub fn receive_inline(&mut self, bytes: &mut [u8]) -> io::Result<Option<usize>> {
        self.read(|stream| sys::receive_inline(stream, bytes))
    }

    /// Discards received bytes. 0 means the end of the stream.
    pub fn discard(&mut self) -> io::Result<Option<usize>> {
        self.read(|stream| sys::discard(stream, CHUNK))
    }

    /// Whether the next byte to receive is one that TCP calls urgent.
    pub fn at_urgent_mark(&self) -> io::Result<bool> {
        if self.ended { Ok(false) } else { sys::at_urgent_mark(&self.stream) }
    }

    /// Whether all that was sent has been acknowledged.
    pub fn is_acknowledged(&self) -> io::Result<bool> {
        Ok(sys::unacknowledged(&self.stream)? == 0)
    }

    /// Sends a FIN. If the receiver has reset meanwhile, reading will tell.
    pub fn end(&self) {
        _ = sys::shutdown_write(&self.stream);
    }

    /// Makes closing it send what is left.
    pub fn set_lingering(&self) {
        _ = sys::set_lingering(&self.stream);
    }

    /// Makes closing it reset the connection.
    pub fn set_resetting(&self) {
        _ = sys::set_resetting(&self.stream);
    }

    fn read(&mut self, call: impl FnOnce(&TcpStream) -> io::Result<usize>) -> io::Result<Option<usize>> {
        if !self.readable {
            return Ok(None);
        }
        let result = call(&self.stream);
        if is_blocked(&result) {
            self.readable = false;
            return Ok(None);
        }
        result.map(Some)
    }
}

fn is_blocked(result: &io::Result<usize>) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}
