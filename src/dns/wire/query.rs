//! A query: ours, or a client's, which is passed on to a resolver, whose reply is then adapted to the client.

use alloc::vec::Vec;
use core::net::IpAddr;

use super::edns::{Edns, MIN_DATAGRAM, OPT_LENGTH, push_opt};
use super::header::{AA, AD, CD, HEADER, OPCODE, QR, RA, RCODE, RD, Rcode, TC, push_fields};
use super::message::{CLASS_IN, Kind, Message, Question};
use super::name::{MAX_NAME, Name, NameRef};
use super::reverse::Reverse;

/// The flags that are taken from the resolver's reply.
const SERVERS: u16 = AA | AD | RCODE;

/// A query: one question, well-formed, of opcode QUERY.
///
/// ```
/// use tcp_over_http::dns::{Kind, Query, Reply};
///
/// let bytes = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x03www\x07example\x03com\0\0\x01\0\x01";
/// let query = Query::parse(bytes).expect("a query");
/// assert_eq!(query.kind(), Kind::A);
/// assert_eq!(query.name().host().as_deref(), Some("www.example.com"));
///
/// let mut message = Vec::new();
/// query.reply(&Reply::Address([192, 0, 2, 1].into(), 60), &mut message);
/// assert!(query.is_answered_by(&message));
/// assert!(message.ends_with(&[0, 0, 0, 60, 0, 4, 192, 0, 2, 1]));
/// ```
#[derive(Clone, Copy)]
pub struct Query<'a> {
    /// Header and question; the question's name is not compressed.
    head: &'a [u8],
    message: Message<'a>,
    question: Question<'a>,
    edns: Option<Edns>,
}

/// Why bytes are not a [`Query`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadQuery {
    /// Too short, or a reply: answering it may start a loop.
    Ignore,
    /// FORMERR or NOTIMP, to be sent to the client.
    Answer([u8; HEADER]),
}

impl<'a> Query<'a> {
    /// The message that asks a recursive resolver for one type of a name's records, class IN; over TCP it follows its
    /// length (RFC 1035 section 4.2.2). `id` must be unpredictable, so that a reply can't be forged blindly.
    pub fn compose(id: u16, name: &Name, kind: Kind) -> Vec<u8> {
        let mut out = Vec::new();
        push_fields(&mut out, &[id, RD, 1, 0, 0, 0]);
        out.extend_from_slice(name.wire());
        push_fields(&mut out, &[kind.0, CLASS_IN]);
        out
    }

