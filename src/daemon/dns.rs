//! Names: the resolver that clients ask.
//!
//! # Theory of operation
//! A query comes to the [`server`], over UDP or TCP, or in a packet that was captured on its way to another resolver.
//! What can be said at once, is: a fake address (`dns 'fakeip'`), what special names have, what the cache has. The
//! rest waits for a resolver: asked [directly](direct) for the domains that are to be, else [through the
//! proxy](tunnel). Equal queries share an answer. All that waits is bounded in number and in time.

mod client;
mod direct;
mod names_file;
mod server;
mod stream;
mod tunnel;

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::task::Context;

use tcp_over_http::dns::{
    BadQuery, Cache, Domains, Entry, FakeIp, Name, Query, Ranges, Rcode, Reply, local_reply,
};
use tcp_over_http::packet::Tuple;
use tcp_over_http::time::Instant;

use crate::gateway::Gateway;
use crate::report::limiter::Limiter;
use crate::sys;
use client::{Client, Waiter, Waiters};
use direct::Direct;
use names_file::NamesFile;
use server::Server;
use tcp_over_http::config::{Config, DnsMode, Host};
use tunnel::Tunnel;

pub use server::serve;

/// The most files that are open at a time: clients' connections, queries under way, and sockets to be asked on.
pub const FILES: usize = server::MAX_STREAMS + 2 * direct::MAX_PENDING as usize + 8;
/// Bytes of answers that are kept.
const CACHE: usize = 128 << 10;
/// Seconds that a client shall believe that there is nothing, where nobody can be asked.
const UNKNOWN_TTL: u32 = 60;

/// The resolver.
pub struct Dns {
    fake: Option<RefCell<FakeIp>>,
    file: Option<NamesFile>,
    cache: RefCell<Cache>,
    waiters: RefCell<Waiters>,
    server: Server,
    tunnel: Tunnel,
    direct_domains: Domains,
    direct: Rc<Direct>,
    proxies: RefCell<Proxies>,
    /// For answers, one after the other.
    out: Cell<Vec<u8>>,
    limiter: Limiter,
    counters: Cell<Counters>,
}

/// The proxies' own names (not what is below them), and who resolves them: the way to the proxies can't lead
/// through them.
struct Proxies {
    names: Vec<Name>,
    direct: Rc<Direct>,
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Queries.
    pub queries: u32,
    /// Answered with fake addresses and what else is known here.
    pub local: u32,
    /// Answered from the cache.
    pub cached: u32,
    /// Answered by a resolver.
    pub forwarded: u32,
    /// Not answered by any.
    pub failed: u32,
}

/// What an address stands for.
pub enum Meaning {
    /// For itself.
    Address,
    /// For a name, held as long as this is.
    Name(String, Held),
    /// For a name that nobody knows any more, or never did.
    Nothing,
}

/// The use of a fake address: while it lasts, the address is given to no other name.
pub struct Held {
    dns: Rc<Dns>,
    entry: Entry,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(fake) = &self.dns.fake {
            fake.borrow_mut().release(self.entry);
        }
    }
}

/// Why there is no resolver.
#[derive(Debug)]
pub enum DnsError {
    /// Its socket on this address.
    Listen(SocketAddr, io::Error),
    /// Random numbers.
    Random(io::Error),
    /// This is no domain name.
    Name(String),
}

impl std::fmt::Display for DnsError {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Listen(address, error) => write!(f, "dns: listen on {address}: {error}"),
            Self::Random(error) => write!(f, "dns: random numbers: {error}"),
            Self::Name(name) => write!(f, "dns: {name} is no domain name"),
        }
    }
}

