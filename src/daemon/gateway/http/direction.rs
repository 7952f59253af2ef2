//! One direction of a connection that is carried as HTTP requests: its bytes, from one side's socket to the other's.

use std::io::{self, ErrorKind};
use std::mem;
use std::task::{Context, Poll, ready};

use tcp_over_http::http::relay::{Next, RequestRelay, Side};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::HttpError;
use crate::relay::pipe::{Pipe, Pipes};
use crate::sys;
use crate::tcp::{attempt, receive, send};

/// How many bytes are read at once where they have to be parsed.
const CHUNK: usize = 2048;
/// The most bytes that one call may splice.
const RUN: u64 = 1 << 20;

/// One direction's bytes.
#[derive(Default)]
pub struct Direction {
    /// Read, but not parsed yet.
    pub incoming: Vec<u8>,
    /// For the other side.
    pub outgoing: Vec<u8>,
    /// A pipe with bytes for the other side.
    pipe: Option<Pipe>,
    buffered: usize,
    pub moved: u64,
    pub has_ended: bool,
    /// Whether the other side takes nothing more.
    pub is_lost: bool,
    /// The body of the request under way as far as it has gone, while it can be sent again...
    pub again: Option<Vec<u8>>,
    /// ...how many more bytes of it may be kept...
    pub room: usize,
    /// ...and whether it must not grow beyond that, because the request may have to be sent again.
    pub is_held: bool,
}

