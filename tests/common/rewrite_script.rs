//! Sequences of packets, daemon operations and time on a rewriter. Packets are made from scratch, and so is
//! what each must have become: the two must be the same, byte for byte.

use std::net::{Ipv4Addr, Ipv6Addr};

use arbitrary::Arbitrary;
use tcp_over_http::flow::subnet::Subnets;
use tcp_over_http::flow::{Limits, Slot, State};
use tcp_over_http::net::{Family, Ipv4Net, Ipv6Net};
use tcp_over_http::packet::builder::MAX_LEN;
use tcp_over_http::packet::reject::Reject;
use tcp_over_http::packet::vnet;
use tcp_over_http::packet::{Packet, Tuple};
use tcp_over_http::rewrite::{Rewriter, Settings, Verdict};
use tcp_over_http::time::Instant;

use super::packets::{self, SYN, Shape};

pub const MTU: u16 = 1400;
pub const LISTEN_PORT: u16 = 12_345;

#[derive(Clone, Debug, Arbitrary)]
pub struct Script {
    start: u32,
    key: [u32; 2],
    ipv6: bool,
    small: bool,
    #[arbitrary(with = super::list)]
    steps: Vec<Step>,
}

/// Connections and flows are given by numbers that are taken modulo how many there are.
#[derive(Clone, Debug, Arbitrary)]
pub enum Step {
    /// A client's packet.
    Client {
        connection: u8,
        shape: Shape,
    },
    /// A client's first SYN, or the same again.
    Syn {
        connection: u8,
        isn: u8,
    },
    /// A listener's packet to a flow.
    Listener {
        flow: u8,
        shape: Shape,
    },
    /// An ICMP error about a packet of a flow.
    Error(Error),
    /// A packet with some bytes changed.
    Broken {
        connection: u8,
        shape: Shape,
        changes: Vec<(u16, u8)>,
    },
    /// Anything.
    Noise {
        header: [u8; 10],
        bytes: Vec<u8>,
    },
    Release(u8),
    Accept(u8),
    Close(u8),
    Remove(u8),
    Expire,
    Wait(u16),
    Drain,
}

/// An ICMP error about a packet of a flow.
#[derive(Clone, Debug, Arbitrary)]
pub struct Error {
    pub flow: u8,
    /// Whether the packet was the listener's, so that the error comes from the client's side.
    pub about_listener: bool,
    /// The packet that it is about.
    pub shape: Shape,
    /// How much of it is quoted, beyond IP headers and 8 bytes.
    pub quoted: u16,
    /// Bytes of an extension behind it (RFC 4884).
    pub extension: Vec<u8>,
    pub kind: u8,
    pub code: u8,
    pub rest: [u8; 4],
}

/// A rewriter and what is known of its flows.
pub struct Gateway {
    pub rewriter: Rewriter,
    pub now: Instant,
    /// The slots that were used, the last one at the end.
    slots: Vec<Slot>,
}

pub fn settings(ipv6: bool, small: bool) -> Settings {
    let (prefix4, prefix6) = if small { (29, 120) } else { (24, 64) };
    let own4 = Ipv4Net { addr: Ipv4Addr::new(10, 45, 39, 1), prefix: prefix4 };
    let own6 = Ipv6Net { addr: "fd45:39::1".parse().unwrap(), prefix: prefix6 };
    Settings {
        subnets: Subnets::new(own4, ipv6.then_some(own6)),
        listen_port: LISTEN_PORT,
        mtu: MTU,
        dns: ipv6,
        ping: small,
    }
}

/// Connections of three clients, one of them the gateway itself, in both families.
pub fn connection(nth: u8) -> Tuple {
    let ipv6 = nth % 2 == 1;
    let (source, destination): (Ipv6Addr, Ipv6Addr) = match (ipv6, nth / 2 % 3) {
        (true, 0) => ("fd45:39::1".parse().unwrap(), "2001:db8::5".parse().unwrap()),
        (true, _) => ("fd00::abcd".parse().unwrap(), "2001:db8:ffff::1".parse().unwrap()),
        (false, 0) => mapped([10, 45, 39, 1], [192, 0, 2, 1]),
        (false, 1) => mapped([192, 168, 1, 77], [203, 0, 113, 255]),
        (false, _) => mapped([255, 255, 255, 254], [1, 0, 0, 0]),
    };
    Tuple {
        source,
        destination,
        source_port: if (nth / 6).is_multiple_of(2) { LISTEN_PORT } else { 0xffff },
        destination_port: 443,
    }
}

