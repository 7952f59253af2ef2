//! What a client asks, and how an upstream's reply is made the client's.

use alloc::vec::Vec;
use core::net::IpAddr;

use super::message::{CLASS_IN, HEADER, Kind, Message, Question};
use super::name::{MAX_NAME, NameRef};
use super::reply::{self, Rcode};
use super::reverse::Reverse;

/// The longest datagram without EDNS (RFC 1035 section 4.2.1).
const MIN_DATAGRAM: usize = 512;
/// The longest that is sent to anybody, and that we say we can take: it crosses every path whole, as fragments
/// may not (RFC 9715 section 3.2: 1,400 at most; 1,232 fits IPv6's least MTU).
pub(crate) const MAX_DATAGRAM: usize = 1232;

pub(crate) const QR: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
pub(crate) const TC: u16 = 0x0200;
const RD: u16 = 0x0100;
const RA: u16 = 0x0080;
const AD: u16 = 0x0020;
const CD: u16 = 0x0010;
/// What of a reply's flags is the server's to say: AA, AD and the RCODE.
const SERVERS: u16 = 0x0400 | AD | 0x000f;
/// "DNSSEC OK" in the TTL of an OPT record.
const DO: u32 = 0x8000;

/// A client's query: one question, well-formed, of opcode QUERY.
///
/// ```
/// use tcp_over_http::dns::{Kind, Reply, Request};
///
/// let query = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x03www\x07example\x03com\0\0\x01\0\x01";
/// let request = Request::parse(query).expect("a query");
/// assert_eq!(request.kind(), Kind::A);
/// assert_eq!(request.name().host().as_deref(), Some("www.example.com"));
///
/// let mut message = Vec::new();
/// request.reply(&Reply::Address([192, 0, 2, 1].into(), 60), &mut message);
/// assert!(request.is_answered_by(&message, 7));
/// assert!(message.ends_with(&[0, 0, 0, 60, 0, 4, 192, 0, 2, 1]));
/// ```
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// Header and question; the question's name is not compressed.
    head: &'a [u8],
    message: Message<'a>,
    question: Question<'a>,
    edns: Option<Edns>,
}

/// The client's extensions (RFC 6891). Its options are not read: none of them needs an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    /// Bytes of the longest datagram that the client takes.
    pub size: u16,
    /// 0 is the only one there is.
    pub version: u8,
    /// Whether the client wants DNSSEC records (RFC 3225).
    pub dnssec_ok: bool,
}

/// Why bytes are no [`Request`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadRequest {
    /// Too short, or a reply: whoever answers it may start a loop.
    Ignore,
    /// FORMERR or NOTIMP, to be sent to the client.
    Answer([u8; HEADER]),
}

