//! Looks for what goes wrong in practice, and says for each what to do: `ok`, `warn` or `FAIL`, a line a check.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread::sleep;
use std::time::Duration;

use tcp_over_http::dns;
use tcp_over_http::http::connect::Target;
use tcp_over_http::rewrite::Path;

use crate::kernel::{route, sysctl};
use crate::report::control;
use crate::report::status::Form;
use crate::settings::Settings;
use crate::sys;
use crate::upstream::Upstreams;
use crate::upstream::dial::{self, HandshakeError};
use crate::upstream::exchange::any_address;
use crate::upstream::proxy::Proxy;
use tcp_over_http::config::Config;

/// For the proxy's answer. Who lets a port through and gets no answer there may say nothing for long.
const PATIENCE: Duration = Duration::from_secs(5);

/// What CONNECT is tried to, and what it means if that is refused.
const PORTS: [(u16, &str); 4] = [
    (443, "https needs it: have the proxy allow it for this machine"),
    (80, "plain http will not work: have the proxy allow it (squid: SSL_ports)"),
    (dns::PORT, "DNS over TCP will not work: use dns 'fakeip'"),
    (22, "ssh will not work: have the proxy allow it if that is wanted"),
];

const NO_TUN: &str = "install kmod-tun, or run this as root";
const NO_DAEMON: &str = "start it: service tcp-over-http start; see logread -e tcp-over-http";
const NO_ADDRESS: &str = "somebody has taken it away: restart the daemon";
const NO_RULE: &str = "somebody has taken them away (pbr, mwan3, a script?): restart the daemon";
const NO_INPUT: &str =
    "the firewall's input rejects it: let in what comes from the device (OpenWrt: logread -e tcp-over-http)";
const STRICT: &str = "answers of a proxy behind it may be dropped: set it to 2";
const HARDWARE: &str = "if connections stall, set flow_offloading_hw '0'; in software it does no harm";
const LEAK: &str = "it goes around the proxy: set ipv6 '1', or give clients no IPv6";
const NO_NAME: &str = "list resolver '...', or give its address as host";
const NO_PROXY: &str = "check host and port, and the way there";
const LOOP: &str = "they would be captured: set a mark";
const NO_HTTP: &str = "check the port: this is no HTTP proxy";
const NO_TARGET: &str = "it does not reach the target: is it online? try another --target";
const NO_LOGIN: &str = "check username and password";

/// No statuses: what is there instead of one.
const CLOSED: u16 = 0;
const SILENT: u16 = 1;

/// As the status has them.
const FAMILIES: [&str; 2] = ["ipv4", "ipv6"];

/// A line on stdout.
struct Report {
    failed: bool,
}

impl Report {
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

