//! A TCP connection with a client or a resolver. Each message follows its length (RFC 1035 section 4.2.2, RFC 7766).

use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind};
use std::task::{Context, Poll, Waker, ready};

use tcp_over_http::time::Instant;
use tokio::net::TcpStream;

use crate::tcp;

/// Bytes of the length.
const LENGTH: usize = 2;
/// How much is read at once.
const CHUNK: usize = 4096;
/// While more than this waits to be sent, nothing is read or handed over: the peer has to take its answers first.
const MAX_OUTGOING: usize = 64 << 10;

/// Takes a message; returns whether it can take another one now.
pub type Handle<'a> = dyn FnMut(&[u8]) -> bool + 'a;

/// The connection, shared by the task that polls it and everyone who sends on it.
pub struct Stream {
    socket: TcpStream,
    /// The longest message that is accepted, in bytes.
    max_message: usize,
    incoming: RefCell<Vec<u8>>,
    outgoing: RefCell<Vec<u8>>,
    waker: Cell<Option<Waker>>,
    /// When a message last came, or was sent while nothing was in flight.
    last_used: Cell<Instant>,
    is_closed: Cell<bool>,
}

impl Stream {
    /// A stream of messages on `socket`; `leftover` has already been read from it.
    pub fn new(socket: TcpStream, leftover: Vec<u8>, max_message: usize, now: Instant) -> Self {
        Self {
            socket,
            max_message,
            incoming: RefCell::new(leftover),
            outgoing: RefCell::default(),
            waker: Cell::default(),
            last_used: Cell::new(now),
            is_closed: Cell::default(),
        }
    }

    /// Sends a message, unless it has more than 65,535 bytes.
    pub fn send(&self, message: &[u8]) {
        if let Ok(length) = u16::try_from(message.len()) {
            let mut outgoing = self.outgoing.borrow_mut();
            outgoing.extend_from_slice(&length.to_be_bytes());
            outgoing.extend_from_slice(message);
            self.wake();
        }
    }

    /// Sends messages that already follow their lengths.
    pub fn send_all(&self, messages: &[u8]) {
        self.outgoing.borrow_mut().extend_from_slice(messages);
        self.wake();
    }

    /// Closes the connection: the task that polls it gets an error.
    pub fn close(&self) {
        self.is_closed.set(true);
        self.wake();
    }

    /// When it was last used.
    pub fn last_used(&self) -> Instant {
        self.last_used.get()
    }

    /// Sets when it was last used.
    pub fn touch(&self, now: Instant) {
        self.last_used.set(now);
    }

