//! Responses to clients: at once, or when a resolver has answered.

use std::cell::{Cell, RefCell};

use tcp_over_http::dns::{Cache, Pending, Query, Rcode, Reply};
use tcp_over_http::time::Instant;

use super::client::{Client, Waiter, Waiters};
use super::context::Context;
use super::server::Server;

/// Bytes of the cache.
const CACHE: usize = 128 << 10;

/// The reply if no resolver has answered.
pub const SERV_FAIL: Reply<'static> = Reply::Failed(Rcode::ServFail);

/// Sends responses. Keeps the list of waiting clients, and the cache of resolvers' replies.
pub struct Responder {
    /// What DNS needs from the rest of the daemon.
    pub context: Context,
    /// The sockets that clients ask on.
    pub server: Server,
    cache: RefCell<Cache>,
    waiters: RefCell<Waiters>,
    /// A buffer for responses, reused.
    buffer: Cell<Vec<u8>>,
    counters: Cell<Counters>,
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Queries received.
    pub queries: u32,
    /// Answered here: with fake addresses, or as special names.
    pub local: u32,
    /// Answered from the cache.
    pub cached: u32,
    /// Answered by a resolver.
    pub forwarded: u32,
    /// Not answered by any.
    pub failed: u32,
    /// Not answered, because the client asks too much.
    pub limited: u32,
    /// Names of time servers answered with fake addresses.
    pub time: u32,
}

impl Responder {
    /// A responder without waiting clients and with an empty cache.
    pub fn new(context: Context, server: Server) -> Self {
        Self {
            context,
            server,
            cache: RefCell::new(Cache::new(CACHE)),
            waiters: RefCell::default(),
            buffer: Cell::default(),
            counters: Cell::default(),
        }
    }

    /// What has happened so far.
    pub fn counters(&self) -> Counters {
        self.counters.get()
    }

    /// Changes the counters.
    pub fn count(&self, change: impl FnOnce(&mut Counters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    /// Removes expired replies from the cache.
    pub fn tick(&self, now: Instant) {
        self.cache.borrow_mut().expire(now);
    }

    /// Adds a client that waits for [`Responder::relay`] or [`Responder::fail`]. Returns its number, or gives it back
    /// if too many wait.
    pub fn wait(&self, message: &[u8], client: Client) -> Result<u32, Client> {
        let key = client.key(&self.context.neighbours);
        let waiter = Waiter { query: message.into(), client, key };
        self.waiters.borrow_mut().add(waiter).map_err(|waiter| waiter.client)
    }

    /// Sends a reply of our own.
    pub fn reply(&self, query: &Query, client: &Client, reply: &Reply) {
        let mut out = self.buffer();
        query.reply(reply, &mut out);
        self.send(client, &out);
        self.buffer.set(out);
    }

    /// Sends the cached reply, if there is one.
    pub fn reply_from_cache(&self, query: &Query, client: &Client) -> bool {
        let mut out = self.buffer();
        let is_cached = self.cache.borrow_mut().get(query, client.limit(query), &mut out, self.context.now());
        if is_cached {
            self.count(|counters| counters.cached += 1);
            self.send(client, &out);
        }
        self.buffer.set(out);
        is_cached
    }

    /// Sends `reply` because no resolver has answered.
    pub fn refuse(&self, query: &Query, client: &Client, reply: &Reply) {
        self.count(|counters| counters.failed += 1);
        self.reply(query, client, reply);
    }

    /// Sends a resolver's reply to the clients that wait for it.
    pub fn relay(&self, waiters: &[u32], reply: &[u8]) {
        for (index, &waiter) in waiters.iter().enumerate() {
            self.end_wait(waiter, &|query, client| {
                if index == 0 {
                    self.cache.borrow_mut().put(query, reply, self.context.now());
                }
                let mut out = self.buffer();
                match query.relay(reply, client.limit(query), &mut out) {
                    true => {
                        self.count(|counters| counters.forwarded += 1);
                        self.send(client, &out);
                    }
                    false => self.refuse(query, client, &SERV_FAIL),
                }
                self.buffer.set(out);
            });
        }
    }

    /// Sends `reply` to waiting clients, because no resolver has answered.
    pub fn fail(&self, waiters: &[u32], reply: &Reply) {
        for &waiter in waiters {
            self.end_wait(waiter, &|query, client| self.refuse(query, client, reply));
        }
    }

    /// The same for clients whose queries have been pending for `patience` ms.
    pub fn expire(&self, pending: &RefCell<Pending>, patience: u32, reply: &Reply) {
        loop {
            let expired = pending.borrow_mut().expire(self.context.now(), patience);
            let Some(waiters) = expired else { return };
            self.fail(&waiters, reply);
        }
    }

    fn end_wait(&self, waiter: u32, respond: &dyn Fn(&Query, &Client)) {
        let waiter = self.waiters.borrow_mut().take(waiter);
        if let Some(Waiter { query, client, .. }) = waiter
            && let Ok(query) = Query::parse(&query)
        {
            respond(&query, &client);
        }
    }

    /// Sends a complete response.
    pub fn send(&self, client: &Client, response: &[u8]) {
        match client {
            Client::Udp(socket, address) => self.server.send(*socket, *address, response),
            Client::Tcp(stream, _) => {
                if let Some(stream) = stream.upgrade() {
                    stream.send(response);
                }
            }
            Client::Packet(tuple) => self.context.send_datagram(&tuple.reversed(), response),
        }
    }

    /// The buffer, empty.
    fn buffer(&self) -> Vec<u8> {
        let mut buffer = self.buffer.take();
        buffer.clear();
        buffer
    }
}
