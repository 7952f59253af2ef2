//! One connection's relay: bytes from the client to the proxy and back.
//!
//! # Theory of operation
//!
//! Each direction is a state machine of its own: it waits for bytes, takes a pipe from the pool, splices them into
//! the pipe and out of it, and gives the pipe back once it is empty and there is nothing more to read. So an idle
//! connection has two sockets and no pipe, and bytes never pass through user space.
//!
//! - **Backpressure**: a direction reads again only when its pipe is empty.
//! - **Half-close**: the end of one direction's stream is passed on as a FIN; the other goes on.
//! - **Reset**: an error on either socket resets both, also if nobody would read or write it any more.
//! - **Nothing is lost at close**: if one side has ended its stream and then refuses what the other still
//!   sends (a server that has said all it wants to say), a reset would throw away what the other has not
//!   received yet. So what it sends is discarded until it has received all, and only then is it reset.
//!   The kernel tells the two apart: a reset behind a FIN is EPIPE, any other ECONNRESET (`tcp_reset()`).

pub mod pipe;
pub mod poller;
mod socket;

use std::io;
use std::net::TcpStream;

use tcp_over_http::flow::Slot;

use crate::relay::pipe::{Pipe, Pipes};
use crate::relay::poller::{Event, Key, Peer, Poller};
use crate::relay::socket::Socket;
use crate::sys;

/// How many bytes one direction may move before the others have their turn.
const TURN: usize = 4 << 20;

/// Two sockets and what is under way between them.
pub struct Relay {
    client: Socket,
    upstream: Socket,
    up: Direction,
    down: Direction,
    /// Whether it is in a queue of those that have their turn without an event.
    pub queued: bool,
}

/// What all relays share.
pub struct Supplies {
    /// Pipes for those that have bytes under way.
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

/// What a relay, or one direction of it, goes on with. The later variants matter more when the two differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Next {
    /// Nothing: it has come to its end.
    End,
    /// An event of its sockets.
    Event,
    /// The loop's next pass, whatever wakes it, its tick at the latest: there may be a pipe by then, or what was
    /// sent may be acknowledged.
    Later,
    /// Its next turn.
    Turn,
}

impl Relay {
    /// Relays between `client` and `upstream`. `leftover` is what the proxy's reply had behind it: the
    /// first bytes for the client.
    ///
    /// # Errors
    /// If a socket can't be watched, or what the pipe says that is to hold the leftover.
    pub fn new(
        slot: Slot,
        client: TcpStream,
        upstream: TcpStream,
        leftover: &[u8],
        supplies: &Supplies,
    ) -> io::Result<Self> {
        let socket = |stream, peer| Socket::new(stream, Key { slot, peer }, &supplies.poller);
        let client = socket(client, Peer::Client)?;
        let upstream = socket(upstream, Peer::Upstream)?;
        let mut down = Direction::default();
        if !leftover.is_empty() {
            // Last, and undone: a pipe that is not given back is missing for ever.
            down.preload(leftover, &supplies.pipes).inspect_err(|_| down.release(&supplies.pipes))?;
        }
        Ok(Self { client, upstream, up: Direction::default(), down, queued: false })
    }

    /// Notes what has happened to one of its sockets.
    pub const fn note(&mut self, event: Event) {
        match event.key.peer {
            Peer::Client => self.client.note(event),
            Peer::Upstream => self.upstream.note(event),
        }
    }

    /// Moves bytes until there are none to move or its turn is over.
    ///
    /// # Errors
    /// What went wrong with either socket.
    pub fn run(&mut self, supplies: &Supplies) -> io::Result<Next> {
        let up = self.up.run(&mut self.client, &mut self.upstream, self.down.ended, supplies)?;
        let down = self.down.run(&mut self.upstream, &mut self.client, self.up.ended, supplies)?;
        Ok(up.max(down))
    }

    /// Lets both connections end in order when it is dropped, now that both directions have ended.
    pub fn finish(&self) {
        self.client.set_lingering();
    }

    /// Resets both connections when it is dropped.
    pub fn reset(&self) {
        self.client.set_resetting();
        self.upstream.set_resetting();
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
    buffered: u32,
    moved: u64,
    /// The stream has ended, and the receiver has been told, or is about to be closed.
    ended: bool,
    /// The receiver takes no more.
    discarding: bool,
}

impl Direction {
    fn run(
        &mut self,
        from: &mut Socket,
        to: &mut Socket,
        other_ended: bool,
        supplies: &Supplies,
    ) -> io::Result<Next> {
        let mut turn = 0;
        if to.is_broken() && !self.discarding {
            self.start_discarding(&supplies.pipes);
        }
        while !self.ended {
            let next = if self.buffered > 0 {
                match self.drain(to, &supplies.poller) {
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                        self.start_discarding(&supplies.pipes);
                        None
                    }
                    result => result?,
                }
            } else if turn >= TURN {
                Some(Next::Turn)
            } else if self.discarding {
                self.discard(from, other_ended, &mut turn)?
            } else {
                let next = self.fill(from, (!other_ended).then_some(&*to), &supplies.pipes)?;
                turn += self.buffered as usize;
                next
            };
            if let Some(next) = next {
                return Ok(next);
            }
        }
        Ok(Next::End)
    }

