//! Reads the kernel's rtnetlink notifications: what they mean for our rules, routes and the TUN.

use super::link::{self, RTM_DELADDR, RTM_DELLINK, RTM_NEWLINK};
use super::route::{RTM_DELROUTE, RTM_NEWROUTE, Route};
use super::rule::{PolicyRule, RTM_DELRULE};
use super::uplinks::concerns;
use super::{Desired, LOOPBACK, netlink};

/// What notifications have told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// Somebody has taken the TUN down, or deleted a rule, route or address of ours: restore it. If the TUN
    /// is being removed, that fails, and `gone` follows.
    pub restore: bool,
    /// Routes of others have changed.
    pub network: bool,
    /// Another device has lost an address.
    pub lost_address: bool,
    /// The TUN no longer exists.
    pub gone: bool,
}

impl Events {
    /// Notifications were lost: anything may have happened.
    pub const ANY: Self = Self { restore: true, network: true, lost_address: true, gone: false };
}

/// Reads notifications, with a TUN of this index. The daemon's own changes are no events, because it never
/// deletes anything desired.
pub fn judge(notifications: &[u8], tun: u32, desired: &Desired, events: &mut Events) {
    for received in netlink::messages(notifications) {
        let body = received.body;
        let index = link::index(body);
        match received.kind {
            // A bridge that releases a port sends an RTM_DELLINK of family AF_BRIDGE.
            RTM_DELLINK if index == tun && body.first() == Some(&0) => events.gone = true,
            // Routes that IPv6 ties to `lo` can't be restored before `lo` is up.
            RTM_NEWLINK => events.restore |= index == if link::is_up(body) { LOOPBACK } else { tun },
            RTM_DELADDR if index == tun => events.restore = true,
            RTM_DELADDR => events.lost_address = true,
            RTM_NEWROUTE | RTM_DELROUTE => {
                events.restore |= received.kind == RTM_DELROUTE
                    && Route::parse(body)
                        .is_some_and(|route| desired.find(&route).is_some_and(|(_, it)| it == route));
                events.network |= concerns(body);
            }
            RTM_DELRULE => {
                events.restore |= PolicyRule::parse(body).is_some_and(|rule| desired.rules.contains(&rule));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::super::{Path, Uplinks};
    use super::*;
    use crate::capture::netlink::Message;
    use crate::config::Config;

    const TUN: u32 = 7;
    const UP: u32 = 1;

    fn desired() -> Desired {
        let text = "config tcp-over-http main\noption auto_route 1\nlist upstream http://192.0.2.1\n";
        Desired::new(&Config::from_uci(text).unwrap(), Path::Relay, "toh0", Some(TUN), &Uplinks::default())
    }

    const NOTHING: Events = Events { restore: false, network: false, lost_address: false, gone: false };
    const RESTORE: Events = Events { restore: true, ..NOTHING };
    const GONE: Events = Events { gone: true, ..NOTHING };

    fn judged(notifications: &[u8]) -> Events {
        let mut events = Events::default();
        judge(notifications, TUN, &desired(), &mut events);
        events
    }

    /// What a notification of this kind and with this body means.
    fn means(kind: u16, body: &[u8]) -> Events {
        judged(&Message::new(kind, 0, body).finish(0, 0))
    }

    /// `struct ifinfomsg`
    fn device(family: u8, index: u32, flags: u32) -> Vec<u8> {
        [&[family, 0, 0, 0], &index.to_ne_bytes()[..], &flags.to_ne_bytes(), &[0; 4]].concat()
    }

    #[test]
    fn devices() {
        const AF_BRIDGE: u8 = 7;
        assert_eq!(means(RTM_DELLINK, &device(0, TUN, 0)), GONE);
        assert_eq!(means(RTM_DELLINK, &device(AF_BRIDGE, TUN, 0)), NOTHING);
        assert_eq!(means(RTM_DELLINK, &device(0, 8, 0)), NOTHING);
        assert_eq!(means(RTM_NEWLINK, &device(0, TUN, 0)), RESTORE);
        assert_eq!(means(RTM_NEWLINK, &device(0, TUN, UP)), NOTHING);
        assert_eq!(means(RTM_NEWLINK, &device(0, LOOPBACK, UP)), RESTORE);
        assert_eq!(means(RTM_NEWLINK, &device(0, LOOPBACK, 0)), NOTHING);
        assert_eq!(means(RTM_DELADDR, &device(0, TUN, 0)), RESTORE);
        assert_eq!(means(RTM_DELADDR, &device(0, 8, 0)), Events { lost_address: true, ..NOTHING });
    }

    #[test]
    fn rules_and_routes() {
        let mut desired = desired();
        let mut route = desired.routes().next().unwrap();
        assert_eq!(means(RTM_DELROUTE, route.add().body()), RESTORE);
        route.kind = 6; // another route with the same key
        assert_eq!(means(RTM_DELROUTE, route.add().body()), NOTHING);
        let rule = &mut desired.rules[0];
        assert_eq!(means(RTM_DELRULE, rule.add().body()), RESTORE);
        rule.mark = 1;
        rule.mask = 1;
        assert_eq!(means(RTM_DELRULE, rule.add().body()), NOTHING);
    }

    #[test]
    fn several_at_once() {
        let message = |kind, flags| Message::new(kind, 0, &device(0, TUN, flags)).finish(0, 0);
        let mut bytes = [message(RTM_NEWLINK, 0), message(RTM_NEWLINK, UP)].concat();
        assert_eq!(judged(&bytes), RESTORE);
        bytes.extend(message(RTM_DELLINK, 0));
        assert_eq!(judged(&bytes), Events { gone: true, ..RESTORE });
        assert_eq!(judged(&bytes[..20]), NOTHING);
    }
}
