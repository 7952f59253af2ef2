//! For tests: messages as clients and resolvers send them.

use alloc::vec;
use alloc::vec::Vec;

use super::message::{CLASS_IN, Kind, Message};
use super::name::Name;

/// A query as clients send it; `edns` is the size, the version and DO.
pub fn query(id: u16, flags: u16, name: &str, kind: Kind, edns: Option<(u16, u8, bool)>) -> Vec<u8> {
    let mut out = vec![];
    for field in [id, flags, 1, 0, 0, u16::from(edns.is_some())] {
        out.extend_from_slice(&field.to_be_bytes());
    }
    out.extend_from_slice(Name::new(name).unwrap().wire());
    out.extend_from_slice(&kind.0.to_be_bytes());
    out.extend_from_slice(&CLASS_IN.to_be_bytes());
    if let Some((size, version, dnssec_ok)) = edns {
        out.extend_from_slice(b"\0\0\x29");
        out.extend_from_slice(&size.to_be_bytes());
        out.extend_from_slice(&[0, version, u8::from(dnssec_ok) << 7, 0, 0, 5, 0, 8, 0, 1, 9]);
    }
    out
}

/// Owner, type, TTL and data.
pub type Fields<'a> = (&'a [u8], Kind, u32, &'a [u8]);

/// The reply to a message that starts with a question.
pub fn reply(query: &[u8], flags: u16, sections: [&[Fields<'_>]; 3]) -> Vec<u8> {
    let end = Message::parse(query).unwrap().question_end();
    let mut out = query[..end].to_vec();
    out[2..4].copy_from_slice(&flags.to_be_bytes());
    for (nth, section) in sections.iter().enumerate() {
        out[6 + 2 * nth..][..2].copy_from_slice(&(section.len() as u16).to_be_bytes());
        for (owner, kind, ttl, data) in *section {
            out.extend_from_slice(owner);
            for field in [kind.0, 1, (ttl >> 16) as u16, *ttl as u16, data.len() as u16] {
                out.extend_from_slice(&field.to_be_bytes());
            }
            out.extend_from_slice(data);
        }
    }
    out
}

/// Points to the question's name.
pub const SELF: &[u8] = b"\xc0\x0c";