    /// Splices from the socket into an empty pipe. Ends the direction at the stream's end, and tells that to `to`;
    /// None if it will be closed anyway.
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
            // The next call will see that there is nothing to read.
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

    /// Throws away what `from` sends until it has received all that it was sent.
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
            // No event tells of acknowledgements.
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
        // An empty pipe takes all of a proxy's reply in one piece.
        let written = sys::write(&pipe.write, bytes)?;
        self.buffered = written as u32;
        if written == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
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

/// splice(2) stops for good before a byte that TCP calls urgent. To us it is a byte like any other (RFC 6093
/// section 3.4): this copies it and some more. Returns how many bytes the pipe has then.
fn fill_past_urgent(from: &mut Socket, pipe: &Pipe) -> io::Result<u32> {
    let mut bytes = [0; 512];
    let received = from.receive_inline(&mut bytes)?.unwrap_or_default();
    Ok(sys::write(&pipe.write, bytes.get(..received).unwrap_or_default())? as u32)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener};

    use super::*;

    const SLOT: Slot = Slot::from_number(7);

    /// A relay, and what its client and its proxy have at the other end.
    struct Rig {
        supplies: Supplies,
        relay: Relay,
        client: TcpStream,
        upstream: TcpStream,
    }

    impl Rig {
        fn new(leftover: &[u8], pipes: usize) -> Self {
            let supplies = Supplies { pipes: Pipes::new(pipes, 1 << 16), poller: Poller::new().unwrap() };
            let ((client, near), (upstream, far)) = (pair(), pair());
            let relay = Relay::new(SLOT, near, far, leftover, &supplies).unwrap();
            Self { supplies, relay, client, upstream }
        }

        /// Runs the relay at each event until it goes on with something else than events or with `reached`.
        async fn run_until(&mut self, reached: impl Fn(&Relay) -> bool) -> Next {
            loop {
                let next = self.relay.run(&self.supplies).unwrap();
                if next != Next::Event || reached(&self.relay) {
                    return next;
                }
                for event in poll_fn(|cx| self.supplies.poller.poll(cx)).await {
                    assert_eq!(event.key.slot, SLOT);
                    self.relay.note(event);
                }
            }
        }
    }

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (near, _) = listener.accept().unwrap();
        near.set_nonblocking(true).unwrap();
        (far, near)
    }

    fn run(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
    }

    #[test]
    fn one_that_can_not_be_made_keeps_no_pipe() {
        run(async {
            let supplies = Supplies { pipes: Pipes::new(1, 1 << 16), poller: Poller::new().unwrap() };
            let ((client, _near), (upstream, _far)) = (pair(), pair());
            assert!(Relay::new(SLOT, client, upstream, &[0; 1 << 20], &supplies).is_err());
            assert!(supplies.pipes.take().unwrap().is_some());
        });
    }

    #[test]
    fn bytes_and_ends_are_passed_on() {
        run(async {
            let mut rig = Rig::new(b"early", 2);
            rig.client.write_all(b"question").unwrap();
            rig.client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(rig.run_until(|relay| relay.up.ended).await, Next::Event);
            let mut got = Vec::new();
            rig.upstream.read_to_end(&mut got).unwrap();
            assert_eq!(got, b"question");

            rig.upstream.write_all(b"answer").unwrap();
            rig.upstream.shutdown(Shutdown::Write).unwrap();
            assert_eq!(rig.run_until(|_| false).await, Next::End);
            assert_eq!(rig.relay.moved(), Moved { up: 8, down: 11 });
            drop(rig.relay);
            got.clear();
            rig.client.read_to_end(&mut got).unwrap();
            assert_eq!(got, b"earlyanswer");
        });
    }

    #[test]
    fn a_receiver_that_is_slow_is_waited_for() {
        run(async {
            let mut rig = Rig::new(b"", 2);
            let sent = 16 << 20;
            let mut client = rig.client.try_clone().unwrap();
            let writer = std::thread::spawn(move || client.write_all(&vec![1; sent]));
            rig.run_until(|relay| relay.up.buffered > 0).await;
            let mut upstream = rig.upstream.try_clone().unwrap();
            let reader = std::thread::spawn(move || upstream.read_exact(&mut vec![0; sent]));
            while rig.relay.moved().up < sent as u64 {
                rig.run_until(|relay| relay.up.moved == sent as u64).await;
            }
            writer.join().unwrap().unwrap();
            reader.join().unwrap().unwrap();
        });
    }

    #[test]
    fn pipes_are_waited_for() {
        run(async {
            let mut rig = Rig::new(b"", 1);
            let taken = rig.supplies.pipes.take().unwrap().unwrap();
            rig.client.write_all(b"?").unwrap();
            assert_eq!(rig.run_until(|_| false).await, Next::Later);
            assert!(!rig.supplies.pipes.have_been_freed());
            rig.supplies.pipes.give_back(taken);
            assert!(rig.supplies.pipes.have_been_freed());
            assert_eq!(rig.run_until(|relay| relay.up.moved == 1).await, Next::Event);
        });
    }
}
