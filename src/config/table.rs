//! The one table of options: it drives the file's sections, the flags, `--help` and the defaults.

use alloc::borrow::ToOwned;
use core::time::Duration;

use super::options::Kind::{self, Bool, Choice, List, Number, Port, Secret, SecretList, Text};
use super::options::Spec;
use super::proxy_url::{self, password, username};
use super::values::{
    cidr, clients, device, domain, fake_ipv4, fake_ipv6, header, host, mark, own_ipv4, own_ipv6, path, ports,
    resolver, socket, table,
};
use super::{ConnectMode, DnsMode, LogLevel, NonTcp, OnFailure, PathChoice, Ping, Quic};

/// The default of `status_socket`.
pub const STATUS_SOCKET: &str = "/var/run/tcp-over-http.sock";

/// The options of `config tcp-over-http 'main'`, each with a flag.
#[rustfmt::skip] // one row an option
pub static MAIN: &[Spec] = &[
    row("upstream", "", "a proxy: http://[USER:PASSWORD@]HOST[:PORT]",
        SecretList(|d, v| proxy_url::parse(v).map(|v| d.config.upstreams.push(v)))),
    row("resolver", "", "who resolves the proxies' names: IP[:PORT]",
        List(|d, v| resolver(v, &mut d.config.resolvers))),
    row("enabled", "", "for the init script; ignored here",
        Bool(|_, _| ())),
    row("zone", "wan", "firewall zone of what goes to the TUN; ignored here",
        Text(|_, _| Ok(()))),
    row("tun", "toh0", "name of the TUN device",
        Text(|d, v| device(v).map(|v| d.config.tun = v))),
    row("mtu", "1500", "its MTU in bytes",
        Number(1280, 65535, |d, v| d.config.mtu = v as u16)),
    row("offload", "1", "0: no super-packets, should a kernel get them wrong",
        Bool(|d, v| d.config.offload = v)),
    row("address", "10.45.39.1/24", "own address; the rest of its network are NAT sources",
        Text(|d, v| own_ipv4(v).map(|v| d.config.address = v))),
    row("address6", "fd45:39::1/64", "the same for IPv6",
        Text(|d, v| own_ipv6(v).map(|v| d.config.address6 = Some(v)))),
    row("ipv6", "1", "0: no IPv6 at all",
        Bool(|d, v| d.ipv6 = v)),
    row("listen_port", "12345", "TCP port of the listener on these addresses",
        Port(|d, v| d.config.listen_port = v)),
    row("path", "auto", "packets go through the TUN rewritten, or all but the first past it",
        Choice(&["auto", "express", "rewrite"], |d, i| d.config.path = [PathChoice::Auto, PathChoice::Express][..].get(i).copied().unwrap_or(PathChoice::Rewrite))),
    row("connect", "honest", "accept clients when the proxy has connected, or at once",
        Choice(&["honest", "early"], |d, i| d.config.connect = pick(i, ConnectMode::Honest, ConnectMode::Early))),
    row("auto_route", "0", "capture what would go to a default route",
        Bool(|d, v| d.config.auto_route = v)),
    row("route", "", "capture this network",
        List(|d, v| cidr(v).map(|v| d.config.routes.push(v)))),
    row("bypass", "", "never capture this network",
        List(|d, v| cidr(v).map(|v| d.config.bypass.push(v)))),
    row("bypass_file", "", "never capture the networks in this file, one a line",
        List(|d, v| { d.bypass_files.push(v.to_owned()); Ok(()) })),
    row("interface", "", "capture what comes from this device only",
        List(|d, v| device(v).map(|v| d.config.interfaces.push(v)))),
    row("local", "1", "capture this machine's own connections, too",
        Bool(|d, v| d.config.local = v)),
    row("client", "", "capture only what comes from this network",
        List(|d, v| clients(v).map(|v| d.config.clients.push(v)))),
    row("client_bypass", "", "never capture what comes from this network",
        List(|d, v| clients(v).map(|v| d.config.client_bypass.push(v)))),
    row("port", "", "capture only TCP to this port: PORT or FIRST-LAST",
        List(|d, v| ports(v).map(|v| d.config.ports.push(v)))),
    row("quic", "reject", "UDP to port 443 gets an ICMP error, or is left alone",
        Choice(&["reject", "direct"], |d, i| d.config.quic = pick(i, Quic::Reject, Quic::Direct))),
    row("non_tcp", "direct", "what isn't TCP is left alone, or gets an ICMP error",
        Choice(&["direct", "reject"], |d, i| d.config.non_tcp = pick(i, NonTcp::Direct, NonTcp::Reject))),
    row("ping", "reject", "pings of captured addresses get an ICMP error, or an answer",
        Choice(&["reject", "answer"], |d, i| d.config.ping = pick(i, Ping::Reject, Ping::Answer))),
    row("on_failure", "block", "captured traffic after a crash is refused, or goes out",
        Choice(&["block", "direct"], |d, i| d.config.on_failure = pick(i, OnFailure::Block, OnFailure::Direct))),
    row("dns", "off", "answer names with fake addresses, or ask through the proxy",
        Choice(&["off", "fakeip", "proxy"], |d, i| d.config.dns.mode = [DnsMode::Off, DnsMode::FakeIp][..].get(i).copied().unwrap_or(DnsMode::Proxy))),
    row("dns_port", "5453", "UDP and TCP port of the resolver on 127.0.0.1 and ::1",
        Port(|d, v| d.config.dns.port = v)),
    row("dns_hijack", "1", "answer what captured clients ask any resolver on port 53",
        Bool(|d, v| d.config.dns.hijack = v)),
    row("dns_server", "", "a resolver to ask through the proxy: IP[:PORT] (1.1.1.1, 9.9.9.9)",
        List(|d, v| resolver(v, &mut d.config.dns.servers))),
    row("dns_domain", "", "dnsmasq asks for this domain, and all below it, only",
        List(|d, v| domain(v).map(|v| d.config.dns.domains.push(v)))),
    row("direct_domain", "", "resolve this domain, and all below it, directly",
        List(|d, v| domain(v).map(|v| d.config.dns.direct_domains.push(v)))),
    row("direct_server", "", "a resolver to ask directly for those: IP[:PORT]",
        List(|d, v| resolver(v, &mut d.config.dns.direct_servers))),
    row("fakeip_range", "198.18.0.0/15", "the fake addresses",
        Text(|d, v| fake_ipv4(v).map(|v| d.config.dns.fakeip_range = v))),
    row("fakeip_range6", "fd45:3a::/64", "the same for IPv6",
        Text(|d, v| fake_ipv6(v).map(|v| d.config.dns.fakeip_range6 = Some(v)))),
    row("fakeip_names", "2048", "names that have one at a time",
        Number(16, 32768, |d, v| d.config.dns.fakeip_names = v as u16)),
    row("fakeip_file", "/var/run/tcp-over-http.names", "where they are kept over a restart",
        Text(|d, v| path(v).map(|v| d.config.dns.fakeip_file = v))),
    row("max_flows", "4096", "connections in all",
        Number(16, 65000, |d, v| d.config.max_flows = v as u16)),
    row("max_dials", "512", "connections being opened in all",
        Number(1, 65000, |d, v| d.config.max_dials = v as u16)),
    row("max_dials_per_client", "128", "the same for one client",
        Number(1, 65000, |d, v| d.config.max_dials_per_client = v as u16)),
    row("connect_timeout", "5", "seconds to connect to one address of a proxy",
        Number(1, 300, |d, v| d.config.connect_timeout = secs(v))),
    row("reply_timeout", "30", "seconds for the proxy's answer",
        Number(1, 300, |d, v| d.config.reply_timeout = secs(v))),
    // The kernel takes no more (MAX_TCP_KEEPIDLE).
    row("keepalive", "60", "seconds idle before TCP keepalive probes; 0: none",
        Number(0, 32767, |d, v| d.config.keepalive = v)),
    row("drain_timeout", "3", "seconds that connections get after SIGTERM",
        Number(0, 300, |d, v| d.config.drain_timeout = secs(v))),
    row("pipe_size", "256", "KiB of a relay's pipe",
        Number(4, 1024, |d, v| d.config.pipe_size = v * 1024)),
    row("table", "7480", "first of 3 routing tables",
        Text(|d, v| table(v).map(|v| d.config.table = v))),
    row("mark", "0x74000000", "mark of upstream connections, in 0xff000000; 0: none",
        Text(|d, v| mark(v).map(|v| d.config.mark = v))),
    // Before the main table's rule, 32766, with room for a few.
    row("rule_priority", "900", "priority of the first policy rule",
        Number(1, 32700, |d, v| d.config.rule_priority = v)),
    row("status_socket", STATUS_SOCKET, "where the status is told",
        Text(|d, v| socket(v).map(|v| d.config.status_socket = v))),
    row("log_level", "info", "how much is logged (RUST_LOG overrides it)",
        Choice(&["error", "warn", "info", "debug", "trace"], |d, i| d.config.log_level = level(i))),
];

