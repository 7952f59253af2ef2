//! The tcp-over-http daemon: sets up, runs the event loop, cleans up.

mod capture;
mod cli;
mod config;
mod dial;
mod dns;
mod etc_files;
mod event_loop;
mod firewall;
mod gateway;
mod kept;
mod limiter;
mod listener;
mod log_level;
mod lookup;
mod netlink;
mod pipe;
mod policy;
mod poller;
mod probe;
mod proxy;
mod relay;
mod resolver;
mod route;
mod socket;
mod status;
mod status_socket;
mod sys;
mod sysctl;
mod task;
mod tun;
mod upstream;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::{env, fmt, io};

use tcp_over_http::flow::Limits;
use tcp_over_http::rewrite::{self, Path, Rewriter};
use tokio::runtime::{Builder, LocalOptions};

use crate::capture::{Capture, CaptureError, Subnets};
use crate::cli::Command;
use crate::config::{Config, DnsMode, OnFailure, Ping, Settings};
use crate::dns::{Dns, DnsError};
use crate::event_loop::{End, EventLoop, Signals};
use crate::gateway::Gateway;
use crate::pipe::Pipes;
use crate::poller::Poller;
use crate::relay::Supplies;
use crate::route::RouteError;
use crate::tun::{Tun, TunError};
use crate::upstream::Upstreams;

/// Files beyond those of flows and pipes: resolvers, the TUN, netlink, logs, dials that are just ending.
const OTHER_FILES: usize = 64;
/// The variable that tells a run that another has become it.
const RESTARTED: &str = "TCP_OVER_HTTP_RESTARTED";
/// The fewest pipes to start with: only connections with bytes under way have one.
const MIN_PIPES: usize = 64;

/// What is needed once all is set up (<linux/capability.h>): `CAP_NET_ADMIN` for rules, routes, marks and nft,
/// `CAP_NET_BIND_SERVICE` for low ports and `CAP_SYS_RESOURCE` for pipes of their full size, also after a reload.
const CAPABILITIES: u64 = 1 << 12 | 1 << 10 | 1 << 24;

fn main() -> ExitCode {
    match cli::parse(env::args_os().skip(1), env::var_os(config::VARIABLE)) {
        Ok(Command::Help) => print(cli::Help),
        Ok(Command::Version) => print(format_args!("{}\n", cli::Version)),
        Ok(Command::Check(settings)) => match settings.load() {
            Ok(_) if settings.has_file() => print(format_args!("{}: ok\n", settings.file_name())),
            Ok(_) => print("ok\n"),
            Err(error) => fail(&error, error.exit_code()),
        },
        Ok(Command::Run(settings)) => run(settings),
        Ok(Command::Block(settings)) => result(route::block(&settings.load_readable())),
        Ok(Command::Unblock(settings)) => {
            let config = settings.load_readable();
            firewall::sweep(&config);
            result(route::clear(&config))
        }
        Ok(Command::Status(settings, form)) => {
            let path = settings.load_readable().status_socket;
            match status_socket::ask(&path, form) {
                Ok(text) => print(text),
                Err(error) => fail(&format_args!("no daemon answers at {path}: {error}"), 1),
            }
        }
        Err(error) => fail(&format_args!("tcp-over-http: {error}"), 2),
    }
}

fn run(settings: Settings) -> ExitCode {
    let runtime = match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
        Ok(runtime) => runtime,
        Err(error) => return fail(&StartError::EventLoop(error), 1),
    };
    // Before anything is set up that an early end would leave behind, and before the configuration is read,
    // so that no change of it is missed.
    let within = runtime.enter();
    let signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => return fail(&StartError::EventLoop(error), 1),
    };
    drop(within);
    let config = match settings.load() {
        Ok(config) => Rc::new(config),
        Err(error) => return fail(&error, error.exit_code()),
    };
    log_level::init(config.log_level);
    let ended = runtime.block_on(serve(settings, Rc::clone(&config), signals));
    drop(runtime); // and with it all that is still open
    match ended {
        Ok(End::Asked) => return ExitCode::SUCCESS,
        Ok(End::Restart) => {
            let error = restart();
            log::error!("start anew: {error}");
        }
        Ok(End::TunGone) => log::error!("{}: the device is gone", config.tun),
        Ok(End::Tun(error)) => log::error!("{}: read: {error}", config.tun),
        Err(error) => {
            log::error!("{error}");
            // Refused since the run before has left it so.
            if env::var_os(RESTARTED).is_some()
                && config.on_failure == OnFailure::Direct
                && let Err(error) = route::clear(&config)
            {
                log::warn!("{error}");
            }
        }
    }
    ExitCode::FAILURE
}

/// Becomes another run with the same arguments. Returns only if that fails.
fn restart() -> io::Error {
    // Until that run takes it.
    sys::ignore_hangup();
    // Under its own name, unless the file has been replaced.
    let program = env::current_exe().ok().filter(|path| path.exists());
    let program = program.map_or_else(|| "/proc/self/exe".into(), PathBuf::into_os_string);
    sys::process::become_program(program, env::args_os(), RESTARTED)
}

