//! Has the upstream proxies open tunnels. Which of them is asked next is the library's to decide:
//! [`tcp_over_http::upstream::choice`]; [`Upstreams::ask`] asks one of them.

pub mod choice_file;
mod confirm;
mod connection;
pub mod dial;
mod etc_files;
pub mod exchange;
mod lookup;
pub mod proxy;
pub mod resolver;
pub mod stats;

pub use tcp_over_http::upstream::Failure;
pub use tcp_over_http::upstream::choice::Choice;

use crate::forward::{self, Forwarder};
use crate::sys;
use crate::upstream::confirm::Worked;
use crate::upstream::connection::Connection;
use crate::upstream::dial::Reply;
use crate::upstream::exchange::udp_socket;
use crate::upstream::proxy::{Account, Proxy, Warning};
use crate::upstream::resolver::{ResolveError, Resolver};
use log::{debug, warn};
use std::cell::{Cell, RefCell, RefMut};
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};
use tcp_over_http::config::{Config, DnsMode, ToProxy};
use tcp_over_http::dns::Name;
use tcp_over_http::http::connect::Target;
use tcp_over_http::time;
use tcp_over_http::upstream::choice::{Asked, Attempt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::sleep;

/// Addresses that take a default route, for those that have no address yet (RFC 5737, RFC 3849).
const FAR: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];

/// How long after a proxy has closed without an answer it is asked again.
const PAUSE: Duration = Duration::from_millis(100);

/// What stands for an upstream where a connection goes directly; no upstream has this name.
pub const DIRECT: &str = "(direct)";

/// A tunnel that a proxy has opened.
#[derive(Debug)]
pub struct Opened {
    /// The connection to the proxy, now to the target.
    pub stream: TcpStream,
    /// Bytes from the target that came with the proxy's reply; empty, and then not allocated, if there were none.
    pub leftover: Vec<u8>,
    /// Of the proxy that it leads through.
    pub account: Rc<Account>,
}

