//! The rewriter on the express path: the SYN alone passes, unchanged, and the kernel has the rest.

mod common;

use common::packets::{self, ACK, SYN, Shape};
use common::rewrite_script::{MTU, connection, settings};
use tcp_over_http::flow::{Limits, Slot, State};
use tcp_over_http::packet::reject::Reject;
use tcp_over_http::packet::vnet;
use tcp_over_http::packet::{FIN, RST, Tuple};
use tcp_over_http::rewrite::{DropReason, Path, Rewriter, Settings, Verdict};
use tcp_over_http::time::Instant;

const FIRST: Shape = shape(SYN, 1000);
const RESET: Verdict = Verdict::Reject(Reject::Reset);

const fn shape(flags: u8, sequence: u32) -> Shape {
    Shape {
        ipv4_options: Vec::new(),
        hop_by_hop: None,
        destination_options: Vec::new(),
        atomic_fragment: false,
        sequence,
        acknowledgement: 9,
        flags,
        window: 500,
        urgent: 0,
        tcp_options: Vec::new(),
        payload: 0,
        partial: false,
    }
}

struct Gateway {
    rewriter: Rewriter,
    now: Instant,
}

impl Gateway {
    fn new() -> Self {
        let settings = Settings { path: Path::Express, ..settings(true, false) };
        let limits = Limits { flows: 50, held: 10, held_per_client: 4 };
        Self { rewriter: Rewriter::new(settings, limits, [3, 4]), now: Instant::from_millis(0) }
    }

    /// A packet from a client; what passes is not changed.
    fn client(&mut self, tuple: &Tuple, shape: &Shape) -> Verdict {
        let before = packets::tcp(tuple, shape);
        let mut packet = before.clone();
        let header = vnet::Header::parse(&packets::vnet_header(&packet, shape));
        let verdict = self.rewriter.handle(header, &mut packet, self.now);
        assert!(packet == before);
        verdict
    }

    fn held(&mut self, tuple: &Tuple, shape: &Shape) -> Slot {
        match self.client(tuple, shape) {
            Verdict::Hold { slot, dial: true } => slot,
            verdict => panic!("{verdict:?}"),
        }
    }

    /// A flow whose SYN has passed.
    fn opening(&mut self, tuple: &Tuple, shape: &Shape) -> Slot {
        let slot = self.held(tuple, shape);
        self.rewriter.release(slot, self.now);
        assert_eq!(self.client(tuple, shape), Verdict::Forward);
        slot
    }

    fn accept(&mut self, tuple: &Tuple) -> Option<Slot> {
        let local = || Some((tuple.destination, tuple.destination_port));
        self.rewriter.accept(tuple.source, tuple.source_port, local, self.now)
    }

    fn state(&self, slot: Slot) -> State {
        self.rewriter.flow(slot).state()
    }
}

#[test]
fn a_connection_from_beginning_to_end() {
    for nth in 0..12 {
        let (mut gateway, tuple) = (Gateway::new(), connection(nth));
        assert_eq!(gateway.client(&tuple, &shape(ACK, 1)), RESET);
        let slot = gateway.opening(&tuple, &FIRST);
        // Sent again: the kernel answers again.
        assert_eq!(gateway.client(&tuple, &FIRST), Verdict::Forward);
        assert_eq!(gateway.accept(&tuple), Some(slot));
        assert_eq!(gateway.state(slot), State::Live);
        // The router's own packets, and a client's that found no firewall rule: never for us to answer.
        assert_eq!(gateway.client(&tuple, &shape(ACK, 1001)), Verdict::Forward);
        gateway.rewriter.close(slot, gateway.now);
        assert_eq!(gateway.state(slot), State::Closed);
        assert!(gateway.rewriter.is_idle());
        assert_eq!(gateway.client(&tuple, &shape(FIN | ACK, 1001)), RESET);
        assert_eq!(gateway.client(&tuple, &shape(RST, 1001)), Verdict::Drop(DropReason::Unknown));
    }
}

