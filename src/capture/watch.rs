//! What the kernel's notifications mean to what we have set up.

use super::link::{self, RTM_DELADDR, RTM_DELLINK, RTM_NEWLINK};
use super::route::{RTM_DELROUTE, Route};
use super::rule::{RTM_DELRULE, Rule};
use super::{Desired, LOOPBACK, netlink};

/// What happened to our configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Somebody took down the TUN or deleted something of ours: restore it. If that fails since the TUN is on its way
    /// out, `Gone` follows.
    Restore,
    /// The TUN doesn't exist any more.
    Gone,
}

/// Reads notifications, with a TUN of this index. What we do ourselves is no event: nothing that is desired is
/// deleted by us.
pub fn judge(notifications: &[u8], tun: u32, desired: &Desired) -> Option<Event> {
    let mut event = None;
    for received in netlink::messages(notifications) {
        let body = received.body;
        let index = link::index(body);
        let lost = match received.kind {
            // A bridge that lets go of a port says so with its own family.
            RTM_DELLINK if index == tun && body.first() == Some(&0) => return Some(Event::Gone),
            // What is the loopback's can't be put back before it is up.
            RTM_NEWLINK if link::is_up(body) => index == LOOPBACK,
            RTM_NEWLINK | RTM_DELADDR => index == tun,
            RTM_DELROUTE => Route::parse(body)
                .is_some_and(|route| desired.find(&route).is_some_and(|(_, it)| it == route)),
            RTM_DELRULE => Rule::parse(body).is_some_and(|rule| desired.rules.contains(&rule)),
            _ => false,
        };
        if lost {
            event = Some(Event::Restore);
        }
    }
    event
}
