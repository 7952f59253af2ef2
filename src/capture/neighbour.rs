//! Netlink messages that find a client's Ethernet address, and the device by which it is reached.

use alloc::string::String;
use core::net::IpAddr;

use super::link;
use super::netlink::{self, Message};
use super::route::{RTA_DST, RTA_OIF, RTM_GETROUTE};
use super::{V4, V6};
use crate::net::IpNet;

// <linux/rtnetlink.h>, <linux/neighbour.h>

const RTM_GETNEIGH: u16 = 30;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const RTA_MARK: u16 = 16;
/// Lengths of `struct ndmsg` and `struct rtmsg`.
const BODY: usize = 12;

/// The request for all neighbours (ARP, NDP) of a client's address family.
pub fn list(client: IpAddr) -> Message {
    Message::new(RTM_GETNEIGH, 0, &body(client, 0))
}

/// Reads a neighbour: its Ethernet address as text, if it is the client.
pub fn mac(body: &[u8], client: IpAddr) -> Option<String> {
    let (mut is_client, mut mac) = (false, None);
    for (kind, value) in netlink::attrs(body, BODY) {
        match (kind, client) {
            (NDA_DST, IpAddr::V4(client)) => is_client = value == client.octets(),
            (NDA_DST, IpAddr::V6(client)) => is_client = value == client.octets(),
            (NDA_LLADDR, _) => mac = Some(value),
            _ => {}
        }
    }
    mac.filter(|mac| is_client && mac.len() == 6).map(text)
}

fn text(mac: &[u8]) -> String {
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
    let body = body(client, IpNet::host(client).prefix());
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

const fn body(client: IpAddr, prefix: u8) -> [u8; BODY] {
    let family = if client.is_ipv4() { V4 } else { V6 };
    [family, prefix, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_tells() {
        for client in ["192.168.1.7", "fd00::7"].map(|text| text.parse::<IpAddr>().unwrap()) {
            let other = if client.is_ipv4() { "192.168.1.8" } else { "fd00::8" }.parse().unwrap();
            let mac_of = |address, bytes: &[u8]| {
                let message = list(client).attr_addr(NDA_DST, address).attr(NDA_LLADDR, bytes);
                for cut in 0..message.body().len() {
                    mac(&message.body()[..cut], client);
                }
                mac(message.body(), client)
            };
            assert_eq!(mac_of(client, &[2, 0, 0, 0, 0, 0xfe]).as_deref(), Some("02:00:00:00:00:fe"));
            assert_eq!(mac_of(other, &[2, 0, 0, 0, 0, 1]), None);
            assert_eq!(mac_of(client, &[10, 0, 0, 1]), None, "of another kind of link");
        }
        assert_eq!(device(way([192, 0, 2, 1].into(), 0).attr_u32(RTA_OIF, 7).body()), Some(7));
        assert_eq!(device(&[0; BODY]), None);
        assert_eq!(name(link::find("br-lan").body()).as_deref(), Some("br-lan"));
    }
}
