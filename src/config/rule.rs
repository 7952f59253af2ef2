//! Sections `config rule`.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::error::{ConfigErrorKind, Fault, Origin};
use super::{UpstreamConfig, values};
use crate::dns::Domains;
use crate::net::IpNet;
use crate::rules::{Action, Mac, Rule};

/// A rule in the making.
#[derive(Default)]
pub struct RuleDraft {
    /// `option enabled`.
    pub enabled: bool,
    /// Its conditions.
    pub rule: Rule,
    /// Paths of `domain_file` (true) and `dest_file`.
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
    /// Makes it a rule; `None` if it is disabled, or has nothing to match. Without `upstreams`, any name will do.
    pub fn resolve(
        self,
        upstreams: Option<&[UpstreamConfig]>,
        has_names: bool,
    ) -> Result<Option<Rule>, Fault> {
        let at = self.at;
        let wrong = |what| Err((at, ConfigErrorKind::Rule(what)));
        let action = match (&self.upstream, self.direct, self.reject) {
            (Some(name), false, false) => {
                let is_named = |upstream: &UpstreamConfig| upstream.name == *name;
                match upstreams.map_or(Some(0), |upstreams| upstreams.iter().position(is_named)) {
                    Some(index) => Action::Upstream(index as u8),
                    None if !self.enabled => return Ok(None),
                    None => return Err((at, ConfigErrorKind::RuleUpstream(name.clone()))),
                }
            }
            (None, true, false) => Action::Direct,
            (None, false, true) => Action::Reject,
            _ => return wrong("needs one of upstream, direct and reject"),
        };
        if !has_names
            && self.enabled
            && (!self.rule.domains.is_empty() || self.files.iter().any(|file| file.1))
        {
            return wrong("domains need dns 'fakeip'");
        }
        // Files that are empty are nothing, rather than everything.
        let is_empty = !self.files.is_empty() && !self.rule.has_destinations();
        Ok((self.enabled && !is_empty).then(|| sealed(self.rule, action)))
    }

    /// Makes one in a short form a rule, unless it is empty.
    pub fn resolve_short(self) -> Option<Rule> {
        let is_used = self.rule.has_destinations() || self.rule.has_clients();
        is_used.then(|| sealed(self.rule, Action::Direct))
    }
}

/// Puts what a rule has in order.
fn sealed(mut rule: Rule, action: Action) -> Rule {
    rule.domains.seal();
    IpNet::widest(&mut rule.networks);
    IpNet::widest(&mut rule.clients);
    rule.networks.shrink_to_fit();
    Rule { action, ..rule }
}

/// Adds a client: a network, or an Ethernet address.
pub fn client(text: &str, rule: &mut Rule) -> Result<(), &'static str> {
    let mut mac = [0; 6];
    let mut rest = text.split(':');
    let is_mac = mac.iter_mut().all(|byte| {
        let part = rest.next().filter(|part| part.len() == 2 && !part.starts_with('+'));
        part.and_then(|part| u8::from_str_radix(part, 16).ok()).map(|value| *byte = value).is_some()
    });
    match is_mac && rest.next().is_none() {
        true => rule.macs.push(Mac(mac)),
        false => rule.clients.push(values::clients(text)?),
    }
    Ok(())
}

/// Adds a domain, or a `=` and a name.
pub fn domain(text: &str, domains: &mut Domains) -> Result<(), &'static str> {
    let is_exact = text.starts_with('=');
    let name = values::domain(text.strip_prefix('=').unwrap_or(text))?;
    let name = if is_exact { format!("={name}") } else { name };
    domains.insert(&name).map_err(|_| "is not a domain name")
}
