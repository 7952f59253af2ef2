//! The one table of options: it drives the file's sections, the flags, `--help`, the defaults, what a reload can
//! change, and what the documentation and other programs are told.

use alloc::borrow::ToOwned;
use core::time::Duration;

use super::choices::{
    ConnectMode, DnsMode, HttpRelay, LogLevel, NonTcp, OnFailure, PathChoice, Ping, Quic, ToProxy,
};
use super::options::Spec;
use super::options::Unit::{Bytes, Kib, Millis, One, Seconds};
use super::options::ValueType::{self, Bool, Choice, List, Number, Port, Secret, SecretList, Text};
use super::rule;
use super::upstream::UpstreamConfig;
use super::values::{
    cidr, clients, device, domain, fake_ipv4, fake_ipv6, header, header_host, host, mark, own_ipv4, own_ipv6,
    password, path, ports, resolver, socket, table, username,
};
use crate::http::login::AuthChoice;

/// A choice: words and values come from the field's own type.
macro_rules! choice {
    ($type:ident, $($field:ident).+) => {
        Choice($type::WORDS, |d, place| if let Some(&v) = $type::VALUES.get(place) { d.$($field).+ = v })
    };
}

/// The options of `config tcp-over-http 'main'`, each with a flag.
#[rustfmt::skip] // one row an option
pub static MAIN: &[Spec] = &[
    live("upstream", "", "a proxy, http://[USER:PASSWORD@]HOST[:PORT] (port 80 by default); tried in order, before the sections",
        SecretList(|d, v| UpstreamConfig::from_url(v).map(|v| d.config.upstreams.push(v)))),
    live("resolver", "", "a resolver of the proxies' names, IP[:PORT]; none: those of /etc/resolv.conf",
        List(|d, v| resolver(v, &mut d.config.resolvers))),
    live("enabled", "1", "0: the init script starts no daemon",
        Bool(|_, _| ())),
    live("zone", "wan", "firewall zone of what goes to the TUN device, for the init script; whoever may use it is proxied",
        Text(|_, _| Ok(()))),
    restart("tun", "toh0", "name of the TUN device",
        Text(|d, v| device(v).map(|v| d.config.tun = v))),
    restart("mtu", "1500", "MTU of the TUN device",
        Number(1280, 65535, Bytes, |d, v| d.config.mtu = v as u16)),
    restart("offload", "1", "0: no super-packets, in case a kernel gets them wrong",
        Bool(|d, v| d.config.offload = v)),
    restart("address", "10.45.39.1/24", "IPv4 address of the TUN device; the rest of its network are NAT sources",
        Text(|d, v| own_ipv4(v).map(|v| d.config.address = v))),
    restart("address6", "fd45:39::1/64", "IPv6 address of the TUN device, likewise",
        Text(|d, v| own_ipv6(v).map(|v| d.config.address6 = Some(v)))),
    restart("ipv6", "1", "0: no IPv6 at all",
        Bool(|d, v| d.ipv6 = v)),
    restart("listen_port", "12345", "TCP port of the listener on address and address6",
        Port(|d, v| d.config.listen_port = v)),
    restart("path", "auto", "forward: the kernel forwards a client's connection to the proxy (needs nft with NAT and dup); relay: the daemon moves its bytes; auto: what works here",
        choice!(PathChoice, config.path)),
    live("connect", "honest", "honest: a client's connection is accepted when the proxy has connected; early: at once",
        choice!(ConnectMode, config.connect)),
    live("http_relay", "auto", "carry plain http as requests for the proxy, not through CONNECT; auto: where the proxy refuses CONNECT to the port with 403 or 405; always; never",
        choice!(HttpRelay, config.http_relay)),
    live("http_port", "80", "a port of plain http for http_relay, or FIRST-LAST",
        List(|d, v| ports(v).map(|v| d.config.http_ports.push(v)))),
    live("auto_route", "0", "capture all TCP that would take a default route",
        Bool(|d, v| d.config.auto_route = v)),
    live("route", "", "capture TCP to this network",
        List(|d, v| cidr(v).map(|v| d.config.routes.push(v)))),
    live("bypass", "", "never capture what goes to this network",
        List(|d, v| cidr(v).map(|v| d.shorts[0].rule.networks.push(v)))),
    live("bypass_file", "", "never capture what goes to the networks in this file: one a line, # begins a comment",
        List(|d, v| { d.shorts[0].files.push((v.to_owned(), false)); Ok(()) })),
    live("interface", "", "capture only what comes from this device; none: from any",
        List(|d, v| device(v).map(|v| d.config.interfaces.push(v)))),
    live("local", "1", "capture the machine's own connections, too",
        Bool(|d, v| d.config.local = v)),
    live("client", "", "capture only what comes from this network; none: from any",
        List(|d, v| clients(v).map(|v| d.config.clients.push(v)))),
    live("client_bypass", "", "never capture what comes from this network",
        List(|d, v| clients(v).map(|v| d.shorts[1].rule.clients.push(v)))),
    live("port", "", "capture only TCP to this port, or FIRST-LAST; none: to any",
        List(|d, v| ports(v).map(|v| d.config.ports.push(v)))),
    live("to_proxy", "direct", "what clients send to a proxy's own address and port; direct: it goes there, as it is; reject: it is refused",
        choice!(ToProxy, config.to_proxy)),
    live("quic", "reject", "UDP to port 443; reject: it gets an ICMP error, so that browsers take TCP at once; direct: it is left alone",
        choice!(Quic, config.quic)),
    live("non_tcp", "direct", "what isn't TCP; direct: it is left alone; reject: it is captured, and gets an ICMP error",
        choice!(NonTcp, config.non_tcp)),
    restart("ping", "reject", "pings of captured or fake addresses; reject: they get an ICMP error; answer: an answer",
        choice!(Ping, config.ping)),
    live("on_failure", "block", "captured traffic while no daemon runs; block: it is refused; direct: it goes around the proxy (but with dns on, names are not resolved)",
        choice!(OnFailure, config.on_failure)),
    live("pause", "0", "1: the command pause may let traffic out directly for a while, also with on_failure block",
        Bool(|d, v| d.config.pause = v)),
    restart("dns", "off", "off: names are left alone; fakeip: names get addresses that stand for them, and the proxy resolves the names; proxy: resolvers are asked through the proxy, which has to allow CONNECT to port 53",
        choice!(DnsMode, config.dns.mode)),
    restart("dns_port", "5453", "UDP and TCP port of the resolver on 127.0.0.1 and ::1",
        Port(|d, v| d.config.dns.port = v)),
    restart("dns_hijack", "1", "answer what captured clients ask any resolver on port 53",
        Bool(|d, v| d.config.dns.hijack = v)),
    restart("dns_server", "1.1.1.1 9.9.9.9", "a resolver to ask through the proxy, IP[:PORT]",
        List(|d, v| resolver(v, &mut d.config.dns.servers))),
    restart("dns_domain", "", "dnsmasq asks the daemon for this domain, and all below it, only; what the machine itself asks others is not hijacked then",
        List(|d, v| domain(v).map(|v| d.config.dns.domains.push(v)))),
    live("direct_domain", "", "this domain, and all below it, is resolved, and connected to, directly",
        List(|d, v| rule::domain(v, &mut d.shorts[2].rule.domains))),
    restart("direct_server", "", "a resolver to ask for direct_domain, IP[:PORT]",
        List(|d, v| resolver(v, &mut d.config.dns.direct_servers))),
    restart("fakeip_range", "198.18.0.0/15", "IPv4 network of the fake addresses",
        Text(|d, v| fake_ipv4(v).map(|v| d.config.dns.fakeip_range = v))),
    restart("fakeip_range6", "2001:2::/64", "IPv6 network of the fake addresses; browsers take a private one (fc00::/7) for the local network",
        Text(|d, v| fake_ipv6(v).map(|v| d.config.dns.fakeip_range6 = Some(v)))),
    restart("fakeip_names", "2048", "how many names may hold a fake address at once",
        Number(16, 32768, One, |d, v| d.config.dns.fakeip_names = v as u16)),
    restart("fakeip_file", "/var/run/tcp-over-http.names", "file that keeps the fake addresses over a restart",
        Text(|d, v| path(v).map(|v| d.config.dns.fakeip_file = v))),
    restart("max_flows", "4096", "connections in all",
        Number(16, 65000, One, |d, v| d.config.max_flows = v as u16)),
    live("max_dials", "512", "connections being opened, in all; with connect early only max_flows bounds them",
        Number(1, 65000, One, |d, v| d.config.max_dials = v as u16)),
    live("max_dials_per_client", "128", "connections being opened for one client: an IPv4 address, or a machine by IPv6; its oldest makes room",
        Number(1, 65000, One, |d, v| d.config.max_dials_per_client = v as u16)),
    live("connect_timeout", "5", "time to connect to one address of a proxy",
        Number(1, 300, Seconds, |d, v| d.config.connect_timeout = secs(v))),
    live("reply_timeout", "30", "time for the proxy's answer to CONNECT",
        Number(1, 300, Seconds, |d, v| d.config.reply_timeout = secs(v))),
    live("hedge_delay", "300", "the next proxy is asked beside one that takes this long, and 3 times as long as usual, to connect; 0: only once it has failed",
        Number(0, 60000, Millis, |d, v| d.config.choice.hedge_delay = v)),
    live("pin_fallback", "0", "1: when the chosen proxy fails, the others are asked",
        Bool(|d, v| d.config.choice.pin_fallback = v)),
    live("probe_interval", "0", "how often each proxy is probed while no client dials, at least 30; 0: never",
        Number(0, 86400, Seconds, |d, v| d.config.choice.probe_interval = v * 1000)),
    // The kernel takes no more (MAX_TCP_KEEPIDLE).
    live("keepalive", "60", "idle time before TCP keepalive probes, on both sides; 0: none",
        Number(0, 32767, Seconds, |d, v| d.config.keepalive = v)),
    live("drain_timeout", "3", "time that connections get after SIGTERM",
        Number(0, 300, Seconds, |d, v| d.config.drain_timeout = secs(v))),
    restart("pipe_size", "256", "size of a relay's pipe",
        Number(4, 1024, Kib, |d, v| d.config.pipe_size = v * 1024)),
    restart("table", "7480", "the routing table to use",
        Text(|d, v| table(v).map(|v| d.config.table = v))),
    restart("mark", "0x74000000", "firewall mark of connections to the proxy, within 0xff000000, of which some other bits are used, too; 0: none",
        Text(|d, v| mark(v).map(|v| d.config.mark = v))),
    // Before the main table's rule, 32766, with room for those of others.
    restart("rule_priority", "900", "priority of the first of 17 policy rules",
        Number(1, 32700, One, |d, v| d.config.rule_priority = v)),
    live("status_socket", "/var/run/tcp-over-http.sock", "socket that tells the status",
        Text(|d, v| socket(v).map(|v| d.config.status_socket = v))),
    live("log_level", "info", "the least severe messages logged: error, warn, info, debug or trace; the variable RUST_LOG overrides it",
        choice!(LogLevel, config.log_level)),
];

