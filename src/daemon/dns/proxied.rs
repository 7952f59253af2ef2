//! Resolvers that are asked through the proxy: over one persistent connection to one of them.
//!
//! # Theory of operation
//! All queries go to one resolver, pipelined (RFC 7766 section 6.2.1.1). The connection lasts as long as it is used. A
//! **round** opens one: the resolvers are tried in order, beginning with the one that worked last. If one is not
//! connected after 2.5 s, the next one is tried beside it, and the first to connect wins. All pending queries are sent
//! on a new connection. If a connection ends while queries are pending, a new round begins: with the same resolver if
//! it had answered anything, else with the next one. The same happens when a connection is silent for 4 s with queries
//! pending.
//!
//! A round **fails** when no resolver could be connected, or when connections to all of them brought no reply. Then all
//! queries are refused, and for a while (the **suspension**) new ones too, and nothing is tried.
//!
//! A reload ends that suspension. If it changes the proxies, a new connection is opened.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;

use tcp_over_http::config::DnsMode;
use tcp_over_http::dns::{Ask, PORT, Pending, Query, Reply};
use tcp_over_http::http::connect::Target;
use tcp_over_http::time::Instant;

use super::client::MAX_WAITERS;
use super::responder::{Responder, SERV_FAIL};
use super::stream::Stream;
use crate::limiter::Limiter;
use crate::task::spawn;
use crate::upstream::{Failure, Opened};

/// Queries in flight.
const MAX_PENDING: u16 = 256;
/// In ms: how long a resolver is being connected before the next one is tried as well...
const HEAD_START: u32 = 2500;
/// ...how long a resolver may be silent with queries pending...
const SILENCE: u32 = 4000;
/// ...how long a connection is kept without queries...
const IDLE: u32 = 30_000;
/// ...how long a query may take...
const PATIENCE: u32 = 10_000;
/// ...and how long nothing is tried after a failed round...
const SUSPENSION: u32 = 2000;
/// ...if the proxy forbids port 53...
const SUSPENSION_FORBIDDEN: u32 = 10_000;
/// ...and if it does so while fake addresses make resolvers dispensable.
const SUSPENSION_NEEDLESS: u32 = 300_000;
/// Negative TTL, in seconds, when no resolver can be asked.
const UNKNOWN_TTL: u32 = 60;

/// The connection to a resolver, and the clients that wait for its replies.
pub struct ProxiedResolver {
    responder: Rc<Responder>,
    servers: Vec<SocketAddr>,
    mode: DnsMode,
    pending: RefCell<Pending>,
    stream: RefCell<Option<Rc<Stream>>>,
    /// The index of the resolver that is tried first in a round.
    first: Cell<usize>,
    round: Cell<Round>,
    /// How many connections in a row, including the current one, have brought no reply.
    useless: Cell<usize>,
    /// Until when nothing is tried, and whether that is because the proxy forbids it.
    suspended: Cell<Option<(Instant, bool)>>,
    limiter: Limiter,
}

/// The current round of attempts to open a connection.
#[derive(Clone, Copy, Default)]
struct Round {
    /// Changes when the proxies do: attempts of an earlier era are ignored.
    era: u32,
    /// How many resolvers have been tried.
    tried: usize,
    /// How many of these attempts have not ended.
    open: usize,
    /// When the last attempt began.
    begun: Instant,
    /// The status with which the proxy refused an attempt.
    status: Option<u16>,
}

impl ProxiedResolver {
    /// Connects to one of `servers` when the first query comes.
    pub fn new(responder: &Rc<Responder>, servers: &[SocketAddr], mode: DnsMode) -> Self {
        Self {
            responder: Rc::clone(responder),
            servers: servers.to_vec(),
            mode,
            pending: RefCell::new(Pending::new(MAX_PENDING, MAX_WAITERS)),
            stream: RefCell::default(),
            first: Cell::default(),
            round: Cell::default(),
            useless: Cell::default(),
            suspended: Cell::default(),
            limiter: Limiter::default(),
        }
    }

