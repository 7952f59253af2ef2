//! The examples of RFC 7616 section 3.9.1 and RFC 2617 section 3.5; what they leave out, as Python's hashlib has it.

use proptest::prelude::*;
use std::format;
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

use super::*;

const RFC_7616: &str = "realm=\"http-auth@example.org\", qop=\"auth, auth-int\", \
    nonce=\"7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v\", opaque=\"FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS\"";
const RFC_2617: &str = "realm=\"testrealm@host.com\", nonce=\"dcd98b7102dd2f0e8b11d0f600bfb0c093\"";

fn challenge(parameters: &str) -> Challenge {
    offer(&format!("Digest {parameters}")).digest.unwrap()
}

fn offer(values: &str) -> Offer {
    let lines = values.split('\n').map(|value| format!("\r\nProxy-Authenticate: {value}"));
    Offer::read(lines.collect::<String>().as_bytes())
}

/// An answer's parameters, and the response among them.
fn answer(
    challenge: &mut Challenge,
    user: &str,
    password: &str,
    request: (&str, &str),
    cnonce: &str,
) -> (String, String) {
    let mut out = vec![];
    challenge.set_cnonce(cnonce.into());
    challenge.answer(user, password, request.0.as_bytes(), request.1.as_bytes(), &mut out);
    let text = String::from_utf8(out).unwrap();
    let (_, rest) = text.split_once("response=\"").unwrap();
    let response = rest.split('"').next().unwrap().to_string();
    (text, response)
}

