//! What the express path has besides.

use super::*;

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
