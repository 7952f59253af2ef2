use std::string::String;
use std::time::Instant;
use std::vec::Vec;
use std::{eprintln, format, vec};

use proptest::collection::vec as list;
use proptest::prelude::*;

use super::*;
use crate::dns::Name;

/// A rule as the model has it: plain lists of domains, networks, ports, clients, and the last bytes of MAC addresses and
/// of devices' names.
type Plain = (Vec<String>, Vec<IpNet>, Vec<(u16, u16)>, Vec<IpNet>, Vec<u8>, Vec<u8>, Action);

fn rule((domains, networks, ports, clients, macs, devices, action): &Plain) -> Rule {
    let (mut networks, mut clients) = (networks.clone(), clients.clone());
    IpNet::widest(&mut networks);
    IpNet::widest(&mut clients);
    Rule {
        domains: Domains::new(domains).unwrap(),
        networks,
        ports: ports.clone(),
        clients,
        macs: macs.iter().map(|&last| mac(last)).collect(),
        devices: devices.iter().map(|&last| device(last)).collect(),
        action: *action,
    }
}

fn rules_of(list: Vec<Rule>) -> Rules {
    let mut rules = Rules::default();
    list.into_iter().for_each(|rule| rules.push(rule, false));
    rules
}

fn mac(last: u8) -> String {
    format!("02:00:00:00:00:0{last}")
}

fn device(last: u8) -> String {
    format!("lan{last}")
}

/// Who a connection is from.
type From = (IpAddr, Option<u8>, Option<u8>);

/// What one who reads the rules from the top would say.
fn model(rules: &[Plain], name: Option<&str>, address: IpAddr, port: u16, from: From) -> Option<Action> {
    let (client, mac, device) = from;
    let one = |address: IpAddr| IpNet::new(address, if address.is_ipv4() { 32 } else { 128 });
    let is_in = |nets: &[IpNet], address| nets.iter().any(|net| net.contains(one(address)));
    let is_named = |domain: &String, name: &str| match domain.strip_prefix('=') {
        Some(domain) => domain == name,
        None => domain == name || name.ends_with(&format!(".{domain}")),
    };
    let matching = rules.iter().find(|(domains, nets, ports, clients, macs, devices, _)| {
        let is_to = match name {
            Some(name) => domains.iter().any(|domain| is_named(domain, name)),
            None => is_in(nets, address),
        };
        (is_to || domains.is_empty() && nets.is_empty())
            && (ports.is_empty() || ports.iter().any(|range| range.0 <= port && port <= range.1))
            && (clients.is_empty() && macs.is_empty()
                || is_in(clients, client)
                || macs.iter().any(|it| Some(*it) == mac))
            && (devices.is_empty() || devices.iter().any(|it| Some(*it) == device))
    });
    matching.map(|rule| rule.6)
}

fn some_address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0u32..16).prop_map(|bits| IpAddr::V4((bits << 28 | bits).into())),
        (0u128..16).prop_map(|bits| IpAddr::V6((bits << 124 | bits).into())),
    ]
}

fn some_net() -> impl Strategy<Value = IpNet> {
    (some_address(), 0u8..=8).prop_map(|(address, prefix)| match IpNet::new(address, prefix) {
        IpNet::V4(net) => IpNet::new(net.network().into(), prefix),
        IpNet::V6(net) => IpNet::new(net.network().into(), prefix),
    })
}

fn some_rule() -> impl Strategy<Value = Plain> {
    let action = prop_oneof![Just(Action::Direct), Just(Action::Reject), Just(Action::Upstream(1))];
    let range = (1u16..6, 0u16..3).prop_map(|(first, more)| (first, first + more));
    (
        list("=?[ab](\\.[ab]){0,2}", 0..3),
        list(some_net(), 0..3),
        list(range, 0..2),
        list(some_net(), 0..3),
        list(0u8..3, 0..2),
        list(0u8..3, 0..2),
        action,
    )
}

proptest! {
    #[test]
    fn the_first_that_matches_wins(
        plain in list(some_rule(), 0..6),
        name in proptest::option::of("[ab](\\.[ab]){0,3}"),
        address in some_address(),
        port in 1u16..8,
        from in (some_address(), proptest::option::of(0u8..3), proptest::option::of(0u8..3)),
    ) {
        let rules = rules_of(plain.iter().map(rule).collect());
        let wire = name.as_deref().map(|name| Name::new(name).unwrap());
        let neighbour = Neighbour { mac: from.1.map(mac), device: from.2.map(device) };
        let name_ref = wire.as_ref().map(Name::as_ref);
        let connection = Connection { name: name_ref, address, port, client: from.0, neighbour: &neighbour };
        let expected = model(&plain, name.as_deref(), address, port, from);
        prop_assert_eq!(rules.decide(connection), expected);
        if let Some(wire) = &wire && rules.is_direct(wire.as_ref()) {
            prop_assert_eq!(expected, Some(Action::Direct), "whoever asks, and whatever for");
            rules.learn(wire.as_ref(), address);
            prop_assert_eq!(rules.decide(Connection { name: None, ..connection }), expected);
        }
    }
}

