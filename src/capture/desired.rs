//! What the kernel should have.

use alloc::string::String;
use alloc::vec::Vec;

use super::routes::{Group, routes};
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
    /// What a configuration asks for, with a TUN of this name and index. On the forward path, for families with a default
    /// route, that is no more than what the machine itself sends needs: what has no route is not forwarded, and so not
    /// captured by the firewall. Without an index it is what refuses all that is captured, until there is a daemon.
    pub fn new(config: &Config, path: Path, tun: &str, index: Option<u32>, uplinks: &Uplinks) -> Self {
        let (mut groups, ignored) = routes(config, index);
        let is_self_only = uplinks.has_default.map(|has| has && path == Path::Forward && index.is_some());
        let has_ipv6 = config.address6.is_some();
        if !config.local && is_self_only[0] && (is_self_only[1] || !has_ipv6) {
            groups.clear();
        }
        Self {
            rules: rules(config, path == Path::Forward && index.is_some(), is_self_only, tun, &groups),
            groups,
            ignored,
        }
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
