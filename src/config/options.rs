//! What an option is: its name, the values it takes, its default.

use alloc::format;
use alloc::string::String;
use core::fmt;

use super::draft::Draft;
use super::values::{boolean, number, port};

/// An option of a section.
pub struct Spec {
    /// As in the file; a flag has `-` for `_`.
    pub name: &'static str,
    /// As it would be in the file, the items of a list separated by spaces; empty = none.
    pub default: &'static str,
    /// What it means, in one line.
    pub help: &'static str,
    /// Whether a running daemon applies a change; otherwise it restarts.
    pub live: bool,
    /// What values it takes and where they go.
    pub value: ValueType,
}

/// What values an option takes, and the function that stores one.
pub enum ValueType {
    /// `1`, `on`, `true`, `yes`, `enabled` or their opposites, as OpenWrt's `config_get_bool` reads them.
    Bool(fn(&mut Draft, bool)),
    /// Decimal, or hexadecimal after `0x`; the first two fields are the smallest and the largest value.
    Number(u32, u32, Unit, fn(&mut Draft, u32)),
    /// 1-65535, decimal.
    Port(fn(&mut Draft, u16)),
    /// One of these words; the function gets its index.
    Choice(&'static [&'static str], fn(&mut Draft, usize)),
    /// Anything that the function takes.
    Text(Store),
    /// Any number of values that the function takes.
    List(Store),
    /// Like `Text`, but never shown.
    Secret(Store),
    /// Like `List`, but never shown.
    SecretList(Store),
}

/// Checks and stores a value, or says what is wrong with it.
type Store = fn(&mut Draft, &str) -> Result<(), &'static str>;

/// What a number counts.
#[derive(Clone, Copy)]
pub enum Unit {
    /// What the option's name says, or nothing.
    One,
    /// Seconds.
    Seconds,
    /// Milliseconds.
    Millis,
    /// Bytes.
    Bytes,
    /// 1024 bytes.
    Kib,
}

impl Spec {
    /// Stores one value. An error says what is wrong, as a continuation of "the value ...".
    pub fn store(&self, into: &mut Draft, value: &str) -> Result<(), String> {
        match self.value {
            ValueType::Bool(set) => set(into, boolean(value).ok_or("is not 0 or 1")?),
            ValueType::Number(min, max, _, set) => {
                let number = number(value).filter(|number| (min..=max).contains(number));
                set(into, number.ok_or_else(|| format!("is not a number ({min}-{max})"))?);
            }
            ValueType::Port(set) => set(into, port(value).ok_or("is not a port (1-65535)")?),
            ValueType::Choice(words, set) => {
                let place = words.iter().position(|&word| word == value);
                set(into, place.ok_or_else(|| ["is none of ", &words.join(" ")].concat())?);
            }
            ValueType::Text(set)
            | ValueType::List(set)
            | ValueType::Secret(set)
            | ValueType::SecretList(set) => set(into, value)?,
        }
        Ok(())
    }

    /// Whether it may be given more than once.
    pub fn is_list(&self) -> bool {
        matches!(self.value, ValueType::List(_) | ValueType::SecretList(_))
    }

    /// Whether its values are kept out of messages.
    pub fn is_secret(&self) -> bool {
        matches!(self.value, ValueType::Secret(_) | ValueType::SecretList(_))
    }
}

/// What to write in place of a value: `0|1`, `1-300`, `honest|early`, `VALUE`.
impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ValueType::Bool(_) => f.write_str("0|1"),
            ValueType::Number(min, max, ..) => write!(f, "{min}-{max}"),
            ValueType::Port(_) => f.write_str("PORT"),
            ValueType::Choice(words, _) => {
                for (index, word) in words.iter().enumerate() {
                    f.write_str(if index == 0 { "" } else { "|" })?;
                    f.write_str(word)?;
                }
                Ok(())
            }
            _ => f.write_str("VALUE"),
        }
    }
}

/// Its name; empty for [`Unit::One`].
impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unit::One => "",
            Unit::Seconds => "seconds",
            Unit::Millis => "ms",
            Unit::Bytes => "bytes",
            Unit::Kib => "KiB",
        })
    }
}
