//! From a file, the environment and the flags to a [`Config`], in steps: the caller reads the files.
//!
//! Values are gathered as text first, each with where it came from: a flag replaces the variable,
//! which replaces the file, and an error can still name the line that is to blame.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::mem;

use super::Config;
use super::draft::Draft;
use super::error::{ConfigError, ConfigErrorKind, Fault, Origin};
use super::given::Given;
use super::options::Spec;
use super::rule::{self, RuleDraft};
use super::sections::{Sections, UpstreamSection};
use super::{DnsMode, PathChoice, UpstreamConfig, table, values};
use crate::net::IpNet;
use crate::rules::{Action, MAX_ENTRIES, MAX_RULES, Rule, Rules};
use crate::upstream::choice::MAX_PROXIES;

/// The least time between two probes of one proxy, in ms.
const MIN_PROBE_INTERVAL: u32 = 30_000;

impl Config {
    /// The configuration in a file's text, which errors call `FILE`. Files that it names are not read.
    ///
    /// # Errors
    /// [`ConfigError`]
    ///
    /// # Examples
    /// ```
    /// use tcp_over_http::config::Config;
    ///
    /// let text = "
    /// config tcp-over-http 'main'
    ///     option auto_route '1'
    ///     list bypass '192.168.0.0/16'
    ///
    /// config upstream 'corp'
    ///     option host 'proxy.example'
    ///     option port '3128'
    /// ";
    /// let config = Config::from_uci(text)?;
    /// assert!(config.captures());
    /// assert_eq!(config.upstreams[0].name, "corp");
    /// assert_eq!(config.mtu, 1500, "the default");
    ///
    /// let error = Config::from_uci("config tcp-over-http 'main'\n  option mtu 'big'").unwrap_err();
    /// assert_eq!(error.to_string(), "FILE:2:14: mtu: 'big' is not a number (1280-65535)");
    /// # Ok::<(), tcp_over_http::config::ConfigError>(())
    /// ```
    pub fn from_uci(text: &str) -> Result<Self, ConfigError> {
        let reading = Reading::new(Ok(Some(text.as_bytes())), &Overrides::default());
        reading.finish(true).map_err(|fault| ConfigError::new("FILE", fault))
    }
}

/// What is given besides the file.
#[derive(Default)]
pub struct Overrides(Given);

impl Overrides {
    /// With the value of [`VARIABLE`](super::VARIABLE): URLs separated by spaces.
    pub fn new(variable: Option<String>) -> Self {
        let mut given = Given::default();
        if let Some(spec) = table::MAIN.iter().find(|spec| spec.name == "upstream") {
            for url in variable.iter().flat_map(|urls| urls.split_ascii_whitespace()) {
                given.add(spec, url.to_owned(), Origin::Variable);
            }
        }
        Self(given)
    }

    /// Takes a flag, which beats the variable. The last one counts, unless the option is a list.
    pub fn give(&mut self, spec: &'static Spec, value: String) {
        if !spec.is_list() || self.0.origin(spec.name) != Origin::Flag {
            self.0.clear(spec.name);
        }
        self.0.add(spec, value, Origin::Flag);
    }
}

/// A file that the configuration names, to be read line by line.
pub struct ListFile {
    /// Where it is.
    pub path: String,
    /// The rule that it is a part of, by place, and whether it has domains; `None`: `bypass_file`.
    rule: Option<(usize, bool)>,
}

/// A configuration whose values have been read; the files that it names have not.
pub struct Reading {
    main: Given,
    upstreams: Vec<UpstreamSection>,
    rules: Vec<RuleDraft>,
    draft: Draft,
    /// What was wrong first.
    result: Result<(), Fault>,
}

impl Reading {
    /// Reads a file, or none, or takes the error why it could not be read. What is wrong is left out, and told
    /// by [`finish`](Self::finish).
    pub fn new(file: Result<Option<&[u8]>, String>, overrides: &Overrides) -> Self {
        let mut sections = Sections::default();
        let read = match file {
            Ok(text) => sections.read(text.unwrap_or_default()),
            Err(error) => Err((Origin::Everywhere, ConfigErrorKind::Read(error))),
        };
        let Sections { mut main, upstreams, rules: sections } = sections;
        main.replace(&overrides.0);
        let mut draft = Draft::default();
        let stored = main.store(table::MAIN, &mut draft);
        let mut result = read.and(stored);
        let mut rules = Vec::with_capacity(sections.len());
        for mut section in sections {
            result = result.and(section.given.store(table::RULE, &mut draft));
            rules.push(RuleDraft { at: Some(section.at), ..mem::take(&mut draft.rule) });
        }
        Self { main, upstreams, rules, draft, result }
    }

