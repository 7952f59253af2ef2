//! Answers of our own to clients.

use tcp_over_http::packet::Packet;
use tcp_over_http::packet::reject::Reject;

use super::Gateway;

impl Gateway {
    /// Answers `packet` with a rejection.
    pub(super) fn reject(&self, reject: Reject, packet: &mut [u8]) {
        if let Ok(packet) = Packet::parse(packet) {
            let source = self.rewriter.borrow().error_source(packet.family());
            self.tun.write_made(&|rejection| reject.build(&packet, source, rejection));
        }
    }
}
