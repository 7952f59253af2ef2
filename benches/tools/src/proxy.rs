//! A proxy for CONNECT and SOCKS5 without users, names and limits. Idle connections cost two sockets.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::relay::{Direction, Pipes, Progress};
use crate::sys::{self, BOTH_EDGES, Epoll, READ};

const LISTENER: u64 = u64::MAX;
/// Most bytes of a request.
const MAX_REQUEST: usize = 4096;
const HTTP_OK: &[u8] = b"HTTP/1.1 200 OK\r\n\r\n";
const SOCKS_NO_USER: &[u8] = &[5, 0];
const SOCKS_OK: &[u8] = &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0];

/// Serves until it is ended.
///
/// # Errors
/// If it can't listen, or epoll fails. Whatever happens to a connection ends that connection only.
pub fn run(listen: SocketAddr) -> io::Result<()> {
    let listener = sys::listen(listen)?;
    let mut proxy = Proxy {
        epoll: Epoll::new()?,
        connections: Vec::new(),
        free: Vec::new(),
        pipes: Pipes::default(),
        buffer: vec![0; MAX_REQUEST],
    };
    proxy.epoll.add(&listener, READ, LISTENER)?;
    let mut running = VecDeque::new();
    loop {
        let timeout = if running.is_empty() { None } else { Some(Duration::ZERO) };
        // What is freed in this turn is not used again before the next: the turn may have events of it.
        let mut freed = Vec::new();
        let turn: Vec<usize> = running.drain(..).collect();
        let mut events: Vec<u64> = proxy.epoll.wait(timeout)?.collect();
        events.extend(turn.into_iter().map(|index| index as u64));
        events.sort_unstable();
        events.dedup();
        for token in events {
            if token == LISTENER {
                proxy.accept(&listener);
                continue;
            }
            let index = token as usize;
            match proxy.advance(index) {
                Ok(Progress::Waits) => {}
                Ok(Progress::Runs) => running.push_back(index),
                Ok(Progress::Ended) | Err(_) => {
                    proxy.connections[index] = None;
                    freed.push(index);
                }
            }
        }
        proxy.free.append(&mut freed);
    }
}

struct Proxy {
    epoll: Epoll,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    pipes: Pipes,
    buffer: Vec<u8>,
}

struct Connection {
    client: OwnedFd,
    state: State,
}

enum State {
    /// Reading the request.
    Asked(Request),
    /// Connecting. The reply, and bytes that came behind the request.
    Connecting { server: OwnedFd, reply: &'static [u8], early: Vec<u8> },
    /// Relaying.
    Open { server: OwnedFd, up: Direction, down: Direction },
}

impl Proxy {
    fn accept(&mut self, listener: &OwnedFd) {
        // Out of descriptors: the client waits in the queue, which is as good an answer as any.
        while let Ok(Some(client)) = sys::accept(listener) {
            let index = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            let watched =
                sys::set_no_delay(&client).and_then(|()| self.epoll.add(&client, BOTH_EDGES, index as u64));
            if watched.is_err() {
                self.free.push(index);
                continue;
            }
            let connection = Connection { client, state: State::Asked(Request::default()) };
            self.connections[index] = Some(connection);
        }
    }

