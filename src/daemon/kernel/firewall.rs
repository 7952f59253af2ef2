//! The firewall's tables ([`tcp_over_http::capture::nft`]): installed, replaced, and restored when others
//! delete them.

use std::fmt::Display;
use std::fs::File;
use std::io::Read;
use std::iter;
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use log::Level;
use tcp_over_http::capture::PolicyRule;
use tcp_over_http::capture::netlink::Message;
use tcp_over_http::capture::nft::{self as text, Commands};
use tokio::io::unix::AsyncFd;

use crate::clock::Clock;
use crate::kernel::nft::{self, Nft};
use crate::netlink::{self, Error, Socket};
use crate::sys;
use tcp_over_http::config::{Config, OnFailure};

/// Bit of the multicast group `NFNLGRP_NFTABLES` (<linux/netfilter/nfnetlink.h>).
const WATCHED: u32 = 1 << (7 - 1);

/// How long after a failure of nft it is tried again.
const RETRY: Duration = Duration::from_secs(10);

const FAMILIES: [i32; 2] = [libc::AF_INET, libc::AF_INET6];

/// The tables, and a socket that receives notifications about them.
pub struct Firewall {
    name: String,
    clock: Clock,
    /// The commands that put the tables in place; `None` if there should be no tables.
    commands: Option<Commands>,
    watch: AsyncFd<File>,
    /// The run of nft under way. `Some(before)`: it replaces the tables of the commands `before`. `None`: it
    /// restores the tables.
    run: Option<(Nft, Option<Option<Commands>>)>,
    /// The commands to run next.
    next: Option<Commands>,
    /// Whether notifications say that somebody else has deleted the table of IPv4, of IPv6.
    deleted: [bool; 2],
    /// Whether somebody has, and no run of nft has put them back yet.
    is_lost: bool,
    /// When nft last failed, if it has not succeeded since.
    failed: Option<Instant>,
    /// The policy rules that drop traffic while the tables are missing.
    standing_in: Vec<PolicyRule>,
    /// Whether the tables are deleted when this is dropped.
    undo: bool,
}

impl Firewall {
    /// Begins to watch, without tables yet. Must be called within the tokio runtime.
    pub fn new(config: &Config, clock: Clock) -> Result<Self, String> {
        if config.mark == 0 {
            return Err("it needs a mark".to_owned());
        }
        let watch = sys::netlink(libc::NETLINK_NETFILTER, WATCHED).and_then(sys::watch);
        let watch = watch.map_err(|error| format!("watch the firewall: {error}"))?;
        let name = text::name(config);
        Ok(Self {
            name,
            clock,
            commands: None,
            watch,
            run: None,
            next: None,
            deleted: [false; 2],
            is_lost: false,
            failed: None,
            standing_in: Vec::new(),
            undo: false,
        })
    }

    /// Installs tables by these commands, and blocks until that is done. They refuse what is captured until the
    /// daemon gives a sign of life. Must be called within the tokio runtime.
    ///
    /// With `on_failure 'direct'`, a drop deletes the tables, until [`Firewall::keep`] is called: so they go
    /// if a later step fails.
    ///
    /// # Errors
    /// There is no `nft`, or the kernel lacks something that the path needs: connection tracking, NAT, `dup`.
    pub fn install(config: &Config, clock: Clock, commands: Commands) -> Result<Self, String> {
        let mut firewall = Self::new(config, clock)?;
        let rules = commands.at(clock.now(), false);
        // An earlier version's tables may have chains at other hooks, which can't stay.
        nft::run(&rules).or_else(|_| nft::run(&(text::delete(&firewall.name) + &rules)))?;
        firewall.commands = Some(commands);
        firewall.undo = config.on_failure == OnFailure::Direct;
        Ok(firewall)
    }

    /// The tables stay when this is dropped.
    pub fn keep(mut self) -> Self {
        self.undo = false;
        self
    }

    /// Replaces the tables by these commands, in [`Firewall::poll_replaced`].
    pub fn replace(&mut self, commands: Commands) {
        self.next = Some(commands);
        self.failed = None;
    }

    /// Replaces tables, and restores tables that others have deleted (which is logged). Ready when the tables
    /// are new or restored. Ready with an error when a replacement has failed; the tables are then as before.
    pub fn poll_replaced(&mut self, cx: &mut Context) -> Poll<Result<(), String>> {
        loop {
            // Others may delete tables also while nft runs, or has still to run, for another reason.
            let is_deleted = self.is_deleted(cx);
            if is_deleted && !self.is_lost {
                self.is_lost = true;
                self.begin_standing_in();
            }
            let (result, before) = if let Some((nft, _)) = &mut self.run {
                let result = ready!(nft.poll(cx));
                (result, self.run.take().and_then(|(_, before)| before))
            } else {
                let before = if let Some(next) = self.next.take() {
                    Some(self.commands.replace(next))
                } else if is_deleted {
                    None
                } else {
                    return Poll::Pending;
                };
                let commands = self.commands.as_ref().map(|commands| commands.at(self.clock.now(), true));
                match Nft::start(&commands.unwrap_or_default()) {
                    Ok(nft) => {
                        self.run = Some((nft, before));
                        continue;
                    }
                    Err(error) => (Err(error), before),
                }
            };
            self.failed = result.is_err().then(Instant::now);
            if result.is_ok() && !self.is_deleted(cx) {
                self.is_lost = false;
                self.end_standing_in();
            }
            match (before, result) {
                (Some(_), Ok(())) => return Poll::Ready(Ok(())),
                (Some(before), Err(error)) => {
                    self.commands = before;
                    self.next = None; // it may belong to the reload that fails with this
                    return Poll::Ready(Err(error));
                }
                (None, result) => {
                    let end = result.as_ref().map_or_else(|error| error as &dyn Display, |()| &"restored");
                    let level = if result.is_ok() { Level::Info } else { Level::Error };
                    log!(level, "the firewall's table was deleted from outside: {end}");
                    if result.is_ok() {
                        return Poll::Ready(Ok(()));
                    }
                    self.deleted = [false; 2]; // until the next try, by a replacement
                }
            }
        }
    }

