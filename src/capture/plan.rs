//! Compares the kernel's rules and routes with the desired ones, and makes the requests that bring it there.
//!
//! Additions come first, then deletions of what is ours and not desired. So a start with other options, or
//! after a crash, opens no gap through which traffic could leak. Installing, restoring and removing (with
//! nothing desired) are the same operation.

use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::{self, Vec};
use core::fmt;
use core::mem;

use super::netlink::Message;
use super::route::{RTM_DELROUTE, Route};
use super::routes::fallback_metric;
use super::rule::{PolicyRule, RTM_DELRULE};
use super::rules::LAST_RULE;
use super::{Desired, MAIN, OURS};
use crate::config::Config;

// <asm-generic/errno-base.h>

const ENOENT: i32 = 2;
const ESRCH: i32 = 3;
const EEXIST: i32 = 17;

/// Recognises our rules and routes, including those of an earlier run with the same device, table or
/// priority.
#[derive(Clone)]
pub struct Owner {
    tun: String,
    first_rule: u32,
    table: u32,
}

impl Owner {
    /// Runs with the device, the table or the priority of this configuration.
    pub fn new(config: &Config) -> Self {
        Self { tun: config.tun.clone(), first_rule: config.rule_priority, table: config.table }
    }
}

/// The rules and routes that the kernel has, compared with the desired ones. Call
/// [`see_rule`](Plan::see_rule) for all rules, then [`end_rules`](Plan::end_rules), then
/// [`see_route`](Plan::see_route) for all routes.
pub struct Plan {
    owner: Owner,
    desired: Rc<Desired>,
    /// Our rules, each with the message that deletes it.
    rules: Vec<(PolicyRule, Message)>,
    /// The last priority (END) of this run, and those of earlier runs with another `rule_priority`.
    ends: Vec<u32>,
    /// Tables of earlier runs: those that our rules look up, other than the owner's.
    tables: Vec<u32>,
    /// For each desired route, whether the kernel has it.
    there: Vec<bool>,
    /// The deletions of our routes that are not desired.
    stale: Vec<(Action, Message)>,
}

impl Plan {
    /// A plan that has seen nothing yet.
    pub fn new(owner: Owner, desired: Rc<Desired>) -> Self {
        Self {
            owner,
            rules: Vec::new(),
            ends: Vec::new(),
            tables: Vec::new(),
            there: alloc::vec![false; desired.groups.iter().map(|group| group.nets.len()).sum()],
            stale: Vec::new(),
            desired,
        }
    }

    /// Takes the body of an `RTM_NEWRULE`. The same body, sent back, deletes the rule: as in `ip rule flush`,
    /// no attribute can be missed.
    pub fn see_rule(&mut self, body: &[u8]) {
        let ours = PolicyRule::parse(body).filter(|rule| rule.protocol == OURS);
        self.rules.extend(ours.map(|rule| (rule, Message::new(RTM_DELRULE, 0, body))));
    }

    /// To be called after the last rule. Keeps our rules, and drops those of another daemon beside this one,
    /// which has another device, other priorities and another table.
    pub fn end_rules(&mut self) {
        let Self { owner, rules, ends, tables, .. } = self;
        // Each run has a rule `iif TUN goto END`, which tells its last priority.
        let jumps = rules.iter().filter(|(rule, _)| rule.iif == owner.tun && rule.target != 0);
        ends.extend(jumps.map(|(rule, _)| rule.target));
        ends.push(owner.first_rule.saturating_add(LAST_RULE));
        rules.retain(|(rule, _)| {
            let mut runs = ends.iter().map(|end| end.saturating_sub(LAST_RULE)..=*end);
            runs.any(|run| run.contains(&rule.priority)) || rule.table == owner.table || rule.iif == owner.tun
        });
        for (rule, _) in rules {
            if rule.table != owner.table && !tables.contains(&rule.table) {
                tables.push(rule.table);
            }
        }
    }

