// SPDX-License-Identifier: MIT OR Apache-2.0
//! The loop guard in networks: nodes, tunnels, segments and cables between them.
//!
//! Time is simulated in steps of 10 ms. Each node floods what it does not know, as the switch does:
//! by split horizon, and never by a blocked port. The judge of every scenario is a broadcast from
//! each segment: every other one must have it exactly once, and its own must not have it again.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use patchcord_bridge::loops::{Cause, LoopGuard, NodeId, Verdict, source};
use patchcord_bridge::{Headers, MacAddr, PortId, Vid};

const MS: u64 = 1000;
const S: u64 = 1000 * MS;
const STEP_US: u64 = 10 * MS;
const TAP: PortId = PortId::TAP;

#[test]
fn one_of_two_sites_cuts_the_tunnel_beside_a_cable() {
    for seed in 0..40 {
        let mut net = Net::mesh(2, seed);
        net.run(20 * S);
        assert!(net.blocked().is_empty(), "without a loop, seed {seed}");
        net.cable(0, 1);
        net.run(3 * S);
        assert_eq!(net.blocked().len(), 1, "seed {seed}: {:?}", net.blocked());
        net.run(100 * S);
        assert_eq!(net.verdicts().len(), 1, "seed {seed}");
        net.assert_everyone_hears_once();
    }
}

#[test]
fn a_cable_between_two_of_three_sites_is_no_shortcut_for_the_third() {
    for seed in 0..40 {
        let mut net = Net::mesh(3, seed);
        net.cable(0, 1);
        net.run(10 * S);
        // The tunnel beside the cable, at one end, and one of the third's two ways.
        assert_eq!(net.blocked().len(), 2, "seed {seed}: {:?}", net.blocked());
        net.assert_everyone_hears_once();
    }
}

#[test]
fn a_mesh_agrees_on_which_way_leads_to_a_cabled_pair() {
    for seed in 0..20 {
        let mut net = Net::mesh(5, seed);
        net.cable(1, 3);
        net.run(20 * S);
        net.assert_everyone_hears_once();
        net.cable(0, 3);
        net.run(20 * S);
        net.assert_everyone_hears_once();
    }
}

#[test]
fn a_triangle_of_hubs_loses_one_side() {
    for seed in 0..40 {
        let mut net = Net::new(3, seed);
        for (one, two) in [(0, 1), (1, 2), (2, 0)] {
            net.tunnel(one, two);
        }
        net.all_hubs();
        net.run(3 * S);
        assert_eq!(net.blocked().len(), 1, "seed {seed}: {:?}", net.blocked());
        net.run(60 * S);
        assert_eq!(net.verdicts().len(), 1, "seed {seed}");
        net.assert_everyone_hears_once();
    }
}

#[test]
fn hubs_that_all_know_each_other_become_a_tree() {
    for seed in 0..20 {
        let mut net = Net::new(4, seed);
        for one in 0..4 {
            for two in one + 1..4 {
                net.tunnel(one, two);
            }
        }
        net.all_hubs();
        net.run(20 * S);
        assert_eq!(net.blocked().len(), 3, "seed {seed}: {:?}", net.blocked());
        net.assert_everyone_hears_once();
    }
}

#[test]
fn of_two_tunnels_between_two_sites_one_stays() {
    for seed in 0..40 {
        let mut net = Net::new(4, seed);
        net.tunnel(0, 1);
        net.tunnel(2, 3);
        // Two nodes on one segment, at either end.
        net.cable(0, 2);
        net.cable(1, 3);
        net.run(3 * S);
        assert_eq!(net.blocked().len(), 1, "seed {seed}: {:?}", net.blocked());
        net.run(60 * S);
        assert_eq!(net.verdicts().len(), 1, "seed {seed}");
        net.assert_everyone_hears_once();

        // The one that carries everything dies: the other takes over.
        let (node, _) = net.blocked()[0];
        let dead = if node < 2 { 2 } else { 0 };
        net.cut_tunnel(dead, dead + 1);
        net.run(12 * S);
        assert!(net.blocked().is_empty(), "seed {seed}");
        net.assert_everyone_hears_once();
    }
}

#[test]
fn a_cable_between_the_ends_of_a_chain_isolates_no_site() {
    for seed in 0..40 {
        let mut net = Net::new(4, seed);
        for one in 0..3 {
            net.tunnel(one, one + 1);
        }
        net.all_hubs();
        net.cable(0, 3);
        net.run(3 * S);
        assert_eq!(net.blocked().len(), 1, "seed {seed}: {:?}", net.blocked());
        net.assert_everyone_hears_once();
    }
}

