//! As many bytes as go through: the throughput of one or more connections.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::args::Args;
use crate::dialogue::{Call, Question, REPORT, Report};
use crate::sys::{self, BOTH_EDGES, Epoll};

/// Bytes of a read or write: what iperf3 takes.
const CHUNK: usize = 128 << 10;
/// Chunks that a connection may move before others have their turn.
const BUDGET: usize = 32;
/// Most streams.
const MAX_STREAMS: usize = 256;
/// Longest run in seconds.
const MAX_SECONDS: f64 = 60.0;

/// Runs for `--seconds`, counts from `--warmup` on, prints bits per second in all and bytes in all.
///
/// What goes up is counted by the server, which reports it on the same connection.
///
/// # Errors
/// If connections can't be made or break.
pub fn run(args: &Args) -> io::Result<()> {
    let to: SocketAddr = args.address("to")?;
    let via = args.value("via")?;
    let streams = args.number("streams", 1_usize)?.clamp(1, MAX_STREAMS);
    let seconds = args.number("seconds", 2.0_f64)?.clamp(0.1, MAX_SECONDS);
    let warmup = args.number("warmup", 0.3_f64)?.clamp(0.0, seconds);
    let rate = args.number("rate", 0_u64)? / 8 / streams as u64;
    let down = args.is_on("down");

    let mut epoll = Epoll::new()?;
    let mut all = Vec::new();
    for token in 0..streams {
        let question = if down { Question::Source(rate) } else { Question::Sink };
        let call = Call::new(to, via, question)?;
        sys::set_reset_on_close(&call.socket)?;
        if !down && rate > 0 {
            sys::set_pacing_rate(&call.socket, rate)?;
        }
        epoll.add(&call.socket, BOTH_EDGES, token as u64)?;
        all.push(Stream { call, count: Count::default(), report: Vec::new() });
    }

    let begun = sys::now_ns();
    let from = begun + (warmup * 1e9) as u64;
    let until = begun + (seconds * 1e9) as u64;
    let mut running: Vec<u64> = Vec::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        let left = Duration::from_nanos(until.saturating_sub(sys::now_ns()));
        if left.is_zero() {
            break;
        }
        let timeout = if running.is_empty() { left } else { Duration::ZERO };
        let mut events: Vec<u64> = epoll.wait(Some(timeout))?.collect();
        events.append(&mut running);
        events.sort_unstable();
        events.dedup();
        for token in events {
            let stream = &mut all[token as usize];
            let runs = stream.call.advance()?
                && if down { stream.read(&mut buffer, from)? } else { stream.write(&buffer, from)? };
            if runs {
                running.push(token);
            }
        }
    }
    let rates: f64 = all.iter().map(|stream| stream.count.rate()).sum();
    let bytes: u64 = all.iter().map(|stream| stream.count.last.1).sum();
    println!("{{\"bits_per_second\": {rates:.0}, \"bytes\": {bytes}}}");
    Ok(())
}

struct Stream {
    call: Call,
    count: Count,
    report: Vec<u8>,
}

impl Stream {
    /// True if there is more to read.
    fn read(&mut self, buffer: &mut [u8], from: u64) -> io::Result<bool> {
        let mut bytes = self.count.last.1;
        for _ in 0..BUDGET {
            match sys::read(&self.call.socket, buffer)? {
                None => {
                    self.count.note(sys::now_ns(), bytes, from);
                    return Ok(false);
                }
                Some(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(count) => bytes += count as u64,
            }
        }
        self.count.note(sys::now_ns(), bytes, from);
        Ok(true)
    }

    /// True if more can be written.
    fn write(&mut self, buffer: &[u8], from: u64) -> io::Result<bool> {
        let mut reports = [0; 64 * REPORT];
        match sys::read(&self.call.socket, &mut reports)? {
            Some(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Some(count) => self.report.extend_from_slice(&reports[..count]),
            None => {}
        }
        while let Some((report, _)) = self.report.split_first_chunk() {
            let Report { at, bytes } = Report::parse(report);
            self.count.note(at, bytes, from);
            self.report.drain(..REPORT);
        }
        for _ in 0..BUDGET {
            if sys::write(&self.call.socket, buffer)?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// How many bytes had passed when: the first after the warm-up, and the last.
#[derive(Default)]
struct Count {
    first: Option<(u64, u64)>,
    last: (u64, u64),
}

impl Count {
    fn note(&mut self, at: u64, bytes: u64, from: u64) {
        self.last = (at, bytes);
        if at >= from && self.first.is_none() {
            self.first = Some(self.last);
        }
    }

    /// Bits per second; 0 if nothing has moved after the warm-up.
    fn rate(&self) -> f64 {
        match self.first {
            Some((at, bytes)) if self.last.0 > at => {
                (self.last.1 - bytes) as f64 * 8e9 / (self.last.0 - at) as f64
            }
            _ => 0.0,
        }
    }
}
