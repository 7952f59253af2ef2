//! A configuration in the making.

use alloc::string::String;
use alloc::vec::Vec;
use core::net::Ipv4Addr;
use core::time::Duration;

use super::{
    Config, ConnectMode, DnsConfig, DnsMode, Given, Host, LogLevel, NonTcp, OnFailure, PathChoice, Ping, Quic,
};
use crate::net::Ipv4Net;

/// A configuration in the making.
pub struct Draft {
    /// Complete once the main section's defaults are stored.
    pub config: Config,
    /// `option ipv6`.
    pub ipv6: bool,
    /// `list bypass_file`.
    pub bypass_files: Vec<String>,
    /// The section `config upstream` being read.
    pub upstream: UpstreamDraft,
}

/// A section `config upstream` in the making.
#[derive(Default)]
pub struct UpstreamDraft {
    /// `option enabled`.
    pub enabled: bool,
    /// `option host`.
    pub host: Option<Host>,
    /// `option port`.
    pub port: u16,
    /// `option username`.
    pub username: Option<String>,
    /// `option password`.
    pub password: Option<String>,
    /// `list header`, as `Name: value`.
    pub headers: Vec<String>,
}

impl Default for Draft {
    /// Only stands in until the defaults of the table are stored.
    fn default() -> Self {
        Draft {
            config: Config {
                tun: String::new(),
                mtu: 0,
                offload: true,
                address: Ipv4Net { addr: Ipv4Addr::UNSPECIFIED, prefix: 0 },
                address6: None,
                listen_port: 0,
                path: PathChoice::Auto,
                connect: ConnectMode::Honest,
                max_flows: 0,
                max_dials: 0,
                max_dials_per_client: 0,
                connect_timeout: Duration::ZERO,
                reply_timeout: Duration::ZERO,
                keepalive: 0,
                auto_route: false,
                routes: Vec::new(),
                bypass: Vec::new(),
                interfaces: Vec::new(),
                local: true,
                clients: Vec::new(),
                client_bypass: Vec::new(),
                ports: Vec::new(),
                quic: Quic::Reject,
                non_tcp: NonTcp::Direct,
                ping: Ping::Reject,
                on_failure: OnFailure::Block,
                table: 0,
                mark: 0,
                rule_priority: 0,
                drain_timeout: Duration::ZERO,
                pipe_size: 0,
                status_socket: String::new(),
                log_level: LogLevel::Info,
                resolvers: Vec::new(),
                dns: DnsConfig {
                    mode: DnsMode::Off,
                    port: 0,
                    hijack: true,
                    servers: Vec::new(),
                    domains: Vec::new(),
                    direct_domains: Vec::new(),
                    direct_servers: Vec::new(),
                    fakeip_range: Ipv4Net { addr: Ipv4Addr::UNSPECIFIED, prefix: 0 },
                    fakeip_range6: None,
                    fakeip_names: 0,
                    fakeip_file: String::new(),
                },
                upstreams: Vec::new(),
                given: Given::default(),
            },
            ipv6: false,
            bypass_files: Vec::new(),
            upstream: UpstreamDraft::default(),
        }
    }
}
