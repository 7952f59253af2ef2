//! Where a client is.

use std::net::IpAddr;

use tcp_over_http::capture::{link, neighbour};
use tcp_over_http::rules::Origin;

use super::{Error, Socket};

/// A client's Ethernet address and the device it is behind, as far as the kernel knows them. The route lookup uses
/// `mark`.
pub fn origin(client: IpAddr, mark: u32) -> Origin {
    let mut origin = Origin::default();
    if let Err(error) = find(client, mark, &mut origin) {
        debug!("{client}: neither neighbour nor route: {error}");
    }
    origin
}

fn find(client: IpAddr, mark: u32, origin: &mut Origin) -> Result<(), Error> {
    let mut socket = Socket::open(libc::NETLINK_ROUTE)?;
    socket.list(neighbour::list(client), &mut |received| {
        if let Some(mac) = neighbour::mac(received.body, client) {
            origin.mac = Some(mac);
        }
    })?;
    let mut index = None;
    socket.get(neighbour::way(client, mark), &mut |received| index = neighbour::device(received.body))?;
    if let Some(index) = index {
        socket.get(link::at(index), &mut |received| origin.device = neighbour::name(received.body))?;
    }
    Ok(())
}
