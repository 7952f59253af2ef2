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
/// No more is read while this much waits to be sent: whoever asks has to take the answers, too.
const MAX_OUTGOING: usize = 64 << 10;

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

    /// Hands each message that comes to `handle`, and sends what there is to send. Ready when the other side has
    /// ended its stream, with an error when it broke off, broke the format or the stream was closed.
    pub fn poll(&self, cx: &mut Context, handle: &mut dyn FnMut(&[u8])) -> Poll<io::Result<()>> {
        self.deliver(handle)?;
        let mut end = Poll::Pending;
        if self.outgoing.borrow().len() <= MAX_OUTGOING && self.socket.poll_read_ready(cx)?.is_ready() {
            let mut chunk = [0; CHUNK];
            match self.socket.try_read(&mut chunk) {
                Ok(0) => end = Poll::Ready(Ok(())),
                Ok(length) => {
                    self.incoming.borrow_mut().extend_from_slice(chunk.get(..length).unwrap_or_default());
                    self.deliver(handle)?;
                    cx.waker().wake_by_ref(); // there may be more, but others have their turn
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => cx.waker().wake_by_ref(),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        _ = self.poll_flush(cx)?;
        end
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

    /// Hands over all messages that are there whole.
    fn deliver(&self, handle: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        // Out of the borrow, for `handle` may do anything.
        let mut incoming = self.incoming.take();
        let mut done = 0;
        while let Some((length, rest)) = incoming.get(done..).and_then(|bytes| bytes.split_first_chunk()) {
            let length = usize::from(u16::from_be_bytes(*length));
            if length > self.max_message {
                return Err(ErrorKind::InvalidData.into());
            }
            let Some(message) = rest.get(..length) else { break };
            handle(message);
            done += LENGTH + length;
        }
        drop(incoming.drain(..done));
        self.incoming.replace(incoming);
        Ok(())
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}
