//! From a name to addresses: `/etc/hosts`, then DNS from the daemon's own sockets.
//!
//! No thread and no libc: getaddrinfo would block the one loop, and its sockets could not be marked, so its queries
//! might be routed into our own device.

use crate::sys;
use crate::upstream::etc_files::{hosts, nameservers};
use log::debug;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io::{self, ErrorKind};
use std::net::{self, IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;
use tcp_over_http::dns::{Answer, Kind, Name, Query, ReplyError, Request};
use tokio::io::Interest;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::{Instant, timeout_at};

const HOSTS_TTL: Duration = Duration::from_secs(60);
/// Every server gets the first time to answer, then every server the second.
const ROUNDS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];
/// How long the other family's answer may take once one has brought addresses.
const GRACE: Duration = Duration::from_millis(300);
/// No UDP answer is longer than 512 bytes without EDNS, nor than what we ask for with it; a server that exceeds that a
/// little is still understood.
const MAX_DATAGRAM: usize = 1500;

/// Why a name has no addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResolveError {
    /// The name does not exist.
    Nonexistent,
    /// The name has neither an A nor an AAAA record.
    NoAddress,
    /// No server answered, or none could.
    Unanswered,
}

impl fmt::Display for ResolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nonexistent => "the name does not exist",
            Self::NoAddress => "the name has no address",
            Self::Unanswered => "no resolver answers",
        })
    }
}

impl std::error::Error for ResolveError {}

/// At least one address, and how long they are good for.
pub type Resolved = (Vec<IpAddr>, Duration);

/// Who the uplink says to ask, where `/etc/resolv.conf` names the dnsmasq of the machine (OpenWrt).
const UPLINK: &str = "/tmp/resolv.conf.d/resolv.conf.auto";

/// Who is asked, and how.
pub struct Resolver {
    servers: Vec<SocketAddr>,
    mark: u32,
    past_dnsmasq: bool,
}

impl Resolver {
    /// Asks `servers` in turn, or those of `/etc/resolv.conf` if there are none, from sockets with `mark` (0: none).
    pub fn new(servers: &[SocketAddr], mark: u32) -> Self {
        Self { servers: servers.to_vec(), mark, past_dnsmasq: false }
    }

    /// In the place of `/etc/resolv.conf`, asks whom the uplink says to ask, where that is known: dnsmasq would ask
    /// our own resolver, and that the proxy whose name it wants.
    pub fn past_dnsmasq(self, yes: bool) -> Self {
        Self { past_dnsmasq: yes, ..self }
    }

    /// The addresses of a name, given as text and for the wire, and how long they are good for.
    ///
    /// # Errors
    /// [`ResolveError`]
    pub async fn resolve(&self, name: &str, wire: &Name) -> Result<Resolved, ResolveError> {
        let addresses = hosts(Path::new("/etc/hosts"), name);
        if !addresses.is_empty() {
            return Ok((addresses, HOSTS_TTL));
        }
        let servers = match self.servers.is_empty() {
            true if self.past_dnsmasq && Path::new(UPLINK).exists() => {
                let mut servers = nameservers(Path::new(UPLINK));
                servers.retain(|server| !server.ip().is_loopback());
                servers
            }
            true => nameservers(Path::new("/etc/resolv.conf")),
            false => self.servers.clone(),
        };
        for patience in ROUNDS {
            for &server in &servers {
                match self.ask(server, wire, patience).await {
                    Ok(Err(ResolveError::Unanswered)) => {
                        debug!("resolver {server}: no answer for {name}")
                    }
                    Ok(verdict) => return verdict,
                    Err(error) => debug!("resolver {server}: {error}"),
                }
            }
        }
        Err(ResolveError::Unanswered)
    }

