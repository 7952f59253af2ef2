//! Many connections that do nothing.

use std::io::{self, BufRead, Write};
use std::net::SocketAddr;
use std::time::Duration;

use crate::args::Args;
use crate::dialogue::{Call, Question, Targets};
use crate::sys::{self, BOTH_EDGES, Epoll};

/// Most connections.
const MAX_CONNECTIONS: usize = 60_000;
/// Connections that are being made at a time.
const AT_A_TIME: usize = 64;
/// Nanoseconds that a connection may take to answer.
const PATIENCE: u64 = 5_000_000_000;

/// Makes `--connections`, prints how many there are, waits for a line on standard input or its end, asks
/// each for a byte, prints how many have answered, and closes them.
///
/// # Errors
/// If epoll fails, or there are more connections than files may be open.
pub fn run(args: &Args) -> io::Result<()> {
    let mut targets = Targets::new(args.address("to")?, args.number("spread", 1)?);
    let via: Option<SocketAddr> = args.value("via")?;
    let wanted = args.number("connections", 1000_usize)?.min(MAX_CONNECTIONS);

    let mut epoll = Epoll::new()?;
    let mut calls: Vec<Option<Call>> = Vec::with_capacity(wanted);
    let mut answered: Vec<bool> = Vec::with_capacity(wanted);
    let mut waiting = 0;
    let mut last = sys::now_ns();
    while calls.len() < wanted || waiting > 0 {
        while calls.len() < wanted && waiting < AT_A_TIME {
            let call = Call::new(targets.next(), via, Question::Hold)?;
            epoll.add(&call.socket, BOTH_EDGES, calls.len() as u64)?;
            calls.push(Some(call));
            answered.push(false);
            waiting += 1;
        }
        for token in epoll.wait(Some(Duration::from_millis(100)))? {
            let place = &mut calls[token as usize];
            let Some(call) = place else {
                continue;
            };
            let was_waiting = !answered[token as usize];
            match call.advance().and_then(|asked| Ok(if asked { byte(call)? } else { None })) {
                Ok(None) => continue,
                Ok(Some(())) => answered[token as usize] = true,
                Err(_) => *place = None,
            }
            last = sys::now_ns();
            waiting -= usize::from(was_waiting);
        }
        if sys::now_ns() - last > PATIENCE {
            break;
        }
    }
    let ready = calls.iter().zip(&answered).filter(|(call, answered)| call.is_some() && **answered).count();
    println!("{{\"ready\": {ready}, \"wanted\": {wanted}}}");
    io::stdout().flush()?;
    io::stdin().lock().read_line(&mut String::new())?;
    println!("{{\"alive\": {}}}", ask_again(&mut epoll, &mut calls)?);
    Ok(())
}

/// How many of the connections answer once more.
fn ask_again(epoll: &mut Epoll, calls: &mut [Option<Call>]) -> io::Result<usize> {
    let mut asked = 0;
    let mut answered = 0;
    let mut next = 0;
    let mut last = sys::now_ns();
    while answered < calls.len() && sys::now_ns() - last < PATIENCE {
        while next < calls.len() && asked < answered + AT_A_TIME {
            if let Some(call) = &calls[next] {
                _ = sys::write(&call.socket, &Question::Hold.bytes());
                asked += 1;
            }
            next += 1;
        }
        if answered == asked && next == calls.len() {
            break;
        }
        for token in epoll.wait(Some(Duration::from_millis(100)))? {
            let place = &mut calls[token as usize];
            match place.as_ref().map(byte) {
                Some(Ok(Some(()))) => {
                    answered += 1;
                    last = sys::now_ns();
                }
                Some(Err(_)) => *place = None,
                _ => {}
            }
        }
    }
    Ok(answered)
}

/// One byte of an answer, if it is there.
fn byte(call: &Call) -> io::Result<Option<()>> {
    match sys::read(&call.socket, &mut [0; 16])? {
        None => Ok(None),
        Some(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Some(_) => Ok(Some(())),
    }
}
