// SPDX-License-Identifier: MIT OR Apache-2.0
//! Finds loops through other bridges, cables and tunnels, and says which port to block.
//!
//! A node sends probes on every port. Bridges flood them like a broadcast, other nodes too; only its
//! sender never passes one on. One that comes back by another port than it left by has found a way
//! around: a loop, and this node is on it.
//!
//! **Who probes.** If all nodes did so all the time, each tunnel would carry a probe for each of them. So
//! in each VLAN the two most senior ones do, each second, those with the smallest ids; whoever hears two
//! seniors is silent. Their probes show loops that they are not on, too: some node on any loop that a
//! probe gets into has it by two of its ports (there is a way from its sender to either, and they part
//! somewhere). That node then sends probes of its own by these two, for as long as this goes on. What it
//! has heard is a hint and no more: what counts is what comes back. Whoever knows of a loop, or has just
//! changed a port, is not silent either.
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
//! same, and gives way to a senior, one with a smaller id, that contends too. Once the senior has
//! blocked, the probes of the others no longer return, or they contend for the loop that is left.
//! Each cut is made while there is a way around it, so none takes a site off the network.
//!
//! **Which port.** Between the TAP and a peer, the peer's. Between two peers, the one of higher rank,
//! or of higher number among equals. In a mesh all nodes must agree on the ranks (by the peers' keys,
//! say): where two sites are joined by a cable, the others reach both by one of them, and if they do
//! not choose the same one they get each other's frames twice.
//!
//! **What it asks of the switch.** A blocked port takes and gives nothing but the probes of *this*
//! node, which show when the loop is gone. Those of others must stop there: they shall see what is
//! left after the cut, and would else go round for ever in a loop that their sender is not on.
//!
//! **Where stations are now.** With each cut, and each port that opens, stations are reached by other
//! ways than before, and whoever has learned the old ones sends into a blocked port until they age.
//! So each node counts its changes in its probes; who hears of a new one forgets what was learned, as
//! with the topology changes of IEEE 802.1D, section 17.11.
//!
//! **Whom it believes.** A return counts if the probe is authentic (it carries a tag under a key
//! that nobody else has), was sent within 3 seconds, and another one returned between the same two
//! ports. Who can carry probes from one port to another can bridge all the rest as well, and is a
//! loop. What others say of themselves is not authentic: who forges contention delays a block by 6
//! seconds at most, and who forges changes has stations learned anew, once a second on average: all of
//! them, or those behind its own port if that one is [confined](LoopGuard::confine).
//!
//! Called by the control thread. Time comes in as microseconds on a clock that does not wrap.

mod message;
mod port;
mod relearning;
mod speakers;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use self::message::Message;
use self::port::{Contest, Port};
use self::relearning::{Relearning, Scope};
use self::speakers::{Copies, Speakers};
use crate::inspect::{PROBE_ETHER_TYPE, PROBE_GROUP, PROBE_SOURCES};
use crate::mac::MacAddr;
use crate::port_id::PortId;
use crate::vlan::Vid;

/// The address that probes are sent to.
pub const PROBE_DESTINATION: MacAddr = MacAddr(PROBE_GROUP);

/// An address for a node to send its probes from. Switches know probes by their destination, EtherType
/// and such a source; whatever comes from an address that a station may have is none.
pub const fn source([a, b, c, d]: [u8; 4]) -> MacAddr {
    let [first, second] = PROBE_SOURCES;
    MacAddr([first, second, a, b, c, d])
}

/// Watches over the ports of one node.
///
/// `A` makes the authentication tag of a probe: a keyed hash under a key that is random per process.
/// [`due`](Self::due) gives probes to send; [`returned`](Self::returned) and [`heard`](Self::heard)
/// take in what came; [`poll`](Self::poll), called after each of them and when
/// [`next_due_us`](Self::next_due_us) says, until it has nothing more, gives verdicts.
#[derive(Debug)]
pub struct LoopGuard<A> {
    node: NodeId,
    source: MacAddr,
    authenticate: A,
    ports: BTreeMap<PortId, Port>,
    sequence: u32,
    /// When the last sequence numbers were sent; each has its place.
    sent_us: [Option<u64>; REMEMBERED],
    next_round_us: u64,
    next_contest_round_us: u64,
    triggered_us: Option<u64>,
    /// Nodes heard of late, bounded.
    others: BTreeMap<NodeId, Other>,
    speakers: Speakers,
    /// Where a probe of another node came by two ways.
    doubts: BTreeSet<(PortId, Vid)>,
    next_doubts_us: u64,
    /// When a probe came twice by one port, so that there may be a loop behind it.
    doubled_us: Option<u64>,
    /// Until when it is told that this node has blocked or opened a port.
    tells_until_us: u64,
    next_sweep_us: u64,
    /// Ports blocked and opened so far.
    changes: u16,
    relearning: Relearning,
    suspected: Vec<Vid>,
    counters: LoopCounters,
}

