//! The tcp-over-http daemon.

#[allow(dead_code)] // until `run` uses it
mod config;
#[allow(dead_code)] // until `run` uses it
mod net;

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
