//! Runs nft(8) with commands.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;

use crate::sys;
use crate::sys::process::{self, Child};

const COMMAND: [&CStr; 3] = [c"nft", c"-f", c"-"];
/// Bytes of nft's output to keep: an error is a line and some context.
const SAID: usize = 1024;

/// A run under way.
pub struct Nft {
    /// nft's output. Declared before `child`: a drop must close the output before it waits for nft, which
    /// could otherwise block on writing.
    output: AsyncFd<File>,
    said: Vec<u8>,
    child: Child,
}

impl Nft {
    /// Starts nft with these commands. Must be called within the tokio runtime.
    pub fn start(commands: &str) -> Result<Self, String> {
        let begin = || {
            let (child, output) = spawn(commands)?;
            output.set_nonblocking(true)?;
            let output = sys::watch(File::from(OwnedFd::from(output)))?;
            Ok(Self { child, output, said: Vec::new() })
        };
        begin().map_err(not_run)
    }

    /// Ready when it has ended.
    pub fn poll(&mut self, cx: &mut Context) -> Poll<Result<(), String>> {
        let mut buffer = [0; SAID];
        loop {
            match ready!(sys::poll_read(&self.output, cx, &mut buffer)) {
                Ok(0) => return Poll::Ready(end(&mut self.child, &self.said)),
                Ok(length) if self.said.len() < SAID => self.said.extend_from_slice(&buffer[..length]),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(not_run(error))),
            }
        }
    }
}

/// Runs nft with these commands, and blocks until it has ended.
pub fn run(commands: &str) -> Result<(), String> {
    let (mut child, output) = spawn(commands).map_err(not_run)?;
    let said = sys::read_open(File::from(OwnedFd::from(output)), sys::MAX_TEXT).map_err(not_run)?;
    end(&mut child, &said)
}

fn spawn(commands: &str) -> io::Result<(Child, UnixStream)> {
    let mut input = process::memory_file()?;
    input.write_all(commands.as_bytes())?;
    input.rewind()?;
    let (ours, its) = UnixStream::pair()?;
    Ok((process::spawn(&COMMAND, &input, &its)?, ours))
}

/// Waits for nft, which has closed its output and so is about to exit.
fn end(child: &mut Child, said: &[u8]) -> Result<(), String> {
    match child.wait() {
        Ok(true) => Ok(()),
        Ok(false) => {
            Err(format!("nft: {}", String::from_utf8_lossy(said).lines().next().unwrap_or("refuses")))
        }
        Err(error) => Err(not_run(error)),
    }
}

fn not_run(error: io::Error) -> String {
    format!("run nft: {error}")
}
