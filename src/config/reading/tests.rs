use std::net::{Ipv4Addr, Ipv6Addr};
use std::prelude::v1::*;
use std::time::Duration;
use std::{format, vec};

use super::*;
use crate::config::{
    ConnectMode, DnsMode, Host, HttpRelay, LogLevel, NonTcp, OnFailure, PathChoice, Ping, Quic, Shell,
};
use crate::dns::Domains;
use crate::http::connect::Request;
use crate::http::login::AuthChoice;
use crate::rules::{Action, Connection, Neighbour};

const UPSTREAM: &str = "config tcp-over-http 'main'\n\tlist upstream 'http://192.0.2.1:3128'\n";

/// The main section with an upstream and this line, the third.
fn with(line: &str) -> Result<Config, String> {
    Config::from_uci(&format!("{UPSTREAM}\t{line}\n")).map_err(|error| error.to_string())
}

fn resolve(file: Option<&[u8]>, overrides: &Overrides) -> Result<Config, Fault> {
    Reading::new(Ok(file), overrides).finish(true)
}

fn error(line: &str) -> String {
    with(line).map(drop).expect_err(line)
}

#[test]
fn an_upstream_is_enough() {
    let config = Config::from_uci(UPSTREAM).unwrap();
    assert_eq!(config.tun, "toh0");
    assert_eq!(config.mtu, 1500);
    assert_eq!(config.address.to_string(), "10.45.39.1/24");
    assert_eq!(config.address6.unwrap().to_string(), "fd45:39::1/64");
    assert_eq!(config.listen_port, 12345);
    assert_eq!(config.connect, ConnectMode::Honest);
    assert_eq!((config.max_flows, config.max_dials, config.max_dials_per_client), (4096, 512, 128));
    assert_eq!(config.connect_timeout, Duration::from_secs(5));
    assert_eq!(config.reply_timeout, Duration::from_secs(30));
    assert_eq!(config.keepalive, 60);
    assert!(!config.auto_route && config.routes.is_empty() && config.rules.up_to_direct().is_empty());
    assert_eq!((config.non_tcp, config.on_failure), (NonTcp::Direct, OnFailure::Block));
    assert_eq!((config.table, config.mark, config.rule_priority), (7480, 0x7400_0000, 900));
    assert_eq!(config.drain_timeout, Duration::from_secs(3));
    assert_eq!(config.pipe_size, 262_144);
    assert_eq!(config.log_level, LogLevel::Info);
    assert!(config.resolvers.is_empty());
    assert_eq!(config.ping, Ping::Reject);
    let dns = &config.dns;
    assert_eq!((dns.mode, dns.port, dns.hijack), (DnsMode::Off, 5453, true));
    assert_eq!(texts(&dns.servers), ["1.1.1.1:53", "9.9.9.9:53"]);
    assert!(dns.direct_servers.is_empty());
    assert_eq!(dns.fakeip_range.to_string(), "198.18.0.0/15");
    assert_eq!(dns.fakeip_range6.unwrap().to_string(), "2001:2::/64");
    assert_eq!((dns.fakeip_names, dns.fakeip_file.as_str()), (2048, "/var/run/tcp-over-http.names"));
    assert!(dns.fake_ranges().next().is_none(), "off");
    assert_eq!(config.upstreams.len(), 1);
}

