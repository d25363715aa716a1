// SPDX-License-Identifier: MIT OR Apache-2.0
//! A session: the keys of one handshake, shared by all threads.
//!
//! Keys never change; a new handshake makes a new session. One thread sends on each lane and takes
//! its counters; the thread that receives a lane keeps its replay state (`proto::replay`), not the
//! session.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasherDefault, Hasher},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use patchcord_bridge::PortId;
use zerocopy::IntoBytes;

use super::limits::{MAX_LANES, REJECT_AFTER_DATAGRAMS, REJECT_AFTER_TIME, REKEY_AFTER_DATAGRAMS};
use crate::{
    crypto::{
        aead::{Cipher, LaneKey},
        noise::SplitKeys,
    },
    stats::{DropReason, Flow, Traffic},
    wire::{
        Counter, DATA_HEADER_LEN, DATA_OVERHEAD, DataHeader, Lane, LaneSet, MessageType,
        SessionIndex, TAG_LEN, local::Local,
    },
};

/// Which side of the handshake we were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// This node initiated; it may send at once.
    Initiator,
    /// This node answered; it sends only after the peer has shown that it holds the keys.
    Responder,
}

/// The parameters that both sides agreed on.
#[derive(Debug)]
pub struct Agreement {
    /// Our index.
    pub local: SessionIndex,
    /// The peer's index.
    pub remote: SessionIndex,
    /// Our role in the handshake.
    pub role: Role,
    /// The data cipher.
    pub cipher: Cipher,
    /// The lanes on which this node sends.
    pub local_lanes: LaneSet,
    /// The lanes on which the peer sends.
    pub remote_lanes: LaneSet,
}

/// On cache lines of its own, which processors fetch in pairs: another thread sends on the next
/// lane.
#[derive(Debug)]
#[repr(align(128))]
struct SealLane {
    key: LaneKey,
    next: AtomicU64,
}

const _: () = assert!(MAX_LANES as usize + 1 == Flow::LANES);

/// Keys shared with one peer.
#[derive(Debug)]
pub struct Session {
    /// The agreed parameters.
    pub agreement: Agreement,
    /// The peer's port on the switch.
    pub port: PortId,
    /// When the handshake was completed.
    pub established: Instant,
    /// The peer's counters, kept across its sessions.
    pub traffic: Arc<Traffic>,
    /// By lane; none for those that are not used.
    seal: Vec<Option<SealLane>>,
    open: Vec<Option<LaneKey>>,
    confirmed: AtomicBool,
}

impl Session {
    pub(crate) fn new(
        agreement: Agreement,
        keys: &SplitKeys,
        port: PortId,
        established: Instant,
        traffic: Arc<Traffic>,
    ) -> Self {
        let Agreement {
            cipher,
            local_lanes,
            remote_lanes,
            role,
            ..
        } = agreement;
        let derive = |keys, lanes: LaneSet, lane: u8| {
            let lane = Lane(lane);
            lanes.has(lane).then(|| LaneKey::derive(keys, cipher, lane))
        };
        let seal = (0..=local_lanes.highest)
            .map(|lane| {
                let next = AtomicU64::new(0);
                derive(&keys.seal, local_lanes, lane).map(|key| SealLane { key, next })
            })
            .collect();
        let open = (0..=remote_lanes.highest.min(MAX_LANES))
            .map(|lane| derive(&keys.open, remote_lanes, lane))
            .collect();
        let confirmed = AtomicBool::new(role == Role::Initiator);
        Self {
            agreement,
            port,
            established,
            traffic,
            seal,
            open,
            confirmed,
        }
    }

    /// Takes the next counter of `lane`. Only the lane's own thread calls this.
    ///
    /// # Errors
    /// [`DropReason::CountersExhausted`]; the session must be replaced.
    pub fn next_counter(&self, lane: Lane) -> Result<Counter, DropReason> {
        let sequence = self.seal_lane(lane).next.fetch_add(1, Ordering::Relaxed);
        if sequence >= REJECT_AFTER_DATAGRAMS {
            return Err(DropReason::CountersExhausted);
        }
        Ok(Counter::new(lane, sequence))
    }

    /// Of a lane on which this node sends.
    fn seal_lane(&self, lane: Lane) -> &SealLane {
        let seal = self.seal[usize::from(lane.0)].as_ref();
        seal.expect("threads send on the lanes that this node has announced")
    }

    /// Seals `datagram` in place. It holds room for the header, the plaintext, and room for the tag.
    pub fn seal(&self, message_type: MessageType, counter: Counter, datagram: &mut [u8]) {
        debug_assert!(datagram.len() >= DATA_OVERHEAD);
        let (header, rest) = datagram.split_at_mut(DATA_HEADER_LEN);
        let (plaintext, tag) = rest.split_at_mut(rest.len() - TAG_LEN);
        header.copy_from_slice(
            DataHeader::new(message_type, self.agreement.remote, counter).as_bytes(),
        );
        let lane = self.seal_lane(counter.lane());
        tag.copy_from_slice(&lane.key.seal(counter, header, plaintext));
    }

