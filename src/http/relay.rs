//! HTTP requests in absolute form (RFC 9112 section 3.2.2), for proxies that refuse CONNECT to a port of plain HTTP.
//!
//! [`RequestRelay`] stands between a client that believes it is talking to its server, and a proxy. Heads are read, checked
//! and rewritten; bodies pass unchanged, in runs that need not be parsed. The client chooses what is requested, but not
//! from which server: the URI's authority is the host that it has connected to (CVE-2009-0801). A message that two
//! readers could understand differently is refused, never repaired (RFC 9112 section 11.2).
//!
//! ```text
//! client ── feed ─► head ─► Next::Request ── send ─► proxy ── feed ─► head ─► client
//! client ── body: runs, chunk lines ───────────────► proxy ── body: runs, chunk lines ─► client
//! ```

mod body;
mod head;
mod request;
mod response;

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, SocketAddr};

use self::body::{Body, Chunks};
use self::head::{Head, Kind, push};
use self::request::Request;
use self::response::Response;
use super::connect::Target;

pub use self::head::MAX_HEAD;

/// The side that bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client.
    Client,
    /// The proxy.
    Proxy,
}

/// What to do with a side's next bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Pass them to [`RequestRelay::feed`].
    Feed,
    /// As [`Self::Feed`]; or send at most this many to the other side unchanged, and report to [`RequestRelay::passed`] how many
    /// were sent.
    Run(u64),
    /// Leave them until the other side has made progress.
    Wait,
    /// A request's head is complete: connect to a proxy; [`RequestRelay::send`] then writes the request.
    Request,
    /// There are none: send what has been written, and close both connections.
    End,
    /// Both sides have switched to another protocol: from here on all bytes pass unchanged, without this machine.
    Tunnel,
}

/// Why a connection can no longer be carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The client's first bytes are not HTTP/1.
    NotHttp,
    /// The client's message is malformed or ambiguous.
    BadRequest,
    /// The client has not sent a complete head in time.
    TimedOut,
    /// A head is longer than [`MAX_HEAD`].
    TooLarge,
    /// The proxy's message is malformed or ambiguous.
    BadGateway,
    /// The proxy wants other credentials: [`RequestRelay::challenges`].
    Unauthorized,
}

impl Refusal {
    /// The end of the status line of the error response, which the client gets unless it has received a part of another
    /// response; empty: none is sent.
    pub const fn status(self) -> &'static str {
        match self {
            Self::NotHttp => "",
            Self::BadRequest => "400 Bad Request",
            Self::TimedOut => "408 Request Timeout",
            Self::TooLarge => "431 Request Header Fields Too Large",
            Self::BadGateway | Self::Unauthorized => "502 Bad Gateway",
        }
    }
}

/// Writes the fields that authorize a request to the proxy, each with its line end, from the method and the URI.
pub type Authorize<'a> = dyn FnMut(&[u8], &[u8], &mut Vec<u8>) + 'a;

/// One client connection: request after request, each with its response.
///
/// ```
/// use tcp_over_http::http::connect::Target;
/// use tcp_over_http::http::relay::{Next, RequestRelay, Side};
///
/// let mut relay = RequestRelay::new(Target::Name("www.example.com", 80));
/// let mut out = Vec::new();
/// relay.feed(Side::Client, b"GET /a HTTP/1.1\r\nHost: www.example.com\r\n\r\n", &mut out)?;
/// assert_eq!(relay.next(Side::Client), Next::Request);
/// relay.send(false, &mut |_, _, out| out.extend_from_slice(b"Proxy-Authorization: Basic dTpw\r\n"), &mut out)?;
/// assert_eq!(
///     str::from_utf8(&out),
///     Ok("GET http://www.example.com/a HTTP/1.1\r\n\
///         Host: www.example.com\r\n\
///         Proxy-Authorization: Basic dTpw\r\n\r\n")
/// );
/// out.clear();
/// relay.feed(Side::Proxy, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", &mut out)?;
/// assert_eq!(relay.next(Side::Proxy), Next::Run(5));
/// relay.passed(Side::Proxy, 5);
/// assert_eq!(relay.next(Side::Client), Next::Feed);
/// # Ok::<(), tcp_over_http::http::relay::Refusal>(())
/// ```
#[derive(Clone, Debug)]
pub struct RequestRelay {
    /// The server that the client has connected to: a name or an address; IPv6 in brackets.
    host: String,
    port: u16,
    /// The server's address, if that is known: a name may belong to it.
    server: Option<IpAddr>,
    client: Stream,
    proxy: Stream,
    request: request::Facts,
    /// The head of the current request, while it can be sent again.
    sent: Option<Head>,
    /// The status of the response, as soon as the client may have received a byte of it; 0: none yet.
    status: u16,
    /// Whether the proxy keeps its connection open.
    is_kept: bool,
    is_over: bool,
}