fn mapped(source: [u8; 4], destination: [u8; 4]) -> (Ipv6Addr, Ipv6Addr) {
    let mapped = |octets| Ipv4Addr::from(octets).to_ipv6_mapped();
    (mapped(source), mapped(destination))
}

impl Script {
    pub fn run(&self) {
        let mut gateway = Gateway::new(
            settings(self.ipv6, self.small),
            if self.small { 3 } else { 50 },
            self.key,
            self.start,
        );
        for step in &self.steps {
            gateway.take(step);
        }
        let counters = gateway.rewriter.counters();
        let dropped = counters.dropped.iter().sum::<u64>();
        assert!(counters.forwarded + counters.rejected + dropped <= counters.packets);
    }
}

impl Gateway {
    pub fn new(settings: Settings, flows: u16, key: [u32; 2], start: u32) -> Self {
        let limits = Limits { flows, held: 10, held_per_client: 4 };
        Self {
            rewriter: Rewriter::new(settings, limits, key),
            now: Instant::from_millis(start as u64),
            slots: Vec::new(),
        }
    }

    pub fn take(&mut self, step: &Step) {
        match step {
            Step::Client { connection: nth, shape } => {
                self.client(&connection(*nth), shape);
            }
            Step::Syn { connection: nth, isn } => {
                let shape = Shape { sequence: *isn as u32, flags: SYN, ..Shape::default() };
                self.client(&connection(*nth), &shape);
            }
            Step::Listener { flow, shape } => {
                if let Some(slot) = self.slot(*flow) {
                    self.listener(slot, shape);
                }
            }
            Step::Error(error) => {
                if let Some(slot) = self.slot(error.flow) {
                    self.error(slot, error);
                }
            }
            Step::Broken { connection: nth, shape, changes } => {
                let mut packet = packets::tcp(&connection(*nth), shape);
                let header = packets::vnet_header(&packet, shape);
                for (at, change) in changes {
                    // Mostly in the headers.
                    let end = if at % 4 == 0 { packet.len() } else { packet.len().min(100) };
                    packet[*at as usize / 4 % end] ^= change;
                }
                self.anything(header, &packet);
            }
            Step::Noise { header, bytes } => self.anything(*header, bytes),
            Step::Release(flow) => {
                self.with(*flow, |gateway, slot| gateway.rewriter.release(slot, gateway.now));
            }
            Step::Accept(flow) => self.with(*flow, |gateway, slot| {
                gateway.accept(slot);
            }),
            Step::Close(flow) => {
                self.with(*flow, |gateway, slot| gateway.rewriter.close(slot, gateway.now));
            }
            Step::Remove(flow) => {
                self.with(*flow, |gateway, slot| gateway.rewriter.remove(slot, gateway.now));
            }
            Step::Expire => while self.rewriter.expire(self.now).is_some() {},
            Step::Wait(milliseconds) => self.now = self.now.plus(*milliseconds as u32 * 4),
            Step::Drain => self.rewriter.drain(),
        }
    }

    fn slot(&self, flow: u8) -> Option<Slot> {
        let nth = flow as usize % self.slots.len().max(1);
        self.slots.get(nth).copied()
    }

    fn with(&mut self, flow: u8, then: impl FnOnce(&mut Self, Slot)) {
        if let Some(slot) = self.slot(flow) {
            then(self, slot);
        }
    }

    /// The flow that was opened last for a tuple.
    fn newest(&self, tuple: &Tuple) -> Slot {
        let of_tuple = |slot: &Slot| self.rewriter.flow(*slot).tuple == *tuple;
        self.slots.iter().copied().rev().find(of_tuple).expect("a flow")
    }

    /// A flow has begun in the slot.
    fn is_new(&mut self, slot: Slot) {
        self.slots.retain(|known| *known != slot);
        self.slots.push(slot);
    }

    /// How the listener sees a flow.
    pub fn translated(&self, slot: Slot) -> Tuple {
        let flow = self.rewriter.flow(slot);
        let subnet = self.rewriter.settings().subnets.of(flow.tuple.family()).unwrap();
        Tuple {
            source: subnet.nat_source(flow.nat.host),
            destination: subnet.own(),
            source_port: flow.nat.port,
            destination_port: LISTEN_PORT,
        }
    }

