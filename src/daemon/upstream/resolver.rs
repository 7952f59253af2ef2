//! Resolves names to addresses: `/etc/hosts`, then DNS over sockets of the daemon's own.
//!
//! Not by getaddrinfo, which would block the event loop, and whose sockets could not be marked, so that its queries
//! might be routed into the TUN.

use crate::sys;
use crate::upstream::etc_files::{hosts, nameservers};
use crate::upstream::exchange::exchange;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::task::Poll;
use std::time::Duration;
use tcp_over_http::dns::{Answer, Kind, Name, Query, ReplyError, Rounds};
use tokio::time::{Instant, timeout_at};

/// How long addresses from `/etc/hosts` are valid.
const HOSTS_TTL: Duration = Duration::from_secs(60);
/// How long to wait for the other family once there is an address of one.
const GRACE: Duration = Duration::from_millis(300);
/// Why a name has no addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResolveError {
    /// The name does not exist.
    Nonexistent,
    /// The name has neither an A nor an AAAA record.
    NoAddress,
    /// No server answered, or none could answer.
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

/// One or more addresses, and how long they are valid.
pub type Resolved = (Vec<IpAddr>, Duration);

/// The file with the uplink's servers, where `/etc/resolv.conf` names the machine's own dnsmasq (OpenWrt).
const UPLINK: &str = "/tmp/resolv.conf.d/resolv.conf.auto";

/// Finds the addresses of names.
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

    /// Asks the uplink's servers, where they are known, instead of those in `/etc/resolv.conf`: dnsmasq would ask the
    /// daemon's own resolver, which would need the proxy whose name is being resolved.
    pub fn past_dnsmasq(self, yes: bool) -> Self {
        Self { past_dnsmasq: yes, ..self }
    }

    /// The servers to ask: the configured ones, or the uplink's current ones.
    pub fn servers(&self) -> Vec<SocketAddr> {
        match self.servers.is_empty() {
            true if self.past_dnsmasq && Path::new(UPLINK).exists() => {
                let mut servers = nameservers(Path::new(UPLINK));
                servers.retain(|server| !server.ip().is_loopback());
                servers
            }
            true => nameservers(Path::new("/etc/resolv.conf")),
            false => self.servers.clone(),
        }
    }

    /// The addresses of a name, given as text and in wire format, and how long they are valid.
    pub async fn resolve(&self, name: &str, wire: &Name) -> Result<Resolved, ResolveError> {
        let addresses = hosts(Path::new("/etc/hosts"), name);
        if !addresses.is_empty() {
            return Ok((addresses, HOSTS_TTL));
        }
        let servers = self.servers();
        for (server, patience) in Rounds::new(&servers) {
            match self.ask(server, wire, patience).await {
                Ok(Err(ResolveError::Unanswered)) => debug!("resolver {server}: no answer for {name}"),
                Ok(verdict) => return verdict,
                Err(error) => debug!("resolver {server}: {error}"),
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
            Query::compose(u16::from_ne_bytes([a, b]), name, Kind::A),
            Query::compose(u16::from_ne_bytes([c, d]), name, Kind::AAAA),
        ];
        let mut exchanges = queries.each_ref().map(|query| exchange(server, self.mark, query));
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
                let answer = match Query::parse(query) {
                    Ok(query) => query.answer(&reply),
                    Err(_) => Err(ReplyError::Malformed), // never: the query is ours
                };
                if answer.as_ref().is_ok_and(|answer| !answer.addresses.is_empty()) {
                    deadline = deadline.min(Instant::now() + GRACE);
                }
                *place = Some(answer);
            }
        }
        Ok(combine(&replies))
    }
}

/// Puts IPv4 before IPv6: a proxy with both can be reached either way, and networks without IPv6 are common.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{OK, reply, run, server};
    use std::io::{Read, Write};
    use std::sync::atomic::Ordering::SeqCst;

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

    type Script = fn(&[u8]) -> Vec<Vec<u8>>;

    /// The same over UDP; over TCP it answers, with more addresses than a datagram has.
    fn server_with_tcp(script: Script) -> SocketAddr {
        // The port that the kernel chose for UDP may be taken for TCP.
        let (address, listener) = (0..20)
            .find_map(|_| {
                let (address, _) = server(script);
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
        address
    }

    #[test]
    fn truncated_answers_are_asked_for_again_over_tcp() {
        let address = server_with_tcp(|query| vec![reply(query, OK | 0x0200, &[], 0)]);
        let (found, ttl) = run(resolve(&[address])).unwrap();
        assert_eq!((found.len(), ttl), (tcp_over_http::dns::MAX_ADDRESSES, 101));
    }

    /// The first reply is no echo of the query, and a forged one with the right id behind it.
    #[test]
    fn who_may_be_guessing_makes_it_ask_over_tcp() {
        fn forged(query: &[u8]) -> Vec<u8> {
            reply(query, OK, &["192.0.2.66"], 100)
        }
        let scripts: [Script; 4] = [
            |query| vec![b"x".to_vec(), forged(query)],
            |query| {
                let mut wrong = forged(query);
                wrong[0] ^= 1;
                vec![wrong, forged(query)]
            },
            |query| {
                let mut wrong = forged(query);
                wrong[13] ^= b'a' ^ b'A'; // the name's first letter
                vec![wrong, forged(query)]
            },
            // An error without the question: nothing but the id to guess.
            |query| vec![[&query[..2], &[0x81, 0x82, 0, 0, 0, 0, 0, 0, 0, 0]].concat(), forged(query)],
        ];
        for (nth, script) in scripts.into_iter().enumerate() {
            let (found, _) = run(resolve(&[server_with_tcp(script)])).unwrap();
            assert_eq!(found[0], "192.0.2.1", "{nth}");
            let (address, _) = server(script);
            assert_eq!(run(resolve(&[address])), Err(ResolveError::Unanswered), "{nth}, without TCP");
        }
        let (good, _) = server(|query| vec![reply(query, OK, &["192.0.2.1"], 100)]);
        assert_eq!(run(resolve(&[good])), Ok(v4()));
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
