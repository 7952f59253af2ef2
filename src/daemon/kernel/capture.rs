//! What the kernel is told so that connections come to us: by one of the two paths.
//!
//! This, and `tcp_over_http::rewrite::Path`, is all there is to tell them apart.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll};

use tcp_over_http::capture::{self, Desired, Subnets, nft};
use tcp_over_http::rewrite::Path;

use crate::kernel::firewall::{self, Firewall, FirewallError};
use crate::kernel::listener::{self, Listener};
use crate::kernel::probe::{ProbeError, probe};
use crate::kernel::route::{RouteError, Routes};
use crate::kernel::tun::Tun;
use crate::sys;
use tcp_over_http::config::{Config, PathChoice};

/// The routes, the listeners, and the firewall's tables.
pub struct Capture {
    path: Path,
    listeners: Vec<Listener>,
    routes: Routes,
    firewall: Option<Firewall>,
    /// What is to be taken over.
    next: Option<Next>,
}

/// A configuration that is to be taken over.
struct Next {
    /// The rules and routes, once the firewall has its tables.
    desired: Rc<Desired>,
    /// Whether the firewall is to have any.
    exempts: bool,
}

/// What happens to it.
pub enum Event {
    /// The TUN is gone.
    Gone,
    /// [`Capture::reconfigure`] has ended.
    Reconfigured(Result<(), CaptureError>),
}

impl Capture {
    /// Sets up the configured path; `auto` is the express path if a connection gets through, else rewriting.
    ///
    /// # Errors
    /// [`CaptureError`]. What captures traffic stays in place if `on_failure` says so.
    pub async fn set_up(config: &Config, tun: &Tun) -> Result<Self, CaptureError> {
        let mut path = match config.path {
            PathChoice::Rewrite => Path::Rewrite,
            PathChoice::Express | PathChoice::Auto => Path::Express,
        };
        loop {
            match Self::try_path(config, tun, path).await {
                Err(error) if config.path == PathChoice::Auto && path == Path::Express => {
                    log::info!("the express path does not work here: {error}");
                    path = Path::Rewrite;
                }
                result => return result,
            }
        }
    }

    async fn try_path(config: &Config, tun: &Tun, path: Path) -> Result<Self, CaptureError> {
        // Before anything is captured: an answer that came to us would get a RST.
        let firewall = match path {
            Path::Rewrite => exemptions(config),
            Path::Express => Some(Firewall::install(config, path).map_err(CaptureError::Firewall)?),
        };
        let routes = Routes::install(config, path, &config.tun).map_err(CaptureError::Routes)?;
        let listeners = listen(config, path)?;
        if path == Path::Express {
            let subnets = Subnets::new(config);
            let subnets = [Some(subnets.ipv4), subnets.ipv6].into_iter().flatten();
            for (listener, subnet) in listeners.iter().zip(subnets) {
                probe(tun, listener, subnet.error_source()).await.map_err(CaptureError::Probe)?;
            }
        }
        let (routes, firewall) = (routes.keep(), firewall.map(Firewall::keep));
        Ok(Self { path, listeners, routes, firewall, next: None })
    }

    /// The path.
    pub const fn path(&self) -> Path {
        self.path
    }

    /// Where connections are accepted.
    pub fn listeners(&self) -> &[Listener] {
        &self.listeners
    }

    /// Takes over what is captured from now on; what goes through the listeners goes on. [`Event::Reconfigured`] tells
    /// how that ends: with an error, all is as it was, as far as the kernel lets it. One at a time.
    pub fn reconfigure(&mut self, config: &Config) {
        for listener in &self.listeners {
            _ = sys::set_keepalive(listener, config.keepalive); // accepted sockets inherit it
        }
        let exempts = nft::is_needed(config, self.path);
        if self.firewall.is_none() && exempts {
            self.firewall = Firewall::new(config).inspect_err(warn_of_missing_exemptions).ok();
        }
        if let Some(firewall) = &mut self.firewall {
            firewall.replace(config, self.path);
        }
        self.next = Some(Next { desired: self.routes.desired(config, self.path), exempts });
    }

    /// Puts back what others take away, and takes over what it is to.
    pub fn poll_event(&mut self, cx: &mut Context) -> Poll<Event> {
        while let Poll::Ready(event) = self.routes.poll_event(cx) {
            match event {
                capture::Event::Gone => return Poll::Ready(Event::Gone),
                capture::Event::Restore => self.routes.restore_later(),
            }
        }
        while let Some(firewall) = &mut self.firewall
            && let Poll::Ready(result) = firewall.poll_replaced(cx)
        {
            if let Err(error) = self.end_replacement(result) {
                self.next = None;
                return Poll::Ready(Event::Reconfigured(Err(CaptureError::Firewall(error))));
            }
        }
        if !self.firewall.as_ref().is_some_and(Firewall::is_replacing)
            && let Some(next) = self.next.take()
        {
            self.routes.replace(next.desired);
        }
        let replaced = self.routes.poll_replaced(cx);
        replaced.map(|result| Event::Reconfigured(result.map_err(CaptureError::Routes)))
    }

    /// Without the firewall's tables there is no express path; the rewrite path goes on, with a warning.
    fn end_replacement(&mut self, result: Result<(), FirewallError>) -> Result<(), FirewallError> {
        if self.path == Path::Express {
            return result;
        }
        let exempts = self.next.as_ref().is_some_and(|next| next.exempts);
        match result {
            Err(error) if exempts => warn_of_missing_exemptions(&error),
            _ => {}
        }
        // What was there stays where it can't be replaced.
        self.firewall = self.firewall.take().filter(|firewall| exempts && firewall.is_there());
        Ok(())
    }

    /// Leaves what refuses the traffic that the next run of the daemon will capture, and nothing else.
    pub fn hand_over(self, next: &Config) {
        // A table of another name would never be found again; one of the same the next run replaces.
        let stale = self.firewall.filter(|firewall| !firewall.belongs_to(next));
        if let Err(error) = self.routes.hand_over(next, self.path) {
            log::warn!("{error}");
        }
        stale.into_iter().for_each(Firewall::remove);
    }

    /// Removes all of it.
    pub fn remove(self) {
        if let Err(error) = self.routes.remove() {
            log::warn!("{error}");
        }
        self.firewall.into_iter().for_each(Firewall::remove);
    }
}

/// The firewall's tables of the rewrite path.
fn exemptions(config: &Config) -> Option<Firewall> {
    if !nft::is_needed(config, Path::Rewrite) {
        firewall::sweep(config);
        return None;
    }
    Firewall::install(config, Path::Rewrite).inspect_err(warn_of_missing_exemptions).ok()
}

/// The rewrite path also works without the firewall.
fn warn_of_missing_exemptions(error: &FirewallError) {
    log::warn!("answers to connections from outside are captured, too: {error}");
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