    /// The files that have yet to be [added](Self::add_file).
    pub fn take_files(&mut self) -> Vec<ListFile> {
        let bypass = mem::take(&mut self.draft.bypass_files).into_iter();
        let mut files: Vec<_> = bypass.map(|path| ListFile { path, rule: None }).collect();
        for (index, rule) in self.rules.iter_mut().enumerate().filter(|(_, rule)| rule.enabled) {
            for (path, is_domains) in mem::take(&mut rule.files) {
                rule.has_files = true;
                rule.has_domain_file |= is_domains;
                files.push(ListFile { path, rule: Some((index, is_domains)) });
            }
        }
        files
    }

    /// Adds what is in a file up to a line that is wrong, or takes the error why it could not be read.
    pub fn add_file(&mut self, file: &ListFile, text: Result<&[u8], String>) {
        let path = file.path.as_str();
        let mut left = MAX_ENTRIES.saturating_sub(self.rules.iter().map(RuleDraft::len).sum());
        let rule = file.rule.and_then(|(index, is_domains)| Some((self.rules.get_mut(index)?, is_domains)));
        let (option, origin) = match &rule {
            None => ("bypass_file", self.main.origin("bypass_file")),
            Some((rule, true)) => ("domain_file", rule.at.map_or(Origin::Everywhere, Origin::File)),
            Some((rule, false)) => ("dest_file", rule.at.map_or(Origin::Everywhere, Origin::File)),
        };
        let added = text.map_err(|error| format!("{path}: {error}")).and_then(|text| match rule {
            None => values::lines(path, text, &mut |line| {
                self.draft.shorts[0].networks.push(values::cidr(line)?);
                Ok(())
            }),
            Some((rule, is_domains)) => values::lines(path, text, &mut |line| {
                left = left.checked_sub(1).ok_or("is one too many: 200000 are the most in all rules")?;
                match is_domains {
                    true => rule::domain(line, &mut rule.rule.domains),
                    false => values::cidr(line).map(|net| rule.rule.networks.push(net)),
                }
            }),
        });
        if let (Ok(()), Err(error)) = (&self.result, added) {
            self.result = Err((origin, ConfigErrorKind::ListFile(option, error)));
        }
    }

    /// The configuration, if all is right. `has_ipv6`: whether the kernel has it.
    ///
    /// # Errors
    /// What is wrong first, or options that contradict each other.
    pub fn finish(mut self, has_ipv6: bool) -> Result<Config, Fault> {
        self.result?;
        let in_file = matches!(self.main.origin("upstream"), Origin::Default | Origin::File(_));
        for section in self.upstreams {
            // Checked even if unused.
            let upstream = section.resolve(&mut self.draft)?;
            self.draft.config.upstreams.extend(upstream.filter(|_| in_file));
        }
        without_ipv6(&mut self.draft, has_ipv6);
        let Draft { config, shorts, .. } = &mut self.draft;
        check(&self.main, config)?;
        if config.dns.direct_servers.is_empty() && !shorts[2].domains.is_empty() {
            return Err((self.main.origin("direct_domain"), ConfigErrorKind::NoDirectServer));
        }
        let mut list = Vec::new();
        add_rules(&mut list, self.rules, config, Some(&config.upstreams))?;
        config.rules = all_rules(shorts, list);
        self.draft.config.given = self.main;
        Ok(self.draft.config)
    }

    /// The values of the main section that are right, unchecked against each other.
    pub fn finish_lenient(mut self, has_ipv6: bool) -> Config {
        without_ipv6(&mut self.draft, has_ipv6);
        let Draft { config, shorts, .. } = &mut self.draft;
        let mut list = Vec::new();
        // Those behind one that is wrong might let go what that would not have.
        _ = add_rules(&mut list, self.rules, config, None);
        config.rules = all_rules(shorts, list);
        self.draft.config.given = self.main;
        self.draft.config
    }
}

/// Removes all that is IPv6 if that is off.
fn without_ipv6(draft: &mut Draft, has_ipv6: bool) {
    if !draft.ipv6 || !has_ipv6 {
        draft.config.address6 = None;
        draft.config.dns.fakeip_range6 = None;
        draft.config.routes.retain(|net| matches!(net, IpNet::V4(_)));
        draft.shorts[0].networks.retain(|net| matches!(net, IpNet::V4(_)));
    }
}

