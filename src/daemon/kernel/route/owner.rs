//! Which of the kernel's rules and routes are ours to delete.

use super::RouteError;
use crate::kernel::netlink::{self, Message, Socket};
use crate::kernel::policy::{self, OURS, Route, Rule};
use tcp_over_http::config::{Config, TABLES};

/// What rules and routes of a run are known by, and so those of an earlier run like it.
pub struct Owner {
    tun: String,
    first_rule: u32,
    table: u32,
}

/// A rule or a route that was found, and its message, which deletes it when it is sent back: as with `ip rule flush`,
/// nothing in it can be missed.
type Found<T> = Vec<(Vec<u8>, T)>;

impl Owner {
    /// The runs with this device, table or priority.
    pub fn new(config: &Config) -> Self {
        Self { tun: config.tun.clone(), first_rule: config.rule_priority, table: config.table }
    }

    /// Deletes what is ours except for what is wanted, in either family, also one that is now off. Goes on
    /// after a failure and tells of the last.
    pub fn sweep(&self, socket: &mut Socket, rules: &[Rule], routes: &[Route]) -> Result<(), RouteError> {
        let mut ours = list_rules(socket)?;
        let ends = self.ends(&ours);
        ours.retain(|(_, rule)| {
            let mut runs = ends.iter().map(|end| end.saturating_sub(policy::LAST_RULE)..=*end);
            runs.any(|run| run.contains(&rule.priority))
                || self.owns_table(rule.table)
                || rule.iif == self.tun
        });
        // Routes first: a rule that leads to none captures nothing.
        let tables: Vec<u32> = ours.iter().map(|(_, rule)| rule.table).collect();
        let mut result = self.sweep_routes(socket, &tables, routes);
        ours.retain(|(_, rule)| !rules.contains(rule));
        // The jumps past the capture first: nobody must fall from a rule that selects to the jump behind it.
        ours.sort_by_key(|(_, rule)| !ends.contains(&rule.target));
        for (body, Rule { priority, .. }) in ours {
            match socket.request(Message::new(libc::RTM_DELRULE, 0, &body)) {
                Err(cause) if !cause.is(libc::ENOENT) => {
                    result = Err(RouteError::DeleteRule(priority, cause));
                }
                _ => {}
            }
        }
        result
    }

    /// The same for the routes of our tables and of these.
    fn sweep_routes(&self, socket: &mut Socket, tables: &[u32], wanted: &[Route]) -> Result<(), RouteError> {
        // There may be thousands.
        let mut wanted: Vec<&Route> = wanted.iter().collect();
        wanted.sort_unstable();
        let is_stale = |route: &Route| {
            route.protocol == OURS
                && (self.owns_table(route.table) || tables.contains(&route.table))
                && wanted.binary_search(&route).is_err()
        };
        let mut stale: Found<Route> = Vec::new();
        let all = Message::new(libc::RTM_GETROUTE, 0, &[0; 12]);
        let each = &mut |received: &netlink::Received| match Route::parse(received.body) {
            Some(route) if is_stale(&route) => stale.push((received.body.to_vec(), route)),
            _ => {}
        };
        socket.dump(all, each).map_err(RouteError::List)?;
        let mut result = Ok(());
        for (body, route) in stale {
            match socket.request(Message::new(libc::RTM_DELROUTE, 0, &body)) {
                Err(cause) if !cause.is(libc::ESRCH) => {
                    result = Err(RouteError::DeleteRoute(route, cause));
                }
                _ => {}
            }
        }
        result
    }

    /// The last priorities of this run, and of earlier ones with other numbers: each has a rule that lets what comes
    /// from the device jump there. (Another run of ours beside this one has another device, and none of these numbers.)
    fn ends(&self, rules: &Found<Rule>) -> Vec<u32> {
        let jumps = rules.iter().filter(|(_, rule)| rule.iif == self.tun && rule.target != 0);
        let mut ends: Vec<u32> = jumps.map(|(_, rule)| rule.target).collect();
        ends.push(self.first_rule.saturating_add(policy::LAST_RULE));
        ends
    }

    fn owns_table(&self, table: u32) -> bool {
        (self.table..self.table.saturating_add(TABLES)).contains(&table)
    }
}

/// The rules that bear our protocol number.
fn list_rules(socket: &mut Socket) -> Result<Found<Rule>, RouteError> {
    let mut found = Vec::new();
    let all = Message::new(libc::RTM_GETRULE, 0, &[0; 12]);
    let each = &mut |received: &netlink::Received| match Rule::parse(received.body) {
        Some(rule) if rule.protocol == OURS => found.push((received.body.to_vec(), rule)),
        _ => {}
    };
    match socket.dump(all, each) {
        // A kernel without policy rules has none of ours.
        Err(cause) if !cause.is(libc::EOPNOTSUPP) => Err(RouteError::List(cause)),
        _ => Ok(found),
    }
}
