// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a port refuses: bridges, floods, and addresses of others.

use super::DropReason::{
    BpduGuard, BpduRefused, BroadcastLimited, MulticastLimited, UnknownLimited,
};
use super::*;
use crate::config::BpduPolicy;
use crate::limit::FloodLimits;

#[test]
fn a_bridge_behind_a_port_is_welcome_ignored_or_shut_out() {
    let bpdu = frame(
        [0x01, 0x80, 0xc2, 0, 0, 0],
        station(1),
        &[0, 38, 0x42, 0x42, 3],
    );
    let data = frame([0xff; 6], station(2), &[8, 6]);
    let (pass, drop, guard) = (BpduPolicy::Pass, BpduPolicy::Drop, BpduPolicy::Guard);
    for (bpdus, frame, at_s, verdict, blocked_after) in [
        (pass, &bpdu, &[0, 1][..], Ok(Flood), false),
        (drop, &bpdu, &[0, 1], Err(BpduRefused), false),
        (drop, &data, &[0, 1], Ok(Flood), false),
        (guard, &data, &[0], Ok(Flood), false),
        (guard, &bpdu, &[100], Err(BpduGuard), true),
        (guard, &data, &[100, 129], Err(PortBlocked), true),
        (guard, &data, &[130, 131], Ok(Flood), false),
        (guard, &bpdu, &[102, 129], Err(BpduGuard), true),
    ] {
        let switch = switch([(); 3].map(|()| PortConfig {
            bpdus,
            ..PortConfig::default()
        }));
        if bpdus == guard && at_s.len() == 2 {
            assert_eq!(at(&switch, TAP, &bpdu, 100), Err(BpduGuard));
        }
        for &at_s in at_s {
            let seen = at(&switch, TAP, frame, at_s);
            assert_eq!(seen, verdict, "{bpdus:?} at {at_s}");
            assert_eq!(
                switch.blocks(TAP).by_bpdu,
                blocked_after,
                "{bpdus:?}, {at_s}"
            );
        }
    }
}

#[test]
fn a_silent_port_opens_by_the_clock() {
    let guarded = PortConfig {
        bpdus: BpduPolicy::Guard,
        ..PortConfig::default()
    };
    let switch = switch([guarded.clone(), guarded.clone(), guarded]);
    let start_s = u32::MAX - 10; // the clock wraps under way
    let now = |after_s: u32| Now {
        seconds: start_s.wrapping_add(after_s),
        micros: 0,
    };
    let bpdu = frame(
        [0x01, 0x80, 0xc2, 0, 0, 0],
        station(1),
        &[0, 38, 0x42, 0x42, 3],
    );
    for again_s in [0, 20] {
        assert_eq!(
            switch.forward_frame(TAP, &bpdu, 1, now(again_s)),
            Err(BpduGuard)
        );
    }
    for (after_s, blocked) in [(20, true), (49, true), (50, false)] {
        switch.poll(now(after_s));
        assert_eq!(switch.blocks(TAP).by_bpdu, blocked, "{after_s}");
    }
}

#[test]
fn a_port_floods_no_more_than_its_limits() {
    let limits = FloodLimits {
        broadcast: 1,
        multicast: 2,
        unknown: 3,
    };
    let limited = PortConfig {
        limits,
        ..PortConfig::default()
    };
    let open = PortConfig {
        limits: FloodLimits::OFF,
        ..PortConfig::default()
    };
    let multicast = [1, 0, 0x5e, 0, 0, 0xfb];
    for (dst, reason) in [
        ([0xff; 6], BroadcastLimited),
        (multicast, MulticastLimited),
        (station(NOWHERE), UnknownLimited),
    ] {
        let switch = switch([limited.clone(), open.clone(), PortConfig::default()]);
        let frame = frame(dst, station(1), &[8, 0]);
        let send = |port, segments| {
            let decision = switch.forward_frame(port, &frame, segments, Now::default());
            decision.map(|_| ())
        };
        assert_eq!(send(TAP, 63), Ok(()), "{reason:?}");
        assert_eq!(send(TAP, 2), Err(reason), "a super-frame that does not fit");
        assert_eq!(send(TAP, 1), Ok(()), "{reason:?}: the last of the burst");
        assert_eq!(send(TAP, 1), Err(reason));
        assert_eq!(send(PEER_1, 1_000_000), Ok(()), "{reason:?}: no limit");
        assert_eq!(send(PEER_2, 64), Ok(()), "{reason:?}: another's limit");
        let counted: Vec<_> = switch.refusals(TAP).collect();
        assert_eq!(
            counted,
            [(reason, 3)],
            "a super-frame counts as its segments"
        );
        assert_eq!(switch.refusals(PEER_2).count(), 0);
    }
}

#[test]
fn a_known_station_is_reached_without_limit() {
    let switch = populated(true);
    let frame = frame(station(ON_PEER_1), station(ON_TAP), &[8, 0]);
    for _ in 0..100_000 {
        assert_eq!(at(&switch, TAP, &frame, 0), Ok(Port(PEER_1)));
    }
}

