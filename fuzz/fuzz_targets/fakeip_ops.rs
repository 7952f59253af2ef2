//! Operations on the table of addresses that stand for names, held against a list of promises.
#![no_main]

use std::collections::hash_map::{Entry, HashMap};
use std::net::{IpAddr, Ipv4Addr};

use libfuzzer_sys::{arbitrary, fuzz_target};
use tcp_over_http::dns::{FAKE_TTL, FakeIp, Ranges};
use tcp_over_http::net::{ClientKey, Ipv4Net};
use tcp_over_http::time::Instant;

#[derive(arbitrary::Arbitrary, Debug)]
enum Op {
    Assign { name: u8, length: u8, ttl: u8 },
    Hold(u8, u8),
    Release(u8),
    Wait(u32),
    Restart,
    Load(String),
}

#[derive(arbitrary::Arbitrary, Debug)]
struct Script {
    names: u8,
    prefix: u8,
    ops: Vec<Op>,
}

/// What a client knows.
struct Told {
    name: String,
    until: u64,
    holds: usize,
}

impl Told {
    fn binds(&self, now: u64) -> bool {
        self.until > now || self.holds > 0
    }

    /// A promise to caches may be broken, but not by another name.
    fn allows(&self, found: Option<&str>, now: u64) -> bool {
        !self.binds(now) || found == Some(&self.name) || self.holds == 0 && found.is_none()
    }
}

fuzz_target!(|script: Script| {
    let new = || {
        let v4 = Ipv4Net { addr: Ipv4Addr::new(198, 18, 0, 0), prefix: 15 + script.prefix % 16 };
        FakeIp::new(Ranges { v4, v6: None }, script.names.into(), [1, 2])
    };
    let (mut table, mut now) = (new(), 0u64);
    let mut told: HashMap<Ipv4Addr, Told> = HashMap::new();
    for op in script.ops {
        let at = Instant::from_millis(now);
        match op {
            Op::Assign { name, length, ttl } => {
                let name = format!("{name}.{}example", "x.".repeat(usize::from(length % 120)));
                let ttl = u32::from(ttl).min(FAKE_TTL);
                if let Some(entry) = table.assign(&name, ttl, at) {
                    assert_eq!(table.name(entry), name);
                    let until = now + u64::from(ttl) * 1000;
                    let new = Told { name, until, holds: 0 };
                    let told = match told.entry(table.v4(entry)) {
                        Entry::Occupied(old) if old.get().name == new.name => old.into_mut(),
                        Entry::Occupied(mut old) => {
                            assert!(!old.get().binds(now), "{} has lost its address", old.get().name);
                            old.insert(new);
                            continue;
                        }
                        Entry::Vacant(place) => place.insert(new),
                    };
                    told.until = told.until.max(until);
                }
            }
            Op::Hold(nth, client) => {
                if let Some((address, told)) = pick(&mut told, nth)
                    && let Some(entry) = table.find(IpAddr::V4(address))
                {
                    let client = ClientKey::of(Ipv4Addr::new(192, 168, 1, client).to_ipv6_mapped());
                    told.holds += usize::from(table.hold(entry, client));
                }
            }
            Op::Release(nth) => {
                if let Some((address, told)) = pick(&mut told, nth)
                    && told.holds > 0
                {
                    table.release(table.find(IpAddr::V4(address)).expect("it is held"));
                    told.holds -= 1;
                }
            }
            Op::Wait(ms) => now += u64::from(ms),
            Op::Restart => {
                let (mut text, live) = (Vec::new(), table.count());
                table.save(at, &mut text);
                // Which addresses rest is forgotten.
                told.retain(|&address, _| table.find(IpAddr::V4(address)).is_some());
                table = new();
                assert_eq!(table.load(&text, at), usize::from(live));
                for told in told.values_mut().filter(|told| told.binds(now)) {
                    told.until = now + 1000 * u64::from(FAKE_TTL);
                    told.holds = 0;
                }
            }
            Op::Load(text) => {
                if table.count() == 0 {
                    assert_eq!(table.load(text.as_bytes(), at), usize::from(table.count()));
                }
            }
        }
        // Names that may have made way are forgotten here, too.
        told.retain(|&address, told| {
            let found = table.find(IpAddr::V4(address)).map(|entry| table.name(entry));
            assert!(told.allows(found, now), "{address} has lost {}", told.name);
            found == Some(&told.name) || told.binds(now)
        });
        let is_live = |address: &Ipv4Addr| table.find(IpAddr::V4(*address)).is_some();
        let live = told.iter().filter(|(address, _)| is_live(address));
        let mut names: Vec<&str> = live.map(|(_, told)| told.name.as_str()).collect();
        names.sort();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "one address for each name");
    }
});

fn pick(told: &mut HashMap<Ipv4Addr, Told>, nth: u8) -> Option<(Ipv4Addr, &mut Told)> {
    let mut addresses: Vec<Ipv4Addr> = told.keys().copied().collect();
    addresses.sort();
    let address = *addresses.get(usize::from(nth) % addresses.len().max(1))?;
    Some((address, told.get_mut(&address)?))
}
