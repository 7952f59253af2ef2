//! One CONNECT handshake with a proxy, in the client's name.
//!
//! | state | until | retransmitted by a timer |
//! |---|---|---|
//! | connecting | the proxy's SYN-ACK | the SYN |
//! | asking | the reply is complete, and the whole request acknowledged | the request |
//! | answered | the client's ACK; the kernel forwards it, and the daemon gets a copy | the SYN-ACK to the client |
//!
//! A refusal or a failure resets the connection to the proxy, so that neither the proxy nor conntrack
//! remembers it.

use alloc::boxed::Box;

use super::options::{Options, Timestamps};
use super::segment::{MAX_SEGMENT, Segment};
use crate::http::{ReplyError, ReplyParser, Status};
use crate::packet::builder::Tcp;
use crate::packet::{ACK, FIN, Packet, RST, SYN, Tuple};
use crate::time::Instant;

/// TCP flags ECE and CWR, in a SYN: ECN is offered (RFC 3168 section 6.1.1).
const ECN: u8 = 0x40 | 0x80;
/// TCP flag PSH.
const PSH: u8 = 0x08;

/// Milliseconds until the first repetition; each further one takes twice as long (RFC 6298 section 2).
const FIRST_TIMEOUT: u32 = 1000;
/// The most milliseconds between two repetitions.
const MAX_TIMEOUT: u32 = 32_000;
/// How many times the SYN is repeated at once because the proxy remembers an earlier connection from the port
/// that NAT has chosen.
const RETRIES: u8 = 8;

/// Where to send a packet that the handshake has made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// To the proxy; the connection belongs to a handshake.
    Proxy,
    /// To the proxy; from now on the client's first packet releases the connection.
    ProxyAnswered,
    /// To the client.
    Client,
}

/// The state after a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing to act on.
    Pending,
    /// The proxy has accepted the connection, and has been sent the request.
    Connected,
    /// The proxy has opened the tunnel, and the client has been sent its SYN-ACK.
    Opened {
        /// 200..=299.
        status: u16,
    },
    /// The proxy has answered with another status.
    Refused {
        /// 300..=999.
        status: u16,
    },
    /// The proxy refuses the connection, or can't be reached.
    Unreachable,
    /// The proxy closed or reset the connection before it answered.
    Closed,
    /// The proxy's answer is no reply to a CONNECT.
    Garbage(ReplyError),
}

/// One end of the connection, as its SYN or SYN-ACK describes it.
#[derive(Clone, Copy, Debug)]
struct End {
    /// Its initial sequence number.
    sequence: u32,
    /// The window in its SYN, which is never scaled.
    window: u16,
    /// [`ECN`] flags of its SYN.
    ecn: u8,
    options: Options,
}

impl End {
    fn of(syn: &Packet, mss_limit: u16) -> Self {
        let mut options = Options::parse(syn.tcp_options());
        // A link between the two ends may have a smaller MTU than either end's.
        options.mss = options.mss.map(|mss| mss.min(mss_limit));
        Self { sequence: syn.sequence(), window: syn.window(), ecn: syn.flags() & ECN, options }
    }
}

/// A connection to a proxy, until the client has acknowledged its SYN-ACK.
pub struct Handshake {
    /// From the client to the server that it wants.
    tuple: Tuple,
    client: End,
    /// `None` until the proxy's SYN-ACK.
    proxy: Option<End>,
    request: Box<[u8]>,
    /// How many bytes of the request the proxy has acknowledged.
    acked: usize,
    /// The next sequence number that is expected from the proxy.
    expected: u32,
    /// The last seen value of the proxy's timestamp clock.
    clock: u32,
    parser: ReplyParser,
    /// The status of the reply once it is complete.
    status: Option<u16>,
    answered: bool,
    /// How many more times the SYN may be repeated at once because an earlier connection was in its way.
    retries: u8,
    mss_limit: u16,
    repeat_at: Instant,
    timeout: u32,
}