/// A node among others, at random. The smaller one is senior.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

/// A frame to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The port it leaves by, blocked or not.
    pub port: PortId,
    /// The VLAN it is in. If that is one, the frame has a tag that says so, and what the port makes
    /// of tags when frames leave is still to be done.
    pub vid: Vid,
    /// The frame, without its frame check sequence.
    pub frame: Vec<u8>,
}

/// Something that the caller must do, or tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Block the port.
    Block {
        /// The port.
        port: PortId,
        /// What for.
        cause: Cause,
    },
    /// Open the port again.
    Open {
        /// The port.
        port: PortId,
    },
    /// Another node has blocked or opened a port, so that stations may be behind other ports than they
    /// were: forget what was learned. The same holds after [`Block`](Self::Block) and
    /// [`Open`](Self::Open). It is said again a second later, when no frame is under way any more
    /// that came by the old ways.
    Relearn,
    /// The same, as is said behind a port that is [confined](LoopGuard::confine): forget what was learned
    /// there.
    RelearnBehind {
        /// The port.
        port: PortId,
    },
    /// There is a loop behind the port, where this node cannot cut it. Said once a minute at most.
    Behind {
        /// The port.
        port: PortId,
        /// The VLAN of the probe that came back.
        vid: Vid,
    },
}

/// A loop: what leaves by one of two ports comes back by the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cause {
    /// The port of the two that stays open.
    pub other: PortId,
    /// The VLAN in which it was seen first.
    pub vid: Vid,
}

/// A blocked port, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// The port.
    pub port: PortId,
    /// What for.
    pub cause: Cause,
    /// When it was blocked.
    pub since_us: u64,
    /// When the cause was last seen.
    pub seen_us: u64,
    /// When it opens, if the cause is not seen again.
    pub opens_us: u64,
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

/// What the guard has counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoopCounters {
    /// Probes sent.
    pub sent: u64,
    /// Own probes that came back by another port than they left by.
    pub returned: u64,
    /// Own probes that came back by the port they left by.
    pub behind: u64,
    /// Own probes that came back too late, or again from someone's store.
    pub stale: u64,
    /// Frames with the source of our probes that we have not sent.
    pub forged: u64,
    /// Probes of other nodes.
    pub foreign: u64,
}

/// The last that was heard of another node.
#[derive(Clone, Debug)]
struct Other {
    sequence: u32,
    /// By each confined port by which it was heard, and by all others.
    changes: BTreeMap<Scope, u16>,
    heard_us: u64,
    contended_us: Option<u64>,
    copies: Copies,
}

const MS: u64 = 1000;
const S: u64 = 1000 * MS;

/// Between two rounds of probes on all ports.
const INTERVAL_US: u64 = S;
/// Between two probes around a loop that is being contested.
const CONTEST_INTERVAL_US: u64 = 250 * MS;
/// A probe that takes longer is no sign of a loop that is there now.
const FRESH_US: u64 = 3 * S;
/// Rounds that may fall within that time, and some.
const REMEMBERED: usize = 32;
/// VLANs of a port that are probed in one round; if there are more, they take turns.
const VLANS_PER_ROUND: usize = 16;
/// What all nodes together should not exceed in one round: many nodes with many VLANs would else be a
/// load of their own, and more than a switch passes on.
const PROBES_PER_ROUND: usize = 128;

