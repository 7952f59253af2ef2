//! Each test runs in a network namespace of its own, with a real TUN, and looks at the result through `ip`.
//!
//!     lan0 192.168.7.1/24 fd00:7::1/64        wan0 192.0.2.2/24 2001:db8::2/64, default routes
//!                        \                    /
//!                         the namespace ------- toh0, the TUN

use std::fs;
use std::future::poll_fn;
use std::io::Read;
use std::net::{Ipv4Addr, Ipv6Addr, TcpStream};
use std::process::Command;
use std::time::Duration;

use tokio::runtime::Runtime;

use super::*;
use tcp_over_http::config::{DnsMode, Host, NonTcp, UpstreamConfig};
use tcp_over_http::net::IpNet;

mod selection;

const TUN: &str = "toh0";
const MARK: &str = "0x74000001";
const DELIVER: &str = "0x75000001";

#[test]
fn install_and_remove_leave_nothing() {
    in_namespace(|world| {
        let before = state();
        let tun = open_tun();
        let routes = world.install(&auto_route());
        let link = ip("link show toh0");
        assert!(link.contains("mtu 1400") && link.contains("qlen 1000"), "{link}");
        assert!(link.contains(",UP"), "{link}");
        let addresses = ip("addr show toh0 scope global");
        assert!(addresses.contains("inet 10.45.39.1/24 "), "{addresses}");
        assert!(addresses.contains("inet6 fd45:39::1/64 "), "{addresses}");
        assert!(!addresses.contains("tentative"), "{addresses}");
        assert_eq!(sysctl("ipv4/conf/toh0/rp_filter"), "2");
        assert_eq!(sysctl("ipv6/conf/toh0/accept_ra"), "0");
        assert_eq!(
            ip("rule"),
            "0:\tfrom all lookup local\n\
             906:\tfrom all iif toh0 goto 920 proto 116\n\
             907:\tfrom all fwmark 0x74000000/0xff000000 goto 920 proto 116\n\
             907:\tfrom all fwmark 0x76000000/0xff000000 goto 920 proto 116\n\
             907:\tfrom 192.0.2.1 goto 920 proto 116\n\
             916:\tfrom all ipproto tcp lookup main suppress_prefixlength 0 proto 116\n\
             916:\tfrom all ipproto udp dport 443 lookup main suppress_prefixlength 0 proto 116\n\
             917:\tfrom all ipproto tcp lookup 7480 proto 116\n\
             917:\tfrom all ipproto udp dport 443 lookup 7480 proto 116\n\
             920:\tfrom all nop proto 116\n\
             32766:\tfrom all lookup main\n\
             32767:\tfrom all lookup default\n"
        );
        assert_eq!(
            ip("route show table 7480"),
            "default dev toh0 proto 116 scope link metric 1024 \n\
             unreachable default proto 116 metric 4096 \n\
             throw 224.0.0.0/4 proto 116 metric 1024 \n"
        );
        routes.remove().unwrap();
        close(tun);
        assert_eq!(state(), before);
    });
}

#[test]
fn captures_tcp_that_goes_to_a_default_route() {
    in_namespace(|world| {
        let _tun = open_tun();
        let mut config = auto_route();
        config.bypass = nets(&["198.51.100.128/25", "2001:db8:b::/48"]);
        let _routes = world.install(&config);
        for (to, bypassed, local) in [
            ("198.51.100.1", "198.51.100.129", "192.168.7.9"),
            ("2001:db8:a::1", "2001:db8:b::1", "fd00:7::9"),
        ] {
            assert_eq!(device(to, "ipproto tcp"), TUN);
            assert_eq!(device(to, "ipproto udp"), "wan0");
            assert_eq!(device(to, "ipproto icmp"), "wan0");
            assert_eq!(device(to, &format!("ipproto tcp mark {MARK}")), "wan0");
            assert_eq!(device(to, "ipproto tcp mark 0x10000"), TUN);
            assert_eq!(device(bypassed, "ipproto tcp"), "wan0");
            assert_eq!(device(local, "ipproto tcp"), "lan0");
        }
        // Forwarded: from a client into the TUN, and out of the TUN anywhere but into it.
        let client = "from 192.168.7.9 iif lan0 ipproto tcp";
        assert_eq!(device("198.51.100.1", client), TUN);
        let client = "from fd00:7::9 iif lan0 ipproto tcp";
        assert_eq!(device("2001:db8:a::1", client), TUN);
        let out = "from 198.51.100.1 iif toh0 ipproto tcp";
        assert_eq!(device("192.168.7.9", out), "lan0");
        assert_eq!(device("203.0.113.1", out), "wan0");
        // Also where there is no route for it.
        ip("route del default");
        assert_eq!(device("203.0.113.1", "ipproto tcp"), TUN);
        assert_eq!(device("203.0.113.1", out), "");
        assert_eq!(device("203.0.113.1", &format!("ipproto tcp mark {MARK}")), "");
    });
}

