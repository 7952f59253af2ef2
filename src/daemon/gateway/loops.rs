//! Detects a proxy whose own connections are captured: the daemon would send each back to the proxy, for
//! ever.
//!
//! Many connections of one client to one server that wait for the proxy may be a loop, or a busy client. To
//! find out, the daemon asks the proxy for an address that nobody else asks for. Whoever then connects to
//! that address is the proxy; unless somebody has tried others before, to have another client taken for the proxy.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;

use tcp_over_http::http::connect::Target;
use tcp_over_http::net::mapped;
use tcp_over_http::packet::Tuple;
use tcp_over_http::time::Instant;

use super::Gateway;
use crate::sys;
use crate::task::spawn;

/// How many waiting connections of one client to one server trigger a test.
const SUSPICIOUS: u16 = 16; // more than a browser opens
/// How many ms a test may take; the next one begins no earlier.
const TEST_INTERVAL: u32 = 30_000;
/// How many ms a result is valid.
const TTL: u32 = 60_000;

/// The last test, and its result.
#[derive(Default)]
pub struct Loops {
    /// The address that the proxy was last asked for, or one that nobody can connect to if somebody tries to guess it;
    /// and when it was asked for.
    asked: Cell<Option<(Ipv6Addr, Instant)>>,
    /// The source of a proxy's connections, and when it was found.
    proxy: Cell<Option<(Ipv6Addr, Instant)>>,
}

impl Gateway {
    /// Whether a new connection, which is already held, is a proxy's own and must be refused.
    pub(super) fn is_loop(self: &Rc<Self>, tuple: &Tuple, target: SocketAddr, now: Instant) -> bool {
        let loops = &self.loops;
        let asked = loops.asked.get().filter(|(_, at)| now.since(*at) < TEST_INTERVAL);
        let wanted = mapped(target.ip());
        if let Some((address, at)) = asked
            && address != wanted
            && (address.to_bits() ^ wanted.to_bits()) >> 8 == 0
        {
            loops.asked.set(Some((Ipv6Addr::UNSPECIFIED, at)));
        }
        if asked.is_some_and(|(address, _)| address == wanted) {
            loops.proxy.set(Some((tuple.source, now)));
            let source = tuple.source.to_canonical();
            match self.rewriter.borrow().settings().is_own(tuple) {
                true => error!("connections of a proxy on this machine come back to it: set local '0'"),
                false => {
                    error!("a proxy's connections come back to it: set list client_bypass '{source}'")
                }
            }
            return true;
        }
        let is_proxy =
            loops.proxy.get().is_some_and(|(source, seen)| source == tuple.source && now.since(seen) < TTL);
        let rewriter = self.rewriter.borrow();
        if is_proxy {
            return rewriter.held_to(tuple).0 > 1;
        }
        if asked.is_none()
            && rewriter.opened(tuple.source) >= SUSPICIOUS
            && rewriter.held_to(tuple).1 >= SUSPICIOUS
        {
            self.test_for_loop(target, now);
        }
        false
    }

    /// Asks the proxy for an address of a range for documentation (RFC 5737, RFC 3849), at the port of the
    /// suspicious connections: the proxy allows that.
    fn test_for_loop(self: &Rc<Self>, target: SocketAddr, now: Instant) {
        let Ok([a, b, c, d, ..]) = sys::random::<4>() else { return };
        let address: IpAddr = match target.ip() {
            IpAddr::V4(_) => Ipv4Addr::new(198, 51, 100, a).into(),
            IpAddr::V6(_) => Ipv6Addr::from([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d]).into(),
        };
        self.loops.asked.set(Some((mapped(address), now)));
        let target = SocketAddr::new(address, target.port());
        let gateway = Rc::clone(self);
        spawn(async move { gateway.upstreams().ask_quietly(Target::Ip(target)).await });
    }
}