/// From the first return to a decision, at least: time for others on the loop to see it, to say so,
/// and to be heard.
const WAIT_US: u64 = 500 * MS;
/// What the most junior node waits on top, so that seniors are first even if nobody hears them.
const JUNIOR_WAIT_US: u64 = 800 * MS;
/// A senior that has not said so for this long no longer contends.
const SENIOR_US: u64 = S;
/// A node that is silent for this long may make room for another.
const FORGET_US: u64 = 10 * S;
/// Nodes that are listened to at a time.
const MAX_OTHERS: usize = 1024;
/// A contest ends if the loop is not seen for this long.
const CONTEST_IDLE_US: u64 = 2 * S;
/// Between two rounds that are sent because someone else contends.
const TRIGGER_US: u64 = 2 * S;
/// Ports and VLANs at a time in which a probe came by two ways.
const MAX_DOUBTS: usize = 64;
/// Between two times that they are probed.
const DOUBTS_US: u64 = S;
/// For so long a change is told, each second: what one round says may be lost.
const TELL_US: u64 = 3 * S;

/// VLANs that are suspected at a time.
const MAX_SUSPECTED: usize = 32;

const WARN_US: u64 = 60 * S;

impl<A: Fn(&[u8]) -> [u8; 16]> LoopGuard<A> {
    /// A guard that watches over no port yet.
    ///
    /// `node` and `source` must be random; see [`source`].
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
            tells_until_us: 0,
            next_sweep_us: 0,
            changes: 0,
            relearning: Relearning::default(),
            suspected: Vec::new(),
            counters: LoopCounters::default(),
        }
    }

    /// Watches over a port, or changes how.
    ///
    /// `vlans` are the VLANs inside the switch that the port is in; an empty list means untagged
    /// frames only. Sixteen are probed each second, and fewer where more than eight nodes are heard.
    /// If there are more, it may take longer than three seconds to find a loop that is in one of them
    /// only. Untagged frames wait for no turn, nor does what [`suspect`](Self::suspect) names: whoever
    /// sends in many VLANs hides no loop in others.
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

    /// Probes these VLANs as well, in the next round, on all ports: stations moved from port to port
    /// there, as they do in a loop. Of more than 32 the first ones.
    pub fn suspect(&mut self, vlans: impl IntoIterator<Item = Vid>) {
        self.suspected = vlans.into_iter().take(MAX_SUSPECTED).collect();
    }

    /// Takes what other nodes say behind this port of a change for a word about stations behind it, and
    /// of no others: for a port by which addresses of others are refused. Nothing proves which node has
    /// said it, and who has everything forgotten may speak before the owner of an address does.
    pub fn confine(&mut self, port: PortId) {
        self.ports.entry(port).or_insert_with(Port::new).is_confined = true;
    }

    /// Forgets a port that is no more.
    pub fn unwatch(&mut self, port: PortId) {
        self.ports.remove(&port);
    }

    /// The probes to send at `now_us`, on blocked ports too.
    pub fn due(&mut self, now_us: u64) -> Vec<Probe> {
        let mut wanted = BTreeSet::new();
        if now_us >= self.next_round_us {
            self.next_round_us = now_us + INTERVAL_US;
            let vlans = self.vlans_per_round(now_us);
            let tells = now_us < self.tells_until_us;
            let speaks = |vid: Vid, rounds: u64| !self.speakers.probe(vid, rounds, now_us);
            for (&port, watched) in &mut self.ports {
                let first = watched.vlans.first().copied();
                let is_due = |vid: &Vid| tells || *vid == Vid::UNTAGGED && speaks(*vid, 1);
                wanted.extend(first.filter(is_due).map(|vid| (port, vid)));
                let rounds = watched.vlans.len().div_ceil(vlans) as u64;
                let turns = watched.take_turns(vlans);
                let turns = turns.filter(|vid| *vid != Vid::UNTAGGED && speaks(*vid, rounds));
                wanted.extend(turns.map(|vid| (port, vid)));
                let suspected = self.suspected.iter().filter(|vid| speaks(**vid, 1));
                wanted.extend(suspected.map(|vid| (port, *vid)));
            }
            self.suspected.clear();
            // Whether a loop is still there is asked in each round, also where VLANs take turns.
            wanted.extend(self.ports.iter().flat_map(|(&port, at)| at.suspects(port)));
        } else if now_us >= self.next_contest_round_us {
            let contests = self.ports.iter().filter(|(_, at)| at.contest.is_some());
            wanted.extend(contests.flat_map(|(&port, at)| at.suspects(port)));
        }
        if now_us >= self.next_doubts_us && !self.doubts.is_empty() {
            self.next_doubts_us = now_us + DOUBTS_US;
            wanted.append(&mut self.doubts);
        }
        if self.is_contending() {
            if now_us >= self.next_contest_round_us {
                self.next_contest_round_us = now_us + CONTEST_INTERVAL_US;
            }
        } else {
            self.next_contest_round_us = u64::MAX;
        }
        if wanted.is_empty() {
            return Vec::new();
        }
        self.sequence = self.sequence.wrapping_add(1);
        self.sent_us[self.sequence as usize % REMEMBERED] = Some(now_us);
        self.counters.sent += wanted.len() as u64;
        wanted
            .into_iter()
            .filter(|(port, _)| self.ports.contains_key(port))
            .map(|(port, vid)| self.probe(port, vid))
            .collect()
    }

    /// When [`due`](Self::due) or [`poll`](Self::poll) has something next, unless something happens.
    pub fn next_due_us(&self) -> u64 {
        // A contest is decided when its probes return, and given up when they are sent in vain.
        let blocks = self.ports.values().filter_map(|at| at.block);
        let opens_us = blocks.map(|block| block.opens_us());
        let rounds_us = self.next_round_us.min(self.next_contest_round_us);
        let doubts_us = (!self.doubts.is_empty()).then_some(self.next_doubts_us);
        let all_us = opens_us.chain(self.relearning.due_us()).chain(doubts_us);
        all_us.fold(rounds_us, u64::min)
    }

    /// Takes in a frame with the source of our probes, which came by `port`.
    ///
    /// Only [`Verdict::Behind`] is said at once, the rest by [`poll`](Self::poll).
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

    /// Takes in a probe of another node, which came by `port` in the VLAN `vid` of this switch.
    pub fn heard(&mut self, port: PortId, vid: Vid, frame: &[u8], now_us: u64) {
        let Some(message) = Message::parse(frame) else {
            return;
        };
        if message.node == self.node || self.is_blocked(port) {
            return;
        }
        self.counters.foreign += 1;
        let is_news = self.is_news(port, &message, now_us);
        if !message.is_trial {
            self.note_copy(port, vid, &message, now_us);
        }
        if !is_news || !message.contends {
            return;
        }
        // If we know of that loop as well, its senior should know soon.
        let is_recent = |then: Option<u64>| {
            then.is_some_and(|then_us| now_us.saturating_sub(then_us) < TRIGGER_US)
        };
        if !is_recent(self.triggered_us) {
            self.triggered_us = Some(now_us);
            self.next_round_us = self.next_round_us.min(now_us);
        }
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
            // The others should know at once.
            self.changes = self.changes.wrapping_add(1);
            self.tells_until_us = now_us + TELL_US;
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

    /// The blocked ports, with what is known of each loop.
    pub fn report(&self) -> impl Iterator<Item = Blocked> + '_ {
        self.ports.iter().filter_map(|(&port, at)| {
            let block = at.block?;
            Some(Blocked {
                port,
                cause: block.cause,
                since_us: block.since_us,
                seen_us: block.seen_us,
                opens_us: block.opens_us(),
                count: block.count,
            })
        })
    }

    /// What was counted.
    pub fn counters(&self) -> LoopCounters {
        self.counters
    }

    /// Notes what another node says of itself, unless it has said something since: its older probes
    /// may be on their way round a loop that it is not on, over and over.
    fn is_news(&mut self, port: PortId, message: &Message, now_us: u64) -> bool {
        if !self.others.contains_key(&message.node) && !self.has_room(now_us) {
            return false;
        }
        let is_confined = self.ports.get(&port).is_some_and(|at| at.is_confined);
        let scope = is_confined.then_some(port);
        let known = self.others.entry(message.node).or_insert_with(|| Other {
            sequence: message.sequence.wrapping_sub(1),
            changes: BTreeMap::new(),
            heard_us: now_us,
            contended_us: None,
            copies: Copies::default(),
        });
        // If somebody has sent a number far ahead in its name, it is heard again when that is forgotten.
        let is_news = message.sequence.wrapping_sub(known.sequence).cast_signed() > 0
            || known.is_silent(FORGET_US, now_us);
        if is_news {
            known.sequence = message.sequence;
            known.heard_us = now_us;
            let before = known.changes.insert(scope, message.changes);
            if before.is_some_and(|changes| changes != message.changes) {
                self.relearning.due(scope);
            }
            if message.contends {
                known.contended_us = Some(now_us);
            }
        }
        is_news
    }

    /// Notes by which port a probe of another node came, in which VLAN. If it had come before there are
    /// two ways to here, or to somewhere on the way.
    fn note_copy(&mut self, port: PortId, vid: Vid, message: &Message, now_us: u64) {
        let Some(other) = self.others.get_mut(&message.node) else {
            return;
        };
        let Some(first) = other.copies.note(message.sequence, vid, port) else {
            if message.sequence == other.sequence {
                self.speakers.hear(vid, message.node, now_us);
            }
            return;
        };
        let was_doubled = self
            .doubled_us
            .is_some_and(|then_us| now_us.saturating_sub(then_us) < WARN_US);
        if first == port && was_doubled || self.doubts.len() >= MAX_DOUBTS {
            return;
        }
        if first == port {
            self.doubled_us = Some(now_us);
        }
        self.doubts.extend([(first, vid), (port, vid)]);
    }

    /// Whether one more node can be listened to; looks for silent ones once a second.
    fn has_room(&mut self, now_us: u64) -> bool {
        if self.others.len() == MAX_OTHERS && now_us >= self.next_sweep_us {
            self.next_sweep_us = now_us + S;
            self.others
                .retain(|_, other| !other.is_silent(FORGET_US, now_us));
        }
        self.others.len() < MAX_OTHERS
    }

    /// Each node hears the probes of all others.
    fn vlans_per_round(&self, now_us: u64) -> usize {
        let others = self.others.values();
        let others = others.filter(|other| !other.is_silent(FORGET_US, now_us));
        (PROBES_PER_ROUND / (1 + others.count())).clamp(1, VLANS_PER_ROUND)
    }

    fn is_contending(&self) -> bool {
        self.ports.values().any(|at| at.contest.is_some())
    }

    fn is_fresh(&self, sequence: u32, now_us: u64) -> bool {
        // How far back it is, or very far if it was never sent.
        let back = self.sequence.wrapping_sub(sequence) as usize;
        back < REMEMBERED
            && self.sent_us[sequence as usize % REMEMBERED]
                .is_some_and(|sent_us| now_us.saturating_sub(sent_us) <= FRESH_US)
    }

    /// Which of two ports is blocked, and which stays open.
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
                    block.see(now_us);
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

    fn probe(&self, port: PortId, vid: Vid) -> Probe {
        let message = Message {
            node: self.node,
            sequence: self.sequence,
            port,
            vid,
            contends: self.is_contending(),
            is_trial: self.is_blocked(port),
            changes: self.changes,
        };
        let bytes = message.emit();
        let mut frame = Vec::with_capacity(64);
        frame.extend(PROBE_GROUP);
        frame.extend(self.source.0);
        if vid != Vid::UNTAGGED {
            frame.extend([0x81, 0x00]);
            frame.extend(vid.value().to_be_bytes());
        }
        frame.extend(PROBE_ETHER_TYPE.to_be_bytes());
        frame.extend(bytes);
        frame.extend((self.authenticate)(&bytes));
        frame.resize(frame.len().max(MIN_FRAME_LEN), 0);
        Probe { port, vid, frame }
    }

    fn authentic(&self, frame: &[u8]) -> Option<Message> {
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

impl Other {
    fn is_silent(&self, for_us: u64, now_us: u64) -> bool {
        now_us.saturating_sub(self.heard_us) >= for_us
    }

    /// Whether it has contended of late. After its cut the probes of others still return for a while,
    /// so what it has said outlasts the contest.
    fn contends(&self, now_us: u64) -> bool {
        self.contended_us
            .is_some_and(|then_us| now_us.saturating_sub(then_us) < SENIOR_US)
    }
}

/// Without the frame check sequence, IEEE 802.3 section 4.4.2.
const MIN_FRAME_LEN: usize = 60;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_has_one_layout() {
        let tag = |bytes: &[u8]| [bytes.len() as u8; 16];
        let mut guard = LoopGuard::new(NodeId(0x0102_0304_0506_0708), MacAddr([2; 6]), tag);
        guard.watch(PortId(0x0a0b), 0, [Vid::UNTAGGED, Vid::from_tci(0x0064)]);
        let [untagged, tagged] = &guard.due(0)[..] else {
            panic!("one for each VLAN");
        };
        let addresses = [3, 0x70, 0x63, 0x6c, 0x70, 1, 2, 2, 2, 2, 2, 2];
        let body = |vid: u8| {
            let fields = [
                1, 0, 0x0a, 0x0b, 0, vid, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 1, 0, 0,
            ];
            [&fields[..], &[20; 16]].concat()
        };
        assert_eq!(
            untagged.frame,
            [&addresses[..], &[0x88, 0xb6], &body(0), &[0; 10]].concat()
        );
        assert_eq!(
            tagged.frame,
            [
                &addresses[..],
                &[0x81, 0, 0, 0x64, 0x88, 0xb6],
                &body(0x64),
                &[0; 6]
            ]
            .concat()
        );
        for probe in [untagged, tagged] {
            let message = Message::parse(&probe.frame).unwrap();
            assert_eq!((message.port, message.vid), (probe.port, probe.vid));
            assert_eq!(Some(message), guard.authentic(&probe.frame));
        }
    }

    #[test]
    fn vlans_take_turns() {
        let mut guard = LoopGuard::new(NodeId(1), MacAddr([2; 6]), |_| [0; 16]);
        guard.watch(PortId::TAP, 0, (0..40).map(Vid::from_tci));
        for (at_s, count, second, last) in [
            (0, 16, 1, 15),
            (1, 17, 16, 31),
            (2, 16, 1, 39),
            (3, 17, 8, 23),
        ] {
            let probes = guard.due(at_s * S);
            let vids: Vec<_> = probes.iter().map(|probe| probe.vid.value()).collect();
            assert_eq!(vids[..2], [0, second], "round {at_s}: untagged in each");
            assert_eq!(
                (vids.len(), vids.last()),
                (count, Some(&last)),
                "round {at_s}"
            );
        }
    }

    #[test]
    fn among_many_nodes_fewer_vlans_are_probed_at_a_time() {
        let mut guard = LoopGuard::new(NodeId(0), MacAddr([2; 6]), |_| [0; 16]);
        guard.watch(PortId::TAP, 0, (1..41).map(Vid::from_tci));
        let mut other = LoopGuard::new(NodeId(0), MacAddr([4; 6]), |_| [0; 16]);
        other.watch(PortId::TAP, 0, []);
        let probe = other.due(0).remove(0);
        for (nodes, at_s, probes) in [(1, 0, 16), (8, 1, 16), (9, 2, 14), (33, 3, 3), (500, 4, 1)] {
            for node in 1..nodes {
                let mut frame = probe.frame.clone();
                frame[20..28].copy_from_slice(&u64::to_be_bytes(node));
                frame[28..32].copy_from_slice(&u32::to_be_bytes(at_s));
                guard.heard(PortId::TAP, Vid::UNTAGGED, &frame, u64::from(at_s) * S);
            }
            let sent = guard.due(u64::from(at_s) * S).len();
            assert_eq!(sent, probes, "{nodes} nodes");
        }
        assert_eq!(guard.due(100 * S).len(), 16, "the others are gone");
    }

    #[test]
    fn many_nodes_take_no_more_than_their_room() {
        let mut guard = LoopGuard::new(NodeId(u64::MAX), MacAddr([2; 6]), |_| [0; 16]);
        guard.watch(PortId::TAP, 0, []);
        let mut others = LoopGuard::new(NodeId(0), MacAddr([4; 6]), |_| [0; 16]);
        others.watch(PortId::TAP, 0, []);
        let probe = others.due(0).remove(0);
        for node in 0..1_000_000_u64 {
            let mut frame = probe.frame.clone();
            frame[20..28].copy_from_slice(&node.to_be_bytes());
            guard.heard(PortId::TAP, Vid::UNTAGGED, &frame, node);
        }
        assert_eq!(guard.others.len(), MAX_OTHERS);
        // They make room when they are silent.
        let mut frame = probe.frame;
        frame[20] = 0xff;
        guard.heard(PortId::TAP, Vid::UNTAGGED, &frame, 60 * S);
        assert_eq!(guard.others.len(), 1);
    }
}