    /// Takes the body of an `RTM_NEWROUTE`. The same body, sent back, deletes the route.
    pub fn see_route(&mut self, body: &[u8]) {
        let Some(route) = Route::parse(body).filter(|route| route.protocol == OURS) else { return };
        let table = self.owner.table;
        let is_fallback = route.table == MAIN && route.metric == fallback_metric(table);
        if route.table != table && !self.tables.contains(&route.table) && !is_fallback {
            return;
        }
        match self.desired.find(&route) {
            // Adding a desired route replaces another one with the same key, so that one need not be deleted.
            Some((number, desired)) => self.there[number] = route == desired,
            None => self.stale.push((Action::DeleteRoute(route), Message::new(RTM_DELROUTE, 0, body))),
        }
    }

    /// The requests for what is missing, and for what must go.
    pub fn requests(&mut self) -> Requests {
        let desired = &self.desired;
        // Routes come first, because a rule for an empty table captures nothing.
        let mut add_routes = Vec::new();
        let mut there = self.there.iter();
        for group in &desired.groups {
            for net in group.nets.iter() {
                if there.next() == Some(&false) {
                    add_routes.push(group.route(*net));
                }
            }
        }
        let mut others = Vec::new();
        for rule in &desired.rules {
            if !self.rules.iter().any(|(found, _)| found == rule) {
                others.push((Action::AddRule(rule.priority), rule.add()));
            }
        }
        others.append(&mut self.stale);
        // Deletes jumps to END before other rules: without the rule that selects a packet, it would meet the
        // jump behind that rule and get past the capture.
        for are_jumps in [true, false] {
            for (rule, deletion) in &mut self.rules {
                if self.ends.contains(&rule.target) == are_jumps && !desired.rules.contains(rule) {
                    others.push((Action::DeleteRule(rule.priority), mem::take(deletion)));
                }
            }
        }
        Requests { add_routes: add_routes.into_iter(), others: others.into_iter() }
    }
}

/// Requests, to be sent in this order. After an addition that fails, the rest must not be sent.
pub struct Requests {
    add_routes: vec::IntoIter<Route>,
    others: vec::IntoIter<(Action, Message)>,
}

impl Iterator for Requests {
    type Item = (Action, Message);

    fn next(&mut self) -> Option<Self::Item> {
        let addition = self.add_routes.next().map(|route| (Action::AddRoute(route), route.add()));
        addition.or_else(|| self.others.next())
    }
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Adds a route.
    AddRoute(Route),
    /// Adds a rule of this priority.
    AddRule(u32),
    /// Deletes a route.
    DeleteRoute(Route),
    /// Deletes a rule of this priority.
    DeleteRule(u32),
}

impl Action {
    /// Whether an `errno` says that somebody else has done this already.
    pub const fn is_done(self, errno: i32) -> bool {
        match self {
            Self::AddRoute(_) => false,
            Self::AddRule(_) => errno == EEXIST,
            Self::DeleteRoute(_) => errno == ESRCH,
            Self::DeleteRule(_) => errno == ENOENT,
        }
    }

