//! Raw IP sockets: packets that the daemon makes, header included, are sent as if this machine's kernel had made them.

use std::ffi::c_int;
use std::io;
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::check;
use super::socket::{option, set_option, socket_address, udp_socket};

/// <linux/in6.h>
const IPV6_HDRINCL: c_int = 36;

/// The most packets that one call sends.
const BATCH: usize = 16;

/// Bytes that may wait to be sent, as the kernel counts them. A packet waits for seconds, if nobody has its address: those
/// to a thousand addresses that somebody has forged must leave room for others.
const SEND_BUFFER: c_int = 2 << 20;

/// A raw socket of one family (raw(7), `IPPROTO_RAW`), and the packets queued to be sent together. Opening it needs
/// CAP_NET_RAW.
pub struct RawSocket {
    socket: OwnedFd,
    bytes: Vec<u8>,
    packets: Vec<Queued>,
}

/// A packet that has not been sent yet.
struct Queued {
    length: usize,
    next: IpAddr,
    mark: u32,
}

/// Space for one control message with a 32-bit value, as `CMSG_SPACE(4)`, aligned as `struct cmsghdr`.
#[repr(C)]
struct Control {
    header: libc::cmsghdr,
    mark: u32,
    padding: u32,
}

/// What the kernel is told about a packet.
struct Part {
    address: libc::sockaddr_in6,
    address_length: libc::socklen_t,
    control: Control,
    bytes: libc::iovec,
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
        // It is never read.
        set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, 0)?;
        set_option(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SEND_BUFFER)?;
        Ok(Self { socket, bytes: Vec::new(), packets: Vec::new() })
    }

    /// Queues a whole IP packet, to be sent with `mark` by the route to `next`, which need not be its destination.
    pub fn queue(&mut self, packet: &[u8], next: IpAddr, mark: u32) {
        self.bytes.extend_from_slice(packet);
        self.packets.push(Queued { length: packet.len(), next, mark });
    }

    /// Sends what has been queued, in order, with as few calls as possible. `failed` gets each packet that the kernel
    /// refuses (with EPERM if its firewall drops it), and returns whether to try it once more.
    pub fn flush(&mut self, failed: &mut dyn FnMut(&[u8], IpAddr, io::Error) -> bool) {
        let (mut bytes, mut packets, mut is_again) = (&*self.bytes, &*self.packets, false);
        while let Some(first) = packets.first() {
            let sent = match self.send(bytes, packets) {
                Ok(sent) => sent,
                Err(error) => usize::from(!failed(&bytes[..first.length], first.next, error) || is_again),
            };
            is_again = sent == 0;
            let (done, rest) = packets.split_at(sent);
            (packets, bytes) = (rest, &bytes[done.iter().map(|packet| packet.length).sum()..]);
        }
        self.bytes.clear();
        self.packets.clear();
    }

    /// Returns how many have been sent; fails if the first can't be.
    fn send(&self, mut bytes: &[u8], packets: &[Queued]) -> io::Result<usize> {
        let mut parts = heapless::Vec::<Part, BATCH>::new();
        for packet in packets {
            let (its, rest) = bytes.split_at(packet.length);
            bytes = rest;
            if parts.push(Part::new(its, packet)).is_err() {
                break;
            }
        }
        let mut messages = heapless::Vec::<libc::mmsghdr, BATCH>::new();
        messages.extend(parts.iter_mut().map(Part::message));
        // Not musl's function, which sends one by one if its structures have padding: here the padding is zero, as the
        // kernel wants it. SAFETY: all that the messages point to lives until the call returns.
        let sent = unsafe {
            let (fd, count) = (self.socket.as_raw_fd(), messages.len());
            libc::syscall(libc::SYS_sendmmsg, fd, messages.as_mut_ptr(), count, 0)
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

impl Part {
    fn new(bytes: &[u8], packet: &Queued) -> Self {
        let (address, address_length) = socket_address(packet.next);
        // SAFETY: all-zero is a valid `cmsghdr` (musl has padding in it).
        let header: libc::cmsghdr = unsafe { mem::zeroed() };
        let mut control = Control { header, mark: packet.mark, padding: 0 };
        control.header.cmsg_level = libc::SOL_SOCKET;
        control.header.cmsg_type = libc::SO_MARK;
        control.header.cmsg_len = (size_of::<libc::cmsghdr>() + size_of::<u32>()) as _;
        let bytes = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        Self { address, address_length, control, bytes }
    }

    /// Points to this one.
    fn message(&mut self) -> libc::mmsghdr {
        // SAFETY: all-zero is a valid value.
        let mut message: libc::mmsghdr = unsafe { mem::zeroed() };
        let header = &mut message.msg_hdr;
        header.msg_name = (&raw mut self.address).cast();
        header.msg_namelen = self.address_length;
        header.msg_iov = &raw mut self.bytes;
        header.msg_iovlen = 1;
        header.msg_control = (&raw mut self.control).cast();
        header.msg_controllen = self.control.header.cmsg_len as _;
        message
    }
}

/// The kernel's route to `address` for packets with `mark`: its MTU in bytes, `IP_MTU` (ip(7)), and its source address.
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
