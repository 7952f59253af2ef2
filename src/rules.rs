//! Rules decide about a connection by where it goes and where it comes from. The first one that matches wins.
//!
//! A rule's destinations are domains and networks: any one of them matches. A rule may also name ports, clients and
//! devices; then one of each has to match as well. A connection to a fake address has a name but no address; any other
//! has an address but no name.
//!
//! A name that is direct for everybody gets no fake address. Its real ones are [learnt](Rules::learn) from the answer:
//! connections to them are direct, like those to the name, whatever rules say about addresses.
//!
//! The firewall has the same rules ([`nft`](crate::capture::nft)), so that the kernel itself lets direct connections
//! pass.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::fmt;
use core::net::IpAddr;

use crate::dns::{Domains, NameRef};
use crate::net::IpNet;

/// The most rules.
pub const MAX_RULES: usize = 1024;

/// The most domains and networks in all rules.
pub const MAX_ENTRIES: usize = 200_000;

/// The most addresses of direct names that are kept; the oldest makes room for a new one.
const MAX_LEARNT: usize = 4096;

/// The decision about a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// Only the proxy with this index in the configuration is asked.
    Upstream(u8),
    /// It goes to its destination without a proxy.
    Direct,
    /// It is refused.
    #[default]
    Reject,
}

/// A rule. An empty list matches anything.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// Names of destinations...
    pub domains: Domains,
    /// ...or their addresses.
    pub networks: Vec<IpNet>,
    /// Ranges of ports: first and last of each.
    pub ports: Vec<(u16, u16)>,
    /// The clients' addresses...
    pub clients: Vec<IpNet>,
    /// ...or their Ethernet addresses, as `02:00:00:00:00:0a`.
    pub macs: Vec<String>,
    /// The devices that the connection comes in by.
    pub devices: Vec<String>,
    /// What happens with a connection that matches.
    pub action: Action,
}

/// A connection to decide about.
#[derive(Clone, Copy)]
pub struct Connection<'a> {
    /// The destination's name, if it is known...
    pub name: Option<NameRef<'a>>,
    /// ...else its address.
    pub address: IpAddr,
    /// The destination's port.
    pub port: u16,
    /// The client's address.
    pub client: IpAddr,
    /// Where the client is; known only if rules [need it](Rules::need_neighbour).
    pub neighbour: &'a Neighbour,
}

/// Where a client is.
#[derive(Default)]
pub struct Neighbour {
    /// The client's Ethernet address, if it is a neighbour.
    pub mac: Option<String>,
    /// The device that it is behind.
    pub device: Option<String>,
}

/// All rules, in order.
#[derive(Default)]
pub struct Rules {
    list: Vec<Rule>,
    /// How many of the first rules come from short forms.
    shorts: usize,
    /// Addresses of direct names, the newest last, each with its name [reversed](NameRef::reversed).
    learnt: RefCell<Vec<(IpAddr, Box<[u8]>)>>,
}

impl Rules {
    /// Adds a rule after the others; those from short forms come first.
    pub fn push(&mut self, mut rule: Rule, is_short: bool) {
        rule.domains.seal();
        IpNet::widest(&mut rule.networks);
        IpNet::widest(&mut rule.clients);
        rule.networks.shrink_to_fit();
        self.list.push(rule);
        self.shorts += usize::from(is_short);
    }