/// Sets up and runs until the end. What captures traffic is removed if the end was asked for, or if
/// traffic may then go directly; if another run follows it is refused until then.
async fn serve(settings: Settings, config: Rc<Config>, signals: Signals) -> Result<End, StartError> {
    let others = if config.dns.mode == DnsMode::Off { OTHER_FILES } else { OTHER_FILES + dns::FILES };
    let pipes = reserve_files(config.max_flows as usize, others)?;
    let [a, b, c, d, e, f, g, h] = sys::random().map_err(StartError::Random)?;
    let key = [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])];
    let upstreams = Upstreams::new(&config).map_err(StartError::Upstreams)?;

    let dns = Dns::new(&config, Default::default()).map_err(StartError::Dns)?;

    let tun =
        Tun::open(&config.tun, config.offload).map_err(|error| StartError::Tun(config.tun.clone(), error))?;
    let capture = Capture::set_up(&config, &tun).await.map_err(StartError::Capture)?;
    let path = capture.path();
    let rewriter = Rewriter::new(rewriter_settings(&config, path), limits(&config), key);
    let pipes = Pipes::new(pipes, config.pipe_size);
    let supplies = Supplies { pipes, poller: Poller::new().map_err(StartError::EventLoop)? };
    let gateway = Rc::new(Gateway::new(tun, rewriter, upstreams, dns, supplies, config.connect));
    log::info!("{}: listening on port {}, {path} path", config.tun, config.listen_port);
    if let Err(error) = sys::keep_capabilities(CAPABILITIES) {
        log::warn!("give up privileges: {error}");
    }
    let leave_blocked = settings.leave_blocked;
    let event_loop = EventLoop::new(Rc::clone(&gateway), capture, signals, settings, config);
    let (end, capture, config) = event_loop.run().await;
    if let Some(dns) = gateway.dns() {
        dns.save(gateway.now());
    }
    let blocks = leave_blocked && config.on_failure == OnFailure::Block;
    if matches!(end, End::Restart) || matches!(end, End::Asked) && blocks {
        capture.hand_over(&config);
        drop(gateway); // only now the device: its routes would go with it
    } else if matches!(end, End::Asked) || config.on_failure == OnFailure::Direct {
        capture.remove();
    } else if config.captures() {
        log::warn!("captured traffic is blocked until the next start (on_failure 'block')");
    }
    Ok(end)
}

/// Sees to it that all flows can have their two sockets at a time. Returns how many pipes there can be
/// beside them: one a flow, or what the limit of open files leaves.
fn reserve_files(flows: usize, others: usize) -> Result<usize, StartError> {
    let sockets = 2 * flows + others;
    let wanted = sockets + 2 * flows.max(MIN_PIPES);
    let limit = sys::raise_file_limit(wanted).map_err(StartError::FileLimit)?;
    let pipes = limit.min(wanted).saturating_sub(sockets) / 2;
    if pipes < MIN_PIPES {
        return Err(StartError::Files { needed: sockets + 2 * MIN_PIPES, limit });
    }
    Ok(pipes)
}

fn rewriter_settings(config: &Config, path: Path) -> rewrite::Settings {
    let Subnets { ipv4, ipv6 } = Subnets::new(config);
    rewrite::Settings {
        path,
        ipv4,
        ipv6,
        listen_port: config.listen_port,
        mtu: config.mtu,
        dns: config.dns.hijacks(),
        ping: config.ping == Ping::Answer,
    }
}

const fn limits(config: &Config) -> Limits {
    Limits {
        flows: config.max_flows,
        held: config.max_dials,
        held_per_client: config.max_dials_per_client,
        hosts: 0, // the rewriter's to say
    }
}

/// What the daemon could not do when it started.
#[derive(Debug)]
enum StartError {
    EventLoop(io::Error),
    FileLimit(io::Error),
    Files { needed: usize, limit: usize },
    Random(io::Error),
    Upstreams(io::Error),
    Tun(String, TunError),
    Capture(CaptureError),
    Dns(DnsError),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::EventLoop(error) => write!(f, "event loop: {error}"),
            Self::FileLimit(error) => write!(f, "limit of open files: {error}"),
            Self::Files { needed, limit } => {
                write!(
                    f,
                    "max_flows needs {needed} open files, and the limit is {limit}: raise it or lower max_flows"
                )
            }
            Self::Random(error) => write!(f, "random numbers: {error}"),
            Self::Upstreams(error) => write!(f, "{error}"),
            Self::Tun(name, error) => write!(f, "{name}: {error}"),
            Self::Capture(error) => write!(f, "{error}"),
            Self::Dns(error) => write!(f, "{error}"),
        }
    }
}

/// To stdout, without a panic if nobody reads it.
fn print(text: impl fmt::Display) -> ExitCode {
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
