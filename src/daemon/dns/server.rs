//! The sockets of the daemon's resolver: UDP and TCP on the loopback addresses (RFC 7766 section 5 demands both).

use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::{Rc, Weak};
use std::task::{self, Poll, ready};

use tcp_over_http::net::ClientKey;
use tcp_over_http::time::Instant;
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::client::{Client, MAX_WAITERS_OF_ONE};
use super::stream::Stream;
use crate::sys;

/// The longest query that is read.
pub const MAX_QUERY: usize = 4096;
/// How many datagrams are received before others have their turn.
const TURN: usize = 32;
/// Connections that wait to be accepted.
const BACKLOG: u32 = 64;
/// The most connections at once. A new one beyond that closes one of the client that has the most: the one that has been
/// idle the longest.
pub const MAX_STREAMS: usize = 64;
/// How long an idle connection is kept, in ms (RFC 7766 section 6.2.3 suggests a few seconds).
const IDLE: u32 = 15_000;

/// Takes a query.
pub type Ask<'a> = dyn Fn(&[u8], Client) + 'a;

/// The sockets, and all connections of clients.
pub struct Server {
    datagrams: Vec<UdpSocket>,
    listeners: Vec<TcpListener>,
    streams: RefCell<Vec<(Weak<Stream>, ClientKey)>>,
}

impl Server {
    /// Listens on 127.0.0.1, and with `ipv6` on ::1. Must run within tokio's runtime.
    ///
    /// # Errors
    /// The address, and what failed there.
    pub fn new(port: u16, ipv6: bool) -> Result<Self, (SocketAddr, io::Error)> {
        let (mut datagrams, mut listeners) = (Vec::new(), Vec::new());
        let addresses =
            [Some(IpAddr::V4(Ipv4Addr::LOCALHOST)), ipv6.then_some(IpAddr::V6(Ipv6Addr::LOCALHOST))];
        for ip in addresses.into_iter().flatten() {
            let address = SocketAddr::new(ip, port);
            match bind(address) {
                // IPv6 is switched off on this machine.
                Err(error) if address.is_ipv6() && error.kind() == ErrorKind::AddrNotAvailable => continue,
                socket => datagrams.push(socket.map_err(|error| (address, error))?),
            }
            listeners.push(listen(address).map_err(|error| (address, error))?);
        }
        Ok(Self { datagrams, listeners, streams: RefCell::default() })
    }

    /// Hands over the queries that have come in datagrams.
    pub fn poll_datagrams(&self, cx: &mut task::Context, ask: &Ask) {
        for (number, socket) in self.datagrams.iter().enumerate() {
            let mut turn = 0;
            while turn < TURN && socket.poll_recv_ready(cx).is_ready() {
                turn += 1;
                receive(number, socket, ask);
            }
            if turn == TURN {
                cx.waker().wake_by_ref();
            }
        }
    }

    /// Accepts a connection.
    pub fn poll_accept(&self, cx: &mut task::Context) -> Poll<TcpStream> {
        for listener in &self.listeners {
            if let Poll::Ready(Ok((socket, _))) = listener.poll_accept(cx) {
                return Poll::Ready(socket);
            }
        }
        Poll::Pending
    }

    /// Takes a connection. `source` is the client, or `None` on the loopback; it counts as `key`.
    pub fn connect(
        &self,
        socket: TcpStream,
        source: Option<Ipv6Addr>,
        key: ClientKey,
        now: Instant,
    ) -> ClientConnection {
        let stream = Rc::new(Stream::new(socket, Vec::new(), MAX_QUERY, now));
        self.add(&stream, key, now);
        ClientConnection { stream, source, is_over: false }
    }

    /// Sends a response from the socket of this number.
    pub fn send(&self, socket: usize, client: SocketAddr, reply: &[u8]) {
        if let Some(socket) = self.datagrams.get(socket) {
            // A response that does not fit the socket's buffer is lost, as any datagram may be; the client asks again.
            _ = socket.try_send_to(reply, client);
        }
    }

    /// Closes connections that are idle.
    pub fn tick(&self, now: Instant) {
        self.streams.borrow_mut().retain(|(stream, _)| match stream.upgrade() {
            Some(stream) => {
                if now.since(stream.last_used()) >= IDLE {
                    stream.close();
                }
                true
            }
            None => false,
        });
    }

