//! Connections that no proxy is asked for, since a rule says so.

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use tcp_over_http::http::connect::Target;

use super::lookup::Lookup;
use super::proxy::Account;
use super::{Carried, Failure, Upstreams, dial, is_exhausted};

/// What stands for the proxy that there isn't; no proxy has this name.
pub const DIRECT: &str = "direct";

impl Upstreams {
    /// Connects to a target, whose name it resolves itself. What goes wrong the client is told as if a proxy had said so.
    pub(super) async fn connect_directly(&self, target: Target<'_>) -> Result<Carried, Failure> {
        let (addresses, port): (Rc<[IpAddr]>, u16) = match target {
            Target::Ip(address) => (Rc::new([address.ip()]), address.port()),
            Target::Name(name, port) => {
                let lookup = Lookup::new(Rc::clone(&self.resolver), name).map_err(|_| Failure::BadTarget)?;
                (lookup.addresses().await.map_err(|_| Failure::TimedOut)?, port)
            }
        };
        let mut failure = Failure::TimedOut;
        for &ip in &*addresses {
            match dial::connect(SocketAddr::new(ip, port), self.mark, self.connect_timeout).await {
                Ok(stream) => {
                    let account =
                        Account { name: DIRECT.into(), stats: Cell::default(), received: Cell::default() };
                    return Ok(self.relayed(&Rc::new(account), stream, Vec::new()));
                }
                Err(error) => {
                    log::debug!("direct: {target}: {error}");
                    failure = match error.kind() {
                        _ if is_exhausted(&error) => Failure::Exhausted,
                        io::ErrorKind::ConnectionRefused => Failure::Refused { status: 502 },
                        _ => Failure::TimedOut,
                    };
                }
            }
        }
        Err(failure)
    }
}
