//! Any query and any reply to it: no panic, replies that are well-formed and fit, and a cache that says what the
//! upstream said.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tcp_over_http::dns::{
    Ask, BadQuery, Cache, Domains, FakeIp, Kind, Message, Pending, Query, Ranges, Rcode, Reply, local_reply,
};
use tcp_over_http::net::{Ipv4Net, Ipv6Net};
use tcp_over_http::time::Instant;

const NOW: Instant = Instant::from_millis(0);

// The length of the query in front, then the query, then the reply.
fuzz_target!(|bytes: &[u8]| {
    let Some((&length, rest)) = bytes.split_first() else {
        return;
    };
    let (message, reply) = rest.split_at(rest.len().min(length.into()));
    let query = match Query::parse(message) {
        Ok(query) => query,
        Err(BadQuery::Ignore) => {
            assert!(message.len() < 12 || message[2] & 0x80 != 0);
            return;
        }
        Err(BadQuery::Answer(answer)) => {
            assert!(Message::parse(&answer).is_some_and(|answer| answer.is_reply() || message[2] & 0x78 != 0));
            return;
        }
    };
    let check = |out: &[u8]| {
        assert!(out.len() <= 512);
        assert!(query.is_answered_by(out) && is_whole(out));
    };
    let mut replies = vec![
        Reply::Any,
        Reply::NoData(1),
        Reply::NoSuchName(1),
        Reply::Failed(Rcode::BadVers),
        Reply::Pointer("www.example", 1),
    ];
    replies.extend(local_reply(&query));
    for reply in &replies {
        let mut out = Vec::new();
        query.reply(reply, &mut out);
        check(&out);
    }
    let ranges = Ranges {
        v4: Ipv4Net { addr: [198, 18, 0, 0].into(), prefix: 15 },
        v6: Some(Ipv6Net { addr: [0xfd; 16].into(), prefix: 64 }),
    };
    let mut table = FakeIp::new(ranges, 2, [1, 2]);
    if let Some(reply) = table.answer(&query, None, NOW) {
        let mut out = Vec::new();
        query.reply(&reply, &mut out);
        check(&out);
    }
    if let Some(host) = query.name().host() {
        assert!(host.len() <= 253 && !host.contains("..") && host.contains('.'));
        let mut set = Domains::default();
        set.add(host.as_str(), false).expect("a host is a domain");
        set.seal();
        assert!(set.contains(query.name()));
    }

    let mut pending = Pending::new(1, 2);
    assert_eq!(pending.ask(&query, 7, 99, NOW), Ask::New(99));
    assert_eq!(pending.ask(&query, 8, 99, NOW), Ask::Joined);
    let mut encoded = Vec::new();
    query.encode(99, &mut encoded);
    let ours = Query::parse(&encoded).ok().expect("our own query is well-formed");
    assert!(ours.is_same(&query));

    // The query's question under the reply's header and records, so that many replies are to this query.
    let mut theirs = encoded[..encoded.len() - if encoded[11] == 1 { 11 } else { 0 }].to_vec();
    let Some((header, records)) = reply.split_at_checked(8) else {
        return;
    };
    theirs[2..4].copy_from_slice(&header[..2]);
    theirs[2] |= 0x80;
    theirs[6..12].copy_from_slice(&header[2..]);
    theirs.extend_from_slice(records);
    let is_answer = ours.is_answered_by(&theirs);
    assert_eq!(pending.answer(&theirs).is_some(), is_answer);
    for limit in [512, query.udp_limit(), 65_535] {
        let mut out = Vec::new();
        if query.relay(&theirs, limit, &mut out) {
            assert!(out.len() <= limit && is_answer && is_whole(&out));
            assert!(query.is_answered_by(&out));
        } else {
            assert!(out.is_empty());
        }
    }
    let mut cache = Cache::new(65_536);
    cache.put(&query, &theirs, NOW);
    assert!(cache.count() <= 1);
    let mut last = None;
    for ms in [0, 1, 900, 5000, 100_000, 86_400_000] {
        let mut out = Vec::new();
        if !cache.get(&query, 65_535, &mut out, NOW.plus(ms)) {
            assert!(out.is_empty());
            last = Some(vec![]);
            continue;
        }
        assert!(is_whole(&out));
        let ttls: Vec<u32> = ttls(&out);
        if let Some(last) = last.replace(ttls.clone()) {
            assert!(last.iter().zip(&ttls).all(|(last, ttl)| ttl <= last), "TTLs do not grow");
            assert_eq!(last.len(), ttls.len(), "what has expired does not come back");
        }
    }
});

fn is_whole(message: &[u8]) -> bool {
    Message::parse(message).is_some_and(|message| message.answers().all(|record| record.is_some()))
}

fn ttls(message: &[u8]) -> Vec<u32> {
    let message = Message::parse(message).expect("it is whole");
    let records = message.answers().flatten().filter(|record| record.kind != Kind::OPT);
    records.map(|record| record.ttl).collect()
}
