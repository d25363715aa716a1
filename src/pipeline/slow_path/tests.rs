// SPDX-License-Identifier: MIT OR Apache-2.0
//! The slow path with a TAP of its own, and without the task that runs it.

use patchcord_bridge::{
    Inside, MacAddr, PortConfig, Switch, SwitchConfig, Vid,
    loops::{self, LoopGuard, NodeId},
};

use super::{loops::notify_moved, *};
use crate::{
    crypto::keys::PrivateKey,
    io::tap::{Backend, Tap, TapOptions},
    pipeline::{
        shared::{InjectedFrames, ToControl},
        view::{EVENTS, Stopped},
    },
    proto::guard::Mac1Check,
    testing::in_namespace,
};

/// With a TAP of its own and peers, and the frames that it has queued for sending.
fn slow_path(config: SwitchConfig, setup: SlowPathConfig) -> (SlowPath, InjectedFrames) {
    let options = TapOptions {
        name: "pc-slow".to_owned(),
        backend: Backend::Vnet,
        express: false,
    };
    let (_, mut queues) = Tap::open(&options, 1).unwrap();
    let to_control = ToControl {
        handshakes: mpsc::channel(1).0,
        punted: mpsc::channel(1).0,
    };
    let peers = config.ports[1..].iter().map(|_| ("peer".to_owned(), 1));
    let peers = peers.collect();
    let mac1 = Mac1Check::new(&PrivateKey::generate().public_key());
    let switch = Switch::new(config, [0; 2]);
    let (shared, injected) = Shared::new(switch, false, mac1, 1522, to_control).unwrap();
    shared.names.set(peers);
    let queue = Arc::new(queues.remove(0));
    let events = mpsc::channel(1).0;
    let slow_path = SlowPath::new(Arc::new(shared), queue, setup, events);
    (slow_path, injected)
}

fn ports(guards: &[bool]) -> SwitchConfig {
    let port = |&spoof_guard: &bool| PortConfig {
        spoof_guard,
        ..PortConfig::default()
    };
    SwitchConfig {
        ports: guards.iter().map(port).collect(),
        ..SwitchConfig::default()
    }
}

#[test]
fn a_loop_does_not_keep_news_from_the_owner() {
    let (events, mut told) = mpsc::channel(EVENTS);
    for _ in 0..10 * EVENTS {
        notify_moved(&events);
    }
    let broken = EngineEvent::Broken(Stopped::TapLost);
    events.try_send(broken).expect("there is room");
    assert!(matches!(told.try_recv(), Ok(EngineEvent::StationsMoved)));
}

#[test]
fn hosts_are_asked_again_when_a_peer_came_unheard() {
    in_namespace(|| {
        let config = ports(&[false; 2]);
        let setup = SlowPathConfig::of(&config, true, true);
        let (mut slow_path, injected) = slow_path(config, setup);
        let mut asks = |comes: bool| {
            if comes {
                // The queue is full.
                slow_path.shared.presence.peer_up(PortId(1));
            }
            slow_path.tick();
            std::iter::from_fn(|| injected.take()).count()
        };
        let asked = [false, false, true, false].map(&mut asks);
        assert_eq!(asked, [2, 0, 2, 0], "in both families, once");
    });
}

#[test]
fn a_lost_peer_is_removed_however_far_behind_the_slow_path_is() {
    in_namespace(|| {
        let config = ports(&[false; 3]);
        let setup = SlowPathConfig::of(&config, true, true);
        // Nothing fits in its queue.
        let (mut slow_path, _injected) = slow_path(config, setup);
        let presence = |slow_path: &mut SlowPath| {
            slow_path.tick();
            slow_path.groups.as_ref().unwrap().present()
        };
        let [stays, goes] = [1, 2].map(PortId);
        for port in [stays, goes] {
            slow_path.shared.presence.peer_up(port);
        }
        assert_eq!(presence(&mut slow_path), [stays, goes].into());
        slow_path.shared.presence.peer_down(goes);
        assert_eq!(presence(&mut slow_path), [stays].into());
    });
}

fn is_changed(slow_path: &SlowPath) -> bool {
    slow_path.groups.as_ref().unwrap().is_changed()
}

