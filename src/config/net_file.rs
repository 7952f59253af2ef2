//! A file of networks, as lists of a country's or a provider's are: one a line, `#` begins a comment.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::values::cidr;
use crate::net::IpNet;

/// Adds the networks in `text`, which was read from `path`.
///
/// # Errors
/// `PATH:LINE: the line ...`
pub fn parse(path: &str, text: &[u8], nets: &mut Vec<IpNet>) -> Result<(), String> {
    for (index, line) in text.split(|&byte| byte == b'\n').enumerate() {
        let line = line.split(|&byte| byte == b'#').next().unwrap_or_default().trim_ascii();
        if line.is_empty() {
            continue;
        }
        let net = str::from_utf8(line).map_err(|_| "is not UTF-8").and_then(cidr);
        nets.push(net.map_err(|reason| format!("{path}:{}: the line {reason}", index + 1))?);
    }
    Ok(())
}
