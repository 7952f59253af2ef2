//! Sections `config rule`.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::error::Origin;
use super::{UpstreamConfig, values};
use crate::dns::Domains;
use crate::rules::{Action, Rule};

/// A rule while it is read.
#[derive(Default)]
pub struct RuleDraft {
    /// `option enabled`.
    pub enabled: bool,
    /// Its conditions.
    pub rule: Rule,
    /// Paths of files: true for `domain_file`, false for `dest_file`.
    pub files: Vec<(String, bool)>,
    /// `option upstream`.
    pub upstream: Option<String>,
    /// `option direct`.
    pub direct: bool,
    /// `option reject`.
    pub reject: bool,
    /// Where the section begins.
    pub at: Origin,
}

impl RuleDraft {
    /// Tells whether there is a rule: the section is enabled and not empty. Without `upstreams`, any name is accepted.
    pub fn resolve(&mut self, upstreams: Option<&[UpstreamConfig]>, has_names: bool) -> Result<bool, String> {
        if !self.enabled {
            return Ok(false);
        }
        self.rule.action = match (&self.upstream, self.direct, self.reject) {
            (Some(name), false, false) => {
                let is_named = |upstream: &UpstreamConfig| upstream.name == *name;
                let index = upstreams.map_or(Some(0), |upstreams| upstreams.iter().position(is_named));
                Action::Upstream(index.ok_or_else(|| format!("rule: there is no upstream '{name}'"))? as u8)
            }
            (None, true, false) => Action::Direct,
            (None, false, true) => Action::Reject,
            _ => return Err("rule: needs one of upstream, direct and reject".into()),
        };
        if !has_names && (!self.rule.domains.is_empty() || self.files.iter().any(|file| file.1)) {
            return Err("rule: domains need dns 'fakeip'".into());
        }
        // A rule whose files are all empty matches nothing, rather than everything.
        Ok(self.files.is_empty() || self.rule.has_destinations())
    }

    /// The same for a rule in a short form.
    pub fn resolve_short(&mut self) -> bool {
        self.rule.action = Action::Direct;
        self.rule.has_destinations() || self.rule.has_clients()
    }
}

/// Adds a client: a network, or an Ethernet address.
pub fn client(text: &str, rule: &mut Rule) -> Result<(), &'static str> {
    let is_mac =
        |(index, byte): (usize, u8)| if index % 3 == 2 { byte == b':' } else { byte.is_ascii_hexdigit() };
    match text.len() == 17 && text.bytes().enumerate().all(is_mac) {
        true => rule.macs.push(text.to_ascii_lowercase()),
        false => rule.clients.push(values::clients(text)?),
    }
    Ok(())
}

/// Adds a domain, or a single name written as `=NAME`.
pub fn domain(text: &str, domains: &mut Domains) -> Result<(), &'static str> {
    let name = text.strip_prefix('=');
    let added = domains.add(&values::domain(name.unwrap_or(text))?, name.is_some());
    added.map_err(|_| "is not a domain name")
}
