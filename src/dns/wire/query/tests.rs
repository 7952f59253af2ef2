use super::super::edns::DO;
use super::*;
use crate::dns::Reply;
use crate::dns::wire::fixture::{Fields, SELF, query, reply};
use proptest::prelude::*;
use std::vec;

const OK: u16 = QR | RA;

#[test]
fn queries_are_read() {
    let bytes = query(7, RD, "Www.example", Kind::AAAA, Some((4096, 0, true)));
    let parsed = Query::parse(&bytes).unwrap();
    assert!(parsed.name() == Name::new("www.EXAMPLE").unwrap().as_ref());
    assert_eq!((parsed.kind(), parsed.is_internet()), (Kind::AAAA, true));
    assert_eq!(parsed.edns(), Some(Edns { size: 4096, version: 0, dnssec_ok: true }));
    for (size, limit) in [(0, 512), (600, 600), (4096, 1232)] {
        let bytes = query(7, RD, "x", Kind::A, Some((size, 0, true)));
        assert_eq!(Query::parse(&bytes).unwrap().udp_limit(), limit);
    }
    let bytes = query(7, RD, "x", Kind::A, None);
    let parsed = Query::parse(&bytes).unwrap();
    assert_eq!((parsed.udp_limit(), parsed.edns()), (512, None));
}

#[test]
fn what_is_no_query_is_refused_or_ignored() {
    let outcome = |bytes: &[u8]| Query::parse(bytes).err();
    let answer = |high, low| Some(BadQuery::Answer([0, 7, high, low, 0, 0, 0, 0, 0, 0, 0, 0]));
    let good = query(7, RD, "www.example", Kind::A, Some((512, 0, false)));
    assert_eq!(outcome(&good), None);
    assert_eq!(outcome(&good[..11]), Some(BadQuery::Ignore));
    assert_eq!(outcome(&query(7, QR, "x", Kind::A, None)), Some(BadQuery::Ignore));
    assert_eq!(outcome(&query(7, 5 << 11 | RD, "x", Kind::A, None)), answer(0xa9, 0x84), "update");
    for end in 12..good.len() {
        assert_eq!(outcome(&good[..end]), answer(0x81, 0x81), "cut at {end}");
    }
    let mut twice = query(7, RD, "www.example", Kind::A, Some((512, 0, false)));
    twice[11] = 2;
    twice.extend_from_slice(b"\0\0\x29\x10\0\0\0\0\0\0\0");
    assert_eq!(outcome(&twice), answer(0x81, 0x81));
    let mut none = good.clone();
    (none[5], none[11]) = (0, 0);
    assert_eq!(outcome(&none[..12]), answer(0x81, 0x81));
    let compressed = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\xc0\x04\0\x01\0\x01";
    assert_eq!(outcome(compressed), answer(0x81, 0x81));
}

#[test]
fn queries_for_upstreams_name_no_client() {
    let encoded = |bytes: &[u8]| {
        let mut out = vec![];
        Query::parse(bytes).unwrap().encode(0x4242, &mut out);
        out
    };
    let bytes = query(7, 0, "WwW.example", Kind::A, Some((512, 0, false)));
    assert_eq!(encoded(&bytes), query(0x4242, RD | AD, "www.example", Kind::A, None));
    let bytes = query(7, RD | CD | AD | 0x0400, "A.example", Kind(0x4142), Some((512, 0, true)));
    let mut expected = query(0x4242, RD | CD | AD, "a.example", Kind(0x4142), None);
    expected[11] = 1;
    expected.extend_from_slice(b"\0\0\x29\x04\xd0\0\0\x80\0\0\0");
    assert_eq!(encoded(&expected), expected);
    assert_eq!(encoded(&bytes), expected);
}

#[test]
fn equal_questions_share_a_reply() {
    let original = query(7, RD, "www.example", Kind::A, Some((512, 0, false)));
    let same = |bytes: &[u8]| {
        let parsed = Query::parse(bytes).unwrap();
        parsed.is_same(&Query::parse(&original).unwrap())
    };
    assert!(same(&query(8, 0, "WWW.example", Kind::A, None)));
    for other in [
        query(7, RD, "www.example.", Kind::AAAA, None),
        query(7, RD, "www.example.net", Kind::A, None),
        query(7, RD | CD, "www.example", Kind::A, None),
        query(7, RD, "www.example", Kind::A, Some((512, 0, true))),
    ] {
        assert!(!same(&other));
    }
}

