//! Every call that needs `unsafe`, each behind a safe function.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The longest idle time that the kernel takes for TCP_KEEPIDLE (`MAX_TCP_KEEPIDLE` in `net/tcp.h`), in seconds.
const MAX_KEEPIDLE: u32 = 32767;

/// Marks what a socket sends (SO_MARK), before it is connected: the route is chosen then. Needs CAP_NET_ADMIN.
pub fn set_mark(socket: &impl AsFd, mark: u32) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_MARK, mark as c_int)
}

/// Sends a keepalive probe after `idle` seconds without traffic (at least 1), then more at a sixth of that.
///
/// How many of them go unanswered before the connection ends is left to the kernel (`tcp_keepalive_probes`, 9): with
/// 60 s, a dead peer is found after 150 s.
pub fn set_keepalive(socket: &impl AsFd, idle: u32) -> io::Result<()> {
    let idle = idle.min(MAX_KEEPIDLE);
    let interval = (idle / 6).max(1);
    set_option(socket, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)?;
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, idle as c_int)?;
    set_option(
        socket,
        libc::IPPROTO_TCP,
        libc::TCP_KEEPINTVL,
        interval as c_int,
    )
}

/// Random bytes fit for secrets.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    // SAFETY: the pointer and the length are those of `bytes`.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), N, 0) };
    match usize::try_from(got) {
        Ok(got) if got == N => Ok(bytes),
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

fn set_option(socket: &impl AsFd, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of `value`; the descriptor is borrowed, so it is open.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Reads back a socket option.
#[cfg(test)]
pub fn option(socket: &impl AsFd, level: c_int, name: c_int) -> io::Result<c_int> {
    let mut value: c_int = 0;
    let mut length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the pointer and the length are those of `value`; the descriptor is borrowed, so it is open.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(value)
    } else {
        Err(io::Error::last_os_error())
    }
}
