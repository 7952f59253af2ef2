//! From what the kernel has to what it is to have.
//!
//! What is missing is added first, and only then what is ours and not desired is deleted: a start after a crash or with
//! other options opens no gap through which traffic could leak. To install is to do it for the first time, to restore
//! is to do it again, to remove is to desire nothing.

use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::{self, Vec};
use core::fmt;
use core::iter::Enumerate;
use core::mem;

use super::netlink::Message;
use super::route::{RTM_DELROUTE, Route};
use super::rule::{RTM_DELRULE, Rule};
use super::rules::LAST_RULE;
use super::{Desired, OURS};
use crate::config::{Config, TABLES};

// <asm-generic/errno-base.h>

const ENOENT: i32 = 2;
const ESRCH: i32 = 3;
const EEXIST: i32 = 17;

/// What our rules and routes are known by, and so those of an earlier run with the same device, table or priority.
#[derive(Clone)]
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

    fn owns_table(&self, table: u32) -> bool {
        (self.table..self.table.saturating_add(TABLES)).contains(&table)
    }
}

/// The rules and routes that were found, held against the desired ones. It is to see all rules,
/// [their end](Plan::end_rules), all routes.
pub struct Plan {
    owner: Owner,
    desired: Rc<Desired>,
    /// Ours.
    rules: Vec<Found<Rule>>,
    /// The last priorities of this run, and of earlier ones with other numbers.
    ends: Vec<u32>,
    /// The tables that our rules lead to.
    tables: Vec<u32>,
    /// Which of the desired routes are there.
    there: Vec<bool>,
    /// Our routes that are not desired.
    stale: Vec<Found<Route>>,
}

/// A rule or a route that was found, and its message, which deletes it when it is sent back: as with `ip rule flush`,
/// nothing in it can be missed.
type Found<T> = (Vec<u8>, T);

impl Plan {
    /// A plan that has seen nothing yet.
    pub fn new(owner: Owner, desired: Rc<Desired>) -> Self {
        Self {
            owner,
            rules: Vec::new(),
            ends: Vec::new(),
            tables: Vec::new(),
            there: alloc::vec![false; desired.routes.len()],
            stale: Vec::new(),
            desired,
        }
    }

    /// Takes the body of an `RTM_NEWRULE`.
    pub fn see_rule(&mut self, body: &[u8]) {
        let ours = Rule::parse(body).filter(|rule| rule.protocol == OURS);
        self.rules.extend(ours.map(|rule| (body.to_vec(), rule)));
    }

    /// All rules have been seen: tells ours from those of another run beside this one, which has another device, and
    /// none of these numbers.
    pub fn end_rules(&mut self) {
        let Self { owner, rules, ends, tables, .. } = self;
        // Each run has a rule that lets what comes from the device jump to its end.
        let jumps = rules.iter().filter(|(_, rule)| rule.iif == owner.tun && rule.target != 0);
        ends.extend(jumps.map(|(_, rule)| rule.target));
        ends.push(owner.first_rule.saturating_add(LAST_RULE));
        ends.sort_unstable();
        ends.dedup();
        rules.retain(|(_, rule)| {
            let mut runs = ends.iter().map(|end| end.saturating_sub(LAST_RULE)..=*end);
            runs.any(|run| run.contains(&rule.priority))
                || owner.owns_table(rule.table)
                || rule.iif == owner.tun
        });
        tables.extend(rules.iter().map(|(_, rule)| rule.table));
        tables.sort_unstable();
        tables.dedup();
    }

    /// Takes the body of an `RTM_NEWROUTE`.
    pub fn see_route(&mut self, body: &[u8]) {
        let Some(route) = Route::parse(body).filter(|route| route.protocol == OURS) else { return };
        if !self.owner.owns_table(route.table) && self.tables.binary_search(&route.table).is_err() {
            return;
        }
        match self.desired.find(&route) {
            // If it is another with the key of a desired one, that one will take its place.
            Some(number) => self.there[number] = self.desired.routes[number] == route,
            None => self.stale.push((body.to_vec(), route)),
        }
    }

    /// How many of the desired rules and routes have not been seen.
    pub fn missing(&self) -> usize {
        self.missing_rules().count() + self.there.iter().filter(|there| !**there).count()
    }

    /// What to ask the kernel for; the plan has seen nothing then.
    pub fn requests(&mut self) -> Requests {
        let add_rules: Vec<Rule> = self.missing_rules().cloned().collect();
        // Routes first: a rule that leads to none captures nothing. The jumps past the capture before other rules:
        // nobody must fall from a rule that selects to the jump behind it.
        let Self { desired, ends, .. } = self;
        let stale = mem::take(&mut self.rules).into_iter().filter(|(_, rule)| !desired.rules.contains(rule));
        let (jumps, others): (Vec<_>, Vec<_>) =
            stale.partition(|(_, rule)| ends.binary_search(&rule.target).is_ok());
        Requests {
            desired: Rc::clone(desired),
            add_routes: mem::take(&mut self.there).into_iter().enumerate(),
            add_rules: add_rules.into_iter(),
            delete_routes: mem::take(&mut self.stale).into_iter(),
            delete_rules: [jumps.into_iter(), others.into_iter()],
        }
    }

    fn missing_rules(&self) -> impl Iterator<Item = &Rule> {
        self.desired.rules.iter().filter(|rule| !self.rules.iter().any(|(_, found)| found == *rule))
    }
}

/// Requests, to be sent in this order, up to the first to add something that fails.
pub struct Requests {
    desired: Rc<Desired>,
    add_routes: Enumerate<vec::IntoIter<bool>>,
    add_rules: vec::IntoIter<Rule>,
    delete_routes: vec::IntoIter<Found<Route>>,
    delete_rules: [vec::IntoIter<Found<Rule>>; 2],
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

impl Iterator for Requests {
    type Item = (Action, Message);

    fn next(&mut self) -> Option<Self::Item> {
        if let Some((number, _)) = self.add_routes.find(|(_, there)| !there) {
            let route = self.desired.routes[number];
            return Some((Action::AddRoute(route), route.add()));
        }
        if let Some(rule) = self.add_rules.next() {
            return Some((Action::AddRule(rule.priority), rule.add()));
        }
        if let Some((body, route)) = self.delete_routes.next() {
            return Some((Action::DeleteRoute(route), Message::new(RTM_DELROUTE, 0, &body)));
        }
        let (body, rule) = self.delete_rules.iter_mut().find_map(Iterator::next)?;
        Some((Action::DeleteRule(rule.priority), Message::new(RTM_DELRULE, 0, &body)))
    }
}

impl Action {
    /// Whether it is no fault if the kernel refuses with this `errno`: somebody else has done it.
    pub const fn is_done(self, errno: i32) -> bool {
        match self {
            Self::AddRoute(_) => false,
            Self::AddRule(_) => errno == EEXIST,
            Self::DeleteRoute(_) => errno == ESRCH,
            Self::DeleteRule(_) => errno == ENOENT,
        }
    }

    /// Whether the others are to be tried if it fails.
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
