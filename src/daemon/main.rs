//! The tcp-over-http daemon: sets up, runs the event loop, cleans up.
//!
//! A room uses only those below it, except that all log by the macros of `report`.
//!
//! | room | what it does |
//! |---|---|
//! | `cli` | reads the command line |
//! | `event_loop` | waits for packets, sockets, timers and signals, and gives each its turn |
//! | `report` | tells how the daemon is: log, status, doctor |
//! | `sources` | finds the configuration: file, variable, flags |
//! | `gateway` | takes a connection from its SYN to its end |
//! | `dns` | answers the queries of clients |
//! | `upstream` | looks proxies up, dials them, asks them for tunnels |
//! | `kernel` | captures traffic: the TUN, routes, rules, nft, listeners, and tests of all that |
//! | `forward` | makes handshakes with proxies in clients' names |
//! | `pause` | knows which clients go out directly for a while |
//! | `netlink` | asks the kernel about routes, forwarded connections and neighbours |
//! | `relay` | moves the bytes of relayed connections |
//! | `limiter` | keeps a repeated warning from flooding the log |
//! | `tcp`, `task`, `clock` | tokio's TCP sockets without waiting, its tasks, the time |
//! | `sys` | makes every unsafe call |

#[macro_use]
mod report; // first: what others log by is known only below it

mod cli;
mod clock;
mod dns;
mod event_loop;
#[cfg(test)]
mod fixture;
mod forward;
mod gateway;
mod kernel;
mod limiter;
mod netlink;
mod pause;
mod relay;
mod sources;
mod sys;
mod task;
mod tcp;
mod upstream;

use std::io::Write;
use std::mem::ManuallyDrop;
use std::pin::Pin;
use std::process::ExitCode;
use std::rc::Rc;
use std::{env, fmt, io};

use tcp_over_http::capture::Owner;
use tcp_over_http::flow::Limits;
use tcp_over_http::rewrite::{self, Rewriter};
use tokio::runtime::{Builder, LocalOptions};

use crate::cli::Command;
use crate::clock::Clock;
use crate::dns::Dns;
use crate::event_loop::{End, EventLoop};
use crate::gateway::Gateway;
use crate::kernel::capture::{self, Capture};
use crate::kernel::route::RouteError;
use crate::kernel::tun::Tun;
use crate::kernel::{firewall, route};
use crate::pause::Paused;
use crate::relay::Resources;
use crate::relay::pipe::Pipes;
use crate::relay::poller::Poller;
use crate::report::document::Form;
use crate::report::{control, doctor, logger};
use crate::sources::Sources;
use crate::sys::signals::Signals;
use crate::upstream::Upstreams;
use tcp_over_http::config::{self, Config, ConfigError, DnsMode, OnFailure, Ping, Shell, VARIABLE};
use tcp_over_http::json;

/// Open files besides those of flows and pipes: resolvers, the TUN, netlink, logs, dials that are about to end.
const OTHER_FILES: usize = 64;
/// The fewest pipes that the daemon starts with. Only connections with bytes in flight need one.
const MIN_PIPES: usize = 64;

/// The capabilities that are kept after set-up (<linux/capability.h>): `CAP_NET_ADMIN` for rules, routes, marks and
/// nft; `CAP_NET_BIND_SERVICE` for low ports and `CAP_SYS_RESOURCE` for full-size pipes, also after a reload;
/// `CAP_NET_RAW` for the raw sockets of the next run.
const CAPABILITIES: u64 = 1 << 12 | 1 << 10 | 1 << 24 | 1 << 13;

fn main() -> ExitCode {
    match cli::parse(env::args_os().skip(1), env::var_os(VARIABLE)) {
        Ok(Command::Help) => print(&cli::Help),
        Ok(Command::Shell(sources)) => print(&Shell(&sources.load_readable())),
        Ok(Command::Options) => print(&config::options_as_json()),
        Ok(Command::Version) => print(&format_args!("{}\n", cli::Version)),
        Ok(Command::Check(sources)) => check(&sources),
        Ok(Command::Run(sources, leave_blocked)) => block_on(run(sources, leave_blocked)),
        Ok(Command::Block(sources)) => result(capture::block(&sources.load_readable())),
        Ok(Command::Unblock(sources)) => result(unblock(&sources.load_readable())),
        Ok(Command::Ask(sources, request, form)) => {
            let path = sources.load_readable().status_socket;
            let error = match control::ask(&path, &request) {
                Ok(answer) if answer.is_done => {
                    return print(if form == Form::Json { &answer.json } else { &answer.text });
                }
                Ok(answer) => answer.text.trim_ascii_end().to_owned(),
                Err(error) => format!("no daemon answers at {path}: {error}"),
            };
            if form == Form::Json {
                print(&json::error(&error));
            }
            fail(&error, 1)
        }
        Ok(Command::Doctor(sources, target)) => block_on(async move {
            match doctor::examine(&sources, &target).await {
                true => ExitCode::SUCCESS,
                false => ExitCode::FAILURE,
            }
        }),
        Err(error) => fail(&format_args!("tcp-over-http: {error}; see --help"), 2),
    }
}

