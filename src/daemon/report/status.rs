//! The daemon's reports about itself: status, proxies and their last changes, clients.

use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tcp_over_http::capture::Path;
use tcp_over_http::capture::conntrack::Entry;
use tcp_over_http::config::Config;
use tcp_over_http::flow::State;
use tcp_over_http::rewrite;
use tcp_over_http::tally::Tally;
use tcp_over_http::upstream::health;

use crate::gateway::Gateway;
use crate::pause::EVERYBODY;
use crate::relay::Moved;
use crate::report::document::{Document, Layout};
use crate::upstream::stats::Stats;

/// The status of the daemon.
pub fn status(gateway: &Gateway, config: &Config) -> Document {
    let rewriter = gateway.rewriter().borrow();
    let counters = rewriter.counters();
    let totals = gateway.totals();
    let mut status = Document::default();
    status.text("version", env!("CARGO_PKG_VERSION").to_owned());
    status.number("uptime", gateway.clock().uptime().as_secs());
    status.text("path", gateway.path().to_string());
    status.flag("draining", rewriter.is_draining());

    status.subject("flows");
    status.number("max", config.max_flows.into());
    let states = [
        ("held", State::Held),
        ("opening", State::Opening),
        ("live", State::Live),
        ("closing", State::Closing),
    ];
    for (name, state) in states {
        status.number(name, rewriter.count(state).into());
    }
    status.number("opened", counters.flows);
    status.number("forwarded", totals.forwarded);
    status.number("refused", totals.refused);
    status.number("yielded", totals.yielded);
    status.number("looped", totals.looped);
    status.number("from_lan", totals.from_lan);

    let entries = gateway.forwarded();
    if gateway.path() == Path::Forward {
        let mut moved = totals.ended;
        entries.iter().for_each(|(_, entry)| moved.add(entry.into()));
        status.subject("forwarding");
        status.number("live", entries.iter().filter(|(_, entry)| entry.is_live).count() as u64);
        status.number("up", moved.up);
        status.number("down", moved.down);
    }

    status.subject("bytes");
    status.number("up", totals.moved.up);
    status.number("down", totals.moved.down);

    status.subject("tun");
    status.text("name", config.tun.clone());
    status.number("packets", counters.packets);
    status.number("bytes", counters.bytes);
    status.number("forwarded", counters.forwarded);
    status.number("rejected", counters.rejected);
    status.number("write_errors", gateway.tun().write_errors());

    status.subject("listener");
    let (families, tests) = gateway.self_test().results();
    for (family, is_reachable) in families {
        status.flag(family, is_reachable);
    }
    status.number("tests", tests.into());

    list_upstreams(&mut status, gateway, &entries);

    if let Some(dns) = gateway.dns() {
        let counters = dns.counters();
        status.subject("dns");
        status.number("queries", counters.queries.into());
        status.number("local", counters.local.into());
        status.number("cached", counters.cached.into());
        status.number("forwarded", counters.forwarded.into());
        status.number("failed", counters.failed.into());
        status.number("limited", counters.limited.into());
        status.number("names", dns.names().into());
        status.number("time", counters.time.into());
    }

    status.subject("dropped");
    for (name, count) in rewrite::DropReason::NAMES.iter().zip(counters.dropped) {
        status.number(name, count);
    }
    status
}

/// The proxies.
pub fn upstreams(gateway: &Gateway) -> Document {
    let columns = &[
        "name",
        "chosen",
        "state",
        "flows",
        "ms_connect",
        "ms_mean",
        "opened",
        "failed",
        "up",
        "down",
        "why",
    ];
    let mut document = Document::new(Layout::Table(columns));
    list_upstreams(&mut document, gateway, &gateway.forwarded());
    document
}