    /// Reads a query.
    ///
    /// # Errors
    /// [`BadQuery`]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BadQuery> {
        let header: &[u8; HEADER] = bytes.first_chunk().ok_or(BadQuery::Ignore)?;
        let flags = u16::from_be_bytes([header[2], header[3]]);
        if flags & QR != 0 {
            return Err(BadQuery::Ignore);
        }
        let refusal = |rcode: Rcode| {
            let [high, low] = (QR | RA | flags & (OPCODE | RD | CD) | rcode as u16).to_be_bytes();
            BadQuery::Answer([header[0], header[1], high, low, 0, 0, 0, 0, 0, 0, 0, 0])
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
            // RFC 6891 section 6.1.1: at most one.
            if edns.replace(Edns::parse(&record)?).is_some() {
                return None;
            }
        }
        Some(Self { head, message, question, edns })
    }

    /// The name whose records are asked for.
    pub const fn name(&self) -> NameRef<'a> {
        self.question.name
    }

    /// The address that the name stands for, if it is a whole name in a reverse zone.
    pub fn address(&self) -> Option<IpAddr> {
        Reverse::parse(self.question.name.reversed(&mut [0; MAX_NAME]))?.address()
    }

    /// The type asked for.
    pub const fn kind(&self) -> Kind {
        self.question.kind
    }

    /// The client's extensions, if it sent any.
    pub const fn edns(&self) -> Option<Edns> {
        self.edns
    }

    /// Bytes of the longest datagram for this client.
    pub fn udp_limit(&self) -> usize {
        self.edns.map_or(MIN_DATAGRAM, |edns| edns.datagram_limit())
    }

    /// Whether the same reply, [relayed](Query::relay), serves both queries.
    pub fn is_same(&self, other: &Query<'_>) -> bool {
        self.is_for(&other.question) && self.variant() == other.variant()
    }

    /// What the reply depends on besides the question: DO (RFC 4035 section 3.2.1) and CD (section 3.2.2).
    pub(crate) fn variant(&self) -> u8 {
        let dnssec_ok = self.edns.is_some_and(|edns| edns.dnssec_ok);
        u8::from(dnssec_ok) << 1 | u8::from(self.message.flags() & CD != 0)
    }

    fn is_for(&self, question: &Question<'_>) -> bool {
        let Question { name, kind, class } = self.question;
        question.kind == kind && question.class == class && question.name == name
    }

    /// Appends the same query for a resolver. Nothing in it identifies the client: its id is `id`, letters are
    /// lowercase, and of the extensions only DO is passed on (never a client's subnet, RFC 7871).
    pub fn encode(&self, id: u16, out: &mut Vec<u8>) {
        let dnssec_ok = self.variant() > 1;
        // AD asks whether the reply is authentic (RFC 6840 section 5.7): some of the clients that share the reply may
        // want to know.
        let flags = RD | AD | self.message.flags() & CD;
        push_fields(out, &[id, flags, 1, 0, 0, dnssec_ok.into()]);
        let question = out.len();
        out.extend_from_slice(self.question_bytes());
        // Bytes with a label's length have values below those of letters; type and class are left alone.
        if let Some((name, _)) = out.get_mut(question..).and_then(|bytes| bytes.split_last_chunk_mut::<4>()) {
            name.make_ascii_lowercase();
        }
        if dnssec_ok {
            push_opt(out, 0, true);
        }
    }

    /// Sets the case of each letter of a query's name from a bit. A server repeats the letters as they are, so that a
    /// blindly forged reply has more to guess (draft-vixie-dnsext-dns0x20).
    pub fn mix_case(query: &mut [u8], bits: &[u8; 32]) {
        let Ok(Query { head, .. }) = Query::parse(query) else { return };
        let name = HEADER..head.len() - 4;
        // Bytes with a label's length have values below those of letters.
        for (nth, byte) in query.get_mut(name).into_iter().flatten().enumerate() {
            let is_upper = bits.get(nth / 8).is_some_and(|bits| bits >> (nth % 8) & 1 != 0);
            if is_upper { byte.make_ascii_uppercase() } else { byte.make_ascii_lowercase() }
        }
    }

    /// Whether `reply` is a reply to this query that repeats its id and its question exactly.
    pub fn is_echoed_by(&self, reply: &[u8]) -> bool {
        self.is_answered_by(reply) && reply.get(HEADER..self.head.len()) == Some(self.question_bytes())
    }

    /// Whether `reply` is a reply to this query, with the same id. It may report a failure, even without repeating the
    /// question.
    pub fn is_answered_by(&self, reply: &[u8]) -> bool {
        Message::parse(reply).is_some_and(|reply| self.matches(&reply))
    }

    /// The same for a message that has been parsed.
    pub(super) fn matches(&self, reply: &Message<'_>) -> bool {
        // A server that did not understand the question may omit it.
        let is_bare = reply.is_reply() && reply.question().is_none() && reply.rcode() != 0;
        reply.id() == self.message.id() && (is_bare || self.is_question_of(reply))
    }

    /// Whether the message is a reply to this question that repeats it in the same number of bytes.
    pub(crate) fn is_question_of(&self, reply: &Message<'_>) -> bool {
        reply.is_reply()
            && reply.question_end() == self.head.len()
            && reply.question().is_some_and(|question| self.is_for(&question))
    }

    /// Appends a resolver's reply, adapted to the client: its id, its spelling of the name, its flags. A reply longer
    /// than `limit` loses all its records and is marked as truncated, so that the client asks again over TCP (RFC 2181
    /// section 9).
    ///
    /// False, and nothing appended, if the reply is malformed or answers another question.
    pub fn relay(&self, reply: &[u8], limit: usize, out: &mut Vec<u8>) -> bool {
        let Some(message) = Message::parse(reply).filter(|message| self.is_question_of(message)) else {
            return false;
        };
        let flags = self.reply_flags(message.flags() & SERVERS);
        if !message.is_truncated() {
            let Some((end, has_opt)) = extent(&message) else {
                return false;
            };
            let opt = if has_opt { None } else { self.edns };
            let opt_length = opt.map_or(0, |_| OPT_LENGTH);
            if end + opt_length <= limit {
                let [answers, authorities, extras] = message.counts();
                self.push_head(flags, [answers, authorities, extras + u16::from(opt.is_some())], out);
                out.extend_from_slice(reply.get(self.head.len()..end).unwrap_or_default());
                if let Some(edns) = opt {
                    push_opt(out, 0, edns.dnssec_ok);
                }
                return true;
            }
        }
        self.push_head(flags | TC, [0, 0, u16::from(self.edns.is_some())], out);
        if let Some(edns) = self.edns {
            push_opt(out, 0, edns.dnssec_ok);
        }
        true
    }

    /// The flags of a reply: `flags`, and those that follow from the client's.
    pub(crate) fn reply_flags(&self, flags: u16) -> u16 {
        let ours = self.message.flags();
        // RFC 6840 section 5.8: AD is only for clients that ask for it.
        let wants_ad = ours & AD != 0 || self.variant() > 1;
        let flags = if wants_ad { flags } else { flags & !AD };
        QR | RA | ours & (RD | CD) | flags
    }

    /// Appends header and question of a reply whose sections have `counts` records.
    pub(crate) fn push_head(&self, flags: u16, counts: [u16; 3], out: &mut Vec<u8>) {
        let [answers, authorities, extras] = counts;
        push_fields(out, &[self.message.id(), flags, 1, answers, authorities, extras]);
        out.extend_from_slice(self.question_bytes());
    }

    /// Name, type and class as the client wrote them.
    pub(crate) fn question_bytes(&self) -> &'a [u8] {
        self.head.get(HEADER..).unwrap_or_default()
    }

    /// Whether the class is IN.
    pub(crate) const fn is_internet(&self) -> bool {
        self.question.class == CLASS_IN
    }
}

/// The offset after the last record, and whether one of them is OPT; `None` if one is malformed.
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
mod tests;
