//! What the file, the environment and the flags say, made into one `Config`.
//!
//! Values are gathered as text first, each with where it came from: a flag replaces the variable,
//! which replaces the file, and a complaint can still name the line that is to blame.

use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::Path;

use super::error::{ConfigError, Fault, Origin, Problem, ReadError};
use super::net_file;
use super::options::Spec;
use super::sections::{Sections, Values};
use super::table::{self, Draft};
use super::{Config, Given, IpNet};
use crate::kernel::sysctl;

/// The file that is read if it exists and no other is named.
const DEFAULT_FILE: &str = "/etc/config/tcp-over-http";

/// The variable with a list of upstreams, separated by spaces.
pub const VARIABLE: &str = "TCP_OVER_HTTP_UPSTREAM";

/// No sensible file is longer; a device file would never end.
const MAX_FILE: u64 = 1 << 20;

/// Who is asked through the proxy if nobody else is named.
const DNS_SERVERS: [[u8; 4]; 2] = [[1, 1, 1, 1], [9, 9, 9, 9]];

/// Where to look for a configuration: the command line, as far as it concerns that.
#[derive(Default)]
pub struct Settings {
    /// `--config`.
    pub file: Option<String>,
    /// `--leave-blocked`.
    pub leave_blocked: bool,
    /// The other flags: names of options with their values.
    flags: Vec<(&'static str, String)>,
    /// The variable.
    upstreams: Option<String>,
}

impl Settings {
    /// With what the variable says.
    pub fn new(upstreams: Option<String>) -> Self {
        Settings { upstreams, ..Settings::default() }
    }

    /// Takes a flag. The last one counts, unless the option is a list.
    pub fn give(&mut self, spec: &Spec, value: String) {
        if !spec.is_list() {
            self.flags.retain(|(option, _)| *option != spec.name);
        }
        self.flags.push((spec.name, value));
    }

    /// Reads the file and puts everything together. Every use of it reads the file anew.
    pub fn load(&self) -> Result<Config, ConfigError> {
        let result = match self.read() {
            Ok(text) => self.resolve(text.as_deref()),
            Err(problem) => Err((Origin::Everywhere, problem)),
        };
        result.map_err(|fault| ConfigError::new(self.file_name(), fault))
    }

    /// What can be read of it, whatever is wrong with the rest, and without the upstreams: for those who don't
    /// run the daemon but have to know its device, its rules and its socket.
    pub fn load_readable(&self) -> Config {
        let mut sections = Sections::default();
        if let Ok(Some(text)) = self.read() {
            _ = sections.read(&text);
        }
        let main = &mut sections.main;
        self.override_values(main);
        let mut draft = Draft::default();
        main.store_valid(table::MAIN, &mut draft);
        for path in std::mem::take(&mut draft.bypass_files) {
            _ = net_file::read(&path, &mut draft.config.bypass);
        }
        finish(&mut draft);
        draft.config
    }

    /// The file that `load` reads, or would if it existed.
    pub fn file_name(&self) -> &str {
        self.file.as_deref().unwrap_or(DEFAULT_FILE)
    }

    /// Whether that file exists.
    pub fn has_file(&self) -> bool {
        Path::new(self.file_name()).exists()
    }

    /// `None` if there is no file and none was named.
    fn read(&self) -> Result<Option<Vec<u8>>, Problem> {
        match read_file(self.file_name()) {
            Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::NotFound && self.file.is_none() => {
                Ok(None)
            }
            text => text.map(Some).map_err(Problem::Read),
        }
    }

    fn resolve(&self, file: Option<&[u8]>) -> Result<Config, Fault> {
        let mut sections = Sections::default();
        if let Some(text) = file {
            sections.read(text)?;
        }
        let main = &mut sections.main;
        self.override_values(main);
        let mut draft = Draft::default();
        main.store(table::MAIN, &mut draft)?;
        let in_file = matches!(main.origin("upstream"), Origin::Default | Origin::File(_));
        for section in &sections.upstreams {
            // Checked also if it isn't used.
            let upstream = section.resolve(&mut draft)?;
            draft.config.upstreams.extend(upstream.filter(|_| in_file));
        }
        let files = std::mem::take(&mut draft.bypass_files);
        for path in &files {
            let read = net_file::read(path, &mut draft.config.bypass);
            read.map_err(|error| (main.origin("bypass_file"), Problem::NetFile(error)))?;
        }
        finish(&mut draft);
        check(main, &mut draft.config)?;
        draft.config.given = Given(sections.main.into_given());
        Ok(draft.config)
    }

