//! The rewriter through its public face: whatever comes, packets become what they would be if made anew.

mod common;

use arbitrary::{Arbitrary, Unstructured};
use common::packets::{self, ACK, SYN, Shape};
use common::rewrite_script::{Error, Gateway, Script, connection, settings};
use proptest::prelude::*;
use tcp_over_http::flow::{LINGER, REFUSED, Slot, State};
use tcp_over_http::packet::reject::Reject;
use tcp_over_http::packet::vnet;
use tcp_over_http::packet::{FIN, RST, Tuple};
use tcp_over_http::rewrite::{DropReason, Verdict};

/// Any `T` that bytes give.
fn any_of<T: for<'a> Arbitrary<'a> + std::fmt::Debug>(size: usize) -> impl Strategy<Value = T> {
    proptest::collection::vec(any::<u8>(), size)
        .prop_map(|bytes| T::arbitrary(&mut Unstructured::new(&bytes)).unwrap())
}

fn gateway() -> Gateway {
    Gateway::new(settings(true, false), 50, [3, 4], 0)
}

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

const FIRST: Shape = shape(SYN, 1000);

/// A flow that is held.
fn held(gateway: &mut Gateway, nth: u8) -> Slot {
    match gateway.client(&connection(nth), &FIRST) {
        Verdict::Hold { slot, dial: true } => slot,
        verdict => panic!("{verdict:?}"),
    }
}

/// A flow whose SYN has passed.
fn opening(gateway: &mut Gateway, nth: u8) -> Slot {
    let slot = held(gateway, nth);
    gateway.rewriter.release(slot, gateway.now);
    assert_eq!(gateway.client(&connection(nth), &FIRST), Verdict::Forward);
    slot
}

/// A gateway with a flow that has been accepted.
fn with_flow(nth: u8) -> (Gateway, Slot) {
    let mut gateway = Gateway::new(settings(true, nth.is_multiple_of(3)), 50, [3, 4], 0);
    let slot = opening(&mut gateway, nth);
    assert!(gateway.accept(slot));
    (gateway, slot)
}

/// How many flows are held, and how many are live.
fn occupancy(gateway: &Gateway) -> (u16, u16) {
    (gateway.rewriter.count(State::Held), gateway.rewriter.count(State::Live))
}

fn state(gateway: &Gateway, slot: Slot) -> State {
    gateway.rewriter.flow(slot).state()
}

#[test]
fn a_connection_from_beginning_to_end() {
    for nth in 0..12 {
        let (mut gateway, slot) = with_flow(nth);
        let client = connection(nth);
        let answer = Shape { acknowledgement: 1001, ..shape(SYN | ACK, 5) };
        assert_eq!(gateway.listener(slot, &answer), Verdict::Forward);
        assert_eq!(gateway.client(&client, &shape(ACK, 1001)), Verdict::Forward);
        assert_eq!(gateway.client(&client, &shape(FIN | ACK, 1001)), Verdict::Forward);
        assert_eq!(state(&gateway, slot), State::Live);
        gateway.rewriter.close(slot, gateway.now);
        assert_eq!(state(&gateway, slot), State::Closing);
        assert_eq!(gateway.listener(slot, &shape(FIN | ACK, 7)), Verdict::Forward);
        assert_eq!(state(&gateway, slot), State::Closed);
        // The last ACK, and a FIN again.
        assert_eq!(gateway.client(&client, &shape(ACK, 7)), Verdict::Forward);
        assert_eq!(gateway.listener(slot, &shape(FIN | ACK, 7)), Verdict::Forward);
        assert_eq!(occupancy(&gateway), (0, 0));
        // Long after, nobody knows of it.
        gateway.now = gateway.now.plus(LINGER);
        let reset = Verdict::Reject(Reject::Reset);
        assert_eq!(gateway.client(&client, &shape(ACK, 7)), reset);
        assert_eq!(gateway.listener(slot, &shape(ACK, 7)), reset);
        let unknown = Verdict::Drop(DropReason::Unknown);
        assert_eq!(gateway.client(&client, &shape(RST, 7)), unknown);
        assert_eq!(gateway.listener(slot, &shape(RST | ACK, 7)), unknown);
    }
}

