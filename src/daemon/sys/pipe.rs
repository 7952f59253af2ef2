//! Pipes, and what is spliced through them.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use super::{check, check_size};

/// Makes a non-blocking pipe: its read end and its write end (pipe(2)).
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    // SAFETY: pipe2 writes two descriptors into the array, which has room for them.
    check(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_NONBLOCK | libc::O_CLOEXEC) })?;
    // SAFETY: both are new and owned by nobody else.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

/// Asks for a pipe of `bytes`; returns the size that it has now.
pub fn set_pipe_size(pipe: impl AsFd, bytes: u32) -> io::Result<usize> {
    // SAFETY: takes and gives plain numbers.
    let size = unsafe { libc::fcntl(pipe.as_fd().as_raw_fd(), libc::F_SETPIPE_SZ, bytes as c_int) };
    Ok(check(size)? as usize)
}

/// Moves up to `length` bytes between a pipe and a socket in the kernel, without blocking: splice(2). 0 means the end
/// of the stream.
pub fn splice(from: impl AsFd, to: impl AsFd, length: usize) -> io::Result<usize> {
    let (from, to) = (from.as_fd().as_raw_fd(), to.as_fd().as_raw_fd());
    let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
    // SAFETY: null offsets are allowed for files that cannot seek.
    check_size(unsafe { libc::splice(from, std::ptr::null_mut(), to, std::ptr::null_mut(), length, flags) })
}

/// Writes `bytes` into a pipe or a socket.
pub fn write(pipe: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: reads no more than the slice's bytes.
    check_size(unsafe { libc::write(pipe.as_fd().as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) })
}

/// Reads what is there. 0 means the end of the stream.
pub fn read(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<usize> {
    // SAFETY: writes no more than the slice's bytes.
    check_size(unsafe { libc::read(socket.as_fd().as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len()) })
}
