// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ports of a switch: each admits or refuses frames, and counts those that it refused.
//!
//! A *plain* port passes every frame unchanged, and costs no more than a read of the one byte that
//! says so. A port is special because of its configuration, or while it is blocked.
//!
//! Called by [`Switch`](crate::Switch) only.

use alloc::sync::Arc;
use core::array;
use core::sync::atomic::Ordering::Relaxed;

use crate::config::{BPDU_BLOCK_S, BpduPolicy, Guard, PortConfig};
use crate::decision::{Kind, Now};
use crate::drop_reason::DropReason;
use crate::ethernet::Headers;
use crate::inspect::Content;
use crate::limit::Limit;
use crate::mac::MacAddr;
use crate::sync::{AtomicU8, AtomicU32, AtomicU64};
use crate::time::is_past;
use crate::vlan::{Inside, TagEdit};

/// Why a port is blocked; both reasons may hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Blocks {
    /// By [`Switch::set_blocked`](crate::Switch::set_blocked).
    pub by_order: bool,
    /// By a bridge protocol data unit, see [`BpduPolicy::Guard`].
    pub by_bpdu: bool,
}

/// A port at work, shared by every data thread. Ports do not share cache lines.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Port {
    /// Zero if the port is plain and not blocked.
    special: AtomicU8,
    /// When a block by a bridge protocol data unit ends.
    blocked_until_s: AtomicU32,
    must_inspect: bool,
    /// Whether claims to addresses on this port are recorded for the sake of other ports.
    overhears_neighbours: bool,
    broadcast: Limit,
    multicast: Limit,
    unknown: Limit,
    probes: Limit,
    own_probes: Limit,
    config: PortConfig,
    /// Shared with those that this port was before its configuration changed.
    refused: Arc<[AtomicU64; DropReason::ALL.len()]>,
}

impl Port {
    const CONFIGURED: u8 = 1;
    const BLOCKED_BY_ORDER: u8 = 2;
    const BLOCKED_BY_BPDU: u8 = 4;
    const BLOCKED: u8 = Self::BLOCKED_BY_ORDER | Self::BLOCKED_BY_BPDU;

    /// Loop probes per second: those of the nodes that can be heard here, and some to spare.
    /// Without a limit, probes that circulate in a loop would be as bad as the storm that they are
    /// to prevent. Nodes that start at the same time also send at the same time.
    const PROBES_PER_S: u32 = 200;

    /// `neighbour_suppression` says whether any port of the switch has it: claims to addresses then
    /// count on every port.
    pub(crate) fn new(config: PortConfig, neighbour_suppression: bool) -> Self {
        let overhears_neighbours = neighbour_suppression && !config.neighbour_suppression;
        let configured = if config.is_plain() && !overhears_neighbours {
            0
        } else {
            Self::CONFIGURED
        };
        Self {
            special: AtomicU8::new(configured),
            blocked_until_s: AtomicU32::new(0),
            must_inspect: config.must_inspect() || overhears_neighbours,
            overhears_neighbours,
            broadcast: Limit::new(config.limits.broadcast),
            multicast: Limit::new(config.limits.multicast),
            unknown: Limit::new(config.limits.unknown),
            probes: Limit::with_burst(Self::PROBES_PER_S, Self::PROBES_PER_S.into()),
            own_probes: Limit::with_burst(Self::PROBES_PER_S, Self::PROBES_PER_S.into()),
            config,
            refused: Arc::new(array::from_fn(|_| AtomicU64::new(0))),
        }
    }

    /// Whether a port of this configuration is another one, in what may change while frames cross.
    pub(crate) fn may_become(&self, config: &PortConfig) -> bool {
        let own = &self.config;
        *own != *config
            && own.spoof_guard == config.spoof_guard
            && own.neighbour_suppression == config.neighbour_suppression
            && own.stations == config.stations
    }