impl Handshake {
    /// The values of the Proxy-Authenticate fields of a 407, one per line.
    pub fn challenges(&self) -> &[u8] {
        self.parser.lines()
    }

    /// Begins: sends the SYN. `syn` is the client's, `request` the whole CONNECT request, `mss_limit` the
    /// longest segment, in bytes, that the route to the proxy allows.
    pub fn new(
        syn: &Packet,
        request: Box<[u8]>,
        mss_limit: u16,
        now: Instant,
        send: &mut dyn FnMut(To, &[u8]),
    ) -> Self {
        let this = Self {
            tuple: syn.tuple(),
            client: End::of(syn, mss_limit),
            proxy: None,
            request,
            acked: 0,
            expected: 0,
            clock: 0,
            parser: ReplyParser::new(),
            status: None,
            answered: false,
            retries: RETRIES,
            mss_limit,
            repeat_at: now.plus(FIRST_TIMEOUT),
            timeout: FIRST_TIMEOUT,
        };
        this.send_syn(send);
        this
    }

    /// Whether a packet from the proxy to the client's port can belong to this connection: a client may use
    /// one port for several servers, and only sequence numbers tell their connections to one proxy apart.
    pub fn owns(&self, packet: &Packet) -> bool {
        match packet.flags() & ACK {
            0 => self.proxy.is_some() && packet.sequence().wrapping_sub(self.expected) < 1 << 16,
            _ => packet.acknowledgement().wrapping_sub(self.first()) <= self.request.len() as u32,
        }
    }

    /// Whether this is the sequence number of our SYN.
    pub fn is_syn(&self, sequence: u32) -> bool {
        sequence.wrapping_add(1) == self.first()
    }

