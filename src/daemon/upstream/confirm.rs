//! Confirmations: whether a proxy answers that rests, or that was slower than another one.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

use tcp_over_http::http::connect::Target;
use tcp_over_http::time::Instant;
use tcp_over_http::upstream::choice::Asked;
use tcp_over_http::upstream::health::Alarm;

use super::Upstreams;
use crate::task::spawn;

/// How long a target that was connected is not replaced by another, in ms.
const FRESH: u32 = 10_000;

/// A target that was connected lately.
pub struct WorkingTarget {
    at: Instant,
    target: OwnedTarget,
}

/// A target in owned form.
#[derive(Clone)]
enum OwnedTarget {
    Ip(SocketAddr),
    Name(Box<str>, u16),
}

impl Upstreams {
    /// Begins the confirmations that are due, logs changes, and calls `handle_alarm` for upstreams whose connections need
    /// attention. Called about once a second; sends nothing unless a client has dialled.
    pub fn tick(self: &Rc<Self>, handle_alarm: &mut dyn FnMut(&str, Alarm)) {
        let now = self.now();
        loop {
            let asked = self.choice().confirm(now);
            let Some(asked) = asked else { break };
            let this = Rc::clone(self);
            spawn(async move { this.confirm(asked).await });
        }
        loop {
            let alarm = self.choice().take_alarm(now);
            let Some((index, alarm)) = alarm else { break };
            handle_alarm(&self.proxies[index].account.name, alarm);
        }
        for change in self.choice().history().news() {
            info!("upstream {}: {}", change.upstream, change.kind);
        }
    }

    /// Connects to a proxy, and asks it for a target that worked lately, if there is one.
    async fn confirm(&self, asked: Asked) {
        let target = self.worked.borrow().as_ref().map(|worked| worked.target.clone());
        let target = target.as_ref().map(|target| match target {
            OwnedTarget::Ip(address) => Target::Ip(*address),
            OwnedTarget::Name(name, port) => Target::Name(name, *port),
        });
        let result = match target {
            Some(target) => self.ask(asked.index, &target, false, None, &Cell::new(false)).await.map(drop),
            None => self.connect(asked.index).await.map(drop).map_err(|(failure, _)| failure),
        };
        let nowhere = Target::Name("", 0);
        self.choice().confirmed(asked, result, target.unwrap_or(nowhere), self.now());
    }

    /// Remembers a target that was connected, unless there is a fresh one.
    pub(super) fn note_worked(&self, target: Target<'_>) {
        let (now, mut worked) = (self.now(), self.worked.borrow_mut());
        if worked.as_ref().is_some_and(|worked| now.since(worked.at) < FRESH) {
            return;
        }
        let target = match target {
            Target::Ip(address) => OwnedTarget::Ip(address),
            Target::Name(name, port) => OwnedTarget::Name(name.into(), port),
        };
        *worked = Some(WorkingTarget { at: now, target });
    }
}