impl Direction {
    /// Moves bytes of `side` as long as possible. Ready with what has to be decided.
    pub fn poll(
        &mut self,
        side: Side,
        relay: &mut RequestRelay,
        (from, to): (&TcpStream, &TcpStream),
        pipes: &Pipes,
        cx: &mut Context,
    ) -> Poll<Result<Next, HttpError>> {
        loop {
            let next = relay.next(side);
            // A head is sent together with what came after it.
            if matches!(next, Next::Feed | Next::Run(_)) && !self.incoming.is_empty() && !self.is_lost {
                let taken = relay.feed(side, &self.incoming, &mut self.outgoing);
                self.take(taken.map_err(HttpError::Refused)?);
                continue;
            }
            match ready!(self.poll_flush(to, cx)) {
                Ok(()) => {}
                Err(_) if side == Side::Proxy => return Poll::Ready(Err(HttpError::Lost(Side::Client))),
                // The proxy may have answered already, which the other direction will see. What it has not taken must
                // not reach another one.
                Err(_) => {
                    self.is_lost = true;
                    self.outgoing.clear();
                }
            }
            self.release(pipes);
            let read = match next {
                Next::Request | Next::End | Next::Tunnel => return Poll::Ready(Ok(next)),
                _ if self.is_lost || self.has_ended || self.is_held && self.room < CHUNK => {
                    return Poll::Pending;
                }
                // At most one chunk of the client's next requests is read, so that the end of its stream is noticed.
                Next::Wait if side == Side::Proxy || !self.incoming.is_empty() => return Poll::Pending,
                Next::Run(_) | Next::Feed | Next::Wait => {
                    ready!(from.poll_read_ready(cx)).map_err(|_| HttpError::Lost(side))?;
                    // Without a pipe, a run is read like all else.
                    let pipe = match next {
                        Next::Run(run) if self.again.is_none() => {
                            pipes.take().ok().flatten().map(|pipe| (run, pipe))
                        }
                        _ => None,
                    };
                    match pipe {
                        Some((run, pipe)) => {
                            let spliced = self.splice(from, run, pipe);
                            spliced.inspect(|&length| relay.passed(side, length as u64))
                        }
                        None => self.read(from),
                    }
                }
            };
            match read {
                Ok(0) => {
                    self.has_ended = true;
                    if !relay.ended(side) {
                        return Poll::Ready(Err(HttpError::Lost(side)));
                    }
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return Poll::Ready(Err(HttpError::Lost(side))),
            }
        }
    }

    /// Removes bytes that have been parsed.
    fn take(&mut self, length: usize) {
        if let Some(again) = &mut self.again {
            match self.room.checked_sub(length) {
                Some(room) => {
                    self.room = room;
                    append(again, self.incoming.get(..length).unwrap_or_default());
                }
                None => self.again = None,
            }
        }
        advance(&mut self.incoming, length);
    }

    /// Takes the current request back so that it can be sent again, if possible.
    pub fn take_back(&mut self, relay: &mut RequestRelay, pipes: &Pipes) -> bool {
        let Some(mut again) = self.again.take() else { return false };
        again.append(&mut self.incoming);
        self.incoming = again;
        self.outgoing.clear();
        self.release(pipes);
        relay.take_back()
    }

    /// Discards what a proxy has not taken of a request that it has answered: nobody waits for it. Returns whether there
    /// was any.
    pub fn discard(&mut self, pipes: &Pipes) -> bool {
        let is_any = mem::take(&mut self.is_lost) || !self.is_flushed();
        self.outgoing.clear();
        self.release(pipes);
        is_any
    }

    /// Sends what is for the other side. Ready when nothing is left.
    pub fn poll_flush(&mut self, to: &TcpStream, cx: &mut Context) -> Poll<io::Result<()>> {
        while !self.is_flushed() {
            ready!(to.poll_write_ready(cx))?;
            let sent = match &self.pipe {
                Some(pipe) if self.outgoing.is_empty() => {
                    let buffered = self.buffered;
                    attempt(to, Interest::WRITABLE, &mut || sys::splice(&pipe.read, to, buffered))
                }
                _ => send(to, &self.outgoing),
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

    /// Sends what is for the client and then `last`, ends that side, and discards what it still sends until it ends, too.
    pub fn poll_farewell(
        &mut self,
        client: &TcpStream,
        last: &mut Vec<u8>,
        cx: &mut Context,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(client, cx))?;
        self.outgoing.append(last);
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
        let length = receive(from, &mut chunk)?;
        append(&mut self.incoming, chunk.get(..length).unwrap_or_default());
        Ok(length)
    }

    /// Splices a part of a run into an empty pipe.
    fn splice(&mut self, from: &TcpStream, run: u64, pipe: Pipe) -> io::Result<usize> {
        let pipe = self.pipe.insert(pipe);
        let length =
            attempt(from, Interest::READABLE, &mut || sys::splice(from, &pipe.write, run.min(RUN) as usize))?;
        self.buffered = length;
        Ok(length)
    }

    /// Whether the other side has taken everything.
    pub const fn is_flushed(&self) -> bool {
        self.outgoing.is_empty() && self.buffered == 0
    }

    /// Forgets all bytes but those in the pipe.
    pub fn clear(&mut self) {
        (self.incoming, self.outgoing, self.again) = Default::default();
    }

    /// Gives the pipe back.
    pub fn release(&mut self, pipes: &Pipes) {
        if let Some(pipe) = self.pipe.take()
            && mem::take(&mut self.buffered) == 0
        {
            pipes.give_back(pipe);
        }
    }
}

/// Removes bytes at the front. What is empty keeps no memory: most connections wait most of the time.
#[inline(never)]
fn advance(bytes: &mut Vec<u8>, length: usize) {
    bytes.drain(..length);
    if bytes.is_empty() {
        *bytes = Vec::new();
    }
}

/// Adds bytes at the end.
#[inline(never)]
fn append(bytes: &mut Vec<u8>, more: &[u8]) {
    bytes.extend_from_slice(more);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::run;
    use std::future::poll_fn;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use tcp_over_http::http::connect::Target;

    #[test]
    fn without_a_pipe_bytes_go_all_the_same() {
        run(async {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let [(client, mut near), (proxy, mut far)] = [pair(&listener).await, pair(&listener).await];
            let mut relay = RequestRelay::new(Target::Ip("192.0.2.7:80".parse().unwrap()));
            let (mut down, pipes) = (Direction::default(), Pipes::new(0, 1 << 16));
            let get = b"GET / HTTP/1.1\r\nHost: 192.0.2.7\r\n\r\n";
            relay.feed(Side::Client, get, &mut Vec::new()).unwrap();
            relay.send(true, &mut |_, _, _| (), &mut Vec::new()).unwrap();
            let response = [b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n", &[b'x'; 9000][..]].concat();
            far.write_all(&response).unwrap();
            poll_fn(|cx| match down.poll(Side::Proxy, &mut relay, (&proxy, &client), &pipes, cx) {
                Poll::Pending if relay.is_idle() => Poll::Ready(()),
                Poll::Pending => Poll::Pending,
                Poll::Ready(_) => panic!("it goes on"),
            })
            .await;
            let mut got = vec![0; response.len()];
            near.read_exact(&mut got).unwrap();
            assert!(got == response && down.moved == response.len() as u64);
            assert!(pipes.take().unwrap().is_none());
        });
    }

    /// A socket that has connected to the listener, and what has been accepted.
    async fn pair(listener: &TcpListener) -> (TcpStream, std::net::TcpStream) {
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (near, listener.accept().unwrap().0)
    }

    #[test]
    fn what_a_proxy_has_not_taken_is_for_no_other() {
        run(async {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let [(client, _near), (proxy, far)] = [pair(&listener).await, pair(&listener).await];
            let mut relay = RequestRelay::new(Target::Ip("192.0.2.7:80".parse().unwrap()));
            let (mut up, pipes) = (Direction::default(), Pipes::new(1, 1 << 16));

            let post = b"POST /1 HTTP/1.1\r\nHost: 192.0.2.7\r\nTransfer-Encoding: chunked\r\n\r\n";
            up.incoming.extend_from_slice(post);
            let next = poll_fn(|cx| up.poll(Side::Client, &mut relay, (&client, &proxy), &pipes, cx)).await;
            assert_eq!(next.ok(), Some(Next::Request));
            relay.send(true, &mut |_, _, _| (), &mut up.outgoing).unwrap();
            while proxy.try_write(&[0; 1 << 16]).is_ok() {}
            let rest = b"4\r\nBODY\r\n0\r\n\r\nGET /2 HTTP/1.1\r\nHost: 192.0.2.7\r\n\r\n";
            up.incoming.extend_from_slice(rest);
            let cx = &mut Context::from_waker(std::task::Waker::noop());
            assert!(up.poll(Side::Client, &mut relay, (&client, &proxy), &pipes, cx).is_pending());
            assert!(!up.outgoing.is_empty());

            // It answers before it has read all, and goes.
            relay
                .feed(Side::Proxy, b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n", &mut Vec::new())
                .unwrap();
            drop(far);
            let next = poll_fn(|cx| up.poll(Side::Client, &mut relay, (&client, &proxy), &pipes, cx)).await;
            assert_eq!(next.ok(), Some(Next::Request));
            assert_eq!(String::from_utf8_lossy(&up.outgoing), "");
        });
    }
}
