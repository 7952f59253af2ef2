//! Which clients, devices, ports and protocols are captured.

use super::*;
use tcp_over_http::config::Quic;

const SERVER: &str = "198.51.100.1";
const SERVER6: &str = "2001:db8:a::1";

/// The device that TCP from a client to the server's port 80 is routed to.
fn from(source: &str, device: &str) -> String {
    let to = if source.contains(':') { SERVER6 } else { SERVER };
    super::device(to, &format!("from {source} iif {device} ipproto tcp dport 80"))
}

/// The same for a connection of this machine.
fn own(to: &str) -> String {
    super::device(to, "ipproto tcp dport 80")
}

fn add_device(name: &str, addresses: &[&str]) {
    ip(&format!("link add {name} type veth peer name {name}p"));
    ip(&format!("link set {name} up"));
    for address in addresses {
        let nodad = if address.contains(':') { " nodad" } else { "" };
        ip(&format!("addr add {address} dev {name}{nodad}"));
    }
}

#[test]
fn devices() {
    in_namespace(|world| {
        add_device("guest0", &["192.168.8.1/24", "fd00:8::1/64"]);
        let _tun = open_tun();
        let mut config = auto_route();
        // A configured device may not exist yet.
        config.interfaces = vec!["later0".to_owned(), "lan0".to_owned()];
        let routes = world.install(&config);
        for (lan, guest) in [("192.168.7.9", "192.168.8.9"), ("fd00:7::9", "fd00:8::9")] {
            assert_eq!(from(lan, "lan0"), TUN);
            assert_eq!(from(guest, "guest0"), "wan0");
        }
        assert_eq!((own(SERVER).as_str(), own(SERVER6).as_str()), (TUN, TUN));
        // A restored rule comes last among those of its priority.
        ip("rule del pref 906 iif lan0");
        assert_eq!(from("192.168.7.9", "lan0"), "wan0");
        routes.restore().unwrap();
        assert_eq!(from("192.168.7.9", "lan0"), TUN);
        assert_eq!(from("192.168.8.9", "guest0"), "wan0");

        add_device("later0", &["192.168.9.1/24"]);
        assert_eq!(from("192.168.9.9", "later0"), TUN);
    });
}

#[test]
fn own_connections() {
    in_namespace(|world| {
        let _tun = open_tun();
        let mut config = auto_route();
        config.local = false;
        for interfaces in [vec![], vec!["lan0".to_owned()]] {
            config.interfaces = interfaces;
            let _routes = world.install(&config);
            assert_eq!((own(SERVER).as_str(), own(SERVER6).as_str()), ("wan0", "wan0"));
            assert_eq!(from("192.168.7.9", "lan0"), TUN);
            assert_eq!(from("fd00:7::9", "lan0"), TUN);
        }
    });
}

#[test]
fn clients() {
    in_namespace(|world| {
        let _tun = open_tun();
        let mut config = auto_route();
        config.clients = nets(&["192.168.7.8/29", "fd00:7::8/125"]);
        let clients = nets(&["192.168.7.9/32", "fd00:7::9/128"]);
        let rule = Rule { clients, action: rules::Action::Direct, ..Rule::default() };
        let mut rules = Rules::default();
        rules.push(rule, true);
        config.rules = Rc::new(rules);
        let routes = world.install(&config);
        for (is, bypassed, other) in
            [("192.168.7.10", "192.168.7.9", "192.168.7.16"), ("fd00:7::a", "fd00:7::9", "fd00:7::10")]
        {
            assert_eq!(from(is, "lan0"), TUN);
            assert_eq!(from(bypassed, "lan0"), "wan0");
            assert_eq!(from(other, "lan0"), "wan0");
        }
        assert_eq!((own(SERVER).as_str(), own(SERVER6).as_str()), (TUN, TUN));
        drop(routes);

        // All clients but these.
        config.clients.clear();
        let routes = world.install(&config);
        assert_eq!(from("192.168.7.16", "lan0"), TUN);
        assert_eq!(from("192.168.7.9", "lan0"), "wan0");
        assert_eq!(from("fd00:7::9", "lan0"), "wan0");
        drop(routes);

        // With clients of one family only, none of the other family is captured.
        config.clients = nets(&["192.168.7.8/29"]);
        let _routes = world.install(&config);
        assert_eq!(from("192.168.7.10", "lan0"), TUN);
        assert_eq!(from("fd00:7::a", "lan0"), "wan0");
    });
}

