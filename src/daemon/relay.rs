//! One connection's relay: bytes from the client to the proxy and back.
//!
//! # Theory of operation
//!
//! Each direction is a state machine of its own (one task polls both): it waits for bytes, takes a pipe from
//! the pool, splices them into the pipe and out of it, and gives the pipe back once it is empty and there is
//! nothing more to read. So an idle connection has two sockets and no pipe, and bytes never pass through
//! user space.
//!
//! - **Backpressure**: a direction reads again only when its pipe is empty.
//! - **Half-close**: the end of one direction's stream is passed on as a FIN; the other goes on.
//! - **Reset**: an error on either socket resets both.
//! - **Nothing is lost at close**: if one side has ended its stream and then refuses what the other still
//!   sends (a server that has said all it wants to say), a reset would throw away what the other has not
//!   received yet. So what it sends is discarded until it has received all, and only then is it reset.
//!   The kernel tells the two apart: a reset behind a FIN is EPIPE, any other ECONNRESET (`tcp_reset()`).

use std::io;
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::pipe::{Pipe, Pipes};
use crate::sys;

/// How many bytes one direction may move before the others have their turn.
const TURN: usize = 4 << 20;
/// How much is asked of one splice; the pipe is the real bound.
const CHUNK: usize = 1 << 20;

/// Two sockets and what is under way between them.
pub struct Relay {
    client: TcpStream,
    upstream: TcpStream,
    up: Direction,
    down: Direction,
}

/// How many bytes a relay has moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// From the client to the proxy.
    pub up: u64,
    /// From the proxy to the client.
    pub down: u64,
}

impl Relay {
    /// Relays between `client` and `upstream`. `leftover` is what the proxy's reply had behind it: the
    /// first bytes for the client.
    ///
    /// # Errors
    /// What the pipe says that is to hold the leftover.
    pub fn new(client: TcpStream, upstream: TcpStream, leftover: &[u8], pipes: &Pipes) -> io::Result<Self> {
        let mut down = Direction::default();
        if !leftover.is_empty() {
            down.preload(leftover, pipes)?;
        }
        Ok(Self { client, upstream, up: Direction::default(), down })
    }

