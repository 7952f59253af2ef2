//! Every unsafe call of the daemon, each behind a safe function.

pub mod process;
pub mod signals;

use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Makes a non-blocking pipe: its read end and its write end.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    // SAFETY: pipe2 writes two descriptors into the array, which has room for them.
    check(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_NONBLOCK | libc::O_CLOEXEC) })?;
    // SAFETY: both are open and nobody else's.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

/// Asks for a pipe to hold `bytes`; returns what it holds now.
pub fn set_pipe_size(pipe: impl AsFd, bytes: u32) -> io::Result<usize> {
    // SAFETY: takes and gives plain numbers.
    let size = unsafe { libc::fcntl(pipe.as_fd().as_raw_fd(), libc::F_SETPIPE_SZ, bytes as c_int) };
    Ok(check(size)? as usize)
}

/// Moves up to `length` bytes between a pipe and a socket without copying them to user space, without
/// blocking. 0 means the end of the stream.
pub fn splice(from: impl AsFd, to: impl AsFd, length: usize) -> io::Result<usize> {
    let (from, to) = (from.as_fd().as_raw_fd(), to.as_fd().as_raw_fd());
    let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
    // SAFETY: null offsets are allowed for what can't seek.
    let moved = unsafe { libc::splice(from, std::ptr::null_mut(), to, std::ptr::null_mut(), length, flags) };
    if moved < 0 { Err(io::Error::last_os_error()) } else { Ok(moved as usize) }
}

/// Writes `bytes` into a pipe.
pub fn write(pipe: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: reads no more than the slice's bytes.
    let written = unsafe { libc::write(pipe.as_fd().as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    if written < 0 { Err(io::Error::last_os_error()) } else { Ok(written as usize) }
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
    let read = unsafe { libc::recv(fd, bytes.as_mut_ptr().cast(), bytes.len(), libc::MSG_DONTWAIT) };
    if read < 0 { Err(io::Error::last_os_error()) } else { Ok(read as usize) }
}

/// Throws up to `length` received bytes of a TCP socket away. 0 means the end of the stream.
pub fn discard(socket: impl AsFd, length: usize) -> io::Result<usize> {
    let flags = libc::MSG_TRUNC | libc::MSG_DONTWAIT;
    // SAFETY: with MSG_TRUNC TCP writes nothing to the buffer (tcp(7)), so null will do.
    let read = unsafe { libc::recv(socket.as_fd().as_raw_fd(), std::ptr::null_mut(), length, flags) };
    if read < 0 { Err(io::Error::last_os_error()) } else { Ok(read as usize) }
}

/// How many bytes (and FIN) a TCP socket has not had acknowledged yet: `SIOCOUTQ` (tcp(7)).
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

/// Sets an integer option of a socket.
pub fn set_option(socket: impl AsFd, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    let length = size_of::<c_int>() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: points to one int and says so.
    check(unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), length) }).map(drop)
}

/// Has the kernel send what a closed socket still has to send: takes [`set_resetting`] back (socket(7)).
pub fn set_lingering(socket: impl AsFd) -> io::Result<()> {
    set_linger(socket, libc::linger { l_onoff: 0, l_linger: 0 })
}

/// Has closing a socket reset its connection (socket(7), `SO_LINGER`).
pub fn set_resetting(socket: impl AsFd) -> io::Result<()> {
    set_linger(socket, libc::linger { l_onoff: 1, l_linger: 0 })
}

fn set_linger(socket: impl AsFd, linger: libc::linger) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    let length = size_of_val(&linger) as libc::socklen_t;
    let place = (&raw const linger).cast();
    // SAFETY: points to one `linger` and says how long it is.
    check(unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, place, length) }).map(drop)
}

/// Lets a socket have, and accept connections to, addresses that are not this machine's: `IP_TRANSPARENT`
/// (ip(7)), `IPV6_TRANSPARENT`. Needs CAP_NET_ADMIN.
pub fn set_transparent(socket: impl AsFd, ipv4: bool) -> io::Result<()> {
    match ipv4 {
        true => set_option(socket, libc::IPPROTO_IP, libc::IP_TRANSPARENT, 1),
        false => set_option(socket, libc::IPPROTO_IPV6, IPV6_TRANSPARENT, 1),
    }
}

/// <linux/in6.h>
const IPV6_TRANSPARENT: c_int = 75;

/// Marks what a socket sends, before it is connected: the route is chosen then. Needs CAP_NET_ADMIN.
pub fn set_mark(socket: impl AsFd, mark: u32) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_MARK, mark as c_int)
}

/// Has the last packet of a connection's handshake wait for the first bytes to send, for 200 ms at most: `TCP_QUICKACK`
/// (tcp(7); `tcp_rcv_synsent_state_process()` in the kernel). Before connecting.
pub fn delay_acknowledgement(socket: impl AsFd) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_QUICKACK, 0)
}