#[test]
fn devices_and_clients() {
    in_namespace(|world| {
        add_device("guest0", &["192.168.8.1/24"]);
        let _tun = open_tun();
        let mut config = auto_route();
        config.interfaces = vec!["lan0".to_owned()];
        config.clients = nets(&["192.168.7.8/29", "192.168.8.0/24"]);
        let _routes = world.install(&config);
        assert_eq!(from("192.168.7.9", "lan0"), TUN);
        assert_eq!(from("192.168.7.16", "lan0"), "wan0");
        assert_eq!(from("192.168.8.9", "guest0"), "wan0");
    });
}

/// When a selection by device and client is removed, the selected clients are captured all the time.
#[test]
fn jumps_past_the_capture_go_first() {
    in_namespace(|world| {
        let _tun = open_tun();
        let mut config = auto_route();
        config.interfaces = vec!["lan0".to_owned()];
        config.clients = nets(&["192.168.7.0/24"]);
        let mut routes = world.install(&config);
        let mut watch = sys::netlink(libc::NETLINK_ROUTE, libc::RTMGRP_IPV4_RULE as u32).unwrap();
        world.reconfigure(&mut routes, &auto_route()).unwrap();
        assert_eq!(from("192.168.7.9", "lan0"), TUN);
        let mut targets = Vec::new();
        let mut buffer = vec![0; netlink::READ_SIZE];
        while let Ok(length) = watch.read(&mut buffer) {
            let deleted = tcp_over_http::capture::netlink::messages(&buffer[..length])
                .filter(|it| it.kind == libc::RTM_DELRULE);
            targets.extend(
                deleted
                    .filter_map(|it| tcp_over_http::capture::PolicyRule::parse(it.body))
                    .map(|rule| rule.target),
            );
        }
        // First the two jumps for other devices and other clients; then those for the device and the client,
        // and the `nop`s.
        assert_eq!(targets[..2], [916; 2]);
        assert!(targets.len() > 4 && !targets[2..].contains(&916), "{targets:?}");
    });
}

#[test]
fn ports() {
    in_namespace(|world| {
        let _tun = open_tun();
        let mut config = auto_route();
        config.ports = vec![(80, 80), (8000, 8999)];
        for non_tcp in [NonTcp::Direct, NonTcp::Reject] {
            config.non_tcp = non_tcp;
            let _routes = world.install(&config);
            for (server, local) in [(SERVER, "192.168.7.9"), (SERVER6, "fd00:7::9")] {
                let to = |port: u16| device(server, &format!("ipproto tcp dport {port}"));
                assert_eq!([80, 8000, 8999].map(to), [TUN; 3]);
                assert_eq!([79, 443, 9000].map(to), ["wan0"; 3]);
                assert_eq!(device(local, "ipproto tcp dport 80"), "lan0");
                let udp = if non_tcp == NonTcp::Reject { TUN } else { "wan0" };
                assert_eq!(device(server, "ipproto udp dport 80"), udp);
            }
        }
    });
}

