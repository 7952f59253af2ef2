//! The layout of a message (RFC 1035 section 4).

use super::header::{HEADER, OPCODE, QR, RCODE, TC};
use super::name::NameRef;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The class of the Internet.
pub(crate) const CLASS_IN: u16 = 1;

/// The type of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind(pub u16);

impl Kind {
    /// An IPv4 address.
    pub const A: Self = Self(1);
    /// The name that this one is an alias of.
    pub const CNAME: Self = Self(5);
    /// The start of a zone; its last field says how long an absence may be cached (RFC 2308 section 4).
    pub const SOA: Self = Self(6);
    /// The name of an address.
    pub const PTR: Self = Self(12);
    /// The minimal answer to [`Kind::ANY`] (RFC 8482 section 4.2).
    pub const HINFO: Self = Self(13);
    /// An IPv6 address (RFC 3596).
    pub const AAAA: Self = Self(28);
    /// Not a record but the message's extensions (RFC 6891 section 6.1).
    pub const OPT: Self = Self(41);
    /// Where a service is, and with which protocols (RFC 9460).
    pub const SVCB: Self = Self(64);
    /// The same for HTTP (RFC 9460 section 9).
    pub const HTTPS: Self = Self(65);
    /// All records of the name.
    pub const ANY: Self = Self(255);
}

/// A message whose header and question are well-formed. Records are checked as they are read, since a truncated message
/// may end inside one.
#[derive(Clone, Copy)]
pub struct Message<'a> {
    bytes: &'a [u8],
    question: Option<Question<'a>>,
    /// Offset of the first record.
    records: usize,
}

/// What a message asks, or replies to.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The name asked for.
    pub name: NameRef<'a>,
    /// The type asked for.
    pub kind: Kind,
    /// 1 is the Internet.
    pub class: u16,
}

impl<'a> Message<'a> {
    /// Reads the header and the question. `None` if they are malformed or if there is more than one question.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut message = Self { bytes, question: None, records: HEADER };
        bytes.get(..HEADER)?;
        match message.field(4) {
            0 => {}
            1 => {
                let (name, at) = NameRef::parse(bytes, HEADER)?;
                let (kind, class) = (Kind(u16_at(bytes, at)?), u16_at(bytes, at + 2)?);
                message.question = Some(Question { name, kind, class });
                message.records = at + 4;
            }
            _ => return None,
        }
        Some(message)
    }

    /// The offset of the end of the question.
    pub(crate) const fn question_end(&self) -> usize {
        self.records
    }

    /// The id, which a reply repeats from its query.
    pub fn id(&self) -> u16 {
        self.field(0)
    }

    pub(crate) fn flags(&self) -> u16 {
        self.field(2)
    }

    /// Whether this is a reply to a standard query (QR and OPCODE).
    pub fn is_reply(&self) -> bool {
        self.flags() & (QR | OPCODE) == QR
    }

    /// Whether the rest did not fit (TC).
    pub fn is_truncated(&self) -> bool {
        self.flags() & TC != 0
    }

    /// The response code; 0 is success.
    pub fn rcode(&self) -> u8 {
        (self.flags() & RCODE) as u8
    }

    /// The question, if there is one.
    pub fn question(&self) -> Option<Question<'a>> {
        self.question
    }

    /// The records of the answer section; the last is `None` if it is malformed.
    pub fn answers(&self) -> Records<'a> {
        Records { bytes: self.bytes, at: self.records, left: self.field(6).into() }
    }

    /// The records of all sections; the last is `None` if it is malformed.
    pub(crate) fn records(&self) -> Records<'a> {
        let left = self.counts().into_iter().map(u32::from).sum();
        Records { bytes: self.bytes, at: self.records, left }
    }

    /// How many records the answer, authority and additional sections have.
    pub(crate) fn counts(&self) -> [u16; 3] {
        [6, 8, 10].map(|at| self.field(at))
    }

    /// A field of the header, whose presence `parse` has checked.
    fn field(&self, at: usize) -> u16 {
        u16_at(self.bytes, at).unwrap_or_default()
    }
}

/// An iterator over the records of one or more sections.
#[derive(Clone)]
pub struct Records<'a> {
    bytes: &'a [u8],
    at: usize,
    left: u32,
}

impl<'a> Iterator for Records<'a> {
    /// `None` inside: the record is malformed; the iteration ends there.
    type Item = Option<Record<'a>>;

    fn next(&mut self) -> Option<Option<Record<'a>>> {
        self.left = self.left.checked_sub(1)?;
        let record = Record::parse(self.bytes, self.at);
        match &record {
            Some(record) => self.at = record.data_at + record.data.len(),
            None => self.left = 0,
        }
        Some(record)
    }
}

/// A resource record.
#[derive(Clone, Copy)]
pub struct Record<'a> {
    /// The name that the record belongs to.
    pub name: NameRef<'a>,
    /// Its type.
    pub kind: Kind,
    /// 1 is the Internet.
    pub class: u16,
    /// Seconds that the record may be cached.
    pub ttl: u32,
    /// The data, as received.
    pub data: &'a [u8],
    bytes: &'a [u8],
    /// Offset of the data in the message.
    pub(crate) data_at: usize,
}

impl<'a> Record<'a> {
    pub(crate) fn parse(bytes: &'a [u8], at: usize) -> Option<Self> {
        let (name, at) = NameRef::parse(bytes, at)?;
        let fixed: &[u8; 10] = bytes.get(at..)?.first_chunk()?;
        let &[k0, k1, c0, c1, t0, t1, t2, t3, l0, l1] = fixed;
        let data_at = at + fixed.len();
        // RFC 2181 section 8: a TTL with the top bit set counts as 0.
        let ttl = u32::try_from(i32::from_be_bytes([t0, t1, t2, t3])).unwrap_or(0);
        Some(Self {
            name,
            kind: Kind(u16::from_be_bytes([k0, k1])),
            class: u16::from_be_bytes([c0, c1]),
            ttl,
            data: bytes.get(data_at..)?.get(..usize::from(u16::from_be_bytes([l0, l1])))?,
            bytes,
            data_at,
        })
    }

    /// The address of an A or AAAA record; `None` for other types and wrong lengths.
    pub fn ip(&self) -> Option<IpAddr> {
        match self.kind {
            Kind::A => Some(Ipv4Addr::from(<[u8; 4]>::try_from(self.data).ok()?).into()),
            Kind::AAAA => Some(Ipv6Addr::from(<[u8; 16]>::try_from(self.data).ok()?).into()),
            _ => None,
        }
    }

    /// The name in a CNAME record; `None` for other types and malformed names.
    pub fn cname(&self) -> Option<NameRef<'a>> {
        let (name, end) = NameRef::parse(self.bytes, self.data_at)?;
        (self.kind == Kind::CNAME && end == self.data_at + self.data.len()).then_some(name)
    }
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|&pair| u16::from_be_bytes(pair))
}