#[test]
fn a_guarded_port_takes_no_address_from_another() {
    let guarded = PortConfig {
        spoof_guard: true,
        ..PortConfig::default()
    };
    let switch = switch([PortConfig::default(), guarded, PortConfig::default()]);
    let wall = MacAddr(station(9));
    let fdb = switch.fdb();
    fdb.insert(Vid::UNTAGGED, wall, TAP, Origin::Static, 0)
        .unwrap();
    for (src, port, at_s, verdict) in [
        (1, TAP, 0, Ok(Flood)),
        (1, PEER_1, 1, Err(SourceSpoofed)),
        (2, PEER_1, 1, Ok(Flood)),
        (2, PEER_2, 2, Ok(Flood)), // only the guarded port refuses
        (2, PEER_1, 3, Err(SourceSpoofed)),
        (9, PEER_1, 3, Err(SourceSpoofed)),
        (9, PEER_2, 3, Ok(Flood)), // assigned elsewhere, which is no reason without a guard
        (1, PEER_1, 300, Ok(Flood)), // silent for so long that it may have moved
    ] {
        let frame = frame([0xff; 6], station(src), &[8, 6]);
        assert_eq!(
            at(&switch, port, &frame, at_s),
            verdict,
            "{src}, {port:?}, {at_s}"
        );
        let home = fdb.lookup(Vid::UNTAGGED, MacAddr(station(src)), at_s);
        let stays = verdict.is_err() || src == 9;
        assert_eq!(home == Some(port), !stays, "{src}, {port:?}, {at_s}");
    }
}

#[test]
fn a_station_that_takes_a_site_off_the_network_does_not_get_its_addresses() {
    for (guards, verdict, home) in [
        (true, Err(SourceSpoofed), Some(PEER_2)),
        (false, Ok(Flood), Some(PEER_1)),
    ] {
        let guarded = PortConfig {
            spoof_guard: guards,
            ..PortConfig::default()
        };
        let switch = switch([PortConfig::default(), guarded, PortConfig::default()]);
        let owner = frame([0xff; 6], station(ON_PEER_2), &[8, 6]);
        let to_owner = frame(station(ON_PEER_2), station(ON_TAP), &[8, 0]);
        at(&switch, PEER_2, &owner, 0).unwrap();
        switch.relearn_behind(PEER_2);
        assert_eq!(at(&switch, TAP, &to_owner, 1), Ok(Flood), "unknown");
        assert_eq!(at(&switch, PEER_1, &owner, 1), verdict, "{guards}");
        if guards {
            assert_eq!(at(&switch, PEER_2, &owner, 2), Ok(Flood), "it is back");
        }
        let vid = Vid::UNTAGGED;
        let found = switch.fdb().lookup(vid, MacAddr(station(ON_PEER_2)), 2);
        assert_eq!(found, home, "{guards}");
    }
}

/// A loop, or a suspected one, does not release any address.
#[test]
fn a_station_that_has_a_port_blocked_does_not_get_its_addresses() {
    type Change = fn(&Switch);
    let changes: [(&str, Change); 4] = [
        ("blocked", |switch| {
            switch.set_blocked(PEER_2, true).unwrap()
        }),
        ("opened", |switch| {
            switch.set_blocked(TAP, true).unwrap();
            switch.set_blocked(TAP, false).unwrap();
        }),
        ("behind", |switch| switch.relearn_behind(PEER_2)),
        ("anew", Switch::relearn),
    ];
    for (guards, (name, change)) in [true, false]
        .into_iter()
        .flat_map(|on| changes.map(|it| (on, it)))
    {
        let guarded = PortConfig {
            spoof_guard: guards,
            ..PortConfig::default()
        };
        let switch = switch([PortConfig::default(), guarded, PortConfig::default()]);
        let owner = frame([0xff; 6], station(ON_PEER_2), &[8, 6]);
        at(&switch, PEER_2, &owner, 0).unwrap();
        change(&switch);
        let home = |now_s| {
            let mac = MacAddr(station(ON_PEER_2));
            switch.fdb().lookup(Vid::UNTAGGED, mac, now_s)
        };
        assert_eq!(home(1), None, "{name}: it is learned anew");
        let verdict = at(&switch, PEER_1, &owner, 1);
        match guards {
            true => assert_eq!(verdict, Err(SourceSpoofed), "{name}"),
            false => assert_eq!(verdict, Ok(Flood), "{name}"),
        }
        // On an unblocked port without a guard it is learned again; its former port did not keep it
        // out.
        let other = if guards { TAP } else { PEER_1 };
        at(&switch, other, &owner, 2).unwrap();
        assert_eq!(home(2), Some(other), "{name}");
    }
}

#[test]
fn only_allowed_sources_may_send_and_others_teach_nothing() {
    let allowed = PortConfig {
        allowed_sources: Some(Sources::new(vec![MacAddr(station(1))]).unwrap()),
        ..PortConfig::default()
    };
    let switch = switch([allowed, PortConfig::default(), PortConfig::default()]);
    for (src, port, verdict) in [
        (1, TAP, Ok(Flood)),
        (2, TAP, Err(SourceNotAllowed)),
        (3, PEER_1, Ok(Flood)),
    ] {
        let frame = frame([0xff; 6], station(src), &[8, 6]);
        assert_eq!(at(&switch, port, &frame, 0), verdict, "{src} from {port:?}");
        let home = switch.fdb().lookup(Vid::UNTAGGED, MacAddr(station(src)), 0);
        assert_eq!(home, verdict.is_ok().then_some(port), "{src}");
    }
}
