//! Sets up everything that brings connections to the daemon, and keeps it up to date: listeners, the
//! firewall's tables, policy rules and routes.
//!
//! The order matters when something is replaced: the firewall's tables come before policy rules and routes,
//! so that nothing is captured that the tables would exempt, and nothing gets out that they would refuse.

use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tcp_over_http::capture::nft::{self, Tables};
use tcp_over_http::capture::pause::Pauses;
use tcp_over_http::capture::{Desired, Owner, Path, Uplinks};

use crate::clock::Clock;
use crate::forward::Forwarder;
use crate::kernel::firewall::{self, Firewall};
use crate::kernel::listener::{self, Listener};
use crate::kernel::nft::run;
use crate::kernel::probe::probe;
use crate::kernel::route::{self, RouteError, Routes};
use crate::kernel::tun::Tun;
use crate::netlink::conntrack;
use crate::pause::Paused;
use crate::sys;
use tcp_over_http::config::{Config, OnFailure, PathChoice};
use tcp_over_http::siphash::Key;

/// How long an address may be missing before its connections are reset: a DHCP client that renews its lease
/// may remove the address and add it again.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(1);

/// The advice for a [`detour`].
pub const DETOUR: &str = "connections that the kernel forwards end there: except it (ip route add throw ADDRESS table TABLE), or set path 'relay'";

/// A sentence about a proxy that somebody else's route leads into the TUN; `None` if there is no such route.
pub fn detour(uplinks: &Uplinks, proxy: IpAddr) -> Option<String> {
    let table = uplinks.detour(proxy)?;
    Some(format!("table {table} has a route into the device for the proxy's address {proxy}"))
}

/// Everything that captures traffic.
pub struct Capture {
    listeners: Vec<Listener>,
    routes: Routes,
    firewall: Option<Firewall>,
    /// Only on the forward path.
    forwarder: Option<Rc<Forwarder>>,
    uplinks: Uplinks,
    clock: Clock,
    paused: Rc<Paused>,
    /// How many of the forwarder's proxies are in the latest commands for the firewall.
    told: usize,
    /// Rules and routes of a new configuration, to be applied once the firewall's tables have been replaced.
    next: Option<Rc<Desired>>,
    /// When a device last lost an address, until [`Capture::tick`] has looked for connections with it.
    lost_address: Option<Instant>,
    /// Whether conntrack must forget connections that a pause let out, once the firewall's tables have been
    /// replaced.
    is_to_forget: bool,
}

/// What [`Capture::poll_event`] reports.
pub enum Event {
    /// The TUN is gone.
    Gone,
    /// [`Capture::reconfigure`] has ended.
    Reconfigured(Result<(), String>),
}

impl Capture {
    /// Sets up the configured path. `auto` is the forward path if its test succeeds, otherwise the relay
    /// path. Until it is, what is captured is refused if another run has handed over (`restarted`), as before;
    /// otherwise `on_failure` decides.
    ///
    /// # Errors
    /// Says what failed. With `on_failure 'block'` whatever captures or refuses traffic stays in place.
    pub async fn set_up(
        config: &Config,
        tun: &Tun,
        clock: Clock,
        key: Key,
        paused: Rc<Paused>,
        restarted: bool,
    ) -> Result<Self, String> {
        let routes = Routes::open(config, &config.tun)?;
        let uplinks = routes.uplinks()?;
        // The warning comes first, because an overlap may make the next steps fail.
        warn_of_overlaps(config, &uplinks);
        let listeners =
            listener::listen(config).map_err(|(address, error)| format!("listen on {address}: {error}"))?;
        let mut this = Self {
            listeners,
            routes,
            firewall: None,
            forwarder: None,
            uplinks,
            clock,
            paused,
            told: 0,
            next: None,
            lost_address: None,
            is_to_forget: false,
        };
        let meanwhile = if restarted { OnFailure::Block } else { config.on_failure };
        match config.path {
            PathChoice::Relay => this.relay(config, meanwhile)?,
            choice => match this.forward(config, tun, key, meanwhile).await {
                Err(error) if choice == PathChoice::Auto => {
                    info!("connections are relayed, since they can't be forwarded here: {error}");
                    this.forwarder = None;
                    this.relay(config, meanwhile)?;
                }
                result => result?,
            },
        }
        if meanwhile != config.on_failure {
            this.replace_tables(config);
        }
        this.warn_of_detours();
        this.firewall = this.firewall.map(Firewall::keep);
        this.routes = this.routes.keep();
        Ok(this)
    }