#[test]
fn a_held_syn() {
    let mut gateway = gateway();
    let client = connection(2);
    let slot = held(&mut gateway, 2);
    // The last one is kept, also if it differs in its options alone; nobody is asked again.
    let anew = Verdict::Hold { slot, dial: false };
    assert_eq!(gateway.client(&client, &FIRST), anew);
    assert_eq!(gateway.client(&client, &shape(SYN, 2000)), anew);
    assert_eq!(gateway.rewriter.counters().dropped[DropReason::Repeated as usize], 2);
    let unexpected = Verdict::Drop(DropReason::Unexpected);
    for flags in [ACK, FIN | ACK, SYN | ACK, RST, SYN | FIN] {
        assert_eq!(gateway.client(&client, &shape(flags, 1)), unexpected, "{flags}");
    }
    // The kernel knows nothing of it yet.
    assert!(!gateway.accept(slot));
    // The old attempt's RST is none of the new one's.
    assert_eq!(gateway.client(&client, &shape(RST, 1001)), unexpected);
    assert_eq!(gateway.client(&client, &shape(RST, 2001)), Verdict::Abandoned(slot));
    assert_eq!(occupancy(&gateway), (0, 0));
    let next = held(&mut gateway, 2);
    assert_ne!(next, slot);
}

#[test]
fn a_connection_taken_back_before_it_is_accepted() {
    let mut gateway = gateway();
    let slot = opening(&mut gateway, 3);
    let verdict = gateway.client(&connection(3), &shape(RST, 1001));
    assert_eq!(verdict, Verdict::ForwardAbandoned(slot));
    assert_eq!(state(&gateway, slot), State::Closed);
    assert!(!gateway.accept(slot));
}

#[test]
fn a_port_used_again_is_a_new_flow() {
    let (mut gateway, slot) = with_flow(2);
    // While the old one lives, the kernel has to sort it out.
    assert_eq!(gateway.client(&connection(2), &shape(SYN, 5000)), Verdict::Forward);
    gateway.rewriter.close(slot, gateway.now);
    // The same SYN once more is late, not new.
    assert_eq!(gateway.client(&connection(2), &FIRST), Verdict::Forward);
    // The kernel asks a client that has forgotten the old one, and it says so (RFC 5961 section 4).
    assert_eq!(gateway.client(&connection(2), &shape(SYN, 5000)), Verdict::Forward);
    let challenge = Shape { acknowledgement: 1500, ..shape(ACK, 5) };
    assert_eq!(gateway.listener(slot, &challenge), Verdict::Forward);
    assert_eq!(gateway.client(&connection(2), &shape(RST, 1500)), Verdict::Forward);
    let verdict = gateway.client(&connection(2), &shape(SYN, 5000));
    let Verdict::Hold { slot: new, dial: true } = verdict else {
        panic!("{verdict:?}");
    };
    assert_ne!(new, slot);
    // No packet finds the old one any more, so it must not wait for any.
    assert_eq!(state(&gateway, slot), State::Closed);
    let reset = Verdict::Reject(Reject::Reset);
    assert_eq!(gateway.listener(slot, &shape(ACK, 7)), reset);
}

/// Somebody who knows the addresses and ports, but no sequence number, sends a RST or FIN, and a SYN.
#[test]
fn blind_packets_change_nothing() {
    for close in [false, true] {
        let (mut gateway, slot) = with_flow(2);
        let client = connection(2);
        assert_eq!(gateway.client(&client, &Shape { payload: 500, ..shape(ACK, 1001) }), Verdict::Forward);
        if close {
            gateway.rewriter.close(slot, gateway.now);
        }
        let before = state(&gateway, slot);
        for sequence in [0, 999, 1000, 1001, 1002, 1480, 1502, 1 << 30, 1 << 31, u32::MAX] {
            for flags in [RST, RST | ACK, FIN | ACK, ACK] {
                let blind = Shape { payload: 10, ..shape(flags, sequence) };
                assert_eq!(gateway.client(&client, &blind), Verdict::Forward);
                assert_eq!(gateway.client(&client, &shape(RST, sequence)), Verdict::Forward);
            }
            let isn = sequence.wrapping_add(1 << 16);
            assert_eq!(gateway.client(&client, &shape(SYN, isn)), Verdict::Forward, "{sequence}");
            assert!(!gateway.rewriter.flow(slot).is_finished(), "{sequence}");
            assert_eq!(state(&gateway, slot), before);
        }
        // The client's own RST is as good as ever, and the next connection a new one.
        assert_eq!(gateway.client(&client, &shape(RST, 1501)), Verdict::Forward);
        assert!(gateway.rewriter.flow(slot).is_finished());
        let verdict = gateway.client(&client, &shape(SYN, 5000));
        assert!(matches!(verdict, Verdict::Hold { dial: true, .. }), "{verdict:?}");
    }
}

