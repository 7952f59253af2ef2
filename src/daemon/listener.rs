//! The listeners that the kernel accepts clients' connections on.

use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::net::{TcpListener, TcpSocket};

use crate::config::Config;
use crate::sys;

/// Connections that may wait to be accepted; the kernel's `somaxconn` is a bound, too.
const BACKLOG: u32 = 4096;

/// Listens on the TUN's own addresses.
///
/// # Errors
/// The address, and what failed there.
pub fn listen(config: &Config) -> Result<Vec<TcpListener>, (SocketAddr, io::Error)> {
    let ipv6 = config.address6.map(|net| IpAddr::V6(net.addr));
    let mut listeners = Vec::with_capacity(2);
    for address in [Some(IpAddr::V4(config.address.addr)), ipv6].into_iter().flatten() {
        let address = SocketAddr::new(address, config.listen_port);
        listeners.push(listen_on(address, config).map_err(|error| (address, error))?);
    }
    Ok(listeners)
}

fn listen_on(address: SocketAddr, config: &Config) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    // Nobody on another interface gets here, whatever address they use.
    socket.bind_device(Some(config.tun.as_bytes()))?;
    // Accepted sockets inherit all of these. Without TCP_NODELAY a relay that splices would wait for
    // acknowledgements with each small piece.
    socket.set_nodelay(true)?;
    sys::set_keepalive(&socket, config.keepalive)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
