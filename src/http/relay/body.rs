//! The body of a message (RFC 9112 sections 6 and 7): where it ends, and how much of it is a plain run of bytes.

use alloc::vec::Vec;

use super::Refusal;
use super::head::{Fields, Head, Kind, check, push};

/// The most digits of a chunk's size, so that it fits into 64 bits.
const MAX_DIGITS: u8 = 15;
/// The most bytes of a chunk's extensions.
const MAX_EXTENSION: u16 = 4096;

/// A body in transit.
#[derive(Clone, Debug)]
pub enum Body {
    /// This many bytes are left; [`ENDLESS`]: until the connection ends.
    Plain(u64),
    Chunked(Chunks),
}

const ENDLESS: u64 = u64::MAX;

/// The position in a chunked body.
#[derive(Clone, Debug)]
pub enum Chunks {
    /// Within a size, after this many digits.
    Size {
        size: u64,
        digits: u8,
    },
    /// After a size: this many bytes of extensions, which are ignored and not passed on.
    Extension {
        size: u64,
        length: u16,
    },
    /// After the CR of a size.
    SizeEnd(u64),
    /// This many bytes of a chunk are left.
    Data(u64),
    /// After a chunk's data.
    DataEnd,
    /// After the CR at its end.
    DataEndLf,
    Trailers(Head),
    Over,
}

impl Body {
    /// A body that lasts until the connection ends.
    pub const fn endless() -> Self {
        Self::Plain(ENDLESS)
    }

    /// A chunked body.
    pub const fn chunked() -> Self {
        Self::Chunked(Chunks::Size { size: 0, digits: 0 })
    }

    /// Whether it ends with the connection.
    pub const fn is_endless(&self) -> bool {
        matches!(self, Self::Plain(ENDLESS))
    }

    /// Whether its last byte has passed.
    pub const fn is_over(&self) -> bool {
        matches!(self, Self::Plain(0) | Self::Chunked(Chunks::Over))
    }

    /// How many of the next bytes pass unchanged.
    pub const fn run(&self) -> u64 {
        match self {
            Self::Plain(left) | Self::Chunked(Chunks::Data(left)) => *left,
            Self::Chunked(_) => 0,
        }
    }

    /// Notes that `length` bytes of the run have passed.
    pub fn pass(&mut self, length: u64) {
        match self {
            Self::Plain(ENDLESS) => {}
            Self::Plain(left) => *left = left.saturating_sub(length),
            Self::Chunked(Chunks::Data(left)) if *left > length => *left -= length,
            Self::Chunked(Chunks::Data(_)) => *self = Self::Chunked(Chunks::DataEnd),
            Self::Chunked(_) => {}
        }
    }

    /// Takes bytes that are not part of a run, and appends what the other side gets. Returns how many it took: up to
    /// the next run, or to the end.
    pub fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<usize, Refusal> {
        let mut taken = 0;
        while let Self::Chunked(chunks) = self
            && !matches!(chunks, Chunks::Data(_) | Chunks::Over)
            && let Some(&byte) = bytes.get(taken)
        {
            chunks.step(byte, out)?;
            taken += 1;
        }
        Ok(taken)
    }
}

impl Chunks {
    fn step(&mut self, byte: u8, out: &mut Vec<u8>) -> Result<(), Refusal> {
        *self = match *self {
            Self::Size { size, digits } if byte.is_ascii_hexdigit() => {
                check(digits < MAX_DIGITS)?;
                out.push(byte);
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                Self::Size { size: size << 4 | u64::from(digit), digits: digits + 1 }
            }
            Self::Size { digits: 0, .. } => return Err(Refusal::BadRequest),
            Self::Size { size, .. } | Self::Extension { size, .. } if byte == b'\r' => Self::SizeEnd(size),
            Self::Size { size, .. } => {
                check(matches!(byte, b';' | b' ' | b'\t'))?;
                Self::Extension { size, length: 0 }
            }
            Self::Extension { size, length } => {
                check(length < MAX_EXTENSION && (byte == b'\t' || !byte.is_ascii_control()))?;
                Self::Extension { size, length: length + 1 }
            }
            Self::SizeEnd(size) => {
                check(byte == b'\n')?;
                push(out, &[b"\r\n"]);
                if size == 0 { Self::Trailers(Head::new(Kind::Trailers)) } else { Self::Data(size) }
            }
            Self::DataEnd => {
                check(byte == b'\r')?;
                Self::DataEndLf
            }
            Self::DataEndLf => {
                check(byte == b'\n')?;
                push(out, &[b"\r\n"]);
                Self::Size { size: 0, digits: 0 }
            }
            Self::Trailers(ref mut head) => {
                head.feed(&[byte])?;
                if !head.is_whole() {
                    return Ok(());
                }
                // Fields that frame a message or route it must not be here (RFC 9110 section 6.5.1).
                let fields = Fields::read(head)?;
                check(fields.length.is_none())?;
                fields.write(head, true, &[], out);
                push(out, &[b"\r\n"]);
                Self::Over
            }
            Self::Data(_) | Self::Over => return Ok(()),
        };
        Ok(())
    }
}
