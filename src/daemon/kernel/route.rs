//! The kernel's network configuration as the daemon needs it: the TUN's settings, and the rules and
//! routes of `policy.rs`.
//!
//! One operation does it all: bring the kernel to the wanted state. It adds first and only then deletes
//! what is ours and not wanted, so that a start after a crash or with other options opens no gap through
//! which traffic could leak. To install is to do it for the first time, to restore is to do it again, to
//! remove is to want nothing.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::task::{Context, Poll};

use log::warn;
use tcp_over_http::rewrite::Path;
use tokio::io::unix::AsyncFd;

use super::netlink::{self, Message, NLM_F_CREATE, NLM_F_REPLACE, Socket};
use super::policy::{self, Route, Rule};
use super::sysctl;
use crate::sys;
use tcp_over_http::config::{Config, OnFailure};
use tcp_over_http::net::{Ipv4Net, Ipv6Net};

mod owner;

use owner::Owner;

/// Packets that the kernel queues for us before it drops (the TUN driver's own default is 500).
pub const TXQUEUELEN: i32 = 1000;

/// The multicast groups that tell of what we have set up (`<linux/rtnetlink.h>`; IPv6 rules have no `RTMGRP_*`). Routes
/// of IPv4 go only with the TUN; those of IPv6 that need no device are the loopback's for the kernel, which deletes
/// them when it goes down. OpenWrt's netifd takes it down when it starts, and its routes with it.
const WATCHED: u32 = (libc::RTMGRP_LINK
    | libc::RTMGRP_IPV4_IFADDR
    | libc::RTMGRP_IPV6_IFADDR
    | libc::RTMGRP_IPV6_ROUTE
    | libc::RTMGRP_IPV4_RULE
    | 1 << (libc::RTNLGRP_IPV6_RULE - 1)) as u32;

/// Length of `struct ifinfomsg`.
const LINK_BODY: usize = 16;

/// What the daemon has changed in the kernel, and a watch over it.
pub struct Routes {
    tun: String,
    ifindex: u32,
    mtu: u16,
    address: Ipv4Net,
    address6: Option<Ipv6Net>,
    owner: Owner,
    rules: Vec<Rule>,
    routes: Vec<Route>,
    watch: AsyncFd<File>,
}

/// What happened to our configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Somebody took down the TUN or deleted something of ours: call [`Routes::restore`]. If that fails since the
    /// TUN is on its way out, `Gone` follows.
    Restore,
    /// The TUN doesn't exist any more.
    Gone,
}

impl Routes {
    /// Sets up the TUN and what leads into it, and removes what a crashed run has left. Must be called
    /// within the tokio runtime.
    ///
    /// If it fails with `on_failure 'direct'`, nothing is left behind; with `'block'` everything stays,
    /// leftovers included: what was refused must not leak because the daemon can't start again.
    pub fn install(config: &Config, path: Path, tun: &str) -> Result<Self, RouteError> {
        let mut socket = Socket::open().map_err(RouteError::Open)?;
        let ifindex = find_device(&mut socket, tun)?;
        let routes = policy::routes(config, path, Some(ifindex));
        // At boot it may be down, and some routes are its. Only then: whoever takes it down later, as netifd does when
        // it starts, wants to be who brings it up.
        let loopback = link_body(policy::LOOPBACK, libc::IFF_UP as u32);
        socket
            .request(Message::new(libc::RTM_NEWLINK, 0, &loopback))
            .map_err(|cause| RouteError::SetLink("lo".to_owned(), cause))?;
        let watch =
            sys::netlink(libc::NETLINK_ROUTE, WATCHED).and_then(sys::watch).map_err(RouteError::Open)?;
        let installed = Routes {
            tun: tun.to_owned(),
            ifindex,
            mtu: config.mtu,
            address: config.address,
            address6: config.address6,
            owner: Owner::new(config),
            rules: policy::rules(config, path, tun, &routes),
            routes,
            watch,
        };
        match installed.restore() {
            Ok(()) => {
                installed.warn_of_strict_filters();
                Ok(installed)
            }
            Err(error) => {
                if config.on_failure == OnFailure::Direct
                    && let Err(error) = installed.remove()
                {
                    warn!("{error}");
                }
                Err(error)
            }
        }
    }

