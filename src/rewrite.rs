//! The rewriter: what is to become of a packet that came out of the TUN.
//!
//! ```text
//!            client's packets                      listener's packets
//!   client:p ------> server:q                 own:listen ------> nat:n
//!            translate                                  translate
//!      nat:n ------> own:listen                 server:q ------> client:p
//! ```
//!
//! Every packet is changed in place and written back to the TUN it came from; the kernel does the rest. A
//! SYN without a flow is held until the daemon has heard from the proxy: it then either releases the flow
//! and has the same SYN handled again, which now passes, or refuses it.

use core::fmt;
use core::net::Ipv6Addr;

use crate::dns;
use crate::flow::subnet::Subnet;
use crate::flow::{Flow, FlowTable, Limits, NatSource, Side, Slot, State};
use crate::packet::datagram;
use crate::packet::make::Reject;
use crate::packet::vnet;
use crate::packet::{self, ACK, Change, ChecksumState, FIN, Packet, RST, SYN, Transport, Tuple};
use crate::siphash::Key;
use crate::time::Instant;

mod verdict;

pub use verdict::{Counters, Drop, Verdict};

/// How a connection gets from the client to the listener once its SYN is released. This is all that tells
/// the two paths apart here; everything before and after is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Through the TUN, translated, packet by packet: works on any kernel.
    Rewrite,
    /// The SYN alone goes back to the TUN, unchanged; a firewall rule gives it to a transparent listener,
    /// and all further packets go to that connection's socket without coming here.
    Express,
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Rewrite => "rewrite",
            Self::Express => "express",
        })
    }
}

/// What the rewriter has to know.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How connections get to the listener.
    pub path: Path,
    /// The TUN's IPv4 subnet.
    pub ipv4: Subnet,
    /// The TUN's IPv6 subnet; without one, IPv6 is dropped.
    pub ipv6: Option<Subnet>,
    /// The listener's port on the TUN's own addresses.
    pub listen_port: u16,
    /// The TUN's MTU in bytes.
    pub mtu: u16,
    /// Answer what clients ask resolvers over UDP.
    pub dns: bool,
    /// Answer pings, rather than reject them.
    pub ping: bool,
}

/// Handles packets; owns the flow table.
pub struct Rewriter {
    /// The flows. Open to the daemon, which alone knows when one is released, accepted and closed.
    pub flows: FlowTable,
    settings: Settings,
    counters: Counters,
    errors: TokenBucket,
    draining: bool,
}

impl Rewriter {
    /// A rewriter without flows. `limits.hosts` is set to what the subnets have; `key` must be random.
    pub fn new(settings: Settings, limits: Limits, key: Key) -> Self {
        let ipv6_hosts = settings.ipv6.map_or(u8::MAX, |subnet| subnet.hosts());
        let hosts = settings.ipv4.hosts().min(ipv6_hosts);
        Self {
            flows: FlowTable::new(Limits { hosts, ..limits }, key),
            settings,
            counters: Counters::default(),
            errors: TokenBucket::default(),
            draining: false,
        }
    }

    /// What has happened so far.
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The settings it was made with.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// From now on new flows are not taken.
    pub const fn drain(&mut self) {
        self.draining = true;
    }

    /// Whether new flows are not taken any more.
    pub const fn is_draining(&self) -> bool {
        self.draining
    }

    /// Where errors about a packet of the family come from.
    pub fn error_source(&self, ipv4: bool) -> Ipv6Addr {
        match self.settings.ipv6 {
            Some(ipv6) if !ipv4 => ipv6.error_source(),
            _ => self.settings.ipv4.error_source(),
        }
    }

    /// The flow of a connection that the listener has accepted from `address` and `port`, if it waits for
    /// that; it is live then. `local` tells the connection's own end, and is asked only if need be.
    pub fn accept(
        &mut self,
        address: Ipv6Addr,
        port: u16,
        local: impl FnOnce() -> Option<(Ipv6Addr, u16)>,
        now: Instant,
    ) -> Option<Slot> {
        let slot = match self.settings.path {
            Path::Rewrite => {
                let slot = self.flows.find_nat(port)?;
                let nat = self.nat_source(self.flows.get(slot))?;
                (nat == address).then_some(slot)?
            }
            Path::Express => {
                let (destination, destination_port) = local()?;
                self.flows.find(&Tuple {
                    source: address,
                    destination,
                    source_port: port,
                    destination_port,
                })?
            }
        };
        self.flows.accept(slot, now).then_some(slot)
    }

