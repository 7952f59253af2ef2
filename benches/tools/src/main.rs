//! What the gateway benchmark measures with: a proxy that is never the bottleneck, a server, and clients
//! that put load on whatever is between them. Each is one thread around one `epoll_wait`, so that two
//! cores are left to the gateway.

mod args;
mod connect;
mod dialogue;
mod idle;
mod proxy;
mod query;
mod relay;
mod server;
mod stats;
mod stream;
mod sys;

use std::io;
use std::process::ExitCode;

use args::Args;

const HELP: &str = "\
bench-tools proxy   --listen ADDR:PORT           CONNECT and SOCKS5 proxy, relays with splice
bench-tools server  --listen ADDR:PORT           what the clients talk to
bench-tools stream  --to ADDR:PORT [--via PROXY] [--streams N] [--down] [--seconds S] [--warmup S] [--rate BITS/S]
bench-tools connect --to ADDR:PORT [--spread N] [--via PROXY] [--concurrency N] [--seconds S] [--max N]
bench-tools idle    --to ADDR:PORT [--spread N] [--via PROXY] [--connections N]
bench-tools query   --to ADDR:PORT [--names N] [--concurrency N] [--seconds S]   DNS over UDP

The clients print one line of JSON. --via: ask this proxy with CONNECT instead of connecting to ADDR
directly. --spread: connect to N addresses from ADDR on, in turn. idle holds its connections until its
standard input says something, then asks each for another byte and prints how many have answered.
";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let command = args.next();
    let ended = Args::parse(args).map_err(io::Error::other).and_then(|args| {
        sys::raise_file_limit()?;
        match command.as_deref() {
            Some("proxy") => proxy::run(args.address("listen")?),
            Some("server") => server::run(args.address("listen")?),
            Some("stream") => stream::run(&args),
            Some("connect") => connect::run(&args),
            Some("idle") => idle::run(&args),
            Some("query") => query::run(&args),
            _ => {
                print!("{HELP}");
                Err(io::Error::other("no command"))
            }
        }
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-tools: {error}");
            ExitCode::FAILURE
        }
    }
}
