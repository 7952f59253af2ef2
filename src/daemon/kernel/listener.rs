//! The listeners that the kernel accepts clients' connections on.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;

use crate::sys;
use tcp_over_http::config::Config;

/// Connections that may wait to be accepted; the kernel's `somaxconn` is a bound, too.
const BACKLOG: u32 = 4096;

/// A listener. What it accepts is watched by nobody yet.
pub struct Listener {
    file: AsyncFd<File>,
}

impl Listener {
    /// Accepts a connection: its socket, which doesn't block, and the client's address.
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
/// The address, and what failed there.
pub fn listen(config: &Config) -> Result<Vec<Listener>, (SocketAddr, io::Error)> {
    let addresses = config.own().map(|net| SocketAddr::new(net.addr(), config.listen_port));
    addresses.map(|address| listen_on(address, config).map_err(|error| (address, error))).collect()
}

fn listen_on(address: SocketAddr, config: &Config) -> io::Result<Listener> {
    let socket = sys::tcp_socket(address, 0)?;
    socket.set_reuseaddr(true)?;
    // Nobody on another interface gets here, whatever address they use. Accepted sockets inherit this and what follows.
    socket.bind_device(Some(config.tun.as_bytes()))?;
    // If the daemon dies, clients are reset: what was cut off must not look whole.
    socket.set_zero_linger()?;
    // Without TCP_NODELAY a relay that splices would wait for acknowledgements with each small piece.
    socket.set_nodelay(true)?;
    sys::set_keepalive(&socket, config.keepalive)?;
    socket.bind(address)?;
    let listener = socket.listen(BACKLOG)?.into_std()?;
    Ok(Listener { file: sys::watch(File::from(OwnedFd::from(listener)))? })
}