    /// Puts the variable's and the flags' values in place of the file's.
    fn override_values(&self, main: &mut Values) {
        for (index, url) in self.upstreams.iter().flat_map(|urls| urls.split_ascii_whitespace()).enumerate() {
            if index == 0 {
                main.clear("upstream");
            }
            main.add("upstream", url.to_owned(), Origin::Variable);
        }
        for (option, _) in &self.flags {
            main.clear(option);
        }
        for (option, text) in &self.flags {
            main.add(option, text.clone(), Origin::Flag);
        }
    }
}

/// Reads a whole file.
pub fn read_file(path: &str) -> Result<Vec<u8>, ReadError> {
    let mut text = Vec::new();
    File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(ReadError::TooLong);
    }
    Ok(text)
}

/// What one option says of others.
fn finish(draft: &mut Draft) {
    if !draft.ipv6 || !sysctl::has_ipv6() {
        draft.config.address6 = None;
        draft.config.dns.fakeip_range6 = None;
        draft.config.routes.retain(|net| matches!(net, IpNet::V4(_)));
        draft.config.bypass.retain(|net| matches!(net, IpNet::V4(_)));
    }
}

/// Checks what takes more than one option. A default gives way.
fn check(main: &Values, config: &mut Config) -> Result<(), Fault> {
    if config.upstreams.is_empty() {
        return Err((Origin::Everywhere, Problem::NoUpstream));
    }
    if config.mark == 0 && config.captures() {
        return Err((main.origin("mark"), Problem::Loop));
    }
    let (flows, dials) = (config.max_flows, config.max_dials);
    config.max_dials = at_most(main, "max_dials", dials, "max_flows", flows)?;
    let (dials, client) = (config.max_dials, config.max_dials_per_client);
    config.max_dials_per_client = at_most(main, "max_dials_per_client", client, "max_dials", dials)?;
    check_dns(main, config)
}

fn check_dns(main: &Values, config: &mut Config) -> Result<(), Fault> {
    let dns = &mut config.dns;
    if dns.servers.is_empty() {
        dns.servers = DNS_SERVERS.map(|ip| SocketAddr::from((ip, 53))).to_vec();
    }
    if !dns.direct_domains.is_empty() && dns.direct_servers.is_empty() {
        return Err((main.origin("direct_domain"), Problem::NoDirectServer));
    }
    let own = [Some(IpNet::V4(config.address)), config.address6.map(IpNet::V6)];
    for range in dns.fake_ranges() {
        let (option, other) = match range {
            IpNet::V4(_) => ("fakeip_range", "address"),
            IpNet::V6(_) => ("fakeip_range6", "address6"),
        };
        if own.iter().flatten().any(|own| own.overlaps(range)) {
            return Err((main.origin(option), Problem::Overlap { option, other }));
        }
    }
    let most = u16::try_from((1u32 << (32 - dns.fakeip_range.prefix)) - 2).unwrap_or(u16::MAX);
    dns.fakeip_names = at_most(main, "fakeip_names", dns.fakeip_names, "fakeip_range", most)?;
    Ok(())
}

fn at_most(
    main: &Values,
    option: &'static str,
    value: u16,
    limit: &'static str,
    most: u16,
) -> Result<u16, Fault> {
    match main.origin(option) {
        Origin::Default => Ok(value.min(most)),
        _ if value <= most => Ok(value),
        origin => Err((origin, Problem::AboveLimit { option, limit })),
    }
}

#[cfg(test)]
impl Config {
    /// For tests: what a file says.
    pub fn from_uci(file: &str) -> Result<Config, ConfigError> {
        let result = Settings::default().resolve(Some(file.as_bytes()));
        result.map_err(|fault| ConfigError::new("FILE", fault))
    }
}

#[cfg(test)]
mod tests;