impl<'a> Request<'a> {
    /// Reads a query.
    ///
    /// # Errors
    /// [`BadRequest`]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BadRequest> {
        let header: &[u8; HEADER] = bytes.first_chunk().ok_or(BadRequest::Ignore)?;
        let flags = u16::from_be_bytes([header[2], header[3]]);
        if flags & QR != 0 {
            return Err(BadRequest::Ignore);
        }
        let refusal = |rcode: Rcode| {
            let [high, low] = (QR | RA | flags & (OPCODE | RD | CD) | rcode as u16).to_be_bytes();
            BadRequest::Answer([header[0], header[1], high, low, 0, 0, 0, 0, 0, 0, 0, 0])
        };
        if flags & OPCODE != 0 {
            return Err(refusal(Rcode::NotImp));
        }
        Self::standard(bytes).ok_or(refusal(Rcode::FormErr))
    }

    fn standard(bytes: &'a [u8]) -> Option<Self> {
        let message = Message::parse(bytes)?;
        let question = message.question()?;
        let head = bytes.get(..message.question_end())?;
        let length: usize = question.name.labels().map(|label| 1 + label.len()).sum();
        // The question is copied into replies as it is: a pointer into our header would mean something else there.
        if head.len() != HEADER + length + 1 + 4 {
            return None;
        }
        let mut edns = None;
        for record in message.records() {
            let record = record?;
            if record.kind != Kind::OPT {
                continue;
            }
            // RFC 6891 section 6.1.1: there may be one, and its name is the root.
            if edns.is_some() || record.name.labels().next().is_some() {
                return None;
            }
            let [_, version, ..] = record.ttl.to_be_bytes();
            edns = Some(Edns { size: record.class, version, dnssec_ok: record.ttl & DO != 0 });
        }
        Some(Self { head, message, question, edns })
    }

    #[cfg(test)]
    pub(crate) fn message_id(&self) -> u16 {
        self.message.id()
    }

    /// Whose records are asked for.
    pub const fn name(&self) -> NameRef<'a> {
        self.question.name
    }

    /// The address that the name stands for, if it is one of the reverse zones.
    pub fn address(&self) -> Option<IpAddr> {
        Reverse::parse(self.question.name.reversed(&mut [0; MAX_NAME]))?.address()
    }

    /// The type asked for.
    pub const fn kind(&self) -> Kind {
        self.question.kind
    }

    /// The class asked for; 1 is the Internet.
    pub const fn class(&self) -> u16 {
        self.question.class
    }

    /// The client's extensions, if it has any.
    pub const fn edns(&self) -> Option<Edns> {
        self.edns
    }

    /// Bytes of the longest datagram for this client.
    pub fn udp_limit(&self) -> usize {
        let size = self.edns.map_or(0, |edns| edns.size.into());
        size.clamp(MIN_DATAGRAM, MAX_DATAGRAM)
    }

    /// Whether the same reply, [relayed](Request::relay), serves both requests.
    pub fn is_same(&self, other: &Request<'_>) -> bool {
        self.is_for(&other.question) && self.variant() == other.variant()
    }

    /// What else decides over a reply: DO (RFC 4035 section 3.2.1) and CD (section 3.2.2).
    pub(crate) fn variant(&self) -> u8 {
        let dnssec_ok = self.edns.is_some_and(|edns| edns.dnssec_ok);
        u8::from(dnssec_ok) << 1 | u8::from(self.message.flags() & CD != 0)
    }

    fn is_for(&self, question: &Question<'_>) -> bool {
        let Question { name, kind, class } = self.question;
        question.kind == kind && question.class == class && question.name == name
    }

    /// Appends the query for an upstream. It names the client in no way: its id is `id`, letters are lowercase,
    /// and of the extensions only DO is passed on (never a client's subnet, RFC 7871).
    pub fn encode(&self, id: u16, out: &mut Vec<u8>) {
        let dnssec_ok = self.variant() > 1;
        // With AD set, the resolver says whether the reply is authentic (RFC 6840 section 5.7), to whoever shares it.
        let flags = RD | AD | self.message.flags() & CD;
        for field in [id, flags, 1, 0, 0, dnssec_ok.into()] {
            out.extend_from_slice(&field.to_be_bytes());
        }
        let question = out.len();
        out.extend_from_slice(self.question_bytes());
        // Lengths of labels are below the letters; type and class are left alone.
        if let Some((name, _)) = out.get_mut(question..).and_then(|bytes| bytes.split_last_chunk_mut::<4>()) {
            name.make_ascii_lowercase();
        }
        if dnssec_ok {
            reply::push_opt(out, 0, true);
        }
    }

    /// Whether `reply` is an upstream's to the query that [`Request::encode`] made with `id`. It may be of no use
    /// all the same: a failure, perhaps even without the question.
    pub fn is_answered_by(&self, reply: &[u8], id: u16) -> bool {
        Message::parse(reply).is_some_and(|reply| {
            let is_bare = reply.is_reply() && reply.question().is_none() && reply.rcode() != 0;
            reply.id() == id && (is_bare || self.is_question_of(&reply))
        })
    }

    /// Whether the message is a reply to this question, and repeats it in the same number of bytes.
    pub(crate) fn is_question_of(&self, reply: &Message<'_>) -> bool {
        reply.is_reply()
            && reply.question_end() == self.head.len()
            && reply.question().is_some_and(|question| self.is_for(&question))
    }

    /// Appends an upstream's reply, made the client's: with its id, its spelling of the name, and its flags. What
    /// is longer than `limit` is cut down to nothing and marked as truncated, so that the client asks again over
    /// TCP (RFC 2181 section 9).
    ///
    /// False if the reply is malformed or answers something else; nothing has been appended then.
    pub fn relay(&self, reply: &[u8], limit: usize, out: &mut Vec<u8>) -> bool {
        let Some(message) = Message::parse(reply).filter(|message| self.is_question_of(message)) else {
            return false;
        };
        let counts = [message.field(6), message.field(8), message.field(10)];
        let flags = self.reply_flags(message.flags() & SERVERS);
        if !message.is_truncated() {
            let Some((end, has_opt)) = extent(&message) else {
                return false;
            };
            let opt = if has_opt { None } else { self.edns };
            let opt_length = opt.map_or(0, |_| reply::OPT_LENGTH);
            if end + opt_length <= limit {
                let [answers, authorities, extras] = counts;
                let extras = extras + u16::from(opt.is_some());
                self.push_head(flags, [answers, authorities, extras], out);
                out.extend_from_slice(reply.get(self.head.len()..end).unwrap_or_default());
                if let Some(edns) = opt {
                    reply::push_opt(out, 0, edns.dnssec_ok);
                }
                return true;
            }
        }
        self.push_head(flags | TC, [0, 0, u16::from(self.edns.is_some())], out);
        if let Some(edns) = self.edns {
            reply::push_opt(out, 0, edns.dnssec_ok);
        }
        true
    }

    /// The flags of a reply: `flags` and what the client's tell.
    pub(crate) fn reply_flags(&self, flags: u16) -> u16 {
        let ours = self.message.flags();
        // RFC 6840 section 5.8: AD is for those who ask for it.
        let wants_ad = ours & AD != 0 || self.variant() > 1;
        let flags = if wants_ad { flags } else { flags & !AD };
        QR | RA | ours & (RD | CD) | flags
    }

    /// Appends header and question of a reply whose sections have `counts` records.
    pub(crate) fn push_head(&self, flags: u16, counts: [u16; 3], out: &mut Vec<u8>) {
        let [answers, authorities, extras] = counts;
        for field in [self.message.id(), flags, 1, answers, authorities, extras] {
            out.extend_from_slice(&field.to_be_bytes());
        }
        out.extend_from_slice(self.question_bytes());
    }

    /// Name, type and class as the client wrote them.
    pub(crate) fn question_bytes(&self) -> &'a [u8] {
        self.head.get(HEADER..).unwrap_or_default()
    }

    /// Whether the question is one about the Internet.
    pub(crate) const fn is_internet(&self) -> bool {
        self.question.class == CLASS_IN
    }
}

/// The offset behind the last record, and whether one of them is OPT; `None` if one is malformed.
fn extent(message: &Message<'_>) -> Option<(usize, bool)> {
    let mut end = message.question_end();
    let mut has_opt = false;
    for record in message.records() {
        let record = record?;
        end = record.data_at + record.data.len();
        has_opt |= record.kind == Kind::OPT;
    }
    Some((end, has_opt))
}

#[cfg(test)]
pub(crate) mod tests;
