// SPDX-License-Identifier: MIT OR Apache-2.0
//! The checks that a handshake message must pass before a key is computed for it (PROTOCOL.md,
//! "Denial of service").
//!
//! mac1 shows that the sender knows our public key; under load, mac2 shows that it receives at its
//! source address; and each such address has its own rate, so that one flooder does not use up the
//! capacity that others need. Memory is bounded, and an answer is smaller than its question.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use zeroize::Zeroizing;

use super::limits::{
    COOKIE_LIFETIME, LOAD_HOLD, LOAD_THRESHOLD, SOURCE_BURST, SOURCE_RATE, SOURCES,
};
use crate::{
    crypto::{
        self,
        keys::PublicKey,
        mac::{self, COOKIE_SECRET_LEN},
    },
    rate::{Bucket, Rate},
    stats::DropReason,
    wire::{CookieReply, SessionIndex, handshake::MacFields},
};

const PER_SOURCE: Rate = Rate {
    per_second: SOURCE_RATE,
    burst: SOURCE_BURST,
};

/// Checks mac1 alone: cheap and without state, so the receiving threads do it before they involve
/// the control thread.
#[derive(Clone, Debug)]
pub struct Mac1Check {
    key: [u8; 32],
}

impl Mac1Check {
    /// For messages to the owner of `public_key`.
    pub fn new(public_key: &PublicKey) -> Self {
        Self {
            key: mac::mac1_key(public_key),
        }
    }

    /// # Errors
    /// [`DropReason::BadMac`].
    pub fn check(&self, message: &[u8]) -> Result<(), DropReason> {
        let fields = MacFields::of(message).ok_or(DropReason::Truncated)?;
        if mac::equal(&mac::mac(&self.key, fields.before_mac1), &fields.mac1) {
            Ok(())
        } else {
            Err(DropReason::BadMac)
        }
    }
}

/// What to do with a handshake message.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Continue.
    Pass,
    /// Drop it.
    Drop(DropReason),
    /// Ask the sender to repeat it with a cookie.
    Challenge(Box<CookieReply>),
}

/// The guard of one node.
pub(crate) struct Guard {
    mac1: Mac1Check,
    cookie_key: [u8; 32],
    secret: Zeroizing<[u8; COOKIE_SECRET_LEN]>,
    secret_expires: Instant,
    load: Load,
    sources: HashMap<IpAddr, Bucket>,
}

/// Messages with a valid mac1 in the present second.
struct Load {
    window_ends: Instant,
    count: u32,
    until: Option<Instant>,
}

impl Guard {
    pub(crate) fn new(public_key: &PublicKey, now: Instant) -> Self {
        Self {
            mac1: Mac1Check::new(public_key),
            cookie_key: mac::cookie_key(public_key),
            secret: mac::cookie_secret(),
            secret_expires: now + COOKIE_LIFETIME,
            load: Load {
                window_ends: now,
                count: 0,
                until: None,
            },
            sources: HashMap::new(),
        }
    }

    /// Checks mac1 alone, for messages that only a host that saw our initiation can send.
    ///
    /// # Errors
    /// [`DropReason::BadMac`].
    pub(crate) fn check_mac1(&self, message: &[u8]) -> Result<(), DropReason> {
        self.mac1.check(message)
    }

    /// Decides about a handshake message whose sender index is `sender`.
    pub(crate) fn judge(
        &mut self,
        now: Instant,
        from: SocketAddr,
        message: &[u8],
        sender: SessionIndex,
    ) -> Verdict {
        if let Err(reason) = self.mac1.check(message) {
            return Verdict::Drop(reason);
        }
        if !self.load.count(now) {
            return Verdict::Pass;
        }
        let Some(fields) = MacFields::of(message) else {
            return Verdict::Drop(DropReason::Truncated);
        };
        let cookie = self.cookie(now, from);
        if !mac::equal(&mac::mac(&cookie, fields.before_mac2), &fields.mac2) {
            let mut nonce = [0; 24];
            crypto::random(&mut nonce);
            let sealed = mac::seal_cookie(&self.cookie_key, &nonce, &fields.mac1, &cookie);
            return Verdict::Challenge(Box::new(CookieReply::new(sender, nonce, sealed)));
        }
        if self.admit(now, from.ip()) {
            Verdict::Pass
        } else {
            Verdict::Drop(DropReason::HandshakeRateLimited)
        }
    }

    fn cookie(&mut self, now: Instant, from: SocketAddr) -> mac::Cookie {
        if now >= self.secret_expires {
            self.secret = mac::cookie_secret();
            self.secret_expires = now + COOKIE_LIFETIME;
        }
        mac::cookie(&self.secret, from)
    }

