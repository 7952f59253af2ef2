//! The pool of pipes that relays splice through.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::task::Waker;

use crate::sys;

/// How many idle pipes are kept.
const KEEP: usize = 32;

/// A non-blocking pipe.
pub struct Pipe {
    /// The end to read from.
    pub read: OwnedFd,
    /// The end to write to.
    pub write: OwnedFd,
}

/// Lends pipes to relays for as long as they have bytes under way.
pub struct Pipes {
    idle: RefCell<heapless::Vec<Pipe, KEEP>>,
    /// Who waits for a pipe.
    waiting: RefCell<Vec<Waker>>,
    open: Cell<usize>,
    limit: usize,
    size: u32,
}

impl Pipes {
    /// A pool of at most `limit` pipes of `size` bytes each, as far as the kernel grants the size.
    pub const fn new(limit: usize, size: u32) -> Self {
        Self {
            idle: RefCell::new(heapless::Vec::new()),
            waiting: RefCell::new(Vec::new()),
            open: Cell::new(0),
            limit,
            size,
        }
    }

    /// An empty pipe. None if all are in use; `waker` is woken when one is free.
    ///
    /// # Errors
    /// What pipe(2) says, when no relay could ever give one back.
    pub fn take(&self, waker: &Waker) -> io::Result<Option<Pipe>> {
        if let Some(pipe) = self.idle.borrow_mut().pop() {
            return Ok(Some(pipe));
        }
        let error = match self.open.get() < self.limit {
            true => match self.open() {
                Ok(pipe) => return Ok(Some(pipe)),
                Err(error) => Some(error),
            },
            false => None,
        };
        match error {
            Some(error) if self.open.get() == 0 => Err(error),
            _ => {
                let mut waiting = self.waiting.borrow_mut();
                if !waiting.iter().any(|other| other.will_wake(waker)) {
                    waiting.push(waker.clone());
                }
                Ok(None)
            }
        }
    }

    /// An empty pipe, even if that is one more than the limit.
    ///
    /// # Errors
    /// What pipe(2) says.
    pub fn take_now(&self) -> io::Result<Pipe> {
        let idle = self.idle.borrow_mut().pop();
        idle.map_or_else(|| self.open(), Ok)
    }

    /// Takes an empty pipe back.
    pub fn give_back(&self, pipe: Pipe) {
        if let Err(pipe) = self.idle.borrow_mut().push(pipe) {
            drop(pipe);
            self.open.set(self.open.get() - 1);
        }
        self.wake();
    }

    /// Closes a pipe that still has bytes in it.
    pub fn discard(&self, pipe: Pipe) {
        drop(pipe);
        self.open.set(self.open.get() - 1);
        self.wake();
    }

    fn open(&self) -> io::Result<Pipe> {
        let (read, write) = sys::pipe()?;
        // What the kernel gives by itself will do: unprivileged users have a limit of pipe pages.
        _ = sys::set_pipe_size(&write, self.size);
        self.open.set(self.open.get() + 1);
        Ok(Pipe { read, write })
    }

    /// Wakes all who wait, not one: the one might be gone.
    fn wake(&self) {
        self.waiting.take().into_iter().for_each(Waker::wake);
    }
}