#[test]
fn a_proxy_within_the_lan_is_not_captured() {
    in_namespace(|world| {
        let _tun = open_tun();
        let mut config = auto_route();
        for proxy in ["192.168.7.9", "fd00:7::9"] {
            let host = Host::Ip(proxy.parse().unwrap());
            config.upstreams.push(UpstreamConfig { host, ..config.upstreams[0].clone() });
        }
        let _routes = world.install(&config);
        for (to, proxy, other) in
            [("198.51.100.1", "192.168.7.9", "192.168.7.8"), ("2001:db8:a::1", "fd00:7::9", "fd00:7::8")]
        {
            assert_eq!(device(to, &format!("from {proxy} iif lan0 ipproto tcp")), "wan0");
            assert_eq!(device(to, &format!("from {other} iif lan0 ipproto tcp")), TUN);
        }
    });
}

#[test]
fn a_connection_comes_out_of_the_tun() {
    in_namespace(|world| {
        let mut tun = open_tun();
        let _routes = world.install(&auto_route());
        let server = (Ipv4Addr::new(198, 51, 100, 1), 80).into();
        TcpStream::connect_timeout(&server, Duration::from_millis(10)).unwrap_err();
        let mut packet = [0; 2000];
        loop {
            let length = tun.read(&mut packet).unwrap();
            // The kernel's own IPv6 multicast comes too.
            if length >= 20 && packet[0] == 0x45 && packet[9] == 6 {
                assert_eq!(packet[12..20], [10, 45, 39, 1, 198, 51, 100, 1]);
                return;
            }
        }
    });
}

#[test]
fn rejecting_captures_all_protocols() {
    in_namespace(|world| {
        let _tun = open_tun();
        let mut config = auto_route();
        config.non_tcp = NonTcp::Reject;
        let _routes = world.install(&config);
        for (to, local) in [("198.51.100.1", "192.168.7.9"), ("2001:db8:a::1", "fd00:7::9")] {
            assert_eq!(device(to, "ipproto udp"), TUN);
            assert_eq!(device(to, &format!("ipproto udp mark {MARK}")), "wan0");
            assert_eq!(device(local, "ipproto udp"), "lan0");
        }
        assert_eq!(device("239.1.1.1", "ipproto udp"), "wan0");
    });
}

#[test]
fn captures_queries_to_resolvers_if_they_are_answered() {
    in_namespace(|world| {
        let _tun = open_tun();
        let mut config = auto_route();
        config.dns.mode = DnsMode::Proxy;
        let _routes = world.install(&config);
        for (to, local) in [("198.51.100.1", "192.168.7.9"), ("2001:db8:a::1", "fd00:7::9")] {
            assert_eq!(device(to, "ipproto udp dport 53"), TUN);
            assert_eq!(device(to, "ipproto tcp dport 53"), TUN);
            assert_eq!(device(to, "ipproto udp dport 54"), "wan0");
            assert_eq!(device(to, &format!("ipproto udp dport 53 mark {MARK}")), "wan0");
            assert_eq!(device(local, "ipproto udp dport 53"), "lan0");
        }
    });
}