    /// Asks one server for both families at once.
    async fn ask(
        &self,
        server: SocketAddr,
        name: &Name,
        patience: Duration,
    ) -> io::Result<Result<Resolved, ResolveError>> {
        let [a, b, c, d] = sys::random()?;
        let queries = [
            Query { id: u16::from_ne_bytes([a, b]), name, kind: Kind::A },
            Query { id: u16::from_ne_bytes([c, d]), name, kind: Kind::AAAA },
        ];
        let mut exchanges =
            [&queries[0], &queries[1]].map(|query| exchange(server, self.mark, &query.encode()));
        let mut replies = [None, None];
        let mut deadline = Instant::now() + patience;
        while replies.contains(&None) {
            let next = poll_fn(|cx| {
                for (index, exchange) in exchanges.iter_mut().enumerate() {
                    if replies.get(index) == Some(&None)
                        && let Poll::Ready(reply) = exchange.as_mut().poll(cx)
                    {
                        return Poll::Ready((index, reply));
                    }
                }
                Poll::Pending
            });
            let Ok((index, reply)) = timeout_at(deadline, next).await else { break };
            let reply = match reply {
                Ok(reply) => reply,
                Err(error) if replies == [None, None] => return Err(error),
                Err(_) => break,
            };
            if let (Some(query), Some(place)) = (queries.get(index), replies.get_mut(index)) {
                let answer = query.answer(&reply);
                if answer.as_ref().is_ok_and(|answer| !answer.addresses.is_empty()) {
                    deadline = deadline.min(Instant::now() + GRACE);
                }
                *place = Some(answer);
            }
        }
        Ok(combine(&replies))
    }
}

/// A reply that is on its way, of a type that all who ask share.
pub type Exchange = Pin<Box<dyn Future<Output = io::Result<Vec<u8>>>>>;

/// Sends a query to `server` in a datagram, from a socket with `mark` (0: none) and a random port that the kernel
/// chooses, and again over TCP if the reply does not fit one. What does not answer it is passed over.
pub fn exchange(server: SocketAddr, mark: u32, query: &[u8]) -> Exchange {
    let query = query.to_vec();
    Box::pin(async move {
        let socket = udp_socket(server, mark)?;
        socket.send(&query)?; // a new socket's buffer takes it
        let socket = UdpSocket::from_std(socket)?;
        loop {
            // A port where nobody listens shows as an error alone.
            if socket.ready(Interest::READABLE | Interest::ERROR).await?.is_error() {
                return Err(socket.take_error()?.unwrap_or(ErrorKind::ConnectionRefused.into()));
            }
            let Some(reply) = receive(&socket, &query)? else { continue };
            return match is_truncated(&reply) {
                true => exchange_tcp(server, mark, &query).await,
                false => Ok(reply),
            };
        }
    })
}

