//! What the kernel is told so that connections come to us: by one of the two paths.
//!
//! This, and `tcp_over_http::rewrite::Path`, is all there is to tell them apart.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll};

use tcp_over_http::flow::subnet::Subnet;
use tcp_over_http::rewrite::Path;

use crate::kernel::firewall::{self, Firewall, FirewallError};
use crate::kernel::listener::{self, Listener};
use crate::kernel::probe::{ProbeError, probe};
use crate::kernel::route::{Event, RouteError, Routes};
use crate::kernel::tun::Tun;
use crate::sys;
use tcp_over_http::config::{Config, OnFailure, PathChoice};

/// The routes, the listeners, and the firewall's tables.
pub struct Capture {
    path: Path,
    listeners: Vec<Listener>,
    routes: Routes,
    firewall: Option<Firewall>,
}

/// The TUN's subnets.
#[derive(Clone, Copy)]
pub struct Subnets {
    /// IPv4.
    pub ipv4: Subnet,
    /// IPv6, unless it is off.
    pub ipv6: Option<Subnet>,
}

impl Subnets {
    /// Those of a configuration.
    pub fn new(config: &Config) -> Self {
        Self { ipv4: Subnet::new(config.address.to_ipv6_mapped()), ipv6: config.address6.map(Subnet::new) }
    }
}

impl Capture {
    /// Sets up the configured path; `auto` is the express path if a connection gets through, else rewriting.
    ///
    /// # Errors
    /// [`CaptureError`]. What captures traffic stays in place if `on_failure` says so.
    pub async fn set_up(config: &Config, tun: &Tun) -> Result<Self, CaptureError> {
        match config.path {
            PathChoice::Rewrite => Self::rewrite(config),
            PathChoice::Express => Self::express(config, tun).await,
            PathChoice::Auto => match Self::express(config, tun).await {
                Ok(capture) => Ok(capture),
                Err(error) => {
                    log::info!("the express path does not work here: {error}");
                    Self::rewrite(config)
                }
            },
        }
    }

    /// The path.
    pub const fn path(&self) -> Path {
        self.path
    }

    /// Where connections are accepted.
    pub fn listeners(&self) -> &[Listener] {
        &self.listeners
    }

    /// Puts back what others take away. Ready when the TUN is gone.
    pub fn poll_gone(&mut self, cx: &mut Context) -> Poll<()> {
        while let Poll::Ready(event) = self.routes.poll_event(cx) {
            match event {
                Event::Gone => return Poll::Ready(()),
                Event::Restore => match self.routes.restore() {
                    Ok(()) => log::warn!("routes were changed from outside: restored"),
                    // The device may be on its way out: that would be the next event.
                    Err(error) => log::warn!("routes were changed from outside: {error}"),
                },
            }
        }
        if let Some(firewall) = &mut self.firewall {
            while firewall.poll_deleted(cx).is_ready() {
                match firewall.restore() {
                    Ok(()) => log::warn!("the firewall's table was deleted from outside: restored"),
                    Err(error) => log::error!("the firewall's table was deleted from outside: {error}"),
                }
            }
        }
        Poll::Pending
    }

    /// Takes over what is captured from now on; what goes through the listeners goes on.
    ///
    /// # Errors
    /// [`CaptureError`]; all is as it was then, as far as the kernel lets it.
    pub fn reconfigure(&mut self, config: &Config) -> Result<(), CaptureError> {
        for listener in &self.listeners {
            _ = sys::set_keepalive(listener, config.keepalive); // accepted sockets inherit it
        }
        match self.path {
            // What was there stays where it can't be replaced.
            Path::Rewrite => {
                self.firewall = exemptions(config).or(self.firewall.take().filter(|_| config.captures()))
            }
            Path::Express => {
                self.firewall =
                    Some(Firewall::install(config, Path::Express).map_err(CaptureError::Firewall)?);
            }
        }
        self.routes.reconfigure(config, self.path).map_err(CaptureError::Routes)
    }

