//! The tcp-over-http daemon.

use std::io::Write;
use std::process::ExitCode;
use std::{env, fmt, io};

use cli::Command;

mod cli;
#[allow(dead_code)] // until `run` reads it
mod config;
#[allow(dead_code)] // until `run` uses it
mod dial;
#[allow(dead_code)] // until `run` uses it
mod etc_files;
#[allow(dead_code)] // until `run` uses it
mod limiter;
#[allow(dead_code)] // until `run` uses it
mod lookup;
#[allow(dead_code)] // until `run` uses it
mod proxy;
#[allow(dead_code)] // until `run` uses it
mod resolver;
#[allow(dead_code)] // until `run` uses it
mod sys;
#[allow(dead_code)] // until `run` uses it
mod upstream;

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
            Ok(_config) => ExitCode::SUCCESS,
            Err(error) => fail(&error, error.exit_code()),
        },
        Err(error) => fail(&format_args!("tcp-over-http: {error}"), 2),
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
