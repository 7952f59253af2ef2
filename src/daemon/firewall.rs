//! The firewall table of the express path: it gives a released SYN to the transparent listener, and what
//! belongs to a connection of ours to that connection's socket.
//!
//! A table of our own, replaced as a whole by `nft -f`, so that there is never half of it. Firewalls that
//! are restarted may delete it; a watch tells. Until it is back, released SYNs are refused by the routing
//! rules (`policy.rs`), not forwarded.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::process::{Command, Stdio};
use std::task::{Context, Poll};

use tokio::io::unix::AsyncFd;

use crate::config::{Config, MARK_MASK};
use crate::netlink;
use crate::sys;

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWTABLE` (<linux/netfilter/nfnetlink.h>, nf_tables.h).
const NEW_TABLE: u16 = 10 << 8;
/// The same with `NFT_MSG_DELTABLE`.
const DELETE_TABLE: u16 = 10 << 8 | 2;
/// `NFTA_TABLE_NAME`
const TABLE_NAME: u16 = 1;
/// Length of `struct nfgenmsg`.
const BODY: usize = 4;
/// `NFNLGRP_NFTABLES` as a mask.
const WATCHED: u32 = 1 << (7 - 1);

/// The table, installed.
pub struct Firewall {
    name: String,
    rules: String,
    watch: AsyncFd<File>,
}

/// Why the firewall's table is not there.
#[derive(Debug)]
pub enum FirewallError {
    /// Marks are off, and sockets are told by them.
    NoMark,
    /// Watching the firewall.
    Watch(io::Error),
    /// Running `nft`.
    Run(io::Error),
    /// What `nft` says.
    Refused(String),
}

impl fmt::Display for FirewallError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::NoMark => f.write_str("it needs a mark"),
            Self::Watch(error) => write!(f, "watch the firewall: {error}"),
            Self::Run(error) => write!(f, "run nft: {error}"),
            Self::Refused(text) => write!(f, "nft: {}", text.lines().next().unwrap_or("refuses")),
        }
    }
}

impl Firewall {
    /// Installs the table. Must be called within the tokio runtime.
    ///
    /// # Errors
    /// `nft` is not there, or the kernel lacks the tproxy or the socket match.
    pub fn install(config: &Config) -> Result<Self, FirewallError> {
        if config.mark == 0 {
            return Err(FirewallError::NoMark);
        }
        let name = format!("tcp_over_http_{}", config.tun.replace(|c: char| !c.is_ascii_alphanumeric(), "_"));
        let rules = rules(&name, config);
        let watch = sys::netlink(libc::NETLINK_NETFILTER, WATCHED).and_then(sys::watch);
        let firewall = Self { name, rules, watch: watch.map_err(FirewallError::Watch)? };
        firewall.restore()?;
        Ok(firewall)
    }

    /// Brings the table to what it should be.
    pub fn restore(&self) -> Result<(), FirewallError> {
        nft(&self.rules)
    }

    /// Deletes the table.
    pub fn remove(self) -> Result<(), FirewallError> {
        nft(&delete(&self.name))
    }

    /// Ready when somebody else has deleted the table.
    pub fn poll_deleted(&mut self, cx: &mut Context) -> Poll<()> {
        let mut buffer = Vec::new();
        let mut deleted = false;
        // To the end of the news: a replacement, as we do it, deletes and adds.
        while let Poll::Ready(Ok(mut ready)) = self.watch.poll_read_ready(cx) {
            buffer.resize(netlink::READ_SIZE, 0);
            match ready.try_io(|watch| watch.get_ref().read(&mut buffer)) {
                Ok(Ok(length)) => self.follow(buffer.get(..length).unwrap_or_default(), &mut deleted),
                // News were lost: it may have been ours.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => deleted = true,
                Ok(Err(_)) => break,
                Err(_) => {}
            }
        }
        if deleted { Poll::Ready(()) } else { Poll::Pending }
    }

    /// What these notifications make of the table.
    fn follow(&self, notifications: &[u8], deleted: &mut bool) {
        for message in netlink::messages(notifications) {
            let is_ours = |(kind, value): (u16, &[u8])| {
                kind == TABLE_NAME && value.strip_suffix(b"\0") == Some(self.name.as_bytes())
            };
            if matches!(message.kind, NEW_TABLE | DELETE_TABLE)
                && netlink::attrs(message.body, BODY).any(is_ours)
            {
                *deleted = message.kind == DELETE_TABLE;
            }
        }
    }
}

/// The commands that replace the table.
fn rules(name: &str, config: &Config) -> String {
    let (tun, port, deliver) = (&config.tun, config.listen_port, config.deliver_mark());
    let syn = "tcp flags & (fin | syn | rst | ack) == syn";
    let keep = !MARK_MASK;
    let set = format!("meta mark set meta mark & {keep:#010x} | {deliver:#010x} accept");
    let mut rules = delete(name);
    // Not `socket mark`: a connection that is being opened has none. Other programs' transparent sockets
    // match as well, and are local as well. Behind mangle's own place, so that others' marks are set by then and ours is added to them.
    _ = write!(
        rules,
        "table inet {name} {{\n\
         chain prerouting {{\n\
         type filter hook prerouting priority mangle + 10; policy accept;\n\
         meta l4proto != tcp accept\n\
         iifname \"{tun}\" {syn} meta nfproto ipv4 tproxy ip to 127.0.0.1:{port} {set}\n\
         iifname \"{tun}\" {syn} meta nfproto ipv6 tproxy ip6 to [::1]:{port} {set}\n\
         {syn} accept\n\
         socket transparent 1 {set}\n\
         }}\n}}\n"
    );
    rules
}

/// The commands that delete the table whether it is there or not.
fn delete(name: &str) -> String {
    format!("add table inet {name}\ndelete table inet {name}\n")
}

fn nft(commands: &str) -> Result<(), FirewallError> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(FirewallError::Run)?;
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(commands.as_bytes()));
    let output = child.wait_with_output().map_err(FirewallError::Run)?;
    match (output.status.success(), written) {
        (true, Ok(())) => Ok(()),
        (true, Err(error)) => Err(FirewallError::Run(error)),
        (false, _) => Err(FirewallError::Refused(String::from_utf8_lossy(&output.stderr).into_owned())),
    }
}