    /// Brings everything back to the installed state, whatever of it is missing.
    pub fn restore(&self) -> Result<(), RouteError> {
        let mut socket = Socket::open().map_err(RouteError::Open)?;
        self.set_up_device(&mut socket)?;
        add(&mut socket, &self.rules, &self.routes)?;
        self.owner.sweep(&mut socket, &self.rules, &self.routes)
    }

    /// Takes over what is captured; the TUN and its addresses stay. If that fails, more may be captured than
    /// before, until [`Routes::restore`], and not less.
    pub fn reconfigure(&mut self, config: &Config, path: Path) -> Result<(), RouteError> {
        let mut socket = Socket::open().map_err(RouteError::Open)?;
        let routes = policy::routes(config, path, Some(self.ifindex));
        let rules = policy::rules(config, path, &self.tun, &routes);
        add(&mut socket, &rules, &routes)?;
        (self.rules, self.routes) = (rules, routes);
        self.owner.sweep(&mut socket, &self.rules, &self.routes)
    }

    /// Before another run takes the place of this one: leaves what refuses the traffic that `next` captures,
    /// whatever its `on_failure`, until that run is there. Deletes everything else.
    pub fn hand_over(self, next: &Config, path: Path) -> Result<(), RouteError> {
        let mut socket = Socket::open().map_err(RouteError::Open)?;
        let (rules, routes) = refusing(next, path);
        add(&mut socket, &rules, &routes)?;
        self.owner.sweep(&mut socket, &rules, &routes)
    }

    /// Deletes the rules and routes. The addresses go with the TUN.
    pub fn remove(self) -> Result<(), RouteError> {
        let mut socket = Socket::open().map_err(RouteError::Open)?;
        self.owner.sweep(&mut socket, &[], &[])
    }

