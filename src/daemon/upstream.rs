//! Has the upstream proxies open tunnels. Which of them is asked next is the library's to decide:
//! [`tcp_over_http::upstream::choice`]; [`Upstreams::ask`] asks one of them.

pub mod choice_file;
mod confirm;
mod connection;
pub mod dial;
pub mod direct;
mod etc_files;
pub mod exchange;
mod lookup;
pub mod proxy;
pub mod resolver;
pub mod stats;

pub use direct::{DIRECT, PAUSED};
pub use tcp_over_http::upstream::Failure;
pub use tcp_over_http::upstream::choice::Choice;

use crate::forward::{self, Forwarder};
use crate::sys;
use crate::task::timer;
use crate::upstream::confirm::Worked;
use crate::upstream::connection::Connection;
use crate::upstream::dial::{HandshakeError, Reply};
use crate::upstream::proxy::{Account, Proxy, Warning};
use crate::upstream::resolver::{ResolveError, Resolver};
use std::cell::{Cell, RefCell, RefMut};
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};
use tcp_over_http::config::{Config, DnsMode, HttpRelay, ToProxy};
use tcp_over_http::dns::Name;
use tcp_over_http::http::connect::Target;
use tcp_over_http::http::login::Authorization;
use tcp_over_http::net::Family;
use tcp_over_http::rules::{Action, Rules};
use tcp_over_http::upstream::choice::{Asked, Attempt};
use tcp_over_http::upstream::plain::TLS;
use tcp_over_http::{http, time};
use tokio::net::{TcpSocket, TcpStream};

/// Addresses that take a default route, for those that have no address yet (RFC 5737, RFC 3849).
const FAR: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];

/// How long after a proxy has closed without an answer it is asked again.
const PAUSE: Duration = Duration::from_millis(100);

/// How long a request may wait for resolvers: so that those who ask two, or one twice, get an answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// A tunnel that a proxy has opened.
#[derive(Debug)]
pub struct Opened {
    /// The connection to the proxy, now to the target.
    pub stream: TcpStream,
    /// Bytes from the target that came with the proxy's reply; empty, and then not allocated, if there were none.
    pub leftover: Vec<u8>,
    /// Of the proxy that it leads through.
    pub account: Rc<Account>,
    /// It is no tunnel: the proxy has to be sent requests in absolute form.
    pub http: Option<Box<http::relay::Relay>>,
}

/// How a connection to a proxy came about.
pub enum Carried {
    /// By a socket of ours: it has to be relayed.
    Relayed(Box<Opened>),
    /// In the client's own name: the kernel carries it once the client has released it.
    Forwarded(forward::Attempt),
}

/// A client whose connection may be forwarded.
pub struct Client<'a> {
    /// What forwards it.
    pub forwarder: &'a Rc<Forwarder>,
    /// Its SYN, as it came from the TUN.
    pub syn: &'a RefCell<Box<[u8]>>,
}

/// All proxies of the configuration.
pub struct Upstreams {
    proxies: Vec<Proxy>,
    choice: RefCell<Choice>,
    /// The origin of the choice's clock.
    epoch: Instant,
    /// A target that has been connected lately.
    worked: RefCell<Option<Worked>>,
    /// What connections are not left to the choice.
    rules: Rc<Rules>,
    /// For names of direct connections, and those that clients of plain HTTP claim to have connected to.
    direct_resolver: Rc<Resolver>,
    /// For the same while there is a pause: what the uplink's network knows.
    resolver: Rc<Resolver>,
    /// The TUN's addresses: what comes from these does not get out.
    own: [Option<IpAddr>; 2],
    mark: u32,
    keepalive: u32,
    connect_timeout: Duration,
    reply_timeout: Duration,
    http_relay: HttpRelay,
    http_ports: Vec<(u16, u16)>,
    to_proxy: ToProxy,
}

