//! From a name to addresses: `/etc/hosts`, then DNS from the daemon's own sockets.
//!
//! No thread and no libc: getaddrinfo would block the one loop, and its sockets could not be marked, so its queries
//! might be routed into our own device.

use crate::etc_files::{hosts, nameservers};
use crate::sys;
use log::debug;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;
use tcp_over_http::dns::{Answer, Kind, Name, Query, ReplyError};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::{Instant, timeout, timeout_at};

const HOSTS_TTL: Duration = Duration::from_secs(60);
/// Every server gets the first time to answer, then every server the second.
const ROUNDS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];
/// How long the other family's answer may take once one has brought addresses.
const GRACE: Duration = Duration::from_millis(300);
/// Without EDNS no UDP answer is longer than 512 bytes; a server that exceeds it a little is still understood.
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

/// Who is asked, and how.
pub struct Resolver {
    servers: Vec<SocketAddr>,
    mark: u32,
}

impl Resolver {
    /// Asks `servers` in turn, or those of `/etc/resolv.conf` if there are none, from sockets with `mark` (0: none).
    pub fn new(servers: &[SocketAddr], mark: u32) -> Self {
        Self {
            servers: servers.to_vec(),
            mark,
        }
    }

    /// The addresses of a name, given as text and for the wire, and how long they are good for.
    ///
    /// # Errors
    /// [`ResolveError`]
    pub async fn resolve(
        &self,
        name: &str,
        wire: &Name,
    ) -> Result<(Vec<IpAddr>, Duration), ResolveError> {
        let addresses = hosts(Path::new("/etc/hosts"), name);
        if !addresses.is_empty() {
            return Ok((addresses, HOSTS_TTL));
        }
        let servers = match self.servers.is_empty() {
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
    ) -> io::Result<Result<(Vec<IpAddr>, Duration), ResolveError>> {
        let [a, b, c, d] = sys::random()?;
        let queries = [
            Query {
                id: u16::from_ne_bytes([a, b]),
                name,
                kind: Kind::A,
            },
            Query {
                id: u16::from_ne_bytes([c, d]),
                name,
                kind: Kind::AAAA,
            },
        ];
        // The kernel chooses a random port.
        let socket = UdpSocket::bind((any_address(server), 0)).await?;
        if self.mark != 0 {
            sys::set_mark(&socket, self.mark)?;
        }
        socket.connect(server).await?;
        for query in &queries {
            socket.send(&query.encode()).await?;
        }
        let mut replies = [None, None];
        let mut deadline = Instant::now() + patience;
        while replies.contains(&None) {
            match timeout_at(deadline, socket.readable()).await {
                Ok(ready) => ready?,
                Err(_) => break,
            }
            if receive(&socket, &queries, &mut replies)? {
                deadline = deadline.min(Instant::now() + GRACE);
            }
        }
        for (query, reply) in queries.iter().zip(&mut replies) {
            if *reply == Some(Err(ReplyError::Truncated)) {
                let answer = timeout(patience, self.ask_tcp(server, query)).await;
                *reply = Some(answer.unwrap_or_else(|late| Err(late.into()))?);
            }
        }
        Ok(combine(&replies))
    }

    /// RFC 1035 section 4.2.2: the length goes in front, both ways.
    async fn ask_tcp(
        &self,
        server: SocketAddr,
        query: &Query<'_>,
    ) -> io::Result<Result<Answer, ReplyError>> {
        let socket = match server {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        if self.mark != 0 {
            sys::set_mark(&socket, self.mark)?;
        }
        let stream = socket.connect(server).await?;
        let message = query.encode();
        let length = (message.len() as u16).to_be_bytes();
        // A new socket's buffer takes these few bytes whole.
        if stream.try_write(&[&length, &message[..]].concat())? != length.len() + message.len() {
            return Err(ErrorKind::WriteZero.into());
        }
        let mut reply = Vec::new();
        loop {
            if let Some((length, rest)) = reply.split_first_chunk()
                && let Some(message) = rest.get(..usize::from(u16::from_be_bytes(*length)))
            {
                return Ok(query.answer(message));
            }
            stream.readable().await?;
            read_more(&stream, &mut reply)?;
        }
    }
}

/// Takes the datagrams that are there; tells whether one of them brought addresses.
fn receive(
    socket: &UdpSocket,
    queries: &[Query<'_>; 2],
    replies: &mut [Option<Result<Answer, ReplyError>>; 2],
) -> io::Result<bool> {
    let mut buffer = [0; MAX_DATAGRAM];
    let mut found = false;
    loop {
        let length = match socket.try_recv(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(found),
            Err(error) => return Err(error),
        };
        let datagram = buffer.get(..length).unwrap_or_default();
        for (query, reply) in queries.iter().zip(replies.iter_mut()) {
            match query.answer(datagram) {
                Err(ReplyError::Stray) => {}
                outcome => {
                    found |= outcome
                        .as_ref()
                        .is_ok_and(|answer| !answer.addresses.is_empty());
                    *reply = Some(outcome);
                }
            }
        }
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
fn combine(
    replies: &[Option<Result<Answer, ReplyError>>; 2],
) -> Result<(Vec<IpAddr>, Duration), ResolveError> {
    let answers = || {
        replies
            .iter()
            .flatten()
            .flatten()
            .filter(|answer| !answer.addresses.is_empty())
    };
    if let Some(ttl) = answers().map(|answer| answer.ttl).min() {
        let addresses = answers()
            .flat_map(|answer| answer.addresses.iter().copied())
            .collect();
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

fn any_address(server: SocketAddr) -> IpAddr {
    match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}
