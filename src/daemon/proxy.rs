//! One upstream proxy and what is known of it.

use crate::config::{Host, UpstreamConfig};
use crate::limiter::Limiter;
use crate::lookup::Lookup;
use crate::resolver::{ResolveError, Resolver};
use log::warn;
use std::cell::Cell;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tcp_over_http::connect::Request;

/// How long a proxy that failed comes last.
const REST: Duration = Duration::from_secs(10);

/// What became of the tunnels asked of one proxy since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Opened.
    pub opened: u32,
    /// Answered with another status than 2xx.
    pub refused: u32,
    /// Not answered: unreachable, silent or garbage.
    pub failed: u32,
    /// From the connect to the last answer, in milliseconds.
    pub latency: u32,
}

/// A kind of warning, limited by itself.
#[derive(Clone, Copy)]
pub enum Event {
    Unreachable,
    TimedOut,
    Closed,
    Garbage,
    Refused,
    Exhausted,
}

impl Event {
    const COUNT: usize = Self::Exhausted as usize + 1;
}

/// A proxy: what the configuration says, and what its last connections taught.
pub struct Proxy {
    /// For logs.
    pub name: String,
    host: Addresses,
    pub port: u16,
    /// What it gets with every CONNECT.
    pub request: Request,
    pub has_credentials: bool,
    /// The address that was connected last.
    pub good_address: Cell<Option<IpAddr>>,
    /// When it last answered, whatever the status.
    pub last_answer: Cell<Option<Instant>>,
    resting_until: Cell<Option<Instant>>,
    pub stats: Cell<Stats>,
    /// One for each [`Event`].
    limiters: [Limiter; Event::COUNT],
}

enum Addresses {
    Fixed(Rc<[IpAddr]>),
    Named(Rc<Lookup>),
}

impl Proxy {
    /// # Errors
    /// `InvalidInput` if the settings make no request, or the name cannot be asked for.
    pub fn new(config: &UpstreamConfig, resolver: &Rc<Resolver>) -> io::Result<Self> {
        let invalid = |error: &dyn fmt::Display| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("upstream {}: {error}", config.name))
        };
        let credentials = config.credentials.as_ref().map(|c| (c.username.as_str(), c.password.as_str()));
        Ok(Self {
            name: config.name.clone(),
            host: match &config.host {
                Host::Ip(ip) => Addresses::Fixed(Rc::new([*ip])),
                Host::Name(name) => {
                    let lookup = Lookup::new(Rc::clone(resolver), name);
                    Addresses::Named(lookup.map_err(|_| invalid(&format_args!("bad host name '{name}'")))?)
                }
            },
            port: config.port,
            request: Request::new(credentials, &config.headers).map_err(|error| invalid(&error))?,
            has_credentials: credentials.is_some(),
            good_address: Cell::default(),
            last_answer: Cell::default(),
            resting_until: Cell::default(),
            stats: Cell::default(),
            limiters: Default::default(),
        })
    }

    /// Where it may be connected; at least one.
    pub async fn addresses(&self) -> Result<Rc<[IpAddr]>, ResolveError> {
        match &self.host {
            Addresses::Fixed(addresses) => Ok(Rc::clone(addresses)),
            Addresses::Named(lookup) => match lookup.known() {
                Some(known) => known,
                None => lookup.addresses().await,
            },
        }
    }

    /// Whether the proxy comes last for now. The first to learn that its rest is over prolongs it for the others.
    pub fn rests(&self) -> bool {
        let Some(until) = self.resting_until.get() else {
            return false;
        };
        let now = Instant::now();
        if now < until {
            return true;
        }
        self.resting_until.set(Some(now + REST));
        false
    }

    /// From now on the proxy comes last for a while.
    pub fn rest(&self) {
        self.resting_until.set(Some(Instant::now() + REST));
    }

    /// The proxy has answered.
    pub fn wake(&self) {
        self.resting_until.set(None);
    }

    pub fn count(&self, change: impl FnOnce(&mut Stats)) {
        let mut stats = self.stats.get();
        change(&mut stats);
        self.stats.set(stats);
    }

    /// Counts and logs a tunnel that got no answer.
    pub fn failed(&self, event: Event, what: fmt::Arguments<'_>) {
        self.count(|stats| stats.failed = stats.failed.wrapping_add(1));
        self.warn(event, what);
    }

    /// Logs at most one event of a kind in 10 s. Never given a client's address or a secret.
    pub fn warn(&self, event: Event, what: fmt::Arguments<'_>) {
        let Some(limiter) = self.limiters.get(event as usize) else {
            return;
        };
        match limiter.pass(Instant::now()) {
            None => {}
            Some(0) => warn!("upstream {}: {what}", self.name),
            Some(more) => warn!("upstream {}: {what} ({more} more since the last line)", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_dial_tries_a_rested_proxy_and_the_others_go_on_without_it() {
        let config = UpstreamConfig {
            name: "p".to_owned(),
            host: Host::Ip([127, 0, 0, 1].into()),
            port: 1,
            credentials: None,
            headers: vec![],
        };
        let proxy = Proxy::new(&config, &Rc::new(Resolver::new(&[], 0))).unwrap();
        assert!(!proxy.rests());
        proxy.rest();
        assert!(proxy.rests());
        proxy.resting_until.set(Some(Instant::now()));
        assert!(!proxy.rests());
        assert!(proxy.rests());
        proxy.wake();
        assert!(!proxy.rests());
    }
}