    /// Takes a token of the address, which has been shown to be the sender's own.
    fn admit(&mut self, now: Instant, ip: IpAddr) -> bool {
        let ip = network_of(ip);
        if self.sources.len() >= SOURCES && !self.sources.contains_key(&ip) {
            self.sources.retain(|_, bucket| !bucket.is_full(now));
            if self.sources.len() >= SOURCES {
                return false;
            }
        }
        let bucket = self.sources.entry(ip).or_insert_with(|| Bucket::new(now));
        bucket.take(now, PER_SOURCE)
    }
}

/// A customer of an IPv6 network has at least a /64.
fn network_of(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) >> 64 << 64).into()),
    }
}

impl Load {
    /// Counts a message; true while there is load.
    fn count(&mut self, now: Instant) -> bool {
        if now >= self.window_ends {
            self.window_ends = now + LOAD_HOLD;
            self.count = 0;
        }
        self.count += 1;
        if self.count > LOAD_THRESHOLD {
            self.until = Some(now + LOAD_HOLD);
        }
        self.until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use zerocopy::{FromZeros, IntoBytes};

    use super::*;
    use crate::{crypto::keys::PrivateKey, wire::Initiation};

    fn initiation_with_mac1(key: &PublicKey) -> Initiation {
        let mut message = Initiation::new_zeroed();
        let fields = MacFields::of(message.as_bytes()).unwrap();
        message.mac1 = mac::mac(&mac::mac1_key(key), fields.before_mac1);
        message
    }

    fn with_mac2(mut message: Initiation, cookie: &mac::Cookie) -> Initiation {
        let fields = MacFields::of(message.as_bytes()).unwrap();
        message.mac2 = mac::mac(cookie, fields.before_mac2);
        message
    }

    #[test]
    fn under_load_only_holders_of_a_cookie_pass_and_each_at_its_rate() {
        let key = PrivateKey::generate().public_key();
        let now = Instant::now();
        let mut guard = Guard::new(&key, now);
        let from: SocketAddr = "192.0.2.1:1000".parse().unwrap();
        let message = initiation_with_mac1(&key);
        let judge = |guard: &mut Guard, now, from, message: &Initiation| {
            guard.judge(now, from, message.as_bytes(), message.sender)
        };

        let mut forged = message.clone();
        forged.mac1[0] ^= 1;
        for _ in 0..2 * LOAD_THRESHOLD {
            assert!(matches!(
                judge(&mut guard, now, from, &forged),
                Verdict::Drop(DropReason::BadMac)
            ));
        }
        for _ in 0..LOAD_THRESHOLD {
            assert!(matches!(
                judge(&mut guard, now, from, &message),
                Verdict::Pass
            ));
        }
        let Verdict::Challenge(reply) = judge(&mut guard, now, from, &message) else {
            panic!("load is not noticed");
        };
        let cookie = mac::open_cookie(
            &mac::cookie_key(&key),
            &reply.nonce,
            &message.mac1,
            &reply.sealed_cookie,
        )
        .unwrap();
        let answer = with_mac2(message.clone(), &cookie);
        for _ in 0..SOURCE_BURST {
            assert!(matches!(
                judge(&mut guard, now, from, &answer),
                Verdict::Pass
            ));
        }
        let limited = judge(&mut guard, now, from, &answer);
        assert!(matches!(
            limited,
            Verdict::Drop(DropReason::HandshakeRateLimited)
        ));

        let other_port: SocketAddr = "192.0.2.1:1001".parse().unwrap();
        assert!(matches!(
            judge(&mut guard, now, other_port, &answer),
            Verdict::Challenge(_)
        ));
        let later = now + 3 * LOAD_HOLD;
        assert!(
            matches!(judge(&mut guard, later, from, &message), Verdict::Pass),
            "load is over"
        );
    }

    #[test]
    fn many_addresses_do_not_grow_the_table_without_bound() {
        let key = PrivateKey::generate().public_key();
        let mut now = Instant::now();
        let mut guard = Guard::new(&key, now);
        for n in 0..3 * SOURCES as u32 {
            guard.admit(now, IpAddr::V4(n.into()));
        }
        assert_eq!(guard.sources.len(), SOURCES);
        now += Duration::from_secs(5);
        assert!(
            guard.admit(now, "203.0.113.9".parse().unwrap()),
            "idle ones made room"
        );
    }

    #[test]
    fn a_secret_lasts_as_long_as_a_cookie() {
        let key = PrivateKey::generate().public_key();
        let now = Instant::now();
        let mut guard = Guard::new(&key, now);
        let from = "192.0.2.1:1000".parse().unwrap();
        let first = guard.cookie(now, from);
        assert_eq!(guard.cookie(now + COOKIE_LIFETIME / 2, from), first);
        assert_ne!(guard.cookie(now + COOKIE_LIFETIME, from), first);
    }
}