/// What the client has sent arrived in another order: the listener's acknowledgement tells how far it is.
#[test]
fn a_reset_behind_what_was_reordered() {
    let (mut gateway, slot) = with_flow(2);
    let segment = |sequence| Shape { payload: 100, ..shape(ACK, sequence) };
    for sequence in [1101, 1001] {
        assert_eq!(gateway.client(&connection(2), &segment(sequence)), Verdict::Forward);
    }
    let acknowledged = Shape { acknowledgement: 1201, ..shape(ACK, 5) };
    assert_eq!(gateway.listener(slot, &acknowledged), Verdict::Forward);
    assert_eq!(gateway.client(&connection(2), &shape(RST, 1201)), Verdict::Forward);
    assert!(gateway.rewriter.flow(slot).is_finished());
}

/// The kernel has given up a connection without a word, and takes the client's next SYN for a new one.
#[test]
fn the_kernel_answers_another_syn() {
    let (mut gateway, slot) = with_flow(2);
    let again = shape(SYN, 5000);
    assert_eq!(gateway.client(&connection(2), &again), Verdict::Forward);
    let answer = Shape { acknowledgement: 5001, ..shape(SYN | ACK, 5) };
    let mut packet = packets::tcp(&gateway.translated(slot).reversed(), &answer);
    let verdict = gateway.rewriter.handle(vnet::Header::default(), &mut packet, gateway.now);
    assert_eq!(verdict, Verdict::Reject(Reject::Reset));
    let verdict = gateway.client(&connection(2), &again);
    assert!(matches!(verdict, Verdict::Hold { dial: true, .. }), "{verdict:?}");
}

/// A SYN that comes again just after its refusal is refused alike, and nobody is asked.
#[test]
fn a_refused_syn_is_refused_again() {
    for reject in [Reject::Reset, Reject::Network, Reject::Host, Reject::Prohibited] {
        let mut gateway = gateway();
        let slot = held(&mut gateway, 2);
        gateway.rewriter.refuse(slot, reject, gateway.now);
        assert!(gateway.rewriter.is_idle());
        assert_eq!(gateway.client(&connection(2), &FIRST), Verdict::Reject(reject));
        assert_eq!(gateway.client(&connection(2), &shape(ACK, 1001)), Verdict::Reject(Reject::Reset));
        assert!(!gateway.accept(slot));
        gateway.now = gateway.now.plus(REFUSED - 1);
        assert_eq!(gateway.client(&connection(2), &FIRST), Verdict::Reject(reject));
        // Another attempt is another.
        let verdict = gateway.client(&connection(2), &shape(SYN, 2000));
        let Verdict::Hold { slot, dial: true } = verdict else { panic!("{verdict:?}") };
        gateway.rewriter.refuse(slot, reject, gateway.now);
        gateway.now = gateway.now.plus(REFUSED);
        let verdict = gateway.client(&connection(2), &shape(SYN, 2000));
        assert!(matches!(verdict, Verdict::Hold { dial: true, .. }), "{verdict:?}");
    }
}

#[test]
fn a_held_packet_is_counted_once() {
    let mut gateway = gateway();
    let slot = held(&mut gateway, 2);
    gateway.rewriter.release(slot, gateway.now);
    let mut packet = packets::tcp(&connection(2), &FIRST);
    let verdict = gateway.rewriter.handle_again(vnet::Header::default(), &mut packet, gateway.now);
    assert_eq!(verdict, Verdict::Forward);
    let counters = gateway.rewriter.counters();
    assert_eq!((counters.packets, counters.bytes, counters.forwarded), (1, packet.len() as u64, 1));
}

