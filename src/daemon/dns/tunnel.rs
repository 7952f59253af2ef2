//! Resolvers that are asked through the proxy: one connection, kept, to one of them at a time.
//!
//! # Theory of operation
//! All queries go to one resolver, pipelined (RFC 7766 section 6.2.1.1). There is a connection as long as it is used.
//! A **round** makes a new one: the resolvers are tried in order, the one that worked last first; when one has not
//! been connected in 2.5 s the next is tried beside it, and who is first wins. Every query that waits is sent on a
//! new connection. A connection that ends with queries open makes a new round: with the same resolver first if it had
//! answered anything, else with the next one. One that is silent for 4 s with queries open is given up likewise.
//!
//! A round in which nobody could be connected **fails**, as do connections to all of them that bring nothing: all who
//! wait are told, and so is everybody else for a while, without another try.
//!
//! A reload lets a failed round be forgotten; with other proxies there is a new connection.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;

use tcp_over_http::dns::{Ask, Pending, Query};
use tcp_over_http::http::connect::Target;
use tcp_over_http::time::Instant;

use super::Dns;
use super::client::MAX_WAITERS;
use super::stream::Stream;
use crate::gateway::Gateway;
use crate::report::limiter::Limiter;
use crate::task::spawn;
use crate::upstream::{Failure, Opened};
use tcp_over_http::config::DnsMode;

/// Queries under way.
const MAX_PENDING: u16 = 256;
/// In ms: until another resolver is tried beside the one that is being connected...
const HEAD_START: u32 = 2500;
/// ...a resolver that says nothing is given up...
const SILENCE: u32 = 4000;
/// ...a connection that nobody needs is closed...
const IDLE: u32 = 30_000;
/// ...a query is given up...
const PATIENCE: u32 = 10_000;
/// ...and after a round has failed the next one may begin. If the proxy forbids it, later where there is another way.
const PAUSE: u32 = 2000;
const PAUSE_FORBIDDEN: u32 = 10_000;
const PAUSE_NEEDLESS: u32 = 300_000;

/// The connection to a resolver, and all who wait for its answers.
pub struct Tunnel {
    servers: Vec<SocketAddr>,
    mode: DnsMode,
    pending: RefCell<Pending>,
    stream: RefCell<Option<Rc<Stream>>>,
    /// The resolver that comes first in a round.
    first: Cell<usize>,
    round: Cell<Round>,
    /// How many connections in a row, the present one included, have brought no answer.
    useless: Cell<usize>,
    /// Until when nothing is tried, and whether that is since the proxy forbids it.
    paused: Cell<Option<(Instant, bool)>>,
    limiter: Limiter,
}

/// The making of a connection.
#[derive(Clone, Copy, Default)]
struct Round {
    /// Tells apart what was tried through other proxies.
    era: u32,
    /// How many resolvers have been tried.
    tried: usize,
    /// How many of these tries have not ended.
    open: usize,
    /// When the last one began.
    begun: Instant,
    /// What the proxy said to one, if it said that it will not.
    status: Option<u16>,
}

impl Tunnel {
    /// Nothing is connected until somebody asks.
    pub fn new(servers: &[SocketAddr], mode: DnsMode) -> Self {
        Self {
            servers: servers.to_vec(),
            mode,
            pending: RefCell::new(Pending::new(MAX_PENDING, MAX_WAITERS)),
            stream: RefCell::default(),
            first: Cell::default(),
            round: Cell::default(),
            useless: Cell::default(),
            paused: Cell::default(),
            limiter: Limiter::default(),
        }
    }

    /// Whether asking is of no use for now, and then whether since the proxy forbids it.
    pub fn paused(&self, now: Instant) -> Option<bool> {
        let (until, is_forbidden) = self.paused.get()?;
        if now.since(until) == 0 && now != until {
            return Some(is_forbidden);
        }
        self.paused.set(None);
        None
    }

    /// Asks for a waiter. False if too many wait already.
    pub fn ask(&self, gateway: &Rc<Gateway>, request: &Query<'_>, waiter: u32, id: u16) -> bool {
        let now = gateway.now();
        let is_quiet = self.pending.borrow().is_empty();
        let ask = self.pending.borrow_mut().ask(request, waiter, id, now);
        let Ask::New(id) = ask else {
            return matches!(ask, Ask::Joined);
        };
        match &*self.stream.borrow() {
            Some(stream) => {
                if is_quiet {
                    stream.touch(now);
                }
                let mut message = Vec::new();
                request.encode(id, &mut message);
                stream.send(&message);
            }
            None if self.round.get().open == 0 => self.begin_round(gateway, now),
            None => {} // once there is a connection
        }
        true
    }

    /// Has the next query try again: the proxies may allow something else now.
    pub fn forget_failure(&self) {
        self.paused.set(None);
    }

    /// Begins anew, with other proxies. Who waits goes on waiting.
    pub fn reset(&self, gateway: &Rc<Gateway>) {
        self.useless.set(0);
        self.round.set(Round { era: self.round.get().era.wrapping_add(1), ..Round::default() });
        let stream = self.stream.borrow().clone();
        match stream {
            Some(stream) => stream.close(),
            None if self.pending.borrow().is_empty() => {}
            None => self.begin_round(gateway, gateway.now()),
        }
    }

