//! A configuration in the making.

use alloc::string::String;
use alloc::vec::Vec;

use super::Config;
use super::host::Host;
use super::rule::RuleDraft;
use crate::http::login::AuthChoice;

/// How many short forms of rules there are.
pub const SHORTS: usize = 3;

/// A configuration while it is read. Complete once all values and defaults are stored; its own `Default` means nothing.
#[derive(Default)]
pub struct Draft {
    /// The main section's values.
    pub config: Config,
    /// `option ipv6`.
    pub ipv6: bool,
    /// Rules in short forms: `bypass`, `client_bypass` and `direct_domain`.
    pub shorts: [RuleDraft; SHORTS],
    /// The section `config upstream` being read.
    pub upstream: UpstreamDraft,
    /// The section `config rule` being read.
    pub rule: RuleDraft,
}

/// A section `config upstream` while it is read.
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
    /// `option connect_header_host`.
    pub header_host: Option<String>,
    /// `list uplink`.
    pub uplinks: Vec<String>,
}