/// Whatever other routes and bypasses say; and once the daemon is gone they lead nowhere.
#[test]
fn captures_fake_addresses() {
    in_namespace(|world| {
        let tun = open_tun();
        let mut config = config();
        config.dns.mode = DnsMode::FakeIp;
        config.bypass =
            nets(&["198.0.0.0/8", "198.18.0.0/15", "198.18.7.0/24", "fd00::/8", "198.51.100.0/24"]);
        config.routes = nets(&["198.18.7.0/24"]);
        ip("route add 198.18.0.0/15 via 192.0.2.1");
        let routes = world.install(&config);
        for to in ["198.18.0.1", "198.18.7.1", "198.19.255.254", "fd45:3a::1"] {
            for what in ["ipproto tcp", "ipproto udp", "ipproto icmp"] {
                assert_eq!(device(to, what), TUN, "{to} {what}");
            }
        }
        assert_eq!(device("198.51.100.1", "ipproto tcp"), "wan0");
        assert_eq!(device("fd45:3b::1", "ipproto tcp"), "wan0");
        assert_eq!(device("198.51.100.1", "ipproto udp dport 53"), "wan0", "captured as TCP is");
        drop(routes);
        close(tun);
        assert_eq!(device("198.18.0.1", "ipproto tcp"), "");
    });
}

#[test]
fn captures_listed_networks_only() {
    in_namespace(|world| {
        let _tun = open_tun();
        let mut config = config();
        config.routes = nets(&["192.168.7.128/25", "203.0.113.0/24", "10.1.0.0/16", "2001:db8:a::/48"]);
        config.bypass = nets(&["10.0.0.0/8", "203.0.113.128/25"]);
        let _routes = world.install(&config);
        assert_eq!(device("198.51.100.1", "ipproto tcp"), "wan0");
        assert_eq!(device("203.0.113.1", "ipproto tcp"), TUN);
        assert_eq!(device("203.0.113.129", "ipproto tcp"), "wan0");
        assert_eq!(device("192.168.7.129", "ipproto tcp"), TUN, "a connected network");
        assert_eq!(device("10.1.0.1", "ipproto tcp"), "wan0", "bypass wins");
        assert_eq!(device("2001:db8:a::1", "ipproto tcp"), TUN);
        assert_eq!(device("2001:db8:c::1", "ipproto tcp"), "wan0");
    });
}

#[test]
fn express_rules() {
    in_namespace(|world| {
        let before = express_state();
        let tun = open_tun();
        let routes = world.try_install_for(Path::Express, &auto_route()).unwrap();
        assert_eq!(
            ip("rule"),
            "0:\tfrom all lookup local\n\
             900:\tfrom all fwmark 0x75000000/0xff000000 iif lo lookup main suppress_prefixlength 0 proto 116\n\
             901:\tfrom all fwmark 0x75000000/0xff000000 iif lo lookup 7482 proto 116\n\
             902:\tfrom all fwmark 0x75000000/0xff000000 iif lo goto 920 proto 116\n\
             903:\tfrom all fwmark 0x75000000/0xff000000 lookup 7481 proto 116\n\
             904:\tfrom all iif toh0 lookup main suppress_prefixlength 0 proto 116\n\
             905:\tfrom all iif toh0 lookup 7482 proto 116\n\
             906:\tfrom all iif toh0 goto 920 proto 116\n\
             907:\tfrom all fwmark 0x74000000/0xff000000 goto 920 proto 116\n\
             907:\tfrom all fwmark 0x76000000/0xff000000 goto 920 proto 116\n\
             907:\tfrom 192.0.2.1 goto 920 proto 116\n\
             916:\tfrom all ipproto tcp lookup main suppress_prefixlength 0 proto 116\n\
             916:\tfrom all ipproto udp dport 443 lookup main suppress_prefixlength 0 proto 116\n\
             917:\tfrom all ipproto tcp lookup 7480 proto 116\n\
             917:\tfrom all ipproto udp dport 443 lookup 7480 proto 116\n\
             920:\tfrom all nop proto 116\n\
             32766:\tfrom all lookup main\n\
             32767:\tfrom all lookup default\n"
        );
        assert_eq!(ip("route show table 7481"), "local default dev lo proto 116 scope host metric 1024 \n");
        assert_eq!(
            ip("route show table 7482"),
            "unreachable default proto 116 metric 1024 \n\
             throw 224.0.0.0/4 proto 116 metric 1024 \n"
        );
        routes.remove().unwrap();
        close(tun);
        assert_eq!(express_state(), before);
    });
}

