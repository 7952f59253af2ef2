//! As many connections as can be made: each is opened, asked for a byte, and closed.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::args::Args;
use crate::dialogue::{Call, Question, Targets};
use crate::stats::Times;
use crate::sys::{self, BOTH_EDGES, Epoll};

/// Most connections at a time.
const MAX_CONCURRENCY: usize = 1024;
/// Most connections in all.
const MAX_CONNECTIONS: u64 = 1_000_000;
/// Longest run in seconds.
const MAX_SECONDS: f64 = 60.0;
/// Nanoseconds that a connection may take.
const PATIENCE: u64 = 2_000_000_000;

/// Runs for `--seconds` or until `--max` connections are done, `--concurrency` at a time. Prints how many
/// came back with a byte and how many failed, and how long the former took, from the beginning of
/// `connect`, to be connected and to have the byte.
///
/// # Errors
/// If epoll fails.
pub fn run(args: &Args) -> io::Result<()> {
    let mut targets = Targets::new(args.address("to")?, args.number("spread", 1)?);
    let via: Option<SocketAddr> = args.value("via")?;
    let concurrency = args.number("concurrency", 1_usize)?.clamp(1, MAX_CONCURRENCY);
    let seconds = args.number("seconds", 1.0_f64)?.clamp(0.1, MAX_SECONDS);
    let max = args.number("max", MAX_CONNECTIONS)?.min(MAX_CONNECTIONS);

    let mut epoll = Epoll::new()?;
    let mut calls: Vec<Option<Call>> = (0..concurrency).map(|_| None).collect();
    let (mut connected, mut answered) = (Times::default(), Times::default());
    let (mut begun, mut done, mut failed) = (0, 0, 0);
    let start = sys::now_ns();
    let until = start + (seconds * 1e9) as u64;
    let end = loop {
        let now = sys::now_ns();
        for (token, place) in calls.iter_mut().enumerate() {
            if place.as_ref().is_some_and(|call| now - call.begun > PATIENCE) {
                *place = None;
                failed += 1;
            }
            if place.is_none() && now < until && begun < max {
                let call = Call::new(targets.next(), via, Question::Byte)?;
                epoll.add(&call.socket, BOTH_EDGES, token as u64)?;
                *place = Some(call);
                begun += 1;
            }
        }
        if calls.iter().all(Option::is_none) {
            break now;
        }
        for token in epoll.wait(Some(Duration::from_millis(100)))? {
            let place = &mut calls[token as usize];
            let Some(call) = place else {
                continue;
            };
            match receive(call) {
                Ok(false) => continue,
                Ok(true) => {
                    done += 1;
                    connected.add(call.connected - call.begun);
                    answered.add(sys::now_ns() - call.begun);
                }
                Err(_) => failed += 1,
            }
            *place = None;
        }
    };
    println!(
        "{{\"done\": {done}, \"failed\": {failed}, \"per_second\": {:.1}, \"connect_us\": {}, \"byte_us\": {}}}",
        done as f64 * 1e9 / (end - start).max(1) as f64,
        connected.json(),
        answered.json(),
    );
    Ok(())
}

/// True: the byte is there.
fn receive(call: &mut Call) -> io::Result<bool> {
    if !call.advance()? {
        return Ok(false);
    }
    match sys::read(&call.socket, &mut [0; 16])? {
        None => Ok(false),
        Some(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Some(_) => Ok(true),
    }
}
