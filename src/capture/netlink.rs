//! Netlink messages as bytes (RFC 3549, `<linux/netlink.h>`).
//!
//! A message has a header, a body whose shape depends on the message type, and attributes (type, length,
//! value). Numbers are in the machine's byte order. The crate `netlink-packet-route` would bring decoders for
//! everything; what this project needs fits one file.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::ffi::CStr;
use core::net::IpAddr;

// <linux/netlink.h>

/// Ask the kernel for an acknowledgement.
pub const NLM_F_ACK: u16 = 4;
/// List all objects.
pub const NLM_F_DUMP: u16 = 0x300;
/// Create the object if it does not exist.
pub const NLM_F_CREATE: u16 = 0x400;
/// Fail if the object exists.
pub const NLM_F_EXCL: u16 = 0x200;
/// Replace an existing object.
pub const NLM_F_REPLACE: u16 = 0x100;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSGERR_ATTR_MSG: u16 = 1;
/// The two upper bits of an attribute's type are flags.
const NLA_TYPE_MASK: u16 = 0x3fff;
/// `NLA_F_NESTED`
const NESTED: u16 = 1 << 15;
/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Length of `struct nlattr`.
const ATTR_HEADER: usize = 4;

/// A request that is being written.
#[derive(Default)]
pub struct Message(Vec<u8>);

impl Message {
    /// A request of a type (`RTM_*`) with `NLM_F_*` flags. `body` is the fixed struct of that type, or the
    /// whole body of a received message with its attributes.
    pub fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER]; // `finish` writes the length and the sequence number
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend_from_slice(body);
        let mut message = Message(bytes);
        message.pad();
        message
    }

    /// Appends an attribute. The value must be shorter than 64 KiB.
    pub fn attr(mut self, kind: u16, value: &[u8]) -> Self {
        let length = (ATTR_HEADER + value.len()) as u16;
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.pad();
        self
    }

    /// Appends an attribute that contains the attributes of another message.
    pub fn nest(self, kind: u16, attrs: Self) -> Self {
        self.attr(NESTED | kind, &attrs.0[HEADER..])
    }

    /// Appends a number in the machine's byte order.
    pub fn attr_u32(self, kind: u16, value: u32) -> Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// Appends a NUL-terminated text.
    pub fn attr_text(self, kind: u16, value: &str) -> Self {
        self.attr(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// Appends an address, 4 or 16 bytes.
    pub fn attr_addr(self, kind: u16, value: IpAddr) -> Self {
        match value {
            IpAddr::V4(addr) => self.attr(kind, &addr.octets()),
            IpAddr::V6(addr) => self.attr(kind, &addr.octets()),
        }
    }

    /// The bytes after the header, as in [`Received::body`].
    #[cfg(test)]
    pub fn body(&self) -> &[u8] {
        &self.0[HEADER..]
    }

    fn pad(&mut self) {
        self.0.resize(align(self.0.len()), 0);
    }

    /// The bytes to send, with additional `NLM_F_*` flags. The answer has the same sequence number.
    pub fn finish(mut self, flags: u16, sequence: u32) -> Vec<u8> {
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
    /// The bytes after the header: the fixed struct of the message type, and attributes.
    pub body: &'a [u8],
    /// The sequence number of the request that this answers.
    pub sequence: u32,
    flags: u16,
}

/// What an answer means for its request.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// One object; more messages follow.
    Part,
    /// The end: the request has succeeded.
    Done,
    /// The end: the request has failed.
    Refused(Refusal),
}

/// Why the kernel has refused a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// `E*`
    pub errno: i32,
    /// The kernel's explanation (extended ACK); empty if there is none.
    pub reason: String,
}

