//! Operation lists on the flow table against a reference model.

mod common;

use arbitrary::{Arbitrary, Unstructured};
use common::flow_script::{Model, Script, many_tuples};
use proptest::prelude::*;
use tcp_over_http::flow::{
    CLOSING_IDLE, FlowTable, LINGER, Limits, MAX_FLOWS, OPENING_IDLE, Refusal, Slot, State,
};
use tcp_over_http::packet::Change;
use tcp_over_http::time::Instant;

const LIMITS: Limits = Limits { flows: 4, held: 4, held_per_client: 4 };

fn open(table: &mut FlowTable, port: u32, now: Instant) -> Slot {
    table.open(many_tuples(0, port), 1, now, |_| Change::default()).unwrap()
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
fn limits_of_held_flows_can_change() {
    let mut table = FlowTable::new(LIMITS, 4, [1, 2]);
    let now = Instant::default();
    let begin = |table: &mut FlowTable, port| table.open(many_tuples(0, port), 1, now, |_| Change::default());
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
                        model.note(nth, false, 4);
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