impl Upstreams {
    /// Prepares everything that does not depend on the connection. Connects to nothing.
    ///
    /// # Errors
    /// A proxy's name cannot be asked for, or sockets cannot be marked although routes rely on the mark (without routes
    /// that is a warning).
    pub fn new(config: &Config) -> io::Result<Self> {
        let mark = usable_mark(config)?;
        let resolver = Resolver::new(&config.resolvers, mark).past_dnsmasq(config.dns.mode != DnsMode::Off);
        let resolver = Rc::new(resolver);
        let mut proxies = Vec::with_capacity(config.upstreams.len());
        for upstream in &config.upstreams {
            proxies.push(Proxy::new(upstream, &resolver)?);
        }
        Ok(Self {
            choice: RefCell::new(Choice::new(
                proxies.iter().map(|proxy| Rc::clone(&proxy.account.name)),
                config.choice,
            )),
            epoch: Instant::now(),
            rules: Rc::clone(&config.rules),
            direct_resolver: match config.dns.direct_servers.is_empty() {
                true => Rc::clone(&resolver),
                false => Rc::new(Resolver::new(&config.dns.direct_servers, mark)),
            },
            own: [Some(config.address.addr.into()), config.address6.map(|net| net.addr.into())],
            worked: RefCell::default(),
            resolver,
            proxies,
            mark,
            keepalive: config.keepalive,
            connect_timeout: config.connect_timeout,
            reply_timeout: config.reply_timeout,
            http_relay: config.http_relay,
            http_ports: config.http_ports.clone(),
            to_proxy: config.to_proxy,
        })
    }

    /// Goes on with what `old` has counted, resolved and learnt of proxies of the same names.
    pub fn inherit(&mut self, old: &Self) {
        self.epoch = old.epoch;
        self.worked = old.worked.take().into();
        let (choice, old_choice) = (self.choice.get_mut(), old.choice.borrow());
        choice.inherit(&old_choice);
        self.rules.inherit(&old.rules);
        for (index, proxy) in self.proxies.iter_mut().enumerate() {
            let old_index = old.proxies.iter().position(|old| old.account.name == proxy.account.name);
            if let Some(old_index) = old_index
                && proxy.inherit(&old.proxies[old_index])
            {
                choice.inherit_proxy(index, &old_choice, old_index);
            }
        }
    }

    /// Has a proxy open a tunnel to `target`. One that closes before it answers may have no place for one more just now:
    /// if no other opens the tunnel, they are asked once more. Must run within a tokio `LocalRuntime` or `LocalSet`.
    ///
    /// # Errors
    /// [`Failure`]: the refusal of the one that answered, or the most telling failure of all of them.
    pub fn open<'a>(&'a self, target: Target<'a>) -> impl Future<Output = Result<Opened, Failure>> + 'a {
        self.open_by(target, None, false)
    }

    /// As [`open`](Self::open), where rules say by whom; `may_be_plain`: or connect a proxy for requests in absolute form.
    pub async fn open_by(
        &self,
        target: Target<'_>,
        action: Option<Action>,
        may_be_plain: bool,
    ) -> Result<Opened, Failure> {
        let only = if let Some(Action::Upstream(index)) = action { Some(usize::from(index)) } else { None };
        let attempt = RefCell::new(Attempt::new(target, only));
        let dial = Dial { attempt: &attempt, target: &target, may_be_plain, only };
        match self.carry_next(&dial, None, true).await? {
            Carried::Relayed(opened) => Ok(*opened),
            Carried::Forwarded(_) => Err(Failure::BadTarget), // nobody's client
        }
    }

    /// As [`open`](Self::open), in the name of `client` where that can be.
    pub async fn carry(
        &self,
        target: Target<'_>,
        client: Option<Client<'_>>,
        action: Option<Action>,
    ) -> Result<Carried, Failure> {
        if let Some(index) = self.proxies.iter().position(|proxy| proxy.is_at(target)) {
            if self.to_proxy == ToProxy::Reject {
                return Err(Failure::Refused { status: 403 });
            }
            // Boxed: others need no room for it.
            return Box::pin(self.pass(&self.proxies[index], Some(index))).await;
        }
        let only = match action {
            Some(Action::Upstream(index)) => Some(usize::from(index)),
            Some(Action::Direct) => match self.server(DIRECT, target, &self.direct_resolver) {
                Some(server) => return Box::pin(self.pass_to(server?)).await,
                None => None,
            },
            Some(Action::Reject) => return Err(Failure::Refused { status: 502 }),
            None => None,
        };
        let attempt = RefCell::new(Attempt::new(target, only));
        let dial = Dial { attempt: &attempt, target: &target, may_be_plain: true, only };
        self.carry_next(&dial, client.as_ref(), true).await
    }

    /// Has the proxy that would be asked first ask for `target`. What becomes of it is neither counted nor told.
    pub async fn ask_quietly(&self, target: Target<'_>) {
        let Some(index) = self.choice().first() else { return };
        let proxy = &self.proxies[index];
        let mut authorization = proxy.login.borrow_mut().begin(false);
        let Ok(request) = proxy.request.bytes(target, &mut authorization) else { return };
        if let Ok(stream) = self.connect(index).await {
            _ = Connection::Socket(stream).handshake(request, self.reply_timeout).await;
        }
    }

