//! Ports that a proxy refuses CONNECT to, so that plain HTTP is carried to them as requests in absolute form.
//!
//! One refusal says little: it may be because of the target or the client. It is because of the port if the proxy has
//! allowed no other target there lately, and does not also refuse the port of TLS.

use crate::time::Instant;

/// Milliseconds that an answer is believed.
const TTL: u32 = 600_000;
/// The port that every proxy allows.
pub const TLS: u16 = 443;
/// The most ports that are remembered.
const PORTS: usize = 8;

/// What is known of a proxy's ports.
#[derive(Debug, Default)]
pub struct PlainPorts {
    known: heapless::Vec<Known, PORTS>,
}

#[derive(Debug)]
struct Known {
    port: u16,
    is_refused: bool,
    at: Instant,
}

impl PlainPorts {
    /// Whether CONNECT to this port is refused because of the port.
    pub fn is_refused(&self, port: u16, now: Instant) -> bool {
        let was_refused = |port| {
            let mut known = self.known.iter();
            known.any(|known| known.port == port && known.is_refused && now.since(known.at) < TTL)
        };
        was_refused(port) && !was_refused(TLS)
    }

    /// Notes the proxy's answer to a CONNECT to this port.
    pub fn answered(&mut self, port: u16, status: u16, now: Instant) {
        let is_refused = matches!(status, 403 | 405);
        if !is_refused && !(200..300).contains(&status) {
            return;
        }
        let is_fresh = |known: &Known| now.since(known.at) < TTL;
        let is_allowed = |known: &Known| known.port == port && !known.is_refused && is_fresh(known);
        if is_refused && self.known.iter().any(is_allowed) {
            return;
        }
        self.known.retain(|known| known.port != port && is_fresh(known));
        if self.known.is_full() {
            self.known.remove(0);
        }
        _ = self.known.push(Known { port, is_refused, at: now });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    #[test]
    fn a_refusal_counts_for_ten_minutes() {
        for status in [403, 405] {
            let mut ports = PlainPorts::default();
            assert!(!ports.is_refused(80, at(0)));
            ports.answered(80, status, at(0));
            assert!(ports.is_refused(80, at(599_999)) && !ports.is_refused(81, at(1)));
            assert!(!ports.is_refused(80, at(600_000)));
        }
        for status in [200, 400, 404, 407, 502, 503] {
            let mut ports = PlainPorts::default();
            ports.answered(80, status, at(0));
            assert!(!ports.is_refused(80, at(0)), "{status}");
        }
    }

    #[test]
    fn where_others_are_allowed_it_is_the_target_that_is_refused() {
        let mut ports = PlainPorts::default();
        ports.answered(80, 200, at(0));
        ports.answered(80, 403, at(1));
        assert!(!ports.is_refused(80, at(1)));
        ports.answered(8080, 403, at(1));
        assert!(ports.is_refused(8080, at(1)));
        ports.answered(80, 403, at(600_000));
        assert!(ports.is_refused(80, at(600_000)));
    }

    #[test]
    fn who_refuses_tls_as_well_refuses_all() {
        let mut ports = PlainPorts::default();
        ports.answered(TLS, 403, at(0));
        ports.answered(80, 403, at(1));
        assert!(!ports.is_refused(80, at(1)));
        ports.answered(TLS, 200, at(2));
        assert!(ports.is_refused(80, at(2)));
        // One target.
        ports.answered(TLS, 403, at(3));
        assert!(ports.is_refused(80, at(3)));
    }

    #[test]
    fn the_oldest_port_is_forgotten_first() {
        let mut ports = PlainPorts::default();
        for port in 0..=PORTS as u16 {
            ports.answered(port, 403, at(port.into()));
        }
        assert!(!ports.is_refused(0, at(9)) && ports.is_refused(1, at(9)) && ports.is_refused(8, at(9)));
    }
}
