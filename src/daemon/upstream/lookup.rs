//! A proxy's name and its last known addresses.
//!
//! The addresses are renewed in the background when they expire, and stay in use as long as that fails: a proxy does
//! not go away because a resolver did.

use crate::limiter::Limiter;
use crate::task::spawn;
use crate::upstream::resolver::{ResolveError, Resolver};
use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;
use tcp_over_http::dns::{BadName, Name};
use tokio::sync::Notify;
use tokio::time::Instant;

/// The shortest and the longest time that addresses are used without asking again; failures are kept for the shortest.
const MIN_TTL: Duration = Duration::from_secs(5);
const MAX_TTL: Duration = Duration::from_secs(3600);

/// One name and its last known addresses.
pub struct Lookup {
    resolver: Rc<Resolver>,
    name: String,
    wire: Name,
    known: RefCell<Option<Known>>,
    is_refreshing: Cell<bool>,
    /// Wakes everyone who waits for the end of a refresh.
    refreshed: Notify,
    limiter: Limiter,
}

struct Known {
    outcome: Result<Rc<[IpAddr]>, ResolveError>,
    until: Instant,
}

impl Lookup {
    /// A name that has not been looked up yet.
    pub fn new(resolver: Rc<Resolver>, name: &str) -> Result<Rc<Self>, BadName> {
        Ok(Rc::new(Self {
            resolver,
            name: name.to_owned(),
            wire: Name::new(name)?,
            known: RefCell::new(None),
            is_refreshing: Cell::new(false),
            refreshed: Notify::new(),
            limiter: Limiter::default(),
        }))
    }

    /// Takes over the addresses of `old` if it has the same name, and returns whether it has. They are renewed as soon
    /// as they are used, since the resolver may have changed.
    pub fn inherit(&self, old: &Self) -> bool {
        let is_same = self.name == old.name;
        if is_same && let Some(Known { outcome: Ok(addresses), .. }) = &*old.known.borrow() {
            let outcome = Ok(Rc::clone(addresses));
            self.known.replace(Some(Known { outcome, until: Instant::now() }));
        }
        is_same
    }

    /// What is known without asking: addresses (even expired ones, which are then renewed in the background), or a
    /// failure of the last seconds.
    ///
    /// Must be called within a tokio `LocalRuntime` or `LocalSet`.
    pub fn known(self: &Rc<Self>) -> Option<Result<Rc<[IpAddr]>, ResolveError>> {
        let known = self.known.borrow();
        let known = known.as_ref()?;
        if Instant::now() >= known.until {
            if known.outcome.is_err() {
                return None;
            }
            self.begin_refresh();
        }
        Some(known.outcome.clone())
    }

    /// The known addresses, even if they have expired.
    pub fn last(&self) -> Option<Rc<[IpAddr]>> {
        self.known.borrow().as_ref()?.outcome.clone().ok()
    }

    /// Whether this is its name.
    pub fn is_for(&self, name: &str) -> bool {
        self.name.trim_end_matches('.').eq_ignore_ascii_case(name)
    }

    /// The addresses; asks for them if none are known.
    ///
    /// # Errors
    /// [`ResolveError`]; repeated without asking for 5 s.
    pub async fn addresses(self: &Rc<Self>) -> Result<Rc<[IpAddr]>, ResolveError> {
        loop {
            if let Some(known) = self.known() {
                return known;
            }
            self.begin_refresh();
            self.refreshed.notified().await;
        }
    }

    /// Starts a refresh in a task of its own, so that a waiter that gives up does not cancel it for the others.
    fn begin_refresh(self: &Rc<Self>) {
        if !self.is_refreshing.replace(true) {
            let this = Rc::clone(self);
            spawn(async move {
                this.refresh().await;
                this.is_refreshing.set(false);
                this.refreshed.notify_waiters();
            });
        }
    }

