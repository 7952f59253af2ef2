//! System calls, each behind a safe function. The only unsafe code here.

use std::io;
use std::mem::size_of;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use libc::{c_int, c_void, socklen_t};

/// Which events: level-triggered reading, or edge-triggered both.
pub const READ: u32 = libc::EPOLLIN as u32;
/// Reading and writing, reported once whenever something becomes possible.
pub const BOTH_EDGES: u32 = (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET) as u32;

/// Raises the limit of open files as far as this process may.
///
/// # Errors
/// As `setrlimit(2)`.
pub fn raise_file_limit() -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a struct that lives until the call returns.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: as above.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })?;
    Ok(())
}

/// Nanoseconds of the monotonic clock, which all processes of a machine share.
pub fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a struct that lives until the call returns; the clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// An epoll instance and room for its events.
pub struct Epoll {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Epoll {
    /// # Errors
    /// As `epoll_create1(2)`.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers.
        let fd = owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        Ok(Self { fd, events: Vec::with_capacity(256) })
    }

    /// Watches `file` for `events`; they are reported with `token`.
    ///
    /// # Errors
    /// As `epoll_ctl(2)`.
    pub fn add(&self, file: &OwnedFd, events: u32, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: token };
        // SAFETY: the pointer is to a struct that lives until the call returns.
        check(unsafe {
            libc::epoll_ctl(self.fd.as_raw_fd(), libc::EPOLL_CTL_ADD, file.as_raw_fd(), &mut event)
        })?;
        Ok(())
    }

    /// Waits for events; returns the tokens of those there are. Edges of one file may come twice.
    ///
    /// # Errors
    /// As `epoll_wait(2)`, but not that it was interrupted.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<impl Iterator<Item = u64> + use<>> {
        let ms = timeout.map_or(-1, |timeout| timeout.as_micros().div_ceil(1000) as c_int);
        let room = self.events.capacity();
        // SAFETY: there is room for that many events, and the kernel fills in as many as it says.
        let count = unsafe {
            let count = libc::epoll_wait(self.fd.as_raw_fd(), self.events.as_mut_ptr(), room as c_int, ms);
            self.events.set_len(count.max(0) as usize);
            count
        };
        match check(count) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(self.events.iter().map(|event| event.u64).collect::<Vec<_>>().into_iter()),
        }
    }
}

/// A listening socket; IPv6 ones take IPv4 too.
///
/// # Errors
/// As `socket(2)`, `bind(2)`, `listen(2)`.
pub fn listen(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = tcp_socket(&address)?;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    let (raw, length) = raw_address(&address);
    // SAFETY: the address is a whole sockaddr of that length.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const raw).cast(), length) })?;
    // SAFETY: no pointers.
    check(unsafe { libc::listen(socket.as_raw_fd(), 4096) })?;
    Ok(socket)
}

/// The next connection of a listening socket. None: there is none at the moment.
///
/// # Errors
/// As `accept4(2)`.
pub fn accept(listener: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    // SAFETY: null pointers are allowed; they mean that the address is not wanted.
    let fd = unsafe {
        libc::accept4(
            listener.as_raw_fd(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
        )
    };
    would_block(owned(fd))
}

/// A socket that connects to `address`, in the background as a rule.
///
/// # Errors
/// As `connect(2)`, but not that it goes on in the background.
pub fn connect(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = tcp_socket(&address)?;
    set_option(&socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    let (raw, length) = raw_address(&address);
    // SAFETY: the address is a whole sockaddr of that length.
    match check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const raw).cast(), length) }) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket),
    }
}

/// Whether a connecting socket is connected by now.
///
/// # Errors
/// The reason, if it could not be connected.
pub fn is_connected(socket: &OwnedFd) -> io::Result<bool> {
    let mut error: c_int = 0;
    let mut length = size_of::<c_int>() as socklen_t;
    // SAFETY: value and length are an int and its size.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ERROR,
            (&raw mut error).cast(),
            &mut length,
        )
    })?;
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: the pointer is to one struct.
    check(unsafe { libc::poll(&mut poll, 1, 0) })?;
    Ok(poll.revents & libc::POLLOUT != 0)
}

