//! Any message: no panic, bounded names, and an answer only for the question asked.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tcp_over_http::dns::{Kind, MAX_ADDRESSES, Message, Name, NameRef, Query};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = str::from_utf8(bytes)
        && let Ok(name) = Name::new(text)
    {
        let message = Query::compose(1, &name, Kind::A);
        let question = Message::parse(&message)
            .and_then(|m| m.question())
            .expect("our own query is well-formed");
        assert!(question.name == name.as_ref());
    }
    let Some(message) = Message::parse(bytes) else {
        return;
    };
    for record in message.answers().flatten() {
        check(record.name);
        record.cname().map(check);
        if let Some(ip) = record.ip() {
            assert_eq!(record.data.len(), if ip.is_ipv4() { 4 } else { 16 });
        }
    }
    let Some(question) = message.question() else {
        return;
    };
    check(question.name);
    let Ok(name) = Name::new(&question.name.to_string()) else {
        return;
    };
    for kind in [Kind::A, Kind::AAAA] {
        let answer = |id| {
            let query = Query::compose(id, &name, kind);
            let query = Query::parse(&query).expect("our own query is well-formed");
            query.answer(bytes)
        };
        if let Ok(answer) = answer(message.id()) {
            assert!(message.is_reply() && message.rcode() == 0 && question.kind == kind);
            assert!(answer.addresses.len() <= MAX_ADDRESSES);
            assert!(
                answer
                    .addresses
                    .iter()
                    .all(|ip| ip.is_ipv4() == (kind == Kind::A))
            );
        }
        assert!(answer(message.id() ^ 1).is_err());
    }
});

fn check(name: NameRef<'_>) {
    let length: usize = name.labels().map(|label| 1 + label.len()).sum();
    assert!(length < 255);
    assert!(name.labels().all(|label| (1..=63).contains(&label.len())));
    let _ = name.to_string();
}