/// How a connection to a proxy came about.
pub enum Carried {
    /// By a socket of ours: it has to be relayed.
    Relayed(Opened),
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
    resolver: Rc<Resolver>,
    mark: u32,
    keepalive: u32,
    connect_timeout: Duration,
    reply_timeout: Duration,
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
            worked: RefCell::default(),
            resolver,
            proxies,
            mark,
            keepalive: config.keepalive,
            connect_timeout: config.connect_timeout,
            reply_timeout: config.reply_timeout,
            to_proxy: config.to_proxy,
        })
    }

    /// Goes on with what `old` has counted, resolved and learnt of proxies of the same names.
    pub fn inherit(&mut self, old: &Self) {
        self.epoch = old.epoch;
        self.worked = old.worked.take().into();
        let (choice, old_choice) = (self.choice.get_mut(), old.choice.borrow());
        choice.inherit(&old_choice);
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
    pub async fn open(&self, target: Target<'_>) -> Result<Opened, Failure> {
        match self.carry(target, None).await? {
            Carried::Relayed(opened) => Ok(opened),
            Carried::Forwarded(_) => Err(Failure::BadTarget), // nobody's client
        }
    }

    /// As [`open`](Self::open), in the name of `client` where that can be.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn carry(&self, target: Target<'_>, client: Option<Client<'_>>) -> Result<Carried, Failure> {
        if let Some(index) = self.proxies.iter().position(|proxy| proxy.is_at(target)) {
            return Box::pin(self.pass(index)).await; // boxed: others need no room for it
        }
        let attempt = RefCell::new(Attempt::new(target));
        self.carry_next(&Dial { attempt: &attempt, target: &target }, client.as_ref(), true).await
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
                Box::pin(sleep(PAUSE)).await;
                dial.attempt.replace(Attempt::new(*dial.target));
                continue;
            };
            let proxy = &self.proxies[asked.index];
            proxy.count(|stats| stats.retried = stats.retried.wrapping_add(is_again.into()));
            let is_connected = Cell::new(false);
            let mut ask: Option<Answer<'_>> =
                Some(Box::pin(self.ask(asked.index, dial.target, client, &is_connected)));
            // If it takes long to connect, the next ones are asked beside it, and the first tunnel wins. They are asked from
            // sockets: the client's name can be used once only.
            let hedge = self.choice().hedge(&dial.attempt.borrow(), asked);
            let mut late = hedge.map(|ms| Box::pin(sleep(Duration::from_millis(ms.into()))));
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

    /// Connects a client that goes out directly to a name, as the uplink's resolvers know it.
    ///
    /// # Errors
    /// There is no such name, or none of its addresses can be connected.
    pub async fn direct(&self, name: &str, port: u16) -> Result<Carried, Failure> {
        let wire = Name::new(name).map_err(|_| Failure::BadTarget)?;
        let resolved = self.resolver.resolve(name, &wire).await;
        let mut failure = Failure::TimedOut;
        for ip in resolved.map(|(addresses, _)| addresses).unwrap_or_default() {
            match dial::connect(SocketAddr::new(ip, port), self.mark, self.connect_timeout).await {
                Ok(stream) => return Ok(self.relayed(&Account::new(DIRECT), stream, Vec::new())),
                Err(error) => failure = pass_failure(&error),
            }
        }
        Err(failure)
    }

    /// Connects a client that wants the proxy of this index itself, as one that is configured for it does.
    async fn pass(&self, index: usize) -> Result<Carried, Failure> {
        if self.to_proxy == ToProxy::Reject {
            return Err(Failure::Refused { status: 403 });
        }
        match self.connect(index).await {
            Ok(stream) => Ok(self.relayed(&self.proxies[index].account, stream, Vec::new())),
            Err((_, error)) => Err(pass_failure(&error)),
        }
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
        client: Option<&Client<'_>>,
        is_connected: &Cell<bool>,
    ) -> Result<Carried, Failure> {
        let mut authorization = self.proxies[index].begin();
        let begun = self.now();
        loop {
            let request = self.proxies[index].request.bytes(*target, &mut authorization);
            let request = request.map_err(|_| Failure::BadTarget)?;
            let proxy = &self.proxies[index];
            let begin = |address| client?.begin(&request, &proxy.account.name, address);
            // Boxed: the wait for an answer, which is longer, needs no room for it.
            let reach = Box::pin(self.reach(index, &begin));
            let connection = reach
                .await
                .map_err(|(failure, error)| self.proxies[index].was_not_reached(failure, &error))?;
            is_connected.set(true);
            let reply = connection.handshake(request, self.reply_timeout).await;
            let proxy = &self.proxies[index]; // kept over no wait, which would make every dial larger
            let reply = reply.map_err(|error| proxy.gave_no_answer(error))?;
            if reply.status == 407 {
                match proxy.refused(&authorization, &reply) {
                    Ok(next) => {
                        authorization = next;
                        continue;
                    }
                    Err(denial) => proxy.warn(Warning::Refused, format_args!("{}", denial.text())),
                }
            } else {
                proxy.login.borrow_mut().accepted(authorization);
            }
            return self.answered(index, *target, begun, connection, reply);
        }
    }

    /// Connects to one of the addresses of the proxy of this index with a socket.
    ///
    /// # Errors
    /// Its name has no address, or what the last address said; and what that means.
    pub async fn connect(&self, index: usize) -> Result<TcpStream, (Failure, io::Error)> {
        match self.reach(index, &|_| None).await? {
            Connection::Socket(stream) => Ok(stream),
            // Nobody's client.
            Connection::Packets(_) => Err((Failure::BadTarget, io::ErrorKind::InvalidInput.into())),
        }
    }

    /// Connects to one of the proxy's addresses, the one that worked last first; where `begin` has begun, by that.
    async fn reach(
        &self,
        index: usize,
        begin: &dyn Fn(SocketAddr) -> Option<forward::Attempt>,
    ) -> Result<Connection, (Failure, io::Error)> {
        let proxy = &self.proxies[index];
        let addresses = match proxy.addresses().await {
            Ok(addresses) => addresses,
            Err(ResolveError::Unanswered) if !self.has_route(&FAR) => {
                return Err((Failure::UplinkDown, io::Error::other(ResolveError::Unanswered)));
            }
            Err(error) => return Err((Failure::Unreachable, io::Error::other(error))),
        };
        let first = self.choice().first_address(index, &addresses);
        let mut last = (Failure::Unreachable, io::Error::from(io::ErrorKind::NotFound));
        for &ip in addresses.iter().cycle().skip(first).take(addresses.len()) {
            let begun = Instant::now();
            let address = SocketAddr::new(ip, proxy.port);
            match Connection::connect(address, begin(address), self.mark, self.connect_timeout).await {
                Ok(connection) => {
                    self.choice().connected(index, ip, millis(begun));
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
        addresses.iter().any(|&ip| udp_socket(SocketAddr::new(ip, 9), self.mark).is_ok())
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
            if status != 407 {
                proxy.warn(Warning::Refused, format_args!("refuses with status {status}"));
            }
            return Err(Failure::Refused { status });
        }
        self.note_worked(target);
        let stream = match connection {
            Connection::Socket(stream) => stream,
            Connection::Packets(attempt) => return Ok(Carried::Forwarded(attempt)),
        };
        Ok(self.relayed(&proxy.account, stream, reply.leftover))
    }

    fn relayed(&self, account: &Rc<Account>, stream: TcpStream, leftover: Vec<u8>) -> Carried {
        // Only now: refused connections, of which a port scan makes many, are spared these calls.
        let _ = stream.set_nodelay(true);
        if self.keepalive != 0 {
            let _ = sys::set_keepalive(&stream, self.keepalive);
        }
        Carried::Relayed(Opened { stream, leftover, account: Rc::clone(account) })
    }
}

/// What becomes of one proxy or more being asked. Boxed: what asks several is of the kind that it is a part of.
type Answer<'a> = Pin<Box<dyn Future<Output = Result<Carried, Failure>> + 'a>>;

/// A connection's way through the proxies.
struct Dial<'a> {
    attempt: &'a RefCell<Attempt>,
    target: &'a Target<'a>,
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

/// What a connection that no proxy opens fails with.
fn pass_failure(error: &io::Error) -> Failure {
    match error.kind() {
        _ if is_exhausted(error) => Failure::Exhausted,
        io::ErrorKind::ConnectionRefused => Failure::Refused { status: 502 },
        _ => Failure::TimedOut,
    }
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
