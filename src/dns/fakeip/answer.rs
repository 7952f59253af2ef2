//! What the table says to a client.

use core::net::IpAddr;

use super::super::special::local_reply;
use super::{FakeIp, IDLE};
use crate::dns::wire::message::Kind;
use crate::dns::wire::reply::{Rcode, Reply};
use crate::dns::wire::request::Request;
use crate::time::Instant;

/// Seconds that an address is good for.
pub const FAKE_TTL: u32 = 60;
/// The same when new names are many.
const SHORT_TTL: u32 = 1;
/// How much longer than its TTL a name must live at the present pace.
const RESERVE: u32 = 4;

impl FakeIp {
    /// The reply to a request, with an address if it asks for one. HTTPS and SVCB records do not exist here: they
    /// may hold addresses, and keys for a server (ECH) that would hide names from the proxy; without them clients
    /// do as they always did (RFC 9460 section 3). Special names are left to [`local_reply`].
    ///
    /// None for types that say nothing of addresses: somebody else may know.
    pub fn answer(&mut self, request: &Request<'_>, now: Instant) -> Option<Reply<'_>> {
        if request.is_internet()
            && request.kind() == Kind::PTR
            && let Some(address) = request.address()
            && self.contains(address)
        {
            return Some(match self.find(address) {
                Some(entry) => Reply::Pointer(self.name(entry), SHORT_TTL),
                None => Reply::NoSuchName(SHORT_TTL),
            });
        }
        if let Some(reply) = local_reply(request) {
            return Some(reply);
        }
        match request.kind() {
            Kind::A | Kind::AAAA => Some(self.address_reply(request, now)),
            Kind::HTTPS | Kind::SVCB => Some(Reply::NoData(FAKE_TTL)),
            Kind::ANY => Some(Reply::Any),
            _ => None,
        }
    }

    fn address_reply(&mut self, request: &Request<'_>, now: Instant) -> Reply<'static> {
        let Some(host) = request.name().host() else {
            return Reply::NoSuchName(FAKE_TTL);
        };
        if request.kind() == Kind::AAAA && self.ranges.v6.is_none() {
            return Reply::NoData(FAKE_TTL);
        }
        let ttl = self.ttl(now);
        let Some(entry) = self.assign(&host, ttl, now) else {
            return Reply::Failed(Rcode::ServFail);
        };
        let ipv4 = IpAddr::V4(self.v4(entry));
        match self.v6(entry) {
            Some(ipv6) if request.kind() == Kind::AAAA => Reply::Address(ipv6.into(), ttl),
            _ => Reply::Address(ipv4, ttl),
        }
    }

    /// Seconds that a client may keep an address: less than a name lives at the pace at which new ones come.
    fn ttl(&self, now: Instant) -> u32 {
        if self.live < self.limit / 2 && self.names.is_half_empty() {
            return FAKE_TTL;
        }
        let oldest = self.links.first(IDLE).and_then(|slot| self.slots.get(usize::from(slot)));
        oldest.map_or(SHORT_TTL, |slot| (slot.expires.age(now) / 1000 / RESERVE).clamp(SHORT_TTL, FAKE_TTL))
    }
}