/// Has the kernel probe a TCP connection that has been idle for `idle` seconds (0 = never), then every sixth
/// of that. How many probes may stay unanswered is left to the kernel (`tcp_keepalive_probes`, 9): with
/// 60 s, a dead peer is found after 150 s.
pub fn set_keepalive(socket: impl AsFd, idle: u32) -> io::Result<()> {
    set_option(&socket, libc::SOL_SOCKET, libc::SO_KEEPALIVE, (idle != 0).into())?;
    if idle == 0 {
        return Ok(());
    }
    let idle = idle.min(MAX_KEEPIDLE) as c_int;
    set_option(&socket, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, idle)?;
    set_option(&socket, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, (idle / 6).max(1))
}

/// The longest that TCP_KEEPIDLE takes, in seconds (`MAX_TCP_KEEPIDLE` in the kernel's `net/tcp.h`).
const MAX_KEEPIDLE: u32 = 32_767;

/// Makes an epoll instance.
pub fn epoll() -> io::Result<File> {
    // SAFETY: takes a plain number.
    let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Has an epoll instance watch `socket` for `events` (`EPOLL*`), which it will tell with `data`. `operation`
/// is one of `EPOLL_CTL_*`.
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

/// Takes the events of an epoll instance that there are now; returns how many.
pub fn epoll_take(epoll: &File, events: &mut [libc::epoll_event]) -> io::Result<usize> {
    let room = c_int::try_from(events.len()).unwrap_or(c_int::MAX);
    // SAFETY: writes no more structs than the slice has.
    let count = check(unsafe { libc::epoll_wait(epoll.as_raw_fd(), events.as_mut_ptr(), room, 0) })?;
    Ok(count as usize)
}

/// Accepts a connection without blocking: its socket, which does not block either, and the client's address.
pub fn accept(listener: &File) -> io::Result<(TcpStream, SocketAddr)> {
    // SAFETY: plain numbers, for which all bits 0 is a value.
    let mut address: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&address) as libc::socklen_t;
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    let place = (&raw mut address).cast::<libc::sockaddr>();
    // SAFETY: writes no more than `length` bytes of one struct.
    let fd = check(unsafe { libc::accept4(listener.as_raw_fd(), place, &raw mut length, flags) })?;
    // SAFETY: the descriptor is new and nobody else's.
    let stream = unsafe { TcpStream::from_raw_fd(fd) };
    let port = u16::from_be(address.sin6_port);
    let ip = match c_int::from(address.sin6_family) {
        libc::AF_INET6 => IpAddr::from(address.sin6_addr.s6_addr),
        // `sin_port` is where `sin6_port` is, and `sin_addr` where `sin6_flowinfo` is.
        _ => IpAddr::from(address.sin6_flowinfo.to_ne_bytes()),
    };
    Ok((stream, SocketAddr::new(ip, port)))
}

/// Takes over a TUN's descriptor.
pub fn into_file(device: tun::Device) -> File {
    // SAFETY: the device gives up its descriptor, which is open.
    unsafe { File::from_raw_fd(device.into_raw_fd()) }
}

/// Has tokio tell when `file` is readable. Only readable: a TUN is always writable, and each of its packets
/// would wake the loop to say so.
pub fn watch(file: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: a File's descriptor stays the same, and open, as long as the File is there.
    Ok(unsafe { AsyncFd::register_with_interest(file, Interest::READABLE) }?)
}

/// Sets the length of a TUN's virtio header in bytes, `TUNSETVNETHDRSZ` (<linux/if_tun.h>).
pub fn set_vnet_header_size(tun: &File, bytes: c_int) -> io::Result<()> {
    // SAFETY: the request reads one int.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const bytes) }).map(drop)
}

/// Makes a TUN's virtio header little-endian on every machine, `TUNSETVNETLE`.
pub fn set_vnet_little_endian(tun: &File) -> io::Result<()> {
    let yes: c_int = 1;
    // SAFETY: the request reads one int.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETVNETLE, &raw const yes) }).map(drop)
}

/// Says which offloads the reader of a TUN can do (`TUN_F_*`), `TUNSETOFFLOAD`.
pub fn set_offload(tun: &File, features: u32) -> io::Result<()> {
    // SAFETY: the request takes a plain number.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD, features as libc::c_ulong) }).map(drop)
}

