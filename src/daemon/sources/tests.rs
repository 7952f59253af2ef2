use std::{env, fs, process};

use tcp_over_http::config::OPTIONS;

use super::*;

fn at_file(path: &str) -> Sources {
    Sources { file: Some(path.to_owned()), ..Sources::default() }
}

#[test]
fn what_is_right_is_known_whatever_else_is_wrong() {
    let path = env::temp_dir().join(format!("toh-sources-{}", process::id()));
    let at = |text: &str| {
        fs::write(&path, text).unwrap();
        at_file(path.to_str().unwrap())
    };
    assert_eq!(at("").load_readable().status_socket, "/var/run/tcp-over-http.sock");
    let broken = "config tcp-over-http main\noption status_socket /a\noption mtu x\nnonsense";
    assert_eq!(at(broken).load_readable().status_socket, "/a");
    assert_eq!(at(broken).load_readable().mtu, 1500);
    let broken =
        "config tcp-over-http main\noption table 5\nlist route bad\nlist route 10.0.0.0/8\noption mtu";
    let config = at(broken).load_readable();
    assert_eq!((config.table, config.routes.len(), config.tun.as_str()), (5, 1, "toh0"));
    let mut sources = at(broken);
    sources.give(OPTIONS.iter().find(|spec| spec.name == "status_socket").unwrap(), "/b".to_owned());
    assert_eq!(sources.load_readable().status_socket, "/b");
    fs::remove_file(&path).unwrap();
}

#[test]
fn files_that_cannot_be_read() {
    let load = |file: &str| at_file(file).load();
    let text = |file| load(file).map(drop).unwrap_err().to_string();
    assert!(text("/nonexistent/file").starts_with("/nonexistent/file: "));
    assert!(text("/").starts_with("/: "));
    assert_eq!(text("/dev/zero"), "/dev/zero: longer than 1 MiB");
}

#[test]
fn files_of_networks_are_read() {
    let paths =
        ["config", "networks"].map(|name| env::temp_dir().join(format!("toh-{name}-{}", process::id())));
    let [file, networks] = paths.each_ref().map(|path| path.to_str().unwrap());
    let with = |path: &str| {
        let text = format!(
            "config tcp-over-http main\nlist upstream http://a\nlist bypass_file {path}\noption ipv6 0"
        );
        fs::write(file, text).unwrap();
        at_file(file).load()
    };
    fs::write(networks, "192.0.2.0/24\n2001:db8::/32\n").unwrap();
    let config = with(networks).unwrap();
    let bypass = &config.rules.short_forms()[0].networks;
    assert_eq!(bypass.iter().map(ToString::to_string).collect::<Vec<_>>(), ["192.0.2.0/24"]);
    assert_eq!(at_file(file).load_readable().rules, config.rules);
    fs::write(networks, "example.com").unwrap();
    let expected =
        format!("{file}:3:18: bypass_file: {networks}:1: the line is not a network (ADDRESS/PREFIX)");
    assert_eq!(with(networks).unwrap_err().to_string(), expected);
    let error = with("/nonexistent").unwrap_err().to_string();
    assert!(error.starts_with(&format!("{file}:3:18: bypass_file: /nonexistent: ")), "{error}");
    paths.iter().for_each(|path| fs::remove_file(path).unwrap());
}