/// The options of `config upstream`. Most are kept out of messages, since people put whole URLs there.
#[rustfmt::skip] // one row an option
pub static UPSTREAM: &[Spec] = &[
    live("enabled", "1", "0: as if this section weren't there",
        Bool(|d, v| d.upstream.enabled = v)),
    live("host", "", "the proxy: IPv4, IPv6 or a name",
        Secret(|d, v| host(v).map(|v| d.upstream.host = Some(v)))),
    live("port", "80", "TCP port of the proxy",
        Port(|d, v| d.upstream.port = v)),
    live("auth", "auto", "how username and password are sent; basic: with each request; digest: never, only hashes of them; auto: as basic, and as digest once the proxy offers it",
        choice!(AuthChoice, upstream.auth)),
    live("username", "", "for authentication",
        Secret(|d, v| username(v).map(|v| d.upstream.username = Some(v)))),
    live("password", "", "for authentication",
        Secret(|d, v| password(v).map(|v| d.upstream.password = Some(v)))),
    live("header", "", "a header field for each CONNECT, NAME: VALUE",
        SecretList(|d, v| header(v).map(|v| d.upstream.headers.push(v)))),
    live("connect_header_host", "", "what the Host field of each CONNECT has in place of the target",
        Text(|d, v| header_host(v).map(|v| d.upstream.header_host = Some(v)))),
    live("uplink", "", "an interface, such as wwan, or the name of a Wi-Fi network (SSID): while it is up, this proxy is asked before those without an uplink that is up",
        List(|d, v| { d.upstream.uplinks.push(v.to_owned()); Ok(()) })),
];

