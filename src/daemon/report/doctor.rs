//! Checks for what goes wrong in practice and says what to do about it: `ok`, `warn` or `FAIL`, one line per check.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::net::{SocketAddr, UdpSocket};
use std::thread::sleep;
use std::time::Duration;

use tcp_over_http::capture::Path;
use tcp_over_http::dns;
use tcp_over_http::http::connect::Target;
use tcp_over_http::json;
use tcp_over_http::net::IpNet;

use crate::clock::Clock;
use crate::kernel::capture::{DETOUR, detour, overlaps};
use crate::kernel::{firewall, route, sysctl};
use crate::netlink::conntrack;
use crate::report::control;
use crate::sources::{self, Sources};
use crate::sys;
use crate::upstream::Upstreams;
use crate::upstream::dial::{self, HandshakeError};
use tcp_over_http::config::{Config, PathChoice};

/// How long to wait for a proxy's answer. A proxy that allows a port may stay silent for long if the target drops
/// packets.
const PATIENCE: Duration = Duration::from_secs(5);

/// The ports that CONNECT is tried to, each with the advice if the proxy refuses it.
const PORTS: [(u16, &str); 4] = [
    (443, "https needs it: have the proxy allow it for this machine"),
    (80, "plain http will not work: set http_relay 'auto', or have the proxy allow it (squid: SSL_ports)"),
    (dns::PORT, "DNS over TCP will not work: use dns 'fakeip'"),
    (22, "ssh will not work: have the proxy allow it if that is wanted"),
];

const NO_TUN: &str = "install kmod-tun, or run this as root";
const NO_DAEMON: &str = "start it: service tcp-over-http start; see logread -e tcp-over-http";
const NO_ADDRESS: &str = "somebody has taken it away: restart the daemon";
const NO_RULE: &str = "somebody has taken them away (pbr, mwan3, a script?): restart the daemon";
const TRACKED: &str = "each forwarded connection is one, and new ones are dropped when it is full: raise net.netfilter.nf_conntrack_max";
const NO_INPUT: &str =
    "the firewall's input rejects it: let in what comes from the device (OpenWrt: logread -e tcp-over-http)";
const STRICT: &str = "answers of a proxy behind it may be dropped: set it to 2";
const HARDWARE: &str = "if connections stall, set flow_offloading_hw '0'; in software it does no harm";
const LEAK: &str = "it goes around the proxy: set ipv6 '1', or give clients no IPv6";
const PRIVATE: &str =
    "browsers take these for the local network and block pages: leave fakeip_range6 out, for 2001:2::/64";
const NO_CLIENT: &str = "if there should be one: is it in the zone or interface that is captured (what comes in by a default route's device is not, unless interface names it), does something drop what is forwarded (Docker does)?";
const TIME: &str =
    "their UDP can't go through the proxy: list direct_domain 'pool.ntp.org', and direct_server";
const NO_NAME: &str = "list resolver '...', or give its address as host";
const NO_PROXY: &str = "check host and port, and the way there";
const LOOPED: &str =
    "exempt the address that they come from: list client_bypass, or local '0' (the log says which)";
const LOOP: &str = "they would be captured: set a mark";
const OVERLAP: &str = "they would be captured despite the mark: does its network overlap address, address6, or a range of fake addresses?";
const NO_HTTP: &str = "check the port: this is no HTTP proxy";
const NO_TARGET: &str = "it does not reach the target: is it online? try another --target";
const NO_LOGIN: &str = "check username and password";

/// A conntrack table of fewer entries is too small for a home with a file sharer.
const SMALL_TABLE: u32 = 4096;

/// Placeholders for a missing status.
const CLOSED: u16 = 0;
const SILENT: u16 = 1;

/// The families, as the status names them.
const FAMILIES: [&str; 2] = ["ipv4", "ipv6"];

/// Prints the findings, one line each.
struct Findings {
    failed: bool,
}

impl Findings {
    fn ok(&self, what: fmt::Arguments) {
        line(format_args!("ok    {what}"));
    }

    fn warn(&self, what: fmt::Arguments, advice: &str) {
        line(format_args!("warn  {what}: {advice}"));
    }

    fn fail(&mut self, what: fmt::Arguments, advice: &str) {
        self.failed = true;
        line(format_args!("FAIL  {what}: {advice}"));
    }

    /// A failure if there is any advice.
    fn judge(&mut self, what: fmt::Arguments, advice: Option<&str>) {
        match advice {
            None => self.ok(what),
            Some(advice) => self.fail(what, advice),
        }
    }
}

fn line(text: fmt::Arguments) {
    _ = writeln!(io::stdout(), "{text}"); // nobody has to read it
}