#[test]
fn bounds() {
    let mut gateway = Gateway::new(settings(true, true), 6, [3, 4], 0);
    let client = |port: u16| Tuple { source_port: port, ..connection(2) };
    // Four of one client may be held.
    let hold = |gateway: &mut Gateway, port| gateway.client(&client(port), &FIRST);
    let mut slots = Vec::new();
    for port in 1..=4 {
        match hold(&mut gateway, port) {
            Verdict::Hold { slot, dial: true } => slots.push(slot),
            verdict => panic!("{verdict:?}"),
        }
    }
    let too_many = Verdict::Drop(DropReason::TooManyDialsOfClient);
    assert_eq!(hold(&mut gateway, 5), too_many);
    slots.push(held(&mut gateway, 4));
    slots.push(held(&mut gateway, 3));
    // All six slots are taken. That refusal takes nothing of the client's own bound.
    for slot in &slots[..3] {
        gateway.rewriter.release(*slot, gateway.now);
        assert!(gateway.accept(*slot));
    }
    for port in 5..20 {
        assert_eq!(hold(&mut gateway, port), Verdict::Drop(DropReason::TableFull));
    }
    assert_eq!(occupancy(&gateway), (3, 3));
    gateway.rewriter.remove(slots[4], gateway.now);
    assert!(matches!(hold(&mut gateway, 5), Verdict::Hold { .. }));
}

#[test]
fn nothing_new_while_draining() {
    let (mut gateway, slot) = with_flow(2);
    gateway.rewriter.drain();
    let verdict = gateway.client(&connection(3), &FIRST);
    assert_eq!(verdict, Verdict::Drop(DropReason::Draining));
    assert_eq!(gateway.client(&connection(2), &shape(ACK, 1001)), Verdict::Forward);
    assert_eq!(gateway.listener(slot, &shape(ACK, 1001)), Verdict::Forward);
}

#[test]
fn ipv6_may_be_off() {
    let mut gateway = Gateway::new(settings(false, false), 50, [3, 4], 0);
    let verdict = gateway.client(&connection(3), &FIRST);
    assert_eq!(verdict, Verdict::Drop(DropReason::Ipv6Off));
    held(&mut gateway, 2);
}

/// The machine's own connections, led to the address behind the TUN; no other address of its subnets.
#[test]
fn what_is_diverted_is_held() {
    let mut gateway = gateway();
    for (number, behind) in [(2, "::ffff:10.45.39.2"), (3, "fd45:39::2")] {
        let tuple = Tuple { destination: behind.parse().unwrap(), ..connection(number) };
        assert!(matches!(gateway.client(&tuple, &FIRST), Verdict::Hold { dial: true, .. }), "{behind}");
        assert!(gateway.rewriter.settings().is_own(&tuple));
        assert!(!gateway.rewriter.settings().is_own(&connection(number)));
    }
}

#[test]
fn destinations_that_nobody_can_connect_to() {
    let mut gateway = gateway();
    for destination in [
        "::ffff:10.45.39.1",
        "::ffff:10.45.39.77",
        "::ffff:255.255.255.255",
        "::ffff:224.0.0.1",
        "::ffff:0.0.0.0",
    ] {
        let tuple = Tuple { destination: destination.parse().unwrap(), ..connection(2) };
        let address = Verdict::Drop(DropReason::Address);
        assert_eq!(gateway.client(&tuple, &FIRST), address, "{destination}");
    }
    for destination in ["fd45:39::1", "fd45:39::2:1", "ff02::1", "::"] {
        let tuple = Tuple { destination: destination.parse().unwrap(), ..connection(3) };
        let address = Verdict::Drop(DropReason::Address);
        assert_eq!(gateway.client(&tuple, &FIRST), address, "{destination}");
    }
    for (source_port, destination_port) in [(0, 443), (40_000, 0)] {
        let tuple = Tuple { source_port, destination_port, ..connection(2) };
        assert_eq!(gateway.client(&tuple, &FIRST), Verdict::Drop(DropReason::Address));
    }
    assert_eq!(occupancy(&gateway), (0, 0));
}

#[test]
fn a_virtio_header_that_contradicts_the_packet() {
    let (mut gateway, _) = with_flow(2);
    let mut packet = packets::tcp(&connection(2), &shape(ACK, 6));
    let before = packet.clone();
    let header = vnet::Header::parse(&[1, 0, 0, 0, 0, 0, 20, 0, 6, 0]);
    let verdict = gateway.rewriter.handle(header, &mut packet, gateway.now);
    assert_eq!(verdict, Verdict::Drop(DropReason::Malformed));
    assert_eq!(packet, before);
}

fn error(about_listener: bool) -> Error {
    Error {
        flow: 0,
        about_listener,
        shape: shape(ACK, 6),
        quoted: 100,
        extension: Vec::new(),
        kind: 0,
        code: 4,
        rest: [0, 0, 5, 0],
    }
}

