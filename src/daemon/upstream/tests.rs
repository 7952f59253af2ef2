//! Proxies that follow a script, on loopback.

use super::*;
use crate::fixture::{self as dns, run};
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream as StdStream};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};
use tcp_over_http::config::{Host, UpstreamConfig};
use tcp_over_http::http::connect::Request;
use tcp_over_http::http::login::AuthChoice;

const TARGET: &str = "192.0.2.7:443";
const REQUEST: &str = "CONNECT 192.0.2.7:443 HTTP/1.1\r\nHost: 192.0.2.7:443\r\n\r\n";

struct Fake {
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
}

fn target() -> Target<'static> {
    Target::Ip(TARGET.parse().unwrap())
}

/// A proxy that reads a request and hands it to its script with the connection.
fn proxy(script: impl Fn(&mut StdStream, &str) + Send + 'static) -> Fake {
    proxy_at("127.0.0.1:0", script)
}

fn proxy_at(address: &str, script: impl Fn(&mut StdStream, &str) + Send + 'static) -> Fake {
    proxy_on(TcpListener::bind(address).unwrap(), script)
}

fn proxy_on(listener: TcpListener, script: impl Fn(&mut StdStream, &str) + Send + 'static) -> Fake {
    let address = listener.local_addr().unwrap();
    let requests = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&requests);
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
                request.push(byte[0]);
            }
            count.fetch_add(1, SeqCst);
            script(&mut stream, str::from_utf8(&request).unwrap());
        }
    });
    Fake { address, requests }
}

/// A proxy with the same answer for all, which then waits for the client to close.
fn answering(answer: &'static str) -> Fake {
    proxy(move |stream, _| {
        stream.write_all(answer.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
    })
}

/// A proxy that never answers, and holds its connections.
fn silent() -> Fake {
    let held = std::sync::Mutex::new(vec![]);
    proxy(move |stream, _| held.lock().unwrap().push(stream.try_clone().unwrap()))
}

/// A port where nobody listens; the socket keeps it from being given to another test.
fn closed() -> (SocketAddr, TcpSocket) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    (socket.local_addr().unwrap(), socket)
}

fn upstream(address: SocketAddr) -> UpstreamConfig {
    UpstreamConfig {
        uplinks: Vec::new(),
        name: address.to_string(),
        host: Host::Ip(address.ip()),
        port: address.port(),
        request: Request::new(None, &[]).unwrap(),
    }
}

fn config(addresses: &[SocketAddr]) -> Config {
    let file = "config tcp-over-http 'main'\n list upstream 'http://192.0.2.1'\n option mark '0'\n";
    let upstreams = addresses.iter().map(|&address| upstream(address)).collect();
    Config { upstreams, ..Config::from_uci(file).unwrap() }
}

fn upstreams(addresses: &[SocketAddr]) -> Upstreams {
    Upstreams::new(&config(addresses), Clock::start()).unwrap()
}

/// Gives up on silent proxies soon.
fn impatient(addresses: &[SocketAddr]) -> Upstreams {
    Upstreams { reply_timeout: Duration::from_millis(400), ..upstreams(addresses) }
}

fn open(upstreams: &Upstreams) -> Result<Opened, Failure> {
    run(upstreams.open(target()))
}

fn good_address(upstreams: &Upstreams, index: usize) -> Option<IpAddr> {
    upstreams.choice().good_address(index)
}

async fn read_byte(stream: &TcpStream) -> u8 {
    let mut byte = [0];
    loop {
        stream.readable().await.unwrap();
        match stream.try_read(&mut byte) {
            Ok(1) => return byte[0],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => panic!("{other:?}"),
        }
    }
}

fn stats(upstreams: &Upstreams) -> Vec<(u32, u32, u32)> {
    let stats = upstreams.proxies().iter().map(|proxy| proxy.account.stats.get());
    stats
        .map(|s| {
            let refused = s.refused.iter().sum();
            let failed = s.unreachable + s.timed_out + s.bad_reply;
            assert_eq!(s.attempts, s.opened + refused + failed);
            (s.opened, refused, failed)
        })
        .collect()
}

