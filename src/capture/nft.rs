//! The firewall's tables of our own, one a family (`dup` is not to be had in `inet`), as text for nft(8).
//!
//! - **exempt**, on both paths: what answers a connection from outside (a port forward, a service of this machine)
//!   is marked, and so not captured. Connection tracking knows who began, unless it was told to forget or did so after
//!   hours of silence: then whoever speaks first seems to. Hence a mark on connections that seem to begin with us.
//! - **deliver**, on the express path: a released SYN is given to the transparent listener, and what belongs to a
//!   connection of ours to that connection's socket.
//!
//! Replaced as a whole by `nft -f`, so that there is never half of them. Firewalls that are restarted may delete
//! them; notifications tell. Until they are back, more is captured than should be, and released SYNs are refused by the
//! routing rules, not forwarded.

use alloc::format;
use alloc::string::String;
use core::fmt::Write as _;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Subnets, netlink};
use crate::config::{Config, MARK_MASK};
use crate::rewrite::Path;

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWTABLE` (<linux/netfilter/nfnetlink.h>, nf_tables.h).
const NEW_TABLE: u16 = 10 << 8;
/// The same with `NFT_MSG_DELTABLE`.
const DELETE_TABLE: u16 = 10 << 8 | 2;
/// `NFTA_TABLE_NAME`
const TABLE_NAME: u16 = 1;
/// Length of `struct nfgenmsg`.
const BODY: usize = 4;

/// The tables' name, in both families.
pub fn name(config: &Config) -> String {
    format!("tcp_over_http_{}", config.tun.replace(|c: char| !c.is_ascii_alphanumeric(), "_"))
}

/// The commands that replace the tables, or delete them where a path needs none.
pub fn replace(name: &str, config: &Config, path: Path) -> String {
    let mut rules = delete(name);
    if !is_needed(config, path) {
        return rules;
    }
    let subnets = Subnets::new(config);
    let mut family = |family, listener: IpAddr, behind: IpAddr| {
        _ = writeln!(rules, "table {family} {name} {{");
        if config.captures() {
            exempt(&mut rules, config, path);
        }
        if path == Path::Express {
            deliver(&mut rules, config, SocketAddr::new(listener, config.listen_port), behind);
        }
        rules.push_str("}\n");
    };
    let behind = subnets.ipv4.error_source().to_canonical();
    family("ip", Ipv4Addr::LOCALHOST.into(), behind);
    if let Some(subnet) = subnets.ipv6 {
        family("ip6", Ipv6Addr::LOCALHOST.into(), subnet.error_source().into());
    }
    rules
}

/// Marks the answers to connections from outside, unless they bear a mark of ours.
fn exempt(rules: &mut String, config: &Config, path: Path) {
    let (tun, keep) = (&config.tun, !MARK_MASK);
    let (begun, exempt) = (config.begun_mark(), config.exempt_mark());
    let begins = format!("ct direction original ct mark set ct mark & {keep:#010x} | {begun:#010x}\n");
    let answers = format!(
        "ct direction reply ct mark & {MARK_MASK:#010x} != {begun:#010x} meta mark & {MARK_MASK:#010x} == 0 \
         meta mark set meta mark & {keep:#010x} | {exempt:#010x}\n"
    );
    let delivered = match path {
        Path::Express => {
            format!("meta mark & {MARK_MASK:#010x} == {:#010x} {begins}", config.deliver_mark())
        }
        Path::Rewrite => String::new(),
    };
    _ = write!(
        rules,
        "chain exempt_forwarded {{\n\
         type filter hook prerouting priority mangle + 11; policy accept;\n\
         iifname \"{tun}\" {begins}\
         {answers}\
         }}\n\
         chain exempt_local {{\n\
         type route hook output priority mangle + 11; policy accept;\n\
         {delivered}\
         {answers}\
         }}\n"
    );
}

/// Delivers to `listener`; `behind` is any address behind the TUN.
fn deliver(rules: &mut String, config: &Config, listener: SocketAddr, behind: IpAddr) {
    let tun = &config.tun;
    let (keep, deliver) = (!MARK_MASK, config.deliver_mark());
    let syn = "tcp flags & (fin | syn | rst | ack) == syn";
    let set = format!("meta mark set meta mark & {keep:#010x} | {deliver:#010x} accept");
    // Behind mangle's own place, so that others' marks are set by then and ours is added to them.
    //
    // A SYN for which there is a socket in TIME_WAIT or SYN_RECV must come to us like any other, but the
    // kernel does not forward what it has found a socket for (`ip_forward()` drops it): hence a copy. Full
    // sockets, also listeners that others' rules have chosen by now, are told by having a mark to read.
    //
    // Otherwise not `socket mark`: a connection that is being opened has none. Other programs' transparent
    // sockets match as well, and are local as well.
    _ = write!(
        rules,
        "chain deliver {{\n\
         type filter hook prerouting priority mangle + 10; policy accept;\n\
         meta l4proto != tcp accept\n\
         iifname \"{tun}\" {syn} tproxy to {listener} {set}\n\
         iifname \"{tun}\" {syn} accept\n\
         {syn} socket mark >= 0 accept\n\
         {syn} socket transparent 1 dup to {behind} device \"{tun}\" drop\n\
         {syn} accept\n\
         socket transparent 1 {set}\n\
         }}\n"
    );
}

/// Whether there are to be tables.
pub const fn is_needed(config: &Config, path: Path) -> bool {
    match path {
        Path::Rewrite => config.captures(),
        Path::Express => true,
    }
}

/// The commands that delete the tables whether they are there or not.
pub fn delete(name: &str) -> String {
    ["ip", "ip6"].map(|family| format!("add table {family} {name}\ndelete table {family} {name}\n")).concat()
}

/// Reads notifications: `deleted` becomes whether somebody has deleted tables of this name and not put them back.
pub fn follow(name: &str, notifications: &[u8], deleted: &mut bool) {
    let is_name = |(kind, value): (u16, &[u8])| {
        kind == TABLE_NAME && value.strip_suffix(b"\0") == Some(name.as_bytes())
    };
    for message in netlink::messages(notifications) {
        if matches!(message.kind, NEW_TABLE | DELETE_TABLE) && netlink::attrs(message.body, BODY).any(is_name)
        {
            *deleted = message.kind == DELETE_TABLE;
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::borrow::ToOwned;
    use alloc::vec::Vec;

    use super::*;

    const NAME: &str = "tcp_over_http_toh0";

    fn config(ipv6: &str) -> Config {
        let text = format!(
            "config tcp-over-http 'main'\n\toption tun 'toh0'\n\toption ipv6 '{ipv6}'\n\tlist upstream 'http://192.0.2.1'\n"
        );
        Config::from_uci(&text).unwrap()
    }

    /// The whole text, that a change of it is seen.
    #[test]
    fn the_rules() {
        let text = replace(NAME, &config("0"), Path::Express);
        assert_eq!(
            text,
            "add table ip tcp_over_http_toh0\n\
             delete table ip tcp_over_http_toh0\n\
             add table ip6 tcp_over_http_toh0\n\
             delete table ip6 tcp_over_http_toh0\n\
             table ip tcp_over_http_toh0 {\n\
             chain deliver {\n\
             type filter hook prerouting priority mangle + 10; policy accept;\n\
             meta l4proto != tcp accept\n\
             iifname \"toh0\" tcp flags & (fin | syn | rst | ack) == syn tproxy to 127.0.0.1:12345 \
             meta mark set meta mark & 0x00ffffff | 0x75000000 accept\n\
             iifname \"toh0\" tcp flags & (fin | syn | rst | ack) == syn accept\n\
             tcp flags & (fin | syn | rst | ack) == syn socket mark >= 0 accept\n\
             tcp flags & (fin | syn | rst | ack) == syn socket transparent 1 dup to 10.45.39.2 \
             device \"toh0\" drop\n\
             tcp flags & (fin | syn | rst | ack) == syn accept\n\
             socket transparent 1 meta mark set meta mark & 0x00ffffff | 0x75000000 accept\n\
             }\n}\n"
        );
    }

    #[test]
    fn ipv6_has_a_table_of_its_own() {
        let text = replace(NAME, &config("1"), Path::Express);
        assert!(text.contains("table ip6 tcp_over_http_toh0 {\n"));
        assert!(text.contains("tproxy to [::1]:12345 "));
        assert!(text.starts_with(replace(NAME, &config("0"), Path::Express).as_str()));
    }

    #[test]
    fn answers_to_connections_from_outside_are_exempt() {
        let mut config = config("0");
        config.auto_route = true;
        let text = replace(NAME, &config, Path::Rewrite);
        let begins = "ct direction original ct mark set ct mark & 0x00ffffff | 0x7c000000\n";
        let answers = "ct direction reply ct mark & 0xff000000 != 0x7c000000 meta mark & 0xff000000 == 0 \
                       meta mark set meta mark & 0x00ffffff | 0x76000000\n";
        assert!(text.ends_with(&format!(
            "table ip tcp_over_http_toh0 {{\n\
             chain exempt_forwarded {{\n\
             type filter hook prerouting priority mangle + 11; policy accept;\n\
             iifname \"toh0\" {begins}\
             {answers}\
             }}\n\
             chain exempt_local {{\n\
             type route hook output priority mangle + 11; policy accept;\n\
             {answers}\
             }}\n}}\n"
        )));
        let text = replace(NAME, &config, Path::Express);
        assert!(text.contains(&format!("meta mark & 0xff000000 == 0x75000000 {begins}{answers}")));
    }

    #[test]
    fn names_are_words() {
        let mut config = config("0");
        config.tun = "br-0.7".to_owned();
        assert_eq!(name(&config), "tcp_over_http_br_0_7");
    }

    #[test]
    fn marks_are_told_apart() {
        let mut config = config("0");
        for byte in 1..=0xff_u32 {
            config.mark = byte << 24;
            let mut marks =
                [0, config.mark, config.deliver_mark(), config.exempt_mark(), config.begun_mark()];
            assert!(marks.iter().all(|mark| mark & !MARK_MASK == 0));
            marks.sort_unstable();
            assert!(marks.is_sorted_by(|a, b| a < b));
        }
    }

    /// `struct nlmsghdr`, `struct nfgenmsg` and a name.
    fn notification(kind: u16, name: &str) -> Vec<u8> {
        let name = [name.as_bytes(), b"\0"].concat();
        let mut attr =
            [&(4 + name.len() as u16).to_ne_bytes()[..], &TABLE_NAME.to_ne_bytes(), &name].concat();
        attr.resize(attr.len().next_multiple_of(4), 0);
        let length = (16 + BODY + attr.len()) as u32;
        let header = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10]].concat();
        [&header[..], &[2, 0, 0, 0], &attr].concat()
    }

    #[test]
    fn follows_its_own_tables() {
        let after = |list: &[(u16, &str)]| {
            let bytes: Vec<u8> = list.iter().flat_map(|(kind, name)| notification(*kind, name)).collect();
            let mut deleted = false;
            follow(NAME, &bytes, &mut deleted);
            // A cut message says nothing.
            follow(
                NAME,
                bytes.get(..bytes.len().saturating_sub(1)).unwrap_or_default(),
                &mut deleted.clone(),
            );
            deleted
        };
        assert!(!after(&[]));
        assert!(after(&[(DELETE_TABLE, NAME)]));
        assert!(!after(&[(DELETE_TABLE, "others")]));
        assert!(!after(&[(DELETE_TABLE, "tcp_over_http_toh01")]));
        // As we do it.
        assert!(!after(&[(DELETE_TABLE, NAME), (NEW_TABLE, NAME)]));
        // A restart of the firewall.
        assert!(after(&[(DELETE_TABLE, NAME), (NEW_TABLE, "fw4")]));
        // Rules and chains bear the table's name as well.
        assert!(!after(&[(10 << 8 | 8, NAME)]));
    }
}
