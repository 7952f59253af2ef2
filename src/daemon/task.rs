//! Tasks beside the event loop.

use std::pin::Pin;
use std::time::Duration;

use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{Sleep, sleep};

/// Starts a task. Must be called within the tokio runtime.
///
/// All tasks have one type: tokio's part of a task is compiled for each, and one copy of the code outweighs
/// one allocation.
pub fn spawn(future: impl Future<Output = ()> + 'static) -> AbortHandle {
    let future: Pin<Box<dyn Future<Output = ()>>> = Box::pin(future);
    spawn_local(future).abort_handle()
}

/// Is ready after that time. One copy for all.
#[inline(never)]
pub fn timer(duration: Duration) -> Pin<Box<Sleep>> {
    Box::pin(sleep(duration))
}