#[test]
fn a_tunnel_carries_bytes_both_ways() {
    let fake = proxy(|stream, request| {
        assert_eq!(request, REQUEST);
        stream.write_all(b"HTTP/1.0 200 Connection established\r\nVia: x\r\n\r\nearly").unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        stream.write_all(&byte).unwrap();
    });
    let upstreams = upstreams(&[fake.address]);
    run(async {
        let Opened { stream, leftover, .. } = upstreams.open(target()).await.unwrap();
        assert_eq!(leftover, b"early");
        assert!(stream.nodelay().unwrap());
        assert_eq!(sys::option(&stream, libc::SOL_SOCKET, libc::SO_KEEPALIVE).unwrap(), 1);
        assert_eq!(sys::option(&stream, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE).unwrap(), 60);
        assert_eq!(sys::option(&stream, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL).unwrap(), 10);
        let poll = pin!(stream.readable()).poll(&mut Context::from_waker(Waker::noop()));
        assert!(poll.is_pending(), "nothing is left to read");
        stream.try_write(b"!").unwrap();
        assert_eq!(read_byte(&stream).await, b'!');
    });
    assert_eq!(stats(&upstreams), [(1, 0, 0)]);
}

#[test]
fn credentials_and_headers_are_sent() {
    let fake = proxy(|stream, request| {
        let is_complete = request.contains("\r\nProxy-Authorization: Basic dTpw\r\nX-Extra: y\r\n");
        let status = if is_complete { 200 } else { 400 };
        stream.write_all(format!("HTTP/1.1 {status} x\r\n\r\n").as_bytes()).unwrap();
    });
    let mut config = config(&[fake.address]);
    config.upstreams[0].request = Request::new(Some(("u", "p")), &["X-Extra: y".to_owned()]).unwrap();
    assert!(open(&Upstreams::new(&config, Clock::start()).unwrap()).is_ok());
}

/// A proxy that wants Digest: the first dial brings a nonce, and the next ones count with it. `says`: whether an answer
/// will do.
fn digest_proxy(says: fn(&str) -> bool) -> (Fake, Arc<std::sync::Mutex<Vec<String>>>) {
    let seen = Arc::new(std::sync::Mutex::new(vec![]));
    let log = Arc::clone(&seen);
    let fake = proxy(move |stream, request| {
        let authorization = request.lines().find_map(|line| line.strip_prefix("Proxy-Authorization: "));
        let authorization = authorization.unwrap_or_default().to_owned();
        let answer: &[u8] = match authorization.starts_with("Digest ") && says(&authorization) {
            true => b"HTTP/1.1 200 OK\r\n\r\n",
            false => {
                b"HTTP/1.1 407 x\r\nProxy-Authenticate: Negotiate\r\n\
                  Proxy-Authenticate: Digest realm=\"r\", nonce=\"n\", qop=\"auth\"\r\nContent-Length: 3\r\n\r\nno!"
            }
        };
        log.lock().unwrap().push(authorization);
        stream.write_all(answer).unwrap();
    });
    (fake, seen)
}

fn with_password(address: SocketAddr, auth: AuthChoice) -> Upstreams {
    let mut config = config(&[address]);
    config.upstreams[0].request = Request::new(Some(("u", "p")), &[]).unwrap();
    config.upstreams[0].request.auth = auth;
    Upstreams::new(&config, Clock::start()).unwrap()
}

#[test]
fn digest_is_spoken_once_it_is_offered() {
    for (auth, first) in [(AuthChoice::Auto, "Basic dTpw"), (AuthChoice::Digest, "")] {
        let (fake, seen) = digest_proxy(|_| true);
        let upstreams = with_password(fake.address, auth);
        assert!(open(&upstreams).is_ok() && open(&upstreams).is_ok());
        let seen = seen.lock().unwrap();
        let [one, two, three] = &seen[..] else { panic!("{seen:?}") };
        assert_eq!(one, first);
        let start = "Digest username=\"u\", realm=\"r\", nonce=\"n\", uri=\"192.0.2.7:443\", response=\"";
        assert!(two.starts_with(start) && two.contains("nc=00000001"), "{two}");
        assert!(three.starts_with(start) && three.contains("nc=00000002"), "{three}");
        assert_eq!(stats(&upstreams), [(2, 0, 0)]);
    }
}

