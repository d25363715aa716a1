// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every key of the table is compared, and nothing else is.

use std::path::Path;

use super::*;
use crate::config::keys::SECTIONS;
use crate::config::testing::{OWN, PEER_A, PEER_C, PRESHARED};

const OTHER_OWN: &str = "DOQJt1v7wMfpO0K6VfFTsi3pGHkF+/01L++Be33e3cQ=";

fn parse(text: &str) -> Config {
    let read = |path: &Path| {
        let key = match path.to_str() {
            Some("/etc/patchcord/other.key") => OTHER_OWN,
            Some("/etc/patchcord/ab.psk") => PRESHARED,
            _ => OWN,
        };
        Ok(key.to_owned().into())
    };
    Config::parse(text, Path::new("/etc/patchcord/a.toml"), &read)
        .unwrap_or_else(|errors| panic!("{errors}\n{text}"))
}

/// A valid file with these lines in one of its sections, in place of its own lines of the same keys.
fn file_with(header: &str, lines: &str) -> String {
    let peer = format!("public-key = '{PEER_A}'\nname = 'b'");
    let is_set = |line: &str| {
        let key = line.split(' ').next().unwrap_or_default();
        let mut set = lines.lines().map(|line| line.split(' ').next());
        set.any(|other| other == Some(key) || (key == "name" && other == Some("nic")))
    };
    let sections = [
        (
            "[tunnel]",
            "private-key-file = 'a.key'\nlisten = '[::]:51830'",
        ),
        ("[device]", "name = 'pc0'"),
        ("[device.port]", ""),
        ("[[peer]]", &peer),
        ("[peer.port]", ""),
        ("[switch]", ""),
        ("[pipeline]", ""),
    ];
    let text = sections.map(|(section, own)| {
        let lines = if section == header { lines } else { "" };
        let kept = own
            .lines()
            .filter(|line| section != header || !is_set(line));
        let kept: Vec<_> = kept.chain(lines.lines()).collect();
        match kept.is_empty() {
            // Not each may stand beside a wire.
            true => String::new(),
            false => format!("{section}\n{}\n", kept.join("\n")),
        }
    });
    text.concat()
}

/// Lines of a section that differ in the value of `key` only.
fn samples(header: &str, key: &str) -> (String, String) {
    let plain = |old: &str, new: &str| (format!("{key} = {old}"), format!("{key} = {new}"));
    let beside = |line: &str, old: &str, new: &str| {
        let (old, new) = plain(old, new);
        (format!("{line}\n{old}"), format!("{line}\n{new}"))
    };
    match (header, key) {
        ("[tunnel]", "private-key-file") => plain("'a.key'", "'other.key'"),
        ("[tunnel]", "listen") => plain("'[::]:1'", "'[::]:2'"),
        ("[tunnel]", "cipher") => plain("'auto'", "'aes-256-gcm'"),
        ("[tunnel]", "network-id") => plain("0", "7"),
        ("[tunnel]", "tcp-mss") => plain("'unaltered'", "'path'"),
        ("[tunnel]", "rekey-interval") => plain("'120s'", "'60s'"),
        ("[device]", "name") => plain("'pc0'", "'pc1'"),
        ("[device]", "nic") => plain("'eth0'", "'eth1'"),
        ("[device]", "mode") => plain("'switch'", "'wire'"),
        ("[device]", "mtu") => plain("1500", "9000"),
        ("[device]", "bridge") => plain("'br0'", "'br1'"),
        ("[device]", "bridge-vlans") => beside("bridge = 'br0'", "'10'", "'10, 20'"),
        ("[device]", "bridge-native") => beside("bridge = 'br0'", "1", "2"),
        ("[device]", "mac") => plain("'02:00:00:00:00:01'", "'02:00:00:00:00:02'"),
        ("[device]", "addresses") => plain("['10.0.0.1/24']", "['10.0.0.1/24', 'fd00::1/64']"),
        ("[device]", "carrier") => plain("'peer'", "'always'"),
        ("[device]", "link-loss-forwarding") => beside("nic = 'eth0'", "false", "true"),
        ("[device]", "backend") => plain("'auto'", "'plain'"),
        ("[[peer]]", "public-key") => plain(&format!("'{PEER_A}'"), &format!("'{PEER_C}'")),
        ("[[peer]]", "name") => plain("'b'", "'c'"),
        ("[[peer]]", "endpoint") => plain("'192.0.2.1:1'", "'192.0.2.1:2'"),
        ("[[peer]]", "keepalive") => plain("'10s'", "'25s'"),
        ("[[peer]]", "preshared-key-file") => (String::new(), plain("", "'ab.psk'").1),
        (_, "trunk") => plain("'10'", "'10, 20'"),
        (_, "native") => beside("trunk = '10'", "10", "0"),
        (_, "translate") => beside("trunk = '10'", "{ 5 = 10 }", "{ 6 = 10 }"),
        (_, "access") => plain("0", "10"),
        (_, "tunnel") => plain("200", "201"),
        (_, "tag") => beside("tunnel = 200", "'802.1ad'", "'802.1q'"),
        (_, "max-broadcast" | "max-multicast" | "max-unknown") => plain("1000", "2000"),
        (_, "bpdu") => plain("'pass'", "'guard'"),
        (_, "dhcp-server" | "router-advertisements") => plain("'allow'", "'drop'"),
        (_, "sources") => plain("['02:00:00:00:00:01']", "['02:00:00:00:00:02']"),
        (_, "stations") => plain("['02:00:00:00:00:01']", "['02:00:00:00:00:02']"),
        ("[switch]", "capacity") => plain("8192", "16384"),
        ("[switch]", "ageing") => plain("'300s'", "'10s'"),
        ("[switch]", "dampening") => plain("'1s'", "'2s'"),
        ("[switch]", "max-addresses") => plain("4096", "5"),
        ("[pipeline]", "plan") => plain("'inline'", "'staged'"),
        ("[pipeline]", "lanes" | "workers") => plain("1", "2"),
        ("[pipeline]", "nice") => plain("-20", "0"),
        ("[pipeline]", "latency") => plain("'auto'", "20"),
        ("[pipeline]", "udp-gso" | "udp-gro") => plain("'auto'", "'off'"),
        _ => plain("false", "true"),
    }
}