#[test]
fn a_site_that_hangs_on_a_loop_is_warned_and_stays_connected() {
    for seed in 0..20 {
        let mut net = Net::new(4, seed);
        for (one, two) in [(0, 1), (1, 2), (2, 0), (0, 3)] {
            net.tunnel(one, two);
        }
        net.all_hubs();
        net.run(3 * S);
        assert_eq!(net.blocked().len(), 1, "seed {seed}: {:?}", net.blocked());
        assert!(net.blocked().iter().all(|&(node, _)| node != 3));
        net.assert_everyone_hears_once();
    }
}

#[test]
fn any_network_of_hubs_becomes_a_tree() {
    for seed in 0..60 {
        let nodes = 2 + seed as usize % 5;
        let mut net = Net::new(nodes, seed);
        net.all_hubs();
        let pair = |net: &mut Net| {
            let one = net.random() as usize % nodes;
            let two = net.random() as usize % (nodes - 1);
            (one, if two < one { two } else { two + 1 })
        };
        // Enough for everyone to hear everyone, and then some.
        for node in 1..nodes {
            let other = net.random() as usize % node;
            net.tunnel(other, node);
        }
        for _ in 0..net.random() % 4 {
            let (one, two) = pair(&mut net);
            net.tunnel(one, two);
        }
        for _ in 0..net.random() % 3 {
            let (one, two) = pair(&mut net);
            net.cable(one, two);
        }
        net.run(60 * S);
        net.assert_everyone_hears_once();
    }
}

#[test]
fn a_link_carries_as_many_probes_in_a_large_star_as_in_a_small_one() {
    for spokes in [8, 32, 64] {
        let mut net = Net::star(spokes, spokes as u64);
        net.run(10 * S);
        net.probes.clear();
        net.run(20 * S);
        let most = net.probes.values().max().expect("somebody probes") / 20;
        let total: u64 = net.probes.values().sum::<u64>() / 20;
        println!("{spokes} spokes: {most} probes/s by the busiest link, {total} by all");
        assert!(most <= 2, "{spokes} spokes: {most} a second");
        assert!(net.blocked().is_empty(), "{spokes} spokes");

        net.cable(1, spokes);
        net.run(3 * S);
        assert_eq!(net.blocked().len(), 1, "{spokes} spokes");
        net.run(5 * S);
        net.probes.clear();
        net.run(20 * S);
        let most = net.probes.values().max().expect("somebody probes") / 20;
        assert!(most <= 4, "{spokes} spokes, one blocked: {most} a second");
        net.assert_everyone_hears_once();
    }
}

#[test]
fn a_loop_is_found_as_soon_though_the_most_senior_node_has_just_left() {
    for seed in 0..20 {
        let mut net = Net::star(8, seed);
        net.run(10 * S);
        let spokes = 1..net.nodes.len();
        let senior = spokes.min_by_key(|&at| net.nodes[at].id).expect("spokes");
        net.cut_tunnel(0, senior);
        let others = [1, 2, 3].into_iter().filter(|&at| at != senior);
        let others: Vec<_> = others.collect();
        net.cable(others[0], others[1]);
        net.run(3 * S);
        assert_eq!(net.blocked().len(), 1, "seed {seed}");
    }
}

#[test]
fn a_loop_is_found_after_all_probing_nodes_have_left() {
    for seed in 0..20 {
        let mut net = Net::star(8, seed);
        net.run(10 * S);
        let mut spokes: Vec<_> = (1..net.nodes.len()).collect();
        spokes.sort_by_key(|&at| net.nodes[at].id);
        for &gone in &spokes[..2] {
            net.cut_tunnel(0, gone);
        }
        net.cable(spokes[4], spokes[5]);
        net.run(7 * S);
        assert_eq!(net.blocked().len(), 1, "seed {seed}");
    }
}

#[test]
fn a_loop_behind_a_tunnel_is_told_to_nodes_that_are_silent_as_well() {
    let mut guard = guard(u64::MAX);
    let mut behind = Vec::new();
    for round in 0..130 {
        let now_us = round * S;
        // Two seniors speak, and what they say comes twice by one port.
        for node in [1, 2] {
            let probe = probe_of(NodeId(node), round as u32 + 1);
            guard.heard(PortId(1), Vid::UNTAGGED, &probe, now_us);
            guard.heard(PortId(1), Vid::UNTAGGED, &probe, now_us);
        }
        for probe in guard.due(now_us) {
            assert_eq!(probe.port, PortId(1), "no other is in doubt");
            behind.extend(guard.returned(probe.port, &probe.frame, now_us));
        }
    }
    assert_eq!(behind.len(), 3, "one a minute");
}