#[test]
fn a_file_says_everything() {
    let config = Config::from_uci(include_str!("../../../tests/uci/good/all-options")).unwrap();
    assert_eq!(config.tun, "tun7");
    assert_eq!(config.mtu, 9000);
    assert_eq!(config.address.addr, Ipv4Addr::new(10, 99, 0, 1));
    assert_eq!(config.address6, None, "ipv6 '0'");
    assert_eq!(config.listen_port, 1);
    assert_eq!(config.connect, ConnectMode::Early);
    assert_eq!((config.max_flows, config.max_dials, config.max_dials_per_client), (65000, 65000, 1));
    assert_eq!(config.connect_timeout, Duration::from_secs(300));
    assert_eq!(config.reply_timeout, Duration::from_secs(1));
    assert_eq!(config.keepalive, 0);
    assert_eq!((config.http_relay, &*config.http_ports), (HttpRelay::Always, &[(80, 80), (8000, 8080)][..]));
    assert!(config.auto_route);
    assert_eq!(texts(&config.routes), ["203.0.113.0/24", "198.51.100.7/32"]);
    let [bypass, client_bypass, direct, ..] = config.rules.up_to_direct() else { unreachable!() };
    assert_eq!(texts(&bypass.networks), ["10.0.0.0/8"]);
    assert_eq!((config.non_tcp, config.on_failure), (NonTcp::Reject, OnFailure::Direct));
    assert_eq!((config.path, config.quic, config.local), (PathChoice::Relay, Quic::Direct, false));
    assert_eq!(
        (texts(&config.interfaces), texts(&config.clients)),
        (vec!["br-lan".to_owned()], vec!["192.168.1.0/24".to_owned()])
    );
    assert_eq!(texts(&client_bypass.clients), ["192.168.1.9/32"]);
    assert_eq!(config.ports, [(80, 80), (8000, 8999)]);
    assert_eq!((config.status_socket.as_str(), config.dns.domains.len()), ("/tmp/status", 1));
    assert_eq!((config.table, config.mark, config.rule_priority), (100, 0x0100_0000, 1));
    assert_eq!(config.drain_timeout, Duration::ZERO);
    assert_eq!(config.pipe_size, 4096);
    assert_eq!(config.log_level, LogLevel::Trace);
    assert_eq!(texts(&config.resolvers), ["192.0.2.53:53", "192.0.2.54:5353", "[2001:db8::53]:5353"]);
    assert_eq!(config.ping, Ping::Answer);
    let dns = &config.dns;
    assert_eq!((dns.mode, dns.port, dns.hijack), (DnsMode::FakeIp, 5300, false));
    assert_eq!(texts(&dns.servers), ["192.0.2.53:53", "[2001:db8::53]:5353"]);
    assert!(direct.domains == Domains::new(&["lan".to_owned(), "corp.example".to_owned()]).unwrap());
    assert_eq!(texts(&dns.direct_servers), ["10.0.0.53:53"]);
    assert_eq!(texts(&dns.fake_ranges().collect::<Vec<_>>()), ["10.64.0.0/12"], "ipv6 '0'");
    assert_eq!((dns.fakeip_names, dns.fakeip_file.as_str()), (32768, "/etc/names"));
    let names: Vec<_> = config.upstreams.iter().map(|upstream| upstream.name.as_str()).collect();
    assert_eq!(names, ["192.0.2.1:3128", "corp", "[2001:db8::1]:80"]);
    let corp = &config.upstreams[1];
    assert_eq!((&corp.host, corp.port), (&Host::Name("proxy.example".to_owned()), 3128));
    let headers = ["X-Extra: value", "X-Empty: "].map(ToOwned::to_owned);
    let mut request = Request::new(Some(("u", "p w")), &headers).unwrap();
    request.auth = AuthChoice::Digest;
    request.host = Some("front.example:443".into());
    assert_eq!(corp.request, request);
}

fn texts<T: ToString>(values: &[T]) -> Vec<String> {
    values.iter().map(T::to_string).collect()
}

