//! What changes when a configuration is read again.

use alloc::vec::Vec;
use core::fmt;

use super::options::Spec;
use super::{Config, OPTIONS};

/// What differs between two configurations.
pub struct Changes {
    options: Vec<&'static Spec>,
    /// Whether the rules differ, or the contents of files that options name.
    rules: bool,
}

impl Changes {
    /// Compares two configurations.
    pub fn new(old: &Config, new: &Config) -> Self {
        let differs = |spec: &&'static Spec| {
            // Proxies may also be sections of their own.
            let differs = spec.name == "upstream" && old.upstreams != new.upstreams;
            differs || old.given.texts(spec) != new.given.texts(spec)
        };
        Self { options: OPTIONS.iter().filter(differs).collect(), rules: old.rules != new.rules }
    }

    /// Whether a running daemon can't apply all of it.
    pub fn need_restart(&self) -> bool {
        !self.options.iter().all(|spec| spec.live)
    }
}

/// Names the options and says what is done about them. Never a value: it may be a secret.
impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.options.is_empty() && !self.rules {
            return f.write_str("nothing has changed");
        }
        let names = self.options.iter().map(|spec| spec.name).chain(self.rules.then_some("rules"));
        for (index, name) in names.enumerate() {
            f.write_str(if index == 0 { "changed " } else { ", " })?;
            f.write_str(name)?;
        }
        f.write_str(if self.need_restart() { "; restarting" } else { "; connections go on" })
    }
}

#[cfg(test)]
mod tests {
    use std::format;
    use std::string::{String, ToString};

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
        assert_eq!(changes("", "option connect early"), "changed connect; connections go on");
        assert_eq!(changes("", "option zone lan"), "changed zone; connections go on");
        assert_eq!(changes("option mtu 1400", ""), "changed mtu; restarting");
        let both = "option mtu 1400\noption connect early";
        assert_eq!(changes("", both), "changed mtu, connect; restarting");
        let [one, two] = ["list bypass 10.0.0.0/8", "list bypass 10.0.0.0/8\nlist bypass 11.0.0.0/8"];
        assert_eq!(changes(one, two), "changed bypass, rules; connections go on");
        let other = "option upstream http://u:swordfish@a:1";
        assert_eq!(changes("", other), "changed upstream; connections go on");
        let section = "config upstream a\noption host a\noption username u\noption password ";
        let [one, two] = ["1", "2"].map(|password| format!("{section}{password}"));
        assert_eq!(changes(&one, &two), "changed upstream; connections go on");
    }
}
