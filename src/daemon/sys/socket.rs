//! Sockets: their options, and the calls that std lacks.

use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use tokio::net::TcpSocket;

use super::{check, check_size};

/// A TCP socket of the address's family, with `mark` (0: none).
pub fn tcp_socket(address: SocketAddr, mark: u32) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    set_mark_if(&socket, mark)?;
    Ok(socket)
}

/// A UDP socket with `mark` (0: none), connected to `to`: an error if there is no route or no source address.
pub fn udp_socket(to: SocketAddr, mark: u32) -> io::Result<UdpSocket> {
    // Not from text: parsing one would link the C library's resolver.
    let any = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
    socket.set_nonblocking(true)?;
    set_mark_if(&socket, mark)?;
    socket.connect(to)?;
    Ok(socket)
}

fn set_mark_if(socket: impl AsFd, mark: u32) -> io::Result<()> {
    if mark == 0 { Ok(()) } else { set_mark(socket, mark) }
}

/// Accepts a connection without blocking: a non-blocking socket, and the client's address.
pub fn accept(listener: &File) -> io::Result<(TcpStream, SocketAddr)> {
    // SAFETY: plain numbers, for which all bits 0 is a value.
    let mut address: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&address) as libc::socklen_t;
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    let place = (&raw mut address).cast::<libc::sockaddr>();
    // SAFETY: writes no more than `length` bytes of one struct.
    let fd = check(unsafe { libc::accept4(listener.as_raw_fd(), place, &raw mut length, flags) })?;
    // SAFETY: the descriptor is new and owned by nobody else.
    let stream = unsafe { TcpStream::from_raw_fd(fd) };
    Ok((stream, address_in(&address)))
}

/// Opens a netlink socket of `protocol` (`NETLINK_*`). One that joins multicast `groups` (a mask) does not block.
pub fn netlink(protocol: c_int, groups: u32) -> io::Result<File> {
    let nonblock = if groups != 0 { libc::SOCK_NONBLOCK } else { 0 };
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | nonblock;
    // SAFETY: takes no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_NETLINK, kind, protocol) })?;
    // SAFETY: the descriptor is new and owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // Before Linux 4.12 errors have no text; the number will do.
    _ = set_option(&socket, libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1);
    // SAFETY: plain numbers, for which all bits 0 is a value.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    address.nl_groups = groups;
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the pointer and the length are those of `address`.
    check(unsafe { libc::bind(fd, (&raw const address).cast(), length) })?;
    Ok(File::from(socket))
}

/// Makes a socket receive only what a classic BPF program lets through: `SO_ATTACH_FILTER` (socket(7)).
pub fn attach_filter(socket: impl AsFd, program: &mut [libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    let length = size_of_val(&program) as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    let place = (&raw const program).cast();
    // SAFETY: points to a `sock_fprog`, which points to as many instructions as it says; the kernel copies them.
    check(unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, place, length) }).map(drop)
}

/// Sets the size of a socket's receive buffer, even above the system's limit: `SO_RCVBUFFORCE` (socket(7)). Needs
/// CAP_NET_ADMIN.
pub fn set_receive_buffer(socket: impl AsFd, bytes: c_int) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes)
}

/// <asm-generic/sockios.h>, and <asm/sockios.h> of MIPS: `_IOR('s', 7, int)`.
#[cfg(not(any(target_arch = "mips", target_arch = "mips64")))]
const SIOCATMARK: libc::Ioctl = 0x8905;
#[cfg(any(target_arch = "mips", target_arch = "mips64"))]
const SIOCATMARK: libc::Ioctl = 0x4004_7307;

/// Whether the next byte to receive is one that TCP calls urgent: `SIOCATMARK` (tcp(7)).
pub fn at_urgent_mark(socket: impl AsFd) -> io::Result<bool> {
    let mut yes: c_int = 0;
    // SAFETY: writes one int.
    check(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCATMARK, &mut yes) })?;
    Ok(yes != 0)
}

