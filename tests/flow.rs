//! Operation lists on the flow table against a reference model.

mod common;

use arbitrary::{Arbitrary, Unstructured};
use common::flow_script::{Model, Script, many_tuples};
use proptest::prelude::*;
use std::net::Ipv6Addr;
use tcp_over_http::flow::{
    CLOSING_IDLE, FlowTable, IDLE_SAFE, LINGER, Limits, MAX_FLOWS, OPENED_SAFE, OPENING_IDLE, Refusal, Side,
    Slot, State,
};
use tcp_over_http::packet::{ACK, ChecksumChange, Segment, Tuple};
use tcp_over_http::time::Instant;

const LIMITS: Limits = Limits { flows: 4, held: 4, held_per_client: 4 };

fn open(table: &mut FlowTable, port: u32, now: Instant) -> Slot {
    table.open(many_tuples(0, port), 1, now, |_| ChecksumChange::default()).unwrap()
}

#[test]
fn nobody_waits_for_ever() {
    let mut table = FlowTable::new(LIMITS, 4, [1, 2]);
    // Over the end of a stamp's range.
    let start = Instant::from_millis(u32::MAX as u64 - 10_000);
    let held = open(&mut table, 0, start);
    let opening = open(&mut table, 1, start);
    let live = open(&mut table, 2, start);
    let closing = open(&mut table, 3, start);
    for slot in [opening, live, closing] {
        table.release(slot, start);
    }
    for slot in [live, closing] {
        assert!(table.accept(slot, start));
    }
    table.close(closing, start);
    assert_eq!(table.expire(start.plus(7_000)), None);
    assert_eq!(table.expire(start.plus(7_001)), Some((held, State::Held)));
    assert_eq!(table.get(held).state(), State::Closed);
    let late = start.plus(OPENING_IDLE);
    assert_eq!(table.expire(start.plus(OPENING_IDLE - 1)), None);
    assert_eq!(table.expire(late), Some((opening, State::Opening)));
    assert_eq!(table.expire(late), None);
    let late = start.plus(CLOSING_IDLE);
    assert_eq!(table.expire(start.plus(CLOSING_IDLE - 1)), None);
    assert_eq!(table.expire(late), Some((closing, State::Closing)));
    assert_eq!(table.expire(late.plus(1_000_000_000)), None);
    assert_eq!(table.get(live).state(), State::Live);
    assert_eq!((table.count(State::Held), table.count(State::Live)), (0, 1));
}

#[test]
fn who_is_held_for_one_server() {
    let mut table = FlowTable::new(LIMITS, 4, [1, 2]);
    let now = Instant::default();
    let first = many_tuples(0, 0);
    let same = Tuple { source_port: first.source_port ^ 1, ..first };
    let of_another = Tuple { source: Ipv6Addr::from_bits(first.source.to_bits() ^ 1), ..first };
    let to_another = Tuple { destination_port: first.destination_port ^ 1, ..first };
    let mut slots = Vec::new();
    for tuple in [first, same, of_another, to_another] {
        slots.push(table.open(tuple, 1, now, |_| ChecksumChange::default()).unwrap());
    }
    assert_eq!((table.held_to(&first), table.held_to(&to_another)), ((3, 2), (1, 1)));
    table.release(slots[1], now);
    assert_eq!(table.held_to(&of_another), (2, 1));
}

#[test]
fn limits_of_held_flows_can_change() {
    let mut table = FlowTable::new(LIMITS, 4, [1, 2]);
    let now = Instant::default();
    let begin =
        |table: &mut FlowTable, port| table.open(many_tuples(0, port), 1, now, |_| ChecksumChange::default());
    table.limit_held(2, 1);
    let first = begin(&mut table, 0).unwrap();
    assert_eq!(begin(&mut table, 1), Err(Refusal::TooManyHeldByClient));
    table.limit_held(2, 2);
    assert!(begin(&mut table, 1).is_ok());
    // Fewer than there are: those stay.
    table.limit_held(1, 1);
    assert_eq!(begin(&mut table, 2), Err(Refusal::TooManyHeld));
    assert_eq!(table.count(State::Held), 2);
    table.release(first, now);
    assert_eq!((table.count(State::Held), table.count(State::Opening), table.count(State::Free)), (1, 1, 0));
}

