//! The status socket: a client connects, sends a request in one piece, and gets an answer; then the connection ends.
//!
//! A request is words, which `event_loop::requests` reads. A client that sends none within a second, or is one too many,
//! gets the status. An answer is written at once, however slowly it is read. It contains both forms, [`Form::Text`] and
//! [`Form::Json`], with a NUL between them.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;

use crate::report::document::{Document, Form};
use crate::sys;

/// How long `ask` waits for the daemon's answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a client may take to send its request.
const REQUEST: Duration = Duration::from_secs(1);
/// No request is longer, in bytes.
const MAX_REQUEST: usize = 512;
/// How many clients may be about to send a request.
const MAX_WAITING: usize = 16;
/// How many clients are accepted before others get a turn.
const ACCEPTS: usize = 16;

/// The beginning of the JSON of an answer that reports a failure.
const ERROR: &str = "{\"error\":";

/// What a daemon has answered.
pub struct Answer {
    /// Whether it has done what it was asked to do.
    pub is_done: bool,
    /// For people.
    pub text: String,
    /// For programs.
    pub json: String,
}

/// The listening socket. Removed when dropped.
pub struct StatusSocket {
    listener: UnixListener,
    watch: AsyncFd<File>,
    path: String,
    /// Device and inode of the socket's file, to recognize it.
    identity: (u64, u64),
    /// Clients that have not sent a request yet, each with the time it connected.
    waiting: Vec<(AsyncFd<File>, Instant)>,
}

impl StatusSocket {
    /// Creates the socket, which only its user may open. Replaces one that nobody listens on. Must be called within the
    /// tokio runtime.
    ///
    /// # Errors
    /// `AddrInUse` if somebody listens on it, or if the file is not a socket.
    pub fn listen(path: &str) -> io::Result<Self> {
        let listener = match bind(path) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && is_stale(path) => {
                fs::remove_file(path)?;
                bind(path)
            }
            result => result,
        }?;
        listener.set_nonblocking(true)?;
        let watch = sys::watch(File::from(OwnedFd::from(listener.try_clone()?)))?;
        Ok(Self { listener, watch, path: path.to_owned(), identity: identity(path)?, waiting: Vec::new() })
    }

    /// Answers clients: `answer` turns a request into a document.
    pub fn poll_answer(&mut self, cx: &mut Context, answer: &mut dyn FnMut(&str) -> Document) {
        let mut accepts = 0;
        while accepts < ACCEPTS
            && let Poll::Ready(client) = self.poll_accept(cx)
        {
            accepts += 1;
            match client.and_then(|client| {
                client.set_nonblocking(true)?;
                sys::watch(File::from(OwnedFd::from(client)))
            }) {
                Ok(client) => self.waiting.push((client, Instant::now())),
                Err(error) => debug!("status: {error}"),
            }
        }
        if accepts == ACCEPTS {
            cx.waker().wake_by_ref();
        }
        let mut left = self.waiting.len();
        self.waiting.retain(|(client, since)| {
            let request = match receive(client, cx) {
                None if left <= MAX_WAITING && since.elapsed() < REQUEST => return true,
                request => request.unwrap_or_default(),
            };
            left -= 1;
            let document = answer(&request);
            let text = [document.render(Form::Text), document.render(Form::Json)].join("\0");
            // The empty buffer of a new socket takes it whole.
            if let Err(error) = client.get_ref().write_all(text.as_bytes()) {
                debug!("status: {error}");
            }
            false
        });
    }

    fn poll_accept(&self, cx: &mut Context) -> Poll<io::Result<UnixStream>> {
        loop {
            let Ok(mut ready) = ready!(self.watch.poll_read_ready(cx)) else { return Poll::Pending };
            match ready.try_io(|_| self.listener.accept()) {
                Ok(Ok((client, _))) => return Poll::Ready(Ok(client)),
                // Kept for the loop's next pass.
                Ok(Err(error)) => {
                    debug!("status: {error}");
                    return Poll::Pending;
                }
                Err(_would_block) => {}
            }
        }
    }
}

/// A client's request, once it has arrived or can't arrive any more.
fn receive(client: &AsyncFd<File>, cx: &mut Context) -> Option<String> {
    let mut bytes = [0; MAX_REQUEST];
    let Poll::Ready(received) = sys::poll_read(client, cx, &mut bytes) else { return None };
    let length = received.unwrap_or_default();
    Some(String::from_utf8_lossy(&bytes[..length]).trim_ascii().to_owned())
}

impl Drop for StatusSocket {
    fn drop(&mut self) {
        // Another program may have replaced the file with its own.
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            _ = fs::remove_file(&self.path);
        }
    }
}

/// Sends a request to the daemon that listens at `path`.
///
/// # Errors
/// No daemon listens, or its answer is late or incomplete.
pub fn ask(path: &str, request: &str) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    let answer = sys::read_open(File::from(OwnedFd::from(stream)), sys::MAX_TEXT)?;
    match String::from_utf8_lossy(&answer).split_once('\0') {
        Some((text, json)) if json.ends_with('\n') => {
            let is_done = !json.starts_with(ERROR);
            Ok(Answer { is_done, text: text.to_owned(), json: json.to_owned() })
        }
        _ => Err(ErrorKind::UnexpectedEof.into()),
    }
}

fn bind(path: &str) -> io::Result<UnixListener> {
    sys::with_umask(0o177, || UnixListener::bind(path))
}

/// Whether it is a socket that nobody listens on.
fn is_stale(path: &str) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    is_socket && UnixStream::connect(path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

fn identity(path: &str) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}
