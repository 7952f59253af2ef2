//! Tests, once a minute, whether connections get from the TUN to the listener.
//!
//! ```text
//! written to the TUN    SYN  probe > listener
//! the kernel            gives it to the listener, unless the firewall's input chain rejects it
//! read from the TUN     SYN-ACK; a RST answers it, so that nothing has to be accepted
//! ```
//!
//! A rejecting input chain is the most frequent fault of a set-up, and may appear at any time.

use std::cell::Cell;

use tcp_over_http::packet::{ACK, Packet, RST, SYN, Transport, Tuple};
use tcp_over_http::rewrite::Settings;

use crate::kernel::probe::{self, SEQUENCE};
use crate::kernel::tun::Tun;

/// Ticks of the event loop (seconds) between two tests.
const PERIOD: u8 = 60;
/// Ticks that the kernel may take to answer. More than one, because a tick may come right after the SYN.
const PATIENCE: u8 = 2;

/// The tests, one for each address family that is on.
pub struct SelfTest {
    families: Vec<Family>,
    /// Whether tests are under way.
    running: Cell<bool>,
    /// Ticks until the next test.
    clock: Cell<u8>,
    /// How many tests have ended.
    ended: Cell<u32>,
}

struct Family {
    name: &'static str,
    tuple: Tuple,
    /// The result of the test under way, once there is one.
    found: Cell<Option<bool>>,
    /// The result of the last test.
    reachable: Cell<bool>,
}

impl SelfTest {
    /// A test that begins with the next tick.
    pub fn new(settings: &Settings) -> Self {
        let families = ["ipv4", "ipv6"].into_iter().zip(settings.subnets.iter()).map(|(name, subnet)| {
            let tuple = Tuple {
                source: subnet.error_source(),
                destination: subnet.own(),
                source_port: probe::port(),
                destination_port: settings.listen_port,
            };
            Family { name, tuple, found: Cell::default(), reachable: Cell::new(true) }
        });
        let families = families.collect();
        Self { families, running: Cell::default(), clock: Cell::default(), ended: Cell::default() }
    }

    /// The result of the last test, by family, and the number of tests so far.
    pub fn results(&self) -> (impl Iterator<Item = (&'static str, bool)>, u32) {
        (self.families.iter().map(|family| (family.name, family.reachable.get())), self.ended.get())
    }

    /// Begins and ends tests. To be called about once a second.
    pub fn tick(&self, tun: &Tun) {
        let Some(left) = self.clock.get().checked_sub(1) else { return self.begin(tun) };
        self.clock.set(left);
        if self.running.get() && left <= PERIOD - PATIENCE {
            self.end();
        }
    }

    /// Begins a test, unless one is under way.
    pub fn begin(&self, tun: &Tun) {
        if self.running.replace(true) {
            return;
        }
        self.clock.set(PERIOD);
        for family in &self.families {
            let sent = probe::send(tun, &family.tuple, SEQUENCE, 0, SYN);
            family.found.set(sent.is_err().then_some(false));
        }
    }

    /// Takes the answer to a test; true if `bytes` is one.
    pub fn take(&self, tun: &Tun, bytes: &mut [u8]) -> bool {
        if !self.running.get() {
            return false;
        }
        let Ok(packet) = Packet::parse(bytes) else { return false };
        if packet.transport() != Transport::Tcp {
            return false;
        }
        let tuple = packet.tuple().reversed();
        let Some(family) = self.families.iter().find(|family| family.tuple == tuple) else {
            return false;
        };
        let answered = packet.flags() & (SYN | ACK | RST) == SYN | ACK;
        if answered {
            _ = probe::send(tun, &tuple, SEQUENCE + 1, 0, RST);
        }
        family.found.set(Some(answered));
        if self.families.iter().all(|family| family.found.get().is_some()) {
            self.end();
        }
        true
    }

    fn end(&self) {
        self.running.set(false);
        self.ended.set(self.ended.get().wrapping_add(1));
        for family in &self.families {
            let found = family.found.get() == Some(true);
            match (family.reachable.replace(found), found) {
                (true, false) => warn!(
                    "{}: connections do not get from the TUN to the listener; does the firewall's input reject them?",
                    family.name
                ),
                (false, true) => info!("{}: connections get to the listener again", family.name),
                _ => {}
            }
        }
    }
}
