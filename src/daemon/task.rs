//! Tasks beside the event loop.

use std::pin::Pin;
use std::time::Duration;

use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{Sleep, sleep};

/// Starts a task. Must be called within the tokio runtime.
///
/// All tasks have the same boxed type, because tokio's code is compiled for each type: one copy of it outweighs an
/// allocation.
pub fn spawn(future: impl Future<Output = ()> + 'static) -> AbortHandle {
    let future: Pin<Box<dyn Future<Output = ()>>> = Box::pin(future);
    spawn_local(future).abort_handle()
}

/// Waits that long. One copy of the code for all callers.
#[inline(never)]
pub fn timer(duration: Duration) -> Pin<Box<Sleep>> {
    Box::pin(sleep(duration))
}