    /// Whether this is a deletion. If one fails, the other requests are still sent.
    pub const fn is_deletion(self) -> bool {
        matches!(self, Self::DeleteRoute(_) | Self::DeleteRule(_))
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddRoute(Route { net, table, .. }) => write!(f, "add route {net} to table {table}"),
            Self::AddRule(priority) => write!(f, "add rule {priority}"),
            Self::DeleteRoute(Route { net, table, .. }) => write!(f, "delete route {net} from table {table}"),
            Self::DeleteRule(priority) => write!(f, "delete rule {priority}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::super::{Path, Uplinks, bypassing};
    use super::*;
    use crate::net::IpNet;

    const TUN: &str = "toh0";

    fn config() -> Config {
        let text = "config tcp-over-http main\noption auto_route 1\nlist upstream http://192.0.2.1\n";
        Config::from_uci(text).unwrap()
    }

    fn nets(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|text| IpNet::parse(text).unwrap()).collect()
    }

    fn desired(config: &Config, path: Path) -> Rc<Desired> {
        Rc::new(Desired::new(config, path, TUN, Some(7), &Uplinks::default()))
    }

    /// The plan for a kernel that has the rules and routes of `before`.
    fn plan(config: &Config, before: &Desired, after: &Rc<Desired>) -> Plan {
        let mut plan = Plan::new(Owner::new(config), Rc::clone(after));
        for rule in &before.rules {
            plan.see_rule(rule.add().body());
        }
        plan.end_rules();
        for route in before.routes() {
            plan.see_route(route.add().body());
        }
        plan
    }

    fn actions(config: &Config, before: &Desired, after: &Rc<Desired>) -> Vec<String> {
        plan(config, before, after).requests().map(|(action, _)| action.to_string()).collect()
    }

    #[test]
    fn what_is_there_stays() {
        for path in [Path::Relay, Path::Forward] {
            let (config, nothing) = (config(), Desired::default());
            let desired = desired(&config, path);
            let all = desired.rules.len() + desired.routes().count();
            assert_eq!(actions(&config, &nothing, &desired).len(), all);
            assert_eq!(actions(&config, &desired, &desired), [""; 0]);
            assert_eq!(actions(&config, &desired, &Rc::default()).len(), all);
        }
    }

    #[test]
    fn only_what_differs_is_changed_and_additions_come_first() {
        let mut config = config();
        config.rules = bypassing(nets(&["10.0.0.0/8", "172.16.0.0/12"]));
        let before = desired(&config, Path::Relay);
        config.rules = bypassing(nets(&["10.0.0.0/8", "192.168.0.0/16"]));
        config.interfaces = std::vec!["lan0".to_string()];
        config.address6 = None;
        let after = desired(&config, Path::Relay);
        let actions = actions(&config, &before, &after);
        let first_deletion = actions.iter().position(|it| it.starts_with("delete")).unwrap();
        let (added, deleted) = actions.split_at(first_deletion);
        assert_eq!(added[0], "add route 192.168.0.0/16 to table 7480");
        assert!(added[1..].iter().all(|it| it.starts_with("add rule ")), "{added:?}");
        assert!(deleted.iter().all(|it| it.starts_with("delete ")), "{deleted:?}");
        assert_eq!(deleted[0], "delete route 172.16.0.0/12 from table 7480");
        assert!(deleted.contains(&"delete route ::/0 from table 7480".to_string()));
        assert!(deleted.contains(&"delete rule 916".to_string()), "IPv6 is off");
    }

    /// A route with the key of a desired one is replaced, and must not be deleted: IPv6 would delete the new
    /// one in its place.
    #[test]
    fn what_is_replaced_is_not_deleted() {
        let mut config = config();
        config.auto_route = false;
        config.routes = nets(&["2001:db8::/32"]);
        config.rules = bypassing(nets(&["2001:db8:1::/48"]));
        let before = desired(&config, Path::Relay);
        config.routes = nets(&["2001:db8:1::/48", "2001:db8:2::/48"]);
        config.rules = bypassing(nets(&["2001:db8::/48"]));
        let after = desired(&config, Path::Relay);
        let requests: Vec<_> = plan(&config, &before, &after).requests().map(|(action, _)| action).collect();
        for action in &requests {
            if let Action::DeleteRoute(route) = action {
                assert!(after.routes().all(|it| it.key() != route.key()), "{route:?}");
            }
        }
        let replaced = after.routes().find(|it| it.net == nets(&["2001:db8:1::/48"])[0]).unwrap();
        assert!(requests.contains(&Action::AddRoute(replaced)));
    }

    #[test]
    fn others_are_left_alone() {
        let mut config = config();
        let ours = desired(&config, Path::Relay);
        config.tun = "toh7".to_string();
        (config.table, config.rule_priority) = (9000, 2000);
        let other = Rc::new(Desired::new(&config, Path::Relay, "toh7", Some(8), &Uplinks::default()));
        assert!(actions(&config, &ours, &other).iter().all(|it| it.starts_with("add ")));
        // With a table in common, the other rules count as an earlier run's.
        config.table = 7480;
        let deleted = actions(&config, &ours, &Rc::default());
        assert!(deleted.iter().any(|it| it.starts_with("delete route")));
    }

    #[test]
    fn no_fault() {
        assert!(Action::AddRule(900).is_done(EEXIST) && !Action::AddRule(900).is_done(ENOENT));
        assert!(Action::DeleteRule(900).is_done(ENOENT) && Action::DeleteRule(900).is_deletion());
        assert!(!Action::AddRule(900).is_deletion());
    }
}
