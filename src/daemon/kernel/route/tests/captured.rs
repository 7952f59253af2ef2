//! Which destinations and protocols are captured.

use super::*;

#[test]
fn captures_tcp_that_goes_to_a_default_route() {
    in_namespace(|world| {
        let _tun = open_tun();
        let mut config = auto_route();
        config.rules = bypassing(nets(&["198.51.100.128/25", "2001:db8:b::/48"]));
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
        // Forwarded packets: from a client into the TUN; out of the TUN to anywhere but the TUN.
        let client = "from 192.168.7.9 iif lan0 ipproto tcp";
        assert_eq!(device("198.51.100.1", client), TUN);
        let client = "from fd00:7::9 iif lan0 ipproto tcp";
        assert_eq!(device("2001:db8:a::1", client), TUN);
        let out = "from 198.51.100.1 iif toh0 ipproto tcp";
        assert_eq!(device("192.168.7.9", out), "lan0");
        assert_eq!(device("203.0.113.1", out), "wan0");
        // TCP is captured, too, if there is no other route.
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
            // Skips the kernel's own IPv6 multicast.
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

/// Fake addresses are captured despite other routes and bypasses; once the daemon is gone, they are refused.
#[test]
fn captures_fake_addresses() {
    in_namespace(|world| {
        let tun = open_tun();
        let mut config = config();
        config.dns.mode = DnsMode::FakeIp;
        config.rules = bypassing(nets(&[
            "198.0.0.0/8",
            "198.18.0.0/15",
            "198.18.7.0/24",
            "2001::/16",
            "198.51.100.0/24",
        ]));
        config.routes = nets(&["198.18.7.0/24"]);
        ip("route add 198.18.0.0/15 via 192.0.2.1");
        let routes = world.install(&config);
        for to in ["198.18.0.1", "198.18.7.1", "198.19.255.254", "2001:2::1"] {
            for what in ["ipproto tcp", "ipproto udp", "ipproto icmp"] {
                assert_eq!(device(to, what), TUN, "{to} {what}");
            }
        }
        assert_eq!(device("198.51.100.1", "ipproto tcp"), "wan0");
        assert_eq!(device("2001:2:0:1::1", "ipproto tcp"), "wan0");
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
        config.rules = bypassing(nets(&["10.0.0.0/8", "203.0.113.128/25"]));
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