/// The options of a section `config rule`.
#[rustfmt::skip] // one row an option
pub static RULE: &[Spec] = &[
    live("enabled", "1", "0: as if this section weren't there",
        Bool(|d, v| d.rule.enabled = v)),
    live("domain", "", "to this domain and all below it, or with a = in front to this name only; needs dns 'fakeip'",
        List(|d, v| rule::domain(v, &mut d.rule.rule.domains))),
    live("domain_file", "", "to the domains in this file: one a line, # begins a comment",
        List(|d, v| path(v).map(|v| d.rule.files.push((v, true))))),
    live("dest", "", "or to this network",
        List(|d, v| cidr(v).map(|v| d.rule.rule.networks.push(v)))),
    live("dest_file", "", "or to the networks in this file, likewise",
        List(|d, v| path(v).map(|v| d.rule.files.push((v, false))))),
    live("port", "", "and to this TCP port, PORT or FIRST-LAST",
        List(|d, v| ports(v).map(|v| d.rule.rule.ports.push(v)))),
    live("client", "", "and from this network, or the machine with this MAC address",
        List(|d, v| rule::client(v, &mut d.rule.rule))),
    live("interface", "", "and from behind this device",
        List(|d, v| device(v).map(|v| d.rule.rule.devices.push(v)))),
    live("upstream", "", "then: this upstream is asked, and no other",
        Text(|d, v| { d.rule.upstream = Some(v.to_owned()); Ok(()) })),
    live("direct", "0", "1: then no proxy is asked",
        Bool(|d, v| d.rule.direct = v)),
    live("reject", "0", "1: then it is refused",
        Bool(|d, v| d.rule.reject = v)),
];

/// An option whose change a running daemon applies.
const fn live(name: &'static str, default: &'static str, help: &'static str, value: ValueType) -> Spec {
    assert!(is_plain(name) && is_plain(default) && is_plain(help));
    Spec { name, default, help, live: true, value }
}

/// An option that the TUN, the listeners or live connections are made with: the daemon restarts for a change.
const fn restart(name: &'static str, default: &'static str, help: &'static str, value: ValueType) -> Spec {
    Spec { live: false, ..live(name, default, help, value) }
}

/// Whether a text needs no escaping in JSON, in a table of the documentation and in quotes of a shell.
const fn is_plain(text: &str) -> bool {
    let mut rest = text.as_bytes();
    while let [byte, tail @ ..] = rest {
        if !matches!(byte, b' '..=b'~') || matches!(byte, b'"' | b'\\' | b'|') {
            return false;
        }
        rest = tail;
    }
    true
}

fn secs(seconds: u32) -> Duration {
    Duration::from_secs(seconds.into())
}

#[cfg(test)]
mod tests;