    /// Whether the proxy's SYN-ACK has not arrived yet.
    pub const fn is_connecting(&self) -> bool {
        self.proxy.is_none()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due; `None` if nothing has to be repeated.
    pub fn timeout(&self) -> Option<Instant> {
        (self.answered || self.proxy.is_none() || self.acked < self.request.len()).then_some(self.repeat_at)
    }

    /// Repeats what the proxy or the client has not acknowledged.
    pub fn handle_timeout(&mut self, now: Instant, send: &mut dyn FnMut(To, &[u8])) {
        self.timeout = (self.timeout * 2).min(MAX_TIMEOUT);
        self.repeat_at = now.plus(self.timeout);
        match self.proxy {
            None => self.send_syn(send),
            Some(_) if self.answered => self.send_syn_ack(send),
            Some(_) => {
                // A link behind the first one may have a smaller MTU: from here on segments are short.
                self.mss_limit = self.mss_limit.min(Options::default_mss(self.tuple.family()));
                self.send_request(send);
            }
        }
    }

    /// Whether a SYN of the client offers the same options as the one that the proxy knows. The caller has
    /// compared their sequence numbers.
    pub fn is_repetition(&self, syn: &Packet) -> bool {
        let End { options, .. } = End::of(syn, self.mss_limit);
        let mut known = self.client.options;
        if let (Some(known), Some(now)) = (&mut known.timestamps, options.timestamps) {
            *known = now;
        }
        known == options
    }

    /// Handles a repetition of the client's SYN, with the same sequence number.
    pub fn handle_client_syn(&mut self, syn: &Packet, send: &mut dyn FnMut(To, &[u8])) {
        self.client.ecn = syn.flags() & ECN; // RFC 3168 section 6.1.1.1: a repetition may omit it
        if self.answered {
            self.send_syn_ack(send);
        }
    }

    /// Handles a packet from the proxy, as NAT has addressed it: to the client.
    pub fn handle_proxy(
        &mut self,
        packet: &Packet,
        now: Instant,
        send: &mut dyn FnMut(To, &[u8]),
    ) -> Outcome {
        match self.proxy {
            None => self.connect(packet, now, send),
            Some(_) if self.answered => {
                self.pass_on(packet, send);
                Outcome::Pending
            }
            Some(_) => self.ask(packet, now, send),
        }
    }

    /// Ends the connection to the proxy, which has not answered. A reset must have the sequence number that
    /// the proxy expects (RFC 5961 section 3.2): after what it has acknowledged, or after the request if that
    /// has arrived meanwhile.
    pub fn abort(&self, send: &mut dyn FnMut(To, &[u8])) {
        self.send_proxy(self.first().wrapping_add(self.acked as u32), RST, &[], To::Proxy, send);
        if self.proxy.is_some() && self.acked < self.request.len() {
            self.send_proxy(self.client.sequence.wrapping_add(1), RST, &[], To::Proxy, send);
        }
    }

    /// The sequence number of the request's first byte.
    fn first(&self) -> u32 {
        self.client.sequence.wrapping_add(1).wrapping_sub(self.request.len() as u32)
    }

    fn connect(&mut self, packet: &Packet, now: Instant, send: &mut dyn FnMut(To, &[u8])) -> Outcome {
        let flags = packet.flags();
        if flags & ACK == 0 {
            return Outcome::Pending; // not a SYN-ACK; simultaneous open is not supported
        }
        if packet.acknowledgement() != self.first() {
            // RFC 9293 section 3.10.7.3: the proxy remembers an earlier connection, which our reset ends. NAT
            // may give the repeated SYN another port, from which the proxy may remember a connection as well.
            if flags & RST == 0 {
                self.send_proxy(packet.acknowledgement(), RST, &[], To::Proxy, send);
                if self.retries > 0 {
                    self.retries -= 1;
                    self.send_syn(send);
                }
            }
            return Outcome::Pending;
        }
        match flags & (SYN | RST | FIN) {
            SYN => {
                let proxy = End::of(packet, self.mss_limit);
                self.expected = proxy.sequence.wrapping_add(1);
                self.clock = proxy.options.timestamps.unwrap_or_default().value;
                self.proxy = Some(proxy);
                self.timeout = FIRST_TIMEOUT;
                self.repeat_at = now.plus(FIRST_TIMEOUT);
                self.send_request(send);
                Outcome::Connected
            }
            it if it & RST != 0 => Outcome::Unreachable,
            _ => Outcome::Pending,
        }
    }

    fn ask(&mut self, packet: &Packet, now: Instant, send: &mut dyn FnMut(To, &[u8])) -> Outcome {
        let flags = packet.flags();
        let behind = self.expected.wrapping_sub(packet.sequence()); // how many of its bytes are already known
        if flags & RST != 0 {
            // RFC 5961 section 3.2: a reset elsewhere in the window may be forged.
            return if behind == 0 { Outcome::Closed } else { Outcome::Pending };
        }
        if flags & SYN != 0 {
            self.send_request(send); // a repeated SYN-ACK: our acknowledgement was lost
            return Outcome::Pending;
        }
        if flags & ACK == 0 {
            return Outcome::Pending;
        }
        let acked = packet.acknowledgement().wrapping_sub(self.first()) as usize;
        if acked > self.request.len() {
            return Outcome::Pending;
        }
        if acked > self.acked {
            self.acked = acked;
            self.timeout = FIRST_TIMEOUT;
            self.repeat_at = now.plus(FIRST_TIMEOUT);
            if acked < self.request.len() {
                self.send_request(send); // the window has moved
            }
        }
        if let Some(timestamps) = Options::parse(packet.tcp_options()).timestamps
            && timestamps.value.wrapping_sub(self.clock) < 1 << 31
        {
            self.clock = timestamps.value;
        }
        let payload = packet.tcp_payload();
        let new = payload.get(behind as usize..).unwrap_or_default();
        let mut rest = &[][..];
        if self.status.is_none() && !new.is_empty() {
            let consumed = match self.parser.feed(new) {
                Ok(Status::Partial) => new.len(),
                Ok(Status::Done { status, consumed }) => {
                    self.status = Some(status);
                    rest = &new[consumed..];
                    consumed
                }
                Err(error) => return self.give_up(Outcome::Garbage(error), send),
            };
            self.expected = self.expected.wrapping_add(consumed as u32);
        }
        match self.status {
            Some(status @ 200..=299) if self.acked == self.request.len() => {
                self.answer(rest, now, send);
                return Outcome::Opened { status };
            }
            Some(200..=299) => {}
            Some(status) => return self.give_up(Outcome::Refused { status }, send),
            // A FIN in order, with nothing missing before it.
            None if flags & FIN != 0 && behind as usize <= payload.len() => {
                return self.give_up(Outcome::Closed, send);
            }
            None => {}
        }
        if !payload.is_empty() || flags & FIN != 0 {
            self.acknowledge(To::Proxy, send);
        }
        Outcome::Pending
    }

    /// Answers the client once the tunnel is open: sends its SYN-ACK, and `rest`, the bytes that came after
    /// the reply. The gateway does not acknowledge `rest`. The client does; if it gets lost, the proxy
    /// repeats it.
    fn answer(&mut self, rest: &[u8], now: Instant, send: &mut dyn FnMut(To, &[u8])) {
        self.answered = true;
        self.timeout = FIRST_TIMEOUT;
        self.repeat_at = now.plus(FIRST_TIMEOUT);
        self.acknowledge(To::ProxyAnswered, send);
        self.send_syn_ack(send);
        if !rest.is_empty() {
            let window = self.proxy.map_or(0, |proxy| self.scaled(&proxy));
            self.deliver(self.expected, ACK | PSH, window, self.clock, rest, send);
        }
    }

    /// Passes a packet of the proxy to a client that has been answered and has not acknowledged yet. The
    /// sequence numbers are already those of the client's connection.
    fn pass_on(&self, packet: &Packet, send: &mut dyn FnMut(To, &[u8])) {
        let flags = packet.flags();
        let known = self.expected.wrapping_sub(packet.sequence()) as i32;
        let payload = packet.tcp_payload();
        if flags & SYN != 0 || known > 0 && known as usize >= payload.len() && !payload.is_empty() {
            self.acknowledge(To::ProxyAnswered, send); // our acknowledgement was lost
        } else if !payload.is_empty() || flags & (FIN | RST) != 0 {
            let payload = payload.get(known.max(0) as usize..).unwrap_or_default();
            let sequence = packet.sequence().wrapping_add(known.max(0) as u32);
            let clock = Options::parse(packet.tcp_options()).timestamps.unwrap_or_default().value;
            self.deliver(sequence, flags, packet.window(), clock, payload, send);
        }
    }

    /// Sends the client the proxy's data, in segments that fit.
    fn deliver(
        &self,
        mut sequence: u32,
        flags: u8,
        window: u16,
        clock: u32,
        payload: &[u8],
        send: &mut dyn FnMut(To, &[u8]),
    ) {
        let family = self.tuple.family();
        let most = self.client.options.payload(family, self.mss_limit).min(Segment::max_payload(family));
        let mut rest = payload;
        loop {
            let (payload, behind) = rest.split_at(rest.len().min(most));
            let tcp = Tcp {
                tuple: self.tuple.reversed(),
                sequence,
                acknowledgement: self.client.sequence.wrapping_add(1),
                flags: if behind.is_empty() { flags } else { flags & !(FIN | PSH) },
                window,
            };
            let options = self.timestamps(clock, self.client_clock());
            emit(Segment { tcp, options, payload }, To::Client, send);
            sequence = sequence.wrapping_add(payload.len() as u32);
            rest = behind;
            if rest.is_empty() {
                return;
            }
        }
    }

    fn give_up(&self, outcome: Outcome, send: &mut dyn FnMut(To, &[u8])) -> Outcome {
        self.abort(send);
        outcome
    }

    fn send_syn(&self, send: &mut dyn FnMut(To, &[u8])) {
        let End { window, ecn, mut options, .. } = self.client;
        if let Some(timestamps) = &mut options.timestamps {
            timestamps.echo = 0;
        }
        let (tuple, sequence) = (self.tuple, self.first().wrapping_sub(1));
        let flags = SYN | ecn;
        let tcp = Tcp { tuple, sequence, acknowledgement: 0, flags, window };
        emit(Segment { tcp, options, payload: &[] }, To::Proxy, send);
    }

    fn send_syn_ack(&self, send: &mut dyn FnMut(To, &[u8])) {
        let Some(End { window, ecn, mut options, .. }) = self.proxy else { return };
        options.timestamps = self.timestamps(self.clock, self.client_clock()).timestamps;
        let tcp = Tcp {
            tuple: self.tuple.reversed(),
            sequence: self.expected.wrapping_sub(1),
            acknowledgement: self.client.sequence.wrapping_add(1),
            flags: SYN | ACK | if self.client.ecn == 0 { 0 } else { ecn },
            window,
        };
        emit(Segment { tcp, options, payload: &[] }, To::Client, send);
    }

    /// Sends as much of the unacknowledged request as the proxy's window allows.
    fn send_request(&self, send: &mut dyn FnMut(To, &[u8])) {
        let Some(proxy) = self.proxy else { return };
        let family = self.tuple.family();
        let most = proxy.options.payload(family, self.mss_limit).min(Segment::max_payload(family));
        let open = self.request.len().min(self.acked + usize::from(proxy.window).max(most));
        let mut at = self.acked;
        while let Some(payload) = self.request.get(at..open.min(at + most)).filter(|it| !it.is_empty()) {
            let sequence = self.first().wrapping_add(at as u32);
            at += payload.len();
            let push = if at == self.request.len() { PSH } else { 0 };
            self.send_proxy(sequence, ACK | push, payload, To::Proxy, send);
        }
        if self.acked == self.request.len() {
            self.acknowledge(To::Proxy, send);
        }
    }

    fn acknowledge(&self, to: To, send: &mut dyn FnMut(To, &[u8])) {
        self.send_proxy(self.first().wrapping_add(self.acked as u32), ACK, &[], to, send);
    }

    fn send_proxy(&self, sequence: u32, flags: u8, payload: &[u8], to: To, send: &mut dyn FnMut(To, &[u8])) {
        let tcp = Tcp {
            tuple: self.tuple,
            sequence,
            acknowledgement: if flags & ACK == 0 { 0 } else { self.expected },
            flags,
            window: self.scaled(&self.client),
        };
        emit(Segment { tcp, options: self.timestamps(self.client_clock(), self.clock), payload }, to, send);
    }

    /// The timestamps of a segment after the SYNs, if both SYNs had them.
    fn timestamps(&self, value: u32, echo: u32) -> Options {
        let both = self.client.options.timestamps.is_some()
            && self.proxy.is_some_and(|proxy| proxy.options.timestamps.is_some());
        Options { timestamps: both.then_some(Timestamps { value, echo }), ..Options::default() }
    }

    /// The client's timestamp at its SYN. Later segments may repeat it, but a timestamp must not go back (RFC
    /// 7323 section 5.3).
    fn client_clock(&self) -> u32 {
        self.client.options.timestamps.unwrap_or_default().value
    }

    /// The window of an end's SYN as it appears in later segments: scaled if both offered that.
    fn scaled(&self, end: &End) -> u16 {
        let both = [Some(self.client), self.proxy].map(|end| end.and_then(|end| end.options.window_scale));
        match (both, end.options.window_scale) {
            ([Some(_), Some(_)], Some(shift)) => (end.window >> shift).max(1),
            _ => end.window,
        }
    }
}

fn emit(segment: Segment, to: To, send: &mut dyn FnMut(To, &[u8])) {
    let mut out = [0; MAX_SEGMENT];
    let length = segment.write(&mut out);
    send(to, &out[..length]);
}
