//! The TUN's settings and addresses, and the policy rules and routes of [`tcp_over_http::capture`]:
//! installed, watched, replaced, restored.
//!
//! Theory of operation: [`Desired`] is what the kernel should have. A [`Change`] lists what it has, and sends
//! the requests of the resulting [`Plan`], in small steps between which the event loop runs. Installing,
//! restoring and replacing differ only in what is desired. One change runs at a time; a restoration comes
//! before a replacement, because a route through a device that somebody has taken down can't be added.

use std::fmt::{self, Display};
use std::fs::File;
use std::io::{self, Read};
use std::mem;
use std::rc::Rc;
use std::task::{Context, Poll};

use log::Level;
use tcp_over_http::capture::{self, Desired, Events, Owner, Path, Plan, Route, Uplinks, link};
use tokio::io::unix::AsyncFd;

use super::sysctl;
use crate::netlink::{self, Socket};
use crate::sys;
use tcp_over_http::config::{Config, OnFailure};
use tcp_over_http::net::IpNet;

mod change;
mod device;

use change::Change;
use device::Device;

/// The rtnetlink multicast groups to watch (`<linux/rtnetlink.h>`, which has no `RTMGRP_*` for IPv6 rules).
///
/// The kernel itself deletes routes, too. IPv4 routes go only with the TUN. IPv6 routes that need no device
/// belong to `lo` for the kernel, and go when `lo` goes down: OpenWrt's netifd takes it down when it starts.
const WATCHED: u32 = (libc::RTMGRP_LINK
    | libc::RTMGRP_IPV4_IFADDR
    | libc::RTMGRP_IPV6_IFADDR
    | libc::RTMGRP_IPV4_ROUTE
    | libc::RTMGRP_IPV6_ROUTE
    | libc::RTMGRP_IPV4_RULE
    | 1 << (libc::RTNLGRP_IPV6_RULE - 1)) as u32;

/// The reason of a change that follows the default routes, rather than restoring something.
const FOLLOWED: &str = "default routes have come or gone";

/// The rules and routes of a run, and a socket that receives notifications about them.
pub struct Routes {
    device: Device,
    owner: Owner,
    /// The desired rules and routes, also while a change to them is under way.
    desired: Rc<Desired>,
    watch: AsyncFd<File>,
    /// The change under way.
    change: Option<(Change, Purpose)>,
    /// The desired state to change to next.
    next: Option<Rc<Desired>>,
    /// If something has to be restored, the reason for the log.
    lost: Option<&'static str>,
    /// Whether rules and routes are deleted when this is dropped.
    undo: bool,
}

/// The purpose of a change.
enum Purpose {
    /// Replace what was desired before.
    Replace(Rc<Desired>),
    /// Restore what was lost, for this reason.
    Restore(&'static str),
}

impl Routes {
    /// Sets up the TUN and begins to watch. Must be called within the tokio runtime.
    pub fn open(config: &Config, tun: &str) -> Result<Self, RouteError> {
        let mut socket = open()?;
        let device = Device::find(&mut socket, tun, config)?;
        // At boot `lo` may be down, and IPv6 routes without a device need it. It is brought up only here,
        // never later: netifd takes `lo` down when it starts, and must be the one to bring it up, or ::1 is
        // lost.
        socket
            .request(link::bring_up(capture::LOOPBACK))
            .map_err(|cause| RouteError::new(&"bring up lo", cause))?;
        device.set_up(&mut socket)?;
        let watch = sys::netlink(libc::NETLINK_ROUTE, WATCHED).and_then(sys::watch);
        let watch = watch.map_err(RouteError::open)?;
        Ok(Routes {
            device,
            owner: Owner::new(config),
            desired: Rc::default(),
            watch,
            change: None,
            next: None,
            lost: None,
            undo: false,
        })
    }

    /// Installs the rules and routes, and deletes those that a crashed run has left. Blocks until it is done.
    ///
    /// If it fails, or [`Routes::keep`] is not called because a later step fails: with `on_failure 'direct'`
    /// nothing is left behind; with `'block'` everything stays, an earlier run's rules included, so that
    /// refused traffic does not leak because the daemon can't start again.
    pub fn install(&mut self, config: &Config, path: Path, uplinks: &Uplinks) -> Result<(), RouteError> {
        self.undo = config.on_failure == OnFailure::Direct;
        self.desired = self.desired(config, path, uplinks);
        self.restore()?;
        self.warn_of_strict_filters();
        Ok(())
    }

    /// Reads the current uplinks.
    pub fn uplinks(&self) -> Result<Uplinks, RouteError> {
        uplinks(self.device.index)
    }

