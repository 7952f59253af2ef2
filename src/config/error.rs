//! What is wrong with a configuration, and where.

use alloc::borrow::ToOwned;
use alloc::string::String;
use core::fmt;

use super::VARIABLE;
use super::uci::Position;

/// Why there is no configuration. Never contains a secret.
#[derive(Debug)]
pub struct ConfigError {
    file: String,
    fault: Fault,
}

/// Where a value or an error comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// No single place.
    #[default]
    Everywhere,
    /// The table of options.
    Default,
    /// The file as a whole.
    WholeFile,
    /// This place in the file.
    File(Position),
    /// The variable.
    Variable,
    /// The command line.
    Flag,
}

/// The place to blame and what is wrong with it, before the file's name is known.
pub type Fault = (Origin, String);

impl ConfigError {
    /// Adds the file's name.
    pub fn new(file: &str, fault: Fault) -> Self {
        ConfigError { file: file.to_owned(), fault }
    }

    /// The exit code of the process: 2 if the command line is wrong, otherwise 1.
    pub fn exit_code(&self) -> u8 {
        if self.fault.0 == Origin::Flag { 2 } else { 1 }
    }
}

/// `FILE:LINE:COLUMN: ...`, or where else it comes from.
impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fault.0 {
            Origin::WholeFile => write!(f, "{}: ", self.file)?,
            Origin::File(at) => write!(f, "{}:{at}: ", self.file)?,
            Origin::Variable => write!(f, "{VARIABLE}: ")?,
            Origin::Flag => f.write_str("command line: ")?,
            Origin::Everywhere | Origin::Default => {}
        }
        f.write_str(&self.fault.1)
    }
}

impl core::error::Error for ConfigError {}