    /// The next thing that somebody else did to our configuration. What we do ourselves is no event:
    /// neither `install` nor `restore` deletes anything that is wanted.
    pub fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        let mut buffer = Vec::new();
        let mut restore = false;
        loop {
            let mut ready = match self.watch.poll_read_ready(cx) {
                Poll::Ready(Ok(ready)) => ready,
                // All is read (or the runtime ends): several changes make one event.
                _ if restore => return Poll::Ready(Event::Restore),
                _ => return Poll::Pending,
            };
            buffer.resize(netlink::READ_SIZE, 0);
            let event = match ready.try_io(|watch| watch.get_ref().read(&mut buffer)) {
                Ok(Ok(length)) => self.judge(buffer.get(..length).unwrap_or_default()),
                // Notifications were lost (ENOBUFS): anything may have happened.
                Ok(Err(_)) => Some(Event::Restore),
                Err(_would_block) => None,
            };
            match event {
                Some(Event::Gone) => return Poll::Ready(Event::Gone),
                Some(Event::Restore) => restore = true,
                None => {}
            }
        }
    }

    /// The filter looks up the way back without the mark, finds our capture, and drops the proxies' answers.
    fn warn_of_strict_filters(&self) {
        if self.rules.is_empty() {
            return;
        }
        for device in sysctl::strict_devices() {
            warn!(
                "rp_filter of {device} is strict: answers of a proxy behind it are dropped if its \
                 address is captured; set it to 2 or bypass the proxy"
            );
        }
    }

    /// What notifications mean to us.
    fn judge(&self, notifications: &[u8]) -> Option<Event> {
        let mut event = None;
        for received in netlink::messages(notifications) {
            let body = received.body;
            // `struct ifinfomsg` and `struct ifaddrmsg` both have the index here.
            let index = netlink::u32_at(body, 4);
            let about_tun = index == self.ifindex;
            let lost = match received.kind {
                // A bridge that lets go of a port says so with its own family.
                libc::RTM_DELLINK if about_tun && body.first() == Some(&0) => {
                    return Some(Event::Gone);
                }
                libc::RTM_NEWLINK => {
                    let is_up = netlink::u32_at(body, 8) & libc::IFF_UP as u32 != 0;
                    // What is the loopback's can't be put back before it is up.
                    if is_up { index == policy::LOOPBACK } else { about_tun }
                }
                libc::RTM_DELADDR => about_tun,
                libc::RTM_DELROUTE => Route::parse(body).is_some_and(|route| self.routes.contains(&route)),
                libc::RTM_DELRULE => Rule::parse(body).is_some_and(|rule| self.rules.contains(&rule)),
                _ => false,
            };
            if lost {
                event = Some(Event::Restore);
            }
        }
        event
    }

    fn set_up_device(&self, socket: &mut Socket) -> Result<(), RouteError> {
        let tun = &self.tun;
        // Replies bear the servers' addresses, which strict filtering would look for behind another device.
        sysctl::set(&format!("net/ipv4/conf/{tun}/rp_filter"), "2");
        // The router's own connections come back to it with its own address.
        sysctl::set(&format!("net/ipv4/conf/{tun}/accept_local"), "1");
        if self.address6.is_some() {
            sysctl::set(&format!("net/ipv6/conf/{tun}/disable_ipv6"), "0");
            sysctl::set(&format!("net/ipv6/conf/{tun}/accept_ra"), "0");
        }
        // Up first, alone: the watch would take news of another change in a device that is down for a loss.
        let up = libc::IFF_UP as u32;
        let set_up = Message::new(libc::RTM_NEWLINK, 0, &link_body(self.ifindex, up));
        socket
            .request(set_up)
            // By ioctl: as attributes, qemu-user would take a big-endian machine's numbers for its own.
            .and_then(|()| Ok(sys::set_mtu(&*socket, tun, self.mtu)?))
            .map_err(|cause| RouteError::SetLink(tun.clone(), cause))?;
        if let Err(error) = sys::set_queue_length(&*socket, tun, TXQUEUELEN) {
            warn!("{tun}: a queue of {TXQUEUELEN} packets: {error}");
        }
        let Ipv4Net { addr, prefix } = self.address;
        self.set_address(socket, &addr.octets(), prefix)
            .map_err(|cause| RouteError::SetAddress(self.address.to_string(), tun.clone(), cause))?;
        if let Some(address) = self.address6 {
            let Ipv6Net { addr, prefix } = address;
            self.set_address(socket, &addr.octets(), prefix)
                .map_err(|cause| RouteError::SetAddress(address.to_string(), tun.clone(), cause))?;
        }
        Ok(())
    }

    /// Sets an address of 4 or 16 bytes. Without duplicate detection it can be bound at once; there is
    /// nobody on the TUN who could have it too.
    fn set_address(&self, socket: &mut Socket, address: &[u8], prefix: u8) -> Result<(), netlink::Error> {
        let (family, flags) = match address.len() {
            4 => (libc::AF_INET as u8, 0),
            _ => (libc::AF_INET6 as u8, libc::IFA_F_NODAD as u8),
        };
        let index = self.ifindex.to_ne_bytes();
        let body = [&[family, prefix, flags, libc::RT_SCOPE_UNIVERSE], &index[..]].concat();
        let message = Message::new(libc::RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &body);
        socket.request(message.attr(libc::IFA_LOCAL, address).attr(libc::IFA_ADDRESS, address))
    }
}

/// Adds what isn't there yet: the routes first, since a rule without them captures nothing.
fn add(socket: &mut Socket, rules: &[Rule], routes: &[Route]) -> Result<(), RouteError> {
    for route in routes {
        socket.request(route.add()).map_err(|cause| RouteError::AddRoute(route.clone(), cause))?;
    }
    for rule in rules {
        match socket.request(rule.add()) {
            Err(cause) if !cause.is(libc::EEXIST) => return Err(RouteError::AddRule(rule.priority, cause)),
            _ => {}
        }
    }
    Ok(())
}

/// Refuses what `config` captures until a daemon runs; beside one that runs with the same, nothing changes. Nothing if
/// traffic may go directly then.
pub fn block(config: &Config) -> Result<(), RouteError> {
    if config.on_failure == OnFailure::Direct {
        return Ok(());
    }
    let (rules, routes) = refusing(config, Path::Rewrite);
    add(&mut Socket::open().map_err(RouteError::Open)?, &rules, &routes)
}

