//! Readiness: epoll(7), and tokio's watch over a file.

use std::ffi::c_int;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::check;

/// Makes an epoll instance.
pub fn epoll() -> io::Result<File> {
    // SAFETY: takes a plain number.
    let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
    // SAFETY: the descriptor is new and owned by nobody else.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Makes an epoll instance watch `socket` for `events` (`EPOLL*`) and report them with `data`. `operation` is one of
/// `EPOLL_CTL_*`.
pub fn epoll_control(
    epoll: &File,
    operation: c_int,
    socket: impl AsFd,
    events: c_int,
    data: u32,
) -> io::Result<()> {
    let mut event = libc::epoll_event { events: events as u32, u64: data.into() };
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: reads one struct.
    check(unsafe { libc::epoll_ctl(epoll.as_raw_fd(), operation, fd, &raw mut event) }).map(drop)
}

/// Takes the events that are there now, without waiting; returns how many.
pub fn epoll_take(epoll: &File, events: &mut [libc::epoll_event]) -> io::Result<usize> {
    let room = c_int::try_from(events.len()).unwrap_or(c_int::MAX);
    // SAFETY: writes no more structs than the slice has.
    let count = check(unsafe { libc::epoll_wait(epoll.as_raw_fd(), events.as_mut_ptr(), room, 0) })?;
    Ok(count as usize)
}

/// Reads from `watch` once there is something.
pub fn poll_read(watch: &AsyncFd<File>, cx: &mut Context, bytes: &mut [u8]) -> Poll<io::Result<usize>> {
    loop {
        let mut ready = ready!(watch.poll_read_ready(cx))?;
        if let Ok(result) = ready.try_io(|file| file.get_ref().read(bytes)) {
            return Poll::Ready(result);
        }
    }
}

/// Makes tokio watch whether `file` is readable. Not whether it is writable: a TUN always is, and each packet would
/// wake the loop to say so.
pub fn watch(file: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: a File's descriptor stays the same, and open, as long as the File lives.
    Ok(unsafe { AsyncFd::register_with_interest(file, Interest::READABLE) }?)
}