    /// Sends what waits to be sent, and hands each received message to `handle`. If that takes no more, the caller has
    /// to poll again later. Ready when the peer has ended its side; with an error when the connection broke, a message
    /// was too long, or the stream was closed.
    pub fn poll(&self, cx: &mut Context, handle: &mut Handle) -> Poll<io::Result<()>> {
        let delivered = self.deliver(handle)?;
        // First, since it also registers for a wake-up if something is left to send.
        _ = self.poll_flush(cx)?;
        if self.is_full() {
            return Poll::Pending;
        }
        if !delivered {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(self.socket.poll_read_ready(cx))?;
        let mut chunk = [0; CHUNK];
        match tcp::receive(&self.socket, &mut chunk) {
            Ok(0) => return Poll::Ready(Ok(())),
            Ok(length) => {
                self.incoming.borrow_mut().extend_from_slice(chunk.get(..length).unwrap_or_default());
                self.deliver(handle)?;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
        cx.waker().wake_by_ref(); // to send, and to read more; others have their turn first
        Poll::Pending
    }

    /// Sends what waits to be sent. Ready when nothing is left.
    pub fn poll_flush(&self, cx: &mut Context) -> Poll<io::Result<()>> {
        self.waker.set(Some(cx.waker().clone()));
        loop {
            if self.is_closed.get() {
                return Poll::Ready(Err(ErrorKind::ConnectionAborted.into()));
            }
            if self.outgoing.borrow().is_empty() {
                return Poll::Ready(Ok(()));
            }
            ready!(self.socket.poll_write_ready(cx))?;
            let mut outgoing = self.outgoing.borrow_mut();
            match tcp::send(&self.socket, &outgoing) {
                Ok(sent) => drop(outgoing.drain(..sent)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Whether the peer has to take answers before it may ask more.
    fn is_full(&self) -> bool {
        self.outgoing.borrow().len() > MAX_OUTGOING
    }

    /// Hands over complete messages. False if some may be left, because `handle` takes no more or too much waits to be
    /// sent.
    fn deliver(&self, handle: &mut Handle) -> io::Result<bool> {
        // Taken out, not borrowed, since `handle` may use this stream.
        let mut incoming = self.incoming.take();
        let (mut done, mut delivered) = (0, !self.is_full());
        while let Some((length, rest)) = incoming.get(done..).and_then(|bytes| bytes.split_first_chunk()) {
            let length = usize::from(u16::from_be_bytes(*length));
            if length > self.max_message {
                return Err(ErrorKind::InvalidData.into());
            }
            let Some(message) = rest.get(..length) else { break };
            if !delivered {
                break;
            }
            delivered = handle(message) && !self.is_full();
            done += LENGTH + length;
        }
        drop(incoming.drain(..done));
        self.incoming.replace(incoming);
        Ok(delivered)
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::run;
    use std::future::poll_fn;
    use std::io::{Read, Write};
    use std::net;
    use std::thread;
    use std::time::Duration;

    /// A stream, and the other side of its connection.
    fn connected(leftover: &[u8], max_message: usize) -> (Stream, net::TcpStream) {
        let listener = net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, _) = listener.accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let socket = TcpStream::from_std(socket).unwrap();
        (Stream::new(socket, leftover.to_vec(), max_message, Instant::default()), client)
    }

    fn framed(messages: &[Vec<u8>]) -> Vec<u8> {
        messages.iter().flat_map(|m| [&(m.len() as u16).to_be_bytes()[..], m].concat()).collect()
    }

    async fn received(stream: &Stream) -> io::Result<Vec<Vec<u8>>> {
        let mut messages = vec![];
        let mut handle = |message: &[u8]| {
            messages.push(message.to_vec());
            true
        };
        poll_fn(|cx| stream.poll(cx, &mut handle)).await?;
        Ok(messages)
    }

    #[test]
    fn messages_come_whole_however_they_are_cut() {
        let messages: Vec<Vec<u8>> = [0, 1, 12, 300, 4094, 4095, 4096, 9000]
            .iter()
            .map(|&length| vec![length as u8; length])
            .collect();
        let bytes = framed(&messages);
        for (cut, piece) in [(0, 1), (1, 3), (20, 4097), (bytes.len(), 1)] {
            run(async {
                let (stream, mut client) = connected(&bytes[..cut], 9000);
                let rest = bytes[cut..].to_vec();
                let sender = thread::spawn(move || {
                    rest.chunks(piece).for_each(|piece| client.write_all(piece).unwrap());
                });
                assert_eq!(received(&stream).await.unwrap(), messages);
                sender.join().unwrap();
            });
        }
    }

    #[test]
    fn a_message_that_is_too_long_ends_it() {
        run(async {
            let (stream, mut client) = connected(&[], 511);
            client.write_all(&[2, 0]).unwrap();
            assert_eq!(received(&stream).await.unwrap_err().kind(), ErrorKind::InvalidData);
        });
    }

    #[test]
    fn a_closed_one_ends_for_whoever_polls_it() {
        run(async {
            let (stream, _client) = connected(&[], 511);
            let stream = std::rc::Rc::new(stream);
            let closer = std::rc::Rc::clone(&stream);
            tokio::task::spawn_local(async move { closer.close() });
            assert_eq!(received(&stream).await.unwrap_err().kind(), ErrorKind::ConnectionAborted);
        });
    }

    /// Far more answers than buffers hold, to a client that asks everything before it reads anything.
    #[test]
    fn a_client_that_reads_late_gets_all_answers() {
        const QUERIES: usize = 300;
        const ANSWER: usize = 60_000;
        run(async {
            let (stream, mut client) = connected(&[], 511);
            client.write_all(&framed(&vec![vec![1; 100]; QUERIES])).unwrap();
            let reader = thread::spawn(move || {
                let mut answers = vec![0; QUERIES * (LENGTH + ANSWER)];
                let read = client.read_exact(&mut answers);
                client.shutdown(net::Shutdown::Write).unwrap();
                read.unwrap();
            });
            let (mut count, mut most) = (0, 0);
            let mut handle = |_: &[u8]| {
                count += 1;
                stream.send(&[2; ANSWER]);
                most = most.max(stream.outgoing.borrow().len());
                true
            };
            let end = poll_fn(|cx| stream.poll(cx, &mut handle));
            let end = tokio::time::timeout(Duration::from_secs(60), end).await.unwrap();
            assert_eq!((count, end.is_ok()), (QUERIES, true));
            // A chunk has forty queries.
            assert!(most <= MAX_OUTGOING + LENGTH + ANSWER, "{most} bytes waited");
            reader.join().unwrap();
        });
    }
}
