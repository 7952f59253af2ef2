//! From a file, the environment and the flags to a [`Config`], in steps: the caller reads the files.
//!
//! Values are gathered as text first, each with where it came from: a flag replaces the variable,
//! which replaces the file, and an error can still name the line at fault.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::mem;

use super::Config;
use super::draft::{Draft, SHORTS};
use super::error::{ConfigError, Fault, Origin};
use super::given::Given;
use super::options::Spec;
use super::rule::{self, RuleDraft};
use super::sections::{Section, Sections};
use super::{check, table, values};
use crate::net::IpNet;
use crate::rules::{MAX_ENTRIES, Rules};

/// The option that is blamed for a fault in each short form.
const SHORT_ORIGINS: [&str; SHORTS] = ["bypass_file", "client_bypass", "direct_domain"];

impl Config {
    /// The configuration in a file's text; errors call the file `FILE`. Files that it names are not read.
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

/// The values from the variable and the flags, which override those from the file.
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

    /// Takes a flag, which overrides the variable. The last one counts, unless the option is a list.
    pub fn give(&mut self, spec: &'static Spec, value: String) {
        if !spec.is_list() || self.0.origin(spec.name) != Origin::Flag {
            self.0.clear(spec.name);
        }
        self.0.add(spec, value, Origin::Flag);
    }
}

/// A configuration whose values have been read; the files that it names have not.
pub struct Reading {
    main: Given,
    upstreams: Vec<Section>,
    rules: Vec<RuleDraft>,
    draft: Draft,
    /// The first fault found.
    result: Result<(), Fault>,
}

impl Reading {
    /// Reads a file, or none, or takes the error that kept it from being read. Skips what is wrong;
    /// [`finish`](Self::finish) reports it.
    pub fn new(file: Result<Option<&[u8]>, String>, overrides: &Overrides) -> Self {
        let mut sections = Sections::default();
        let read = match file {
            Ok(text) => sections.read(text.unwrap_or_default()),
            Err(error) => Err((Origin::WholeFile, error)),
        };
        let Sections { mut main, upstreams, rules: sections } = sections;
        main.replace(&overrides.0);
        let mut draft = Draft::default();
        let stored = main.store(table::MAIN, &mut draft);
        let mut result = read.and(stored);
        let mut rules = Vec::with_capacity(SHORTS + sections.len());
        for (mut short, option) in mem::take(&mut draft.shorts).into_iter().zip(SHORT_ORIGINS) {
            short.at = main.origin(option);
            rules.push(short);
        }
        for mut section in sections {
            result = result.and(section.given.store(table::RULE, &mut draft));
            draft.rule.at = Origin::File(section.at);
            rules.push(mem::take(&mut draft.rule));
        }
        Self { main, upstreams, rules, draft, result }
    }

    /// Reads the files that it names, each up to its first wrong line.
    pub fn read_files(&mut self, read: &dyn Fn(&str) -> Result<Vec<u8>, String>) {
        let mut left = MAX_ENTRIES;
        for (index, draft) in self.rules.iter_mut().enumerate() {
            if index >= SHORTS && !draft.enabled {
                continue;
            }
            for (path, is_domains) in &draft.files {
                let rule = &mut draft.rule;
                let added = match read(path) {
                    Ok(text) => values::lines(path, &text, &mut |line| {
                        left =
                            left.checked_sub(1).ok_or("is one too many: 200000 are the most in all files")?;
                        match is_domains {
                            true => rule::domain(line, &mut rule.domains),
                            false => values::cidr(line).map(|net| rule.networks.push(net)),
                        }
                    }),
                    Err(error) => Err(format!("{path}: {error}")),
                };
                if let (Ok(()), Err(error)) = (&self.result, added) {
                    let option = match (index, is_domains) {
                        (0, _) => "bypass_file",
                        (_, true) => "domain_file",
                        (_, false) => "dest_file",
                    };
                    self.result = Err((draft.at, format!("{option}: {error}")));
                }
            }
        }
    }

    /// The configuration, if there was no fault. `has_ipv6`: whether the kernel has IPv6.
    ///
    /// # Errors
    /// The first fault, or options that contradict each other.
    pub fn finish(mut self, has_ipv6: bool) -> Result<Config, Fault> {
        mem::replace(&mut self.result, Ok(()))?;
        let in_file = matches!(self.main.origin("upstream"), Origin::Default | Origin::File(_));
        for section in mem::take(&mut self.upstreams) {
            // Checked even if unused.
            let upstream = section.resolve(&mut self.draft)?;
            self.draft.config.upstreams.extend(upstream.filter(|_| in_file));
        }
        self.without_ipv6(has_ipv6);
        let config = &mut self.draft.config;
        check::check(&self.main, config)?;
        let mut rules = Rules::default();
        rule::add_all(&mut rules, self.rules, config, Some(&config.upstreams))?;
        config.rules = Rc::new(rules);
        self.draft.config.given = self.main;
        Ok(self.draft.config)
    }

    /// The valid values of the main section, not checked against each other.
    pub fn finish_lenient(mut self, has_ipv6: bool) -> Config {
        self.without_ipv6(has_ipv6);
        let config = &mut self.draft.config;
        let mut rules = Rules::default();
        // Rules after a faulty one are left out: they might let through what that one would not have.
        _ = rule::add_all(&mut rules, self.rules, config, None);
        config.rules = Rc::new(rules);
        self.draft.config.given = self.main;
        self.draft.config
    }

    /// Removes everything IPv6 if IPv6 is off.
    fn without_ipv6(&mut self, has_ipv6: bool) {
        let Draft { config, ipv6, .. } = &mut self.draft;
        if !*ipv6 || !has_ipv6 {
            config.address6 = None;
            config.dns.fakeip_range6 = None;
            config.routes.retain(|net| matches!(net, IpNet::V4(_)));
            for short in self.rules.iter_mut().take(SHORTS) {
                short.rule.networks.retain(|net| matches!(net, IpNet::V4(_)));
            }
        }
    }
}

#[cfg(test)]
mod tests;