#[test]
fn a_loop_in_one_vlan_is_found_among_sixteen() {
    let vlans: Vec<Vid> = (0..16).map(|at| vid(at * 10)).collect();
    for (seed, looped) in vlans.iter().enumerate() {
        let mut net = Net::mesh(2, seed as u64);
        net.watch_vlans(&vlans);
        net.run(7 * S);
        net.cable_in(0, 1, *looped);
        net.run(3 * S);
        let [(_, Verdict::Block { cause, .. })] = net.verdicts()[..] else {
            panic!("{looped:?}: {:?}", net.verdicts());
        };
        let other = TAP;
        assert_eq!(
            cause,
            Cause {
                other,
                vid: *looped
            }
        );
        net.run(60 * S);
        assert_eq!(net.verdicts().len(), 1, "it stays blocked");
    }
}

#[test]
fn forged_vlans_hide_no_loop_among_untagged_frames() {
    let vlans: Vec<Vid> = (0..4095).map(vid).collect();
    for seed in 0..10 {
        let mut net = Net::mesh(2, seed);
        net.watch_vlans(&vlans);
        net.run(7 * S);
        net.cable_in(0, 1, Vid::UNTAGGED);
        net.run(3 * S);
        assert_eq!(net.blocked().len(), 1, "seed {seed}");
    }
}

#[test]
fn a_vlan_in_which_stations_move_waits_for_no_turn() {
    let mut guard = guard(1);
    for port in 0..3 {
        guard.watch(PortId(port), 0, (0..4095).map(vid));
    }
    let probed = |guard: &mut Guard, at_us| {
        let probes = guard.due(at_us).into_iter();
        let of_vlan = probes.filter(|probe| probe.vid == vid(4000));
        of_vlan.map(|probe| probe.port.0).collect::<Vec<_>>()
    };
    assert_eq!(probed(&mut guard, 0), []);
    guard.suspect([vid(4000)]);
    assert_eq!(probed(&mut guard, S), [0, 1, 2]);
    assert_eq!(probed(&mut guard, 2 * S), []);
    guard.suspect((0..4095).map(vid));
    assert!(guard.due(3 * S).len() <= 3 * (1 + 16 + 32));
}

#[test]
fn a_port_opens_when_the_loop_is_gone_and_later_each_time() {
    let mut net = Net::mesh(2, 1);
    for hold_s in [10, 20, 40, 80, 160, 300, 300] {
        net.cable(0, 1);
        net.run(3 * S);
        assert_eq!(net.blocked().len(), 1, "before {hold_s} s");
        net.uncable();
        net.run((hold_s - 1) * S);
        assert_eq!(net.blocked().len(), 1, "for {hold_s} s");
        net.run(2 * S);
        assert_eq!(net.blocked().len(), 0, "after {hold_s} s");
        net.assert_everyone_hears_once();
    }
    net.run(601 * S);
    net.cable(0, 1);
    net.run(3 * S);
    net.uncable();
    net.run(11 * S);
    assert_eq!(net.blocked().len(), 0, "quiet for long enough");
}

#[test]
fn lost_and_slow_probes_are_no_loop() {
    for seed in 0..10 {
        for (loss, delay_us) in [(50, 5 * MS), (0, 2900 * MS), (30, 900 * MS)] {
            let mut net = Net::mesh(3, seed);
            net.loss_percent = loss;
            net.delay_us = delay_us;
            net.run(60 * S);
            assert_eq!(net.verdicts(), [], "{loss} % lost, {delay_us} us");
        }
    }
}

#[test]
fn a_loop_is_cut_and_stays_cut_though_probes_are_lost() {
    for seed in 0..20 {
        let mut net = Net::mesh(2, seed);
        net.loss_percent = 30;
        net.cable(0, 1);
        net.run(6 * S);
        assert!(!net.blocked().is_empty(), "seed {seed}");
        // If both were so unlucky as to cut, each opens again alone.
        net.run(30 * S);
        for _ in 0..100 {
            net.run(S);
            assert!(!net.blocked().is_empty(), "seed {seed}");
        }
    }
}

#[test]
fn one_stray_copy_is_no_loop() {
    let mut guard = guard(1);
    let probe = first_probe(&mut guard, TAP, 0);
    for now_us in (0..2900 * MS).step_by(STEP_US as usize) {
        assert_eq!(guard.returned(PortId(1), &probe, now_us), None);
        guard.due(now_us);
        assert_eq!(guard.poll(now_us), None, "{now_us}");
    }
    assert!(guard.counters().returned > 0);
}

