//! The decision about a packet, by its protocol, its flow and the state of that flow.

use core::net::Ipv6Addr;

use super::{DropReason, Rewriter, Settings, Verdict};
use crate::dns;
use crate::flow::{NatSource, Side, Slot, State};
use crate::net::Family;
use crate::packet::reject::Reject;
use crate::packet::{
    self, ACK, ChecksumChange, ChecksumState, FIN, Packet, RST, SYN, Segment, Transport, Tuple,
};
use crate::packet::{datagram, vnet};
use crate::time::Instant;

impl Rewriter {
    pub(super) fn judge(
        &mut self,
        header: vnet::Header,
        bytes: &mut [u8],
        now: Instant,
    ) -> Result<Verdict, DropReason> {
        let mut packet = Packet::parse(bytes)?;
        let subnet = self.settings.subnets.of(packet.family()).ok_or(DropReason::Ipv6Off)?;
        match packet.transport() {
            Transport::Tcp => {
                let state = header.checksum_state(&packet).ok_or(DropReason::Malformed)?;
                let tuple = packet.tuple();
                let from_listener = tuple.source_port == self.settings.listen_port
                    && tuple.source == subnet.own()
                    && subnet.contains(tuple.destination);
                match from_listener {
                    true => self.listener_packet(packet, &tuple, state, now),
                    false => self.client_packet(packet, &tuple, state, now),
                }
            }
            Transport::Icmp if packet.is_redirect() => Err(DropReason::NotTcp),
            Transport::Icmp if packet.is_icmp_error() => match header.checksum_state(&packet) {
                Some(ChecksumState::Complete) => self.icmp_error(packet, subnet.own(), now),
                _ => Err(DropReason::Malformed),
            },
            _ if !packet::is_unicast(packet.destination()) => Err(DropReason::NotTcp),
            Transport::Udp if self.settings.dns && packet.tuple().destination_port == dns::PORT => {
                let state = header.checksum_state(&packet).ok_or(DropReason::Malformed)?;
                if datagram::is_intact(&packet, state) {
                    Ok(Verdict::Dns)
                } else {
                    Err(DropReason::Malformed)
                }
            }
            Transport::Icmp if self.settings.ping && packet.is_echo_request() => {
                packet.answer_echo();
                Ok(Verdict::Forward)
            }
            _ if !self.errors.take(now) => Err(DropReason::RateLimited),
            // The only error that every system reports to a socket that has sent a datagram, so that a browser gives up
            // QUIC: Linux would report any, Windows only this one.
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
    ) -> Result<Verdict, DropReason> {
        let segment = packet.segment();
        let Segment { flags, sequence, .. } = segment;
        let is_syn = flags & (SYN | ACK | RST | FIN) == SYN;
        if let Some(slot) = self.flows.find(tuple) {
            let flow = self.flows.get(slot);
            if is_syn && let Some(reject) = flow.refusal(sequence, now) {
                return Ok(Verdict::Reject(reject));
            }
            let takes_back = flags & RST != 0 && sequence == flow.isn().wrapping_add(1);
            match flow.state() {
                State::Held if is_syn => {
                    self.flows.repeat(slot, sequence, now);
                    return Ok(Verdict::Hold { slot, dial: false });
                }
                State::Held if takes_back => {
                    self.flows.remove(slot, now);
                    return Ok(Verdict::Abandoned(slot));
                }
                State::Held => return Err(DropReason::Unexpected),
                // The client reuses its port: a new flow, with a NAT source of its own.
                State::Closed if is_syn && sequence != flow.isn() => {}
                // The same for a flow whose connection has ended although the relay has not noticed it yet, or still
                // has bytes for the server: the next connection must not be accepted in its name. If the connection has
                // not ended, the SYN goes to the kernel, whose answer makes a client that has forgotten the connection
                // reset it (RFC 5961 section 4).
                State::Opening | State::Live | State::Closing
                    if is_syn && sequence != flow.isn() && flow.is_finished() => {}
                was if flow.is_translated(now) => {
                    let new = self.translated(flow.nat, packet.family()).ok_or(DropReason::Ipv6Off)?;
                    packet.translate(&new, flow.change, state);
                    if flags & SYN != 0 {
                        packet.clamp_mss(self.max_mss(packet.family()), state);
                    }
                    self.flows.note(slot, Side::Client, &segment, now);
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

    fn open(&mut self, tuple: Tuple, isn: u32, now: Instant) -> Result<Verdict, DropReason> {
        let family = tuple.family();
        let ours = self.settings.subnets.of(family).is_some_and(|subnet| subnet.contains(tuple.destination))
            && !self.settings.is_diverted(&tuple);
        let no_port = tuple.source_port == 0 || tuple.destination_port == 0;
        if ours || no_port || !packet::is_unicast(tuple.destination) {
            return Err(DropReason::Address);
        }
        if self.draining {
            return Err(DropReason::Draining);
        }
        let settings = &self.settings;
        let change = |nat| match translated(settings, nat, family) {
            Some(new) => ChecksumChange::between(&tuple, &new),
            None => ChecksumChange::default(),
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
    ) -> Result<Verdict, DropReason> {
        let segment = packet.segment();
        let flags = segment.flags;
        let Some(slot) = self.find_nat(tuple.destination, tuple.destination_port, now) else {
            return unknown(tuple.destination, flags);
        };
        let flow = self.flows.get(slot);
        if flags & SYN != 0 && segment.acknowledgement != flow.isn().wrapping_add(1) {
            // The RST answers a later SYN, so the kernel's connection has ended silently. The client's next SYN is a
            // new flow.
            self.flows.finish(slot, now);
            return unknown(tuple.destination, flags);
        }
        packet.translate(&flow.tuple.reversed(), flow.change.reversed(), state);
        if flags & SYN != 0 {
            packet.clamp_mss(self.max_mss(packet.family()), state);
        }
        self.flows.note(slot, Side::Listener, &segment, now);
        Ok(Verdict::Forward)
    }

    /// Translates an ICMP error about a flow's packet, whichever side the packet came from.
    fn icmp_error(&mut self, mut packet: Packet, own: Ipv6Addr, now: Instant) -> Result<Verdict, DropReason> {
        let destination = packet.destination();
        let quoted = packet.quoted_tuple().ok_or(DropReason::NotTcp)?;
        // An error goes to the sender of the packet that it is about.
        if quoted.source != destination {
            return Err(DropReason::Unknown);
        }
        let to_listener = quoted.destination == own && quoted.destination_port == self.settings.listen_port;
        if to_listener && let Some(slot) = self.find_nat(quoted.source, quoted.source_port, now) {
            // From the listener's side, for the client, to whom it appears to come from the server.
            let tuple = self.flows.get(slot).tuple;
            packet.translate_icmp_error(&tuple, tuple.destination, tuple.source);
            return Ok(Verdict::Forward);
        }
        let slot = self.flows.find(&quoted.reversed()).ok_or(DropReason::Unknown)?;
        let flow = self.flows.get(slot);
        if !flow.is_translated(now) {
            return Err(DropReason::Unknown);
        }
        // From the client's side, for the listener. The NAT source stands for everything on that side.
        let new = self.translated(flow.nat, packet.family()).ok_or(DropReason::Ipv6Off)?;
        packet.translate_icmp_error(&new.reversed(), new.source, new.destination);
        Ok(Verdict::Forward)
    }

    /// The flow with the NAT source `address` and `port`, if it is translated.
    fn find_nat(&self, address: Ipv6Addr, port: u16, now: Instant) -> Option<Slot> {
        let slot = self.flows.find_nat(port)?;
        let flow = self.flows.get(slot);
        (self.nat_source(flow)? == address && flow.is_translated(now)).then_some(slot)
    }

    fn translated(&self, nat: NatSource, family: Family) -> Option<Tuple> {
        translated(&self.settings, nat, family)
    }

    /// The largest segment that fits the MTU with headers without options (RFC 6691).
    const fn max_mss(&self, family: Family) -> u16 {
        self.settings.mtu.saturating_sub((packet::ip_header(family) + packet::TCP_HEADER) as u16)
    }
}

/// How the listener sees a flow with this NAT source.
fn translated(settings: &Settings, nat: NatSource, family: Family) -> Option<Tuple> {
    let subnet = settings.subnets.of(family)?;
    Some(Tuple {
        source: subnet.nat_source(nat.host),
        destination: subnet.own(),
        source_port: nat.port,
        destination_port: settings.listen_port,
    })
}

/// A segment without a flow gets a RST, or its sender would keep repeating it; a RST gets no answer.
fn unknown(destination: Ipv6Addr, flags: u8) -> Result<Verdict, DropReason> {
    match flags & RST == 0 && packet::is_unicast(destination) {
        true => Ok(Verdict::Reject(Reject::Reset)),
        false => Err(DropReason::Unknown),
    }
}