fn list_upstreams(document: &mut Document, gateway: &Gateway, forwarded: &[(Rc<str>, Entry)]) {
    document.list("pauses", "pause");
    for (client, left) in gateway.paused().get().left(gateway.now()) {
        document.element();
        document.text("client", client.map_or_else(|| EVERYBODY.to_owned(), |client| client.to_string()));
        document.number("seconds_left", left.div_ceil(1000).into());
    }
    let upstreams = gateway.upstreams();
    let (choice, now) = (upstreams.choice(), upstreams.now());
    document.list("upstreams", "upstream");
    for (index, proxy) in upstreams.proxies().iter().enumerate() {
        let name = &proxy.account.name;
        let stats = proxy.account.stats.get();
        let (flows, moved) = under_way(gateway, forwarded, stats.moved, &|upstream, _| *upstream == **name);
        let (state, why, until) = match choice.state(index) {
            None => ("uplink_down", None, None),
            Some(health::State::Ok) => ("ok", None, None),
            Some(health::State::Resting(until, why)) if until > now => ("resting", Some(why), Some(until)),
            Some(health::State::Resting(_, why)) => ("confirming", Some(why), None),
            Some(health::State::Holding(until)) => ("holding", None, Some(until)),
        };
        document.element();
        document.text("name", name.to_string());
        document.flag("resting", choice.is_resting(index));
        document.number("attempts", stats.attempts.into());
        document.number("opened", stats.opened.into());
        for (name, count) in Stats::REFUSED.iter().zip(stats.refused) {
            document.number(name, count.into());
        }
        document.number("unreachable", stats.unreachable.into());
        document.number("timed_out", stats.timed_out.into());
        document.number("bad_reply", stats.bad_reply.into());
        document.number("retried", stats.retried.into());
        document.number("ms_shortest", stats.shortest.into());
        document.number("ms_mean", stats.mean());
        document.number("ms_last", stats.last.into());
        document.number("ms_connect", choice.connect_time(index).into());
        document.number("failed", stats.failed().into());
        document.number("flows", flows);
        document.number("up", moved.up);
        document.number("down", moved.down);
        document.flag("uplink", choice.is_preferred(index));
        document.flag("chosen", choice.chosen() == Some(index));
        document.text("state", state.to_owned());
        document.text("why", why.map(|why| why.to_string()).unwrap_or_default());
        document.number("seconds_left", until.map_or(0, |until| until.since(now).div_ceil(1000).into()));
    }
}

/// The last changes of the proxies' states, oldest first.
pub fn history(gateway: &Gateway) -> Document {
    let upstreams = gateway.upstreams();
    let (mut choice, now) = (upstreams.choice(), upstreams.now());
    let today = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut document = Document::new(Layout::Table(&["seconds_ago", "upstream", "change"]));
    document.list("history", "change");
    for change in choice.history().iter() {
        let age = Duration::from_millis(now.since(change.at).into());
        document.element();
        document.number("time", today.saturating_sub(age).as_secs());
        document.number("seconds_ago", age.as_secs());
        document.text("upstream", change.upstream.to_string());
        document.text("change", change.kind.to_string());
    }
    document
}

/// The clients that are remembered.
pub fn clients(gateway: &Gateway) -> Document {
    let (clients, now) = (gateway.clients().borrow(), gateway.now());
    let forwarded = gateway.forwarded();
    let columns = &["client", "flows", "opened", "refused", "up", "down", "seconds_ago"];
    let mut document = Document::new(Layout::Table(columns));
    document.list("clients", "client");
    for &Tally { address, seen, opened, refused, up, down } in clients.iter() {
        let ended = Moved { up, down };
        let (flows, moved) = under_way(gateway, &forwarded, ended, &|_, client| client == address);
        document.element();
        document.text("client", address.to_string());
        document.number("flows", flows);
        document.number("opened", opened.into());
        document.number("refused", refused.into());
        document.number("up", moved.up);
        document.number("down", moved.down);
        document.number("seconds_ago", (now.since(seen) / 1000).into());
    }
    document
}

/// How many connections `is_meant` selects by upstream and client, and how many bytes they and the ended ones have
/// moved.
fn under_way(
    gateway: &Gateway,
    forwarded: &[(Rc<str>, Entry)],
    ended: Moved,
    is_meant: &dyn Fn(&str, IpAddr) -> bool,
) -> (u64, Moved) {
    let (mut flows, mut moved) = (0, ended);
    gateway.visit_relays(&mut |traffic| {
        if is_meant(&traffic.account.name, traffic.client) {
            flows += 1;
            moved.add(traffic.moved);
        }
    });
    for (upstream, entry) in forwarded {
        if is_meant(upstream, entry.tuple.source.to_canonical()) {
            flows += u64::from(entry.is_live);
            moved.add(entry.into());
        }
    }
    (flows, moved)
}
