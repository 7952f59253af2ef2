//! Asks the upstream proxies to open tunnels. The library decides which one is asked next:
//! [`tcp_over_http::upstream::choice`].
//!
//! [`Upstreams`] is all of them. Its methods are in the file of what they do: `attempt`, `reach`, `direct`, `confirm`; those
//! below are called from outside.
//!
//! | file | what it has |
//! |---|---|
//! | `attempt` | asks proxies in turn, until one has opened a tunnel |
//! | `reach` | tries the addresses of one proxy in turn |
//! | `connection`, `dial` | connects to one address, asks, reads the answer |
//! | `direct` | connections without a proxy |
//! | `confirm` | asks proxies in the background whether they answer again |
//! | `proxy`, `stats` | one proxy, and what is counted for it |
//! | `lookup`, `resolver`, `exchange`, `etc_files` | from a proxy's name to its addresses |
//! | `choice_file` | keeps the chosen proxy across a restart |

mod attempt;
pub mod choice_file;
mod confirm;
mod connection;
pub mod dial;
pub mod direct;
mod etc_files;
pub mod exchange;
mod lookup;
pub mod proxy;
mod reach;
pub mod resolver;
pub mod stats;

pub use attempt::RETRY_DELAY;
pub use direct::{DIRECT, PAUSED};
pub use tcp_over_http::upstream::Failure;
pub use tcp_over_http::upstream::choice::Choice;

use crate::clock::Clock;
use crate::forward::{self, Forwarder};
use crate::sys;
use crate::task::timer;
use crate::upstream::confirm::WorkingTarget;
use crate::upstream::connection::ProxyConnection;
use crate::upstream::proxy::{Account, Proxy};
use crate::upstream::resolver::Resolver;
use std::cell::{RefCell, RefMut};
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;
use tcp_over_http::config::{Config, DnsMode, HttpRelay, ToProxy};
use tcp_over_http::dns::Name;
use tcp_over_http::http;
use tcp_over_http::http::connect::Target;
use tcp_over_http::http::login::Authorization;
use tcp_over_http::net::Family;
use tcp_over_http::rules::{Action, Rules};
use tcp_over_http::time::Instant;
use tcp_over_http::upstream::choice::{Asked, Attempt};
use tokio::net::{TcpSocket, TcpStream};

/// How long a request may wait for a name to be resolved: long enough to ask two resolvers, or one twice.
const PATIENCE: Duration = Duration::from_secs(2);

/// A tunnel that a proxy has opened.
#[derive(Debug)]
pub struct Opened {
    /// The connection to the proxy, which now leads to the target.
    pub stream: TcpStream,
    /// Bytes from the target that came with the proxy's reply; empty, and then not allocated, if there were none.
    pub leftover: Vec<u8>,
    /// The account of the proxy that it leads through.
    pub account: Rc<Account>,
    /// If set, this is not a tunnel: the proxy has to be sent requests in absolute form.
    pub http: Option<Box<http::relay::RequestRelay>>,
}

/// How a connection is carried to a proxy.
pub enum Carried {
    /// By a socket of the daemon: it has to be relayed.
    Relayed(Box<Opened>),
    /// In the client's own name: the kernel carries it once the client has released it.
    Forwarded(forward::PendingHandshake),
}

/// The SYN of a connection that may be forwarded.
pub struct HeldSyn<'a> {
    /// What forwards it.
    pub forwarder: &'a Rc<Forwarder>,
    /// The frame, as it came from the TUN.
    pub syn: &'a RefCell<Box<[u8]>>,
}

