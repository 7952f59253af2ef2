//! The resolver that clients ask.
//!
//! # Theory of operation
//! A query comes to the [`server`] over UDP or TCP, or in a packet that was captured on its way to another resolver.
//! What needs no resolver is answered at once: fake addresses (`dns 'fakeip'`), special names, and what is in the
//! cache. Any other query waits for a resolver, which is asked [directly](direct) for domains configured that way, and
//! otherwise [through the proxy](proxied). Equal queries share one reply. Everything that waits is bounded in number
//! and in time.
//!
//! | file | what |
//! |---|---|
//! | `server`, `stream` | sockets for clients, and messages over TCP |
//! | `client` | who asked, and who waits |
//! | `responder` | responses to clients, and the cache |
//! | `direct`, `proxied` | resolvers |
//! | `fake_names`, `names_file` | names with fake addresses |
//! | `context` | the rest of the daemon, as far as it matters here |

mod client;
mod context;
mod direct;
mod fake_names;
mod names_file;
mod proxied;
mod responder;
mod server;
mod stream;

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::{IpAddr, Ipv6Addr};
use std::rc::Rc;
use std::task::{self, Poll};

use tcp_over_http::config::{Config, DnsMode, Host};
use tcp_over_http::dns::{BadQuery, Budgets, Name, Query, Reply, is_time_server, local_reply};
use tcp_over_http::net::ClientKey;
use tcp_over_http::packet::Tuple;
use tcp_over_http::time::Instant;
use tokio::net::TcpStream;

use crate::sys;
use crate::task::spawn;
use crate::upstream::Upstreams;
use client::Client;
use direct::DirectResolver;
use fake_names::FakeNames;
use proxied::ProxiedResolver;
use responder::{Counters, Responder, SERV_FAIL};
use server::Server;

pub use context::Context;
pub use fake_names::{AddressLease, Meaning};

/// The most files open at once: clients' connections, queries in flight, and sockets for clients.
pub const FILES: usize = server::MAX_STREAMS + 3 * direct::MAX_PENDING as usize + 8;

/// How many seconds a reply from a pause may be kept: a hotel's resolver may answer every name with its own address.
const PAUSED_TTL: u32 = 10;

/// The resolver.
pub struct Dns {
    responder: Rc<Responder>,
    fake: Option<Rc<FakeNames>>,
    proxied: Rc<ProxiedResolver>,
    direct: Rc<DirectResolver>,
    /// The resolvers for clients that go out directly during a pause.
    paused: Rc<DirectResolver>,
    proxies: RefCell<Proxies>,
    budgets: RefCell<Budgets>,
}

/// The proxies' own names (not those below them) and their resolver: they cannot be resolved through the proxies.
struct Proxies {
    names: Vec<Name>,
    resolver: Rc<DirectResolver>,
}

impl Dns {
    /// The resolver of a configuration; `None` with `dns 'off'`. Reads the file of names.
    pub fn new(config: &Config, context: Context) -> Result<Option<Rc<Self>>, String> {
        let dns = &config.dns;
        if dns.mode == DnsMode::Off {
            return Ok(None);
        }
        let server = Server::new(dns.port, config.address6.is_some());
        let server = server.map_err(|(address, error)| format!("dns: listen on {address}: {error}"))?;
        let fake = match dns.mode {
            DnsMode::FakeIp => {
                let names = FakeNames::load(config, context.now());
                Some(Rc::new(names.map_err(|error| format!("dns: random numbers: {error}"))?))
            }
            _ => None,
        };
        let responder = Rc::new(Responder::new(context, server));
        Ok(Some(Rc::new(Self {
            fake,
            proxied: Rc::new(ProxiedResolver::new(&responder, &dns.servers, dns.mode)),
            direct: Rc::new(DirectResolver::new(&responder, &dns.direct_servers, config.mark)),
            paused: Rc::new(DirectResolver::new(&responder, &[], config.mark).with_ttl(PAUSED_TTL)),
            proxies: RefCell::new(proxies(config, &responder)?),
            budgets: RefCell::default(),
            responder,
        })))
    }

    /// Applies a changed configuration: new tunnels, and the resolver of the proxies' names.
    pub fn configure(&self, old: &Config, new: &Config, upstreams: Rc<Upstreams>) {
        self.responder.context.replace_upstreams(upstreams);
        match proxies(new, &self.responder) {
            Ok(proxies) => drop(self.proxies.replace(proxies)),
            Err(error) => warn!("{error}"),
        }
        self.proxied.forget_failure();
        if old.upstreams != new.upstreams {
            self.proxied.reset();
        }
    }

    /// From now on the kernel forwards a connection if a proxy has an address of its family.
    pub fn set_forwarding(&self) {
        self.responder.context.set_forwarding();
    }

    /// Takes the queries and connections of clients.
    pub fn poll(self: &Rc<Self>, cx: &mut task::Context) {
        self.responder.server.poll_datagrams(cx, &|query, client| self.ask(query, client));
        // No turns: each connection gets a task at once, which is cheap even in a flood.
        while let Poll::Ready(socket) = self.responder.server.poll_accept(cx) {
            let dns = Rc::clone(self);
            spawn(async move { dns.serve(socket, None).await });
        }
    }

    /// Answers all queries on a connection until the client ends it. `source` is the client, or `None` on the loopback.
    pub async fn serve(&self, socket: TcpStream, source: Option<Ipv6Addr>) {
        let Responder { context, server, .. } = &*self.responder;
        let key = context.neighbours.key(source.unwrap_or(Ipv6Addr::LOCALHOST));
        let mut connection = server.connect(socket, source, key, context.now());
        poll_fn(|cx| connection.poll(cx, context.now(), &|query, client| self.ask(query, client))).await;
    }

