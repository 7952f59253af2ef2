//! Installing, removing, crashes, and changes by others.

use super::*;

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
             902:\tfrom all iif toh0 goto 916 proto 116\n\
             903:\tfrom all fwmark 0x74000000/0xff000000 goto 916 proto 116\n\
             903:\tfrom all fwmark 0x76000000/0xff000000 goto 916 proto 116\n\
             903:\tfrom all fwmark 0x7c000000/0xff000000 lookup 7480 proto 116\n\
             903:\tfrom 192.0.2.1 goto 916 proto 116\n\
             912:\tfrom all ipproto tcp lookup main suppress_prefixlength 1 proto 116\n\
             912:\tfrom all ipproto udp dport 443 lookup main suppress_prefixlength 1 proto 116\n\
             913:\tfrom all ipproto tcp lookup 7480 proto 116\n\
             913:\tfrom all ipproto udp dport 443 lookup 7480 proto 116\n\
             916:\tfrom all nop proto 116\n\
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
fn a_crash_blocks_until_the_next_start() {
    in_namespace(|world| {
        let before = state();
        let tun = open_tun();
        let mut config = auto_route();
        config.rules = bypassing(nets(&["198.51.100.128/25"]));
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

        // A start with other options deletes everything of the earlier run.
        let tun = open_tun();
        (config.rule_priority, config.table) = (2000, 8000);
        config.auto_route = false;
        config.rules = bypassing(Vec::new());
        config.routes = nets(&["198.51.100.0/24"]);
        let routes = world.install(&config);
        assert_eq!(device("198.51.100.129", "ipproto tcp"), TUN);
        assert_eq!(device("203.0.113.1", "ipproto tcp"), "wan0");
        assert_eq!(ip("route show table 8000").lines().count(), 2);
        assert_eq!(ip("route show table 7480"), "");
        assert_eq!(ip("rule show pref 913"), "");
        drop(routes); // kill -9
        close(tun);

        // `clear` also finds rules and routes by the device alone.
        (config.rule_priority, config.table) = (900, 7480);
        clear(&Owner::new(&config)).unwrap();
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
        ip("rule add pref 913 fwmark 0x1 lookup 7480");
        ip("-6 rule add pref 916 nop");
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
            "rule del pref 913 ipproto tcp",
            "rule del pref 916",
            "-6 rule del pref 903",
            "-4 addr flush dev toh0",
            "-6 addr flush dev toh0 scope global",
        ] {
            ip(undo);
            assert_ne!(whole_state(), installed, "{undo}");
            assert_eq!(world.event(&mut routes), Some(Event::Restore), "{undo}");
            routes.restore().unwrap();
            assert_eq!(whole_state(), installed, "{undo}");
            // The daemon's own changes are no events.
            assert_eq!(world.event(&mut routes), None, "{undo}");
        }
        // Nor are changes of other rules and devices.
        ip("rule add pref 913 from 203.0.113.7 lookup main");
        ip("rule del pref 913 from 203.0.113.7");
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
        assert_eq!(crate::kernel::sysctl::strict_devices(), ["wan0"]);
    });
}

/// A failed replacement is undone: its additions are deleted, and the state before stays.
#[test]
fn a_failed_replacement_is_undone() {
    in_namespace(|world| {
        let _tun = open_tun();
        let mut routes = world.install(&auto_route());
        let before = whole_state();
        let mut config = auto_route();
        config.rules = bypassing(nets(&["198.51.100.0/24"]));
        config.clients = vec![IpNet::V6(Ipv6Net { addr: Ipv6Addr::UNSPECIFIED, prefix: 200 })];
        let error = world.reconfigure(&mut routes, &config).unwrap_err().to_string();
        assert!(error.starts_with("add rule 909: "), "{error}");
        assert_ne!(whole_state(), before);
        world.settle(&mut routes);
        assert_eq!(whole_state(), before);
        world.reconfigure(&mut routes, &auto_route()).unwrap();
        assert_eq!(whole_state(), before);
    });
}

/// A route through a device that is down can't be added, so what was lost is restored before a replacement.
#[test]
fn one_thing_after_the_other() {
    in_namespace(|world| {
        let _tun = open_tun();
        let mut routes = world.install(&auto_route());
        let before = whole_state();
        ip("link set toh0 down");
        assert_eq!(world.event(&mut routes), Some(Event::Restore));
        routes.restore_later();
        world.reconfigure(&mut routes, &auto_route()).unwrap();
        assert_eq!(whole_state(), before);
        assert_eq!(world.event(&mut routes), None);
    });
}

/// Captured and bypassed networks are swapped. The result is the same as after a fresh start.
#[test]
fn routes_take_the_place_of_others() {
    in_namespace(|world| {
        let [one, other] = [["198.51.100.0/24", "2001:db8:a::/48"], ["203.0.113.0/24", "2001:db8:b::/48"]]
            .map(|list| nets(&list));
        let there = Config { routes: one.clone(), rules: bypassing(other.clone()), ..config() };
        let back = Config { routes: other, rules: bypassing(one), ..config() };
        let tun = open_tun();
        let mut routes = world.install(&there);
        let first = state();
        world.reconfigure(&mut routes, &back).unwrap();
        let second = state();
        assert_ne!(first, second);
        world.reconfigure(&mut routes, &there).unwrap();
        assert_eq!(state(), first);
        routes.remove().unwrap();
        let routes = world.install(&back);
        assert_eq!(state(), second);
        routes.remove().unwrap();
        close(tun);
    });
}

#[test]
fn a_device_that_is_down_is_no_fault() {
    let net = nets(&["2001:db8::1/64"])[0];
    let failed = |code| {
        Err(RouteError::new(&format_args!("set address {net}"), io::Error::from_raw_os_error(code).into()))
    };
    assert_eq!(level("", &failed(libc::ENETDOWN)), Level::Debug);
    assert_eq!(level("", &failed(libc::EPERM)), Level::Warn);
    assert_eq!([level("", &Ok(())), level(FOLLOWED, &Ok(()))], [Level::Info, Level::Debug]);
}
