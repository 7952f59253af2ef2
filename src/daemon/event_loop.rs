//! The daemon's only loop. Dials and DNS exchanges run as tasks beside it. What is asked on the status socket is done in
//! `requests`.

mod requests;

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use crate::gateway::Gateway;
use crate::kernel::capture::{self, Capture};
use crate::kernel::tun::MAX_FRAME;
use crate::report::control::StatusSocket;
use crate::report::document::Form;
use crate::report::logger;
use crate::report::status;
use crate::sources::Sources;
use crate::sys;
use crate::sys::signals::{self, Signals};
use crate::task::timer;
use crate::upstream::Upstreams;
use crate::upstream::choice_file::ChoiceFile;
use tcp_over_http::config::{Changes, Config};

/// How many frames are read before the relays get a turn: enough to make a wake-up worthwhile, few enough that the
/// sockets' buffers don't fill up meanwhile.
const FRAMES: usize = 16;
/// How many connections are accepted before others have their turn.
const ACCEPTS: usize = 16;
/// The frame's offset in its buffer: puts the IP header at a multiple of 16 bytes.
const ALIGN: usize = 6;
/// How long the last packets of connections that are cut off at the end have to get out.
const FAREWELL: Duration = Duration::from_millis(200);

/// How often the loop looks for flows that have waited too long...
const TICK: Duration = Duration::from_secs(1);
/// ...and, while draining, checks whether any are left.
const DRAIN_TICK: Duration = Duration::from_millis(20);

/// Why the loop ended.
#[derive(Debug)]
pub enum End {
    /// A signal asked for it, and all connections have ended or have been cut off.
    Asked,
    /// The same, because a changed configuration needs a new run.
    Restart,
    /// The TUN is gone.
    TunGone,
    /// Reading the TUN failed.
    Tun(io::Error),
}

/// A configuration that is being taken over.
struct Reload {
    new: Box<Config>,
    upstreams: Upstreams,
    changes: Changes,
    /// Another reload has been asked for meanwhile.
    again: bool,
}

/// Everything the loop waits for.
pub struct EventLoop {
    gateway: Rc<Gateway>,
    capture: Capture,
    sources: Sources,
    config: Box<Config>,
    /// The configuration of the next run, which begins once connections have ended.
    next: Option<Box<Config>>,
    /// A reload that has not ended yet.
    reload: Option<Reload>,
    status_socket: Option<StatusSocket>,
    choice_file: ChoiceFile,
    buffer: Box<[u8]>,
    /// Not an `Interval`, which needs 128-bit division.
    tick: Pin<Box<Sleep>>,
    /// Set once a signal has asked to end: when connections are cut off or, if true (they have been), when the loop
    /// ends.
    deadline: Option<(Instant, bool)>,
    signals: Signals,
}

impl EventLoop {
    /// A loop that is ready to run.
    pub fn new(
        gateway: Rc<Gateway>,
        capture: Capture,
        signals: Signals,
        sources: Sources,
        config: Box<Config>,
    ) -> Self {
        let choice_file = ChoiceFile::new(sources.has_file().then(|| sources.file_name()));
        choice_file.apply(&gateway.upstreams());
        let this = Self {
            gateway,
            capture,
            status_socket: status_socket(&config),
            choice_file,
            sources,
            config,
            next: None,
            reload: None,
            buffer: vec![0; ALIGN + MAX_FRAME].into_boxed_slice(),
            tick: timer(Duration::ZERO),
            deadline: None,
            signals,
        };
        this.read_uplinks();
        this
    }

    /// Gives up the right to write anywhere except where the configuration has files and where the set-up writes (that
    /// of the next run too, which can't regain what this one gives up), then the system calls that are not needed.
    pub fn confine(&self) {
        let status = &*self.config.status_socket;
        let files = [status, &self.config.dns.fakeip_file, self.choice_file.path().unwrap_or(status)];
        let [a, b, c] = files.map(sys::folder);
        let files = sys::keep_writable(&["/proc/sys/net", "/dev/net", a, b, c]);
        for (what, kept) in [("Landlock", files), ("seccomp", sys::keep_calls())] {
            if let Err(error) = kept {
                debug!("{what}: {error}");
            }
        }
    }

    /// Runs until a signal ends it or the TUN is gone. Returns what captures traffic, since what happens to that
    /// depends on the end, and the current configuration: the next run's if there is one, or that of a reload which has
    /// not ended.
    pub async fn run(mut self) -> (End, Capture, Box<Config>) {
        let end = poll_fn(|cx| self.poll(cx)).await;
        let unfinished = self.reload.map(|reload| reload.new);
        (end, self.capture, self.next.or(unfinished).unwrap_or(self.config))
    }

    fn poll(&mut self, cx: &mut Context) -> Poll<End> {
        if let Poll::Ready(end) = self.poll_tun(cx) {
            return Poll::Ready(end);
        }
        self.gateway.flush();
        self.poll_listeners(cx);
        self.gateway.poll_relays(cx);
        if let Some(dns) = self.gateway.dns() {
            dns.poll(cx);
        }
        self.poll_signals(cx);
        self.poll_status(cx);
        while let Poll::Ready(event) = self.poll_capture(cx) {
            match event {
                capture::Event::Gone => return Poll::Ready(End::TunGone),
                capture::Event::Reconfigured(result) => self.end_reload(result),
            }
        }
        // After everything that may begin to drain, since draining has its own tick.
        while self.tick.as_mut().poll(cx).is_ready() {
            self.tick = timer(if self.deadline.is_none() { TICK } else { DRAIN_TICK });
            self.gateway.handle_tick(self.gateway.now());
            self.capture.tick();
            let now = self.gateway.now();
            if self.gateway.paused().change(|pauses| pauses.expire(now)) {
                info!("a pause is over");
                self.pause_changed(true);
            }
        }
        self.poll_drained()
    }

