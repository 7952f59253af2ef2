//! One direction of a relay: a socket, a pipe that is there only while bytes are in it, a socket.

use std::io;
use std::os::fd::OwnedFd;

use crate::sys;

/// Wished size of a pipe in bytes: the best of those tried.
const PIPE_SIZE: i32 = 256 << 10;
/// Most pipes that are kept for later.
const MAX_SPARE: usize = 256;
/// Bytes that a direction may move before others have their turn.
const BUDGET: usize = 4 << 20;

/// A pipe's reading and writing end.
type Pipe = (OwnedFd, OwnedFd);

/// Empty pipes.
#[derive(Default)]
pub struct Pipes(Vec<Pipe>);

impl Pipes {
    fn take(&mut self) -> io::Result<Pipe> {
        self.0.pop().map_or_else(|| sys::pipe(PIPE_SIZE), Ok)
    }

    fn give_back(&mut self, pipe: Pipe) {
        if self.0.len() < MAX_SPARE {
            self.0.push(pipe);
        }
    }
}

/// What a direction waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Another edge.
    Waits,
    /// Its next turn.
    Runs,
    /// Nothing: the end has been passed on.
    Ended,
}

/// One direction.
#[derive(Default)]
pub struct Direction {
    pipe: Option<Pipe>,
    /// Bytes in the pipe.
    held: usize,
    finished: bool,
    ended: bool,
}

impl Direction {
    /// Moves what can be moved.
    ///
    /// # Errors
    /// If a socket fails or no pipe can be had; the pipe is gone then.
    pub fn run(&mut self, from: &OwnedFd, to: &OwnedFd, pipes: &mut Pipes) -> io::Result<Progress> {
        if self.ended {
            return Ok(Progress::Ended);
        }
        let pipe = match self.pipe.take() {
            Some(pipe) => pipe,
            None => pipes.take()?,
        };
        let mut moved = 0;
        let mut starved = false;
        loop {
            if self.held == 0 && !self.finished && !starved {
                match sys::splice(from, &pipe.1, PIPE_SIZE as usize)? {
                    Some(0) => self.finished = true,
                    Some(count) => self.held = count,
                    None => starved = true,
                }
            }
            if self.held == 0 {
                pipes.give_back(pipe);
                if self.finished {
                    sys::finish(to);
                    self.ended = true;
                    return Ok(Progress::Ended);
                }
                return Ok(Progress::Waits);
            }
            match sys::splice(&pipe.0, to, self.held)? {
                Some(count) => {
                    self.held -= count;
                    moved += count;
                }
                None => {
                    self.pipe = Some(pipe);
                    return Ok(Progress::Waits);
                }
            }
            if self.held == 0 && moved >= BUDGET {
                pipes.give_back(pipe);
                return Ok(Progress::Runs);
            }
        }
    }
}
