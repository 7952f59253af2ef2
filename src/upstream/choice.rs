//! Which proxy is asked next.
//!
//! # Theory of operation
//! The proxies are asked in the order of the configuration, except that those that [rest](super::health) come last.
//! Each is tried at one address after the other, beginning with the one that worked last. An answer is final, whatever
//! its status, except for a 407 to configured credentials: the next proxy is worth a try only if one fails by its own
//! fault. While one is **chosen**, no other is asked, whatever its state; with `pin_fallback` it is only asked first.
//!
//! Proxies whose **uplink** is up are asked before the others.
//!
//! A proxy is **blamed**, and rests, if it can't be reached or refuses its credentials. If it closes, sends garbage or
//! stays silent, that is ambiguous: it may be because of the target. It is the target's fault if the proxy has answered
//! anybody since it was asked, or if another proxy rests because of the same target. A proxy that has ever answered is
//! blamed only when a second target, or the same one 10 s later, gets no answer either. Otherwise, a port scan would
//! send everybody to another proxy.
//!
//! **Credentials** that may be wrong are sent seldom: a wrong password, sent with each connection of a home, locks the
//! account. Until the proxy has accepted them, one connection sends them, and the others wait for the answer; without one,
//! the next sends them after two seconds. A connection that will carry requests sends none itself: each request asks, and
//! waits. Once they are refused, one connection sends them when a rest is over, and the others fail. Credentials that have
//! been accepted count as right: squid also answers 407 to users who may not reach a target.
//!
//! A proxy that rests comes back by a **confirmation** in the background. Only clients' dials start confirmations:
//! while there are none, nothing is sent (unless `probe_interval` is set).

mod attempt;
mod proxy;

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::net::IpAddr;

use super::Failure;
use super::health::{Alarm, State};
use super::history::{ChangeKind, History, StateChange};
use crate::http::connect::Target;
use crate::http::login;
use crate::time::Instant;
use attempt::{bit, digest};
use proxy::{LoginState, ProxyState};

pub use attempt::{Asked, Attempt};

/// The most proxies.
pub const MAX_PROXIES: usize = 64;

/// How long a single target does not make a proxy suspect, in ms.
const DOUBT: u32 = 10_000;
/// How long connections wait for the proxy's answer to credentials that another one has sent, in ms.
const ANSWER: u32 = 2000;

/// Whether a proxy may be sent its credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Yes.
    Granted,
    /// It is about to say whether they are right.
    Later,
    /// It has refused them, and rests.
    Denied,
}

/// The options of the choice.
#[derive(Clone, Copy, Debug, Default)]
pub struct Policy {
    /// Whether other proxies are asked when the chosen one fails.
    pub pin_fallback: bool,
    /// The least time in ms that a connect has before the next proxy is asked beside it; 0: no limit.
    pub hedge_delay: u32,
    /// How often each proxy is confirmed even if no client dials, in ms; 0: never.
    pub probe_interval: u32,
}

/// What is known about each proxy from connections. A proxy is identified by its index in the configuration.
#[derive(Debug)]
pub struct Choice {
    proxies: Vec<ProxyState>,
    policy: Policy,
    /// The name of the chosen proxy, which may disappear from the configuration and come back.
    chosen: Option<Rc<str>>,
    history: History,
}

impl Choice {
    /// A choice between proxies with these names, at most [`MAX_PROXIES`], each with whether it is sent credentials.
    pub fn new(proxies: impl Iterator<Item = (Rc<str>, bool)>, policy: Policy) -> Self {
        Self {
            proxies: proxies.map(ProxyState::new).collect(),
            policy,
            chosen: None,
            history: History::default(),
        }
    }

    /// Takes over what `old` knows, except about single proxies.
    pub fn inherit(&mut self, old: &Self) {
        self.chosen = old.chosen.clone();
        self.history = old.history.clone();
    }

    /// Takes over what `old` knows about a proxy that is still in the same place, but had the index `old_index` there.
    /// Refused credentials get another chance: the account may have been unlocked before the reload.
    pub fn inherit_proxy(&mut self, index: usize, old: &Self, old_index: usize) {
        if let (Some(new), Some(old)) = (self.proxies.get_mut(index), old.proxies.get(old_index))
            && old.login != LoginState::Refused
        {
            // The outcome of a confirmation in progress will be reported to `old`.
            let is_preferred = new.is_preferred;
            *new = ProxyState { answers: new.answers, is_asked: false, is_preferred, ..old.clone() };
        }
    }

