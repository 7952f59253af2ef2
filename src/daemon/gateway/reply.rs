//! Packets of our own to clients.

use tcp_over_http::packet::builder::{self, MAX_LEN};
use tcp_over_http::packet::reject::Reject;
use tcp_over_http::packet::{Packet, Tuple, vnet};

use super::Gateway;

impl Gateway {
    /// Sends a client a datagram, unless it is too long for a packet.
    pub fn write_datagram(&self, tuple: &Tuple, payload: &[u8]) {
        self.write_made(&|packet| builder::datagram(tuple, payload, packet));
    }

    /// Answers `packet` with a rejection.
    pub(super) fn reject(&self, reject: Reject, packet: &mut [u8]) {
        if let Ok(packet) = Packet::parse(packet) {
            let source = self.rewriter.borrow().error_source(packet.family());
            self.write_made(&|rejection| reject.build(&packet, source, rejection));
        }
    }

    /// Writes the packet that `make` makes, of the length that it returns; 0: none.
    fn write_made(&self, make: &dyn Fn(&mut [u8; MAX_LEN]) -> usize) {
        let mut frame = [0; vnet::LEN + MAX_LEN];
        let length = frame.last_chunk_mut().map_or(0, make);
        if length > 0 {
            self.write(&frame[..vnet::LEN + length]);
        }
    }
}
