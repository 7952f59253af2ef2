//! How long the library takes for a packet and for a flow.
//!
//! ```text
//! cargo bench --bench micro [-- NAME...]               nanoseconds, the best of several runs
//! cargo bench --bench micro -- --iterations N NAME     does NAME N times, in silence, for scripts/instructions
//! ```

use std::hint::black_box;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::ExitCode;
use std::time::{Duration, Instant as Clock};

use tcp_over_http::dns::{Cache, FakeIp, Kind, Name, Query, Ranges, Reply};
use tcp_over_http::flow::subnet::Subnets;
use tcp_over_http::flow::{FlowTable, Limits, Side, Slot};
use tcp_over_http::net::{Ipv4Net, Ipv6Net};
use tcp_over_http::packet::vnet;
use tcp_over_http::packet::{ACK, ChecksumChange, FIN, SYN, Segment, Tuple};
use tcp_over_http::rewrite::{Rewriter, Settings, Verdict};
use tcp_over_http::time::Instant;

/// Does its work so many times; returns how long that took, without what comes before.
type Run = fn(u64) -> Duration;

const CASES: [(&str, &str, Run); 13] = [
    ("client-v4", "a client's packet of 1500 bytes, IPv4", |n| from_client(n, false, 1500)),
    ("client-v6", "the same, IPv6", |n| from_client(n, true, 1500)),
    ("client-super", "a client's super-packet of 64 KiB, IPv4", |n| from_client(n, false, 65_535)),
    ("listener-v4", "a packet of the listener of 1500 bytes, IPv4", |n| from_listener(n, false, 1500)),
    ("listener-v6", "the same, IPv6", |n| from_listener(n, true, 1500)),
    ("listener-super", "a super-packet of the listener of 64 KiB, IPv4", |n| from_listener(n, false, 65_535)),
    ("find", "a flow found among 4,096 by its tuple", find),
    ("find-nat", "a flow found among 4,096 by its NAT source", find_nat),
    ("life", "a flow opened, released, accepted, closed and expired", life),
    ("fake-find", "the name of one of 2,048 fake addresses", fake_find),
    ("fake-known", "a query answered with a fake address that the name has", |n| fake_query(n, 1)),
    ("fake-new", "a query answered with a fake address that another name had", |n| fake_query(n, 4)),
    ("dns-cached", "a query answered from a full cache of 64 KiB", dns_cached),
];

/// How long one run of a case lasts, and how many there are.
const RUN: Duration = Duration::from_millis(50);
const RUNS: usize = 9;

const FLOWS: u16 = 4096;
const KEY: [u32; 2] = [1, 2];
const LISTEN_PORT: u16 = 12345;
const SERVER_PORT: u16 = 443;
/// Bytes of headers at the most, which translating changes.
const HEADERS: usize = 60;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if let [flag, iterations, name] = args.as_slice()
        && flag == "--iterations"
    {
        let case = CASES.iter().find(|(case, ..)| case == name);
        return match (case, iterations.parse()) {
            (Some((.., run)), Ok(iterations)) => {
                run(iterations);
                ExitCode::SUCCESS
            }
            _ => ExitCode::FAILURE,
        };
    }
    for (name, what, run) in CASES {
        if args.is_empty() || args.iter().any(|arg| name.contains(arg.as_str())) {
            println!("{name:15} {:8.1} ns   {what}", nanoseconds(run));
        }
    }
    ExitCode::SUCCESS
}

/// What one iteration takes: the best run is the one that was disturbed least.
fn nanoseconds(run: Run) -> f64 {
    let mut iterations = 1000;
    while run(iterations) < RUN {
        iterations *= 2;
    }
    let best = (0..RUNS).map(|_| run(iterations)).min().unwrap_or_default();
    best.as_nanos() as f64 / iterations as f64
}

fn timed(iterations: u64, mut iteration: impl FnMut(u64)) -> Duration {
    let start = Clock::now();
    for nth in 0..iterations {
        iteration(nth);
    }
    start.elapsed()
}

fn from_client(iterations: u64, ipv6: bool, length: usize) -> Duration {
    let (mut rewriter, tuple, _) = live(ipv6);
    rewrite(iterations, &mut rewriter, &tuple, length)
}

fn from_listener(iterations: u64, ipv6: bool, length: usize) -> Duration {
    let (mut rewriter, _, tuple) = live(ipv6);
    rewrite(iterations, &mut rewriter, &tuple, length)
}