    /// The flow's relay has ended, or nobody will accept its connection any more.
    pub fn close(&mut self, slot: Slot, now: Instant) {
        match self.settings.path {
            Path::Rewrite => self.flows.close(slot, now),
            // Its packets do not come here, so there are none to wait for.
            Path::Express => self.flows.end(slot, now),
        }
    }

    /// Decides about the packet `bytes`, which came behind `header`, and changes it in place.
    pub fn handle(&mut self, header: vnet::Header, bytes: &mut [u8], now: Instant) -> Verdict {
        self.counters.packets += 1;
        self.counters.bytes += bytes.len() as u64;
        let verdict = self.judge(header, bytes, now).unwrap_or_else(Verdict::Drop);
        match verdict {
            Verdict::Forward | Verdict::ForwardAbandoned(_) => self.counters.forwarded += 1,
            Verdict::Hold { dial, .. } => self.counters.flows += dial as u64,
            Verdict::Dns => self.counters.queries += 1,
            Verdict::Reject(_) => self.counters.rejected += 1,
            Verdict::Drop(reason) => self.counters.dropped[reason as usize] += 1,
            Verdict::Abandoned(_) => {}
        }
        verdict
    }

    fn judge(&mut self, header: vnet::Header, bytes: &mut [u8], now: Instant) -> Result<Verdict, Drop> {
        let mut packet = Packet::parse(bytes)?;
        let subnet = self.subnet(packet.is_ipv4()).ok_or(Drop::Ipv6Off)?;
        match packet.transport() {
            Transport::Tcp => {
                let state = header.checksum_state(&packet).ok_or(Drop::Malformed)?;
                let tuple = packet.tuple();
                let from_listener = tuple.source_port == self.settings.listen_port
                    && tuple.source == subnet.own()
                    && subnet.contains(tuple.destination);
                match from_listener {
                    true => self.listener_packet(packet, &tuple, state, now),
                    false => self.client_packet(packet, &tuple, state, now),
                }
            }
            Transport::Icmp if packet.is_redirect() => Err(Drop::NotTcp),
            Transport::Icmp if packet.is_icmp_error() => match header.checksum_state(&packet) {
                Some(ChecksumState::Complete) => self.icmp_error(packet, subnet.own(), now),
                _ => Err(Drop::Malformed),
            },
            _ if !packet::is_unicast(packet.destination()) => Err(Drop::NotTcp),
            Transport::Udp if self.settings.dns && packet.tuple().destination_port == dns::PORT => {
                let state = header.checksum_state(&packet).ok_or(Drop::Malformed)?;
                if datagram::is_intact(&packet, state) { Ok(Verdict::Dns) } else { Err(Drop::Malformed) }
            }
            Transport::Icmp if self.settings.ping && packet.is_echo_request() => {
                packet.answer_echo();
                Ok(Verdict::Forward)
            }
            _ if !self.errors.take(now) => Err(Drop::RateLimited),
            // The one error that each system tells a socket that has sent a datagram, and so a browser its QUIC's
            // end: Linux would tell of any, Windows of none but this.
            Transport::Udp => Ok(Verdict::Reject(Reject::Port)),
            _ => Ok(Verdict::Reject(Reject::Prohibited)),
        }
    }

