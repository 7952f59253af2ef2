//! The TUN as a network device: its settings and addresses.

use tcp_over_http::capture::link;

use super::RouteError;
use crate::kernel::sysctl;
use crate::netlink::Socket;
use crate::sys;
use tcp_over_http::config::Config;
use tcp_over_http::net::{IpNet, Ipv4Net, Ipv6Net};

/// How many packets the kernel queues for the daemon before it drops some (the TUN driver's default is 500).
const TXQUEUELEN: i32 = 1000;

/// The TUN, with the settings that it should have.
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    mtu: u16,
    address: Ipv4Net,
    address6: Option<Ipv6Net>,
}

impl Device {
    /// Finds the device of this name.
    pub fn find(socket: &mut Socket, name: &str, config: &Config) -> Result<Self, RouteError> {
        let mut index = 0;
        socket
            .get(link::find(name), &mut |received| index = link::index(received.body))
            .map_err(|cause| RouteError::new(&format_args!("find device {name}"), cause))?;
        let Config { mtu, address, address6, .. } = *config;
        Ok(Self { name: name.to_owned(), index, mtu, address, address6 })
    }

    /// Brings the device up, and restores missing settings and addresses.
    pub fn set_up(&self, socket: &mut Socket) -> Result<(), RouteError> {
        let Self { name, .. } = self;
        // Packets to clients come out of the TUN with servers' addresses as source. A strict reverse path
        // filter would expect these on another device, and drop the packets.
        sysctl::set(&format!("net/ipv4/conf/{name}/rp_filter"), "2");
        if self.address6.is_some() {
            sysctl::set(&format!("net/ipv6/conf/{name}/disable_ipv6"), "0");
            sysctl::set(&format!("net/ipv6/conf/{name}/accept_ra"), "0");
        }
        // The device comes up first, by a request of its own: a notification about another change, with the
        // device still down, would count as somebody taking it down (`capture::judge`).
        socket
            .request(link::bring_up(self.index))
            // The MTU is set by ioctl: qemu-user does not convert a big-endian program's numbers in netlink
            // attributes.
            .and_then(|()| Ok(sys::set_mtu(&*socket, name, self.mtu)?))
            .map_err(|cause| RouteError::new(&format_args!("bring up {name}"), cause))?;
        if let Err(error) = sys::set_queue_length(&*socket, name, TXQUEUELEN) {
            warn!("{name}: a queue of {TXQUEUELEN} packets: {error}");
        }
        for net in [Some(IpNet::V4(self.address)), self.address6.map(IpNet::V6)].into_iter().flatten() {
            socket
                .request(link::add_address(self.index, net))
                .map_err(|cause| RouteError::new(&format_args!("set address {net} on {name}"), cause))?;
        }
        Ok(())
    }
}
