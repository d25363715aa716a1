// SPDX-License-Identifier: MIT OR Apache-2.0
//! The output of a guard: probes to send, ports to block and unblock, and what it has seen.

use alloc::vec::Vec;

use crate::port_id::PortId;
use crate::vlan::Vid;

/// The random id of a node. The smaller one is senior.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

/// A frame to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The port by which it leaves, blocked or not.
    pub port: PortId,
    /// Its VLAN. If that is not `UNTAGGED`, the frame has a tag that says so; the port's tag edit
    /// on egress is still to be applied.
    pub vid: Vid,
    /// The frame, without its frame check sequence.
    pub frame: Vec<u8>,
}

/// Something that the caller must do, or report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Block the port.
    Block {
        /// The port.
        port: PortId,
        /// Why.
        cause: Cause,
    },
    /// Unblock the port.
    Unblock {
        /// The port.
        port: PortId,
    },
    /// Another node has blocked or unblocked a port, so that stations may be behind other ports
    /// than they were: remove learned addresses. The same holds after [`Block`](Self::Block) and
    /// [`Unblock`](Self::Unblock). It is repeated a second later, when no frame is in flight any
    /// more that took the old paths.
    Relearn,
    /// The same, heard behind a port that is [confined](super::LoopGuard::confine): remove the
    /// addresses that were learned there.
    RelearnBehind {
        /// The port.
        port: PortId,
    },
    /// There is a loop behind the port, where this node cannot cut it. Reported once a minute at
    /// most.
    Behind {
        /// The port.
        port: PortId,
        /// The VLAN of the probe that came back.
        vid: Vid,
    },
}

/// A loop: frames that leave by one of two ports return by the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cause {
    /// The port of the two that stays unblocked.
    pub other: PortId,
    /// The VLAN in which it was seen first.
    pub vid: Vid,
}

/// A blocked port, as shown to the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// The port.
    pub port: PortId,
    /// Why.
    pub cause: Cause,
    /// When it was blocked.
    pub since_us: u64,
    /// When the cause was last seen.
    pub seen_us: u64,
    /// When it is unblocked, if the cause is not seen again.
    pub unblocks_us: u64,
    /// How many probes have returned.
    pub count: u64,
}

impl Blocked {
    /// Whether a station that moved from one port to the other has shown the loop as well.
    pub fn explains_move(&self, from: PortId, to: PortId) -> bool {
        let Cause { other, .. } = self.cause;
        (from, to) == (self.port, other) || (from, to) == (other, self.port)
    }
}

/// The counters of a guard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoopCounters {
    /// Probes sent.
    pub sent: u64,
    /// Own probes that came back by another port than they left by.
    pub returned: u64,
    /// Own probes that came back by the port they left by.
    pub behind: u64,
    /// Own probes that came back too late, or as a replay.
    pub stale: u64,
    /// Frames with the source of our probes that we have not sent.
    pub forged: u64,
    /// Probes of other nodes.
    pub foreign: u64,
}
