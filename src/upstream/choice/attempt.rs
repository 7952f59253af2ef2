//! One connection's attempts at the proxies.

use crate::http::connect::Target;
use crate::net::mapped;
use crate::siphash::fnv;
use crate::upstream::Failure;

use super::MAX_PROXIES;

/// One connection's attempts at the proxies.
#[derive(Debug)]
pub struct Attempt {
    /// The target's digest.
    pub(super) target: u32,
    /// The proxies that have been asked, a bit each.
    pub(super) asked: u64,
    /// The most telling failure so far.
    pub(super) failure: Option<Failure>,
    /// Whether no other proxy is worth a try.
    pub(super) is_over: bool,
    /// Whether the next proxy has not answered yet whether the credentials are right.
    pub(super) must_wait: bool,
    /// The only proxy that may be asked, whichever is chosen.
    pub(super) only: Option<usize>,
    /// The proxies that are only to be connected, and sent no credentials yet, a bit each.
    pub(super) quiet: u64,
}

/// A proxy that is being asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Which one.
    pub index: usize,
    /// `ProxyState::answers` when it was asked.
    pub(super) answers: u32,
}

impl Attempt {
    /// An attempt that has not asked anybody yet, and may ask only one proxy, or any.
    pub fn new(target: Target<'_>, only: Option<usize>) -> Self {
        Self::of(digest(target), only)
    }

    /// The same for a target with this digest.
    pub(super) const fn of(target: u32, only: Option<usize>) -> Self {
        Self { target, asked: 0, failure: None, is_over: false, must_wait: false, only, quiet: 0 }
    }

    /// The same, if this proxy is only to be connected, and sent no credentials yet.
    pub const fn quiet(self, index: usize) -> Self {
        Self { quiet: self.quiet | bit(index), ..self }
    }

    /// Asks all proxies once more.
    pub const fn begin_again(&mut self) {
        *self = Self { quiet: self.quiet, ..Self::of(self.target, self.only) };
    }

    /// Whether it is too early to ask the next proxy.
    pub const fn must_wait(&self) -> bool {
        self.must_wait
    }

    /// Whether no other proxy is worth a try.
    pub const fn is_over(&self) -> bool {
        self.is_over
    }

    /// Why it has failed: the answer of the proxy that answered, or else the most telling failure.
    pub fn failure(&self) -> Failure {
        self.failure.unwrap_or(Failure::Unreachable)
    }
}

/// The bit of this proxy in [`Attempt::asked`].
pub(super) const fn bit(index: usize) -> u64 {
    if index < MAX_PROXIES { 1 << index } else { u64::MAX }
}

/// A hash that tells targets apart, but not against an attacker.
pub(super) fn digest(target: Target<'_>) -> u32 {
    let port = target.port().to_be_bytes();
    match target {
        Target::Ip(address) => fnv(mapped(address.ip()).octets().into_iter().chain(port)),
        Target::Name(name, _) => fnv(name.bytes().chain(port)),
    }
}
