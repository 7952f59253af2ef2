//! The sources of the configuration: the file, the environment and the flags.

use std::io;
use std::path::Path;

use tcp_over_http::config::{Config, ConfigError, Overrides, Reading, Spec};

use crate::kernel::sysctl;
use crate::sys::{self, MAX_TEXT};

/// The file that is read if it exists and the command line names no other.
pub const DEFAULT_FILE: &str = "/etc/config/tcp-over-http";

/// The configuration of fw4.
const FIREWALL: &str = "/etc/config/firewall";

/// No sensible file is longer; a device file would never end.
const MAX_FILE: u64 = 1 << 20;

/// The sources, as the command line and the environment name them.
#[derive(Default)]
pub struct Sources {
    /// `--config`.
    pub file: Option<String>,
    overrides: Overrides,
}

impl Sources {
    /// Sources with this value of the environment variable.
    pub fn new(variable: Option<String>) -> Self {
        Sources { overrides: Overrides::new(variable), ..Sources::default() }
    }

    /// Takes a flag. The last one counts, unless the option is a list.
    pub fn give(&mut self, spec: &'static Spec, value: String) {
        self.overrides.give(spec, value);
    }

    /// Reads the configuration; the file is read each time.
    pub fn load(&self) -> Result<Config, ConfigError> {
        let config = self.read().finish(sysctl::has_ipv6());
        config.map_err(|fault| ConfigError::new(self.file_name(), fault))
    }

    /// The valid part of the configuration, without the upstreams' sections: for commands that don't run the daemon
    /// but need its device, its rules and its socket.
    pub fn load_readable(&self) -> Config {
        self.read().finish_lenient(sysctl::has_ipv6())
    }

    /// The file that `load` reads, or would if it existed.
    pub fn file_name(&self) -> &str {
        self.file.as_deref().unwrap_or(DEFAULT_FILE)
    }

    /// Whether that file exists.
    pub fn has_file(&self) -> bool {
        Path::new(self.file_name()).exists()
    }

    fn read(&self) -> Reading {
        let file = match sys::read_file(self.file_name(), MAX_FILE) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.file.is_none() => Ok(None),
            text => text.map(Some).map_err(|error| error.to_string()),
        };
        let mut reading =
            Reading::new(file.as_ref().map(Option::as_deref).map_err(Clone::clone), &self.overrides);
        reading.read_files(&|path| sys::read_file(path, MAX_TEXT).map_err(|error| error.to_string()));
        reading
    }
}

/// A warning about something that is allowed, but may not work as intended.
pub fn warning(config: &Config) -> Option<String> {
    // Without fw4 there is no such file, and zones don't matter.
    let firewall = sys::read_file(FIREWALL, MAX_FILE).ok();
    if let Some(zone) = firewall.as_ref().and_then(|text| config.missing_zone(text)) {
        return Some(format!(
            "zone: the firewall has no zone '{zone}', so nobody's connections get to {}: set zone to the one of the uplink",
            config.tun
        ));
    }
    let most = config.too_few_ports(&sysctl::local_ports())?;
    let max = config.max_flows;
    Some(format!("max_flows {max}: only {most} connections to the proxies, for net.ipv4.ip_local_port_range"))
}

#[cfg(test)]
mod tests;
