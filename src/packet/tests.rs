use super::*;
use std::net::Ipv4Addr;
use std::vec::Vec;

/// A SYN with options NOP, MSS 1460 at an odd offset, NOP, window scale.
const SYN_V4: [u8; 52] = [
    0x45, 0x00, 0x00, 0x34, 0x1c, 0x46, 0x40, 0x00, 0x40, 0x06, 0x32, 0x92, // IPv4
    0xc0, 0xa8, 0x01, 0x07, 0xc6, 0x33, 0x64, 0x09, // 192.168.1.7, 198.51.100.9
    0x9c, 0x40, 0x01, 0xbb, 0x01, 0x02, 0x03, 0x04, 0x00, 0x00, 0x00, 0x00, // 40000, 443
    0x80, 0x02, 0xfa, 0xf0, 0x33, 0xec, 0x00, 0x00, //
    0x01, 0x02, 0x04, 0x05, 0xb4, 0x01, 0x03, 0x03, 0x07, 0x00, 0x00, 0x00, // options
];
/// The same from 10.45.39.3:512 to 10.45.39.1:12345.
const SYN_V4_TRANSLATED: [u8; 52] = [
    0x45, 0x00, 0x00, 0x34, 0x1c, 0x46, 0x40, 0x00, 0x40, 0x06, 0xbc, 0x20, //
    0x0a, 0x2d, 0x27, 0x03, 0x0a, 0x2d, 0x27, 0x01, //
    0x02, 0x00, 0x30, 0x39, 0x01, 0x02, 0x03, 0x04, 0x00, 0x00, 0x00, 0x00, //
    0x80, 0x02, 0xfa, 0xf0, 0x29, 0x3d, 0x00, 0x00, //
    0x01, 0x02, 0x04, 0x05, 0xb4, 0x01, 0x03, 0x03, 0x07, 0x00, 0x00, 0x00, //
];
/// [`SYN_V4`] with an MSS of 1300.
const SYN_V4_CLAMPED: [u8; 52] = [
    0x45, 0x00, 0x00, 0x34, 0x1c, 0x46, 0x40, 0x00, 0x40, 0x06, 0x32, 0x92, //
    0xc0, 0xa8, 0x01, 0x07, 0xc6, 0x33, 0x64, 0x09, //
    0x9c, 0x40, 0x01, 0xbb, 0x01, 0x02, 0x03, 0x04, 0x00, 0x00, 0x00, 0x00, //
    0x80, 0x02, 0xfa, 0xf0, 0xd3, 0xec, 0x00, 0x00, //
    0x01, 0x02, 0x04, 0x05, 0x14, 0x01, 0x03, 0x03, 0x07, 0x00, 0x00, 0x00, //
];
/// Three bytes of payload behind hop-by-hop options.
const ODD_V6: [u8; 71] = [
    0x60, 0x00, 0x00, 0x00, 0x00, 0x1f, 0x00, 0x40, // IPv6
    0xfd, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // fd00::7
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x07, //
    0x20, 0x01, 0x0d, 0xb8, 0x00, 0x00, 0x00, 0x00, // 2001:db8::9
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x09, //
    0x06, 0x00, 0x01, 0x04, 0x00, 0x00, 0x00, 0x00, // hop-by-hop: PadN
    0x9c, 0x40, 0x01, 0xbb, 0x01, 0x02, 0x03, 0x04, 0x0a, 0x0b, 0x0c, 0x0d, // 40000, 443
    0x50, 0x18, 0xfa, 0xf0, 0xfe, 0x90, 0x00, 0x00, 0x6f, 0x64, 0x64, // PSH ACK, "odd"
];
/// The same from [fd45:39::3]:512 to [fd45:39::1]:12345.
const ODD_V6_TRANSLATED: [u8; 71] = [
    0x60, 0x00, 0x00, 0x00, 0x00, 0x1f, 0x00, 0x40, //
    0xfd, 0x45, 0x00, 0x39, 0x00, 0x00, 0x00, 0x00, //
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x03, //
    0xfd, 0x45, 0x00, 0x39, 0x00, 0x00, 0x00, 0x00, //
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, //
    0x06, 0x00, 0x01, 0x04, 0x00, 0x00, 0x00, 0x00, //
    0x02, 0x00, 0x30, 0x39, 0x01, 0x02, 0x03, 0x04, 0x0a, 0x0b, 0x0c, 0x0d, //
    0x50, 0x18, 0xfa, 0xf0, 0x9a, 0x1b, 0x00, 0x00, 0x6f, 0x64, 0x64, //
];
/// Where the TCP checksum of the IPv6 packets is, and what it is when left to the device.
const ODD_V6_CHECKSUM: usize = 64;
const ODD_V6_PARTIAL: [u8; 2] = [0x2a, 0xe7];
const ODD_V6_PARTIAL_TRANSLATED: [u8; 2] = [0xfb, 0x1e];

