//! An option: its name, the values it takes, its default.

use core::fmt;

use super::draft::Draft;
use super::values::{boolean, number, port};

/// An option of a section.
pub struct Spec {
    /// As in the file; a flag has `-` for `_`.
    pub name: &'static str,
    /// What values it takes and where they go.
    pub kind: Kind,
    /// As it would be in the file; empty = none.
    pub default: &'static str,
    /// Half a line.
    pub help: &'static str,
}

/// What values an option takes, and the function that stores one.
pub enum Kind {
    /// `1`, `on`, `true`, `yes`, `enabled` or their opposites, as OpenWrt's `config_get_bool` has them.
    Bool(fn(&mut Draft, bool)),
    /// Decimal, or hexadecimal after `0x`, from the first to the second.
    Number(u32, u32, fn(&mut Draft, u32)),
    /// The same, called a port.
    Port(fn(&mut Draft, u16)),
    /// One of these words; its index is stored.
    Choice(&'static [&'static str], fn(&mut Draft, usize)),
    /// Anything that the function takes.
    Text(Store),
    /// Any number of what the function takes.
    List(Store),
    /// As `Text`, and never shown.
    Secret(Store),
    /// As `List`, and never shown.
    SecretList(Store),
}

/// Checks a value and stores it, or says what it isn't.
type Store = fn(&mut Draft, &str) -> Result<(), &'static str>;

/// What is wrong with a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No boolean.
    Bool,
    /// Not within these bounds.
    Number(u32, u32),
    /// Not within 1-65535.
    Port,
    /// None of these.
    Choice(&'static [&'static str]),
    /// In words that continue "the value ...".
    Text(&'static str),
}

impl Spec {
    /// Stores one value.
    pub fn store(&self, into: &mut Draft, value: &str) -> Result<(), Reason> {
        match self.kind {
            Kind::Bool(set) => set(into, boolean(value).ok_or(Reason::Bool)?),
            Kind::Number(min, max, set) => {
                let number = number(value).filter(|number| (min..=max).contains(number));
                set(into, number.ok_or(Reason::Number(min, max))?);
            }
            Kind::Port(set) => set(into, port(value).ok_or(Reason::Port)?),
            Kind::Choice(words, set) => {
                let index = words.iter().position(|&word| word == value);
                set(into, index.ok_or(Reason::Choice(words))?);
            }
            Kind::Text(set) | Kind::List(set) | Kind::Secret(set) | Kind::SecretList(set) => {
                return set(into, value).map_err(Reason::Text);
            }
        }
        Ok(())
    }

    /// Whether it may be given more than once.
    pub fn is_list(&self) -> bool {
        matches!(self.kind, Kind::List(_) | Kind::SecretList(_))
    }

    /// Whether its values are kept out of messages.
    pub fn is_secret(&self) -> bool {
        matches!(self.kind, Kind::Secret(_) | Kind::SecretList(_))
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Bool => f.write_str("is not 0 or 1"),
            Reason::Number(min, max) => write!(f, "is not a number ({min}-{max})"),
            Reason::Port => f.write_str("is not a port (1-65535)"),
            Reason::Choice(words) => {
                f.write_str("is none of")?;
                words.iter().try_for_each(|word| write!(f, " {word}"))
            }
            Reason::Text(reason) => f.write_str(reason),
        }
    }
}