fn rewrite(iterations: u64, rewriter: &mut Rewriter, tuple: &Tuple, length: usize) -> Duration {
    let fresh = packet(tuple, ACK, length);
    let mut bytes = fresh.clone();
    let header = virtio_header(&bytes);
    timed(iterations, |_| {
        // The last turn has translated the headers.
        bytes[..HEADERS].copy_from_slice(&fresh[..HEADERS]);
        let header = vnet::Header::parse(black_box(&header));
        let verdict = rewriter.handle(header, black_box(&mut bytes), Instant::default());
        assert_eq!(verdict, Verdict::Forward);
    })
}

fn find(iterations: u64) -> Duration {
    let table = full_table();
    timed(iterations, |nth| assert!(black_box(&table).find(&tuple(nth, false)).is_some()))
}

fn find_nat(iterations: u64) -> Duration {
    let table = full_table();
    let ports: Vec<u16> = (0..FLOWS)
        .map(|nth| {
            let slot = table.find(&tuple(nth.into(), false)).expect("it has been opened");
            table.get(slot).nat.port
        })
        .collect();
    timed(iterations, |nth| {
        let port = ports[nth as usize % ports.len()];
        assert!(black_box(&table).find_nat(port).is_some());
    })
}

fn life(iterations: u64) -> Duration {
    let mut table = FlowTable::new(limits(), 253, KEY);
    timed(iterations, |nth| {
        // 10 flows a second, so that slots and NAT sources rest long enough to be used again.
        let now = Instant::from_millis(nth * 100);
        let slot = open(&mut table, nth, now);
        table.release(slot, now);
        table.accept(slot, now);
        let segment = Segment { sequence: nth as u32 + 1, acknowledgement: 1, length: 1, flags: FIN | ACK };
        table.note(slot, Side::Client, &segment, now);
        table.note(slot, Side::Listener, &segment, now);
        table.close(slot, now);
        while table.expire(now).is_some() {}
    })
}

fn fake_find(iterations: u64) -> Duration {
    let table = full_fake_table();
    timed(iterations, |nth| {
        let address = Ipv4Addr::from_bits(FAKE_NETWORK.to_bits() + nth as u32 % (31 * u32::from(NAMES)));
        black_box(black_box(&table).find(address.into()).map(|entry| table.name(entry)));
    })
}

/// Queries for `times` as many names as the table has room for.
fn fake_query(iterations: u64, times: u16) -> Duration {
    let mut table = full_fake_table();
    let queries: Vec<Vec<u8>> = (0..NAMES * times).map(query).collect();
    let mut out = Vec::new();
    timed(iterations, |nth| {
        // A second for each name, so that the one that makes way is always the oldest.
        let now = Instant::from_millis((1 << 20) + nth * 1000);
        let query = Query::parse(&queries[nth as usize % queries.len()]).expect("a query");
        let reply = table.answer(&query, None, now).expect("an address");
        assert!(matches!(reply, Reply::Address(..)));
        out.clear();
        query.reply(&reply, &mut out);
    })
}

fn dns_cached(iterations: u64) -> Duration {
    let mut cache = Cache::new(65_536);
    let mut count = 0;
    while cache.count() == usize::from(count) {
        let bytes = query(count);
        let query = Query::parse(&bytes).expect("a query");
        let mut reply = Vec::new();
        query.reply(&Reply::Address(FAKE_NETWORK.into(), 3600), &mut reply);
        cache.put(&query, &reply, Instant::default());
        count += 1;
    }
    let queries: Vec<Vec<u8>> = (1..count).map(query).collect();
    let mut out = Vec::new();
    timed(iterations, |nth| {
        let query = Query::parse(&queries[nth as usize % queries.len()]).expect("a query");
        out.clear();
        assert!(cache.get(&query, 512, &mut out, Instant::default()));
    })
}

const FAKE_NETWORK: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
const NAMES: u16 = 2048;

/// A table whose every name is taken, but not used any more.
fn full_fake_table() -> FakeIp {
    let mut table =
        FakeIp::new(Ranges { v4: Ipv4Net { addr: FAKE_NETWORK, prefix: 15 }, v6: None }, NAMES, KEY);
    for nth in 0..NAMES {
        let name = format!("host-{nth}.cdn.example.com");
        assert!(table.assign(&name, 1, Instant::default()).is_some());
    }
    table
}

fn query(nth: u16) -> Vec<u8> {
    let name = Name::new(&format!("host-{nth}.cdn.example.com")).expect("a name");
    Query::compose(nth, &name, Kind::A)
}

