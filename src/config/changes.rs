//! What a configuration that was read anew changes.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use super::options::Spec;
use super::{Config, OPTIONS};

/// Options that a running daemon takes over. For all others it starts anew: they are what the TUN, the listeners
/// and live connections are made with.
const LIVE: &[&str] = &[
    "enabled",
    "zone",
    "upstream",
    "resolver",
    "connect",
    "max_dials",
    "max_dials_per_client",
    "connect_timeout",
    "reply_timeout",
    "keepalive",
    "drain_timeout",
    "auto_route",
    "route",
    "bypass",
    "bypass_file",
    "interface",
    "local",
    "client",
    "client_bypass",
    "port",
    "quic",
    "non_tcp",
    "on_failure",
    "status_socket",
    "log_level",
];

/// Options as text, in order; those that were not given have their defaults.
#[derive(Clone, Default)]
pub struct Given(pub Vec<(&'static str, String)>);

/// Leaves out all of it: there are secrets.
impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Given(..)")
    }
}

/// The options that differ, by name.
pub struct Changes {
    names: Vec<&'static str>,
}

impl Changes {
    /// Compares two configurations.
    pub fn new(old: &Config, new: &Config) -> Self {
        let differs = |spec: &&Spec| {
            given(old, spec).ne(given(new, spec))
                // Sections of their own, and what is in files.
                || spec.name == "upstream" && old.upstreams != new.upstreams
                || spec.name == "bypass" && old.bypass != new.bypass
        };
        Self { names: OPTIONS.iter().filter(differs).map(|spec| spec.name).collect() }
    }

    /// Whether a running daemon can't take all of it over.
    pub fn need_restart(&self) -> bool {
        !self.names.iter().all(|name| LIVE.contains(name))
    }
}

/// The values of an option as text, or its default.
fn given<'a>(config: &'a Config, spec: &'a Spec) -> impl Iterator<Item = &'a str> {
    let values = config.given.0.iter().filter(|(name, _)| *name == spec.name).map(|(_, text)| text.as_str());
    let mut values = values.peekable();
    let default = values.peek().is_none().then_some(spec.default);
    default.into_iter().chain(values)
}

/// The names, and what is done; never a value: it may be a secret.
impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for name in &self.names {
            write!(f, "{name}, ")?;
        }
        f.write_str(match (self.names.is_empty(), self.need_restart()) {
            (true, _) => "nothing has changed",
            (_, true) => "changed: starting anew",
            (_, false) => "changed: connections go on",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::format;
    use std::string::ToString;

    use super::*;

    fn config(lines: &str) -> Config {
        let text = format!("config tcp-over-http main\nlist upstream http://u:hunter2@a:1\n{lines}\n");
        Config::from_uci(&text).unwrap()
    }

    fn changes(old: &str, new: &str) -> String {
        Changes::new(&config(old), &config(new)).to_string()
    }

    #[test]
    fn live_and_not() {
        for line in ["", "option connect honest", "option mtu 1500", "option upstream http://u:hunter2@a:1"] {
            assert_eq!(changes("", line), "nothing has changed");
        }
        assert_eq!(changes("", "option connect early"), "connect, changed: connections go on");
        assert_eq!(changes("", "option zone lan"), "zone, changed: connections go on");
        assert_eq!(changes("option mtu 1400", ""), "mtu, changed: starting anew");
        let both = "option mtu 1400\noption connect early";
        assert_eq!(changes("", both), "mtu, connect, changed: starting anew");
        let [one, two] = ["list bypass 10.0.0.0/8", "list bypass 10.0.0.0/8\nlist bypass 11.0.0.0/8"];
        assert_eq!(changes(one, two), "bypass, changed: connections go on");
        let other = "list upstream http://u:swordfish@a:1";
        assert_eq!(changes("", other), "upstream, changed: connections go on");
        let section = "config upstream a\noption host a\noption username u\noption password ";
        let [one, two] = ["1", "2"].map(|password| format!("{section}{password}"));
        assert_eq!(changes(&one, &two), "upstream, changed: connections go on");
    }

    #[test]
    fn every_name_is_an_option() {
        for name in LIVE {
            assert!(OPTIONS.iter().any(|spec| spec.name == *name), "{name}");
        }
    }
}