/// An account must not be locked out by us: one login a dial.
#[test]
fn a_wrong_password_is_tried_once() {
    let (fake, seen) = digest_proxy(|_| false);
    let upstreams = with_password(fake.address, AuthChoice::Digest);
    assert_eq!(open(&upstreams).unwrap_err(), Failure::Credentials);
    assert_eq!(seen.lock().unwrap().len(), 2);
    assert_eq!(stats(&upstreams), [(0, 1, 0)]);
}

/// The search for a loop is no exception.
#[test]
fn a_refused_password_is_not_sent_for_a_test_either() {
    let (fake, seen) = digest_proxy(|_| false);
    let upstreams = with_password(fake.address, AuthChoice::Basic);
    assert_eq!(open(&upstreams).unwrap_err(), Failure::Credentials);
    run(upstreams.ask_quietly(target()));
    assert_eq!(seen.lock().unwrap().len(), 1);
    let (fake, seen) = digest_proxy(|_| false);
    let upstreams = with_password(fake.address, AuthChoice::Basic);
    run(upstreams.ask_quietly(target()));
    assert_eq!(open(&upstreams).unwrap_err(), Failure::Credentials);
    assert_eq!(seen.lock().unwrap().len(), 1);
}

/// A proxy that has forgotten its nonces gives a new one, and the client sees nothing of it.
#[test]
fn a_forgotten_nonce_is_replaced() {
    let (fake, seen) = digest_proxy(|answer| answer.contains("nc=00000001"));
    let upstreams = with_password(fake.address, AuthChoice::Digest);
    for _ in 0..3 {
        assert!(open(&upstreams).is_ok());
    }
    assert_eq!(seen.lock().unwrap().len(), 6);
    assert_eq!(stats(&upstreams), [(3, 0, 0)]);
}

#[test]
fn a_name_that_nobody_can_be_asked_for_is_refused() {
    let mut config = config(&["127.0.0.1:1".parse().unwrap()]);
    config.upstreams[0].host = Host::Name("a..b".to_owned());
    let error = Upstreams::new(&config, Clock::start()).err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn a_reply_may_come_byte_by_byte_and_over_ipv6() {
    let fake = proxy_at("[::1]:0", |stream, request| {
        assert_eq!(request, REQUEST);
        stream.set_nodelay(true).unwrap();
        for byte in b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nA: b\r\n\r\nearly" {
            stream.write_all(&[*byte]).unwrap();
            std::thread::yield_now();
        }
        stream.shutdown(Shutdown::Write).unwrap();
    });
    run(async {
        let Opened { stream, leftover: mut got, .. } =
            upstreams(&[fake.address]).open(target()).await.unwrap();
        while got.len() < 5 {
            got.push(read_byte(&stream).await);
        }
        assert_eq!(got, b"early");
    });
}

#[test]
fn long_replies_are_read_to_their_end() {
    let fake = proxy(|stream, _| {
        let fields = "X: y\r\n".repeat(10_000);
        stream.write_all(format!("HTTP/1.1 299 x\r\n{fields}\r\nearly").as_bytes()).unwrap();
        let _ = stream.read(&mut [0]);
    });
    run(async {
        let opened = upstreams(&[fake.address]).open(target()).await.unwrap();
        assert!(b"early".starts_with(&opened.leftover));
    });
}

#[test]
fn a_status_is_the_truth_and_no_other_proxy_is_asked() {
    for (answer, status) in [
        ("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\n\r\nno!", 502),
        ("HTTP/1.0 403\n\n", 403),
        ("HTTP/1.1 407 x\r\nProxy-Authenticate: Basic realm=x\r\n\r\n", 407),
    ] {
        let (first, second) = (answering(answer), answering("HTTP/1.1 200\r\n\r\n"));
        let upstreams = upstreams(&[first.address, second.address]);
        assert_eq!(open(&upstreams).unwrap_err(), Failure::Refused { status });
        assert_eq!(second.requests.load(SeqCst), 0);
        assert_eq!(stats(&upstreams), [(0, 1, 0), (0, 0, 0)]);
    }
}

#[test]
fn a_broken_answer_makes_the_next_proxy_worth_a_try() {
    let hangs_up = proxy(|_, _| {});
    let cut_short = answering("HTTP/1.1 200 OK\r\nA: b\r\n");
    let garbage = answering("SSH-2.0-OpenSSH_9.9\r\n");
    let good = answering("HTTP/1.1 200\r\n\r\n");
    let broken = [hangs_up.address, cut_short.address, garbage.address];
    assert_eq!(open(&upstreams(&broken)).unwrap_err(), Failure::BadReply);
    let upstreams = upstreams(&[&broken[..], &[good.address]].concat());
    assert!(open(&upstreams).is_ok());
    assert_eq!(stats(&upstreams), [(0, 0, 1), (0, 0, 1), (0, 0, 1), (1, 0, 0)]);
}

