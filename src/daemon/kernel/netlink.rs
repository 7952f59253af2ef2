//! NETLINK_ROUTE: its messages and the socket that carries them (RFC 3549, `<linux/netlink.h>`).
//!
//! A message is a header, a body whose shape its kind gives, and attributes (type, length, value); all
//! of it in the machine's byte order. Own code, since what we send and read is this one file, while
//! `netlink-packet-route` with its socket crates would bring decoders for all there is.

use std::ffi::CStr;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use crate::sys;

/// Make it if it isn't there (`<linux/netlink.h>`).
pub const NLM_F_CREATE: u16 = 0x400;
/// Don't touch it if it is there.
pub const NLM_F_EXCL: u16 = 0x200;
/// Put it in the place of one that is there.
pub const NLM_F_REPLACE: u16 = 0x100;

/// Bytes for one read. The kernel fills dumps up to 32 KiB, and no notification is longer.
pub const READ_SIZE: usize = 32 * 1024;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSGERR_ATTR_MSG: u16 = 1;
/// The two upper bits of an attribute's type are flags.
const NLA_TYPE_MASK: u16 = 0x3fff;
/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Length of `struct nlattr`.
const ATTR_HEADER: usize = 4;

/// A request that is being written.
pub struct Message(Vec<u8>);

impl Message {
    /// A request of a kind (`RTM_*`) with `NLM_F_*` flags. The body is the fixed struct of the kind, or a
    /// received body whole, attributes included.
    pub fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER]; // the length and the number are written when it is sent
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend_from_slice(body);
        let mut message = Message(bytes);
        message.pad();
        message
    }

    /// Appends an attribute of less than 64 KiB.
    pub fn attr(mut self, kind: u16, value: &[u8]) -> Self {
        let length = (ATTR_HEADER + value.len()) as u16;
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.pad();
        self
    }

    /// Appends a number.
    pub fn attr_u32(self, kind: u16, value: u32) -> Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// Appends a text and the NUL behind it.
    pub fn attr_text(self, kind: u16, value: &str) -> Self {
        self.attr(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// What follows the header, as [`Received::body`].
    #[cfg(test)]
    pub fn body(&self) -> &[u8] {
        &self.0[HEADER..]
    }

    fn pad(&mut self) {
        self.0.resize(align(self.0.len()), 0);
    }

    /// The bytes to send.
    fn finish(mut self, flags: u16, sequence: u32) -> Vec<u8> {
        let length = self.0.len() as u32;
        let flags = flags | u16_at(&self.0, 6);
        self.0[0..4].copy_from_slice(&length.to_ne_bytes());
        self.0[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

/// A message from the kernel.
pub struct Received<'a> {
    /// `RTM_*` or `NLMSG_*`.
    pub kind: u16,
    /// What follows the header: the fixed struct of the kind and its attributes.
    pub body: &'a [u8],
    flags: u16,
    sequence: u32,
}

/// The messages in what one read gave; ends at the first that is cut.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let length = u32_at(bytes, 0) as usize;
        let received = Received {
            kind: u16_at(bytes, 4),
            body: bytes.get(HEADER..length)?,
            flags: u16_at(bytes, 6),
            sequence: u32_at(bytes, 8),
        };
        bytes = bytes.get(align(length)..).unwrap_or_default();
        Some(received)
    })
}

/// The attributes behind a fixed struct of `skip` bytes; ends at the first that is cut.
pub fn attrs(body: &[u8], skip: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let mut bytes = body.get(align(skip)..).unwrap_or_default();
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0));
        let attr = (u16_at(bytes, 2) & NLA_TYPE_MASK, bytes.get(ATTR_HEADER..length)?);
        bytes = bytes.get(align(length)..).unwrap_or_default();
        Some(attr)
    })
}

/// The number at an offset, 0 where the bytes end before.
pub fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    array_at(bytes, offset).map_or(0, u32::from_ne_bytes)
}

/// The bytes at an offset, if there are that many.
pub fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    array_at(bytes, offset).map_or(0, u16::from_ne_bytes)
}