    /// Checks and decrypts `datagram` in place; returns its counter and plaintext.
    ///
    /// # Errors
    /// [`DropReason::Truncated`], [`DropReason::Malformed`] for a lane that the peer did not
    /// announce, [`DropReason::BadTag`].
    pub fn open<'a>(&self, datagram: &'a mut [u8]) -> Result<(Counter, &'a mut [u8]), DropReason> {
        let counter = DataHeader::parse(datagram)?.counter();
        let key = self
            .open
            .get(usize::from(counter.lane().0))
            .and_then(Option::as_ref)
            .ok_or(DropReason::Malformed)?;
        let (header, sealed) = datagram.split_at_mut(DATA_HEADER_LEN);
        Ok((counter, key.open(counter, header, sealed)?))
    }

    /// Records that the peer holds the keys: an authentic datagram arrived.
    pub fn confirm(&self) {
        // Read first: the cache line is shared by all lanes and is written only once.
        if !self.confirmed.load(Ordering::Relaxed) {
            self.confirmed.store(true, Ordering::Relaxed);
        }
    }

    /// Whether we may send under it.
    pub fn is_confirmed(&self) -> bool {
        self.confirmed.load(Ordering::Relaxed)
    }

    /// Whether it must not be used any more.
    pub fn is_expired(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.established) >= REJECT_AFTER_TIME
    }

    fn check_age(&self, now: Instant) -> Result<(), DropReason> {
        match self.is_expired(now) {
            true => Err(DropReason::SessionExpired),
            false => Ok(()),
        }
    }

    /// Whether a lane has sent so much that a new session is due.
    pub fn is_worn_out(&self) -> bool {
        self.seal
            .iter()
            .flatten()
            .any(|lane| lane.next.load(Ordering::Relaxed) >= REKEY_AFTER_DATAGRAMS)
    }

    /// Its age.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.established)
    }
}

/// What the data threads need to send to a peer.
#[derive(Clone, Debug)]
pub struct Route {
    /// The session to send under, if there is one.
    pub session: Option<Arc<Session>>,
    /// The peer's present address.
    pub endpoint: Option<SocketAddr>,
    /// The source of datagrams to it, if the kernel is to be told.
    pub local: Option<Local>,
    /// Whether datagrams that the kernel gets as one train arrive there.
    pub takes_trains: bool,
    /// The largest UDP payload that the path carries.
    pub datagram_len: usize,
}

/// Hashes keys that begin with a [`SessionIndex`]. This node draws indices at random, so no peer
/// can aim at a bucket, and one multiplication is enough for the data threads, which hash per
/// datagram.
pub type IndexHash = BuildHasherDefault<IndexHasher>;

/// See [`IndexHash`].
#[derive(Clone, Copy, Debug, Default)]
pub struct IndexHasher(u64);

impl Hasher for IndexHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(byte.into());
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u32(value.into());
    }

    fn write_u32(&mut self, value: u32) {
        const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
        self.0 = (self.0.rotate_left(8) ^ u64::from(value)).wrapping_mul(ODD);
    }
}

/// What the data threads know of the peers: an immutable snapshot, replaced as a whole.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// By port: the route of `PortId(n)` is at `n - 1`.
    pub routes: Vec<Route>,
    /// Every session that may receive.
    pub sessions: HashMap<SessionIndex, Arc<Session>, IndexHash>,
    /// Our initiations that wait for an answer.
    pub attempts: HashSet<SessionIndex>,
}

impl Tables {
    /// The session that `receiver` stands for. The tables may be out of date; even then a session
    /// is not used for longer than it may be.
    ///
    /// # Errors
    /// [`DropReason::UnknownSession`], [`DropReason::SessionExpired`].
    pub fn session(
        &self,
        receiver: SessionIndex,
        now: Instant,
    ) -> Result<&Arc<Session>, DropReason> {
        let session = self.sessions.get(&receiver);
        let session = session.ok_or(DropReason::UnknownSession)?;
        session.check_age(now)?;
        Ok(session)
    }

    /// The session under which to send to the peer behind `port`, the destination, and the largest
    /// UDP payload.
    ///
    /// # Errors
    /// `NoPort` of the switch, [`DropReason::NoSession`], [`DropReason::SessionExpired`].
    pub fn route_to(
        &self,
        port: PortId,
        now: Instant,
    ) -> Result<(&Arc<Session>, SocketAddr, usize), DropReason> {
        let route = self
            .route(port)
            .ok_or(patchcord_bridge::DropReason::NoPort)?;
        let session = route.session.as_ref().ok_or(DropReason::NoSession)?;
        session.check_age(now)?;
        let to = route.endpoint.ok_or(DropReason::NoSession)?;
        Ok((session, to, route.datagram_len))
    }

    /// Whether `session` is the one that `receiver` stands for.
    pub fn has(&self, receiver: SessionIndex, session: &Arc<Session>) -> bool {
        self.sessions
            .get(&receiver)
            .is_some_and(|present| Arc::ptr_eq(present, session))
    }

    /// The route to the peer behind `port`.
    pub fn route(&self, port: PortId) -> Option<&Route> {
        self.routes.get(usize::from(port.0).checked_sub(1)?)
    }
}
