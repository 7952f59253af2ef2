//! What is done to bring the kernel to a desired state, in steps that others don't have to wait for.

use std::mem;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use tcp_over_http::capture::{Desired, Owner, Plan, Requests, Route, Rule};

use super::{RouteError, open};
use crate::netlink::Socket;

/// How long requests are sent in one step. Each takes some microseconds, unless somebody else holds the kernel's one
/// lock for all that is about routes.
const STEP: Duration = Duration::from_micros(500);

/// A change that is under way.
pub struct Change {
    socket: Socket,
    stage: Stage,
    /// The last deletion that has failed.
    result: Result<(), RouteError>,
}

enum Stage {
    /// Routes are listed.
    Looking(Plan),
    /// Requests are sent.
    Asking(Requests),
}

impl Change {
    /// Begins one: lists the rules.
    pub fn begin(owner: &Owner, desired: &Rc<Desired>) -> Result<Self, RouteError> {
        let mut socket = open()?;
        let mut plan = Plan::new(owner.clone(), Rc::clone(desired));
        match socket.list(Rule::list(), &mut |received| plan.see_rule(received.body)) {
            // A kernel without policy rules has none of ours.
            Err(cause) if cause.errno() != libc::EOPNOTSUPP => return Err(RouteError::list(cause)),
            _ => plan.end_rules(),
        }
        socket.begin_dump(Route::list()).map_err(RouteError::list)?;
        Ok(Self { socket, stage: Stage::Looking(plan), result: Ok(()) })
    }

    /// One of nothing but these requests.
    pub fn of(requests: Requests) -> Result<Self, RouteError> {
        Ok(Self { socket: open()?, stage: Stage::Asking(requests), result: Ok(()) })
    }

    /// Does a step. Ready at the end: it ends with the first request to add something that fails, and goes on after
    /// those to delete something.
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

    /// Does all of it.
    pub fn finish(mut self) -> Result<(), RouteError> {
        loop {
            if let Poll::Ready(result) = self.step() {
                return result;
            }
        }
    }

    /// Changes nothing, and counts the rules and routes that are missing.
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