#[test]
fn express_takes_what_is_marked_and_forwards_nothing() {
    in_namespace(|world| {
        let mut tun = Some(open_tun());
        let mut config = auto_route();
        config.bypass = nets(&["198.51.100.128/25", "2001:db8:b::/48"]);
        let _routes = world.try_install_for(Path::Express, &config).unwrap();
        // Also after a crash, when the TUN is gone; then without what came out of it.
        for crashed in [false, true] {
            for (server, bypassed, client) in [
                ("198.51.100.1", "198.51.100.129", "192.168.7.9"),
                ("2001:db8:a::1", "2001:db8:b::1", "fd00:7::9"),
            ] {
                let captured = if crashed { "" } else { TUN };
                let from_lan = format!("from {client} iif lan0 ipproto tcp");
                assert_eq!(device(server, &from_lan), captured);
                assert_eq!(device(bypassed, &from_lan), "wan0");
                // The firewall has found a socket: ours, whatever the destination.
                assert_eq!(device(server, &format!("{from_lan} mark {DELIVER}")), "lo");
                // What that socket sends goes to clients only.
                let sent = format!("ipproto tcp mark {DELIVER}");
                assert_eq!(device(client, &sent), "lan0");
                assert_eq!(device(server, &sent), "");
                assert_eq!(device(bypassed, &sent), "wan0", "bypass gives the way to others' rules");
                assert_eq!(device(server, &format!("ipproto tcp mark {MARK}")), "wan0");
                if !crashed {
                    let out = format!("from {client} iif toh0 ipproto tcp");
                    assert_eq!(device(server, &format!("{out} mark {DELIVER}")), "lo");
                    assert_eq!(device(server, &out), "", "no firewall rule took it");
                    assert_eq!(device(client, &format!("from {server} iif toh0 ipproto tcp")), "lan0");
                }
            }
            if let Some(tun) = tun.take() {
                close(tun);
            }
        }
    });
}

#[test]
fn express_without_routes_only_delivers() {
    in_namespace(|world| {
        let _tun = open_tun();
        let _routes = world.try_install_for(Path::Express, &config()).unwrap();
        assert_eq!(device("198.51.100.1", "ipproto tcp"), "wan0");
        let from_lan = "from 192.168.7.9 iif lan0 ipproto tcp";
        assert_eq!(device("198.51.100.1", &format!("{from_lan} mark {DELIVER}")), "lo");
        assert_eq!(ip("route show table 7482"), "");
    });
}

#[test]
fn nothing_to_capture_means_no_rules() {
    in_namespace(|world| {
        let before = state();
        let _tun = open_tun();
        let _routes = world.install(&config());
        assert_eq!(state(), before);
    });
}

#[test]
fn without_ipv6_there_is_none() {
    in_namespace(|world| {
        let before = ip("-6 rule") + &ip("-6 route show table 7480");
        let _tun = open_tun();
        let mut config = auto_route();
        config.address6 = None;
        config.routes = nets(&["2001:db8:a::/48"]);
        let _routes = world.install(&config);
        assert_eq!(ip("-6 rule") + &ip("-6 route show table 7480"), before);
        assert!(!ip("addr show toh0").contains("fd45:"));
    });
}