    /// Rules and routes stay when this is dropped.
    pub fn keep(mut self) -> Self {
        self.undo = false;
        self
    }

    /// Restores what is missing of the desired state. Blocks until it is done.
    pub fn restore(&self) -> Result<(), RouteError> {
        self.begin_restore()?.finish()
    }

    /// Restores what is missing in the background, in [`Routes::poll_replaced`]. The result is logged.
    pub fn restore_later(&mut self) {
        self.lost = Some("routes were changed from outside");
    }

    /// The rules and routes that a configuration needs. Networks that can't be captured are logged.
    pub fn desired(&self, config: &Config, path: Path, uplinks: &Uplinks) -> Rc<Desired> {
        let desired = Desired::new(config, path, &self.device.name, Some(self.device.index), uplinks);
        for ignored in &desired.ignored {
            warn!("{ignored}");
        }
        Rc::new(desired)
    }

    /// Changes rules and routes because default routes have changed: in the background, as
    /// [`Routes::restore_later`].
    pub fn follow(&mut self, desired: Rc<Desired>) {
        self.desired = desired;
        self.lost = Some(FOLLOWED);
    }

    /// Replaces rules and routes, in [`Routes::poll_replaced`]. The TUN and its addresses stay.
    pub fn replace(&mut self, desired: Rc<Desired>) {
        self.next = Some(desired);
    }

    /// Does a step of what is left to do. Ready when a replacement has ended. If that has failed, the state
    /// before is restored; until then more may be captured than before, never less.
    pub fn poll_replaced(&mut self, cx: &mut Context) -> Poll<Result<(), RouteError>> {
        loop {
            let (result, purpose) = if let Some((change, _)) = &mut self.change {
                let Poll::Ready(result) = change.step() else {
                    cx.waker().wake_by_ref(); // the next step, after the event loop's other work
                    return Poll::Pending;
                };
                let Some((_, purpose)) = self.change.take() else { continue };
                (result, purpose)
            } else {
                let (begun, purpose) = if let Some(why) = self.lost.take() {
                    (self.begin_restore(), Purpose::Restore(why))
                } else if let Some(next) = self.next.take() {
                    let before = mem::replace(&mut self.desired, next);
                    (Change::begin(&self.owner, &self.desired), Purpose::Replace(before))
                } else {
                    return Poll::Pending;
                };
                match begun {
                    Ok(change) => {
                        self.change = Some((change, purpose));
                        continue;
                    }
                    Err(error) => (Err(error), purpose),
                }
            };
            match (purpose, result) {
                (Purpose::Replace(_), Ok(())) => return Poll::Ready(Ok(())),
                (Purpose::Replace(before), Err(error)) => {
                    self.desired = before;
                    self.lost = Some("routes were changed by a reload that failed");
                    return Poll::Ready(Err(error));
                }
                (Purpose::Restore(why), result) => {
                    // If the TUN is being removed, this fails, and the next event says that it is gone.
                    let end = result.as_ref().map_or_else(|error| error as &dyn Display, |()| &"restored");
                    let level = level(why, &result);
                    log!(level, "{why}: {end}");
                }
            }
        }
    }

    /// Leaves what refuses the traffic that `next` captures, whatever its `on_failure`, until the next run
    /// has started. Deletes everything else.
    pub fn hand_over(self, next: &Config) -> Result<(), RouteError> {
        Change::begin(&self.owner, &refusing(next))?.finish()
    }

    /// Deletes the rules and routes. The kernel deletes the TUN's addresses with the TUN.
    pub fn remove(mut self) -> Result<(), RouteError> {
        self.undo = false;
        clear(&self.owner)
    }

    /// What notifications have told since the last call, taken together.
    pub fn poll_events(&mut self, cx: &mut Context<'_>) -> Poll<Events> {
        let mut buffer = Vec::new();
        let mut events = Events::default();
        // (An error means that the runtime is shutting down.)
        while let Poll::Ready(Ok(mut ready)) = self.watch.poll_read_ready(cx) {
            buffer.resize(netlink::READ_SIZE, 0);
            match ready.try_io(|watch| watch.get_ref().read(&mut buffer)) {
                Ok(Ok(length)) => {
                    let bytes = buffer.get(..length).unwrap_or_default();
                    capture::judge(bytes, self.device.index, &self.desired, &mut events);
                }
                // Notifications were lost (ENOBUFS).
                Ok(Err(_)) => events = Events { gone: events.gone, ..Events::ANY },
                Err(_would_block) => {}
            }
        }
        if events == Events::default() { Poll::Pending } else { Poll::Ready(events) }
    }

