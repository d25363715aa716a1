// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why a peer cannot be reached, as data: the statement of the kernel, a router, the resolver or
//! the peer itself, and since when; with the words that logs and `show` use.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

/// Why a peer cannot be reached, as far as this node knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Initiations are sent, no answer arrives, and nothing says why.
    NoAnswer,
    /// The endpoint's name has no address now.
    Unresolved(NameError),
    /// Datagrams to the endpoint do not arrive there, according to the kernel or a router.
    Unreachable(Unreachable, Option<IpAddr>),
    /// The peer knows this node and refuses the handshake.
    Refused(Refusal),
    /// An answer arrived that cannot be decrypted: the ends have different preshared keys.
    UnreadableAnswer,
    /// The peer initiates again and again and uses no answer: it cannot read them, or they do not
    /// arrive.
    Unconfirmed,
    /// The peer is heard from two addresses in turn: two machines have its key.
    SharedKey([SocketAddr; 2]),
    /// The peer is heard, and no packet arrives there that has room for frames.
    NarrowPath,
    /// The peer is heard, and datagrams that the kernel gets as one train do not arrive.
    LostTrains,
}

impl Trouble {
    /// Of two troubles at the same time, the one that says more about the cause.
    fn rank(&self) -> u8 {
        match self {
            Self::NoAnswer => 0,
            Self::Unconfirmed => 1,
            _ => 2,
        }
    }
}

impl Trouble {
    /// One word for scripts.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NoAnswer => "no-answer",
            Self::Unresolved(NameError::NotFound) => "name-not-found",
            Self::Unresolved(NameError::Unavailable) => "name-servers-unavailable",
            Self::Unreachable(Unreachable::NoRoute, _) => "no-route",
            Self::Unreachable(Unreachable::NoHost, _) => "no-host",
            Self::Unreachable(Unreachable::PortClosed, _) => "port-closed",
            Self::Unreachable(Unreachable::Forbidden, _) => "forbidden",
            Self::Unreachable(Unreachable::WrongFamily, _) => "wrong-ip-version",
            Self::Refused(Refusal::NetworkId) => "refused-network-id",
            Self::Refused(Refusal::Cipher) => "refused-cipher",
            Self::Refused(Refusal::Timestamp) => "refused-timestamp",
            Self::UnreadableAnswer => "unreadable-answer",
            Self::Unconfirmed => "answers-unused",
            Self::SharedKey(_) => "shared-key",
            Self::NarrowPath => "narrow-path",
            Self::LostTrains => "lost-trains",
        }
    }

    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NoAnswer => {
                "check endpoint and public-key here, and there that the tunnel is up, that a \
                 firewall lets the UDP port through, and its log"
            }
            Self::Unresolved(NameError::NotFound) => "check the name in endpoint",
            Self::Unresolved(_) => "check this machine's network and its name servers",
            Self::Unreachable(Unreachable::NoRoute, _) => {
                "check the address in endpoint, and the routes (`ip route get ADDRESS`)"
            }
            Self::Unreachable(Unreachable::NoHost, _) => {
                "check the address in endpoint, and that the peer's machine is on; if the address \
                 is in a network of this tunnel's own `addresses`, choose others"
            }
            Self::Unreachable(Unreachable::PortClosed, _) => {
                "start the tunnel there, or correct the port in endpoint; a firewall that rejects \
                 looks the same"
            }
            Self::Unreachable(Unreachable::Forbidden, _) => {
                "allow UDP to the endpoint in the packet filter, or remove the prohibiting route"
            }
            Self::Unreachable(Unreachable::WrongFamily, _) => {
                "set tunnel.listen to `[::]:PORT`, which supports both IP versions"
            }
            Self::Refused(Refusal::NetworkId) => "give both ends the same tunnel.network-id",
            Self::Refused(Refusal::Cipher) => "allow a common tunnel.cipher at both ends",
            Self::Refused(Refusal::Timestamp) => {
                "set the clock, and make sure that no other machine has this private key"
            }
            Self::UnreadableAnswer => {
                "compare the contents of preshared-key-file at both ends, which must be the same, \
                 or absent at both"
            }
            Self::Unconfirmed => {
                "compare the contents of preshared-key-file at both ends; if they are the same, \
                 look at the peer's log, and for a firewall that drops what we send"
            }
            Self::NarrowPath => {
                "look for a link on the way whose MTU is below 576 (`ip link`, `tracepath -n ADDRESS`), \
                 or for a firewall that drops large UDP datagrams"
            }
            Self::LostTrains => {
                "nothing needs to be done, it only costs processor time; to have trains again, look at the \
                 driver of the network card (`ethtool -K NIC tx-udp-segmentation off`), or set `udp-gso = \
                 \"off\"` in [pipeline] to do without them from the start"
            }
            Self::SharedKey(_) => {
                "two machines have its private key, perhaps as copies of one image: make a key for \
                 each (`patchcord genkey`) and a [[peer]] for each"
            }
        }
    }
}