    fn client_packet(
        &mut self,
        mut packet: Packet,
        tuple: &Tuple,
        state: ChecksumState,
        now: Instant,
    ) -> Result<Verdict, Drop> {
        let (flags, sequence) = (packet.flags(), packet.sequence());
        let is_syn = flags & (SYN | ACK | RST | FIN) == SYN;
        if let Some(slot) = self.flows.find(tuple) {
            let flow = self.flows.get(slot);
            let takes_back = flags & RST != 0 && sequence == flow.isn().wrapping_add(1);
            match flow.state() {
                State::Held if is_syn => {
                    let new = self.flows.repeat(slot, sequence, now);
                    return if new { Ok(Verdict::Hold { slot, dial: false }) } else { Err(Drop::Repeated) };
                }
                State::Held if takes_back => {
                    self.flows.remove(slot, now);
                    return Ok(Verdict::Abandoned(slot));
                }
                State::Held => return Err(Drop::Unexpected),
                // The client uses its port again: a new flow, with a NAT source of its own.
                State::Closing | State::Closed if is_syn && sequence != flow.isn() => {}
                // The same of a flow whose connection has ended, though the relay has yet to learn it, or still has
                // bytes for the server: the next connection must not be accepted in its name. On the express path
                // a SYN comes here only if the kernel has no more than a TIME_WAIT for the last one.
                State::Opening | State::Live
                    if is_syn
                        && sequence != flow.isn()
                        && (self.settings.path == Path::Express || flow.is_finished()) => {}
                was if self.passes(flow, now) => {
                    if self.settings.path == Path::Rewrite {
                        let new = self.translated(flow.nat, packet.is_ipv4()).ok_or(Drop::Ipv6Off)?;
                        packet.translate(&new, flow.change, state);
                    }
                    if flags & SYN != 0 {
                        packet.clamp_mss(self.max_mss(packet.is_ipv4()), state);
                    }
                    self.flows.note(slot, Side::Client, flags, now);
                    if was == State::Opening && takes_back {
                        self.close(slot, now);
                        return Ok(Verdict::ForwardAbandoned(slot));
                    }
                    return Ok(Verdict::Forward);
                }
                _ => {}
            }
        }
        if is_syn { self.open(*tuple, sequence, now) } else { unknown(tuple.destination, flags) }
    }

    fn open(&mut self, tuple: Tuple, isn: u32, now: Instant) -> Result<Verdict, Drop> {
        let ipv4 = tuple.is_ipv4();
        let ours = self.subnet(ipv4).is_some_and(|subnet| subnet.contains(tuple.destination));
        let no_port = tuple.source_port == 0 || tuple.destination_port == 0;
        if ours || no_port || !packet::is_unicast(tuple.destination) {
            return Err(Drop::Address);
        }
        if self.draining {
            return Err(Drop::Draining);
        }
        let settings = &self.settings;
        let change = |nat| match translated(settings, nat, ipv4) {
            Some(new) => Change::between(&tuple, &new),
            None => Change::default(),
        };
        let slot = self.flows.open(tuple, isn, now, change)?;
        Ok(Verdict::Hold { slot, dial: true })
    }

    fn listener_packet(
        &mut self,
        mut packet: Packet,
        tuple: &Tuple,
        state: ChecksumState,
        now: Instant,
    ) -> Result<Verdict, Drop> {
        let flags = packet.flags();
        let Some(slot) = self.find_nat(tuple.destination, tuple.destination_port, now) else {
            return unknown(tuple.destination, flags);
        };
        let flow = self.flows.get(slot);
        packet.translate(&flow.tuple.reversed(), flow.change.reversed(), state);
        if flags & SYN != 0 {
            packet.clamp_mss(self.max_mss(packet.is_ipv4()), state);
        }
        self.flows.note(slot, Side::Listener, flags, now);
        Ok(Verdict::Forward)
    }