    /// Asks the proxies that this dial has not asked yet, one after the other, until one has opened a tunnel. If all
    /// have closed and it `may_repeat`, it asks them again.
    async fn carry_next(
        &self,
        dial: &Dial<'_>,
        client: Option<&Client<'_>>,
        may_repeat: bool,
    ) -> Result<Carried, Failure> {
        let mut is_again = false;
        loop {
            let asked = self.choice().next(&mut dial.attempt.borrow_mut(), self.now());
            let Some(asked) = asked else {
                let failure = dial.attempt.borrow().failure();
                if is_again || !may_repeat || failure != Failure::Closed {
                    return Err(failure);
                }
                is_again = true;
                timer(PAUSE).await;
                dial.attempt.replace(Attempt::new(*dial.target, dial.only));
                continue;
            };
            let proxy = &self.proxies[asked.index];
            proxy.count(|stats| stats.retried = stats.retried.wrapping_add(is_again.into()));
            let is_connected = Cell::new(false);
            let mut ask: Option<Answer<'_>> =
                Some(Box::pin(self.ask(asked.index, dial.target, dial.may_be_plain, client, &is_connected)));
            // If it takes long to connect, the next ones are asked beside it, and the first tunnel wins. They are asked from
            // sockets: the client's name can be used once only.
            let hedge = self.choice().hedge(&dial.attempt.borrow(), asked);
            let mut late = hedge.map(|ms| timer(Duration::from_millis(ms.into())));
            let mut others: Option<Answer<'_>> = None;
            let carried = poll_fn(|cx| {
                if let Some(one) = &mut ask
                    && let Poll::Ready(answer) = one.as_mut().poll(cx)
                {
                    ask = None;
                    match answer {
                        Ok(carried) => return Poll::Ready(Some(carried)),
                        Err(failure) => self.failed(dial, asked, failure),
                    }
                }
                if ask.is_none() || is_connected.get() {
                    late = None;
                }
                if let Some(timer) = &mut late
                    && timer.as_mut().poll(cx).is_ready()
                {
                    late = None;
                    debug!("upstream {}: connects slowly; others are asked", proxy.account.name);
                    others = Some(Box::pin(self.carry_next(dial, None, false)));
                }
                if let Some(rest) = &mut others
                    && let Poll::Ready(answer) = rest.as_mut().poll(cx)
                {
                    others = None;
                    if let Ok(carried) = answer {
                        if ask.is_some() {
                            self.choice().overtaken(asked);
                        }
                        return Poll::Ready(Some(carried));
                    }
                }
                match dial.attempt.borrow().is_over() || ask.is_none() && others.is_none() {
                    true => Poll::Ready(None),
                    false => Poll::Pending,
                }
            });
            if let Some(carried) = carried.await {
                return Ok(carried);
            }
        }
    }

    fn failed(&self, dial: &Dial<'_>, asked: Asked, failure: Failure) {
        self.choice().failed(&mut dial.attempt.borrow_mut(), asked, failure, self.now());
    }

    /// As [`pass`](Self::pass), for what no other dial has room for.
    async fn pass_to(&self, server: Proxy) -> Result<Carried, Failure> {
        self.pass(&server, None).await
    }

    /// Connects a client that goes out directly for a while to a target.
    pub async fn pass_by(&self, target: Target<'_>) -> Result<Carried, Failure> {
        match self.server(PAUSED, target, &self.resolver) {
            Some(server) => self.pass_to(server?).await,
            None => Err(Failure::BadTarget),
        }
    }