#[test]
fn stored_or_forged_probes_block_nothing() {
    let mut guard = guard(1);
    let mut stored = VecDeque::new();
    for now_us in (0..60 * S).step_by(STEP_US as usize) {
        for probe in guard
            .due(now_us)
            .into_iter()
            .filter(|probe| probe.port == TAP)
        {
            stored.push_back((now_us, probe.frame));
        }
        // Later than fresh, from the other side.
        while stored
            .front()
            .is_some_and(|(then, _)| now_us > then + 3 * S)
        {
            let (_, frame) = stored.pop_front().unwrap();
            assert_eq!(guard.returned(PortId(1), &frame, now_us), None);
        }
        // At once, but with a field that it has changed: version, flags, port, VLAN, node, sequence,
        // tag.
        if let Some((_, frame)) = stored.back() {
            for at in [14, 15, 17, 19, 27, 31, 34, 49] {
                let mut forged = frame.clone();
                forged[at] ^= 1;
                assert_eq!(guard.returned(PortId(1), &forged, now_us), None);
            }
            for len in 0..50 {
                assert_eq!(guard.returned(PortId(1), &frame[..len], now_us), None);
            }
        }
        assert_eq!(guard.poll(now_us), None, "{now_us}");
    }
    let counters = guard.counters();
    assert_eq!(counters.returned, 0);
    assert!(counters.stale >= 50 && counters.forged > 1000);
}

#[test]
fn a_station_that_mirrors_probes_is_a_loop_behind_its_port() {
    let mut guard = guard(1);
    let mut warnings = 0;
    for now_us in (0..130 * S).step_by(STEP_US as usize) {
        for probe in guard.due(now_us) {
            let warning = guard.returned(probe.port, &probe.frame, now_us);
            warnings += usize::from(warning.is_some());
            assert!(matches!(warning, None | Some(Verdict::Behind { .. })));
        }
        assert_eq!(guard.poll(now_us), None);
    }
    assert_eq!(warnings, 3 * 3, "one a minute for each port");
}

#[test]
fn false_seniors_delay_a_cut_and_do_not_prevent_it() {
    for seed in 0..10 {
        let mut net = Net::mesh(2, seed);
        net.cable(0, 1);
        for sequence in 0..90 {
            for node in 0..2 {
                let senior = contending_probe(NodeId(0), sequence);
                net.deliver(node, TAP, Traffic::Probe(senior));
            }
            net.run(100 * MS);
            let is_early = sequence < 50;
            assert!(!is_early || net.blocked().is_empty(), "seed {seed}");
        }
        assert!(!net.blocked().is_empty(), "seed {seed}");
    }
}

#[test]
fn repeated_claims_of_a_senior_count_once() {
    for seed in 0..10 {
        let mut net = Net::mesh(2, seed);
        net.cable(0, 1);
        for _ in 0..40 {
            for node in 0..2 {
                let stored = contending_probe(NodeId(0), 1);
                net.deliver(node, TAP, Traffic::Probe(stored));
            }
            net.run(100 * MS);
        }
        assert!(!net.blocked().is_empty(), "seed {seed}");
    }
}

#[test]
fn a_blocked_port_hears_nothing_of_others() {
    let mut net = Net::mesh(2, 1);
    net.cable(0, 1);
    net.run(3 * S);
    let (node, port) = net.blocked()[0];
    let before = net.nodes[node].guard.counters().foreign;
    let probe = contending_probe(NodeId(0), 1);
    net.deliver(node, port, Traffic::Probe(probe.clone()));
    assert_eq!(net.nodes[node].guard.counters().foreign, before);
    net.deliver(node, TAP, Traffic::Probe(probe));
    assert_eq!(net.nodes[node].guard.counters().foreign, before + 1);
}

#[test]
fn a_loop_in_one_of_many_vlans_stays_cut() {
    let vlans: Vec<Vid> = (0..400).map(vid).collect();
    let mut net = Net::mesh(2, 1);
    net.watch_vlans(&vlans);
    net.cable_in(0, 1, vid(123));
    net.run(30 * S);
    assert_eq!(net.blocked().len(), 1);
    net.run(100 * S);
    assert_eq!(net.verdicts().len(), 1);
}

#[test]
fn nodes_that_hear_nothing_of_each_other_still_cut() {
    for seed in 0..40 {
        let mut net = Net::mesh(2, seed);
        net.deaf = true;
        net.cable(0, 1);
        net.run(3 * S);
        assert!(!net.blocked().is_empty(), "seed {seed}");
    }
}

