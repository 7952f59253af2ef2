//! The handshake of the forward path in a simulated network that loses, repeats and reorders packets: both ends see
//! one consistent connection, or a refusal.
//!
//!     client ──── gateway: a handshake, and what the kernel does (NAT, release) ──── proxy

use std::collections::BTreeMap;

use proptest::prelude::*;
use tcp_over_http::forward::{Handshake, Options, Outcome, Segment, Timestamps, To};
use tcp_over_http::packet::builder::Tcp;
use tcp_over_http::packet::{ACK, ChecksumChange, ChecksumState, FIN, Packet, RST, SYN, Tuple};
use tcp_over_http::time::Instant;

const SECOND: u64 = 1000;
/// The network loses nothing and keeps the order from here on: one byte a segment, reordered, would take hours.
const CALM: u64 = 40 * SECOND;
/// All must have been settled.
const END: u64 = 400 * SECOND;
/// How long an end waits for an acknowledgement.
const RTO: u64 = 700;

#[derive(Clone, Debug)]
struct Scenario {
    seed: u64,
    ipv6: bool,
    /// Of 256 packets, how many are lost, and how many arrive twice.
    loss: u8,
    twice: u8,
    /// Packets take up to so many ms.
    delay: u8,
    client: Options,
    proxy: Options,
    client_sequence: u32,
    proxy_sequence: u32,
    /// Bytes of header fields in the request, so that it may take several segments.
    request: usize,
    /// The same for the reply.
    reply: usize,
    status: u16,
    upload: usize,
    download: usize,
    /// The proxy sends in segments of so many bytes.
    piece: usize,
}

fn options() -> impl Strategy<Value = Options> {
    let mss = prop_oneof![Just(Some(1460)), Just(Some(536)), Just(None), (200..9000u16).prop_map(Some)];
    let stamps = proptest::option::of(any::<u32>());
    (mss, proptest::option::of(0..=14u8), any::<bool>(), stamps).prop_map(
        |(mss, window_scale, sack, stamps)| {
            let timestamps = stamps.map(|value| Timestamps { value, echo: 0 });
            Options { mss, window_scale, sack_permitted: sack, timestamps }
        },
    )
}

fn scenario() -> impl Strategy<Value = Scenario> {
    (
        (any::<u64>(), any::<bool>(), 0..90u8, 0..60u8, 1..50u8),
        (options(), options(), any::<u32>(), any::<u32>()),
        (prop_oneof![0..200usize, 0..4000usize], prop_oneof![0..100usize, 0..5000usize]),
        (
            prop_oneof![3 => Just(200u16), 1 => Just(202), 1 => Just(403), 1 => Just(502)],
            0..5000usize,
            0..5000usize,
        ),
        prop_oneof![1..20usize, 100..1400usize],
    )
        .prop_map(|(net, ends, (request, reply), (status, upload, download), piece)| Scenario {
            seed: net.0,
            ipv6: net.1,
            loss: net.2,
            twice: net.3,
            delay: net.4,
            client: ends.0,
            proxy: ends.1,
            client_sequence: ends.2,
            proxy_sequence: ends.3,
            request,
            reply,
            status,
            upload,
            download,
            piece,
        })
}

/// A TCP that repeats everything until it is acknowledged.
struct Peer {
    tuple: Tuple,
    options: Options,
    sequence: u32,
    /// What is to be sent, and how much of it is acknowledged.
    out: Vec<u8>,
    acked: usize,
    piece: usize,
    /// Next expected, once there was a SYN.
    expected: Option<u32>,
    received: Vec<u8>,
    established: bool,
    reset: bool,
    repeat_at: u64,
    rto: u64,
    /// Something was acknowledged: the next can be sent.
    more: bool,
    has_stamps: bool,
    echo: u32,
    /// The SYN or SYN-ACK that came.
    offered: Options,
}

impl Peer {
    fn new(tuple: Tuple, options: Options, sequence: u32, piece: usize) -> Self {
        Self {
            tuple,
            options,
            sequence,
            out: Vec::new(),
            acked: 0,
            piece,
            expected: None,
            received: Vec::new(),
            established: false,
            reset: false,
            repeat_at: u64::MAX,
            rto: 1000,
            more: false,
            has_stamps: false,
            echo: 0,
            offered: Options::default(),
        }
    }