/// Opens a netlink socket of `protocol` (`NETLINK_*`). With multicast groups (a mask) it is one to wait on
/// and doesn't block.
pub fn netlink(protocol: c_int, groups: u32) -> io::Result<File> {
    let nonblock = if groups != 0 { libc::SOCK_NONBLOCK } else { 0 };
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | nonblock;
    // SAFETY: takes no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_NETLINK, kind, protocol) })?;
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // Without the errors' text (before Linux 4.12) their number will do.
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

/// Sets the MTU of a network device in bytes, by any socket: `SIOCSIFMTU` (netdevice(7)).
pub fn set_mtu(socket: impl AsFd, name: &str, bytes: u16) -> io::Result<()> {
    set_device(socket, libc::SIOCSIFMTU, name, bytes.into())
}

/// Sets how many packets wait for a network device at most, by any socket: `SIOCSIFTXQLEN` (netdevice(7)).
pub fn set_queue_length(socket: impl AsFd, name: &str, packets: c_int) -> io::Result<()> {
    set_device(socket, libc::SIOCSIFTXQLEN, name, packets)
}

/// One of the two above.
fn set_device(socket: impl AsFd, request: libc::c_ulong, name: &str, number: c_int) -> io::Result<()> {
    let ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_mtu: number };
    let mut device = libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru };
    let room = device.ifr_name.len() - 1; // the name ends with a NUL
    for (to, from) in device.ifr_name.iter_mut().take(room).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: both requests read one struct.
    check(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), request as libc::Ioctl, &raw const device) })
        .map(drop)
}

/// Reads an integer option of a socket.
#[cfg(test)]
pub fn option(socket: impl AsFd, level: c_int, name: c_int) -> io::Result<c_int> {
    let mut value: c_int = 0;
    let mut length = size_of::<c_int>() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the pointers are to one int and to its length.
    check(unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &raw mut length) })?;
    Ok(value)
}

/// Gives the calling thread a network namespace of its own, which ends with it.
#[cfg(test)]
pub fn unshare_network() -> io::Result<()> {
    // SAFETY: takes no pointers.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map(drop)
}

/// Has signals wait in a file (signalfd(2)), and nothing else happen when they come. True if they waited before:
/// that is kept by a process when it becomes another program.
pub fn signals(numbers: &[c_int]) -> io::Result<(File, bool)> {
    // SAFETY: plain numbers, for which all bits 0 is a value; the functions that follow make sets of it.
    let (mut set, mut before): (libc::sigset_t, libc::sigset_t) = unsafe { std::mem::zeroed() };
    // SAFETY: the pointers are to sets, and the descriptor is new and nobody else's.
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

/// Gives the process its name (prctl(2)), which it loses when it executes /proc/self/exe.
pub fn set_process_name() {
    // SAFETY: reads a string that ends with NUL.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"tcp-over-http".as_ptr()) };
}

/// Calls `make` while files get none of the permissions in `mask`.
pub fn with_umask<T>(mask: u16, make: impl FnOnce() -> T) -> T {
    // SAFETY: takes a plain number and can't fail.
    let before = unsafe { libc::umask(mask.into()) };
    let made = make();
    // SAFETY: the same.
    unsafe { libc::umask(before) };
    made
}

/// Raises the limit of open files to `count`, the hard one too where that is allowed, or else as far as it
/// goes. Returns the limit.
pub fn raise_file_limit(count: usize) -> io::Result<usize> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes one struct.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    let count = count as libc::rlim_t;
    if limit.rlim_cur < count {
        let hard = limit.rlim_max;
        limit = libc::rlimit { rlim_cur: count, rlim_max: count.max(hard) };
        // SAFETY: reads one struct.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } != 0 {
            limit = libc::rlimit { rlim_cur: hard, rlim_max: hard };
            // SAFETY: reads one struct.
            check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })?;
        }
    }
    Ok(usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX))
}

/// Gives up all capabilities but these, a bit each (capabilities(7)), for good and for what is run from now on.
/// Those that the process has not are not missed.
pub fn keep_capabilities(keep: u64) -> io::Result<()> {
    /// `_LINUX_CAPABILITY_VERSION_3` (<linux/capability.h>), and this process.
    const HEADER: [u32; 2] = [0x2008_0522, 0];
    // Twice, for the lower and the upper 32: effective, permitted, inheritable.
    let mut sets = [[0_u32; 3]; 2];
    // SAFETY: reads the header, which names the version with two triples, and writes these.
    check(unsafe { libc::syscall(libc::SYS_capget, HEADER.as_ptr(), sets.as_mut_ptr()) } as c_int)?;
    for (set, keep) in sets.iter_mut().zip([keep as u32, (keep >> 32) as u32]) {
        *set = set.map(|has| has & keep);
    }
    // SAFETY: takes plain numbers. Without it, root would get all back with the next program.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    // SAFETY: reads the header and the triples.
    check(unsafe { libc::syscall(libc::SYS_capset, HEADER.as_ptr(), sets.as_ptr()) } as c_int)?;
    Ok(())
}

/// Random bytes fit for secrets.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    // SAFETY: writes no more than the array's bytes.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), N, 0) };
    match usize::try_from(got) {
        Ok(got) if got == N => Ok(bytes),
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