#[test]
fn errors_say_what_and_where() {
    for (line, expected) in [
        ("option listen_port '99999'", "FILE:3:21: listen_port: '99999' is not a port (1-65535)"),
        ("option mtu 1279", "FILE:3:13: mtu: '1279' is not a number (1280-65535)"),
        ("option connect lazy", "FILE:3:17: connect: 'lazy' is none of honest early"),
        ("option ipv6 maybe", "FILE:3:14: ipv6: 'maybe' is not 0 or 1"),
        ("option tun 'a/b'", "FILE:3:13: tun: 'a/b' is not a device name (1-15 characters)"),
        ("option mark 0x74000001", "FILE:3:14: mark: '0x74000001' is not a mark within 0xff000000"),
        ("option mut 1500", "FILE:3:9: unknown option 'mut'"),
        ("list mtu 1500", "FILE:3:7: mtu: an option, not a list"),
        ("option dns on", "FILE:3:13: dns: 'on' is none of off fakeip proxy"),
        (
            "option fakeip_range 198.18.0.0/28",
            "FILE:3:22: fakeip_range: '198.18.0.0/28' has a prefix length out of 8-27",
        ),
        (
            "option fakeip_range fd00::/64",
            "FILE:3:22: fakeip_range: 'fd00::/64' is not an IPv4 network that hosts can have",
        ),
        (
            "option fakeip_range6 fe80::/64",
            "FILE:3:23: fakeip_range6: 'fe80::/64' is not an IPv6 network that hosts can have",
        ),
        ("option fakeip_file names", "FILE:3:21: fakeip_file: 'names' is not a file's absolute path"),
        ("list direct_domain 192.0.2.1", "FILE:3:21: direct_domain: '192.0.2.1' is not a domain name"),
        ("list direct_domain lan", "FILE:3:21: direct_domain: needs a direct_server"),
        ("list route 10.1.0.0/8", "FILE:3:13: route: '10.1.0.0/8' has bits set behind its prefix"),
        ("option tun toh\u{1b}", "FILE:3:13: tun: 'toh?' is not a device name (1-15 characters)"),
        ("option tun 'a", "FILE:3:13: this quote is never closed"),
        ("config tcp-over-http", "FILE:3:9: this section's name has to be 'main'"),
        ("config tcp-over-http man", "FILE:3:23: this section's name has to be 'main'"),
        (
            "config upstrem corp",
            "FILE:3:9: unknown section type 'upstrem' (there are tcp-over-http, upstream and rule)",
        ),
        ("config upstream main", "FILE:3:18: an upstream can't be named 'main'"),
        ("config upstream auto", "FILE:3:18: an upstream can't be named 'auto'"),
        ("option probe_interval 29", "FILE:3:24: probe_interval: less than 30 seconds (0: none)"),
        (
            "list upstream http://u:p@192.0.2.1:3128",
            "FILE:3:16: two upstreams have the name '192.0.2.1:3128'",
        ),
        ("config upstream; \n\toption port 1", "FILE:3:9: upstream without a host"),
        (
            "config upstream\n\toption host h\n\toption username u\n\tlist header 'Proxy-Authorization: x'",
            "FILE:3:9: upstream: header 1 is no field that a CONNECT may carry",
        ),
        ("package network", "FILE:3:10: another package's file"),
    ] {
        assert_eq!(error(line), expected);
    }
    let latin1 = resolve(Some(b"config tcp-over-http main\noption tun '\xe9'"), &Overrides::default());
    let text = latin1.map(drop).map_err(|fault| ConfigError::new("FILE", fault).to_string());
    assert_eq!(text, Err("FILE:2:12: tun: not UTF-8".to_owned()));
}

#[test]
fn what_is_wrong_is_left_out() {
    let file = "package other\nconfig upstrem a\noption mtu 9000\nconfig tcp-over-http main\noption nonsense 1\nlist mtu 1280
        option listen_port x\noption table 5\nlist dns_server bad\nlist route bad\nlist route 10.0.0.0/8\noption tun 'a";
    let config = Reading::new(Ok(Some(file.as_bytes())), &Overrides::default()).finish_lenient(true);
    assert_eq!((config.mtu, config.listen_port, config.table), (1500, 12345, 5));
    assert_eq!(
        (texts(&config.dns.servers), texts(&config.routes)),
        (vec!["1.1.1.1:53".to_owned(), "9.9.9.9:53".to_owned()], vec!["10.0.0.0/8".to_owned()])
    );
    let shell = Shell(&config).to_string();
    for line in ["mtu='1500'", "table='5'", "route='10.0.0.0/8'", "dns_server='1.1.1.1\n9.9.9.9'"] {
        assert!(shell.contains(&format!("\n{line}\n")), "{line}");
    }
}

