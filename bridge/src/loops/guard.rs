// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guard: the ports it watches, what it learns from its own returned probes, and what follows.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use super::message::Message;
use super::other::Other;
use super::port::{Contest, Port};
use super::relearning::Relearning;
use super::speakers::Speakers;
use super::timing::{MS, S};
use super::verdict::{Blocked, LoopCounters, NodeId, Verdict};
use crate::mac::MacAddr;
use crate::port_id::PortId;
use crate::vlan::Vid;

/// Watches the ports of one node.
///
/// `A` makes the authentication tag of a probe: a keyed hash under a key that is random per
/// process. [`due`](Self::due) returns probes to send; [`returned`](Self::returned) and
/// [`heard`](Self::heard) take received probes; [`poll`](Self::poll), called after each of them and
/// when [`next_due_us`](Self::next_due_us) says, until it has nothing more, returns verdicts.
#[derive(Debug)]
pub struct LoopGuard<A> {
    pub(super) node: NodeId,
    pub(super) source: MacAddr,
    pub(super) authenticate: A,
    pub(super) ports: BTreeMap<PortId, Port>,
    pub(super) sequence: u32,
    /// When the last sequence numbers were sent; each has its slot.
    pub(super) sent_us: [Option<u64>; REMEMBERED],
    pub(super) next_round_us: u64,
    pub(super) next_contest_round_us: u64,
    pub(super) triggered_us: Option<u64>,
    /// Nodes heard recently, bounded.
    pub(super) others: BTreeMap<NodeId, Other>,
    pub(super) speakers: Speakers,
    /// Ports and VLANs where a probe of another node arrived by two paths.
    pub(super) doubts: BTreeSet<(PortId, Vid)>,
    pub(super) next_doubts_us: u64,
    /// When a probe arrived twice by one port, so that there may be a loop behind it.
    pub(super) doubled_us: Option<u64>,
    /// Until when probes announce that this node has blocked or unblocked a port.
    pub(super) announces_until_us: u64,
    pub(super) next_sweep_us: u64,
    /// Ports blocked and unblocked so far.
    pub(super) changes: u16,
    pub(super) relearning: Relearning,
    pub(super) suspected: Vec<Vid>,
    pub(super) counters: LoopCounters,
}

/// A probe that takes longer is no sign of a loop that exists now.
const FRESH_US: u64 = 3 * S;
/// Rounds that may fall within that time, and a few more.
pub(super) const REMEMBERED: usize = 32;
/// From the first return to a decision, at least: time for others on the loop to see it, to say so,
/// and to be heard.
const WAIT_US: u64 = 500 * MS;
/// How much longer the most junior node waits, so that seniors are first even if no node hears
/// them.
const JUNIOR_WAIT_US: u64 = 800 * MS;
/// A contest ends if the loop is not seen for this long.
const CONTEST_IDLE_US: u64 = 2 * S;
/// For this long a change is announced, each second: one round may be lost.
const ANNOUNCE_US: u64 = 3 * S;
/// VLANs that are suspected at a time.
const MAX_SUSPECTED: usize = 32;
pub(super) const WARN_US: u64 = 60 * S;

impl<A: Fn(&[u8]) -> [u8; 16]> LoopGuard<A> {
    /// A guard that watches no port yet.
    ///
    /// `node` and `source` must be random; see [`source`](super::source).
    pub fn new(node: NodeId, source: MacAddr, authenticate: A) -> Self {
        Self {
            node,
            source,
            authenticate,
            ports: BTreeMap::new(),
            sequence: 0,
            sent_us: [None; REMEMBERED],
            next_round_us: 0,
            next_contest_round_us: u64::MAX,
            triggered_us: None,
            others: BTreeMap::new(),
            speakers: Speakers::of(node),
            doubts: BTreeSet::new(),
            next_doubts_us: 0,
            doubled_us: None,
            announces_until_us: 0,
            next_sweep_us: 0,
            changes: 0,
            relearning: Relearning::default(),
            suspected: Vec::new(),
            counters: LoopCounters::default(),
        }
    }

