use super::*;
use crate::dns::wire::fixture::query;
use crate::dns::{Kind, Query, Reply};
use crate::net::{Ipv4Net, Ipv6Net};
use proptest::prelude::*;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::format;
use std::string::{String, ToString};
use std::vec;

const KEY: Key = [1, 2];
const WIDE: Ranges = Ranges {
    v4: Ipv4Net { addr: Ipv4Addr::new(198, 18, 0, 0), prefix: 15 },
    v6: Some(Ipv6Net { addr: Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0), prefix: 64 }),
};
const SECOND: u32 = 1000;
const ONE: ClientKey = client(1);
const OTHER: ClientKey = client(2);

const fn client(nth: u8) -> ClientKey {
    ClientKey::of(Ipv4Addr::new(192, 168, 1, nth).to_ipv6_mapped())
}

fn at(ms: u64) -> Instant {
    Instant::from_millis(ms)
}

/// A table of which every slot has `turns` addresses.
fn table(names: u16, turns: u32) -> FakeIp {
    let prefix = 32 - (u32::from(names) * turns + 2).next_power_of_two().ilog2() as u8;
    FakeIp::new(Ranges { v4: Ipv4Net { prefix, ..WIDE.v4 }, v6: None }, names, KEY)
}

fn assign(table: &mut FakeIp, name: &str, now: Instant) -> Option<Ipv4Addr> {
    table.assign(name, FAKE_TTL, now).map(|entry| table.v4(entry))
}

fn find(table: &FakeIp, address: Ipv4Addr) -> Option<&str> {
    table.find(address.into()).map(|entry| table.name(entry))
}

