// SPDX-License-Identifier: MIT OR Apache-2.0
//! Counters of the data path and the reasons for which a frame or datagram does not arrive.
//!
//! Every thread adds to its own [`Drops`] with relaxed atomics, a few times per batch; `show` sums
//! them. A bad frame or datagram is data, not an error: pure code returns a [`DropReason`] and the
//! pipeline counts it here.

use std::sync::atomic::{AtomicU64, Ordering};

/// Makes the enum from reasons of its own and those of another enum.
macro_rules! reasons {
    (
        $(#[$about:meta])* $name:ident,
        $($(#[$doc:meta])* $variant:ident = $text:literal,)*
        ;
        $(#[$outer_doc:meta])* $outer:ident($inner:ty),
    ) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$doc])* $variant,)*
            $(#[$outer_doc])* $outer($inner),
        }

        /// The counter index of each reason of its own, and the first index of the other ones.
        #[repr(u8)]
        enum Place { $($variant,)* $outer }

        impl $name {
            /// How many there are.
            const COUNT: usize = Place::$outer as usize + <$inner>::ALL.len();

            /// Every reason, in the order of their counters.
            pub fn all() -> impl Iterator<Item = Self> {
                let own = [$(Self::$variant,)*];
                own.into_iter().chain(<$inner>::ALL.iter().copied().map(Self::$outer))
            }

            /// The name in logs and metrics; it never changes.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                    Self::$outer(reason) => reason.name(),
                }
            }

            const fn place(self) -> usize {
                match self {
                    $(Self::$variant => Place::$variant as usize,)*
                    Self::$outer(reason) => Place::$outer as usize + reason as usize,
                }
            }
        }

        impl From<$inner> for $name {
            fn from(reason: $inner) -> Self {
                Self::$outer(reason)
            }
        }
    };
}

reasons! {
    /// Why a frame or a datagram was not delivered. The doc of each variant says who is at fault.
    DropReason,
    /// Peer or network: shorter than its header and tag.
    Truncated = "truncated",
    /// Network: not a message type that this version knows.
    UnknownType = "unknown-type",
    /// Peer: speaks another version of the protocol.
    UnsupportedVersion = "unsupported-version",
    /// Network, or a peer that restarted: no session has this receiver index.
    UnknownSession = "unknown-session",
    /// Network: the AEAD tag does not match (mangled or forged).
    BadTag = "bad-tag",
    /// Network: this counter was accepted before.
    Replayed = "replayed",
    /// Network: later than the replay window reaches back.
    TooOld = "too-old",
    /// Peer: an authentic datagram whose contents break the protocol.
    Malformed = "malformed",
    /// Network: a handshake message whose mac1 does not match our public key.
    BadMac = "bad-mac",
    /// Network or local load: a handshake message without a fresh cookie while under load.
    CookieRequired = "cookie-required",
    /// Network: more handshakes from this address than allowed while under load.
    HandshakeRateLimited = "handshake-rate-limited",
    /// Peer: the Noise handshake failed (wrong key or wrong preshared key).
    BadHandshake = "bad-handshake",
    /// Peer: a valid handshake by a key that no `[[peer]]` names.
    UnknownPeer = "unknown-peer",
    /// Network: a handshake initiation that is not newer than the last one accepted.
    ReplayedHandshake = "replayed-handshake",
    /// Peer: no cipher that both sides allow, or another network id.
    Incompatible = "incompatible",
    /// Peer: more control datagrams in a second than any use of them needs.
    ControlRateLimited = "control-rate-limited",
    /// Local limit: the control thread is behind, and its queue of handshakes or that of the peer is
    /// full.
    ControlQueueFull = "control-queue-full",
    /// Local limit: the slow path is behind and misses this frame, or cannot send one.
    SlowPathFull = "slow-path-full",
    /// Local limit: the thread of the datagram's lane is behind, and its inbox is full.
    LaneQueueFull = "lane-queue-full",
    /// Local: no session with the peer yet.
    NoSession = "no-session",
    /// Local: the session is too old, and the control thread is late to replace it.
    SessionExpired = "session-expired",
    /// Local limit: the session used up its counters and waits for a new one.
    CountersExhausted = "counters-exhausted",
    /// Local kernel: the UDP send failed.
    SendFailed = "send-failed",
    /// Network: the datagram was larger than the path now takes (EMSGSIZE).
    DatagramTooBig = "datagram-too-big",
    /// Local: the machine is behind, and this loss signals the sender to slow down (CoDel).
    StandingQueue = "standing-queue",
    /// Local kernel: the write to the TAP or the NIC failed; it is down, or the NIC is behind.
    TapWriteFailed = "tap-write-failed",
    /// Peer: larger than the MTU of the NIC at this end of the wire.
    NicMtu = "nic-mtu",
    /// Peer or local: longer than the overlay MTU allows.
    Oversize = "oversize",
    /// Peer: a super-frame or a partial checksum whose headers do not match its description.
    BadOffload = "bad-offload",
    /// Network: fragments of the frame were lost and its buffer was needed.
    ReassemblyEvicted = "reassembly-evicted",
    /// Network: segments of super-frames were lost; the others were delivered.
    SegmentLost = "segment-lost",
    /// This program: a data thread panicked over the frame, or refuses frames of a peer after
    /// repeated panics over them.
    InternalError = "internal-error",
    ;
    /// The switch does not forward the frame.
    Switch(patchcord_bridge::DropReason),
}

