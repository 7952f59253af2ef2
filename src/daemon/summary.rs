//! The counters, for the log.

use tcp_over_http::rewrite;

use crate::gateway::Gateway;

/// Logs what has happened so far, in a few lines.
pub fn log(gateway: &Gateway) {
    let rewriter = gateway.rewriter().borrow();
    let counters = rewriter.counters();
    let (held, live) = rewriter.flows.occupancy();
    let totals = gateway.totals();
    log::info!("flows: {} opened, {held} held, {live} live, {} refused", counters.flows, totals.refused);
    log::info!(
        "relays: {} ended, {} bytes up, {} bytes down",
        totals.relayed,
        totals.moved.up,
        totals.moved.down
    );
    log::info!(
        "tun: {} packets, {} bytes, {} bytes each, {} forwarded, {} rejected, {} write errors",
        counters.packets,
        counters.bytes,
        counters.bytes / counters.packets.max(1),
        counters.forwarded,
        counters.rejected,
        totals.write_errors
    );
    for (name, stats) in gateway.upstreams().stats() {
        log::info!(
            "upstream {name}: {} opened, {} refused, {} failed, last answer after {} ms",
            stats.opened,
            stats.refused,
            stats.failed,
            stats.latency
        );
    }
    for (name, count) in rewrite::Drop::NAMES.iter().zip(counters.dropped) {
        if count > 0 {
            log::info!("dropped: {count} {name}");
        }
    }
}