/// Opens a flow; tells which one has yielded.
fn squeeze(table: &mut FlowTable, tuple: Tuple, now: Instant) -> Result<(Slot, Option<Slot>), Refusal> {
    let slot = table.open(tuple, 1, now, |_| ChecksumChange::default())?;
    Ok((slot, table.take_yielded()))
}

fn live(table: &mut FlowTable, slot: Slot, now: Instant) {
    table.release(slot, now);
    assert!(table.accept(slot, now));
}

/// One client has all flows, and goes on asking for more; another gets all that it wants up to half of them.
#[test]
fn a_full_table_is_shared() {
    for half_open in [false, true] {
        let limits = Limits { flows: 64, held: 64, held_per_client: 64 };
        let mut table = FlowTable::new(limits, 4, [1, 2]);
        let mut now = Instant::from_millis(1_000);
        for port in 0..64 {
            let slot = open(&mut table, port, now);
            if !half_open {
                live(&mut table, slot, now);
            }
        }
        let mut others = Vec::new();
        for port in 0..32 {
            now = now.plus(10);
            for more in 0..20 {
                let port = 100 + port * 20 + more;
                assert!(squeeze(&mut table, many_tuples(0, port), now).is_err());
            }
            let (slot, yielded) = squeeze(&mut table, many_tuples(1, port), now).unwrap();
            let yielded = yielded.expect("the table is full");
            assert!(!others.contains(&yielded) && yielded.index() < 64);
            live(&mut table, slot, now);
            others.push(slot);
        }
        // Now they have the same, and nobody takes from the other.
        assert!(squeeze(&mut table, many_tuples(1, 99), now).is_err());
        assert!(squeeze(&mut table, many_tuples(0, 99), now).is_err());
        for slot in others {
            assert_eq!(
                (table.get(slot).state(), table.get(slot).tuple.source),
                (State::Live, many_tuples(1, 0).source)
            );
        }
    }
}

/// In a full table a client's own silent flows make room for its new ones, but not those that it uses.
#[test]
fn silent_flows_make_room() {
    let mut table = FlowTable::new(LIMITS, 4, [1, 2]);
    let start = Instant::default();
    let slots: Vec<Slot> = (0..4).map(|port| open(&mut table, port, start)).collect();
    for &slot in &slots {
        live(&mut table, slot, start);
    }
    let used = start.plus(IDLE_SAFE - 1);
    let segment = Segment { sequence: 2, acknowledgement: 9, length: 10, flags: ACK };
    for &slot in &slots[..3] {
        table.note(slot, Side::Client, &segment, used);
    }
    assert_eq!(squeeze(&mut table, many_tuples(0, 9), used), Err(Refusal::TableFull));
    let now = start.plus(IDLE_SAFE);
    let (_, yielded) = squeeze(&mut table, many_tuples(0, 9), now).unwrap();
    assert_eq!(yielded, Some(slots[3]));
    assert_eq!(squeeze(&mut table, many_tuples(0, 10), now), Err(Refusal::TableFull));
}

/// A client's half-open flows are no more than those that it may open, and end soon.
#[test]
fn half_open_flows_are_bounded() {
    let limits = Limits { flows: 1_000, held: 100, held_per_client: 20 };
    let mut table = FlowTable::new(limits, 4, [1, 2]);
    let mut now = Instant::default();
    for port in 0..5_000 {
        now = now.plus(10);
        if let Ok((slot, _)) = squeeze(&mut table, many_tuples(0, port), now) {
            table.release(slot, now);
        }
        assert!(table.count(State::Opening) <= 20);
    }
    let mut ended = 0;
    while table.expire(now.plus(OPENING_IDLE)).is_some() {
        ended += 1;
    }
    assert_eq!((ended, table.count(State::Opening)), (20, 0));
}

/// A client's new dials replace its oldest, once a second: its bound holds, and it is not starved by silent targets.
#[test]
fn the_oldest_dial_gives_way() {
    let limits = Limits { flows: 1_000, held: 512, held_per_client: 128 };
    let mut table = FlowTable::new(limits, 4, [1, 2]);
    let mut now = Instant::default();
    let dials: Vec<Slot> = (0..128).map(|port| open(&mut table, port, now)).collect();
    let refused = Err(Refusal::TooManyHeldByClient);
    now = now.plus(OPENED_SAFE - 1);
    assert_eq!(squeeze(&mut table, many_tuples(0, 500), now), refused);
    now = now.plus(1);
    for port in 0..128 {
        let (_, yielded) = squeeze(&mut table, many_tuples(0, 500 + port), now).unwrap();
        assert_eq!(yielded, Some(dials[port as usize]));
        assert_eq!(table.count(State::Held), 128);
    }
    assert_eq!(squeeze(&mut table, many_tuples(0, 999), now), refused);
}