    fn poll_capture(&mut self, cx: &mut Context) -> Poll<capture::Event> {
        let config = self.reload.as_ref().map_or(&self.config, |reload| &reload.new);
        self.capture.poll_event(cx, config)
    }

    fn poll_tun(&mut self, cx: &mut Context) -> Poll<End> {
        let frame = &mut self.buffer[ALIGN..];
        let now = self.gateway.now();
        for turn in 0..FRAMES {
            match self.gateway.tun().poll_read(cx, frame) {
                Poll::Ready(Ok(length)) => {
                    self.gateway.handle_frame(&mut frame[..length], now);
                    // Only after a full burst may there be more.
                    if turn == 0 {
                        self.gateway.flush();
                    }
                }
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
        for listener in self.capture.listeners() {
            let mut turn = 0;
            while turn < ACCEPTS {
                match listener.poll_accept(cx) {
                    Poll::Pending => break,
                    Poll::Ready(Ok((client, peer))) => {
                        self.gateway.handle_accepted(client, peer, self.gateway.now());
                    }
                    // The connection was reset before it was accepted, or there is no memory for it. It can't be the
                    // limit of open files, which was raised to what all flows can need.
                    Poll::Ready(Err(error)) => debug!("accept: {error}"),
                }
                turn += 1;
            }
            if turn == ACCEPTS {
                cx.waker().wake_by_ref();
            }
        }
    }

    fn poll_signals(&mut self, cx: &mut Context) {
        while let Poll::Ready(number) = self.signals.poll_next(cx) {
            match number {
                signals::RELOAD => self.reload(),
                signals::REPORT => {
                    for line in status::status(&self.gateway, &self.config).render(Form::Text).lines() {
                        info!("{line}");
                    }
                }
                _ => {
                    // Asked twice: end at once.
                    let again = self.deadline.is_some() && self.next.take().is_none();
                    self.drain(if again { Duration::ZERO } else { self.config.drain_timeout });
                }
            }
            cx.waker().wake_by_ref();
        }
    }

    fn drain(&mut self, patience: Duration) {
        info!("ending; connections get {} s", patience.as_secs());
        let now = Instant::now();
        self.deadline = Some((now + patience, false));
        self.gateway.drain();
        self.tick = timer(DRAIN_TICK);
    }

    /// Reads the configuration again and applies what has changed: without interruption, or by a new run.
    fn reload(&mut self) {
        if self.deadline.is_some() {
            return; // the next run, if there is one, reads it anyway
        }
        if let Some(reload) = &mut self.reload {
            reload.again = true;
            return;
        }
        let new = match self.sources.load() {
            Ok(new) => Box::new(new),
            Err(error) => return error!("reload: {error}; nothing is changed"),
        };
        let changes = Changes::new(&self.config, &new);
        if changes.need_restart() {
            info!("reload: {changes}");
            self.next = Some(new);
            return self.drain(self.config.drain_timeout);
        }
        // First what may fail, so that a failure changes nothing.
        match Upstreams::new(&new, self.gateway.clock()) {
            Ok(upstreams) => {
                new.rules.inherit(&self.config.rules);
                self.capture.reconfigure(&new);
                self.reload = Some(Reload { new, upstreams, changes, again: false });
            }
            Err(error) => error!("reload: {error}"),
        }
    }

    /// Ends a reload: the kernel has applied the new configuration, or refused.
    fn end_reload(&mut self, result: Result<(), String>) {
        let Some(Reload { new, upstreams, changes, again }) = self.reload.take() else { return };
        match result {
            Ok(()) => {
                self.gateway.configure(&self.config, &new, upstreams);
                logger::set_level(new.log_level);
                if new.status_socket != self.config.status_socket {
                    self.status_socket = status_socket(&new);
                }
                self.config = new;
                if !self.config.may_pause() && self.gateway.paused().change(|pauses| pauses.end(None)) {
                    self.pause_changed(true);
                }
                self.read_uplinks();
                info!("reload: {changes}");
            }
            Err(error) => error!("reload: {error}"),
        }
        if again {
            self.reload();
        }
    }

    fn poll_status(&mut self, cx: &mut Context) {
        let Some(mut socket) = self.status_socket.take() else { return };
        socket.poll_answer(cx, &mut |request| self.answer(request));
        self.status_socket = Some(socket);
    }

    fn poll_drained(&mut self) -> Poll<End> {
        let Some((deadline, is_cut_off)) = self.deadline else { return Poll::Pending };
        let now = Instant::now();
        if self.gateway.is_idle() || now >= deadline && is_cut_off {
            return Poll::Ready(if self.next.is_some() { End::Restart } else { End::Asked });
        }
        if now >= deadline {
            self.gateway.abort_all();
            self.deadline = Some((now + FAREWELL, true)); // from now, however late that is
        }
        Poll::Pending
    }
}

/// Without a status socket the daemon still does its work.
fn status_socket(config: &Config) -> Option<StatusSocket> {
    let path = &config.status_socket;
    StatusSocket::listen(path).inspect_err(|error| warn!("status_socket {path}: {error}")).ok()
}
