//! The signals that the daemon answers, read from a descriptor like all else that it waits for
//! (signalfd(2)): no handler, so no code that may run at any time.

use std::fs::File;
use std::io::{self, Read};
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;

use crate::sys;

/// Ask the daemon to end.
const END: [i32; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];
/// Asks for the counters.
const REPORT: i32 = libc::SIGUSR1;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// End.
    End,
    /// Log the counters.
    Report,
}

/// The signals that have come.
pub struct Signals {
    file: AsyncFd<File>,
}

impl Signals {
    /// From now on signals only come through here. Must be called within the tokio runtime.
    pub fn new() -> io::Result<Self> {
        let [a, b, c] = END;
        Ok(Self { file: sys::watch(sys::signals(&[a, b, c, REPORT])?)? })
    }

    /// The next signal. Equal ones that came together are one.
    pub fn poll_next(&self, cx: &mut Context) -> Poll<Signal> {
        loop {
            let Ok(mut ready) = ready!(self.file.poll_read_ready(cx)) else {
                return Poll::Pending; // the runtime ends
            };
            let mut info = [0; size_of::<libc::signalfd_siginfo>()];
            match ready.try_io(|file| file.get_ref().read(&mut info)) {
                // It begins with the number, `ssi_signo`.
                Ok(Ok(_)) if info.starts_with(&REPORT.to_ne_bytes()) => return Poll::Ready(Signal::Report),
                Ok(Ok(_)) => return Poll::Ready(Signal::End),
                Ok(Err(_)) | Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;
    use crate::resolver::tests::run;

    #[test]
    fn each_signal_asks_for_its_own() {
        run(async {
            let signals = Signals::new().unwrap();
            for (number, expected) in
                END.iter().map(|&end| (end, Signal::End)).chain([(REPORT, Signal::Report)])
            {
                sys::raise(number);
                sys::raise(number);
                assert_eq!(poll_fn(|cx| signals.poll_next(cx)).await, expected, "{number}");
            }
            let none = poll_fn(|cx| Poll::Ready(signals.poll_next(cx))).await;
            assert!(none.is_pending(), "{none:?}");
        });
    }
}
