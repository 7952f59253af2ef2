//! Netlink messages about network devices and their addresses.

use super::netlink::{self, Message, NLM_F_CREATE, NLM_F_REPLACE};
use super::{V4, V6};
use crate::net::IpNet;

// <linux/rtnetlink.h>

/// Message type: a device is new or has changed; as a request: change it.
pub const RTM_NEWLINK: u16 = 16;
/// Message type: a device is gone.
pub const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
/// Message type: an address is gone.
pub const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;

/// <linux/if_link.h>
pub(super) const IFLA_IFNAME: u16 = 3;
/// <linux/if_addr.h>
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_F_NODAD: u8 = 2;
/// <linux/if.h>
const IFF_UP: u32 = 1;

/// Length of `struct ifinfomsg`: family, type, index, flags, mask of flags to change.
pub(super) const BODY: usize = 16;
/// Length of `struct ifaddrmsg`: family, prefix, flags, scope, index.
const ADDRESS_BODY: usize = 8;

/// The request for the device of this name.
pub fn find(name: &str) -> Message {
    Message::new(RTM_GETLINK, 0, &[0; BODY]).attr_text(IFLA_IFNAME, name)
}

/// The request for the device of this index.
pub fn at(index: u32) -> Message {
    let mut body = [0; BODY];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    Message::new(RTM_GETLINK, 0, &body)
}

/// The request that brings a device up.
pub fn bring_up(index: u32) -> Message {
    let mut body = [0; BODY];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..12].copy_from_slice(&IFF_UP.to_ne_bytes());
    body[12..16].copy_from_slice(&IFF_UP.to_ne_bytes());
    Message::new(RTM_NEWLINK, 0, &body)
}

/// The request that gives a device an address with its prefix. IPv6 skips duplicate address detection
/// (`IFA_F_NODAD`): no other host is on a TUN, and the address can be bound at once.
pub fn add_address(index: u32, net: IpNet) -> Message {
    let (family, flags) = match net {
        IpNet::V4(_) => (V4, 0),
        IpNet::V6(_) => (V6, IFA_F_NODAD),
    };
    let [a, b, c, d] = index.to_ne_bytes();
    let body = [family, net.prefix(), flags, 0, a, b, c, d];
    Message::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &body)
        .attr_addr(IFA_LOCAL, net.addr())
        .attr_addr(IFA_ADDRESS, net.addr())
}

/// The request for all addresses of all devices.
pub fn addresses() -> Message {
    Message::new(RTM_GETADDR, 0, &[0; ADDRESS_BODY])
}

/// Reads the body of an `RTM_NEWADDR`: the machine's address, with its prefix.
pub fn address(body: &[u8]) -> Option<IpNet> {
    let prefix = *body.get(1)?;
    let mut address = None;
    for (kind, value) in netlink::attrs(body, ADDRESS_BODY) {
        // On a point-to-point link `IFA_ADDRESS` is the peer's address, and `IFA_LOCAL` this machine's.
        if kind == IFA_LOCAL || kind == IFA_ADDRESS && address.is_none() {
            address = netlink::address(value);
        }
    }
    Some(IpNet::new(address?, prefix))
}

/// The index of the device that a message is about. `struct ifinfomsg` and `struct ifaddrmsg` have it at the
/// same offset.
pub fn index(body: &[u8]) -> u32 {
    netlink::u32_at(body, 4)
}

/// Whether the device that a message is about is up.
pub fn is_up(body: &[u8]) -> bool {
    netlink::u32_at(body, 8) & IFF_UP != 0
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    /// `ip addr add 10.45.39.1/24 dev IFINDEX-7`, as strace shows it, less the broadcast address.
    #[test]
    fn writes_an_address_as_iproute2_does() {
        let message = add_address(7, IpNet::parse("10.45.39.1/24").unwrap());
        let attr = |kind: u16| [&8_u16.to_ne_bytes()[..], &kind.to_ne_bytes(), &[10, 45, 39, 1]].concat();
        let body = [&[2, 24, 0, 0][..], &7_u32.to_ne_bytes(), &attr(IFA_LOCAL), &attr(IFA_ADDRESS)].concat();
        assert_eq!(message.body(), body);
        assert_eq!(index(message.body()), 7);
        let message = add_address(7, IpNet::parse("fd45:39::1/64").unwrap());
        assert_eq!(message.body()[..4], [10, 64, IFA_F_NODAD, 0]);
    }

    #[test]
    fn reads_addresses() {
        for text in ["10.45.39.1/24", "fd45:39::1/64"] {
            let net = IpNet::parse(text).unwrap();
            assert_eq!(address(add_address(7, net).body()), Some(net));
        }
        // A point-to-point link, with the peer's address first.
        let body = [V4, 32, 0, 0, 7, 0, 0, 0];
        let message = Message::new(RTM_NEWADDR, 0, &body)
            .attr(IFA_ADDRESS, &[192, 0, 2, 9])
            .attr(IFA_LOCAL, &[192, 0, 2, 1]);
        assert_eq!(address(message.body()).map(IpNet::addr), Some(IpAddr::from([192, 0, 2, 1])));
        for cut in 0..message.body().len() {
            address(&message.body()[..cut]);
        }
    }

    #[test]
    fn brings_up() {
        let message = bring_up(7);
        assert_eq!(index(message.body()), 7);
        assert!(is_up(message.body()));
        assert!(!is_up(&[0; BODY]) && !is_up(&[]));
    }
}