#[test]
fn the_report_names_the_ports_between_which_stations_move() {
    let mut net = Net::mesh(2, 3);
    net.run(5 * S);
    net.cable(0, 1);
    net.run(3 * S);
    let (node, port) = net.blocked()[0];
    let report: Vec<_> = net.nodes[node].guard.report().collect();
    let [blocked] = report[..] else {
        panic!("{report:?}")
    };
    assert_eq!(blocked.port, port);
    assert!((5 * S..8 * S).contains(&blocked.since_us));
    assert!(blocked.count >= 2);
    for (from, to, explained) in [
        (TAP, port, true),
        (port, TAP, true),
        (port, PortId(7), false),
        (TAP, TAP, false),
    ] {
        assert_eq!(
            blocked.explains_move(from, to),
            explained,
            "{from:?} {to:?}"
        );
    }
}

#[test]
fn other_nodes_hear_of_each_change_and_relearn() {
    for seed in 0..20 {
        let mut net = Net::mesh(5, seed);
        net.run(20 * S);
        assert!(net.relearned.iter().all(Vec::is_empty), "without a change");
        net.cable(0, 1);
        net.run(10 * S);
        net.assert_all_relearned(3 * S, seed);
        net.uncable();
        net.run(20 * S);
        assert!(net.blocked().is_empty(), "seed {seed}");
        net.assert_all_relearned(3 * S, seed);
        let before = net.relearned.clone();
        net.run(60 * S);
        assert_eq!(net.relearned, before, "nothing changes any more");
    }
}

#[test]
fn changes_that_are_made_up_have_stations_learned_anew_now_and_then() {
    let mut guard = guard(1);
    let mut relearned = 0;
    for sequence in 0..1000_u32 {
        let now_us = u64::from(sequence) * 10 * MS;
        let mut probe = contending_probe(NodeId(7), sequence + 1);
        probe[32..34].copy_from_slice(&(sequence as u16).to_be_bytes());
        guard.heard(TAP, Vid::UNTAGGED, &probe, now_us);
        relearned += usize::from(guard.poll(now_us) == Some(Verdict::Relearn));
    }
    assert_eq!(relearned, 10, "in 10 s");
}

#[test]
fn changes_announced_behind_a_confined_port_concern_its_own_stations() {
    let [open, eve, mallory] = [0, 1, 2].map(PortId);
    let mut guard = guard(1);
    guard.confine(eve);
    guard.confine(mallory);
    guard.watch(eve, 0, []);
    let all = Verdict::Relearn;
    let behind = |port| Verdict::RelearnBehind { port };
    for (port, sequence, changes, at_s, expected) in [
        (open, 1, 0, 1, vec![]),
        (eve, 2, 5, 2, vec![]),
        (eve, 3, 6, 3, vec![behind(eve)]),
        // What was made up does not make the truth a change.
        (open, 4, 0, 10, vec![behind(eve)]),
        (mallory, 5, 8, 11, vec![]),
        (eve, 6, 7, 20, vec![behind(eve)]),
        (mallory, 7, 7, 20, vec![]),
        (mallory, 8, 7, 22, vec![behind(eve), behind(mallory)]),
        (mallory, 9, 7, 22, vec![]),
        (mallory, 10, 7, 23, vec![behind(mallory)]),
        (open, 11, 1, 30, vec![all]),
        (open, 12, 1, 31, vec![all]),
        (open, 13, 1, 32, vec![]),
    ] {
        let mut probe = contending_probe(NodeId(7), sequence);
        probe[33] = changes;
        guard.heard(port, Vid::UNTAGGED, &probe, at_s * S);
        let verdicts: Vec<_> = std::iter::from_fn(|| guard.poll(at_s * S)).collect();
        assert_eq!(verdicts, expected, "number {sequence}");
    }
}

#[test]
fn a_node_is_heard_again_after_forged_numbers_far_ahead() {
    let mut guard = guard(1);
    let mut hear = |sequence: u32, changes: u8, at_s: u64| {
        let mut probe = contending_probe(NodeId(7), sequence);
        probe[33] = changes;
        guard.heard(TAP, Vid::UNTAGGED, &probe, at_s * S);
        let relearns = std::iter::from_fn(|| guard.poll(at_s * S));
        relearns
            .filter(|verdict| *verdict == Verdict::Relearn)
            .count()
    };
    assert_eq!(hear(1, 0, 1), 0, "the first one is no change");
    assert_eq!(hear(1_000_000, 1, 2), 1, "somebody else");
    assert_eq!(hear(2, 2, 11), 1, "once more for the change before");
    assert_eq!(hear(3, 3, 12), 1, "a change of its own is news");
}

