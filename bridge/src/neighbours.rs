// SPDX-License-Identifier: MIT OR Apache-2.0
//! Bindings of IP addresses to stations, so that ARP requests and neighbour solicitations need not
//! be flooded.
//!
//! ```text
//!  ARP requests and replies ──┐
//!  neighbour advertisements ──┴─> learn ──> bindings: (VLAN, IP) ──> MAC, port
//!                                               │
//!  ARP requests ──────────────┬─> answer <──────┘    ──> a frame for the asker, or flood it
//!  neighbour solicitations ───┘
//! ```
//!
//! It answers only if it is certain, and as the owner would: not for an address that several
//! stations claim in turns, nor where the owner receives the request itself. It never answers
//! probes for duplicate addresses, announcements, or unicast requests that test whether a station
//! is still there.
//!
//! It learns from messages on every port, so that an address that has moved gets a current answer
//! or none. A message that contradicts a binding without replacing it puts the binding in doubt
//! until its owner sends a message.
//!
//! IPv6 addresses are learned from advertisements alone: solicitations do not say whether a station
//! is a router, and an answer with the wrong router flag takes the default route from the hosts
//! that receive it (RFC 4861 section 7.2.5). The rules follow RFC 9161, which does this for larger
//! networks.
//!
//! Called by the control thread, with seconds on a clock that may wrap.

mod message;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::net::IpAddr;

use self::message::{Claim, Force, Message};
use crate::ethernet::Headers;
use crate::mac::MacAddr;
use crate::port_id::PortId;
use crate::time::elapsed_s;
use crate::vlan::Vid;

/// How many bindings to keep, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeighboursConfig {
    /// Whether peers do not forward frames of one peer to another; the opposite of
    /// [`SwitchConfig::hub`](crate::SwitchConfig::hub). A peer that asks for another peer's station
    /// has then asked there itself.
    pub mesh: bool,
    /// After how many seconds without a message from it a binding is removed.
    pub ageing_s: u32,
    /// How many bindings fit.
    pub max: usize,
    /// How many bindings may be learned on one port, so that no peer can fill the table.
    pub max_per_port: usize,
}

impl Default for NeighboursConfig {
    fn default() -> Self {
        Self {
            mesh: true,
            ageing_s: 300,
            max: 16_384,
            max_per_port: 4096,
        }
    }
}

/// The bindings of addresses to stations.
#[derive(Debug)]
pub struct Neighbours {
    config: NeighboursConfig,
    bindings: BTreeMap<(Vid, IpAddr), Binding>,
    /// The number of bindings on each port.
    on_port: BTreeMap<PortId, usize>,
    swept_s: Option<u32>,
    counters: NeighbourCounters,
}

/// The outcome of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// The frame claims nothing, or nothing that counts.
    Nothing,
    /// The address was unknown, or had expired.
    New,
    /// The address is known to be that station's.
    Known,
    /// Likewise, and the station is behind another port than before.
    Moved {
        /// Where it was.
        from: PortId,
    },
    /// Another station may have taken the address: until its owner sends a message, no request for
    /// it is answered.
    Doubted,
    /// The address belonged to another station.
    Changed {
        /// The former owner.
        from: MacAddr,
    },
    /// Stations claim the address in turns, as of now; until they have stopped for 300 seconds no
    /// request for it is answered.
    Contested,
    /// The table is full.
    Full,
}

impl Learned {
    /// Whether others must hear of it: a request that carries such news must not be answered here
    /// alone.
    pub fn is_news(self) -> bool {
        match self {
            Self::New
            | Self::Moved { .. }
            | Self::Changed { .. }
            | Self::Doubted
            | Self::Contested => true,
            Self::Nothing | Self::Known | Self::Full => false,
        }
    }
}

/// A binding, as shown to the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighbourEntry {
    /// VLAN.
    pub vid: Vid,
    /// Address.
    pub address: IpAddr,
    /// The station that owns it.
    pub mac: MacAddr,
    /// The port on which that station was heard.
    pub port: PortId,
    /// Seconds since then.
    pub age_s: u32,
    /// Whether several stations claim it.
    pub is_contested: bool,
    /// Whether it may belong to another station by now.
    pub is_doubted: bool,
}