    /// Call it every second or so.
    pub fn tick(&self, now: Instant) {
        self.responder.server.tick(now);
        self.proxied.tick(now);
        self.direct.tick();
        self.paused.tick();
        self.proxies.borrow().resolver.tick();
        self.responder.tick(now);
        if let Some(fake) = &self.fake {
            fake.tick(now);
        }
    }

    /// Writes the file of names.
    pub fn save(&self) {
        if let Some(fake) = &self.fake {
            fake.save(self.responder.context.now());
        }
    }

    /// What has happened so far.
    pub fn counters(&self) -> Counters {
        self.responder.counters()
    }

    /// How many names have fake addresses.
    pub fn names(&self) -> u16 {
        self.fake.as_ref().map_or(0, |fake| fake.table().count())
    }

    /// What `client` means by connecting to this address.
    pub fn meaning(&self, address: IpAddr, client: ClientKey) -> Meaning {
        self.fake.as_ref().map_or(Meaning::Address, |fake| fake.meaning(address, client))
    }

    /// Answers a query that was captured in a datagram with these addresses and ports.
    pub fn ask_captured(&self, query: &[u8], tuple: Tuple) {
        self.ask(query, Client::Packet(tuple));
    }

    /// Answers a query, at once or later.
    fn ask(&self, message: &[u8], client: Client) {
        self.responder.count(|counters| counters.queries += 1);
        let now = self.responder.context.now();
        if let Some(key) = client.key(&self.responder.context.neighbours)
            && !self.budgets.borrow_mut().take(key, now)
        {
            return self.responder.count(|counters| counters.limited += 1);
        }
        let query = match Query::parse(message) {
            Ok(query) => query,
            Err(BadQuery::Answer(reply)) => return self.responder.send(&client, &reply),
            Err(BadQuery::Ignore) => return,
        };
        let mut direct = self.direct(&query);
        let is_paused = self.responder.context.paused.covers(client.source().map(|it| it.to_canonical()));
        let is_answered = direct.is_none() && self.reply_locally(&query, &client, is_paused)
            || self.responder.reply_from_cache(&query, &client);
        if is_answered {
            return;
        }
        if is_paused && direct.is_none() {
            direct = Some(Rc::clone(&self.paused));
            // Read anew for each query, since the uplink may change.
            self.paused.set_servers(self.responder.context.upstreams().resolver().servers());
        }
        self.forward(direct, &query, message, client);
    }

    /// Sends a reply that depends on the name and the type alone, if there is one. A client that is paused gets no fake
    /// address.
    fn reply_locally(&self, query: &Query, client: &Client, is_paused: bool) -> bool {
        let mut fake = self.fake.as_ref().filter(|_| !is_paused).map(|fake| fake.table());
        let context = &self.responder.context;
        let fake = fake.as_mut().and_then(|table| table.answer(query, context.only_family(), context.now()));
        let Some(reply) = fake.or_else(|| local_reply(query)) else {
            return false;
        };
        let is_time = matches!(reply, Reply::Address(..)) && is_time_server(query.name());
        self.responder.count(|counters| {
            counters.local += 1;
            counters.time += u32::from(is_time && self.fake.is_some());
        });
        self.responder.reply(query, client, &reply);
        true
    }

    /// Passes a query on to a resolver.
    fn forward(&self, direct: Option<Rc<DirectResolver>>, query: &Query, message: &[u8], client: Client) {
        let refusal = match &direct {
            Some(direct) => direct.refusal(),
            None => self.proxied.refusal(),
        };
        if let Some(reply) = refusal {
            return self.responder.refuse(query, &client, &reply);
        }
        let waiter = match self.responder.wait(message, client) {
            Ok(waiter) => waiter,
            Err(client) => return self.responder.refuse(query, &client, &SERV_FAIL),
        };
        let is_asked = match (sys::random().map(u16::from_ne_bytes), direct) {
            (Ok(id), Some(direct)) => direct.ask(query, waiter, id),
            (Ok(id), None) => self.proxied.ask(query, waiter, id),
            (Err(_), _) => false,
        };
        if !is_asked {
            self.responder.fail(&[waiter], &SERV_FAIL);
        }
    }

    /// The resolver of a name that is not resolved through the proxy.
    fn direct(&self, query: &Query) -> Option<Rc<DirectResolver>> {
        let proxies = self.proxies.borrow();
        if proxies.names.iter().any(|name| name.as_ref() == query.name()) {
            return Some(Rc::clone(&proxies.resolver));
        }
        self.responder.context.upstreams().rules().is_direct(query.name()).then(|| Rc::clone(&self.direct))
    }
}

fn proxies(config: &Config, responder: &Rc<Responder>) -> Result<Proxies, String> {
    let names = config.upstreams.iter().filter_map(|upstream| match &upstream.host {
        Host::Name(name) => Some(Name::new(name).map_err(|_| format!("dns: {name} is not a domain name"))),
        Host::Ip(_) => None,
    });
    let names = names.collect::<Result<_, _>>()?;
    let servers = if config.resolvers.is_empty() { &config.dns.direct_servers } else { &config.resolvers };
    let resolver = Rc::new(DirectResolver::new(responder, servers, config.mark));
    Ok(Proxies { names, resolver })
}