#[test]
fn the_next_call_is_due_when_something_happens() {
    let mut guard = guard(1);
    let mut now_us = 5 * S;
    for _ in 0..10 {
        assert!(!guard.due(now_us).is_empty());
        let next_us = guard.next_due_us();
        assert_eq!(next_us, now_us + S);
        assert!(guard.due(next_us - 1).is_empty());
        now_us = next_us;
    }
    guard.unwatch(PortId(1));
    assert_eq!(guard.due(now_us).len(), 2);
}

/// Nodes, and what is between them.
struct Net {
    nodes: Vec<Node>,
    /// Ends of tunnels: node and port.
    tunnels: Vec<[(usize, PortId); 2]>,
    /// Between the segments of two nodes, perhaps in one VLAN only.
    cables: Vec<(usize, usize, Option<Vid>)>,
    under_way: Vec<(u64, usize, PortId, Traffic)>,
    verdicts: Rc<RefCell<Vec<(usize, Verdict)>>>,
    /// When each node was told to learn anew because of others.
    relearned: Vec<Vec<u64>>,
    /// Probes put on the way to each port, that of a segment included.
    probes: BTreeMap<(usize, PortId), u64>,
    /// When ports were blocked and opened, and by which node.
    changes: Vec<(u64, usize)>,
    heard: Vec<usize>,
    now_us: u64,
    delay_us: u64,
    loss_percent: u64,
    deaf: bool,
    random: u64,
}

/// A guard whose tags are good enough where nobody calculates.
type Guard = LoopGuard<fn(&[u8]) -> [u8; 16]>;

struct Node {
    id: NodeId,
    guard: Guard,
    source: MacAddr,
    /// Peers are ports from 1.
    peers: u16,
    hub: bool,
    blocked: BTreeSet<PortId>,
    wakes_us: u64,
    /// Probes of others that were passed on this second, by the port they came by.
    passed: BTreeMap<PortId, (u64, u32)>,
}

/// What a switch passes on of others' probes, as two loops with something in common multiply them.
const PROBE_LIMIT_PER_S: u32 = 100;

#[derive(Clone, Debug)]
enum Traffic {
    Probe(Vec<u8>),
    /// A broadcast, with the times it may still be passed on.
    Broadcast(u8),
}

impl Node {
    fn may_pass(&mut self, port: PortId, now_us: u64) -> bool {
        let (second, count) = self.passed.entry(port).or_default();
        if *second != now_us / S {
            (*second, *count) = (now_us / S, 0);
        }
        *count += 1;
        *count <= PROBE_LIMIT_PER_S
    }
}

impl Net {
    fn new(nodes: usize, seed: u64) -> Self {
        let mut net = Self {
            nodes: Vec::new(),
            tunnels: Vec::new(),
            cables: Vec::new(),
            under_way: Vec::new(),
            verdicts: Rc::default(),
            relearned: vec![Vec::new(); nodes],
            probes: BTreeMap::new(),
            changes: Vec::new(),
            heard: vec![0; nodes],
            now_us: 0,
            delay_us: 20 * MS,
            loss_percent: 0,
            deaf: false,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        };
        for number in 0..nodes {
            let id = NodeId(net.random());
            let source = source([0, 0, 0, number as u8]);
            let mut guard: Guard = LoopGuard::new(id, source, hash);
            guard.watch(TAP, 0, []);
            let wakes_us = net.random() % S;
            net.nodes.push(Node {
                id,
                guard,
                source,
                peers: 0,
                hub: false,
                blocked: BTreeSet::new(),
                wakes_us,
                passed: BTreeMap::new(),
            });
        }
        net
    }

    fn mesh(nodes: usize, seed: u64) -> Self {
        let mut net = Self::new(nodes, seed);
        // Ports are numbered as it happens, so that nodes count their peers in different orders.
        let mut pairs: Vec<_> = (0..nodes)
            .flat_map(|one| (one + 1..nodes).map(move |two| (one, two)))
            .collect();
        while !pairs.is_empty() {
            let at = net.random() as usize % pairs.len();
            let (one, two) = pairs.swap_remove(at);
            net.tunnel(one, two);
        }
        net
    }

    /// A hub, node 0, and so many others.
    fn star(spokes: usize, seed: u64) -> Self {
        let mut net = Self::new(spokes + 1, seed);
        for spoke in 1..=spokes {
            net.tunnel(0, spoke);
        }
        net.nodes[0].hub = true;
        net
    }

    fn tunnel(&mut self, one: usize, two: usize) {
        let ends = [(one, two), (two, one)].map(|(node, peer)| {
            let at = &mut self.nodes[node];
            at.peers += 1;
            let port = PortId(at.peers);
            // The same everywhere: a peer's rank is its own.
            at.guard.watch(port, peer as u64, []);
            (node, port)
        });
        self.tunnels.push(ends);
    }