    /// Warns of strict reverse path filters. The filter looks up the route to a packet's source without the
    /// mark, finds the route into the TUN, and drops the proxies' answers.
    fn warn_of_strict_filters(&self) {
        if self.desired.rules.is_empty() {
            return;
        }
        for device in sysctl::strict_devices() {
            warn!(
                "rp_filter of {device} is strict: answers of a proxy behind it are dropped if its \
                 address is captured; set it to 2 or bypass the proxy"
            );
        }
    }

    fn begin_restore(&self) -> Result<Change, RouteError> {
        self.device.set_up(&mut open()?)?;
        Change::begin(&self.owner, &self.desired)
    }
}

impl Drop for Routes {
    fn drop(&mut self) {
        if self.undo
            && let Err(error) = clear(&self.owner)
        {
            warn!("{error}");
        }
    }
}

/// The log level for the result of a restoration. While a router boots, netifd flushes rules and takes
/// devices down and up. A route that can't be added to a device that is down is restored when the device
/// comes up.
fn level(why: &str, result: &Result<(), RouteError>) -> Level {
    match result {
        Err(error) if error.cause.errno() == libc::ENETDOWN => Level::Debug,
        Err(_) => Level::Warn,
        Ok(()) if why == FOLLOWED => Level::Debug,
        Ok(()) => Level::Info,
    }
}

/// Adds the rules and routes that refuse what `config` captures. Deletes nothing.
pub fn block(config: &Config) -> Result<(), RouteError> {
    // The plan has seen nothing, so it has additions alone.
    let mut plan = Plan::new(Owner::new(config), refusing(config));
    Change::of(plan.requests())?.finish()
}

/// The uplinks: default routes through devices other than `tun`, and what the main table reaches directly.
pub fn uplinks(tun: u32) -> Result<Uplinks, RouteError> {
    let mut uplinks = Uplinks::default();
    let listed = open()?.list(Route::list(), &mut |received| uplinks.see(received.body, tun));
    listed.map_err(RouteError::list)?;
    Ok(uplinks.finish())
}

/// The index of the device of this name; 0 if there is none.
pub fn index(name: &str) -> u32 {
    let mut index = 0;
    if let Ok(mut socket) = open() {
        _ = socket.get(link::find(name), &mut |received| index = link::index(received.body));
    }
    index
}

/// All addresses of this machine, with their prefix lengths.
pub fn addresses() -> Result<Vec<IpNet>, RouteError> {
    let mut found = Vec::new();
    let listed = open()?.list(link::addresses(), &mut |received| found.extend(link::address(received.body)));
    listed.map_err(|cause| RouteError::new(&"list addresses", cause))?;
    Ok(found)
}

/// What refuses the traffic that `config` captures: the same rules, without routes to the TUN.
fn refusing(config: &Config) -> Rc<Desired> {
    Rc::new(Desired::new(config, Path::Relay, &config.tun, None, &Uplinks::default()))
}

/// How many of the rules and routes of a running daemon are missing.
pub fn missing(config: &Config, path: Path) -> Result<usize, RouteError> {
    let tun = Device::find(&mut open()?, &config.tun, config)?;
    let desired = Rc::new(Desired::new(config, path, &config.tun, Some(tun.index), &uplinks(tun.index)?));
    Change::begin(&Owner::new(config), &desired)?.count_missing()
}

/// Deletes the rules and routes of all runs with the device, the table or the priorities of `owner`.
pub fn clear(owner: &Owner) -> Result<(), RouteError> {
    Change::begin(owner, &Rc::default())?.finish()
}

/// Why the kernel's configuration couldn't be changed.
#[derive(Debug)]
pub struct RouteError {
    /// The action that failed, such as `add rule 5200`.
    action: String,
    cause: netlink::Error,
}

impl RouteError {
    fn new(action: &dyn Display, cause: netlink::Error) -> Self {
        Self { action: action.to_string(), cause }
    }

    fn open(cause: io::Error) -> Self {
        Self::new(&"open a netlink socket", cause.into())
    }

    fn list(cause: netlink::Error) -> Self {
        Self::new(&"list rules and routes", cause)
    }
}

impl Display for RouteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.action, self.cause)
    }
}

impl From<RouteError> for String {
    fn from(error: RouteError) -> Self {
        error.to_string()
    }
}

fn open() -> Result<Socket, RouteError> {
    Socket::open(libc::NETLINK_ROUTE).map_err(RouteError::open)
}

#[cfg(test)]
mod tests;
