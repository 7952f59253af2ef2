//! One connection's relay: bytes from the client to the proxy and back.
//!
//! # Theory of operation
//!
//! Each direction is a state machine: it waits for bytes, takes a pipe from the pool, splices them into the pipe and out
//! of it, and gives the pipe back once it is empty and there is nothing more to read. So an idle connection has two
//! sockets and no pipe, and bytes never pass through user space.
//!
//! - **Backpressure**: a direction reads again only when its pipe is empty.
//! - **Half-close**: the end of one direction's stream is passed on as a FIN; the other direction goes on.
//! - **Reset**: an error on either socket resets both, even if neither direction reads or writes it any more.
//! - **Nothing is lost at close**: one side ends its stream and then refuses what the other still sends (a server that
//!   has said all it wants to say). A reset at once would destroy what the other has not received yet, so what it sends
//!   is discarded until it has received all, and only then is it reset. The kernel tells the two apart: a reset after a
//!   FIN is EPIPE, any other ECONNRESET (`tcp_reset()`).

pub mod pipe;
pub mod poller;
mod socket;

use std::io;
use std::net::TcpStream;

use tcp_over_http::capture::conntrack::Entry;
use tcp_over_http::flow::Slot;

use crate::relay::pipe::{Pipe, Pipes};
use crate::relay::poller::{Event, Key, Peer, Poller};
use crate::relay::socket::Socket;
use crate::sys;

/// How many bytes one direction may move before others get a turn.
const TURN: usize = 4 << 20;

/// Two sockets and the bytes in flight between them.
pub struct Relay {
    client: Socket,
    upstream: Socket,
    up: Direction,
    down: Direction,
}

/// The resources that all relays share.
pub struct Resources {
    /// Pipes, for relays with bytes in flight.
    pub pipes: Pipes,
    /// Watches their sockets.
    pub poller: Poller,
}

/// How many bytes a relay has moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// From the client to the proxy.
    pub up: u64,
    /// From the proxy to the client.
    pub down: u64,
}

impl From<&Entry> for Moved {
    /// The bytes that the kernel has forwarded for a connection.
    fn from(entry: &Entry) -> Self {
        let [up, down] = entry.bytes;
        Self { up, down }
    }
}

impl Moved {
    /// Adds those of another one.
    pub const fn add(&mut self, other: Self) {
        self.up = self.up.wrapping_add(other.up);
        self.down = self.down.wrapping_add(other.down);
    }
}

/// What a relay, or one of its directions, waits for. The later variants win when the two differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Next {
    /// Nothing: it has ended.
    End,
    /// An event on its sockets.
    Event,
    /// The loop's next pass, at the latest its tick: by then there may be a free pipe, or what was sent may be
    /// acknowledged.
    Later,
    /// Its next turn: there is more to move.
    Turn,
}

impl Relay {
    /// A relay between `client` and `upstream`. `leftover` came after the proxy's reply: the first bytes for the
    /// client.
    ///
    /// # Errors
    /// A socket cannot be watched, or there is no pipe for the leftover.
    pub fn new(
        slot: Slot,
        client: TcpStream,
        upstream: TcpStream,
        leftover: &[u8],
        resources: &Resources,
    ) -> io::Result<Self> {
        let socket = |stream, peer| Socket::new(stream, Key { slot, peer }, &resources.poller);
        let client = socket(client, Peer::Client)?;
        let upstream = socket(upstream, Peer::Upstream)?;
        let mut down = Direction::default();
        if !leftover.is_empty() {
            // Must be the last fallible step; otherwise the pipe leaks.
            down.preload(leftover, &resources.pipes).inspect_err(|_| down.release(&resources.pipes))?;
        }
        Ok(Self { client, upstream, up: Direction::default(), down })
    }

    /// Notes what has happened to one of its sockets.
    pub const fn note(&mut self, event: Event) {
        match event.key.peer {
            Peer::Client => self.client.note(event),
            Peer::Upstream => self.upstream.note(event),
        }
    }

    /// Moves bytes until there are none left or its turn is over.
    pub fn run(&mut self, resources: &Resources) -> io::Result<Next> {
        let up = self.up.run(&mut self.client, &mut self.upstream, self.down.ended, resources)?;
        let down = self.down.run(&mut self.upstream, &mut self.client, self.up.ended, resources)?;
        Ok(up.max(down))
    }

    /// Makes dropping the relay close both connections in order, now that both directions have ended.
    pub fn finish(&self) {
        self.client.set_lingering();
    }

    /// Makes dropping the relay reset both connections.
    pub fn reset(&self) {
        self.client.set_resetting();
        self.upstream.set_resetting();
    }

