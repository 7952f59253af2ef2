//! What the proxy and the client get, byte for byte, and that no cut changes it.

use proptest::prelude::*;
use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use super::*;

const NAME: Target<'_> = Target::Name("www.example.com", 80);

fn address() -> Target<'static> {
    Target::Ip("192.0.2.7:80".parse().unwrap())
}

/// What became of a relay, and what each side got.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    to_proxy: String,
    to_client: String,
    refusal: Option<Refusal>,
    next: [Next; 2],
    is_kept: bool,
}

/// Has a relay carry all that both send: the proxy's when it takes nothing more of the client's.
/// `size`: the bytes of a piece.
fn carry(target: Target<'_>, is_true: bool, client: &[u8], proxy: &[u8], size: usize) -> Outcome {
    let mut relay = RequestRelay::new(target);
    let (mut to_proxy, mut to_client) = (vec![], vec![]);
    let (mut client, mut proxy) = (client, proxy);
    let mut refusal = None;
    loop {
        let before = (client.len(), proxy.len(), relay.next(Side::Client));
        for side in [Side::Client, Side::Proxy] {
            let (rest, out) = match side {
                Side::Client => (&mut client, &mut to_proxy),
                Side::Proxy => (&mut proxy, &mut to_client),
            };
            let result = match relay.next(side) {
                Next::Feed => relay.feed(side, &rest[..size.min(rest.len())], out),
                Next::Run(run) => {
                    let length = rest.len().min(size).min(usize::try_from(run).unwrap_or(usize::MAX));
                    out.extend_from_slice(&rest[..length]);
                    relay.passed(side, length as u64);
                    Ok(length)
                }
                Next::Request => relay.send(is_true, &mut |_, _, _| (), out).map(|()| 0),
                Next::Wait | Next::End | Next::Tunnel => Ok(0),
            };
            match result {
                Ok(taken) => *rest = &rest[taken..],
                Err(error) => refusal = Some(error),
            }
            if before != (client.len(), proxy.len(), relay.next(Side::Client)) {
                break;
            }
        }
        if refusal.is_some() || before == (client.len(), proxy.len(), relay.next(Side::Client)) {
            return Outcome {
                to_proxy: String::from_utf8_lossy(&to_proxy).into_owned(),
                to_client: String::from_utf8_lossy(&to_client).into_owned(),
                refusal,
                next: [relay.next(Side::Client), relay.next(Side::Proxy)],
                is_kept: relay.is_kept(),
            };
        }
    }
}

/// What the proxy gets of a client's bytes.
fn sent(target: Target<'_>, client: &str) -> Result<String, Refusal> {
    let outcome = carry(target, false, client.as_bytes(), b"", usize::MAX);
    assert_eq!(carry(target, false, client.as_bytes(), b"", 1), outcome, "{client:?}");
    outcome.refusal.map_or(Ok(outcome.to_proxy), Err)
}

/// What the client gets of a response to a request, and what comes next.
fn answered(request: &str, response: &str) -> Outcome {
    let outcome = carry(NAME, false, request.as_bytes(), response.as_bytes(), usize::MAX);
    assert_eq!(carry(NAME, false, request.as_bytes(), response.as_bytes(), 1), outcome, "{response:?}");
    outcome
}

const GET: &str = "GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n";

