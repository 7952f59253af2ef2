//! One upstream proxy: where it is, what it is sent, and what is counted and logged about it.

use crate::limiter::Limiter;
use crate::sys;
use crate::upstream::dial::HandshakeError;
use crate::upstream::lookup::Lookup;
use crate::upstream::resolver::{ResolveError, Resolver};
use crate::upstream::stats::Stats;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Instant;
use tcp_over_http::config::{Host, UpstreamConfig};
use tcp_over_http::http::connect::{Request, Target};
use tcp_over_http::http::digest::Offer;
use tcp_over_http::http::login::{Authorization, Denial, Login};
use tcp_over_http::upstream::Failure;
use tcp_over_http::upstream::plain::PlainPorts;

/// The kinds of warnings; each has its own rate limit.
#[derive(Clone, Copy)]
pub enum Warning {
    Unreachable,
    TimedOut,
    Closed,
    Garbage,
    Refused,
    Exhausted,
    UplinkDown,
}

impl Warning {
    const COUNT: usize = Self::UplinkDown as usize + 1;
}

/// What is counted for a proxy of this name; kept across reloads.
#[derive(Debug)]
pub struct Account {
    /// The proxy's name.
    pub name: Rc<str>,
    /// The outcome of the tunnels that it was asked for.
    pub stats: Cell<Stats>,
    /// How many bytes the kernel had forwarded from it when it fell silent.
    pub received: Cell<u64>,
}

/// A configured proxy, its addresses, and its account.
pub struct Proxy {
    /// Shared with the tunnels through it.
    pub account: Rc<Account>,
    host: Addresses,
    /// Its TCP port.
    pub port: u16,
    /// The uplinks at which it is asked before others.
    pub uplinks: Vec<String>,
    /// The request for each tunnel...
    pub request: Request,
    /// ...and the credentials in it.
    pub login: Rc<RefCell<Login>>,
    /// The ports to which it refuses CONNECT.
    pub plain: Rc<RefCell<PlainPorts>>,
    /// One for each [`Warning`].
    limiters: [Limiter; Warning::COUNT],
}

enum Addresses {
    Fixed(Rc<[IpAddr]>),
    Named(Rc<Lookup>),
}

impl Account {
    /// An account with this name and zero counters.
    pub fn new(name: &str) -> Rc<Self> {
        Rc::new(Self { name: name.into(), stats: Cell::default(), received: Cell::default() })
    }

    /// Changes its counters.
    pub fn count(&self, change: impl FnOnce(&mut Stats)) {
        let mut stats = self.stats.get();
        change(&mut stats);
        self.stats.set(stats);
    }
}

impl Proxy {
    /// # Errors
    /// `InvalidInput` if the resolver cannot be asked for its name.
    pub fn new(config: &UpstreamConfig, resolver: &Rc<Resolver>) -> io::Result<Self> {
        Ok(Self {
            account: Account::new(&config.name),
            host: match &config.host {
                Host::Ip(ip) => Addresses::Fixed(Rc::new([*ip])),
                Host::Name(name) => {
                    let lookup = Lookup::new(Rc::clone(resolver), name).map_err(|_| {
                        let text = format!("upstream {}: bad host name '{name}'", config.name);
                        io::Error::new(io::ErrorKind::InvalidInput, text)
                    })?;
                    Addresses::Named(lookup)
                }
            },
            port: config.port,
            uplinks: config.uplinks.clone(),
            request: config.request.clone(),
            plain: Rc::default(),
            login: Rc::new(RefCell::new(Login::new(config.request.auth, config.request.has_credentials()))),
            limiters: Default::default(),
        })
    }

    /// Takes over the counters and known addresses of `old`. Returns whether the proxy is in the same place and asked in the
    /// same way, so that everything else known about it still holds.
    pub fn inherit(&mut self, old: &Self) -> bool {
        self.account = Rc::clone(&old.account);
        let is_same_host = match (&self.host, &old.host) {
            (Addresses::Fixed(new), Addresses::Fixed(old)) => new == old,
            (Addresses::Named(new), Addresses::Named(old)) => new.inherit(old),
            _ => false,
        };
        let is_same = is_same_host && self.port == old.port && self.request == old.request;
        if is_same {
            self.plain = Rc::clone(&old.plain);
            self.login = Rc::clone(&old.login);
        }
        is_same
    }

