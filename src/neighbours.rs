//! The machines in the networks next to this one, by their addresses.
//!
//! Where clients share something, an IPv6 client is a machine, and not an address: it may have any in its /64, and all
//! clients of a home are in the same /64. So the kernel's table of neighbours (ARP, NDP) tells machines apart. It does
//! not have an address that somebody has only forged. It is read anew when a client was not found in it.

use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::net::Ipv6Addr;

use crate::net::ClientKey;
use crate::time::Instant;

/// Milliseconds after which the list is read anew even if all clients were found in it: an address may have moved.
const TTL: u32 = 60_000;
/// How many neighbours are known. By default the kernel keeps 1,024 of each family.
const MAX: usize = 4096;

/// A list of neighbours: a copy of the kernel's.
#[derive(Default)]
pub struct Neighbours {
    /// Addresses, IPv4 mapped, in order, and Ethernet addresses.
    list: RefCell<Vec<(Ipv6Addr, [u8; 6])>>,
    is_missed: Cell<bool>,
    read: Cell<Option<Instant>>,
}

impl Neighbours {
    /// Who counts as one client: an IPv4 address; with IPv6 a neighbour, and beyond those a /64.
    pub fn key(&self, address: Ipv6Addr) -> ClientKey {
        let mac = if address.to_ipv4_mapped().is_none() { self.find(address) } else { None };
        mac.map_or(ClientKey::of(address), ClientKey::machine)
    }

    /// Whether the address is a neighbour's.
    pub fn has(&self, address: Ipv6Addr) -> bool {
        self.find(address).is_some()
    }

    fn find(&self, address: Ipv6Addr) -> Option<[u8; 6]> {
        let list = self.list.borrow();
        let found = list.binary_search_by_key(&address, |known| known.0).ok().map(|at| list[at].1);
        self.is_missed.set(self.is_missed.get() || found.is_none());
        found
    }

    /// Whether the list should be read now; if so, it counts as read.
    pub fn is_due(&self, now: Instant) -> bool {
        let is_due = self.is_missed.take() || self.read.get().is_none_or(|read| now.since(read) >= TTL);
        if is_due {
            self.read.set(Some(now));
        }
        is_due
    }

    /// Replaces the list by what `read` passes to the function that it is given.
    pub fn replace(&self, read: impl FnOnce(&mut dyn FnMut(Ipv6Addr, [u8; 6]))) {
        let mut list = self.list.borrow_mut();
        list.clear();
        read(&mut |address, mac| {
            if list.len() < MAX {
                list.push((address, mac));
            }
        });
        list.sort_unstable();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn at(address: &str) -> Ipv6Addr {
        address.parse().unwrap()
    }

    #[test]
    fn a_machine_is_one_client_in_its_64() {
        let neighbours = Neighbours::default();
        let [one, again, other, stranger] =
            ["2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8::4"].map(at);
        assert_eq!(neighbours.key(one), neighbours.key(other), "nothing is known");
        let ipv4 = ["::ffff:192.0.2.1", "::ffff:192.0.2.2"].map(at);
        neighbours.replace(|add| {
            add(other, [2, 0, 0, 0, 0, 2]);
            [again, one, ipv4[0], ipv4[1]].into_iter().for_each(|address| add(address, MAC));
        });
        assert_eq!(neighbours.key(one), neighbours.key(again));
        assert_ne!(neighbours.key(one), neighbours.key(other));
        assert_eq!(neighbours.key(stranger), neighbours.key(at("2001:db8::5")));
        assert_ne!(neighbours.key(one), neighbours.key(stranger));
        assert_ne!(neighbours.key(ipv4[0]), neighbours.key(ipv4[1]), "addresses of one machine");
        assert!(neighbours.has(ipv4[0]) && neighbours.has(one) && !neighbours.has(stranger));
        neighbours
            .replace(|add| (0..1 << 16).for_each(|nth| add(Ipv6Addr::from(u128::from(nth as u32)), MAC)));
        assert_eq!(neighbours.list.borrow().len(), MAX);
    }

    #[test]
    fn it_is_read_for_those_that_are_missed() {
        let neighbours = Neighbours::default();
        let due = |ms| neighbours.is_due(Instant::from_millis(ms));
        let client = at("2001:db8::1");
        assert!(due(0) && !due(1));
        neighbours.replace(|add| add(client, MAC));
        neighbours.key(client);
        neighbours.key(at("::ffff:192.0.2.1"));
        assert!(!due(1000), "what is not looked up is not missed");
        neighbours.has(at("::ffff:192.0.2.1"));
        assert!(due(2000) && !due(3000));
        assert!(due(62_000));
    }
}
