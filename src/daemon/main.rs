//! The tcp-over-http daemon: sets up, runs the event loop, cleans up.

mod capture;
mod cli;
mod config;
mod dial;
mod etc_files;
mod event_loop;
mod firewall;
mod gateway;
mod kept;
mod limiter;
mod listener;
mod lookup;
mod netlink;
mod pipe;
mod policy;
mod probe;
mod proxy;
mod relay;
mod resolver;
mod route;
mod status;
mod status_socket;
mod sys;
mod sysctl;
mod task;
mod tun;
mod upstream;

use std::io::Write;
use std::process::ExitCode;
use std::rc::Rc;
use std::{env, fmt, io};

use tcp_over_http::flow::Limits;
use tcp_over_http::rewrite::{Path, Rewriter, Settings};
use tokio::runtime::{Builder, LocalOptions};

use crate::capture::{Capture, CaptureError, Subnets};
use crate::cli::Command;
use crate::config::{Config, OnFailure};
use crate::event_loop::{End, EventLoop, Signals};
use crate::gateway::Gateway;
use crate::pipe::Pipes;
use crate::tun::{Tun, TunError};
use crate::upstream::Upstreams;

/// Files beyond those of flows and pipes: resolvers, the TUN, netlink, logs, dials that are just ending.
const OTHER_FILES: usize = 64;
/// The fewest pipes to start with: only connections with bytes under way have one.
const MIN_PIPES: usize = 64;

fn main() -> ExitCode {
    match cli::parse(env::args_os().skip(1), env::var_os(config::VARIABLE)) {
        Ok(Command::Help) => print(cli::Help),
        Ok(Command::Version) => print(format_args!("{}\n", cli::Version)),
        Ok(Command::Check(settings)) => match settings.load() {
            Ok(_) if settings.has_file() => print(format_args!("{}: ok\n", settings.file_name())),
            Ok(_) => print("ok\n"),
            Err(error) => fail(&error, error.exit_code()),
        },
        Ok(Command::Run(settings)) => match settings.load() {
            Ok(config) => run(&config),
            Err(error) => fail(&error, error.exit_code()),
        },
        Ok(Command::Status(settings, form)) => {
            let path = settings.status_socket();
            match status_socket::ask(&path, form) {
                Ok(text) => print(text),
                Err(error) => fail(&format_args!("no daemon answers at {path}: {error}"), 1),
            }
        }
        Err(error) => fail(&format_args!("tcp-over-http: {error}"), 2),
    }
}

fn run(config: &Config) -> ExitCode {
    env_logger::Builder::new().filter_level(config.log_level).parse_default_env().init();
    let ended = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .map_err(StartError::EventLoop)
        .and_then(|runtime| runtime.block_on(serve(config)));
    match ended {
        Ok(End::Asked) => ExitCode::SUCCESS,
        Ok(End::TunGone) => {
            log::error!("{}: the device is gone", config.tun);
            ExitCode::FAILURE
        }
        Ok(End::Tun(error)) => {
            log::error!("{}: read: {error}", config.tun);
            ExitCode::FAILURE
        }
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Sets up and runs until the end. What captures traffic is removed if the end was asked for, or if
/// traffic may then go directly.
async fn serve(config: &Config) -> Result<End, StartError> {
    let pipes = reserve_files(config.max_flows as usize)?;
    let [a, b, c, d, e, f, g, h] = sys::random().map_err(StartError::Random)?;
    let key = [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])];
    let upstreams = Upstreams::new(config).map_err(StartError::Upstreams)?;

    // Before anything is set up that an early end would leave behind.
    let signals = Signals::new().map_err(StartError::EventLoop)?;
    let tun =
        Tun::open(&config.tun, config.offload).map_err(|error| StartError::Tun(config.tun.clone(), error))?;
    let capture = Capture::set_up(config, &tun).await.map_err(StartError::Capture)?;
    let path = capture.path();
    let rewriter = Rewriter::new(settings(config, path), limits(config), key);
    let pipes = Pipes::new(pipes, config.pipe_size);
    let gateway = Rc::new(Gateway::new(tun, rewriter, upstreams, pipes, config.connect));
    let event_loop = EventLoop::new(gateway, capture, signals, config.clone());
    log::info!("{}: listening on port {}, {path} path", config.tun, config.listen_port);
    let (end, capture) = event_loop.run().await;
    if matches!(end, End::Asked) || config.on_failure == OnFailure::Direct {
        capture.remove();
    } else if config.captures() {
        log::warn!("captured traffic is blocked until the next start (on_failure 'block')");
    }
    Ok(end)
}

/// Sees to it that all flows can have their two sockets at a time. Returns how many pipes there can be
/// beside them: one a flow, or what the limit of open files leaves.
fn reserve_files(flows: usize) -> Result<usize, StartError> {
    let sockets = 2 * flows + OTHER_FILES;
    let wanted = sockets + 2 * flows.max(MIN_PIPES);
    let limit = sys::raise_file_limit(wanted).map_err(StartError::FileLimit)?;
    let pipes = limit.min(wanted).saturating_sub(sockets) / 2;
    if pipes < MIN_PIPES {
        return Err(StartError::Files { needed: sockets + 2 * MIN_PIPES, limit });
    }
    Ok(pipes)
}

fn settings(config: &Config, path: Path) -> Settings {
    let Subnets { ipv4, ipv6 } = Subnets::new(config);
    Settings { path, ipv4, ipv6, listen_port: config.listen_port, mtu: config.mtu }
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

fn fail(error: &dyn fmt::Display, code: u8) -> ExitCode {
    // A closed stderr leaves nowhere to say so.
    let _ = writeln!(io::stderr(), "{error}");
    ExitCode::from(code)
}
