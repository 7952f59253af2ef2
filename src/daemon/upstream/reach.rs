//! Reaching a proxy: tries its addresses, beginning with the one that worked last.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use tokio::net::TcpStream;

use super::connection::ProxyConnection;
use super::proxy::Proxy;
use super::resolver::ResolveError;
use super::{Failure, Upstreams};
use crate::{forward, sys};

/// Addresses that take a default route, in place of those that are not known yet (RFC 5737, RFC 3849).
const FAR: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];

impl Upstreams {
    /// Connects a socket to one of the addresses of the proxy with this index.
    ///
    /// # Errors
    /// The failure and its error: the name has no address, or the last address could not be connected.
    pub async fn connect(&self, index: usize) -> Result<TcpStream, (Failure, io::Error)> {
        self.connect_to(&self.proxies[index], Some(index)).await
    }

    pub(super) async fn connect_to(
        &self,
        proxy: &Proxy,
        index: Option<usize>,
    ) -> Result<TcpStream, (Failure, io::Error)> {
        match self.reach(proxy, index, &|_| None).await? {
            ProxyConnection::Socket(stream) => Ok(stream),
            // Without a client, nothing is sent in a client's name.
            ProxyConnection::Packets(_) => Err((Failure::BadTarget, io::ErrorKind::InvalidInput.into())),
        }
    }

    /// Connects to one of the proxy's addresses, beginning with the one that worked last; in the client's name where
    /// `begin` returns an attempt. `index`: the proxy's index in the choice.
    pub(super) async fn reach(
        &self,
        proxy: &Proxy,
        index: Option<usize>,
        begin: &dyn Fn(SocketAddr) -> Option<forward::PendingHandshake>,
    ) -> Result<ProxyConnection, (Failure, io::Error)> {
        let addresses = match proxy.addresses().await {
            Ok(addresses) => addresses,
            Err(ResolveError::Unanswered) if !self.has_route(&FAR) => {
                return Err((Failure::UplinkDown, io::Error::other(ResolveError::Unanswered)));
            }
            Err(error) => return Err((Failure::Unreachable, io::Error::other(error))),
        };
        let first = index.map_or(0, |index| self.choice().first_address(index, &addresses));
        let mut last = (Failure::Unreachable, io::Error::from(io::ErrorKind::NotFound));
        for &ip in addresses.iter().cycle().skip(first).take(addresses.len()) {
            let begun = Instant::now();
            let address = SocketAddr::new(ip, proxy.port);
            match ProxyConnection::connect(address, begin(address), self.mark, self.connect_timeout).await {
                Ok(connection) => {
                    if let Some(index) = index {
                        self.choice().connected(index, ip, millis(begun));
                    }
                    return Ok(connection);
                }
                Err(error) => {
                    debug!("upstream {}: {ip}: {error}", proxy.account.name);
                    let failure = match error.kind() {
                        _ if is_exhausted(&error) => Failure::Exhausted,
                        io::ErrorKind::TimedOut => Failure::Unanswered,
                        _ => Failure::Unreachable,
                    };
                    // At the next address other ports are free, but no other resource is.
                    let ends =
                        failure == Failure::Exhausted && error.raw_os_error() != Some(libc::EADDRNOTAVAIL);
                    if failure == Failure::Exhausted || last.0 != Failure::Exhausted {
                        last = (failure, error);
                    }
                    if ends {
                        return Err(last);
                    }
                }
            }
        }
        if last.0 != Failure::Exhausted && !self.has_route(&addresses) {
            last.0 = Failure::UplinkDown;
        }
        Err(last)
    }

    /// Whether the kernel has a route to any of these.
    fn has_route(&self, addresses: &[IpAddr]) -> bool {
        addresses.iter().any(|&ip| sys::udp_socket(SocketAddr::new(ip, 9), self.mark).is_ok())
    }
}

/// Milliseconds since `since`.
fn millis(since: Instant) -> u32 {
    u32::try_from(since.elapsed().as_millis()).unwrap_or(u32::MAX)
}

/// Whether this machine is out of resources, which is not the proxy's fault.
pub(super) fn is_exhausted(error: &io::Error) -> bool {
    use libc::{EADDRNOTAVAIL, EMFILE, ENFILE, ENOBUFS, ENOMEM};
    matches!(error.raw_os_error(), Some(EADDRNOTAVAIL | EMFILE | ENFILE | ENOBUFS | ENOMEM))
}