fn v4(octets: [u8; 4]) -> Ipv6Addr {
    Ipv4Addr::from(octets).to_ipv6_mapped()
}

fn client_v4() -> Tuple {
    Tuple {
        source: v4([192, 168, 1, 7]),
        destination: v4([198, 51, 100, 9]),
        source_port: 40_000,
        destination_port: 443,
    }
}

fn listener_v4() -> Tuple {
    Tuple {
        source: v4([10, 45, 39, 3]),
        destination: v4([10, 45, 39, 1]),
        source_port: 512,
        destination_port: 12_345,
    }
}

fn listener_v6() -> Tuple {
    Tuple {
        source: "fd45:39::3".parse().unwrap(),
        destination: "fd45:39::1".parse().unwrap(),
        ..listener_v4()
    }
}

/// What `parse` says of `packet` after `change`.
fn malformed(packet: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Option<Malformed> {
    let mut bytes = packet.to_vec();
    change(&mut bytes);
    Packet::parse(&mut bytes).err()
}

#[test]
fn parse_ipv4() {
    let mut bytes = SYN_V4;
    let packet = Packet::parse(&mut bytes).unwrap();
    assert_eq!(packet.family(), Family::V4);
    assert_eq!(packet.transport(), Transport::Tcp);
    assert_eq!(packet.transport_at(), 20);
    assert_eq!(packet.tuple(), client_v4());
    assert_eq!(packet.sequence(), 0x0102_0304);
    assert_eq!(packet.acknowledgement(), 0);
    assert_eq!(packet.flags(), SYN);
    assert_eq!(packet.sequence_length(), 1);
    assert!(!packet.is_icmp_error() && !packet.is_redirect());
}

#[test]
fn parse_ipv6() {
    let mut bytes = ODD_V6;
    let packet = Packet::parse(&mut bytes).unwrap();
    assert_eq!(packet.family(), Family::V6);
    assert_eq!(packet.transport(), Transport::Tcp);
    assert_eq!(packet.transport_at(), 48);
    assert_eq!(packet.source(), "fd00::7".parse::<Ipv6Addr>().unwrap());
    let destination: Ipv6Addr = "2001:db8::9".parse().unwrap();
    assert_eq!(packet.destination(), destination);
    assert_eq!(packet.acknowledgement(), 0x0a0b_0c0d);
    assert_eq!(packet.flags(), 0x18);
    assert_eq!(packet.sequence_length(), 3);
}

#[test]
fn cut_off_at_every_byte() {
    for length in 0..SYN_V4.len() {
        let cut = malformed(&SYN_V4, |bytes| bytes.truncate(length));
        assert_eq!(cut, Some(Malformed::Header), "{length}");
    }
    for length in 0..ODD_V6.len() {
        let cut = malformed(&ODD_V6, |bytes| bytes.truncate(length));
        assert_eq!(cut, Some(Malformed::Header), "{length}");
    }
}

#[test]
fn lengths_that_do_not_fit() {
    for packet in [&SYN_V4[..], &ODD_V6] {
        let header = Some(Malformed::Header);
        assert_eq!(malformed(packet, |bytes| bytes.push(0)), header);
        assert_eq!(malformed(packet, |bytes| bytes[0] = 0x50), header);
        let offset = if packet.len() == 52 { 32 } else { 60 };
        assert_eq!(malformed(packet, |bytes| bytes[offset] = 0x40), header);
        assert_eq!(malformed(packet, |bytes| bytes[offset] = 0xf0), header);
    }
    // A header shorter than it can be, longer than the packet; a payload of no length (jumbogram).
    let header = Some(Malformed::Header);
    assert_eq!(malformed(&SYN_V4, |bytes| bytes[0] = 0x44), header);
    assert_eq!(malformed(&SYN_V4, |bytes| bytes[0] = 0x4f), header);
    assert_eq!(malformed(&ODD_V6, |bytes| bytes[5] = 0), header);
}

#[test]
fn fragments() {
    let fragment = Some(Malformed::Fragment);
    assert_eq!(malformed(&SYN_V4, |bytes| bytes[6] = 0x20), fragment);
    assert_eq!(malformed(&SYN_V4, |bytes| bytes[7] = 1), fragment);
    // The hop-by-hop header becomes a fragment header: bytes 2 and 3 are offset and flag.
    let as_fragment = |offset: u8| {
        move |bytes: &mut Vec<u8>| {
            bytes[6] = 44;
            (bytes[42], bytes[43]) = (0, offset);
        }
    };
    assert_eq!(malformed(&ODD_V6, as_fragment(1)), fragment);
    assert_eq!(malformed(&ODD_V6, as_fragment(8)), fragment);
    // An atomic fragment (RFC 6946) is whole.
    assert_eq!(malformed(&ODD_V6, as_fragment(0)), None);
}

#[test]
fn headers_that_forbid_translation() {
    let extension = Some(Malformed::Extension);
    let routing = |bytes: &mut Vec<u8>| bytes[6] = 43;
    assert_eq!(malformed(&ODD_V6, routing), extension);
    // An authentication header of 12 bytes takes the first ones of TCP.
    let authentication = |at: usize, protocol: usize| {
        move |bytes: &mut Vec<u8>| {
            bytes[protocol] = 51;
            (bytes[at], bytes[at + 1]) = (17, 1);
        }
    };
    assert_eq!(malformed(&SYN_V4, authentication(20, 9)), extension);
    assert_eq!(malformed(&ODD_V6, authentication(48, 40)), extension);
}

#[test]
fn addresses_that_nobody_has() {
    let address = Some(Malformed::Address);
    for first in [0, 224, 255] {
        let change = |bytes: &mut Vec<u8>| bytes[12..16].fill(first);
        assert_eq!(malformed(&SYN_V4, change), address);
    }
    let multicast = |bytes: &mut Vec<u8>| bytes[8] = 0xff;
    assert_eq!(malformed(&ODD_V6, multicast), address);
    let unspecified = |bytes: &mut Vec<u8>| bytes[8..24].fill(0);
    assert_eq!(malformed(&ODD_V6, unspecified), address);
    for at in [8, 24] {
        let mapped = |bytes: &mut Vec<u8>| {
            bytes[at..at + 16].copy_from_slice(&v4([192, 0, 2, 1]).octets());
        };
        assert_eq!(malformed(&ODD_V6, mapped), address);
    }
}

#[test]
fn translate_ipv4_and_back() {
    let mut bytes = SYN_V4;
    let change = ChecksumChange::between(&client_v4(), &listener_v4());
    let mut packet = Packet::parse(&mut bytes).unwrap();
    packet.translate(&listener_v4(), change, ChecksumState::Complete);
    assert_eq!(packet.bytes(), SYN_V4_TRANSLATED);
    let back = change.reversed();
    packet.translate(&client_v4(), back, ChecksumState::Complete);
    assert_eq!(packet.bytes(), SYN_V4);
}

#[test]
fn translate_ipv6_and_back() {
    let mut partial = (ODD_V6, ODD_V6_TRANSLATED);
    let checksum = ODD_V6_CHECKSUM..ODD_V6_CHECKSUM + 2;
    partial.0[checksum.clone()].copy_from_slice(&ODD_V6_PARTIAL);
    partial.1[checksum].copy_from_slice(&ODD_V6_PARTIAL_TRANSLATED);
    for ((before, after), state) in
        [((ODD_V6, ODD_V6_TRANSLATED), ChecksumState::Complete), (partial, ChecksumState::Partial)]
    {
        let mut bytes = before;
        let mut packet = Packet::parse(&mut bytes).unwrap();
        let client = packet.tuple();
        let change = ChecksumChange::between(&client, &listener_v6());
        packet.translate(&listener_v6(), change, state);
        assert_eq!(packet.bytes(), after);
        packet.translate(&client, change.reversed(), state);
        assert_eq!(packet.bytes(), before);
    }
}

#[test]
fn clamp_mss() {
    let mut bytes = SYN_V4;
    let mut packet = Packet::parse(&mut bytes).unwrap();
    packet.clamp_mss(1460, ChecksumState::Complete);
    assert_eq!(packet.bytes(), SYN_V4);
    packet.clamp_mss(1300, ChecksumState::Complete);
    assert_eq!(packet.bytes(), SYN_V4_CLAMPED);
}

#[test]
fn clamp_mss_leaves_a_partial_checksum() {
    let mut bytes = SYN_V4;
    let mut packet = Packet::parse(&mut bytes).unwrap();
    packet.clamp_mss(1300, ChecksumState::Partial);
    assert_eq!(bytes[36..38], SYN_V4[36..38]);
    assert_eq!(bytes[40..], SYN_V4_CLAMPED[40..]);
}

/// 12 bytes of options before and after, the MSS limited to 0x0101.
#[test]
fn clamp_mss_among_options() {
    for (before, after) in [
        // At an even offset, at the very end, the only one.
        ([2, 4, 9, 9, 1, 1, 1, 1, 1, 1, 1, 1], [2, 4, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ([1, 1, 1, 1, 1, 1, 1, 1, 2, 4, 9, 9], [1, 1, 1, 1, 1, 1, 1, 1, 2, 4, 1, 1]),
        // Behind others.
        ([3, 3, 7, 4, 2, 2, 4, 9, 9, 1, 1, 1], [3, 3, 7, 4, 2, 2, 4, 1, 1, 1, 1, 1]),
        // Twice: the kernel goes by the last.
        ([2, 4, 0, 9, 2, 4, 9, 9, 1, 1, 1, 1], [2, 4, 0, 9, 2, 4, 1, 1, 1, 1, 1, 1]),
        ([2, 4, 9, 9, 1, 2, 4, 9, 9, 1, 1, 1], [2, 4, 1, 1, 1, 2, 4, 1, 1, 1, 1, 1]),
        // Behind the end, behind an option of no length, cut off, of another length.
        ([0, 2, 4, 9, 9, 1, 1, 1, 1, 1, 1, 1], [0, 2, 4, 9, 9, 1, 1, 1, 1, 1, 1, 1]),
        ([9, 0, 2, 4, 9, 9, 1, 1, 1, 1, 1, 1], [9, 0, 2, 4, 9, 9, 1, 1, 1, 1, 1, 1]),
        ([9, 1, 2, 4, 9, 9, 1, 1, 1, 1, 1, 1], [9, 1, 2, 4, 9, 9, 1, 1, 1, 1, 1, 1]),
        ([1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 4, 9], [1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 4, 9]),
        ([2, 5, 9, 9, 9, 1, 1, 1, 1, 1, 1, 1], [2, 5, 9, 9, 9, 1, 1, 1, 1, 1, 1, 1]),
        // An option longer than the header.
        ([9, 255, 2, 4, 9, 9, 1, 1, 1, 1, 1, 1], [9, 255, 2, 4, 9, 9, 1, 1, 1, 1, 1, 1]),
    ] {
        let mut bytes = SYN_V4;
        bytes[40..].copy_from_slice(&before);
        let sum = |bytes: &[u8]| checksum::sum(0, &bytes[20..]);
        let sum_before = sum(&bytes);
        let mut packet = Packet::parse(&mut bytes).unwrap();
        packet.clamp_mss(0x0101, ChecksumState::Complete);
        assert_eq!(bytes[40..], after);
        assert_eq!(sum(&bytes), sum_before, "{before:?}");
    }
}

/// An ICMP error from 192.168.1.7 about a packet of [`listener_v4`]'s, or from its IPv6 like, whose quote
/// is `quote`.
fn icmp_error(kind: u8, quote: &[u8]) -> Vec<u8> {
    let ipv4 = quote[0] >> 4 == 4;
    let mut bytes = match ipv4 {
        true => {
            let mut bytes = SYN_V4_TRANSLATED[..20].to_vec();
            let length = 28 + quote.len() as u16;
            bytes[2..4].copy_from_slice(&length.to_be_bytes());
            bytes[9] = 1;
            bytes[10..12].fill(0);
            let sum = checksum::sum(0, &bytes);
            bytes[10..12].copy_from_slice(&(!sum).to_be_bytes());
            bytes
        }
        false => {
            let mut bytes = ODD_V6_TRANSLATED[..40].to_vec();
            let length = 8 + quote.len() as u16;
            bytes[4..6].copy_from_slice(&length.to_be_bytes());
            bytes[6] = 58;
            bytes
        }
    };
    let at = bytes.len();
    bytes.extend([kind, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend(quote);
    let sum = icmp_sum(&bytes, at);
    bytes[at + 2..at + 4].copy_from_slice(&(!sum).to_be_bytes());
    bytes
}

fn icmp_sum(bytes: &[u8], at: usize) -> u16 {
    let start = match at {
        20 => 0,
        _ => checksum::pseudo_header(&bytes[8..40], 58, bytes.len() - at),
    };
    checksum::sum(start, &bytes[at..])
}

/// Translates the error about `before`, and expects it to quote `after`.
fn translated_error(before: &[u8], after: &[u8], quoted: &Tuple) {
    let ipv4 = before[0] >> 4 == 4;
    let (from, to) = match ipv4 {
        true => (v4([198, 51, 100, 9]), v4([192, 168, 1, 7])),
        false => ("2001:db8::9".parse().unwrap(), "fd00::7".parse().unwrap()),
    };
    let mut bytes = icmp_error(3, before);
    let mut packet = Packet::parse(&mut bytes).unwrap();
    assert!(packet.is_icmp_error());
    packet.translate_icmp_error(quoted, from, to);
    assert_eq!((packet.source(), packet.destination()), (from, to));
    assert_eq!(packet.quoted_tuple(), Some(*quoted));
    let at = packet.transport_at();
    assert_eq!(&bytes[at + 8..], after);
    assert_eq!(icmp_sum(&bytes, at), 0xffff, "ICMP checksum");
    if ipv4 {
        assert_eq!(checksum::sum(0, &bytes[..20]), 0xffff, "IPv4 checksum");
    }
}

#[test]
fn translate_icmp_errors() {
    // From the least that must be quoted up to the whole packet, but for half a checksum.
    for length in (28..=52).filter(|length| *length != 37) {
        let (before, after) = (&SYN_V4_TRANSLATED[..length], &SYN_V4[..length]);
        translated_error(before, after, &client_v4());
    }
    let client = Packet::parse(&mut ODD_V6.clone()).unwrap().tuple();
    for length in (56..=71).filter(|length| *length != 65) {
        let (before, after) = (&ODD_V6_TRANSLATED[..length], &ODD_V6[..length]);
        translated_error(before, after, &client);
    }
}

#[test]
fn an_icmp_extension_is_not_part_of_the_quote() {
    // The quote's length says that it ends before the TCP checksum: an impossible packet, but what
    // follows is the extension and must stay as it is.
    let mut before = SYN_V4_TRANSLATED;
    let mut after = SYN_V4;
    for (quote, checksum) in [(&mut before, [0xbc, 0x38]), (&mut after, [0x32, 0xaa])] {
        quote[3] = 28;
        quote[10..12].copy_from_slice(&checksum);
        quote[28..].fill(0xee);
        assert_eq!(checksum::sum(0, &quote[..20]), 0xffff);
    }
    translated_error(&before, &after, &client_v4());
    // A whole packet, padded, and an extension (RFC 4884 section 7).
    let extension = [0x20, 0, 0xdf, 0xff, 0, 8, 1, 1, 1, 2, 3, 4];
    let padded = |quote: &[u8]| {
        let mut quote = quote.to_vec();
        quote.resize(128, 0);
        quote.extend(extension);
        quote
    };
    let (before, after) = (padded(&SYN_V4_TRANSLATED), padded(&SYN_V4));
    translated_error(&before, &after, &client_v4());
}

#[test]
fn inner_ipv4_options() {
    let with_options = |quote: &[u8], checksum: [u8; 2]| {
        let mut quote = quote.to_vec();
        quote[0] = 0x46;
        quote[3] += 4;
        quote[10..12].copy_from_slice(&checksum);
        quote.splice(20..20, [0x94, 4, 0, 0]); // router alert (RFC 2113)
        assert_eq!(checksum::sum(0, &quote[..24]), 0xffff);
        quote
    };
    let before = with_options(&SYN_V4_TRANSLATED, [0x27, 0x18]);
    let after = with_options(&SYN_V4, [0x9d, 0x89]);
    translated_error(&before, &after, &client_v4());
    translated_error(&before[..32], &after[..32], &client_v4());
}

#[test]
fn quotes_of_anything_else() {
    let none = |quote: &[u8]| {
        let mut bytes = icmp_error(3, quote);
        let mut packet = Packet::parse(&mut bytes).unwrap();
        assert_eq!(packet.quoted_tuple(), None, "{quote:02x?}");
        let before = packet.bytes().to_vec();
        let address = packet.source();
        packet.translate_icmp_error(&client_v4(), address, address);
        assert_eq!(packet.bytes(), before);
    };
    (1..28).for_each(|length| none(&SYN_V4_TRANSLATED[..length]));
    (1..56).for_each(|length| none(&ODD_V6[..length]));
    for (at, byte) in [(9, 17), (6, 0x20), (7, 1), (0, 0x4f), (0, 0x42)] {
        let mut quote = SYN_V4;
        quote[at] = byte;
        none(&quote[..28]);
    }
    // Of the other family.
    let mut bytes = icmp_error(3, &SYN_V4);
    bytes[28] = 0x65;
    assert_eq!(Packet::parse(&mut bytes).unwrap().quoted_tuple(), None);
    // No ICMP at all.
    assert_eq!(Packet::parse(&mut SYN_V4.clone()).unwrap().quoted_tuple(), None);
}

#[test]
fn icmp_kinds() {
    let kinds = |quote: &[u8]| {
        let mut errors = Vec::new();
        for kind in 0..=255 {
            let mut bytes = icmp_error(kind, quote);
            let packet = Packet::parse(&mut bytes).unwrap();
            assert_eq!(packet.transport(), Transport::Icmp);
            assert_eq!(packet.icmp_type(), (kind, 0));
            if packet.is_icmp_error() {
                errors.push(kind);
            }
            let redirect = if packet.family() == Family::V4 { 5 } else { 137 };
            assert_eq!(packet.is_redirect(), kind == redirect);
        }
        errors
    };
    assert_eq!(kinds(&SYN_V4), [3, 4, 5, 11, 12]);
    let below_128: Vec<u8> = (0..128).chain([137]).collect();
    assert_eq!(kinds(&ODD_V6), below_128);
}

#[test]
fn icmp_of_the_other_family_is_just_other() {
    let mut bytes = SYN_V4;
    bytes[9] = 58;
    let packet = Packet::parse(&mut bytes).unwrap();
    assert_eq!(packet.transport(), Transport::Other);
    assert!(!packet.is_icmp_error());
}

#[test]
fn unicast() {
    for address in ["::", "ff02::1", "::ffff:0.1.2.3", "::ffff:224.0.0.1", "::ffff:255.255.255.255"] {
        assert!(!is_unicast(address.parse().unwrap()), "{address}");
    }
    for address in ["::1", "fe80::1", "2001:db8::", "::ffff:1.0.0.0", "::ffff:255.255.255.254"] {
        assert!(is_unicast(address.parse().unwrap()), "{address}");
    }
}
