// SPDX-License-Identifier: MIT OR Apache-2.0
//! Finds loops through other bridges, cables and tunnels, and decides which port to block.
//!
//! A node sends probes on every port. Bridges flood them like a broadcast, other nodes too; only
//! their sender never forwards one. A probe that returns by another port than it left by has found
//! a loop, and this node is on it.
//!
//! **Which nodes probe.** If all nodes did so all the time, each tunnel would carry a probe for each of
//! them. So in each VLAN the two most senior nodes, those with the smallest ids, probe each second;
//! a node that hears two seniors is silent. Their probes also show loops that they are not on: some
//! node on any loop that a probe gets into receives it by two of its ports (there is a path from
//! its sender to either, and these paths part somewhere). That node then sends probes of its own by
//! these two, for as long as this goes on. What it has heard is a hint and no more: only returns of
//! its own probes count. A node that knows of a loop, or has just changed a port, is not silent
//! either.
//!
//! ```text
//!   idle ── a probe returns ──> contest ── two have returned, no senior ──> blocked ──┐
//!    ^                            │  │                                       ^        │ probes
//!    │<── none for 2 s ───────────┘  └──── waits for a senior ───┐           └────────┘ return
//!    │                                                           │                    │
//!    └───────────────────────── none for 10 s to 300 s ──────────┴────────────────────┘
//! ```
//!
//! **One node cuts.** Every node on a loop sees it. If each blocked a port of its own, two tunnels
//! between two sites would both go dark, and a ring of hubs would fall apart. So a node that sees a
//! loop says so in its probes, for long enough that all others on the loop see theirs and say the
//! same, and defers to a senior, one with a smaller id, that contends too. Once the senior has
//! blocked, the probes of the others no longer return, or they contend for the loop that is left.
//! Each cut is made while there is a path around it, so none takes a site off the network.
//!
//! **Which port.** Between the TAP and a peer, the peer's. Between two peers, the one of higher
//! rank, or of higher number among equals. In a mesh all nodes must agree on the ranks (by the
//! peers' keys, say): where a cable joins two sites, the other nodes reach both by one of them, and
//! if they do not choose the same one they get each other's frames twice.
//!
//! **Requirements on the switch.** A blocked port receives and sends nothing but the probes of
//! *this* node, which show when the loop is gone. Probes of other nodes must stop there: they are
//! to find what is left after the cut, and would otherwise circulate for ever in a loop that their
//! sender is not on.
//!
//! **Where stations are now.** After each cut, and each unblocked port, stations are reached by
//! other paths than before, and a switch that has learned the old ones sends into a blocked port
//! until they age. So each node counts its changes in its probes; a node that hears of a new one
//! removes learned addresses, as with the topology changes of IEEE 802.1D, section 17.11.
//!
//! **Trust.** A return counts if the probe is authentic (it carries a tag under a key that
//! only this node has), was sent within 3 seconds, and another one returned between the same two
//! ports. A path that carries probes from one port to another carries all other frames as well, and
//! is a loop. Fields about other nodes are not authentic: forged contention delays a block by 6
//! seconds at most, and forged changes make the switch relearn stations, once a second on average:
//! all of them, or those behind its own port if that one is [confined](LoopGuard::confine).
//!
//! Called by the control thread. Time comes in as microseconds on a clock that does not wrap.

mod guard;
mod hearing;
mod message;
mod other;
mod port;
mod probing;
mod relearning;
mod speakers;
#[cfg(test)]
mod tests;
mod timing;
mod verdict;

pub use self::guard::LoopGuard;
pub use self::verdict::{Blocked, Cause, LoopCounters, NodeId, Probe, Verdict};
use crate::inspect::{PROBE_GROUP, PROBE_SOURCES};
use crate::mac::MacAddr;

/// The destination address of probes.
pub const PROBE_DESTINATION: MacAddr = MacAddr(PROBE_GROUP);

/// A source address for a node's probes. Switches recognise probes by their destination, EtherType
/// and such a source; a frame from an address that a station may have is no probe.
pub const fn source([a, b, c, d]: [u8; 4]) -> MacAddr {
    let [first, second] = PROBE_SOURCES;
    MacAddr([first, second, a, b, c, d])
}
