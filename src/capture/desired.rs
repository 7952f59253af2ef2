//! What the kernel is to have.

use alloc::vec::Vec;

use super::routes::{NotCaptured, routes};
use super::rules::rules;
use super::{Route, Rule};
use crate::config::Config;
use crate::rewrite::Path;

/// Rules and routes, of which there may be thousands.
#[derive(Default)]
pub struct Desired {
    /// The rules, in the order to add them.
    pub rules: Vec<Rule>,
    /// The routes, likewise.
    pub routes: Vec<Route>,
    /// Configured networks that are not among them.
    pub ignored: Vec<NotCaptured>,
    /// The routes' numbers in the order of their keys.
    by_key: Vec<u32>,
}

impl Desired {
    /// What a configuration asks for, with a TUN of this name and index; without an index what refuses all that is
    /// captured, until there is a daemon.
    pub fn new(config: &Config, path: Path, tun: &str, index: Option<u32>) -> Self {
        let (routes, ignored) = routes(config, path, index);
        let rules = rules(config, path, tun, &routes);
        let mut by_key: Vec<u32> = (0..routes.len() as u32).collect();
        by_key.sort_unstable_by_key(|&number| routes[number as usize].key());
        Self { rules, routes, ignored, by_key }
    }

    /// The number of the route that has the key of this one.
    pub fn find(&self, route: &Route) -> Option<usize> {
        let key = route.key();
        let at = self.by_key.binary_search_by_key(&key, |&number| self.routes[number as usize].key()).ok()?;
        Some(self.by_key[at] as usize)
    }

    /// Whether this is one of the routes.
    pub fn has_route(&self, route: &Route) -> bool {
        self.find(route).is_some_and(|number| self.routes[number] == *route)
    }
}
