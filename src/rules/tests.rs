use std::string::String;
use std::time::Instant;
use std::vec::Vec;
use std::{eprintln, format, vec};

use proptest::collection::vec as list;
use proptest::prelude::*;

use super::*;
use crate::dns::Name;

/// A rule as the model has it: plain lists of domains, networks, ports and clients.
type Plain = (Vec<String>, Vec<IpNet>, Vec<(u16, u16)>, Vec<IpNet>, Action);

fn rule((domains, networks, ports, clients, action): &Plain) -> Rule {
    let (mut networks, mut clients) = (networks.clone(), clients.clone());
    IpNet::widest(&mut networks);
    IpNet::widest(&mut clients);
    let domains = Domains::new(domains).unwrap();
    Rule { domains, networks, ports: ports.clone(), clients, action: Some(*action) }
}

/// What one who reads the rules from the top would say.
fn model(rules: &[Plain], name: Option<&str>, address: IpAddr, port: u16, client: IpAddr) -> Option<Action> {
    let one = |address: IpAddr| IpNet::new(address, if address.is_ipv4() { 32 } else { 128 });
    let is_in = |nets: &[IpNet], address| nets.iter().any(|net| net.contains(one(address)));
    let is_named = |domain: &String, name: &str| match domain.strip_prefix('=') {
        Some(domain) => domain == name,
        None => domain == name || name.ends_with(&format!(".{domain}")),
    };
    let matching = rules.iter().find(|(domains, nets, ports, clients, _)| {
        let is_to = match name {
            Some(name) => domains.iter().any(|domain| is_named(domain, name)),
            None => is_in(nets, address),
        };
        (is_to || domains.is_empty() && nets.is_empty())
            && (ports.is_empty() || ports.iter().any(|range| range.0 <= port && port <= range.1))
            && (clients.is_empty() || is_in(clients, client))
    });
    matching.map(|rule| rule.4)
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
        client in some_address(),
    ) {
        let rules = Rules::new(plain.iter().map(rule).collect());
        let wire = name.as_deref().map(|name| Name::new(name).unwrap());
        let connection = Connection { name: wire.as_ref().map(Name::as_ref), address, port, client };
        let expected = model(&plain, name.as_deref(), address, port, client);
        prop_assert_eq!(rules.decide(connection), expected);
        if let Some(wire) = &wire && rules.is_direct(wire.as_ref()) {
            prop_assert_eq!(expected, Some(Action::Direct), "whoever asks, and whatever for");
        }
    }
}

#[test]
fn a_domain_is_direct_if_it_is_so_for_all() {
    let domain = || vec![String::from("a.example")];
    let is_direct = |rules: &[Plain]| {
        Rules::new(rules.iter().map(rule).collect()).is_direct(Name::new("x.a.example").unwrap().as_ref())
    };
    let client = || vec![IpNet::parse("10.0.0.7").unwrap()];
    let direct = (domain(), vec![], vec![], vec![], Action::Direct);
    assert!(is_direct(std::slice::from_ref(&direct)));
    assert!(!is_direct(&[(domain(), vec![], vec![(80, 80)], vec![], Action::Direct)]));
    assert!(is_direct(&[(domain(), vec![], vec![(80, 80)], vec![], Action::Direct), direct.clone()]));
    assert!(!is_direct(&[(vec![], vec![], vec![], client(), Action::Upstream(0)), direct.clone()]));
    assert!(is_direct(&[(vec![], client(), vec![], vec![], Action::Upstream(0)), direct]));
    assert!(!is_direct(&[(vec![], vec![], vec![], vec![], Action::Direct)]), "no domain");
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
        action: Some(Action::Direct),
    };
    let rules = Rules::new((0..1024).map(rule).collect());
    let name = Name::new("www.elsewhere.example").unwrap();
    for name in [Some(name.as_ref()), None] {
        let [address, client] = ["1.2.3.4", "192.168.1.7"].map(|text| text.parse().unwrap());
        let begun = Instant::now();
        for _ in 0..1000 {
            let connection = Connection { name, address, port: 443, client };
            assert_eq!(std::hint::black_box(&rules).decide(connection), None);
        }
        eprintln!("1024 rules, named {}: {:?}", name.is_some(), begun.elapsed() / 1000);
    }
    let big = Rules::new(vec![Rule { domains: set, action: Some(Action::Reject), ..Rule::default() }]);
    let begun = Instant::now();
    for _ in 0..1000 {
        assert!(!std::hint::black_box(&big).is_direct(name.as_ref()));
    }
    eprintln!("100000 domains: {:?}", begun.elapsed() / 1000);
}
