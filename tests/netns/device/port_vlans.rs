// SPDX-License-Identifier: MIT OR Apache-2.0
//! `bridge-vlans` and `bridge-native`: the VLANs of the device as a port of a bridge that filters them.
//!
//! Not every kernel has such bridges. Without them, the test only checks that the program says so;
//! `scripts/kernel-test` runs the others on kernels that have them.

use crate::kit::cable::Cable;
use crate::kit::frames::{BROADCAST, EXPERIMENTAL, frame};
use crate::kit::pair::{Pair, Plan};
use crate::kit::process::{eventually, secs};
use crate::kit::site::{BRIDGE, DEVICE, Settings, Site};

/// Frames of VLAN 5 have no tag at the device.
const VLANS: &str = "bridge-vlans = \"10, 20-22\"\nbridge-native = 5";
const AS_SHOWN: &str = "5, 10, 20-22";

fn prepared() -> Pair {
    let settings = Settings {
        device: VLANS,
        ..Settings::default()
    };
    Pair::prepare(Plan {
        settings,
        ..Plan::default()
    })
}

/// Whether the kernel's bridges can filter VLANs; turns filtering on.
fn filters(site: &Site) -> bool {
    let filter = format!("ip link set {BRIDGE} type bridge vlan_filtering 1");
    let argv: Vec<_> = filter.split(' ').collect();
    let filters = site.ns.succeeds(&argv);
    if !filters {
        eprintln!("not tried: this kernel's bridges filter no VLANs");
    }
    filters
}

fn bridge(site: &Site, words: &str) -> String {
    let argv: Vec<_> = ["bridge"].into_iter().chain(words.split(' ')).collect();
    site.ns.run(&argv)
}

/// The VLANs of a port in the output of `bridge vlan show`, each with its flags.
fn vlans(site: &Site, port: &str) -> Vec<(u64, Vec<String>)> {
    let shown = bridge(site, &format!("-json vlan show dev {port}"));
    let ports: serde_json::Value = serde_json::from_str(&shown).expect("bridge prints JSON");
    let vlans = ports[0]["vlans"].as_array().cloned().unwrap_or_default();
    let ends = |vlan: &serde_json::Value| {
        let first = vlan["vlan"].as_u64().expect("a number");
        first..=vlan["vlanEnd"].as_u64().unwrap_or(first)
    };
    let flags = |vlan: &serde_json::Value| -> Vec<String> {
        serde_json::from_value(vlan["flags"].clone()).unwrap_or_default()
    };
    let each = |vlan| ends(vlan).map(|vid| (vid, flags(vlan)));
    vlans.iter().flat_map(each).collect()
}

/// Those of [`VLANS`].
fn wanted() -> Vec<(u64, Vec<String>)> {
    let native = (5, vec!["PVID".to_owned(), "Egress Untagged".to_owned()]);
    let tagged = [10, 20, 21, 22].map(|vid| (vid, Vec::new()));
    [native].into_iter().chain(tagged).collect()
}

fn shown(site: &Site) -> Option<String> {
    site.device_status().bridge_port?.vlans
}

#[test]
fn vlans_of_a_port_are_set_or_refused_by_name() {
    let mut pair = prepared();
    if filters(&pair.a) {
        pair.a.up().wait_for("ready tunnel", secs(20));
        assert_eq!(shown(&pair.a).as_deref(), Some(AS_SHOWN));
        assert_eq!(vlans(&pair.a, DEVICE), wanted());
        pair.a.terminate();
        let left = bridge(&pair.a, "vlan show");
        assert!(!left.contains(DEVICE), "{left}");
    } else {
        let status = pair.a.up().wait_exit(secs(20));
        assert!(!status.success());
        let log = pair.a.process().log();
        assert!(log.contains("CONFIG_BRIDGE_VLAN_FILTERING"), "{log}");
        assert!(pair.a.link(DEVICE).is_none(), "nothing is left");
    }
}

#[test]
fn vlans_that_another_program_removes_come_back() {
    let mut pair = prepared();
    if !filters(&pair.a) {
        return;
    }
    pair.a.up().wait_for("ready tunnel", secs(20));
    for undo in [
        format!("ip link set {DEVICE} nomaster"),
        format!("bridge vlan del dev {DEVICE} vid 10"),
        format!("bridge vlan add dev {DEVICE} vid 1 pvid untagged"),
    ] {
        let argv: Vec<_> = undo.split(' ').collect();
        pair.a.ns.run(&argv);
        eventually(secs(20), &format!("it has them again after {undo}"), || {
            (vlans(&pair.a, DEVICE) == wanted()).then_some(())
        });
        assert_eq!(shown(&pair.a).as_deref(), Some(AS_SHOWN));
    }
    let log = pair.a.process().log();
    assert!(log.contains("changed=\"VLANs\""), "{log}");
}