    /// The reply to every query while nothing is tried. Where that will not change, it says that the name has no such
    /// records: the proxy forbids all resolvers, and a name with a fake address has no other records.
    pub fn refusal(&self) -> Option<Reply<'static>> {
        let is_forbidden = self.suspended(self.now())?;
        Some(match is_forbidden && self.mode == DnsMode::FakeIp {
            true => Reply::NoData(UNKNOWN_TTL),
            false => SERV_FAIL,
        })
    }

    /// `Some` while nothing is tried: whether that is because the proxy forbids it.
    fn suspended(&self, now: Instant) -> Option<bool> {
        self.suspended.get().filter(|&(until, _)| now < until).map(|(_, is_forbidden)| is_forbidden)
    }

    /// Asks for a waiter. False if too many wait already.
    pub fn ask(self: &Rc<Self>, query: &Query, waiter: u32, id: u16) -> bool {
        let now = self.now();
        let is_quiet = self.pending.borrow().is_empty();
        let ask = self.pending.borrow_mut().ask(query, waiter, id, now);
        let Ask::New(id) = ask else {
            return matches!(ask, Ask::Joined);
        };
        match &*self.stream.borrow() {
            Some(stream) => {
                if is_quiet {
                    stream.touch(now);
                }
                let mut message = Vec::new();
                query.encode(id, &mut message);
                stream.send(&message);
            }
            None if self.round.get().open == 0 => self.begin_round(),
            None => {} // sent once there is a connection
        }
        true
    }

    /// Ends the suspension after a failed round, since the proxies may allow more now.
    pub fn forget_failure(&self) {
        self.suspended.set(None);
    }

    /// Opens a new connection, through other proxies. Pending queries stay.
    pub fn reset(self: &Rc<Self>) {
        self.useless.set(0);
        self.round.set(Round { era: self.round.get().era.wrapping_add(1), ..Round::default() });
        let stream = self.stream.borrow().clone();
        match stream {
            Some(stream) => stream.close(),
            None if self.pending.borrow().is_empty() => {}
            None => self.begin_round(),
        }
    }

    /// Gives up queries that have waited too long, and closes an idle connection.
    pub fn tick(self: &Rc<Self>, now: Instant) {
        self.give_up(PATIENCE);
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
                    self.try_next();
                }
            }
        }
    }

    fn now(&self) -> Instant {
        self.responder.context.now()
    }

    fn begin_round(self: &Rc<Self>) {
        let Round { era, open, .. } = self.round.get();
        self.round.set(Round { era, open, ..Round::default() });
        self.try_next();
    }

    /// Tries the next resolver of the round, if there is one.
    fn try_next(self: &Rc<Self>) {
        let mut round = self.round.get();
        let nth = (self.first.get() + round.tried) % self.servers.len().max(1);
        let (true, Some(&server)) = (round.tried < self.servers.len(), self.servers.get(nth)) else {
            return;
        };
        round.tried += 1;
        round.open += 1;
        round.begun = self.now();
        self.round.set(round);
        let this = Rc::clone(self);
        spawn(async move {
            let result = this.responder.context.upstreams().open(Target::Ip(server)).await;
            this.tried(round.era, nth, result);
        });
    }

    /// An attempt has ended.
    fn tried(self: &Rc<Self>, era: u32, nth: usize, result: Result<Opened, Failure>) {
        let mut round = self.round.get();
        if era != round.era {
            return;
        }
        round.open = round.open.saturating_sub(1);
        // 407 does not depend on the port.
        if let Err(Failure::Refused { status: status @ (400..=406 | 408..=499) }) = result {
            round.status = Some(status);
        }
        self.round.set(round);
        match result {
            Ok(opened) if self.stream.borrow().is_none() => {
                self.first.set(nth);
                self.converse(opened);
            }
            Ok(_) => {} // another one was faster
            Err(_) if self.stream.borrow().is_some() => {}
            Err(_) if round.tried < self.servers.len() => self.try_next(),
            Err(_) if round.open == 0 => self.fail(round.status),
            Err(_) => {}
        }
    }

    /// Ends a failed round; `status`: how the proxy refused to connect, if it did.
    fn fail(&self, status: Option<u16>) {
        let now = self.now();
        let is_forbidden = status.is_some();
        let (suspension, level, advice) = match (is_forbidden, self.mode) {
            (false, _) => (SUSPENSION, log::Level::Warn, ""),
            (true, DnsMode::FakeIp) => (SUSPENSION_NEEDLESS, log::Level::Info, ": fake addresses only"),
            (true, _) => (SUSPENSION_FORBIDDEN, log::Level::Warn, ": use dns 'fakeip', or allow it"),
        };
        self.useless.set(0);
        self.suspended.set(Some((now.plus(suspension), is_forbidden)));
        if let (Some(status), Some(_)) = (status, self.limiter.pass(std::time::Instant::now())) {
            log!(
                level,
                "dns: the proxy forbids CONNECT to port {PORT} with status {status} (squid: SSL_ports){advice}"
            );
        }
        self.give_up(0);
    }

    /// Gives up queries that have waited for `patience` ms.
    fn give_up(&self, patience: u32) {
        self.responder.expire(&self.pending, patience, &self.refusal().unwrap_or(SERV_FAIL));
    }

    /// Sends all pending queries on a new connection, and takes its replies until it ends.
    fn converse(self: &Rc<Self>, opened: Opened) {
        let stream = Stream::new(opened.stream, opened.leftover, u16::MAX.into(), self.now());
        let stream = Rc::new(stream);
        let mut messages = Vec::new();
        self.pending.borrow().encode_all(&mut messages);
        stream.send_all(&messages);
        self.useless.set(self.useless.get() + 1);
        self.stream.replace(Some(Rc::clone(&stream)));
        let this = Rc::clone(self);
        spawn(async move {
            let mut handle = |reply: &[u8]| {
                this.answered(&stream, reply);
                true
            };
            _ = poll_fn(|cx| stream.poll(cx, &mut handle)).await;
            this.ended();
        });
    }

    fn answered(&self, stream: &Stream, reply: &[u8]) {
        stream.touch(self.now());
        self.useless.set(0);
        let waiters = self.pending.borrow_mut().answer(reply);
        self.responder.relay(&waiters.unwrap_or_default(), reply);
    }

    /// The connection has ended.
    fn ended(self: &Rc<Self>) {
        self.stream.replace(None);
        if self.pending.borrow().is_empty() {
            return;
        }
        let useless = self.useless.get();
        if useless > 0 {
            self.first.set((self.first.get() + 1) % self.servers.len().max(1));
        }
        match useless <= self.servers.len() {
            true => self.begin_round(),
            false => self.fail(None),
        }
    }
}