/// Reads what is there. None: nothing at the moment; 0: the other end has finished.
///
/// # Errors
/// As `recv(2)`.
pub fn read(socket: &OwnedFd, into: &mut [u8]) -> io::Result<Option<usize>> {
    // SAFETY: the buffer is as long as it says.
    let count = unsafe { libc::recv(socket.as_raw_fd(), into.as_mut_ptr().cast(), into.len(), 0) };
    would_block(check_size(count))
}

/// Writes what fits. None: nothing at the moment.
///
/// # Errors
/// As `send(2)`.
pub fn write(socket: &OwnedFd, bytes: &[u8]) -> io::Result<Option<usize>> {
    // SAFETY: the buffer is as long as it says.
    let count =
        unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
    would_block(check_size(count))
}

/// Moves bytes from a socket to a pipe or back. None: nothing at the moment; 0: the end.
///
/// # Errors
/// As `splice(2)`.
pub fn splice(from: &OwnedFd, to: &OwnedFd, length: usize) -> io::Result<Option<usize>> {
    // SAFETY: null offsets are required for pipes and sockets.
    let count = unsafe {
        libc::splice(
            from.as_raw_fd(),
            std::ptr::null_mut(),
            to.as_raw_fd(),
            std::ptr::null_mut(),
            length,
            libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK,
        )
    };
    would_block(check_size(count))
}

/// A pipe: its reading and its writing end. `size` is a wish, in bytes.
///
/// # Errors
/// As `pipe2(2)`.
pub fn pipe(size: c_int) -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    // SAFETY: there is room for two descriptors.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_NONBLOCK | libc::O_CLOEXEC) })?;
    let (reading, writing) = (owned(ends[0])?, owned(ends[1])?);
    // SAFETY: no pointers. It is no error if the pipe keeps its size.
    unsafe { libc::fcntl(writing.as_raw_fd(), libc::F_SETPIPE_SZ, size) };
    Ok((reading, writing))
}

/// Nothing more will be written to the socket.
pub fn finish(socket: &OwnedFd) {
    // SAFETY: no pointers. Fails only if the connection is gone, which is just as well.
    unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_WR) };
}

/// Has small writes sent at once.
///
/// # Errors
/// As `setsockopt(2)`.
pub fn set_no_delay(socket: &OwnedFd) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)
}

/// Has the kernel send no more than so many bytes a second.
///
/// # Errors
/// As `setsockopt(2)`.
pub fn set_pacing_rate(socket: &OwnedFd, bytes_per_second: u64) -> io::Result<()> {
    set_option_value(socket, libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, bytes_per_second)
}

/// Has the socket's end reset the connection and throw away what is on its way.
///
/// # Errors
/// As `setsockopt(2)`.
pub fn set_reset_on_close(socket: &OwnedFd) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    set_option_value(socket, libc::SOL_SOCKET, libc::SO_LINGER, linger)
}

fn tcp_socket(address: &SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    owned(unsafe { libc::socket(family, kind, 0) })
}

fn set_option(socket: &OwnedFd, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    set_option_value(socket, level, name, value)
}

fn set_option_value<T: Copy>(socket: &OwnedFd, level: c_int, name: c_int, value: T) -> io::Result<()> {
    let pointer: *const c_void = (&raw const value).cast();
    // SAFETY: the pointer is to a value of that size.
    check(unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, pointer, size_of::<T>() as socklen_t)
    })?;
    Ok(())
}

fn raw_address(address: &SocketAddr) -> (libc::sockaddr_storage, socklen_t) {
    // SAFETY: all zeroes are a valid sockaddr_storage.
    let mut raw: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let length = match address {
        SocketAddr::V4(v4) => {
            let sin = libc::sockaddr_in {
                sin_family: libc::AF_INET as _,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from(*v4.ip()).to_be() },
                sin_zero: [0; 8],
            };
            // SAFETY: a sockaddr_storage has room and alignment for any address.
            unsafe { (&raw mut raw).cast::<libc::sockaddr_in>().write(sin) };
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(v6) => {
            let sin6 = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as _,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: as above.
            unsafe { (&raw mut raw).cast::<libc::sockaddr_in6>().write(sin6) };
            size_of::<libc::sockaddr_in6>()
        }
    };
    (raw, length as socklen_t)
}

fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    check(fd)?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn check_size(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn would_block<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}
