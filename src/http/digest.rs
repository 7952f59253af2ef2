//! The Digest scheme (RFC 7616): a proxy challenges with a nonce, and is answered with a hash of it and the password.

mod hash;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

use self::hash::Hash;
use super::field::{self, push};

/// A challenge that can be answered, and how often it was. Realm, nonce and opaque are kept as they were between the
/// quotes, and are sent back that way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    realm: Box<str>,
    nonce: Box<str>,
    opaque: Option<Box<str>>,
    hash: Hash,
    is_session: bool,
    /// As the challenge wrote the algorithm, if it did.
    algorithm: Option<Box<str>>,
    /// Quality of protection "auth"; `false`: none.
    is_auth: bool,
    /// Our nonce.
    cnonce: String,
    /// How many requests have been answered with it.
    count: u32,
}

/// What a proxy offers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// The Basic scheme.
    pub basic: bool,
    /// The Digest scheme: the first challenge that can be answered (RFC 7616 section 3.7).
    pub digest: Option<Challenge>,
    /// The Digest scheme, in a variant that can't be answered.
    pub other_digest: bool,
}

impl Offer {
    /// Reads all Proxy-Authenticate fields of a 407's lines (RFC 9110 section 11.6.1).
    pub fn read(lines: &[u8]) -> Self {
        let mut offer = Self::default();
        field::visit(lines, &mut |name, value| {
            if !name.eq_ignore_ascii_case("Proxy-Authenticate") {
                return;
            }
            let (mut scheme, mut parameters) = ("", Parameters::default());
            for mut element in Elements(value) {
                if !is_parameter(element) {
                    offer.add(scheme, &parameters);
                    // A challenge begins with its scheme: alone, or followed by the first parameter.
                    (scheme, element) = element.split_once([' ', '\t']).unwrap_or((element, ""));
                    parameters = Parameters::default();
                }
                parameters.add(element.trim_ascii());
            }
            offer.add(scheme, &parameters);
        });
        offer
    }

    /// Adds a challenge.
    #[inline(never)]
    fn add(&mut self, scheme: &str, parameters: &Parameters<'_>) {
        if scheme.eq_ignore_ascii_case("Basic") {
            self.basic = true;
        } else if scheme.eq_ignore_ascii_case("Digest") && self.digest.is_none() {
            self.digest = parameters.challenge();
            self.other_digest |= self.digest.is_none();
        }
    }
}

impl Challenge {
    /// Sets our nonce: random, new for each challenge, and without characters that need quoting.
    pub fn set_cnonce(&mut self, cnonce: String) {
        self.cnonce = cnonce;
    }

    /// Appends `Digest` and the answer for a request, whose URI has no quotes. The user name is sent in quotes, as UTF-8.
    pub fn answer(&mut self, username: &str, password: &str, method: &[u8], uri: &[u8], out: &mut Vec<u8>) {
        self.count += 1;
        let mut nc = String::new();
        _ = write!(nc, "{:08x}", self.count);
        let join = |parts: &[&[u8]]| self.hash.hex(&parts.join(&b':'));
        let (nonce, cnonce) = (self.nonce.as_bytes(), self.cnonce.as_bytes());
        let mut a1 = join(&[username.as_bytes(), self.realm.as_bytes(), password.as_bytes()]);
        if self.is_session {
            a1 = join(&[a1.as_bytes(), nonce, cnonce]);
        }
        let a2 = join(&[method, uri]);
        let response = match self.is_auth {
            true => join(&[a1.as_bytes(), nonce, nc.as_bytes(), cnonce, b"auth", a2.as_bytes()]),
            false => join(&[a1.as_bytes(), nonce, a2.as_bytes()]),
        };
        push(out, &[b"Digest username=\""]);
        for &byte in username.as_bytes() {
            if matches!(byte, b'"' | b'\\') {
                out.push(b'\\');
            }
            out.push(byte);
        }
        let mut push = |name: &str, value: &[u8], quote: &str| {
            push(out, &[name.as_bytes(), quote.as_bytes(), value, quote.as_bytes()]);
        };
        push("\", realm=", self.realm.as_bytes(), "\"");
        push(", nonce=", nonce, "\"");
        push(", uri=", uri, "\"");
        push(", response=", response.as_bytes(), "\"");
        if let Some(algorithm) = &self.algorithm {
            push(", algorithm=", algorithm.as_bytes(), "");
        }
        if let Some(opaque) = &self.opaque {
            push(", opaque=", opaque.as_bytes(), "\"");
        }
        if self.is_auth {
            push(", qop=auth, nc=", nc.as_bytes(), "");
        }
        if self.is_auth || self.is_session {
            push(", cnonce=", cnonce, "\"");
        }
    }
}