/// Receives what is there, urgent bytes in their place among the others (`SO_OOBINLINE`), without blocking.
pub fn receive_inline(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<usize> {
    set_option(&socket, libc::SOL_SOCKET, libc::SO_OOBINLINE, 1)?;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: writes no more than the slice's bytes.
    check_size(unsafe { libc::recv(fd, bytes.as_mut_ptr().cast(), bytes.len(), libc::MSG_DONTWAIT) })
}

/// Discards up to `length` received bytes of a TCP socket. 0 means the end of the stream.
pub fn discard(socket: impl AsFd, length: usize) -> io::Result<usize> {
    let flags = libc::MSG_TRUNC | libc::MSG_DONTWAIT;
    // SAFETY: with MSG_TRUNC TCP writes nothing to the buffer (tcp(7)), so null will do.
    check_size(unsafe { libc::recv(socket.as_fd().as_raw_fd(), std::ptr::null_mut(), length, flags) })
}

/// Resets each TCP connection of this process whose local address `is_such`, including those being opened. Whoever owns
/// the socket gets an error. Returns how many.
pub fn reset_connections(is_such: &dyn Fn(IpAddr) -> bool) -> io::Result<usize> {
    const LISTEN: c_int = 10; // <net/tcp_states.h>
    const CLOSE: c_int = 7;
    let mut count = 0;
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let Some(fd) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // SAFETY: it is used by calls that fail if nothing is open there.
        let socket = unsafe { BorrowedFd::borrow_raw(fd) };
        // Only a TCP socket has such a state.
        let Ok(state) = tcp_state(socket) else { continue };
        if !matches!(state, LISTEN | CLOSE) && local_address(socket).is_some_and(is_such) {
            let address =
                libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
            let length = size_of_val(&address) as libc::socklen_t;
            // SAFETY: the pointer and the length are those of `address`.
            count += usize::from(unsafe { libc::connect(fd, &raw const address, length) } == 0);
        }
    }
    Ok(count)
}

/// The state of a TCP socket: the first byte of `TCP_INFO` (tcp(7)).
fn tcp_state(socket: BorrowedFd) -> io::Result<c_int> {
    let mut state: u8 = 0;
    let mut length = 1;
    let place = (&raw mut state).cast();
    let fd = socket.as_raw_fd();
    // SAFETY: writes no more than one byte.
    check(unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, place, &raw mut length) })?;
    Ok(state.into())
}

/// The local address of an IPv4 or IPv6 socket, IPv4 not mapped.
fn local_address(socket: BorrowedFd) -> Option<IpAddr> {
    // SAFETY: plain numbers, for which all bits 0 is a value.
    let mut address: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&address) as libc::socklen_t;
    let place = (&raw mut address).cast::<libc::sockaddr>();
    // SAFETY: writes no more than `length` bytes of one struct.
    check(unsafe { libc::getsockname(socket.as_raw_fd(), place, &raw mut length) }).ok()?;
    Some(address_in(&address).ip().to_canonical())
}

/// The address in a `struct sockaddr_in6`, or in a `struct sockaddr_in` in its place.
fn address_in(address: &libc::sockaddr_in6) -> SocketAddr {
    let ip = match c_int::from(address.sin6_family) {
        libc::AF_INET6 => IpAddr::from(address.sin6_addr.s6_addr),
        // `sin_port` is where `sin6_port` is, and `sin_addr` where `sin6_flowinfo` is.
        _ => IpAddr::from(address.sin6_flowinfo.to_ne_bytes()),
    };
    SocketAddr::new(ip, u16::from_be(address.sin6_port))
}

