//! The listeners on the TUN's addresses, by which the kernel accepts clients' connections.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;

use crate::sys;
use tcp_over_http::config::Config;

/// How many connections may wait to be accepted. The kernel also limits it to `somaxconn`.
const BACKLOG: u32 = 4096;

/// A listener. The sockets that it accepts are not registered with the event loop.
pub struct Listener {
    file: AsyncFd<File>,
}

impl Listener {
    /// Accepts a connection: its non-blocking socket, and the client's address.
    pub fn poll_accept(&self, cx: &mut Context) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        loop {
            let mut ready = ready!(self.file.poll_read_ready(cx))?;
            if let Ok(result) = ready.try_io(|file| sys::accept(file.get_ref())) {
                return Poll::Ready(result);
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.get_ref().as_fd()
    }
}

/// Listens on the TUN's own addresses.
///
/// # Errors
/// The address that can't be listened on, and why.
pub fn listen(config: &Config) -> Result<Vec<Listener>, (SocketAddr, io::Error)> {
    let addresses = config.own().map(|net| SocketAddr::new(net.addr(), config.listen_port));
    addresses.map(|address| listen_on(address, config).map_err(|error| (address, error))).collect()
}

fn listen_on(address: SocketAddr, config: &Config) -> io::Result<Listener> {
    let socket = sys::tcp_socket(address, 0)?;
    socket.set_reuseaddr(true)?;
    // Bound to the TUN, so that hosts on other interfaces can't connect. Accepted sockets inherit this and
    // the options below.
    socket.bind_device(Some(config.tun.as_bytes()))?;
    // If the daemon dies, the kernel resets the connections: a client must not take a cut-off response for a
    // whole one.
    socket.set_zero_linger()?;
    // Without TCP_NODELAY, splice(2) would delay small pieces until earlier ones are acknowledged.
    socket.set_nodelay(true)?;
    sys::set_keepalive(&socket, config.keepalive)?;
    socket.bind(address)?;
    let listener = socket.listen(BACKLOG)?.into_std()?;
    Ok(Listener { file: sys::watch(File::from(OwnedFd::from(listener)))? })
}
