// SPDX-License-Identifier: MIT OR Apache-2.0
//! A configuration that changes while the tunnel runs: all of it or nothing, and what did not change loses
//! no frame.

use std::fs;

use nix::sys::signal::Signal;

use crate::kit::frames::{BROADCAST, DOT1Q, EXPERIMENTAL, Flow, Tally, frame};
use crate::kit::host::{lonely_tunnel, run_host};
use crate::kit::mesh::Mesh;
use crate::kit::pair::{Pair, Plan, connect};
use crate::kit::process::{eventually, millis, secs};
use crate::kit::site::{Site, patchcord, write_secret};

/// Replaces a part of the configuration of a site, which must be there.
fn edit(site: &Site, old: &str, new: &str) {
    let text = fs::read_to_string(&site.config).expect("the configuration is there");
    assert!(text.contains(old), "no {old} in {text}");
    fs::write(&site.config, text.replace(old, new)).expect("it can be written");
}

fn reload(site: &Site, more: &[&str]) -> (Option<i32>, String) {
    site.ran(&[&["reload", site.tunnel.as_str()], more].concat())
}

/// The output of a reload that must succeed.
fn reloaded(site: &Site) -> String {
    let (code, text) = reload(site, &[]);
    assert_eq!(code, Some(0), "{text}");
    text
}

/// Handshakes with the peer of this name.
fn handshakes(site: &Site, peer: &str) -> u64 {
    let peers = site.status().peers.into_iter();
    let found = peers.filter(|it| it.name == peer).map(|it| it.handshakes);
    found.sum()
}

fn give_key(site: &Site, peer: &Site, key: &str) {
    let file = format!("{}-{}.psk", site.tunnel, peer.tunnel);
    let file = site.config.with_file_name(file);
    write_secret(&file, key);
    let line = format!("public-key = \"{}\"\n", peer.public_key);
    let more = format!("{line}preshared-key-file = \"{}\"\n", file.display());
    edit(site, &line, &more);
}

#[test]
fn a_peer_with_another_key_gets_a_new_session_and_the_others_lose_nothing() {
    let mesh = Mesh::start(3);
    mesh.wait_connected();
    let ([a, b, c], [from, to, changed]) = (&mesh.sites[..], &mesh.cables[..]) else {
        panic!("three sites")
    };
    let flow = Flow::between(from, to, 7);
    let name = |site: &Site| site.as_peer(None).name;
    let before = handshakes(a, &name(b));
    let stream = from.stream_to(to, flow, millis(1), |_| 200);
    let key = patchcord(&["genpsk"], "");
    for (site, peer) in [(a, c), (c, a)] {
        if site.n == c.n {
            eventually(secs(20), "the former session ends", || {
                let peers = a.status().peers.into_iter();
                let mut down = peers.filter(|it| it.name == name(c) && it.state != "up");
                down.next()
            });
        }
        give_key(site, peer, &key);
        let text = reloaded(site);
        let expected = format!(
            "~ [[peer]] {} preshared-key-file: none -> a key",
            name(peer)
        );
        assert!(
            text.contains(&expected) && !text.contains(key.trim()),
            "{text}"
        );
    }
    connect(from, changed, secs(30));
    connect(changed, from, secs(30));
    let sent = stream.stop();
    assert!(flow.wait_number(to, sent - 1, secs(20)));
    assert_eq!(flow.tally(to, sent), Tally::perfect(sent));
    assert_eq!(handshakes(a, &name(b)), before, "the session stays");
    assert!(reloaded(a).contains("no changes"));
}

/// The port of the last peer of a site.
fn give_port(site: &Site, lines: &str) {
    let text = fs::read_to_string(&site.config).expect("the configuration is there");
    let text = format!("{text}[peer.port]\n{lines}\n");
    fs::write(&site.config, text).expect("it can be written");
}

#[test]
fn a_port_changes_its_vlan_and_the_others_lose_nothing() {
    let mesh = Mesh::start(3);
    mesh.wait_connected();
    let (a, [from, to, changed]) = (&mesh.sites[0], &mesh.cables[..]) else {
        panic!("three sites")
    };
    let flow = Flow::between(from, to, 7);
    let stream = from.stream_to(to, flow, millis(1), |_| 200);
    let before = handshakes(a, &mesh.sites[2].as_peer(None).name);
    give_port(a, "access = 10\nmax-broadcast = 5000");
    let text = reloaded(a);
    assert!(text.contains("access: none -> 10"), "{text}");

    let tagged = frame(BROADCAST, from.mac, &[(DOT1Q, 10)], EXPERIMENTAL, 104, 1);
    let untagged = frame(BROADCAST, from.mac, &[], EXPERIMENTAL, 100, 1);
    let other = frame(BROADCAST, from.mac, &[], EXPERIMENTAL, 100, 2);
    from.send(&other);
    from.send(&tagged);
    assert!(
        changed.receives(&untagged, secs(20)),
        "VLAN 10 leaves untagged"
    );
    assert!(
        to.receives(&tagged, secs(20)),
        "the other port is as before"
    );
    assert_eq!(changed.count(&other), 0, "no other VLAN leaves there");
    let sent = stream.stop();
    assert!(flow.wait_number(to, sent - 1, secs(20)));
    assert_eq!(flow.tally(to, sent), Tally::perfect(sent));
    let after = handshakes(a, &mesh.sites[2].as_peer(None).name);
    assert_eq!(after, before, "the session stays");

    // And back.
    edit(a, "access = 10\n", "");
    assert!(reloaded(a).contains("access: 10 -> none"));
    let third = frame(BROADCAST, from.mac, &[], EXPERIMENTAL, 100, 3);
    from.send(&third);
    assert!(changed.receives(&third, secs(20)));

    // What hangs on the slow path waits for a restart.
    edit(
        a,
        "max-broadcast = 5000",
        "max-broadcast = 5000\nspoof-guard = true",
    );
    let (code, text) = reload(a, &[]);
    assert!(
        code == Some(1) && text.contains("spoof-guard: false -> true  (needs a restart)"),
        "{text}"
    );
}

