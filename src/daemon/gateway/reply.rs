//! Packets of our own to clients.

use tcp_over_http::packet::make::{self, Reject};
use tcp_over_http::packet::{Packet, Tuple, vnet};

use super::Gateway;

impl Gateway {
    /// Sends a client a datagram, unless it is too long for a packet.
    pub fn write_datagram(&self, tuple: &Tuple, payload: &[u8]) {
        let mut frame = [0; vnet::LEN + make::MAX_LEN];
        if let Some((_, out)) = frame.split_first_chunk_mut::<{ vnet::LEN }>()
            && let Some((out, _)) = out.split_first_chunk_mut::<{ make::MAX_LEN }>()
        {
            let length = make::datagram(tuple, payload, out);
            if length > 0 {
                self.write(&frame[..vnet::LEN + length]);
            }
        }
    }

    /// Answers `packet` with a rejection.
    pub(super) fn reject(&self, reject: Reject, packet: &mut [u8]) {
        let Ok(packet) = Packet::parse(packet) else {
            return;
        };
        let source = self.rewriter.borrow().error_source(packet.is_ipv4());
        let mut frame = [0; vnet::LEN + make::MAX_LEN];
        let Some((_, out)) = frame.split_first_chunk_mut::<{ vnet::LEN }>() else {
            return;
        };
        let Some((out, _)) = out.split_first_chunk_mut::<{ make::MAX_LEN }>() else {
            return;
        };
        let length = reject.build(&packet, source, out);
        self.write(&frame[..vnet::LEN + length]);
    }
}
