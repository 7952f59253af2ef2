//! Has the upstream proxies open tunnels. Which of them is asked next is the library's to decide:
//! [`tcp_over_http::upstream::choice`].

mod connection;
pub mod dial;
mod etc_files;
pub mod exchange;
mod lookup;
pub mod proxy;
pub mod resolver;
pub mod stats;

pub use tcp_over_http::upstream::Failure;

use crate::forward::{self, Forwarder};
use crate::sys;
use crate::upstream::connection::Connection;
use crate::upstream::dial::{HandshakeError, Reply};
use crate::upstream::proxy::{Proxy, Warning};
use crate::upstream::resolver::Resolver;
use log::{debug, warn};
use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tcp_over_http::config::{Config, DnsMode, ToProxy};
use tcp_over_http::http::connect::Target;
use tcp_over_http::time;
use tcp_over_http::upstream::choice::{Asked, Attempt, Choice};
use tokio::net::{TcpSocket, TcpStream};

/// How long after a proxy has closed without an answer it is asked again.
const PAUSE: Duration = Duration::from_millis(100);

/// A tunnel that a proxy has opened.
#[derive(Debug)]
pub struct Opened {
    /// The connection to the proxy, now to the target.
    pub stream: TcpStream,
    /// Bytes from the target that came with the proxy's reply; empty, and then not allocated, if there were none.
    pub leftover: Vec<u8>,
}

/// How a connection to a proxy came about.
pub enum Carried {
    /// By a socket of ours: it has to be relayed.
    Relayed(Opened),
    /// In the client's own name: the kernel carries it.
    Forwarded,
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
            choice: RefCell::new(Choice::new(proxies.len())),
            epoch: Instant::now(),
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
        for (index, proxy) in self.proxies.iter().enumerate() {
            let old_index = old.proxies.iter().position(|old| old.name == proxy.name);
            if let Some(old_index) = old_index
                && proxy.inherit(&old.proxies[old_index])
            {
                self.choice.get_mut().inherit(index, &old.choice.borrow(), old_index);
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
            Carried::Forwarded => Err(Failure::BadTarget), // nobody's client
        }
    }

    /// As [`open`](Self::open), in the name of `client` where that can be.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn carry(&self, target: Target<'_>, client: Option<Client<'_>>) -> Result<Carried, Failure> {
        if let Some(index) = self.proxies.iter().position(|proxy| proxy.is_at(target)) {
            return self.pass(index).await;
        }
        let mut is_again = false;
        loop {
            let mut attempt = Attempt::default();
            while let Some(asked) = self.next(&mut attempt) {
                let proxy = &self.proxies[asked.index];
                proxy.count(|stats| stats.retried = stats.retried.wrapping_add(is_again.into()));
                match self.ask(asked.index, target, client.as_ref()).await {
                    Ok(carried) => return Ok(carried),
                    Err(failure) => {
                        self.choice.borrow_mut().failed(&mut attempt, asked, failure, self.now());
                    }
                }
            }
            if is_again || attempt.failure() != Failure::Closed {
                return Err(attempt.failure());
            }
            is_again = true;
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Connects a client that wants the proxy of this index itself, as one that is configured for it does.
    async fn pass(&self, index: usize) -> Result<Carried, Failure> {
        if self.to_proxy == ToProxy::Reject {
            return Err(Failure::Refused { status: 403 });
        }
        match self.connect(index).await {
            Ok(stream) => Ok(self.relayed(stream, Vec::new())),
            Err(error) if is_exhausted(&error) => Err(Failure::Exhausted),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                Err(Failure::Refused { status: 502 })
            }
            Err(_) => Err(Failure::TimedOut),
        }
    }

    /// The proxies, for what is known of them.
    pub fn proxies(&self) -> &[Proxy] {
        &self.proxies
    }

    /// Whether the proxy of this index is asked after all others for now.
    pub fn is_resting(&self, index: usize) -> bool {
        self.choice.borrow().is_resting(index)
    }

    fn next(&self, attempt: &mut Attempt) -> Option<Asked> {
        self.choice.borrow_mut().next(attempt, self.now())
    }

    fn now(&self) -> time::Instant {
        time::Instant::from_millis(self.epoch.elapsed().as_millis() as u64)
    }

