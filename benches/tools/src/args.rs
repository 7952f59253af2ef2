//! Flags of the form `--name value`.

use std::io;
use std::net::SocketAddr;
use std::str::FromStr;

/// The flags of a command. A flag that is followed by another one, or by nothing, is just on.
pub struct Args(Vec<(String, Option<String>)>);

impl Args {
    /// Takes the arguments apart.
    ///
    /// # Errors
    /// If an argument is no flag and no flag's value.
    pub fn parse(args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut flags: Vec<(String, Option<String>)> = Vec::new();
        for arg in args {
            match (arg.strip_prefix("--"), flags.last_mut()) {
                (Some(name), _) => flags.push((name.to_owned(), None)),
                (None, Some((_, value @ None))) => *value = Some(arg),
                _ => return Err(format!("what is {arg}?")),
            }
        }
        Ok(Self(flags))
    }

    /// Whether a flag is there.
    pub fn is_on(&self, name: &str) -> bool {
        self.0.iter().any(|(flag, _)| flag == name)
    }

    /// The value of a flag, if it is there.
    ///
    /// # Errors
    /// If the value is not what it has to be.
    pub fn value<T: FromStr>(&self, name: &str) -> io::Result<Option<T>> {
        let Some((_, value)) = self.0.iter().find(|(flag, _)| flag == name) else {
            return Ok(None);
        };
        let parsed = value.as_deref().and_then(|value| value.parse().ok());
        parsed.map(Some).ok_or_else(|| io::Error::other(format!("--{name} has no value of its kind")))
    }

    /// The value of a flag, or `default`.
    ///
    /// # Errors
    /// If the value is not what it has to be.
    pub fn number<T: FromStr>(&self, name: &str, default: T) -> io::Result<T> {
        Ok(self.value(name)?.unwrap_or(default))
    }

    /// An address that has to be there.
    ///
    /// # Errors
    /// If it is not there, or no address.
    pub fn address(&self, name: &str) -> io::Result<SocketAddr> {
        self.value(name)?.ok_or_else(|| io::Error::other(format!("--{name} is missing")))
    }
}
