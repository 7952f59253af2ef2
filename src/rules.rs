//! Rules: what becomes of a connection, decided by where it goes and who it is from. The first that matches wins.
//!
//! A rule's destinations are domains and networks: one of either will do. It may name ports and clients besides, and then
//! wants one of each. A connection to a fake address has a name and no address, any other an address and no name.

use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;

use crate::dns::{Domains, NameRef};
use crate::net::IpNet;

/// The most rules that there can be.
pub const MAX_RULES: usize = 1024;

/// The most domains and networks in all rules.
pub const MAX_ENTRIES: usize = 200_000;

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The proxy with this index in the configuration is asked, and no other.
    Upstream(u8),
    /// It goes to its destination without a proxy.
    Direct,
    /// It is refused.
    Reject,
}

/// A rule. An empty list: whatever it is.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// Names of destinations, sealed...
    pub domains: Domains,
    /// ...or their addresses, [widest](IpNet::widest) only.
    pub networks: Vec<IpNet>,
    /// First and last of each range of ports.
    pub ports: Vec<(u16, u16)>,
    /// Who the connection is from.
    pub clients: Vec<IpNet>,
    /// What becomes of it; `None`: as if the rule weren't there.
    pub action: Option<Action>,
}

/// What rules are asked about.
#[derive(Clone, Copy)]
pub struct Connection<'a> {
    /// The destination's name, if it is known...
    pub name: Option<NameRef<'a>>,
    /// ...else its address.
    pub address: IpAddr,
    /// The destination's port.
    pub port: u16,
    /// Who it is from.
    pub client: IpAddr,
}

/// All rules, in order.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Rules(Vec<Rule>);

impl Rules {
    /// These rules.
    pub const fn new(rules: Vec<Rule>) -> Self {
        Self(rules)
    }

    /// What becomes of a connection; `None`: no rule says.
    pub fn decide(&self, connection: Connection<'_>) -> Option<Action> {
        let mut buffer = [0; 255];
        let name = connection.name.map(|name| name.reversed(&mut buffer));
        let rule = self.0.iter().find(|rule| {
            let is_to = || match name {
                Some(name) => rule.domains.covers(name),
                None => is_in(&rule.networks, connection.address),
            };
            let is_by = |&(first, last): &(u16, u16)| (first..=last).contains(&connection.port);
            (rule.ports.is_empty() || rule.ports.iter().any(is_by))
                && (rule.clients.is_empty() || is_in(&rule.clients, connection.client))
                && (!rule.has_destinations() || is_to())
        })?;
        rule.action
    }

    /// Whether connections to a name go there directly, whoever they are from and to which port: then it needs its real
    /// addresses.
    pub fn is_direct(&self, name: NameRef<'_>) -> bool {
        let mut buffer = [0; 255];
        let name = name.reversed(&mut buffer);
        for rule in &self.0 {
            if rule.has_destinations() && !rule.domains.covers(name) {
                continue;
            }
            let is_for_all = rule.ports.is_empty() && rule.clients.is_empty();
            let is_direct = rule.action == Some(Action::Direct);
            if is_for_all || !is_direct {
                // Without a domain it says nothing about names: those that nobody asked to be direct stay with us.
                return is_direct && is_for_all && !rule.domains.is_empty();
            }
        }
        false
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Rule {
    const fn has_destinations(&self) -> bool {
        !self.domains.is_empty() || !self.networks.is_empty()
    }
}

/// Whether an address is in one of these networks, of which none contains another, in order.
fn is_in(networks: &[IpNet], address: IpAddr) -> bool {
    let address = IpNet::new(address, if address.is_ipv4() { 32 } else { 128 });
    let behind = networks.partition_point(|net| *net <= address);
    let last = behind.checked_sub(1).and_then(|last| networks.get(last));
    last.is_some_and(|last| last.contains(address))
}

/// How many there are: they may be long.
impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rules({})", self.0.len())
    }
}

#[cfg(test)]
mod tests;
