//! The signals that the daemon takes.

use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;

use super::{check, poll_read, watch};

/// End the daemon in order.
pub const ENDS: [i32; 2] = [libc::SIGTERM, libc::SIGINT];
/// Makes the daemon read its configuration again.
pub const RELOAD: i32 = libc::SIGHUP;
/// Makes the daemon log its status.
pub const REPORT: i32 = libc::SIGUSR1;

/// The length of `struct signalfd_siginfo`, which begins with the signal's number.
const INFO: usize = 128;

/// The signals as they arrive. Once this exists they are held until they are read, also across exec.
pub struct Signals {
    watch: AsyncFd<File>,
}

impl Signals {
    /// Must be called within the tokio runtime. Also tells whether the signals were blocked before, which means that an
    /// earlier run has executed this one.
    pub fn new() -> io::Result<(Self, bool)> {
        let [terminate, interrupt] = ENDS;
        let (file, waited) = signal_file(&[terminate, interrupt, RELOAD, REPORT])?;
        Ok((Self { watch: watch(file)? }, waited))
    }

    /// The number of the next signal.
    pub fn poll_next(&self, cx: &mut Context) -> Poll<i32> {
        let mut info = [0; INFO];
        loop {
            if let Ok(INFO) = ready!(poll_read(&self.watch, cx, &mut info)) {
                let [a, b, c, d, ..] = info;
                return Poll::Ready(i32::from_ne_bytes([a, b, c, d]));
            }
        }
    }
}

/// Blocks signals, and makes a file to read them from: signalfd(2). True if they were already blocked, which exec
/// preserves.
fn signal_file(numbers: &[c_int]) -> io::Result<(File, bool)> {
    // SAFETY: plain numbers, for which all bits 0 is a value; the functions that follow make sets of it.
    let (mut set, mut before): (libc::sigset_t, libc::sigset_t) = unsafe { std::mem::zeroed() };
    // SAFETY: the pointers are to sets, and the descriptor is new and owned by nobody else.
    unsafe {
        libc::sigemptyset(&mut set);
        for &number in numbers {
            libc::sigaddset(&mut set, number);
        }
        check(libc::sigprocmask(libc::SIG_BLOCK, &set, &mut before))?;
        let fd = check(libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC))?;
        let waited = numbers.iter().all(|&number| libc::sigismember(&before, number) == 1);
        Ok((File::from_raw_fd(fd), waited))
    }
}
