// SPDX-License-Identifier: MIT OR Apache-2.0
//! The engine's interface to its owner: events as they happen, and snapshots for `show`.

use std::{any::Any, io};

use patchcord_bridge::{loops::Blocked, membership::GroupEntry};

use crate::{
    control::message::{FdbStatus, Rates, SwitchStatus},
    io::tap,
    proto::node::PeerView,
    stats::DropReason,
};

/// Events that wait for the engine's owner.
pub(super) const EVENTS: usize = 16;

/// An event for the engine's owner.
#[derive(Debug)]
pub(crate) enum EngineEvent {
    /// The first peer became reachable.
    Reachable,
    /// The last reachable peer was lost.
    Unreachable,
    /// A loop was cut, or a port was unblocked, here or at another node: stations may be behind
    /// other ports than before, also from the view of other switches.
    StationsMoved,
    /// How many peers are up, and the problem of the others, in words. Sent when it changes.
    Summary(String),
    /// A thread or task ended unexpectedly, or makes no progress: the tunnel is broken.
    Broken(Stopped),
}

/// A snapshot for `show`.
#[derive(Debug)]
pub(crate) struct EngineView {
    /// The peers, in the order of their ports.
    pub peers: Vec<PeerReport>,
    /// Frames and bytes read from the TAP, then those written to it.
    pub tap: [(u64, u64); 2],
    /// The frames among them that crossed on express lanes.
    pub express: [u64; 2],
    /// The counted drops.
    pub drops: Vec<(DropReason, u64)>,
    /// The ports of the switch, the TAP first, then the peers.
    pub ports: Vec<PortView>,
    /// The multicast groups with members; there may be more.
    pub groups: Vec<GroupEntry>,
    /// The counters of the switch.
    pub switch: SwitchStatus,
    /// The first of the addresses that the switch knows.
    pub fdb: Vec<FdbStatus>,
    /// How many others it knows.
    pub fdb_omitted: u64,
}

/// A peer.
#[derive(Debug)]
pub(crate) struct PeerReport {
    /// Its name.
    pub name: String,
    /// The state of the protocol.
    pub view: PeerView,
    /// Its traffic per second.
    pub rates: Rates,
    /// The interface that could merge its datagrams, and does not.
    pub unmerged_at: Option<String>,
}

/// A port of the switch.
#[derive(Debug)]
pub(crate) struct PortView {
    /// The loop for which it is blocked.
    pub blocked_by_loop: Option<Blocked>,
    /// A BPDU arrived, where none is allowed.
    pub blocked_by_bpdu: bool,
    /// Frames from it that the switch refused, by reason.
    pub refused: Vec<(patchcord_bridge::DropReason, u64)>,
    /// The clock of `blocked_by_loop`.
    pub now_us: u64,
}

/// Why a data thread ended.
#[derive(Debug)]
pub(crate) enum Stopped {
    /// It was asked to.
    Asked,
    /// The TAP was deleted.
    TapLost,
    /// The kernel refused a call that must work.
    Failed(io::Error),
}

impl Stopped {
    /// The end of a thread or task that panicked; the log has the details.
    pub(super) fn of_panic(name: &str, payload: &(dyn Any + Send)) -> Self {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
        let text = text.unwrap_or("it panicked");
        Self::Failed(io::Error::other(format!("`{name}` panicked: {text}")))
    }

    /// The meaning of an error of the TAP: only a deleted device is lost for good.
    pub(super) fn of_tap(error: io::Error) -> Self {
        if tap::is_deleted(&error) {
            Self::TapLost
        } else {
            Self::Failed(error)
        }
    }
}
