//! Connections without a proxy: by a rule, during a pause, or because the target is a proxy.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use tcp_over_http::config::{Host, UpstreamConfig};
use tcp_over_http::dns::{Name, NameRef};
use tcp_over_http::http::connect::{Request, Target};
use tcp_over_http::rules::{Action, Connection, Neighbour};

use super::proxy::Proxy;
use super::resolver::Resolver;
use super::{Carried, Failure, Upstreams};
use crate::kernel::firewall;
use crate::netlink::neighbour;
use crate::sys;

/// The name in place of a proxy's for connections that are direct by a rule...
pub const DIRECT: &str = "(direct)";
/// ...and during a pause. No proxy can have these names: UCI takes no brackets.
pub const PAUSED: &str = "(paused)";

impl Upstreams {
    /// What the rules decide about a client's connection.
    pub fn decide(&self, name: Option<&str>, target: SocketAddr, client: IpAddr) -> Option<Action> {
        let neighbour = match self.rules.need_neighbour() {
            true => neighbour::find(client, self.mark),
            false => Neighbour::default(),
        };
        let name = name.and_then(|name| Name::new(name).ok());
        self.rules.decide(Connection {
            name: name.as_ref().map(Name::as_ref),
            address: target.ip(),
            port: target.port(),
            client,
            neighbour: &neighbour,
        })
    }

    /// Notes an address of a direct name, so that connections to it are direct.
    pub fn learn(&self, name: NameRef<'_>, address: IpAddr) {
        self.rules.learn(name, address);
        firewall::learn(address, self.mark);
    }

    /// [Connects](Self::connect_directly) a client to a server that is no configured proxy.
    pub(super) async fn connect_server(&self, server: Proxy) -> Result<Carried, Failure> {
        self.connect_directly(&server, None).await
    }

    /// Connects a paused client directly to a target.
    pub async fn connect_paused(&self, target: Target<'_>) -> Result<Carried, Failure> {
        match self.as_proxy(PAUSED, target, &self.resolver) {
            Some(server) => self.connect_server(server?).await,
            None => Err(Failure::BadTarget),
        }
    }

    /// Connects a client without CONNECT: to a proxy itself, which some clients are configured to use, or to a server
    /// in the form of a proxy.
    pub(super) async fn connect_directly(
        &self,
        proxy: &Proxy,
        index: Option<usize>,
    ) -> Result<Carried, Failure> {
        match self.connect_to(proxy, index).await {
            Ok(stream) => Ok(self.relayed(&proxy.account, stream, Vec::new())),
            Err((Failure::Exhausted, _)) => Err(Failure::Exhausted),
            Err((_, error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                Err(Failure::Refused { status: 502 })
            }
            Err(_) => Err(Failure::TimedOut),
        }
    }

    /// The target in the form of a proxy. `None`: a route leads there through the TUN, which takes precedence over a
    /// rule.
    pub(super) fn as_proxy(
        &self,
        name: &str,
        target: Target<'_>,
        resolver: &Rc<Resolver>,
    ) -> Option<Result<Proxy, Failure>> {
        let (host, port) = match target {
            Target::Ip(address) => {
                let near = sys::udp_socket(address, self.mark).and_then(|socket| socket.local_addr());
                if near.is_ok_and(|near| self.own.contains(&Some(near.ip()))) {
                    return None;
                }
                (Host::Ip(address.ip()), address.port())
            }
            Target::Name(name, port) => (Host::Name(name.to_owned()), port),
        };
        let request = Request::new(None, &[]).ok()?;
        let server = UpstreamConfig { name: name.to_owned(), host, port, request, uplinks: Vec::new() };
        Some(Proxy::new(&server, resolver).map_err(|_| Failure::BadTarget))
    }
}