/// One counter per [`DropReason`].
#[derive(Debug)]
pub struct Drops([AtomicU64; DropReason::COUNT]);

impl Default for Drops {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; DropReason::COUNT])
    }
}

impl Drops {
    /// Adds one.
    pub fn count(&self, reason: DropReason) {
        self.add(reason, 1);
    }

    /// Adds `n`.
    pub fn add(&self, reason: DropReason, n: u64) {
        self.0[reason.place()].fetch_add(n, Ordering::Relaxed);
    }

    /// How often `reason` was counted.
    pub fn total(&self, reason: DropReason) -> u64 {
        self.0[reason.place()].load(Ordering::Relaxed)
    }

    /// The reasons that were counted at least once, in a fixed order.
    pub fn nonzero(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::all()
            .map(|reason| (reason, self.total(reason)))
            .filter(|&(_, n)| n > 0)
    }
}

/// The traffic between the overlay and one peer, or the TAP.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Into the tunnel.
    pub outbound: Flow,
    /// Out of the tunnel.
    pub inbound: Flow,
}

/// One direction of [`Traffic`]: counters for each lane, which `show` sums. The thread of a lane
/// alone adds to its counters, so no lane waits for the cache line of another, and an addition
/// needs no atomic read-modify-write.
#[derive(Debug, Default)]
pub struct Flow([LaneFlow; Self::LANES]);

/// The counters of one lane. Processors fetch cache lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct LaneFlow {
    frames: Count,
    bytes: Count,
    datagrams: Count,
    mergeable: Count,
}

/// A counter to which only one thread adds.
#[derive(Debug, Default)]
struct Count(AtomicU64);

impl Count {
    fn add(&self, n: u64) {
        let sum = self.load().wrapping_add(n);
        self.0.store(sum, Ordering::Relaxed);
    }

    fn load(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Flow {
    /// The lane of control messages, and all data lanes.
    pub const LANES: usize = 17;

    /// The counters of a lane, for the thread that sends or receives it.
    pub fn of(&self, lane: u8) -> &LaneFlow {
        // A number that no lane has does not get this far.
        &self.0[usize::from(lane).min(Self::LANES - 1)]
    }

    /// Frames so far.
    pub fn frames(&self) -> u64 {
        self.sum(|lane| &lane.frames)
    }

    /// Bytes of these frames.
    pub fn bytes(&self) -> u64 {
        self.sum(|lane| &lane.bytes)
    }

    /// Datagrams so far.
    pub fn datagrams(&self) -> u64 {
        self.sum(|lane| &lane.datagrams)
    }

    /// Those of them that the kernel could have merged.
    pub fn mergeable(&self) -> u64 {
        self.sum(|lane| &lane.mergeable)
    }

    fn sum(&self, count: impl Fn(&LaneFlow) -> &Count) -> u64 {
        self.0.iter().map(|lane| count(lane).load()).sum()
    }
}

impl LaneFlow {
    /// Adds frames and their bytes.
    pub fn add_frames(&self, frames: u64, bytes: u64) {
        self.frames.add(frames);
        self.bytes.add(bytes);
    }

    /// Frames so far.
    pub fn frames(&self) -> u64 {
        self.frames.load()
    }

    /// Adds datagrams: sent, or received and found authentic.
    pub fn add_datagrams(&self, datagrams: u64) {
        self.datagrams.add(datagrams);
    }

    /// Adds datagrams that arrived singly, although the kernel could have merged them with the ones
    /// before. They are counted as datagrams, too.
    pub fn add_mergeable(&self, datagrams: u64) {
        self.mergeable.add(datagrams);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_that_count_at_the_same_time_lose_nothing() {
        const TIMES: u64 = 100_000;
        let flow = Flow::default();
        std::thread::scope(|scope| {
            for lane in 0..4 {
                let lane = flow.of(lane);
                scope.spawn(move || {
                    for _ in 0..TIMES {
                        lane.add_frames(1, 60);
                        lane.add_datagrams(2);
                        lane.add_mergeable(3);
                    }
                });
            }
        });
        let sums = [
            flow.frames(),
            flow.bytes(),
            flow.datagrams(),
            flow.mergeable(),
        ];
        assert_eq!(sums, [1, 60, 2, 3].map(|each| each * 4 * TIMES));
    }

    #[test]
    fn lanes_share_no_cache_line() {
        let flow = Flow::default();
        let places = [0, 1, 16].map(|lane| std::ptr::from_ref(flow.of(lane)).addr());
        assert!(places.iter().all(|place| place % 128 == 0), "{places:x?}");
        assert_eq!(
            [places[1] - places[0], places[2] - places[0]],
            [128, 16 * 128]
        );
    }

    #[test]
    fn names_are_unique_and_counts_come_back() {
        let drops = Drops::default();
        for (reason, n) in DropReason::all().zip(1..) {
            drops.add(reason, n);
        }
        let seen: Vec<_> = drops.nonzero().collect();
        let expected: Vec<_> = DropReason::all().zip(1..).collect();
        assert_eq!(seen, expected, "each has a place of its own");
        let mut names: Vec<_> = DropReason::all().map(DropReason::name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DropReason::COUNT);
    }
}