    /// Fails if there is an advice.
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

/// Makes all checks; CONNECT is tried to `target`, a name or an address. True if none has failed. Must run within
/// the tokio runtime.
pub async fn examine(settings: &Settings, target: &str) -> bool {
    let mut report = Report { failed: false };
    let config = match settings.load() {
        Ok(config) => config,
        Err(error) => {
            report.fail(format_args!("configuration"), &error.to_string());
            settings.load_readable()
        }
    };
    let tun = File::options().read(true).write(true).open("/dev/net/tun");
    report.judge(format_args!("/dev/net/tun can be opened"), tun.err().map(|_| NO_TUN));
    daemon(&mut report, &config);
    system(&mut report, &config);
    match Upstreams::new(&config) {
        Ok(upstreams) => {
            for proxy in upstreams.proxies() {
                examine_proxy(&mut report, &config, &upstreams, proxy, target).await;
            }
        }
        Err(error) => report.fail(format_args!("upstreams"), &error.to_string()),
    }
    !report.failed
}

/// What the daemon has set up.
fn daemon(report: &mut Report, config: &Config) {
    let ask = || control::ask(&config.status_socket, Form::Json);
    let status = match ask() {
        Ok(status) => status,
        Err(_) => return report.fail(format_args!("the daemon answers"), NO_DAEMON),
    };
    report.ok(format_args!("the daemon answers"));
    for address in own_addresses(config) {
        let bound = UdpSocket::bind(SocketAddr::new(address, 0));
        report.judge(format_args!("{} has {address}", config.tun), bound.err().map(|_| NO_ADDRESS));
    }
    let path = if field(&status, "path") == Some("\"express\"") { Path::Express } else { Path::Rewrite };
    let whole = route::missing(config, path).is_ok_and(|missing| missing == 0);
    report.judge(format_args!("rules and routes are there"), (!whole).then_some(NO_RULE));

    // Being asked, it tries, and goes on trying for two seconds. The first result may be of an earlier try.
    let mut now = status;
    for _ in 0..2 {
        let tests = field(&now, "tests").map(str::to_owned);
        for _ in 0..20 {
            sleep(Duration::from_millis(200));
            now = ask().unwrap_or(now);
            if field(&now, "tests") != tests.as_deref() {
                break;
            }
        }
        if FAMILIES.iter().all(|family| field(&now, family) != Some("false")) {
            break;
        }
    }
    for family in FAMILIES {
        if let Some(reached) = field(&now, family) {
            report.judge(
                format_args!("{family} gets from {} to the listener", config.tun),
                (reached != "true").then_some(NO_INPUT),
            );
        }
    }
}

/// What others have set.
fn system(report: &mut Report, config: &Config) {
    for device in sysctl::strict_devices() {
        report.warn(format_args!("rp_filter of {device} is strict"), STRICT);
    }
    let firewall = fs::read_to_string("/etc/config/firewall").unwrap_or_default();
    if firewall.lines().any(|line| line.trim_ascii() == "option flow_offloading_hw '1'") {
        report.warn(format_args!("flows are offloaded to hardware"), HARDWARE);
    }
    if config.address6.is_none() && config.captures() && has_ipv6() {
        report.warn(format_args!("there is a default route for IPv6, and ipv6 is 0 here"), LEAK);
    }
}

async fn examine_proxy(
    report: &mut Report,
    config: &Config,
    upstreams: &Upstreams,
    proxy: &Proxy,
    target: &str,
) {
    let name = &proxy.name;
    let addresses = match proxy.addresses().await {
        Ok(addresses) => addresses,
        Err(error) => return report.fail(format_args!("upstream {name}: {error}"), NO_NAME),
    };
    if addresses.iter().any(|&ip| is_captured(config, SocketAddr::new(ip, proxy.port))) {
        report.fail(format_args!("upstream {name}: connections enter {}", config.tun), LOOP);
    }
    for (port, advice) in PORTS {
        let stream = match upstreams.connect(proxy).await {
            Ok(stream) => stream,
            Err(error) => return report.fail(format_args!("upstream {name}: {error}"), NO_PROXY),
        };
        let to = match target.parse() {
            Ok(ip) => Target::Ip(SocketAddr::new(ip, port)),
            Err(_) => Target::Name(target, port),
        };
        let Ok(request) = proxy.request.bytes(to) else {
            return report.fail(format_args!("target"), "is neither a name nor an address");
        };
        let status = match dial::handshake(&stream, request, PATIENCE).await {
            Ok(reply) if reply.status == 407 => {
                return report.fail(format_args!("upstream {name}: {}", proxy.refusal(&reply)), NO_LOGIN);
            }
            Ok(reply) => reply.status,
            Err(HandshakeError::Garbage(error)) => {
                return report.fail(format_args!("upstream {name}: {error}"), NO_HTTP);
            }
            Err(HandshakeError::Closed) => CLOSED,
            Err(HandshakeError::TimedOut) => SILENT,
        };
        let what = format_args!("upstream {name}: CONNECT to port {port}");
        let said = match status {
            CLOSED => format_args!("closed without an answer"),
            SILENT => format_args!("no answer"),
            _ => format_args!("status {status}"),
        };
        match status {
            200..=299 => report.ok(what),
            // It has tried, and nobody answers there.
            SILENT | 502..=504 if port == 443 => report.fail(format_args!("{what}: {said}"), NO_TARGET),
            SILENT | 502..=504 => report.ok(what),
            _ if port == 443 => report.fail(format_args!("{what}: {said}"), advice),
            _ => report.warn(format_args!("{what}: {said}"), advice),
        }
    }
}

/// Whether the way to the proxy is through the TUN, also with the mark: the kernel then takes its address.
fn is_captured(config: &Config, proxy: SocketAddr) -> bool {
    // By an address: a text would bring the C library's resolver into the binary.
    let local = UdpSocket::bind(SocketAddr::new(any_address(proxy), 0)).and_then(|socket| {
        if config.mark != 0 {
            sys::set_mark(&socket, config.mark)?;
        }
        socket.connect(proxy)?;
        socket.local_addr()
    });
    local.is_ok_and(|local| own_addresses(config).any(|own| own == local.ip()))
}

fn own_addresses(config: &Config) -> impl Iterator<Item = IpAddr> {
    let ipv6 = config.address6.map(|net| net.addr.into());
    [Some(config.address.addr.into()), ipv6].into_iter().flatten()
}

/// Whether there is a way to all of IPv6 (`/proc/net/ipv6_route`: destination, prefix length, ..., device).
fn has_ipv6() -> bool {
    let routes = fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    let all = "00000000000000000000000000000000 00 ";
    routes.lines().any(|route| route.starts_with(all) && !route.ends_with(" lo"))
}

/// The value of a number or a flag of the status.
fn field<'a>(json: &'a str, key: &str) -> Option<&'a str> {
    let at = json.as_bytes().windows(key.len()).position(|bytes| bytes == key.as_bytes())?;
    json.get(at + key.len()..)?.strip_prefix("\":")?.split([',', '}']).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields() {
        let json = r#"{"listener":{"ipv4":true,"ipv6":false,"tests":12},"x":1}"#;
        assert_eq!(field(json, "ipv4"), Some("true"));
        assert_eq!(field(json, "ipv6"), Some("false"));
        assert_eq!(field(json, "tests"), Some("12"));
        assert_eq!(field(json, "ipv5"), None);
    }
}