fn check(sources: &Sources) -> ExitCode {
    match sources.load() {
        Ok(config) => {
            if let Some(warning) = sources::warning(&config) {
                _ = writeln!(io::stderr(), "warning: {warning}");
            }
            match sources.has_file() {
                true => print(&format_args!("{}: ok\n", sources.file_name())),
                false => print(&"ok\n"),
            }
        }
        Err(error) => fail(&error, error.exit_code()),
    }
}

/// Removes what an earlier run or `block` has left behind.
fn unblock(config: &Config) -> Result<(), RouteError> {
    firewall::sweep(config);
    route::clear(&Owner::new(config))
}

/// Runs within the runtime. Boxed: one copy of the code outweighs one allocation.
fn block_on(future: impl Future<Output = ExitCode> + 'static) -> ExitCode {
    let future: Pin<Box<dyn Future<Output = ExitCode>>> = Box::pin(future);
    match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
        // The runtime lives as long as the process: never dropping it saves the code that would.
        Ok(runtime) => ManuallyDrop::new(runtime).block_on(future),
        Err(error) => fail(&no_event_loop(error), 1),
    }
}

async fn run(sources: Sources, leave_blocked: bool) -> ExitCode {
    match serve(sources, leave_blocked).await {
        Ok((End::Asked, _)) => return ExitCode::SUCCESS,
        Ok((End::Restart, paused)) => {
            error!("restart: {}", sys::process::execute_again(&paused.hand_over()));
        }
        Ok((End::TunGone | End::Tun(_), _)) => {}
        Err(StartError::Config(error)) => return fail(&error, error.exit_code()),
        Err(StartError::Other(error)) => error!("{error}"),
    }
    ExitCode::FAILURE
}

/// Sets up and runs until the end. What captures traffic is removed if the end was asked for, or if
/// traffic may then go directly; if another run follows, traffic is refused until then.
async fn serve(sources: Sources, leave_blocked: bool) -> Result<(End, Rc<Paused>), StartError> {
    // First, before anything is set up that a signal would leave behind, and before the configuration is read, so that
    // no reload is missed.
    let (signals, restarted) = Signals::new().map_err(no_event_loop)?;
    if restarted {
        sys::set_process_name();
    }
    // The previous run has left traffic refused. If this one does not start, it stays refused only if it must not go
    // directly.
    let give_way = |config: &Config| {
        if restarted && config.on_failure == OnFailure::Direct {
            _ = unblock(config);
        }
    };
    let loaded = sources.load().inspect_err(|_| give_way(&sources.load_readable()));
    let config = Box::new(loaded.map_err(StartError::Config)?);
    logger::init(config.log_level);
    if let Some(warning) = sources::warning(&config) {
        warn!("{warning}");
    }
    let (gateway, capture) = set_up(&config, restarted).await.inspect_err(|_| give_way(&config))?;
    let ready = format!("{}: listening on port {}, {} path", config.tun, config.listen_port, capture.path());
    if let Err(error) = sys::keep_capabilities(CAPABILITIES) {
        warn!("give up privileges: {error}");
    }
    let event_loop = EventLoop::new(Rc::clone(&gateway), capture, signals, sources, config);
    if !restarted {
        event_loop.confine();
    }
    info!("{ready}"); // only now, when the status can be asked for
    let (end, capture, config) = event_loop.run().await;
    match &end {
        End::TunGone => error!("{}: the device is gone", config.tun),
        End::Tun(error) => error!("{}: read: {error}", config.tun),
        End::Asked | End::Restart => {}
    }
    if let Some(dns) = gateway.dns() {
        dns.save();
    }
    let paused = Rc::clone(gateway.paused());
    let blocks = leave_blocked && config.on_failure == OnFailure::Block;
    if matches!(end, End::Restart) || matches!(end, End::Asked) && blocks {
        capture.hand_over(&config);
        drop(gateway); // the device last, since its routes would go with it
    } else if matches!(end, End::Asked) || config.on_failure == OnFailure::Direct {
        capture.remove(&config);
    } else if config.captures() {
        warn!("captured traffic is blocked until the next start (on_failure 'block')");
    }
    Ok((end, paused))
}