/// It may have no place just now. Once only, and not if it has begun to answer.
#[test]
fn a_proxy_that_closes_is_asked_once_more() {
    let asked = AtomicUsize::new(0);
    let full = proxy(move |stream, _| {
        if asked.fetch_add(1, SeqCst) == 1 {
            stream.write_all(b"HTTP/1.1 200\r\n\r\n").unwrap();
        }
    });
    let begun = Instant::now();
    let upstreams = upstreams(&[full.address]);
    assert!(open(&upstreams).is_ok());
    assert!(begun.elapsed() >= attempt::RETRY_DELAY);
    assert_eq!(open(&upstreams).unwrap_err(), Failure::Closed);
    assert_eq!(full.requests.load(SeqCst), 4);
    assert_eq!(upstreams.proxies[0].account.stats.get().retried, 2);
    let cut_off = answering("H");
    assert_eq!(open(&self::upstreams(&[cut_off.address])).unwrap_err(), Failure::BadReply);
    assert_eq!(cut_off.requests.load(SeqCst), 1);
}

#[test]
fn garbage_fails_without_a_time_out() {
    let fake = proxy(|stream, _| {
        stream.write_all(b"SSH").unwrap();
        let _ = stream.read(&mut [0]);
    });
    let patient = Upstreams { reply_timeout: Duration::from_secs(3600), ..upstreams(&[fake.address]) };
    assert_eq!(open(&patient).unwrap_err(), Failure::BadReply);
}

#[test]
fn an_unreachable_proxy_rests() {
    let (dead, _socket) = closed();
    let good = answering("HTTP/1.1 200\r\n\r\n");
    let upstreams = upstreams(&[dead, good.address]);
    for _ in 0..3 {
        assert!(open(&upstreams).is_ok());
    }
    assert_eq!(stats(&upstreams), [(0, 0, 1), (3, 0, 0)]);
}

#[test]
fn a_resting_proxy_is_the_last_resort() {
    let (dead, socket) = closed();
    let upstreams = upstreams(&[dead]);
    assert_eq!(open(&upstreams).unwrap_err(), Failure::Unreachable);
    assert_eq!(open(&upstreams).unwrap_err(), Failure::Unreachable);
    assert_eq!(stats(&upstreams), [(0, 0, 2)]);
    let listener = run(async { socket.listen(8).unwrap().into_std().unwrap() });
    listener.set_nonblocking(false).unwrap();
    proxy_on(listener, |stream, _| stream.write_all(b"HTTP/1.1 200\r\n\r\n").unwrap());
    assert!(open(&upstreams).is_ok());
    assert!(!upstreams.choice().is_resting(0));
}

#[test]
fn silence_is_the_proxys_fault_until_it_answers_others() {
    let (first, second) = (silent(), answering("HTTP/1.1 200\r\n\r\n"));
    let hung = impatient(&[first.address, second.address]);
    assert!(open(&hung).is_ok());
    assert!(hung.choice().is_resting(0));

    let busy = Rc::new(impatient(&[first.address, second.address]));
    run(async {
        let others = Rc::clone(&busy);
        tokio::task::spawn_local(async move { others.choice().answered(0, 200, others.now()) });
        assert_eq!(busy.open(target()).await.unwrap_err(), Failure::TimedOut);
    });
    assert!(!busy.choice().is_resting(0));
    assert_eq!(second.requests.load(SeqCst), 1);

    let (dead, _socket) = closed();
    let alone = impatient(&[first.address, dead]);
    assert_eq!(open(&alone).unwrap_err(), Failure::TimedOut);
}

