//! What can be wrong with a configuration.

use alloc::borrow::ToOwned;
use alloc::string::String;
use core::fmt::{self, Write};

use super::VARIABLE;
use super::options::ValueError;
use super::uci::{self, Position};
use crate::http::connect::RequestError;
use crate::upstream::choice::MAX_PROXIES;

/// Why there is no configuration. Holds no secret.
#[derive(Debug)]
pub struct ConfigError {
    file: String,
    origin: Origin,
    kind: ConfigErrorKind,
}

/// Where a value comes from, or an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// No one place.
    #[default]
    Everywhere,
    /// The table of options.
    Default,
    /// This place in the file.
    File(Position),
    /// The variable.
    Variable,
    /// The command line.
    Flag,
}

/// What is wrong.
#[derive(Debug)]
pub enum ConfigErrorKind {
    /// The file can't be read.
    Read(String),
    /// A file of networks or domains, of this option, can't be read, or isn't one: `PATH...: ...`.
    ListFile(&'static str, String),
    /// What a rule lacks, or has too much of.
    Rule(&'static str),
    /// A rule names this upstream, which isn't there.
    RuleUpstream(String),
    /// It has no UCI syntax.
    Syntax(uci::ErrorKind),
    /// It says that it is another package's.
    Package,
    /// No section has this type.
    SectionType(String),
    /// A section `tcp-over-http` isn't named `main`.
    MainName,
    /// An upstream has this name, which means something else.
    UpstreamName(&'static str),
    /// No option has this name.
    Option(String),
    /// An option's value isn't text.
    NotUtf8(&'static str),
    /// A list for an option that is none.
    NoList(&'static str),
    /// A value that an option doesn't take.
    Value {
        /// The option.
        option: &'static str,
        /// The value, unless it may be a secret.
        value: Option<String>,
        /// What it isn't.
        reason: ValueError,
    },
    /// An upstream of which no request can be made.
    Request(RequestError),
    /// An upstream without a host.
    NoHost,
    /// An upstream with half of its credentials.
    NoUsername,
    /// No upstream at all.
    NoUpstream,
    /// More upstreams than there can be.
    ManyUpstreams,
    /// Two upstreams have this name.
    SameName(String),
    /// Probes would come too often.
    ProbeInterval,
    /// Upstream connections would be captured.
    Loop,
    /// The forward path without the mark that it needs.
    Forward,
    /// Domains to resolve directly, and nobody to ask.
    NoDirectServer,
    /// A network has addresses of another one.
    Overlap {
        /// The option that has to give way.
        option: &'static str,
        /// The option that is as it is.
        other: &'static str,
    },
    /// An option is more than another, its limit.
    AboveLimit {
        /// The option that is too much.
        option: &'static str,
        /// The option that is the limit.
        limit: &'static str,
    },
}

/// What is wrong and the place to blame, before the file's name is known.
pub type Fault = (Origin, ConfigErrorKind);

impl ConfigError {
    /// Adds the file's name.
    pub fn new(file: &str, (origin, kind): Fault) -> Self {
        ConfigError { file: file.to_owned(), origin, kind }
    }

    /// Of the process: 2 if the command line is wrong, 1 if it's something else.
    pub fn exit_code(&self) -> u8 {
        if self.origin == Origin::Flag { 2 } else { 1 }
    }
}

/// `FILE:LINE:COLUMN: ...`, or where else it comes from.
impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.origin, &self.kind) {
            (Origin::Everywhere, ConfigErrorKind::Read(_)) => write!(f, "{}: ", self.file)?,
            (Origin::File(at), _) => write!(f, "{}:{at}: ", self.file)?,
            (Origin::Variable, _) => write!(f, "{VARIABLE}: ")?,
            (Origin::Flag, _) => f.write_str("command line: ")?,
            (Origin::Everywhere | Origin::Default, _) => {}
        }
        match &self.kind {
            ConfigErrorKind::Read(error) => error.fmt(f),
            ConfigErrorKind::ListFile(option, error) => write!(f, "{option}: {error}"),
            ConfigErrorKind::Rule(what) => write!(f, "rule: {what}"),
            ConfigErrorKind::RuleUpstream(name) => write!(f, "rule: there is no upstream '{name}'"),
            ConfigErrorKind::Syntax(kind) => kind.fmt(f),
            ConfigErrorKind::Package => f.write_str("another package's file"),
            ConfigErrorKind::SectionType(kind) => {
                write!(f, "unknown section type '{kind}' (there are tcp-over-http, upstream and rule)")
            }
            ConfigErrorKind::MainName => f.write_str("this section's name has to be 'main'"),
            ConfigErrorKind::UpstreamName(name) => write!(f, "an upstream can't be named '{name}'"),
            ConfigErrorKind::Option(name) => write!(f, "unknown option '{name}'"),
            ConfigErrorKind::NotUtf8(option) => write!(f, "{option}: not UTF-8"),
            ConfigErrorKind::NoList(option) => write!(f, "{option}: an option, not a list"),
            ConfigErrorKind::Value { option, value: Some(value), reason } => {
                write!(f, "{option}: '")?;
                // A terminal might act on control characters.
                for c in value.chars() {
                    f.write_char(if c.is_control() { '?' } else { c })?;
                }
                write!(f, "' {reason}")
            }
            ConfigErrorKind::Value { option, value: None, reason } => {
                write!(f, "{option}: the value {reason}")
            }
            ConfigErrorKind::NoHost => f.write_str("upstream without a host"),
            ConfigErrorKind::Request(error) => write!(f, "upstream: {error}"),
            ConfigErrorKind::NoUsername => f.write_str("upstream with a password and no username"),
            ConfigErrorKind::NoUpstream => {
                write!(f, "no upstream: {} names none, nor do --upstream and {VARIABLE}", self.file)
            }
            ConfigErrorKind::ManyUpstreams => write!(f, "more than {MAX_PROXIES} upstreams"),
            ConfigErrorKind::SameName(name) => write!(f, "two upstreams have the name '{name}'"),
            ConfigErrorKind::ProbeInterval => f.write_str("probe_interval: less than 30 seconds (0: none)"),
            ConfigErrorKind::Loop => f.write_str("mark: upstream connections would be captured without one"),
            ConfigErrorKind::Forward => f.write_str("path: 'forward' needs a mark"),
            ConfigErrorKind::NoDirectServer => f.write_str("direct_domain: needs a direct_server"),
            ConfigErrorKind::Overlap { option, other } => write!(f, "{option}: overlaps {other}"),
            ConfigErrorKind::AboveLimit { option, limit } => write!(f, "{option}: more than {limit}"),
        }
    }
}

impl core::error::Error for ConfigError {}
