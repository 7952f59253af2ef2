//! Whether options contradict each other.

use alloc::format;

use super::error::{Fault, Origin};
use super::given::Given;
use super::{Config, PathChoice, VARIABLE};
use crate::net::IpNet;
use crate::upstream::choice::MAX_PROXIES;

/// The least time between two probes of one proxy, in ms.
const MIN_PROBE_INTERVAL: u32 = 30_000;

/// Checks options against each other. A default gives way to a given value.
pub fn check(main: &Given, config: &mut Config) -> Result<(), Fault> {
    if config.upstreams.is_empty() {
        return Err((Origin::WholeFile, format!("no upstream, and none from --upstream or {VARIABLE}")));
    }
    check_upstreams(main, config)?;
    if config.mark == 0 && config.captures() {
        return Err((main.origin("mark"), "mark: upstream connections would be captured without one".into()));
    }
    match config.path {
        PathChoice::Forward if config.mark == 0 => {
            return Err((main.origin("path"), "path: 'forward' needs a mark".into()));
        }
        PathChoice::Auto if config.mark == 0 => config.path = PathChoice::Relay,
        _ => {}
    }
    let (flows, dials) = (config.max_flows, config.max_dials);
    config.max_dials = at_most(main, "max_dials", dials, "max_flows", flows)?;
    let (dials, client) = (config.max_dials, config.max_dials_per_client);
    config.max_dials_per_client = at_most(main, "max_dials_per_client", client, "max_dials", dials)?;
    check_dns(main, config)
}

fn check_upstreams(main: &Given, config: &Config) -> Result<(), Fault> {
    let upstreams = &config.upstreams;
    if upstreams.len() > MAX_PROXIES {
        return Err((Origin::Everywhere, format!("more than {MAX_PROXIES} upstreams")));
    }
    for (index, upstream) in upstreams.iter().enumerate() {
        if upstreams.iter().skip(index + 1).any(|other| other.name == upstream.name) {
            return Err((
                main.origin("upstream"),
                format!("two upstreams have the name '{}'", upstream.name),
            ));
        }
    }
    match config.choice.probe_interval {
        1..MIN_PROBE_INTERVAL => {
            Err((main.origin("probe_interval"), "probe_interval: less than 30 seconds (0: none)".into()))
        }
        _ => Ok(()),
    }
}

fn check_dns(main: &Given, config: &mut Config) -> Result<(), Fault> {
    for range in config.dns.fake_ranges() {
        let (option, other) = match range {
            IpNet::V4(_) => ("fakeip_range", "address"),
            IpNet::V6(_) => ("fakeip_range6", "address6"),
        };
        if config.own().any(|own| own.overlaps(range)) {
            return Err((main.origin(option), format!("{option}: overlaps {other}")));
        }
    }
    let dns = &mut config.dns;
    let most = u16::try_from((1u32 << (32 - dns.fakeip_range.prefix)) - 2).unwrap_or(u16::MAX);
    dns.fakeip_names = at_most(main, "fakeip_names", dns.fakeip_names, "fakeip_range", most)?;
    Ok(())
}

/// Checks a value against that of another option.
fn at_most(
    main: &Given,
    option: &'static str,
    value: u16,
    limit: &'static str,
    most: u16,
) -> Result<u16, Fault> {
    match main.origin(option) {
        Origin::Default => Ok(value.min(most)),
        _ if value <= most => Ok(value),
        origin => Err((origin, format!("{option}: more than {limit}"))),
    }
}