#[test]
fn values_are_checked_together() {
    assert_eq!(
        error("option mark 0\noption auto_route 1"),
        "FILE:3:14: mark: upstream connections would be captured without one"
    );
    assert!(error("option mark 0\nlist route 192.0.2.0/24").contains("FILE:3:14: mark:"));
    assert_eq!(with("option mark 0").unwrap().mark, 0);
    assert_eq!(error("option max_dials 4097"), "FILE:3:19: max_dials: more than max_flows");
    assert!(error("option mark 0\noption dns fakeip").contains("FILE:3:14: mark:"));
    assert_eq!(
        error("option dns fakeip\noption fakeip_range 10.0.0.0/8"),
        "FILE:4:21: fakeip_range: overlaps address"
    );
    assert_eq!(
        error("option dns fakeip\noption fakeip_range6 fd45::/16"),
        "FILE:4:22: fakeip_range6: overlaps address6"
    );
    assert!(with("option fakeip_range 10.0.0.0/8").is_ok(), "unused");
    assert_eq!(
        error("option fakeip_range 198.18.0.0/24\noption fakeip_names 255"),
        "FILE:4:21: fakeip_names: more than fakeip_range"
    );
    assert_eq!(with("option fakeip_range 198.18.0.0/24").unwrap().dns.fakeip_names, 254);
    let line = "option max_dials 100\noption max_dials_per_client 101";
    assert_eq!(error(line), "FILE:4:29: max_dials_per_client: more than max_dials");
    // Defaults follow.
    let config = with("option max_flows 65000").unwrap();
    assert_eq!(config.too_few_ports("32768\t60999\n"), Some(28_232));
    assert_eq!(config.too_few_ports("1\t65000\n"), None);
    assert_eq!(config.too_few_ports(""), None);
    let without_a_proxy = Config { upstreams: vec![], ..config };
    assert_eq!(without_a_proxy.too_few_ports("32768\t60999\n"), None);
    let config = with("option max_flows 64").unwrap();
    assert_eq!((config.max_dials, config.max_dials_per_client), (64, 64));
}

#[test]
fn no_upstream_is_an_error() {
    for file in ["", "config tcp-over-http main\n", "config upstream\noption host a\noption enabled 0\n"] {
        let text = Config::from_uci(file).map(drop).map_err(|error| error.to_string());
        let expected = "FILE: no upstream, and none from --upstream or TCP_OVER_HTTP_UPSTREAM";
        assert_eq!(text, Err(expected.to_owned()));
    }
}

#[test]
fn own_addresses_are_hosts() {
    for bad in [
        "10.45.39.0/24",
        "10.45.39.255/24",
        "10.0.0.1/15",
        "10.0.0.1/30",
        "10.0.0.1",
        "224.0.0.1/24",
        "127.0.0.2/24",
        "fd00::1/64",
    ] {
        assert!(error(&format!("option address '{bad}'")).starts_with("FILE:3:17: address: '"), "{bad}");
    }
    for bad in ["fd00::/64", "fd00::1/63", "fd00::1/121", "fe80::1/64", "ff02::1/64", "::1/64", "10.0.0.1/24"]
    {
        assert!(error(&format!("option address6 '{bad}'")).starts_with("FILE:3:18: address6: '"), "{bad}");
    }
    assert_eq!(with("option address 10.0.0.6/29").unwrap().address.prefix, 29);
    let address6 = with("option address6 fd00::ff/120").unwrap().address6.unwrap();
    assert_eq!(address6.addr, Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0xff));
}