/// All proxies of the configuration.
pub struct Upstreams {
    proxies: Vec<Proxy>,
    choice: RefCell<Choice>,
    clock: Clock,
    /// A target that was connected lately.
    worked: RefCell<Option<WorkingTarget>>,
    /// Rules, which come before the choice.
    rules: Rc<Rules>,
    /// Resolves names of direct connections, and names that clients of plain HTTP claim to have connected to.
    direct_resolver: Rc<Resolver>,
    /// Resolves the same names during a pause, by the uplink's resolvers; and the proxies' own names.
    resolver: Rc<Resolver>,
    /// The TUN's addresses: a connection from one of these can't leave this machine.
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
    /// Prepares everything that does not depend on a connection. Connects to nothing.
    ///
    /// # Errors
    /// A proxy's name cannot be looked up, or sockets cannot be marked although routes rely on the mark (without routes
    /// that is only a warning).
    pub fn new(config: &Config, clock: Clock) -> io::Result<Self> {
        let mark = usable_mark(config)?;
        let resolver = Resolver::new(&config.resolvers, mark).past_dnsmasq(config.dns.mode != DnsMode::Off);
        let resolver = Rc::new(resolver);
        let mut proxies = Vec::with_capacity(config.upstreams.len());
        for upstream in &config.upstreams {
            proxies.push(Proxy::new(upstream, &resolver)?);
        }
        Ok(Self {
            choice: RefCell::new(Choice::new(
                proxies.iter().map(|it| (Rc::clone(&it.account.name), it.request.has_credentials())),
                config.choice,
            )),
            clock,
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

    /// Takes over what `old` has counted, resolved and learnt about proxies of the same names.
    pub fn inherit(&mut self, old: &Self) {
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

    /// Asks proxies to open a tunnel to `target`. One that closes before it answers may just be full: if no other opens
    /// the tunnel, they are asked once more. Must run within a tokio `LocalRuntime` or `LocalSet`.
    ///
    /// # Errors
    /// [`Failure`]: the refusal of the proxy that answered, or else the most telling failure.
    pub fn open<'a>(&'a self, target: Target<'a>) -> impl Future<Output = Result<Opened, Failure>> + 'a {
        self.open_by(target, None, false)
    }

    /// Like [`open`](Self::open), by the proxy that `action` names, if any. With `may_be_plain`, a connection to a
    /// proxy for requests in absolute form will do instead.
    pub async fn open_by(
        &self,
        target: Target<'_>,
        action: Option<Action>,
        may_be_plain: bool,
    ) -> Result<Opened, Failure> {
        let only = if let Some(Action::Upstream(index)) = action { Some(usize::from(index)) } else { None };
        match self.ask_in_turn(&target, only, may_be_plain, None).await? {
            Carried::Relayed(opened) => Ok(*opened),
            Carried::Forwarded(_) => Err(Failure::BadTarget), // without a held SYN nothing is forwarded
        }
    }

    /// Like [`open`](Self::open), in the name of the client whose SYN is `held` where possible.
    pub async fn carry(
        &self,
        target: Target<'_>,
        held: Option<HeldSyn<'_>>,
        action: Option<Action>,
    ) -> Result<Carried, Failure> {
        if let Some(index) = self.proxies.iter().position(|proxy| proxy.is_at(target)) {
            if self.to_proxy == ToProxy::Reject {
                return Err(Failure::Refused { status: 403 });
            }
            // Boxed, so that other dials need no room for it.
            return Box::pin(self.connect_directly(&self.proxies[index], Some(index))).await;
        }
        let only = match action {
            Some(Action::Upstream(index)) => Some(usize::from(index)),
            Some(Action::Direct) => match self.as_proxy(DIRECT, target, &self.direct_resolver) {
                Some(server) => return Box::pin(self.connect_server(server?)).await,
                None => None,
            },
            Some(Action::Reject) => return Err(Failure::Refused { status: 502 }),
            None => None,
        };
        self.ask_in_turn(&target, only, true, held.as_ref()).await
    }

    /// Asks the proxy that comes first for a tunnel to `target`, if it may be sent credentials now. The result is neither
    /// counted nor returned.
    pub async fn ask_quietly(&self, target: Target<'_>) {
        let asked = self.choice().next(&mut Attempt::new(target, None), self.now());
        let Some(Asked { index, .. }) = asked else { return };
        let proxy = &self.proxies[index];
        let mut authorization = proxy.login.borrow_mut().begin(false);
        let Ok(request) = proxy.request.bytes(target, &mut authorization) else { return };
        if let Ok(stream) = self.connect(index).await
            && let Ok(reply) = ProxyConnection::Socket(stream).handshake(request, self.reply_timeout).await
        {
            match reply.status {
                407 => _ = self.refused(index, &authorization, &reply.rest),
                status => self.choice().answered(index, status, self.now()),
            }
        }
    }

    /// The family of all proxies' addresses, if they are known and all of one family.
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

    /// The proxies and what is known of them.
    pub fn proxies(&self) -> &[Proxy] {
        &self.proxies
    }

    /// Adapts the order to the uplinks that are up, a line each. Returns whether it has changed.
    pub fn set_uplinks(&self, up: &str) -> bool {
        self.choice().prefer(&|index| {
            up.lines().any(|up| self.proxies[index].uplinks.iter().any(|uplink| uplink == up))
        })
    }

    /// The resolver of the proxies' names.
    pub fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    /// The proxy of this name.
    pub fn named(&self, name: &str) -> Option<&Proxy> {
        self.proxies.iter().find(|proxy| *proxy.account.name == *name)
    }

    /// The choice: which proxy is asked, and the state of each. The borrow must not be held across a call.
    pub fn choice(&self) -> RefMut<'_, Choice> {
        self.choice.borrow_mut()
    }

    /// The time.
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Whether a proxy is sent requests in absolute form instead of being asked for a tunnel to the target.
    fn is_plain(&self, index: usize, target: &Target<'_>) -> bool {
        let port = target.port();
        let is_refused = || self.proxies[index].plain.borrow().is_refused(port, self.now());
        self.may_be_plain(port) && (self.http_relay == HttpRelay::Always || is_refused())
    }

    /// Whether requests in absolute form may replace a tunnel to this port.
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

    /// Handles a 407 to a request. Returns the credentials to send instead of those `used`; `None`: there are none, and
    /// the proxy rests.
    pub fn refused(&self, index: usize, used: &Authorization, challenges: &[u8]) -> Option<Authorization> {
        let proxy = &self.proxies[index];
        let next = proxy.next_credentials(used, challenges);
        match next {
            Some(_) => self.choice().undecided(index),
            None if proxy.request.has_credentials() => {
                self.choice().blamed(index, Failure::Credentials, self.now());
            }
            None => {}
        }
        next
    }

    /// Whether a name belongs to the target, as far as the resolvers answer soon.
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

    fn relayed(&self, account: &Rc<Account>, stream: TcpStream, leftover: Vec<u8>) -> Carried {
        self.ready(&stream);
        let account = Rc::clone(account);
        Carried::Relayed(Box::new(Opened { stream, leftover, account, http: None }))
    }

    /// Sets options of a connection that will be relayed. Refused ones, of which a port scan makes many, are spared
    /// these calls.
    fn ready(&self, stream: &TcpStream) {
        let _ = stream.set_nodelay(true);
        if self.keepalive != 0 {
            let _ = sys::set_keepalive(stream, self.keepalive);
        }
    }
}

impl HeldSyn<'_> {
    /// Begins to ask the upstream's proxy at `address` in the client's name, if possible.
    fn begin(
        &self,
        request: &[u8],
        upstream: &Rc<str>,
        address: SocketAddr,
    ) -> Option<forward::PendingHandshake> {
        self.forwarder.begin(&mut self.syn.borrow_mut(), request, upstream, address)
    }
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