    async fn forward(
        &mut self,
        config: &Config,
        tun: &Tun,
        key: Key,
        meanwhile: OnFailure,
    ) -> Result<(), String> {
        let forwarder = Forwarder::new(config, self.clock, key);
        let forwarder = Rc::new(forwarder.map_err(|error| format!("raw socket: {error}"))?);
        self.forwarder = Some(Rc::clone(&forwarder));
        // Also a test that ctnetlink is there: the daemon asks it for the original destination of this
        // machine's connections.
        conntrack::forget_handshakes(config.mark).map_err(|error| format!("connection tracking: {error}"))?;
        // The tables come before `Routes::install`, which deletes an earlier run's rules: these refuse
        // traffic until then. The tables take none before the test is over: a flood of what is captured would
        // fill the TUN before the test's packets.
        self.install_firewall(config, meanwhile)?;
        for subnet in config.subnets().iter() {
            let behind = subnet.error_source().to_canonical();
            probe(tun, &forwarder, behind).await?;
        }
        self.routes.install(config, Path::Forward, &self.uplinks)?;
        forwarder.give_sign();
        Ok(())
    }

    /// Sets up the relay path. It works without the firewall's tables, too.
    fn relay(&mut self, config: &Config, meanwhile: OnFailure) -> Result<(), String> {
        // The tables come before the capture: without them, answers to connections from outside would be
        // captured and reset. Where a run has handed over they refuse even with `on_failure 'direct'`: its
        // chain `past_rules` may have taken a packet past the policy rules, for the next chain to refuse. That
        // chain may be one of the new tables.
        match config.captures() {
            true => self
                .install_firewall(config, meanwhile)
                .unwrap_or_else(|error| warn_of_missing_tables(&error)),
            false => firewall::sweep(config),
        }
        Ok(self.routes.install(config, Path::Relay, &self.uplinks)?)
    }

    fn install_firewall(&mut self, config: &Config, on_failure: OnFailure) -> Result<(), String> {
        let proxies = self.proxies();
        let pauses = self.paused.get();
        let commands = Tables { on_failure, ..self.tables(config, &proxies, &pauses) }.replace();
        let firewall = Firewall::install(config, self.clock, commands)?;
        self.firewall = Some(firewall);
        self.told = proxies.len();
        self.set_installed(self.told);
        Ok(())
    }

    fn tables<'a>(&'a self, config: &'a Config, proxies: &'a [SocketAddr], pauses: &'a Pauses) -> Tables<'a> {
        Tables {
            config,
            path: self.path(),
            is_running: true,
            uplinks: &self.uplinks,
            proxies,
            pauses,
            on_failure: config.on_failure,
        }
    }

    fn proxies(&self) -> Vec<SocketAddr> {
        self.forwarder.as_ref().map(|forwarder| forwarder.proxies()).unwrap_or_default()
    }

    fn set_installed(&self, proxies: usize) {
        if let Some(forwarder) = &self.forwarder {
            forwarder.set_installed(proxies);
        }
    }

    /// The path that has been set up.
    pub const fn path(&self) -> Path {
        if self.forwarder.is_some() { Path::Forward } else { Path::Relay }
    }

    /// The handshakes of the forward path; `None` on the relay path.
    pub fn forwarder(&self) -> Option<Rc<Forwarder>> {
        self.forwarder.clone()
    }

    /// The listeners on the TUN's addresses.
    pub fn listeners(&self) -> &[Listener] {
        &self.listeners
    }

    /// Begins to apply a new configuration. Accepted connections continue. [`Event::Reconfigured`] reports
    /// the end; after an error, the state is the one before, as far as the kernel allows. Must not be called
    /// again until then.
    pub fn reconfigure(&mut self, config: &Config) {
        for listener in &self.listeners {
            _ = sys::set_keepalive(listener, config.keepalive); // accepted sockets inherit it
        }
        if let Some(forwarder) = &self.forwarder {
            forwarder.configure(config);
        }
        if self.firewall.is_none() && config.captures() {
            self.firewall =
                Firewall::new(config, self.clock).inspect_err(|error| warn_of_missing_tables(error)).ok();
        }
        self.replace_tables(config);
        self.next = Some(self.routes.desired(config, self.path(), &self.uplinks));
    }

    /// Applies a change of the pauses. With `has_ended`, conntrack forgets the connections that went out
    /// directly, because a flowtable would go on forwarding them.
    pub fn pause(&mut self, config: &Config, has_ended: bool) {
        self.is_to_forget |= has_ended;
        self.replace_tables(config);
    }

