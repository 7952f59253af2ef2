//! A client's connection that is carried as HTTP requests, where the proxy refuses CONNECT
//! ([`tcp_over_http::http::relay`]).
//!
//! Heads and chunk lines pass through here, bodies through a pipe. A direction reads nothing more before the other side has
//! taken what it was sent.

mod direction;
mod share;

use std::cell::Cell;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::mem;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tcp_over_http::flow::Slot;
use tcp_over_http::http::connect::Target;
use tcp_over_http::http::login::Authorization;
use tcp_over_http::http::relay::{Next, Refusal, RequestRelay, Side};
use tcp_over_http::rules::Action;
use tcp_over_http::upstream::choice::Admission;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::Sleep;

use self::direction::Direction;
use self::share::Share;
pub(super) use self::share::Shared;
use super::Gateway;
use super::dial::server;
use super::kept::{HttpFlow, Kept};
use crate::dns::AddressLease;
use crate::relay::Moved;
use crate::sys;
use crate::task::timer;
use crate::upstream::dial::HandshakeError;
use crate::upstream::proxy::{Account, Proxy, Warning};
use crate::upstream::{Opened, RETRY_DELAY, Upstreams};

/// How long a client may take to send a head, or to begin another one.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a proxy may take to ask for other credentials.
const DOUBT: Duration = Duration::from_secs(2);
/// How long what a client still sends is read at the end, so that no reset destroys the last bytes sent to it.
const FAREWELL: Duration = Duration::from_secs(2);
/// How many bytes of a body are kept, so that it can be sent again with other credentials.
const AGAIN: usize = 64 << 10;

impl Gateway {
    /// Carries a client's requests to a proxy.
    pub(super) fn serve_http(
        self: &Rc<Self>,
        slot: Slot,
        client: std::net::TcpStream,
        opened: Opened,
        lease: Option<AddressLease>,
    ) {
        let upstreams = self.upstreams();
        let index = index_of(&upstreams, &opened.account);
        let (Some(relay), Some(index), Ok(client)) = (opened.http, index, TcpStream::from_std(client)) else {
            self.rewriter.borrow_mut().close(slot, self.now());
            return self.keep(slot, Kept::Nothing);
        };
        let (socket, moved) = (Rc::new(client), Rc::default());
        let identity = self.neighbours.key(self.rewriter.borrow().flow(slot).tuple.source);
        let carried = HttpConnection {
            gateway: Rc::clone(self),
            slot,
            lease,
            relay,
            client: Rc::clone(&socket),
            moved: Rc::clone(&moved),
            proxy: opened.stream,
            account: Rc::clone(&opened.account),
            index,
            upstreams,
            claimed: Default::default(),
            used: None,
            next: None,
            share: Share::new(Rc::clone(&self.shared), identity),
            is_fresh: true,
            is_reused: false,
            has_moved: false,
            up: Direction::default(),
            down: Direction::default(),
        };
        let task = self.serve(slot, Box::pin(Box::new(carried).serve()));
        let (account, client) = (opened.account, self.client(slot));
        let flow = HttpFlow { task, socket, moved, account, client, received: 0 };
        self.keep(slot, Kept::Http(Box::new(flow)));
    }
}

/// Why a connection can't go on.
#[derive(PartialEq, Eq)]
enum HttpError {
    /// A side's connection is broken, or has ended too early.
    Lost(Side),
    /// What was sent is not acceptable.
    Refused(Refusal),
}

/// A client connection whose requests are being carried.
struct HttpConnection {
    gateway: Rc<Gateway>,
    slot: Slot,
    /// Keeps the fake address that the client has connected to.
    lease: Option<AddressLease>,
    relay: Box<RequestRelay>,
    client: Rc<TcpStream>,
    /// The bytes counted so far.
    moved: Rc<Cell<Moved>>,
    proxy: TcpStream,
    account: Rc<Account>,
    upstreams: Rc<Upstreams>,
    index: usize,
    /// The name that the client claims for the server, and whether it is true.
    claimed: (String, bool),
    /// The credentials in the request that awaits its response...
    used: Option<Authorization>,
    /// ...and those to send instead.
    next: Option<Authorization>,
    share: Share,
    /// Whether no request has been sent yet.
    is_fresh: bool,
    /// Whether the proxy's connection has served an earlier request.
    is_reused: bool,
    /// Whether the request under way has been sent to another proxy because one has failed it.
    has_moved: bool,
    up: Direction,
    down: Direction,
}

