// SPDX-License-Identifier: MIT OR Apache-2.0
//! Counters of the data path and the reasons for which a frame or datagram does not arrive.
//!
//! Every thread adds to its own [`Drops`] with relaxed atomics, a few times per batch; `show` sums
//! them. A bad frame or datagram is data, not an error: pure code returns a [`DropReason`] and the
//! pipeline counts it here.

use std::sync::atomic::{AtomicU64, Ordering};

patchcord_bridge::reasons! {
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
    /// Network: the AEAD tag does not fit (mangled or forged).
    BadTag = "bad-tag",
    /// Network: this counter was accepted before.
    Replayed = "replayed",
    /// Network: later than the replay window reaches back.
    TooOld = "too-old",
    /// Peer: an authentic datagram whose contents break the protocol.
    Malformed = "malformed",
    /// Network: a handshake message whose mac1 does not fit our public key.
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
    /// Local limit: the slow path is behind and does not see this frame, or cannot send one.
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
    /// Local: the machine is behind, and the sender was told so by this loss (CoDel).
    QueueStands = "queue-stands",
    /// Local kernel: the write to the TAP or the NIC failed; it is down, or the NIC is behind.
    TapWriteFailed = "tap-write-failed",
    /// Peer: larger than the MTU of the NIC at this end of the wire.
    NicMtu = "nic-mtu",
    /// Peer or local: shorter than an Ethernet header.
    Runt = "runt",
    /// Peer or local: longer than the overlay MTU allows.
    Oversize = "oversize",
    /// Peer: a super-frame or an open checksum whose headers are not as it says.
    BadOffload = "bad-offload",
    /// Network: fragments of the frame were lost and its place was needed.
    ReassemblyEvicted = "reassembly-evicted",
    /// Network: segments of super-frames were lost; the others were delivered.
    SegmentLost = "segment-lost",
    /// This program: a data thread panicked over the frame, or refuses those of a peer whose frames it
    /// panicked over again and again.
    InternalError = "internal-error",
    /// Switch: the destination lives behind the port the frame came from.
    SamePort = "same-port",
    /// Switch: the source address is a group address.
    BadSource = "bad-source",
    /// Switch: no port is left that may have the frame.
    NoPort = "no-port",
    /// Switch: the port is blocked, because of a loop or of a bridge behind it.
    PortBlocked = "port-blocked",
    /// Switch, sender or configuration: an untagged frame on a trunk without a native VLAN.
    UntaggedRefused = "untagged-refused",
    /// Switch, sender or configuration: a tagged frame on an access port.
    TaggedRefused = "tagged-refused",
    /// Switch, sender or configuration: the port does not have the VLAN.
    VlanRefused = "vlan-refused",
    /// Switch: a spanning tree's frame on a port that drops them.
    BpduRefused = "bpdu-refused",
    /// Switch: a bridge behind a port that should have none; the port is blocked for a while.
    BpduGuard = "bpdu-guard",
    /// Switch: a DHCP server where none may be.
    DhcpServerRefused = "dhcp-server-refused",
    /// Switch: a router that advertises itself where none may.
    RouterAdvertisementRefused = "router-advertisement-refused",
    /// Switch: a fragment that hides from the guards what it carries.
    UpperLayerHidden = "upper-layer-hidden",
    /// Switch: the source lives behind another port, and this one guards against that.
    SourceSpoofed = "source-spoofed",
    /// Switch: the source is not among those that the port allows.
    SourceNotAllowed = "source-not-allowed",
    /// Switch, local limit: more broadcasts than the port may send.
    BroadcastLimited = "broadcast-limited",
    /// Switch, local limit: more multicasts than the port may send.
    MulticastLimited = "multicast-limited",
    /// Switch, local limit: more frames to unknown stations than the port may send.
    UnknownLimited = "unknown-limited",
    /// Switch, local limit: more loop probes than there can be nodes.
    ProbeLimited = "probe-limited",
}

/// One counter per [`DropReason`].
#[derive(Debug)]
pub struct Drops([AtomicU64; DropReason::ALL.len()]);

impl Default for Drops {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; DropReason::ALL.len()])
    }
}

impl Drops {
    /// Adds one.
    pub fn count(&self, reason: DropReason) {
        self.add(reason, 1);
    }

    /// Adds `n`.
    pub fn add(&self, reason: DropReason, n: u64) {
        self.0[reason as usize].fetch_add(n, Ordering::Relaxed);
    }

    /// How often `reason` was counted.
    pub fn total(&self, reason: DropReason) -> u64 {
        self.0[reason as usize].load(Ordering::Relaxed)
    }

    /// The reasons that were counted at least once, in a fixed order.
    pub fn nonzero(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL
            .iter()
            .map(|&reason| (reason, self.total(reason)))
            .filter(|&(_, n)| n > 0)
    }
}

/// What crossed between the overlay and one peer, or the TAP. Outbound is written by the sending
/// threads, inbound by the receiving ones, so neither wait for the others' cache line. The lanes of a
/// direction share one; they add to it a few times per frame.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Into the tunnel.
    pub outbound: Flow,
    /// Out of the tunnel.
    pub inbound: Flow,
}

/// One direction of [`Traffic`].
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Flow {
    frames: AtomicU64,
    bytes: AtomicU64,
    datagrams: AtomicU64,
}

impl Flow {
    /// Adds frames and their bytes.
    pub fn add_frames(&self, frames: u64, bytes: u64) {
        self.frames.fetch_add(frames, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Adds datagrams: sent, or received and found authentic.
    pub fn add_datagrams(&self, datagrams: u64) {
        self.datagrams.fetch_add(datagrams, Ordering::Relaxed);
    }

    /// Frames so far.
    pub fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    /// Bytes of these frames.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Datagrams so far.
    pub fn datagrams(&self) -> u64 {
        self.datagrams.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_counts_come_back() {
        let drops = Drops::default();
        drops.add(DropReason::NoPort, 3);
        drops.count(DropReason::Truncated);
        let seen: Vec<_> = drops.nonzero().collect();
        assert_eq!(seen, [(DropReason::Truncated, 1), (DropReason::NoPort, 3)]);
        let mut names: Vec<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DropReason::ALL.len());
    }
}
