//! Raw IP sockets: packets that we make, header and all, sent as if this machine's kernel had made them.

use std::ffi::c_int;
use std::io;
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::check;
use super::socket::{option, set_option, socket_address, udp_socket};

/// <linux/in6.h>
const IPV6_HDRINCL: c_int = 36;

/// A raw socket of one family (raw(7), `IPPROTO_RAW`). Needs CAP_NET_RAW to be opened.
pub struct RawSocket {
    socket: OwnedFd,
}

/// Space for one control message with a 32-bit value, as `CMSG_SPACE(4)`, aligned as `struct cmsghdr`.
#[repr(C)]
struct Control {
    header: libc::cmsghdr,
    mark: u32,
    padding: u32,
}

impl RawSocket {
    /// Opens one for IPv4, or for IPv6.
    pub fn new(is_ipv4: bool) -> io::Result<Self> {
        let family = if is_ipv4 { libc::AF_INET } else { libc::AF_INET6 };
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: takes plain numbers.
        let fd = check(unsafe { libc::socket(family, kind, libc::IPPROTO_RAW) })?;
        // SAFETY: it is open and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        if !is_ipv4 {
            set_option(&socket, libc::IPPROTO_IPV6, IPV6_HDRINCL, 1)?;
        }
        // It is only written to.
        set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, 0)?;
        Ok(Self { socket })
    }

    /// Sends a whole IP packet, marked, by the route to `next`, which need not be its destination.
    ///
    /// # Errors
    /// What the kernel says, as EPERM for a packet that its firewall drops.
    pub fn send(&self, packet: &[u8], next: IpAddr, mark: u32) -> io::Result<()> {
        let (mut address, length) = socket_address(next);
        let mut part = libc::iovec { iov_base: packet.as_ptr().cast_mut().cast(), iov_len: packet.len() };
        // SAFETY: all-zero is a valid `cmsghdr` (musl has padding in it), and a valid `msghdr`.
        let (header, mut message) = unsafe { (mem::zeroed(), mem::zeroed::<libc::msghdr>()) };
        let mut control = Control { header, mark, padding: 0 };
        control.header.cmsg_level = libc::SOL_SOCKET;
        control.header.cmsg_type = libc::SO_MARK;
        control.header.cmsg_len = (size_of::<libc::cmsghdr>() + size_of::<u32>()) as _;
        message.msg_name = (&raw mut address).cast();
        message.msg_namelen = length;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = (&raw mut control).cast();
        message.msg_controllen = control.header.cmsg_len as _;
        // SAFETY: all that the message points to lives until the call returns, and is only read.
        let sent = unsafe { libc::sendmsg(self.socket.as_raw_fd(), &raw const message, 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// The way to `address`, as the kernel knows it: its MTU in bytes, `IP_MTU` (ip(7)), and the address that it begins at.
/// With the mark of upstream sockets.
pub fn route_to(address: SocketAddr, mark: u32) -> io::Result<(u16, IpAddr)> {
    /// <linux/in.h> and <linux/in6.h>
    const IP_MTU: c_int = 14;
    const IPV6_MTU: c_int = 24;
    let socket = udp_socket(address, mark)?;
    let (level, name) = match address {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, IP_MTU),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, IPV6_MTU),
    };
    let mtu = option(&socket, level, name)?;
    Ok((u16::try_from(mtu).unwrap_or(u16::MAX), socket.local_addr()?.ip()))
}