    /// Whether there are tables of the firewall, which a pause needs.
    pub fn can_pause(&self) -> bool {
        self.firewall.as_ref().is_some_and(Firewall::has_tables)
    }

    fn replace_tables(&mut self, config: &Config) {
        let proxies = self.proxies();
        let commands = self.tables(config, &proxies, &self.paused.get()).replace();
        self.told = proxies.len();
        if let Some(firewall) = &mut self.firewall {
            firewall.replace(commands);
        }
    }

    /// Restores what others delete, follows changes of uplinks and of proxies' addresses, and applies new
    /// configurations. `config` is the latest configuration.
    pub fn poll_event(&mut self, cx: &mut Context, config: &Config) -> Poll<Event> {
        while let Poll::Ready(events) = self.routes.poll_events(cx) {
            if events.gone {
                return Poll::Ready(Event::Gone);
            }
            if events.restore {
                self.routes.restore_later();
            }
            if events.network {
                self.follow_uplinks(config);
            }
            if events.lost_address {
                self.lost_address = Some(Instant::now());
            }
        }
        if self.forwarder.as_ref().is_some_and(|forwarder| forwarder.count_proxies() > self.told)
            || self.firewall.as_ref().is_some_and(Firewall::is_behind)
        {
            self.replace_tables(config);
        }
        while let Some(firewall) = &mut self.firewall
            && let Poll::Ready(result) = firewall.poll_replaced(cx)
        {
            match result {
                Ok(()) if firewall.is_replacing() => {}
                Ok(()) => {
                    config
                        .rules
                        .learnt()
                        .into_iter()
                        .for_each(|address| firewall::learn(address, config.mark));
                    self.set_installed(self.told);
                    if mem::take(&mut self.is_to_forget)
                        && let Err(error) = conntrack::forget_paused(config.paused_mark())
                    {
                        debug!("connection tracking: {error}");
                    }
                }
                // There is no nft, or the kernel lacks what the tables need. The relay path works without
                // them.
                Err(error) if !firewall.has_tables() => {
                    warn_of_missing_tables(&error);
                    self.firewall = None;
                }
                Err(error) if self.next.take().is_some() => {
                    return Poll::Ready(Event::Reconfigured(Err(error)));
                }
                Err(error) => error!("{error}"),
            }
        }
        if let (Some(forwarder), Some(firewall)) = (&self.forwarder, &self.firewall) {
            forwarder.hold(firewall.is_lost());
        }
        // A change of rules would delete those that stand in for tables.
        if self.firewall.as_ref().is_some_and(Firewall::stands_in) {
            return Poll::Pending;
        }
        if !self.firewall.as_ref().is_some_and(Firewall::is_replacing)
            && let Some(next) = self.next.take()
        {
            self.routes.replace(next);
        }
        let replaced = self.routes.poll_replaced(cx);
        replaced.map(|result| Event::Reconfigured(result.map_err(String::from)))
    }

    /// Resets connections whose local address this machine has lost: they will never receive anything. Called
    /// about once a second.
    pub fn tick(&mut self) {
        if self.lost_address.is_none_or(|lost| lost.elapsed() < ADDRESS_PATIENCE) {
            return;
        }
        self.lost_address = None;
        let reset = route::addresses().map_err(String::from).and_then(|addresses| {
            let is_lost = |ip| addresses.iter().all(|net| net.addr() != ip);
            if let Some(forwarder) = &self.forwarder {
                forwarder.lose_ways(&is_lost);
            }
            sys::reset_connections(&is_lost).map_err(|error| format!("look through sockets: {error}"))
        });
        match reset {
            Ok(0) => {}
            Ok(count) => info!("{count} connections were reset: their local address is gone"),
            Err(error) => warn!("{error}"),
        }
    }

    fn warn_of_detours(&self) {
        for proxy in self.proxies() {
            if let Some(detour) = detour(&self.uplinks, proxy.ip()) {
                warn!("{detour}: {DETOUR}");
            }
        }
    }

