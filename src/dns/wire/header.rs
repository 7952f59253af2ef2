//! The header of a message (RFC 1035 section 4.1.1).

use alloc::vec::Vec;

/// Bytes of the header.
pub(crate) const HEADER: usize = 12;

/// A response, not a query.
pub(crate) const QR: u16 = 0x8000;
/// The kind of query; 0 is a standard one.
pub(crate) const OPCODE: u16 = 0x7800;
/// Authoritative answer.
pub(crate) const AA: u16 = 0x0400;
/// Truncated: the rest did not fit.
pub(crate) const TC: u16 = 0x0200;
/// Recursion desired.
pub(crate) const RD: u16 = 0x0100;
/// Recursion available.
pub(crate) const RA: u16 = 0x0080;
/// Authentic data (RFC 4035 section 3.2.3).
pub(crate) const AD: u16 = 0x0020;
/// Checking disabled (RFC 4035 section 3.2.2).
pub(crate) const CD: u16 = 0x0010;
/// The bits of the response code.
pub(crate) const RCODE: u16 = 0x000f;

/// The response code (IANA, DNS RCODEs).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rcode {
    /// Success.
    NoError = 0,
    /// The query is malformed.
    FormErr = 1,
    /// The server failed to find an answer.
    ServFail = 2,
    /// The name does not exist.
    NXDomain = 3,
    /// The server does not implement this kind of query.
    NotImp = 4,
    /// The server does not answer this query as a matter of policy.
    Refused = 5,
    /// The server does not implement this version of EDNS (RFC 6891 section 6.1.3).
    BadVers = 16,
}

/// Appends 16-bit fields in network byte order.
pub(crate) fn push_fields(out: &mut Vec<u8>, fields: &[u16]) {
    for field in fields {
        out.extend_from_slice(&field.to_be_bytes());
    }
}
