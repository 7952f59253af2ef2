//! How requests log in to one proxy: Basic at once, or Digest with the nonces that the proxy has given.
//!
//! A dial [begins](Login::begin) with an [`Authorization`]. A 407 to it [may be answered](Login::refused) once; any
//! other answer [returns](Login::answered) it. A nonce serves one dial at a time, since its count must not go
//! backwards.

use alloc::boxed::Box;
use alloc::string::String;

use super::digest::{Challenge, Offer};

/// Which scheme is used for a proxy (`option auth`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AuthChoice {
    /// Basic, and Digest once the proxy offers it.
    #[default]
    Auto,
    /// Basic only.
    Basic,
    /// Digest only: the password itself is never sent.
    Digest,
}

impl AuthChoice {
    /// The words, as the file has them.
    pub const WORDS: &'static [&'static str] = &["auto", "basic", "digest"];

    /// The values, each in the place of its word.
    pub const VALUES: &'static [Self] = &[Self::Auto, Self::Basic, Self::Digest];
}

/// The credentials in one request.
#[derive(Debug, Default, PartialEq, Eq)]
pub enum Authorization {
    /// None: no credentials are configured, or a nonce is needed first.
    #[default]
    Nothing,
    /// User name and password.
    Basic {
        /// Whether in place of what was refused.
        is_again: bool,
    },
    /// The answer to a challenge.
    Digest {
        /// The challenge.
        challenge: Box<Challenge>,
        /// Whether in place of what was refused.
        is_again: bool,
    },
}

impl Authorization {
    /// Basic in a first request.
    pub const BASIC: Self = Self::Basic { is_again: false };
}

/// Why a proxy isn't asked again after a 407.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// It wants credentials, and none are configured.
    NoCredentials,
    /// It refuses those that are configured.
    WrongCredentials,
    /// It wants a scheme that we don't know, or that is configured not to be used.
    OtherScheme,
}

impl Denial {
    /// In words, with the proxy as the subject.
    pub const fn text(self) -> &'static str {
        match self {
            Self::NoCredentials => "407: wants credentials, none configured",
            Self::WrongCredentials => "407: refuses the credentials",
            Self::OtherScheme => {
                "407: wants other credentials than Basic, or Digest with qop auth; see option auth"
            }
        }
    }
}

/// Whether a response with this status says that the credentials were accepted. Not a 4xx: squid's default refuses CONNECT
/// to other ports than 443 before it looks at them.
pub fn is_accepted(status: u16) -> bool {
    !(400..500).contains(&status)
}

/// How many nonces are kept.
const NONCES: usize = 8;

/// What is known about how one proxy wants requests to log in.
#[derive(Debug, Default)]
pub struct Login {
    choice: AuthChoice,
    has_credentials: bool,
    /// Whether the proxy has offered Digest.
    is_digest: bool,
    /// Whether the proxy has accepted Basic.
    is_basic: bool,
    /// Challenges whose answers were accepted and that no dial uses now; the last one is the newest.
    idle: heapless::Vec<Box<Challenge>, NONCES>,
}

impl Login {
    /// Nothing is known yet.
    pub const fn new(choice: AuthChoice, has_credentials: bool) -> Self {
        let is_digest = matches!(choice, AuthChoice::Digest);
        Self { choice, has_credentials, is_digest, is_basic: false, idle: heapless::Vec::new() }
    }

    /// The credentials of a dial's first request. `is_long`: its body is too long to be sent again, so it needs a new
    /// nonce, since an older one may be refused.
    pub fn begin(&mut self, is_long: bool) -> Authorization {
        match self.is_digest {
            _ if !self.has_credentials => Authorization::Nothing,
            true => match if is_long { None } else { self.idle.pop() } {
                Some(challenge) => Authorization::Digest { challenge, is_again: false },
                None => Authorization::Nothing,
            },
            false => Authorization::BASIC,
        }
    }

    /// Whether a 407 is to be expected.
    pub const fn is_doubtful(&self, used: &Authorization) -> bool {
        match used {
            Authorization::Nothing => self.has_credentials,
            Authorization::Basic { is_again } => !*is_again && !self.is_basic,
            Authorization::Digest { .. } => false,
        }
    }

    /// Notes that the proxy has answered with this status, which is not 407.
    pub fn answered(&mut self, used: Authorization, status: u16) {
        match used {
            Authorization::Nothing => {}
            Authorization::Basic { .. } => self.is_basic |= is_accepted(status),
            Authorization::Digest { challenge, .. } => _ = self.idle.push(challenge), // forgotten if there are too many
        }
    }