    /// The same port with another configuration: blocked if it is blocked, and counting on. Of a block by a
    /// BPDU that another thread begins at this very moment, the next BPDU is the one that blocks.
    pub(crate) fn with_config(&self, config: PortConfig) -> Self {
        let suppresses = self.overhears_neighbours || config.neighbour_suppression;
        let port = Self::new(config, suppresses);
        let blocked = self.special.load(Relaxed) & Self::BLOCKED;
        port.special.fetch_or(blocked, Relaxed);
        let until_s = self.blocked_until_s.load(Relaxed);
        port.blocked_until_s.store(until_s, Relaxed);
        Self {
            refused: self.refused.clone(),
            ..port
        }
    }

    /// Whether every frame passes unchanged, so that [`Self::admit`] need not be called.
    pub(crate) fn is_plain(&self) -> bool {
        self.special.load(Relaxed) == 0
    }

    /// Admits a frame by the VLANs and guards of the port; everything but its source in the table.
    pub(crate) fn admit(
        &self,
        headers: &Headers<'_>,
        now: Now,
    ) -> Result<(Inside, Kind), DropReason> {
        let content = match self.must_inspect {
            true => Content::of(headers),
            false => Content::Other,
        };
        // Before anything else: a bridge that continues to send keeps the port blocked.
        self.check_bpdu(content, now.seconds)?;
        self.check_unblocked(now.seconds)?;
        let inside = self.classify(headers)?;
        let kind = self.check_content(content)?;
        match &self.config.allowed_sources {
            Some(allowed) if !allowed.contains(headers.src()) => Err(DropReason::SourceNotAllowed),
            _ => Ok((inside, kind)),
        }
    }

    #[inline]
    pub(crate) fn classify(&self, headers: &Headers<'_>) -> Result<Inside, DropReason> {
        self.config.vlans.classify(headers)
    }

    /// Decides how to edit the tag of a frame that leaves by this port.
    pub(crate) fn leave(&self, inside: &Inside) -> Result<TagEdit, DropReason> {
        if self.is_blocked() && !inside.is_probe {
            return Err(DropReason::PortBlocked);
        }
        self.config.vlans.leave(inside)
    }

    /// Whether the port refuses an address that is known behind another port.
    pub(crate) fn guards_sources(&self) -> bool {
        self.config.spoof_guard
    }

    fn check_content(&self, content: Content) -> Result<Kind, DropReason> {
        let config = &self.config;
        match content {
            Content::DhcpServer if config.dhcp_server == Guard::Drop => {
                Err(DropReason::DhcpServerRefused)
            }
            Content::RouterAdvertisement if config.router_advertisements == Guard::Drop => {
                Err(DropReason::RouterAdvertisementRefused)
            }
            Content::HidesUpperLayer if config.must_see_upper_layer() => {
                Err(DropReason::UpperLayerHidden)
            }
            Content::ArpRequest
            | Content::ArpReply
            | Content::NeighbourSolicitation
            | Content::NeighbourAdvertisement
                if config.neighbour_suppression || self.overhears_neighbours =>
            {
                Ok(match config.neighbour_suppression {
                    true => Kind::Neighbour,
                    false => Kind::Binding,
                })
            }
            Content::Membership if config.multicast_snooping => Ok(Kind::Membership),
            _ => Ok(Kind::Data),
        }
    }

    fn check_bpdu(&self, content: Content, now_s: u32) -> Result<(), DropReason> {
        match self.config.bpdus {
            BpduPolicy::Drop if content == Content::Bpdu => Err(DropReason::BpduRefused),
            BpduPolicy::Guard if content == Content::Bpdu => {
                // The end first: a thread that sees the block must not find it over.
                let until_s = now_s.wrapping_add(BPDU_BLOCK_S);
                self.blocked_until_s.store(until_s, Relaxed);
                self.special.fetch_or(Self::BLOCKED_BY_BPDU, Relaxed);
                Err(DropReason::BpduGuard)
            }
            _ => Ok(()),
        }
    }