/// The options of `config upstream`. Most are kept out of messages: people put whole URLs there.
#[rustfmt::skip] // one row an option
pub static UPSTREAM: &[Spec] = &[
    row("enabled", "1", "0: as if it weren't there",
        Bool(|d, v| d.upstream.enabled = v)),
    row("host", "", "IPv4, IPv6 or name",
        Secret(|d, v| host(v).map(|v| d.upstream.host = Some(v)))),
    row("port", "80", "TCP port",
        Port(|d, v| d.upstream.port = v)),
    row("username", "", "for Basic authentication",
        Secret(|d, v| username(v).map(|v| d.upstream.username = Some(v)))),
    row("password", "", "for Basic authentication",
        Secret(|d, v| password(v).map(|v| d.upstream.password = Some(v)))),
    row("header", "", "sent with each CONNECT: `Name: value`",
        SecretList(|d, v| header(v).map(|v| d.upstream.headers.push(v)))),
];

const fn row(name: &'static str, default: &'static str, help: &'static str, kind: Kind) -> Spec {
    Spec { name, default, help, kind }
}

fn pick<T>(index: usize, first: T, second: T) -> T {
    if index == 0 { first } else { second }
}

fn level(index: usize) -> LogLevel {
    use LogLevel::{Debug, Error, Info, Trace, Warn};
    [Error, Warn, Info, Debug].get(index).copied().unwrap_or(Trace)
}

fn secs(seconds: u32) -> Duration {
    Duration::from_secs(seconds.into())
}
