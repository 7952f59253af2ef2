//! The server that the clients talk to.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::dialogue::{QUESTION, Question, Report};
use crate::sys::{self, BOTH_EDGES, Epoll, READ};

const LISTENER: u64 = u64::MAX;
/// Bytes of a read or write: what iperf3 takes.
const CHUNK: usize = 128 << 10;
/// Chunks that a connection may move before others have their turn.
const BUDGET: usize = 32;
/// Nanoseconds between reports.
const REPORT_EVERY: u64 = 20_000_000;

/// Serves until it is ended.
///
/// # Errors
/// If it can't listen, or epoll fails. Whatever happens to a connection ends that connection only.
pub fn run(listen: SocketAddr) -> io::Result<()> {
    let listener = sys::listen(listen)?;
    let mut epoll = Epoll::new()?;
    epoll.add(&listener, READ, LISTENER)?;
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut free = Vec::new();
    let mut running: Vec<u64> = Vec::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        let timeout = if running.is_empty() { None } else { Some(Duration::ZERO) };
        let mut events: Vec<u64> = epoll.wait(timeout)?.collect();
        events.append(&mut running);
        events.sort_unstable();
        events.dedup();
        let mut freed = Vec::new();
        for token in events {
            if token == LISTENER {
                while let Ok(Some(socket)) = sys::accept(&listener) {
                    let index = free.pop().unwrap_or_else(|| {
                        connections.push(None);
                        connections.len() - 1
                    });
                    match epoll.add(&socket, BOTH_EDGES, index as u64) {
                        Ok(()) => connections[index] = Some(Connection::new(socket)),
                        Err(_) => free.push(index),
                    }
                }
                continue;
            }
            let index = token as usize;
            let Some(connection) = &mut connections[index] else {
                continue;
            };
            match connection.advance(&mut buffer) {
                Ok(Next::Wait) => {}
                Ok(Next::Run) => running.push(token),
                Ok(Next::Close) | Err(_) => {
                    connections[index] = None;
                    freed.push(index);
                }
            }
        }
        free.append(&mut freed);
    }
}

/// What becomes of a connection.
enum Next {
    Wait,
    Run,
    Close,
}

struct Connection {
    socket: OwnedFd,
    asked: Vec<u8>,
    question: Option<Question>,
    received: u64,
    reported: u64,
}

impl Connection {
    const fn new(socket: OwnedFd) -> Self {
        Self { socket, asked: Vec::new(), question: None, received: 0, reported: 0 }
    }

    fn advance(&mut self, buffer: &mut [u8]) -> io::Result<Next> {
        loop {
            match self.question {
                Some(Question::Sink) => return self.sink(buffer),
                Some(Question::Source(_)) => return self.source(buffer),
                _ => {}
            }
            let missing = QUESTION - self.asked.len();
            match sys::read(&self.socket, &mut buffer[..missing])? {
                None => return Ok(Next::Wait),
                Some(0) => return Ok(Next::Close),
                Some(count) => self.asked.extend_from_slice(&buffer[..count]),
            }
            let Ok(asked) = self.asked.as_slice().try_into() else {
                continue;
            };
            self.question = Question::parse(asked);
            self.asked.clear();
            match self.question {
                Some(Question::Byte) => {
                    sys::write(&self.socket, b".")?;
                    return Ok(Next::Close);
                }
                Some(Question::Hold) => _ = sys::write(&self.socket, b".")?,
                Some(Question::Source(rate)) if rate > 0 => sys::set_pacing_rate(&self.socket, rate)?,
                Some(_) => {}
                None => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
    }

    fn sink(&mut self, buffer: &mut [u8]) -> io::Result<Next> {
        for _ in 0..BUDGET {
            match sys::read(&self.socket, buffer)? {
                None => return Ok(Next::Wait),
                Some(0) => return Ok(Next::Close),
                Some(count) => self.received += count as u64,
            }
            let now = sys::now_ns();
            if now - self.reported >= REPORT_EVERY {
                self.reported = now;
                sys::write(&self.socket, &Report { at: now, bytes: self.received }.bytes())?;
            }
        }
        Ok(Next::Run)
    }

    fn source(&self, buffer: &[u8]) -> io::Result<Next> {
        for _ in 0..BUDGET {
            if sys::write(&self.socket, buffer)?.is_none() {
                return Ok(Next::Wait);
            }
        }
        Ok(Next::Run)
    }
}
