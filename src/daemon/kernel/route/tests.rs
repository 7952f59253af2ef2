//! Each test runs in a network namespace of its own, with a real TUN, and checks the result by `ip`.
//!
//! ```text
//! lan0 192.168.7.1/24 fd00:7::1/64        wan0 192.0.2.2/24 2001:db8::2/64, default routes
//!                    \                    /
//!                     the namespace ------- toh0, the TUN
//! ```

use std::fs;
use std::future::poll_fn;
use std::io::Read;
use std::net::{Ipv4Addr, Ipv6Addr, TcpStream};
use std::process::Command;
use std::time::Duration;

use tokio::runtime::Runtime;

use super::*;
use tcp_over_http::config::{DnsMode, Host, NonTcp, UpstreamConfig};
use tcp_over_http::net::{IpNet, Ipv4Net, Ipv6Net};
use tcp_over_http::rules::{self, Rule, Rules};

mod captured;
mod lifetime;
mod selection;

const TUN: &str = "toh0";
const MARK: &str = "0x74000001";

/// Rules that bypass these networks.
fn bypassing(mut networks: Vec<IpNet>) -> Rc<Rules> {
    IpNet::widest(&mut networks);
    let mut rules = Rules::default();
    rules.push(Rule { networks, action: rules::Action::Direct, ..Rule::default() }, true);
    Rc::new(rules)
}

/// The tokio runtime of a test.
struct World(Runtime);

impl World {
    fn install(&self, config: &Config) -> Routes {
        self.try_install(config).unwrap()
    }

    fn try_install(&self, config: &Config) -> Result<Routes, RouteError> {
        self.try_install_for(Path::Relay, config)
    }

    fn try_install_for(&self, path: Path, config: &Config) -> Result<Routes, RouteError> {
        let _runtime = self.0.enter();
        let mut routes = Routes::open(config, TUN)?;
        routes.install(config, path, &Uplinks::default()).map(|()| routes.keep())
    }

    /// Replaces rules and routes, in steps as in the event loop.
    fn reconfigure(&self, routes: &mut Routes, config: &Config) -> Result<(), RouteError> {
        routes.replace(routes.desired(config, Path::Relay, &Uplinks::default()));
        self.0.block_on(poll_fn(|cx| routes.poll_replaced(cx)))
    }

    /// Does the steps that are left, such as a restoration.
    fn settle(&self, routes: &mut Routes) {
        self.0.block_on(async {
            let replaced = poll_fn(|cx| routes.poll_replaced(cx));
            tokio::time::timeout(Duration::from_millis(500), replaced).await.unwrap_err();
        });
    }

    /// The next event, if there is one. The kernel has queued it by the time that the change is made, so the
    /// time-out is only for the runtime.
    fn event(&self, routes: &mut Routes) -> Option<Event> {
        self.0.block_on(async {
            loop {
                let events = poll_fn(|cx| routes.poll_events(cx));
                match tokio::time::timeout(Duration::from_millis(50), events).await {
                    Ok(events) if events.gone => return Some(Event::Gone),
                    Ok(events) if events.restore => return Some(Event::Restore),
                    Ok(_) => {} // not about our rules, routes and device
                    Err(_) => return None,
                }
            }
        })
    }
}

#[derive(Debug, PartialEq)]
enum Event {
    Restore,
    Gone,
}

/// Runs a test on a thread in a new network namespace, which the kernel removes when the thread ends.
fn in_namespace(test: impl FnOnce(&World) + Send + 'static) {
    let thread = std::thread::spawn(move || {
        sys::unshare_network().expect("needs root, for a network namespace: sudo scripts/test unit");
        let lines = [
            "link set lo up",
            "link add lan0 type veth peer name lan1",
            "link add wan0 type veth peer name wan1",
            "link set lan1 up",
            "link set wan1 up",
            "link set lan0 up",
            "link set wan0 up",
            "addr add 192.168.7.1/24 dev lan0",
            "addr add fd00:7::1/64 dev lan0 nodad",
            "addr add 192.0.2.2/24 dev wan0",
            "addr add 2001:db8::2/64 dev wan0 nodad",
            "route add default via 192.0.2.1",
            "-6 route add default via 2001:db8::1",
        ];
        for line in lines {
            ip(line);
        }
        for family in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            fs::write(format!("/proc/sys/net/{family}"), "1").unwrap();
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        test(&World(runtime.unwrap()));
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Opens a TUN. It disappears when its descriptor is closed.
fn open_tun() -> tun::Device {
    let mut config = tun::Configuration::default();
    config.tun_name(TUN);
    tun::create(&config).unwrap()
}

/// Closes the TUN and waits until it is gone. A child process of another test may have inherited the
/// descriptor, until its exec.
fn close(tun: tun::Device) {
    drop(tun);
    while !ip("link show toh0").is_empty() {}
}

/// The output of `ip`. Its queries may fail (a table that was never used); anything else must succeed.
fn ip(line: &str) -> String {
    let output = Command::new("ip").args(line.split(' ')).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    let is_query = line.contains("show") || line.contains("get");
    assert!(output.status.success() || is_query, "ip {line}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// The device that a packet with these properties is routed to; empty if it is refused.
fn device(to: &str, properties: &str) -> String {
    let properties = match to.contains(':') {
        true => properties.replace("icmp", "ipv6-icmp"),
        false => properties.to_owned(),
    };
    let route = ip(&format!("route get {to} {properties}"));
    let mut words = route.split(' ');
    words.find(|&word| word == "dev");
    match route.starts_with("unreachable") {
        true => String::new(),
        false => words.next().unwrap_or_default().to_owned(),
    }
}

/// All rules, and the routes of our table. Rules are sorted, because the order within a priority does not
/// matter.
fn state() -> String {
    let [mut rules, mut rules6] = ["rule", "-6 rule"].map(ip);
    for rules in [&mut rules, &mut rules6] {
        let mut lines: Vec<&str> = rules.lines().collect();
        lines.sort_unstable();
        *rules = lines.join("\n") + "\n";
    }
    [rules, rules6, ip("route show table 7480"), ip("-6 route show table 7480")].concat()
}

/// [`state`], with the TUN's addresses and the main table.
fn whole_state() -> String {
    let addresses = ["-o -4 addr show toh0", "-o -6 addr show toh0 scope global"].map(ip).concat();
    state() + &addresses + &ip("route show table main") + &ip("-6 route show dev toh0")
}

fn sysctl(name: &str) -> String {
    fs::read_to_string(format!("/proc/sys/net/{name}")).unwrap().trim_end().to_owned()
}

fn nets(list: &[&str]) -> Vec<IpNet> {
    list.iter().map(|text| IpNet::parse(text).unwrap()).collect()
}

fn auto_route() -> Config {
    Config { auto_route: true, ..config() }
}

fn config() -> Config {
    let file = "config tcp-over-http 'main'\n list upstream 'http://192.0.2.1'\n option mtu '1400'\n";
    Config::from_uci(file).unwrap()
}
