//! What the daemon is told to do.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

mod changes;
mod dns;
mod draft;
mod error;
mod net_file;
mod options;
mod proxy_url;
mod reading;
mod sections;
mod table;
pub mod uci;
mod values;

pub use changes::{Changes, Given};
pub use dns::{DnsConfig, DnsMode};
pub use error::{ConfigError, Fault, Origin, Problem};
pub use options::{Kind, Spec};
pub use reading::{Overrides, Reading};
pub use table::{MAIN as OPTIONS, STATUS_SOCKET};

use crate::http::connect::Request;
use crate::net::{IpNet, Ipv4Net, Ipv6Net};

/// The environment's variable with a list of upstreams, separated by spaces.
pub const VARIABLE: &str = "TCP_OVER_HTTP_UPSTREAM";

/// How many routing tables are used, from `table` on.
pub const TABLES: u32 = 3;

/// The bits of a packet's mark that are ours. pbr uses `0x00ff0000`, mwan3 `0x00003f00`.
pub const MARK_MASK: u32 = 0xff00_0000;

/// A complete, checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the TUN device, 1..=15 bytes.
    pub tun: String,
    /// MTU of the TUN device in bytes, 1280..=65535.
    pub mtu: u16,
    /// Ask the kernel for super-packets, and for packets whose checksum is left to the device.
    pub offload: bool,
    /// Own IPv4 address; the rest of its network are NAT sources. Prefix 16..=29.
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
    /// For the TCP connect to one address of a proxy.
    pub connect_timeout: Duration,
    /// For the proxy's answer to CONNECT.
    pub reply_timeout: Duration,
    /// Seconds idle before TCP keepalive probes on both sides; 0 = off.
    pub keepalive: u32,
    /// Capture everything that the main table would send to a default route.
    pub auto_route: bool,
    /// Capture these networks.
    pub routes: Vec<IpNet>,
    /// Never capture these networks.
    pub bypass: Vec<IpNet>,
    /// Capture what comes from these devices only; empty = from any.
    pub interfaces: Vec<String>,
    /// Capture the machine's own connections, too.
    pub local: bool,
    /// Capture what these clients send only; empty = all.
    pub clients: Vec<IpNet>,
    /// Never capture what these clients send.
    pub client_bypass: Vec<IpNet>,
    /// Capture TCP to these ports only, first and last of each range; empty = all.
    pub ports: Vec<(u16, u16)>,
    /// What happens to UDP to port 443.
    pub quic: Quic,
    /// What happens to captured packets that aren't TCP.
    pub non_tcp: NonTcp,
    /// What pings of captured addresses get.
    pub ping: Ping,
    /// What happens to captured traffic while the daemon is gone after a crash.
    pub on_failure: OnFailure,
    /// Number of the first of the 3 routing tables that are used.
    pub table: u32,
    /// Firewall mark of upstream sockets, within `MARK_MASK`; 0 = none.
    pub mark: u32,
    /// First of the 21 consecutive policy rule priorities that are used.
    pub rule_priority: u32,
    /// What live connections get after SIGTERM.
    pub drain_timeout: Duration,
    /// Bytes of a relay's pipe.
    pub pipe_size: u32,
    /// Where the status is told: a path of 1..=107 bytes.
    pub status_socket: String,
    /// What is logged, unless `RUST_LOG` says otherwise.
    pub log_level: LogLevel,
    /// Who resolves the proxies' names.
    pub resolvers: Vec<SocketAddr>,
    /// How clients get names resolved.
    pub dns: DnsConfig,
    /// The proxies, in the order to try them; never empty.
    pub upstreams: Vec<UpstreamConfig>,
    /// What the main section's options were given as.
    pub given: Given,
}

impl Config {
    /// The configuration in a file's text, which errors call `FILE`. A `bypass_file` is not read.
    ///
    /// # Errors
    /// [`ConfigError`]
    pub fn from_uci(text: &str) -> Result<Self, ConfigError> {
        let reading = Reading::new(Some(text.as_bytes()), &Overrides::default());
        reading.and_then(|reading| reading.finish(true)).map_err(|fault| ConfigError::new("FILE", fault))
    }

