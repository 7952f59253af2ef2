//! The socket for netlink's messages to the kernel and its answers, and what it is used for besides routes: connections
//! that the kernel forwards, and where a client is.

pub mod conntrack;
pub mod neighbour;

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use tcp_over_http::capture::netlink::{self, Answer, Message, NLM_F_ACK, NLM_F_DUMP, Refusal};

use crate::sys;

/// Bytes for one read. The kernel fills dumps up to 32 KiB, and no notification is longer.
pub const READ_SIZE: usize = 32 * 1024;

/// Why a request failed.
#[derive(Debug)]
pub enum Error {
    /// The request did not reach the kernel, or the answer did not come back.
    Socket(io::Error),
    /// The kernel refuses.
    Refused(Refusal),
}

impl Error {
    /// The `errno` of the socket (as under qemu-user) or of the answer; 0 if there is none.
    pub fn errno(&self) -> i32 {
        match self {
            Error::Socket(error) => error.raw_os_error().unwrap_or(0),
            Error::Refused(refusal) => refusal.errno,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Socket(error) => error.fmt(f),
            Error::Refused(Refusal { errno, reason }) => {
                io::Error::from_raw_os_error(*errno).fmt(f)?;
                if reason.is_empty() { Ok(()) } else { write!(f, ": {reason}") }
            }
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Error::Socket(error)
    }
}

/// A socket for requests. The kernel answers while the request is sent, and continues a dump while it is read: neither
/// blocks. Only root and the kernel can send to it.
pub struct Socket {
    file: File,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket of this protocol (`NETLINK_*`) without multicast groups.
    pub fn open(protocol: i32) -> io::Result<Self> {
        let file = sys::netlink(protocol, 0)?;
        Ok(Socket { file, sequence: 0, buffer: vec![0; READ_SIZE] })
    }

    /// Sends a request that changes something and takes the kernel's verdict.
    pub fn request(&mut self, message: Message) -> Result<(), Error> {
        self.get(message, &mut |_| ())
    }

    /// Asks for one object, which is passed to `each`.
    pub fn get(&mut self, message: Message, each: &mut dyn FnMut(&netlink::Received)) -> Result<(), Error> {
        self.send(message, NLM_F_ACK)?;
        while !self.receive(each)? {}
        Ok(())
    }

    /// Asks for all objects of a kind, which [`Socket::receive`] then returns.
    pub fn begin_dump(&mut self, message: Message) -> Result<(), Error> {
        self.send(message, NLM_F_DUMP)
    }

    /// Asks for all objects of a kind, which are passed to `each` one by one.
    pub fn list(&mut self, message: Message, each: &mut dyn FnMut(&netlink::Received)) -> Result<(), Error> {
        self.begin_dump(message)?;
        while !self.receive(each)? {}
        Ok(())
    }

    /// Takes what one read gives of an answer, some hundreds of routes, and passes them to `each` one by one. True at
    /// the end of the answer.
    pub fn receive(&mut self, each: &mut dyn FnMut(&netlink::Received)) -> Result<bool, Error> {
        let length = match self.file.read(&mut self.buffer) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(false),
            result => result?,
        };
        for received in netlink::messages(self.buffer.get(..length).unwrap_or_default()) {
            if received.sequence != self.sequence {
                continue;
            }
            match received.answer() {
                Answer::Part => each(&received),
                Answer::Done => return Ok(true),
                Answer::Refused(refusal) => return Err(Error::Refused(refusal)),
            }
        }
        Ok(false)
    }

    fn send(&mut self, message: Message, flags: u16) -> Result<(), Error> {
        self.sequence = self.sequence.wrapping_add(1);
        self.file.write_all(&message.finish(flags, self.sequence))?;
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
