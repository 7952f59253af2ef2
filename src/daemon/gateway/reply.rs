//! The daemon's own replies to clients.

use tcp_over_http::packet::reject::Reject;
use tcp_over_http::packet::{Packet, vnet};

use super::Gateway;

impl Gateway {
    /// Answers the packet of a frame with a rejection.
    pub(super) fn reject(&self, reject: Reject, frame: &mut [u8]) {
        if let Some(Ok(packet)) = frame.get_mut(vnet::LEN..).map(Packet::parse) {
            let source = self.rewriter.borrow().error_source(packet.family());
            self.tun.write_made(&|rejection| reject.build(&packet, source, rejection));
        }
    }
}
