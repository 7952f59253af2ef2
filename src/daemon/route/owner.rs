//! Which of the kernel's rules and routes are ours to delete.

use super::RouteError;
use crate::config::Config;
use crate::netlink::{self, Message, Socket};
use crate::policy::{self, OURS, Route, Rule};

/// What rules and routes of a run are known by, and so those of an earlier run like it.
pub struct Owner {
    tun: String,
    first_rule: u32,
    table: u32,
}

impl Owner {
    /// The runs with this device, table or priority.
    pub fn new(config: &Config) -> Self {
        Self { tun: config.tun.clone(), first_rule: config.rule_priority, table: config.table }
    }

    /// Deletes what is ours except for what is wanted, in either family, also one that is now off. Goes on
    /// after a failure and tells of the last.
    pub fn sweep(&self, socket: &mut Socket, rules: &[Rule], routes: &[Route]) -> Result<(), RouteError> {
        // There may be thousands.
        let mut wanted: Vec<&Route> = routes.iter().collect();
        wanted.sort_unstable();
        // What is found is sent back to be deleted, as `ip rule flush` does: nothing in it can be missed.
        // Routes first: a rule that leads to none captures nothing.
        let mut stale = Vec::new();
        let all = Message::new(libc::RTM_GETROUTE, 0, &[0; 12]);
        let each = &mut |received: &netlink::Received| match Route::parse(received.body) {
            Some(route) if self.owns_route(&route) && wanted.binary_search(&&route).is_err() => {
                stale.push((received.body.to_vec(), route));
            }
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

        let mut stale = Vec::new();
        let all = Message::new(libc::RTM_GETRULE, 0, &[0; 12]);
        let each = &mut |received: &netlink::Received| match Rule::parse(received.body) {
            Some(rule) if self.owns_rule(&rule) && !rules.contains(&rule) => {
                stale.push((received.body.to_vec(), rule));
            }
            _ => {}
        };
        match socket.dump(all, each) {
            // A kernel without policy rules has none of ours.
            Err(cause) if !cause.is(libc::EOPNOTSUPP) => return Err(RouteError::List(cause)),
            _ => {}
        }
        // The jumps past the capture first: nobody must fall from a rule that selects to the jump behind it.
        let end = self.first_rule.saturating_add(policy::LAST_RULE);
        stale.sort_by_key(|(_, rule)| rule.target != end);
        for (body, Rule { priority, .. }) in stale {
            match socket.request(Message::new(libc::RTM_DELRULE, 0, &body)) {
                Err(cause) if !cause.is(libc::ENOENT) => {
                    result = Err(RouteError::DeleteRule(priority, cause));
                }
                _ => {}
            }
        }
        result
    }

    fn owns_route(&self, route: &Route) -> bool {
        route.protocol == OURS && self.owns_table(route.table)
    }

    /// Another run of ours beside this one has other priorities, another TUN and another table; an earlier
    /// one may have had other priorities.
    fn owns_rule(&self, rule: &Rule) -> bool {
        let priorities = self.first_rule..=self.first_rule.saturating_add(policy::LAST_RULE);
        rule.protocol == OURS
            && (priorities.contains(&rule.priority) || self.owns_table(rule.table) || rule.iif == self.tun)
    }

    fn owns_table(&self, table: u32) -> bool {
        (self.table..self.table.saturating_add(policy::TABLES)).contains(&table)
    }
}
