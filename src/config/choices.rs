//! Options that take one of a few words. Each word stands beside the value that it means.

macro_rules! choices {
    ($($(#[$about:meta])* $name:ident { $($(#[$meaning:meta])* $value:ident = $word:literal,)+ })+) => {$(
        $(#[$about])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub enum $name { $($(#[$meaning])* $value,)+ }

        impl $name {
            /// The words, as the file has them.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            /// The values, each in the place of its word.
            pub const VALUES: &'static [Self] = &[$(Self::$value),+];
        }
    )+};
}

choices! {
    /// How a client's connection gets to the proxy.
    PathChoice {
        /// The first path that works here.
        #[default]
        Auto = "auto",
        /// The kernel forwards the client's own connection.
        Forward = "forward",
        /// The daemon relays it.
        Relay = "relay",
    }

    /// When a client's connection is accepted.
    ConnectMode {
        /// Once the proxy has connected: the client sees what really happens.
        #[default]
        Honest = "honest",
        /// At once.
        Early = "early",
    }

    /// What happens to UDP to port 443 that is on its way to captured networks.
    Quic {
        /// It gets an ICMP error, so that browsers fall back to TCP at once.
        #[default]
        Reject = "reject",
        /// It isn't captured.
        Direct = "direct",
    }

    /// When connections to ports of plain HTTP are carried as requests in absolute form.
    HttpRelay {
        /// When the proxy refuses CONNECT to the port.
        #[default]
        Auto = "auto",
        /// At once.
        Always = "always",
        /// Never.
        Never = "never",
    }

    /// What happens to what clients send to a proxy itself.
    ToProxy {
        /// It goes there, as it is.
        #[default]
        Direct = "direct",
        /// It is refused.
        Reject = "reject",
    }

    /// What happens to captured packets that aren't TCP.
    NonTcp {
        /// They aren't captured.
        #[default]
        Direct = "direct",
        /// They are, and get an ICMP error.
        Reject = "reject",
    }

    /// What pings of captured addresses get.
    Ping {
        /// An ICMP error, like everything that isn't TCP.
        #[default]
        Reject = "reject",
        /// A reply, which the daemon sends.
        Answer = "answer",
    }

    /// What happens to captured traffic while the daemon is gone after a crash.
    OnFailure {
        /// It is refused.
        #[default]
        Block = "block",
        /// It goes out directly.
        Direct = "direct",
    }

    /// Who answers clients' DNS queries.
    DnsMode {
        /// Not the daemon.
        #[default]
        Off = "off",
        /// The daemon, with addresses that stand for names, which the proxy resolves.
        FakeIp = "fakeip",
        /// Resolvers that the daemon asks through the proxy.
        Proxy = "proxy",
    }

    /// The least severe messages that are logged.
    LogLevel {
        /// What is wrong.
        Error = "error",
        /// What may be wrong.
        Warn = "warn",
        /// What happens.
        #[default]
        Info = "info",
        /// What happens to each connection.
        Debug = "debug",
        /// What happens to each packet.
        Trace = "trace",
    }
}
