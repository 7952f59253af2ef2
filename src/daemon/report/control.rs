//! The socket that tells the status: whoever connects gets it, and the connection ends.
//!
//! Nothing is read from clients and all is written at once, so that none is waited for or remembered, however
//! slow. What is written has both forms, [`Form::Text`] and [`Form::Json`], with a NUL between them.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::unix::AsyncFd;

use crate::report::status::Form;
use crate::sys;

/// How long a daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The socket, listening. Dropped, it is removed.
pub struct StatusSocket {
    listener: UnixListener,
    watch: AsyncFd<File>,
    path: String,
    /// Device and number of the file, to know it again.
    identity: (u64, u64),
}

impl StatusSocket {
    /// Makes the socket, readable for this user only, in the place of one that nobody answers on. Must be called
    /// within the tokio runtime.
    ///
    /// # Errors
    /// `AddrInUse` if somebody does, or if something else has this name.
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
    pub fn poll_answer(&self, cx: &mut Context, report: &dyn Fn(Form) -> String) -> Poll<()> {
        loop {
            let Ok(mut ready) = ready!(self.watch.poll_read_ready(cx)) else { return Poll::Pending };
            match ready.try_io(|_| self.listener.accept()) {
                Ok(Ok((mut client, _))) => {
                    let answer = [report(Form::Text), report(Form::Json)].join("\0");
                    // A new socket's buffer takes it.
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
        // Somebody else may have put another in its place.
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            _ = fs::remove_file(&self.path);
        }
    }
}

/// What the daemon says that listens at `path`.
///
/// # Errors
/// None does, or it does not answer in time, or not whole.
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

/// Whether it is a socket without anybody behind it.
fn is_stale(path: &str) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    is_socket && UnixStream::connect(path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

fn identity(path: &str) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}