/// Bridges of both sites whose cables have VLANs 5 (without a tag), 10 and 30.
fn with_cables_in_vlans(pair: &Pair) -> bool {
    let sites = [&pair.a, &pair.b];
    let filter = sites.map(filters).into_iter().all(|filters| filters);
    for site in sites.into_iter().filter(|_| filter) {
        for vlan in ["vid 5 pvid untagged", "vid 10", "vid 30"] {
            bridge(site, &format!("vlan add dev cable1 {vlan}"));
        }
        bridge(site, "vlan del dev cable1 vid 1");
    }
    filter
}

fn tagged(from: &Cable, vid: Option<u16>, seed: u64) -> Vec<u8> {
    let tag = vid.map(|vid| (0x8100, vid));
    frame(BROADCAST, from.mac, tag.as_slice(), EXPERIMENTAL, 100, seed)
}

#[test]
fn frames_of_the_ports_vlans_cross_with_their_tags_and_no_others() {
    let mut pair = prepared();
    if !with_cables_in_vlans(&pair) {
        return;
    }
    pair.up();
    pair.connect(secs(20));
    for (from, to) in [(&pair.at_a, &pair.at_b), (&pair.at_b, &pair.at_a)] {
        let [foreign, tagged, untagged] =
            [(Some(30), 1), (Some(10), 2), (None, 3)].map(|(vid, seed)| tagged(from, vid, seed));
        // Frames that must not cross go first, so that they would arrive before the others.
        for frame in [&foreign, &tagged, &untagged] {
            from.send(frame);
        }
        assert!(to.receives(&tagged, secs(20)), "VLAN 10");
        assert!(to.receives(&untagged, secs(20)), "the native VLAN");
        assert_eq!(
            [&foreign, &tagged, &untagged].map(|it| to.count(it)),
            [0, 1, 1]
        );
    }
    // The port lacks the VLANs of the cable.
    let remedies = pair.a.device_status().remedies.join("\n");
    let missing = format!("other ports have VLAN 30, which {DEVICE} has not");
    assert!(remedies.contains(&missing), "{remedies}");
    assert!(remedies.contains("vid 30`"), "{remedies}");
}

#[test]
fn a_bridge_without_vlan_filtering_is_reported() {
    let mut pair = prepared();
    if !filters(&pair.a) {
        return;
    }
    let off = format!("link set {BRIDGE} type bridge vlan_filtering 0");
    pair.a.ns.ip(&off);
    pair.a.up().wait_for("ready tunnel", secs(20));
    let remedies = pair.a.device_status().remedies.join("\n");
    assert!(remedies.contains("filters no VLANs"), "{remedies}");
    let on = remedies.split('`').find(|text| text.starts_with("ip link"));
    let on = on.expect("the remedy is a command");
    pair.a.ns.run(&on.split(' ').collect::<Vec<_>>());
    eventually(secs(20), "the remedy helps", || {
        let remedies = pair.a.device_status().remedies.join("\n");
        (!remedies.contains("filters no VLANs")).then_some(())
    });
    assert_eq!(vlans(&pair.a, DEVICE), wanted());
}

#[test]
fn an_adopted_port_gets_its_own_vlans_back() {
    for crashes in [false, true] {
        let mut pair = prepared();
        if !filters(&pair.a) {
            return;
        }
        pair.a.ns.ip(&format!(
            "tuntap add mode tap name {DEVICE}\nlink set {DEVICE} master {BRIDGE}"
        ));
        bridge(&pair.a, &format!("vlan add dev {DEVICE} vid 7"));
        bridge(&pair.a, &format!("vlan add dev {DEVICE} vid 20 untagged"));
        let before = vlans(&pair.a, DEVICE);
        pair.a.up().wait_for("ready tunnel", secs(20));
        assert_eq!(vlans(&pair.a, DEVICE), wanted());
        if crashes {
            pair.a.kill_9();
            pair.a.up().wait_for("ready tunnel", secs(20));
        }
        pair.a.terminate();
        assert_eq!(vlans(&pair.a, DEVICE), before);
    }
}
