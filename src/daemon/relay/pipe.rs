//! The pool of pipes that relays splice through.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;

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
    open: Cell<usize>,
    /// Whether a pipe has come back since this was last asked.
    freed: Cell<bool>,
    limit: usize,
    size: u32,
}

impl Pipes {
    /// A pool of at most `limit` pipes of `size` bytes each, as far as the kernel grants the size.
    pub const fn new(limit: usize, size: u32) -> Self {
        Self {
            idle: RefCell::new(heapless::Vec::new()),
            open: Cell::new(0),
            freed: Cell::new(false),
            limit,
            size,
        }
    }

    /// Takes an empty pipe; `None` if all are in use.
    ///
    /// # Errors
    /// What pipe(2) says, if none is in use, so that waiting for one would be in vain.
    pub fn take(&self) -> io::Result<Option<Pipe>> {
        if let Some(pipe) = self.idle.borrow_mut().pop() {
            return Ok(Some(pipe));
        }
        if self.open.get() >= self.limit {
            return Ok(None);
        }
        match self.open() {
            Ok(pipe) => Ok(Some(pipe)),
            Err(error) if self.open.get() == 0 => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// Takes an empty pipe, even one above the limit.
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
        self.freed.set(true);
    }

    /// Closes a pipe that still has bytes in it.
    pub fn discard(&self, pipe: Pipe) {
        drop(pipe);
        self.open.set(self.open.get() - 1);
        self.freed.set(true);
    }

    /// Whether those who got none may try again.
    pub fn have_been_freed(&self) -> bool {
        self.freed.replace(false)
    }

    fn open(&self) -> io::Result<Pipe> {
        let (read, write) = sys::pipe()?;
        // May fail: unprivileged users have a limit of pipe pages. The default size will do.
        _ = sys::set_pipe_size(&write, self.size);
        self.open.set(self.open.get() + 1);
        Ok(Pipe { read, write })
    }
}
