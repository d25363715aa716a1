// SPDX-License-Identifier: MIT OR Apache-2.0
//! The state of all VLANs and groups, and how each message changes it.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::config::SnoopingConfig;
use super::entry::{GroupEntry, Handled, QueryFrame, SnoopingCounters, VlanEntry};
use super::family::Family;
use super::message::{
    Change, LAST_RESPONSE_S, Message, Query, QuerySource, ROBUSTNESS, Record, mac_v4, mac_v6,
};
use super::queried_vlans::QueriedVlans;
use super::table::{FloodPorts, GroupTable, key};
use super::vlan::{MEMBERSHIP_S, OtherQuerier, OwnQueries, SETTLE_S, Vlan, membership_s};
use crate::ethernet::Headers;
use crate::mac::MacAddr;
use crate::port_id::PortId;
use crate::port_set::PortSet;
use crate::time::{is_past, left_s};
use crate::vlan::Vid;

/// The state of snooping: groups, routers and queriers.
#[derive(Debug)]
pub struct Snooping {
    config: SnoopingConfig,
    groups: BTreeMap<(Vid, IpAddr), Members>,
    vlans: BTreeMap<(Vid, Family), Vlan>,
    /// The number of groups that each port is in.
    wanted_by: BTreeMap<PortId, usize>,
    members: usize,
    /// Queries for groups that a host has left.
    last_queries: BTreeMap<(Vid, IpAddr), LastQueries>,
    /// VLANs in which this node queries because there are stations.
    queried: QueriedVlans,
    /// General queries that this node sent in this second.
    sent: (u32, usize),
    polled_s: u32,
    is_changed: bool,
    counters: SnoopingCounters,
}

/// When each port expires.
type Members = BTreeMap<PortId, u32>;

#[derive(Clone, Copy, Debug)]
struct LastQueries {
    next_s: u32,
    left: u8,
}

/// For queriers that do not state theirs, RFC 3376 sections 8.1 and 8.2.
const USUAL_TIMING: (u32, u32) = (ROBUSTNESS as u32, 125);
/// Groups that are queried after a leave, at a time.
const MAX_LAST_QUERIES: usize = 256;
/// General queries in a second: with many VLANs they are spread.
const MAX_QUERIES_PER_S: usize = 32;

impl Snooping {
    /// Starts without state, and floods everything.
    pub fn new(config: SnoopingConfig, now_s: u32) -> Self {
        let vids = config.querier.iter().flat_map(|querier| &querier.vlans);
        let keys = vids.flat_map(|&vid| [(vid, Family::V4), (vid, Family::V6)]);
        let own = OwnQueries {
            next_s: now_s,
            sent: 0,
        };
        let vlans = keys.map(|key| (key, Vlan::new(Some(own)))).collect();
        Self {
            config,
            groups: BTreeMap::new(),
            vlans,
            wanted_by: BTreeMap::new(),
            members: 0,
            last_queries: BTreeMap::new(),
            queried: QueriedVlans::default(),
            sent: (now_s, 0),
            polled_s: now_s,
            is_changed: true,
            counters: SnoopingCounters::default(),
        }
    }

    /// Takes in a frame that arrived on `port` in the VLAN `vid`.
    pub fn handle(&mut self, port: PortId, vid: Vid, headers: &Headers<'_>, now_s: u32) -> Handled {
        match Message::parse(headers) {
            Some(Message::Query(query)) => {
                self.counters.queries += 1;
                self.query_heard(port, vid, &query, now_s);
                Handled::Query
            }
            Some(Message::Single(record)) => {
                self.counters.reports += 1;
                self.record_heard(port, vid, record, now_s);
                Handled::Report
            }
            Some(Message::Records(records)) => {
                self.counters.reports += 1;
                for record in records {
                    self.record_heard(port, vid, record, now_s);
                }
                Handled::Report
            }
            Some(Message::Router(family)) => {
                self.router_heard(port, vid, family, MEMBERSHIP_S, now_s);
                Handled::Router
            }
            None => {
                self.counters.ignored += 1;
                Handled::Ignored
            }
        }
    }

    /// Removes expired state, and returns the queries to send. To be called once a second.
    pub fn poll(&mut self, now_s: u32) -> Vec<QueryFrame> {
        if now_s != self.polled_s {
            self.polled_s = now_s;
            self.expire(now_s);
        }
        self.due_queries(now_s)
    }

    /// Whether this node is a querier where no other is heard.
    pub fn is_querier(&self) -> bool {
        self.config.querier.is_some()
    }