    /// Adds a connection. If there are too many, closes one.
    fn add(&self, stream: &Rc<Stream>, client: ClientKey, now: Instant) {
        let mut streams = self.streams.borrow_mut();
        streams.retain(|(stream, _)| stream.strong_count() > 0);
        if streams.len() >= MAX_STREAMS {
            let count = |client| streams.iter().filter(|(_, other)| *other == client).count();
            let use_of = |stream: &Weak<Stream>| stream.upgrade().map(|it| now.since(it.last_used()));
            let rank = |&nth: &usize| (count(streams[nth].1), use_of(&streams[nth].0));
            let idlest = (0..streams.len()).rev().max_by_key(rank);
            // Its task ends it only at its next turn; until then it must not be chosen again.
            if let Some(stream) = idlest.and_then(|nth| streams.remove(nth).0.upgrade()) {
                stream.close();
            }
        }
        streams.push((Rc::downgrade(stream), client));
    }
}

/// A client's connection.
pub struct ClientConnection {
    stream: Rc<Stream>,
    source: Option<Ipv6Addr>,
    /// The client has ended its side.
    is_over: bool,
}

impl ClientConnection {
    /// Hands over queries and sends responses. Ready when the client has ended its side and has got all responses, or
    /// when the connection broke.
    pub fn poll(&mut self, cx: &mut task::Context, now: Instant, ask: &Ask) -> Poll<()> {
        let stream = &self.stream;
        // Weak references count the waiting queries: one for each, and one in the server's list.
        let may_ask = || Rc::weak_count(stream) <= MAX_WAITERS_OF_ONE;
        let mut handle = |query: &[u8]| {
            stream.touch(now);
            ask(query, Client::Tcp(Rc::downgrade(stream), self.source));
            may_ask()
        };
        if !self.is_over && may_ask() {
            match ready!(stream.poll(cx, &mut handle)) {
                Ok(()) => self.is_over = true,
                Err(_) => return Poll::Ready(()),
            }
        }
        match stream.poll_flush(cx) {
            // The next response wakes this task.
            Poll::Ready(Ok(())) if !self.is_over || Rc::weak_count(stream) > 1 => Poll::Pending,
            poll => poll.map(drop),
        }
    }
}

/// Receives a datagram, if there is one. An error concerns an earlier response and is ignored.
fn receive(number: usize, socket: &UdpSocket, ask: &Ask) {
    let mut query = [0; MAX_QUERY];
    if let Ok((length, client)) = socket.try_recv_from(&mut query) {
        ask(query.get(..length).unwrap_or_default(), Client::Udp(number, client));
    }
}

fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = sys::tcp_socket(address, 0)?;
    socket.set_reuseaddr(true)?;
    socket.set_nodelay(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::run;
    use std::future::poll_fn;

    /// More at once than there may be, before the task of any has its turn. The idlest of all is another client's.
    #[test]
    fn the_idlest_of_who_has_the_most_make_room() {
        const EXTRA: usize = 10;
        run(async {
            let server = Server::new(0, false).unwrap();
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let (mut streams, mut clients) = (vec![], vec![]);
            for nth in 0..MAX_STREAMS + EXTRA {
                clients.push(std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap());
                let (socket, _) = listener.accept().unwrap();
                socket.set_nonblocking(true).unwrap();
                let now = Instant::from_millis(nth as u64 / 30);
                let socket = TcpStream::from_std(socket).unwrap();
                let stream = Rc::new(Stream::new(socket, vec![], MAX_QUERY, now));
                let client =
                    if nth == 0 { Ipv4Addr::LOCALHOST.to_ipv6_mapped() } else { Ipv6Addr::LOCALHOST };
                server.add(&stream, ClientKey::of(client), now);
                streams.push(stream);
            }
            let is_open = |cx: &mut task::Context, stream: &Stream| {
                !matches!(stream.poll_flush(cx), Poll::Ready(Err(_)))
            };
            poll_fn(|cx| {
                let open: Vec<bool> = streams.iter().map(|stream| is_open(cx, stream)).collect();
                assert_eq!(open, [vec![true], vec![false; EXTRA], vec![true; MAX_STREAMS - 1]].concat());
                Poll::Ready(())
            })
            .await;
        });
    }
}
