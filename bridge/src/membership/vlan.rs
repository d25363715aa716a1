// SPDX-License-Identifier: MIT OR Apache-2.0
//! The state of a VLAN in one family: the querier, and where routers are.

use alloc::collections::BTreeMap;
use core::cmp::Reverse;
use core::net::IpAddr;

use super::message::{RESPONSE_S, ROBUSTNESS};
use crate::port_id::PortId;
use crate::time::{is_past, later};

#[derive(Debug)]
pub(super) struct Vlan {
    pub(super) querier: Option<OtherQuerier>,
    /// The queries of this node, if it is the querier where no other is heard.
    pub(super) own: Option<OwnQueries>,
    pub(super) routers: BTreeMap<PortId, u32>,
    /// Ports with too many groups.
    pub(super) overflowed: BTreeMap<PortId, u32>,
    /// Ports that came up recently, flooded until the given time: their hosts have not been queried
    /// yet, or may still answer.
    pub(super) newcomers: BTreeMap<PortId, Option<u32>>,
    /// More ports than fit are to get everything: the VLAN is flooded until then.
    pub(super) floods_until_s: Option<u32>,
    /// Since when hosts have had time to answer a querier.
    pub(super) prunes_from_s: Option<u32>,
    pub(super) is_pruned: bool,
    /// How long a member stays without a report.
    pub(super) membership_s: u32,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct OtherQuerier {
    pub(super) address: IpAddr,
    pub(super) expires_s: u32,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct OwnQueries {
    pub(super) next_s: u32,
    pub(super) sent: u32,
}

/// Robustness times interval plus response, with the default values: RFC 3376 section 8.4, RFC 3810
/// section 9.4. A querier with a shorter interval does not make members leave sooner.
pub(super) const MEMBERSHIP_S: u32 = 260;
/// The longest membership that a querier can ask for.
const MAX_MEMBERSHIP_S: u32 = 4 * 3600;
/// From the first query until hosts have answered, with a margin for old versions and slow paths.
/// The second query follows meanwhile, for hosts that missed the first; they have as long to
/// answer.
pub(super) const SETTLE_S: u32 = RESPONSE_S + SECOND_AFTER_S + 2;
/// From our first query to the second. A port of a bridge may need a second to pass anything.
const SECOND_AFTER_S: u32 = 2;
/// Routers and overflowed ports, per VLAN and family; beyond that, the VLAN is flooded.
const MAX_PORTS_PER_VLAN: usize = 64;

impl Vlan {
    pub(super) fn new(own: Option<OwnQueries>) -> Self {
        Self {
            querier: None,
            own,
            routers: BTreeMap::new(),
            overflowed: BTreeMap::new(),
            newcomers: BTreeMap::new(),
            floods_until_s: None,
            prunes_from_s: None,
            is_pruned: false,
            membership_s: MEMBERSHIP_S,
        }
    }

    /// Puts a port into one of the lists until a time, and returns whether that changes anything
    /// now.
    pub(super) fn note(
        &mut self,
        port: PortId,
        until_s: u32,
        list: impl FnOnce(&mut Self) -> &mut BTreeMap<PortId, u32>,
    ) -> bool {
        let ports = list(self);
        if let Some(known_s) = ports.get_mut(&port) {
            *known_s = later(*known_s, until_s);
            return false;
        }
        if ports.len() < MAX_PORTS_PER_VLAN {
            ports.insert(port, until_s);
            return true;
        }
        let known_s = self.floods_until_s.get_or_insert(until_s);
        *known_s = later(*known_s, until_s);
        core::mem::take(&mut self.is_pruned)
    }

    /// There are hosts behind a port whose memberships are not known. If this node queries, it
    /// starts over.
    pub(super) fn port_up(&mut self, port: PortId, now_s: u32) {
        self.newcomers.insert(port, None);
        if let Some(own) = &mut self.own {
            // A query that is overdue stays so, and keeps its place before others.
            let next_s = if is_past(own.next_s, now_s) {
                own.next_s
            } else {
                now_s
            };
            *own = OwnQueries { next_s, sent: 0 };
        }
    }

    /// Hosts have heard a query, and have this long to answer.
    pub(super) fn expect_reports(&mut self, settle_s: u32, now_s: u32) {
        let settled_s = now_s.wrapping_add(settle_s);
        self.prunes_from_s.get_or_insert(settled_s);
        for until_s in self.newcomers.values_mut() {
            until_s.get_or_insert(settled_s);
        }
    }

    /// Whether our query is due.
    pub(super) fn is_due(&self, now_s: u32) -> bool {
        let own = self.own.filter(|_| self.querier.is_none());
        own.is_some_and(|own| is_past(own.next_s, now_s))
    }

    /// Which due query goes first: a second one, for which hosts have little time left, then the
    /// one that has waited longest.
    pub(super) fn urgency(&self, now_s: u32) -> impl Ord + use<> {
        let own = self.own.map(|own| (own.sent != 1, own.next_s));
        own.map(|(is_later, next_s)| (is_later, Reverse(now_s.wrapping_sub(next_s))))
    }

    /// Records that this node queries. The next query follows after the interval, or, at the
    /// beginning, after two seconds and a quarter of the interval (RFC 3376 sections 8.6 and 8.7,
    /// RFC 3810 sections 9.6 and 9.7, and one more).
    pub(super) fn record_query(&mut self, interval_s: u32, now_s: u32) {
        let Some(own) = &mut self.own else {
            return;
        };
        own.sent = own.sent.saturating_add(1);
        let wait_s = match own.sent {
            1 => SECOND_AFTER_S,
            2 => interval_s / 4,
            _ => interval_s,
        };
        own.next_s = now_s.wrapping_add(wait_s.max(1));
        self.membership_s = membership_s(u32::from(ROBUSTNESS), interval_s, RESPONSE_S);
        self.expect_reports(SETTLE_S, now_s);
    }

    /// Removes expired state, and returns whether that changes anything.
    pub(super) fn expire(&mut self, now_s: u32) -> bool {
        let before = self.ports();
        self.routers.retain(|_, at_s| !is_past(*at_s, now_s));
        self.overflowed.retain(|_, at_s| !is_past(*at_s, now_s));
        self.newcomers
            .retain(|_, at_s| at_s.is_none_or(|at_s| !is_past(at_s, now_s)));
        self.floods_until_s.take_if(|at_s| is_past(*at_s, now_s));
        self.querier
            .take_if(|querier| is_past(querier.expires_s, now_s));
        if self.querier.is_none() && self.own.is_none() {
            self.prunes_from_s = None;
        }
        let is_settled = self.prunes_from_s.is_some_and(|at_s| is_past(at_s, now_s));
        let is_pruned = is_settled && self.floods_until_s.is_none();
        let was_pruned = core::mem::replace(&mut self.is_pruned, is_pruned);
        is_pruned != was_pruned || before != self.ports()
    }

    fn ports(&self) -> usize {
        self.routers.len() + self.overflowed.len() + self.newcomers.len()
    }

    pub(super) fn is_needed(&self) -> bool {
        self.own.is_some()
            || self.querier.is_some()
            || self.floods_until_s.is_some()
            || !self.routers.is_empty()
            || !self.overflowed.is_empty()
    }
}

pub(super) fn membership_s(robustness: u32, interval_s: u32, response_s: u32) -> u32 {
    let needed_s = interval_s.saturating_mul(robustness);
    needed_s
        .saturating_add(response_s)
        .clamp(MEMBERSHIP_S, MAX_MEMBERSHIP_S)
}