    /// Asks one proxy.
    async fn ask(
        &self,
        index: usize,
        target: Target<'_>,
        client: Option<&Client<'_>>,
    ) -> Result<Carried, Failure> {
        let proxy = &self.proxies[index];
        let request = proxy.request.bytes(target).map_err(|_| Failure::BadTarget)?;
        proxy.count(|stats| stats.attempts = stats.attempts.wrapping_add(1));
        let begun = Instant::now();
        let begin = |address| client?.begin(&request, address);
        let connection = match self.reach(index, &begin).await {
            Ok(connection) => connection,
            Err(error) if is_exhausted(&error) => {
                proxy.warn(Warning::Exhausted, format_args!("{error}"));
                return Err(Failure::Exhausted);
            }
            Err(error) => {
                proxy.failed(Warning::Unreachable, format_args!("cannot be reached: {error}"));
                return Err(Failure::Unreachable);
            }
        };
        match connection.handshake(request, self.reply_timeout).await {
            Ok(reply) => {
                self.choice.borrow_mut().answered(index);
                self.answered(proxy, target, begun, connection, reply)
            }
            Err(HandshakeError::TimedOut) => {
                proxy.failed(Warning::TimedOut, format_args!("no answer in time"));
                Err(Failure::TimedOut)
            }
            Err(HandshakeError::Closed) => {
                proxy.failed(Warning::Closed, format_args!("closed before it answered"));
                Err(Failure::Closed)
            }
            Err(HandshakeError::CutOff) => {
                proxy.failed(Warning::Closed, format_args!("closed within its answer"));
                Err(Failure::BadReply)
            }
            Err(HandshakeError::Garbage(error)) => {
                proxy.failed(Warning::Garbage, format_args!("{error}"));
                Err(Failure::BadReply)
            }
        }
    }

    /// Connects to one of the addresses of the proxy of this index with a socket.
    ///
    /// # Errors
    /// Its name has no address; or what the last address said.
    pub async fn connect(&self, index: usize) -> io::Result<TcpStream> {
        match self.reach(index, &|_| None).await? {
            Connection::Socket(stream) => Ok(stream),
            Connection::Packets(_) => Err(io::ErrorKind::InvalidInput.into()), // nobody's client
        }
    }

    /// Connects to one of the proxy's addresses, the one that worked last first; where `begin` has begun, by that.
    async fn reach(
        &self,
        index: usize,
        begin: &dyn Fn(SocketAddr) -> Option<forward::Attempt>,
    ) -> io::Result<Connection> {
        let proxy = &self.proxies[index];
        let addresses = proxy.addresses().await.map_err(io::Error::other)?;
        let first = self.choice.borrow().first_address(index, &addresses);
        let mut failure = io::Error::from(io::ErrorKind::NotFound);
        for &ip in addresses.iter().cycle().skip(first).take(addresses.len()) {
            let address = SocketAddr::new(ip, proxy.port);
            match Connection::connect(address, begin(address), self.mark, self.connect_timeout).await {
                Ok(connection) => {
                    self.choice.borrow_mut().connected(index, ip);
                    return Ok(connection);
                }
                Err(error) => {
                    debug!("upstream {}: {ip}: {error}", proxy.name);
                    // The next address has other ports, but no more of all else.
                    let ends = is_exhausted(&error) && error.raw_os_error() != Some(libc::EADDRNOTAVAIL);
                    if is_exhausted(&error) || !is_exhausted(&failure) {
                        failure = error;
                    }
                    if ends {
                        break;
                    }
                }
            }
        }
        Err(failure)
    }

    /// Tells what a proxy's answer means, and readies the tunnel.
    fn answered(
        &self,
        proxy: &Proxy,
        target: Target<'_>,
        begun: Instant,
        connection: Connection,
        reply: Reply,
    ) -> Result<Carried, Failure> {
        let latency = u32::try_from(begun.elapsed().as_millis()).unwrap_or(u32::MAX);
        let status = reply.status;
        proxy.count(|stats| stats.answered(status, latency));
        debug!("upstream {}: {status} for {target} after {latency} ms", proxy.name);
        if !(200..300).contains(&status) {
            match status {
                407 => proxy.warn(Warning::Refused, format_args!("{}", proxy.refusal(&reply))),
                _ => proxy.warn(Warning::Refused, format_args!("refuses with status {status}")),
            }
            return Err(Failure::Refused { status });
        }
        let stream = match connection {
            Connection::Socket(stream) => stream,
            Connection::Packets(attempt) => {
                attempt.keep();
                return Ok(Carried::Forwarded);
            }
        };
        Ok(self.relayed(stream, reply.leftover))
    }

    fn relayed(&self, stream: TcpStream, leftover: Vec<u8>) -> Carried {
        // Only now: refused connections, of which a port scan makes many, are spared these calls.
        let _ = stream.set_nodelay(true);
        if self.keepalive != 0 {
            let _ = sys::set_keepalive(&stream, self.keepalive);
        }
        Carried::Relayed(Opened { stream, leftover })
    }
}

impl Client<'_> {
    /// Begins to ask the proxy at `address` in its name, if that can be.
    fn begin(&self, request: &[u8], address: SocketAddr) -> Option<forward::Attempt> {
        self.forwarder.begin(&mut self.syn.borrow_mut(), request, address)
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