async fn set_up(config: &Config, restarted: bool) -> Result<(Rc<Gateway>, Capture), String> {
    let others = if config.dns.mode == DnsMode::Off { OTHER_FILES } else { OTHER_FILES + dns::FILES };
    let pipes = reserve_files(config.max_flows as usize, others)?;
    let key = sys::random_key().map_err(|error| format!("random numbers: {error}"))?;
    let clock = Clock::start();
    let paused = Rc::new(Paused::new(clock, restarted && config.may_pause()));
    let upstreams = Rc::new(Upstreams::new(config, clock).map_err(|error| error.to_string())?);
    let tun = Tun::open(&config.tun, config.offload);
    let tun = Rc::new(tun.map_err(|error| format!("{}: {error}", config.tun))?);
    let rewriter = Rewriter::new(rewriter_settings(config), limits(config), key);
    let dns = dns::Context::new(
        clock,
        Rc::clone(&upstreams),
        Rc::clone(&tun),
        Rc::clone(&paused),
        Rc::clone(rewriter.neighbours()),
    );
    let dns = Dns::new(config, dns)?;
    let poller = Poller::new().map_err(no_event_loop)?;
    // Must be the last fallible step: it undoes itself only until it has succeeded.
    let capture = Capture::set_up(config, &tun, clock, key, Rc::clone(&paused), restarted).await?;
    let forwarder = capture.forwarder();
    if let Some(dns) = &dns
        && forwarder.is_some()
    {
        dns.set_forwarding();
    }
    let pipes = Pipes::new(pipes, config.pipe_size);
    let resources = Resources { pipes, poller };
    let gateway = Rc::new(Gateway::new(
        clock,
        tun,
        rewriter,
        upstreams,
        dns,
        resources,
        forwarder,
        paused,
        config.connect,
    ));
    Ok((gateway, capture))
}

/// Raises the limit of open files so that all flows can have their two sockets at once. Returns how many pipes there
/// can be besides: one for each flow, or as many as the limit leaves.
fn reserve_files(flows: usize, others: usize) -> Result<usize, String> {
    let sockets = 2 * flows + others;
    let wanted = sockets + 2 * flows.max(MIN_PIPES);
    let limit = sys::raise_file_limit(wanted).map_err(|error| format!("limit of open files: {error}"))?;
    let pipes = limit.min(wanted).saturating_sub(sockets) / 2;
    if pipes < MIN_PIPES {
        let needed = sockets + 2 * MIN_PIPES;
        return Err(format!(
            "max_flows needs {needed} open files, and the limit is {limit}: raise it or lower max_flows"
        ));
    }
    Ok(pipes)
}

fn rewriter_settings(config: &Config) -> rewrite::Settings {
    rewrite::Settings {
        subnets: config.subnets(),
        listen_port: config.listen_port,
        mtu: config.mtu,
        dns: config.dns.hijacks(),
        ping: config.ping == Ping::Answer,
    }
}

const fn limits(config: &Config) -> Limits {
    Limits { flows: config.max_flows, held: config.max_dials, held_per_client: config.max_dials_per_client }
}

/// Why the daemon could not start.
enum StartError {
    Config(ConfigError),
    Other(String),
}

impl From<String> for StartError {
    fn from(error: String) -> Self {
        Self::Other(error)
    }
}

fn no_event_loop(error: io::Error) -> String {
    format!("event loop: {error}")
}

/// Prints to stdout, without a panic if nobody reads it.
fn print(text: &dyn fmt::Display) -> ExitCode {
    match write!(io::stdout(), "{text}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn result(result: Result<(), RouteError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, 1),
    }
}

fn fail(error: &dyn fmt::Display, code: u8) -> ExitCode {
    // A closed stderr leaves nowhere to say so.
    let _ = writeln!(io::stderr(), "{error}");
    ExitCode::from(code)
}
