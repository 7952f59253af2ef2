//! One upstream proxy and what is known of it.

use crate::report::limiter::Limiter;
use crate::upstream::dial::Reply;
use crate::upstream::lookup::Lookup;
use crate::upstream::resolver::{ResolveError, Resolver};
use log::warn;
use std::cell::Cell;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tcp_over_http::config::{Host, UpstreamConfig};
use tcp_over_http::http::connect::Request;

/// How long a proxy that failed comes last.
const REST: Duration = Duration::from_secs(10);

/// What became of the tunnels asked of one proxy since the start. Counters wrap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Asked for.
    pub attempts: u32,
    /// Opened.
    pub opened: u32,
    /// Answered with another status than 2xx, by class: [`Stats::REFUSED`].
    pub refused: [u32; Self::REFUSED.len()],
    /// It could not be connected.
    pub unreachable: u32,
    /// It did not answer in time.
    pub timed_out: u32,
    /// It closed, or sent garbage.
    pub bad_reply: u32,
    /// From the connect to the answer, in milliseconds: the shortest, the last, and the sum of all.
    pub shortest: u32,
    /// The last.
    pub last: u32,
    /// All together.
    pub sum: u64,
}

impl Stats {
    /// The classes of refusals.
    pub const REFUSED: [&str; 5] =
        ["refused_403", "refused_407", "refused_4xx", "refused_5xx", "refused_other"];

    /// Counts an answer: its status, and how long it took in milliseconds.
    pub fn answered(&mut self, status: u16, latency: u32) {
        self.shortest = if self.answers() == 0 { latency } else { self.shortest.min(latency) };
        self.last = latency;
        self.sum = self.sum.wrapping_add(latency.into());
        let count = match status {
            200..=299 => &mut self.opened,
            403 => &mut self.refused[0],
            407 => &mut self.refused[1],
            400..=499 => &mut self.refused[2],
            500..=599 => &mut self.refused[3],
            _ => &mut self.refused[4],
        };
        *count = count.wrapping_add(1);
    }

    /// The mean of what answers took, in milliseconds.
    pub fn mean(&self) -> u64 {
        self.sum / u64::from(self.answers().max(1))
    }

    fn answers(&self) -> u32 {
        self.refused.iter().fold(self.opened, |sum, count| sum.wrapping_add(*count))
    }
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
            request: config.request().map_err(|error| invalid(&error))?,
            has_credentials: config.credentials.is_some(),
            good_address: Cell::default(),
            last_answer: Cell::default(),
            resting_until: Cell::default(),
            stats: Cell::default(),
            limiters: Default::default(),
        })
    }

    /// Takes over what has happened so far, its addresses as far as they are known, and if it has not moved, which
    /// of them is good and whether it rests.
    pub fn inherit(&self, old: &Self) {
        self.stats.set(old.stats.get());
        let is_same_host = match (&self.host, &old.host) {
            (Addresses::Fixed(new), Addresses::Fixed(old)) => new == old,
            (Addresses::Named(new), Addresses::Named(old)) => new.inherit(old),
            _ => false,
        };
        if is_same_host && self.port == old.port {
            self.good_address.set(old.good_address.get());
            self.resting_until.set(old.resting_until.get());
        }
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

    /// Whether the proxy comes last for now.
    pub fn is_resting(&self) -> bool {
        self.resting_until.get().is_some()
    }

    /// Whether to try the proxy last. The first to learn that its rest is over prolongs it for the others.
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

    /// What a 407 means.
    pub const fn refusal(&self, reply: &Reply) -> &'static str {
        match (reply.offers_basic, self.has_credentials) {
            (true, true) => "407: refuses the credentials",
            (true, false) => "407: wants credentials, none configured",
            (false, _) => "407: wants other credentials than Basic",
        }
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
        self.count(|stats| {
            let count = match event {
                Event::Unreachable => &mut stats.unreachable,
                Event::TimedOut => &mut stats.timed_out,
                _ => &mut stats.bad_reply,
            };
            *count = count.wrapping_add(1);
        });
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
    fn answers_are_counted_by_class() {
        let mut stats = Stats::default();
        for (status, latency) in [(200, 40), (403, 10), (407, 10), (400, 10), (502, 10), (302, 10), (999, 1)]
        {
            stats.answered(status, latency);
        }
        assert_eq!((stats.opened, stats.refused), (1, [1, 1, 1, 1, 2]));
        assert_eq!((stats.shortest, stats.mean(), stats.last), (1, 13, 1));
        assert_eq!(Stats::default().mean(), 0);
    }

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