    /// Adds policy rules that drop what the tables would capture. They take a netlink message each; nft may
    /// take a second on a small router.
    fn begin_standing_in(&mut self) {
        let Some(commands) = &self.commands else { return };
        self.standing_in.clone_from(&commands.lost);
        request(&mut self.standing_in.iter().map(PolicyRule::add));
    }

    /// Deletes those policy rules: the tables are there again.
    fn end_standing_in(&mut self) {
        request(&mut mem::take(&mut self.standing_in).iter().rev().map(PolicyRule::delete));
    }

    /// Whether there should be tables.
    pub fn has_tables(&self) -> bool {
        self.commands.is_some()
    }

    /// Whether others have deleted tables, which are not back yet.
    pub const fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Whether nft has failed a while ago: the tables are not as they should be.
    pub fn is_behind(&self) -> bool {
        self.failed.is_some_and(|failed| failed.elapsed() > RETRY)
    }

    /// Whether policy rules stand in for tables that others have deleted.
    pub const fn stands_in(&self) -> bool {
        !self.standing_in.is_empty()
    }

    /// Whether a replacement is under way or waiting.
    pub fn is_replacing(&self) -> bool {
        self.next.is_some() || self.run.as_ref().is_some_and(|(_, before)| before.is_some())
    }

    /// Whether the tables of a run with `config` have the same name.
    pub fn belongs_to(&self, config: &Config) -> bool {
        self.name == text::name(config)
    }

    /// Deletes the tables, and blocks until they are gone. An error is logged.
    pub fn remove(mut self) {
        self.undo = true;
    }

    /// Whether somebody else has deleted tables, as far as notifications have told.
    fn is_deleted(&mut self, cx: &mut Context) -> bool {
        let (mut buffer, mut is_cut) = (Vec::new(), false);
        // Only the state after the last notification counts, because a replacement deletes and adds.
        while let Poll::Ready(Ok(mut ready)) = self.watch.poll_read_ready(cx) {
            buffer.resize(netlink::READ_SIZE, 0);
            match ready.try_io(|watch| watch.get_ref().read(&mut buffer)) {
                Ok(Ok(length)) => {
                    text::follow(&self.name, buffer.get(..length).unwrap_or_default(), &mut self.deleted)
                }
                // Notifications were lost: a replacement of thousands of networks is enough for that.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => is_cut = true,
                Ok(Err(_)) => break,
                Err(_) => {}
            }
        }
        if is_cut {
            self.deleted = FAMILIES.map(|family| !has_table(&self.name, family));
        }
        // A family that is to have no table gets one and loses it at each replacement.
        let has_table = self.commands.as_ref().map_or([false; 2], |commands| commands.has_table);
        self.deleted.into_iter().zip(has_table).any(|(deleted, has)| deleted && has)
    }
}

impl Drop for Firewall {
    fn drop(&mut self) {
        self.run = None; // waits until nft has ended
        if self.undo
            && let Err(error) = nft::run(&text::delete(&self.name))
        {
            warn!("{error}");
        }
    }
}

/// Sends these requests, each about a policy rule.
fn request(messages: &mut dyn Iterator<Item = Message>) {
    let Some(first) = messages.next() else { return };
    let Ok(mut socket) = Socket::open(libc::NETLINK_ROUTE) else { return };
    for message in iter::once(first).chain(messages) {
        if let Err(error) = socket.request(message) {
            debug!("the rules in the place of the firewall's table: {error}");
        }
    }
}

/// Whether the kernel has the tables of a running daemon.
pub fn is_there(config: &Config) -> bool {
    let [ipv4, ipv6] = FAMILIES.map(|family| has_table(&text::name(config), family));
    ipv4 && (ipv6 || config.address6.is_none())
}

fn has_table(name: &str, family: i32) -> bool {
    let socket = Socket::open(libc::NETLINK_NETFILTER).map_err(Error::from);
    socket.and_then(|mut socket| socket.request(text::find(name, family as u8))).is_ok()
}

/// Adds the address of a direct name to the tables' set `direct`, by sending an empty datagram to it. Chain
/// `learn` reads the address and drops the datagram. (Without tables the datagram leaves, to a host that the
/// client is about to connect to.)
pub fn learn(address: IpAddr, mark: u32) {
    if mark != 0
        && let Ok(socket) = sys::udp_socket(SocketAddr::new(address, text::PROBE_PORT), mark | text::ANSWERED)
    {
        _ = socket.send(&[]);
    }
}

/// Deletes the tables of an earlier run, if there is an `nft`.
pub fn sweep(config: &Config) {
    if let Err(error) = nft::run(&text::delete(&text::name(config))) {
        debug!("no firewall tables to delete: {error}");
    }
}