    /// From now on asks only the proxy with this name; `None`: chooses freely again. Returns whether there is such a
    /// proxy.
    pub fn choose(&mut self, name: Option<&str>, now: Instant) -> bool {
        let chosen = name.map(|name| self.proxies.iter().find(|proxy| *proxy.name == *name));
        let chosen = match chosen {
            Some(None) => return false,
            Some(Some(proxy)) => Some(Rc::clone(&proxy.name)),
            None => None,
        };
        if chosen != self.chosen {
            let (upstream, kind) = match (&chosen, &self.chosen) {
                (Some(new), _) => (new, ChangeKind::Chosen),
                (None, Some(old)) => (old, ChangeKind::Released),
                (None, None) => return true,
            };
            self.history.push(StateChange { at: now, upstream: Rc::clone(upstream), kind });
            self.chosen = chosen;
        }
        true
    }

    /// From now on asks proxies whose uplink `is_up` before others. Returns whether that changes the order.
    pub fn prefer(&mut self, is_up: &dyn Fn(usize) -> bool) -> bool {
        let mut is_other = false;
        for (index, proxy) in self.proxies.iter_mut().enumerate() {
            is_other |= core::mem::replace(&mut proxy.is_preferred, is_up(index)) != proxy.is_preferred;
        }
        is_other
    }

    /// Whether the proxy's uplink is up.
    pub fn is_preferred(&self, index: usize) -> bool {
        self.proxies.get(index).is_some_and(|proxy| proxy.is_preferred)
    }

    /// The index of the chosen proxy.
    pub fn chosen(&self) -> Option<usize> {
        self.proxies.iter().position(|proxy| self.chosen.as_deref() == Some(&*proxy.name))
    }

    /// Which proxy a new connection would ask first.
    pub fn first(&self) -> Option<usize> {
        self.best(&Attempt::of(0, None))
    }

    /// Which proxy to ask next, at the time `now`. `None`: the attempt has failed, with
    /// [`Attempt::failure`], unless it [must wait](Attempt::must_wait).
    pub fn next(&mut self, attempt: &mut Attempt, now: Instant) -> Option<Asked> {
        attempt.must_wait = false;
        if attempt.is_over {
            return None;
        }
        self.advance(now);
        loop {
            let index = self.best(attempt)?;
            let is_resting = self.is_resting(index);
            let admission = self.admit(index, attempt.quiet & bit(index) != 0, now);
            attempt.must_wait = admission == Admission::Later;
            if attempt.must_wait {
                return None;
            }
            if attempt.asked == 0 && !is_resting {
                self.want_rested(now);
            }
            attempt.asked |= bit(index);
            if admission == Admission::Granted {
                return self.ask(index);
            }
            attempt.failure = attempt.failure.max(Some(Failure::Credentials));
        }
    }

    /// Whether the proxy may be sent its credentials at the time `now`, in the next moment. `is_quiet`: it is only to be
    /// connected.
    pub fn admit(&mut self, index: usize, is_quiet: bool, now: Instant) -> Admission {
        let Some(proxy) = self.proxies.get_mut(index) else { return Admission::Denied };
        let is_asked = proxy.sent_at.is_some_and(|sent_at| now.since(sent_at) < ANSWER);
        match proxy.login {
            LoginState::Untried if is_asked && !is_quiet => return Admission::Later,
            LoginState::Refused if proxy.health.is_resting() && !proxy.health.is_rested(now) => {
                return Admission::Denied;
            }
            _ if is_quiet => return Admission::Granted,
            _ => {}
        }
        proxy.sent_at = Some(now);
        if proxy.login == LoginState::Refused {
            // As if refused once more, until it has answered: for those who come meanwhile.
            proxy.is_wanted = false;
            if proxy.health.blame(Failure::Credentials, now) {
                self.tell(index, ChangeKind::Rests(Failure::Credentials), now);
            }
        }
        Admission::Granted
    }

    /// How long, in ms, the proxy's connect may take before the next one is asked beside it; `None`: no other would be
    /// asked beside it.
    pub fn hedge(&self, attempt: &Attempt, asked: Asked) -> Option<u32> {
        let next = self.proxies.get(self.best(attempt)?)?;
        let usual = self.proxies.get(asked.index)?.connect_time / 8;
        let delay = self.policy.hedge_delay;
        (delay != 0 && !next.health.is_resting()).then(|| delay.max(3 * usual))
    }

