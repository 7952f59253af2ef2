//! The rules and routes that the kernel should have.

use alloc::string::String;
use alloc::vec::Vec;

use super::routes::{Group, fallback, routes};
use super::rules::rules;
use super::{Path, PolicyRule, Route, Uplinks};
use crate::config::Config;

/// Desired rules and routes. There may be thousands of routes.
#[derive(Default)]
pub struct Desired {
    /// The rules, in the order in which they must be added.
    pub rules: Vec<PolicyRule>,
    /// The routes, in the order in which they must be added.
    pub(super) groups: Vec<Group>,
    /// One sentence for each configured network that can't be captured, with the reason.
    pub ignored: Vec<String>,
}

impl Desired {
    /// The rules and routes for a configuration, with a TUN of this name and index. On the forward path there
    /// are hardly any for a family with a default route, because the firewall captures all of its packets.
    /// With `index: None` (no daemon runs) they refuse what would be captured.
    pub fn new(config: &Config, path: Path, tun: &str, index: Option<u32>, uplinks: &Uplinks) -> Self {
        let (mut groups, ignored) = routes(config, index);
        let forwards = path == Path::Forward && index.is_some();
        let are_firewalls = uplinks.has_default.map(|has| has && forwards);
        let rules = rules(config, forwards, are_firewalls, tun, &groups);
        if rules.is_empty() {
            groups.clear(); // no rule looks into the table
        }
        if forwards && config.local {
            groups.push(fallback(config));
        }
        Self { rules, groups, ignored }
    }

    /// All routes, in the order in which they must be added.
    #[cfg(test)]
    pub fn routes(&self) -> impl Iterator<Item = Route> {
        self.groups.iter().flat_map(|group| group.nets.iter().map(|net| group.route(*net)))
    }

    /// The desired route with the same key as `route`, and its number.
    pub fn find(&self, route: &Route) -> Option<(usize, Route)> {
        let mut before = 0;
        for group in &self.groups {
            if let Some(number) = group.find(route) {
                return Some((before + number, group.route(route.net)));
            }
            before += group.nets.len();
        }
        None
    }
}