/// The relevant parameters of a challenge...
#[derive(Default)]
struct Parameters<'a>([Option<&'a str>; 5]);

/// ...and their names.
const PARAMETERS: [&str; 5] = ["realm", "nonce", "opaque", "algorithm", "qop"];

impl<'a> Parameters<'a> {
    fn add(&mut self, parameter: &'a str) {
        let Some((name, value)) = parameter.split_once('=') else { return };
        let (name, Some(value)) = (name.trim_ascii_end(), unquoted(value.trim_ascii_start())) else { return };
        let mut places = PARAMETERS.iter().zip(&mut self.0);
        if let Some((_, place)) = places.find(|(known, _)| name.eq_ignore_ascii_case(known)) {
            *place = Some(value);
        }
    }

    /// The challenge, if it can be answered.
    fn challenge(&self) -> Option<Challenge> {
        let [realm, nonce, opaque, algorithm, qop] = self.0;
        let (hash, is_session) = match algorithm {
            None => (Hash::Md5, false),
            Some(algorithm) => ALGORITHMS
                .iter()
                .find(|(name, ..)| algorithm.eq_ignore_ascii_case(name))
                .map(|&(_, hash, is_session)| (hash, is_session))?,
        };
        let is_auth = qop.is_some();
        let offers_auth =
            |qop: &str| qop.split(',').any(|word| word.trim_ascii().eq_ignore_ascii_case("auth"));
        if !qop.is_none_or(offers_auth) {
            return None;
        }
        Some(Challenge {
            realm: realm?.into(),
            nonce: nonce?.into(),
            opaque: opaque.map(Into::into),
            hash,
            is_session,
            algorithm: algorithm.map(Into::into),
            is_auth,
            cnonce: String::new(),
            count: 0,
        })
    }
}

const ALGORITHMS: [(&str, Hash, bool); 4] = [
    ("MD5", Hash::Md5, false),
    ("MD5-sess", Hash::Md5, true),
    ("SHA-256", Hash::Sha256, false),
    ("SHA-256-sess", Hash::Sha256, true),
];

/// The elements of a list, split at commas outside quotes; empty ones are left out.
struct Elements<'a>(&'a str);

impl<'a> Iterator for Elements<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        loop {
            let text = self.0.trim_start_matches([' ', '\t', ',']);
            let (mut is_quoted, mut is_escaped) = (false, false);
            let end = text.bytes().position(|byte| {
                let was_escaped = core::mem::replace(&mut is_escaped, false);
                match byte {
                    _ if was_escaped => {}
                    b'\\' => is_escaped = is_quoted,
                    b'"' => is_quoted = !is_quoted,
                    b',' => return !is_quoted,
                    _ => {}
                }
                false
            });
            let (element, rest) = text.split_at(end.unwrap_or(text.len()));
            self.0 = rest;
            if text.is_empty() {
                return None;
            }
            if !element.trim_ascii_end().is_empty() {
                return Some(element.trim_ascii_end());
            }
        }
    }
}

/// The value between its quotes, if there are any, in a form that can be quoted again unchanged.
fn unquoted(value: &str) -> Option<&str> {
    let value = value.strip_prefix('"').map_or(Some(value), |rest| rest.strip_suffix('"'))?;
    let mut is_escaped = false;
    let is_fine = value.bytes().all(|byte| {
        let was_escaped = is_escaped;
        is_escaped = byte == b'\\' && !was_escaped;
        (was_escaped || byte != b'"') && !(byte.is_ascii_control() && byte != b'\t')
    });
    (is_fine && !is_escaped).then_some(value)
}

/// Whether an element is `name=value`, not a scheme with its first parameter.
fn is_parameter(element: &str) -> bool {
    let Some((name, _)) = element.split_once('=') else { return false };
    !name.trim_ascii_end().contains([' ', '\t'])
}

#[cfg(test)]
mod tests;