    fn segment(&self, sequence: u32, flags: u8, options: Options, payload: &[u8]) -> Vec<u8> {
        let mut out = [0; tcp_over_http::forward::MAX_SEGMENT];
        let acknowledgement = self.expected.unwrap_or(0);
        let tuple = self.tuple;
        let length = Segment {
            tcp: Tcp { tuple, sequence, acknowledgement, flags, window: 60_000 },
            options,
            payload,
        }
        .write(&mut out);
        out[..length].to_vec()
    }

    fn syn(&self) -> Vec<u8> {
        let mut options = self.options;
        let flags = if self.expected.is_some() { SYN | ACK } else { SYN };
        if flags & ACK != 0 {
            options.timestamps = options.timestamps.filter(|_| self.has_stamps);
        }
        if let Some(stamps) = &mut options.timestamps {
            stamps.echo = self.echo;
        }
        self.segment(self.sequence, flags, options, &[])
    }

    fn data(&self) -> Vec<Vec<u8>> {
        let first = self.sequence.wrapping_add(1 + self.acked as u32);
        let stamps = Timestamps { value: self.options.timestamps.unwrap_or_default().value, echo: self.echo };
        let options = Options { timestamps: self.has_stamps.then_some(stamps), ..Options::default() };
        let mut sent = Vec::new();
        let mut sequence = first;
        for payload in self.out[self.acked..].chunks(self.piece).take(10) {
            sent.push(self.segment(sequence, ACK, options, payload));
            sequence = sequence.wrapping_add(payload.len() as u32);
        }
        if sent.is_empty() {
            sent.push(self.segment(first, ACK, options, &[]));
        }
        sent
    }

    /// What it sends in answer.
    fn handle(&mut self, packet: &Packet, now: u64) -> Vec<Vec<u8>> {
        let (flags, sequence) = (packet.flags(), packet.sequence());
        if flags & RST != 0 {
            let is_mine = match self.expected {
                Some(expected) => sequence == expected,
                None => flags & ACK != 0 && packet.acknowledgement() == self.sequence.wrapping_add(1),
            };
            self.reset |= is_mine;
            return Vec::new();
        }
        assert!(!self.reset || flags & SYN == 0, "answered after a reset");
        if self.reset {
            return Vec::new();
        }
        let carried = Options::parse(packet.tcp_options());
        if let Some(stamps) = carried.timestamps {
            self.echo = stamps.value;
        }
        if flags & SYN != 0 {
            if let Some(expected) = self.expected {
                assert_eq!(
                    expected.wrapping_sub(self.received.len() as u32),
                    sequence.wrapping_add(1),
                    "another ISN"
                );
                return if self.established { self.data() } else { vec![self.syn()] };
            }
            self.expected = Some(sequence.wrapping_add(1));
            self.offered = carried;
            self.has_stamps = self.options.timestamps.is_some() && carried.timestamps.is_some();
            if flags & ACK == 0 {
                self.repeat_at = now + RTO;
                return vec![self.syn()];
            }
            assert_eq!(packet.acknowledgement(), self.sequence.wrapping_add(1));
            self.established = true;
            self.repeat_at = now + RTO;
            return self.data();
        }
        let Some(expected) = self.expected else { return Vec::new() };
        assert_eq!(self.has_stamps, carried.timestamps.is_some(), "timestamps in all or in none");
        let acked = packet.acknowledgement().wrapping_sub(self.sequence.wrapping_add(1)) as i32;
        // Below zero: an old one, of the request, that was overtaken (RFC 9293 section 3.10.7.4).
        let acked = acked.max(0) as usize;
        assert!(acked <= self.out.len(), "{acked} of {} acknowledged", self.out.len());
        self.established = true;
        if acked > self.acked {
            (self.acked, self.rto, self.repeat_at) = (acked, RTO, now + RTO);
            self.more = self.acked < self.out.len();
        }
        let known = expected.wrapping_sub(sequence) as usize;
        let payload = packet.tcp_payload();
        if payload.is_empty() && flags & FIN == 0 {
            return Vec::new();
        }
        let new = payload.get(known..).unwrap_or_default();
        self.received.extend_from_slice(new);
        self.expected = Some(expected.wrapping_add(new.len() as u32));
        let ack = self.sequence.wrapping_add(1 + self.out.len() as u32);
        let stamps = Timestamps { value: self.options.timestamps.unwrap_or_default().value, echo: self.echo };
        vec![self.segment(
            ack,
            ACK,
            Options { timestamps: self.has_stamps.then_some(stamps), ..Options::default() },
            &[],
        )]
    }

