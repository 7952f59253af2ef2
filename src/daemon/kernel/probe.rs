//! The self-test of the express path: a real connection through the kernel.
//!
//! ```text
//! we write to the TUN          the kernel
//!   SYN  probe > target   -->  gives it to the listener (tproxy rule, policy rules, reverse path filter)
//!                         <--  SYN-ACK  target > probe, routed to the TUN
//!   ACK  probe > target   -->  gives it to the new socket (socket rule); the listener can accept
//! ```
//!
//! The probe's address is one of the TUN's subnet, the target's one that nobody has.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use tcp_over_http::packet::builder::{MAX_LEN, segment};
use tcp_over_http::packet::vnet;
use tcp_over_http::packet::{ACK, Packet, SYN, Transport, Tuple};
use tokio::time::timeout;

use crate::kernel::listener::Listener;
use crate::kernel::tun::{MAX_FRAME, Tun};
use crate::sys;

/// How long the kernel may take.
const PATIENCE: Duration = Duration::from_millis(500);
/// An address of TEST-NET-2 (RFC 5737).
pub const TARGET: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 254);
/// An address of the documentation prefix (RFC 3849).
pub const TARGET6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xfffe);
/// Discard (RFC 863).
pub const PORT: u16 = 9;
/// Of the SYN.
pub const SEQUENCE: u32 = 1000;

/// Where a connection did not get.
#[derive(Debug)]
pub enum ProbeError {
    /// The TUN.
    Tun(io::Error),
    /// No SYN-ACK came.
    NoAnswer,
    /// It was not accepted.
    NotAccepted,
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Tun(error) => write!(f, "{error}"),
            Self::NoAnswer => {
                f.write_str("a test connection got no answer: does the firewall's input reject it?")
            }
            Self::NotAccepted => {
                f.write_str("a test connection was answered, but did not come to its socket")
            }
        }
    }
}

/// Connects to `listener` by the express path, from `source`.
///
/// # Errors
/// [`ProbeError`] says how far it got.
pub async fn probe(tun: &Tun, listener: &Listener, source: Ipv6Addr) -> Result<(), ProbeError> {
    let destination = if source.to_ipv4_mapped().is_some() { TARGET.to_ipv6_mapped() } else { TARGET6 };
    let tuple = Tuple { source, destination, source_port: port(), destination_port: PORT };
    send(tun, &tuple, SEQUENCE, 0, SYN)?;
    let answer = timeout(PATIENCE, answer(tun, &tuple)).await.map_err(|_| ProbeError::NoAnswer)??;
    send(tun, &tuple, SEQUENCE + 1, answer.wrapping_add(1), ACK)?;
    match timeout(PATIENCE, poll_fn(|cx| listener.poll_accept(cx))).await {
        Ok(Ok((stream, _))) => {
            _ = sys::set_resetting(&stream);
            Ok(())
        }
        _ => Err(ProbeError::NotAccepted),
    }
}

/// A port to connect from, another in each run: of the run before, the kernel may have half a connection whose
/// listener is gone, and a SYN from the same port would only be the end of that.
pub fn port() -> u16 {
    sys::random().map_or(PORT, |port| u16::from_ne_bytes(port) | 1 << 15)
}

/// Writes a segment without data to the TUN.
pub fn send(
    tun: &Tun,
    tuple: &Tuple,
    sequence: u32,
    acknowledgement: u32,
    flags: u8,
) -> Result<(), ProbeError> {
    let mut packet = [0; MAX_LEN];
    let length = segment(tuple, sequence, acknowledgement, flags, &mut packet);
    let frame = [&vnet::Header::PLAIN, &packet[..length]].concat();
    tun.try_write(&frame).map_err(ProbeError::Tun)
}

/// Waits for the SYN-ACK; returns its sequence number. Whatever else comes is dropped: it will be sent again.
async fn answer(tun: &Tun, tuple: &Tuple) -> Result<u32, ProbeError> {
    let mut frame = vec![0; MAX_FRAME];
    loop {
        let length = poll_fn(|cx| tun.poll_read(cx, &mut frame)).await.map_err(ProbeError::Tun)?;
        let Some(bytes) = frame.get_mut(vnet::LEN..length) else { continue };
        match Packet::parse(bytes) {
            Ok(packet) if packet.transport() == Transport::Tcp && packet.tuple() == tuple.reversed() => {
                return match packet.flags() & (SYN | ACK) == SYN | ACK {
                    true => Ok(packet.sequence()),
                    false => Err(ProbeError::NoAnswer),
                };
            }
            _ => {}
        }
    }
}
