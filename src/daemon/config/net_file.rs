//! A file of networks, as lists of a country's or a provider's are: one a line, `#` begins a comment.

use std::fmt;

use super::IpNet;
use super::error::ReadError;
use super::settings::read_file;
use super::values::cidr;

/// Adds the networks of a file.
pub fn read(path: &str, nets: &mut Vec<IpNet>) -> Result<(), NetFileError> {
    let fail = |problem| NetFileError { path: path.to_owned(), problem };
    let text = read_file(path).map_err(|error| fail(Problem::Read(error)))?;
    for (index, line) in text.split(|&byte| byte == b'\n').enumerate() {
        let line = line.split(|&byte| byte == b'#').next().unwrap_or_default().trim_ascii();
        if line.is_empty() {
            continue;
        }
        let net = str::from_utf8(line).map_err(|_| "is not UTF-8").and_then(cidr);
        nets.push(net.map_err(|reason| fail(Problem::Line(index + 1, reason)))?);
    }
    Ok(())
}

/// What is wrong with such a file.
#[derive(Debug)]
pub struct NetFileError {
    path: String,
    problem: Problem,
}

#[derive(Debug)]
enum Problem {
    Read(ReadError),
    /// Number of the line, from 1, and what it isn't.
    Line(usize, &'static str),
}

impl fmt::Display for NetFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.problem {
            Problem::Read(error) => write!(f, "{}: {error}", self.path),
            Problem::Line(number, reason) => write!(f, "{}:{number}: the line {reason}", self.path),
        }
    }
}
