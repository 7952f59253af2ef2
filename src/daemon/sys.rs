//! Every call that needs `unsafe`, each behind a safe function.

use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Opens a NETLINK_ROUTE socket. With multicast groups (a mask of `RTMGRP_*`) it is one to wait on and doesn't block.
pub fn netlink_route(groups: u32) -> io::Result<File> {
    let mut kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    if groups != 0 {
        kind |= libc::SOCK_NONBLOCK;
    }
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // Without the errors' text (before Linux 4.12) their number will do.
    let _ = set_option(&socket, libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1);
    // SAFETY: plain numbers, for which all bits 0 is a value.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    address.nl_groups = groups;
    // SAFETY: the pointer and the length are those of `address`.
    let result = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(File::from(socket)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Lets the runtime wait until there is something to read. The descriptor must not block.
pub fn readable(file: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: a File keeps its one descriptor open, and lets go of it only when it is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(file, Interest::READABLE) }?)
}

/// Gives the calling thread a network namespace of its own, which ends with it.
#[cfg(test)]
pub fn unshare_network() -> io::Result<()> {
    // SAFETY: takes no pointers.
    match unsafe { libc::unshare(libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
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
