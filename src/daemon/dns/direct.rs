//! Resolvers that are asked directly: a datagram from a socket of its own for each query, then TCP if the answer does
//! not fit one.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use tcp_over_http::dns::{Ask, Pending, Query, Rounds};
use tcp_over_http::time::Instant;
use tokio::time::timeout;

use super::client::MAX_WAITERS;
use crate::gateway::Gateway;
use crate::task::spawn;
use crate::upstream::exchange::exchange;

/// A query is given up after this many ms.
const PATIENCE: u32 = 10_000;
/// Queries under way, each with a socket.
pub const MAX_PENDING: u16 = 64;

/// The resolvers, and all who wait for their answers.
pub struct Direct {
    servers: Rc<[SocketAddr]>,
    mark: u32,
    pending: RefCell<Pending>,
}

impl Direct {
    /// Asks `servers` in turn, from sockets with `mark` (0: none).
    pub fn new(servers: &[SocketAddr], mark: u32) -> Self {
        Self { servers: servers.into(), mark, pending: RefCell::new(Pending::new(MAX_PENDING, MAX_WAITERS)) }
    }

    /// Whether there is anybody to ask.
    pub fn has_servers(&self) -> bool {
        !self.servers.is_empty()
    }

    /// Asks for a waiter. False if too many wait already.
    pub fn ask(self: &Rc<Self>, gateway: &Rc<Gateway>, request: &Query<'_>, waiter: u32, id: u16) -> bool {
        let ask = self.pending.borrow_mut().ask(request, waiter, id, gateway.now());
        let Ask::New(id) = ask else {
            return matches!(ask, Ask::Joined);
        };
        let mut query = Vec::new();
        request.encode(id, &mut query);
        let (this, gateway) = (Rc::clone(self), Rc::clone(gateway));
        spawn(async move {
            let reply = this.resolve(&query).await;
            // Without an answer it is as if the query had come back.
            if let [_, _, flags, ..] = query.as_mut_slice() {
                *flags |= 0x80;
            }
            let waiters = this.pending.borrow_mut().answer(reply.as_ref().unwrap_or(&query));
            match (waiters, gateway.dns(), &reply) {
                (Some(waiters), Some(dns), Some(reply)) => dns.answer(&gateway, &waiters, reply),
                (Some(waiters), Some(dns), None) => dns.fail(&gateway, &waiters),
                _ => {}
            }
        });
        true
    }

    /// Gives up what has waited too long.
    pub fn tick(&self, gateway: &Rc<Gateway>, now: Instant) {
        loop {
            let expired = self.pending.borrow_mut().expire(now, PATIENCE);
            match (expired, gateway.dns()) {
                (Some(waiters), Some(dns)) => dns.fail(gateway, &waiters),
                _ => return,
            }
        }
    }

    /// The first answer; one that the server could not or would not give (RFC 1035 section 4.1.1: RCODE) only if
    /// no other has a better one.
    async fn resolve(&self, query: &[u8]) -> Option<Vec<u8>> {
        let mut refusal = None;
        let mut rounds = Rounds::new(&self.servers);
        while let Some((server, patience)) = rounds.next() {
            match timeout(patience, exchange(server, self.mark, query)).await {
                Ok(Ok(reply)) if is_refusal(&reply) => {
                    refusal = Some(reply);
                    rounds.finish();
                }
                Ok(Ok(reply)) => return Some(reply),
                _ => log::debug!("resolver {server}: no answer"),
            }
        }
        refusal
    }
}

fn is_refusal(reply: &[u8]) -> bool {
    const SERVER_FAILURE: u8 = 2;
    const REFUSED: u8 = 5;
    reply.get(3).is_some_and(|flags| matches!(flags & 0xf, SERVER_FAILURE | REFUSED))
}