#[test]
fn numbers_have_no_sign_and_may_be_hexadecimal() {
    for bad in ["+1500", "-1", "0x", "0x+5dc", "1500 ", "", "4294967296", "1e3"] {
        assert!(with(&format!("option mtu '{bad}'")).is_err() || bad.is_empty(), "{bad}");
    }
    assert_eq!(with("option mtu 0x5dc").unwrap().mtu, 1500);
    assert!(with("option listen_port 0").is_err());
    for reserved in ["0", "253", "254", "255", "4294967296"] {
        assert!(with(&format!("option table {reserved}")).is_err());
    }
    for usable in ["1", "252", "256", "4294967295"] {
        assert!(with(&format!("option table {usable}")).is_ok());
    }
}

#[test]
fn empty_repeated_and_continued_is_as_libuci_has_it() {
    let config = with(
        "option mtu 1400\noption mtu ''\nlist route 192.0.2.0/24\noption route 198.51.100.0/24\nlist route 203.0.113.0/24
        config upstream a\noption host h\nconfig tcp-over-http main\noption mtu 1300\nconfig upstream a\noption port 8080",
    )
    .unwrap();
    assert_eq!(config.mtu, 1300);
    assert_eq!(texts(&config.routes), ["198.51.100.0/24", "203.0.113.0/24"]);
    assert_eq!(config.upstreams.len(), 2);
    assert_eq!((config.upstreams[1].name.as_str(), config.upstreams[1].port), ("a", 8080));
}

#[test]
fn flags_beat_the_variable_beats_the_file() {
    let file =
        format!("{UPSTREAM}option mtu 1400\nlist route 192.0.2.0/24\nconfig upstream b\noption host b\n");
    let names = |overrides: &Overrides| {
        let config = resolve(Some(file.as_bytes()), overrides).unwrap();
        config.upstreams.into_iter().map(|upstream| upstream.name).collect::<Vec<_>>()
    };
    let mut overrides = Overrides::default();
    assert_eq!(names(&overrides), ["192.0.2.1:3128", "b"]);
    overrides = Overrides::new(Some(" ".to_owned()));
    assert_eq!(names(&overrides), ["192.0.2.1:3128", "b"]);
    overrides = Overrides::new(Some("http://v:1  http://w:2".to_owned()));
    assert_eq!(names(&overrides), ["v:1", "w:2"]);
    let flag = |name| table::MAIN.iter().find(|spec| spec.name == name).unwrap();
    overrides.give(flag("upstream"), "http://x".to_owned());
    overrides.give(flag("upstream"), "http://y:1".to_owned());
    assert_eq!(names(&overrides), ["x:80", "y:1"]);
    overrides.give(flag("route"), "198.51.100.0/24".to_owned());
    overrides.give(flag("mtu"), "9000".to_owned());
    overrides.give(flag("mtu"), "1280".to_owned());
    let config = resolve(Some(file.as_bytes()), &overrides).unwrap();
    assert_eq!((config.mtu, texts(&config.routes)), (1280, vec!["198.51.100.0/24".to_owned()]));

    overrides.give(flag("mtu"), "1".to_owned());
    let error = ConfigError::new("FILE", resolve(None, &overrides).unwrap_err());
    assert_eq!(error.to_string(), "command line: mtu: '1' is not a number (1280-65535)");
    assert_eq!(error.exit_code(), 2);
}