/// Five addresses of one /64 have one client's share; those with few dials get theirs from those with many.
#[test]
fn all_dials_are_shared() {
    let limits = Limits { flows: 5_000, held: 512, held_per_client: 128 };
    let mut table = FlowTable::new(limits, 4, [1, 2]);
    let now = Instant::default();
    let of_64 = |address: u128, port: u32| {
        let source = Ipv6Addr::from_bits(0xfd00 << 112 | address);
        Tuple { source, ..many_tuples(1, port) }
    };
    let held = (0..1_000).filter(|&port| squeeze(&mut table, of_64(port as u128 % 5, port), now).is_ok());
    assert_eq!(held.count(), 128);
    for client in [2, 4, 6] {
        let held = (0..200).filter(|&port| squeeze(&mut table, many_tuples(client, port), now).is_ok());
        assert_eq!(held.count(), 128);
    }
    // All 512 are held by four; a fifth gets as many as they keep.
    let held = (0..200).filter(|&port| {
        squeeze(&mut table, many_tuples(8, port), now)
            .is_ok_and(|(_, yielded)| yielded.is_some_and(|yielded| yielded.index() < 512))
    });
    assert_eq!(held.count(), 102);
    assert_eq!(table.count(State::Held), 512);
}

/// Clients are as many as flows, or seem so: one more gets the place of the oldest, but not two.
#[test]
fn a_thousand_clients_hold_one_each() {
    let limits = Limits { flows: 1_000, held: 1_000, held_per_client: 16 };
    let mut table = FlowTable::new(limits, 4, [1, 2]);
    let mut now = Instant::default();
    for client in 0..1_000 {
        assert!(squeeze(&mut table, many_tuples(2 * client, 0), now).is_ok());
    }
    for slot in 1..10 {
        table.release(Slot::from_number(slot), now);
    }
    now = now.plus(OPENED_SAFE - 1);
    assert_eq!(squeeze(&mut table, many_tuples(5_000, 0), now), Err(Refusal::TooManyHeld));
    now = now.plus(1);
    for client in 0..1_000 {
        let (_, yielded) = squeeze(&mut table, many_tuples(5_000 + 2 * client, 0), now).unwrap();
        assert!(yielded.is_some());
        assert_eq!(squeeze(&mut table, many_tuples(5_000 + 2 * client, 1), now), Err(Refusal::TooManyHeld));
    }
    assert_eq!(squeeze(&mut table, many_tuples(9_000, 0), now), Err(Refusal::TooManyHeld));
}

/// Addresses that nobody may have hold all places, all of them young: a neighbour gets some, and they don't take them back.
#[test]
fn a_neighbour_comes_before_those_that_may_be_forged() {
    let limits = Limits { flows: 1_000, held: 128, held_per_client: 64 };
    let mut table = FlowTable::new(limits, 4, [1, 2]);
    let mut now = Instant::default();
    let of_neighbour = |port| many_tuples(0, port);
    table.neighbours().replace(|add| add(of_neighbour(0).source, [2, 0, 0, 0, 0, 1]));
    for client in 1..=128 {
        assert!(squeeze(&mut table, many_tuples(2 * client, 0), now).is_ok());
    }
    let places: Vec<_> = (0..64).map(|port| squeeze(&mut table, of_neighbour(port), now)).collect();
    assert_eq!(places.iter().filter(|place| place.is_ok()).count(), 16);
    for first in [200, 400] {
        assert_eq!(squeeze(&mut table, many_tuples(2 * first, 0), now), Err(Refusal::TooManyHeld));
        now = now.plus(OPENED_SAFE);
        for client in first..first + 112 {
            assert!(squeeze(&mut table, many_tuples(2 * client, 0), now).is_ok());
        }
    }
    assert!((0..16).all(|port| table.find(&of_neighbour(port)).is_some()));

    // It has more than a few: others take from it.
    table.limit_held(128, 16);
    let before = table.find(&of_neighbour(0));
    assert_eq!(squeeze(&mut table, many_tuples(999, 0), now).unwrap().1, before);
}