#[test]
fn a_bad_file_changes_nothing_and_says_where_it_is_wrong() {
    let pair = Pair::start(Plan::default());
    let good = fs::read_to_string(&pair.a.config).unwrap();
    edit(&pair.a, "mtu = 1500", "mtu = 1400\nadresses = []");
    let line = 1 + good.lines().position(|line| line == "mtu = 1500").unwrap();
    let at = format!("{}:{}:", pair.a.config.display(), line + 1);
    let (code, text) = reload(&pair.a, &[]);
    assert_eq!(code, Some(2), "{text}");
    assert!(
        text.contains(&at) && text.contains("`addresses`"),
        "{at}: {text}"
    );
    assert_eq!(pair.a.device_status().mtu, 1500);

    edit(&pair.a, "mtu = 1400\nadresses = []", "mtu = 1400");
    let (code, text) = pair
        .a
        .ran(&["check", "--diff", &pair.a.config.display().to_string()]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("~ [device] mtu: 1500 -> 1400"), "{text}");
    assert_eq!(pair.a.device_status().mtu, 1500, "compared only");
    pair.connect(secs(20));
}

#[test]
fn a_change_that_needs_a_restart_is_named_and_refused_unless_a_restart_is_asked_for() {
    let mut pair = Pair::start(Plan::default());
    edit(
        &pair.a,
        "[tunnel]",
        "[pipeline]\nudp-gro = \"off\"\n[tunnel]",
    );
    edit(&pair.a, "mtu = 1500", "mtu = 1400");
    let (code, text) = reload(&pair.a, &[]);
    assert_eq!(code, Some(1), "{text}");
    for part in [
        "~ [pipeline] udp-gro: \"auto\" -> \"off\"  (needs a restart)",
        "~ [device] mtu: 1500 -> 1400\n",
        "--restart",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(pair.a.device_status().mtu, 1500, "nothing was changed");

    let (code, text) = reload(&pair.a, &["--restart"]);
    assert_eq!(code, Some(0), "{text}");
    eventually(secs(20), "the new configuration", || {
        let status = pair.a.try_status()?;
        (status.device.mtu == 1400).then_some(())
    });
    pair.connect(secs(20));
    assert!(reloaded(&pair.a).contains("no changes"));
    pair.a.terminate();
    assert!(pair.a.link("pc0").is_none());
}

#[test]
fn the_interface_changes_while_it_carries_frames() {
    let mut pair = Pair::start(Plan::default());
    let flow = pair.there();
    let stream = pair.at_a.stream_to(&pair.at_b, flow, millis(1), |_| 200);
    edit(&pair.a, "mtu = 1500", "mtu = 1400\ncarrier = \"always\"");
    pair.a.process().signal(Signal::SIGHUP);
    pair.a
        .process()
        .wait_for("the configuration is reloaded", secs(20));
    assert!(
        pair.a
            .process()
            .log()
            .contains("~ [device] mtu: 1500 -> 1400")
    );
    assert_eq!(pair.a.device_status().mtu, 1400);
    let sent = stream.stop();
    assert!(flow.wait_number(&pair.at_b, sent - 1, secs(20)));
    assert_eq!(flow.tally(&pair.at_b, sent), Tally::perfect(sent));
}

#[test]
fn the_tunnels_of_a_host_reload_in_the_same_way() {
    let pair = Pair::prepare(Plan::default());
    let mut host = run_host(&pair, &[]);
    let lab = lonely_tunnel(&pair, "lab");
    crate::kit::host::add_to_host(&pair, "lab", &lab);
    for name in ["office", "lab"] {
        eventually(secs(20), "the host starts its tunnel", || {
            (pair.a.ran(&["host", "start", name]).0 == Some(0)).then_some(())
        });
    }
    let keepalive = |site: &Site| edit(site, "[[peer]]\n", "[[peer]]\nkeepalive = \"3s\"\n");
    keepalive(&pair.a);
    let (code, text) = pair.a.ran(&["reload", "office"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("keepalive: \"10s\" -> \"3s\""), "{text}");

    let text = fs::read_to_string(&lab).unwrap();
    let text = text.replace("name = \"far\"", "name = \"near\"");
    let address = "[device]\naddresses = [\"10.9.8.7/24\"]";
    fs::write(&lab, text.replace("[device]", address)).unwrap();
    host.signal(Signal::SIGHUP);
    host.wait_for("name: \"far\" -> \"near\"", secs(20));
    eventually(secs(20), "the new name", || {
        let (_, text) = pair.a.ran(&["show", "lab"]);
        text.contains("near").then_some(())
    });
    let addresses = pair.a.ns.run(&["ip", "-br", "addr", "show", "dev", "lab0"]);
    assert!(addresses.contains("10.9.8.7/24"), "{addresses}");
    let text = fs::read_to_string(&lab).unwrap();
    fs::write(
        &lab,
        text.replace("listen = \"[::]:0\"", "listen = \"[::]:4711\""),
    )
    .unwrap();
    let (code, text) = pair.a.ran(&["reload", "lab"]);
    assert_eq!(code, Some(1), "{text}");
    let (code, text) = pair.a.ran(&["reload", "lab", "--restart"]);
    assert_eq!(code, Some(0), "{text}");
    eventually(secs(20), "the new port", || {
        let (_, text) = pair.a.ran(&["show", "lab"]);
        text.contains(":4711").then_some(())
    });
}