    async fn refresh(&self) {
        let outcome = self.resolver.resolve(&self.name, &self.wire).await;
        let now = Instant::now();
        let mut known = self.known.borrow_mut();
        match outcome {
            Ok((addresses, ttl)) => {
                debug!("{} has {} addresses for {} s", self.name, addresses.len(), ttl.as_secs());
                *known =
                    Some(Known { outcome: Ok(addresses.into()), until: now + ttl.clamp(MIN_TTL, MAX_TTL) });
            }
            Err(error) => {
                let until = now + MIN_TTL;
                match &mut *known {
                    Some(Known { outcome: Ok(_), until: old }) => {
                        *old = until;
                        if self.limiter.pass(now.into_std()).is_some() {
                            warn!("{}: {error}; its last addresses stay in use", self.name);
                        }
                    }
                    known => *known = Some(Known { outcome: Err(error), until }),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{OK, reply, run, server};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU16, Ordering::SeqCst};

    fn lookup(servers: &[std::net::SocketAddr]) -> Rc<Lookup> {
        Lookup::new(Rc::new(Resolver::new(servers, 0)), "proxy.invalid").unwrap()
    }

    fn expire(lookup: &Lookup) {
        lookup.known.borrow_mut().as_mut().unwrap().until = Instant::now();
    }

    async fn until(condition: impl Fn() -> bool) {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[test]
    fn all_who_wait_share_one_answer() {
        let (address, count) = server(|query| vec![reply(query, OK, &["192.0.2.1"], 1)]);
        run(async {
            let lookup = lookup(&[address]);
            assert!(lookup.known().is_none());
            let tasks: Vec<_> = (0..10)
                .map(|_| {
                    let lookup = Rc::clone(&lookup);
                    tokio::task::spawn_local(async move { lookup.addresses().await })
                })
                .collect();
            for task in tasks {
                assert_eq!(*task.await.unwrap().unwrap(), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
            }
            assert_eq!(count.load(SeqCst), 2);
            let left = lookup.known.borrow().as_ref().unwrap().until - Instant::now();
            assert!(left > MIN_TTL / 2, "a TTL of 1 s counts as 5 s");
        });
    }

    #[test]
    fn failures_are_not_repeated_at_once() {
        let (address, count) = server(|query| vec![reply(query, OK | 3, &[], 0)]);
        run(async {
            let lookup = lookup(&[address]);
            for _ in 0..3 {
                assert_eq!(lookup.addresses().await, Err(ResolveError::Nonexistent));
            }
            assert_eq!(count.load(SeqCst), 2);
            expire(&lookup);
            assert!(lookup.known().is_none());
            assert_eq!(lookup.addresses().await, Err(ResolveError::Nonexistent));
            assert_eq!(count.load(SeqCst), 4);
        });
    }

    #[test]
    fn a_new_one_inherits_addresses_and_renews_them() {
        let (address, _) = server(|query| vec![reply(query, OK, &["192.0.2.1"], 200)]);
        let (newer, _) = server(|query| vec![reply(query, OK, &["192.0.2.2"], 200)]);
        run(async {
            let old = lookup(&[address]);
            old.addresses().await.unwrap();
            let new = lookup(&[newer]);
            new.inherit(&old);
            let now = || new.known().unwrap().unwrap()[0].to_string();
            assert_eq!(now(), "192.0.2.1");
            until(|| now() == "192.0.2.2").await;
            let other = Lookup::new(Rc::new(Resolver::new(&[address], 0)), "other.invalid").unwrap();
            other.inherit(&old);
            assert!(other.known().is_none());
        });
    }

    #[test]
    fn old_addresses_stay_until_there_are_new_ones() {
        let rcode = Arc::new(AtomicU16::new(0));
        let verdict = Arc::clone(&rcode);
        let version = AtomicU16::new(2);
        let (address, count) = server(move |query| {
            let address = format!("192.0.2.{}", version.fetch_add(1, SeqCst) / 2);
            vec![reply(query, OK | verdict.load(SeqCst), &[&address], 1)]
        });
        run(async {
            let lookup = lookup(&[address]);
            let ip = |text: &str| text.parse::<IpAddr>().unwrap();
            let now = || lookup.known().unwrap().unwrap()[0];
            assert_eq!(lookup.addresses().await.unwrap()[0], ip("192.0.2.1"));
            rcode.store(3, SeqCst);
            expire(&lookup);
            assert_eq!(now(), ip("192.0.2.1"));
            assert_eq!(now(), ip("192.0.2.1"));
            until(|| count.load(SeqCst) == 4 && !lookup.is_refreshing.get()).await;
            assert_eq!(now(), ip("192.0.2.1"));
            rcode.store(0, SeqCst);
            expire(&lookup);
            assert_eq!(now(), ip("192.0.2.1"));
            until(|| now() == ip("192.0.2.3")).await;
            assert_eq!(count.load(SeqCst), 6);
        });
    }
}
