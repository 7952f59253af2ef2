//! A client's connection that is carried as HTTP requests, where the proxy refuses CONNECT
//! ([`tcp_over_http::http::relay`]).
//!
//! Heads and chunk lines pass through here, bodies through a pipe. A direction reads nothing more before the other side has
//! taken what it was sent.

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::mem;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tcp_over_http::flow::Slot;
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
use crate::upstream::proxy::{Account, Proxy, Warning};
use crate::upstream::{Opened, Upstreams};

/// How long a client may take to send a head, or to begin another one.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long what a client still sends is read, so that no reset destroys what it was sent last.
const FAREWELL: Duration = Duration::from_secs(2);
/// How much is read at a time where bytes have to be looked at.
const CHUNK: usize = 2048;
/// How much of a body is kept, so that it can be sent again with other credentials.
const AGAIN: usize = 64 << 10;
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
        let upstreams = self.upstreams();
        // A reload may have taken the proxy away meanwhile.
        let index = upstreams.proxies().iter().position(|proxy| Rc::ptr_eq(&proxy.account, &opened.account));
        let (Some(relay), Some(index), Ok(client)) = (opened.http, index, TcpStream::from_std(client)) else {
            self.rewriter.borrow_mut().close(slot, self.now());
            return self.keep(slot, Kept::Nothing);
        };
        let carried = Carried {
            gateway: Rc::clone(self),
            slot,
            held,
            relay,
            client,
            proxy: opened.stream,
            account: opened.account,
            index,
            upstreams,
            claimed: Default::default(),
            used: Authorization::Nothing,
            next: None,
            is_fresh: true,
            is_reused: false,
            up: Direction::default(),
            down: Direction::default(),
        };
        self.serve(slot, Box::pin(Box::new(carried).serve()));
    }
}

/// Why a connection does not go on.
#[derive(PartialEq, Eq)]
enum Trouble {
    /// A side's connection is broken, or has ended too early.
    Lost(Side),
    /// Something is wrong with what was sent.
    Refused(Refusal),
}

/// A client's requests on their way.
struct Carried {
    gateway: Rc<Gateway>,
    slot: Slot,
    /// Keeps the fake address that the client has connected to.
    held: Option<Held>,
    relay: Box<Relay>,
    client: TcpStream,
    proxy: TcpStream,
    account: Rc<Account>,
    upstreams: Rc<Upstreams>,
    index: usize,
    /// The name that it is said to have, and whether that is so.
    claimed: (String, bool),
    /// What the request under way says of us...
    used: Authorization,
    /// ...and what it is to say in its place.
    next: Option<Authorization>,
    /// The proxy's connection has carried none yet...
    is_fresh: bool,
    /// ...or one before the one under way.
    is_reused: bool,
    up: Direction,
    down: Direction,
}

impl Carried {
    /// Carries requests until there are no more, then goes on with a tunnel if there is one. Returns whether there is none.
    async fn serve(mut self: Box<Self>) -> bool {
        let mut end = self.run().await;
        if let Err(Trouble::Refused(Refusal::NotHttp)) = end {
            match self.open_tunnel().await {
                true => end = Ok(Next::Tunnel),
                false => self.gateway.count_refused(self.slot),
            }
        }
        if let Err(trouble) = &end {
            let what = match trouble {
                Trouble::Lost(Side::Client) => "the client is gone",
                Trouble::Lost(Side::Proxy) => "the proxy is gone",
                Trouble::Refused(refusal) => refusal.answer().get(9..12).unwrap_or("no HTTP"),
            };
            log::debug!("{}: ended: {what}", self.slot);
        }
        let is_tunnel = end == Ok(Next::Tunnel);
        self.finish(end).await;
        let moved = Moved { up: self.up.moved, down: self.down.moved };
        self.gateway.count(|totals| totals.moved.add(moved));
        self.gateway.count_moved(&self.account, self.gateway.client(self.slot), moved);
        let Self { gateway, slot, held, client, proxy, account, down, .. } = *self;
        match client.into_std() {
            Ok(client) if is_tunnel => {
                let opened = Opened { stream: proxy, leftover: down.outgoing, account, http: None };
                gateway.relay_bytes(slot, client, opened, held);
                false
            }
            _ => true,
        }
    }