    /// Watches a port, or changes how.
    ///
    /// `vlans` are the VLANs inside the switch that the port is in; an empty list means untagged
    /// frames only. Sixteen are probed each second, and fewer where more than eight nodes are
    /// heard. If there are more, it may take longer than three seconds to find a loop that is in
    /// one of them only. Untagged frames wait for no turn, nor do the VLANs that
    /// [`suspect`](Self::suspect) names: a station that sends in many VLANs hides no loop in
    /// others.
    pub fn watch(&mut self, port: PortId, rank: u64, vlans: impl IntoIterator<Item = Vid>) {
        let mut vlans: Vec<Vid> = vlans.into_iter().collect();
        vlans.sort_unstable();
        vlans.dedup();
        if vlans.is_empty() {
            vlans.push(Vid::UNTAGGED);
        }
        let watched = self.ports.entry(port).or_insert_with(Port::new);
        watched.rank = rank;
        watched.vlans = vlans;
    }

    /// Probes these VLANs as well, in the next round, on all ports: stations moved from port to
    /// port there, as they do in a loop. Of more than 32 it takes the first ones.
    pub fn suspect(&mut self, vlans: impl IntoIterator<Item = Vid>) {
        self.suspected = vlans.into_iter().take(MAX_SUSPECTED).collect();
    }

    /// Applies changes that other nodes announce behind this port to stations behind it, and to no
    /// others: for a port that refuses addresses of stations behind other ports. Nothing proves
    /// which node has announced it, and a node that makes all others remove an address could claim
    /// it before its owner sends again.
    pub fn confine(&mut self, port: PortId) {
        self.ports.entry(port).or_insert_with(Port::new).is_confined = true;
    }

    /// Stops watching a port that no longer exists.
    pub fn unwatch(&mut self, port: PortId) {
        self.ports.remove(&port);
    }

    /// Takes in a frame with the source of our probes, which arrived on `port`.
    ///
    /// Only [`Verdict::Behind`] is returned at once, the rest by [`poll`](Self::poll).
    pub fn returned(&mut self, port: PortId, frame: &[u8], now_us: u64) -> Option<Verdict> {
        let Some(message) = self.authentic(frame) else {
            self.counters.forged += 1;
            return None;
        };
        if !self.is_fresh(message.sequence, now_us) {
            self.counters.stale += 1;
            return None;
        }
        if message.port == port {
            self.counters.behind += 1;
            return self.warn(port, message.vid, now_us);
        }
        self.counters.returned += 1;
        let (victim, other) = self.choose(message.port, port)?;
        self.loop_seen(victim, other, &message, now_us);
        None
    }

    /// The next thing to do at `now_us`.
    pub fn poll(&mut self, now_us: u64) -> Option<Verdict> {
        let mut seniors = self.others.range(..self.node);
        let is_led = seniors.any(|(_, senior)| senior.contends(now_us));
        let ids: Vec<PortId> = self.ports.keys().copied().collect();
        let change = ids.into_iter().find_map(|port| {
            self.decide(port, is_led, now_us);
            let at = self.ports.get_mut(&port)?;
            at.expire(now_us);
            at.announce(port)
        });
        if change.is_some() {
            // The other nodes should know at once.
            self.changes = self.changes.wrapping_add(1);
            self.announces_until_us = now_us + ANNOUNCE_US;
            self.next_round_us = self.next_round_us.min(now_us);
            self.relearning.own_change(now_us);
            return change;
        }
        self.relearning.poll(now_us)
    }

    /// Whether the port is blocked.
    pub fn is_blocked(&self, port: PortId) -> bool {
        self.ports.get(&port).is_some_and(Port::is_cut)
    }