    /// Connects a client that wants this proxy itself, as one that is configured for it does, or what stands for a server.
    async fn pass(&self, proxy: &Proxy, index: Option<usize>) -> Result<Carried, Failure> {
        match self.connect_to(proxy, index).await {
            Ok(stream) => Ok(self.relayed(&proxy.account, stream, Vec::new())),
            Err((Failure::Exhausted, _)) => Err(Failure::Exhausted),
            Err((_, error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                Err(Failure::Refused { status: 502 })
            }
            Err(_) => Err(Failure::TimedOut),
        }
    }

    /// The family of all the proxies' addresses, if they are known and of one.
    pub fn only_family(&self) -> Option<Family> {
        let mut only = None;
        for proxy in &self.proxies {
            for address in &*proxy.known_addresses()? {
                let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
                if *only.get_or_insert(family) != family {
                    return None;
                }
            }
        }
        only
    }

    /// The rules.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The proxies, for what is known of them.
    pub fn proxies(&self) -> &[Proxy] {
        &self.proxies
    }

    /// Adapts the order to the uplinks that are up, a line each. Returns whether it has changed.
    pub fn set_uplinks(&self, up: &str) -> bool {
        self.choice().prefer(&|index| {
            up.lines().any(|up| self.proxies[index].uplinks.iter().any(|uplink| uplink == up))
        })
    }

    /// Who is asked for the proxies' names.
    pub fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    /// The proxy of this name.
    pub fn named(&self, name: &str) -> Option<&Proxy> {
        self.proxies.iter().find(|proxy| *proxy.account.name == *name)
    }

    /// Which proxy is asked, and how each is. Not to be kept.
    pub fn choice(&self) -> RefMut<'_, Choice> {
        self.choice.borrow_mut()
    }

    /// The time, as the choice has it.
    pub fn now(&self) -> time::Instant {
        time::Instant::from_millis(self.epoch.elapsed().as_millis() as u64)
    }

    /// Asks one proxy, and tells once it is connected.
    async fn ask(
        &self,
        index: usize,
        target: &Target<'_>,
        may_be_plain: bool,
        client: Option<&Client<'_>>,
        is_connected: &Cell<bool>,
    ) -> Result<Carried, Failure> {
        let is_plain = may_be_plain && self.is_plain(index, target);
        let mut authorization = if is_plain { Authorization::Nothing } else { self.proxies[index].begin() };
        let begun = self.now();
        let mut kept = None;
        while !(may_be_plain && self.is_plain(index, target)) {
            let request = self.proxies[index].request.bytes(*target, &mut authorization);
            let request = request.map_err(|_| Failure::BadTarget)?;
            let proxy = &self.proxies[index];
            let begin = |address| client?.begin(&request, &proxy.account.name, address);
            // Boxed: the wait for an answer, which is longer, needs no room for it.
            let is_again = kept.is_some();
            let connection = match kept.take() {
                Some(connection) => connection,
                None => Box::pin(self.reach(proxy, Some(index), &begin))
                    .await
                    .map_err(|(failure, error)| self.proxies[index].was_not_reached(failure, &error))?,
            };
            is_connected.set(true);
            let reply = connection.handshake(request, self.reply_timeout).await;
            let proxy = &self.proxies[index]; // kept over no wait, which would make every dial larger
            if is_again && matches!(reply, Err(HandshakeError::Closed)) {
                continue; // it has not been kept after all
            }
            let reply = reply.map_err(|error| proxy.gave_no_answer(error))?;
            if reply.status != 407 {
                proxy.login.borrow_mut().accepted(authorization);
            } else if let Some(next) = proxy.told_again(&authorization, &reply.rest) {
                authorization = next;
                if connection.can_be_used_again(reply.body).await {
                    kept = Some(connection);
                }
                continue;
            }
            if self.may_be_plain(target.port()) || target.port() == TLS {
                proxy.plain.borrow_mut().answered(target.port(), reply.status, self.now());
            }
            let carried = self.answered(index, *target, begun, connection, reply);
            if may_be_plain && carried.is_err() && self.is_plain(index, target) {
                info!(
                    "upstream {}: refuses CONNECT to port {}: carried as HTTP requests",
                    proxy.account.name,
                    target.port()
                );
                break;
            }
            return carried;
        }
        let stream = Box::pin(self.connect_plain(index)).await?;
        is_connected.set(true);
        let proxy = &self.proxies[index];
        proxy.count(|stats| {
            stats.attempts = stats.attempts.wrapping_add(1);
            stats.answered(200, self.now().since(begun));
        });
        let (account, http) = (Rc::clone(&proxy.account), Some(Box::new(http::relay::Relay::new(*target))));
        Ok(Carried::Relayed(Box::new(Opened { stream, leftover: Vec::new(), account, http })))
    }

    /// Whether a proxy is not asked for a tunnel to the target, but sent requests in absolute form.
    fn is_plain(&self, index: usize, target: &Target<'_>) -> bool {
        let port = target.port();
        let is_refused = || self.proxies[index].plain.borrow().is_refused(port, self.now());
        self.may_be_plain(port) && (self.http_relay == HttpRelay::Always || is_refused())
    }