    fn cut_tunnel(&mut self, one: usize, two: usize) {
        self.tunnels
            .retain(|ends| ends.map(|(node, _)| node) != [one, two]);
    }

    fn cable(&mut self, one: usize, two: usize) {
        self.cables.push((one, two, None));
    }

    fn cable_in(&mut self, one: usize, two: usize, vid: Vid) {
        self.cables.push((one, two, Some(vid)));
    }

    fn uncable(&mut self) {
        self.cables.clear();
    }

    fn all_hubs(&mut self) {
        self.nodes.iter_mut().for_each(|node| node.hub = true);
    }

    fn watch_vlans(&mut self, vlans: &[Vid]) {
        for node in &mut self.nodes {
            for port in (0..=node.peers).map(PortId) {
                node.guard.watch(port, 0, vlans.iter().copied());
            }
        }
    }

    fn run(&mut self, time_us: u64) {
        let end_us = self.now_us + time_us;
        while self.now_us < end_us {
            self.now_us += STEP_US;
            self.arrive();
            for number in 0..self.nodes.len() {
                self.tick(number);
            }
        }
    }

    fn tick(&mut self, number: usize) {
        let now_us = self.now_us;
        let node = &mut self.nodes[number];
        if now_us < node.wakes_us {
            return;
        }
        while let Some(verdict) = node.guard.poll(now_us) {
            match verdict {
                Verdict::Block { port, .. } => assert!(node.blocked.insert(port)),
                Verdict::Unblock { port } => assert!(node.blocked.remove(&port)),
                Verdict::Relearn => {
                    self.relearned[number].push(now_us);
                    continue;
                }
                Verdict::RelearnBehind { .. } => unreachable!("no port is confined"),
                Verdict::Behind { .. } => unreachable!("said when it returned"),
            }
            self.changes.push((now_us, number));
            self.verdicts.borrow_mut().push((number, verdict));
        }
        for probe in node.guard.due(now_us) {
            self.send(number, probe.port, &Traffic::Probe(probe.frame));
        }
    }

    fn arrive(&mut self) {
        let now_us = self.now_us;
        let due: Vec<_> = self
            .under_way
            .extract_if(.., |(at_us, ..)| *at_us <= now_us)
            .collect();
        for (_, node, port, traffic) in due {
            self.deliver(node, port, traffic);
        }
    }

    fn deliver(&mut self, number: usize, port: PortId, traffic: Traffic) {
        let (now_us, deaf) = (self.now_us, self.deaf);
        let node = &mut self.nodes[number];
        let is_blocked = node.blocked.contains(&port);
        if let Traffic::Probe(frame) = &traffic {
            if header(frame).src() == node.source {
                node.guard.returned(port, frame, now_us);
                return;
            }
            if !deaf {
                node.guard.heard(port, header(frame).vid(), frame, now_us);
            }
        }
        if is_blocked || matches!(traffic, Traffic::Probe(_)) && !node.may_pass(port, now_us) {
            return;
        }
        for egress in (0..=self.nodes[number].peers).map(PortId) {
            let node = &self.nodes[number];
            let may = node.hub || port == TAP || egress == TAP;
            if egress != port && may && !node.blocked.contains(&egress) {
                self.send(number, egress, &traffic);
            }
        }
    }

    /// Puts something on the segment or the tunnel at a port.
    fn send(&mut self, number: usize, port: PortId, traffic: &Traffic) {
        if port == TAP {
            self.send_to_segment(number, traffic);
            return;
        }
        let ends = self.tunnels.iter().find_map(|&[one, two]| {
            let here = (number, port);
            (one == here)
                .then_some(two)
                .or_else(|| (two == here).then_some(one))
        });
        if let Some((peer, peer_port)) = ends {
            self.put_under_way(self.delay_us, peer, peer_port, traffic);
        }
    }

    fn send_to_segment(&mut self, from: usize, traffic: &Traffic) {
        for to in self.segment(from, traffic) {
            if let Traffic::Broadcast(_) = traffic {
                self.heard[to] += 1;
            }
            if to != from {
                self.put_under_way(STEP_US, to, TAP, traffic);
            }
        }
    }

