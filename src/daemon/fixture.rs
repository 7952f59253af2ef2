//! For tests: tokio's runtime, and a DNS server that follows a script.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use tokio::runtime::{Builder, LocalOptions};

/// Runs a test in a runtime like the daemon's.
pub fn run<T>(test: impl Future<Output = T>) -> T {
    Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).unwrap().block_on(test)
}

/// A DNS server on the loopback whose script turns each query into replies; it counts the queries.
pub fn server(script: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> (SocketAddr, Arc<AtomicUsize>) {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let queries = Arc::clone(&count);
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            queries.fetch_add(1, SeqCst);
            for reply in script(&buffer[..length]) {
                socket.send_to(&reply, client).unwrap();
            }
        }
    });
    (address, count)
}

/// The reply to a query, with addresses of the family that it asks for.
pub fn reply(query: &[u8], flags: u16, addresses: &[&str], ttl: u8) -> Vec<u8> {
    let kind = query[query.len() - 3];
    let mut out = query.to_vec();
    out[2..4].copy_from_slice(&flags.to_be_bytes());
    for address in addresses {
        let (of_kind, data) = match address.parse().unwrap() {
            IpAddr::V4(ip) => (1, ip.octets().to_vec()),
            IpAddr::V6(ip) => (28, ip.octets().to_vec()),
        };
        if of_kind == kind {
            out[7] += 1;
            out.extend_from_slice(&[0xc0, 12, 0, kind, 0, 1, 0, 0, 0, ttl + kind, 0, data.len() as u8]);
            out.extend_from_slice(&data);
        }
    }
    out
}

/// The flags of a reply.
pub const OK: u16 = 0x8180;
