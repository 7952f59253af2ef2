//! A client's connection that is carried as HTTP requests, where the proxy refuses CONNECT
//! ([`tcp_over_http::http::relay`]).
//!
//! Heads and chunk lines pass through here, bodies through a pipe. A direction reads nothing more before the other side has
//! taken what it was sent.

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::mem;
use std::net::{IpAddr, Ipv6Addr};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tcp_over_http::flow::{Flow, NatSource, Slot};
use tcp_over_http::http::login::Authorization;
use tcp_over_http::http::relay::{Next, Refusal, Relay, Side};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::Gateway;
use super::kept::Kept;
use crate::dns::Held;
use crate::relay::Moved;
use crate::relay::pipe::{Pipe, Pipes};
use crate::sys;
use crate::task::spawn;
use crate::upstream::proxy::Proxy;
use crate::upstream::{Opened, Upstreams};

/// How long a client may take to send a head, or to begin another one.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long what a client still sends is read, so that no reset destroys what it was sent last.
const FAREWELL: Duration = Duration::from_secs(2);
/// How much is read at a time where bytes have to be looked at.
const CHUNK: usize = 2048;
/// How much one call may splice at most.
const RUN: u64 = 1 << 20;

impl Gateway {
    /// Carries a client's requests to a proxy.
    pub(super) fn serve_http(
        self: &Rc<Self>,
        slot: Slot,
        client: std::net::TcpStream,
        opened: Opened,
        held: Option<Held>,
    ) {
        let Flow { tuple, nat, .. } = *self.rewriter.borrow().flow(slot);
        let task = Task { slot, nat, gateway: Rc::clone(self), _held: held };
        let task = spawn(async move {
            task.serve(client, opened, tuple.destination).await;
            task.gateway.keep(task.slot, Kept::Nothing);
        });
        self.keep(slot, Kept::Served(task));
    }
}

/// A client's connection, until its end.
struct Task {
    slot: Slot,
    /// Tells its flow from a later one in the slot.
    nat: NatSource,
    gateway: Rc<Gateway>,
    /// Keeps the fake address that the client has connected to.
    _held: Option<Held>,
}

impl Drop for Task {
    /// Also when the task is aborted: that takes effect later.
    fn drop(&mut self) {
        let mut rewriter = self.gateway.rewriter.borrow_mut();
        if rewriter.flow(self.slot).nat == self.nat {
            rewriter.close(self.slot, self.gateway.now());
        }
    }
}

impl Task {
    async fn serve(&self, client: std::net::TcpStream, opened: Opened, server: Ipv6Addr) {
        let (Some(relay), Ok(client)) = (opened.http, TcpStream::from_std(client)) else { return };
        let upstreams = self.gateway.upstreams();
        // A reload may have taken the proxy away meanwhile.
        let mut proxies = upstreams.proxies().iter().enumerate();
        let found = proxies.find(|(_, proxy)| Rc::ptr_eq(&proxy.account, &opened.account));
        let Some((index, upstream)) = found else { return };
        let mut carried = Carried {
            relay,
            client,
            proxy: opened.stream,
            upstreams: &upstreams,
            index,
            upstream,
            pipes: &self.gateway.supplies.pipes,
            server: server.to_canonical(),
            claimed: Default::default(),
            used: Authorization::Nothing,
            next: None,
            requests: 0,
            is_broken: false,
            up: Direction::default(),
            down: Direction::default(),
        };
        let end = carried.run().await;
        if let Err(trouble) = &end {
            log::debug!("{}: {trouble:?}", self.slot);
        }
        carried.finish(end).await;
        let moved = Moved { up: carried.up.moved, down: carried.down.moved };
        opened.account.count(|stats| stats.moved.add(moved));
        self.gateway.count(|totals| totals.moved.add(moved));
        let mut clients = self.gateway.clients.borrow_mut();
        let client = clients.note(self.gateway.client(self.slot), self.gateway.now());
        client.up = client.up.wrapping_add(moved.up);
        client.down = client.down.wrapping_add(moved.down);
    }
}