/// A rewriter with one live flow, and the tuples of the flow's packets as they come from both sides.
fn live(ipv6: bool) -> (Rewriter, Tuple, Tuple) {
    let own = Ipv4Net { addr: Ipv4Addr::new(10, 45, 39, 1), prefix: 24 };
    let own6 = Ipv6Net { addr: Ipv6Addr::new(0xfd45, 0x39, 0, 0, 0, 0, 0, 1), prefix: 64 };
    let subnets = Subnets::new(own, Some(own6));
    let settings = Settings { subnets, listen_port: LISTEN_PORT, mtu: 1500, dns: false, ping: false };
    let mut rewriter = Rewriter::new(settings, limits(), KEY);
    let now = Instant::default();
    let client = tuple(0, ipv6);
    let mut syn = packet(&client, SYN, 60);
    let header = vnet::Header::parse(&vnet::Header::PLAIN);
    let Verdict::Hold { slot, .. } = rewriter.handle(header, &mut syn, now) else {
        panic!("a first SYN is held");
    };
    rewriter.release(slot, now);
    let nat = rewriter.flow(slot).nat;
    let subnet = subnets.of(client.family()).expect("both families are on");
    let listener = Tuple {
        source: subnet.own(),
        destination: subnet.nat_source(nat.host),
        source_port: LISTEN_PORT,
        destination_port: nat.port,
    };
    assert!(rewriter.accept(listener.destination, nat.port, now).is_some());
    (rewriter, client, listener)
}

/// A table whose every slot is taken by a flow that waits to be accepted.
fn full_table() -> FlowTable {
    let mut table = FlowTable::new(limits(), 253, KEY);
    for nth in 0..FLOWS {
        let slot = open(&mut table, nth.into(), Instant::default());
        table.release(slot, Instant::default());
        table.accept(slot, Instant::default());
    }
    table
}

fn open(table: &mut FlowTable, nth: u64, now: Instant) -> Slot {
    let tuple = tuple(nth, false);
    let to = Tuple { destination_port: LISTEN_PORT, ..tuple };
    let opened = table.open(tuple, nth as u32, now, |_| ChecksumChange::between(&tuple, &to));
    opened.expect("there is room")
}

const fn limits() -> Limits {
    Limits { flows: FLOWS, held: 512, held_per_client: 128 }
}

/// The tuple of one of [`FLOWS`] clients.
fn tuple(nth: u64, ipv6: bool) -> Tuple {
    let nth = nth as u16 % FLOWS;
    let (source, destination) = match ipv6 {
        false => (
            Ipv4Addr::new(192, 168, 7, nth as u8).to_ipv6_mapped(),
            Ipv4Addr::new(203, 0, 113, 10).to_ipv6_mapped(),
        ),
        true => (
            Ipv6Addr::new(0xfd07, 0, 0, 0, 0, 0, 0, nth & 0xff),
            Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, 0, 0x10),
        ),
    };
    Tuple { source, destination, source_port: 40_000 + nth, destination_port: SERVER_PORT }
}

/// A packet of `length` bytes. Its checksums are any: translating changes them by a difference.
fn packet(tuple: &Tuple, flags: u8, length: usize) -> Vec<u8> {
    let mut packet = Vec::with_capacity(length);
    match (tuple.source.to_ipv4_mapped(), tuple.destination.to_ipv4_mapped()) {
        (Some(source), Some(destination)) => {
            let [high, low] = (length as u16).to_be_bytes();
            packet.extend([0x45, 0, high, low, 0, 0, 0x40, 0, 64, 6, 0, 0]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
        }
        _ => {
            let [high, low] = (length as u16 - 40).to_be_bytes();
            packet.extend([0x60, 0, 0, 0, high, low, 6, 64]);
            packet.extend(tuple.source.octets());
            packet.extend(tuple.destination.octets());
        }
    }
    packet.extend(tuple.source_port.to_be_bytes());
    packet.extend(tuple.destination_port.to_be_bytes());
    let sequence = if flags & SYN != 0 { 1 } else { 2 };
    packet.extend([0, 0, 0, sequence, 0, 0, 0, 2, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    packet.resize(length, 0);
    packet
}

/// The header of a packet that is larger than the MTU: its checksum and its cutting are left to the kernel.
fn virtio_header(packet: &[u8]) -> [u8; vnet::LEN] {
    if packet.len() <= 1500 {
        return vnet::Header::PLAIN;
    }
    let mut header = [0; vnet::LEN];
    header[0] = 1; // VIRTIO_NET_HDR_F_NEEDS_CSUM
    header[1] = 1; // VIRTIO_NET_HDR_GSO_TCPV4
    header[2..4].copy_from_slice(&40_u16.to_le_bytes());
    header[4..6].copy_from_slice(&1460_u16.to_le_bytes());
    header[6..8].copy_from_slice(&20_u16.to_le_bytes()); // where TCP begins
    header[8..10].copy_from_slice(&16_u16.to_le_bytes()); // where its checksum is
    header
}
