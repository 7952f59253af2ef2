//! The configuration: from a file, a variable and flags to one checked value.
//!
//! | file | what it has |
//! |---|---|
//! | `table`, `options` | the table of options, and what a row of it has |
//! | `uci`, `sections`, `given` | a file's syntax, its sections, and the values in them as text |
//! | `reading`, `draft` | puts the variable's and the flags' values in place of the file's, and stores them all by their rows |
//! | `values`, `choices`, `host` | what the text of a value means |
//! | `check` | whether options contradict each other |
//! | `dns`, `upstream`, `rule` | the options of names, of a proxy and of a rule |
//! | `changes` | what a reload changes |
//! | `export` | the configuration for other programs |
//! | `error` | what is wrong, and where |

use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

mod changes;
mod check;
mod choices;
mod dns;
mod draft;
mod error;
mod export;
mod given;
mod host;
mod options;
mod reading;
mod rule;
mod sections;
mod table;
pub mod uci;
mod upstream;
mod values;

pub use changes::Changes;
pub use choices::{
    ConnectMode, DnsMode, HttpRelay, LogLevel, NonTcp, OnFailure, PathChoice, Ping, Quic, ToProxy,
};
pub use dns::DnsConfig;
pub use error::{ConfigError, Fault, Origin};
pub use export::{Shell, options_as_json};
pub use given::Given;
pub use host::Host;
pub use options::{Spec, Unit, ValueType};
pub use reading::{Overrides, Reading};
pub use table::{MAIN as OPTIONS, RULE as RULE_OPTIONS, UPSTREAM as UPSTREAM_OPTIONS};
pub use upstream::UpstreamConfig;

use crate::flow::subnet::Subnets;
use crate::net::{IpNet, Ipv4Net, Ipv6Net};
use crate::rules::Rules;
use crate::upstream::choice;

/// The environment's variable with a list of upstreams, separated by spaces.
pub const VARIABLE: &str = "TCP_OVER_HTTP_UPSTREAM";

/// The bits of a packet's mark that this daemon uses. pbr uses `0x00ff0000`, mwan3 `0x00003f00`.
pub const MARK_MASK: u32 = 0xff00_0000;

/// A complete, checked configuration. Its `Default` is empty: [`Config::from_uci`] knows the options' defaults.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Name of the TUN device, 1..=15 bytes.
    pub tun: String,
    /// MTU of the TUN device in bytes, 1280..=65535.
    pub mtu: u16,
    /// Whether the kernel may hand over super-packets, and packets without a complete checksum.
    pub offload: bool,
    /// The TUN's own IPv4 address; the other addresses of its network are NAT sources. Prefix 16..=29.
    pub address: Ipv4Net,
    /// The same for IPv6, prefix 64..=120; `None` = no IPv6 at all.
    pub address6: Option<Ipv6Net>,
    /// TCP port of the listener on `address` and `address6`.
    pub listen_port: u16,
    /// How connections get from the client to the listener.
    pub path: PathChoice,
    /// When a client's connection is accepted.
    pub connect: ConnectMode,
    /// Flows in all, 16..=65000.
    pub max_flows: u16,
    /// Dials in flight in all, at most `max_flows`.
    pub max_dials: u16,
    /// Dials in flight for one client address, at most `max_dials`.
    pub max_dials_per_client: u16,
    /// Time limit of the TCP connect to one address of a proxy.
    pub connect_timeout: Duration,
    /// Time limit of the proxy's answer to CONNECT.
    pub reply_timeout: Duration,
    /// How a proxy is chosen.
    pub choice: choice::Policy,
    /// Seconds idle before TCP keepalive probes on both sides; 0 = off.
    pub keepalive: u32,
    /// When plain HTTP is carried as requests in absolute form...
    pub http_relay: HttpRelay,
    /// ...and to which ports, first and last of each range.
    pub http_ports: Vec<(u16, u16)>,
    /// Capture everything that the main table would send to a default route.
    pub auto_route: bool,
    /// Capture these networks.
    pub routes: Vec<IpNet>,
    /// Capture what comes from these devices only; empty = from any.
    pub interfaces: Vec<String>,
    /// Capture the machine's own connections, too.
    pub local: bool,
    /// Capture what these clients send only; empty = all.
    pub clients: Vec<IpNet>,
    /// Capture TCP to these ports only, first and last of each range; empty = all.
    pub ports: Vec<(u16, u16)>,
    /// What happens to what clients send to a proxy's own address and port.
    pub to_proxy: ToProxy,
    /// What happens to UDP to port 443.
    pub quic: Quic,
    /// What happens to captured packets that aren't TCP.
    pub non_tcp: NonTcp,
    /// What pings of captured addresses get.
    pub ping: Ping,
    /// What happens to captured traffic while the daemon is gone after a crash.
    pub on_failure: OnFailure,
    /// Traffic may be let out directly for a while although it is refused while the daemon is gone.
    pub pause: bool,
    /// Number of the routing table that is used.
    pub table: u32,
    /// Firewall mark of upstream sockets, within `MARK_MASK`; 0 = none.
    pub mark: u32,
    /// First of the 17 consecutive policy rule priorities that are used.
    pub rule_priority: u32,
    /// How long live connections may go on after SIGTERM.
    pub drain_timeout: Duration,
    /// Bytes of a relay's pipe.
    pub pipe_size: u32,
    /// Path of the status socket, 1..=107 bytes.
    pub status_socket: String,
    /// The least severe messages logged, unless `RUST_LOG` says otherwise.
    pub log_level: LogLevel,
    /// Resolvers of the proxies' names; empty = those of `/etc/resolv.conf`.
    pub resolvers: Vec<SocketAddr>,
    /// How clients get names resolved.
    pub dns: DnsConfig,
    /// The proxies, in the order to try them; never empty.
    pub upstreams: Vec<UpstreamConfig>,
    /// Rules about single connections.
    pub rules: Rc<Rules>,
    /// The main section's options as text.
    pub given: Given,
}