/// The reverse: the structure for an address, without a port, and its length.
pub fn socket_address(ip: IpAddr) -> (libc::sockaddr_in6, libc::socklen_t) {
    // SAFETY: plain numbers, for which all bits 0 is a value.
    let mut address: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
    let (family, length) = match ip {
        IpAddr::V4(ip) => {
            address.sin6_flowinfo = u32::from_ne_bytes(ip.octets());
            (libc::AF_INET, size_of::<libc::sockaddr_in>())
        }
        IpAddr::V6(ip) => {
            address.sin6_addr.s6_addr = ip.octets();
            (libc::AF_INET6, size_of_val(&address))
        }
    };
    address.sin6_family = family as libc::sa_family_t;
    (address, length as libc::socklen_t)
}

/// How many bytes that a TCP socket has sent, its FIN included, are not acknowledged yet: `SIOCOUTQ` (tcp(7)).
pub fn unacknowledged(socket: impl AsFd) -> io::Result<usize> {
    let mut count: c_int = 0;
    // SAFETY: writes one int.
    check(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &mut count) })?;
    Ok(count as usize)
}

/// Closes the sending side of a socket: sends a FIN.
pub fn shutdown_write(socket: impl AsFd) -> io::Result<()> {
    // SAFETY: takes plain numbers.
    check(unsafe { libc::shutdown(socket.as_fd().as_raw_fd(), libc::SHUT_WR) }).map(drop)
}

/// Makes the kernel send what is left when the socket is closed: undoes [`set_resetting`].
pub fn set_lingering(socket: impl AsFd) -> io::Result<()> {
    set_linger(socket, libc::linger { l_onoff: 0, l_linger: 0 })
}

/// Makes closing the socket reset its connection: `SO_LINGER` (socket(7)).
pub fn set_resetting(socket: impl AsFd) -> io::Result<()> {
    set_linger(socket, libc::linger { l_onoff: 1, l_linger: 0 })
}

/// Marks what a socket sends: `SO_MARK` (socket(7)). Must be set before connecting, when the route is chosen. Needs
/// CAP_NET_ADMIN.
pub fn set_mark(socket: impl AsFd, mark: u32) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_MARK, mark as c_int)
}

/// Lets the last packet of a connection's handshake wait up to 200 ms for the first bytes to send: `TCP_QUICKACK`
/// (tcp(7); `tcp_rcv_synsent_state_process()` in the kernel). Must be set before connecting.
pub fn delay_acknowledgement(socket: impl AsFd) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_QUICKACK, 0)
}

/// Makes the kernel probe a TCP connection after `idle` seconds without traffic (0 = never), then at intervals of a
/// sixth of that. `tcp_keepalive_probes` (9) says how many probes may stay unanswered: with 60 s, a dead peer is found
/// after 150 s.
pub fn set_keepalive(socket: impl AsFd, idle: u32) -> io::Result<()> {
    set_option(&socket, libc::SOL_SOCKET, libc::SO_KEEPALIVE, (idle != 0).into())?;
    if idle == 0 {
        return Ok(());
    }
    let idle = idle.min(MAX_KEEPIDLE) as c_int;
    set_option(&socket, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, idle)?;
    set_option(&socket, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, (idle / 6).max(1))
}

/// The most that TCP_KEEPIDLE takes, in seconds (`MAX_TCP_KEEPIDLE` in the kernel's `net/tcp.h`).
const MAX_KEEPIDLE: u32 = 32_767;

/// Sets an integer option of a socket.
pub fn set_option(socket: impl AsFd, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    let length = size_of::<c_int>() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: points to one int and says so.
    check(unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), length) }).map(drop)
}

fn set_linger(socket: impl AsFd, linger: libc::linger) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    let length = size_of_val(&linger) as libc::socklen_t;
    let place = (&raw const linger).cast();
    // SAFETY: points to one `linger` and says how long it is.
    check(unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, place, length) }).map(drop)
}

/// Reads an integer option of a socket.
pub fn option(socket: impl AsFd, level: c_int, name: c_int) -> io::Result<c_int> {
    let mut value: c_int = 0;
    let mut length = size_of::<c_int>() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the pointers are to one int and to its length.
    check(unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &raw mut length) })?;
    Ok(value)
}
