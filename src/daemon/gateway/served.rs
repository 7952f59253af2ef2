//! Flows that a task serves until their end (HTTP requests, DNS over TCP).

use std::mem;
use std::pin::Pin;
use std::rc::Rc;

use tcp_over_http::flow::{NatSource, Slot};
use tokio::task::AbortHandle;

use super::Gateway;
use super::kept::Kept;
use crate::task::spawn;

impl Gateway {
    /// Starts a task that serves a flow. The flow ends with the task, if `work` returns true or the task is
    /// aborted.
    pub(super) fn serve(
        self: &Rc<Self>,
        slot: Slot,
        work: Pin<Box<dyn Future<Output = bool>>>,
    ) -> AbortHandle {
        let nat = self.rewriter.borrow().flow(slot).nat;
        let served = Served { slot, nat, gateway: Rc::clone(self) };
        spawn(async move {
            match work.await {
                true => served.gateway.keep(served.slot, Kept::Nothing),
                false => mem::forget(served),
            }
        })
    }
}

struct Served {
    slot: Slot,
    /// Distinguishes the flow from a later one in the same slot.
    nat: NatSource,
    gateway: Rc<Gateway>,
}

impl Drop for Served {
    /// Also runs when the task is aborted. That may take effect when the slot already has another flow.
    fn drop(&mut self) {
        let mut rewriter = self.gateway.rewriter.borrow_mut();
        if rewriter.flow(self.slot).nat == self.nat {
            rewriter.close(self.slot, self.gateway.now());
        }
    }
}