fn align(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// Why a request failed: the error number and, where the kernel gives it, a sentence.
#[derive(Debug)]
pub struct Error {
    cause: io::Error,
    reason: String,
}

impl Error {
    /// Whether it is this `errno`.
    pub fn is(&self, errno: i32) -> bool {
        self.cause.raw_os_error() == Some(errno)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cause.fmt(f)?;
        if !self.reason.is_empty() {
            write!(f, ": {}", self.reason)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(cause: io::Error) -> Self {
        let reason = String::new();
        Error { cause, reason }
    }
}

/// A socket for requests. The kernel answers while the request is being sent, so a wait for the answer
/// doesn't block. Only root and the kernel can send to it.
pub struct Socket {
    file: File,
    sequence: u32,
}

impl Socket {
    /// Opens one that belongs to no multicast group.
    pub fn open() -> io::Result<Self> {
        let file = sys::netlink(libc::NETLINK_ROUTE, 0)?;
        Ok(Socket { file, sequence: 0 })
    }

    /// Sends a request that changes something and takes the kernel's verdict.
    pub fn request(&mut self, message: Message) -> Result<(), Error> {
        self.exchange(message, NLM_F_ACK, &mut |_| ())
    }

    /// Asks for one thing; `each` sees it.
    pub fn get(&mut self, message: Message, each: &mut dyn FnMut(&Received)) -> Result<(), Error> {
        self.exchange(message, NLM_F_ACK, each)
    }

    /// Asks for all things of a kind; `each` sees them one by one.
    pub fn dump(&mut self, message: Message, each: &mut dyn FnMut(&Received)) -> Result<(), Error> {
        self.exchange(message, NLM_F_DUMP, each)
    }

    fn exchange(
        &mut self,
        message: Message,
        flags: u16,
        each: &mut dyn FnMut(&Received),
    ) -> Result<(), Error> {
        self.sequence = self.sequence.wrapping_add(1);
        self.file.write_all(&message.finish(flags, self.sequence))?;
        let mut buffer = vec![0; READ_SIZE];
        loop {
            let length = match self.file.read(&mut buffer) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result?,
            };
            for received in messages(buffer.get(..length).unwrap_or_default()) {
                match received.kind {
                    _ if received.sequence != self.sequence => {}
                    NLMSG_ERROR | NLMSG_DONE => return verdict(&received),
                    _ => each(&received),
                }
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Reads `struct nlmsgerr`: 0 or a negative errno, the request (only its header if capped), then
/// attributes. The end of a dump has the number alone.
fn verdict(received: &Received) -> Result<(), Error> {
    let errno = (u32_at(received.body, 0) as i32).saturating_neg();
    if errno == 0 {
        return Ok(());
    }
    let mut reason = String::new();
    if received.kind == NLMSG_ERROR && received.flags & NLM_F_ACK_TLVS != 0 {
        let request = match received.flags & NLM_F_CAPPED {
            0 => u32_at(received.body, 4) as usize,
            _ => HEADER,
        };
        reason = attrs(received.body, request.saturating_add(4))
            .find(|&(kind, _)| kind == NLMSGERR_ATTR_MSG)
            .and_then(|(_, text)| CStr::from_bytes_until_nul(text).ok())
            .map(|text| text.to_string_lossy().into_owned())
            .unwrap_or_default();
    }
    Err(Error { cause: io::Error::from_raw_os_error(errno), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `ip rule add pref 904 nop protocol 116`, as strace shows it, in the machine's byte order.
    #[test]
    fn encodes_as_iproute2_does() {
        let body = [2, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0];
        let bytes = Message::new(32, NLM_F_CREATE | NLM_F_EXCL, &body)
            .attr_u32(6, 904)
            .attr(21, &[116])
            .finish(NLM_F_ACK, 7);
        let mut expected = Vec::new();
        expected.extend_from_slice(&44u32.to_ne_bytes());
        expected.extend_from_slice(&32u16.to_ne_bytes());
        expected.extend_from_slice(&0x605u16.to_ne_bytes());
        expected.extend_from_slice(&7u32.to_ne_bytes());
        expected.extend_from_slice(&[0; 4]);
        expected.extend_from_slice(&body);
        expected.extend_from_slice(&[8u16.to_ne_bytes(), 6u16.to_ne_bytes()].concat());
        expected.extend_from_slice(&904u32.to_ne_bytes());
        expected.extend_from_slice(&[5u16.to_ne_bytes(), 21u16.to_ne_bytes()].concat());
        expected.extend_from_slice(&[116, 0, 0, 0]);
        assert_eq!(bytes, expected);
    }

    #[test]
    fn reads_what_it_writes_and_survives_every_cut() {
        let mut bytes = Message::new(32, 0, &[9; 12]).attr_text(3, "toh0").attr_u32(6, 900).finish(0, 1);
        let whole = bytes.len();
        bytes.extend(Message::new(33, 0, &[8; 12]).finish(0, 2));
        let kinds: Vec<_> = messages(&bytes).map(|m| (m.kind, m.sequence)).collect();
        assert_eq!(kinds, [(32, 1), (33, 2)]);
        let first = messages(&bytes).next().unwrap();
        let read: Vec<_> = attrs(first.body, 12).collect();
        let expected: [(u16, &[u8]); 2] = [(3, b"toh0\0"), (6, &900u32.to_ne_bytes())];
        assert_eq!(read, expected);
        for cut in 0..whole {
            assert_eq!(messages(&bytes[..cut]).count(), 0);
            assert!(attrs(&first.body[..cut.min(first.body.len())], 12).count() <= 2);
        }
        // Lengths that lie: shorter than the header, zero, beyond the end.
        for length in [0, 1, 15, u32::MAX] {
            bytes[0..4].copy_from_slice(&u32::to_ne_bytes(length));
            assert_eq!(messages(&bytes).count(), 0);
        }
    }

    #[test]
    fn verdicts() {
        let ack = |errno: i32, flags: u16, rest: &[u8]| {
            let body = [&errno.to_ne_bytes()[..], rest].concat();
            verdict(&Received { kind: NLMSG_ERROR, body: &body, flags, sequence: 0 })
        };
        assert!(ack(0, 0, &[]).is_ok());
        let text = Message::new(0, 0, &[]).attr(NLMSGERR_ATTR_MSG, b"no such thing\0").0;
        let error = ack(-libc::EINVAL, NLM_F_ACK_TLVS | NLM_F_CAPPED, &text).unwrap_err();
        assert!(error.is(libc::EINVAL));
        assert!(error.to_string().ends_with(": no such thing"), "{error}");
        assert!(ack(-libc::EPERM, NLM_F_ACK_TLVS, &[0xff; 4]).unwrap_err().is(libc::EPERM));
        assert!(ack(i32::MIN, 0, &[]).is_err());
    }
}