/// Takes a datagram that answers the query, if there is one.
fn receive(socket: &UdpSocket, query: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut buffer = [0; MAX_DATAGRAM];
    match socket.try_recv(&mut buffer) {
        Ok(length) => {
            let id = query.first_chunk().map_or(0, |&id| u16::from_be_bytes(id));
            let reply = buffer.get(..length).unwrap_or_default();
            let is_answer = Request::parse(query).is_ok_and(|request| request.is_answered_by(reply, id));
            Ok(is_answer.then(|| reply.to_vec()))
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// The TC bit (RFC 1035 section 4.1.1).
fn is_truncated(reply: &[u8]) -> bool {
    reply.get(2).is_some_and(|flags| flags & 2 != 0)
}

fn udp_socket(server: SocketAddr, mark: u32) -> io::Result<net::UdpSocket> {
    let socket = net::UdpSocket::bind(SocketAddr::new(any_address(server), 0))?;
    socket.set_nonblocking(true)?;
    if mark != 0 {
        sys::set_mark(&socket, mark)?;
    }
    socket.connect(server)?;
    Ok(socket)
}

/// Sends a query over TCP, and reads the reply. RFC 1035 section 4.2.2: the length goes in front, both ways.
async fn exchange_tcp(server: SocketAddr, mark: u32, query: &[u8]) -> io::Result<Vec<u8>> {
    let socket = match server {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if mark != 0 {
        sys::set_mark(&socket, mark)?;
    }
    let stream = socket.connect(server).await?;
    let length = (query.len() as u16).to_be_bytes();
    // A new socket's buffer takes these few bytes whole.
    if stream.try_write(&[&length, query].concat())? != length.len() + query.len() {
        return Err(ErrorKind::WriteZero.into());
    }
    let mut reply = Vec::new();
    loop {
        if let Some((length, rest)) = reply.split_first_chunk()
            && let Some(message) = rest.get(..usize::from(u16::from_be_bytes(*length)))
        {
            return Ok(message.to_vec());
        }
        stream.readable().await?;
        read_more(&stream, &mut reply)?;
    }
}

fn read_more(stream: &TcpStream, reply: &mut Vec<u8>) -> io::Result<()> {
    let mut buffer = [0; MAX_DATAGRAM];
    match stream.try_read(&mut buffer) {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        Ok(length) => {
            reply.extend_from_slice(buffer.get(..length).unwrap_or_default());
            Ok(())
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(error),
    }
}

/// IPv4 before IPv6: a proxy that has both is reached either way, and IPv4 without IPv6 is the common case.
fn combine(replies: &[Option<Result<Answer, ReplyError>>; 2]) -> Result<Resolved, ResolveError> {
    let answers = || replies.iter().flatten().flatten().filter(|answer| !answer.addresses.is_empty());
    if let Some(ttl) = answers().map(|answer| answer.ttl).min() {
        let addresses = answers().flat_map(|answer| answer.addresses.iter().copied()).collect();
        return Ok((addresses, Duration::from_secs(ttl.into())));
    }
    if replies.contains(&Some(Err(ReplyError::NoSuchName))) {
        return Err(ResolveError::Nonexistent);
    }
    Err(match replies {
        [Some(Ok(_)), Some(Ok(_))] => ResolveError::NoAddress,
        _ => ResolveError::Unanswered,
    })
}

/// The address that stands for all of the machine's own that can reach `server`.
pub fn any_address(server: SocketAddr) -> IpAddr {
    match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use tokio::runtime::{Builder, LocalOptions};

    /// Runs a test as the daemon runs.
    pub fn run<T>(test: impl Future<Output = T>) -> T {
        Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default())
            .unwrap()
            .block_on(test)
    }

    /// A DNS server on loopback whose script turns a query into replies; counts the queries.
    pub fn server(script: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> (SocketAddr, Arc<AtomicUsize>) {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let count = Arc::new(AtomicUsize::new(0));
        let queries = Arc::clone(&count);
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((length, client)) = socket.recv_from(&mut buffer) {
                queries.fetch_add(1, SeqCst);
                for reply in script(&buffer[..length]) {
                    socket.send_to(&reply, client).unwrap();
                }
            }
        });
        (address, count)
    }

    /// The reply to a query, with addresses of the family that it asks for.
    pub fn reply(query: &[u8], flags: u16, addresses: &[&str], ttl: u8) -> Vec<u8> {
        let kind = query[query.len() - 3];
        let mut out = query.to_vec();
        out[2..4].copy_from_slice(&flags.to_be_bytes());
        for address in addresses {
            let (of_kind, data) = match address.parse().unwrap() {
                IpAddr::V4(ip) => (1, ip.octets().to_vec()),
                IpAddr::V6(ip) => (28, ip.octets().to_vec()),
            };
            if of_kind == kind {
                out[7] += 1;
                out.extend_from_slice(&[0xc0, 12, 0, kind, 0, 1, 0, 0, 0, ttl + kind, 0, data.len() as u8]);
                out.extend_from_slice(&data);
            }
        }
        out
    }

    pub const OK: u16 = 0x8180;

    async fn resolve(servers: &[SocketAddr]) -> Result<(Vec<String>, u64), ResolveError> {
        let name = "proxy.invalid";
        let resolved = Resolver::new(servers, 0).resolve(name, &Name::new(name).unwrap()).await;
        resolved.map(|(ips, ttl)| (ips.iter().map(IpAddr::to_string).collect(), ttl.as_secs()))
    }

    fn v4() -> (Vec<String>, u64) {
        (vec!["192.0.2.1".to_owned()], 101)
    }

    #[test]
    fn both_families_are_asked_for_and_ipv4_comes_first() {
        let addresses = ["2001:db8::1", "192.0.2.1", "192.0.2.2"];
        let (address, count) = server(move |query| vec![reply(query, OK, &addresses, 100)]);
        let (found, ttl) = run(resolve(&[address])).unwrap();
        assert_eq!(found, ["192.0.2.1", "192.0.2.2", "2001:db8::1"]);
        assert_eq!((ttl, count.load(SeqCst)), (101, 2));
    }

    #[test]
    fn forgeries_are_passed_over() {
        let (address, _) = server(|query| {
            let mut forged = reply(query, OK, &["192.0.2.66"], 100);
            forged[0] ^= 1;
            vec![b"x".to_vec(), forged, reply(query, OK, &["192.0.2.1"], 100)]
        });
        assert_eq!(run(resolve(&[address])), Ok(v4()));
    }

    #[test]
    fn one_family_is_enough() {
        let (address, _) = server(|query| match query[query.len() - 3] {
            1 => vec![reply(query, OK, &["192.0.2.1"], 100)],
            _ => vec![],
        });
        assert_eq!(run(resolve(&[address])), Ok(v4()));
    }

    #[test]
    fn the_next_server_is_asked_when_one_fails() {
        let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (failing, failures) = server(|query| vec![reply(query, OK | 2, &[], 0)]);
        let (silent, silences) = server(|_| vec![]);
        let (good, _) = server(|query| vec![reply(query, OK, &["192.0.2.1"], 100)]);
        assert_eq!(run(resolve(&[closed, failing, silent, good])), Ok(v4()));
        assert_eq!((failures.load(SeqCst), silences.load(SeqCst)), (2, 2));
        assert_eq!(run(resolve(&[failing, closed])), Err(ResolveError::Unanswered));
        assert_eq!(failures.load(SeqCst), 6);
    }

    #[test]
    fn a_negative_answer_is_final() {
        let (empty, _) = server(|query| vec![reply(query, OK, &[], 0)]);
        let (missing, _) = server(|query| vec![reply(query, OK | 3, &[], 0)]);
        let (other, count) = server(|query| vec![reply(query, OK, &["192.0.2.1"], 100)]);
        assert_eq!(run(resolve(&[empty, other])), Err(ResolveError::NoAddress));
        assert_eq!(run(resolve(&[missing, other])), Err(ResolveError::Nonexistent));
        assert_eq!(count.load(SeqCst), 0);
    }

    #[test]
    fn truncated_answers_are_asked_for_again_over_tcp() {
        let truncated = |query: &[u8]| vec![reply(query, OK | 0x0200, &[], 0)];
        // The port that the kernel chose for UDP may be taken for TCP.
        let (address, listener) = (0..20)
            .find_map(|_| {
                let (address, _) = server(truncated);
                std::net::TcpListener::bind(address).ok().map(|listener| (address, listener))
            })
            .unwrap();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let mut length = [0; 2];
                stream.read_exact(&mut length).unwrap();
                let mut query = vec![0; u16::from_be_bytes(length).into()];
                stream.read_exact(&mut query).unwrap();
                let reply = reply(&query, OK, &["192.0.2.1"; 100], 100);
                for piece in [&(reply.len() as u16).to_be_bytes()[..], &reply].concat().chunks(700) {
                    stream.write_all(piece).unwrap();
                }
            }
        });
        let (found, ttl) = run(resolve(&[address])).unwrap();
        assert_eq!((found.len(), ttl), (tcp_over_http::dns::MAX_ADDRESSES, 101));
    }

    #[test]
    fn queries_carry_the_mark() {
        let probe = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let is_allowed = sys::set_mark(&probe, 1).is_ok();
        let (address, count) = server(|query| vec![reply(query, OK, &["192.0.2.1"], 100)]);
        let name = Name::new("proxy.invalid").unwrap();
        let found = run(Resolver::new(&[address], 1).resolve("proxy.invalid", &name));
        assert_eq!(found.is_ok(), is_allowed);
        assert_eq!(count.load(SeqCst) == 0, !is_allowed, "no query leaves without the mark");
    }
}