#[test]
fn secrets_stay_secret() {
    let shown = |file: &str| match Config::from_uci(file) {
        Ok(config) => format!("{config:?}"),
        Err(error) => format!("{error} {error:?}"),
    };
    for line in [
        "list upstream 'http://u:hunter2@192.0.2.1'",
        "list upstream 'http://u:hunter2@192.0.2.1:0'",
        "list upstream 'https://u:hunter2@192.0.2.1'",
        "list upstream 'u:hunter2@192.0.2.1'",
        "list upstream 'http://u:hunter2%zz@192.0.2.1'",
        "config upstream\noption host h\noption username u\noption password hunter2",
        "config upstream\noption host h\noption password hunter2",
        "config upstream\noption host h\noption username u:hunter2",
        "config upstream\noption host http://u:hunter2@h",
        "config upstream\noption host h\nlist header 'X-Token: hunter2'",
        "config upstream\noption host h\nlist header 'hunter2'",
    ] {
        let shown = shown(&format!("{UPSTREAM}{line}"));
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    let overrides = Overrides::new(Some("http://u:hunter2@".to_owned()));
    let error = ConfigError::new("FILE", resolve(None, &overrides).unwrap_err());
    assert_eq!(
        error.to_string(),
        "TCP_OVER_HTTP_UPSTREAM: upstream: the value has no valid host (address or name)"
    );
}

#[test]
fn headers_are_checked() {
    for bad in
        ["X", ": v", "X Y: v", "X: a\nEvil: b", "Host: h", "content-length: 1", "Transfer-Encoding: chunked"]
    {
        let file = format!("{UPSTREAM}config upstream\noption host h\nlist header '{bad}'");
        assert!(Config::from_uci(&file).is_err(), "{bad}");
    }
}

#[test]
fn files_of_networks() {
    let file = "config tcp-over-http main\nlist upstream http://a\nlist bypass 10.0.0.0/8\n\
                list bypass_file LIST\noption ipv6 0";
    let of = |text: Result<&[u8], String>| {
        let mut reading = Reading::new(Ok(Some(file.as_bytes())), &Overrides::default());
        reading.read_files(&|path| {
            assert_eq!(path, "LIST");
            text.clone().map(<[u8]>::to_vec)
        });
        let config = reading.finish(true);
        config
            .map(|config| texts(&config.rules.up_to_direct()[0].networks))
            .map_err(|fault| ConfigError::new("FILE", fault).to_string())
    };
    let text = b"# a list\n192.0.2.0/24 # one\r\n\n  198.51.100.7\n2001:db8::/32\n203.0.113.0/24";
    assert_eq!(of(Ok(text)).unwrap(), ["10.0.0.0/8", "192.0.2.0/24", "198.51.100.7/32", "203.0.113.0/24"]);
    for (text, error) in [
        (Ok(&b"192.0.2.0/24\n192.0.2.1/24\n"[..]), "LIST:2: the line has bits set behind its prefix"),
        (Ok(b"\n\nexample.com"), "LIST:3: the line is not a network (ADDRESS/PREFIX)"),
        (Ok(b"\xff"), "LIST:1: the line is not UTF-8"),
        (Err("no such file".to_owned()), "LIST: no such file"),
    ] {
        assert_eq!(of(text).unwrap_err(), format!("FILE:4:18: bypass_file: {error}"));
    }
}

/// As Notepad and others leave it.
#[test]
fn a_byte_order_mark_is_no_text() {
    let file = "\u{feff}config tcp-over-http main\n\tlist upstream http://192.0.2.1\n\tlist bypass_file LIST\n\toption nix 1\n";
    let of = |text: &str| {
        let mut reading = Reading::new(Ok(Some(text.as_bytes())), &Overrides::default());
        reading.read_files(&|_| Ok("\u{feff}192.0.2.0/24\n".as_bytes().to_vec()));
        reading.finish(true).map_err(|fault| ConfigError::new("FILE", fault).to_string())
    };
    assert!(of(file).unwrap_err().starts_with("FILE:4:9: "), "{:?}", of(file));
    assert_eq!(
        of(&file.replace("\toption nix 1", "")).unwrap().rules.up_to_direct()[0].networks,
        [IpNet::parse("192.0.2.0/24").unwrap()]
    );
    let error = of(&file.replace("config", "\u{feff}config")).unwrap_err();
    assert!(error.starts_with("FILE:1:1: "), "{error}");
}

#[test]
fn rules_are_read() {
    let file = |dns: &str, section: &str| {
        std::format!(
            "config tcp-over-http main\nlist upstream http://a\n{dns}\nlist direct_server 192.0.2.53\n\
             config upstream corp\noption host h\nconfig rule\n{section}"
        )
    };
    let read = |dns: &str, section: &str, list: &[u8]| {
        let text = file(dns, section);
        let mut reading = Reading::new(Ok(Some(text.as_bytes())), &Overrides::default());
        reading.read_files(&|path| match path {
            "/gone" => Err("no such file".to_owned()),
            _ => Ok(list.to_vec()),
        });
        reading.finish(true).map_err(|fault| ConfigError::new("FILE", fault).to_string())
    };
    const NAMES: &str = "option dns fakeip";
    let at = |config: Config, address: &str, port| {
        let [address, client] = [address, "192.168.1.7"].map(|text| text.parse().unwrap());
        config.rules.decide(Connection {
            name: None,
            address,
            port,
            client,
            neighbour: &Neighbour::default(),
        })
    };
    let config = |section: &str| read("", section, b"192.0.2.0/24\n192.0.2.7 # one of them\n").unwrap();
    let corp = "list dest 10.0.0.0/8\noption upstream corp\nlist port 80-90";
    assert_eq!(at(config(corp), "10.1.2.3", 85), Some(Action::Upstream(1)));
    assert_eq!(at(config(corp), "10.1.2.3", 443), None);
    assert_eq!(at(config("list dest_file /l\noption reject 1"), "192.0.2.9", 1), Some(Action::Reject));
    assert_eq!(at(config("list dest_file /l\noption reject 1\noption enabled 0"), "192.0.2.9", 1), None);
    let empty = read("", "list dest_file /l\noption reject 1", b"# none").unwrap();
    assert_eq!(at(empty, "192.0.2.9", 1), None, "an empty list is nothing, not everything");
    assert!(
        read(NAMES, "list domain =a.example\nlist domain_file /l\noption direct 1", b".b.example\n").is_ok()
    );
    for (dns, section, list, error) in [
        ("", "list domain a.example\noption direct 1", "", "FILE:7:8: rule: domains need dns 'fakeip'"),
        ("", "list domain_file /l\noption direct 1", "", "FILE:7:8: rule: domains need dns 'fakeip'"),
        ("", "option upstream nobody", "", "FILE:7:8: rule: there is no upstream 'nobody'"),
        ("", "list port 80", "", "FILE:7:8: rule: needs one of upstream, direct and reject"),
        (
            "",
            "option direct 1\noption reject 1",
            "",
            "FILE:7:8: rule: needs one of upstream, direct and reject",
        ),
        (NAMES, "list domain a..b\noption reject 1", "", "FILE:8:13: domain: 'a..b' is not a domain name"),
        ("", "list dest_file /gone\noption reject 1", "", "FILE:7:8: dest_file: /gone: no such file"),
        (
            NAMES,
            "list domain_file /l\noption reject 1",
            "a\nb c\n",
            "FILE:7:8: domain_file: /l:2: the line is not a domain name",
        ),
        ("", "option nix 1", "", "FILE:8:8: unknown option 'nix'"),
    ] {
        assert_eq!(read(dns, section, list.as_bytes()).map(drop).unwrap_err(), error, "{section}");
    }
    let list = "10.0.0.1\n".repeat(crate::rules::MAX_ENTRIES + 1);
    let error = read("", "list dest_file /l\noption reject 1", list.as_bytes()).map(drop).unwrap_err();
    assert!(error.contains("/l:200001: the line is one too many"), "{error}");
    let many = "option reject 1\nlist port 1\nconfig rule\n".repeat(1024) + "option reject 1";
    assert_eq!(read("", &many, b"").map(drop).unwrap_err(), "rule: more than 1024 sections");
}