    fn put_under_way(&mut self, delay_us: u64, to: usize, port: PortId, traffic: &Traffic) {
        let traffic = match traffic {
            // A storm: enough was seen of it.
            Traffic::Broadcast(0) => return,
            Traffic::Broadcast(hops) => Traffic::Broadcast(hops - 1),
            Traffic::Probe(_) if self.random() % 100 < self.loss_percent => return,
            Traffic::Probe(frame) => {
                *self.probes.entry((to, port)).or_default() += 1;
                Traffic::Probe(frame.clone())
            }
        };
        self.under_way
            .push((self.now_us + delay_us, to, port, traffic));
    }

    /// The nodes on the segment of `node`, cables included, in the VLAN of what is sent there.
    fn segment(&self, node: usize, traffic: &Traffic) -> BTreeSet<usize> {
        let vid = match traffic {
            Traffic::Probe(frame) => header(frame).vid(),
            Traffic::Broadcast(_) => Vid::UNTAGGED,
        };
        let mut on_it = BTreeSet::from([node]);
        loop {
            let before = on_it.len();
            for &(one, two, only) in &self.cables {
                let carries = only.is_none_or(|only| only == vid);
                if carries && (on_it.contains(&one) || on_it.contains(&two)) {
                    on_it.extend([one, two]);
                }
            }
            if on_it.len() == before {
                return on_it;
            }
        }
    }

    fn blocked(&self) -> Vec<(usize, PortId)> {
        let nodes = self.nodes.iter().enumerate();
        nodes
            .flat_map(|(number, node)| node.blocked.iter().map(move |&port| (number, port)))
            .collect()
    }

    /// Each node has learned anew since the last change of another one, and soon.
    fn assert_all_relearned(&mut self, within_us: u64, seed: u64) {
        let changes = std::mem::take(&mut self.changes);
        assert!(!changes.is_empty(), "seed {seed}");
        for node in 0..self.nodes.len() {
            let others = changes.iter().filter(|&&(_, by)| by != node);
            let Some(last_us) = others.map(|&(at_us, _)| at_us).max() else {
                continue;
            };
            let is_timely = |at_us: &&u64| (last_us..last_us + within_us).contains(*at_us);
            let relearned = &self.relearned[node];
            assert!(
                relearned.iter().filter(is_timely).count() >= 2,
                "seed {seed}, node {node}: {relearned:?} after {changes:?}"
            );
        }
    }

    fn verdicts(&self) -> Vec<(usize, Verdict)> {
        self.verdicts.borrow().clone()
    }

    fn assert_everyone_hears_once(&mut self) {
        for from in 0..self.nodes.len() {
            self.heard.fill(0);
            let broadcast = Traffic::Broadcast(20);
            let own = self.segment(from, &broadcast);
            for &node in &own {
                self.put_under_way(STEP_US, node, TAP, &broadcast);
            }
            self.run(S);
            for (node, &heard) in self.heard.iter().enumerate() {
                let expected = usize::from(!own.contains(&node));
                assert_eq!(
                    heard,
                    expected,
                    "from {from} to {node}, blocked: {:?}",
                    self.blocked()
                );
            }
        }
    }

    fn random(&mut self) -> u64 {
        // Splitmix64.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// A guard with a TAP and two peers.
fn guard(node: u64) -> Guard {
    let source = source([0, 0, 1, 0]);
    let mut guard: Guard = LoopGuard::new(NodeId(node), source, hash);
    for port in 0..3 {
        guard.watch(PortId(port), 0, []);
    }
    guard
}

fn first_probe(guard: &mut Guard, port: PortId, now_us: u64) -> Vec<u8> {
    let mut probes = guard.due(now_us).into_iter();
    let probe = probes.find(|probe| probe.port == port);
    probe.expect("a round on all ports").frame
}

/// What a node sends.
fn probe_of(node: NodeId, sequence: u32) -> Vec<u8> {
    let mut probe = first_probe(&mut guard(node.0), TAP, 0);
    probe[28..32].copy_from_slice(&sequence.to_be_bytes());
    probe
}

/// What a node sends that sees a loop, or whoever wants to seem one.
fn contending_probe(node: NodeId, sequence: u32) -> Vec<u8> {
    let mut probe = first_probe(&mut guard(node.0), TAP, 0);
    probe[15] |= 1;
    probe[28..32].copy_from_slice(&sequence.to_be_bytes());
    probe
}

fn hash(bytes: &[u8]) -> [u8; 16] {
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u128, |hash, &byte| {
            (hash ^ u128::from(byte)).wrapping_mul(0x0100_0000_01b3_1234_5678_9abc_def1)
        });
    hash.to_be_bytes()
}

fn header(frame: &[u8]) -> Headers<'_> {
    Headers::parse(frame).expect("a probe is a frame")
}

fn vid(value: u16) -> Vid {
    Vid::new(value).expect("12 bits")
}
