//! From a file, the environment and the flags to a [`Config`], in steps: the caller reads the files.
//!
//! Values are gathered as text first, each with where it came from: a flag replaces the variable,
//! which replaces the file, and an error can still name the line that is to blame.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::mem;
use core::net::SocketAddr;

use super::draft::Draft;
use super::error::{Fault, Origin, Problem};
use super::net_file;
use super::options::Spec;
use super::sections::{Sections, Values};
use super::table;
use super::{Config, Given};
use crate::dns::PORT;
use crate::net::IpNet;

/// Resolvers asked through the proxy if none is configured.
const DNS_SERVERS: [[u8; 4]; 2] = [[1, 1, 1, 1], [9, 9, 9, 9]];

/// What is given besides the file.
#[derive(Default)]
pub struct Overrides {
    variable: Option<String>,
    /// Options with their values, in order.
    flags: Vec<(&'static str, String)>,
}

impl Overrides {
    /// With the value of [`VARIABLE`](super::VARIABLE): URLs separated by spaces.
    pub fn new(variable: Option<String>) -> Self {
        Self { variable, flags: Vec::new() }
    }

    /// Takes a flag. The last one counts, unless the option is a list.
    pub fn give(&mut self, spec: &Spec, value: String) {
        if !spec.is_list() {
            self.flags.retain(|(option, _)| *option != spec.name);
        }
        self.flags.push((spec.name, value));
    }

    /// Puts the variable's and the flags' values in place of the file's.
    fn apply(&self, main: &mut Values) {
        for (index, url) in self.variable.iter().flat_map(|urls| urls.split_ascii_whitespace()).enumerate() {
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

/// A configuration whose values have been read; the files that it names have not.
pub struct Reading {
    main: Values,
    draft: Draft,
}

impl Reading {
    /// Reads a file, or none.
    ///
    /// # Errors
    /// The first value that is wrong.
    pub fn new(file: Option<&[u8]>, overrides: &Overrides) -> Result<Self, Fault> {
        let mut sections = Sections::default();
        if let Some(text) = file {
            sections.read(text)?;
        }
        let Sections { mut main, upstreams } = sections;
        overrides.apply(&mut main);
        let mut draft = Draft::default();
        main.store(table::MAIN, &mut draft)?;
        let in_file = matches!(main.origin("upstream"), Origin::Default | Origin::File(_));
        for section in &upstreams {
            // Checked even if unused.
            let upstream = section.resolve(&mut draft)?;
            draft.config.upstreams.extend(upstream.filter(|_| in_file));
        }
        Ok(Self { main, draft })
    }

    /// The values of the main section that are valid, whatever is wrong with the rest.
    pub fn lenient(file: Option<&[u8]>, overrides: &Overrides) -> Self {
        let mut sections = Sections::default();
        if let Some(text) = file {
            _ = sections.read(text);
        }
        let mut main = sections.main;
        overrides.apply(&mut main);
        let mut draft = Draft::default();
        main.store_valid(table::MAIN, &mut draft);
        Self { main, draft }
    }

    /// The paths of `bypass_file` that have yet to be [added](Self::add_networks).
    pub fn take_bypass_files(&mut self) -> Vec<String> {
        mem::take(&mut self.draft.bypass_files)
    }

    /// Adds the networks in a `bypass_file`, or says why it could not be read.
    ///
    /// # Errors
    /// The first line that is no network.
    pub fn add_networks(&mut self, path: &str, text: Result<&[u8], String>) -> Result<(), Fault> {
        let nets = &mut self.draft.config.bypass;
        let read = match text {
            Ok(text) => net_file::parse(path, text, nets),
            Err(error) => Err(format!("{path}: {error}")),
        };
        read.map_err(|error| (self.main.origin("bypass_file"), Problem::NetFile(error)))
    }

    /// Checks what takes more than one option. `has_ipv6`: whether the kernel has it.
    ///
    /// # Errors
    /// Options that contradict each other.
    pub fn finish(self, has_ipv6: bool) -> Result<Config, Fault> {
        let Self { main, mut draft } = self;
        without_ipv6(&mut draft, has_ipv6);
        check(&main, &mut draft.config)?;
        draft.config.given = Given(main.into_given());
        Ok(draft.config)
    }

    /// As [`finish`](Self::finish), unchecked.
    pub fn finish_lenient(mut self, has_ipv6: bool) -> Config {
        without_ipv6(&mut self.draft, has_ipv6);
        self.draft.config
    }
}

/// Takes IPv6 out where it is off.
fn without_ipv6(draft: &mut Draft, has_ipv6: bool) {
    if !draft.ipv6 || !has_ipv6 {
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
        dns.servers = DNS_SERVERS.map(|ip| SocketAddr::from((ip, PORT))).to_vec();
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
mod tests;