fn saved(table: &FakeIp, now: Instant) -> String {
    let mut out = vec![];
    table.save(now, &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn one_entry_has_both_addresses() {
    let mut table = FakeIp::new(WIDE, 2048, KEY);
    let first = table.assign("www.example.com", FAKE_TTL, at(0)).unwrap();
    let second = table.assign("www.example.net", FAKE_TTL, at(0)).unwrap();
    assert_ne!(first, second);
    assert_eq!(table.assign("www.example.com", FAKE_TTL, at(9)), Some(first));
    for (entry, name) in [(first, "www.example.com"), (second, "www.example.net")] {
        let (v4, v6) = (table.v4(entry), table.v6(entry).unwrap());
        for address in [v4.into(), v6.into(), v4.to_ipv6_mapped().into()] {
            assert!(table.contains(address));
            assert_eq!(table.find(address), Some(entry));
        }
        assert_eq!(table.name(entry), name);
        let far = v6.to_bits() - 0x2001_0002_u128.rotate_right(32);
        assert_eq!(far, u128::from(v4.to_bits() - 0xc612_0000));
    }
    for address in ["198.18.0.0", "198.19.255.255", "2001:2::", "2001:2::ffff:ffff:ffff:ffff"] {
        let address = address.parse().unwrap();
        assert!(table.contains(address) && table.find(address).is_none(), "{address}");
    }
    for address in ["198.17.255.255", "198.20.0.0", "2001:2:0:1::", "2001:1:ffff::1", "::1"] {
        let address = address.parse().unwrap();
        assert!(!table.contains(address) && table.find(address).is_none(), "{address}");
    }
    assert_eq!((table.count(), table.changes()), (2, 2));
}

#[test]
fn entries_are_as_small_as_we_say() {
    assert_eq!(size_of::<Slot>(), 24, "with 6 bytes of links and 2 of a bucket");
}

#[test]
fn a_range_of_any_size_will_do() {
    for (v4, v6, names, expected) in [
        (15, Some(64), 2048, 2048),
        (24, None, 2048, 254),
        (30, None, 9, 2),
        (32, None, 9, 2),
        (16, Some(125), 2048, 7),
        (0, Some(0), 0, 1),
        (0, Some(128), u16::MAX, 3),
    ] {
        let v6 = v6.map(|prefix| Ipv6Net { addr: Ipv6Addr::from_bits(u128::MAX), prefix });
        let ranges = Ranges { v4: Ipv4Net { addr: Ipv4Addr::new(198, 19, 255, 255), prefix: v4 }, v6 };
        let mut table = FakeIp::new(ranges, names, KEY);
        for nth in 0..expected {
            let entry = table.assign(&format!("{nth}.example"), 1, at(0)).unwrap();
            for address in
                [Some(table.v4(entry).into()), table.v6(entry).map(IpAddr::V6)].into_iter().flatten()
            {
                assert!(table.contains(address) && table.find(address) == Some(entry), "/{v4}: {address}");
            }
            assert!(v4 == 0 || !matches!(table.v4(entry).octets(), [.., 0 | 255] if v4 >= 24));
        }
        assert_eq!((table.count(), table.limit), (expected, expected));
        assert!(table.assign("one.more", 1, at(1000)).is_some());
    }
}

#[test]
fn names_in_use_stay() {
    let mut table = table(3, 10);
    let [a, b, c] =
        ["a.example", "b.example", "c.example"].map(|name| assign(&mut table, name, at(0)).unwrap());
    let late = at(u64::from(FAKE_TTL * SECOND));
    let entry = table.find(a.into()).unwrap();
    assert!(table.hold(entry, ONE) && table.hold(entry, OTHER));
    assert_eq!(assign(&mut table, "b.example", late), Some(b), "b has just been told again");
    let d = assign(&mut table, "d.example", late).unwrap();
    assert_eq!(find(&table, c), None, "c has made way");
    assert_eq!([a, b, d].map(|address| find(&table, address).is_some()), [true; 3]);
    let later = late.plus(FAKE_TTL * SECOND);
    table.release(entry);
    assert!(
        assign(&mut table, "f.example", later).is_some() && assign(&mut table, "g.example", later).is_some()
    );
    assert_eq!((find(&table, a), find(&table, b), find(&table, d)), (Some("a.example"), None, None));
    table.release(entry);
    assert!(assign(&mut table, "h.example", later).is_some());
    assert_eq!(find(&table, a), None);
    table.release(entry);
    assert!(!table.hold(Entry(77), ONE));
    table.release(Entry(77));
    assert_eq!((table.name(Entry(77)), table.count()), ("", 3));
}

/// 1 ms before the TTL is over, names make way: who has one in its cache is refused until no cache has it any more.
#[test]
fn an_address_that_is_promised_rests() {
    let mut table = table(2, 4);
    let (turns, last) = (u64::from(table.turns), u64::from(FAKE_TTL * SECOND) - 1);
    let mut told = HashSet::new();
    let next = |nth| assign(&mut table, &format!("{nth}.example"), at(last * u64::from(nth > 1)));
    for address in (0..).map_while(next) {
        assert!(told.insert(address), "{address}");
    }
    assert!((turns..=2 * turns).contains(&(told.len() as u64)), "{} of {turns} for each slot", told.len());
    assert!(assign(&mut table, "x.example", at(2 * last + 1)).is_some());

    let mut table = self::table(2, 1);
    assert!(
        assign(&mut table, "a.example", at(0)).is_some() && assign(&mut table, "b.example", at(0)).is_some()
    );
    assert_eq!(assign(&mut table, "c.example", at(last)), None);
    assert!(assign(&mut table, "c.example", at(last + 1)).is_some());
}

/// Has a client connect, and go.
fn visit(table: &mut FakeIp, address: Ipv4Addr, client: ClientKey) {
    let entry = table.find(address.into()).unwrap();
    if table.hold(entry, client) {
        table.release(entry);
    }
}

/// One client asks for thousands of names a second, and connects to each of them, or holds them; another visits its own.
#[test]
fn whoever_uses_most_yields() {
    for (visits, holds, length, seconds) in
        [(false, false, 1, 30), (true, false, 1, 5), (true, true, 1, 5), (true, true, 60, 5)]
    {
        let mut table = FakeIp::new(WIDE, 2048, KEY);
        let nth_name = |table: &mut FakeIp, nth: u64, now| {
            let name = format!("{nth}.{}.{}.example", "x".repeat(length), "y".repeat(length));
            let bytes = query(1, 0x0100, &name, Kind::A, None);
            match table.answer(&Query::parse(&bytes).unwrap(), None, now) {
                Some(Reply::Address(IpAddr::V4(address), _)) => Some(address),
                _ => None,
            }
        };
        // Its own before it begins.
        let own: std::vec::Vec<Ipv4Addr> = (0..200)
            .map(|nth| {
                let address = assign(&mut table, &format!("{nth}.old.example"), at(0)).unwrap();
                visit(&mut table, address, OTHER);
                address
            })
            .collect();
        let (mut good, mut nth, mut mine) = (0, 0, VecDeque::new());
        for ms in 0..1000 * seconds {
            for _ in 0..4 {
                nth += 1;
                let address = nth_name(&mut table, nth, at(ms));
                if visits && let Some(address) = address {
                    let entry = table.find(address.into()).unwrap();
                    if table.hold(entry, ONE) && !holds {
                        table.release(entry);
                    }
                }
            }
            // Ten names a second, and 50 ms later it connects.
            if ms % 100 == 0 {
                mine.push_back((ms, assign(&mut table, &format!("{ms}.new.example"), at(ms))));
            }
            if let Some(&(asked, address)) = mine.front()
                && ms >= asked + 50
            {
                mine.pop_front();
                let entry = address.and_then(|address| table.find(address.into()));
                if entry.is_some_and(|entry| table.name(entry) == format!("{asked}.new.example")) {
                    visit(&mut table, address.unwrap(), OTHER);
                    good += 1;
                }
            }
        }
        let kept = own.iter().filter(|&&address| find(&table, address).is_some()).count();
        let asked = 10 * seconds;
        assert!(
            (good, kept) == (asked, 200),
            "{good} of {asked} new names, {kept} of 200 old ones: {visits} {holds} {length}"
        );
    }
}

#[test]
fn nobody_takes_the_names_of_who_has_less() {
    let mut table = table(64, 10);
    let names: std::vec::Vec<Ipv4Addr> =
        (0..8).map(|nth| assign(&mut table, &format!("{nth}.example"), at(0)).unwrap()).collect();
    names.iter().for_each(|&address| visit(&mut table, address, ONE));
    // From 8 and 0 to 5 and 4, or so; then no more.
    names.iter().chain(&names).for_each(|&address| visit(&mut table, address, OTHER));
    let all = |table: &mut FakeIp, client| {
        let place = table.shares.place(client);
        table.shares.all(place)
    };
    assert_eq!((all(&mut table, ONE), all(&mut table, OTHER)), (4, 4));
    // Held names are counted once, whoever holds them.
    let entry = table.find(names[0].into()).unwrap();
    assert!(table.hold(entry, ONE) && table.hold(entry, OTHER));
    assert_eq!(table.held, 1);
    table.release(entry);
    table.release(entry);
    assert_eq!((table.held, table.new), (0, 0));
}

#[test]
fn a_client_holds_a_quarter_at_most() {
    let mut table = table(64, 10);
    for (who, holds) in [(1, 16), (2, 16), (3, 16), (4, 0)] {
        let held = (0..16).filter(|nth| {
            let address = assign(&mut table, &format!("{nth}.{who}.example"), at(0)).unwrap();
            table.hold(table.find(address.into()).unwrap(), client(who))
        });
        assert_eq!(held.count(), holds, "{who}");
    }
    let address = assign(&mut table, "more.example", at(0)).unwrap();
    assert!(!table.hold(table.find(address.into()).unwrap(), ONE));
}

#[test]
fn addresses_rest_as_long_as_the_range_allows() {
    let mut table = table(4, 30);
    let limit = u32::from(table.turns) * 4;
    let mut last = BTreeMap::new();
    for nth in 0..4 * limit {
        let now = at(u64::from(nth * FAKE_TTL * SECOND));
        let address = assign(&mut table, &format!("{nth}.example"), now).unwrap();
        if let Some(before) = last.insert(address, nth) {
            assert_eq!(nth - before, limit);
        }
    }
    assert_eq!(last.len(), limit as usize);
}

#[test]
fn an_entry_of_weeks_ago_is_not_fresh_for_weeks() {
    let mut table = table(1, 10);
    for days in [20, 25, 30, 40] {
        let now = at(days * 86_400_000);
        assert!(assign(&mut table, &format!("{days}.example"), at(0)).is_some());
        assert!(assign(&mut table, &format!("x{days}.example"), now).is_some(), "{days} days");
        table = self::table(1, 10);
    }
}

#[test]
fn long_names_share_the_memory() {
    let mut table = table(100, 100);
    let label = "x".repeat(60);
    let mut held = 0;
    for nth in 0..1000u64 {
        let name = format!("{nth}.{label}.{label}.{label}.example");
        match table.assign(&name, 1, at(nth)) {
            Some(entry) => {
                assert_eq!(table.name(entry), name);
            }
            None => panic!("{nth}"),
        }
        held = held.max(table.count());
    }
    assert!((10..20).contains(&held), "{held}");
    assert!(table.assign("short.example", 1, at(1000)).is_some());
    for nth in 0..1000u64 {
        let name = format!("{nth}.{}.example", &label[..nth as usize % 60 + 1]);
        let entry = table.assign(&name, 1, at(10_000 + nth * 1000)).unwrap();
        assert_eq!(table.name(entry), name);
    }
}

fn answer(table: &mut FakeIp, name: &str, kind: Kind, now: Instant) -> Option<String> {
    let bytes = query(7, 0x0100, name, kind, None);
    let reply = table.answer(&Query::parse(&bytes).unwrap(), None, now)?;
    Some(match reply {
        Reply::Address(address, ttl) => format!("{address} {ttl}"),
        Reply::Pointer(host, _) => host.to_string(),
        other => format!("{other:?}"),
    })
}

#[test]
fn queries_are_answered() {
    let mut table = FakeIp::new(WIDE, 8, KEY);
    let text = |text: &str| Some(text.to_string());
    let v4 = answer(&mut table, "WWW.Example.com", Kind::A, at(0)).unwrap();
    let v6 = answer(&mut table, "www.example.COM", Kind::AAAA, at(0)).unwrap();
    let address: Ipv4Addr = v4.strip_suffix(" 60").unwrap().parse().unwrap();
    let address6: Ipv6Addr = v6.strip_suffix(" 60").unwrap().parse().unwrap();
    assert_eq!(table.find(address.into()), table.find(address6.into()));
    assert_eq!((find(&table, address), table.count()), (Some("www.example.com"), 1));

    let [a, b, c, d] = address.octets();
    let reverse = |d: u8| format!("{d}.{c}.{b}.{a}.in-addr.arpa");
    assert_eq!(answer(&mut table, &reverse(d), Kind::PTR, at(0)), text("www.example.com"));
    assert_eq!(answer(&mut table, &reverse(d ^ 1), Kind::PTR, at(0)), text("NoSuchName(1)"));
    let nibbles: String =
        address6.octets().iter().rev().map(|o| format!("{:x}.{:x}.", o & 15, o >> 4)).collect();
    assert_eq!(answer(&mut table, &(nibbles + "ip6.arpa"), Kind::PTR, at(0)), text("www.example.com"));

    for kind in [Kind::HTTPS, Kind::SVCB] {
        assert_eq!(answer(&mut table, "_8443._https.example.com", kind, at(0)), text("NoData(60)"));
    }
    assert_eq!(answer(&mut table, "example.com", Kind::ANY, at(0)), text("Any"));
    for name in ["router", "192.0.2.1", "x.0x7f", "x.local"] {
        let reply = answer(&mut table, name, Kind::A, at(0)).unwrap();
        assert!(reply.starts_with("NoSuchName"), "{name}: {reply}");
    }
    assert_eq!(answer(&mut table, "localhost", Kind::A, at(0)), text("127.0.0.1 600"));
    for other in [Kind(15), Kind(16), Kind(33)] {
        assert_eq!(answer(&mut table, "example.com", other, at(0)), None);
    }
    assert_eq!(answer(&mut table, "8.8.8.8.in-addr.arpa", Kind::PTR, at(0)), None);
    assert_eq!(table.count(), 1);

    let mut single = FakeIp::new(Ranges { v6: None, ..WIDE }, 8, KEY);
    assert_eq!(answer(&mut single, "www.example.com", Kind::AAAA, at(0)), text("NoData(60)"));
}

#[test]
fn ttls_get_short_when_names_come_fast() {
    let mut table = table(8, 10);
    let ttl = |table: &mut FakeIp, nth: u32, now| {
        let reply = answer(table, &format!("{nth}.example"), Kind::A, now).unwrap();
        reply.split_once(' ').unwrap().1.to_string()
    };
    for nth in 0..4 {
        assert_eq!(ttl(&mut table, nth, at(0)), "60");
    }
    for nth in 4..8 {
        assert_eq!(ttl(&mut table, nth, at(0)), "1");
    }
    for nth in 8..50 {
        assert_eq!(ttl(&mut table, nth, at(u64::from(nth) * 1000)), "1");
    }
    assert_eq!(ttl(&mut table, 0, at(60_000 + 40_000)), "10");
    assert_eq!(ttl(&mut table, 0, at(1_000_000)), "60");
}

#[test]
fn tables_survive_a_restart() {
    let mut old = table(4, 10);
    let [a, b, c] =
        ["a.example", "b.example", "c.example"].map(|name| assign(&mut old, name, at(0)).unwrap());
    assert!(old.hold(old.find(a.into()).unwrap(), ONE));
    let later = at(u64::from(FAKE_TTL * SECOND));
    assign(&mut old, "b.example", later);
    let text = saved(&old, later);
    assert_eq!(text, format!("{c} c.example #idle\n{b} b.example\n{a} a.example\n"));

    let mut new = table(4, 10);
    assert_eq!(new.load(text.as_bytes(), at(0)), 3);
    assert_eq!(saved(&new, at(0)), text);
    assert_eq!(find(&new, a), Some("a.example"));
    assert!(assign(&mut new, "d.example", at(0)).is_some());
    assert!(assign(&mut new, "e.example", at(0)).is_some());
    assert_eq!([a, b, c].map(|address| find(&new, address).is_some()), [true, true, false]);
    assert_eq!(new.load(text.as_bytes(), at(0)), 0, "what is there stays");
}

/// As an update does whose default is another range, and a user.
#[test]
fn names_keep_their_ipv4_addresses_in_another_range_of_ipv6() {
    let private = Ipv6Net { addr: Ipv6Addr::new(0xfd45, 0x3a, 0, 0, 0, 0, 0, 0), prefix: 64 };
    let mut old = FakeIp::new(Ranges { v6: Some(private), ..WIDE }, 2048, KEY);
    let was = old.assign("www.example", FAKE_TTL, at(0)).unwrap();
    for v6 in [WIDE.v6, None] {
        let mut new = FakeIp::new(Ranges { v6, ..WIDE }, 2048, [3, 4]);
        assert_eq!(new.load(saved(&old, at(0)).as_bytes(), at(0)), 1);
        let is = new.find(old.v4(was).into()).unwrap();
        assert_eq!((new.name(is), new.v4(is)), ("www.example", old.v4(was)));
        assert_eq!(new.v6(is).map(|v6| new.find(v6.into())), v6.map(|_| Some(is)));
    }
}

#[test]
fn bad_lines_are_skipped() {
    let text = b"198.18.0.1 a.example\n\xff\xff\n198.18.0.2\n198.18.0.3 nodot\n192.0.2.1 b.example\n\
        198.18.0.0 c.example\n198.18.0.300 d.example\n\n 198.18.0.4\te.EXAMPLE  #idle \n198.18.0.5 e.example\r\n\
        198.18.0.1 f.example\n198.18.0.6 a b\n198.18.0.7 x..y\n2001:2::9 g.example\n198.18.0.1";
    let mut table = table(16, 1);
    assert_eq!(table.load(text, at(0)), 2);
    assert_eq!(saved(&table, at(0)), "198.18.0.5 e.example\n198.18.0.1 f.example\n");
    for nth in 0..table.limit - 2 {
        assert!(assign(&mut table, &format!("{nth}.example"), at(0)).is_some());
    }
    assert_eq!((table.count(), table.limit), (16, 16));

    let mut small = self::table(2, 1);
    assert_eq!(small.load(b"198.18.0.1 a.example\n198.18.0.3 c.example\n198.18.0.2 b.example", at(0)), 2);
}

#[derive(Clone, Debug)]
enum Op {
    Assign(u8, u8),
    Hold(u8, u8),
    Release(u8),
    Wait(u16),
    Restart,
}

fn ops() -> impl Strategy<Value = std::vec::Vec<Op>> {
    let op = prop_oneof![
        8 => (0u8..20, 0u8..61).prop_map(|(name, ttl)| Op::Assign(name, ttl)),
        3 => (any::<u8>(), 0u8..4).prop_map(|(name, client)| Op::Hold(name, client)),
        3 => any::<u8>().prop_map(Op::Release),
        4 => any::<u16>().prop_map(Op::Wait),
        1 => Just(Op::Restart),
    ];
    proptest::collection::vec(op, 0..200)
}

/// What a client knows: the name's address, and until when.
struct Told {
    name: String,
    address: Ipv4Addr,
    until: u64,
    holds: usize,
}

proptest! {
    /// A naive list of promises beside the table: no address that a flow or a cache uses ever means another name, and one
    /// that a flow holds never loses its own.
    #[test]
    fn promises_are_kept(ops in ops(), names in 1u16..9, turns in 1u32..4) {
        let mut table = table(names, turns);
        let mut now = 0u64;
        let mut told: std::vec::Vec<Told> = vec![];
        for op in ops {
            match op {
                Op::Assign(nth, ttl) => {
                    let name = format!("{nth}.{}example", "x.".repeat(usize::from(nth % 8) * 15));
                    let bound = told.iter().filter(|t| t.until > now || t.holds > 0).count();
                    let entry = table.assign(&name, ttl.into(), at(now));
                    if let Some(entry) = entry {
                        let address = table.v4(entry);
                        let until = now + u64::from(ttl) * 1000;
                        told.retain(|t| t.until > now || t.holds > 0);
                        match told.iter_mut().find(|t| t.address == address) {
                            Some(known) => {
                                prop_assert_eq!(&known.name, &name);
                                known.until = known.until.max(until);
                            }
                            None => {
                                let held = told.iter().find(|t| t.name == name && t.holds > 0);
                                prop_assert!(held.is_none(), "{name} is held");
                                told.push(Told { name, address, until, holds: 0 });
                            }
                        }
                    } else {
                        let room = told.iter().filter(|t| t.until > now || t.holds > 0)
                            .map(|t| t.name.len() + 3).sum::<usize>() + name.len() + 3;
                        prop_assert!(bound >= usize::from(table.limit) || room > 960, "{bound} names in use");
                    }
                }
                Op::Hold(nth, who) => if let Some(t) = told.get_mut(usize::from(nth) % names as usize)
                    && let Some(entry) = table.find(t.address.into())
                    && table.name(entry) == t.name
                {
                    t.holds += usize::from(table.hold(entry, client(who)));
                },
                Op::Release(nth) => if let Some(t) = told.get_mut(usize::from(nth) % names as usize) && t.holds > 0 {
                    table.release(table.find(t.address.into()).unwrap());
                    t.holds -= 1;
                },
                Op::Wait(ms) => now += u64::from(ms),
                Op::Restart => {
                    let text = saved(&table, at(now));
                    let mut new = self::table(names, turns);
                    prop_assert_eq!(new.load(text.as_bytes(), at(now)), usize::from(table.count()));
                    prop_assert_eq!(new.count(), table.count());
                    // Which addresses rest is forgotten.
                    told.retain(|t| find(&table, t.address).is_some_and(|name| name == t.name));
                    table = new;
                    // Flows end with the old run; their clients may keep the address a little.
                    for t in &mut told {
                        if t.until > now || t.holds > 0 {
                            t.until = now + u64::from(FAKE_TTL * SECOND);
                        }
                        t.holds = 0;
                    }
                }
            }
            for t in told.iter().filter(|t| t.until > now || t.holds > 0) {
                let found = find(&table, t.address);
                prop_assert!(found == Some(&t.name) || t.holds == 0 && found.is_none(), "{} is {found:?}", t.name);
            }
            let weight = |list: &[u16]| -> u32 {
                let of = |&list: &u16| core::iter::successors(table.links.first(list), |&at| table.links.next(at));
                list.iter().flat_map(of).map(|at| table.weight(at)).sum()
            };
            let shares = (0..9).map(|place| (table.shares.all(place), table.shares.held(place)));
            let sums = shares.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
            prop_assert_eq!((table.new, table.held), (weight(&[NEW]), weight(&[HELD])));
            prop_assert_eq!(sums, (weight(&[IDLE, HELD]), weight(&[HELD])));
            let lines = saved(&table, at(now));
            prop_assert_eq!(lines.lines().count(), usize::from(table.count()));
            let mut names: std::vec::Vec<_> = lines.lines().map(|l| l.split(' ').nth(1).unwrap()).collect();
            names.sort();
            names.dedup();
            prop_assert_eq!(names.len(), usize::from(table.count()), "one address for each name");
        }
    }

    #[test]
    fn any_file_is_survived(text in "(198\\.18\\.0\\.[0-9]{1,3} [a-c]\\.[a-z]( #idle)?\n|\\PC{0,9}\n?){0,20}") {
        let mut table = table(9, 2);
        let count = table.load(text.as_bytes(), at(0));
        prop_assert_eq!(count, usize::from(table.count()));
        prop_assert_eq!(saved(&table, at(0)).lines().count(), count);
        for nth in 0..20 {
            let name = format!("{nth}.example");
            if let Some(address) = assign(&mut table, &name, at(1)) {
                prop_assert_eq!(find(&table, address), Some(name.as_str()));
            }
        }
    }
}

/// The file is older than what was handed out last, and the same names make way after it.
#[test]
fn after_a_crash_no_address_gets_another_name_at_once() {
    let mut first = table(4, 10);
    for nth in 0..4 {
        assign(&mut first, &format!("{nth}.old"), at(0)).unwrap();
    }
    let file = saved(&first, at(200_000));
    let told = assign(&mut first, "told.example", at(210_000)).unwrap();
    let repeats = (0..50).filter(|&salt| {
        let mut second = FakeIp::new(first.ranges, 4, [77, salt]);
        second.load(file.as_bytes(), at(0));
        assign(&mut second, "new.example", at(1000)).unwrap() == told
    });
    let repeats = repeats.count();
    assert!(repeats < 15, "{repeats} of 50 runs; there are 8 orders to choose from");
}

#[test]
fn all_addresses_have_their_turn() {
    for salt in 0..50 {
        let mut fake = FakeIp::new(table(4, 10).ranges, 1, [salt, 1]);
        let seen: HashSet<Ipv4Addr> = (0..u32::from(fake.turns))
            .map(|nth| assign(&mut fake, &format!("{nth}.example"), at(100_000 * u64::from(nth))).unwrap())
            .collect();
        assert_eq!(seen.len(), usize::from(fake.turns));
    }
}

#[test]
fn an_address_is_good_for_long_after_weeks_of_rest() {
    const DAY: u64 = 86_400_000;
    let mut fake = table(8, 10);
    for nth in 0..4 {
        assign(&mut fake, &format!("{nth}.old"), at(0)).unwrap();
    }
    for day in [1, 24, 25, 30, 49, 50] {
        let bytes = query(1, 0x0100, "3.old", Kind::A, None);
        let reply = fake.answer(&Query::parse(&bytes).unwrap(), None, at(day * DAY));
        assert!(matches!(reply, Some(Reply::Address(_, FAKE_TTL))), "day {day}: {reply:?}");
    }
}

/// As virus scanners and trackers make them: they fill the memory for names long before there are many.
#[test]
fn long_names_leave_room_for_others() {
    let mut fake = FakeIp::new(WIDE, 2048, KEY);
    let mut ask = |name: &str, now| {
        let bytes = query(1, 0x0100, name, Kind::A, None);
        let reply = fake.answer(&Query::parse(&bytes).unwrap(), None, now);
        assert!(matches!(reply, Some(Reply::Address(..))), "{name}: {reply:?}");
    };
    let label = "x".repeat(60);
    for nth in 0..2000 {
        let now = at(100 * nth);
        ask(&format!("{nth}.{label}.{label}.{label}.example"), now);
        ask(&format!("www{nth}.example"), now);
    }
}