#[test]
fn answers_are_those_of_the_rfcs() {
    let index = ("GET", "/dir/index.html");
    let cnonce = "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ";
    for (algorithm, response) in [
        ("", "8ca523f5e9506fed4657c9700eebdbec"),
        (", algorithm=MD5", "8ca523f5e9506fed4657c9700eebdbec"),
        (", algorithm=md5-Sess", "e783283f46242139c486a698fec7211d"),
        (", algorithm=\"SHA-256\"", "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
        (", algorithm=SHA-256-sess", "2fd51b3a77ad75bad6afad6003e818d767133c46d9e2749e7f5232ae1ea3efd7"),
    ] {
        let mut challenge = challenge(&format!("{RFC_7616}{algorithm}"));
        assert_eq!(
            answer(&mut challenge, "Mufasa", "Circle of Life", index, cnonce).1,
            response,
            "{algorithm}"
        );
    }
    for (qop, response) in [
        (", qop=\"auth,auth-int\"", "6629fae49393a05397450978507c4ef1"),
        ("", "670fd8c2df070c60b045671b8b24ff02"),
    ] {
        let mut challenge = challenge(&format!("{RFC_2617}{qop}"));
        assert_eq!(
            answer(&mut challenge, "Mufasa", "Circle Of Life", index, "0a4f113b").1,
            response,
            "{qop}"
        );
    }
}

#[test]
fn answers_are_written_as_proxies_read_them() {
    let connect = ("CONNECT", "h:443");
    let mut full = challenge("realm=\"r\\\"x, y\", nonce=\"n\", opaque=\"\", qop=auth, algorithm=MD5");
    let (text, _) = answer(&mut full, "d\\u\"\u{fc}", "p:\"\u{e9}", connect, "c");
    assert_eq!(
        text,
        "Digest username=\"d\\\\u\\\"\u{fc}\", realm=\"r\\\"x, y\", nonce=\"n\", uri=\"h:443\", \
         response=\"f62b71f376028a763d6f64e70295e930\", algorithm=MD5, opaque=\"\", qop=auth, nc=00000001, cnonce=\"c\""
    );
    let mut plain = challenge("realm=r, nonce=n, algorithm=MD5-sess");
    assert_eq!(
        answer(&mut plain, "u", "p", connect, "c").0,
        "Digest username=\"u\", realm=\"r\", nonce=\"n\", uri=\"h:443\", \
         response=\"4bd8e98756b4da68b5b5d87485da9ae9\", algorithm=MD5-sess, cnonce=\"c\""
    );
}

#[test]
fn a_nonce_is_counted() {
    let mut challenge = challenge("realm=r, nonce=n, algorithm=MD5-sess, qop=auth");
    let mut next = || answer(&mut challenge, "u", "p", ("CONNECT", "h:443"), "c");
    let (first, response) = next();
    assert_eq!((first.contains("nc=00000001,"), &*response), (true, "7214ee54ef3591e8d8c1e3e968a6f4d1"));
    let (second, response) = next();
    assert_eq!((second.contains("nc=00000002,"), &*response), (true, "6f202a02ccf62798e198670ec08a2884"));
}

#[test]
fn challenges_are_found_in_any_order_and_any_number_of_lines() {
    let digest = "Digest realm=\"a, Basic b\", nonce=\"n\\\", Basic\"";
    for (values, basic, nonce, other) in [
        ("", false, None, false),
        ("Basic realm=\"x\"", true, None, false),
        ("BASIC", true, None, false),
        (" \t basic\trealm=x", true, None, false),
        ("Negotiate, NTLM,,Basic,X", true, None, false),
        ("NTLM\nBasic realm=x", true, None, false),
        ("Negotiate abc==, Basic realm=x", true, None, false),
        ("Digest realm=basic", false, None, true),
        ("Digest a=b, basic=c", false, None, true),
        ("Basically", false, None, false),
        ("X basic=\"Basic\", Basic", true, None, false),
        (digest, false, Some("n\\\", Basic"), false),
        (&format!("{digest}, Basic realm=\"b\""), true, Some("n\\\", Basic"), false),
        (&format!("Basic realm=\"b\", {digest}"), true, Some("n\\\", Basic"), false),
        ("digest  nonce = n , realm= \"r\" ,qop = \" auth-int ,AUTH\"", false, Some("n"), false),
        // The first that can be answered.
        (
            "Digest realm=r, nonce=1, algorithm=SHA-512-256\nDigest realm=r, nonce=2\nDigest realm=r, nonce=3",
            false,
            Some("2"),
            true,
        ),
        ("Digest realm=r, nonce=1, algorithm=SHA-256, Digest realm=r, nonce=2", false, Some("1"), false),
        // None can.
        ("Digest realm=r, nonce=n, qop=auth-int", false, None, true),
        ("Digest realm=r, nonce=n, qop=\"\"", false, None, true),
        ("Digest nonce=n", false, None, true),
        ("Digest realm=r", false, None, true),
        ("Digest", false, None, true),
        ("Digest realm=\"r, nonce=n, Basic", false, None, true),
        ("Digest realm=\"\u{fffd}", false, None, true),
        ("Digest realm=r\\, nonce=n", false, None, true),
        ("Digest realm=\"a\"b\", nonce=n", false, None, true),
        ("Digest realm=\"\r\", nonce=n", false, None, true),
    ] {
        let offer = offer(values);
        let found = offer.digest.as_ref().map(|challenge| &*challenge.nonce);
        assert_eq!((offer.basic, found, offer.other_digest), (basic, nonce, other), "{values:?}");
    }
    assert_eq!(
        Offer::read(b"Proxy-Authenticate: Digest realm=\"\xff\", nonce=n"),
        Offer::default(),
        "nobody could send it back"
    );
}

proptest! {
    /// Whatever a proxy sends, no answer has a line's end, or an odd number of quotes.
    #[test]
    fn no_challenge_breaks_a_request_apart(
        values in "(Digest |Basic )?((realm|nonce|opaque|qop|algorithm|stale) ?= ?\"?([ -~\t\r]|\\\\|\"){0,9}\"?,? ?){0,6}",
        more in "\\PC{0,30}",
    ) {
        if let Some(mut challenge) = offer(&format!("{values}{more}")).digest {
            let (text, _) = answer(&mut challenge, "u\"", "p", ("CONNECT", "h:1"), "c");
            prop_assert!(!text.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t'), "{text:?}");
            prop_assert_eq!(unescaped_quotes(&text) % 2, 0, "{}", text);
        }
    }
}

fn unescaped_quotes(text: &str) -> usize {
    let parts: Vec<&str> = text.split("\\\\").collect();
    parts.iter().map(|part| part.matches('"').count() - part.matches("\\\"").count()).sum()
}
