//! Rules: what becomes of a connection, decided by where it goes and who it is from. The first that matches wins.
//!
//! A rule's destinations are domains and networks: one of either will do. It may name ports, clients and devices besides,
//! and then wants one of each. A connection to a fake address has a name and no address, any other an address and no name.
//!
//! A name that is direct for everybody gets no fake address. Its real ones are [learnt](Rules::learn) from the answer:
//! connections to them are direct, whatever rules say of addresses, as those to a name would be.
//!
//! The same rules are the firewall's ([`nft`](crate::capture::nft)), so that the kernel lets go by itself what is direct.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::fmt;
use core::net::IpAddr;

use crate::dns::{Domains, NameRef};
use crate::net::IpNet;

/// The most rules that there can be.
pub const MAX_RULES: usize = 1024;

/// The most domains and networks in all rules.
pub const MAX_ENTRIES: usize = 200_000;

/// The most addresses of direct names that are kept; the oldest makes room.
const MAX_LEARNT: usize = 4096;

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// The proxy with this index in the configuration is asked, and no other.
    Upstream(u8),
    /// It goes to its destination without a proxy.
    Direct,
    /// It is refused.
    #[default]
    Reject,
}

/// A rule. An empty list: whatever it is.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// Names of destinations...
    pub domains: Domains,
    /// ...or their addresses.
    pub networks: Vec<IpNet>,
    /// First and last of each range of ports.
    pub ports: Vec<(u16, u16)>,
    /// Who the connection is from...
    pub clients: Vec<IpNet>,
    /// ...or which machine: Ethernet addresses, as `02:00:00:00:00:0a`.
    pub macs: Vec<String>,
    /// The devices that it comes in by.
    pub devices: Vec<String>,
    /// What becomes of it.
    pub action: Action,
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
    /// Where that is, as far as rules [ask](Rules::need_origin).
    pub origin: &'a Origin,
}

/// Where a client is.
#[derive(Default)]
pub struct Origin {
    /// Its Ethernet address, if it is a neighbour.
    pub mac: Option<String>,
    /// The device that it is behind.
    pub device: Option<String>,
}

/// All rules, in order.
#[derive(Default)]
pub struct Rules {
    list: Vec<Rule>,
    /// How many of them, the first, come from short forms.
    shorts: usize,
    /// Addresses of direct names, the latest last, each with the name [reversed](NameRef::reversed).
    learnt: RefCell<Vec<(IpAddr, Box<[u8]>)>>,
}

impl Rules {
    /// Adds a rule behind the others; those from short forms come first.
    pub fn push(&mut self, mut rule: Rule, is_short: bool) {
        rule.domains.seal();
        IpNet::widest(&mut rule.networks);
        IpNet::widest(&mut rule.clients);
        rule.networks.shrink_to_fit();
        self.list.push(rule);
        self.shorts += usize::from(is_short);
    }

    /// What becomes of a connection; `None`: no rule says.
    pub fn decide(&self, connection: Connection<'_>) -> Option<Action> {
        let Connection { name, address, port, client, origin } = connection;
        if name.is_none() && self.learnt.borrow().iter().any(|(learnt, _)| *learnt == address) {
            return Some(Action::Direct);
        }
        let mut buffer = [0; 255];
        let name = name.map(|name| name.reversed(&mut buffer));
        let rule = self.list.iter().find(|rule| {
            let is_to = || match name {
                Some(name) => rule.domains.covers(name),
                None => is_in(&rule.networks, address),
            };
            (!rule.has_destinations() || is_to())
                && (rule.ports.is_empty()
                    || rule.ports.iter().any(|range| (range.0..=range.1).contains(&port)))
                && (!rule.has_clients()
                    || is_in(&rule.clients, client)
                    || rule.macs.iter().any(|mac| origin.mac.as_ref() == Some(mac)))
                && (rule.devices.is_empty()
                    || rule.devices.iter().any(|it| origin.device.as_ref() == Some(it)))
        })?;
        Some(rule.action)
    }

    /// Whether connections to a name go there directly, whoever they are from and to which port: then it needs its real
    /// addresses.
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
                // Without a domain it says nothing about names: those that nobody asked to be direct stay with us.
                return rule.action == Action::Direct && is_for_all && !rule.domains.is_empty();
            }
        }
        false
    }

    /// Takes an address of a name that [is direct](Self::is_direct).
    pub fn learn(&self, name: NameRef<'_>, address: IpAddr) {
        let mut learnt = self.learnt.borrow_mut();
        learnt.retain(|(old, _)| *old != address);
        if learnt.len() == MAX_LEARNT {
            learnt.remove(0);
        }
        learnt.push((address, name.reversed(&mut [0; 255]).into()));
    }

    /// What has been learnt, of all families.
    pub fn learnt(&self) -> Vec<IpAddr> {
        self.learnt.borrow().iter().map(|(address, _)| *address).collect()
    }

    /// Takes over what other rules have learnt of names that are direct by these, too.
    pub fn inherit(&self, old: &Self) {
        let mut learnt = old.learnt.borrow().clone();
        learnt.retain(|(_, name)| self.is_direct_reversed(name));
        self.learnt.replace(learnt);
    }

    /// Whether names can be direct.
    pub fn have_direct_names(&self) -> bool {
        self.list.iter().any(|rule| rule.action == Action::Direct && !rule.domains.is_empty())
    }

    /// Whether a decision needs to know where a client is.
    pub fn need_origin(&self) -> bool {
        self.list.iter().any(|rule| !rule.macs.is_empty() || !rule.devices.is_empty())
    }

    /// Those from short forms, which hold without the firewall, too.
    pub fn short_forms(&self) -> &[Rule] {
        self.list.get(..self.shorts).unwrap_or_default()
    }

    /// The rules up to the last that is direct.
    pub fn up_to_direct(&self) -> &[Rule] {
        let last = self.list.iter().rposition(|rule| rule.action == Action::Direct);
        self.list.get(..last.map_or(0, |last| last + 1)).unwrap_or_default()
    }
}

/// What they say, not what has been learnt.
impl PartialEq for Rules {
    fn eq(&self, other: &Self) -> bool {
        self.list == other.list
    }
}

impl Rule {
    /// Whether it names where connections go.
    pub const fn has_destinations(&self) -> bool {
        !self.domains.is_empty() || !self.networks.is_empty()
    }

    /// Whether it names who they are from.
    pub const fn has_clients(&self) -> bool {
        !self.clients.is_empty() || !self.macs.is_empty()
    }

    const fn is_for_all(&self) -> bool {
        self.ports.is_empty() && !self.has_clients() && self.devices.is_empty()
    }
}

/// Whether an address is in one of these networks, of which none contains another, in order.
fn is_in(networks: &[IpNet], address: IpAddr) -> bool {
    let address = IpNet::host(address);
    let behind = networks.partition_point(|net| *net <= address);
    let last = behind.checked_sub(1).and_then(|last| networks.get(last));
    last.is_some_and(|last| last.contains(address))
}

/// How many there are: they may be long.
impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rules({})", self.list.len())
    }
}

#[cfg(test)]
mod tests;
