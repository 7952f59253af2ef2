//! A TCP segment of a handshake, with options and payload.

use super::options::Options;
use crate::net::Family;
use crate::packet::builder::Tcp;
use crate::packet::{TCP_HEADER, ip_header};

/// Bytes of the longest packet that is made.
pub const MAX_SEGMENT: usize = 1500;

/// A TCP segment.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// The header.
    pub tcp: Tcp,
    /// All options in a SYN, only timestamps in other segments.
    pub options: Options,
    /// The payload.
    pub payload: &'a [u8],
}

impl Segment<'_> {
    /// The longest payload that fits beside all options.
    pub const fn max_payload(family: Family) -> usize {
        MAX_SEGMENT - TCP_HEADER - Options::MAX - ip_header(family)
    }

    /// Writes the whole packet into `out` and returns its length. A payload longer than
    /// [`max_payload`](Self::max_payload) is cut off there.
    pub fn write(&self, out: &mut [u8; MAX_SEGMENT]) -> usize {
        let most = Self::max_payload(self.tcp.tuple.family());
        let payload = self.payload.get(..most).unwrap_or(self.payload);
        let mut options = [0; Options::MAX];
        let length = self.options.write(&mut options);
        self.tcp.write(&options[..length], payload, out)
    }
}
