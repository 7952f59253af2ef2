//! The pool of pipes that relays splice through.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use crate::sys;

/// How many idle pipes are kept.
const KEEP: usize = 32;

/// A non-blocking pipe. One that still contains bytes must be dropped, not given back.
pub struct Pipe {
    /// The end to read from.
    pub read: OwnedFd,
    /// The end to write to.
    pub write: OwnedFd,
    counts: Rc<Counts>,
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.counts.open.set(self.counts.open.get() - 1);
        self.counts.freed.set(true);
    }
}

#[derive(Default)]
struct Counts {
    open: Cell<usize>,
    /// Whether a pipe has been given back since the last [`Pipes::have_been_freed`].
    freed: Cell<bool>,
}

/// Lends pipes to relays for as long as they have bytes in flight.
pub struct Pipes {
    idle: RefCell<heapless::Vec<Pipe, KEEP>>,
    counts: Rc<Counts>,
    limit: usize,
    size: u32,
}

impl Pipes {
    /// A pool of at most `limit` pipes of `size` bytes each, as far as the kernel grants the size.
    pub fn new(limit: usize, size: u32) -> Self {
        Self { idle: RefCell::new(heapless::Vec::new()), counts: Rc::default(), limit, size }
    }

    /// Takes an empty pipe; `None` if all are in use.
    ///
    /// # Errors
    /// The error of pipe(2), if no pipe is in use, so that waiting for one would be in vain.
    pub fn take(&self) -> io::Result<Option<Pipe>> {
        if let Some(pipe) = self.idle.borrow_mut().pop() {
            return Ok(Some(pipe));
        }
        if self.counts.open.get() >= self.limit {
            return Ok(None);
        }
        match self.open() {
            Ok(pipe) => Ok(Some(pipe)),
            Err(error) if self.counts.open.get() == 0 => Err(error),
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
        _ = self.idle.borrow_mut().push(pipe);
        self.counts.freed.set(true);
    }

    /// Whether relays that got no pipe may try again.
    pub fn have_been_freed(&self) -> bool {
        self.counts.freed.replace(false)
    }

    fn open(&self) -> io::Result<Pipe> {
        let (read, write) = sys::pipe()?;
        // May fail, since unprivileged users have a limit of pipe pages. The default size will do.
        _ = sys::set_pipe_size(&write, self.size);
        self.counts.open.set(self.counts.open.get() + 1);
        Ok(Pipe { read, write, counts: Rc::clone(&self.counts) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_is_dropped_makes_room() {
        let pipes = Pipes::new(1, 1 << 16);
        let pipe = pipes.take().unwrap();
        assert!(pipe.is_some() && pipes.take().unwrap().is_none());
        drop(pipe);
        assert!(pipes.have_been_freed() && pipes.take().unwrap().is_some());
    }
}
