//! What is known about one proxy from connections.

use alloc::rc::Rc;
use core::net::IpAddr;

use crate::time::Instant;
use crate::upstream::health::Health;

/// What is known of the credentials that a proxy is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LoginState {
    /// They have been accepted, or none are sent.
    Accepted,
    /// Nothing.
    Untried,
    /// They have been refused, and never accepted.
    Refused,
}

/// The state of a proxy.
#[derive(Clone, Debug)]
pub(super) struct ProxyState {
    pub name: Rc<str>,
    pub health: Health,
    pub has_route: bool,
    /// Whether its uplink is up.
    pub is_preferred: bool,
    /// How many times it has answered, with any status. Wraps.
    pub answers: u32,
    pub has_answered: bool,
    /// The first target without an answer since the proxy's last answer, and when that was.
    pub doubt: Option<(u32, Instant)>,
    /// The target because of which it rests.
    pub blamed_for: Option<u32>,
    pub login: LoginState,
    /// When it was last asked, until the outcome is known.
    pub sent_at: Option<Instant>,
    /// Whether a confirmation is wanted...
    pub is_wanted: bool,
    /// ...or in progress.
    pub is_asked: bool,
    /// When it last answered or failed to.
    pub known_at: Instant,
    /// The usual time to connect, in 1/8 ms; 0: not known.
    pub connect_time: u32,
    /// The address that was connected last.
    pub good_address: Option<IpAddr>,
}

impl ProxyState {
    /// A proxy of this name that has not been asked yet; whether it is sent credentials.
    pub fn new((name, has_credentials): (Rc<str>, bool)) -> Self {
        Self {
            name,
            health: Health::default(),
            has_route: true,
            is_preferred: false,
            answers: 0,
            has_answered: false,
            doubt: None,
            blamed_for: None,
            login: if has_credentials { LoginState::Untried } else { LoginState::Accepted },
            sent_at: None,
            is_wanted: false,
            is_asked: false,
            known_at: Instant::default(),
            connect_time: 0,
            good_address: None,
        }
    }

    /// Notes that it has answered, with any status. Returns whether that ends a rest.
    pub fn answered(&mut self, now: Instant) -> bool {
        self.answers = self.answers.wrapping_add(1);
        self.has_answered = true;
        self.doubt = None;
        self.blamed_for = None;
        self.is_wanted = false;
        self.known_at = now;
        self.health.answered(now)
    }

    /// Notes that it has been connected at `address`, after `ms`.
    pub fn connected(&mut self, address: IpAddr, ms: u32) {
        self.good_address = Some(address);
        let ms = ms.min(1 << 20);
        self.connect_time = match self.connect_time {
            0 => 8 * ms,
            usual => usual - usual / 8 + ms,
        };
    }

    /// Whether to begin a confirmation: one is wanted, or `interval` ms have passed since anything was known (0: never).
    pub fn is_due(&self, interval: u32, now: Instant) -> bool {
        let is_time = interval != 0 && now.since(self.known_at) >= interval;
        let may = !self.health.is_resting() || self.health.is_rested(now);
        !self.is_asked && (self.is_wanted || is_time) && may
    }
}