/// The problem, as a clause.
impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clause = match self {
            Self::NoAnswer => "it does not answer, and no error was reported",
            Self::Unresolved(NameError::NotFound) => {
                "the endpoint's name cannot be resolved, it has no address"
            }
            Self::Unresolved(NameError::Unavailable) => {
                "the endpoint's name cannot be resolved, no name server answers for it"
            }
            Self::Unreachable(why, by) => {
                write!(f, "{why}")?;
                return by.map_or(Ok(()), |by| write!(f, " (says {by})"));
            }
            Self::Refused(Refusal::NetworkId) => "it refuses us: it has another network-id",
            Self::Refused(Refusal::Cipher) => "it refuses us: it allows no cipher that we allow",
            Self::Refused(Refusal::Timestamp) => {
                "it refuses us: it has seen a later timestamp from our key"
            }
            Self::UnreadableAnswer => {
                "it answers, and the answer cannot be decrypted: the preshared keys differ"
            }
            Self::Unconfirmed => "it initiates again and again, and uses none of our answers",
            Self::NarrowPath => {
                "the path to it carries no packets of 576 bytes, so only small frames cross"
            }
            Self::LostTrains => {
                "trains of datagrams (UDP GSO) do not arrive there but single ones do, so each is sent by itself now"
            }
            Self::SharedKey([one, other]) => {
                return write!(f, "it is heard from {one} and {other} in turn");
            }
        };
        f.write_str(clause)
    }
}

/// The answer of the resolver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameError {
    /// There is no such name, or it has no address.
    NotFound,
    /// The name servers cannot be reached, do not answer, or do not know now.
    Unavailable,
}

/// What the kernel or a router said about datagrams to the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// No route leads there (ENETUNREACH; ICMP network unreachable).
    NoRoute,
    /// The last router, or this machine, finds no host with the address (ICMP host unreachable).
    NoHost,
    /// The host has no socket at the UDP port (ICMP port unreachable).
    PortClosed,
    /// A packet filter or a route forbids it (EPERM, EACCES; ICMP administratively prohibited).
    Forbidden,
    /// The socket is bound to an address of the other IP version.
    WrongFamily,
}

/// Why a peer that knows this node refuses a handshake. It says so in a response that only this
/// node can read (PROTOCOL.md, "Refusal").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Refusal {
    /// It has another network id.
    NetworkId = 1,
    /// It allows no cipher that this node allows.
    Cipher = 2,
    /// It has seen a later timestamp from this node: our clock went back, or our key is in use
    /// elsewhere.
    Timestamp = 3,
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoRoute => "no route leads to the endpoint",
            Self::NoHost => "no host has the endpoint's address",
            Self::PortClosed => "nothing listens on the endpoint's UDP port",
            Self::Forbidden => "a packet filter or a route forbids datagrams to the endpoint",
            Self::WrongFamily => {
                "the endpoint's address is of another IP version than tunnel.listen"
            }
        })
    }
}

impl Refusal {
    /// From the number on the wire; `None` for those of later versions.
    pub(crate) fn from_number(number: u8) -> Option<Self> {
        [Self::NetworkId, Self::Cipher, Self::Timestamp]
            .into_iter()
            .find(|&refusal| refusal as u8 == number)
    }
}

/// The last trouble with a peer. It is kept when the peer is up again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastTrouble {
    /// What it was.
    pub trouble: Trouble,
    /// When it began.
    pub since: Instant,
    /// When it was noticed last.
    pub last: Instant,
}

/// A cause that was not seen for this long is no longer considered the reason for a missing answer.
const FRESH: Duration = Duration::from_secs(15);

impl LastTrouble {
    /// Records that there is `trouble` now. True if that is new: a symptom is not while its cause
    /// is known.
    pub(crate) fn note(last: &mut Option<Self>, trouble: Trouble, now: Instant) -> bool {
        let known = last.as_mut().filter(|known| known.is_fresh(now));
        match known {
            Some(known) if known.trouble == trouble => known.last = now,
            Some(known) if known.trouble.rank() > trouble.rank() => {}
            _ => {
                *last = Some(Self {
                    trouble,
                    since: now,
                    last: now,
                });
                return true;
            }
        }
        false
    }

    /// Whether it may still be the reason.
    pub fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last) < FRESH
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_cause_stands_for_a_missing_answer_while_it_is_fresh() {
        let begin = Instant::now();
        let at = |s| begin + Duration::from_secs(s);
        let closed = || Trouble::Unreachable(Unreachable::PortClosed, None);
        let mut last = None;
        for (s, trouble, known, since) in [
            (0, Trouble::NoAnswer, Trouble::NoAnswer, 0),
            (5, Trouble::NoAnswer, Trouble::NoAnswer, 0),
            (6, closed(), closed(), 6),
            (11, Trouble::NoAnswer, closed(), 6),
            (16, closed(), closed(), 6),
            (30, Trouble::NoAnswer, closed(), 6),
            (31, Trouble::NoAnswer, Trouble::NoAnswer, 31),
            (32, Trouble::UnreadableAnswer, Trouble::UnreadableAnswer, 32),
            (60, Trouble::UnreadableAnswer, Trouble::UnreadableAnswer, 60),
        ] {
            LastTrouble::note(&mut last, trouble, at(s));
            let noted = last.clone().unwrap();
            assert_eq!((noted.trouble, noted.since), (known, at(since)), "at {s} s");
        }
    }

    #[test]
    fn refusals_keep_their_numbers() {
        for number in 0..=u8::MAX {
            let refusal = Refusal::from_number(number);
            assert_eq!(refusal.is_some(), (1..=3).contains(&number));
            assert!(refusal.is_none_or(|refusal| refusal as u8 == number));
        }
    }
}