    /// The addresses to connect to; at least one.
    pub async fn addresses(&self) -> Result<Rc<[IpAddr]>, ResolveError> {
        match &self.host {
            Addresses::Fixed(addresses) => Ok(Rc::clone(addresses)),
            Addresses::Named(lookup) => match lookup.known() {
                Some(known) => known,
                None => lookup.addresses().await,
            },
        }
    }

    /// The addresses, if they are known.
    pub fn known_addresses(&self) -> Option<Rc<[IpAddr]>> {
        match &self.host {
            Addresses::Fixed(addresses) => Some(Rc::clone(addresses)),
            Addresses::Named(lookup) => lookup.last(),
        }
    }

    /// Whether a client's target is this proxy, as far as its addresses are known.
    pub fn is_at(&self, target: Target<'_>) -> bool {
        let (is_host, port) = match (target, &self.host) {
            (Target::Ip(to), _) => {
                let addresses = self.known_addresses();
                (addresses.is_some_and(|addresses| addresses.contains(&to.ip())), to.port())
            }
            (Target::Name(name, port), Addresses::Named(lookup)) => (lookup.is_for(name), port),
            (Target::Name(..), Addresses::Fixed(_)) => return false,
        };
        is_host && port == self.port
    }

    /// Counts the beginning of a dial. Returns the credentials to send.
    pub fn begin(&self) -> Authorization {
        self.count(|stats| stats.attempts = stats.attempts.wrapping_add(1));
        self.login.borrow_mut().begin(false)
    }

    /// The credentials to send instead of those that the proxy has answered with 407.
    ///
    /// # Errors
    /// [`Denial`]: it need not be asked again.
    pub fn refused(&self, used: &Authorization, challenges: &[u8]) -> Result<Authorization, Denial> {
        let cnonce = u64::from_ne_bytes(sys::random().unwrap_or_default());
        let offer = Offer::read(challenges);
        self.login.borrow_mut().refused(used, offer, format!("{cnonce:016x}"))
    }

    /// The same; `None`: there are none, and the reason is logged.
    pub fn next_credentials(&self, used: &Authorization, challenges: &[u8]) -> Option<Authorization> {
        let next = self.refused(used, challenges);
        next.inspect_err(|denial| self.warn(Warning::Refused, format_args!("{}", denial.text()))).ok()
    }

    /// Changes its counters.
    pub fn count(&self, change: impl FnOnce(&mut Stats)) {
        self.account.count(change);
    }

    /// Counts and logs an attempt without an answer. (That this machine is out of resources is not counted.)
    fn failed(&self, warning: Warning, what: fmt::Arguments<'_>) {
        self.count(|stats| {
            let count = match warning {
                Warning::Exhausted => return,
                Warning::Unreachable | Warning::UplinkDown => &mut stats.unreachable,
                Warning::TimedOut => &mut stats.timed_out,
                _ => &mut stats.bad_reply,
            };
            *count = count.wrapping_add(1);
        });
        self.warn(warning, what);
    }

    /// Counts and logs that it could not be connected. Returns the failure.
    pub fn was_not_reached(&self, failure: Failure, error: &io::Error) -> Failure {
        let (warning, what) = match failure {
            Failure::Exhausted => (Warning::Exhausted, ""),
            Failure::UplinkDown => (Warning::UplinkDown, "uplink down: "),
            _ => (Warning::Unreachable, "cannot be reached: "),
        };
        self.failed(warning, format_args!("{what}{error}"));
        failure
    }

    /// Counts and logs that it gave no answer. Returns the failure.
    pub fn gave_no_answer(&self, error: HandshakeError) -> Failure {
        let (warning, failure, what): (_, _, &dyn fmt::Display) = match &error {
            HandshakeError::TimedOut => (Warning::TimedOut, Failure::TimedOut, &"no answer in time"),
            HandshakeError::Closed => (Warning::Closed, Failure::Closed, &"closed before it answered"),
            HandshakeError::CutOff => (Warning::Closed, Failure::BadReply, &"closed within its answer"),
            HandshakeError::Garbage(error) => (Warning::Garbage, Failure::BadReply, error),
        };
        self.failed(warning, format_args!("{what}"));
        failure
    }

    /// Logs at most one warning of each kind in 10 s. `what` must not contain a client's address or a secret.
    pub fn warn(&self, warning: Warning, what: fmt::Arguments<'_>) {
        let Some(limiter) = self.limiters.get(warning as usize) else {
            return;
        };
        match limiter.pass(Instant::now()) {
            None => {}
            Some(0) => warn!("upstream {}: {what}", self.account.name),
            Some(more) => warn!("upstream {}: {what} ({more} more since the last line)", self.account.name),
        }
    }
}