    /// Notes that another proxy was faster than this one's connect, which is given up: a confirmation will tell whether
    /// it still answers.
    pub fn overtaken(&mut self, asked: Asked) {
        if let Some(proxy) = self.proxies.get_mut(asked.index) {
            proxy.is_wanted = true;
        }
    }

    /// Notes that the proxy has answered, and not refused the credentials.
    pub fn answered(&mut self, index: usize, status: u16, now: Instant) {
        if let Some(proxy) = self.proxies.get_mut(index)
            && login::is_accepted(status)
        {
            proxy.login = LoginState::Accepted;
        }
        self.undecided(index);
        self.works(index, now);
    }

    /// Notes that the proxy says nothing about the credentials that it was sent last: it wants others, which the same
    /// connection is about to send, or is gone.
    pub fn undecided(&mut self, index: usize) {
        if let Some(proxy) = self.proxies.get_mut(index) {
            proxy.sent_at = None;
        }
    }

    fn works(&mut self, index: usize, now: Instant) {
        let Some(proxy) = self.proxies.get_mut(index) else { return };
        if proxy.answered(now) {
            self.tell(index, ChangeKind::Answers, now);
        }
        self.route(index, true, now);
    }

    /// Notes that the proxy has opened no tunnel.
    pub fn failed(&mut self, attempt: &mut Attempt, asked: Asked, failure: Failure, now: Instant) {
        attempt.failure = attempt.failure.max(Some(failure));
        attempt.is_over |= self.judge(asked, failure, attempt.target, now);
    }

    /// Notes that the proxy has failed outside of a dial.
    pub fn blamed(&mut self, index: usize, failure: Failure, now: Instant) {
        if let Some(asked) = self.ask(index) {
            self.judge(asked, failure, 0, now);
        }
    }

    /// Notes that the proxy has been connected at `address`, after `ms`.
    pub fn connected(&mut self, index: usize, address: IpAddr, ms: u32) {
        if let Some(proxy) = self.proxies.get_mut(index) {
            proxy.connected(address, ms);
        }
    }

    /// Lets time pass, and returns a proxy to be confirmed, if there is one. The outcome must be
    /// [reported](Self::confirmed).
    pub fn confirm(&mut self, now: Instant) -> Option<Asked> {
        self.advance(now);
        let interval = self.policy.probe_interval;
        let index = self.proxies.iter().position(|proxy| proxy.is_due(interval, now))?;
        let proxy = self.proxies.get_mut(index)?;
        (proxy.is_wanted, proxy.is_asked) = (false, true);
        self.ask(index)
    }

    /// Notes the outcome of a confirmation with this target, for which any answer is good, or of a mere connect.
    pub fn confirmed(&mut self, asked: Asked, result: Result<(), Failure>, target: Target<'_>, now: Instant) {
        if let Some(proxy) = self.proxies.get_mut(asked.index) {
            proxy.is_asked = false;
            proxy.known_at = now;
        }
        match result {
            Ok(()) | Err(Failure::Refused { .. }) => self.works(asked.index, now),
            Err(failure) => _ = self.judge(asked, failure, digest(target), now),
        }
    }

    /// Returns a proxy whose connections need attention.
    pub fn take_alarm(&mut self, now: Instant) -> Option<(usize, Alarm)> {
        let mut alarms = self.proxies.iter_mut().map(|proxy| proxy.health.take_alarm()).enumerate();
        let (index, alarm) = alarms.find_map(|(index, alarm)| Some((index, alarm?)))?;
        if alarm == Alarm::Dead {
            self.tell(index, ChangeKind::Dead, now);
        }
        Some((index, alarm))
    }

    /// Which of the proxy's `addresses`, by index, to connect first; the others follow in turn.
    pub fn first_address(&self, index: usize, addresses: &[IpAddr]) -> usize {
        let good = self.good_address(index);
        addresses.iter().position(|&address| Some(address) == good).unwrap_or(0)
    }

    /// The address at which the proxy was connected last.
    pub fn good_address(&self, index: usize) -> Option<IpAddr> {
        self.proxies.get(index)?.good_address
    }

    /// The usual time to connect to the proxy, in ms; 0: not known.
    pub fn connect_time(&self, index: usize) -> u32 {
        self.proxies.get(index).map_or(0, |proxy| proxy.connect_time / 8)
    }

    /// Whether the proxy has not answered since its rest began.
    pub fn is_resting(&self, index: usize) -> bool {
        self.proxies.get(index).is_some_and(|proxy| proxy.health.is_resting())
    }

    /// The proxy's state; `None`: there is no route to it.
    pub fn state(&self, index: usize) -> Option<State> {
        self.proxies.get(index).filter(|proxy| proxy.has_route).map(|proxy| proxy.health.state())
    }