    /// Ends a block by a bridge protocol data unit when its time is over.
    ///
    /// If another BPDU arrives at this very moment its block may be lost. Bridges send one every
    /// two seconds: the next one blocks again.
    pub(crate) fn unblock_if_due(&self, now_s: u32) {
        if self.special.load(Relaxed) & Self::BLOCKED_BY_BPDU == 0 {
            return;
        }
        if is_past(self.blocked_until_s.load(Relaxed), now_s) {
            self.special.fetch_and(!Self::BLOCKED_BY_BPDU, Relaxed);
        }
    }

    /// Returns whether that changes anything.
    pub(crate) fn set_blocked(&self, blocked: bool) -> bool {
        let before = if blocked {
            self.special.fetch_or(Self::BLOCKED_BY_ORDER, Relaxed)
        } else {
            self.special.fetch_and(!Self::BLOCKED_BY_ORDER, Relaxed)
        };
        (before & Self::BLOCKED_BY_ORDER != 0) != blocked
    }

    pub(crate) fn blocks(&self) -> Blocks {
        let special = self.special.load(Relaxed);
        Blocks {
            by_order: special & Self::BLOCKED_BY_ORDER != 0,
            by_bpdu: special & Self::BLOCKED_BY_BPDU != 0,
        }
    }

    pub(crate) fn check_unblocked(&self, now_s: u32) -> Result<(), DropReason> {
        self.unblock_if_due(now_s);
        match self.is_blocked() {
            true => Err(DropReason::PortBlocked),
            false => Ok(()),
        }
    }

    fn is_blocked(&self) -> bool {
        self.special.load(Relaxed) & Self::BLOCKED != 0
    }

    /// Whether this many more frames may be flooded to a group.
    pub(crate) fn take_group(
        &self,
        group: MacAddr,
        frames: u32,
        now: Now,
    ) -> Result<(), DropReason> {
        if group.is_broadcast() {
            take(&self.broadcast, frames, now, DropReason::BroadcastLimited)
        } else {
            take(&self.multicast, frames, now, DropReason::MulticastLimited)
        }
    }

    /// Whether this many more frames may be flooded to an unknown station.
    pub(crate) fn take_unknown(&self, frames: u32, now: Now) -> Result<(), DropReason> {
        take(&self.unknown, frames, now, DropReason::UnknownLimited)
    }

    /// Whether one more loop probe may pass. Probes of other nodes circulate in a loop that these
    /// nodes are not on for as long as it exists, and must not crowd out our own, which show it.
    pub(crate) fn take_probe(&self, is_own: bool, now: Now) -> Result<(), DropReason> {
        let limit = if is_own {
            &self.own_probes
        } else {
            &self.probes
        };
        take(limit, 1, now, DropReason::ProbeLimited)
    }

    pub(crate) fn count(&self, reason: DropReason, frames: u32) {
        self.refused[reason as usize].fetch_add(frames.into(), Relaxed);
    }

    /// Frames from this port that were refused, by reason, in a fixed order.
    pub(crate) fn refusals(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL
            .iter()
            .map(|&reason| (reason, self.refused[reason as usize].load(Relaxed)))
            .filter(|&(_, count)| count > 0)
    }
}

fn take(limit: &Limit, frames: u32, now: Now, reason: DropReason) -> Result<(), DropReason> {
    limit.take(frames, now.micros).then_some(()).ok_or(reason)
}

#[cfg(test)]
mod tests {
    use std::vec;

    use super::*;
    use crate::config::Sources;
    use crate::mac::MacAddr;
    use crate::port_vlans::PortVlans;
    use crate::vlan::Vid;

    const A: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    #[test]
    fn a_default_port_is_plain_until_it_is_blocked() {
        let port = Port::new(PortConfig::default(), false);
        assert!(port.is_plain());
        port.set_blocked(true);
        assert!(!port.is_plain());
        assert!(port.blocks().by_order);
        port.set_blocked(false);
        assert!(port.is_plain());
    }

