//! Any bytes as a packet.

mod common;

use arbitrary::{Arbitrary, Unstructured};
use common::packets::{self, Shape};
use common::rewrite_script::connection;
use proptest::prelude::*;

proptest! {
    #[test]
    fn bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        common::any_packet(&bytes);
    }

    /// Packets with a few bytes changed, with and without a right IP header.
    #[test]
    fn broken_packets_do_no_harm(
        nth: u8,
        bytes in proptest::collection::vec(any::<u8>(), 200),
        changes in proptest::collection::vec((0_usize..120, any::<u8>()), 0..5),
        cut in 0_usize..300,
    ) {
        let shape = Shape::arbitrary(&mut Unstructured::new(&bytes)).unwrap();
        let mut packet = packets::tcp(&connection(nth), &shape);
        for (at, byte) in changes {
            if let Some(place) = packet.get_mut(at) {
                *place = byte;
            }
        }
        common::any_packet(&packet);
        packet.truncate(cut);
        common::any_packet(&packet);
    }
}