#[test]
fn quic() {
    in_namespace(|world| {
        let _tun = open_tun();
        let mut config = auto_route();
        config.rules = bypassing(nets(&["203.0.113.0/24"]));
        for (quic, to) in [(Quic::Reject, TUN), (Quic::Direct, "wan0")] {
            config.quic = quic;
            let _routes = world.install(&config);
            for server in [SERVER, SERVER6] {
                assert_eq!(device(server, "ipproto udp dport 443"), to);
                assert_eq!(device(server, "ipproto udp dport 444"), "wan0");
            }
            assert_eq!(device("192.168.7.9", "ipproto udp dport 443"), "lan0");
            assert_eq!(device("203.0.113.9", "ipproto udp dport 443"), "wan0");
        }
        // QUIC may go directly, and nothing else that isn't TCP.
        config.non_tcp = NonTcp::Reject;
        let _routes = world.install(&config);
        for server in [SERVER, SERVER6] {
            assert_eq!(device(server, "ipproto udp dport 443"), "wan0");
            assert_eq!(device(server, "ipproto udp dport 444"), TUN);
            assert_eq!(device(server, "ipproto tcp dport 443"), TUN);
        }
    });
}

#[test]
fn queries() {
    in_namespace(|world| {
        let _tun = open_tun();
        let mut config = auto_route();
        config.dns.mode = tcp_over_http::config::DnsMode::Proxy;
        config.ports = vec![(80, 80)];
        let client = "from 192.168.7.9 iif lan0";
        for (domains, own) in [(vec![], TUN), (vec!["blocked.example".to_owned()], "wan0")] {
            config.dns.domains = domains;
            let _routes = world.install(&config);
            for protocol in ["udp", "tcp"] {
                let query = format!("ipproto {protocol} dport 53");
                assert_eq!(device(SERVER, &format!("{client} {query}")), TUN);
                assert_eq!(device(SERVER, &query), own);
                assert_eq!(device(SERVER6, &query), own);
            }
        }
    });
}

#[test]
fn what_the_firewall_exempts() {
    in_namespace(|world| {
        let _tun = open_tun();
        let _routes = world.install(&auto_route());
        assert_eq!(device(SERVER, "ipproto tcp mark 0x76000001"), "wan0");
        assert_eq!(device(SERVER6, "ipproto tcp mark 0x76000001"), "wan0");
    });
}

#[test]
fn ten_thousand_networks_are_bypassed() {
    in_namespace(|world| {
        let before = state();
        let tun = open_tun();
        let mut config = auto_route();
        let networks = (0..10_000u32)
            .map(|n| IpNet::V4(Ipv4Net { addr: Ipv4Addr::from_bits(0x0b00_0000 | n << 8), prefix: 24 }))
            .collect();
        config.rules = bypassing(networks);
        let routes = world.install(&config);
        assert_eq!(device("11.0.7.1", "ipproto tcp"), "wan0");
        assert_eq!(device("12.0.7.1", "ipproto tcp"), TUN);
        routes.restore().unwrap();
        routes.remove().unwrap();
        close(tun);
        assert_eq!(state(), before);
    });
}

/// `block` before a daemon runs, beside one, and after it.
#[test]
fn blocked() {
    in_namespace(|world| {
        let before = state();
        let config = auto_route();
        block(&config).unwrap();
        let blocked = state();
        for (server, client) in [(SERVER, "192.168.7.9"), (SERVER6, "fd00:7::9")] {
            assert_eq!(device(server, "ipproto tcp"), "");
            assert_eq!(device(server, "ipproto udp dport 443"), "");
            assert_eq!(device(server, "ipproto udp dport 444"), "wan0");
            assert_eq!(device(client, "ipproto tcp"), "lan0");
            assert_eq!(device(server, &format!("ipproto tcp mark {MARK}")), "wan0");
        }
        let tun = open_tun();
        let mut routes = world.install(&config);
        let installed = state();
        assert_eq!(device(SERVER, "ipproto tcp"), TUN);
        block(&config).unwrap();
        assert_eq!(state(), installed);
        assert_eq!(world.event(&mut routes), None);
        routes.hand_over(&config).unwrap();
        close(tun);
        assert_eq!(device(SERVER, "ipproto tcp"), "");
        let tun = open_tun();
        world.install(&config).hand_over(&config).unwrap();
        close(tun);
        assert_eq!(state(), blocked);
        clear(&Owner::new(&config)).unwrap();
        assert_eq!(state(), before);
    });
}