#[test]
fn a_crash_blocks_until_the_next_start() {
    in_namespace(|world| {
        let before = state();
        let tun = open_tun();
        let mut config = auto_route();
        config.bypass = nets(&["198.51.100.128/25"]);
        let routes = world.install(&config);
        let installed = state();
        drop(routes); // kill -9
        close(tun);
        for to in ["198.51.100.1", "2001:db8:a::1"] {
            assert_eq!(device(to, "ipproto tcp"), "");
            assert_eq!(device(to, "ipproto udp"), "wan0");
        }
        assert_eq!(device("198.51.100.129", "ipproto tcp"), "wan0");

        let tun = open_tun();
        let routes = world.install(&config);
        assert_eq!(state(), installed);
        drop(routes);
        close(tun);

        // Other options: what they don't want goes, nothing stays of the earlier run.
        let tun = open_tun();
        (config.rule_priority, config.table) = (2000, 8000);
        config.auto_route = false;
        config.bypass.clear();
        config.routes = nets(&["198.51.100.0/24"]);
        let routes = world.install(&config);
        assert_eq!(device("198.51.100.129", "ipproto tcp"), TUN);
        assert_eq!(device("203.0.113.1", "ipproto tcp"), "wan0");
        assert_eq!(ip("route show table 8000").lines().count(), 2);
        assert_eq!(ip("route show table 7480"), "");
        assert_eq!(ip("rule show pref 917"), "");
        drop(routes); // kill -9
        close(tun);

        // What ends them all knows the device, too.
        (config.rule_priority, config.table) = (900, 7480);
        super::clear(&Owner::new(&config)).unwrap();
        assert_eq!(state(), before);
    });
}

#[test]
fn a_crash_opens_if_asked_to() {
    in_namespace(|world| {
        let tun = open_tun();
        let mut config = auto_route();
        config.on_failure = OnFailure::Direct;
        let routes = world.install(&config);
        assert_eq!(device("198.51.100.1", "ipproto tcp"), TUN);
        drop(routes);
        close(tun);
        for to in ["198.51.100.1", "2001:db8:a::1"] {
            assert_eq!(device(to, "ipproto tcp"), "wan0");
        }
    });
}

#[test]
fn leaves_others_alone() {
    in_namespace(|world| {
        ip("rule add pref 900 from 203.0.113.7 lookup main");
        ip("rule add pref 917 fwmark 0x1 lookup 7480");
        ip("-6 rule add pref 920 nop");
        ip("route add blackhole 203.0.113.0/28 table 7480");
        let before = state();
        let tun = open_tun();
        let routes = world.install(&auto_route());
        routes.restore().unwrap();
        let installed = state();
        for line in before.lines() {
            assert!(installed.contains(line), "{line} is gone:\n{installed}");
        }
        routes.remove().unwrap();
        close(tun);
        assert_eq!(state(), before);
    });
}

#[test]
fn restores_what_others_undo() {
    in_namespace(|world| {
        let _tun = open_tun();
        let mut routes = world.install(&auto_route());
        let installed = whole_state();
        assert_eq!(world.event(&mut routes), None);
        for undo in [
            "link set toh0 down",
            "rule del pref 917 ipproto tcp",
            "rule del pref 920",
            "-6 rule del pref 907",
            "-4 addr flush dev toh0",
            "-6 addr flush dev toh0 scope global",
        ] {
            ip(undo);
            assert_ne!(whole_state(), installed, "{undo}");
            assert_eq!(world.event(&mut routes), Some(Event::Restore), "{undo}");
            routes.restore().unwrap();
            assert_eq!(whole_state(), installed, "{undo}");
            // What we do ourselves is no event.
            assert_eq!(world.event(&mut routes), None, "{undo}");
        }
        // Nor is what doesn't concern us.
        ip("rule add pref 917 from 203.0.113.7 lookup main");
        ip("rule del pref 917 from 203.0.113.7");
        ip("link set lan0 down");
        assert_eq!(world.event(&mut routes), None);
    });
}

#[test]
fn tells_that_the_tun_is_gone() {
    in_namespace(|world| {
        let tun = open_tun();
        let mut routes = world.install(&auto_route());
        close(tun);
        assert_eq!(world.event(&mut routes), Some(Event::Gone));
        let error = routes.restore().unwrap_err().to_string();
        assert!(error.starts_with("bring up toh0: "), "{error}");
    });
}