/// Why a connection does not go on.
#[derive(Debug)]
enum Trouble {
    /// A side's connection is broken, or has ended too early.
    Lost(Side),
    /// Something is wrong with what was sent.
    Refused(Refusal),
}

/// A client's requests on their way.
struct Carried<'a> {
    relay: Box<Relay>,
    client: TcpStream,
    proxy: TcpStream,
    upstreams: &'a Upstreams,
    index: usize,
    upstream: &'a Proxy,
    pipes: &'a Pipes,
    /// Whom the client has connected to.
    server: IpAddr,
    /// The name that it is said to have, and whether that is so.
    claimed: (String, bool),
    /// What the request under way says of us...
    used: Authorization,
    /// ...and what it is to say in its place.
    next: Option<Authorization>,
    /// How many the proxy's connection has been sent.
    requests: u32,
    /// The proxy's connection can't be used any more.
    is_broken: bool,
    up: Direction,
    down: Direction,
}

impl Carried<'_> {
    /// Carries requests until there are no more.
    async fn run(&mut self) -> Result<(), Trouble> {
        loop {
            let trouble = match self.progress().await {
                Ok(Next::Request) => {
                    self.send().await?;
                    continue;
                }
                Ok(Next::End) => return Ok(()),
                Ok(_) => continue,
                Err(trouble) => trouble,
            };
            match trouble {
                // The nonce is too old, or has yet to be given.
                Trouble::Refused(Refusal::Unauthorized) => {
                    let used = mem::take(&mut self.used);
                    self.next = self.upstream.refused(&used, &self.relay.challenges()).ok();
                    if self.next.is_none() || !self.relay.take_back() {
                        return Err(trouble);
                    }
                }
                // A proxy may close a connection that it has kept at any time.
                Trouble::Lost(Side::Proxy) if self.requests > 1 && self.relay.take_back() => {}
                _ => return Err(trouble),
            }
            self.is_broken = true;
            self.up.forget(self.pipes);
            self.down.forget(self.pipes);
            self.down.incoming.clear();
        }
    }

    /// Moves bytes until there is something to decide.
    async fn progress(&mut self) -> Result<Next, Trouble> {
        let was_idle = self.relay.is_idle();
        let Self { relay, client, proxy, pipes, up, down, .. } = self;
        let mut late = was_idle.then(|| Box::pin(sleep(PATIENCE)));
        let moved = poll_fn(|cx| {
            if let Poll::Ready(next) = up.poll(Side::Client, relay, (client, proxy), pipes, cx)? {
                return Poll::Ready(Ok(next));
            }
            if let Poll::Ready(next) = down.poll(Side::Proxy, relay, (proxy, client), pipes, cx)? {
                return Poll::Ready(Ok(next));
            }
            if relay.is_tunnel() && up.has_ended && down.has_ended {
                return Poll::Ready(Ok(Next::End));
            }
            // What the client may do now is another thing: it is waited for in another way.
            let is_changed = relay.is_idle() != was_idle || relay.is_tunnel() && !up.is_tunnel;
            up.is_tunnel = relay.is_tunnel();
            if is_changed {
                return Poll::Ready(Ok(Next::Wait));
            }
            match &mut late {
                Some(late) => late.as_mut().poll(cx).map(|()| match relay.unsent() {
                    [] => Ok(Next::End),
                    _ => Err(Trouble::Refused(Refusal::TimedOut)),
                }),
                None => Poll::Pending,
            }
        });
        moved.await
    }

    /// Sends the request whose head is whole.
    async fn send(&mut self) -> Result<(), Trouble> {
        // Resolved once for all requests of a client that names the same host.
        if let Some(name) = self.relay.claimed_name()
            && *name != *self.claimed.0
        {
            let name = name.to_owned();
            let is_true = self.upstreams.is_name_of(&name, self.server).await;
            self.claimed = (name, is_true);
        }
        let is_true = self.claimed.1;
        let is_usable =
            !self.is_broken && (self.requests == 0 || self.relay.is_kept() && is_quiet(&self.proxy));
        if !is_usable {
            let connected = self.upstreams.connect(self.index).await;
            self.proxy = connected.map_err(|_| Trouble::Refused(Refusal::BadGateway))?;
            (self.requests, self.is_broken) = (0, false);
        }
        self.requests += 1;
        let mut login = self.upstream.login.borrow_mut();
        login.accepted(mem::take(&mut self.used));
        self.used = self.next.take().unwrap_or_else(|| login.begin());
        let (used, request) = (&mut self.used, &self.upstream.request);
        let mut authorize = |method: &[u8], uri: &[u8], out: &mut Vec<u8>| {
            request.authorize(used, method, uri, out);
        };
        self.relay.send(is_true, &mut authorize, &mut self.up.outgoing).map_err(Trouble::Refused)
    }

    /// Tells the client why there is no more, unless a part of a response has gone to it.
    async fn finish(&mut self, end: Result<(), Trouble>) {
        self.up.forget(self.pipes);
        if end.is_ok() {
            self.upstream.login.borrow_mut().accepted(mem::take(&mut self.used));
        }
        let refusal = match end {
            Ok(()) => None,
            Err(Trouble::Refused(refusal)) => Some(refusal),
            Err(Trouble::Lost(Side::Proxy)) => Some(Refusal::BadGateway),
            Err(Trouble::Lost(Side::Client)) => Some(Refusal::NotHttp),
        };
        if let Some(refusal) = refusal {
            self.down.forget(self.pipes);
            if self.relay.has_answered() || refusal.answer().is_empty() {
                _ = sys::set_resetting(&self.client);
                return;
            }
            self.down.outgoing = refusal.answer().into();
        }
        self.down.has_ended = false;
        let (client, down) = (&self.client, &mut self.down);
        let mut late = Box::pin(sleep(FAREWELL));
        poll_fn(|cx| match down.poll_farewell(client, cx) {
            Poll::Ready(_) => Poll::Ready(()),
            Poll::Pending => late.as_mut().poll(cx),
        })
        .await;
        self.down.forget(self.pipes);
    }
}