#[test]
fn a_configuration_does_not_differ_from_itself() {
    for section in SECTIONS {
        for key in section.keys {
            let Some((old, _)) = pair(section.header, key.name) else {
                continue;
            };
            assert_eq!(parse(&old).changes_to(&parse(&old)), []);
        }
    }
}

/// Files that differ in one key, unless that key cannot change alone.
fn pair(header: &str, key: &str) -> Option<(String, String)> {
    let (old, new) = samples(header, key);
    (old != new).then(|| (file_with(header, &old), file_with(header, &new)))
}

#[test]
fn each_key_alone_is_one_change() {
    let mut compared = 0;
    for section in SECTIONS {
        for key in section.keys {
            let Some((old, new)) = pair(section.header, key.name) else {
                continue;
            };
            let changes = parse(&old).changes_to(&parse(&new));
            let [change] = &changes[..] else {
                panic!("{} {}: {changes:?}", section.header, key.name)
            };
            let Difference::Value { key: changed, .. } = change.difference else {
                panic!("{change:?}")
            };
            assert_eq!((change.section, changed), (section.header, key.name));
            assert_eq!(change.effect, key.effect, "{}", key.name);
            compared += 1;
        }
    }
    let all: usize = SECTIONS.iter().map(|section| section.keys.len()).sum();
    assert_eq!(compared, all);
}

#[test]
fn the_default_of_a_key_is_no_change() {
    let [absent, there] =
        ["", "cipher = 'auto'\nnetwork-id = 0"].map(|it| file_with("[tunnel]", it));
    assert_eq!(parse(&absent).changes_to(&parse(&there)), []);
}

#[test]
fn peers_come_go_and_change_places() {
    let first = format!("[[peer]]\npublic-key = '{PEER_A}'\nname = 'a'\n");
    let second = format!("[[peer]]\npublic-key = '{PEER_C}'\nname = 'c'\n");
    let head = "[tunnel]\nprivate-key-file = 'a.key'\nlisten = '[::]:1'\n[device]\nname = 'pc0'\n";
    let file = |peers: &[&str]| parse(&format!("{head}{}", peers.concat()));
    let both = file(&[&first, &second]);
    assert_eq!(both.changes_to(&file(&[&second, &first])), []);

    let summary = |changes: Vec<ConfigChange>| -> Vec<_> {
        let changes = changes.into_iter();
        changes
            .map(|it| (it.peer.unwrap_or_default(), it.difference))
            .collect()
    };
    let one = file(&[&second]);
    assert_eq!(
        summary(both.changes_to(&one)),
        [("a".to_owned(), Difference::Removed)]
    );
    assert_eq!(
        summary(one.changes_to(&both)),
        [("a".to_owned(), Difference::Added)]
    );
    // The same name with another key is the same peer.
    let rekeyed = format!("[[peer]]\npublic-key = '{PEER_C}'\nname = 'a'\n");
    let changed = summary(file(&[&first]).changes_to(&file(&[&rekeyed])));
    assert!(
        matches!(&changed[..], [(peer, Difference::Value { key: "public-key", .. })] if peer == "a"),
        "{changed:?}"
    );
}

#[test]
fn no_secret_is_shown() {
    let (old, new) = (
        file_with("[[peer]]", "preshared-key-file = 'a.psk'"),
        file_with("[[peer]]", "preshared-key-file = 'ab.psk'"),
    );
    let changes = parse(&old).changes_to(&parse(&new));
    let text = format!("{changes:?}");
    assert!(
        text.contains("another key") && !text.contains(PRESHARED),
        "{text}"
    );
    let (old, new) = (
        file_with("[tunnel]", ""),
        file_with("[tunnel]", "private-key-file = 'other.key'"),
    );
    let text = format!("{:?}", parse(&old).changes_to(&parse(&new)));
    assert!(!text.contains(OWN) && !text.contains(OTHER_OWN), "{text}");
    // The same key in another file is no change.
    let moved = file_with("[tunnel]", "private-key-file = 'b.key'");
    assert_eq!(parse(&old).changes_to(&parse(&moved)), []);
}