#[test]
fn all_addresses_of_a_name_are_tried_and_the_good_one_is_kept() {
    let fake = proxy(|stream, _| stream.write_all(b"HTTP/1.1 200\r\n\r\n").unwrap());
    let (resolver, queries) =
        dns::server(|query| vec![dns::reply(query, dns::OK, &["127.0.0.2", "127.0.0.1", "::1"], 60)]);
    let mut config = config(&[fake.address]);
    config.resolvers = vec![resolver];
    config.upstreams[0].host = Host::Name("proxy.invalid".to_owned());
    let upstreams = Upstreams::new(&config, Clock::start()).unwrap();
    for _ in 0..2 {
        assert!(open(&upstreams).is_ok());
        assert_eq!(good_address(&upstreams, 0), Some(fake.address.ip()));
    }
    assert_eq!(queries.load(SeqCst), 2);
    assert_eq!(stats(&upstreams), [(2, 0, 0)]);
}

#[test]
fn a_reload_keeps_what_is_known_of_a_proxy() {
    let clock = Clock::start();
    let (dead, _socket) = closed();
    let fake = proxy(|stream, _| stream.write_all(b"HTTP/1.1 200\r\n\r\n").unwrap());
    let (resolver, _) =
        dns::server(|query| vec![dns::reply(query, dns::OK, &["127.0.0.2", "127.0.0.1"], 60)]);
    let (broken, _) = dns::server(|query| vec![dns::reply(query, dns::OK | 2, &[], 0)]);
    let mut config = config(&[dead, fake.address]);
    config.resolvers = vec![resolver];
    config.upstreams[1].host = Host::Name("proxy.invalid".to_owned());
    let old = Upstreams::new(&config, clock).unwrap();
    assert!(open(&old).is_ok());

    config.resolvers = vec![broken];
    let mut new = Upstreams::new(&config, clock).unwrap();
    new.inherit(&old);
    assert_eq!(good_address(&new, 1), Some(fake.address.ip()));
    assert!(open(&new).is_ok());
    assert_eq!(stats(&new), [(0, 0, 1), (2, 0, 0)], "the first one rests");

    config.upstreams[0].port = fake.address.port();
    config.upstreams[1].host = Host::Name("other.invalid".to_owned());
    let mut moved = Upstreams::new(&config, clock).unwrap();
    moved.inherit(&new);
    assert!(!moved.choice().is_resting(0));
    assert_eq!(good_address(&moved, 1), None);
    assert!(open(&moved).is_ok());
    assert_eq!(stats(&moved), [(1, 0, 1), (2, 0, 0)]);
}

#[test]
fn a_name_without_addresses_is_an_unreachable_proxy() {
    let (resolver, _) = dns::server(|query| vec![dns::reply(query, dns::OK | 3, &[], 0)]);
    let mut config = config(&["127.0.0.1:1".parse().unwrap()]);
    config.resolvers = vec![resolver];
    config.upstreams[0].host = Host::Name("proxy.invalid".to_owned());
    assert_eq!(open(&Upstreams::new(&config, Clock::start()).unwrap()).unwrap_err(), Failure::Unreachable);
}

#[test]
fn sockets_are_marked_or_routes_refused() {
    let fake = proxy(|stream, _| stream.write_all(b"HTTP/1.1 200\r\n\r\n").unwrap());
    let mut config = config(&[fake.address]);
    config.mark = 0x7400_0000;
    let is_allowed = sys::set_mark(std::net::UdpSocket::bind("127.0.0.1:0").unwrap(), 1).is_ok();
    let expected = if is_allowed { config.mark as i32 } else { 0 };
    let upstreams = Upstreams::new(&config, Clock::start()).unwrap();
    run(async {
        let opened = upstreams.open(target()).await.unwrap();
        assert_eq!(sys::option(&opened.stream, libc::SOL_SOCKET, libc::SO_MARK).unwrap(), expected);
    });
    config.auto_route = true;
    assert_eq!(Upstreams::new(&config, Clock::start()).is_ok(), is_allowed);
}

#[test]
fn a_lack_of_descriptors_is_no_proxys_fault() {
    assert!(reach::is_exhausted(&io::Error::from_raw_os_error(libc::EMFILE)));
    assert!(reach::is_exhausted(&io::Error::from_raw_os_error(libc::EADDRNOTAVAIL)));
    assert!(!reach::is_exhausted(&io::Error::from_raw_os_error(libc::ECONNREFUSED)));
}

#[test]
fn a_dial_in_flight_is_small() {
    let upstreams = upstreams(&["127.0.0.1:1".parse().unwrap()]);
    let size = size_of_val(&upstreams.open(target()));
    println!("{size} bytes");
    assert!(size <= 1024, "{size} bytes");
}
