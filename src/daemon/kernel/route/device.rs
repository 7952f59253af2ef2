//! The TUN as a network device: its settings and addresses.

use tcp_over_http::capture::link;

use super::RouteError;
use crate::kernel::sysctl;
use crate::netlink::Socket;
use crate::sys;
use tcp_over_http::config::Config;
use tcp_over_http::net::{IpNet, Ipv4Net, Ipv6Net};

/// Packets that the kernel queues for us before it drops (the TUN driver's own default is 500).
const TXQUEUELEN: i32 = 1000;

/// The device as it should be.
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its number.
    pub index: u32,
    mtu: u16,
    address: Ipv4Net,
    address6: Option<Ipv6Net>,
}

impl Device {
    /// The device of this name.
    pub fn find(socket: &mut Socket, name: &str, config: &Config) -> Result<Self, RouteError> {
        let mut index = 0;
        socket
            .get(link::find(name), &mut |received| index = link::index(received.body))
            .map_err(|cause| RouteError::new(&format_args!("find device {name}"), cause))?;
        let Config { mtu, address, address6, .. } = *config;
        Ok(Self { name: name.to_owned(), index, mtu, address, address6 })
    }

    /// Brings it up with its settings and addresses, whatever of them is missing.
    pub fn set_up(&self, socket: &mut Socket) -> Result<(), RouteError> {
        let Self { name, .. } = self;
        // Replies bear the servers' addresses, which strict filtering would look for behind another device.
        sysctl::set(&format!("net/ipv4/conf/{name}/rp_filter"), "2");
        // The router's own connections come back to it with its own address.
        sysctl::set(&format!("net/ipv4/conf/{name}/accept_local"), "1");
        if self.address6.is_some() {
            sysctl::set(&format!("net/ipv6/conf/{name}/disable_ipv6"), "0");
            sysctl::set(&format!("net/ipv6/conf/{name}/accept_ra"), "0");
        }
        // Up first, alone: the watch would take news of another change in a device that is down for a loss.
        socket
            .request(link::bring_up(self.index))
            // By ioctl: as attributes, qemu-user would take a big-endian machine's numbers for its own.
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
