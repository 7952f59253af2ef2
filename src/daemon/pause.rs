//! Which clients go out directly for a while; shared by all parts of the daemon that need it.

use std::cell::{Ref, RefCell};
use std::env;
use std::fmt::Write;
use std::net::IpAddr;

use tcp_over_http::capture::pause::Pauses;

use crate::clock::Clock;

/// The environment variable in which a run passes its pauses to the next one.
const VARIABLE: &str = "TCP_OVER_HTTP_PAUSED";
/// The word for everybody in place of a client's address.
pub const EVERYBODY: &str = "all";

/// The pauses, which outlive a [restart of the process](Paused::hand_over).
pub struct Paused {
    clock: Clock,
    pauses: RefCell<Pauses>,
}

impl Paused {
    /// No pauses, or with `restarted` those of the previous run.
    pub fn new(clock: Clock, restarted: bool) -> Self {
        let mut pauses = Pauses::default();
        let left = env::var(VARIABLE).ok().filter(|_| restarted).unwrap_or_default();
        for (client, ms) in left.split(' ').filter_map(|pause| pause.split_once('=')) {
            if let Ok(ms) = ms.parse() {
                pauses.begin(client.parse().ok(), clock.now().plus(ms));
            }
        }
        Self { clock, pauses: pauses.into() }
    }

    /// The variable for the next run, `NAME=VALUE`.
    pub fn hand_over(&self) -> String {
        let mut variable = format!("{VARIABLE}=");
        for (client, ms) in self.get().left(self.clock.now()) {
            _ = match client {
                Some(client) => write!(variable, "{client}={ms} "),
                None => write!(variable, "{EVERYBODY}={ms} "),
            };
        }
        variable
    }

    /// The pauses.
    pub fn get(&self) -> Ref<'_, Pauses> {
        self.pauses.borrow()
    }

    /// Changes them.
    pub fn change<T>(&self, change: impl FnOnce(&mut Pauses) -> T) -> T {
        change(&mut self.pauses.borrow_mut())
    }

    /// Whether this client goes out directly now. `None`: a client that can't be identified.
    pub fn covers(&self, client: Option<IpAddr>) -> bool {
        self.get().cover(client, self.clock.now())
    }
}
