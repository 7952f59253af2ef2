//! A size, the client's bytes, 0xff, the proxy's: pieces of that size change nothing, and what the proxy gets is, for a
//! relay of its own, the same requests again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tcp_over_http::http::connect::Target;
use tcp_over_http::http::relay::{Next, Refusal, RequestRelay, Side};

fuzz_target!(|input: &[u8]| {
    let [size, bytes @ ..] = input else { return };
    let mut halves = bytes.splitn(2, |&byte| byte == 0xff);
    let (client, proxy) = (
        halves.next().unwrap_or_default(),
        halves.next().unwrap_or_default(),
    );
    for target in [Target::Name("a", 80), Target::Ip("192.0.2.7:81".parse().unwrap())] {
        let whole = carry(target, client, proxy, usize::MAX);
        assert_eq!(carry(target, client, proxy, usize::from(*size).max(1)), whole);
        let (to_proxy, _, refusal) = whole;
        if target == Target::Name("a", 80) && refusal.is_none() {
            let (again, _, refusal) = carry(target, &to_proxy, proxy, usize::MAX);
            assert_eq!((again.len(), refusal), (to_proxy.len(), None));
            // Any reader takes "a" for the host.
            let uri = to_proxy.split(|&byte| byte == b' ').nth(1).unwrap_or(b"http://a/");
            assert!(uri.starts_with(b"http://a/") || uri == b"http://a");
        }
    }
});

/// What the proxy and the client get, and why no more.
fn carry<'a>(
    target: Target<'_>,
    mut client: &'a [u8],
    mut proxy: &'a [u8],
    size: usize,
) -> (Vec<u8>, Vec<u8>, Option<Refusal>) {
    let mut relay = RequestRelay::new(target);
    let (mut to_proxy, mut to_client) = (vec![], vec![]);
    loop {
        let before = (client.len(), proxy.len(), relay.next(Side::Client));
        for side in [Side::Client, Side::Proxy] {
            let (rest, out) = match side {
                Side::Client => (&mut client, &mut to_proxy),
                Side::Proxy => (&mut proxy, &mut to_client),
            };
            let piece = &rest[..size.min(rest.len())];
            let taken = match relay.next(side) {
                Next::Feed => relay.feed(side, piece, out),
                Next::Run(run) => {
                    let length = piece.len().min(usize::try_from(run).unwrap_or(usize::MAX));
                    out.extend_from_slice(&piece[..length]);
                    relay.passed(side, length as u64);
                    Ok(length)
                }
                Next::Request => relay.send(true, &mut |_, _, _| (), out).map(|()| 0),
                Next::Wait | Next::End | Next::Tunnel => Ok(0),
            };
            match taken {
                Ok(taken) => *rest = &rest[taken..],
                Err(refusal) => return (to_proxy, to_client, Some(refusal)),
            }
            if before != (client.len(), proxy.len(), relay.next(Side::Client)) {
                break;
            }
        }
        if before == (client.len(), proxy.len(), relay.next(Side::Client)) {
            return (to_proxy, to_client, None);
        }
    }
}