#[test]
fn a_held_flow_lets_nothing_pass() {
    let (mut gateway, tuple) = (Gateway::new(), connection(2));
    let slot = gateway.held(&tuple, &FIRST);
    assert_eq!(gateway.client(&tuple, &FIRST), Verdict::Hold { slot, dial: false });
    assert_eq!(gateway.client(&tuple, &shape(ACK, 1001)), Verdict::Drop(DropReason::Unexpected));
    assert_eq!(gateway.accept(&tuple), None);
    assert_eq!(gateway.client(&tuple, &shape(RST, 1001)), Verdict::Abandoned(slot));
    assert_eq!(gateway.client(&tuple, &shape(ACK, 1001)), RESET);
}

#[test]
fn accepted_by_all_of_the_tuple() {
    for nth in [2, 3] {
        let (mut gateway, tuple) = (Gateway::new(), connection(nth));
        let slot = gateway.opening(&tuple, &FIRST);
        let port = |tuple: Tuple| Tuple { destination_port: 444, ..tuple };
        assert_eq!(gateway.accept(&port(tuple)), None);
        assert_eq!(gateway.accept(&Tuple { source: tuple.destination, ..tuple }), None);
        assert_eq!(gateway.accept(&Tuple { source_port: 77, ..tuple }), None);
        let (address, source_port, now) = (tuple.source, tuple.source_port, gateway.now);
        assert_eq!(gateway.rewriter.accept(address, source_port, || None, now), None);
        assert_eq!(gateway.accept(&tuple), Some(slot));
        assert_eq!(gateway.accept(&tuple), None);
    }
}

#[test]
fn a_port_used_again_is_a_new_flow() {
    for nth in [2, 3] {
        let (mut gateway, tuple) = (Gateway::new(), connection(nth));
        let first = gateway.opening(&tuple, &FIRST);
        assert_eq!(gateway.accept(&tuple), Some(first));
        // The kernel has a TIME_WAIT of the first, whose relay is about to end.
        let again = shape(SYN, 5000);
        let second = gateway.held(&tuple, &again);
        assert_ne!(first, second);
        assert_eq!(gateway.accept(&tuple), None);
        assert_eq!(gateway.state(first), State::Live);
        gateway.rewriter.close(first, gateway.now);
        assert_eq!(gateway.state(second), State::Held);
        gateway.rewriter.release(second, gateway.now);
        assert_eq!(gateway.client(&tuple, &again), Verdict::Forward);
        assert_eq!(gateway.accept(&tuple), Some(second));
        gateway.rewriter.close(second, gateway.now);
        // After the end as well, whatever its number.
        let third = gateway.held(&tuple, &shape(SYN, 9000));
        assert_ne!(second, third);
    }
}

#[test]
fn a_connection_taken_back_before_it_is_accepted() {
    let (mut gateway, tuple) = (Gateway::new(), connection(3));
    let slot = gateway.opening(&tuple, &FIRST);
    assert_eq!(gateway.client(&tuple, &shape(RST, 1001)), Verdict::ForwardAbandoned(slot));
    assert_eq!(gateway.accept(&tuple), None);
}

/// What fits the TUN is all that the SYN is changed to.
#[test]
fn the_segment_size_is_clamped() {
    let (mut gateway, tuple) = (Gateway::new(), connection(2));
    let with = |size: u16| {
        let tcp_options = [&[2, 4], &size.to_be_bytes()[..]].concat();
        packets::tcp(&tuple, &Shape { tcp_options, ..FIRST })
    };
    let slot = gateway.held(&tuple, &FIRST);
    gateway.rewriter.release(slot, gateway.now);
    let mut packet = with(9000);
    let header = vnet::Header::parse(&packets::vnet_header(&packet, &FIRST));
    assert_eq!(gateway.rewriter.handle(header, &mut packet, gateway.now), Verdict::Forward);
    assert!(packet == with(MTU - 40));
}