#[test]
fn what_could_be_read_in_two_ways_is_refused_and_the_proxy_sees_nothing_of_it() {
    let post = |fields: &str| format!("POST / HTTP/1.1\r\nHost: www.example.com\r\n{fields}\r\n");
    let bad = [
        // Two lengths, or none that all agree on.
        post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
        post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"),
        post("Content-Length: 5\r\nContent-Length: 5\r\n"),
        post("Content-Length: 5\r\ncontent-length: 6\r\n"),
        post("Content-Length: 5, 5\r\n"),
        post("Content-Length: +5\r\n"),
        post("Content-Length: -1\r\n"),
        post("Content-Length: 0x5\r\n"),
        post("Content-Length: 5 5\r\n"),
        post("Content-Length:\r\n"),
        post("Content-Length: 9999999999999999999\r\n"),
        post("Content-Length: \u{ff15}\r\n"),
        post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
        post("Transfer-Encoding: chunked, chunked\r\n"),
        post("Transfer-Encoding: gzip, chunked\r\n"),
        post("Transfer-Encoding: identity\r\n"),
        post("Transfer-Encoding: xchunked\r\n"),
        post("Transfer-Encoding: \"chunked\"\r\n"),
        post("Transfer-Encoding: chunked;x\r\n"),
        post("Transfer-Encoding:\r\n"),
        post("Connection: Content-Length\r\nContent-Length: 5\r\n"),
        "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
        // Lines that end elsewhere for others.
        "GET / HTTP/1.1\nHost: www.example.com\r\n\r\n".into(),
        "GET / HTTP/1.1\r\nHost: www.example.com\n\r\n".into(),
        "GET / HTTP/1.1\r\nHost: www.example.com\r\n\n".into(),
        post("X: a\rY: b\r\n"),
        post("X: a\nY: b\r\n"),
        post("X: a\r\r\n"),
        post("X: a\0b\r\n"),
        post("X: a\x0bb\r\n"),
        post("X: a\x7f\r\n"),
        // Fields that are others for others.
        post("X: a\r\n b\r\n"),
        post("X: a\r\n\tb\r\n"),
        post(" \r\n"),
        "GET / HTTP/1.1\r\n Host: x\r\nHost: www.example.com\r\n\r\n".into(),
        post("X : a\r\n"),
        post("X\t: a\r\n"),
        post("Content-Length : 5\r\n"),
        post("Transfer-Encoding\t: chunked\r\n"),
        post("X\r\n"),
        post(": a\r\n"),
        post("X\u{e9}: a\r\n"),
        post("(X): a\r\n"),
        post(&format!("Connection: {}\r\n", "a, ".repeat(17))),
        // Another host.
        post("Host: www.example.com\r\n"),
        "GET / HTTP/1.1\r\n\r\n".into(),
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n".into(),
        "GET / HTTP/1.1\r\nHost: u@www.example.com\r\n\r\n".into(),
        "GET / HTTP/1.1\r\nHost: www.example.com/x\r\n\r\n".into(),
        "GET / HTTP/1.1\r\nHost: www.example.com, b\r\n\r\n".into(),
        "GET / HTTP/1.1\r\nHost: www.example.com:x\r\n\r\n".into(),
        "GET / HTTP/1.1\r\nHost: www.example.com:800000\r\n\r\n".into(),
        "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n".into(),
        "GET / HTTP/1.1\r\nHost: [x]\r\n\r\n".into(),
        "GET / HTTP/1.1\r\nHost: :80\r\n\r\n".into(),
        "GET http://other.example/ HTTP/1.1\r\nHost: other.example\r\n\r\n".into(),
        "GET http://other.example/ HTTP/1.1\r\nHost: www.example.com\r\n\r\n".into(),
        "GET http://www.example.com/ HTTP/1.1\r\nHost: other.example\r\n\r\n".into(),
        "GET http://www.example.com/ HTTP/1.1\r\n\r\n".into(),
        "GET http://other.example/ HTTP/1.0\r\n\r\n".into(),
        "GET http://www.example.com@other.example/ HTTP/1.0\r\n\r\n".into(),
        "GET http://www.example.com\\@other.example/ HTTP/1.0\r\n\r\n".into(),
        "GET http:///x HTTP/1.0\r\n\r\n".into(),
        // Of which tinyproxy, privoxy and Apache take what is behind the @ for the host.
        "GET http://www.example.com?@other.example/ HTTP/1.0\r\n\r\n".into(),
        "GET http://www.example.com?x HTTP/1.0\r\n\r\n".into(),
        "GET http://www.example.com#@other.example/ HTTP/1.0\r\n\r\n".into(),
        "GET http://www.example.com;@other.example/ HTTP/1.0\r\n\r\n".into(),
        "GET http://www.example.com:@other.example/ HTTP/1.0\r\n\r\n".into(),
        "GET http://www.example.com%00.other.example/ HTTP/1.0\r\n\r\n".into(),
        "GET http:/www.example.com/ HTTP/1.0\r\n\r\n".into(),
        "GET http:\\\\other.example/ HTTP/1.0\r\n\r\n".into(),
        "GET https://www.example.com/ HTTP/1.0\r\n\r\n".into(),
        "GET ftp://www.example.com/ HTTP/1.0\r\n\r\n".into(),
        "GET www.example.com/ HTTP/1.0\r\n\r\n".into(),
        "GET @other.example/ HTTP/1.0\r\n\r\n".into(),
        "GET * HTTP/1.0\r\n\r\n".into(),
        "CONNECT www.example.com:80 HTTP/1.1\r\nHost: www.example.com\r\n\r\n".into(),
        // A proxy may send the password back.
        "TRACE / HTTP/1.1\r\nHost: www.example.com\r\nMax-Forwards: 0\r\n\r\n".into(),
        // First lines of another shape.
        "GET\t/ HTTP/1.1\r\n\r\n".replace('\t', "  "),
        "GET /  HTTP/1.1\r\nHost: www.example.com\r\n\r\n".into(),
        "GET /a b HTTP/1.1\r\nHost: www.example.com\r\n\r\n".into(),
        "GET /a\tb HTTP/1.1\r\nHost: www.example.com\r\n\r\n".into(),
        "Head / HTTP/1.1\r\nHost: www.example.com\r\n\r\n".into(),
        "\r\n\rGET / HTTP/1.0\r\n\r\n".into(),
    ];
    for request in bad {
        let outcome = carry(NAME, true, request.as_bytes(), b"", usize::MAX);
        assert_eq!((&*outcome.to_proxy, outcome.refusal), ("", Some(Refusal::BadRequest)), "{request:?}");
        assert_eq!(carry(NAME, true, request.as_bytes(), b"", 1), outcome, "{request:?}");
        assert!(
            carry(address(), true, request.as_bytes(), b"", 1).refusal.is_some() || request.contains("other")
        );
    }
}

