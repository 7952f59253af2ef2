//! One attempt at one address of one proxy: connect, ask, read the answer.
//!
//! Every dial in flight holds these futures, so no buffer is kept across an await: the request is one allocation, freed
//! as soon as it is sent, and the reply is read into the stack of [`receive`].

use crate::{sys, tcp};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;
use tcp_over_http::http::{ReplyError, ReplyParser, Status};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Bytes for one read: enough for nearly every reply, but not for much of the tunnel's data after it.
const BUFFER: usize = 2048;

/// How long to wait for the body of a 407.
const BODY: Duration = Duration::from_secs(1);

/// A proxy's answer.
pub struct Reply {
    pub status: u16,
    /// For a 407, its lines, including the challenges; otherwise the bytes that came after the reply.
    pub rest: Vec<u8>,
    /// How many bytes of a 407's body are still to come, if the connection can be used again after it.
    pub body: Option<usize>,
}

/// Why a connected proxy gave no answer.
#[derive(Debug)]
pub enum HandshakeError {
    TimedOut,
    /// It closed or reset the connection before the first byte of its answer...
    Closed,
    /// ...or within it.
    CutOff,
    Garbage(ReplyError),
}

/// Connects to one address within `patience`, from a socket with `mark` (0: none). `EADDRNOTAVAIL` means that no port
/// is left for it. Every socket to a proxy comes from here, so TLS would belong here.
pub async fn connect(address: SocketAddr, mark: u32, patience: Duration) -> io::Result<TcpStream> {
    let socket = sys::tcp_socket(address, mark)?;
    // The request follows at once and carries the acknowledgement.
    _ = sys::delay_acknowledgement(&socket);
    match timeout(patience, socket.connect(address)).await? {
        // Linux also says so if there is no address to connect from.
        Err(error)
            if error.raw_os_error() == Some(libc::EADDRNOTAVAIL)
                && sys::udp_socket(address, mark).is_err() =>
        {
            Err(ErrorKind::NetworkUnreachable.into())
        }
        result => result,
    }
}

/// Sends the request and reads the reply, both within `patience`.
pub async fn handshake(
    stream: &TcpStream,
    request: Vec<u8>,
    patience: Duration,
) -> Result<Reply, HandshakeError> {
    match timeout(patience, exchange(stream, request)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(HandshakeError::TimedOut),
    }
}

async fn exchange(stream: &TcpStream, mut request: Vec<u8>) -> Result<Reply, HandshakeError> {
    // A connected socket is writable, and its buffer takes the request whole: one call.
    while !request.is_empty() {
        match tcp::send(stream, &request) {
            Ok(sent) if sent >= request.len() => break,
            Ok(sent) => drop(request.drain(..sent)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                stream.writable().await.map_err(|_| HandshakeError::Closed)?;
            }
            Err(_) => return Err(HandshakeError::Closed),
        }
    }
    drop(request);
    let mut parser = ReplyParser::new();
    loop {
        stream.readable().await.map_err(|_| HandshakeError::Closed)?;
        if let Some(reply) = receive(stream, &mut parser)? {
            return Ok(reply);
        }
    }
}

fn receive(stream: &TcpStream, parser: &mut ReplyParser) -> Result<Option<Reply>, HandshakeError> {
    let mut buffer = [0; BUFFER];
    let closed = if parser.has_begun() { HandshakeError::CutOff } else { HandshakeError::Closed };
    let received = match tcp::receive(stream, &mut buffer) {
        Ok(0) => return Err(closed),
        Ok(length) => buffer.get(..length).unwrap_or_default(),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
            return Ok(None);
        }
        Err(_) => return Err(closed),
    };
    let status = parser.feed(received).map_err(HandshakeError::Garbage)?;
    Ok(match status {
        Status::Partial => None,
        Status::Done { status, consumed } => {
            let rest = received.get(consumed..).unwrap_or_default();
            let body = parser.body().and_then(|length| length.checked_sub(rest.len()));
            Some(Reply { status, rest: if status == 407 { parser.lines() } else { rest }.to_vec(), body })
        }
    })
}

/// Discards `length` bytes of a reply's body. Returns whether they came soon.
pub async fn discard(stream: &TcpStream, length: usize) -> bool {
    let rest = async {
        let mut left = length;
        while left > 0 {
            stream.readable().await?;
            match tcp::attempt(stream, Interest::READABLE, &mut || sys::discard(stream, left)) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) => left -= length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    };
    matches!(timeout(BODY, rest).await, Ok(Ok(())))
}