impl HttpConnection {
    /// Carries requests until there are no more, then continues as a tunnel if there is one. Returns whether there is
    /// none.
    async fn serve(mut self: Box<Self>) -> bool {
        let mut end = self.run().await;
        if let Err(HttpError::Refused(Refusal::NotHttp)) = end {
            match self.is_fresh && self.connect(false).await.is_ok() {
                true => end = Ok(Next::Tunnel),
                false => {
                    let what = format_args!("no tunnel for what is no HTTP, clients are reset");
                    self.upstream().warn(Warning::Refused, what);
                    self.gateway.count_refused(self.slot);
                }
            }
        }
        if let Err(error) = &end {
            let what = match error {
                HttpError::Lost(Side::Client) => "the client is gone",
                HttpError::Lost(Side::Proxy) => "the proxy is gone",
                HttpError::Refused(refusal) => refusal.status(),
            };
            debug!("{}: ended: {what}", self.slot);
        }
        let is_tunnel = end == Ok(Next::Tunnel);
        self.finish(end).await;
        self.up.release(&self.gateway.resources.pipes);
        self.down.release(&self.gateway.resources.pipes);
        self.count_moved();
        let Self { gateway, slot, lease, client, proxy, account, down, .. } = *self;
        gateway.keep(slot, Kept::Nothing); // the socket is ours alone
        match Rc::into_inner(client).map(TcpStream::into_std) {
            Some(Ok(client)) if is_tunnel => {
                let opened = Opened { stream: proxy, leftover: down.incoming, account, http: None };
                gateway.relay_bytes(slot, client, opened, lease);
                false
            }
            _ => true,
        }
    }

    /// Carries requests until there are no more.
    async fn run(&mut self) -> Result<Next, HttpError> {
        loop {
            let error = match self.progress().await {
                Ok(Next::Request) => match self.send().await? {
                    Next::Tunnel => return Ok(Next::Tunnel),
                    _ => continue,
                },
                Ok(Next::Wait) => continue,
                Ok(end) => return Ok(end),
                Err(error) => error,
            };
            let may_repeat = match error {
                // The nonce is too old, or the proxy has not given one yet.
                HttpError::Refused(Refusal::Unauthorized) => {
                    let used = self.used.take().unwrap_or_default();
                    // Configured before a reload: what is right now is another question.
                    let is_old = !Rc::ptr_eq(&self.upstreams, &self.gateway.upstreams());
                    self.next = match is_old {
                        true => None,
                        false => self.upstreams.refused(self.index, &used, self.relay.challenges()),
                    };
                    is_old || self.next.is_some() || self.may_move()
                }
                // A proxy may close a kept connection at any time.
                HttpError::Lost(Side::Proxy) if self.is_reused => {
                    self.upstreams.choice().undecided(self.index);
                    self.relay.is_repeatable()
                }
                HttpError::Lost(Side::Proxy) if self.relay.status() == 0 => {
                    let failure = self.upstream().gave_no_answer(HandshakeError::Closed);
                    self.upstreams.choice().blamed(self.index, failure, self.upstreams.now());
                    self.relay.is_repeatable() && self.may_move()
                }
                _ => false,
            };
            if !(may_repeat && self.up.take_back(&mut self.relay, &self.gateway.resources.pipes)) {
                return Err(error);
            }
        }
    }

    /// Whether a request that its proxy has failed may be sent to another one: once, if that comes first now.
    fn may_move(&mut self) -> bool {
        !mem::replace(&mut self.has_moved, true) && self.upstreams.choice().first() != Some(self.index)
    }

    /// Moves bytes until there is something to decide.
    async fn progress(&mut self) -> Result<Next, HttpError> {
        let was_idle = self.is_idle();
        if was_idle && self.up.discard(&self.gateway.resources.pipes) {
            self.relay.ended(Side::Proxy);
        }
        let patience = if was_idle { PATIENCE } else { DOUBT };
        let mut late = (was_idle || self.up.is_held).then(|| timer(patience));
        let client = Rc::clone(&self.client);
        // Also while it is neither read nor written.
        let mut reset = Box::pin(client.ready(Interest::ERROR));
        let moved = poll_fn(|cx| {
            let next = match reset.as_mut().poll(cx) {
                Poll::Ready(_) => Poll::Ready(Err(HttpError::Lost(Side::Client))),
                Poll::Pending => self.poll(was_idle, &mut late, cx),
            };
            self.count();
            self.note_answer();
            match self.has_too_much() {
                true if self.relay.is_idle() => Poll::Ready(Err(HttpError::Refused(Refusal::TooLarge))),
                true => Poll::Ready(Err(HttpError::Refused(Refusal::BadGateway))),
                false => next,
            }
        });
        moved.await
    }

