//! Reads and writes on tokio's TCP sockets without waiting. One copy of tokio's code for all callers.

use std::io::{self, ErrorKind};

use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::sys;

/// Makes a call for which the stream should be ready, and clears tokio's readiness if it would block.
#[inline(never)]
pub fn attempt(
    stream: &TcpStream,
    interest: Interest,
    call: &mut dyn FnMut() -> io::Result<usize>,
) -> io::Result<usize> {
    stream.try_io(interest, call)
}

/// Receives what is there. 0 means the end of the stream.
pub fn receive(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let mut received = 0;
    let result = attempt(stream, Interest::READABLE, &mut || {
        received = sys::read(stream, buffer)?;
        match received {
            // A read that leaves room has drained the socket: telling tokio so spares the next reader a call that finds
            // nothing.
            1.. if received < buffer.len() => Err(ErrorKind::WouldBlock.into()),
            _ => Ok(received),
        }
    });
    if received > 0 { Ok(received) } else { result }
}

/// Sends as much as there is room for.
pub fn send(stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    attempt(stream, Interest::WRITABLE, &mut || sys::write(stream, bytes))
}