    #[test]
    fn whatever_a_port_guards_makes_it_special() {
        let default = PortConfig::default;
        for config in [
            PortConfig {
                vlans: PortVlans::access(Vid::UNTAGGED).unwrap(),
                ..default()
            },
            PortConfig {
                bpdus: BpduPolicy::Drop,
                ..default()
            },
            PortConfig {
                dhcp_server: Guard::Drop,
                ..default()
            },
            PortConfig {
                router_advertisements: Guard::Drop,
                ..default()
            },
            PortConfig {
                neighbour_suppression: true,
                ..default()
            },
            PortConfig {
                multicast_snooping: true,
                ..default()
            },
            PortConfig {
                spoof_guard: true,
                ..default()
            },
            PortConfig {
                allowed_sources: Some(Sources::new(vec![A]).unwrap()),
                ..default()
            },
        ] {
            assert!(!Port::new(config.clone(), false).is_plain(), "{config:?}");
        }
    }

    #[test]
    fn content_is_refused_or_shown_by_the_port_that_asks_for_it() {
        use crate::inspect::Content::*;
        use DropReason::{DhcpServerRefused, RouterAdvertisementRefused, UpperLayerHidden};

        let plain = PortConfig::default();
        let dhcp = PortConfig {
            dhcp_server: Guard::Drop,
            ..PortConfig::default()
        };
        let router = PortConfig {
            router_advertisements: Guard::Drop,
            ..PortConfig::default()
        };
        let suppressing = PortConfig {
            neighbour_suppression: true,
            ..PortConfig::default()
        };
        let snooping = PortConfig {
            multicast_snooping: true,
            ..PortConfig::default()
        };
        for (content, config, verdict) in [
            (DhcpServer, &dhcp, Err(DhcpServerRefused)),
            (DhcpServer, &router, Ok(Kind::Data)),
            (
                RouterAdvertisement,
                &router,
                Err(RouterAdvertisementRefused),
            ),
            (RouterAdvertisement, &dhcp, Ok(Kind::Data)),
            (HidesUpperLayer, &router, Err(UpperLayerHidden)),
            (HidesUpperLayer, &dhcp, Err(UpperLayerHidden)),
            (HidesUpperLayer, &snooping, Ok(Kind::Data)),
            (ArpRequest, &suppressing, Ok(Kind::Neighbour)),
            (ArpReply, &suppressing, Ok(Kind::Neighbour)),
            (NeighbourSolicitation, &suppressing, Ok(Kind::Neighbour)),
            (NeighbourAdvertisement, &suppressing, Ok(Kind::Neighbour)),
            (ArpRequest, &snooping, Ok(Kind::Data)),
            (Membership, &snooping, Ok(Kind::Membership)),
            (Membership, &suppressing, Ok(Kind::Data)),
            (Bpdu, &plain, Ok(Kind::Data)),
            (Other, &dhcp, Ok(Kind::Data)),
        ] {
            let port = Port::new(config.clone(), false);
            let seen = port
                .check_bpdu(content, 0)
                .and_then(|()| port.check_content(content));
            assert_eq!(seen, verdict, "{content:?} on {config:?}");
        }
    }
    #[test]
    fn bindings_are_learned_on_every_port_if_one_suppresses_requests() {
        use crate::inspect::Content::*;

        let snooping = PortConfig {
            multicast_snooping: true,
            ..PortConfig::default()
        };
        let suppressing = PortConfig {
            neighbour_suppression: true,
            ..PortConfig::default()
        };
        let said = [
            ArpRequest,
            ArpReply,
            NeighbourSolicitation,
            NeighbourAdvertisement,
        ];
        for (config, elsewhere, kind) in [
            (PortConfig::default(), false, Kind::Data),
            (PortConfig::default(), true, Kind::Binding),
            (snooping.clone(), false, Kind::Data),
            (snooping, true, Kind::Binding),
            (suppressing, true, Kind::Neighbour),
        ] {
            let port = Port::new(config.clone(), elsewhere);
            for content in said {
                assert_eq!(port.check_content(content), Ok(kind), "{config:?}");
            }
            assert_eq!(port.check_content(Other), Ok(Kind::Data));
        }
        assert!(!Port::new(PortConfig::default(), true).is_plain());
    }
}
