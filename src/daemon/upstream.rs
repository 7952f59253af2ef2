//! The upstream proxies, and how one of them comes to open a tunnel.
//!
//! # Theory of operation
//! The proxies are tried in the order of the configuration, each at one address after the other, the one that worked
//! last first. An answer, whatever its status, is the truth and ends the attempt: only a proxy that cannot be
//! reached, breaks off, talks garbage or keeps silent makes the next one worth a try.
//!
//! A proxy that cannot be reached **rests**: for 10 s it is only tried after all others, so that a dead first proxy
//! costs its time-out once and not once per connection. When the rest is over one connection tries it again; the
//! others go on without it until it has answered.
//!
//! Silence is ambiguous: the proxy may hang, or wait for a target that drops packets. If it answered anybody since
//! this attempt began, it is the target: the attempt times out, and the proxy is as good as before. If not, the proxy
//! rests and the next one is asked. Were it otherwise, a port scan would send everybody to another proxy.

pub mod dial;
mod etc_files;
pub mod exchange;
mod lookup;
pub mod proxy;
pub mod resolver;

use crate::sys;
use crate::upstream::dial::{HandshakeError, Reply};
use crate::upstream::proxy::{Event, Proxy};
use crate::upstream::resolver::Resolver;
use log::{debug, warn};
use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tcp_over_http::config::{Config, DnsMode};
use tcp_over_http::http::connect::Target;
use tokio::net::{TcpSocket, TcpStream};

/// A tunnel that a proxy has opened.
#[derive(Debug)]
pub struct Opened {
    /// The connection to the proxy, now to the target.
    pub stream: TcpStream,
    /// Bytes from the target that came with the proxy's reply; empty, and then not allocated, if there were none.
    pub leftover: Vec<u8>,
}

/// Why no tunnel was opened. The later variants say more about the target, and win when proxies failed differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// No proxy could be connected.
    Unreachable,
    /// A proxy was connected, and sent garbage or closed before it answered.
    BadReply,
    /// A proxy was connected, and did not answer in time.
    TimedOut,
    /// A proxy answered with another status than 2xx.
    Refused {
        /// 300..=999.
        status: u16,
    },
    /// The target cannot be named in a request.
    BadTarget,
    /// This machine has no socket left: file descriptors, memory, ports.
    Exhausted,
}

/// All proxies of the configuration.
pub struct Upstreams {
    proxies: Vec<Proxy>,
    mark: u32,
    keepalive: u32,
    connect_timeout: Duration,
    reply_timeout: Duration,
}

impl Upstreams {
    /// Prepares everything that does not depend on the connection. Connects to nothing.
    ///
    /// # Errors
    /// A proxy's settings make no request or its name cannot be resolved; or sockets cannot be marked although routes
    /// rely on the mark (without routes that is a warning).
    pub fn new(config: &Config) -> io::Result<Self> {
        let mark = usable_mark(config)?;
        let resolver = Resolver::new(&config.resolvers, mark).past_dnsmasq(config.dns.mode != DnsMode::Off);
        let resolver = Rc::new(resolver);
        let mut proxies = Vec::with_capacity(config.upstreams.len());
        for upstream in &config.upstreams {
            proxies.push(Proxy::new(upstream, &resolver)?);
        }
        Ok(Self {
            proxies,
            mark,
            keepalive: config.keepalive,
            connect_timeout: config.connect_timeout,
            reply_timeout: config.reply_timeout,
        })
    }

    /// Goes on with what `old` has counted and resolved for proxies of the same names.
    pub fn inherit(&self, old: &Self) {
        for proxy in &self.proxies {
            if let Some(old) = old.proxies.iter().find(|old| old.name == proxy.name) {
                proxy.inherit(old);
            }
        }
    }

    /// Has a proxy open a tunnel to `target`. Must run within a tokio `LocalRuntime` or `LocalSet`.
    ///
    /// # Errors
    /// [`Failure`]: the refusal of the one that answered, or the most telling failure of all of them.
    pub async fn open(&self, target: Target<'_>) -> Result<Opened, Failure> {
        let mut failure = Failure::Unreachable;
        let mut resting = Vec::new();
        for proxy in &self.proxies {
            if proxy.rests() {
                resting.push(proxy);
                continue;
            }
            match self.ask(proxy, target).await {
                ControlFlow::Break(outcome) => return outcome,
                ControlFlow::Continue(reason) => failure = failure.max(reason),
            }
        }
        for proxy in resting {
            match self.ask(proxy, target).await {
                ControlFlow::Break(outcome) => return outcome,
                ControlFlow::Continue(reason) => failure = failure.max(reason),
            }
        }
        Err(failure)
    }