/// The counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NeighbourCounters {
    /// Bindings learned that were not known.
    pub learned: u64,
    /// Bindings that moved to another station.
    pub changed: u64,
    /// Addresses that became contested.
    pub contested: u64,
    /// Signs that a binding may be outdated.
    pub doubted: u64,
    /// Claims that did not fit: local limits.
    pub full: u64,
    /// Requests answered.
    pub answered: u64,
    /// Requests flooded.
    pub flooded: u64,
}

#[derive(Clone, Copy, Debug)]
struct Binding {
    mac: MacAddr,
    port: PortId,
    seen_s: u32,
    is_router: bool,
    is_doubted: bool,
    /// Changes of station since a time.
    changes: u32,
    changing_since_s: u32,
    /// Since when it has been contested, at the last change.
    contested_s: Option<u32>,
}

/// This many changes within this many seconds make an address contested: RFC 9161 section 3.7.
const CONTEST_CHANGES: u32 = 5;
const CONTEST_WITHIN_S: u32 = 180;
/// And for this long after the last.
const CONTEST_HOLD_S: u32 = 300;

impl Neighbours {
    /// An empty table.
    pub fn new(config: NeighboursConfig) -> Self {
        Self {
            config,
            bindings: BTreeMap::new(),
            on_port: BTreeMap::new(),
            swept_s: None,
            counters: NeighbourCounters::default(),
        }
    }

    /// Learns from a frame that arrived on `port` in the VLAN `vid`.
    pub fn learn(&mut self, port: PortId, vid: Vid, headers: &Headers<'_>, now_s: u32) -> Learned {
        let message = Message::parse(headers).unwrap_or_default();
        let Some(claim) = message.claim else {
            return Learned::Nothing;
        };
        let at = (vid, claim.address);
        let known = self.bindings.get(&at).copied();
        let learned = match known.filter(|known| !self.is_expired(known, now_s)) {
            Some(known) => self.hold(at, known, &claim, port, now_s),
            None => self.add(at, &claim, port, now_s),
        };
        self.count(learned);
        learned
    }

    /// Answers a request that arrived on `port` in the VLAN `vid`, if the binding is certain; the
    /// returned frame is to be sent back there, and the request need not be forwarded.
    pub fn answer(
        &mut self,
        port: PortId,
        vid: Vid,
        headers: &Headers<'_>,
        now_s: u32,
    ) -> Option<Vec<u8>> {
        let question = Message::parse(headers)?.question?;
        let owner = self
            .bindings
            .get(&(vid, question.target))
            .filter(|owner| !self.is_expired(owner, now_s))
            .filter(|owner| !owner.is_contested(now_s) && !owner.is_doubted)
            // The owner receives the request itself, and answers.
            .filter(|owner| owner.port != port && owner.mac != question.asker_mac)
            .filter(|owner| !self.config.mesh || [owner.port, port].contains(&PortId::TAP));
        let answer = owner.and_then(|owner| question.answer(owner.mac, owner.is_router, headers));
        match answer {
            Some(_) => self.counters.answered += 1,
            None => self.counters.flooded += 1,
        }
        answer
    }

    /// Removes the bindings that were learned on a port.
    pub fn flush_port(&mut self, port: PortId) {
        self.bindings.retain(|_, binding| binding.port != port);
        self.on_port.remove(&port);
    }

    /// Removes all bindings.
    pub fn clear(&mut self) {
        self.bindings.clear();
        self.on_port.clear();
    }

