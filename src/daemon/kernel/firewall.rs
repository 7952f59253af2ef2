//! The firewall's tables of [`tcp_over_http::capture::nft`]: put in place, watched, replaced.

use std::fmt::Display;
use std::fs::File;
use std::io::Read;
use std::iter;
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll, ready};

use log::Level;
use tcp_over_http::capture::Rule;
use tcp_over_http::capture::netlink::Message;
use tcp_over_http::capture::nft::{self as text, Commands};
use tokio::io::unix::AsyncFd;

use crate::clock::Clock;
use crate::kernel::nft::{self, Nft};
use crate::netlink::{self, Error, Socket};
use crate::sys;
use tcp_over_http::config::{Config, OnFailure};

/// `NFNLGRP_NFTABLES` as a mask.
const WATCHED: u32 = 1 << (7 - 1);

/// The tables, and a watch over them.
pub struct Firewall {
    name: String,
    clock: Clock,
    /// The commands that put them in place; none if they are not to be there.
    commands: Option<Commands>,
    watch: AsyncFd<File>,
    /// What is under way, and the commands before it, unless it restores the tables.
    run: Option<(Nft, Option<Option<Commands>>)>,
    /// The commands to run next.
    next: Option<Commands>,
    /// The policy rules that are there in the tables' place.
    standing_in: Vec<Rule>,
    /// Whether the tables are deleted when this is dropped.
    undo: bool,
}