    /// Does for a connection what can be done.
    fn advance(&mut self, index: usize) -> io::Result<Progress> {
        let Some(Some(Connection { client, state })) = self.connections.get_mut(index) else {
            return Ok(Progress::Waits);
        };
        if let State::Asked(request) = state {
            let Some((server, reply, early)) = request.receive(client, &mut self.buffer)? else {
                return Ok(Progress::Waits);
            };
            self.epoll.add(&server, BOTH_EDGES, index as u64)?;
            *state = State::Connecting { server, reply, early };
        }
        if let State::Connecting { server, reply, early } = state {
            if !sys::is_connected(server)? {
                return Ok(Progress::Waits);
            }
            write_whole(client, reply)?;
            write_whole(server, early)?;
            let State::Connecting { server, .. } = mem::replace(state, State::Asked(Request::default()))
            else {
                return Ok(Progress::Ended);
            };
            *state = State::Open { server, up: Direction::default(), down: Direction::default() };
        }
        if let State::Open { server, up, down } = state {
            let up = up.run(client, server, &mut self.pipes)?;
            let down = down.run(server, client, &mut self.pipes)?;
            return Ok(match (up, down) {
                (Progress::Ended, Progress::Ended) => Progress::Ended,
                (Progress::Runs, _) | (_, Progress::Runs) => Progress::Runs,
                _ => Progress::Waits,
            });
        }
        Ok(Progress::Waits)
    }
}

/// A request as far as it has come.
#[derive(Default)]
struct Request {
    bytes: Vec<u8>,
    /// SOCKS: the greeting has been answered and cut off.
    greeted: bool,
}

/// What a request says: its length, whom to connect to, the reply if that succeeds.
type Head = (usize, SocketAddr, &'static [u8]);

/// The socket to the server, the reply to send when it is connected, what came behind the request.
type Asked = (OwnedFd, &'static [u8], Vec<u8>);

impl Request {
    /// Reads until the request is whole, answering greetings. None: there is more to come.
    fn receive(&mut self, client: &OwnedFd, buffer: &mut [u8]) -> io::Result<Option<Asked>> {
        loop {
            match sys::read(client, buffer)? {
                None => return Ok(None),
                Some(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(count) => self.bytes.extend_from_slice(&buffer[..count]),
            }
            if self.bytes.len() > MAX_REQUEST {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let head = match self.bytes.first() {
                Some(5) => self.socks(client)?,
                _ => self.http()?,
            };
            if let Some((length, target, reply)) = head {
                let server = sys::connect(target)?;
                return Ok(Some((server, reply, self.bytes.split_off(length))));
            }
        }
    }

    /// `CONNECT address:port HTTP/1.1` and headers.
    fn http(&self) -> io::Result<Option<Head>> {
        let Some(end) = self.bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            return Ok(None);
        };
        let target = str::from_utf8(&self.bytes[..end]).ok().and_then(|head| {
            let target = head.strip_prefix("CONNECT ")?;
            target.split(' ').next()?.parse().ok()
        });
        let target = target.ok_or(io::ErrorKind::InvalidData)?;
        Ok(Some((end + 4, target, HTTP_OK)))
    }

    /// A greeting, then CONNECT to an address (RFC 1928).
    fn socks(&mut self, client: &OwnedFd) -> io::Result<Option<Head>> {
        if let (false, &[_, methods, ref offered @ ..]) = (self.greeted, self.bytes.as_slice())
            && offered.len() >= methods as usize
        {
            write_whole(client, SOCKS_NO_USER)?;
            self.bytes.drain(..2 + methods as usize);
            self.greeted = true;
        }
        let (address, length): (IpAddr, usize) = match *self.bytes.as_slice() {
            _ if !self.greeted => return Ok(None),
            [_, 1, _, 1, a, b, c, d, _, _, ..] => (Ipv4Addr::new(a, b, c, d).into(), 10),
            [_, 1, _, 4, ref rest @ ..] if rest.len() >= 18 => {
                let octets: [u8; 16] = rest[..16].try_into().unwrap_or_default();
                (Ipv6Addr::from(octets).into(), 22)
            }
            [_, 1, _, 1 | 4, ..] | [_] | [_, 1] | [_, 1, _] | [] => return Ok(None),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        let port = u16::from_be_bytes([self.bytes[length - 2], self.bytes[length - 1]]);
        Ok(Some((length, SocketAddr::new(address, port), SOCKS_OK)))
    }
}

/// Writes a few bytes to a socket whose buffer must have room for them.
fn write_whole(socket: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    if !bytes.is_empty() && sys::write(socket, bytes)? != Some(bytes.len()) {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(())
}