    /// The bindings that hold at `now_s`, in the order of VLANs and addresses.
    pub fn entries(&self, now_s: u32) -> impl Iterator<Item = NeighbourEntry> + '_ {
        self.bindings
            .iter()
            .filter(move |(_, binding)| !self.is_expired(binding, now_s))
            .map(move |(&(vid, address), binding)| NeighbourEntry {
                vid,
                address,
                mac: binding.mac,
                port: binding.port,
                age_s: elapsed_s(binding.seen_s, now_s),
                is_contested: binding.is_contested(now_s),
                is_doubted: binding.is_doubted,
            })
    }

    /// The counters.
    pub fn counters(&self) -> NeighbourCounters {
        self.counters
    }

    /// Takes in a claim to an address that is known.
    fn hold(
        &mut self,
        at: (Vid, IpAddr),
        known: Binding,
        claim: &Claim,
        port: PortId,
        now_s: u32,
    ) -> Learned {
        let changes = claim.mac != known.mac;
        let overrides = claim.force == Force::Overrides;
        let mut binding = Binding {
            mac: claim.mac,
            port,
            seen_s: now_s,
            is_router: claim.is_router.unwrap_or(known.is_router),
            is_doubted: known.is_doubted && !overrides,
            ..known
        };
        let learned = match (changes, claim.force) {
            (true, Force::Overrides) => binding.change(known.mac, now_s),
            (true, Force::Agrees | Force::Disagrees) => {
                // It ages as before.
                binding = Binding {
                    is_doubted: true,
                    ..known
                };
                Learned::Doubted
            }
            (false, Force::Disagrees) => return Learned::Nothing,
            (false, _) if port != known.port => Learned::Moved { from: known.port },
            (false, _) => Learned::Known,
        };
        self.put(at, Some(known), binding);
        learned
    }

    /// Takes in a claim to an address that is unknown or has expired.
    fn add(&mut self, at: (Vid, IpAddr), claim: &Claim, port: PortId, now_s: u32) -> Learned {
        // An address that several stations share has no single owner to answer for.
        if claim.force != Force::Overrides {
            return Learned::Nothing;
        }
        // An expired binding may take the place of its own successor.
        if let Some(stale) = self.bindings.remove(&at) {
            Self::discount(&mut self.on_port, stale.port);
        }
        if !self.has_room(port, now_s) {
            return Learned::Full;
        }
        let binding = Binding {
            mac: claim.mac,
            port,
            seen_s: now_s,
            is_router: claim.is_router.unwrap_or(false),
            is_doubted: false,
            changes: 0,
            changing_since_s: now_s,
            contested_s: None,
        };
        self.put(at, None, binding);
        Learned::New
    }

    /// Every change of a binding goes through here, so that the counts per port are exact.
    fn put(&mut self, at: (Vid, IpAddr), old: Option<Binding>, new: Binding) {
        if let Some(old) = old {
            Self::discount(&mut self.on_port, old.port);
        }
        *self.on_port.entry(new.port).or_default() += 1;
        self.bindings.insert(at, new);
    }

    fn discount(on_port: &mut BTreeMap<PortId, usize>, port: PortId) {
        if let Some(count) = on_port.get_mut(&port) {
            *count -= 1;
            if *count == 0 {
                on_port.remove(&port);
            }
        }
    }

    /// Whether a port may have one more. Removes expired ones first, once a second.
    fn has_room(&mut self, port: PortId, now_s: u32) -> bool {
        if !self.is_room(port) && self.swept_s != Some(now_s) {
            self.swept_s = Some(now_s);
            let ageing_s = self.config.ageing_s;
            let on_port = &mut self.on_port;
            self.bindings.retain(|_, binding| {
                let is_kept = elapsed_s(binding.seen_s, now_s) < ageing_s;
                if !is_kept {
                    Self::discount(on_port, binding.port);
                }
                is_kept
            });
        }
        self.is_room(port)
    }

    fn is_room(&self, port: PortId) -> bool {
        let on_port = self.on_port.get(&port).copied().unwrap_or(0);
        self.bindings.len() < self.config.max && on_port < self.config.max_per_port
    }

    fn is_expired(&self, binding: &Binding, now_s: u32) -> bool {
        elapsed_s(binding.seen_s, now_s) >= self.config.ageing_s
    }

    fn count(&mut self, learned: Learned) {
        match learned {
            Learned::New => self.counters.learned += 1,
            Learned::Changed { .. } => self.counters.changed += 1,
            Learned::Contested => self.counters.contested += 1,
            Learned::Doubted => self.counters.doubted += 1,
            Learned::Full => self.counters.full += 1,
            Learned::Nothing | Learned::Known | Learned::Moved { .. } => {}
        }
    }
}

impl Binding {
    /// Records that the address moved to another station.
    fn change(&mut self, from: MacAddr, now_s: u32) -> Learned {
        if elapsed_s(self.changing_since_s, now_s) >= CONTEST_WITHIN_S {
            self.changes = 0;
            self.changing_since_s = now_s;
        }
        self.changes = self.changes.saturating_add(1);
        let was_contested = self.is_contested(now_s);
        if self.changes >= CONTEST_CHANGES || was_contested {
            self.contested_s = Some(now_s);
        }
        if self.is_contested(now_s) && !was_contested {
            Learned::Contested
        } else {
            Learned::Changed { from }
        }
    }

    fn is_contested(&self, now_s: u32) -> bool {
        self.contested_s
            .is_some_and(|since_s| elapsed_s(since_s, now_s) < CONTEST_HOLD_S)
    }
}
