//! Netlink messages that find a client's Ethernet address, and the device by which it is reached.

use alloc::string::String;
use core::net::{IpAddr, Ipv6Addr};

use super::link;
use super::netlink::{self, Message};
use super::route::{RTA_DST, RTA_OIF, RTM_GETROUTE};
use super::{V4, V6};
use crate::net::{IpNet, mapped};

// <linux/rtnetlink.h>, <linux/neighbour.h>

const RTM_GETNEIGH: u16 = 30;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const RTA_MARK: u16 = 16;
/// Lengths of `struct ndmsg` and `struct rtmsg`.
const BODY: usize = 12;

/// The request for all neighbours (ARP, NDP).
pub fn list() -> Message {
    Message::new(RTM_GETNEIGH, 0, &[0; BODY])
}

/// Reads a neighbour: its address, IPv4 mapped, and its Ethernet address. `None` on another kind of link, or while the
/// kernel looks for it.
pub fn read(body: &[u8]) -> Option<(Ipv6Addr, [u8; 6])> {
    let (mut address, mut mac) = (None, None);
    for (kind, value) in netlink::attrs(body, BODY) {
        match kind {
            NDA_DST => address = netlink::address(value),
            NDA_LLADDR => mac = value.try_into().ok(),
            _ => {}
        }
    }
    Some((mapped(address?), mac?))
}

/// An Ethernet address as text.
pub fn text(mac: [u8; 6]) -> String {
    let mut text = String::new();
    for (index, byte) in mac.iter().enumerate() {
        if index > 0 {
            text.push(':');
        }
        text.extend([byte >> 4, byte & 15].map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)])));
    }
    text
}

/// The request for the route of a packet to a client, with this mark.
pub fn way(client: IpAddr, mark: u32) -> Message {
    let family = if client.is_ipv4() { V4 } else { V6 };
    let body = [family, IpNet::host(client).prefix(), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    Message::new(RTM_GETROUTE, 0, &body).attr_addr(RTA_DST, client).attr_u32(RTA_MARK, mark)
}

/// Reads a route: the index of its device.
pub fn device(body: &[u8]) -> Option<u32> {
    let mut attrs = netlink::attrs(body, BODY);
    attrs.find(|(kind, _)| *kind == RTA_OIF).map(|(_, value)| netlink::u32_at(value, 0))
}

/// Reads the name of a device.
pub fn name(body: &[u8]) -> Option<String> {
    let mut attrs = netlink::attrs(body, link::BODY);
    let (_, name) = attrs.find(|(kind, _)| *kind == link::IFLA_IFNAME)?;
    str::from_utf8(name.strip_suffix(b"\0")?).ok().map(String::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_tells() {
        for client in ["192.168.1.7", "fd00::7"].map(|text| text.parse::<IpAddr>().unwrap()) {
            let message = list().attr_addr(NDA_DST, client).attr(NDA_LLADDR, &[2, 0, 0, 0, 0, 0xfe]);
            let whole = message.body();
            assert_eq!(read(whole), Some((mapped(client), [2, 0, 0, 0, 0, 0xfe])));
            assert!((0..whole.len() - 2).all(|cut| read(&whole[..cut]).is_none()));
            let other = list().attr_addr(NDA_DST, client).attr(NDA_LLADDR, &[10, 0, 0, 1]);
            assert_eq!(read(other.body()), None, "of another kind of link");
        }
        assert_eq!(text([2, 0, 0, 0, 0, 0xfe]), "02:00:00:00:00:fe");
        assert_eq!(device(way([192, 0, 2, 1].into(), 0).attr_u32(RTA_OIF, 7).body()), Some(7));
        assert_eq!(device(&[0; BODY]), None);
        assert_eq!(name(link::find("br-lan").body()).as_deref(), Some("br-lan"));
    }
}