    /// Handles a 407 with these offers. Returns the credentials to send instead; a dial gets one such chance. `cnonce`:
    /// random.
    ///
    /// # Errors
    /// [`Denial`]: it need not be asked again.
    pub fn refused(
        &mut self,
        used: &Authorization,
        offer: Offer,
        cnonce: String,
    ) -> Result<Authorization, Denial> {
        if !self.has_credentials {
            let is_ours = offer.basic || offer.digest.is_some();
            return Err(if is_ours { Denial::NoCredentials } else { Denial::OtherScheme });
        }
        let digest = offer.digest.filter(|_| self.choice != AuthChoice::Basic);
        let basic = offer.basic && self.choice != AuthChoice::Digest;
        match (digest, used) {
            (None, _) if !basic => Err(Denial::OtherScheme),
            (_, Authorization::Basic { is_again: true } | Authorization::Digest { is_again: true, .. })
            | (None, Authorization::Basic { .. }) => Err(Denial::WrongCredentials),
            (Some(mut challenge), _) => {
                self.is_digest = true;
                challenge.set_cnonce(cnonce);
                Ok(Authorization::Digest { challenge: Box::new(challenge), is_again: true })
            }
            // The proxy no longer offers Digest.
            (None, _) => {
                self.is_digest = false;
                Ok(Authorization::Basic { is_again: true })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use std::format;

    const BASIC: &str = "Basic realm=r";
    const DIGEST: &str = "Digest realm=r, nonce=n, qop=auth";
    const BOTH: &str = "Basic realm=r, Digest realm=r, nonce=n, qop=auth";
    const STALE: &str = "Digest realm=r, nonce=m, qop=auth, stale=true";
    const INT: &str = "Digest realm=r, nonce=n, qop=auth-int";

    fn refused(login: &mut Login, used: &mut Authorization, offer: &str) -> Result<Authorization, Denial> {
        if let Authorization::Digest { challenge, .. } = used {
            challenge.answer("u", "p", b"CONNECT", b"h:1", &mut Vec::new());
        }
        login.refused(used, Offer::read(format!("Proxy-Authenticate: {offer}").as_bytes()), "c".into())
    }

    /// What a first 407 brings about: the scheme of the second request.
    fn first(choice: AuthChoice, offer: &str) -> Result<bool, Denial> {
        let mut login = Login::new(choice, true);
        let mut used = login.begin(false);
        assert_eq!(used == Authorization::BASIC, choice != AuthChoice::Digest);
        refused(&mut login, &mut used, offer).map(|next| matches!(next, Authorization::Digest { .. }))
    }

    #[test]
    fn the_offer_decides_from_the_first_407_on() {
        use AuthChoice::{Auto, Basic, Digest};
        for (choice, offer, expected) in [
            (Auto, BASIC, Err(Denial::WrongCredentials)),
            (Auto, DIGEST, Ok(true)),
            (Auto, BOTH, Ok(true)),
            (Auto, INT, Err(Denial::OtherScheme)),
            (Auto, "NTLM", Err(Denial::OtherScheme)),
            (Auto, "", Err(Denial::OtherScheme)),
            (Basic, BASIC, Err(Denial::WrongCredentials)),
            (Basic, BOTH, Err(Denial::WrongCredentials)),
            (Basic, DIGEST, Err(Denial::OtherScheme)),
            (Digest, BASIC, Err(Denial::OtherScheme)),
            (Digest, BOTH, Ok(true)),
            (Digest, INT, Err(Denial::OtherScheme)),
        ] {
            assert_eq!(first(choice, offer), expected, "{choice:?} {offer}");
        }
    }

    #[test]
    fn without_credentials_nothing_is_sent() {
        for choice in AuthChoice::VALUES {
            let mut login = Login::new(*choice, false);
            for (offer, denial) in [(BOTH, Denial::NoCredentials), ("NTLM", Denial::OtherScheme)] {
                let mut used = login.begin(false);
                assert_eq!(used, Authorization::Nothing);
                assert_eq!(refused(&mut login, &mut used, offer), Err(denial));
            }
        }
    }

    /// A login that has been given one nonce, which was accepted.
    fn learnt() -> Login {
        let mut login = Login::new(AuthChoice::Auto, true);
        let mut used = login.begin(false);
        let next = refused(&mut login, &mut used, DIGEST).unwrap();
        login.answered(next, 200);
        login
    }

    #[test]
    fn a_nonce_serves_one_dial_at_a_time() {
        let mut login = learnt();
        let first = login.begin(false);
        assert!(matches!(first, Authorization::Digest { .. }));
        assert_eq!(
            login.begin(false),
            Authorization::Nothing,
            "another one is wanted; the password is not sent"
        );
        login.answered(first, 200);
        assert!(matches!(login.begin(false), Authorization::Digest { .. }));
        for _ in 0..20 {
            let mut used = Authorization::Nothing;
            let next = refused(&mut login, &mut used, DIGEST).unwrap();
            login.answered(next, 200);
        }
        assert_eq!(login.idle.len(), NONCES);
    }

    #[test]
    fn what_cannot_be_sent_twice_is_sent_with_a_nonce_that_is_new() {
        let mut login = learnt();
        let mut used = login.begin(true);
        assert_eq!((login.is_doubtful(&used), &used), (true, &Authorization::Nothing));
        let next = refused(&mut login, &mut used, DIGEST).unwrap();
        assert!(!login.is_doubtful(&next));
        let mut nobody = Login::new(AuthChoice::Auto, false);
        let used = nobody.begin(true);
        assert!(!nobody.is_doubtful(&used));
        // Basic is in doubt until it has been accepted.
        let mut login = Login::new(AuthChoice::Auto, true);
        for status in [403, 200] {
            let used = login.begin(true);
            assert!(login.is_doubtful(&used), "before {status}");
            login.answered(used, status);
        }
        assert!(!login.is_doubtful(&Authorization::BASIC));
    }

    #[test]
    fn an_old_nonce_may_be_forgotten_and_a_new_one_tells() {
        for offer in [DIGEST, STALE] {
            let mut login = learnt();
            let mut old = login.begin(false);
            let mut new = refused(&mut login, &mut old, offer).unwrap();
            assert_eq!(refused(&mut login, &mut new, DIGEST), Err(Denial::WrongCredentials));
            let basic = refused(&mut login, &mut old, BASIC);
            assert_eq!(basic, Ok(Authorization::Basic { is_again: true }), "it has changed its mind");
            assert_eq!(login.begin(false), Authorization::BASIC);
            assert_eq!(refused(&mut login, &mut basic.unwrap(), BASIC), Err(Denial::WrongCredentials));
        }
    }
}
