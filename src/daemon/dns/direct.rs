//! Resolvers that are asked directly: each query in a datagram from a socket of its own, then over TCP if the reply is
//! truncated.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use tcp_over_http::dns::{Ask, Message, Pending, Query, Rcode, Reply, Rounds, limit_ttls};
use tokio::time::timeout;

use super::client::MAX_WAITERS;
use super::responder::{Responder, SERV_FAIL};
use crate::limiter::Limiter;
use crate::task::spawn;
use crate::upstream::exchange::exchange;

/// A query is given up after this many ms.
const PATIENCE: u32 = 10_000;
/// Queries in flight, each with a socket: more than a machine asks by IPv4 and by two networks of IPv6, or dnsmasq (150).
pub const MAX_PENDING: u16 = 160;

/// The resolvers, and the clients that wait for their replies.
pub struct DirectResolver {
    responder: Rc<Responder>,
    servers: RefCell<Vec<SocketAddr>>,
    /// How many seconds a reply may be kept at most.
    ttl: u32,
    mark: u32,
    pending: RefCell<Pending>,
    limiter: Limiter,
}

impl DirectResolver {
    /// Asks `servers` in turn, from sockets with `mark` (0: none).
    pub fn new(responder: &Rc<Responder>, servers: &[SocketAddr], mark: u32) -> Self {
        Self {
            responder: Rc::clone(responder),
            servers: servers.to_vec().into(),
            ttl: u32::MAX,
            mark,
            pending: RefCell::new(Pending::new(MAX_PENDING, MAX_WAITERS)),
            limiter: Limiter::default(),
        }
    }

    /// Limits how many seconds a reply may be kept.
    pub fn with_ttl(self, ttl: u32) -> Self {
        Self { ttl, ..self }
    }

    /// Asks these servers from now on.
    pub fn set_servers(&self, servers: Vec<SocketAddr>) {
        self.servers.replace(servers);
    }

    /// The reply to every query if there is no server to ask.
    pub fn refusal(&self) -> Option<Reply<'static>> {
        if !self.servers.borrow().is_empty() {
            return None;
        }
        if self.limiter.pass(std::time::Instant::now()).is_some() {
            warn!("dns: a client asked for a proxy's name; set who resolves it (list resolver)");
        }
        Some(SERV_FAIL)
    }

    /// Asks for a waiter. False if too many wait already.
    pub fn ask(self: &Rc<Self>, query: &Query, waiter: u32, id: u16) -> bool {
        let ask = self.pending.borrow_mut().ask(query, waiter, id, self.responder.context.now());
        let Ask::New(id) = ask else {
            return matches!(ask, Ask::Joined);
        };
        let mut message = Vec::new();
        query.encode(id, &mut message);
        let this = Rc::clone(self);
        spawn(async move {
            let mut reply = this.resolve(&message).await;
            if let Some(reply) = &mut reply {
                limit_ttls(reply, this.ttl);
            }
            this.end(&message, reply.as_deref());
        });
        true
    }

    /// Tells those who wait for the reply to `message`.
    fn end(&self, message: &[u8], reply: Option<&[u8]>) {
        let waiters = match reply {
            Some(reply) => self.pending.borrow_mut().answer(reply),
            None => self.pending.borrow_mut().give_up(message),
        };
        let waiters = waiters.unwrap_or_default();
        match reply {
            Some(reply) => {
                self.learn(message, reply);
                self.responder.relay(&waiters, reply);
            }
            None => self.responder.fail(&waiters, &SERV_FAIL),
        }
    }

    /// Called before the client gets the reply, since its connections to a direct name's addresses must not be
    /// captured.
    fn learn(&self, query: &[u8], reply: &[u8]) {
        let upstreams = self.responder.context.upstreams();
        if let (Ok(query), Some(reply)) = (Query::parse(query), Message::parse(reply))
            && upstreams.rules().is_direct(query.name())
        {
            let addresses = reply.answers().map_while(|record| record).filter_map(|record| record.ip());
            addresses.for_each(|address| upstreams.learn(query.name(), address));
        }
    }

    /// Gives up queries that have waited too long.
    pub fn tick(&self) {
        self.responder.expire(&self.pending, PATIENCE, &SERV_FAIL);
    }

    /// The first reply; a refusal only if no server has a better one.
    async fn resolve(&self, query: &[u8]) -> Option<Vec<u8>> {
        let mut refusal = None;
        let servers = self.servers.borrow().clone();
        let mut rounds = Rounds::new(&servers);
        while let Some((server, patience)) = rounds.next() {
            match timeout(patience, exchange(server, self.mark, query)).await {
                Ok(Ok(reply)) if is_refusal(&reply) => {
                    refusal = Some(reply);
                    rounds.finish();
                }
                Ok(Ok(reply)) => return Some(reply),
                _ => debug!("resolver {server}: no answer"),
            }
        }
        refusal
    }
}

/// The server could not or would not answer.
fn is_refusal(reply: &[u8]) -> bool {
    let rcode = Message::parse(reply).map(|reply| reply.rcode());
    rcode == Some(Rcode::ServFail as u8) || rcode == Some(Rcode::Refused as u8)
}