    fn poll(
        &mut self,
        was_idle: bool,
        late: &mut Option<Pin<Box<Sleep>>>,
        cx: &mut Context,
    ) -> Poll<Result<Next, HttpError>> {
        let Self { gateway, relay, client, proxy, up, down, .. } = self;
        let pipes = &gateway.resources.pipes;
        // The response first: it tells more than the failure to send to a proxy that takes nothing more.
        if let Poll::Ready(next) = down.poll(Side::Proxy, relay, (proxy, client), pipes, cx)? {
            return Poll::Ready(Ok(next));
        }
        up.is_held &= relay.status() == 0;
        match up.poll(Side::Client, relay, (client, proxy), pipes, cx)? {
            // What ends this loop waits until the client has taken everything.
            Poll::Ready(next) if next == Next::Request || down.is_flushed() => return Poll::Ready(Ok(next)),
            _ => {}
        }
        // The client is waited for differently now.
        if self.is_idle() != was_idle {
            return Poll::Ready(Ok(Next::Wait));
        }
        match late {
            Some(late) => late.as_mut().poll(cx).map(|()| match self.relay.unsent() {
                _ if mem::take(&mut self.up.is_held) => Ok(Next::Wait),
                [] => Ok(Next::End),
                _ => Err(HttpError::Refused(Refusal::TimedOut)),
            }),
            None => Poll::Pending,
        }
    }

    /// Whether it is the client's turn: no request is under way, and it has received everything.
    fn is_idle(&self) -> bool {
        self.relay.is_idle() && self.down.is_flushed()
    }

    /// Whether it keeps too much in memory, though it has forgotten what it needs only to send a request again.
    fn has_too_much(&mut self) -> bool {
        let again = self.up.again.as_ref().map_or(0, Vec::capacity);
        self.share.set(self.relay.size() + again) && {
            self.up.again = None;
            self.relay.forget();
            self.share.set(self.relay.size())
        }
    }

    /// Counts what has moved since the last time.
    fn count(&self) {
        let moved = Moved { up: self.up.moved, down: self.down.moved };
        self.gateway.count_progress(self.moved.replace(moved), moved);
    }

    /// Adds everything that has moved to the proxy's and the client's counters.
    fn count_moved(&self) {
        self.count();
        self.gateway.count_moved(&self.account, self.gateway.client(self.slot), self.moved.get());
    }

    /// Sends the request whose head is complete. [`Next::Tunnel`]: there is a tunnel instead of a proxy.
    async fn send(&mut self) -> Result<Next, HttpError> {
        // Resolved once for all requests of a client that names the same host.
        if let Some(name) = self.relay.claimed_name()
            && *name != *self.claimed.0
        {
            let name = name.to_owned();
            let is_true = self.upstreams.is_name_of(&name, self.relay.target()).await;
            self.claimed = (name, is_true);
        }
        // The proxy may have closed it, or sent something unasked.
        self.is_reused = self.relay.is_kept() && self.down.incoming.is_empty() && is_quiet(&self.proxy);
        let mut is_connected = self.is_reused;
        loop {
            if !is_connected && self.connect(true).await? == Next::Tunnel {
                return Ok(Next::Tunnel);
            }
            let admission = self.upstreams.choice().admit(self.index, false, self.upstreams.now());
            is_connected = match admission {
                Admission::Granted => break,
                Admission::Later => {
                    timer(RETRY_DELAY).await;
                    true
                }
                Admission::Denied => false,
            };
            self.is_reused &= is_connected;
        }
        self.is_fresh = false;
        let Proxy { login, request, .. } = &self.upstreams.proxies()[self.index];
        let is_long = self.relay.has_long_body(AGAIN as u64);
        let mut login = login.borrow_mut();
        let mut used = self.next.take().unwrap_or_else(|| login.begin(is_long));
        self.up.is_held = is_long && login.is_doubtful(&used);
        self.up.room = if request.has_credentials() { AGAIN } else { 0 };
        self.up.again = Some(Vec::new());
        let mut authorize = |method: &[u8], uri: &[u8], out: &mut Vec<u8>| {
            request.authorize(&mut used, method, uri, out);
        };
        let sent = self.relay.send(self.claimed.1, &mut authorize, &mut self.up.outgoing);
        self.used = Some(used);
        sent.map(|()| Next::Wait).map_err(HttpError::Refused)
    }