    /// Leaves what refuses the traffic that the next run of the daemon will capture, and nothing else.
    pub fn hand_over(self, next: &Config) {
        // A table of another name would never be found again; one of the same the next run replaces.
        let stale = self.firewall.filter(|firewall| !firewall.belongs_to(next));
        if let Err(error) = self.routes.hand_over(next, self.path) {
            log::warn!("{error}");
        }
        stale.into_iter().for_each(forget);
    }

    /// Removes all of it.
    pub fn remove(self) {
        if let Err(error) = self.routes.remove() {
            log::warn!("{error}");
        }
        self.firewall.into_iter().for_each(forget);
    }

    fn rewrite(config: &Config) -> Result<Self, CaptureError> {
        // Before anything is captured: an answer that came to us would get a RST.
        let firewall = exemptions(config);
        let result = match Routes::install(config, Path::Rewrite, &config.tun) {
            Ok(routes) => match listen(config, Path::Rewrite) {
                Ok(listeners) => return Ok(Self { path: Path::Rewrite, listeners, routes, firewall }),
                Err(error) => {
                    give_up(config, routes);
                    Err(error)
                }
            },
            Err(error) => Err(CaptureError::Routes(error)),
        };
        if config.on_failure == OnFailure::Direct {
            firewall.into_iter().for_each(forget);
        }
        result
    }

    async fn express(config: &Config, tun: &Tun) -> Result<Self, CaptureError> {
        let firewall = Firewall::install(config, Path::Express).map_err(CaptureError::Firewall)?;
        let routes = match Routes::install(config, Path::Express, &config.tun) {
            Ok(routes) => routes,
            Err(error) => {
                forget(firewall);
                return Err(CaptureError::Routes(error));
            }
        };
        let result = match listen(config, Path::Express) {
            Ok(listeners) => {
                let subnets = Subnets::new(config);
                let sources =
                    [Some(subnets.ipv4), subnets.ipv6].map(|subnet| subnet.map(|it| it.error_source()));
                let mut result = Ok(());
                for (listener, source) in listeners.iter().zip(sources.into_iter().flatten()) {
                    result = result.and(probe(tun, listener, source).await.map_err(CaptureError::Probe));
                }
                result.map(|()| listeners)
            }
            Err(error) => Err(error),
        };
        match result {
            Ok(listeners) => Ok(Self { path: Path::Express, listeners, routes, firewall: Some(firewall) }),
            Err(error) => {
                give_up(config, routes);
                forget(firewall);
                Err(error)
            }
        }
    }
}

/// The firewall's tables of the rewrite path, which also works without.
fn exemptions(config: &Config) -> Option<Firewall> {
    if !config.captures() {
        firewall::sweep(config);
        return None;
    }
    let installed = Firewall::install(config, Path::Rewrite);
    installed
        .inspect_err(|error| log::warn!("answers to connections from outside are captured, too: {error}"))
        .ok()
}

/// Removes the firewall's tables; if that fails, the log says so.
fn forget(firewall: Firewall) {
    if let Err(error) = firewall.remove() {
        log::warn!("{error}");
    }
}

/// A start that fails leaves captured traffic refused, unless it may go directly.
fn give_up(config: &Config, routes: Routes) {
    if config.on_failure == OnFailure::Direct
        && let Err(error) = routes.remove()
    {
        log::warn!("{error}");
    }
}

fn listen(config: &Config, path: Path) -> Result<Vec<Listener>, CaptureError> {
    listener::listen(config, path).map_err(|(address, error)| CaptureError::Listen(address, error))
}

/// What could not be set up.
#[derive(Debug)]
pub enum CaptureError {
    /// Rules and routes.
    Routes(RouteError),
    /// The firewall's table.
    Firewall(FirewallError),
    /// The listener on this address.
    Listen(SocketAddr, io::Error),
    /// The self-test.
    Probe(ProbeError),
}

impl fmt::Display for CaptureError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Routes(error) => write!(f, "{error}"),
            Self::Firewall(error) => write!(f, "{error}"),
            Self::Listen(address, error) => write!(f, "listen on {address}: {error}"),
            Self::Probe(error) => write!(f, "{error}"),
        }
    }
}