    /// The last changes.
    pub const fn history(&mut self) -> &mut History {
        &mut self.history
    }

    /// The first proxy in order that this attempt has not asked yet.
    fn best(&self, attempt: &Attempt) -> Option<usize> {
        let chosen = self.chosen();
        let is_open = |index: usize| {
            let is_allowed = match attempt.only {
                Some(only) => only == index,
                None => chosen.is_none_or(|chosen| chosen == index || self.policy.pin_fallback),
            };
            attempt.asked & bit(index) == 0 && is_allowed
        };
        let rank = |&index: &usize| {
            let state = self.proxies.get(index).map(|proxy| proxy.health.state());
            let rank = match state {
                Some(State::Ok) => 0,
                Some(State::Holding(_)) => 1,
                _ => 2,
            };
            (rank, chosen != Some(index), !self.is_preferred(index), index)
        };
        (0..self.proxies.len()).filter(|&index| is_open(index)).min_by_key(rank)
    }

    /// Notes that a client dials: proxies that would be asked if they didn't rest are confirmed once their rest is
    /// over.
    fn want_rested(&mut self, now: Instant) {
        if self.chosen().is_some() && !self.policy.pin_fallback {
            return;
        }
        for proxy in &mut self.proxies {
            proxy.is_wanted |= proxy.health.is_rested(now);
        }
    }

    fn ask(&self, index: usize) -> Option<Asked> {
        Some(Asked { index, answers: self.proxies.get(index)?.answers })
    }

    fn advance(&mut self, now: Instant) {
        for index in 0..self.proxies.len() {
            if self.proxies[index].health.advance(now) {
                self.tell(index, ChangeKind::Ok, now);
            }
        }
    }

    /// Blames the proxy if it is to blame. Returns whether no other proxy is worth a try.
    fn judge(&mut self, asked: Asked, failure: Failure, target: u32, now: Instant) -> bool {
        let index = asked.index;
        let Some(proxy) = self.proxies.get_mut(index) else { return false };
        proxy.sent_at = None;
        let answers_others = proxy.answers != asked.answers;
        match failure {
            Failure::Refused { .. } | Failure::BadTarget => return true,
            // Towards the next proxy, other ports are free.
            Failure::Exhausted => return false,
            Failure::UplinkDown => {
                self.route(index, false, now);
                return false;
            }
            _ if !failure.is_ambiguous() => {}
            _ if answers_others => return failure == Failure::TimedOut,
            _ if self.is_doubtful(index, target, now) => return false,
            _ => {}
        }
        self.route(index, true, now);
        let Some(proxy) = self.proxies.get_mut(index) else { return false };
        if failure == Failure::Credentials && proxy.login == LoginState::Untried {
            proxy.login = LoginState::Refused;
        }
        if !proxy.health.is_resting() {
            proxy.blamed_for = failure.is_ambiguous().then_some(target);
        }
        proxy.is_wanted = false;
        proxy.known_at = now;
        if proxy.health.blame(failure, now) {
            self.tell(index, ChangeKind::Rests(failure), now);
        }
        false
    }

    /// Whether the missing answer may be the target's fault, not the proxy's.
    fn is_doubtful(&mut self, index: usize, target: u32, now: Instant) -> bool {
        let is_others = |(other, proxy): (usize, &ProxyState)| {
            other != index && proxy.health.is_resting() && proxy.blamed_for == Some(target)
        };
        let is_anothers = self.proxies.iter().enumerate().any(is_others);
        let Some(proxy) = self.proxies.get_mut(index) else { return true };
        if proxy.health.is_resting() {
            return false;
        }
        let before = *proxy.doubt.get_or_insert((target, now));
        is_anothers || proxy.has_answered && before.0 == target && now.since(before.1) < DOUBT
    }

    fn route(&mut self, index: usize, has_route: bool, now: Instant) {
        let Some(proxy) = self.proxies.get_mut(index) else { return };
        if core::mem::replace(&mut proxy.has_route, has_route) != has_route {
            self.tell(index, if has_route { ChangeKind::UplinkUp } else { ChangeKind::UplinkDown }, now);
        }
    }

    fn tell(&mut self, index: usize, kind: ChangeKind, now: Instant) {
        if let Some(proxy) = self.proxies.get(index) {
            self.history.push(StateChange { at: now, upstream: Rc::clone(&proxy.name), kind });
        }
    }
}

#[cfg(test)]
mod tests;
