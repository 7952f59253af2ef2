//! The TUN's settings, and the rules and routes of [`tcp_over_http::capture`]: set up, watched, changed.

use std::fmt::{self, Display};
use std::fs::File;
use std::io::{self, Read};
use std::mem;
use std::rc::Rc;
use std::task::{Context, Poll};

use log::Level;
use tcp_over_http::capture::{self, Desired, Events, Owner, Path, Plan, Uplinks, link};
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

/// The multicast groups that tell of what we have set up (`<linux/rtnetlink.h>`; IPv6 rules have no `RTMGRP_*`). Routes
/// of IPv4 go only with the TUN; those of IPv6 that need no device are the loopback's for the kernel, which deletes
/// them when it goes down. OpenWrt's netifd takes it down when it starts, and its routes with it.
const WATCHED: u32 = (libc::RTMGRP_LINK
    | libc::RTMGRP_IPV4_IFADDR
    | libc::RTMGRP_IPV6_IFADDR
    | libc::RTMGRP_IPV4_ROUTE
    | libc::RTMGRP_IPV6_ROUTE
    | libc::RTMGRP_IPV4_RULE
    | 1 << (libc::RTNLGRP_IPV6_RULE - 1)) as u32;

/// Why rules and routes are changed that nobody has taken away.
const FOLLOWED: &str = "default routes have come or gone";

/// What the daemon has changed in the kernel, and a watch over it.
pub struct Routes {
    device: Device,
    owner: Owner,
    /// What should be there, even while it is still being changed to that.
    desired: Rc<Desired>,
    watch: AsyncFd<File>,
    /// What is under way: one thing at a time.
    change: Option<(Change, Purpose)>,
    /// What replaces `desired` next.
    next: Option<Rc<Desired>>,
    /// Why something has to be restored.
    lost: Option<&'static str>,
    /// Whether all is undone when this is dropped.
    undo: bool,
}