    /// Connects to a proxy as for a new client, the first one that can be reached. If that opens a tunnel, the client's
    /// bytes that are not part of a request go there.
    async fn connect(&mut self, may_be_plain: bool) -> Result<Next, HttpError> {
        // A reload may have changed them.
        let (upstreams, target) = (self.gateway.upstreams(), self.relay.target());
        let tuple = self.gateway.rewriter.borrow().flow(self.slot).tuple;
        let (name, at) = match target {
            Target::Name(name, _) => (Some(name), server(&tuple)),
            Target::Ip(at) => (None, at),
        };
        let action = match upstreams.decide(name, at, tuple.source.to_canonical()) {
            Some(Action::Reject) => return Err(HttpError::Refused(Refusal::BadGateway)),
            // A proxy already serves this connection.
            Some(Action::Direct) => None,
            action => action,
        };
        let opened = Box::pin(upstreams.open_by(target, action, may_be_plain)).await.ok();
        let place = opened.and_then(|opened| Some((index_of(&upstreams, &opened.account)?, opened)));
        let (index, opened) = place.ok_or(HttpError::Refused(Refusal::BadGateway))?;
        if !Rc::ptr_eq(&self.account, &opened.account) {
            self.count_moved();
            self.moved.take();
            (self.up.moved, self.down.moved) = (0, 0);
            if let Some(flow) = self.gateway.kept.borrow_mut().http(self.slot) {
                flow.account = Rc::clone(&opened.account);
            }
            self.account = opened.account;
            self.next = None;
        }
        // Another configuration has another way to log in.
        if !Rc::ptr_eq(&self.upstreams, &upstreams) {
            self.next = None;
        }
        (self.upstreams, self.index) = (upstreams, index);
        self.proxy = opened.stream;
        self.down.incoming = opened.leftover;
        (self.up.is_lost, self.down.has_ended) = (false, false);
        if opened.http.is_some() {
            return Ok(Next::Request);
        }
        self.up.outgoing.extend_from_slice(self.relay.unsent());
        Ok(Next::Tunnel)
    }

    /// Notes, as soon as it has answered, what the proxy says of the credentials.
    fn note_answer(&mut self) {
        let status = self.relay.status();
        if status != 0
            && let Some(used) = self.used.take()
        {
            self.up.again = None;
            self.has_moved = false;
            self.upstream().login.borrow_mut().answered(used, status);
            self.upstreams.choice().answered(self.index, status, self.upstreams.now());
        }
    }

    fn upstream(&self) -> &Proxy {
        &self.upstreams.proxies()[self.index]
    }

    /// Sends what is left, and an error response unless the client already has a part of a response.
    async fn finish(&mut self, end: Result<Next, HttpError>) {
        let refusal = match end {
            Ok(Next::Tunnel) => {
                let Self { client, proxy, up, down, .. } = self;
                up.outgoing.append(&mut up.incoming);
                // If that fails, the relay notices.
                let flushed = poll_fn(|cx| match (down.poll_flush(client, cx)?, up.poll_flush(proxy, cx)?) {
                    (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(io::Result::Ok(())),
                    _ => Poll::Pending,
                });
                _ = flushed.await;
                return;
            }
            Ok(_) => None,
            Err(HttpError::Refused(refusal)) => Some(refusal),
            // A connection that a server closes while a request is on its way: what may be sent again, clients know best,
            // and do so by themselves.
            Err(HttpError::Lost(Side::Proxy)) if self.is_reused && self.down.moved != 0 => {
                Some(Refusal::NotHttp)
            }
            Err(HttpError::Lost(Side::Proxy)) => Some(Refusal::BadGateway),
            Err(HttpError::Lost(Side::Client)) => Some(Refusal::NotHttp),
        };
        let mut last = Vec::new();
        if let Some(refusal) = refusal {
            if self.relay.status() != 0 && !self.relay.is_idle() || refusal.status().is_empty() {
                _ = sys::set_resetting(&self.client);
                return;
            }
            const END: &str = "\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
            last = ["HTTP/1.1 ", refusal.status(), END].concat().into();
        }
        // The farewell needs nothing else. It takes a while, and there may be many.
        self.relay.clear();
        self.up.clear();
        self.down.incoming = Vec::new();
        self.share.set(0);
        // What the kernel has not sent yet may take longer than the farewell.
        _ = sys::set_lingering(&self.client);
        self.down.has_ended = false;
        let (client, down) = (&self.client, &mut self.down);
        let mut late = timer(FAREWELL);
        poll_fn(|cx| match down.poll_farewell(client, &mut last, cx) {
            Poll::Ready(_) => Poll::Ready(()),
            Poll::Pending => late.as_mut().poll(cx),
        })
        .await;
    }
}

/// The index of the proxy with this account. A reload may have removed it.
fn index_of(upstreams: &Upstreams, account: &Rc<Account>) -> Option<usize> {
    upstreams.proxies().iter().position(|proxy| Rc::ptr_eq(&proxy.account, account))
}

/// Whether a connection is open and has received nothing unasked.
fn is_quiet(stream: &TcpStream) -> bool {
    // Asks the kernel: tokio only knows of the last events.
    sys::read(stream, &mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}
