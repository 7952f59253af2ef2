//! What a client and the server say to each other, and how a client comes to be connected.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use crate::sys;

/// Bytes of a question.
pub const QUESTION: usize = 16;
/// Bytes of a report.
pub const REPORT: usize = 16;

/// What a client wants of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// One byte, and the connection closed.
    Byte,
    /// One byte, and the connection left open for the next question.
    Hold,
    /// Reports of what has arrived: the bytes that follow.
    Sink,
    /// Bytes without end, no more than so many a second if not 0.
    Source(u64),
}

impl Question {
    /// As it is sent.
    pub fn bytes(self) -> [u8; QUESTION] {
        let (code, rate) = match self {
            Self::Byte => (b'b', 0),
            Self::Hold => (b'h', 0),
            Self::Sink => (b'u', 0),
            Self::Source(rate) => (b'd', rate),
        };
        let mut bytes = [0; QUESTION];
        bytes[0] = code;
        bytes[8..].copy_from_slice(&u64::to_be_bytes(rate));
        bytes
    }

    /// What has arrived. None: nothing a client asks.
    pub fn parse(bytes: &[u8; QUESTION]) -> Option<Self> {
        let [code, _, _, _, _, _, _, _, rate @ ..] = *bytes;
        Some(match code {
            b'b' => Self::Byte,
            b'h' => Self::Hold,
            b'u' => Self::Sink,
            b'd' => Self::Source(u64::from_be_bytes(rate)),
            _ => return None,
        })
    }
}

/// How much has arrived by when.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// By the monotonic clock, in nanoseconds.
    pub at: u64,
    /// Bytes since the connection's beginning.
    pub bytes: u64,
}

impl Report {
    /// As it is sent.
    pub fn bytes(self) -> [u8; REPORT] {
        let mut bytes = [0; REPORT];
        bytes[..8].copy_from_slice(&self.at.to_be_bytes());
        bytes[8..].copy_from_slice(&self.bytes.to_be_bytes());
        bytes
    }

    /// What has arrived.
    pub fn parse(bytes: &[u8; REPORT]) -> Self {
        let both = u128::from_be_bytes(*bytes);
        Self { at: (both >> 64) as u64, bytes: both as u64 }
    }
}

/// A client's connection until its question has been sent.
pub struct Call {
    /// The socket, for epoll.
    pub socket: OwnedFd,
    state: State,
    request: Vec<u8>,
    question: Question,
    /// When it was begun, by the monotonic clock in nanoseconds.
    pub begun: u64,
    /// When it was connected: through a proxy, when the proxy has said so.
    pub connected: u64,
}

#[derive(PartialEq)]
enum State {
    Connecting,
    Asked(Vec<u8>),
    Open,
}

impl Call {
    /// Begins to connect to `to`, or to the proxy `via`, to ask `question`.
    ///
    /// # Errors
    /// As `connect(2)`.
    pub fn new(to: SocketAddr, via: Option<SocketAddr>, question: Question) -> io::Result<Self> {
        let begun = sys::now_ns();
        let socket = sys::connect(via.unwrap_or(to))?;
        let request = match via {
            Some(_) => format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n").into_bytes(),
            None => Vec::new(),
        };
        Ok(Self { socket, state: State::Connecting, request, question, begun, connected: 0 })
    }

    /// Goes on as far as it can. True: the question has been sent, now or earlier.
    ///
    /// # Errors
    /// If the connection is refused, by the proxy too.
    pub fn advance(&mut self) -> io::Result<bool> {
        if self.state == State::Connecting {
            if !sys::is_connected(&self.socket)? {
                return Ok(false);
            }
            if self.request.is_empty() {
                return self.ask();
            }
            self.send(&self.request)?;
            self.state = State::Asked(Vec::new());
        }
        if let State::Asked(reply) = &mut self.state {
            let mut buffer = [0; 256];
            while !reply.ends_with(b"\r\n\r\n") {
                match sys::read(&self.socket, &mut buffer)? {
                    None => return Ok(false),
                    Some(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Some(count) => reply.extend_from_slice(&buffer[..count]),
                }
            }
            if !reply.starts_with(b"HTTP/1.1 200") {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            return self.ask();
        }
        Ok(true)
    }

    fn ask(&mut self) -> io::Result<bool> {
        self.connected = sys::now_ns();
        self.send(&self.question.bytes())?;
        self.state = State::Open;
        Ok(true)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        match sys::write(&self.socket, bytes)? {
            Some(count) if count == bytes.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }
}

/// The addresses that clients connect to, in turn.
pub struct Targets {
    first: SocketAddr,
    spread: u32,
    next: u32,
}

impl Targets {
    /// `spread` addresses from `first` on, which differ in their last byte.
    pub fn new(first: SocketAddr, spread: u32) -> Self {
        Self { first, spread: spread.max(1), next: 0 }
    }

    /// The next one.
    pub fn next(&mut self) -> SocketAddr {
        let mut target = self.first;
        let nth = self.next as u8;
        match &mut target {
            SocketAddr::V4(v4) => {
                let [a, b, c, d] = v4.ip().octets();
                v4.set_ip([a, b, c, d.wrapping_add(nth)].into());
            }
            SocketAddr::V6(v6) => {
                let mut octets = v6.ip().octets();
                octets[15] = octets[15].wrapping_add(nth);
                v6.set_ip(octets.into());
            }
        }
        self.next = (self.next + 1) % self.spread;
        target
    }
}