/// Runs all checks; tries CONNECT to `target`, a name or an address. Returns whether none has failed. Must run within
/// the tokio runtime.
pub async fn examine(sources: &Sources, target: &str) -> bool {
    let mut findings = Findings { failed: false };
    let config = match sources.load() {
        Ok(config) => config,
        Err(error) => {
            findings.fail(format_args!("configuration"), &error.to_string());
            sources.load_readable()
        }
    };
    let tun = File::options().read(true).write(true).open("/dev/net/tun");
    findings.judge(format_args!("/dev/net/tun can be opened"), tun.err().map(|_| NO_TUN));
    daemon(&mut findings, &config);
    system(&mut findings, &config);
    match Upstreams::new(&config, Clock::start()) {
        Ok(upstreams) => {
            for index in 0..upstreams.proxies().len() {
                examine_proxy(&mut findings, &config, &upstreams, index, target).await;
            }
        }
        Err(error) => findings.fail(format_args!("upstreams"), &error.to_string()),
    }
    !findings.failed
}

/// Checks what the daemon has set up.
fn daemon(findings: &mut Findings, config: &Config) {
    let ask = || control::ask(&config.status_socket, "status").map(|answer| answer.json);
    let status = match ask() {
        Ok(status) => status,
        Err(_) => return findings.fail(format_args!("the daemon answers"), NO_DAEMON),
    };
    findings.ok(format_args!("the daemon answers"));
    for address in config.own().map(IpNet::addr) {
        let bound = UdpSocket::bind(SocketAddr::new(address, 0));
        findings.judge(format_args!("{} has {address}", config.tun), bound.err().map(|_| NO_ADDRESS));
    }
    let is_forward = json::find(&status, &["path"]) == Some("\"forward\"");
    let path = if is_forward { Path::Forward } else { Path::Relay };
    let is_whole = route::missing(config, path).is_ok_and(|missing| missing == 0);
    findings.judge(format_args!("rules and routes are there"), (!is_whole).then_some(NO_RULE));
    if is_forward {
        let is_there = firewall::is_there(config);
        findings.judge(format_args!("the firewall's tables are there"), (!is_there).then_some(NO_RULE));
        if let Some((count, max)) = conntrack::tracked()
            && (max < SMALL_TABLE || count > max - max / 10)
        {
            findings.warn(format_args!("connection tracking has {count} of at most {max} entries"), TRACKED);
        }
    }

    // Asking for the status starts a test that takes up to two seconds; the first result may be from an earlier test.
    let mut now = status;
    for _ in 0..2 {
        let tests = listener(&now, "tests").map(str::to_owned);
        for _ in 0..20 {
            sleep(Duration::from_millis(200));
            now = ask().unwrap_or(now);
            if listener(&now, "tests") != tests.as_deref() {
                break;
            }
        }
        if FAMILIES.iter().all(|family| listener(&now, family) != Some("false")) {
            break;
        }
    }
    if config.captures() && json::find(&now, &["flows", "from_lan"]) == Some("0") {
        findings.warn(format_args!("no connection of another machine has come yet"), NO_CLIENT);
    }
    if json::find(&now, &["flows", "looped"]).is_some_and(|count| count != "0") {
        findings.fail(format_args!("a proxy's own connections come back to it"), LOOPED);
    }
    if json::find(&now, &["dns", "time"]).is_some_and(|count| count != "0") {
        findings.warn(format_args!("clients get fake addresses for time servers"), TIME);
    }
    for family in FAMILIES {
        if let Some(reachable) = listener(&now, family) {
            findings.judge(
                format_args!("{family} gets from {} to the listener", config.tun),
                (reachable != "true").then_some(NO_INPUT),
            );
        }
    }
}

/// What the status says about the listener in one family.
fn listener<'a>(status: &'a str, key: &str) -> Option<&'a str> {
    json::find(status, &["listener", key])
}

/// Checks what others have set up.
fn system(findings: &mut Findings, config: &Config) {
    if let Some(warning) = sources::warning(config) {
        line(format_args!("warn  {warning}"));
    }
    for device in sysctl::strict_devices() {
        findings.warn(format_args!("rp_filter of {device} is strict"), STRICT);
    }
    if let Ok(uplinks) = route::uplinks(route::index(&config.tun)) {
        for overlap in overlaps(config, &uplinks) {
            findings.failed = true;
            line(format_args!("FAIL  {overlap}"));
        }
    }
    let firewall = sys::read_text("/etc/config/firewall");
    if firewall.lines().any(|line| line.trim_ascii() == "option flow_offloading_hw '1'") {
        findings.warn(format_args!("flows are offloaded to hardware"), HARDWARE);
    }
    if config.address6.is_none() && config.captures() && has_ipv6() {
        findings.warn(format_args!("there is a default route for IPv6, and ipv6 is 0 here"), LEAK);
    }
    if let Some(IpNet::V6(range)) = config.dns.fake_ranges().last()
        && range.addr.is_unique_local()
    {
        findings.warn(format_args!("fakeip_range6 {range} is private"), PRIVATE);
    }
}

