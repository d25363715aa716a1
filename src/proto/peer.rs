// SPDX-License-Identifier: MIT OR Apache-2.0
//! One peer: its sessions, its handshake in progress, its endpoint, its path.
//!
//! ```text
//!            initiation sent          response accepted
//!   no session ──────> attempt ────────────────────> current (initiator: sends at once)
//!            initiation accepted      first authentic datagram
//!   any      ──────> next (receives only) ─────────> current (responder)
//!                                                    the former current becomes previous
//! ```
//! `current` sends; all three receive, so that a rekey loses no datagram that is in flight.
//! Decisions only: [`super::node`] carries them out.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use patchcord_bridge::PortId;

use super::{
    flaps::Flaps,
    limits::{
        COOKIE_USE, EARLY_ATTEMPTS, HANDSHAKE_RETRY, HANDSHAKE_RETRY_EARLY_MAX,
        HANDSHAKE_RETRY_MAX, SECOND_REKEY_DELAY,
    },
    liveness::Liveness,
    moves::Moves,
    path_mtu::PathMtu,
    session::{Agreement, Route, Session},
    tai64n::Tai64N,
    trains::Trains,
    trouble::LastTrouble,
};
use crate::{
    crypto::{
        keys::{PresharedKey, PublicKey},
        leaving_no_trace,
        mac::Cookie,
        noise::{Initiator, SplitKeys},
    },
    stats::Traffic,
    wire::{SessionIndex, handshake::MAC_LEN},
};

/// The configuration of a peer.
pub struct PeerSettings {
    /// Its identity.
    pub public_key: PublicKey,
    /// An extra secret.
    pub preshared_key: Option<PresharedKey>,
    /// Where initiations go; `None`: this node waits for the peer, or its name is still being
    /// looked up.
    pub endpoint: Option<SocketAddr>,
    /// Whether its endpoint is a name, which is looked up again when the peer does not answer.
    pub has_name: bool,
    /// On an idle link, the interval between echo requests.
    pub keepalive: Duration,
}

/// Our initiation that waits for its response.
pub(crate) struct Attempt {
    pub(crate) noise: Initiator,
    pub(crate) index: SessionIndex,
    /// Of the initiation; a cookie reply refers to it.
    pub(crate) mac1: [u8; MAC_LEN],
}

/// When to initiate a handshake with a peer, and how many attempts had no answer.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    /// Attempts since the last success.
    pub(crate) attempts: u32,
    /// When the next one is due; `None`: no handshake is wanted.
    pub(crate) due: Option<Instant>,
    /// When a new route last made one due.
    pub(crate) by_new_route: Option<Instant>,
}

impl Schedule {
    fn succeed(&mut self) {
        (self.attempts, self.due) = (0, None);
    }
}

pub(crate) struct Peer {
    pub(crate) port: PortId,
    pub(crate) settings: PeerSettings,
    /// This node leads the rekey; the peer does so only if this node does not.
    leads_rekey: bool,
    /// The source of the last authentic datagram, or the address to which initiations go.
    pub(crate) endpoint: Option<SocketAddr>,
    /// A reload has given it another name, whose address it gets once that is known.
    pub(crate) moves_when_resolved: bool,
    pub(crate) traffic: Arc<Traffic>,
    pub(crate) attempt: Option<Attempt>,
    pub(crate) schedule: Schedule,
    pub(crate) cookie: Option<(Cookie, Instant)>,
    /// Of the newest initiation accepted; an older one is a replay.
    pub(crate) newest_timestamp: Tai64N,
    pub(crate) last_initiation: Option<Instant>,
    /// Of our latest initiation, or the one that the peer says it has accepted: the next one is
    /// later, even if our clock went back.
    pub(crate) own_timestamp: Tai64N,
    /// When the peer was last told that its configuration does not match.
    pub(crate) last_refusal: Option<Instant>,
    /// Answers in a row that the peer has not used.
    pub(crate) unconfirmed: u32,
    pub(crate) last_trouble: Option<LastTrouble>,
    pub(crate) moves: Moves,
    pub(crate) current: Option<Arc<Session>>,
    pub(crate) previous: Option<Arc<Session>>,
    pub(crate) next: Option<Arc<Session>>,
    pub(crate) path: PathMtu,
    pub(crate) trains: Trains,
    pub(crate) liveness: Liveness,
    /// Heard recently, with a session to send under.
    pub(crate) is_up: bool,
    pub(crate) flaps: Flaps,
    /// The caller knows that the peer is up.
    pub(crate) is_told_up: bool,
    /// Echo request that measures the round trip.
    pub(crate) echo: Option<(u64, Instant)>,
    pub(crate) rtt: Option<Duration>,
    pub(crate) handshakes: u64,
    /// The largest frame that the peer says it accepts; 0 when it does not say.
    pub(crate) max_frame: u16,
}

