//! The tcp-over-http daemon.

#[allow(dead_code)] // until `run` uses it
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
mod net;
#[allow(dead_code)] // until `run` uses it
mod proxy;
#[allow(dead_code)] // until `run` uses it
mod resolver;
#[allow(dead_code)] // until `run` uses it
mod sys;
#[allow(dead_code)] // until `run` uses it
mod upstream;

#[allow(dead_code)] // until `run` uses it
mod netlink;
#[allow(dead_code)] // until `run` uses it
mod policy;
#[allow(dead_code)] // until `run` uses it
mod route;
#[allow(dead_code)] // until `run` uses it
mod sys;
#[allow(dead_code)] // until `run` uses it
mod sysctl;

fn main() {}
