//! Where clients are.

use std::net::{IpAddr, Ipv6Addr};

use tcp_over_http::capture::{link, neighbour};
use tcp_over_http::neighbours::Neighbours;
use tcp_over_http::net::mapped;
use tcp_over_http::rules::Neighbour;

use super::{Error, Socket};

/// A client's Ethernet address and the device it is behind, as far as the kernel knows them. The route lookup uses
/// `mark`.
pub fn find(client: IpAddr, mark: u32) -> Neighbour {
    let mut found = Neighbour::default();
    if let Err(error) = ask(client, mark, &mut found) {
        debug!("{client}: neither neighbour nor route: {error}");
    }
    found
}

/// Reads all neighbours.
pub fn read(neighbours: &Neighbours) {
    neighbours.replace(|add| {
        let socket = Socket::open(libc::NETLINK_ROUTE).map_err(Error::from);
        if let Err(error) = socket.and_then(|mut socket| list(&mut socket, add)) {
            debug!("neighbours: {error}");
        }
    });
}

/// Passes each neighbour's address, IPv4 mapped, and Ethernet address.
fn list(socket: &mut Socket, add: &mut dyn FnMut(Ipv6Addr, [u8; 6])) -> Result<(), Error> {
    socket.list(neighbour::list(), &mut |received| {
        if let Some((address, mac)) = neighbour::read(received.body) {
            add(address, mac);
        }
    })
}

fn ask(client: IpAddr, mark: u32, found: &mut Neighbour) -> Result<(), Error> {
    let mut socket = Socket::open(libc::NETLINK_ROUTE)?;
    list(&mut socket, &mut |address, mac| {
        if address == mapped(client) {
            found.mac = Some(neighbour::text(mac));
        }
    })?;
    let mut index = None;
    socket.get(neighbour::way(client, mark), &mut |received| index = neighbour::device(received.body))?;
    if let Some(index) = index {
        socket.get(link::at(index), &mut |received| found.device = neighbour::name(received.body))?;
    }
    Ok(())
}
