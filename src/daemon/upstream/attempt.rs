//! An attempt to open a tunnel: proxies are asked one after the other, and while one is slow the next ones are asked
//! beside it.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use tcp_over_http::http;
use tcp_over_http::http::connect::Target;
use tcp_over_http::http::login::Authorization;
use tcp_over_http::time;
use tcp_over_http::upstream::choice::{Asked, Attempt};
use tcp_over_http::upstream::plain::TLS;

use super::connection::ProxyConnection;
use super::dial::Reply;
use super::proxy::Warning;
use super::{Carried, Failure, HeldSyn, Opened, Upstreams};
use crate::task::timer;

/// How long to wait before asking a proxy again that has closed without an answer, or has not said yet whether the
/// credentials of another connection are right.
pub const RETRY_DELAY: Duration = Duration::from_millis(100);

/// The result of asking one proxy or several. Boxed, because asking several is recursive.
type Answer<'a> = Pin<Box<dyn Future<Output = Result<Carried, Failure>> + 'a>>;

/// A connection's way through the proxies.
struct Dial<'a> {
    attempt: RefCell<Attempt>,
    target: &'a Target<'a>,
    /// Whether requests in absolute form may replace a tunnel.
    may_be_plain: bool,
}

impl Upstreams {
    /// Asks the proxies in turn, or `only` one, until one has opened a tunnel, in the name of the client whose SYN is `held` where
    /// possible.
    pub(super) async fn ask_in_turn(
        &self,
        target: &Target<'_>,
        only: Option<usize>,
        may_be_plain: bool,
        held: Option<&HeldSyn<'_>>,
    ) -> Result<Carried, Failure> {
        let plain = (0..self.proxies.len()).filter(|&index| may_be_plain && self.is_plain(index, target));
        let attempt = RefCell::new(plain.fold(Attempt::new(*target, only), Attempt::quiet));
        self.carry_next(&Dial { attempt, target, may_be_plain }, held, true).await
    }

    /// Asks the proxies that this dial has not asked yet, one after the other, until one has opened a tunnel. If all
    /// have closed and it `may_repeat`, asks them again.
    async fn carry_next(
        &self,
        dial: &Dial<'_>,
        held: Option<&HeldSyn<'_>>,
        may_repeat: bool,
    ) -> Result<Carried, Failure> {
        let mut is_again = false;
        loop {
            let asked = self.choice().next(&mut dial.attempt.borrow_mut(), self.now());
            let Some(asked) = asked else {
                let must_wait = dial.attempt.borrow().must_wait();
                let failure = dial.attempt.borrow().failure();
                if !must_wait && (is_again || !may_repeat || failure != Failure::Closed) {
                    return Err(failure);
                }
                timer(RETRY_DELAY).await;
                if !must_wait {
                    is_again = true;
                    dial.attempt.borrow_mut().begin_again();
                }
                continue;
            };
            let proxy = &self.proxies[asked.index];
            proxy.count(|stats| stats.retried = stats.retried.wrapping_add(is_again.into()));
            let is_connected = Cell::new(false);
            let mut ask: Option<Answer<'_>> =
                Some(Box::pin(self.ask(asked.index, dial.target, dial.may_be_plain, held, &is_connected)));
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

    /// Asks one proxy, and sets `is_connected` once it is connected.
    pub(super) async fn ask(
        &self,
        index: usize,
        target: &Target<'_>,
        may_be_plain: bool,
        held: Option<&HeldSyn<'_>>,
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
            let begin = |address| held?.begin(&request, &proxy.account.name, address);
            // Boxed, so that the longer wait for an answer needs no room for it.
            let is_again = kept.is_some();
            let connection = match kept.take() {
                Some(connection) => connection,
                None => Box::pin(self.reach(proxy, Some(index), &begin))
                    .await
                    .map_err(|(failure, error)| self.proxies[index].was_not_reached(failure, &error))?,
            };
            is_connected.set(true);
            let reply = connection.handshake(request, self.reply_timeout).await;
            let proxy = &self.proxies[index]; // not held across an await, which would make every dial larger
            if is_again && reply.is_err() {
                continue; // the connection was not kept open after all, or not as expected
            }
            let reply = reply.map_err(|error| proxy.gave_no_answer(error))?;
            if reply.status != 407 {
                proxy.login.borrow_mut().answered(authorization, reply.status);
            } else if let Some(next) = proxy.next_credentials(&authorization, &reply.rest) {
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
        let (account, http) =
            (Rc::clone(&proxy.account), Some(Box::new(http::relay::RequestRelay::new(*target))));
        Ok(Carried::Relayed(Box::new(Opened { stream, leftover: Vec::new(), account, http })))
    }

    /// Evaluates a proxy's answer, and prepares the tunnel.
    fn answered(
        &self,
        index: usize,
        target: Target<'_>,
        begun: time::Instant,
        connection: ProxyConnection,
        reply: Reply,
    ) -> Result<Carried, Failure> {
        let proxy = &self.proxies[index];
        let (latency, status) = (self.now().since(begun), reply.status);
        proxy.count(|stats| stats.answered(status, latency));
        debug!("upstream {}: {status} for {target} after {latency} ms", proxy.account.name);
        if status == 407 && proxy.request.has_credentials() {
            return Err(Failure::Credentials);
        }
        self.choice().answered(index, status, self.now());
        if !(200..300).contains(&status) {
            if status != 407 && !self.is_plain(index, &target) {
                proxy.warn(Warning::Refused, format_args!("refuses with status {status}"));
            }
            return Err(Failure::Refused { status });
        }
        self.note_worked(target);
        let stream = match connection {
            ProxyConnection::Socket(stream) => stream,
            ProxyConnection::Packets(attempt) => return Ok(Carried::Forwarded(attempt)),
        };
        Ok(self.relayed(&proxy.account, stream, reply.rest))
    }
}