    /// The kernel hands the flow's connection over.
    pub fn accept(&mut self, slot: Slot) -> bool {
        let seen = self.translated(slot);
        let opening = self.rewriter.flow(slot).state() == State::Opening;
        let accepted = self.rewriter.accept(seen.source, seen.source_port, self.now);
        assert_eq!(accepted, opening.then_some(slot));
        opening
    }

    fn handle(&mut self, packet: &mut [u8], shape: &Shape) -> Verdict {
        let header = vnet::Header::parse(&packets::vnet_header(packet, shape));
        self.rewriter.handle(header, packet, self.now)
    }

    /// A packet from a client, and what it must have become.
    pub fn client(&mut self, tuple: &Tuple, shape: &Shape) -> Verdict {
        let before = packets::tcp(tuple, shape);
        packets::assert_checksums(&before, shape.partial);
        let mut packet = before.clone();
        let verdict = self.handle(&mut packet, shape);
        match verdict {
            Verdict::Forward | Verdict::ForwardAbandoned(_) => {
                let slot = self.newest(tuple);
                let expected = packets::tcp(&self.translated(slot), &clamped(tuple, shape));
                assert!(packet == expected, "{tuple:?} {shape:?}");
            }
            Verdict::Hold { slot, .. } => {
                assert!(packet == before);
                assert_eq!(self.rewriter.flow(slot).tuple, *tuple);
                self.is_new(slot);
            }
            Verdict::Reject(reject) => {
                assert!(packet == before);
                self.check_reject(reject, &mut packet);
            }
            Verdict::Abandoned(_) | Verdict::Drop(_) | Verdict::Dns => assert!(packet == before),
        }
        verdict
    }

    /// A packet from the listener, and what it must have become.
    pub fn listener(&mut self, slot: Slot, shape: &Shape) -> Verdict {
        let tuple = self.rewriter.flow(slot).tuple.reversed();
        let before = packets::tcp(&self.translated(slot).reversed(), shape);
        let mut packet = before.clone();
        let flow = self.rewriter.flow(slot);
        let answers_another = shape.flags & SYN != 0 && shape.acknowledgement != flow.isn().wrapping_add(1);
        let passes = flow.is_translated(self.now) && !answers_another;
        let verdict = self.handle(&mut packet, shape);
        assert_eq!(verdict == Verdict::Forward, passes, "{verdict:?}");
        match verdict {
            Verdict::Forward => {
                let expected = packets::tcp(&tuple, &clamped(&tuple, shape));
                assert!(packet == expected, "{tuple:?} {shape:?}");
            }
            Verdict::Reject(reject) => {
                assert!(packet == before);
                self.check_reject(reject, &mut packet);
            }
            Verdict::Drop(_) => assert!(packet == before),
            _ => panic!("{verdict:?} for a listener's packet"),
        }
        verdict
    }

