//! The memory that connections carried as HTTP requests have together, for heads and for bodies that may have to be sent
//! again. It does not grow with their number: a few clients could take all that a small router has.

use std::cell::Cell;
use std::rc::Rc;

/// From this many bytes in all...
const PLENTY: usize = 4 << 20;
/// ...one connection may have no more than this many: enough for nearly every request.
const LITTLE: usize = 2 << 10;

/// What one connection has of it.
pub struct Share {
    all: Rc<Cell<usize>>,
    bytes: usize,
}

impl Share {
    /// A share of nothing yet.
    pub const fn new(all: Rc<Cell<usize>>) -> Self {
        Self { all, bytes: 0 }
    }

    /// Notes how many bytes the connection has now. Returns whether these are too many.
    pub fn set(&mut self, bytes: usize) -> bool {
        let all = self.all.get() - self.bytes + bytes;
        self.all.set(all);
        self.bytes = bytes;
        bytes > LITTLE && all > PLENTY
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_all_have_plenty_one_may_have_little() {
        let all = Rc::default();
        let mut one = Share::new(Rc::clone(&all));
        assert!(!one.set(16 << 10));
        let mut many: Vec<_> = (0..255).map(|_| Share::new(Rc::clone(&all))).collect();
        assert!(many.iter_mut().all(|share| !share.set(16 << 10)));
        assert!(one.set((16 << 10) + 1) && !one.set(LITTLE));
        drop(many);
        assert!(!one.set(80 << 10));
        drop(one);
        assert_eq!(all.get(), 0);
    }
}