/// What a change is for.
enum Purpose {
    /// To replace what was desired.
    Replace(Rc<Desired>),
    /// To restore what was lost, for this reason.
    Restore(&'static str),
}

impl Routes {
    /// Sets up the TUN and watches. Must be called within the tokio runtime.
    pub fn open(config: &Config, tun: &str) -> Result<Self, RouteError> {
        let mut socket = open()?;
        let device = Device::find(&mut socket, tun, config)?;
        // At boot it may be down, and some routes are its. Only then: whoever takes it down later, as netifd does when
        // it starts, wants to be who brings it up.
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

    /// Sets up what leads into the TUN, and removes what a crashed run has left. Blocks until it is done.
    ///
    /// If it fails, or is not [kept](Routes::keep) since something else does, nothing is left behind with `on_failure
    /// 'direct'`; with `'block'` everything stays, leftovers included: what was refused must not leak because the daemon
    /// can't start again.
    pub fn install(&mut self, config: &Config, path: Path, uplinks: &Uplinks) -> Result<(), RouteError> {
        self.undo = config.on_failure == OnFailure::Direct;
        self.desired = self.desired(config, path, uplinks);
        self.restore()?;
        self.warn_of_strict_filters();
        Ok(())
    }

    /// Where the default routes lead now.
    pub fn uplinks(&self) -> Result<Uplinks, RouteError> {
        uplinks(self.device.index)
    }

    /// Lets all of it stay.
    pub fn keep(mut self) -> Self {
        self.undo = false;
        self
    }

    /// Brings everything back to the desired state, whatever of it is missing, and blocks until then.
    pub fn restore(&self) -> Result<(), RouteError> {
        self.begin_restore()?.finish()
    }

    /// The same in the background: [`Routes::poll_replaced`] does it, and the log tells how it ends.
    pub fn restore_later(&mut self) {
        self.lost = Some("routes were changed from outside");
    }

    /// What a configuration asks for; the log tells what of it can't be had.
    pub fn desired(&self, config: &Config, path: Path, uplinks: &Uplinks) -> Rc<Desired> {
        let desired = Desired::new(config, path, &self.device.name, Some(self.device.index), uplinks);
        for ignored in &desired.ignored {
            warn!("{ignored}");
        }
        Rc::new(desired)
    }

    /// Changes what is captured since the default routes have: in the background, as [`Routes::restore_later`].
    pub fn follow(&mut self, desired: Rc<Desired>) {
        self.desired = desired;
        self.lost = Some(FOLLOWED);
    }

    /// Changes what is captured; the TUN and its addresses stay. [`Routes::poll_replaced`] does it.
    pub fn replace(&mut self, desired: Rc<Desired>) {
        self.next = Some(desired);
    }

    /// Does a step of what is left to do. Ready when a replacement has ended. If it has failed, what was there
    /// before is restored; until then, more may be captured than before, and not less.
    pub fn poll_replaced(&mut self, cx: &mut Context) -> Poll<Result<(), RouteError>> {
        loop {
            let (result, purpose) = if let Some((change, _)) = &mut self.change {
                let Poll::Ready(result) = change.step() else {
                    cx.waker().wake_by_ref(); // when others have had their turn
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
                    // If the device is on its way out, that will be the next event.
                    let end = result.as_ref().map_or_else(|error| error as &dyn Display, |()| &"restored");
                    let level = level(why, &result);
                    log!(level, "{why}: {end}");
                }
            }
        }
    }

    /// Before another run takes the place of this one: leaves what refuses the traffic that `next` captures,
    /// whatever its `on_failure`, until that run is there. Deletes everything else.
    pub fn hand_over(self, next: &Config) -> Result<(), RouteError> {
        Change::begin(&self.owner, &refusing(next))?.finish()
    }

    /// Deletes the rules and routes. The addresses go with the TUN.
    pub fn remove(mut self) -> Result<(), RouteError> {
        self.undo = false;
        clear(&self.owner)
    }

    /// What others have done since: several changes at once make one answer.
    pub fn poll_events(&mut self, cx: &mut Context<'_>) -> Poll<Events> {
        let mut buffer = Vec::new();
        let mut events = Events::default();
        // (An error says that the runtime ends.)
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

    /// The filter looks up the way back without the mark, finds our capture, and drops the proxies' answers.
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

/// How much it matters how a restoration ends. A router's boot flushes the rules and takes devices down and up: what can't be
/// added to one that is down is restored when it comes up.
fn level(why: &str, result: &Result<(), RouteError>) -> Level {
    match result {
        Err(error) if error.cause.errno() == libc::ENETDOWN => Level::Debug,
        Err(_) => Level::Warn,
        Ok(()) if why == FOLLOWED => Level::Debug,
        Ok(()) => Level::Info,
    }
}

/// Refuses what `config` captures, by rules and routes alone; what is there stays.
pub fn block(config: &Config) -> Result<(), RouteError> {
    // As if nothing were there.
    let mut plan = Plan::new(Owner::new(config), refusing(config));
    Change::of(plan.requests())?.finish()
}

/// Where the default routes lead that are not through this device.
pub fn uplinks(tun: u32) -> Result<Uplinks, RouteError> {
    let mut uplinks = Uplinks::default();
    let listed = open()?.list(Uplinks::list(), &mut |received| uplinks.see(received.body, tun));
    listed.map_err(RouteError::list)?;
    Ok(uplinks.finish())
}

/// The number of the device of this name; 0 if there is none.
pub fn index(name: &str) -> u32 {
    let mut index = 0;
    if let Ok(mut socket) = open() {
        _ = socket.get(link::find(name), &mut |received| index = link::index(received.body));
    }
    index
}

/// All addresses of this machine, each with its network.
pub fn addresses() -> Result<Vec<IpNet>, RouteError> {
    let mut found = Vec::new();
    let listed = open()?.list(link::addresses(), &mut |received| found.extend(link::address(received.body)));
    listed.map_err(|cause| RouteError::new(&"list addresses", cause))?;
    Ok(found)
}

/// What captures, less what leads to the TUN.
fn refusing(config: &Config) -> Rc<Desired> {
    Rc::new(Desired::new(config, Path::Relay, &config.tun, None, &Uplinks::default()))
}

/// How many of the rules and routes of a running daemon are not there.
pub fn missing(config: &Config, path: Path) -> Result<usize, RouteError> {
    let tun = Device::find(&mut open()?, &config.tun, config)?;
    let desired = Rc::new(Desired::new(config, path, &config.tun, Some(tun.index), &uplinks(tun.index)?));
    Change::begin(&Owner::new(config), &desired)?.count_missing()
}

/// Deletes the rules and routes of all runs with the device, the table or the priority of one.
pub fn clear(owner: &Owner) -> Result<(), RouteError> {
    Change::begin(owner, &Rc::default())?.finish()
}

/// Why the kernel's configuration couldn't be changed.
#[derive(Debug)]
pub struct RouteError {
    /// What was tried, as `add rule 5200`.
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
