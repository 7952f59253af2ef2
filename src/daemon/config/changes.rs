//! What a configuration that was read anew changes.

use std::fmt;

use super::Config;

/// The options that differ, by name.
pub struct Changes {
    names: Vec<&'static str>,
    restart: bool,
}

impl Changes {
    /// Compares two configurations.
    pub fn new(old: &Config, new: &Config) -> Self {
        let mut changes = Changes { names: Vec::new(), restart: false };
        /// Takes `Config` apart whole, so that an option without a place here does not compile.
        macro_rules! compare {
            (live: $($live:ident)*; restart: $($restart:ident)*) => {
                let Config { $($live,)* $($restart,)* } = new;
                $(changes.add(stringify!($live), $live != &old.$live, false);)*
                $(changes.add(stringify!($restart), $restart != &old.$restart, true);)*
            };
        }
        compare! {
            live:
                connect max_dials max_dials_per_client connect_timeout reply_timeout keepalive
                auto_route routes bypass interfaces local clients client_bypass ports quic non_tcp on_failure
                drain_timeout status_socket log_level resolvers upstreams;
            // What the TUN, its queue of packets, the listeners and live connections are made with.
            restart:
                tun mtu offload address address6 listen_port path max_flows pipe_size
                table mark rule_priority dns ping
        }
        changes
    }

    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Whether a running daemon can't take all of it over.
    pub fn need_restart(&self) -> bool {
        self.restart
    }

    fn add(&mut self, name: &'static str, differs: bool, restart: bool) {
        if differs {
            self.names.push(name);
            self.restart |= restart;
        }
    }
}

/// The names, never a value: it may be a secret.
impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(lines: &str) -> Config {
        let text = format!("config tcp-over-http main\nlist upstream http://u:hunter2@a:1\n{lines}\n");
        Config::from_uci(&text).unwrap()
    }

    fn changes(lines: &str) -> (String, bool) {
        let changes = Changes::new(&config(""), &config(lines));
        (changes.to_string(), changes.need_restart())
    }

    #[test]
    fn live_and_not() {
        assert!(Changes::new(&config(""), &config("option connect honest")).is_empty());
        assert_eq!(changes("option connect early"), ("connect".to_owned(), false));
        assert_eq!(changes("option mtu 1400"), ("mtu".to_owned(), true));
        assert_eq!(changes("option mtu 1400\noption connect early"), ("connect, mtu".to_owned(), true));
        assert_eq!(changes("option ipv6 0"), ("address6, dns".to_owned(), true));
        assert_eq!(changes("list upstream http://u:swordfish@a:1"), ("upstreams".to_owned(), false));
        let password = "config upstream a\noption host a\noption username u\noption password ";
        let [old, new] = ["1", "2"].map(|it| config(&format!("{password}{it}")));
        assert_eq!(Changes::new(&old, &new).to_string(), "upstreams");
    }
}