    /// The proxies, for what is known of them.
    pub fn proxies(&self) -> &[Proxy] {
        &self.proxies
    }

    /// Asks one proxy. Continues with the reason why the next one is worth a try.
    async fn ask(&self, proxy: &Proxy, target: Target<'_>) -> ControlFlow<Result<Opened, Failure>, Failure> {
        let Ok(request) = proxy.request.bytes(target) else {
            return ControlFlow::Break(Err(Failure::BadTarget));
        };
        proxy.count(|stats| stats.attempts = stats.attempts.wrapping_add(1));
        let begun = Instant::now();
        let stream = match self.connect(proxy).await {
            Ok(stream) => stream,
            Err(error) if is_exhausted(&error) => {
                proxy.warn(Event::Exhausted, format_args!("{error}"));
                return ControlFlow::Break(Err(Failure::Exhausted));
            }
            Err(error) => {
                proxy.rest();
                proxy.failed(Event::Unreachable, format_args!("cannot be reached: {error}"));
                return ControlFlow::Continue(Failure::Unreachable);
            }
        };
        match dial::handshake(&stream, request, self.reply_timeout).await {
            Ok(reply) => ControlFlow::Break(self.answered(proxy, target, begun, stream, reply)),
            Err(HandshakeError::TimedOut) => {
                proxy.failed(Event::TimedOut, format_args!("no answer in time"));
                if proxy.last_answer.get().is_some_and(|at| at >= begun) {
                    return ControlFlow::Break(Err(Failure::TimedOut));
                }
                proxy.rest();
                ControlFlow::Continue(Failure::TimedOut)
            }
            Err(HandshakeError::Closed) => {
                proxy.failed(Event::Closed, format_args!("closed before it answered"));
                ControlFlow::Continue(Failure::BadReply)
            }
            Err(HandshakeError::Garbage(error)) => {
                proxy.failed(Event::Garbage, format_args!("{error}"));
                ControlFlow::Continue(Failure::BadReply)
            }
        }
    }

    /// Connects to one of the proxy's addresses, the one that worked last first.
    pub async fn connect(&self, proxy: &Proxy) -> io::Result<TcpStream> {
        let addresses = proxy.addresses().await.map_err(io::Error::other)?;
        let good = proxy.good_address.get();
        let first = addresses.iter().position(|&ip| Some(ip) == good).unwrap_or(0);
        let mut failure = io::Error::from(io::ErrorKind::NotFound);
        for index in 0..addresses.len() {
            let Some(&ip) = addresses.get((first + index) % addresses.len()) else {
                break;
            };
            match dial::connect(SocketAddr::new(ip, proxy.port), self.mark, self.connect_timeout).await {
                Ok(stream) => {
                    proxy.good_address.set(Some(ip));
                    return Ok(stream);
                }
                Err(error) => {
                    debug!("upstream {}: {ip}: {error}", proxy.name);
                    failure = error;
                    if is_exhausted(&failure) {
                        break;
                    }
                }
            }
        }
        Err(failure)
    }

    fn answered(
        &self,
        proxy: &Proxy,
        target: Target<'_>,
        begun: Instant,
        stream: TcpStream,
        reply: Reply,
    ) -> Result<Opened, Failure> {
        let now = Instant::now();
        let latency = u32::try_from((now - begun).as_millis()).unwrap_or(u32::MAX);
        proxy.last_answer.set(Some(now));
        proxy.wake();
        let status = reply.status;
        proxy.count(|stats| stats.answered(status, latency));
        debug!("upstream {}: {status} for {target} after {latency} ms", proxy.name);
        if !(200..300).contains(&status) {
            match status {
                407 => proxy.warn(Event::Refused, format_args!("{}", proxy.refusal(&reply))),
                _ => proxy.warn(Event::Refused, format_args!("refuses with status {status}")),
            }
            return Err(Failure::Refused { status });
        }
        // Only now: refused connections, of which a port scan makes many, do without these calls.
        let _ = stream.set_nodelay(true);
        if self.keepalive != 0 {
            let _ = sys::set_keepalive(&stream, self.keepalive);
        }
        Ok(Opened { stream, leftover: reply.leftover })
    }
}

/// Whether this machine is the reason that no socket could be had.
fn is_exhausted(error: &io::Error) -> bool {
    use libc::{EMFILE, ENFILE, ENOBUFS, ENOMEM};
    matches!(error.raw_os_error(), Some(EMFILE | ENFILE | ENOBUFS | ENOMEM))
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
