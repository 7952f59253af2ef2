//! As many DNS queries as are answered: over UDP, from one socket, a number of them under way at a time.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use crate::args::Args;
use crate::stats::Times;
use crate::sys;

/// Most queries under way at a time.
const MAX_CONCURRENCY: usize = 1024;
/// Longest run in seconds.
const MAX_SECONDS: f64 = 60.0;
/// A query that is not answered within this time is lost.
const PATIENCE: Duration = Duration::from_secs(2);

/// Asks `--to` for the A records of `--names` names (`N.bench.example`) in turn, for `--seconds`, with
/// `--concurrency` queries under way. Prints how many were answered with an address, how many otherwise or not at
/// all, and how long the answers took.
///
/// # Errors
/// If the socket fails.
pub fn run(args: &Args) -> io::Result<()> {
    let to: SocketAddr = args.address("to")?;
    let names = args.number("names", 1_u32)?.max(1);
    let concurrency = args.number("concurrency", 1_usize)?.clamp(1, MAX_CONCURRENCY);
    let seconds = args.number("seconds", 1.0_f64)?.clamp(0.1, MAX_SECONDS);
    let any: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;

    // By the query's id: when it was sent.
    let mut sent = vec![0_u64; 1 << 16];
    let mut times = Times::default();
    let (mut asked, mut answered, mut failed, mut open) = (0_u32, 0_u64, 0_u64, 0_usize);
    let start = sys::now_ns();
    let until = start + (seconds * 1e9) as u64;
    let mut reply = [0; 2048];
    loop {
        while open < concurrency && sys::now_ns() < until {
            sent[asked as usize & 0xffff] = sys::now_ns();
            socket.send(&query(asked as u16, asked % names))?;
            asked = asked.wrapping_add(1);
            open += 1;
        }
        if open == 0 {
            break;
        }
        match socket.recv(&mut reply) {
            Ok(length) => {
                let id = usize::from(u16::from_be_bytes([reply[0], reply[1]]));
                times.add(sys::now_ns() - sent[id]);
                open -= 1;
                // RCODE 0 and one answer.
                match length > 12 && reply[3] & 15 == 0 && reply[7] == 1 {
                    true => answered += 1,
                    false => failed += 1,
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                failed += open as u64;
                open = 0;
            }
            Err(error) => return Err(error),
        }
    }
    println!(
        "{{\"answered\": {answered}, \"failed\": {failed}, \"per_second\": {:.0}, \"answer_us\": {}}}",
        answered as f64 * 1e9 / (sys::now_ns() - start).max(1) as f64,
        times.json(),
    );
    Ok(())
}

fn query(id: u16, number: u32) -> Vec<u8> {
    let label = number.to_string();
    let mut out = Vec::with_capacity(40);
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0, label.len() as u8]);
    out.extend_from_slice(label.as_bytes());
    out.extend_from_slice(b"\x05bench\x07example\0\0\x01\0\x01");
    out
}