    /// The decision about a connection; `None`: no rule matches.
    pub fn decide(&self, connection: Connection<'_>) -> Option<Action> {
        let Connection { name, address, port, client, neighbour } = connection;
        if name.is_none() && self.learnt.borrow().iter().any(|(learnt, _)| *learnt == address) {
            return Some(Action::Direct);
        }
        let mut buffer = [0; 255];
        let name = name.map(|name| name.reversed(&mut buffer));
        let rule = self.list.iter().find(|rule| {
            let is_to = || match name {
                Some(name) => rule.domains.covers(name),
                None => IpNet::host(address).is_within(&rule.networks),
            };
            (!rule.has_destinations() || is_to())
                && (rule.ports.is_empty()
                    || rule.ports.iter().any(|range| (range.0..=range.1).contains(&port)))
                && (!rule.has_clients()
                    || IpNet::host(client).is_within(&rule.clients)
                    || rule.macs.iter().any(|mac| neighbour.mac.as_ref() == Some(mac)))
                && (rule.devices.is_empty()
                    || rule.devices.iter().any(|it| neighbour.device.as_ref() == Some(it)))
        })?;
        Some(rule.action)
    }

    /// Whether connections to a name are direct for all clients and ports, so that clients need its real addresses.
    pub fn is_direct(&self, name: NameRef<'_>) -> bool {
        self.is_direct_reversed(name.reversed(&mut [0; 255]))
    }

    fn is_direct_reversed(&self, name: &[u8]) -> bool {
        for rule in &self.list {
            if rule.has_destinations() && !rule.domains.covers(name) {
                continue;
            }
            let is_for_all = rule.is_for_all();
            if is_for_all || rule.action != Action::Direct {
                // A rule without domains says nothing about names: a name is direct only if a rule names it.
                return rule.action == Action::Direct && is_for_all && !rule.domains.is_empty();
            }
        }
        false
    }

    /// Learns an address of a name that [is direct](Self::is_direct).
    pub fn learn(&self, name: NameRef<'_>, address: IpAddr) {
        let mut learnt = self.learnt.borrow_mut();
        learnt.retain(|(old, _)| *old != address);
        if learnt.len() == MAX_LEARNT {
            learnt.remove(0);
        }
        learnt.push((address, name.reversed(&mut [0; 255]).into()));
    }

    /// All addresses that have been learnt.
    pub fn learnt(&self) -> Vec<IpAddr> {
        self.learnt.borrow().iter().map(|(address, _)| *address).collect()
    }

    /// Takes over the addresses that other rules have learnt, for names that are direct by these rules as well.
    pub fn inherit(&self, old: &Self) {
        let mut learnt = old.learnt.borrow().clone();
        learnt.retain(|(_, name)| self.is_direct_reversed(name));
        self.learnt.replace(learnt);
    }

    /// Whether any name can be direct.
    pub fn have_direct_names(&self) -> bool {
        self.list.iter().any(|rule| rule.action == Action::Direct && !rule.domains.is_empty())
    }

    /// Whether decisions depend on where a client is.
    pub fn need_neighbour(&self) -> bool {
        self.list.iter().any(|rule| !rule.macs.is_empty() || !rule.devices.is_empty())
    }

    /// The rules from short forms, which are also in force without the firewall.
    pub fn short_forms(&self) -> &[Rule] {
        self.list.get(..self.shorts).unwrap_or_default()
    }

    /// The rules up to the last that is direct.
    pub fn up_to_direct(&self) -> &[Rule] {
        let last = self.list.iter().rposition(|rule| rule.action == Action::Direct);
        self.list.get(..last.map_or(0, |last| last + 1)).unwrap_or_default()
    }
}

/// Compares the rules, not what they have learnt.
impl PartialEq for Rules {
    fn eq(&self, other: &Self) -> bool {
        self.list == other.list
    }
}

impl Rule {
    /// Whether it names destinations.
    pub const fn has_destinations(&self) -> bool {
        !self.domains.is_empty() || !self.networks.is_empty()
    }

    /// Whether it names clients.
    pub const fn has_clients(&self) -> bool {
        !self.clients.is_empty() || !self.macs.is_empty()
    }

    const fn is_for_all(&self) -> bool {
        self.ports.is_empty() && !self.has_clients() && self.devices.is_empty()
    }
}

/// Only their number: they may be long.
impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rules({})", self.list.len())
    }
}

#[cfg(test)]
mod tests;
