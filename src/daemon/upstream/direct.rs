//! Connections that no proxy is asked for, since a rule says so.

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use tcp_over_http::dns::{Name, NameRef};
use tcp_over_http::http::connect::Target;
use tcp_over_http::rules::{Action, Connection, Origin};

use super::exchange::udp_socket;
use super::lookup::Lookup;
use super::proxy::Account;
use super::{Carried, Failure, Upstreams, dial, is_exhausted};
use crate::kernel::{firewall, neighbour};

/// What stands for the proxy that there isn't; no proxy has this name.
pub const DIRECT: &str = "direct";

impl Upstreams {
    /// What rules say of a client's connection.
    pub fn decide(&self, name: Option<&str>, target: SocketAddr, client: IpAddr) -> Option<Action> {
        let origin = match self.rules.need_origin() {
            true => neighbour::origin(client, self.mark),
            false => Origin::default(),
        };
        let name = name.and_then(|name| Name::new(name).ok());
        self.rules.decide(Connection {
            name: name.as_ref().map(Name::as_ref),
            address: target.ip(),
            port: target.port(),
            client,
            origin: &origin,
        })
    }

    /// Has connections to an address of a direct name pass by.
    pub fn learn(&self, name: NameRef<'_>, address: IpAddr) {
        self.rules.learn(name, address);
        firewall::learn(address, self.mark);
    }

    /// Connects to a target, whose name it resolves itself. What goes wrong the client is told as if a proxy had said so.
    /// `None`: a route leads there through the TUN, which counts for more than the rule.
    pub(super) async fn connect_directly(&self, target: Target<'_>) -> Option<Result<Carried, Failure>> {
        let addresses = match self.addresses(target).await {
            Ok(addresses) => addresses,
            Err(failure) => return Some(Err(failure)),
        };
        let mut failure = Failure::TimedOut;
        for address in addresses {
            let near = udp_socket(address, self.mark).and_then(|socket| socket.local_addr());
            if near.is_ok_and(|near| self.own.contains(&Some(near.ip()))) {
                return None;
            }
            match dial::connect(address, self.mark, self.connect_timeout).await {
                Ok(stream) => {
                    let account =
                        Account { name: DIRECT.into(), stats: Cell::default(), received: Cell::default() };
                    return Some(Ok(self.relayed(&Rc::new(account), stream, Vec::new())));
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
        Some(Err(failure))
    }

    async fn addresses(&self, target: Target<'_>) -> Result<Vec<SocketAddr>, Failure> {
        let (name, port) = match target {
            Target::Ip(address) => return Ok(vec![address]),
            Target::Name(name, port) => (name, port),
        };
        let lookup = Lookup::new(Rc::clone(&self.resolver), name).map_err(|_| Failure::BadTarget)?;
        let addresses = lookup.addresses().await.map_err(|_| Failure::TimedOut)?;
        Ok(addresses.iter().map(|&ip| SocketAddr::new(ip, port)).collect())
    }
}