/// What captures, less what leads to the TUN.
fn refusing(config: &Config, path: Path) -> (Vec<Rule>, Vec<Route>) {
    let routes = policy::routes(config, path, None);
    let rules = policy::rules(config, path, &config.tun, &routes);
    (rules, routes)
}

/// How many of the rules and routes of a running daemon are not there.
pub fn missing(config: &Config, path: Path) -> Result<usize, RouteError> {
    let mut socket = Socket::open().map_err(RouteError::Open)?;
    let ifindex = find_device(&mut socket, &config.tun)?;
    let mut routes = policy::routes(config, path, Some(ifindex));
    let mut rules = policy::rules(config, path, &config.tun, &routes);
    let all = Message::new(libc::RTM_GETROUTE, 0, &[0; 12]);
    let each = &mut |received: &netlink::Received| {
        let found = Route::parse(received.body);
        routes.retain(|route| Some(route) != found.as_ref());
    };
    socket.dump(all, each).map_err(RouteError::List)?;
    let all = Message::new(libc::RTM_GETRULE, 0, &[0; 12]);
    let each = &mut |received: &netlink::Received| {
        let found = Rule::parse(received.body);
        rules.retain(|rule| Some(rule) != found.as_ref());
    };
    socket.dump(all, each).map_err(RouteError::List)?;
    Ok(rules.len() + routes.len())
}

/// Deletes what a start with `config` would, and what it would install.
pub fn clear(config: &Config) -> Result<(), RouteError> {
    let mut socket = Socket::open().map_err(RouteError::Open)?;
    Owner::new(config).sweep(&mut socket, &[], &[])
}

fn find_device(socket: &mut Socket, name: &str) -> Result<u32, RouteError> {
    let mut index = 0;
    let request = Message::new(libc::RTM_GETLINK, 0, &[0; LINK_BODY]).attr_text(libc::IFLA_IFNAME, name);
    socket
        .get(request, &mut |received| index = netlink::u32_at(received.body, 4))
        .map_err(|cause| RouteError::FindDevice(name.to_owned(), cause))?;
    Ok(index)
}

/// `struct ifinfomsg`: family, type, index, flags, and which flags to change: those to set.
fn link_body(index: u32, flags: u32) -> [u8; LINK_BODY] {
    let mut body = [0; LINK_BODY];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..12].copy_from_slice(&flags.to_ne_bytes());
    body[12..16].copy_from_slice(&flags.to_ne_bytes());
    body
}

/// Why the kernel's configuration couldn't be changed; each names the action that failed.
#[derive(Debug)]
pub enum RouteError {
    /// Open a netlink socket.
    Open(io::Error),
    /// Find the device of this name.
    FindDevice(String, netlink::Error),
    /// Bring this device up and set its MTU and queue length.
    SetLink(String, netlink::Error),
    /// Give this address to this device.
    SetAddress(String, String, netlink::Error),
    /// Add this route.
    AddRoute(Route, netlink::Error),
    /// Delete this route.
    DeleteRoute(Route, netlink::Error),
    /// Add the rule of this priority.
    AddRule(u32, netlink::Error),
    /// Delete the rule of this priority.
    DeleteRule(u32, netlink::Error),
    /// List the rules and routes there are.
    List(netlink::Error),
}

impl fmt::Display for RouteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(cause) => write!(f, "open a netlink socket: {cause}"),
            Self::FindDevice(name, cause) => write!(f, "find device {name}: {cause}"),
            Self::SetLink(name, cause) => write!(f, "bring up {name}: {cause}"),
            Self::SetAddress(address, name, cause) => {
                write!(f, "set address {address} on {name}: {cause}")
            }
            Self::AddRoute(Route { net, table, .. }, cause) => {
                write!(f, "add route {net} to table {table}: {cause}")
            }
            Self::DeleteRoute(Route { net, table, .. }, cause) => {
                write!(f, "delete route {net} from table {table}: {cause}")
            }
            Self::AddRule(priority, cause) => write!(f, "add rule {priority}: {cause}"),
            Self::DeleteRule(priority, cause) => write!(f, "delete rule {priority}: {cause}"),
            Self::List(cause) => write!(f, "list rules and routes: {cause}"),
        }
    }
}

impl std::error::Error for RouteError {}

#[cfg(test)]
mod tests;
