//! The table's replies to clients.

use core::net::IpAddr;

use super::super::special::local_reply;
use super::{FakeIp, IDLE, NEW};
use crate::dns::wire::header::Rcode;
use crate::dns::wire::message::Kind;
use crate::dns::wire::query::Query;
use crate::dns::wire::reply::Reply;
use crate::net::Family;
use crate::time::Instant;

/// TTL of a fake address.
pub const FAKE_TTL: u32 = 60;
/// The TTL while many new names come.
const SHORT_TTL: u32 = 1;
/// A name must live this many times its TTL at the current rate of new names.
const RESERVE: u32 = 4;

impl FakeIp {
    /// The reply to a query, with an address if it asks for one. HTTPS and SVCB records do not exist here: they may hold
    /// addresses, and keys for a server (ECH) that would hide names from the proxy; without them clients behave as
    /// before (RFC 9460 section 3). Special names are left to [`local_reply`].
    ///
    /// `None` for types that have nothing to do with addresses: a resolver may know the answer.
    ///
    /// `only`: names have addresses of this family only.
    pub fn answer(&mut self, query: &Query<'_>, only: Option<Family>, now: Instant) -> Option<Reply<'_>> {
        if query.is_internet()
            && query.kind() == Kind::PTR
            && let Some(address) = query.address()
            && self.contains(address)
        {
            return Some(match self.find(address) {
                Some(entry) => Reply::Pointer(self.name(entry), SHORT_TTL),
                None => Reply::NoSuchName(SHORT_TTL),
            });
        }
        if let Some(reply) = local_reply(query) {
            return Some(reply);
        }
        match query.kind() {
            Kind::A | Kind::AAAA => Some(self.address_reply(query, only, now)),
            Kind::HTTPS | Kind::SVCB => Some(Reply::NoData(FAKE_TTL)),
            Kind::ANY => Some(Reply::Any),
            _ => None,
        }
    }

    fn address_reply(&mut self, query: &Query<'_>, only: Option<Family>, now: Instant) -> Reply<'static> {
        let Some(host) = query.name().host() else {
            return Reply::NoSuchName(FAKE_TTL);
        };
        let family = if query.kind() == Kind::AAAA { Family::V6 } else { Family::V4 };
        let only = if self.ranges.v6.is_some() { only } else { Some(Family::V4) };
        if only.is_some_and(|only| only != family) {
            return Reply::NoData(FAKE_TTL);
        }
        let ttl = self.ttl(now);
        let Some(entry) = self.assign(&host, ttl, now) else {
            return Reply::Failed(Rcode::ServFail);
        };
        let ipv4 = IpAddr::V4(self.v4(entry));
        match self.v6(entry) {
            Some(ipv6) if query.kind() == Kind::AAAA => Reply::Address(ipv6.into(), ttl),
            _ => Reply::Address(ipv4, ttl),
        }
    }

    /// How many seconds a client may cache an address: fewer than a name lives at the current rate of new names.
    fn ttl(&self, now: Instant) -> u32 {
        if self.live < self.limit / 2 && self.names.is_half_empty() {
            return FAKE_TTL;
        }
        let first = |list| self.links.first(list).and_then(|slot| self.slots.get(usize::from(slot)));
        let ages = [first(NEW), first(IDLE)].map(|slot| slot.map_or(0, |slot| slot.expires.age(now)));
        (ages[0].max(ages[1]) / 1000 / RESERVE).clamp(SHORT_TTL, FAKE_TTL)
    }
}