async fn examine_proxy(
    findings: &mut Findings,
    config: &Config,
    upstreams: &Upstreams,
    index: usize,
    target: &str,
) {
    let proxy = &upstreams.proxies()[index];
    let name = &proxy.account.name;
    let addresses = match proxy.addresses().await {
        Ok(addresses) => addresses,
        Err(error) => return findings.fail(format_args!("upstream {name}: {error}"), NO_NAME),
    };
    if addresses.iter().any(|&ip| is_captured(config, SocketAddr::new(ip, proxy.port))) {
        let advice = if config.mark == 0 { LOOP } else { OVERLAP };
        findings.fail(format_args!("upstream {name}: connections enter {}", config.tun), advice);
    }
    if config.path != PathChoice::Relay
        && let Ok(uplinks) = route::uplinks(route::index(&config.tun))
    {
        for &proxy in &*addresses {
            if let Some(detour) = detour(&uplinks, proxy) {
                findings.warn(format_args!("upstream {name}: {detour}"), DETOUR);
            }
        }
    }
    let mut is_reached = true;
    for (port, advice) in PORTS {
        let to = match target.parse() {
            Ok(ip) => Target::Ip(SocketAddr::new(ip, port)),
            Err(_) => Target::Name(target, port),
        };
        let mut authorization = proxy.login.borrow_mut().begin(false);
        let status = loop {
            let stream = match upstreams.connect(index).await {
                Ok(stream) => stream,
                Err((_, error)) => return findings.fail(format_args!("upstream {name}: {error}"), NO_PROXY),
            };
            let Ok(request) = proxy.request.bytes(to, &mut authorization) else {
                return findings.fail(format_args!("target"), "is neither a name nor an address");
            };
            match dial::handshake(&stream, request, PATIENCE).await {
                Ok(reply) if reply.status == 407 => match proxy.refused(&authorization, &reply.rest) {
                    Ok(next) => authorization = next,
                    Err(denial) => {
                        return findings.fail(format_args!("upstream {name}: {}", denial.text()), NO_LOGIN);
                    }
                },
                Ok(reply) => {
                    proxy.login.borrow_mut().answered(authorization, reply.status);
                    break reply.status;
                }
                Err(HandshakeError::Garbage(error)) => {
                    return findings.fail(format_args!("upstream {name}: {error}"), NO_HTTP);
                }
                Err(HandshakeError::Closed | HandshakeError::CutOff) => break CLOSED,
                Err(HandshakeError::TimedOut) => break SILENT,
            }
        };
        let what = format_args!("upstream {name}: CONNECT to port {port}");
        let said = match status {
            CLOSED => format_args!("closed without an answer"),
            SILENT => format_args!("no answer"),
            _ => format_args!("status {status}"),
        };
        match status {
            200..=299 => findings.ok(what),
            403 | 405 if upstreams.may_be_plain(port) => {
                findings.ok(format_args!("{what}: {said}: carried as HTTP requests"));
            }
            // The proxy has tried, and nobody answers there: for the port of a web server that is worth a warning...
            SILENT | 502..=504 if port == 443 => {
                is_reached = false;
                findings.fail(format_args!("{what}: {said}"), NO_TARGET);
            }
            SILENT | 502..=504 if port == 80 || !is_reached => {
                findings.warn(format_args!("{what}: {said}"), NO_TARGET);
            }
            // ...for other ports it only shows that the proxy allows them.
            SILENT | 502..=504 => findings.ok(what),
            _ if port == 443 => findings.fail(format_args!("{what}: {said}"), advice),
            _ => findings.warn(format_args!("{what}: {said}"), advice),
        }
    }
}

/// Whether the route to the proxy leads into the TUN despite the mark: the kernel then picks the TUN's address.
fn is_captured(config: &Config, proxy: SocketAddr) -> bool {
    let local = sys::udp_socket(proxy, config.mark).and_then(|socket| socket.local_addr());
    local.is_ok_and(|local| config.own().any(|own| own.addr() == local.ip()))
}

/// Whether there is a default route for IPv6 (`/proc/net/ipv6_route`: destination, prefix length, ..., device).
fn has_ipv6() -> bool {
    let routes = sys::read_text("/proc/net/ipv6_route");
    let all = "00000000000000000000000000000000 00 ";
    routes.lines().any(|route| route.starts_with(all) && !route.ends_with(" lo"))
}