#[test]
fn failed_installs_name_the_action() {
    in_namespace(|world| {
        let before = state();
        let error = world.try_install(&auto_route()).err().unwrap().to_string();
        assert!(error.starts_with("find device toh0: No such device"), "{error}");

        let _tun = open_tun();
        let mut config = auto_route();
        config.on_failure = OnFailure::Direct;
        config.rule_priority = u32::MAX; // a jump must go forward
        let error = world.try_install(&config).err().unwrap().to_string();
        assert!(error.starts_with("add rule 4294967295: "), "{error}");
        assert_eq!(state(), before, "nothing is left");

        config.address6 = Some(Ipv6Net { addr: Ipv6Addr::UNSPECIFIED, prefix: 200 });
        let error = world.try_install(&config).err().unwrap().to_string();
        assert!(error.starts_with("set address ::/200 on toh0: "), "{error}");
    });
}

#[test]
fn finds_strict_filters() {
    in_namespace(|_| {
        fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "0").unwrap();
        fs::write("/proc/sys/net/ipv4/conf/lan0/rp_filter", "2").unwrap();
        fs::write("/proc/sys/net/ipv4/conf/wan0/rp_filter", "1").unwrap();
        assert_eq!(super::sysctl::strict_devices(), ["wan0"]);
    });
}

/// What a test runs in.
struct World(Runtime);

impl World {
    fn install(&self, config: &Config) -> Routes {
        self.try_install(config).unwrap()
    }

    fn try_install(&self, config: &Config) -> Result<Routes, RouteError> {
        self.try_install_for(Path::Rewrite, config)
    }

    fn try_install_for(&self, path: Path, config: &Config) -> Result<Routes, RouteError> {
        let _runtime = self.0.enter();
        Routes::install(config, path, TUN).map(Routes::keep)
    }

    /// Changes what is captured, as the event loop has it done.
    fn reconfigure(&self, routes: &mut Routes, config: &Config) -> Result<(), RouteError> {
        routes.replace(routes.desired(config, Path::Rewrite));
        self.0.block_on(poll_fn(|cx| routes.poll_replaced(cx)))
    }

    /// The event that there is. The kernel queues events while it makes the change, so that the wait is
    /// only for the runtime to look.
    fn event(&self, routes: &mut Routes) -> Option<Event> {
        self.0.block_on(async {
            let event = poll_fn(|cx| routes.poll_event(cx));
            tokio::time::timeout(Duration::from_millis(50), event).await.ok()
        })
    }
}

/// Runs a test on a thread with a new network namespace, which ends with the thread, however it ends.
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

/// A TUN that ends with its descriptor.
fn open_tun() -> tun::Device {
    let mut config = tun::Configuration::default();
    config.tun_name(TUN);
    tun::create(&config).unwrap()
}

/// Ends the TUN. Another test's child may have inherited the descriptor for the moment before its exec.
fn close(tun: tun::Device) {
    drop(tun);
    while !ip("link show toh0").is_empty() {}
}

/// What `ip` says; `show` of a table that was never used is nothing. Anything else must succeed.
fn ip(line: &str) -> String {
    let output = Command::new("ip").args(line.split(' ')).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    let is_query = line.contains("show") || line.contains("get");
    assert!(output.status.success() || is_query, "ip {line}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// The device that a packet with these properties goes to; nothing if nowhere.
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

/// The same with all tables of the express path.
fn express_state() -> String {
    let tables = [7481, 7482]
        .map(|table| ip(&format!("route show table {table}")) + &ip(&format!("-6 route show table {table}")));
    state() + &tables.concat()
}

/// All rules and the routes of our table. Rules of one priority have no order that would matter.
fn state() -> String {
    let [mut rules, mut rules6] = ["rule", "-6 rule"].map(ip);
    for rules in [&mut rules, &mut rules6] {
        let mut lines: Vec<&str> = rules.lines().collect();
        lines.sort_unstable();
        *rules = lines.join("\n") + "\n";
    }
    [rules, rules6, ip("route show table 7480"), ip("-6 route show table 7480")].concat()
}

/// And what the TUN has.
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
