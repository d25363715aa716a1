// SPDX-License-Identifier: MIT OR Apache-2.0
//! Only a peer with the right keys gets a session, and nothing crosses without one.

use crate::kit::frames::{BROADCAST, EXPERIMENTAL, frame};
use crate::kit::pair::{Pair, Plan};
use crate::kit::process::{eventually, millis, secs};
use crate::kit::site::{Peer, Settings, Site, another_public_key, patchcord};

/// Brings both sides up, and tries to get frames across until `site` counts `reason`.
fn assert_refused(pair: &mut Pair, reason: &str, at_b: bool) {
    pair.up();
    pair.a.process().wait_for("ready", secs(20));
    pair.b.process().wait_for("ready", secs(20));
    let hello = |from: [u8; 6]| frame(BROADCAST, from, &[], EXPERIMENTAL, 100, 1);
    let (from_a, from_b) = (hello(pair.at_a.mac), hello(pair.at_b.mac));
    let counting: &Site = if at_b { &pair.b } else { &pair.a };
    eventually(secs(10), &format!("`{reason}` is counted"), || {
        pair.at_a.send(&from_a);
        pair.at_b.send(&from_b);
        (counting.drops(reason) > 0).then_some(())
    });
    assert!(
        !pair.at_b.receives(&from_a, millis(500)),
        "no frame of A reaches B"
    );
    assert!(
        !pair.at_a.receives(&from_b, millis(100)),
        "no frame of B reaches A"
    );
    for site in [&pair.a, &pair.b] {
        let peer = site.peer();
        assert_ne!(peer.state, "up", "{}", site.tunnel);
        assert_eq!(peer.handshakes, 0, "{}", site.tunnel);
    }
}

fn peers(pair: &Pair) -> [Peer; 2] {
    [
        pair.b.as_peer(Some(pair.b.uplink.v4.into())),
        pair.a.as_peer(None),
    ]
}

#[test]
fn an_unknown_key_is_refused() {
    let mut pair = Pair::caller_and_waiter();
    let [_, a_at_b] = peers(&pair);
    pair.b.configure(
        &pair.settings,
        &[Peer {
            public_key: another_public_key(),
            ..a_at_b
        }],
    );
    assert_refused(&mut pair, "unknown-peer", true);
}

#[test]
fn a_peer_with_another_key_than_expected_is_not_answered() {
    let mut pair = Pair::caller_and_waiter();
    let [b_at_a, _] = peers(&pair);
    pair.a.configure(
        &pair.settings,
        &[Peer {
            public_key: another_public_key(),
            ..b_at_a
        }],
    );
    // mac1 is made for another public key.
    assert_refused(&mut pair, "bad-mac", true);
}

#[test]
fn different_preshared_keys_do_not_match() {
    let mut pair = Pair::caller_and_waiter();
    let [b_at_a, a_at_b] = peers(&pair);
    let psk = || Some(patchcord(&["genpsk"], ""));
    pair.a.configure(
        &pair.settings,
        &[Peer {
            preshared_key: psk(),
            ..b_at_a
        }],
    );
    pair.b.configure(
        &pair.settings,
        &[Peer {
            preshared_key: psk(),
            ..a_at_b
        }],
    );
    // The preshared key enters with the second message (IKpsk2), so the caller notices.
    assert_refused(&mut pair, "bad-handshake", false);
}

#[test]
fn a_preshared_key_on_one_side_only_does_not_match() {
    let mut pair = Pair::caller_and_waiter();
    let [b_at_a, _] = peers(&pair);
    pair.a.configure(
        &pair.settings,
        &[Peer {
            preshared_key: Some(patchcord(&["genpsk"], "")),
            ..b_at_a
        }],
    );
    assert_refused(&mut pair, "bad-handshake", false);
}

#[test]
fn the_same_preshared_key_works() {
    let mut pair = Pair::caller_and_waiter();
    let [b_at_a, a_at_b] = peers(&pair);
    let psk = Some(patchcord(&["genpsk"], ""));
    pair.a.configure(
        &pair.settings,
        &[Peer {
            preshared_key: psk.clone(),
            ..b_at_a
        }],
    );
    pair.b.configure(
        &pair.settings,
        &[Peer {
            preshared_key: psk,
            ..a_at_b
        }],
    );
    pair.up();
    pair.connect(secs(10));
    pair.a.wait_state("up", secs(20));
    pair.b.wait_state("up", secs(20));
}

#[test]
fn the_configured_cipher_is_used() {
    for (cipher, tunnel) in [
        ("aes-256-gcm", "cipher = \"aes-256-gcm\""),
        ("chacha20-poly1305", "cipher = \"chacha20-poly1305\""),
        ("aegis-128x", "cipher = \"aegis-128x\""),
    ] {
        let settings = Settings {
            tunnel,
            ..Settings::default()
        };
        let pair = Pair::start(Plan {
            settings,
            ..Plan::default()
        });
        assert_eq!(pair.a.peer().cipher.as_deref(), Some(cipher));
        assert_eq!(pair.b.peer().cipher.as_deref(), Some(cipher));
    }
}

#[test]
fn sides_that_choose_by_themselves_agree_on_a_cipher() {
    let pair = Pair::start(Plan::default());
    let [a, b] = [&pair.a, &pair.b].map(|side| side.peer().cipher.unwrap());
    assert_eq!(a, b);
    assert!(["aegis-128x", "aes-256-gcm", "chacha20-poly1305"].contains(&&*a));
}

#[test]
fn a_side_that_chooses_by_itself_follows_one_that_does_not() {
    let mut pair = Pair::caller_and_waiter();
    let [b_at_a, a_at_b] = peers(&pair);
    let aegis = Settings {
        tunnel: "cipher = \"aegis-128x\"",
        ..Settings::default()
    };
    pair.a.configure(&pair.settings, &[b_at_a]);
    pair.b.configure(&aegis, &[a_at_b]);
    pair.up();
    pair.connect(secs(10));
    assert_eq!(pair.a.peer().cipher.as_deref(), Some("aegis-128x"));
    assert_eq!(pair.b.peer().cipher.as_deref(), Some("aegis-128x"));
}

#[test]
fn sides_that_allow_no_common_cipher_do_not_connect() {
    for (at_a, at_b) in [
        ("cipher = \"aes-256-gcm\"", "cipher = \"chacha20-poly1305\""),
        ("cipher = \"aegis-128x\"", "cipher = \"aes-256-gcm\""),
    ] {
        let mut pair = Pair::caller_and_waiter();
        let [b_at_a, a_at_b] = peers(&pair);
        let only = |tunnel| Settings {
            tunnel,
            ..Settings::default()
        };
        pair.a.configure(&only(at_a), &[b_at_a]);
        pair.b.configure(&only(at_b), &[a_at_b]);
        assert_refused(&mut pair, "incompatible", true);
    }
}
