//! Any packets at all from a proxy, while a handshake of the forward path is under way: no panic, only packets that are
//! right, nothing to the client before the tunnel is open, and a failure that is ours ends with a reset.
#![no_main]

use std::net::Ipv4Addr;

use arbitrary::Arbitrary;
use tcp_over_http::forward::{Handshake, MAX_SEGMENT, Options, Outcome, Segment, Timestamps, To};
use tcp_over_http::packet::builder::Tcp;
use tcp_over_http::packet::{Packet, RST, SYN, Tuple, checksum};
use tcp_over_http::time::Instant;

#[derive(Arbitrary, Debug)]
struct Script {
    sequence: u32,
    timestamps: Option<u32>,
    request: u16,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// Numbers count from what is right.
    Proxy {
        sequence: i16,
        acknowledgement: i16,
        flags: u8,
        window: u16,
        clock: Option<u32>,
        payload: Vec<u8>,
    },
    Timeout,
    Syn {
        flags: u8,
    },
}

libfuzzer_sys::fuzz_target!(|script: Script| {
    let [client, server, proxy] = [1, 2, 3].map(|n| Ipv4Addr::new(192, 0, 2, n).to_ipv6_mapped());
    let wanted = Tuple { source: client, destination: server, source_port: 40_000, destination_port: 443 };
    let back = Tuple { source: proxy, destination: client, source_port: 3128, destination_port: 40_000 };
    let request = vec![b'x'; usize::from(script.request % 5000) + 1];
    let first = script.sequence.wrapping_add(1).wrapping_sub(request.len() as u32);
    let made = |tuple, sequence, acknowledgement, flags, window, clock: Option<u32>, payload: &[u8]| {
        let timestamps = clock.map(|value| Timestamps { value, echo: 1 });
        let options = Options { mss: Some(1400), timestamps, ..Options::default() };
        let mut out = [0; MAX_SEGMENT];
        let tcp = Tcp { tuple, sequence, acknowledgement, flags, window };
        let length = Segment { tcp, options, payload }.write(&mut out);
        out[..length].to_vec()
    };
    let mut sent: Vec<(To, Vec<u8>)> = Vec::new();
    let mut now = Instant::default();
    let mut syn = made(wanted, script.sequence, 0, SYN, 65_535, script.timestamps, &[]);
    let syn = Packet::parse(&mut syn).unwrap();
    let mut sink = |to: To, bytes: &[u8]| sent.push((to, bytes.to_vec()));
    let mut handshake = Handshake::new(&syn, request.into(), 1460, now, &mut sink);
    let (mut next, mut is_open) = (1000u32, false);
    for step in script.steps {
        sent.clear();
        let mut sink = |to: To, bytes: &[u8]| sent.push((to, bytes.to_vec()));
        let mut outcome = Outcome::Pending;
        match step {
            Step::Proxy { sequence, acknowledgement, flags, window, clock, payload } => {
                let sequence = next.wrapping_add_signed(sequence.into());
                let acknowledgement = first.wrapping_add_signed(acknowledgement.into());
                let mut bytes = made(back, sequence, acknowledgement, flags, window, clock, &payload);
                let packet = Packet::parse(&mut bytes).unwrap();
                if handshake.owns(&packet) {
                    outcome = handshake.handle_proxy(&packet, now, &mut sink);
                }
                next = sequence.wrapping_add(packet.sequence_length());
            }
            Step::Timeout => {
                if let Some(at) = handshake.timeout() {
                    now = at;
                    handshake.handle_timeout(now, &mut sink);
                }
            }
            Step::Syn { flags } => {
                let mut bytes =
                    made(wanted, script.sequence, 0, SYN | flags & 0xc0, 1, script.timestamps, &[]);
                handshake.handle_client_syn(&Packet::parse(&mut bytes).unwrap(), &mut sink);
            }
        }
        is_open |= matches!(outcome, Outcome::Opened { status: 200..=299 });
        for (to, bytes) in &mut sent {
            let packet = Packet::parse(bytes).unwrap();
            let expected = if *to == To::Client { wanted.reversed() } else { wanted };
            assert_eq!(packet.tuple(), expected);
            assert!(*to == To::Proxy || is_open, "{to:?} before the tunnel is open");
            let segment = &packet.bytes()[20..];
            let pseudo = checksum::pseudo_header(&packet.bytes()[12..20], 6, segment.len());
            assert_eq!(checksum::sum(pseudo, segment), u16::MAX);
        }
        if let Outcome::Refused { .. } | Outcome::Garbage(_) = outcome {
            let reset = sent
                .iter_mut()
                .any(|(to, bytes)| *to == To::Proxy && Packet::parse(bytes).unwrap().flags() == RST);
            assert!(reset, "{outcome:?} without a reset");
        }
        if !matches!(outcome, Outcome::Pending | Outcome::Connected | Outcome::Opened { .. }) {
            return;
        }
    }
});
