//! Sections `config rule`.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::draft::SHORTS;
use super::error::{Fault, Origin};
use super::{Config, DnsMode, UpstreamConfig, values};
use crate::dns::Domains;
use crate::rules::{Action, MAX_RULES, Rule, Rules};

/// The fault of rules with direct domains but no server for them.
const NO_SERVER: &str = "rule: direct domains need a direct_server";
const NO_DIRECT_SERVER: &str = "direct_domain: needs a direct_server";

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
    fn resolve(&mut self, upstreams: Option<&[UpstreamConfig]>, has_names: bool) -> Result<bool, String> {
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
    fn resolve_short(&mut self) -> bool {
        self.rule.action = Action::Direct;
        self.rule.has_destinations() || self.rule.has_clients()
    }
}

/// Adds the rules, those from short forms first, up to one that is wrong. Without `upstreams`, any name of one is
/// accepted.
pub fn add_all(
    rules: &mut Rules,
    drafts: Vec<RuleDraft>,
    config: &Config,
    upstreams: Option<&[UpstreamConfig]>,
) -> Result<(), Fault> {
    if drafts.len() > SHORTS + MAX_RULES {
        return Err((Origin::Everywhere, "rule: more than 1024 sections".into()));
    }
    for (index, mut draft) in drafts.into_iter().enumerate() {
        let is_short = index < SHORTS;
        let is_used = match is_short {
            true => Ok(draft.resolve_short()),
            false => draft.resolve(upstreams, config.dns.mode == DnsMode::FakeIp),
        };
        let rule = &draft.rule;
        let is_direct_name = rule.action == Action::Direct && !rule.domains.is_empty();
        let is_used = match is_used {
            Ok(true) if is_direct_name && config.dns.direct_servers.is_empty() => {
                Err(if is_short { NO_DIRECT_SERVER } else { NO_SERVER }.into())
            }
            result => result,
        };
        if is_used.map_err(|what| (draft.at, what))? {
            rules.push(draft.rule, is_short);
        }
    }
    Ok(())
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