    /// An ICMP error, and what it must have become.
    pub fn error(&mut self, slot: Slot, error: &Error) -> Verdict {
        let seen = self.translated(slot);
        let tuple = self.rewriter.flow(slot).tuple;
        let ipv4 = tuple.family() == Family::V4;
        let router: Ipv6Addr = match ipv4 {
            true => Ipv4Addr::new(198, 51, 100, 7).to_ipv6_mapped(),
            false => "2001:db8:7::7".parse().unwrap(),
        };
        // The packet as it was when the error arose, and as its sender knows it.
        let (about, known, source) = match error.about_listener {
            true => (tuple.reversed(), seen.reversed(), seen.source),
            false => (seen, tuple, tuple.destination),
        };
        let kinds: &[u8] = if ipv4 { &[3, 4, 11, 12] } else { &[1, 2, 3, 4, 100] };
        let kind = (kinds[error.kind as usize % kinds.len()], error.code);
        let shape = Shape { partial: false, payload: error.shape.payload.min(1200), ..error.shape.clone() };
        let icmp = |from, tuple: &Tuple| {
            let mut quote = packets::tcp(tuple, &shape);
            let least = packets::transport_at(&quote) + 8;
            // Half a checksum can't be brought up to date, and stays.
            let more = error.quoted as usize + (error.quoted == 9) as usize;
            quote.truncate(least + more);
            if !error.extension.is_empty() {
                // RFC 4884 section 5.1: padded to 128 bytes, and to 4.
                let whole = packets::tcp(tuple, &shape);
                quote = whole[..whole.len().min(128.max(least + 12))].to_vec();
                quote.resize(quote.len().next_multiple_of(4).max(128), 0);
                quote.extend(&error.extension[..error.extension.len().min(64)]);
            }
            packets::icmp_error(from, tuple.source, kind, error.rest, &quote)
        };
        let before = icmp(router, &about);
        packets::assert_checksums(&before, false);
        let mut packet = before.clone();
        let translated = self.rewriter.flow(slot).is_translated(self.now);
        let verdict = self.handle(&mut packet, &Shape::default());
        match translated {
            true => {
                assert_eq!(verdict, Verdict::Forward, "{error:?}");
                let expected = icmp(source, &known);
                assert!(packet == expected, "{packet:02x?}\n{expected:02x?}\n{error:?}");
            }
            // The client may have another flow of the same tuple by now.
            false if verdict == Verdict::Forward => {
                let newest = self.newest(&tuple);
                assert!(error.about_listener && newest != slot);
                assert!(self.rewriter.flow(newest).is_translated(self.now));
            }
            false => {
                assert!(matches!(verdict, Verdict::Drop(_)));
                assert!(packet == before);
            }
        }
        verdict
    }

    /// Bytes that may be no packet: nothing is promised but that they do no harm.
    fn anything(&mut self, header: [u8; 10], bytes: &[u8]) {
        let mut packet = bytes.to_vec();
        let header = vnet::Header::parse(&header);
        match self.rewriter.handle(header, &mut packet, self.now) {
            Verdict::Reject(reject) => {
                assert!(packet == bytes);
                self.check_reject(reject, &mut packet);
            }
            Verdict::Hold { slot, .. } => {
                assert!(packet == bytes);
                self.is_new(slot); // a SYN like any other
            }
            Verdict::Drop(_) | Verdict::Abandoned(_) | Verdict::Dns => assert!(packet == bytes),
            Verdict::Forward | Verdict::ForwardAbandoned(_) => assert!(packet.len() == bytes.len()),
        }
    }

    /// Makes the answer to a packet and checks it.
    fn check_reject(&self, reject: Reject, packet: &mut [u8]) {
        let packet = Packet::parse(packet).expect("only packets are rejected");
        let source = self.rewriter.error_source(packet.family());
        check_reject(reject, &packet, source);
    }
}

/// Makes the answer to a packet and checks it.
pub fn check_reject(reject: Reject, packet: &Packet, error_source: Ipv6Addr) -> Vec<u8> {
    let mut out = [0xaa; MAX_LEN];
    let length = reject.build(packet, error_source, &mut out);
    let mut answer = out[..length].to_vec();
    packets::assert_checksums(&answer, false);
    let parsed = Packet::parse(&mut answer).expect("a packet");
    assert_eq!(parsed.destination(), packet.source());
    assert_eq!(
        parsed.source(),
        match reject {
            Reject::Reset => packet.destination(),
            _ => error_source,
        }
    );
    answer
}

/// The shape of a SYN after its MSS options have been clamped; of other packets, the same.
fn clamped(tuple: &Tuple, shape: &Shape) -> Shape {
    let limit = MTU - if tuple.family() == Family::V4 { 40 } else { 60 };
    let mut shape = shape.clone();
    if shape.flags & SYN == 0 {
        return shape;
    }
    let padded = shape.tcp_options.len().next_multiple_of(4);
    shape.tcp_options.resize(padded, 0);
    let mut rest = &mut shape.tcp_options[..];
    loop {
        match rest {
            [1, tail @ ..] => rest = tail,
            [2, 4, high, low, tail @ ..] => {
                let mss = u16::from_be_bytes([*high, *low]).min(limit);
                [*high, *low] = mss.to_be_bytes();
                rest = tail;
            }
            [] | [0, ..] | [_] | [_, 0 | 1, ..] => break,
            [_, length, ..] => {
                let length = *length as usize;
                match rest.get_mut(length..) {
                    Some(tail) => rest = tail,
                    None => break,
                }
            }
        }
    }
    shape
}
