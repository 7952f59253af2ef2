//! What the kernel's notifications mean to what we have set up.

use super::link::{self, RTM_DELADDR, RTM_DELLINK, RTM_NEWLINK};
use super::route::{RTM_DELROUTE, RTM_NEWROUTE, Route};
use super::rule::{RTM_DELRULE, Rule};
use super::uplinks::concerns;
use super::{Desired, LOOPBACK, netlink};

/// What happened to our configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Somebody took down the TUN or deleted something of ours: restore it. If that fails since the TUN is on its way
    /// out, `Gone` follows.
    Restore,
    /// Somebody else's routes have changed.
    Network,
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
        let is_route = matches!(received.kind, RTM_NEWROUTE | RTM_DELROUTE);
        if lost {
            event = Some(Event::Restore);
        } else if event.is_none() && is_route && concerns(body) {
            event = Some(Event::Network);
        }
    }
    event
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::super::Path;
    use super::*;
    use crate::capture::netlink::Message;
    use crate::config::Config;

    const TUN: u32 = 7;
    const UP: u32 = 1;

    fn desired() -> Desired {
        let text = "config tcp-over-http main\noption auto_route 1\nlist upstream http://192.0.2.1\n";
        Desired::new(&Config::from_uci(text).unwrap(), Path::Relay, "toh0", Some(TUN))
    }

    /// What a notification of this kind and with this body means.
    fn means(kind: u16, body: &[u8]) -> Option<Event> {
        judge(&Message::new(kind, 0, body).finish(0, 0), TUN, &desired())
    }

    /// `struct ifinfomsg`
    fn device(family: u8, index: u32, flags: u32) -> Vec<u8> {
        [&[family, 0, 0, 0], &index.to_ne_bytes()[..], &flags.to_ne_bytes(), &[0; 4]].concat()
    }

    #[test]
    fn devices() {
        const AF_BRIDGE: u8 = 7;
        assert_eq!(means(RTM_DELLINK, &device(0, TUN, 0)), Some(Event::Gone));
        assert_eq!(means(RTM_DELLINK, &device(AF_BRIDGE, TUN, 0)), None);
        assert_eq!(means(RTM_DELLINK, &device(0, 8, 0)), None);
        assert_eq!(means(RTM_NEWLINK, &device(0, TUN, 0)), Some(Event::Restore));
        assert_eq!(means(RTM_NEWLINK, &device(0, TUN, UP)), None);
        assert_eq!(means(RTM_NEWLINK, &device(0, LOOPBACK, UP)), Some(Event::Restore));
        assert_eq!(means(RTM_NEWLINK, &device(0, LOOPBACK, 0)), None);
        assert_eq!(means(RTM_DELADDR, &device(0, TUN, 0)), Some(Event::Restore));
        assert_eq!(means(RTM_DELADDR, &device(0, 8, 0)), None);
    }

    #[test]
    fn rules_and_routes() {
        let mut desired = desired();
        let mut route = desired.routes().next().unwrap();
        assert_eq!(means(RTM_DELROUTE, route.add().body()), Some(Event::Restore));
        route.kind = 6; // another with its key
        assert_eq!(means(RTM_DELROUTE, route.add().body()), None);
        let rule = &mut desired.rules[0];
        assert_eq!(means(RTM_DELRULE, rule.add().body()), Some(Event::Restore));
        rule.mark = 1;
        rule.mask = 1;
        assert_eq!(means(RTM_DELRULE, rule.add().body()), None);
    }

    /// The end of the device is the last that is to be known.
    #[test]
    fn several_are_one() {
        let message = |kind, flags| Message::new(kind, 0, &device(0, TUN, flags)).finish(0, 0);
        let mut bytes = [message(RTM_NEWLINK, 0), message(RTM_NEWLINK, UP)].concat();
        assert_eq!(judge(&bytes, TUN, &desired()), Some(Event::Restore));
        bytes.extend(message(RTM_DELLINK, 0));
        assert_eq!(judge(&bytes, TUN, &desired()), Some(Event::Gone));
        assert_eq!(judge(&bytes[..20], TUN, &desired()), None);
    }
}