    /// Translates an ICMP error about a flow's packet, whichever side the packet came from.
    fn icmp_error(&mut self, mut packet: Packet, own: Ipv6Addr, now: Instant) -> Result<Verdict, Drop> {
        let destination = packet.destination();
        let quoted = packet.quoted_tuple().ok_or(Drop::NotTcp)?;
        // An error goes to who sent the packet it is about.
        if quoted.source != destination {
            return Err(Drop::Unknown);
        }
        let to_listener = quoted.destination == own && quoted.destination_port == self.settings.listen_port;
        if to_listener && let Some(slot) = self.find_nat(quoted.source, quoted.source_port, now) {
            // From the listener's side, for the client. It comes from the server for all the client knows.
            let tuple = self.flows.get(slot).tuple;
            packet.translate_icmp_error(&tuple, tuple.destination, tuple.source);
            return Ok(Verdict::Forward);
        }
        let slot = self.flows.find(&quoted.reversed()).ok_or(Drop::Unknown)?;
        let flow = self.flows.get(slot);
        if !flow.is_translated(now) {
            return Err(Drop::Unknown);
        }
        // From the client's side, for the listener. The NAT source stands for all that is on that side.
        let new = self.translated(flow.nat, packet.is_ipv4()).ok_or(Drop::Ipv6Off)?;
        packet.translate_icmp_error(&new.reversed(), new.source, new.destination);
        Ok(Verdict::Forward)
    }

    /// Whether a packet from the flow's client is given to the kernel. On the express path it comes here if
    /// the kernel has no socket for it (yet): that is right for a SYN that is sent again, and for the
    /// router's own connections, of which all packets are routed to the TUN; once the flow is over, only a
    /// RST is left to say.
    fn passes(&self, flow: &Flow, now: Instant) -> bool {
        match self.settings.path {
            Path::Rewrite => flow.is_translated(now),
            Path::Express => matches!(flow.state(), State::Opening | State::Live),
        }
    }

    /// The flow with the NAT source `address` and `port`, if it is translated.
    fn find_nat(&self, address: Ipv6Addr, port: u16, now: Instant) -> Option<Slot> {
        let slot = self.flows.find_nat(port)?;
        let flow = self.flows.get(slot);
        (self.nat_source(flow)? == address && flow.is_translated(now)).then_some(slot)
    }

    fn nat_source(&self, flow: &Flow) -> Option<Ipv6Addr> {
        let subnet = self.subnet(flow.tuple.is_ipv4())?;
        Some(subnet.nat_source(flow.nat.host))
    }

    fn translated(&self, nat: NatSource, ipv4: bool) -> Option<Tuple> {
        translated(&self.settings, nat, ipv4)
    }

    const fn subnet(&self, ipv4: bool) -> Option<&Subnet> {
        match ipv4 {
            true => Some(&self.settings.ipv4),
            false => self.settings.ipv6.as_ref(),
        }
    }

    /// The largest segment that fits the MTU with headers without options (RFC 6691).
    const fn max_mss(&self, ipv4: bool) -> u16 {
        let headers = if ipv4 { packet::IPV4_HEADER } else { packet::IPV6_HEADER } + packet::TCP_HEADER;
        self.settings.mtu.saturating_sub(headers as u16)
    }
}

/// How the listener sees a flow with this NAT source.
fn translated(settings: &Settings, nat: NatSource, ipv4: bool) -> Option<Tuple> {
    let subnet = match ipv4 {
        true => &settings.ipv4,
        false => settings.ipv6.as_ref()?,
    };
    Some(Tuple {
        source: subnet.nat_source(nat.host),
        destination: subnet.own(),
        source_port: nat.port,
        destination_port: settings.listen_port,
    })
}

/// A segment of no flow gets a RST, or its sender would go on sending it; a RST never does.
fn unknown(destination: Ipv6Addr, flags: u8) -> Result<Verdict, Drop> {
    match flags & RST == 0 && packet::is_unicast(destination) {
        true => Ok(Verdict::Reject(Reject::Reset)),
        false => Err(Drop::Unknown),
    }
}

/// How often errors may be sent (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 (f)).
#[derive(Default)]
struct TokenBucket {
    /// How many errors of the burst have been used, in ms of refilling.
    used: u32,
    last: Instant,
}

impl TokenBucket {
    /// One token more each millisecond...
    const REFILL: u32 = 1;
    /// ...up to this many.
    const BURST: u32 = 100;

    fn take(&mut self, now: Instant) -> bool {
        self.used = self.used.saturating_sub(now.since(self.last) / Self::REFILL);
        self.last = now;
        let some = self.used < Self::BURST;
        self.used += some as u32;
        some
    }
}
