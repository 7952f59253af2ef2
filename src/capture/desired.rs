//! What the kernel should have.

use alloc::string::String;
use alloc::vec::Vec;

use super::routes::{Group, fallback, routes};
use super::rules::rules;
use super::{Path, Route, Rule, Uplinks};
use crate::config::Config;

/// Rules and routes. There may be thousands of routes.
#[derive(Default)]
pub struct Desired {
    /// The rules, in the order to add them.
    pub rules: Vec<Rule>,
    /// The routes, likewise.
    pub(super) groups: Vec<Group>,
    /// Which configured networks are not among them, and why: a sentence each.
    pub ignored: Vec<String>,
}

impl Desired {
    /// What a configuration asks for, with a TUN of this name and index. On the forward path that is next to nothing for
    /// families with a default route: the firewall captures all that has a route. Without an index it is what refuses all that is
    /// captured, until there is a daemon.
    pub fn new(config: &Config, path: Path, tun: &str, index: Option<u32>, uplinks: &Uplinks) -> Self {
        let (mut groups, ignored) = routes(config, index);
        let forwards = path == Path::Forward && index.is_some();
        let are_firewalls = uplinks.has_default.map(|has| has && forwards);
        let rules = rules(config, forwards, are_firewalls, tun, &groups);
        if rules.is_empty() {
            groups.clear(); // nothing leads there
        }
        if forwards && config.local {
            groups.push(fallback(config));
        }
        Self { rules, groups, ignored }
    }

    /// The routes, in the order to add them.
    #[cfg(test)]
    pub fn routes(&self) -> impl Iterator<Item = Route> {
        self.groups.iter().flat_map(|group| group.nets.iter().map(|net| group.route(*net)))
    }

    /// The number of the route that has the key of this one, and that route.
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