impl Peer {
    pub(crate) fn new(
        port: PortId,
        settings: PeerSettings,
        own_key: &PublicKey,
        now: Instant,
    ) -> Self {
        let due = settings.endpoint.map(|_| now);
        Self {
            port,
            endpoint: settings.endpoint,
            leads_rekey: *own_key < settings.public_key,
            settings,
            moves_when_resolved: false,
            traffic: Arc::default(),
            attempt: None,
            schedule: Schedule {
                due,
                ..Schedule::default()
            },
            cookie: None,
            newest_timestamp: Tai64N::default(),
            last_initiation: None,
            own_timestamp: Tai64N::default(),
            last_refusal: None,
            unconfirmed: 0,
            last_trouble: None,
            moves: Moves::default(),
            current: None,
            previous: None,
            next: None,
            path: PathMtu::new(now),
            trains: Trains::new(now),
            liveness: Liveness::new(now),
            is_up: false,
            flaps: Flaps::default(),
            is_told_up: false,
            echo: None,
            rtt: None,
            handshakes: 0,
            max_frame: 0,
        }
    }

    /// Every session that may receive.
    pub(crate) fn sessions(&self) -> impl Iterator<Item = &Arc<Session>> {
        [&self.current, &self.previous, &self.next]
            .into_iter()
            .flatten()
    }

    pub(crate) fn route(&self) -> Route {
        Route {
            session: self.current.clone(),
            endpoint: self.endpoint,
            local: None,
            takes_trains: !self.trains.are_lost(),
            datagram_len: usize::from(self.path.current()) - self.ip_overhead(),
        }
    }

    /// Bytes of IP and UDP headers on the path to the peer.
    pub(crate) fn ip_overhead(&self) -> usize {
        match self.endpoint {
            Some(SocketAddr::V6(_)) => 40 + 8,
            _ => 20 + 8,
        }
    }

    /// The cookie to send, if it is fresh.
    pub(crate) fn fresh_cookie(&self, now: Instant) -> Option<Cookie> {
        self.cookie
            .filter(|&(_, received)| now < received + COOKIE_USE)
            .map(|(cookie, _)| cookie)
    }

    /// A session out of a finished handshake with this peer.
    pub(crate) fn session(
        &self,
        agreement: Agreement,
        keys: &SplitKeys,
        now: Instant,
    ) -> Arc<Session> {
        let traffic = self.traffic.clone();
        leaving_no_trace(|| Arc::new(Session::new(agreement, keys, self.port, now, traffic)))
    }

    /// This node initiated, the peer answered: the session sends from now on. Returns the one that
    /// ended.
    pub(crate) fn establish_as_initiator(&mut self, session: Arc<Session>) -> Option<Arc<Session>> {
        self.schedule.succeed();
        self.attempt = None;
        self.rotate(session)
    }

    /// The peer initiated, this node answered: the session receives; it sends once it is confirmed.
    /// Returns the one that ended.
    pub(crate) fn establish_as_responder(&mut self, session: Arc<Session>) -> Option<Arc<Session>> {
        let former = self.next.replace(session);
        let was_ignored = former.as_ref().is_some_and(|former| !former.is_confirmed());
        self.unconfirmed = if was_ignored {
            self.unconfirmed.saturating_add(1)
        } else {
            0
        };
        former
    }

