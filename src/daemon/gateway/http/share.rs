//! The memory that connections carried as HTTP requests have together, for heads and for bodies that may have to be sent
//! again. It does not grow with their number: a few clients could take all that a small router has. One client can't
//! take what others need.

use std::cell::RefCell;
use std::rc::Rc;

use tcp_over_http::net::ClientKey;

/// From this many bytes in all...
const PLENTY: usize = 4 << 20;
/// ...or this many of one client...
const CLIENT_PLENTY: usize = 1 << 20;
/// ...one connection may have no more than this many: enough for nearly every request.
const LITTLE: usize = 2 << 10;

/// What all connections have together.
#[derive(Default)]
pub struct Shared {
    all: usize,
    /// Of each client that has any.
    clients: Vec<(ClientKey, usize)>,
}

/// What one connection has of it.
pub struct Share {
    shared: Rc<RefCell<Shared>>,
    client: ClientKey,
    bytes: usize,
}

impl Share {
    /// A connection of this client, with nothing yet.
    pub const fn new(shared: Rc<RefCell<Shared>>, client: ClientKey) -> Self {
        Self { shared, client, bytes: 0 }
    }

    /// Notes how many bytes the connection has now. Returns whether these are too many.
    pub fn set(&mut self, bytes: usize) -> bool {
        if bytes == 0 && self.bytes == 0 {
            return false;
        }
        let Shared { all, clients } = &mut *self.shared.borrow_mut();
        let index = clients.iter().position(|(client, _)| *client == self.client).unwrap_or_else(|| {
            clients.push((self.client, 0));
            clients.len() - 1
        });
        let of_client = &mut clients[index].1;
        for sum in [&mut *all, of_client] {
            *sum = *sum - self.bytes + bytes;
        }
        self.bytes = bytes;
        let is_plenty = *all > PLENTY || *of_client > CLIENT_PLENTY;
        if *of_client == 0 {
            clients.swap_remove(index);
        }
        bytes > LITTLE && is_plenty
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

    fn share(shared: &Rc<RefCell<Shared>>, client: u16) -> Share {
        Share::new(Rc::clone(shared), ClientKey::of([0x2001, 0xdb8, 0, client, 0, 0, 0, 1].into()))
    }

    #[test]
    fn where_all_have_plenty_one_may_have_little() {
        let shared = Rc::default();
        let mut one = share(&shared, 0);
        assert!(!one.set(16 << 10));
        let mut many: Vec<_> = (1..256).map(|client| share(&shared, client)).collect();
        assert!(many.iter_mut().all(|share| !share.set(16 << 10)));
        assert!(one.set((16 << 10) + 1) && !one.set(LITTLE));
        drop(many);
        assert!(!one.set(80 << 10));
        drop(one);
        assert_eq!(shared.borrow().all, 0);
    }

    #[test]
    fn a_client_takes_only_its_own() {
        let shared = Rc::default();
        let mut many: Vec<_> = (0..64).map(|_| share(&shared, 1)).collect();
        assert!(many.iter_mut().all(|share| !share.set(16 << 10)));
        let mut next = share(&shared, 1);
        assert!(!next.set(LITTLE) && next.set(LITTLE + 1));
        assert!(!share(&shared, 2).set(80 << 10));
        drop((many, next));
        assert!(shared.borrow().clients.is_empty());
    }
}
