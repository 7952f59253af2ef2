//! A query to one server and its reply: over UDP, and again over TCP if the reply is truncated or may be forged.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::Pin;

use tcp_over_http::dns::{Message, Query};
use tokio::io::Interest;
use tokio::net::{TcpStream, UdpSocket};

use crate::{sys, tcp};

/// A UDP reply has at most 512 bytes without EDNS, and with it at most what the query says it accepts; this leaves room
/// for a server that exceeds that a little.
const MAX_DATAGRAM: usize = 1500;

/// A reply in flight. Boxed: one type for all callers.
pub type Exchange = Pin<Box<dyn Future<Output = io::Result<Vec<u8>>>>>;

/// Sends a query to `server` in a datagram, from a socket with `mark` (0: none), a random port that the kernel chooses,
/// and letters of random case. Asks again over TCP if the reply does not fit a datagram, or if any datagram does not
/// repeat id and question exactly: then somebody may be guessing, and a later guess may be right.
pub fn exchange(server: SocketAddr, mark: u32, query: &[u8]) -> Exchange {
    let mut query = query.to_vec();
    Box::pin(async move {
        Query::mix_case(&mut query, &sys::random()?);
        let socket = sys::udp_socket(server, mark)?;
        socket.send(&query)?; // a new socket's buffer takes it
        let socket = UdpSocket::from_std(socket)?;
        loop {
            // An ICMP "port unreachable" only shows up as an error.
            if socket.ready(Interest::READABLE | Interest::ERROR).await?.is_error() {
                return Err(socket.take_error()?.unwrap_or(ErrorKind::ConnectionRefused.into()));
            }
            let Some(reply) = receive(&socket)? else { continue };
            let is_sure = Query::parse(&query).is_ok_and(|query| query.is_echoed_by(&reply))
                && Message::parse(&reply).is_some_and(|reply| !reply.is_truncated());
            return if is_sure { Ok(reply) } else { exchange_tcp(server, mark, &query).await };
        }
    })
}

/// Receives a datagram, if there is one.
fn receive(socket: &UdpSocket) -> io::Result<Option<Vec<u8>>> {
    let mut buffer = [0; MAX_DATAGRAM];
    match socket.try_recv(&mut buffer) {
        Ok(length) => Ok(Some(buffer.get(..length).unwrap_or_default().to_vec())),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sends a query over TCP, and reads the reply; each follows its length (RFC 1035 section 4.2.2).
async fn exchange_tcp(server: SocketAddr, mark: u32, query: &[u8]) -> io::Result<Vec<u8>> {
    let stream = sys::tcp_socket(server, mark)?.connect(server).await?;
    let length = (query.len() as u16).to_be_bytes();
    // A new socket's buffer takes these few bytes whole.
    if tcp::send(&stream, &[&length, query].concat())? != length.len() + query.len() {
        return Err(ErrorKind::WriteZero.into());
    }
    let mut reply = Vec::new();
    loop {
        if let Some((length, rest)) = reply.split_first_chunk()
            && let Some(message) = rest.get(..usize::from(u16::from_be_bytes(*length)))
        {
            return Ok(message.to_vec());
        }
        stream.readable().await?;
        read_more(&stream, &mut reply)?;
    }
}

fn read_more(stream: &TcpStream, reply: &mut Vec<u8>) -> io::Result<()> {
    let mut buffer = [0; MAX_DATAGRAM];
    match tcp::receive(stream, &mut buffer) {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        Ok(length) => {
            reply.extend_from_slice(buffer.get(..length).unwrap_or_default());
            Ok(())
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(error),
    }
}