#[test]
fn what_is_no_http_is_known_by_its_first_line() {
    let long = "A".repeat(33);
    for (bytes, wrong) in [
        ("\x16\x03\x01\x02\0\x01", 1),
        ("\0", 1),
        (" GET / HTTP/1.1\r\n", 1),
        ("SSH-2.0-OpenSSH_9.9\r\n", 20),
        ("*1\r\n$4\r\nPING\r\n", 3),
        ("<policy-file-request/>\0", 1),
        ("{\"id\":1}", 1),
        (&long, 33),
        ("USER guest 0 * :guest\r\n", 23),
        ("OPTIONS rtsp://192.0.2.7/ RTSP/1.0\r\nCSeq: 1\r\n\r\n", 36),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 16),
        ("GET / HTTP/2.0\r\n", 16),
        ("GET / HTTP/1.2\r\n", 16),
        ("GET / HTTP/1.10\r\n", 17),
        ("GET / HTTP/1.1 \r\n", 17),
        ("GET / http/1.1\r\n", 16),
        ("GET /HTTP/1.1\r\n", 15),
        ("GET /\r\n", 7),
    ] {
        assert_eq!(sent(NAME, &bytes[..wrong - 1]), Ok(String::new()), "{bytes:?}");
        assert_eq!(sent(NAME, &bytes[..wrong]), Err(Refusal::NotHttp), "{bytes:?}");
    }
    let mut relay = RequestRelay::new(NAME);
    relay.feed(Side::Client, b"\r\nSSH", &mut vec![]).unwrap();
    assert_eq!(relay.feed(Side::Client, b"-2.0\r\n", &mut vec![]), Err(Refusal::NotHttp));
    assert_eq!(relay.unsent(), b"\r\nSSH");
}