impl Firewall {
    /// A watch, without tables yet. Must be called within the tokio runtime.
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
            standing_in: Vec::new(),
            undo: false,
        })
    }

    /// Puts tables in place by these commands, and blocks until they are. Must be called within the tokio runtime.
    ///
    /// If they are not [kept](Firewall::keep) since something else fails, they go with `on_failure 'direct'`.
    ///
    /// # Errors
    /// `nft` is not there, or the kernel lacks what the path needs: connection tracking, NAT and dup.
    pub fn install(config: &Config, clock: Clock, commands: Commands) -> Result<Self, String> {
        let mut firewall = Self::new(config, clock)?;
        nft::run(&commands.at(clock.now()))?;
        firewall.commands = Some(commands);
        firewall.undo = config.on_failure == OnFailure::Direct;
        Ok(firewall)
    }

    /// Lets the tables stay.
    pub fn keep(mut self) -> Self {
        self.undo = false;
        self
    }

    /// Has others take their place, by these commands. [`Firewall::poll_replaced`] does it.
    pub fn replace(&mut self, commands: Commands) {
        self.next = Some(commands);
    }

    /// Puts back tables that others delete, which the log tells. Ready when the tables are new, or a replacement has failed:
    /// then they are as before.
    pub fn poll_replaced(&mut self, cx: &mut Context) -> Poll<Result<(), String>> {
        loop {
            let (result, before) = if let Some((nft, _)) = &mut self.run {
                // While it runs, notifications tell half of what it does.
                let result = ready!(nft.poll(cx));
                (result, self.run.take().and_then(|(_, before)| before))
            } else {
                let before = if let Some(next) = self.next.take() {
                    Some(self.commands.replace(next))
                } else {
                    ready!(self.poll_deleted(cx));
                    self.begin_standing_in();
                    None
                };
                let commands = self.commands.as_ref().map(|commands| commands.at(self.clock.now()));
                match Nft::start(&commands.unwrap_or_default()) {
                    Ok(nft) => {
                        self.run = Some((nft, before));
                        continue;
                    }
                    Err(error) => (Err(error), before),
                }
            };
            if result.is_ok() {
                self.end_standing_in();
            }
            match (before, result) {
                (Some(_), Ok(())) => return Poll::Ready(Ok(())),
                (Some(before), Err(error)) => {
                    self.commands = before;
                    return Poll::Ready(Err(error));
                }
                (None, result) => {
                    let end = result.as_ref().map_or_else(|error| error as &dyn Display, |()| &"restored");
                    let level = if result.is_ok() { Level::Info } else { Level::Error };
                    log!(level, "the firewall's table was deleted from outside: {end}");
                    if result.is_ok() {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
    }

    /// Has policy rules drop what the tables would take, while there are none: nft may need a second on a small router.
    fn begin_standing_in(&mut self) {
        let Some(commands) = &self.commands else { return };
        self.standing_in.clone_from(&commands.lost);
        request(&mut self.standing_in.iter().map(Rule::add));
    }

    /// The tables are there.
    fn end_standing_in(&mut self) {
        request(&mut mem::take(&mut self.standing_in).iter().rev().map(Rule::delete));
    }

    /// Whether there should be tables.
    pub fn has_tables(&self) -> bool {
        self.commands.is_some()
    }

    /// Whether a replacement has yet to end.
    pub fn is_replacing(&self) -> bool {
        self.next.is_some() || self.run.as_ref().is_some_and(|(_, before)| before.is_some())
    }

    /// Whether a run with `config` has tables of this name.
    pub fn belongs_to(&self, config: &Config) -> bool {
        self.name == text::name(config)
    }

    /// Deletes the tables, and blocks until they are gone. The log tells if that fails.
    pub fn remove(mut self) {
        self.undo = true;
    }

    /// Ready when somebody else has deleted the tables.
    fn poll_deleted(&mut self, cx: &mut Context) -> Poll<()> {
        let mut buffer = Vec::new();
        let mut deleted = false;
        // To the last notification: a replacement deletes and adds.
        while let Poll::Ready(Ok(mut ready)) = self.watch.poll_read_ready(cx) {
            buffer.resize(netlink::READ_SIZE, 0);
            match ready.try_io(|watch| watch.get_ref().read(&mut buffer)) {
                Ok(Ok(length)) => {
                    text::follow(&self.name, buffer.get(..length).unwrap_or_default(), &mut deleted)
                }
                // Notifications were lost: it may have been ours.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => deleted = true,
                Ok(Err(_)) => break,
                Err(_) => {}
            }
        }
        if deleted { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Firewall {
    fn drop(&mut self) {
        self.run = None; // which waits for its end
        if self.undo
            && let Err(error) = nft::run(&text::delete(&self.name))
        {
            warn!("{error}");
        }
    }
}

/// Sends requests about policy rules, if there are any.
fn request(messages: &mut dyn Iterator<Item = Message>) {
    let Some(first) = messages.next() else { return };
    let Ok(mut socket) = Socket::open(libc::NETLINK_ROUTE) else { return };
    for message in iter::once(first).chain(messages) {
        if let Err(error) = socket.request(message) {
            debug!("the rules in the place of the firewall's table: {error}");
        }
    }
}

/// Whether the tables of a running daemon are there.
pub fn is_there(config: &Config) -> bool {
    let families = [Some(libc::AF_INET), config.address6.map(|_| libc::AF_INET6)];
    families.into_iter().flatten().all(|family| {
        let request = text::find(&text::name(config), family as u8);
        Socket::open(libc::NETLINK_NETFILTER)
            .map_err(Error::from)
            .and_then(|mut socket| socket.request(request))
            .is_ok()
    })
}

/// Tells the tables an address of a direct name, by a datagram to it that they take that from, and drop. (Where there are none
/// it gets out, empty, to where the client is about to connect.)
pub fn learn(address: IpAddr, mark: u32) {
    if mark != 0
        && let Ok(socket) = sys::udp_socket(SocketAddr::new(address, text::PROBE_PORT), mark | text::ANSWERED)
    {
        _ = socket.send(&[]);
    }
}

/// Deletes what an earlier run has left, if there is an `nft` to do it.
pub fn sweep(config: &Config) {
    if let Err(error) = nft::run(&text::delete(&text::name(config))) {
        debug!("no firewall tables to delete: {error}");
    }
}
