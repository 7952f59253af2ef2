//! Every unsafe call of the daemon, each behind a safe function.

mod epoll;
mod file;
mod landlock;
mod pipe;
pub mod process;
mod raw;
mod seccomp;
pub mod signals;
mod socket;
mod tun;

pub use epoll::{epoll, epoll_control, epoll_take, poll_read, watch};
pub use file::{MAX_TEXT, folder, is_in_memory, read_file, read_open, read_text, replace};
pub use landlock::keep_writable;
pub use pipe::{pipe, read, set_pipe_size, splice, write};
#[cfg(test)]
pub use process::unshare_network;
pub use process::{keep_capabilities, raise_file_limit, set_process_name, with_umask};
pub use raw::{RawSocket, route_to};
pub use seccomp::keep_calls;
#[cfg(test)]
pub use socket::option;
pub use socket::{
    accept, at_urgent_mark, attach_filter, delay_acknowledgement, discard, netlink, receive_inline,
    reset_connections, set_keepalive, set_lingering, set_mark, set_receive_buffer, set_resetting,
    shutdown_write, tcp_socket, udp_socket, unacknowledged,
};
pub use tun::{
    into_file, set_mtu, set_offload, set_queue_length, set_vnet_header_size, set_vnet_little_endian,
};

use std::ffi::c_int;
use std::io;

use tcp_over_http::siphash::Key;

/// Random bytes fit for secrets.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    // SAFETY: writes no more than the array's bytes.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), N, 0) };
    if check_size(got)? == N { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// A key for the library's tables.
pub fn random_key() -> io::Result<Key> {
    let [a, b, c, d, e, f, g, h] = random()?;
    Ok([u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])])
}

/// Turns the -1 of a failed call into its error.
fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The same for calls that return a size.
fn check_size(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