#[test]
fn requests_are_sent_in_absolute_form() {
    let v6 = Target::Ip("[2001:db8::7]:80".parse().unwrap());
    let other = Target::Name("www.example.com", 8080);
    for (target, request, expected) in [
        (NAME, GET, "GET http://www.example.com/ HTTP/1.1\r\nHost: www.example.com\r\n\r\n"),
        // The name counts, however it is written; the port is what the client has connected to.
        (
            NAME,
            "GET /a?b=c HTTP/1.1\r\nhost:WWW.Example.com.:80\r\n\r\n",
            "GET http://www.example.com/a?b=c HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
        ),
        (
            other,
            "GET / HTTP/1.1\r\nHost: www.example.com:81\r\n\r\n",
            "GET http://www.example.com:8080/ HTTP/1.1\r\nHost: www.example.com:8080\r\n\r\n",
        ),
        // Pinned.
        (
            NAME,
            "GET //other.example/ HTTP/1.1\r\nHost: other.example\r\n\r\n",
            "GET http://www.example.com//other.example/ HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
        ),
        (
            address(),
            "GET / HTTP/1.1\r\nHost: other.example\r\n\r\n",
            "GET http://192.0.2.7/ HTTP/1.1\r\nHost: 192.0.2.7\r\n\r\n",
        ),
        (
            address(),
            "GET / HTTP/1.1\r\nHost: 192.0.2.8\r\n\r\n",
            "GET http://192.0.2.7/ HTTP/1.1\r\nHost: 192.0.2.7\r\n\r\n",
        ),
        (
            v6,
            "GET / HTTP/1.1\r\nHost: [2001:db8::7]:80\r\n\r\n",
            "GET http://[2001:db8::7]/ HTTP/1.1\r\nHost: [2001:db8::7]\r\n\r\n",
        ),
        (
            NAME,
            "GET / HTTP/1.1\r\nHost:\r\n\r\n",
            "GET http://www.example.com/ HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
        ),
        // What is in no URI, and would end one in a field.
        (
            NAME,
            "GET /\",username=\"x?a\\b HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
            "GET http://www.example.com/%22,username=%22x?a%5Cb HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
        ),
        // HTTP/1.0 has no Host.
        (
            NAME,
            "GET / HTTP/1.0\r\n\r\n",
            "GET http://www.example.com/ HTTP/1.0\r\nHost: www.example.com\r\n\r\n",
        ),
        (
            NAME,
            "\r\nGET HTTP://www.EXAMPLE.com:80/x HTTP/1.1\r\nHost: www.EXAMPLE.com:80\r\n\r\n",
            "GET http://www.example.com/x HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
        ),
        (
            NAME,
            "OPTIONS * HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
            "OPTIONS http://www.example.com HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
        ),
        // Hop by hop.
        (
            NAME,
            "M-SEARCH /\u{e9} HTTP/1.1\r\nHost: www.example.com\r\nX-A: 1\r\nx-b: 2\r\nConnection: x-a,Keep-Alive ,, te\r\n\
             Keep-Alive: 5\r\nTE: trailers\r\nProxy-Authorization: Basic eA==\r\nProxy-Connection: close, x-c\r\n\
             Upgrade: h2c\r\nX-C: 3\r\nVia: \t 1.1 x \r\nCookie: \u{e9}; a=b\r\n\r\n",
            "M-SEARCH http://www.example.com/\u{e9} HTTP/1.1\r\nHost: www.example.com\r\nx-b: 2\r\nVia: \t 1.1 x \r\n\
             Cookie: \u{e9}; a=b\r\n\r\n",
        ),
        (
            NAME,
            "GET / HTTP/1.1\r\nHost: www.example.com\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\r\n",
            "GET http://www.example.com/ HTTP/1.1\r\nHost: www.example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        ),
        (
            NAME,
            "GET / HTTP/1.0\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            "GET http://www.example.com/ HTTP/1.0\r\nHost: www.example.com\r\n\r\n",
        ),
        // Bodies; what is behind them waits.
        (
            NAME,
            "POST / HTTP/1.1\r\nHost: www.example.com\r\nExpect: 100-continue\r\nContent-Length: 005\r\n\r\nhelloGET /",
            "POST http://www.example.com/ HTTP/1.1\r\nHost: www.example.com\r\nExpect: 100-continue\r\nContent-Length: 005\r\n\r\nhello",
        ),
        (
            NAME,
            "POST / HTTP/1.1\r\nHost: www.example.com\r\nTransfer-Encoding: Chunked\r\n\r\n\
             05;a=\"b;c\"\r\nhello\r\nA \t\r\n0123456789\r\n000\r\nA: b\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nGET /",
            "POST http://www.example.com/ HTTP/1.1\r\nHost: www.example.com\r\nTransfer-Encoding: chunked\r\n\r\n\
             05\r\nhello\r\nA\r\n0123456789\r\n000\r\nA: b\r\n\r\n",
        ),
        (
            NAME,
            "POST / HTTP/1.1\r\nHost: www.example.com\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n\r\n",
            "POST http://www.example.com/ HTTP/1.1\r\nHost: www.example.com\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
    ] {
        assert_eq!(sent(target, request).as_deref(), Ok(expected), "{request:?}");
    }
}

#[test]
fn broken_chunks_end_there() {
    let extension = format!("1;{}\r\n", "a".repeat(4097));
    for (chunks, passed) in [
        ("\r\n", ""),
        ("x", ""),
        ("0x5\r\n", "0"),
        ("-1\r\n", ""),
        ("+1\r\n", ""),
        (" 1\r\n", ""),
        (";a\r\n", ""),
        ("5\nhello", "5"),
        ("5;a\nhello", "5"),
        ("5;a\0\r\n", "5"),
        ("5\r5\r\n", "5"),
        ("5;a\rb\r\n", "5"),
        ("5\r\nhello!\r\n", "5\r\nhello"),
        ("5\r\nhello\n", "5\r\nhello"),
        ("5\r\nhello\r\r\n", "5\r\nhello"),
        ("1000000000000000\r\n", "100000000000000"),
        ("0000000000000000\r\n", "000000000000000"),
        (&extension, "1"),
        ("0\r\nA\r\n\r\n", "0\r\n"),
        ("0\r\nA: b\n\r\n", "0\r\n"),
        ("0\r\n A: b\r\n\r\n", "0\r\n"),
        ("0\r\nContent-Length: 5\r\n\r\n", "0\r\n"),
    ] {
        let request =
            format!("POST / HTTP/1.0\r\nHost: www.example.com\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
        let request = request.replace("1.0", "1.1");
        let outcome = carry(NAME, false, request.as_bytes(), b"", usize::MAX);
        assert_eq!(outcome.refusal, Some(Refusal::BadRequest), "{chunks:?}");
        assert_eq!(outcome.to_proxy.split_once("\r\n\r\n").unwrap().1, passed, "{chunks:?}");
        assert_eq!(carry(NAME, false, request.as_bytes(), b"", 1), outcome, "{chunks:?}");
        let outcome =
            answered(GET, &format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"));
        assert_eq!(outcome.refusal, Some(Refusal::BadGateway), "{chunks:?}");
    }
}

#[test]
fn a_name_that_belongs_to_the_address_is_asked_for() {
    let request = b"GET / HTTP/1.1\r\nHost: www.example.com:80\r\n\r\n";
    let mut relay = RequestRelay::new(address());
    assert_eq!(relay.claimed_name(), None);
    relay.feed(Side::Client, request, &mut vec![]).unwrap();
    assert_eq!(relay.claimed_name(), Some("www.example.com"));
    assert_eq!(
        carry(address(), true, request, b"", 1).to_proxy,
        "GET http://www.example.com/ HTTP/1.1\r\nHost: www.example.com\r\n\r\n"
    );
    for host in ["192.0.2.8", "[::1]", "", "1.2.3.4:80"] {
        let mut relay = RequestRelay::new(address());
        relay
            .feed(Side::Client, format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes(), &mut vec![])
            .unwrap();
        assert_eq!(relay.claimed_name(), None, "{host}");
    }
    let mut relay = RequestRelay::new(NAME);
    relay.feed(Side::Client, b"GET / HTTP/1.1\r\nHost: other.example\r\n\r\n", &mut vec![]).unwrap();
    assert_eq!(relay.claimed_name(), None, "the fake address says it");
    for (is_true, refusal) in [(true, None), (false, Some(Refusal::BadRequest))] {
        let absolute = b"GET http://www.example.com/ HTTP/1.0\r\n\r\n";
        assert_eq!(carry(address(), is_true, absolute, b"", 1).refusal, refusal);
    }
}

#[test]
fn heads_are_bounded() {
    let request = |size: usize| {
        let mut request = String::from("GET / HTTP/1.1\r\nHost: www.example.com\r\nX: ");
        request.push_str(&"x".repeat(size - request.len() - 4));
        request + "\r\n\r\n"
    };
    assert!(sent(NAME, &request(MAX_HEAD)).is_ok());
    assert_eq!(sent(NAME, &request(MAX_HEAD + 1)), Err(Refusal::TooLarge));
    let response = |size: usize| format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(size));
    assert_eq!(answered(GET, &response(MAX_HEAD)).refusal, Some(Refusal::BadGateway));
}

#[test]
fn requests_are_authorized_by_method_and_uri() {
    let mut relay = RequestRelay::new(NAME);
    let mut out = vec![];
    relay
        .feed(
            Side::Client,
            b"PUT /a HTTP/1.1\r\nHost: x\r\nProxy-Authorization: x\r\na: theirs\r\n\r\n",
            &mut out,
        )
        .unwrap();
    let mut authorize = |method: &[u8], uri: &[u8], out: &mut Vec<u8>| {
        head::push(out, &[b"A: ", method, b" ", uri, b"\r\n"]);
    };
    relay.send(false, &mut authorize, &mut out).unwrap();
    assert_eq!(
        str::from_utf8(&out),
        Ok(
            "PUT http://www.example.com/a HTTP/1.1\r\nHost: www.example.com\r\nA: PUT http://www.example.com/a\r\n\r\n"
        )
    );
}

const HEAD: &str = "HEAD / HTTP/1.1\r\nHost: www.example.com\r\n\r\n";
const CLOSE: &str = "GET / HTTP/1.1\r\nHost: www.example.com\r\nConnection: Close\r\n\r\n";
const OLD: &str = "GET / HTTP/1.0\r\n\r\n";
const OLD_KEPT: &str = "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: 9\r\n\r\n";

/// The client goes on; the proxy waits.
const AGAIN: [Next; 2] = [Next::Feed, Next::Wait];
const END: [Next; 2] = [Next::End; 2];

#[test]
fn responses_end_where_they_end() {
    for (request, response, expected, next, is_kept) in [
        // A length, and what is behind it is not the client's.
        (
            GET,
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello!",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            AGAIN,
            true,
        ),
        (
            GET,
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            AGAIN,
            true,
        ),
        (
            CLOSE,
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx",
            END,
            true,
        ),
        // The proxy's connection is not the client's.
        (
            GET,
            "HTTP/1.1 404\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 404\r\nContent-Length: 0\r\n\r\n",
            AGAIN,
            false,
        ),
        (
            GET,
            "HTTP/1.0 200 \r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n",
            AGAIN,
            false,
        ),
        (
            GET,
            "HTTP/1.0 200 OK\r\nProxy-Connection: keep-alive\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            AGAIN,
            true,
        ),
        (
            OLD,
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            END,
            false,
        ),
        (
            OLD_KEPT,
            "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n",
            AGAIN,
            true,
        ),
        // A 1.0 client can't read chunks.
        (
            OLD_KEPT,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n2\r\nde\r\n0\r\nA: b\r\n\r\n!",
            "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabcde",
            END,
            false,
        ),
        // Chunked, with trailers.
        (
            GET,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: A\r\n\r\n3;x\r\nabc\r\n0\r\nA: b\r\n\r\n!",
            "HTTP/1.1 200 OK\r\nTrailer: A\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nA: b\r\n\r\n",
            AGAIN,
            true,
        ),
        // Two lengths: one goes (RFC 9112 section 6.3), and nobody believes the connection any more.
        (
            GET,
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            AGAIN,
            false,
        ),
        // Chunks of a proxy that can't know of them, likewise.
        (
            GET,
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            AGAIN,
            false,
        ),
        // A 407 of the server: proxies pass it on, without the challenge.
        (
            GET,
            "HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n",
            AGAIN,
            true,
        ),
        // Until the connection ends.
        (
            GET,
            "HTTP/1.1 200 OK\r\nX: y\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\nX: y\r\nConnection: close\r\n\r\nabc",
            [Next::Wait, Next::Run(u64::MAX)],
            false,
        ),
        // No body, whatever is said of it.
        (
            HEAD,
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            AGAIN,
            true,
        ),
        (
            HEAD,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            AGAIN,
            true,
        ),
        (HEAD, "HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n", AGAIN, true),
        (GET, "HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\n", "HTTP/1.1 204 No\r\n\r\n", AGAIN, true),
        (
            GET,
            "HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 204 No\r\n\r\n",
            AGAIN,
            true,
        ),
        (
            GET,
            "HTTP/1.1 304 No\r\nContent-Length: 5\r\n\r\n",
            "HTTP/1.1 304 No\r\nContent-Length: 5\r\n\r\n",
            AGAIN,
            true,
        ),
        // Interim ones first.
        (
            GET,
            "HTTP/1.1 103 Hint\r\nLink: x\r\nConnection: close\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 103 Hint\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            AGAIN,
            true,
        ),
        (OLD, "HTTP/1.1 100 Continue\r\n\r\n", "", [Next::Wait, Next::Feed], false),
        (
            POST,
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\n",
            [Next::Run(9), Next::Feed],
            false,
        ),
        // Before the request has ended: nobody may wait for its rest.
        (
            POST,
            "HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 417 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            END,
            false,
        ),
        // Fields of the proxy's connection, and lines as some proxies write them.
        (
            GET,
            "\nHTTP/1.1 200 OK\nKeep-Alive: 5\nConnection: x\nX: y\nProxy-Authenticate: Basic\nContent-Length: 2\n\n\n\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\n\n",
            AGAIN,
            true,
        ),
    ] {
        let outcome = answered(request, response);
        assert_eq!(outcome.refusal, None, "{response:?}");
        assert_eq!(outcome.to_client, expected, "{response:?}");
        assert_eq!((outcome.next, outcome.is_kept), (next, is_kept), "{response:?}");
    }
}

#[test]
fn responses_that_nobody_can_read_are_refused() {
    for response in [
        "SSH-2.0\r\n\r\n",
        "HTTP/2 200 OK\r\n\r\n",
        "HTTP/1.2 200 OK\r\n\r\n",
        "HTTP/1.1  200 OK\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 099 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX : a\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    ] {
        let outcome = answered(GET, response);
        assert_eq!((&*outcome.to_client, outcome.refusal), ("", Some(Refusal::BadGateway)), "{response:?}");
    }
}

#[test]
fn the_proxys_wish_for_credentials_is_not_the_clients_business() {
    let mut relay = RequestRelay::new(NAME);
    relay.feed(Side::Client, GET.as_bytes(), &mut vec![]).unwrap();
    relay.send(false, &mut |_, _, _| (), &mut vec![]).unwrap();
    let mut out = vec![];
    let response =
        b"HTTP/1.1 407 x\r\nProxy-Authenticate: Basic realm=x\r\nA: b\r\nproxy-authenticate: Digest\r\n\r\n";
    assert_eq!(relay.feed(Side::Proxy, response, &mut out), Err(Refusal::Unauthorized));
    assert_eq!((&*out, relay.challenges()), (&b""[..], &response[..]));
    assert_eq!(relay.status(), 0);
}

#[test]
fn a_request_is_taken_back_until_it_is_answered() {
    let sent = |request: &[u8]| {
        let mut relay = RequestRelay::new(NAME);
        let taken = relay.feed(Side::Client, request, &mut vec![]).unwrap();
        relay.send(false, &mut |_, _, _| (), &mut vec![]).unwrap();
        (relay, taken)
    };
    for (request, response, is_possible) in [
        (GET, "", true),
        (GET, "HTTP/1.1 407 x\r\nProxy-Authenticate: Basic\r\n\r\n", true),
        (POST, "HTTP/1.1 407 x\r\nProxy-Authenticate: Basic\r\n\r\n", true),
        (POST, "HTTP/1.1 100 x\r\n\r\nHTTP/1.1 407 x\r\nProxy-Authenticate: Basic\r\n\r\n", true),
        (GET, "HTTP/1.1 200 x\r\n", true),
        (GET, "HTTP/1.1 200 x\r\nContent-Length: 1\r\n\r\n", false),
    ] {
        let (mut relay, _) = sent(request.as_bytes());
        _ = relay.feed(Side::Proxy, response.as_bytes(), &mut vec![]);
        assert_eq!(relay.take_back(), is_possible, "{response:?}");
        if is_possible {
            let mut out = vec![];
            assert_eq!([relay.next(Side::Client), relay.next(Side::Proxy)], [Next::Request, Next::Wait]);
            relay.send(false, &mut |_, _, _| (), &mut out).unwrap();
            assert!(out.ends_with(b"\r\n\r\n"));
        }
        assert!(!relay.take_back() || is_possible);
    }
    // Its body begins anew.
    let (mut relay, _) = sent(POST.as_bytes());
    relay.passed(Side::Client, 9);
    assert_eq!(relay.next(Side::Client), Next::Wait);
    assert!(relay.take_back());
    relay.send(false, &mut |_, _, _| (), &mut vec![]).unwrap();
    assert_eq!(relay.next(Side::Client), Next::Run(9));
}

#[test]
fn a_body_is_long_if_it_may_be() {
    for (fields, is_long) in [
        ("", false),
        ("Content-Length: 9\r\n", false),
        ("Content-Length: 10\r\n", true),
        ("Transfer-Encoding: chunked\r\n", true),
    ] {
        let mut relay = RequestRelay::new(NAME);
        let request = format!("POST / HTTP/1.1\r\nHost: www.example.com\r\n{fields}\r\n");
        assert!(!relay.has_long_body(9));
        relay.feed(Side::Client, request.as_bytes(), &mut vec![]).unwrap();
        assert_eq!(relay.has_long_body(9), is_long, "{fields}");
    }
}

#[test]
fn an_upgrade_makes_a_tunnel() {
    let mut relay = RequestRelay::new(NAME);
    let (mut out, mut back) = (vec![], vec![]);
    let request =
        b"GET / HTTP/1.1\r\nHost: www.example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81";
    assert_eq!(relay.feed(Side::Client, request, &mut out), Ok(request.len() - 1));
    relay.send(false, &mut |_, _, _| (), &mut out).unwrap();
    assert_eq!(relay.next(Side::Client), Next::Wait);
    let response = b"HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: websocket\r\nX: y\r\n\r\n\x82";
    assert_eq!(relay.feed(Side::Proxy, response, &mut back), Ok(response.len() - 1));
    assert_eq!(
        str::from_utf8(&back),
        Ok("HTTP/1.1 101 Go\r\nX: y\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    );
    assert_eq!([relay.next(Side::Client), relay.next(Side::Proxy)], [Next::Tunnel; 2]);
    // Refused: it goes on as before.
    let refused = answered(
        str::from_utf8(&request[..request.len() - 1]).unwrap(),
        "HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n",
    );
    assert_eq!((refused.refusal, refused.next), (None, AGAIN));
}

#[test]
fn each_side_may_end_where_nothing_is_cut_off() {
    let began = |request: &str, response: &str| {
        let mut relay = RequestRelay::new(NAME);
        relay.feed(Side::Client, request.as_bytes(), &mut vec![]).unwrap();
        if relay.next(Side::Client) == Next::Request {
            relay.send(false, &mut |_, _, _| (), &mut vec![]).unwrap();
        }
        relay.feed(Side::Proxy, response.as_bytes(), &mut vec![]).unwrap();
        relay
    };
    let plain = "HTTP/1.1 200 OK\r\n\r\n";
    let length = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
    for (request, response, side, may_end, next) in [
        ("", "", Side::Client, true, END),
        ("GET", "", Side::Client, false, END),
        (POST, "", Side::Client, false, END),
        (GET, length, Side::Client, true, [Next::Wait, Next::Run(5)]),
        (GET, "", Side::Proxy, false, END),
        (GET, "HTTP/1.1 20", Side::Proxy, false, END),
        (GET, length, Side::Proxy, false, END),
        (GET, plain, Side::Proxy, true, END),
        (GET, "HTTP/1.1 204 No\r\n\r\n", Side::Proxy, true, AGAIN),
        (GET, "HTTP/1.1 204 No\r\n\r\n", Side::Client, true, END),
    ] {
        let mut relay = began(request, response);
        assert_eq!(relay.ended(side), may_end, "{request:?} {response:?} {side:?}");
        assert_eq!(
            [relay.next(Side::Client), relay.next(Side::Proxy)],
            next,
            "{request:?} {response:?} {side:?}"
        );
    }
    let mut relay = began(GET, length);
    relay.ended(Side::Client);
    relay.passed(Side::Proxy, 5);
    assert_eq!(relay.next(Side::Client), Next::End);
}

#[test]
fn requests_behind_one_another_get_their_responses_in_order() {
    let requests = [GET, POST, "123456789", HEAD, OLD].concat();
    let responses = "HTTP/1.1 200 A\r\nContent-Length: 1\r\n\r\naHTTP/1.1 200 B\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nb\r\n0\r\n\r\n\
                     HTTP/1.1 200 C\r\nContent-Length: 1\r\n\r\nHTTP/1.1 200 D\r\nContent-Length: 1\r\n\r\nd";
    let outcome = answered(&requests, responses);
    assert_eq!(outcome.refusal, None);
    assert_eq!(outcome.to_proxy.matches("http://www.example.com/ ").count(), 4);
    assert_eq!(outcome.to_client, responses.replace("\r\n\r\nd", "\r\nConnection: close\r\n\r\nd"));
    assert_eq!(outcome.next, END);
}

const PARTS: &[&str] = &[
    "GET / HTTP/1.1\r\n",
    "POST /a HTTP/1.0\r\n",
    "HEAD http://www.example.com/ HTTP/1.1\r\n",
    "Host: www.example.com\r\n",
    "Content-Length: 5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Connection: ",
    "close\r\n",
    "upgrade, x\r\nUpgrade: y\r\n",
    "HTTP/1.1 ",
    "HTTP/1.0 ",
    "200 OK\r\n",
    "100 \r\n",
    "101 \r\n",
    "204\r\n",
    "X: y\r\n",
    "\r\n",
    "\r\n\r\n",
    "\n",
    " ",
    "5\r\n",
    "hello",
    "0\r\n\r\n",
    "\0",
    ":",
];

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let parts = proptest::collection::vec(proptest::sample::select(PARTS), 0..25);
    parts.prop_map(|parts| parts.concat().into_bytes())
}

proptest! {
    #[test]
    fn no_cut_changes_what_any_bytes_mean(client in bytes(), proxy in bytes(), size in 1usize..40, is_true: bool) {
        for (target, start) in [(NAME, GET), (address(), "")] {
            let client = [start.as_bytes(), &client].concat();
            let whole = carry(target, is_true, &client, &proxy, usize::MAX);
            prop_assert_eq!(carry(target, is_true, &client, &proxy, size), whole);
        }
    }

    /// A reader that knows nothing but lines, and is none of ours, finds one message in what the proxy gets.
    #[test]
    fn a_request_is_one_message_to_any_reader(
        fields in proptest::collection::vec("[A-Za-z-]{1,9}:? ?[ -~\t]{0,20}[\r\n\0]?", 0..8),
        length in proptest::option::of(0usize..20),
    ) {
        let body = "GET / HTTP/1.1\r\n\r\nx";
        let length = length.map(|length| format!("Content-Length: {}\r\n", length.min(body.len())));
        let lines: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
        let request = format!("POST / HTTP/1.1\r\nHost: x\r\n{lines}{}\r\n{body}", length.clone().unwrap_or_default());
        let Ok(out) = sent(NAME, &request) else { return Ok(()) };
        let (head, rest) = out.split_once("\r\n\r\n").unwrap();
        prop_assert_eq!(head.matches("Host: ").count(), 1);
        prop_assert!(head.split("\r\n").skip(1).all(|line| line.contains(':') && !line.contains(['\r', '\n'])));
        let expected = head.split("\r\n").find_map(|line| line.strip_prefix("Content-Length: "));
        prop_assert_eq!(rest.len(), expected.map_or(0, |length| length.parse().unwrap()));
    }
}
