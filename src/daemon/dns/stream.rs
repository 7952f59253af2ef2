//! A connection that carries messages, each with its length in front (RFC 1035 section 4.2.2, RFC 7766): a client's
//! to us, or ours to a resolver.

use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind};
use std::task::{Context, Poll, Waker, ready};

use tcp_over_http::time::Instant;
use tokio::net::TcpStream;

/// Bytes of the length.
const LENGTH: usize = 2;
/// How much is read at a time.
const CHUNK: usize = 4096;
/// No more is read or handed over while this much waits to be sent: whoever asks has to take the answers, too.
const MAX_OUTGOING: usize = 64 << 10;

/// Takes a message, and says whether it takes another one now.
pub type Handle<'a> = dyn FnMut(&[u8]) -> bool + 'a;

/// The connection, shared by the task that polls it and all that send on it.
pub struct Stream {
    socket: TcpStream,
    /// The longest message that is taken, in bytes.
    max_message: usize,
    incoming: RefCell<Vec<u8>>,
    outgoing: RefCell<Vec<u8>>,
    waker: Cell<Option<Waker>>,
    /// When it last brought a message, or was sent one while all was quiet.
    last_used: Cell<Instant>,
    is_closed: Cell<bool>,
}

impl Stream {
    /// Messages on `socket`; `leftover` are bytes that have been read from it already.
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

    /// Sends a message; more than 65,535 bytes are none.
    pub fn send(&self, message: &[u8]) {
        if let Ok(length) = u16::try_from(message.len()) {
            let mut outgoing = self.outgoing.borrow_mut();
            outgoing.extend_from_slice(&length.to_be_bytes());
            outgoing.extend_from_slice(message);
            self.wake();
        }
    }

    /// Sends messages that have their lengths in front.
    pub fn send_all(&self, messages: &[u8]) {
        self.outgoing.borrow_mut().extend_from_slice(messages);
        self.wake();
    }

    /// Ends it: whoever polls it is told.
    pub fn close(&self) {
        self.is_closed.set(true);
        self.wake();
    }

    /// When it was last used.
    pub fn last_used(&self) -> Instant {
        self.last_used.get()
    }

    /// It is used now.
    pub fn touch(&self, now: Instant) {
        self.last_used.set(now);
    }

    /// Sends what there is to send, and hands each message that comes to `handle`, which says whether it takes
    /// another one now: if not, somebody has to poll again. Ready when the other side has
    /// ended its stream, with an error when it broke off, broke the format or the stream was closed.
    pub fn poll(&self, cx: &mut Context, handle: &mut Handle) -> Poll<io::Result<()>> {
        let delivered = self.deliver(handle)?;
        // Before it is read: what is left then has this called again when it can be sent.
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
        match self.socket.try_read(&mut chunk) {
            Ok(0) => return Poll::Ready(Ok(())),
            Ok(length) => {
                self.incoming.borrow_mut().extend_from_slice(chunk.get(..length).unwrap_or_default());
                self.deliver(handle)?;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
        cx.waker().wake_by_ref(); // to send, and there may be more, but others have their turn
        Poll::Pending
    }

    /// Sends what there is to send. Ready when that is all.
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
            match self.socket.try_write(&outgoing) {
                Ok(sent) => drop(outgoing.drain(..sent)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Whether the other side has to take answers before it may ask on.
    fn is_full(&self) -> bool {
        self.outgoing.borrow().len() > MAX_OUTGOING
    }

    /// Hands over the messages that are there whole: false if some may be left, because the answers are too many.
    fn deliver(&self, handle: &mut Handle) -> io::Result<bool> {
        // Out of the borrow, for `handle` may do anything.
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
    use crate::upstream::resolver::tests::run;
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