impl Received<'_> {
    /// Reads `struct nlmsgerr`: 0 or a negative errno, the request (with `NLM_F_CAPPED` only its header),
    /// then attributes. The end of a dump (`NLMSG_DONE`) has the number alone.
    pub fn answer(&self) -> Answer {
        if !matches!(self.kind, NLMSG_ERROR | NLMSG_DONE) {
            return Answer::Part;
        }
        let errno = (u32_at(self.body, 0) as i32).saturating_neg();
        if errno == 0 {
            return Answer::Done;
        }
        let mut reason = String::new();
        if self.kind == NLMSG_ERROR && self.flags & NLM_F_ACK_TLVS != 0 {
            let request = match self.flags & NLM_F_CAPPED {
                0 => u32_at(self.body, 4) as usize,
                _ => HEADER,
            };
            reason = attrs(self.body, request.saturating_add(4))
                .find(|&(kind, _)| kind == NLMSGERR_ATTR_MSG)
                .and_then(|(_, text)| CStr::from_bytes_until_nul(text).ok()?.to_str().ok())
                .unwrap_or_default()
                .to_owned();
        }
        Answer::Refused(Refusal { errno, reason })
    }
}

/// The messages in the bytes of one read, up to the first that is cut.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Received<'_>> {
    core::iter::from_fn(move || {
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

/// The attributes after a fixed struct of `skip` bytes, up to the first that is cut.
pub fn attrs(body: &[u8], skip: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let mut bytes = body.get(align(skip)..).unwrap_or_default();
    core::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0));
        let attr = (u16_at(bytes, 2) & NLA_TYPE_MASK, bytes.get(ATTR_HEADER..length)?);
        bytes = bytes.get(align(length)..).unwrap_or_default();
        Some(attr)
    })
}

/// The number at an offset; 0 if the bytes are too short.
pub fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    array_at(bytes, offset).map_or(0, u32::from_ne_bytes)
}

/// Reads an address: 4 or 16 bytes.
pub fn address(value: &[u8]) -> Option<IpAddr> {
    let ipv4 = <[u8; 4]>::try_from(value).map(IpAddr::from).ok();
    ipv4.or_else(|| <[u8; 16]>::try_from(value).map(IpAddr::from).ok())
}

/// `N` bytes at an offset; `None` if the bytes are too short.
pub fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    array_at(bytes, offset).map_or(0, u16::from_ne_bytes)
}

/// `NLMSG_ALIGN` and `NLA_ALIGN`. It saturates, so that a forged length stays beyond the end.
fn align(length: usize) -> usize {
    length.saturating_add(3) & !3
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
        // Wrong lengths: shorter than the header, zero, beyond the end.
        for length in [0, 1, 15, u32::MAX] {
            bytes[0..4].copy_from_slice(&u32::to_ne_bytes(length));
            assert_eq!(messages(&bytes).count(), 0);
        }
    }

    #[test]
    fn verdicts() {
        const EPERM: i32 = 1;
        const EINVAL: i32 = 22;
        let ack = |errno: i32, flags: u16, rest: &[u8]| {
            let body = [&errno.to_ne_bytes()[..], rest].concat();
            Received { kind: NLMSG_ERROR, body: &body, flags, sequence: 0 }.answer()
        };
        let refused = |errno, reason: &str| Answer::Refused(Refusal { errno, reason: reason.to_owned() });
        assert_eq!(ack(0, 0, &[]), Answer::Done);
        let text = Message::new(0, 0, &[]).attr(NLMSGERR_ATTR_MSG, b"no such thing\0").0;
        let answer = ack(-EINVAL, NLM_F_ACK_TLVS | NLM_F_CAPPED, &text);
        assert_eq!(answer, refused(EINVAL, "no such thing"));
        assert_eq!(ack(-EPERM, NLM_F_ACK_TLVS, &[0xff; 4]), refused(EPERM, ""));
        assert!(matches!(ack(i32::MIN, 0, &[]), Answer::Refused(_)));
        let part = Received { kind: 24, body: &[], flags: 0, sequence: 0 };
        assert_eq!(part.answer(), Answer::Part);
    }
}
