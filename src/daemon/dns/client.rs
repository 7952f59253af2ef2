//! Who asks, and those who wait for an answer.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use tcp_over_http::dns::Request;
use tcp_over_http::packet::Tuple;

use super::stream::Stream;

/// Clients that wait for resolvers at a time.
pub const MAX_WAITERS: u16 = 1024;

/// The same of one network client, or of one connection: the others shall have their share, also of those resolvers
/// that take the fewest.
pub const MAX_WAITERS_OF_ONE: usize = 48;

/// Where an answer goes.
pub enum Client {
    /// To a socket of ours, by its number, and who asked there.
    Udp(usize, SocketAddr),
    /// To a connection.
    Tcp(Rc<Stream>),
    /// To the sender of a datagram that was on its way from the first to the second of this.
    Packet(Tuple),
}

impl Client {
    /// Whose the query is, unless somebody on this machine, like dnsmasq, has asked for others.
    fn address(&self) -> Option<IpAddr> {
        let address = match self {
            Self::Udp(_, address) => address.ip(),
            Self::Tcp(stream) => stream.peer(),
            Self::Packet(tuple) => tuple.source.to_canonical(),
        };
        (!address.is_loopback()).then_some(address)
    }

    /// The most bytes that an answer may have.
    pub fn limit(&self, request: &Request<'_>) -> usize {
        match self {
            Self::Tcp(_) => u16::MAX.into(),
            Self::Udp(..) | Self::Packet(_) => request.udp_limit(),
        }
    }
}

/// A client and what it asked.
pub struct Waiter {
    /// The whole query.
    pub query: Box<[u8]>,
    /// Who asked.
    pub client: Client,
}

/// All who wait, each with a number.
#[derive(Default)]
pub struct Waiters {
    places: Vec<Option<Waiter>>,
    free: Vec<u32>,
}

impl Waiters {
    /// Adds one, or gives it back if there are too many.
    pub fn add(&mut self, waiter: Waiter) -> Result<u32, Waiter> {
        if let Some(address) = waiter.client.address() {
            let is_same = |other: &&Waiter| other.client.address() == Some(address);
            if self.places.iter().flatten().filter(is_same).count() >= MAX_WAITERS_OF_ONE {
                return Err(waiter);
            }
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

    /// Takes one out.
    pub fn take(&mut self, number: u32) -> Option<Waiter> {
        let waiter = self.places.get_mut(number as usize)?.take()?;
        self.free.push(number);
        Some(waiter)
    }
}