    /// Gives up what has waited too long.
    pub fn tick(&self, gateway: &Rc<Gateway>, now: Instant) {
        self.paused(now); // forgotten when it is over: after weeks it would look like a moment to come
        self.give_up(gateway, now, PATIENCE);
        let is_quiet = self.pending.borrow().is_empty();
        let stream = self.stream.borrow().clone();
        match stream {
            Some(stream) => {
                let since = now.since(stream.last_used());
                if since >= if is_quiet { IDLE } else { SILENCE } {
                    stream.close();
                }
            }
            None => {
                let round = self.round.get();
                if round.open > 0 && !is_quiet && now.since(round.begun) >= HEAD_START {
                    self.try_next(gateway, now);
                }
            }
        }
    }

    fn begin_round(&self, gateway: &Rc<Gateway>, now: Instant) {
        let Round { era, open, .. } = self.round.get();
        self.round.set(Round { era, open, ..Round::default() });
        self.try_next(gateway, now);
    }

    /// Tries the next resolver of the round, if there is one.
    fn try_next(&self, gateway: &Rc<Gateway>, now: Instant) {
        let mut round = self.round.get();
        let nth = (self.first.get() + round.tried) % self.servers.len().max(1);
        let (true, Some(&server)) = (round.tried < self.servers.len(), self.servers.get(nth)) else {
            return;
        };
        round.tried += 1;
        round.open += 1;
        round.begun = now;
        self.round.set(round);
        let gateway = Rc::clone(gateway);
        spawn(async move {
            let result = gateway.upstreams().open(Target::Ip(server)).await;
            if let Some(dns) = gateway.dns() {
                dns.tunnel.tried(&gateway, round.era, nth, result);
            }
        });
    }

    fn tried(&self, gateway: &Rc<Gateway>, era: u32, nth: usize, result: Result<Opened, Failure>) {
        let now = gateway.now();
        let mut round = self.round.get();
        if era != round.era {
            return;
        }
        round.open = round.open.saturating_sub(1);
        // 407 says nothing of ports.
        if let Err(Failure::Refused { status: status @ (400..=406 | 408..=499) }) = result {
            round.status = Some(status);
        }
        self.round.set(round);
        match result {
            Ok(opened) if self.stream.borrow().is_none() => {
                self.first.set(nth);
                self.converse(gateway, opened, now);
            }
            Ok(_) => {} // another was faster
            Err(_) if self.stream.borrow().is_some() => {}
            Err(_) if round.tried < self.servers.len() => self.try_next(gateway, now),
            Err(_) if round.open == 0 => self.fail(gateway, round.status, now),
            Err(_) => {}
        }
    }

    /// Nobody could be connected.
    fn fail(&self, gateway: &Rc<Gateway>, status: Option<u16>, now: Instant) {
        let is_forbidden = status.is_some();
        let (pause, level, advice) = match (is_forbidden, self.mode) {
            (false, _) => (PAUSE, log::Level::Warn, ""),
            (true, DnsMode::FakeIp) => (PAUSE_NEEDLESS, log::Level::Info, ": fake addresses only"),
            (true, _) => (PAUSE_FORBIDDEN, log::Level::Warn, ": use dns 'fakeip', or allow it"),
        };
        self.useless.set(0);
        self.paused.set(Some((now.plus(pause), is_forbidden)));
        if let (Some(status), Some(_)) = (status, self.limiter.pass(std::time::Instant::now())) {
            log::log!(
                level,
                "dns: the proxy forbids CONNECT to port 53 with status {status} (squid: SSL_ports){advice}"
            );
        }
        self.give_up(gateway, now, 0);
    }

    /// Tells all who have waited for `patience` ms.
    fn give_up(&self, gateway: &Rc<Gateway>, now: Instant, patience: u32) {
        loop {
            let expired = self.pending.borrow_mut().expire(now, patience);
            match (expired, gateway.dns()) {
                (Some(waiters), Some(dns)) => dns.fail(gateway, &waiters),
                _ => return,
            }
        }
    }

    /// Asks all that waits on a new connection, and takes its answers until it ends.
    fn converse(&self, gateway: &Rc<Gateway>, opened: Opened, now: Instant) {
        let stream = Rc::new(Stream::new(opened.stream, opened.leftover, u16::MAX.into(), now));
        let mut messages = Vec::new();
        self.pending.borrow().encode_all(&mut messages);
        stream.send_all(&messages);
        self.useless.set(self.useless.get() + 1);
        self.stream.replace(Some(Rc::clone(&stream)));
        let gateway = Rc::clone(gateway);
        spawn(async move {
            let Some(dns) = gateway.dns() else { return };
            let mut handle = |reply: &[u8]| {
                dns.tunnel.answered(&gateway, dns, &stream, reply);
                true
            };
            _ = poll_fn(|cx| stream.poll(cx, &mut handle)).await;
            dns.tunnel.ended(&gateway);
        });
    }

    fn answered(&self, gateway: &Rc<Gateway>, dns: &Dns, stream: &Stream, reply: &[u8]) {
        stream.touch(gateway.now());
        self.useless.set(0);
        let waiters = self.pending.borrow_mut().answer(reply);
        if let Some(waiters) = waiters {
            dns.answer(gateway, &waiters, reply);
        }
    }

    fn ended(&self, gateway: &Rc<Gateway>) {
        self.stream.replace(None);
        if self.pending.borrow().is_empty() {
            return;
        }
        let useless = self.useless.get();
        if useless > 0 {
            self.first.set((self.first.get() + 1) % self.servers.len().max(1));
        }
        match useless <= self.servers.len() {
            true => self.begin_round(gateway, gateway.now()),
            false => self.fail(gateway, None, gateway.now()),
        }
    }
}