/// One that begins anew, again and again, is as old as it was at first.
#[test]
fn a_new_attempt_is_as_old() {
    let limits = Limits { flows: 16, held: 2, held_per_client: 2 };
    let mut table = FlowTable::new(limits, 4, [1, 2]);
    let start = Instant::default();
    let [first, _] = [0, 2].map(|client| squeeze(&mut table, many_tuples(client, 0), start).unwrap().0);
    let now = start.plus(OPENED_SAFE);
    assert!(table.repeat(first, 9, now));
    let (_, yielded) = squeeze(&mut table, many_tuples(4, 0), now).unwrap();
    assert_eq!(yielded, Some(first));
}

/// A client that repeats its SYN is waited for twice as long as it has tried, and longer.
#[test]
fn a_clients_patience() {
    let mut table = FlowTable::new(LIMITS, 4, [1, 2]);
    let start = Instant::default();
    let slot = open(&mut table, 0, start);
    for seconds in [1, 3, 7, 15, 31] {
        let now = start.plus(seconds * 1_000);
        assert_eq!(table.expire(now), None);
        assert!(!table.repeat(slot, 1, now));
    }
    let last = start.plus(31_000 + 2 * 31_000 + 7_000);
    assert_eq!(table.expire(last), None);
    assert_eq!(table.expire(last.plus(1)), Some((slot, State::Held)));
    // One that does so for weeks is no reason to panic.
    let slot = open(&mut table, 0, last);
    assert!(!table.repeat(slot, 1, last.plus(2_147_483_000)));
    assert_eq!(table.expire(last.plus(2_147_483_001)), None);
}

/// A slot's stamps are right for 49 days: nothing may be left then that would need them.
#[test]
fn an_old_flow_does_not_come_back() {
    let mut table = FlowTable::new(LIMITS, 4, [1, 2]);
    let mut now = Instant::default();
    for port in 0..4 {
        let slot = open(&mut table, port, now);
        table.release(slot, now);
        assert!(table.accept(slot, now));
        table.close(slot, now);
    }
    for _ in 0..10 {
        now = now.plus(LINGER);
        while table.expire(now).is_some() {}
    }
    for _ in 0..60 {
        now = now.plus(86_400_000);
        assert_eq!(table.expire(now), None);
        for port in 0..4 {
            assert_eq!(table.find(&many_tuples(0, port)), None);
        }
    }
    open(&mut table, 9, now);
}

proptest! {
    #[test]
    fn the_table_does_what_the_model_does(
        bytes in proptest::collection::vec(any::<u8>(), 0..3000),
    ) {
        let script = Script::arbitrary(&mut Unstructured::new(&bytes)).unwrap();
        script.run();
    }
}

/// All slots but a few are live for ever, and each slot has few NAT sources: they must rest all the same,
/// and the few slots must go on being used.
#[test]
fn nat_sources_rest_when_few_are_left() {
    for hosts in [1, 2, 5] {
        let limits = Limits { flows: MAX_FLOWS, held: 100, held_per_client: 100 };
        let mut model = Model::new(limits, hosts, [1, 2], 0);
        let few = MAX_FLOWS as usize - 3;
        model.fill(few as u32);
        let (mut opened, mut refused) = (0, 0);
        for step in 0..800_u64 {
            match model.open(many_tuples(0, step as u32), 1) {
                true => opened += 1,
                false => refused += 1,
            }
            // Uses last from none to many seconds.
            for nth in few..few + 3 {
                if !model.exists(nth) || (step + nth as u64 * 7) % 11 < 4 {
                    continue;
                }
                match model.state(nth) {
                    State::Held => model.release(nth),
                    State::Opening => model.accept(nth),
                    State::Live => {
                        model.note(nth, false, 4, 0, 0);
                        model.close(nth);
                    }
                    _ => {}
                }
            }
            model.wait(match step % 100 {
                0 => 70_000,
                _ => 500,
            });
            if step % 8 == 0 {
                model.expire();
            }
        }
        assert!(
            opened > 20 && refused > 10 && model.retaken > 15,
            "{hosts}: {opened} {refused} {}",
            model.retaken
        );
        model.check();
    }
}
