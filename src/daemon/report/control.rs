//! The status socket: whoever connects is sent the status, and the connection ends.
//!
//! Nothing is read from clients and all is written at once: the daemon neither waits for a client nor remembers one,
//! however slow. What is written has both forms, [`Form::Text`] and [`Form::Json`], with a NUL between them.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::unix::AsyncFd;

use crate::report::status::{Form, Status};
use crate::sys;

/// How long a daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The listening socket. Removed when dropped.
pub struct StatusSocket {
    listener: UnixListener,
    watch: AsyncFd<File>,
    path: String,
    /// Device and inode, by which we know our own file.
    identity: (u64, u64),
}

impl StatusSocket {
    /// Creates the socket, which only its user may open, and replaces one that nobody listens on. Must be called
    /// within the tokio runtime.
    ///
    /// # Errors
    /// `AddrInUse` if somebody listens on it, or if it is no socket.
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
        Ok(Self { listener, watch, path: path.to_owned(), identity: identity(path)? })
    }

    /// Answers the next client.
    pub fn poll_answer(&self, cx: &mut Context, status: &dyn Fn() -> Status) -> Poll<()> {
        loop {
            let Ok(mut ready) = ready!(self.watch.poll_read_ready(cx)) else { return Poll::Pending };
            match ready.try_io(|_| self.listener.accept()) {
                Ok(Ok((mut client, _))) => {
                    let status = status();
                    let answer = [status.render(Form::Text), status.render(Form::Json)].join("\0");
                    // The empty buffer of a new socket takes it whole.
                    let sent =
                        client.set_nonblocking(true).and_then(|()| client.write_all(answer.as_bytes()));
                    if let Err(error) = sent {
                        log::debug!("status: {error}");
                    }
                    return Poll::Ready(());
                }
                Ok(Err(error)) => {
                    log::debug!("status: {error}");
                    return Poll::Pending; // until the loop comes by again
                }
                Err(_would_block) => {}
            }
        }
    }
}

impl Drop for StatusSocket {
    fn drop(&mut self) {
        // Another program may have put a file of its own in its place.
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            _ = fs::remove_file(&self.path);
        }
    }
}

/// Asks the daemon that listens at `path` for its status.
///
/// # Errors
/// None listens, or its answer is late or incomplete.
pub fn ask(path: &str, form: Form) -> io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_once('\0') {
        Some((text, json)) if json.ends_with('\n') => {
            Ok(if form == Form::Text { text } else { json }.to_owned())
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
