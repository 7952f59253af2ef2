//! The clients of the resolver, and the list of those that wait for a response.

use std::net::{Ipv6Addr, SocketAddr};
use std::rc::Weak;

use tcp_over_http::dns::Query;
use tcp_over_http::neighbours::Neighbours;
use tcp_over_http::net::ClientKey;
use tcp_over_http::packet::Tuple;

use super::stream::Stream;

/// How many clients may wait at once.
pub const MAX_WAITERS: u16 = 1024;

/// How many queries of one network client, or of one connection, may wait: fewer than any resolver takes, so that one
/// client can't use up a resolver.
pub const MAX_WAITERS_OF_ONE: usize = 48;

/// Where a response goes.
pub enum Client {
    /// From the server's socket of this number to this address.
    Udp(usize, SocketAddr),
    /// To a connection, unless it has ended by then (a waiting client keeps no file open), and its source, unless that
    /// is on the loopback.
    Tcp(Weak<Stream>, Option<Ipv6Addr>),
    /// To the source of a captured datagram with these addresses and ports.
    Packet(Tuple),
}

impl Client {
    /// The network client. `None` for the loopback, where dnsmasq asks on behalf of many.
    pub const fn source(&self) -> Option<Ipv6Addr> {
        match self {
            Self::Udp(..) => None,
            Self::Tcp(_, source) => *source,
            Self::Packet(tuple) => Some(tuple.source),
        }
    }

    /// As who it counts where clients share something.
    pub fn key(&self, neighbours: &Neighbours) -> Option<ClientKey> {
        self.source().map(|source| neighbours.key(source))
    }

    /// The most bytes that a response may have.
    pub fn limit(&self, query: &Query<'_>) -> usize {
        match self {
            Self::Tcp(..) => u16::MAX.into(),
            Self::Udp(..) | Self::Packet(_) => query.udp_limit(),
        }
    }
}

/// A client that waits, and what it asked.
pub struct Waiter {
    /// The query, whole.
    pub query: Box<[u8]>,
    /// Who asked.
    pub client: Client,
    /// As who this counts.
    pub key: Option<ClientKey>,
}

/// All clients that wait, each with a number.
#[derive(Default)]
pub struct Waiters {
    places: Vec<Option<Waiter>>,
    free: Vec<u32>,
}

impl Waiters {
    /// Adds one and returns its number; gives it back if there are too many.
    pub fn add(&mut self, waiter: Waiter) -> Result<u32, Waiter> {
        let key = waiter.key;
        let is_same = |other: &&Waiter| other.key == key;
        if key.is_some() && self.places.iter().flatten().filter(is_same).count() >= MAX_WAITERS_OF_ONE {
            return Err(waiter);
        }
        let number = match self.free.pop() {
            Some(number) => number,
            None if self.places.len() < MAX_WAITERS.into() => {
                self.places.push(None);
                self.places.len() as u32 - 1
            }
            None => return Err(waiter),
        };
        if let Some(place) = self.places.get_mut(number as usize) {
            *place = Some(waiter);
        }
        Ok(number)
    }

    /// Removes one.
    pub fn take(&mut self, number: u32) -> Option<Waiter> {
        let waiter = self.places.get_mut(number as usize)?.take()?;
        self.free.push(number);
        Some(waiter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_client_leaves_places_to_others() {
        let [one, other] = [1, 2].map(|nth| Some(ClientKey::machine([2, 0, 0, 0, 0, nth])));
        let loopback = SocketAddr::from(([127, 0, 0, 1], 5000));
        let waiter = |key| Waiter { query: Box::default(), client: Client::Udp(0, loopback), key };
        let mut waiters = Waiters::default();
        let mut add = |key| waiters.add(waiter(key)).ok();
        for _ in 0..MAX_WAITERS_OF_ONE {
            assert!(add(one).is_some());
        }
        assert!(add(one).is_none() && add(other).is_some());
        for _ in 0..2 * MAX_WAITERS_OF_ONE {
            assert!(add(None).is_some());
        }
        waiters.take(0);
        let mut add = |key| waiters.add(waiter(key)).ok();
        assert_eq!((add(one), add(one)), (Some(0), None));
    }
}
