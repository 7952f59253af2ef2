//! Extensions (RFC 6891): what clients say about themselves in an OPT record, and the OPT record that we send.

use alloc::vec::Vec;

use super::header::push_fields;
use super::message::{Kind, Record};

/// The longest datagram without EDNS (RFC 1035 section 4.2.1).
pub(crate) const MIN_DATAGRAM: usize = 512;
/// The longest datagram that we send, and that we say we accept: it crosses every path in one piece, as fragments
/// may not (RFC 9715 section 3.2: 1,400 at most; 1,232 fits IPv6's least MTU).
const MAX_DATAGRAM: usize = 1232;
/// Bytes of an OPT record without options.
pub(crate) const OPT_LENGTH: usize = 11;
/// "DNSSEC OK" in the TTL of an OPT record.
pub(crate) const DO: u32 = 0x8000;

/// A client's OPT record. Its options are ignored: none of them needs an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    /// Bytes of the longest datagram that the client accepts.
    pub size: u16,
    /// 0 is the only version there is.
    pub version: u8,
    /// Whether the client wants DNSSEC records (RFC 3225).
    pub dnssec_ok: bool,
}

impl Edns {
    /// Reads an OPT record. `None` if its name is not the root (RFC 6891 section 6.1.2).
    pub(crate) fn parse(opt: &Record<'_>) -> Option<Self> {
        let [_, version, ..] = opt.ttl.to_be_bytes();
        let is_root = opt.name.labels().next().is_none();
        is_root.then_some(Self { size: opt.class, version, dnssec_ok: opt.ttl & DO != 0 })
    }

    /// Bytes of the longest datagram for this client.
    pub(crate) fn datagram_limit(&self) -> usize {
        usize::from(self.size).clamp(MIN_DATAGRAM, MAX_DATAGRAM)
    }
}

/// Appends our OPT record: the size that we accept, no options.
pub(crate) fn push_opt(out: &mut Vec<u8>, extended_rcode: u8, dnssec_ok: bool) {
    out.push(0);
    let flags = u16::from(dnssec_ok) << 15;
    push_fields(out, &[Kind::OPT.0, MAX_DATAGRAM as u16, u16::from(extended_rcode) << 8, flags, 0]);
}