    /// Whether any traffic is captured by our own rules.
    pub const fn captures(&self) -> bool {
        self.auto_route || !self.routes.is_empty() || matches!(self.dns.mode, DnsMode::FakeIp)
    }

    /// The mark of the express path: of packets that are delivered to an own socket, whatever their
    /// destination, and of what that socket sends.
    pub const fn deliver_mark(&self) -> u32 {
        match self.mark ^ 0x0100_0000 {
            // All that is unmarked would be delivered to us.
            0 => 0x0200_0000,
            mark => mark,
        }
    }

    /// The mark of packets that the firewall exempts from being captured.
    pub const fn exempt_mark(&self) -> u32 {
        match self.mark ^ 0x0200_0000 {
            0 => 0x0400_0000,
            mark => mark,
        }
    }

    /// The mark of connections, not packets, that seem to begin with what we send to clients. No packet has it,
    /// unless somebody copies the one mark to the other.
    pub const fn begun_mark(&self) -> u32 {
        match self.mark ^ 0x0800_0000 {
            0 => 0x1000_0000,
            mark => mark,
        }
    }
}

/// How connections get from the client to the listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathChoice {
    /// By the express path if it works here, else by rewriting.
    Auto,
    /// By the express path.
    Express,
    /// By rewriting.
    Rewrite,
}

/// When a client's connection is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectMode {
    /// When the proxy has connected: the client sees what really happens.
    Honest,
    /// At once.
    Early,
}

/// What happens to captured packets that aren't TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NonTcp {
    /// They aren't captured.
    Direct,
    /// They are, and get an ICMP error.
    Reject,
}

/// What pings of captured addresses get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ping {
    /// An ICMP error, as all that isn't TCP.
    Reject,
    /// An answer, from us.
    Answer,
}

/// What happens to UDP to port 443 that is on its way to captured networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quic {
    /// It gets an ICMP error, so that browsers take TCP at once.
    Reject,
    /// It isn't captured.
    Direct,
}

/// What happens to captured traffic while the daemon is gone after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// It is refused.
    Block,
    /// It goes out directly.
    Direct,
}

/// What is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// What is wrong.
    Error,
    /// What may be wrong, too.
    Warn,
    /// What happens, too.
    Info,
    /// What happens to each connection, too.
    Debug,
    /// What happens to each packet, too.
    Trace,
}

/// One HTTP proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamConfig {
    /// For logs: the section's name, or `host:port`; never a secret.
    pub name: String,
    /// Where the proxy is.
    pub host: Host,
    /// Its TCP port.
    pub port: u16,
    /// What it is sent with each CONNECT: credentials and headers.
    pub request: Request,
}

/// A proxy's address, or the name that a resolver knows it by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// An address.
    Ip(IpAddr),
    /// A name.
    Name(String),
}

impl UpstreamConfig {
    /// The name of an upstream that was given none.
    pub fn default_name(host: &Host, port: u16) -> String {
        format!("{host}:{port}")
    }
}

impl Host {
    /// Reads an IPv4 address, an IPv6 address with or without brackets, or a name as RFC 1123
    /// section 2.1 has it, with underscores. `None` if it is none of these.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(inner) = text.strip_prefix('[') {
            return Some(Host::Ip(IpAddr::V6(inner.strip_suffix(']')?.parse().ok()?)));
        }
        if let Ok(ip) = text.parse() {
            return Some(Host::Ip(ip));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_'))
        };
        // A name that ends in a number is an address gone wrong.
        let last = name.rsplit('.').next().unwrap_or_default();
        let valid =
            name.len() <= 253 && name.split('.').all(label) && last.bytes().any(|c| !c.is_ascii_digit());
        valid.then(|| Host::Name(name.to_owned()))
    }
}

/// As in a URL: IPv6 in brackets.
impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Ip(IpAddr::V4(ip)) => ip.fmt(f),
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
            Host::Name(name) => f.write_str(name),
        }
    }
}
