//! The TCP options of a SYN that both ends of a spliced connection can keep.

use crate::net::Family;
use crate::packet::TCP_HEADER;

const END: u8 = 0;
const NOP: u8 = 1;
const MSS: u8 = 2;
const WINDOW_SCALE: u8 = 3;
const SACK_PERMITTED: u8 = 4;
const TIMESTAMPS: u8 = 8;

/// The largest window shift that RFC 7323 section 2.3 allows.
const MAX_SHIFT: u8 = 14;

/// The value and echo of a timestamps option (RFC 7323 section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Timestamps {
    /// TSval: the sender's clock.
    pub value: u32,
    /// TSecr: the last seen value of the receiver's clock.
    pub echo: u32,
}

/// What a SYN or SYN-ACK offers (RFC 9293 section 3.2, RFC 2018, RFC 7323). All other options are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Options {
    /// Maximum segment size in bytes.
    pub mss: Option<u16>,
    /// How far windows are shifted, 0..=14.
    pub window_scale: Option<u8>,
    /// Whether selective acknowledgements may be sent.
    pub sack_permitted: bool,
    /// Timestamps, which are in every segment once both SYNs have had them.
    pub timestamps: Option<Timestamps>,
}

impl Options {
    /// The most bytes that [`write`](Self::write) takes: MSS 4, SACK permitted and timestamps 12, window
    /// scale 4.
    pub const MAX: usize = 20;

    /// Reads the options of a TCP header, the bytes after the first [`TCP_HEADER`]. Stops at an option that
    /// is cut off or has a wrong length.
    pub fn parse(mut bytes: &[u8]) -> Self {
        let mut options = Self::default();
        loop {
            let (length, kind, value) = match *bytes {
                [NOP, ref rest @ ..] => {
                    bytes = rest;
                    continue;
                }
                [END, ..] | [] | [_] => return options,
                [kind, length, ref value @ ..] => (usize::from(length), kind, value),
            };
            let Some(value) = length.checked_sub(2).and_then(|length| value.get(..length)) else {
                return options;
            };
            match (kind, value) {
                (MSS, &[high, low]) => options.mss = Some(u16::from_be_bytes([high, low])),
                (WINDOW_SCALE, &[shift]) => options.window_scale = Some(shift.min(MAX_SHIFT)),
                (SACK_PERMITTED, []) => options.sack_permitted = true,
                (TIMESTAMPS, &[a, b, c, d, e, f, g, h]) => {
                    options.timestamps = Some(Timestamps {
                        value: u32::from_be_bytes([a, b, c, d]),
                        echo: u32::from_be_bytes([e, f, g, h]),
                    });
                }
                _ => {}
            }
            bytes = bytes.get(length..).unwrap_or_default();
        }
    }

    /// Writes the options, padded to a multiple of 4; returns how many bytes that are.
    pub fn write(&self, out: &mut [u8; Self::MAX]) -> usize {
        let mut length = 0;
        let mut push = |bytes: &[u8]| {
            if let Some(place) = out.get_mut(length..length + bytes.len()) {
                place.copy_from_slice(bytes);
                length += bytes.len();
            }
        };
        if let Some(mss) = self.mss {
            let [high, low] = mss.to_be_bytes();
            push(&[MSS, 4, high, low]);
        }
        match (self.sack_permitted, self.timestamps.is_some()) {
            (true, true) => push(&[SACK_PERMITTED, 2]),
            (true, false) => push(&[NOP, NOP, SACK_PERMITTED, 2]),
            (false, true) => push(&[NOP, NOP]),
            (false, false) => {}
        }
        if let Some(Timestamps { value, echo }) = self.timestamps {
            push(&[TIMESTAMPS, 10]);
            push(&value.to_be_bytes());
            push(&echo.to_be_bytes());
        }
        if let Some(shift) = self.window_scale {
            push(&[NOP, WINDOW_SCALE, 3, shift]);
        }
        length
    }

    /// The MSS of a peer that offers none, which every path allows (RFC 9293 section 3.7.1).
    pub const fn default_mss(family: Family) -> u16 {
        match family {
            Family::V4 => 536,
            Family::V6 => 1220,
        }
    }

    /// The longest payload of a segment to a peer that offers these, none longer than `limit`.
    pub fn payload(&self, family: Family, limit: u16) -> usize {
        let mss = usize::from(self.mss.unwrap_or(Self::default_mss(family)).min(limit));
        // RFC 6691 section 2: the MSS counts fixed headers only.
        mss.saturating_sub(if self.timestamps.is_some() { 12 } else { 0 }).max(1)
    }
}

const _: () = assert!(TCP_HEADER + Options::MAX <= 60);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: Options = Options {
        mss: Some(1460),
        window_scale: Some(7),
        sack_permitted: true,
        timestamps: Some(Timestamps { value: 0x0102_0304, echo: 5 }),
    };

    #[test]
    fn as_linux_has_them() {
        let bytes = [2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 5, 1, 3, 3, 7];
        assert_eq!(Options::parse(&bytes), ALL);
        let mut out = [0; Options::MAX];
        assert_eq!(ALL.write(&mut out), 20);
        assert_eq!(out, bytes);
    }

    #[test]
    fn others_are_left_out() {
        // MPTCP's MP_CAPABLE (RFC 8684), a Fast Open cookie request (RFC 7413), an MSS.
        let bytes = [30, 4, 1, 0x81, 34, 2, 1, 1, 2, 4, 5, 0xb4, 0, 3, 3, 7];
        assert_eq!(Options::parse(&bytes), Options { mss: Some(1460), ..Options::default() });
        for cut in [&[2, 4, 5][..], &[2], &[2, 1, 5, 5], &[2, 0], &[8, 10, 1], &[3, 2]] {
            assert_eq!(Options::parse(cut), Options::default(), "{cut:?}");
        }
        assert_eq!(Options::parse(&[3, 3, 200]).window_scale, Some(14));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(mss: Option<u16>, shift in proptest::option::of(0..=14u8), sack: bool, ts: Option<(u32, u32)>) {
            let timestamps = ts.map(|(value, echo)| Timestamps { value, echo });
            let options = Options { mss, window_scale: shift, sack_permitted: sack, timestamps };
            let mut out = [0; Options::MAX];
            let length = options.write(&mut out);
            prop_assert_eq!(length % 4, 0);
            prop_assert_eq!(Options::parse(&out[..length]), options);
        }

        #[test]
        fn nothing_panics(bytes: std::vec::Vec<u8>) {
            Options::parse(&bytes);
        }
    }
}