    fn follow_uplinks(&mut self, config: &Config) {
        match self.routes.uplinks() {
            Ok(uplinks) if uplinks != self.uplinks => {
                debug!("uplinks: devices {:?}, networks {:?}", uplinks.devices, uplinks.networks);
                let had_default = self.uplinks.has_default;
                self.uplinks = uplinks;
                self.warn_of_detours();
                warn_of_overlaps(config, &self.uplinks);
                self.replace_tables(config);
                // `next` was computed for the previous uplinks.
                let is_other = self.path() == Path::Forward && had_default != self.uplinks.has_default;
                if is_other || self.next.is_some() {
                    let desired = self.routes.desired(config, self.path(), &self.uplinks);
                    match &mut self.next {
                        Some(next) => *next = desired,
                        None => self.routes.follow(desired),
                    }
                }
            }
            Ok(_) => {}
            Err(error) => warn!("{error}"),
        }
    }

    /// Replaces everything by what refuses the traffic that the next run will capture.
    pub fn hand_over(self, next: &Config) {
        let pauses = self.paused.get();
        // Until the next run has set itself up, captured traffic is refused, whatever its `on_failure`.
        let on_failure = OnFailure::Block;
        let commands = Tables { is_running: false, on_failure, ..self.tables(next, &[], &pauses) }.replace();
        // Tables of another name must be deleted here: the next run doesn't know them. Those of the same name
        // are replaced.
        let stale = self.firewall.filter(|firewall| !firewall.belongs_to(next));
        if let Err(error) = run(&commands.at(self.clock.now(), false)) {
            warn!("{error}");
        }
        if let Err(error) = self.routes.hand_over(next) {
            warn!("{error}");
        }
        stale.into_iter().for_each(Firewall::remove);
    }

    /// Removes everything, except a NAT chain if the kernel goes on to forward connections.
    pub fn remove(self, config: &Config) {
        if let Err(error) = self.routes.remove() {
            warn!("{error}");
        }
        // If conntrack can't be asked, there may be forwarded connections.
        let live = self.forwarder.map_or(0, |_| match conntrack::forwarded(config.mark) {
            Ok(entries) => entries.iter().filter(|entry| entry.is_live).count(),
            Err(_) => usize::MAX,
        });
        match live {
            0 => self.firewall.into_iter().for_each(Firewall::remove),
            _ => {
                drop(self.firewall);
                info!("forwarded connections go on; what their NAT needs stays until `unblock`");
                run(&nft::leave_nat(&nft::name(config))).unwrap_or_else(|error| warn!("{error}"));
            }
        }
    }
}

/// Refuses what `config` captures until a daemon runs. If one runs already, nothing changes. Does nothing
/// with `on_failure 'direct'`.
pub fn block(config: &Config) -> Result<(), RouteError> {
    if config.on_failure == OnFailure::Direct {
        return Ok(());
    }
    let path = if config.path == PathChoice::Relay { Path::Relay } else { Path::Forward };
    let uplinks = route::uplinks(0)?;
    let pauses = &Pauses::NONE;
    let on_failure = config.on_failure;
    let tables =
        Tables { config, path, is_running: false, uplinks: &uplinks, proxies: &[], pauses, on_failure };
    // Without the TUN no daemon runs. Tables that exist then are replaced, because they may be from before an
    // uplink came up.
    let is_alone = || route::index(&config.tun) == 0;
    let was_alone = is_alone();
    let now = Clock::start().now();
    let commands = if was_alone { tables.replace().at(now, false) } else { tables.create() };
    if let Err(error) = run(&commands) {
        debug!("{error}"); // the tables exist, or there is no nft
    }
    if !was_alone {
        return Ok(());
    }
    route::block(config)?;
    // A daemon may have started meanwhile. It restores its own tables and rules. What has been added here
    // must go: our rules, and the chain by which packets get past its rules.
    if !is_alone() {
        let name = nft::name(config);
        for family in ["ip", "ip6"] {
            _ = run(&format!("flush chain {family} {name} past_rules\n"));
        }
        route::clear(&Owner::new(config))?;
    }
    Ok(())
}

fn warn_of_overlaps(config: &Config, uplinks: &Uplinks) {
    overlaps(config, uplinks).for_each(|overlap| error!("{overlap}"));
}

/// A sentence for each network of this machine that overlaps the TUN's or the fake addresses'.
pub fn overlaps(config: &Config, uplinks: &Uplinks) -> impl Iterator<Item = String> {
    uplinks.networks.iter().filter_map(|&net| {
        let (option, ours) = config.overlapping(net)?;
        Some(format!("network {net} overlaps {ours}, and can't be reached: set {option} to another network"))
    })
}

/// Warns that there are no tables of the firewall. The relay path works without them, but captures more.
fn warn_of_missing_tables(error: &str) {
    warn!("answers to connections from outside are captured, too: {error}");
}