/// Checks what takes more than one option. A default gives way.
fn check(main: &Given, config: &mut Config) -> Result<(), Fault> {
    if config.upstreams.is_empty() {
        return Err((Origin::Everywhere, ConfigErrorKind::NoUpstream));
    }
    check_upstreams(main, config)?;
    if config.mark == 0 && config.captures() {
        return Err((main.origin("mark"), ConfigErrorKind::Loop));
    }
    match config.path {
        PathChoice::Forward if config.mark == 0 => {
            return Err((main.origin("path"), ConfigErrorKind::Forward));
        }
        PathChoice::Auto if config.mark == 0 => config.path = PathChoice::Relay,
        _ => {}
    }
    let (flows, dials) = (config.max_flows, config.max_dials);
    config.max_dials = at_most(main, "max_dials", dials, "max_flows", flows)?;
    let (dials, client) = (config.max_dials, config.max_dials_per_client);
    config.max_dials_per_client = at_most(main, "max_dials_per_client", client, "max_dials", dials)?;
    check_dns(main, config)
}

fn check_upstreams(main: &Given, config: &Config) -> Result<(), Fault> {
    let upstreams = &config.upstreams;
    if upstreams.len() > MAX_PROXIES {
        return Err((Origin::Everywhere, ConfigErrorKind::ManyUpstreams));
    }
    for (index, upstream) in upstreams.iter().enumerate() {
        if upstreams.iter().skip(index + 1).any(|other| other.name == upstream.name) {
            return Err((main.origin("upstream"), ConfigErrorKind::SameName(upstream.name.clone())));
        }
    }
    match config.choice.probe_interval {
        1..MIN_PROBE_INTERVAL => Err((main.origin("probe_interval"), ConfigErrorKind::ProbeInterval)),
        _ => Ok(()),
    }
}

/// All rules, those in short forms first.
fn all_rules(shorts: &mut [Rule; 3], rules: Vec<Rule>) -> Rc<Rules> {
    let mut used = Vec::new();
    for short in shorts {
        if short.has_destinations() || short.has_clients() {
            used.push(rule::sealed(mem::take(short), Action::Direct));
        }
    }
    Rc::new(Rules::new(used, rules))
}

/// Adds the rules up to one that is wrong.
fn add_rules(
    rules: &mut Vec<Rule>,
    drafts: Vec<RuleDraft>,
    config: &Config,
    upstreams: Option<&[UpstreamConfig]>,
) -> Result<(), Fault> {
    if drafts.len() > MAX_RULES {
        return Err((Origin::Everywhere, ConfigErrorKind::Rule("more than 1024 sections")));
    }
    for draft in drafts {
        let at = draft.at;
        let Some(rule) = draft.resolve(upstreams, config.dns.mode == DnsMode::FakeIp)? else { continue };
        let is_direct = rule.action == Action::Direct;
        if is_direct && !rule.domains.is_empty() && config.dns.direct_servers.is_empty() {
            let lacks = ConfigErrorKind::Rule("direct domains need a direct_server");
            return Err((at.map_or(Origin::Everywhere, Origin::File), lacks));
        }
        rules.push(rule);
    }
    Ok(())
}

fn check_dns(main: &Given, config: &mut Config) -> Result<(), Fault> {
    let dns = &mut config.dns;
    let own = [Some(IpNet::V4(config.address)), config.address6.map(IpNet::V6)];
    for range in dns.fake_ranges() {
        let (option, other) = match range {
            IpNet::V4(_) => ("fakeip_range", "address"),
            IpNet::V6(_) => ("fakeip_range6", "address6"),
        };
        if own.iter().flatten().any(|own| own.overlaps(range)) {
            return Err((main.origin(option), ConfigErrorKind::Overlap { option, other }));
        }
    }
    let most = u16::try_from((1u32 << (32 - dns.fakeip_range.prefix)) - 2).unwrap_or(u16::MAX);
    dns.fakeip_names = at_most(main, "fakeip_names", dns.fakeip_names, "fakeip_range", most)?;
    Ok(())
}

fn at_most(
    main: &Given,
    option: &'static str,
    value: u16,
    limit: &'static str,
    most: u16,
) -> Result<u16, Fault> {
    match main.origin(option) {
        Origin::Default => Ok(value.min(most)),
        _ if value <= most => Ok(value),
        origin => Err((origin, ConfigErrorKind::AboveLimit { option, limit })),
    }
}

#[cfg(test)]
mod tests;