    /// Gives its pipes back.
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
    buffered: u32,
    moved: u64,
    /// The stream has ended, and the receiver has been told, or is about to be closed.
    ended: bool,
    /// The receiver refuses to take more.
    discarding: bool,
}

impl Direction {
    fn run(
        &mut self,
        from: &mut Socket,
        to: &mut Socket,
        other_ended: bool,
        resources: &Resources,
    ) -> io::Result<Next> {
        let mut turn = 0;
        if to.is_broken() && !self.discarding {
            self.start_discarding(&resources.pipes);
        }
        while !self.ended {
            let next = if self.buffered > 0 {
                match self.drain(to, &resources.poller) {
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                        self.start_discarding(&resources.pipes);
                        None
                    }
                    result => result?,
                }
            } else if turn >= TURN {
                Some(Next::Turn)
            } else if self.discarding {
                self.discard(from, other_ended, &mut turn)?
            } else {
                let next = self.fill(from, (!other_ended).then_some(&*to), &resources.pipes)?;
                turn += self.buffered as usize;
                next
            };
            if let Some(next) = next {
                return Ok(next);
            }
        }
        Ok(Next::End)
    }

    /// Splices from the socket into an empty pipe. At the end of the stream the direction ends, and `to` is sent a FIN;
    /// `to` is `None` if it will be closed anyway.
    fn fill(&mut self, from: &mut Socket, to: Option<&Socket>, pipes: &Pipes) -> io::Result<Option<Next>> {
        if !from.is_readable() {
            self.release(pipes);
            return Ok(Some(Next::Event));
        }
        let pipe = match self.pipe.take() {
            Some(pipe) => pipe,
            None => match pipes.take()? {
                Some(pipe) => pipe,
                None => return Ok(Some(Next::Later)),
            },
        };
        let filled = from.splice_to(&pipe);
        let pipe = self.pipe.insert(pipe);
        match filled? {
            // The next call sees that there is nothing to read.
            None => {}
            Some(0) if from.at_urgent_mark()? => self.buffered = fill_past_urgent(from, pipe)?,
            Some(0) => {
                to.into_iter().for_each(Socket::end);
                self.ended = true;
                self.release(pipes);
            }
            Some(filled) => self.buffered = filled as u32,
        }
        Ok(None)
    }

    /// Splices from the pipe into the socket until the pipe is empty.
    fn drain(&mut self, to: &mut Socket, poller: &Poller) -> io::Result<Option<Next>> {
        while self.buffered > 0 {
            let Some(pipe) = &self.pipe else { break };
            let Some(drained) = to.splice_from(pipe, self.buffered as usize, poller)? else {
                return Ok(Some(Next::Event));
            };
            self.buffered -= self.buffered.min(drained as u32);
            self.moved += drained as u64;
        }
        Ok(None)
    }

    /// Discards what `from` sends until it has acknowledged all that it was sent.
    fn discard(
        &mut self,
        from: &mut Socket,
        other_ended: bool,
        turn: &mut usize,
    ) -> io::Result<Option<Next>> {
        if other_ended && from.is_acknowledged()? {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        match from.discard()? {
            // There are no events for acknowledgements.
            None => return Ok(Some(if other_ended { Next::Later } else { Next::Event })),
            Some(0) => self.ended = true,
            Some(discarded) => *turn += discarded,
        }
        Ok(None)
    }

    fn start_discarding(&mut self, pipes: &Pipes) {
        self.release(pipes);
        self.discarding = true;
    }

    fn preload(&mut self, bytes: &[u8], pipes: &Pipes) -> io::Result<()> {
        let pipe = self.pipe.insert(pipes.take_now()?);
        // An empty pipe takes the bytes after a reply in one piece.
        let written = sys::write(&pipe.write, bytes)?;
        self.buffered = written as u32;
        if written == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    fn release(&mut self, pipes: &Pipes) {
        if let Some(pipe) = self.pipe.take()
            && std::mem::take(&mut self.buffered) == 0
        {
            pipes.give_back(pipe);
        }
    }
}

/// Copies an urgent byte and some more into the pipe, since splice(2) never gets past one. For a relay it is a byte
/// like any other (RFC 6093 section 3.4). Returns how many bytes are in the pipe then.
fn fill_past_urgent(from: &mut Socket, pipe: &Pipe) -> io::Result<u32> {
    let mut bytes = [0; 512];
    let received = from.receive_inline(&mut bytes)?.unwrap_or_default();
    Ok(sys::write(&pipe.write, bytes.get(..received).unwrap_or_default())? as u32)
}

#[cfg(test)]
mod tests;