    /// Takes in where stations are: the querier, if there is one, queries the VLANs that have
    /// stations, and continues as long as a membership may last after the last station was seen. To
    /// be called once a second, or nearly, with all of them.
    ///
    /// 512 VLANs fit, 128 of which may have stations behind the same port only. Others are flooded,
    /// unless another querier is there.
    pub fn watch(&mut self, stations: &BTreeSet<(Vid, PortId)>, now_s: u32) {
        let Some(querier) = &self.config.querier else {
            return;
        };
        let (added, past) = self.queried.update(stations, now_s);
        let fixed = &querier.vlans;
        let others = |vids: Vec<Vid>| {
            let others = vids.into_iter().filter(|vid| !fixed.contains(vid));
            let keys = others.flat_map(|vid| [(vid, Family::V4), (vid, Family::V6)]);
            keys.collect::<Vec<_>>()
        };
        let (added, past) = (others(added), others(past));
        for key in past {
            if let Some(vlan) = self.vlans.get_mut(&key) {
                vlan.own = None;
            }
        }
        for (vid, family) in added {
            let known = self.vlan(vid, family).querier.map(|known| known.address);
            let is_ours = known.is_some_and(|address| !self.gives_way_to(address));
            let vlan = self.vlan(vid, family);
            vlan.own = Some(OwnQueries {
                next_s: now_s,
                sent: 0,
            });
            vlan.querier.take_if(|_| is_ours);
            let latest_s = now_s.wrapping_add(MEMBERSHIP_S);
            let known = vlan.querier.as_mut();
            if let Some(known) = known.filter(|known| !is_past(known.expires_s, latest_s)) {
                known.expires_s = latest_s;
            }
        }
    }

    /// Whether hosts are to be queried now for a group that one of them has left, so that
    /// [`poll`](Self::poll) cannot wait for the next second.
    pub fn is_query_due(&self, now_s: u32) -> bool {
        let mut queries = self.last_queries.values();
        self.is_querier() && queries.any(|queries| is_past(queries.next_s, now_s))
    }

    /// Whether the table has changed since [`take_changed`](Self::take_changed).
    pub fn is_changed(&self) -> bool {
        self.is_changed
    }

    /// Whether the table has changed since the last call.
    pub fn take_changed(&mut self) -> bool {
        core::mem::take(&mut self.is_changed)
    }

    /// A snapshot for the data threads. It takes time for each group: make one when something has
    /// changed, and not for each message.
    pub fn table(&self) -> GroupTable {
        let pruned: BTreeMap<_, _> = self
            .vlans
            .iter()
            .filter(|(_, vlan)| vlan.is_pruned)
            .map(|(&at, vlan)| (at, self.flood_ports(vlan)))
            .collect();
        let groups = self.groups.iter().filter_map(|(&(vid, group), members)| {
            let flood_ports = pruned.get(&(vid, Family::of(group)))?;
            let ports = (!is_link_local(group)).then(|| {
                let mut ports = flood_ports.unregistered.clone();
                ports.extend(members.keys().copied());
                ports
            });
            Some((key(vid, mac(group)), ports))
        });
        GroupTable::new(groups.collect(), pruned.clone().into_iter().collect())
    }

    /// Takes in that a port came up. Its hosts may have missed earlier queries, so all groups are
    /// flooded to it until a query has gone out and they have had time to report. If this node is
    /// the querier, the next [`poll`](Self::poll) returns that query.
    pub fn port_up(&mut self, port: PortId, now_s: u32) {
        for vlan in self.vlans.values_mut() {
            vlan.port_up(port, now_s);
        }
        self.is_changed = true;
    }

    /// Removes a port that no longer exists.
    pub fn flush_port(&mut self, port: PortId) {
        self.retain_members(|at, _| at != port);
        for vlan in self.vlans.values_mut() {
            vlan.routers.remove(&port);
            vlan.overflowed.remove(&port);
            vlan.newcomers.remove(&port);
        }
        self.is_changed = true;
    }

