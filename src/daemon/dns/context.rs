//! All that DNS needs of the rest of the daemon: a clock, tunnels through the proxies, and a writer of datagrams.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use tcp_over_http::neighbours::Neighbours;
use tcp_over_http::net::Family;
use tcp_over_http::packet::{Tuple, builder};
use tcp_over_http::time::Instant;

use crate::clock::Clock;
use crate::kernel::tun::Tun;
use crate::pause::Paused;
use crate::upstream::Upstreams;

/// Shared by all parts of DNS, and independent of them.
pub struct Context {
    clock: Clock,
    upstreams: RefCell<Rc<Upstreams>>,
    tun: Rc<Tun>,
    /// Whether the kernel forwards connections.
    forwards: Cell<bool>,
    /// Which clients go out directly during a pause.
    pub paused: Rc<Paused>,
    /// Tells clients apart.
    pub neighbours: Rc<Neighbours>,
}

impl Context {
    /// Opens tunnels with `upstreams`, and sends datagrams on `tun`.
    pub fn new(
        clock: Clock,
        upstreams: Rc<Upstreams>,
        tun: Rc<Tun>,
        paused: Rc<Paused>,
        neighbours: Rc<Neighbours>,
    ) -> Self {
        Self { clock, upstreams: RefCell::new(upstreams), tun, forwards: Cell::default(), paused, neighbours }
    }

    /// From now on the kernel forwards a connection if a proxy has an address of its family.
    pub fn set_forwarding(&self) {
        self.forwards.set(true);
    }

    /// The only family in which connections can be forwarded, if those of the other would have to be relayed.
    pub fn only_family(&self) -> Option<Family> {
        if self.forwards.get() { self.upstreams.borrow().only_family() } else { None }
    }

    /// The time.
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// The proxies, which open tunnels.
    pub fn upstreams(&self) -> Rc<Upstreams> {
        Rc::clone(&self.upstreams.borrow())
    }

    /// Opens tunnels with other proxies from now on.
    pub fn replace_upstreams(&self, upstreams: Rc<Upstreams>) {
        self.upstreams.replace(upstreams);
    }

    /// Sends a datagram to a client, as if from the resolver that it asked. One that is too long is dropped.
    pub fn send_datagram(&self, tuple: &Tuple, payload: &[u8]) {
        self.tun.write_made(&|packet| builder::datagram(tuple, payload, packet));
    }
}