impl Dns {
    /// The resolver of a configuration; `None` with `dns 'off'`. Reads the file of names.
    ///
    /// # Errors
    /// [`DnsError`]
    pub fn new(config: &Config, now: Instant) -> Result<Option<Rc<Self>>, DnsError> {
        let dns = &config.dns;
        if dns.mode == DnsMode::Off {
            return Ok(None);
        }
        let server = Server::new(dns.port, config.address6.is_some());
        let server = server.map_err(|(address, error)| DnsError::Listen(address, error))?;
        let (mut fake, mut file) = (None, None);
        if dns.mode == DnsMode::FakeIp {
            let [a, b, c, d, e, f, g, h] = sys::random().map_err(DnsError::Random)?;
            let key = [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])];
            let mut table = FakeIp::new(ranges(config), dns.fakeip_names, key);
            file = Some(NamesFile::load(&dns.fakeip_file, &mut table, now));
            fake = Some(RefCell::new(table));
        }
        Ok(Some(Rc::new(Self {
            fake,
            file,
            cache: RefCell::new(Cache::new(CACHE)),
            waiters: RefCell::default(),
            server,
            tunnel: Tunnel::new(&dns.servers, dns.mode),
            direct_domains: domains(dns.direct_domains.iter())?,
            direct: Rc::new(Direct::new(&dns.direct_servers, config.mark)),
            proxies: RefCell::new(proxies(config)?),
            out: Cell::default(),
            limiter: Limiter::default(),
            counters: Cell::default(),
        })))
    }

    /// Takes over who the proxies are, and who resolves their names.
    pub fn configure(&self, gateway: &Rc<Gateway>, old: &Config, new: &Config) {
        match proxies(new) {
            Ok(proxies) => drop(self.proxies.replace(proxies)),
            Err(error) => log::warn!("{error}"),
        }
        self.tunnel.forget_failure();
        if old.upstreams != new.upstreams {
            self.tunnel.reset(gateway);
        }
    }

    /// Takes what clients have asked.
    pub fn poll(&self, cx: &mut Context, gateway: &Rc<Gateway>) {
        self.server.poll(cx, gateway);
    }

    /// Does what is to be done every second or so.
    pub fn tick(&self, gateway: &Rc<Gateway>, now: Instant) {
        self.server.tick(now);
        self.tunnel.tick(gateway, now);
        self.direct.tick(gateway, now);
        let proxies = Rc::clone(&self.proxies.borrow().direct);
        proxies.tick(gateway, now);
        self.cache.borrow_mut().expire(now);
        if let (Some(fake), Some(file)) = (&self.fake, &self.file) {
            file.save_at_times(&fake.borrow(), now);
        }
    }

    /// Writes the file of names.
    pub fn save(&self, now: Instant) {
        if let (Some(fake), Some(file)) = (&self.fake, &self.file) {
            file.save(&fake.borrow(), now);
        }
    }

    /// What has happened so far.
    pub fn counters(&self) -> Counters {
        self.counters.get()
    }

    /// How many names have fake addresses.
    pub fn names(&self) -> u16 {
        self.fake.as_ref().map_or(0, |fake| fake.borrow().len())
    }

    /// What a flow to this address is to be opened to.
    pub fn meaning(self: &Rc<Self>, address: IpAddr) -> Meaning {
        let Some(fake) = &self.fake else {
            return Meaning::Address;
        };
        let mut fake = fake.borrow_mut();
        if !fake.contains(address) {
            return Meaning::Address;
        }
        let Some(entry) = fake.find(address) else {
            return Meaning::Nothing;
        };
        fake.hold(entry);
        Meaning::Name(fake.name(entry).to_owned(), Held { dns: Rc::clone(self), entry })
    }

    /// Answers the datagram `query`, which was captured on its way along `tuple`.
    pub fn ask_captured(&self, gateway: &Rc<Gateway>, query: &[u8], tuple: Tuple) {
        self.ask(gateway, query, Client::Packet(tuple));
    }

    /// Answers a query, at once or later.
    fn ask(&self, gateway: &Rc<Gateway>, query: &[u8], client: Client) {
        self.count(|counters| counters.queries += 1);
        let request = match Query::parse(query) {
            Ok(request) => request,
            Err(BadQuery::Answer(reply)) => return self.send(gateway, &client, &reply),
            Err(BadQuery::Ignore) => return,
        };
        let mut out = self.out.take();
        out.clear();
        if self.answer_now(gateway, &request, &client, &mut out) {
            self.send(gateway, &client, &out);
            self.out.set(out);
            return;
        }
        self.out.set(out);
        self.forward(gateway, &request, query, client);
    }

    /// Appends the answer to `out` if no resolver has to be asked.
    fn answer_now(&self, gateway: &Gateway, request: &Query, client: &Client, out: &mut Vec<u8>) -> bool {
        let now = gateway.now();
        if !self.is_direct(request) {
            if let Some(fake) = &self.fake
                && let Some(reply) = fake.borrow_mut().answer(request, now)
            {
                self.count(|counters| counters.local += 1);
                request.reply(&reply, out);
                return true;
            }
            if let Some(reply) = local_reply(request) {
                self.count(|counters| counters.local += 1);
                request.reply(&reply, out);
                return true;
            }
        }
        let is_cached = self.cache.borrow_mut().get(request, client.limit(request), out, now);
        if is_cached {
            self.count(|counters| counters.cached += 1);
        }
        is_cached
    }

    fn forward(&self, gateway: &Rc<Gateway>, request: &Query, query: &[u8], client: Client) {
        let now = gateway.now();
        let direct = self.direct(request);
        let is_hopeless = match &direct {
            Some(direct) => !direct.has_servers(),
            None => self.tunnel.paused(now).is_some(),
        };
        if is_hopeless {
            if direct.is_some() && self.limiter.pass(std::time::Instant::now()).is_some() {
                log::warn!("dns: asked for a proxy's name; name who resolves it (list resolver)");
            }
            return self.refuse(gateway, request, &client);
        }
        let Ok([high, low]) = sys::random() else {
            return self.refuse(gateway, request, &client);
        };
        let id = u16::from_be_bytes([high, low]);
        let waiter = self.waiters.borrow_mut().add(Waiter { query: query.into(), client });
        let waiter = match waiter {
            Ok(waiter) => waiter,
            Err(Waiter { client, .. }) => return self.refuse(gateway, request, &client),
        };
        let waits = match &direct {
            Some(direct) => direct.ask(gateway, request, waiter, id),
            None => self.tunnel.ask(gateway, request, waiter, id),
        };
        if !waits {
            self.fail(gateway, &[waiter]);
        }
    }

    /// A resolver has answered what these asked.
    fn answer(&self, gateway: &Rc<Gateway>, waiters: &[u32], reply: &[u8]) {
        let mut out = self.out.take();
        for (index, &waiter) in waiters.iter().enumerate() {
            let waiter = self.waiters.borrow_mut().take(waiter);
            let Some(Waiter { query, client }) = waiter else { continue };
            let Ok(request) = Query::parse(&query) else { continue };
            if index == 0 {
                self.cache.borrow_mut().put(&request, reply, gateway.now());
            }
            out.clear();
            match request.relay(reply, client.limit(&request), &mut out) {
                true => {
                    self.count(|counters| counters.forwarded += 1);
                    self.send(gateway, &client, &out);
                }
                false => self.refuse(gateway, &request, &client),
            }
        }
        self.out.set(out);
    }

    /// Nobody has answered what these asked.
    fn fail(&self, gateway: &Rc<Gateway>, waiters: &[u32]) {
        for &waiter in waiters {
            let waiter = self.waiters.borrow_mut().take(waiter);
            let Some(Waiter { query, client }) = waiter else { continue };
            if let Ok(request) = Query::parse(&query) {
                self.refuse(gateway, &request, &client);
            }
        }
    }

    /// Says that there is no answer; or that there is nothing, where that is what will be said all the time: the
    /// proxy lets nobody be asked, and whoever has a fake address has no other records.
    fn refuse(&self, gateway: &Gateway, request: &Query, client: &Client) {
        self.count(|counters| counters.failed += 1);
        let is_nothing = self.fake.is_some()
            && !self.is_direct(request)
            && self.tunnel.paused(gateway.now()) == Some(true);
        let reply = match is_nothing {
            true => Reply::NoData(UNKNOWN_TTL),
            false => Reply::Failed(Rcode::ServFail),
        };
        let mut out = Vec::new();
        request.reply(&reply, &mut out);
        self.send(gateway, client, &out);
    }

    fn is_direct(&self, request: &Query) -> bool {
        self.direct(request).is_some()
    }

    /// Who is asked, if not through the proxy.
    fn direct(&self, request: &Query) -> Option<Rc<Direct>> {
        let proxies = self.proxies.borrow();
        match () {
            () if proxies.names.iter().any(|name| name.as_ref() == request.name()) => {
                Some(Rc::clone(&proxies.direct))
            }
            () if self.direct_domains.contains(request.name()) => Some(Rc::clone(&self.direct)),
            () => None,
        }
    }

    fn send(&self, gateway: &Gateway, client: &Client, reply: &[u8]) {
        match client {
            Client::Udp(socket, address) => self.server.send(*socket, *address, reply),
            Client::Tcp(stream, _) => {
                if let Some(stream) = stream.upgrade() {
                    stream.send(reply);
                }
            }
            Client::Packet(tuple) => gateway.write_datagram(&tuple.reversed(), reply),
        }
    }

    fn count(&self, change: impl FnOnce(&mut Counters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }
}

fn proxies(config: &Config) -> Result<Proxies, DnsError> {
    let names = config.upstreams.iter().filter_map(|upstream| match &upstream.host {
        Host::Name(name) => Some(Name::new(name).map_err(|_| DnsError::Name(name.clone()))),
        Host::Ip(_) => None,
    });
    let names = names.collect::<Result<_, _>>()?;
    let servers = if config.resolvers.is_empty() { &config.dns.direct_servers } else { &config.resolvers };
    Ok(Proxies { names, direct: Rc::new(Direct::new(servers, config.mark)) })
}

fn domains<'a>(names: impl Iterator<Item = &'a String>) -> Result<Domains, DnsError> {
    let mut domains = Domains::default();
    for name in names {
        domains.insert(name).map_err(|_| DnsError::Name(name.clone()))?;
    }
    Ok(domains)
}

fn ranges(config: &Config) -> Ranges {
    let (v4, v6) = (config.dns.fakeip_range, config.dns.fakeip_range6);
    Ranges { v4: (v4.addr, v4.prefix), v6: v6.map(|v6| (v6.addr, v6.prefix)) }
}
