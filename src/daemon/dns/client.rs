//! The clients of the resolver, and the list of those that wait for a response.

use std::net::{Ipv6Addr, SocketAddr};
use std::rc::Weak;

use tcp_over_http::dns::Query;
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

    /// The same, as far as others share with it.
    pub fn key(&self) -> Option<ClientKey> {
        self.source().map(ClientKey::of)
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
        let key = waiter.client.key();
        let is_same = |other: &&Waiter| other.client.key() == key;
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
    use tcp_over_http::dns::PORT;

    #[test]
    fn a_network_client_leaves_places_to_others() {
        let [one, again, other] = ["fd00::1", "fd00::2", "fd00:0:0:1::1"].map(|text| text.parse().unwrap());
        let packet = |source| {
            Client::Packet(Tuple { source, destination: other, source_port: 1, destination_port: PORT })
        };
        let mut waiters = Waiters::default();
        let mut add = |client| waiters.add(Waiter { query: Box::default(), client }).ok();
        for _ in 0..MAX_WAITERS_OF_ONE {
            assert!(add(packet(one)).is_some());
        }
        assert!(add(packet(one)).is_none() && add(packet(again)).is_none() && add(packet(other)).is_some());
        let loopback = SocketAddr::from(([127, 0, 0, 1], 5000));
        for _ in 0..2 * MAX_WAITERS_OF_ONE {
            assert!(add(Client::Udp(0, loopback)).is_some());
        }
        waiters.take(0);
        let mut add = |client| waiters.add(Waiter { query: Box::default(), client }).ok();
        assert_eq!((add(packet(one)), add(packet(one))), (Some(0), None));
    }
}