impl Config {
    /// Whether traffic may be let out directly for a while.
    pub const fn may_pause(&self) -> bool {
        self.pause || matches!(self.on_failure, OnFailure::Direct)
    }

    /// Whether any traffic is captured by our own rules.
    pub const fn captures(&self) -> bool {
        self.auto_route || !self.routes.is_empty() || matches!(self.dns.mode, DnsMode::FakeIp)
    }

    /// The zone that what goes to the TUN leaves by, if `firewall`, a file of fw4's, has none of that name.
    pub fn missing_zone(&self, firewall: &[u8]) -> Option<&str> {
        let zone = OPTIONS.iter().find(|spec| spec.name == "zone")?;
        let zone = self.given.texts(zone).pop()?;
        (!uci::has_zone(firewall, zone)).then_some(zone)
    }

    /// The TUN's own addresses, with their networks.
    pub fn own(&self) -> impl Iterator<Item = IpNet> + use<> {
        [Some(IpNet::V4(self.address)), self.address6.map(IpNet::V6)].into_iter().flatten()
    }

    /// The TUN's subnets.
    pub fn subnets(&self) -> Subnets {
        Subnets::new(self.address, self.address6)
    }

    /// The option whose network has addresses in common with `net`, and that network.
    pub fn overlapping(&self, net: IpNet) -> Option<(&'static str, IpNet)> {
        self.own()
            .map(|own| (["address", "address6"], own))
            .chain(self.dns.fake_ranges().map(|range| (["fakeip_range", "fakeip_range6"], range)))
            .find(|(_, ours)| IpNet::new(ours.network(), ours.prefix()).overlaps(net))
            .map(|(names, ours)| (names[usize::from(ours.addr().is_ipv6())], ours))
    }

    /// How many connections to the proxies there can be, if `max_flows` is more: to each as many as there are ports in
    /// `range`, the text of `net.ipv4.ip_local_port_range`. Without a proxy there is nothing to tell.
    pub fn too_few_ports(&self, range: &str) -> Option<usize> {
        let mut ports = range.split_ascii_whitespace().map_while(|port| port.parse::<usize>().ok());
        let (first, last) = (ports.next()?, ports.next()?);
        let most = (last + 1).saturating_sub(first) * self.upstreams.len();
        (1..self.max_flows.into()).contains(&most).then_some(most)
    }

    /// The mark of packets that the firewall exempts from being captured.
    pub const fn exempt_mark(&self) -> u32 {
        match self.mark ^ 0x0200_0000 {
            0 => 0x0400_0000,
            mark => mark,
        }
    }

    /// The mark of connections that have begun while their client goes out directly.
    pub const fn paused_mark(&self) -> u32 {
        match self.mark ^ 0x2000_0000 {
            0 => 0x4000_0000,
            mark => mark,
        }
    }

    /// The mark of connections that have an end in the TUN, and of errors about their packets.
    pub const fn begun_mark(&self) -> u32 {
        match self.mark ^ 0x0800_0000 {
            0 => 0x1000_0000,
            mark => mark,
        }
    }
}