/// A frame with an IGMPv2 message for a group.
fn igmp(kind: u8, [a, b, c, d]: [u8; 4]) -> Vec<u8> {
    let header = [0x46, 0, 0, 32, 0, 0, 0, 0, 1, 2, 0, 0, 10, 0, 0, 1];
    let mut header = [&header[..], &[a, b, c, d, 0x94, 4, 0, 0]].concat();
    let mut message = [kind, 0, 0, 0, a, b, c, d];
    let sum = internet_checksum(&header);
    header[10..12].copy_from_slice(&sum);
    let sum = internet_checksum(&message);
    message[2..4].copy_from_slice(&sum);
    let ethernet = [1, 0, 0x5e, b & 0x7f, c, d, 2, 0, 0, 0, 0, 1, 8, 0];
    [&ethernet[..], &header, &message].concat()
}

fn internet_checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum: u32 = words.sum();
    (!((sum >> 16) + (sum & 0xffff)) as u16).to_be_bytes()
}

#[test]
fn changes_by_a_report_take_effect_with_it() {
    const GROUP: [u8; 4] = [239, 1, 1, 1];
    in_namespace(|| {
        let config = ports(&[false; 3]);
        let setup = SlowPathConfig::of(&config, true, true);
        let (mut slow_path, injected) = slow_path(config, setup);
        // The first queries.
        slow_path.tick();
        slow_path.act();
        assert_eq!(std::iter::from_fn(|| injected.take()).count(), 2);
        const MEMBER: PortId = PortId(2);
        // Whether it changes anything; the data threads then get the new table.
        let see = |slow_path: &mut SlowPath, frame: Vec<u8>| {
            slow_path.handle_event(SlowPathEvent::Punted(PuntedFrame {
                kind: Kind::Membership,
                ingress: MEMBER,
                inside: Inside::untagged(Vid::UNTAGGED),
                frame: frame.into(),
            }));
            let was_changed = is_changed(slow_path);
            // Like the task, which waits for a frame or until something is due.
            for _ in 0..1000 {
                let wait = slow_path.next_due().saturating_duration_since(clock::now());
                if is_changed(slow_path) {
                    std::thread::sleep(wait);
                    slow_path.act();
                }
            }
            assert!(!is_changed(slow_path), "it is shown");
            was_changed
        };
        let join = igmp(0x16, GROUP);
        assert!(see(&mut slow_path, join.clone()));
        assert!(!see(&mut slow_path, join));
        // Hosts are queried at once whether another host wants it.
        let leave = igmp(0x17, GROUP);
        see(&mut slow_path, leave);
        assert_eq!(std::iter::from_fn(|| injected.take()).count(), 1);
        slow_path.shared.presence.peer_down(MEMBER);
        slow_path.handle_presence();
        slow_path.groups.as_mut().unwrap().set_due();
        slow_path.act();
        assert!(!is_changed(&slow_path), "it is shown that the peer is gone");
    });
}

#[test]
fn a_guarded_port_has_only_its_own_stations_learned_anew() {
    let [owner, eve] = [1, 2].map(PortId);
    let [theirs, hers] = [1, 2].map(|name| MacAddr([2, 0, 0, 0, 0, name]));
    for (guarded, home) in [(true, Some(owner)), (false, None)] {
        in_namespace(|| {
            let config = ports(&[false, false, guarded]);
            let mut setup = SlowPathConfig::of(&config, false, true);
            setup.loops = Some(Probes::random());
            let (mut slow_path, _injected) = slow_path(config, setup);
            let shared = slow_path.shared.clone();
            let fdb = &shared.fdb;
            fdb.learn(Vid::UNTAGGED, theirs, owner, 0);
            fdb.learn(Vid::UNTAGGED, hers, eve, 0);
            let mut node = LoopGuard::new(NodeId(7), loops::source([7; 4]), |_| [0; 16]);
            node.watch(PortId::TAP, 0, []);
            let mut frame = node.due(0).remove(0).frame;
            for number in 1..=2 {
                // The sequence number and the number of changes.
                (frame[31], frame[33]) = (number, number);
                slow_path.handle_event(SlowPathEvent::Punted(PuntedFrame {
                    kind: Kind::Probe,
                    ingress: eve,
                    inside: Inside::untagged(Vid::UNTAGGED),
                    frame: frame.as_slice().into(),
                }));
            }
            slow_path.act();
            assert_eq!(fdb.lookup(Vid::UNTAGGED, theirs, 0), home, "{guarded}");
            assert_eq!(fdb.lookup(Vid::UNTAGGED, hers, 0), None, "{guarded}");
        });
    }
}