/// The position in a side's messages.
#[derive(Clone, Debug)]
enum Stream {
    /// Between messages: nothing is expected.
    Idle,
    /// In a head.
    Head(Head),
    /// After a request's head, which has not been sent yet.
    Ready(Head),
    Body(Body),
}

impl Stream {
    /// How many bytes it keeps in memory.
    const fn size(&self) -> usize {
        match self {
            Self::Head(head) | Self::Ready(head) | Self::Body(Body::Chunked(Chunks::Trailers(head))) => {
                head.size()
            }
            Self::Idle | Self::Body(_) => 0,
        }
    }
}

impl RequestRelay {
    /// A relay for a client that has connected to `target`.
    pub fn new(target: Target<'_>) -> Self {
        let mut host = target.to_string();
        host.truncate(host.rfind(':').unwrap_or(host.len()));
        Self {
            host,
            port: target.port(),
            server: if let Target::Ip(address) = target { Some(address.ip()) } else { None },
            client: Stream::Head(Head::new(Kind::Request)),
            proxy: Stream::Idle,
            request: request::Facts::default(),
            sent: None,
            status: 0,
            is_kept: true,
            is_over: false,
        }
    }

    /// The server that the client has connected to.
    pub fn target(&self) -> Target<'_> {
        match self.server {
            Some(ip) => Target::Ip(SocketAddr::new(ip, self.port)),
            None => Target::Name(&self.host, self.port),
        }
    }

    /// What to do with the next bytes of `side`.
    pub fn next(&self, side: Side) -> Next {
        if self.is_over {
            return Next::End;
        }
        if matches!(&self.client, Stream::Body(client) if client.is_endless()) {
            return Next::Tunnel;
        }
        match self.stream(side) {
            Stream::Idle => Next::Wait,
            Stream::Head(_) => Next::Feed,
            Stream::Ready(_) => Next::Request,
            Stream::Body(body) => match body.run() {
                0 if body.is_over() => Next::Wait,
                0 => Next::Feed,
                run => Next::Run(run),
            },
        }
    }

    /// Takes bytes of `side`, and appends to `out` what the other side gets. Returns how many it took: it stops where
    /// [`next`](Self::next) is neither [`Next::Feed`] nor [`Next::Run`].
    ///
    /// # Errors
    /// [`Refusal`], after which the relay is of no further use.
    pub fn feed(&mut self, side: Side, bytes: &[u8], out: &mut Vec<u8>) -> Result<usize, Refusal> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let taken = match self.next(side) {
                Next::Feed => self.take(side, rest, out).map_err(|refusal| match (side, refusal) {
                    (Side::Client, _) | (_, Refusal::Unauthorized) => refusal,
                    _ => Refusal::BadGateway,
                })?,
                Next::Run(run) => {
                    let length = run.min(rest.len() as u64);
                    push(out, &[rest.get(..length as usize).unwrap_or_default()]);
                    self.passed(side, length);
                    length as usize
                }
                _ => break,
            };
            self.settle();
            rest = rest.get(taken..).unwrap_or_default();
        }
        Ok(bytes.len() - rest.len())
    }

    /// Notes that `length` bytes of a run have been sent to the other side.
    pub fn passed(&mut self, side: Side, length: u64) {
        let stream = if side == Side::Client { &mut self.client } else { &mut self.proxy };
        if let Stream::Body(body) = stream {
            body.pass(length);
        }
        self.settle();
    }

    /// Notes that a side has sent its last byte. Returns whether it may end here.
    pub fn ended(&mut self, side: Side) -> bool {
        let may_end = match (side, &self.client, &self.proxy) {
            (Side::Client, Stream::Head(head), _) => head.is_empty(),
            (Side::Client, Stream::Body(body), _) if body.is_over() => {
                self.request.is_kept = false;
                return true;
            }
            (Side::Proxy, _, Stream::Idle) => {
                self.is_kept = false;
                return true;
            }
            (Side::Proxy, _, Stream::Body(body)) => body.is_endless(),
            _ => false,
        };
        self.is_over = true;
        may_end
    }

    /// The name in the request's Host field, if it may belong to the address that the client has connected to: if it
    /// does, the request can be made by name.
    pub fn claimed_name(&self) -> Option<&str> {
        let Stream::Ready(head) = &self.client else { return None };
        self.claimed(&Request::read(head).ok()?)
    }

    fn claimed<'a>(&self, request: &Request<'a>) -> Option<&'a str> {
        let is_name = |host: &&str| !host.starts_with('[') && host.parse::<Ipv4Addr>().is_err();
        request.host.filter(is_name).filter(|_| self.server.is_some())
    }

    /// Whether the body of the request whose head is complete may be longer than `most`.
    pub const fn has_long_body(&self, most: u64) -> bool {
        self.request.length > most
    }

    /// Appends to `out` what the proxy gets for the request whose head is complete. `is_true`: the [claimed
    /// name](Self::claimed_name) belongs to the address.
    ///
    /// # Errors
    /// [`Refusal::BadRequest`]: the request explicitly names another host.
    pub fn send(
        &mut self,
        is_true: bool,
        authorize: &mut Authorize<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let Stream::Ready(head) = &self.client else { return Ok(()) };
        let request = Request::read(head)?;
        let host = self.claimed(&request).filter(|_| is_true).unwrap_or(&self.host);
        let authority = request::authority(host, self.port);
        let is_other = request.host.is_some_and(|named| !named.eq_ignore_ascii_case(host));
        if request.is_absolute && is_other {
            return Err(Refusal::BadRequest);
        }
        request.write(&authority, authorize, out);
        let client = Stream::Body(request.body());
        if let Stream::Ready(head) = core::mem::replace(&mut self.client, client) {
            self.sent = Some(head);
        }
        self.proxy = Stream::Head(Head::new(Kind::Response));
        (self.status, self.is_kept) = (0, false);
        Ok(())
    }

    /// Takes back the current request, so that it can be sent again: after [`Refusal::Unauthorized`], or when a kept
    /// connection has ended. What has been fed of its body has to be fed again. Returns whether that is possible.
    pub fn take_back(&mut self) -> bool {
        let Some(head) = self.sent.take() else { return false };
        (self.client, self.proxy, self.is_over) = (Stream::Ready(head), Stream::Idle, false);
        true
    }

    /// How many bytes of heads it keeps in memory.
    pub fn size(&self) -> usize {
        self.client.size() + self.proxy.size() + self.sent.as_ref().map_or(0, Head::size)
    }

    /// Forgets the current request, which can't be taken back any more.
    pub fn forget(&mut self) {
        self.sent = None;
    }

    /// Forgets everything, because the connection is over.
    pub fn clear(&mut self) {
        (self.client, self.proxy, self.sent) = (Stream::Idle, Stream::Idle, None);
    }

    /// Whether the current request may be sent twice (RFC 9110 section 9.2.2).
    pub const fn is_repeatable(&self) -> bool {
        self.request.is_repeatable
    }

    /// The client's bytes that have not been sent as part of a request.
    pub fn unsent(&self) -> &[u8] {
        match &self.client {
            Stream::Head(head) | Stream::Ready(head) => head.bytes(),
            Stream::Idle | Stream::Body(_) => &[],
        }
    }

    /// The status of the response to the current request, as soon as the client may have received a byte of it; 0: none
    /// yet.
    pub const fn status(&self) -> u16 {
        self.status
    }

    /// Whether there is no current request.
    pub const fn is_idle(&self) -> bool {
        matches!(self.proxy, Stream::Idle)
    }

    /// Whether the proxy's connection can carry the next request.
    pub const fn is_kept(&self) -> bool {
        self.is_kept
    }

    /// The lines of a response that was [refused](Refusal::Unauthorized), including its challenges.
    pub fn challenges(&self) -> &[u8] {
        match &self.proxy {
            Stream::Head(head) => head.bytes(),
            _ => &[],
        }
    }

    const fn stream(&self, side: Side) -> &Stream {
        match side {
            Side::Client => &self.client,
            Side::Proxy => &self.proxy,
        }
    }

    /// Takes bytes up to the end of the head or body that they belong to.
    fn take(&mut self, side: Side, bytes: &[u8], out: &mut Vec<u8>) -> Result<usize, Refusal> {
        let stream = if side == Side::Client { &mut self.client } else { &mut self.proxy };
        match stream {
            Stream::Head(head) => {
                let taken = head.feed(bytes)?;
                if head.is_whole() {
                    self.handle_head(side, out)?;
                }
                Ok(taken)
            }
            // Of a chunked body only its lines come here, which a 1.0 client can't read.
            Stream::Body(body) if side == Side::Proxy && self.request.is_1_0 => {
                body.feed(bytes, &mut Vec::new())
            }
            Stream::Body(body) => body.feed(bytes, out),
            Stream::Idle | Stream::Ready(_) => Ok(0),
        }
    }

    fn handle_head(&mut self, side: Side, out: &mut Vec<u8>) -> Result<(), Refusal> {
        match (&mut self.client, &mut self.proxy) {
            (Stream::Head(head), _) if side == Side::Client => {
                self.request = Request::read(head)?.facts();
                self.client = Stream::Ready(core::mem::replace(head, Head::new(Kind::Request)));
            }
            (_, Stream::Head(head)) => {
                let response = Response::read(head, self.request)?;
                if !response.is_interim() {
                    (self.status, self.sent) = (response.status, None);
                }
                // The connections can't be kept if the client is still sending its body: nobody may be reading the
                // rest.
                let is_sent = !matches!(&self.client, Stream::Body(body) if !body.is_over());
                self.request.is_kept &= response.is_interim() || is_sent && !response.is_endless_for_client();
                // A 1.0 client knows no interim responses (RFC 9110 section 15.2).
                if !(response.is_interim() && self.request.is_1_0) {
                    response.write(self.request, out);
                }
                self.is_kept = is_sent && !response.is_interim() && response.is_kept();
                if response.is_upgrade() {
                    self.client = Stream::Body(Body::endless());
                }
                self.proxy = match response.is_interim() {
                    true => Stream::Head(Head::new(Kind::Response)),
                    false => Stream::Body(response.body()),
                };
            }
            _ => {}
        }
        Ok(())
    }

    /// Continues with the next request once the response has ended.
    fn settle(&mut self) {
        let (Stream::Body(client), Stream::Body(proxy)) = (&self.client, &self.proxy) else { return };
        if !proxy.is_over() {
            return;
        }
        self.is_over = !client.is_over() || !self.request.is_kept;
        self.client = Stream::Head(Head::new(Kind::Request));
        self.proxy = Stream::Idle;
    }
}

/// The default port of a URI.
const PORT: u16 = 80;

#[cfg(test)]
mod tests;