#[test]
fn a_domain_is_direct_if_it_is_so_for_all() {
    let domain = || Domains::new(&[String::from("a.example")]).unwrap();
    let is_direct =
        |rules: &[Rule]| rules_of(rules.to_vec()).is_direct(Name::new("x.a.example").unwrap().as_ref());
    let clients = || vec![IpNet::parse("10.0.0.7").unwrap()];
    let direct = Rule { domains: domain(), action: Action::Direct, ..Rule::default() };
    let of_port = Rule { ports: vec![(80, 80)], ..direct.clone() };
    assert!(is_direct(std::slice::from_ref(&direct)));
    assert!(!is_direct(std::slice::from_ref(&of_port)));
    assert!(!is_direct(&[Rule { macs: vec![mac(1)], ..direct.clone() }]));
    assert!(!is_direct(&[Rule { devices: vec![device(1)], ..direct.clone() }]));
    assert!(is_direct(&[of_port, direct.clone()]));
    let other = Rule { clients: clients(), action: Action::Upstream(0), ..Rule::default() };
    assert!(!is_direct(&[other, direct.clone()]));
    let other = Rule { networks: clients(), action: Action::Upstream(0), ..Rule::default() };
    assert!(is_direct(&[other, direct]));
    assert!(!is_direct(&[Rule { action: Action::Direct, ..Rule::default() }]), "no domain");
}

#[test]
fn addresses_of_direct_names_are_learnt() {
    let of = |domain: &str| {
        let domains = Domains::new(&[String::from(domain)]).unwrap();
        rules_of(vec![Rule { domains, action: Action::Direct, ..Rule::default() }])
    };
    let old = of("example");
    let name = |text: &str| Name::new(text).unwrap();
    let address = |number: u32| IpAddr::V4(number.into());
    for number in 0..=MAX_LEARNT as u32 {
        old.learn(name("www.a.example").as_ref(), address(number));
    }
    old.learn(name("www.b.example").as_ref(), address(1));
    assert_eq!(old.learnt().len(), MAX_LEARNT);
    assert!(!old.learnt().contains(&address(0)), "the oldest makes room");
    assert_eq!(old.learnt().last(), Some(&address(1)), "known, and the latest by now");
    let new = of("b.example");
    new.inherit(&old);
    assert_eq!(new.learnt(), [address(1)], "the other name is not direct any more");
    assert!(old == of("example"), "what is learnt is no other rule");
}

/// `cargo test --release measure_ -- --ignored --nocapture`
#[test]
#[ignore = "measures"]
fn measure_rules() {
    let mut set = Domains::default();
    let mut text = 0;
    let begun = Instant::now();
    for index in 0..100_000u32 {
        let domain =
            format!("{}{index}.example{}.com", "site-of-".get(..index as usize % 9).unwrap(), index % 977);
        text += domain.len();
        set.insert(&domain).unwrap();
    }
    set.seal();
    eprintln!("100000 domains, {text} bytes of text: {} bytes, built in {:?}", set.size(), begun.elapsed());
    let rule = |index: u32| Rule {
        domains: Domains::new(&[format!("d{index}.example")]).unwrap(),
        networks: vec![IpNet::new(IpAddr::V4((10 << 24 | index << 8).into()), 24)],
        ports: vec![(443, 443)],
        clients: vec![IpNet::parse("192.168.0.0/16").unwrap()],
        action: Action::Direct,
        ..Rule::default()
    };
    let rules = rules_of((0..1024).map(rule).collect());
    let name = Name::new("www.elsewhere.example").unwrap();
    for name in [Some(name.as_ref()), None] {
        let [address, client] = ["1.2.3.4", "192.168.1.7"].map(|text| text.parse().unwrap());
        let begun = Instant::now();
        for _ in 0..1000 {
            let neighbour = &Neighbour::default();
            let connection = Connection { name, address, port: 443, client, neighbour };
            assert_eq!(std::hint::black_box(&rules).decide(connection), None);
        }
        eprintln!("1024 rules, named {}: {:?}", name.is_some(), begun.elapsed() / 1000);
    }
    let big = rules_of(vec![Rule { domains: set, action: Action::Reject, ..Rule::default() }]);
    let begun = Instant::now();
    for _ in 0..1000 {
        assert!(!std::hint::black_box(&big).is_direct(name.as_ref()));
    }
    eprintln!("100000 domains: {:?}", begun.elapsed() / 1000);
}
