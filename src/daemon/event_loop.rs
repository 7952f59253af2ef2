//! The one loop of the daemon. What isn't here runs in a task per dial and per relay.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use crate::gateway::Gateway;
use crate::route::{Event, Routes};
use crate::summary;
use crate::tun::MAX_FRAME;

/// How many frames are read before the relays have their turn: many enough to make a wake-up worth it,
/// few enough not to let the sockets' buffers fill up meanwhile.
const FRAMES: usize = 16;
/// How many connections are accepted before others have their turn.
const ACCEPTS: usize = 16;
/// The frame's offset in its buffer: puts the IP header at a multiple of 16 bytes.
const ALIGN: usize = 6;
/// What the packets of connections that are cut off at the end get to go out.
const FAREWELL: Duration = Duration::from_millis(200);

/// How often flows are looked through for those that have waited too long...
const TICK: Duration = Duration::from_secs(1);
/// ...and, while draining, whether any are left.
const DRAIN_TICK: Duration = Duration::from_millis(20);

/// Why the loop ended.
#[derive(Debug)]
pub enum End {
    /// A signal asked for it, and all connections have ended or have been cut off.
    Asked,
    /// The TUN is gone.
    TunGone,
    /// Reading the TUN failed.
    Tun(io::Error),
}

/// What the loop waits for.
pub struct EventLoop {
    gateway: Rc<Gateway>,
    listeners: Vec<TcpListener>,
    drain_timeout: Duration,
    buffer: Box<[u8]>,
    tick: Interval,
    /// Set once a signal has asked to end: when connections are cut off, then when the loop ends.
    deadlines: Option<(Instant, Instant)>,
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    user: Signal,
}

impl EventLoop {
    /// # Errors
    /// If signals can't be caught.
    pub fn new(
        gateway: Rc<Gateway>,
        listeners: Vec<TcpListener>,
        drain_timeout: Duration,
    ) -> io::Result<Self> {
        Ok(Self {
            gateway,
            listeners,
            drain_timeout,
            buffer: vec![0; ALIGN + MAX_FRAME].into_boxed_slice(),
            tick: every(TICK),
            deadlines: None,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user: signal(SignalKind::user_defined1())?,
        })
    }

    /// Runs until a signal ends it or the TUN is gone, and keeps `routes` in place meanwhile. Gives them
    /// back: whether they go depends on the end.
    pub async fn run(mut self, mut routes: Routes) -> (End, Routes) {
        let end = poll_fn(|cx| self.poll(cx, &mut routes)).await;
        (end, routes)
    }

    fn poll(&mut self, cx: &mut Context, routes: &mut Routes) -> Poll<End> {
        if let Poll::Ready(end) = self.poll_tun(cx) {
            return Poll::Ready(end);
        }
        self.poll_listeners(cx);
        self.poll_signals(cx);
        while self.tick.poll_tick(cx).is_ready() {
            self.gateway.handle_tick(self.gateway.now());
        }
        while let Poll::Ready(event) = routes.poll_event(cx) {
            match event {
                Event::Gone => return Poll::Ready(End::TunGone),
                Event::Restore => match routes.restore() {
                    Ok(()) => log::warn!("routes were changed from outside: restored"),
                    // The device may be on its way out: that would be the next event.
                    Err(error) => log::warn!("routes were changed from outside: {error}"),
                },
            }
        }
        self.poll_drained()
    }

    fn poll_tun(&mut self, cx: &mut Context) -> Poll<End> {
        let frame = &mut self.buffer[ALIGN..];
        let now = self.gateway.now();
        for _ in 0..FRAMES {
            match self.gateway.tun().poll_read(cx, frame) {
                Poll::Ready(Ok(length)) => self.gateway.handle_frame(&mut frame[..length], now),
                // The device has been deleted.
                Poll::Ready(Err(error)) if error.raw_os_error() == Some(libc::EBADFD) => {
                    return Poll::Ready(End::TunGone);
                }
                Poll::Ready(Err(error)) => return Poll::Ready(End::Tun(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_listeners(&self, cx: &mut Context) {
        for listener in &self.listeners {
            let mut turn = 0;
            while turn < ACCEPTS {
                match listener.poll_accept(cx) {
                    Poll::Pending => break,
                    Poll::Ready(Ok((client, peer))) => {
                        self.gateway.handle_accepted(client, peer, self.gateway.now());
                    }
                    // A connection that was reset before it was accepted, or no memory for it. Not the
                    // limit of open files: it was raised to what all flows can need.
                    Poll::Ready(Err(error)) => log::debug!("accept: {error}"),
                }
                turn += 1;
            }
            if turn == ACCEPTS {
                cx.waker().wake_by_ref();
            }
        }
    }

    fn poll_signals(&mut self, cx: &mut Context) {
        for signal in [&mut self.terminate, &mut self.interrupt, &mut self.hangup] {
            while signal.poll_recv(cx).is_ready() {
                let now = Instant::now();
                // Asked twice: at once.
                let patience = if self.deadlines.is_some() { Duration::ZERO } else { self.drain_timeout };
                log::info!("ending; connections get {} s", patience.as_secs());
                self.deadlines = Some((now + patience, now + patience + FAREWELL));
                self.gateway.drain();
                self.tick = every(DRAIN_TICK);
                cx.waker().wake_by_ref();
            }
        }
        while self.user.poll_recv(cx).is_ready() {
            summary::log(&self.gateway);
        }
    }

    fn poll_drained(&mut self) -> Poll<End> {
        let Some((cut, end)) = &mut self.deadlines else {
            return Poll::Pending;
        };
        let now = Instant::now();
        if self.gateway.is_idle() || now >= *end {
            return Poll::Ready(End::Asked);
        }
        if now >= *cut {
            self.gateway.abort_all();
            *cut = *end; // once
        }
        Poll::Pending
    }
}

fn every(period: Duration) -> Interval {
    let mut tick = interval(period);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}
