//! Tests the forward path at the start: a handshake through the kernel, with the daemon itself as the proxy.
//!
//! ```text
//! raw socket, marked    SYN      client > server
//! read from the TUN     SYN      own address > probe    after DNAT, masquerading and routing
//! written to the TUN    SYN-ACK  probe > own address
//! read from the TUN     SYN-ACK  probe > client         after conntrack's NAT and nft's `dup`
//! ```
//!
//! `client` and `server` are addresses for documentation, which no host has. `probe` is an address of the
//! TUN's subnet.

use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use tcp_over_http::capture::nft::PROBE_PORT;
use tcp_over_http::packet::builder::{MAX_LEN, segment};
use tcp_over_http::packet::vnet;
use tcp_over_http::packet::{ACK, Packet, RST, SYN, Transport, Tuple};

use tokio::time::timeout;

use crate::forward::Forwarder;
use crate::kernel::tun::{MAX_FRAME, Tun};
use crate::sys;

/// How long the kernel may take for each of the two directions.
const PATIENCE: Duration = Duration::from_millis(500);
/// Addresses of TEST-NET-2 (RFC 5737) and of the documentation prefix (RFC 3849).
const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 253);
const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 254);
const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xfffd);
const SERVER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xfffe);
/// Errors, by the direction that failed.
const NO_SYN: &str = "a test packet did not get to its proxy: does the firewall's output reject it?";
const NO_ANSWER: &str = "the answer to a test packet did not come back";
/// The SYN's sequence number.
pub const SEQUENCE: u32 = 1000;

/// Tests the way to `probe`, an address behind the TUN, and back.
pub async fn probe(tun: &Tun, forwarder: &Forwarder, probe: IpAddr) -> Result<(), String> {
    let (source, destination) = match probe {
        IpAddr::V4(_) => (CLIENT.to_ipv6_mapped(), SERVER.to_ipv6_mapped()),
        IpAddr::V6(_) => (CLIENT6, SERVER6),
    };
    let tuple = Tuple { source, destination, source_port: port(), destination_port: PROBE_PORT };
    let send_marked = |sequence, flags| {
        let mut packet = [0; MAX_LEN];
        let length = segment(&tuple, sequence, 0, flags, &mut packet);
        forwarder.send_probe(&packet[..length], probe).map_err(|error| format!("send a test packet: {error}"))
    };
    send_marked(SEQUENCE, SYN)?;
    let to_probe = |packet: &Packet| {
        let tuple = packet.tuple();
        packet.flags() == SYN
            && packet.sequence() == SEQUENCE
            && (tuple.destination.to_canonical(), tuple.destination_port) == (probe, PROBE_PORT)
    };
    let came = timeout(PATIENCE, receive(tun, &to_probe)).await.map_err(|_| NO_SYN)??;
    send(tun, &came.reversed(), 0, SEQUENCE + 1, SYN | ACK)?;
    let to_client = |packet: &Packet| {
        let (to, port) = (packet.destination(), packet.tuple().destination_port);
        (to, port) == (tuple.source, tuple.source_port)
    };
    timeout(PATIENCE, receive(tun, &to_client)).await.map_err(|_| NO_ANSWER)??;
    send_marked(SEQUENCE + 1, RST)
}

/// A random source port: conntrack may still have an entry of an earlier run's test.
pub fn port() -> u16 {
    sys::random().map_or(PROBE_PORT, |port| u16::from_ne_bytes(port) | 1 << 15)
}

/// Writes a segment without data to the TUN.
pub fn send(tun: &Tun, tuple: &Tuple, sequence: u32, acknowledgement: u32, flags: u8) -> Result<(), String> {
    let mut packet = [0; MAX_LEN];
    let length = segment(tuple, sequence, acknowledgement, flags, &mut packet);
    let frame = [&vnet::Header::PLAIN, &packet[..length]].concat();
    tun.try_write(&frame).map_err(|error| error.to_string())
}

/// Waits for the TCP packet that `is_it`, and drops others: their senders will repeat them.
async fn receive(tun: &Tun, is_it: &dyn Fn(&Packet) -> bool) -> Result<Tuple, String> {
    let mut frame = vec![0; MAX_FRAME];
    loop {
        let length = poll_fn(|cx| tun.poll_read(cx, &mut frame)).await.map_err(|error| error.to_string())?;
        let Some(bytes) = frame.get_mut(vnet::LEN..length) else { continue };
        if let Ok(packet) = Packet::parse(bytes)
            && packet.transport() == Transport::Tcp
            && is_it(&packet)
        {
            return Ok(packet.tuple());
        }
    }
}
