//! The contents of `/etc/hosts` and `/etc/resolv.conf`, read each time.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use tcp_over_http::dns::{self, MAX_ADDRESSES};

/// As many as libc reads from resolv.conf.
const MAX_SERVERS: usize = 3;

/// The addresses of a name in a file like `/etc/hosts`, IPv4 first.
pub fn hosts(path: &Path, name: &str) -> Vec<IpAddr> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let mut addresses: Vec<IpAddr> = Vec::new();
    for_each_line(path, &mut |line| {
        let mut words = line.split('#').next().unwrap_or_default().split_ascii_whitespace();
        if let Some(Ok(address)) = words.next().map(str::parse::<IpAddr>)
            && addresses.len() < MAX_ADDRESSES
            && words.any(|word| word.eq_ignore_ascii_case(name))
        {
            let ipv4 = addresses.iter().take_while(|other| other.is_ipv4()).count();
            addresses.insert(if address.is_ipv4() { ipv4 } else { addresses.len() }, address);
        }
    });
    addresses
}

/// The servers in a file like `/etc/resolv.conf`; without any, the local one (resolv.conf(5)).
pub fn nameservers(path: &Path) -> Vec<SocketAddr> {
    let mut servers = Vec::new();
    for_each_line(path, &mut |line| {
        let mut words = line.split_ascii_whitespace();
        if let (Some("nameserver"), Some(Ok(address))) = (words.next(), words.next().map(str::parse))
            && servers.len() < MAX_SERVERS
        {
            servers.push(SocketAddr::new(address, dns::PORT));
        }
    });
    if servers.is_empty() {
        servers.push((Ipv4Addr::LOCALHOST, dns::PORT).into());
    }
    servers
}

/// A file that cannot be read counts as empty.
fn for_each_line(path: &Path, each: &mut dyn FnMut(&str)) {
    let Ok(file) = File::open(path) else { return };
    for line in BufReader::new(file).split(b'\n').map_while(Result::ok) {
        if let Ok(line) = str::from_utf8(&line) {
            each(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, content: &[u8]) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("toh-{name}-{}", std::process::id()));
        std::fs::write(&path, content).unwrap();
        path
    }

    #[test]
    fn hosts_are_found_by_any_of_their_names() {
        let path = file(
            "hosts",
            b"# 192.0.2.9 proxy\n2001:db8::1 proxy\n192.0.2.1\tproxy.example  Proxy # x other\nnonsense proxy\n\xff\xff\n\
              192.0.2.2 proxy.example.",
        );
        let found = |name| hosts(&path, name).iter().map(IpAddr::to_string).collect::<Vec<_>>();
        assert_eq!(found("PROXY"), ["192.0.2.1", "2001:db8::1"]);
        assert_eq!(found("proxy.example."), ["192.0.2.1"]);
        assert!(found("other").is_empty());
        std::fs::remove_file(&path).unwrap();
        assert!(hosts(&path, "proxy").is_empty());
    }

    #[test]
    fn nameservers_are_the_first_three_or_the_local_one() {
        let text =
            b"search x\nnameserver 192.0.2.1\n#nameserver 192.0.2.9\nnameserver ::1 # x\nnameserver bad\n\
                     nameserver 192.0.2.2\nnameserver 192.0.2.3\n";
        let path = file("resolv", text);
        let found = || nameservers(&path).iter().map(SocketAddr::to_string).collect::<Vec<_>>();
        assert_eq!(found(), ["192.0.2.1:53", "[::1]:53", "192.0.2.2:53"]);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(found(), ["127.0.0.1:53"]);
    }
}