    /// The groups, in the order of VLANs and addresses.
    pub fn groups(&self, now_s: u32) -> impl Iterator<Item = GroupEntry> + '_ {
        self.groups.iter().map(move |(&(vid, group), members)| {
            let ports = members
                .iter()
                .map(|(&port, &at_s)| (port, left_s(at_s, now_s)));
            GroupEntry {
                vid,
                group,
                ports: ports.collect(),
            }
        })
    }

    /// The VLANs in which messages were heard or queries are sent.
    pub fn vlans(&self) -> impl Iterator<Item = VlanEntry> + '_ {
        self.vlans.iter().map(|(&(vid, family), vlan)| VlanEntry {
            vid,
            family,
            querier: vlan.querier.map(|querier| querier.address),
            is_pruned: vlan.is_pruned,
            routers: self.routers(vlan),
            overflowed: vlan.overflowed.keys().copied().collect(),
        })
    }

    /// The counters.
    pub fn counters(&self) -> SnoopingCounters {
        self.counters
    }

    fn query_heard(&mut self, port: PortId, vid: Vid, query: &Query, now_s: u32) {
        let family = Family::of(query.source);
        let (robustness, interval_s) = query.timing.unwrap_or(USUAL_TIMING);
        let membership_s = membership_s(robustness, interval_s, query.max_response_s);
        self.router_heard(port, vid, family, membership_s, now_s);
        let gives_way = self.gives_way_to(query.source);
        if let Some(vlan) = self.vlans.get_mut(&(vid, family)) {
            // A querier that replaces this one must send general queries, and regularly: one query
            // with a long interval must not silence ours for hours.
            let (takes_over, silence_s) = match vlan.own {
                Some(_) => (gives_way && query.group.is_none(), MEMBERSHIP_S),
                None => (true, membership_s),
            };
            if takes_over {
                vlan.querier = Some(OtherQuerier {
                    address: query.source,
                    expires_s: now_s.wrapping_add(silence_s),
                });
                vlan.membership_s = membership_s;
            }
            if query.group.is_none() {
                vlan.expect_reports(query.max_response_s.max(SETTLE_S), now_s);
            }
        }
        if let (Some(group), true) = (query.group, query.ends_membership) {
            // Twice, as it may be lost, RFC 3376 section 8.9; and a second for transit.
            let wait_s = query.max_response_s.min(MEMBERSHIP_S) * 2 + 1;
            self.shorten((vid, group), None, now_s.wrapping_add(wait_s));
        }
    }

    /// The lower address becomes the querier, RFC 3376 section 6.6.2 and RFC 3810 section 7.6.2;
    /// the unspecified address is no querier's, RFC 4541 section 2.1.1.
    fn gives_way_to(&self, source: IpAddr) -> bool {
        let Some(own) = &self.config.querier else {
            return true;
        };
        match source {
            IpAddr::V4(source) => {
                !source.is_unspecified() && (own.ipv4.is_unspecified() || source < own.ipv4)
            }
            IpAddr::V6(source) => source < own.ipv6,
        }
    }

    /// Records that routers are behind a port. Also if they query from the unspecified address:
    /// that is a switch which queries in place of a router, and prunes groups for which it hears no
    /// report.
    fn router_heard(&mut self, port: PortId, vid: Vid, family: Family, for_s: u32, now_s: u32) {
        let vlan = self.vlan(vid, family);
        let is_new = vlan.note(port, now_s.wrapping_add(for_s), |vlan| &mut vlan.routers);
        self.is_changed |= is_new;
    }

    fn record_heard(&mut self, port: PortId, vid: Vid, record: Record, now_s: u32) {
        if !record.group.is_multicast() || is_all_nodes(record.group) {
            return;
        }
        match record.change {
            Change::Join => self.joined(port, vid, record.group, now_s),
            Change::Leave => self.left(port, vid, record.group, now_s),
        }
    }

    fn joined(&mut self, port: PortId, vid: Vid, group: IpAddr, now_s: u32) {
        let family = Family::of(group);
        let of_vlan = self.vlans.get(&(vid, family));
        let expires_s = now_s.wrapping_add(of_vlan.map_or(MEMBERSHIP_S, |vlan| vlan.membership_s));
        let known = self
            .groups
            .get_mut(&(vid, group))
            .and_then(|members| members.get_mut(&port));
        if let Some(known) = known {
            *known = expires_s;
            return;
        }
        let wanted = self.wanted_by.entry(port).or_default();
        if *wanted >= self.config.max_groups_per_port || self.members >= self.config.max_members {
            self.counters.overflowed += 1;
            let vlan = self.vlan(vid, family);
            let is_new = vlan.note(port, expires_s, |vlan| &mut vlan.overflowed);
            self.is_changed |= is_new;
            return;
        }
        self.is_changed = true;
        *wanted += 1;
        self.members += 1;
        let members = self.groups.entry((vid, group)).or_default();
        members.insert(port, expires_s);
    }

    /// Another host on the port may still want the group. If this node is the querier it queries
    /// now; otherwise the querier does, and this node hears that query.
    fn left(&mut self, port: PortId, vid: Vid, group: IpAddr, now_s: u32) {
        let asks = self
            .vlans
            .get(&(vid, Family::of(group)))
            .is_some_and(|vlan| vlan.own.is_some() && vlan.querier.is_none());
        let is_member = self
            .groups
            .get(&(vid, group))
            .is_some_and(|members| members.contains_key(&port));
        if !asks || !is_member {
            return;
        }
        if !self.last_queries.contains_key(&(vid, group)) {
            if self.last_queries.len() == MAX_LAST_QUERIES {
                return;
            }
            let queries = LastQueries {
                next_s: now_s,
                left: ROBUSTNESS,
            };
            self.last_queries.insert((vid, group), queries);
        }
        let wait_s = u32::from(ROBUSTNESS) * LAST_RESPONSE_S + 1;
        self.shorten((vid, group), Some(port), now_s.wrapping_add(wait_s));
    }

    /// Makes members of a group expire at a time, unless they expire sooner.
    fn shorten(&mut self, group: (Vid, IpAddr), only: Option<PortId>, expires_s: u32) {
        let members = self.groups.get_mut(&group).into_iter().flatten();
        for (_, at_s) in members.filter(|&(&port, _)| only.is_none_or(|only| only == port)) {
            if is_past(expires_s, *at_s) {
                *at_s = expires_s;
            }
        }
    }

    fn expire(&mut self, now_s: u32) {
        self.retain_members(|_, at_s| !is_past(at_s, now_s));
        let mut is_changed = false;
        for vlan in self.vlans.values_mut() {
            is_changed |= vlan.expire(now_s);
        }
        self.vlans.retain(|_, vlan| vlan.is_needed());
        self.is_changed |= is_changed;
    }

    fn retain_members(&mut self, mut keeps: impl FnMut(PortId, u32) -> bool) {
        let (wanted_by, before) = (&mut self.wanted_by, self.members);
        let total = &mut self.members;
        self.groups.retain(|_, members| {
            members.retain(|&port, &mut at_s| {
                let is_kept = keeps(port, at_s);
                if !is_kept {
                    *total -= 1;
                    if let Some(count) = wanted_by.get_mut(&port) {
                        *count -= 1;
                    }
                }
                is_kept
            });
            !members.is_empty()
        });
        wanted_by.retain(|_, count| *count > 0);
        self.is_changed |= self.members != before;
    }

    fn due_queries(&mut self, now_s: u32) -> Vec<QueryFrame> {
        let mut frames = Vec::new();
        let Some(querier) = &self.config.querier else {
            return frames;
        };
        let source = QuerySource {
            mac: querier.mac,
            ipv4: querier.ipv4,
            ipv6: querier.ipv6,
            interval_s: querier.interval_s,
        };
        if self.sent.0 != now_s {
            self.sent = (now_s, 0);
        }
        let due = self.vlans.iter().filter(|(_, vlan)| vlan.is_due(now_s));
        let mut due: Vec<_> = due.map(|(&key, vlan)| (vlan.urgency(now_s), key)).collect();
        due.sort_unstable();
        for (_, (vid, family)) in due.into_iter().take(MAX_QUERIES_PER_S - self.sent.1) {
            if let Some(vlan) = self.vlans.get_mut(&(vid, family)) {
                vlan.record_query(querier.interval_s, now_s);
                let frame = source.query(family, vid, None);
                frames.push(QueryFrame { vid, frame });
                self.sent.1 += 1;
            }
        }
        self.last_queries.retain(|&(vid, group), queries| {
            if is_past(queries.next_s, now_s) {
                let frame = source.query(Family::of(group), vid, Some(group));
                frames.push(QueryFrame { vid, frame });
                queries.next_s = now_s.wrapping_add(LAST_RESPONSE_S);
                queries.left -= 1;
            }
            queries.left > 0
        });
        frames
    }

    fn vlan(&mut self, vid: Vid, family: Family) -> &mut Vlan {
        let vlan = self.vlans.entry((vid, family));
        vlan.or_insert_with(|| Vlan::new(None))
    }

    fn flood_ports(&self, vlan: &Vlan) -> FloodPorts {
        let routers = self.routers(vlan);
        let mut unregistered = routers.clone();
        unregistered.extend(vlan.overflowed.keys().chain(vlan.newcomers.keys()).copied());
        let mut reports = routers;
        if self.config.mesh {
            reports.extend((1..self.config.ports).map(PortId));
        }
        FloodPorts {
            unregistered,
            reports,
        }
    }

    fn routers(&self, vlan: &Vlan) -> PortSet {
        let fixed = self.config.router_ports.iter().copied();
        fixed.chain(vlan.routers.keys().copied()).collect()
    }
}

/// 224.0.0.1 and ff02::1: every host is a member, and none reports it.
fn is_all_nodes(group: IpAddr) -> bool {
    group == Ipv4Addr::new(224, 0, 0, 1) || group == Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)
}

fn is_link_local(group: IpAddr) -> bool {
    match group {
        IpAddr::V4(group) => matches!(group.octets(), [224, 0, 0, _]),
        IpAddr::V6(group) => group.octets()[1] & 0x0f <= 2,
    }
}

fn mac(group: IpAddr) -> MacAddr {
    match group {
        IpAddr::V4(group) => mac_v4(group),
        IpAddr::V6(group) => mac_v6(group),
    }
}