    /// Whether requests in absolute form will do in place of a tunnel to this port.
    pub fn may_be_plain(&self, port: u16) -> bool {
        self.http_relay != HttpRelay::Never
            && self.http_ports.iter().any(|&(first, last)| (first..=last).contains(&port))
    }

    /// Connects to a proxy for requests in absolute form.
    async fn connect_plain(&self, index: usize) -> Result<TcpStream, Failure> {
        let connected = self.connect(index).await;
        let stream =
            connected.map_err(|(failure, error)| self.proxies[index].was_not_reached(failure, &error))?;
        self.ready(&stream);
        Ok(stream)
    }

    /// A proxy has refused a request with 407. Returns what it may be told in place of what was `used`; `None`: nothing,
    /// and it rests.
    pub fn refused(&self, index: usize, used: &Authorization, challenges: &[u8]) -> Option<Authorization> {
        let proxy = &self.proxies[index];
        let next = proxy.told_again(used, challenges);
        if next.is_none() && proxy.request.has_credentials() {
            self.choice().blamed(index, Failure::Credentials, self.now());
        }
        next
    }

    /// Whether a name is the target's, as far as our resolvers know and tell soon.
    pub async fn is_name_of(&self, name: &str, target: Target<'_>) -> bool {
        let (Ok(wire), Target::Ip(address)) = (Name::new(name), target) else { return false };
        let mut resolved = Box::pin(self.direct_resolver.resolve(name, &wire));
        let mut late = timer(PATIENCE);
        poll_fn(|cx| match resolved.as_mut().poll(cx) {
            Poll::Ready(resolved) => {
                Poll::Ready(resolved.is_ok_and(|(addresses, _)| addresses.contains(&address.ip())))
            }
            Poll::Pending => late.as_mut().poll(cx).map(|()| false),
        })
        .await
    }

    /// Connects to one of the addresses of the proxy of this index with a socket.
    ///
    /// # Errors
    /// Its name has no address, or what the last address said; and what that means.
    pub async fn connect(&self, index: usize) -> Result<TcpStream, (Failure, io::Error)> {
        self.connect_to(&self.proxies[index], Some(index)).await
    }

    async fn connect_to(
        &self,
        proxy: &Proxy,
        index: Option<usize>,
    ) -> Result<TcpStream, (Failure, io::Error)> {
        match self.reach(proxy, index, &|_| None).await? {
            Connection::Socket(stream) => Ok(stream),
            // Nobody's client.
            Connection::Packets(_) => Err((Failure::BadTarget, io::ErrorKind::InvalidInput.into())),
        }
    }

    /// Connects to one of the proxy's addresses, the one that worked last first; where `begin` has begun, by that. `index`:
    /// where the choice has it.
    async fn reach(
        &self,
        proxy: &Proxy,
        index: Option<usize>,
        begin: &dyn Fn(SocketAddr) -> Option<forward::Attempt>,
    ) -> Result<Connection, (Failure, io::Error)> {
        let addresses = match proxy.addresses().await {
            Ok(addresses) => addresses,
            Err(ResolveError::Unanswered) if !self.has_route(&FAR) => {
                return Err((Failure::UplinkDown, io::Error::other(ResolveError::Unanswered)));
            }
            Err(error) => return Err((Failure::Unreachable, io::Error::other(error))),
        };
        let first = index.map_or(0, |index| self.choice().first_address(index, &addresses));
        let mut last = (Failure::Unreachable, io::Error::from(io::ErrorKind::NotFound));
        for &ip in addresses.iter().cycle().skip(first).take(addresses.len()) {
            let begun = Instant::now();
            let address = SocketAddr::new(ip, proxy.port);
            match Connection::connect(address, begin(address), self.mark, self.connect_timeout).await {
                Ok(connection) => {
                    if let Some(index) = index {
                        self.choice().connected(index, ip, millis(begun));
                    }
                    return Ok(connection);
                }
                Err(error) => {
                    debug!("upstream {}: {ip}: {error}", proxy.account.name);
                    let failure = match error.kind() {
                        _ if is_exhausted(&error) => Failure::Exhausted,
                        io::ErrorKind::TimedOut => Failure::Unanswered,
                        _ => Failure::Unreachable,
                    };
                    // The next address has other ports, but no more of all else.
                    let ends =
                        failure == Failure::Exhausted && error.raw_os_error() != Some(libc::EADDRNOTAVAIL);
                    if failure == Failure::Exhausted || last.0 != Failure::Exhausted {
                        last = (failure, error);
                    }
                    if ends {
                        return Err(last);
                    }
                }
            }
        }
        if last.0 != Failure::Exhausted && !self.has_route(&addresses) {
            last.0 = Failure::UplinkDown;
        }
        Err(last)
    }