    /// Carries requests until there are no more.
    async fn run(&mut self) -> Result<Next, Trouble> {
        loop {
            let trouble = match self.progress().await {
                Ok(Next::Request) => {
                    self.send().await?;
                    continue;
                }
                Ok(Next::Wait) => continue,
                Ok(end) => return Ok(end),
                Err(trouble) => trouble,
            };
            let may_repeat = match trouble {
                // The nonce is too old, or has yet to be given.
                Trouble::Refused(Refusal::Unauthorized) => {
                    let used = mem::take(&mut self.used);
                    self.next = self.upstreams.refused(self.index, &used, &self.relay.challenges());
                    self.next.is_some()
                }
                // A proxy may close a connection that it has kept at any time.
                Trouble::Lost(Side::Proxy) => self.is_reused && self.relay.is_repeatable(),
                _ => false,
            };
            if !(may_repeat && self.up.take_back(&mut self.relay, &self.gateway.supplies.pipes)) {
                return Err(trouble);
            }
        }
    }

    /// Moves bytes until there is something to decide.
    async fn progress(&mut self) -> Result<Next, Trouble> {
        let was_idle = self.relay.is_idle();
        let Self { gateway, relay, client, proxy, up, down, .. } = self;
        let pipes = &gateway.supplies.pipes;
        if was_idle {
            up.again = None;
        }
        let mut late = was_idle.then(|| Box::pin(sleep(PATIENCE)));
        let moved = poll_fn(|cx| {
            // Before a proxy that takes no more is found out: what it has said tells more.
            if let Poll::Ready(next) = down.poll(Side::Proxy, relay, (proxy, client), pipes, cx)? {
                return Poll::Ready(Ok(next));
            }
            if let Poll::Ready(next) = up.poll(Side::Client, relay, (client, proxy), pipes, cx)? {
                return Poll::Ready(Ok(next));
            }
            // What the client may do now is another thing: it is waited for in another way.
            if relay.is_idle() != was_idle {
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
            let is_true = self.upstreams.is_name_of(&name, self.relay.target()).await;
            self.claimed = (name, is_true);
        }
        self.is_reused = !self.is_fresh && self.relay.is_kept() && is_quiet(&self.proxy);
        if !self.is_fresh && !self.is_reused {
            let connected = self.upstreams.connect_plain(self.index).await;
            self.proxy = connected.map_err(|_| Trouble::Refused(Refusal::BadGateway))?;
            self.down.incoming.clear();
            (self.up.is_lost, self.down.has_ended) = (false, false);
        }
        self.is_fresh = false;
        self.accept();
        let Proxy { login, request, .. } = &self.upstreams.proxies()[self.index];
        self.up.room = if request.has_credentials() { AGAIN } else { 0 };
        self.up.again = Some(Vec::new());
        let mut used = self.next.take().unwrap_or_else(|| login.borrow_mut().begin());
        let mut authorize = |method: &[u8], uri: &[u8], out: &mut Vec<u8>| {
            request.authorize(&mut used, method, uri, out);
        };
        let sent = self.relay.send(self.claimed.1, &mut authorize, &mut self.up.outgoing);
        self.used = used;
        sent.map_err(Trouble::Refused)
    }

    /// Notes that the proxy has answered, and accepted what it was told of us.
    fn accept(&mut self) {
        if self.relay.has_answered() {
            let used = mem::take(&mut self.used);
            self.upstream().login.borrow_mut().accepted(used);
            self.upstreams.choice().answered(self.index, self.upstreams.now());
        }
    }

    fn upstream(&self) -> &Proxy {
        &self.upstreams.proxies()[self.index]
    }

    /// Has a proxy open a tunnel for what is no HTTP, before a request has been sent.
    async fn open_tunnel(&mut self) -> bool {
        if !self.is_fresh {
            return false;
        }
        let Ok(opened) = self.upstreams.open(self.relay.target()).await else {
            let proxy = self.upstream();
            proxy.warn(Warning::Refused, format_args!("no tunnel for what is no HTTP, clients are reset"));
            return false;
        };
        self.proxy = opened.stream;
        self.account = opened.account;
        self.down.incoming = opened.leftover;
        self.up.outgoing.extend_from_slice(self.relay.unsent());
        true
    }

    /// Tells the client why there is no more, unless a part of a response has gone to it.
    async fn finish(&mut self, end: Result<Next, Trouble>) {
        self.down.forget(&self.gateway.supplies.pipes);
        let refusal = match end {
            Ok(Next::Tunnel) => {
                for direction in [&mut self.up, &mut self.down] {
                    direction.outgoing.append(&mut direction.incoming);
                }
                // There is room for it: nothing is under way.
                _ = sys::write(&self.proxy, &self.up.outgoing);
                return;
            }
            Ok(_) => {
                self.accept();
                None
            }
            Err(Trouble::Refused(refusal)) => Some(refusal),
            Err(Trouble::Lost(Side::Proxy)) => Some(Refusal::BadGateway),
            Err(Trouble::Lost(Side::Client)) => Some(Refusal::NotHttp),
        };
        self.up.forget(&self.gateway.supplies.pipes);
        if let Some(refusal) = refusal {
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
    /// The other side takes nothing more.
    is_lost: bool,
    /// The body of the request under way as far as it has gone, while it can be sent again...
    again: Option<Vec<u8>>,
    /// ...and how much more of it there may be.
    room: usize,
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
        loop {
            match ready!(self.poll_flush(to, cx)) {
                Ok(()) => {}
                Err(_) if side == Side::Proxy => return Poll::Ready(Err(Trouble::Lost(Side::Client))),
                // It may have answered before: its own direction will tell.
                Err(_) => self.is_lost = true,
            }
            self.release(pipes);
            let next = relay.next(side);
            let read = match next {
                Next::Request | Next::End | Next::Tunnel => return Poll::Ready(Ok(next)),
                _ if self.is_lost => return Poll::Pending,
                Next::Feed if !self.incoming.is_empty() => {
                    let taken = relay.feed(side, &self.incoming, &mut self.outgoing);
                    self.take(taken.map_err(Trouble::Refused)?);
                    continue;
                }
                Next::Run(run) if !self.incoming.is_empty() => {
                    let length = self.incoming.len().min(run.min(RUN) as usize);
                    self.outgoing.extend_from_slice(self.incoming.get(..length).unwrap_or_default());
                    self.take(length);
                    relay.passed(side, length as u64);
                    continue;
                }
                _ if self.has_ended => return Poll::Pending,
                // A piece of the client's next requests is read at most, so that its end is seen.
                Next::Wait if side == Side::Proxy || !self.incoming.is_empty() => return Poll::Pending,
                Next::Run(_) | Next::Feed | Next::Wait => {
                    ready!(from.poll_read_ready(cx)).map_err(|_| Trouble::Lost(side))?;
                    match next {
                        Next::Run(run) if self.again.is_none() => {
                            let spliced = self.splice(from, run, pipes);
                            spliced.inspect(|&length| relay.passed(side, length as u64))
                        }
                        _ => self.read(from),
                    }
                }
            };
            match read {
                Ok(0) => {
                    self.has_ended = true;
                    if !relay.ended(side) {
                        return Poll::Ready(Err(Trouble::Lost(side)));
                    }
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return Poll::Ready(Err(Trouble::Lost(side))),
            }
        }
    }

    /// So much of what was read has been looked at.
    fn take(&mut self, length: usize) {
        if let Some(again) = &mut self.again {
            match self.room.checked_sub(length) {
                Some(room) => {
                    self.room = room;
                    again.extend_from_slice(self.incoming.get(..length).unwrap_or_default());
                }
                None => self.again = None,
            }
        }
        advance(&mut self.incoming, length);
    }

    /// Takes the request under way back, if that is possible.
    fn take_back(&mut self, relay: &mut Relay, pipes: &Pipes) -> bool {
        let Some(mut again) = self.again.take() else { return false };
        again.append(&mut self.incoming);
        self.incoming = again;
        self.forget(pipes);
        relay.take_back()
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