/// Does what the stream should be ready for. One copy of tokio's part for all.
#[inline(never)]
fn attempt(
    stream: &TcpStream,
    interest: Interest,
    call: &mut dyn FnMut() -> io::Result<usize>,
) -> io::Result<usize> {
    stream.try_io(interest, call)
}

/// Takes bytes away in front.
#[inline(never)]
fn advance(bytes: &mut Vec<u8>, length: usize) {
    bytes.drain(..length);
}

/// Whether a connection is open, and nothing has come that nobody asked for.
fn is_quiet(stream: &TcpStream) -> bool {
    let result = attempt(stream, Interest::READABLE, &mut || sys::receive_inline(stream, &mut [0]));
    result.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

/// One direction's bytes.
#[derive(Default)]
struct Direction {
    /// Read, and not looked at.
    incoming: Vec<u8>,
    /// For the other side.
    outgoing: Vec<u8>,
    /// Holds so many bytes for the other side.
    pipe: Option<Pipe>,
    buffered: usize,
    moved: u64,
    has_ended: bool,
    is_tunnel: bool,
}

impl Direction {
    /// Moves bytes of `side` while it can. Ready with what is to be decided.
    fn poll(
        &mut self,
        side: Side,
        relay: &mut Relay,
        (from, to): (&TcpStream, &TcpStream),
        pipes: &Pipes,
        cx: &mut Context,
    ) -> Poll<Result<Next, Trouble>> {
        let other = if side == Side::Client { Side::Proxy } else { Side::Client };
        loop {
            ready!(self.poll_flush(to, cx)).map_err(|_| Trouble::Lost(other))?;
            self.release(pipes);
            let next = relay.next(side);
            let read = match next {
                Next::Request | Next::End => return Poll::Ready(Ok(next)),
                Next::Feed if !self.incoming.is_empty() => {
                    let taken = relay.feed(side, &self.incoming, &mut self.outgoing);
                    advance(&mut self.incoming, taken.map_err(Trouble::Refused)?);
                    continue;
                }
                Next::Run(run) if !self.incoming.is_empty() => {
                    let length = self.incoming.len().min(run.min(RUN) as usize);
                    self.outgoing.extend_from_slice(self.incoming.get(..length).unwrap_or_default());
                    advance(&mut self.incoming, length);
                    relay.passed(side, length as u64);
                    continue;
                }
                _ if self.has_ended => return Poll::Pending,
                // A piece of the client's next requests is read at most, so that its end is seen.
                Next::Wait if side == Side::Proxy || !self.incoming.is_empty() => return Poll::Pending,
                Next::Run(run) => {
                    ready!(from.poll_read_ready(cx)).map_err(|_| Trouble::Lost(side))?;
                    let spliced = self.splice(from, run, pipes);
                    spliced.inspect(|&length| relay.passed(side, length as u64))
                }
                Next::Feed | Next::Wait => {
                    ready!(from.poll_read_ready(cx)).map_err(|_| Trouble::Lost(side))?;
                    self.read(from)
                }
            };
            match read {
                Ok(0) => {
                    self.has_ended = true;
                    if relay.is_tunnel() {
                        _ = sys::shutdown_write(to);
                    } else if !relay.ended(side) {
                        return Poll::Ready(Err(Trouble::Lost(side)));
                    }
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return Poll::Ready(Err(Trouble::Lost(side))),
            }
        }
    }

    /// Sends what is for the other side. Ready when nothing is left.
    fn poll_flush(&mut self, to: &TcpStream, cx: &mut Context) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() || self.buffered > 0 {
            ready!(to.poll_write_ready(cx))?;
            let sent = match &self.pipe {
                Some(pipe) if self.outgoing.is_empty() => {
                    let buffered = self.buffered;
                    attempt(to, Interest::WRITABLE, &mut || sys::splice(&pipe.read, to, buffered))
                }
                _ => attempt(to, Interest::WRITABLE, &mut || sys::write(to, &self.outgoing)),
            };
            match sent {
                Ok(sent) => {
                    self.moved += sent as u64;
                    match self.outgoing.is_empty() {
                        true => self.buffered -= sent,
                        false => advance(&mut self.outgoing, sent),
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Sends what is for the client, ends that side, and discards what it still sends until it ends, too.
    fn poll_farewell(&mut self, client: &TcpStream, cx: &mut Context) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(client, cx))?;
        if !mem::replace(&mut self.has_ended, true) {
            sys::shutdown_write(client)?;
        }
        loop {
            ready!(client.poll_read_ready(cx))?;
            match attempt(client, Interest::READABLE, &mut || sys::discard(client, RUN as usize)) {
                Ok(0) => return Poll::Ready(Ok(())),
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Poll::Ready(Err(error)),
                _ => {}
            }
        }
    }

    fn read(&mut self, from: &TcpStream) -> io::Result<usize> {
        let mut chunk = [0; CHUNK];
        let length = attempt(from, Interest::READABLE, &mut || sys::receive_inline(from, &mut chunk))?;
        self.incoming.extend_from_slice(chunk.get(..length).unwrap_or_default());
        Ok(length)
    }

    /// Splices a part of a run into the pipe.
    fn splice(&mut self, from: &TcpStream, run: u64, pipes: &Pipes) -> io::Result<usize> {
        let pipe = match self.pipe.take() {
            Some(pipe) => pipe,
            None => pipes.take_now()?,
        };
        let pipe = self.pipe.insert(pipe);
        let length =
            attempt(from, Interest::READABLE, &mut || sys::splice(from, &pipe.write, run.min(RUN) as usize))?;
        self.buffered = length;
        Ok(length)
    }

    /// Gives the pipe back.
    fn release(&mut self, pipes: &Pipes) {
        if let Some(pipe) = self.pipe.take() {
            match mem::take(&mut self.buffered) {
                0 => pipes.give_back(pipe),
                _ => pipes.discard(pipe),
            }
        }
    }

    /// Forgets what is under way, but not what the client has sent and nobody has looked at.
    fn forget(&mut self, pipes: &Pipes) {
        self.outgoing.clear();
        self.release(pipes);
    }
}