    /// Moves bytes until there are none to move. Ready when both directions have ended, or with what went
    /// wrong with either socket.
    pub fn poll(&mut self, cx: &mut Context, pipes: &Pipes) -> Poll<io::Result<()>> {
        let up = self.up.poll(cx, &self.client, &self.upstream, self.down.ended, pipes)?;
        let down = self.down.poll(cx, &self.upstream, &self.client, self.up.ended, pipes)?;
        if up.is_ready() && down.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// Lets both connections end in order when they are dropped, now that both directions have ended.
    pub fn finish(&self) {
        _ = sys::set_lingering(&self.client);
    }

    /// Resets both connections when they are dropped.
    pub fn reset(&self) {
        _ = self.client.set_zero_linger();
        _ = self.upstream.set_zero_linger();
    }

    /// Gives what it has of the pool back.
    pub fn release(&mut self, pipes: &Pipes) {
        self.up.release(pipes);
        self.down.release(pipes);
    }

    /// How many bytes have been moved.
    pub const fn moved(&self) -> Moved {
        Moved { up: self.up.moved, down: self.down.moved }
    }
}

/// One direction of a relay.
#[derive(Default)]
struct Direction {
    pipe: Option<Pipe>,
    /// Bytes in the pipe.
    buffered: usize,
    moved: u64,
    /// The stream has ended, and the receiver has been told.
    ended: bool,
    /// The receiver takes no more.
    discarding: bool,
}

impl Direction {
    fn poll(
        &mut self,
        cx: &mut Context,
        from: &TcpStream,
        to: &TcpStream,
        other_ended: bool,
        pipes: &Pipes,
    ) -> Poll<io::Result<()>> {
        let mut turn = 0;
        while !self.ended {
            if self.discarding {
                ready!(self.poll_discard(cx, from, other_ended))?;
            } else if self.buffered > 0 {
                match ready!(self.poll_drain(cx, to)) {
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.start_discarding(pipes),
                    result => result?,
                }
            } else if turn < TURN {
                turn += ready!(self.poll_fill(cx, from, to, pipes))?;
            } else {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Splices from the socket into an empty pipe; returns how much. Ends the direction at the stream's end.
    fn poll_fill(
        &mut self,
        cx: &mut Context,
        from: &TcpStream,
        to: &TcpStream,
        pipes: &Pipes,
    ) -> Poll<io::Result<usize>> {
        loop {
            if from.poll_read_ready(cx)?.is_pending() {
                self.release(pipes);
                return Poll::Pending;
            }
            let pipe = match self.pipe.take() {
                Some(pipe) => pipe,
                None => match pipes.take(cx.waker())? {
                    Some(pipe) => pipe,
                    None => return Poll::Pending,
                },
            };
            let result = from.try_io(Interest::READABLE, || sys::splice(from, &pipe.write, CHUNK));
            self.pipe = Some(pipe);
            match result {
                Ok(0) if sys::at_urgent_mark(from)? => {
                    if let Some(filled) = self.fill_past_urgent(from)? {
                        return Poll::Ready(Ok(filled));
                    }
                }
                Ok(0) => {
                    // A receiver that has reset meanwhile says so when it is read.
                    _ = sys::shutdown_write(to);
                    self.ended = true;
                    self.release(pipes);
                    return Poll::Ready(Ok(0));
                }
                Ok(filled) => {
                    self.buffered = filled;
                    return Poll::Ready(Ok(filled));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// splice(2) stops for good before a byte that TCP calls urgent, as if the stream ended there. What is
    /// urgent is a byte like any other to us (RFC 6093 section 3.4): this copies it and some more.
    fn fill_past_urgent(&mut self, from: &TcpStream) -> io::Result<Option<usize>> {
        let Some(pipe) = &self.pipe else { return Ok(None) };
        let mut bytes = [0; 512];
        match from.try_io(Interest::READABLE, || sys::receive_inline(from, &mut bytes)) {
            Ok(received) => {
                self.buffered = sys::write(&pipe.write, bytes.get(..received).unwrap_or_default())?;
                Ok(Some(self.buffered))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Splices from the pipe into the socket until the pipe is empty.
    fn poll_drain(&mut self, cx: &mut Context, to: &TcpStream) -> Poll<io::Result<()>> {
        while self.buffered > 0 {
            let Some(pipe) = &self.pipe else { break };
            ready!(to.poll_write_ready(cx))?;
            match to.try_io(Interest::WRITABLE, || sys::splice(&pipe.read, to, self.buffered)) {
                Ok(drained) => {
                    self.buffered -= drained.min(self.buffered);
                    self.moved += drained as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Throws away what `from` sends until it has received all that it was sent.
    fn poll_discard(
        &mut self,
        cx: &mut Context,
        from: &TcpStream,
        other_ended: bool,
    ) -> Poll<io::Result<()>> {
        loop {
            if other_ended && sys::unacknowledged(from)? == 0 {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            ready!(from.poll_read_ready(cx))?;
            match from.try_io(Interest::READABLE, || sys::discard(from, CHUNK)) {
                Ok(0) => {
                    self.ended = true;
                    return Poll::Ready(Ok(()));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn start_discarding(&mut self, pipes: &Pipes) {
        self.release(pipes);
        self.discarding = true;
    }

    fn preload(&mut self, bytes: &[u8], pipes: &Pipes) -> io::Result<()> {
        let pipe = pipes.take_now()?;
        // An empty pipe takes all of a proxy's reply in one piece.
        self.buffered = sys::write(&pipe.write, bytes)?;
        self.pipe = Some(pipe);
        if self.buffered == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    fn release(&mut self, pipes: &Pipes) {
        if let Some(pipe) = self.pipe.take() {
            match std::mem::take(&mut self.buffered) {
                0 => pipes.give_back(pipe),
                _ => pipes.discard(pipe),
            }
        }
    }
}