    /// Whether the kernel knows a way to any of these.
    fn has_route(&self, addresses: &[IpAddr]) -> bool {
        addresses.iter().any(|&ip| sys::udp_socket(SocketAddr::new(ip, 9), self.mark).is_ok())
    }

    /// Tells what a proxy's answer means, and readies the tunnel.
    fn answered(
        &self,
        index: usize,
        target: Target<'_>,
        begun: time::Instant,
        connection: Connection,
        reply: Reply,
    ) -> Result<Carried, Failure> {
        let proxy = &self.proxies[index];
        let (latency, status) = (self.now().since(begun), reply.status);
        proxy.count(|stats| stats.answered(status, latency));
        debug!("upstream {}: {status} for {target} after {latency} ms", proxy.account.name);
        if status == 407 && proxy.request.has_credentials() {
            return Err(Failure::Credentials);
        }
        self.choice().answered(index, self.now());
        if !(200..300).contains(&status) {
            if status != 407 && !self.is_plain(index, &target) {
                proxy.warn(Warning::Refused, format_args!("refuses with status {status}"));
            }
            return Err(Failure::Refused { status });
        }
        self.note_worked(target);
        let stream = match connection {
            Connection::Socket(stream) => stream,
            Connection::Packets(attempt) => return Ok(Carried::Forwarded(attempt)),
        };
        Ok(self.relayed(&proxy.account, stream, reply.rest))
    }

    fn relayed(&self, account: &Rc<Account>, stream: TcpStream, leftover: Vec<u8>) -> Carried {
        self.ready(&stream);
        let account = Rc::clone(account);
        Carried::Relayed(Box::new(Opened { stream, leftover, account, http: None }))
    }

    /// Only of connections that will be relayed: refused ones, of which a port scan makes many, are spared these calls.
    fn ready(&self, stream: &TcpStream) {
        let _ = stream.set_nodelay(true);
        if self.keepalive != 0 {
            let _ = sys::set_keepalive(stream, self.keepalive);
        }
    }
}

/// What becomes of one proxy or more being asked. Boxed: what asks several is of the kind that it is a part of.
type Answer<'a> = Pin<Box<dyn Future<Output = Result<Carried, Failure>> + 'a>>;

/// A connection's way through the proxies.
struct Dial<'a> {
    attempt: &'a RefCell<Attempt>,
    target: &'a Target<'a>,
    /// Requests in absolute form will do in place of a tunnel.
    may_be_plain: bool,
    /// The only proxy that may be asked.
    only: Option<usize>,
}

impl Client<'_> {
    /// Begins to ask the upstream's proxy at `address` in its name, if that can be.
    fn begin(&self, request: &[u8], upstream: &Rc<str>, address: SocketAddr) -> Option<forward::Attempt> {
        self.forwarder.begin(&mut self.syn.borrow_mut(), request, upstream, address)
    }
}

/// Milliseconds since then.
fn millis(since: Instant) -> u32 {
    u32::try_from(since.elapsed().as_millis()).unwrap_or(u32::MAX)
}

/// Whether this machine, not the proxy, is why there is no socket.
fn is_exhausted(error: &io::Error) -> bool {
    use libc::{EADDRNOTAVAIL, EMFILE, ENFILE, ENOBUFS, ENOMEM};
    matches!(error.raw_os_error(), Some(EADDRNOTAVAIL | EMFILE | ENFILE | ENOBUFS | ENOMEM))
}

/// The configured mark, if this process may set it: it needs CAP_NET_ADMIN, and qemu-user does not know it.
fn usable_mark(config: &Config) -> io::Result<u32> {
    if config.mark == 0 {
        return Ok(0);
    }
    let socket = TcpSocket::new_v4().or_else(|_| TcpSocket::new_v6())?;
    let Err(error) = sys::set_mark(&socket, config.mark) else {
        return Ok(config.mark);
    };
    if config.captures() {
        let text = format!("upstream sockets cannot be marked, so routes would catch them: {error}");
        return Err(io::Error::new(error.kind(), text));
    }
    warn!("upstream sockets cannot be marked: {error}");
    Ok(0)
}

#[cfg(test)]
mod tests;