#[test]
fn replies_become_the_clients() {
    let bytes = query(7, RD, "WWW.Example", Kind::A, Some((600, 0, false)));
    let parsed = Query::parse(&bytes).unwrap();
    let record: Fields<'_> = (SELF, Kind::A, 9, &[192, 0, 2, 1]);
    let upstream = query(99, RD, "www.example", Kind::A, None);
    let mut theirs = reply(&upstream, OK | 0x0400 | AD | 0x0040, [&[record], &[], &[]]);
    let is_answered = |id, theirs: &[u8]| {
        let sent = query(id, RD, "www.example", Kind::A, None);
        Query::parse(&sent).unwrap().is_answered_by(theirs)
    };
    assert!(is_answered(99, &theirs) && !is_answered(98, &theirs));
    let mut expected = reply(&bytes, OK | RD | 0x0400, [&[record], &[], &[(b"\0", Kind::OPT, 0, b"")]]);
    let length = expected.len();
    expected[length - 8..length - 6].copy_from_slice(&1232u16.to_be_bytes());
    let relayed = |theirs: &[u8], limit| {
        let mut out = b"..".to_vec();
        parsed.relay(theirs, limit, &mut out).then(|| out.split_off(2))
    };
    assert_eq!(relayed(&theirs, length), Some(expected.clone()));
    theirs.extend_from_slice(b"garbage");
    assert_eq!(relayed(&theirs, length), Some(expected));

    let mut truncated = reply(&bytes, OK | RD | TC | 0x0400, [&[], &[], &[(b"\0", Kind::OPT, 0, b"")]]);
    let end = truncated.len();
    truncated[end - 8..end - 6].copy_from_slice(&1232u16.to_be_bytes());
    assert_eq!(relayed(&theirs, length - 1), Some(truncated.clone()));
    theirs[2] |= 0x02;
    assert_eq!(relayed(&theirs[..theirs.len() - 10], 600), Some(truncated));
    theirs[2] &= !0x02;
    assert_eq!(relayed(&theirs[..theirs.len() - 10], 600), None, "malformed");
    assert_eq!(relayed(&upstream, 600), None, "no reply");
    let other = reply(&query(99, RD, "xxx.example", Kind::A, None), OK, [&[], &[], &[]]);
    assert!(relayed(&other, 600).is_none() && !is_answered(99, &other));
    let bare = b"\0\x63\x80\x01\0\0\0\0\0\0\0\0";
    assert!(is_answered(99, bare) && relayed(bare, 600).is_none());
}

#[test]
fn security_is_for_those_who_ask() {
    let record: Fields<'_> = (SELF, Kind::A, 9, &[192, 0, 2, 1]);
    let opt: Fields<'_> = (b"\0", Kind::OPT, DO, b"");
    for (flags, dnssec_ok, expected) in
        [(RD, false, RD), (RD | AD, false, RD | AD), (RD | CD, true, RD | CD | AD)]
    {
        let bytes = query(7, flags, "www.example", Kind::A, Some((600, 0, dnssec_ok)));
        let parsed = Query::parse(&bytes).unwrap();
        let mut out = vec![];
        let theirs = reply(&bytes, OK | AD, [&[record], &[], &[opt]]);
        assert!(parsed.relay(&theirs, 600, &mut out));
        let relayed = Message::parse(&out).unwrap();
        assert_eq!(relayed.flags(), OK | expected);
        assert_eq!((relayed.counts()[2], out.len()), (1, theirs.len()), "one OPT is enough");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_survived(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), keep in 0usize..60) {
        let start = query(7, RD, "www.example", Kind::A, Some((512, 0, true)));
        let keep = keep.min(bytes.len()).min(start.len());
        bytes[..keep].copy_from_slice(&start[..keep]);
        if let Ok(parsed) = Query::parse(&bytes) {
            let mut out = vec![];
            parsed.reply(&Reply::NoSuchName(1), &mut out);
            prop_assert!(out.len() <= MIN_DATAGRAM && parsed.is_answered_by(&out));
            prop_assert!(extent(&Message::parse(&out).unwrap()).is_some());
        }
        let parsed = Query::parse(&start).unwrap();
        bytes.iter_mut().skip(2).take(1).for_each(|flags| *flags |= 0x80);
        let mut out = vec![];
        if parsed.relay(&bytes, MIN_DATAGRAM, &mut out) {
            prop_assert!(out.len() <= MIN_DATAGRAM);
            prop_assert!(extent(&Message::parse(&out).unwrap()).is_some());
        } else {
            prop_assert!(out.is_empty());
        }
    }
}

#[test]
fn letters_of_random_case_come_back() {
    let mut bytes = query(7, RD, "w1-w.Example", Kind::AAAA, Some((4096, 0, true)));
    let before = bytes.clone();
    let mut bits = [0xff; 32];
    bits[0] = 0b1111_0101;
    Query::mix_case(&mut bytes, &bits);
    assert_eq!(&bytes[12..26], b"\x04w1-W\x07EXAMPLE\0");
    assert_eq!((&bytes[..12], &bytes[26..]), (&before[..12], &before[26..]));
    let sent = Query::parse(&bytes).unwrap();
    assert!(sent.name() == Query::parse(&before).unwrap().name());
    let [same, other] = [&bytes, &before].map(|query| reply(query, OK, [&[], &[], &[]]));
    assert_eq!([&same, &other].map(|reply| sent.is_echoed_by(reply)), [true, false]);
    assert_eq!([&same, &other].map(|reply| sent.is_answered_by(reply)), [true, true]);
    let bare = [&bytes[..2], &[0x81, 0x82, 0, 0, 0, 0, 0, 0, 0, 0]].concat();
    assert_eq!((sent.is_echoed_by(&bare), sent.is_answered_by(&bare)), (false, true));
    Query::mix_case(&mut [1, 2, 3], &bits);
}