    fn tick(&mut self, now: u64) -> Vec<Vec<u8>> {
        if self.reset {
            return Vec::new();
        }
        if now.is_multiple_of(64) && std::mem::take(&mut self.more) {
            return self.data();
        }
        if now < self.repeat_at {
            return Vec::new();
        }
        self.rto = (self.rto * 2).min(8 * SECOND);
        self.repeat_at = now + self.rto;
        match self.established {
            false => vec![self.syn()],
            true if self.acked < self.out.len() => self.data(),
            true => Vec::new(),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Node {
    Client,
    FromClient,
    FromProxy,
    Proxy,
}

struct World {
    random: u64,
    now: u64,
    scenario: Scenario,
    under_way: BTreeMap<(u64, u64), (Node, Vec<u8>)>,
    count: u64,
}

impl World {
    fn random(&mut self) -> u64 {
        // xorshift64* (Vigna 2016)
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn send(&mut self, to: Node, bytes: Vec<u8>) {
        let is_calm = self.now > CALM;
        if !is_calm && (self.random() as u8) < self.scenario.loss {
            return;
        }
        let copies = if !is_calm && (self.random() as u8) < self.scenario.twice { 2 } else { 1 };
        for _ in 0..copies {
            let most = u64::from(self.scenario.delay);
            let delay = if is_calm { most } else { 1 + self.random() % most };
            self.count += 1;
            self.under_way.insert((self.now + delay, self.count), (to, bytes.clone()));
        }
    }
}

fn pattern(length: usize, step: usize) -> Vec<u8> {
    (0..length).map(|index| (index * step % 251) as u8).collect()
}

fn translate(bytes: &mut [u8], new: &Tuple) {
    let mut packet = Packet::parse(bytes).unwrap();
    let change = ChecksumChange::between(&packet.tuple(), new);
    packet.translate(new, change, ChecksumState::Complete);
}

fn run(scenario: &Scenario) {
    let address = |n: u8| match scenario.ipv6 {
        true => format!("2001:db8::{n}").parse().unwrap(),
        false => std::net::Ipv4Addr::new(192, 0, 2, n).to_ipv6_mapped(),
    };
    let [c, s, p] = [1, 2, 3].map(address);
    let wanted = Tuple { source: c, destination: s, source_port: 40_000, destination_port: 443 };
    let asked = Tuple { destination: p, destination_port: 3128, ..wanted };
    let request =
        format!("CONNECT 192.0.2.2:443 HTTP/1.1\r\nX-Filler: {}\r\n\r\n", "f".repeat(scenario.request));
    let head = format!("HTTP/1.1 {} X\r\nX-Filler: {}\r\n\r\n", scenario.status, "f".repeat(scenario.reply));
    let (upload, download) = (pattern(scenario.upload, 7), pattern(scenario.download, 11));

    let mut world = World {
        random: scenario.seed | 1,
        now: 0,
        scenario: scenario.clone(),
        under_way: BTreeMap::new(),
        count: 0,
    };
    let mut client = Peer::new(wanted, scenario.client, scenario.client_sequence, 1000);
    client.out = upload.clone();
    client.repeat_at = SECOND;
    let mut proxy = Peer::new(asked.reversed(), scenario.proxy, scenario.proxy_sequence, scenario.piece);
    let (mut handshake, mut outcome) = (None::<Handshake>, Outcome::Pending);
    let (mut answered, mut released) = (false, false);
    let syn = client.syn();
    world.send(Node::FromClient, syn);

    while world.now < END {
        world.now += 1;
        for bytes in client.tick(world.now) {
            world.send(Node::FromClient, bytes);
        }
        for bytes in proxy.tick(world.now) {
            world.send(Node::FromProxy, bytes);
        }
        let now = Instant::from_millis(world.now);
        let mut sent: Vec<(To, Vec<u8>)> = Vec::new();
        if let Some(handshake) = &mut handshake
            && handshake.timeout().is_some_and(|at| now.since(at) > 0)
            && outcome == Outcome::Pending
        {
            handshake.handle_timeout(now, &mut |to, bytes| sent.push((to, bytes.to_vec())));
        }
        while let Some(entry) = world.under_way.first_entry()
            && entry.key().0 <= world.now
        {
            let (node, mut bytes) = entry.remove();
            let packet = Packet::parse(&mut bytes).unwrap();
            let mut send = |to: To, bytes: &[u8]| sent.push((to, bytes.to_vec()));
            match node {
                Node::Client => {
                    for bytes in client.handle(&packet, world.now) {
                        world.send(Node::FromClient, bytes);
                    }
                }
                Node::Proxy => {
                    for bytes in proxy.handle(&packet, world.now) {
                        world.send(Node::FromProxy, bytes);
                    }
                    // The application: it answers when it has read the request.
                    if proxy.out.is_empty() && proxy.received.ends_with(b"\r\n\r\n") {
                        proxy.out = [head.as_bytes(), &download].concat();
                        proxy.repeat_at = world.now + RTO;
                        for bytes in proxy.data() {
                            world.send(Node::FromProxy, bytes);
                        }
                    }
                }
                Node::FromClient => match (&mut handshake, packet.flags() & SYN != 0) {
                    (None, true) => {
                        let request = request.as_bytes().into();
                        handshake = Some(Handshake::new(&packet, request, 1460, now, &mut send));
                    }
                    (Some(handshake), true) => handshake.handle_client_syn(&packet, &mut send),
                    (_, false) if answered => {
                        released = true;
                        translate(&mut bytes, &asked);
                        world.send(Node::Proxy, bytes);
                    }
                    _ => panic!("data before the answer"),
                },
                Node::FromProxy => {
                    let Some(handshake) = &mut handshake else { panic!() };
                    if released && packet.flags() & SYN == 0 {
                        translate(&mut bytes, &wanted.reversed());
                        world.send(Node::Client, bytes);
                    } else if matches!(outcome, Outcome::Pending | Outcome::Opened { .. }) {
                        assert!(handshake.owns(&packet));
                        match handshake.handle_proxy(&packet, now, &mut send) {
                            Outcome::Pending | Outcome::Connected => {}
                            new => outcome = new,
                        }
                    } else if packet.flags() & RST == 0 {
                        // Of nobody any more (RFC 9293 section 3.10.7.1).
                        let segment = Segment {
                            tcp: Tcp {
                                tuple: wanted,
                                sequence: packet.acknowledgement(),
                                acknowledgement: 0,
                                flags: RST,
                                window: 0,
                            },
                            options: Options::default(),
                            payload: &[],
                        };
                        let mut out = [0; tcp_over_http::forward::MAX_SEGMENT];
                        let length = segment.write(&mut out);
                        send(To::Proxy, &out[..length]);
                    }
                }
            }
        }
        for (to, mut bytes) in sent {
            assert_eq!(Packet::parse(&mut bytes).unwrap().transport(), tcp_over_http::packet::Transport::Tcp);
            if to == To::Client {
                world.send(Node::Client, bytes);
            } else {
                answered |= to == To::ProxyAnswered;
                translate(&mut bytes, &asked);
                world.send(Node::Proxy, bytes);
            }
        }
        let settled = match scenario.status {
            200..=299 => {
                client.acked == upload.len()
                    && proxy.acked == head.len() + download.len()
                    && client.received == download
            }
            _ => outcome != Outcome::Pending && proxy.reset,
        };
        if settled && world.under_way.is_empty() {
            break;
        }
    }
    assert!(world.now < END, "never settled: {outcome:?} {answered} {released}");
    match scenario.status {
        status @ 200..=299 => {
            assert_eq!(outcome, Outcome::Opened { status });
            assert_eq!(client.received, download);
            assert_eq!(proxy.received, [request.as_bytes(), &upload].concat());
            // Both know of each other what the other offers.
            let ends = [(&client, scenario.proxy), (&proxy, scenario.client)];
            for (end, other) in ends {
                assert_eq!(end.offered.mss, other.mss.map(|mss| mss.min(1460)));
                assert_eq!(end.offered.window_scale, other.window_scale);
                assert_eq!(end.offered.sack_permitted, other.sack_permitted);
            }
            assert_eq!(client.has_stamps, proxy.has_stamps);
        }
        status => {
            assert_eq!(outcome, Outcome::Refused { status });
            assert!(!client.established && !answered && proxy.reset);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn both_ends_see_one_connection_or_a_refusal(scenario in scenario()) {
        run(&scenario);
    }
}

/// What the handshake sends, in order.
#[derive(Default)]
struct Sent(Vec<(To, Vec<u8>)>);

impl Sent {
    fn sink(&mut self) -> impl FnMut(To, &[u8]) {
        |to, bytes| self.0.push((to, bytes.to_vec()))
    }

    /// Takes what has been sent: where to, flags, sequence number, acknowledgement number, bytes of payload.
    fn take(&mut self) -> Vec<(To, u8, u32, u32, usize)> {
        let fields = |(to, mut bytes): (To, Vec<u8>)| {
            let packet = Packet::parse(&mut bytes).unwrap();
            let (sequence, acknowledgement) = (packet.sequence(), packet.acknowledgement());
            (to, packet.flags(), sequence, acknowledgement, packet.tcp_payload().len())
        };
        self.0.drain(..).map(fields).collect()
    }
}

const WANTED: (u8, u8) = (1, 2);
const REPLY: &[u8] = b"HTTP/1.1 200 OK\r\n\r\n";
const REQUEST: usize = 63;
const PSH: u8 = 8;

fn segment(ends: (u8, u8), sequence: u32, acknowledgement: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let [source, destination] =
        [ends.0, ends.1].map(|n| std::net::Ipv4Addr::new(192, 0, 2, n).to_ipv6_mapped());
    let ports = if ends == WANTED { (40_000, 443) } else { (3128, 40_000) };
    let tuple = Tuple { source, destination, source_port: ports.0, destination_port: ports.1 };
    let mut out = [0; tcp_over_http::forward::MAX_SEGMENT];
    let tcp = Tcp { tuple, sequence, acknowledgement, flags, window: 1000 };
    let length = Segment { tcp, options: Options::default(), payload }.write(&mut out);
    out[..length].to_vec()
}

/// A handshake that has sent its SYN, with numbers as they were once seen on the wire.
fn begun(sent: &mut Sent) -> Handshake {
    let mut syn = segment(WANTED, 923_441_746, 0, SYN, &[]);
    let syn = Packet::parse(&mut syn).unwrap();
    Handshake::new(&syn, vec![b'x'; REQUEST].into(), 1460, Instant::default(), &mut sent.sink())
}

/// What comes of a packet from the proxy.
fn from_proxy(handshake: &mut Handshake, sent: &mut Sent, fields: (u32, u32, u8), payload: &[u8]) -> Outcome {
    let (sequence, acknowledgement, flags) = fields;
    let mut bytes = segment((3, 1), sequence, acknowledgement, flags, payload);
    let packet = Packet::parse(&mut bytes).unwrap();
    handshake.handle_proxy(&packet, Instant::default(), &mut sent.sink())
}

const Q: u32 = 746_608_787;
const C: u32 = 923_441_746;

#[test]
fn as_seen_on_the_wire() {
    let mut sent = Sent::default();
    let mut handshake = begun(&mut sent);
    assert_eq!(sent.take(), [(To::Proxy, SYN, 923_441_683, 0, 0)]);
    assert_eq!(from_proxy(&mut handshake, &mut sent, (Q, 923_441_684, SYN | ACK), &[]), Outcome::Connected);
    assert_eq!(sent.take(), [(To::Proxy, ACK | PSH, 923_441_684, Q + 1, REQUEST)]);
    let opened = from_proxy(&mut handshake, &mut sent, (Q + 1, C + 1, ACK | PSH), REPLY);
    assert_eq!(opened, Outcome::Opened { status: 200 });
    let answered = [(To::ProxyAnswered, ACK, C + 1, Q + 20, 0), (To::Client, SYN | ACK, Q + 19, C + 1, 0)];
    assert_eq!(sent.take(), answered);
    // A lost SYN-ACK: the client repeats its SYN.
    let mut syn = segment(WANTED, C, 0, SYN, &[]);
    handshake.handle_client_syn(&Packet::parse(&mut syn).unwrap(), &mut sent.sink());
    assert_eq!(sent.take(), answered[1..]);
    // Data before the client's first packet is passed on with the numbers it has.
    from_proxy(&mut handshake, &mut sent, (Q + 20, C + 1, ACK | PSH), b"early");
    assert_eq!(sent.take(), [(To::Client, ACK | PSH, Q + 20, C + 1, 5)]);
}

#[test]
fn a_reply_cut_at_every_byte_with_bytes_behind_it() {
    for cut in 1..REPLY.len() {
        let mut sent = Sent::default();
        let mut handshake = begun(&mut sent);
        from_proxy(&mut handshake, &mut sent, (Q, C + 1 - REQUEST as u32, SYN | ACK), &[]);
        let first = from_proxy(&mut handshake, &mut sent, (Q + 1, C + 1, ACK), &REPLY[..cut]);
        assert_eq!(first, Outcome::Pending);
        sent.take();
        let rest = [&REPLY[cut..], b"banner"].concat();
        let fields = (Q + 1 + cut as u32, C + 1, ACK);
        assert_eq!(from_proxy(&mut handshake, &mut sent, fields, &rest), Outcome::Opened { status: 200 });
        let (to, _, sequence, _, length) = *sent.take().last().unwrap();
        assert_eq!((to, sequence, length), (To::Client, Q + 20, 6));
    }
}

#[test]
fn resets_ends_and_garbage_at_every_step() {
    let reset = (To::Proxy, RST);
    let check = |steps: &[(u32, u32, u8, &[u8])], expected: Outcome, resets: bool| {
        let mut sent = Sent::default();
        let mut handshake = begun(&mut sent);
        let mut outcome = Outcome::Pending;
        for &(sequence, acknowledgement, flags, payload) in steps {
            sent.take();
            outcome = from_proxy(&mut handshake, &mut sent, (sequence, acknowledgement, flags), payload);
        }
        assert_eq!(outcome, expected, "{steps:?}");
        let has_reset = sent.take().iter().any(|&(to, flags, ..)| (to, flags) == reset);
        assert_eq!(has_reset, resets, "{steps:?}");
        handshake.challenges().to_vec()
    };
    let first = C + 1 - REQUEST as u32;
    let syn_ack: (u32, u32, u8, &[u8]) = (Q, first, SYN | ACK, &[]);
    check(&[(0, first, RST | ACK, &[])], Outcome::Unreachable, false);
    // A reset, or an answer, of another connection.
    check(&[(0, first + 1, RST | ACK, &[])], Outcome::Pending, false);
    check(&[(5, first + 1, SYN | ACK, &[])], Outcome::Pending, true);
    check(&[syn_ack, (Q + 1, first, RST | ACK, &[])], Outcome::Closed, false);
    check(&[syn_ack, (Q + 2, first, RST | ACK, &[])], Outcome::Pending, false);
    check(&[syn_ack, (Q + 1, first, FIN | ACK, &[])], Outcome::Closed, true);
    check(&[syn_ack, (Q + 1, C + 1, FIN | ACK, b"HTTP/1.1 2")], Outcome::Closed, true);
    let no = b"HTTP/1.1 403 No\r\n\r\n";
    check(&[syn_ack, (Q + 1, C + 1, ACK, no)], Outcome::Refused { status: 403 }, true);
    let no = b"HTTP/1.1 407 No\r\nProxy-Authenticate: Basic\r\n\r\n";
    let challenges = check(&[syn_ack, (Q + 1, C + 1, FIN | ACK, no)], Outcome::Refused { status: 407 }, true);
    assert!(challenges.starts_with(b"Proxy-Authenticate: Basic\r\n"));
    let garbage = Outcome::Garbage(tcp_over_http::http::ReplyError::NotHttp);
    check(&[syn_ack, (Q + 1, C + 1, ACK, b"SSH-2.0")], garbage, true);
    // Out of order: not yet, and said so.
    check(&[syn_ack, (Q + 5, C + 1, ACK, &REPLY[4..])], Outcome::Pending, false);
    // A 2xx before the whole request was acknowledged is not enough.
    check(&[syn_ack, (Q + 1, C, ACK, REPLY)], Outcome::Pending, false);
    check(
        &[syn_ack, (Q + 1, C, ACK, REPLY), (Q + 20, C + 1, ACK, &[])],
        Outcome::Opened { status: 200 },
        false,
    );
    // An acknowledgement of what was never sent says nothing.
    check(&[syn_ack, (Q + 1, C + 2, ACK, REPLY)], Outcome::Pending, false);
}

#[test]
fn what_is_lost_is_repeated_with_back_off() {
    let mut sent = Sent::default();
    let mut handshake = begun(&mut sent);
    sent.take();
    for at in [1000, 3000, 7000, 15_000] {
        assert_eq!(handshake.timeout(), Some(Instant::from_millis(at)));
        handshake.handle_timeout(Instant::from_millis(at), &mut sent.sink());
        assert_eq!(sent.take(), [(To::Proxy, SYN, C - REQUEST as u32, 0, 0)]);
    }
    from_proxy(&mut handshake, &mut sent, (Q, C + 1 - REQUEST as u32, SYN | ACK), &[]);
    sent.take();
    handshake.handle_timeout(Instant::from_millis(1000), &mut sent.sink());
    assert_eq!(sent.take(), [(To::Proxy, ACK | PSH, C + 1 - REQUEST as u32, Q + 1, REQUEST)]);
    from_proxy(&mut handshake, &mut sent, (Q + 1, C + 1, ACK), &[]);
    assert_eq!(handshake.timeout(), None, "all is acknowledged: the proxy's turn");
}