    /// The blocked ports, each with its loop.
    pub fn report(&self) -> impl Iterator<Item = Blocked> + '_ {
        self.ports.iter().filter_map(|(&port, at)| {
            let block = at.block?;
            Some(Blocked {
                port,
                cause: block.cause,
                since_us: block.since_us,
                seen_us: block.seen_us,
                unblocks_us: block.unblocks_us(),
                count: block.count,
            })
        })
    }

    /// The counters.
    pub fn counters(&self) -> LoopCounters {
        self.counters
    }

    pub(super) fn is_contending(&self) -> bool {
        self.ports.values().any(|at| at.contest.is_some())
    }

    fn is_fresh(&self, sequence: u32, now_us: u64) -> bool {
        // How far back it is, or very far if it was never sent.
        let back = self.sequence.wrapping_sub(sequence) as usize;
        back < REMEMBERED
            && self.sent_us[sequence as usize % REMEMBERED]
                .is_some_and(|sent_us| now_us.saturating_sub(sent_us) <= FRESH_US)
    }

    /// Which of two ports to block, and which to leave unblocked.
    fn choose(&self, one: PortId, two: PortId) -> Option<(PortId, PortId)> {
        let order = |port: PortId| {
            let at = self.ports.get(&port)?;
            Some((port != PortId::TAP, at.rank, port))
        };
        Some(if order(one)? > order(two)? {
            (one, two)
        } else {
            (two, one)
        })
    }

    fn loop_seen(&mut self, victim: PortId, other: PortId, message: &Message, now_us: u64) {
        // A loop that is cut keeps its cut, and needs no second one.
        for port in [victim, other] {
            let at = self.ports.get_mut(&port).filter(|at| at.is_cut());
            if let Some(at) = at {
                if let Some(block) = &mut at.block {
                    block.record_probe(now_us);
                }
                return;
            }
        }
        let wait_us = self.wait_us();
        let Some(at) = self.ports.get_mut(&victim) else {
            return;
        };
        if let Some(contest) = &mut at.contest {
            contest.seen_us = now_us;
            if contest.last_sequence != message.sequence {
                contest.last_sequence = message.sequence;
                contest.distinct += 1;
            }
            return;
        }
        at.contest = Some(Contest {
            other,
            vid: message.vid,
            since_us: now_us,
            decide_us: now_us + wait_us,
            seen_us: now_us,
            last_sequence: message.sequence,
            distinct: 1,
        });
        self.next_contest_round_us = now_us;
    }

    fn wait_us(&self) -> u64 {
        let juniority = self.node.0 >> 32;
        WAIT_US + ((JUNIOR_WAIT_US * juniority) >> 32)
    }

    /// Ends the contest of a port, if there is one and its time has come.
    fn decide(&mut self, port: PortId, is_led: bool, now_us: u64) {
        let Some(contest) = self.ports.get(&port).and_then(|at| at.contest) else {
            return;
        };
        let is_over = contest.idle_us(now_us) >= CONTEST_IDLE_US || self.is_blocked(contest.other);
        let Some(at) = self.ports.get_mut(&port) else {
            return;
        };
        if is_over {
            at.contest = None;
        } else if contest.is_won(is_led, now_us) {
            at.contest = None;
            at.block = Some(at.new_block(&contest, now_us));
        }
    }

    fn warn(&mut self, port: PortId, vid: Vid, now_us: u64) -> Option<Verdict> {
        let at = self.ports.get_mut(&port)?;
        let is_told = at
            .warned_us
            .is_some_and(|then_us| now_us.saturating_sub(then_us) < WARN_US);
        if is_told || at.is_cut() {
            return None;
        }
        at.warned_us = Some(now_us);
        Some(Verdict::Behind { port, vid })
    }

    pub(super) fn authentic(&self, frame: &[u8]) -> Option<Message> {
        let body = Message::body(frame)?;
        let (bytes, rest) = body.split_first_chunk::<{ Message::LEN }>()?;
        let tag = rest.first_chunk::<16>()?;
        let expected = (self.authenticate)(bytes);
        // All bytes are compared, so that the time taken says nothing about the tag.
        let difference = tag
            .iter()
            .zip(expected)
            .fold(0, |sum, (a, b)| sum | (a ^ b));
        let message = Message::parse(frame)?;
        (difference == 0 && message.node == self.node).then_some(message)
    }
}
