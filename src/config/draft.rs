//! A configuration in the making.

use alloc::string::String;
use alloc::vec::Vec;

use super::Config;
use super::host::Host;
use crate::http::login::AuthChoice;

/// A configuration in the making. Complete once values and defaults are stored: its own `Default` means nothing.
#[derive(Default)]
pub struct Draft {
    /// The main section's values.
    pub config: Config,
    /// `option ipv6`.
    pub ipv6: bool,
    /// `list bypass_file`.
    pub bypass_files: Vec<String>,
    /// The section `config upstream` being read.
    pub upstream: UpstreamDraft,
}

/// A section `config upstream` in the making.
#[derive(Default)]
pub struct UpstreamDraft {
    /// `option enabled`.
    pub enabled: bool,
    /// `option host`.
    pub host: Option<Host>,
    /// `option port`.
    pub port: u16,
    /// `option auth`.
    pub auth: AuthChoice,
    /// `option username`.
    pub username: Option<String>,
    /// `option password`.
    pub password: Option<String>,
    /// `list header`, as `Name: value`.
    pub headers: Vec<String>,
    /// `list uplink`.
    pub uplinks: Vec<String>,
}
