//! Brings the kernel to a desired state, in short steps between which the event loop can do other work.

use std::mem;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use tcp_over_http::capture::{Desired, Owner, Plan, PolicyRule, Requests, Route};

use super::{RouteError, open};
use crate::netlink::Socket;

/// How long one step sends requests. A request takes some microseconds, unless somebody else holds the
/// kernel's RTNL lock.
const STEP: Duration = Duration::from_micros(500);

/// A change that is under way.
pub struct Change {
    socket: Socket,
    stage: Stage,
    /// The error of the last failed deletion.
    result: Result<(), RouteError>,
}

enum Stage {
    /// The kernel's routes are being listed.
    Looking(Plan),
    /// Requests are being sent.
    Asking(Requests),
}

impl Change {
    /// Begins a change: lists the rules, and asks for the routes.
    pub fn begin(owner: &Owner, desired: &Rc<Desired>) -> Result<Self, RouteError> {
        let mut socket = open()?;
        let mut plan = Plan::new(owner.clone(), Rc::clone(desired));
        match socket.list(PolicyRule::list(), &mut |received| plan.see_rule(received.body)) {
            // A kernel without policy rules (EOPNOTSUPP) has none of ours.
            Err(cause) if cause.errno() != libc::EOPNOTSUPP => return Err(RouteError::list(cause)),
            _ => plan.end_rules(),
        }
        socket.begin_dump(Route::list()).map_err(RouteError::list)?;
        Ok(Self { socket, stage: Stage::Looking(plan), result: Ok(()) })
    }

    /// A change that only sends these requests.
    pub fn of(requests: Requests) -> Result<Self, RouteError> {
        Ok(Self { socket: open()?, stage: Stage::Asking(requests), result: Ok(()) })
    }

    /// Does a step. Ready at the end. An addition that fails ends the change; after a failed deletion it goes
    /// on.
    pub fn step(&mut self) -> Poll<Result<(), RouteError>> {
        match &mut self.stage {
            Stage::Looking(plan) => {
                match self.socket.receive(&mut |received| plan.see_route(received.body)) {
                    Ok(false) => {}
                    Ok(true) => self.stage = Stage::Asking(plan.requests()),
                    Err(cause) => return Poll::Ready(Err(RouteError::list(cause))),
                }
            }
            Stage::Asking(requests) => {
                let end = Instant::now() + STEP;
                while Instant::now() < end {
                    let Some((action, message)) = requests.next() else {
                        return Poll::Ready(mem::replace(&mut self.result, Ok(())));
                    };
                    match self.socket.request(message) {
                        Err(cause) if !action.is_done(cause.errno()) => {
                            self.result = Err(RouteError::new(&action, cause));
                            if !action.is_deletion() {
                                return Poll::Ready(mem::replace(&mut self.result, Ok(())));
                            }
                        }
                        _ => {}
                    }
                }
            }
        }
        Poll::Pending
    }

    /// Does all steps, and blocks until the end.
    pub fn finish(mut self) -> Result<(), RouteError> {
        loop {
            if let Poll::Ready(result) = self.step() {
                return result;
            }
        }
    }

    /// Counts the rules and routes that are missing, and changes nothing.
    pub fn count_missing(mut self) -> Result<usize, RouteError> {
        loop {
            if let Stage::Asking(requests) = self.stage {
                return Ok(requests.filter(|(action, _)| !action.is_deletion()).count());
            }
            if let Poll::Ready(result) = self.step() {
                result?;
            }
        }
    }
}
