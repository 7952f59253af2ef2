//! How clients get names resolved.

use alloc::string::String;
use alloc::vec::Vec;
use core::net::SocketAddr;

use super::choices::DnsMode;
use crate::net::{IpNet, Ipv4Net, Ipv6Net};

/// The options of name resolution.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsConfig {
    /// Who answers queries.
    pub mode: DnsMode,
    /// UDP and TCP port of the daemon's resolver, on 127.0.0.1 and ::1.
    pub port: u16,
    /// Whether the daemon answers what captured clients ask any resolver on port 53.
    pub hijack: bool,
    /// The domains that dnsmasq asks us for, and no others; empty = all.
    pub domains: Vec<String>,
    /// The resolvers that are asked through the proxy; never empty.
    pub servers: Vec<SocketAddr>,
    /// The resolvers of names that are direct; not empty if there are any.
    pub direct_servers: Vec<SocketAddr>,
    /// The fake addresses, at least two more than names. Prefix 8..=27.
    pub fakeip_range: Ipv4Net,
    /// The same for IPv6, prefix 16..=112; `None` = no IPv6 at all.
    pub fakeip_range6: Option<Ipv6Net>,
    /// How many names can have a fake address at once, 16..=32768.
    pub fakeip_names: u16,
    /// The file that keeps the fake addresses across a restart.
    pub fakeip_file: String,
}

impl DnsConfig {
    /// Whether clients' queries to other resolvers are answered.
    pub fn hijacks(&self) -> bool {
        self.hijack && self.mode != DnsMode::Off
    }

    /// Whether this machine's own queries are exempt: dnsmasq then asks other resolvers for most names.
    pub fn spares_own(&self) -> bool {
        self.hijacks() && !self.domains.is_empty()
    }

    /// The networks of fake addresses in use.
    pub fn fake_ranges(&self) -> impl Iterator<Item = IpNet> {
        let is_on = self.mode == DnsMode::FakeIp;
        let ranges = [Some(IpNet::V4(self.fakeip_range)), self.fakeip_range6.map(IpNet::V6)];
        ranges.into_iter().flatten().filter(move |_| is_on)
    }
}