    /// The peer has used the keys of `next`: send under them. Returns the session that ended.
    ///
    /// When both sides initiate at once, each has a `current` that is younger than `next`, and
    /// would swap it for the other's. Only one does, so that both send under the same session: with
    /// two in use, a rekey would push out one that the peer still sends under.
    pub(crate) fn promote_next(&mut self, ours_goes_first: bool) -> Option<Arc<Session>> {
        let session = self.next.take()?;
        self.unconfirmed = 0;
        self.schedule.succeed();
        let crossed = self
            .current
            .as_ref()
            .is_some_and(|current| current.established >= session.established);
        if crossed && ours_goes_first {
            return self.previous.replace(session);
        }
        self.rotate(session)
    }

    fn rotate(&mut self, session: Arc<Session>) -> Option<Arc<Session>> {
        let former = self.current.replace(session);
        match former {
            Some(former) => self.previous.replace(former),
            None => None,
        }
    }

    /// Takes out the sessions that are to end.
    pub(crate) fn end_sessions(&mut self, ends: impl Fn(&Session) -> bool) -> Vec<Arc<Session>> {
        [&mut self.current, &mut self.previous, &mut self.next]
            .into_iter()
            .filter_map(|slot| slot.take_if(|session| ends(session)))
            .collect()
    }

    /// Schedules a handshake at `due`, unless one is in progress or the peer has no known endpoint.
    pub(crate) fn schedule_handshake(&mut self, due: Instant) {
        if self.schedule.due.is_none() && self.endpoint.is_some() {
            self.schedule.due = Some(due);
        }
    }

    /// An attempt is sent now: determines when, at the latest, the next one follows.
    pub(crate) fn handle_attempt(&mut self, now: Instant, jitter: Duration) {
        self.schedule.attempts = self.schedule.attempts.saturating_add(1);
        let (from, longest, step) = match self.schedule.attempts.checked_sub(EARLY_ATTEMPTS + 1) {
            None => (
                HANDSHAKE_RETRY,
                HANDSHAKE_RETRY_EARLY_MAX,
                self.schedule.attempts - 1,
            ),
            Some(late) => (HANDSHAKE_RETRY_EARLY_MAX, HANDSHAKE_RETRY_MAX, late + 1),
        };
        let distance = (from * (1 << step.min(8))).min(longest);
        // On a long path the answer must have a chance to arrive before the initiation is replaced.
        let distance = distance.max(2 * self.rtt.unwrap_or_default());
        self.schedule.due = Some(now + distance + jitter);
    }

    /// The destination of the attempt: the last known address and the configured one by turns.
    pub(crate) fn attempt_address(&self) -> Option<SocketAddr> {
        let configured = self.settings.endpoint;
        if self.schedule.attempts % 2 == 1 {
            configured.or(self.endpoint)
        } else {
            self.endpoint
        }
    }

    /// When the current session should be replaced.
    pub(crate) fn rekey_at(&self, interval: Duration) -> Option<Instant> {
        let session = self.current.as_ref()?;
        let delay = if self.leads_rekey {
            Duration::ZERO
        } else {
            SECOND_REKEY_DELAY
        };
        Some(session.established + interval + delay)
    }

    /// The peer moved. True if that is new.
    pub(crate) fn handle_endpoint(&mut self, from: SocketAddr, now: Instant) -> bool {
        if self.endpoint == Some(from) {
            return false;
        }
        self.endpoint = Some(from);
        self.path.restart(now);
        self.trains.restart(now);
        true
    }

    /// When something is due, except for an initiation.
    pub(crate) fn poll_timeout(&self, rekey_interval: Duration) -> Option<Instant> {
        let with_session = self.current.as_ref().map(|_| self.liveness.next_sample());
        // A session that waits for its confirmation is sampled as often as one that is used.
        let waiting = self.next.as_ref().map(|_| self.liveness.next_sample());
        let path = self.current.as_ref().map(|_| self.path.poll_timeout());
        let trains = self
            .current
            .as_ref()
            .and_then(|_| self.trains.poll_timeout());
        let can_initiate = self.schedule.due.is_none() && self.endpoint.is_some();
        let rekey = if can_initiate {
            self.rekey_at(rekey_interval)
        } else {
            None
        };
        // Then the caller may be told that it is up.
        let held = self.flaps.held_until().filter(|_| self.is_up);
        [with_session, waiting, path, trains, rekey, held]
            .into_iter()
            .flatten()
            .min()
    }
}