#[test]
fn icmp_errors_of_flows_that_are_not_translated() {
    let mut gateway = gateway();
    for nth in [2, 3] {
        let slot = held(&mut gateway, nth);
        for about_listener in [true, false] {
            let verdict = gateway.error(slot, &error(about_listener));
            assert_eq!(verdict, Verdict::Drop(DropReason::Unknown));
        }
    }
}

#[test]
fn icmp_errors_that_go_to_somebody_else_are_not_translated() {
    let (mut gateway, _) = with_flow(2);
    let client = connection(2);
    let quote = packets::tcp(&client.reversed(), &shape(ACK, 6));
    let stranger = connection(4).destination;
    let mut packet = packets::icmp_error(client.source, stranger, (3, 1), [0; 4], &quote);
    let header = vnet::Header::default();
    let verdict = gateway.rewriter.handle(header, &mut packet, gateway.now);
    assert_eq!(verdict, Verdict::Drop(DropReason::Unknown));
}

/// A redirect is about the link it came over: whoever is on the other side must not follow it.
#[test]
fn redirects_are_not_translated() {
    let (mut gateway, _) = with_flow(2);
    let client = connection(2);
    let quote = packets::tcp(&client.reversed(), &shape(ACK, 6));
    let gateway_address = [192, 168, 1, 66];
    let mut packet = packets::icmp_error(client.source, client.destination, (5, 1), gateway_address, &quote);
    let header = vnet::Header::default();
    let verdict = gateway.rewriter.handle(header, &mut packet, gateway.now);
    assert_eq!(verdict, Verdict::Drop(DropReason::NotTcp));
}

#[test]
fn what_is_not_tcp_is_answered_at_a_bounded_rate() {
    let mut gateway = gateway();
    let tuple = connection(2);
    let handle = |gateway: &mut Gateway, destination| {
        let shape = Shape::default();
        let mut packet = packets::ip(tuple.source, destination, 132, &shape, &[0; 20]);
        let header = vnet::Header::default();
        gateway.rewriter.handle(header, &mut packet, gateway.now)
    };
    let multicast = "::ffff:224.0.0.251".parse().unwrap();
    let verdict = handle(&mut gateway, multicast);
    assert_eq!(verdict, Verdict::Drop(DropReason::NotTcp));
    let count = |gateway: &mut Gateway, handle: &mut dyn FnMut(&mut Gateway) -> Verdict| {
        let prohibited = Verdict::Reject(Reject::Prohibited);
        let answered = (0..1_000).filter(|_| handle(gateway) == prohibited);
        answered.count()
    };
    let mut udp = |gateway: &mut Gateway| handle(gateway, tuple.destination);
    assert_eq!(count(&mut gateway, &mut udp), 100);
    gateway.now = gateway.now.plus(7);
    assert_eq!(count(&mut gateway, &mut udp), 7);
    gateway.now = gateway.now.plus(100_000);
    assert_eq!(count(&mut gateway, &mut udp), 100);
    let counters = gateway.rewriter.counters();
    assert_eq!(counters.rejected, 207);
    assert_eq!(counters.dropped[DropReason::RateLimited as usize], 3_000 - 207);
    assert_eq!(DropReason::NAMES[DropReason::RateLimited as usize], "rate_limited");
    assert_eq!(DropReason::NAMES[DropReason::Draining as usize], "draining");
}

proptest! {
    #[test]
    fn any_script_keeps_its_promises(script in any_of::<Script>(4000)) {
        script.run();
    }

    /// The identity of going there and back: a packet to the listener, and one of the same shape from it,
    /// both are what they would be had there been no translation.
    #[test]
    fn there_and_back(nth in 0_u8..12, there in any_of::<Shape>(200), back in any_of::<Shape>(200)) {
        let (mut gateway, slot) = with_flow(nth);
        prop_assert_eq!(gateway.client(&connection(nth), &there), Verdict::Forward);
        let [back, there] = [back, there].map(|shape| Shape { acknowledgement: 1001, ..shape });
        prop_assert_eq!(gateway.listener(slot, &back), Verdict::Forward);
        prop_assert_eq!(gateway.listener(slot, &there), Verdict::Forward);
    }

    #[test]
    fn icmp_errors_are_translated(nth in 0_u8..12, error in any_of::<Error>(400)) {
        let (mut gateway, slot) = with_flow(nth);
        prop_assert_eq!(gateway.error(slot, &error), Verdict::Forward);
    }
}
