//! The signals that the daemon takes.

use std::fs::File;
use std::io::{self, Read};
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;

use crate::sys;

/// Ends the daemon, in order.
pub const ENDS: [i32; 2] = [libc::SIGTERM, libc::SIGINT];
/// Has the configuration read again.
pub const RELOAD: i32 = libc::SIGHUP;
/// Has the status logged.
pub const REPORT: i32 = libc::SIGUSR1;

/// The length of `struct signalfd_siginfo`, which begins with the signal's number.
const INFO: usize = 128;

/// Signals as they come. They wait from the moment this is made, also for a program that this process becomes.
pub struct Signals {
    watch: AsyncFd<File>,
}

impl Signals {
    /// Must be called within the tokio runtime. Also tells whether signals waited before: another run of the
    /// daemon has become this one.
    ///
    /// # Errors
    /// What signalfd(2) says.
    pub fn new() -> io::Result<(Self, bool)> {
        let [terminate, interrupt] = ENDS;
        let (file, waited) = sys::signals(&[terminate, interrupt, RELOAD, REPORT])?;
        Ok((Self { watch: sys::watch(file)? }, waited))
    }

    /// The number of the next signal.
    pub fn poll_next(&self, cx: &mut Context) -> Poll<i32> {
        loop {
            let Ok(mut ready) = ready!(self.watch.poll_read_ready(cx)) else { return Poll::Pending };
            let mut info = [0; INFO];
            if let Ok(Ok(INFO)) = ready.try_io(|watch| watch.get_ref().read(&mut info)) {
                let [a, b, c, d, ..] = info;
                return Poll::Ready(i32::from_ne_bytes([a, b, c, d]));
            }
        }
    }
}
