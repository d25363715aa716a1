// SPDX-License-Identifier: MIT OR Apache-2.0
//! `check`: valid configurations, and refused ones with their remedies.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use crate::kit::{
    CONFIG, DEVICE, KEY, LISTEN, OWN_PRIVATE, OWN_PUBLIC, PEER_KEY, PEER_NAME, PRESHARED, Site,
    run, run_with_stdin,
};

#[test]
fn check_summarises_a_valid_file() {
    let site = Site::new();
    let ran = site.check(CONFIG);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    for expected in [
        "a: valid",
        OWN_PUBLIC,
        "[::]:51830",
        "pc0",
        "MTU 1500",
        "1 peer: site-b",
    ] {
        assert!(ran.stdout.contains(expected), "{expected}: {}", ran.stdout);
    }
    assert_eq!(ran.stdout.lines().count(), 1);
    let ran = site.check(&CONFIG.replace(DEVICE, "nic = \"eth1\""));
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    assert!(ran.stdout.contains(". NIC eth1, wire. "), "{}", ran.stdout);

    let hub = site.check(&CONFIG.replace("[device]", "[switch]\nhub = true\n[device]"));
    assert!(
        hub.stdout.contains("Hub for 1 peer: site-b"),
        "{}",
        hub.stdout
    );

    // Every key of the contract, and both ways to name a key file.
    for preshared in ["ab.psk".into(), site.path("ab.psk").display().to_string()] {
        let peer = format!(
            "{PEER_NAME}\nendpoint = \"site-b.example.net:51830\"\nkeepalive = \"25s\"\n\
             preshared-key-file = \"{preshared}\""
        );
        let device = format!(
            "{DEVICE}\nmtu = 1500\nmac = \"02:00:5e:10:00:01\"\n\
             addresses = [\"10.99.0.1/24\"]"
        );
        let text = CONFIG.replace(PEER_NAME, &peer).replace(DEVICE, &device);
        let ran = site.check(&text);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
        assert!(
            ran.stdout.contains("with a preshared key"),
            "{}",
            ran.stdout
        );
    }
}

#[test]
fn accepts() {
    let site = Site::new();
    for (line, replacement) in [
        (LISTEN, "listen = \"0.0.0.0:51830\""),
        (LISTEN, "listen = \"127.0.0.1:1\""),
        (DEVICE, "name = \"exactly15bytes.\""),
        (DEVICE, "name = \"pc0\"\nmtu = 68"),
        (DEVICE, "name = \"pc0\"\nmtu = 65521"),
        (
            DEVICE,
            "name = \"pc0\"\nmtu = 1280\naddresses = [\"fd00::1/64\"]",
        ),
        (
            DEVICE,
            "name = \"pc0\"\n[device.port]\ntrunk = \"10, 20-29\"\nnative = 0\ntranslate = { 110 = 10 }",
        ),
        (
            DEVICE,
            "name = \"pc0\"\n[switch]\nhub = true\nageing = \"1d\"",
        ),
        (
            PEER_KEY,
            &format!(
                "{PEER_KEY}\n[peer.port]\naccess = 42\ndhcp-server = \"drop\"\nbpdu = \"guard\""
            ),
        ),
        (
            DEVICE,
            "name = \"pc0\"\nmtu = 68\naddresses = [\"10.0.0.1/8\"]",
        ),
        (
            PEER_NAME,
            "name = \"ö\"\nendpoint = \"[2001:db8::1]:65535\"",
        ),
        (PEER_NAME, "endpoint = \"localhost:1\"\nkeepalive = \"1h\""),
        (PEER_NAME, "endpoint = \"[fe80::1%eth0]:51830\""),
        (PEER_NAME, "endpoint = \"[fe80::1%3]:51830\""),
        (
            PEER_NAME,
            "endpoint = \"a_b.example.net.:1\"\nkeepalive = \"1s\"",
        ),
    ] {
        let ran = site.check(&CONFIG.replace(line, replacement));
        assert_eq!(ran.code, 0, "{replacement}: {}", ran.stderr);
    }
}

#[test]
#[rustfmt::skip] // one row, one warning
fn check_warns_of_what_is_rarely_meant() {
    let site = Site::new();
    let other = run_with_stdin(&["pubkey"], &run(&["genkey"]).stdout).stdout;
    let second = |lines: &str| format!("{PEER_KEY}\n{lines}\n[[peer]]\nname = \"site-c\"\npublic-key = \"{}\"\n{lines}", other.trim());
    let twins = second("endpoint = \"192.0.2.1:1\"");
    let shared = second("preshared-key-file = \"ab.psk\"");
    let others = twins.replacen("192.0.2.1", "192.0.2.2", 1);
    let in_own_network = CONFIG.replace(DEVICE, "name = \"pc0\"\naddresses = [\"10.99.0.1/24\"]");
    let in_own_network = in_own_network.replace(PEER_KEY, &format!("{PEER_KEY}\nendpoint = \"10.99.0.2:1\""));
    for (text, expected) in [
        (CONFIG.replace(DEVICE, "name = \"pc0\"\nbridge = \"br0\"\nmtu = 1420"),
            "warning: [device] mtu: 1420 is less than the usual 1500"),
        (CONFIG.replace(DEVICE, "name = \"pc0\"\naddresses = [\"10.99.0.1/32\"]"),
            "write for example `10.99.0.1/24`"),
        (CONFIG.replace(PEER_KEY, &format!("{PEER_KEY}\nkeepalive = \"2m\"")),
            "warning: [[peer]] keepalive: 2m of peer `site-b` is longer than"),
        (CONFIG.replace(LISTEN, "listen = \"[::]:0\""), "to a UDP port that changes at each start"),
        (in_own_network, "the route to the peer leads into the tunnel"),
        (CONFIG.replace(PEER_KEY, &format!("{PEER_KEY}\nendpoint = \"[fe80::1]:1\"")), "write `[fe80::1%INTERFACE]:1`"),
        (CONFIG.replace(LISTEN, "listen = \"127.0.0.1:1\"").replace(PEER_KEY, &format!("{PEER_KEY}\nendpoint = \"192.0.2.1:1\"")),
            "warning: [tunnel] listen: `127.0.0.1:1` reaches this machine only, and peer `site-b` is elsewhere"),
        (CONFIG.replace(LISTEN, "listen = \"127.0.0.1:1\"").replace(PEER_KEY, &others),
            "and peer `site-b` and another one are elsewhere"),
        (CONFIG.replace(PEER_KEY, &twins), "peers `site-b` and `site-c` both have the endpoint `192.0.2.1:1`"),
        (CONFIG.replace(PEER_KEY, &shared), "peers `site-b` and `site-c` have the same preshared key"),
        (CONFIG.replace("[device]", "[switch]\nhub = true\n[device]"), "warning: [switch] hub: there is one peer"),
    ] {
        let ran = site.check(&text);
        assert_eq!(ran.code, 0, "{text}: {}", ran.stderr);
        assert!(ran.stderr.contains(expected), "{expected}: {}", ran.stderr);
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    }
    let ran = site.check(CONFIG);
    assert_eq!(ran.stderr, "", "nothing to warn of");
}

#[test]
fn slips_of_the_file_as_a_whole_have_a_remedy() {
    let site = Site::new();
    let misplaced = CONFIG.replace("[[peer]]", "[peer.port]\naccess = 10\n\n[[peer]]");
    let single = format!("[peer]\n{PEER_KEY}\n{CONFIG}");
    let wireguard = "[Interface]\nPrivateKey = abc=\nListenPort = 51820\n[Peer]\n";
    for (text, expected) in [
        (
            misplaced.as_str(),
            "`[peer.port]` is about the `[[peer]]` above it",
        ),
        (&single, "write `[[peer]]`, with two brackets"),
        (
            &format!("{CONFIG}\n[tunnel]\n"),
            "the section is there already",
        ),
        (wireguard, "this is a WireGuard file"),
    ] {
        let ran = site.check(text);
        assert_eq!(ran.code, 2, "{}", ran.stderr);
        assert!(ran.stderr.contains(expected), "{expected}: {}", ran.stderr);
    }
    for text in [format!("\u{feff}{CONFIG}"), CONFIG.replace('\n', "\r\n")] {
        let ran = site.check(&text);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
    }
}

#[test]
fn a_configuration_may_have_very_many_peers() {
    use base64::Engine;
    let site = Site::new();
    let peers: String = (0..12_000_u32)
        .map(|number| {
            let mut key = [7; 32];
            key[..4].copy_from_slice(&number.to_le_bytes());
            let key = base64::prelude::BASE64_STANDARD.encode(key);
            format!("[[peer]]\nname = \"a-site-with-a-name-{number}\"\npublic-key = \"{key}\"\n")
        })
        .collect();
    assert!(peers.len() > 1 << 20);
    let ran = site.check(&format!("{CONFIG}{peers}"));
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    assert!(ran.stdout.contains("12001 peers"), "{}", &ran.stdout[..300]);
}

#[test]
fn check_lists_the_stations_of_ports() {
    let site = Site::new();
    let port = "name = \"pc0\"\n[device.port]\nstations = [\"02:00:5e:10:00:01\"]";
    let device = CONFIG.replace(DEVICE, port);
    let of_peer = "[peer.port]\naccess = 10\nstations = [\"02:00:5e:10:00:02\"]";
    let both = device.replace(PEER_KEY, &format!("{PEER_KEY}\n{of_peer}"));
    for (text, line) in [
        (CONFIG, None),
        (&device, Some("1 static station: 02:00:5e:10:00:01 on tap.")),
        (
            &both,
            Some(
                "2 static stations: 02:00:5e:10:00:01 on tap, 02:00:5e:10:00:02 in VLAN 10 on site-b.",
            ),
        ),
    ] {
        let ran = site.check(text);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert_eq!(ran.stdout.lines().nth(1), line, "{}", ran.stdout);
    }
}

/// The line to replace, its replacement, the start of the errors after `a.toml:`, and further texts in
/// them.
type Refusal<'a> = (&'a str, &'a str, &'a str, &'a [&'a str]);

#[test]
#[rustfmt::skip] // one row, one refusal
fn refuses_keys_and_sections() {
    refuses(&[
        (LISTEN, "lisen = \"[::]:1\"", "1:1: [tunnel] listen: is missing", &[
            "3:1: [tunnel] lisen: unknown key; did you mean `listen`?",
        ]),
        (KEY, "private_key_file = \"a.key\"", "1:1: [tunnel] private-key-file: is missing", &[
            "2:1: [tunnel] private_key_file: unknown key; did you mean `private-key-file`?",
        ]),
        (DEVICE, "name = \"pc0\"\nwifi = 1", "7:1: [device] wifi: unknown key", &["`mtu`"]),
        (LISTEN, "listen = \"[::]:1\"\nmtu = 1500", "4:1: [tunnel] mtu:", &["belongs in [device]"]),
        (LISTEN, "listen = \"[::]:1\"\nkeepalve = \"1s\"", "4:1: [tunnel] keepalve:", &[
            "did you mean `keepalive` in [[peer]]?",
        ]),
        ("[tunnel]", "cipher = \"auto\"\n[tunnel]", "1:1: cipher:", &["belongs in [tunnel]"]),
        ("[device]", "[devise]", "1:1: [device] name: is missing", &["did you mean `[device]`?"]),
        ("[device]", "[[device]]", "5:1: [device]:", &["write `[device]` once"]),
        ("[[peer]]", "[peer]", "8:1: [[peer]]:", &["write `[[peer]]`"]),
        ("[[peer]]", "[[peers]]", "1:1: [[peer]]: there is no peer", &["did you mean `[[peer]]`?"]),
        ("[tunnel]", "[tunnel", "1:8: not valid TOML:", &[]),
        (LISTEN, "listen = ", "3:10: not valid TOML:", &[]),
        (LISTEN, "listen = 0.0.0.0:51830", "3:13: not valid TOML:", &["straight quotes: `listen = \"...\"`"]),
        ("\"pc0\"", "pc0", "6:8: not valid TOML:", &["straight quotes: `name = \"...\"`"]),
        ("\"pc0\"", "\u{201d}pc0\u{201d}", "6:8: not valid TOML:", &["straight quotes: `name = \"...\"`"]),
        (LISTEN, "listen = \"[::]:1\"\nlisten = \"[::]:2\"", "4:1: not valid TOML: duplicate", &[]),
    ]);
}

#[test]
#[rustfmt::skip] // one row, one refusal
fn refuses_values_of_the_tunnel() {
    refuses(&[
        (KEY, "", "1:1: [tunnel] private-key-file: is missing", &["patchcord genkey"]),
        (KEY, "private-key-file = \"\"", "2:20: [tunnel] private-key-file: is empty", &[]),
        (KEY, "private-key-file = \"b.key\"", "2:20: [tunnel] private-key-file:", &[
            "b.key does not exist",
        ]),
        (KEY, "private-key-file = \".\"", "2:20: [tunnel]", &["is not a regular file"]),
        (KEY, "private-key-file = \"/dev/null\"", "2:20: [tunnel]", &["is not a regular file"]),
        (KEY, "private-key-file = \"empty.key\"", "2:20: [tunnel]", &[
            "empty.key is empty",
            "patchcord genkey",
        ]),
        (KEY, "private-key-file = \"bad.key\"", "2:20: [tunnel]", &["bad.key is not base64"]),
        (KEY, "private-key-file = \"binary.key\"", "2:20: [tunnel]", &["does not hold a key"]),
        (KEY, "private-key-file = 5", "2:20: [tunnel] private-key-file:", &["not a string"]),
        (LISTEN, "listen = \"51830\"", "3:10: [tunnel] listen:", &["write `[::]:51830`"]),
        (LISTEN, "listen = 51830", "3:10: [tunnel] listen:", &["\"[::]:51830\""]),
        (LISTEN, "listen = \":51830\"", "3:10: [tunnel] listen:", &["write `[::]:51830`"]),
        (LISTEN, "listen = \"*:51830\"", "3:10: [tunnel] listen:", &["write `[::]:51830`"]),
        (LISTEN, "listen = \"0.0.0.0\"", "3:10: [tunnel] listen:", &["`0.0.0.0:51830`"]),
        (LISTEN, "listen = \"::\"", "3:10: [tunnel] listen:", &["`[::]:51830`"]),
        (LISTEN, "listen = \"host:1\"", "3:10: [tunnel] listen:", &["ADDRESS:PORT"]),
        (LISTEN, "listen = \"[::]:70000\"", "3:10: [tunnel] listen:", &["ADDRESS:PORT"]),
        (LISTEN, "listen = \"[ff02::1]:1\"", "3:10: [tunnel] listen:", &["multicast"]),
        (LISTEN, "", "1:1: [tunnel] listen: is missing", &[
            "endpoint",
            "`listen = \"[::]:51830\"`",
        ]),
        (LISTEN, "listen = \"[::]:1\"\ncipher = \"aes\"", "4:10: [tunnel] cipher:", &[
            "`auto` or `aes-256-gcm` or `chacha20-poly1305` or `aegis-128x`",
        ]),
        (LISTEN, "listen = \"[::]:1\"\nnetwork-id = 16777216", "4:14: [tunnel] network-id:", &[
            "0 to 16777215",
        ]),
        (LISTEN, "listen = \"[::]:1\"\nnetwork-id = \"1\"", "4:14: [tunnel] network-id:", &[
            "is a string",
            "`network-id = 100`",
        ]),
        (LISTEN, "listen = \"[::]:1\"\nrekey-interval = \"121s\"", "4:18: [tunnel]", &["1s to 2m"]),
        (LISTEN, "listen = \"[::]:1\"\nrekey-interval = \"0s\"", "4:18: [tunnel]", &["1s to 2m"]),
        (LISTEN, "listen = \"[::]:1\"\nrekey-interval = 60", "4:18: [tunnel]", &["`\"60s\"`"]),
    ]);
}

#[test]
#[rustfmt::skip] // one row, one refusal
fn refuses_values_of_the_device() {
    refuses(&[
        (DEVICE, "", "5:1: [device] name: is missing", &["name = \"pc0\""]),
        (DEVICE, "name = \"\"", "6:8: [device] name: is empty", &["1 to 15 bytes"]),
        (DEVICE, "name = \"sixteen-bytes-16\"", "6:8: [device] name:", &[
            "name is 16 bytes, at most 15",
        ]),
        (DEVICE, "name = \"a/b\"", "6:8: [device] name:", &["contains '/'"]),
        (DEVICE, "name = \"a:b\"", "6:8: [device] name:", &["contains ':'"]),
        (DEVICE, "name = \"a b\"", "6:8: [device] name:", &["contains ' '"]),
        (DEVICE, "name = \"tap%d\"", "6:8: [device] name:", &["contains '%'"]),
        (DEVICE, "name = \".\"", "6:8: [device] name:", &["not an interface name"]),
        (DEVICE, "name = \"..\"", "6:8: [device] name:", &["not an interface name"]),
        (DEVICE, "name = 0", "6:8: [device] name:", &["is an integer, not a string"]),
        (DEVICE, "name = \"pc0\"\nmtu = 67", "7:7: [device] mtu: `67`", &["68 to 65521"]),
        (DEVICE, "name = \"pc0\"\nmtu = 65522", "7:7: [device] mtu:", &["68 to 65521"]),
        (DEVICE, "name = \"pc0\"\nmtu = -1", "7:7: [device] mtu:", &["68 to 65521"]),
        (DEVICE, "name = \"pc0\"\nmtu = \"auto\"", "7:7: [device] mtu:", &["`mtu = 1500`"]),
        (DEVICE, "name = \"pc0\"\nmtu = 1279\naddresses = [\"fd00::1/64\"]", "7:7: [device] mtu:", &[
            "IPv6",
            "1280 or more",
        ]),
        (DEVICE, "name = \"pc0\"\nbridge = \"pc0\"", "7:10: [device] bridge:", &["device itself"]),
        (DEVICE, "name = \"pc0\"\nbridge = \"br/0\"", "7:10: [device] bridge:", &["contains '/'"]),
        (DEVICE, "name = \"pc0\"\nmac = \"01:00:5e:00:00:01\"", "7:7: [device] mac:", &[
            "multicast",
        ]),
        (DEVICE, "name = \"pc0\"\nmac = \"ff:ff:ff:ff:ff:ff\"", "7:7: [device] mac:", &[
            "broadcast",
        ]),
        (DEVICE, "name = \"pc0\"\nmac = \"0:0:0:0:0:0\"", "7:7: [device] mac:", &["all zero"]),
        (DEVICE, "name = \"pc0\"\nmac = \"02:00:5e:10:00\"", "7:7: [device] mac:", &["six groups"]),
        (DEVICE, "name = \"pc0\"\naddresses = [\"10.99.0.1\"]", "7:13: [device] addresses:", &[
            "`10.99.0.1/24`",
        ]),
        (DEVICE, "name = \"pc0\"\naddresses = \"10.99.0.1/24\"", "7:13: [device] addresses:", &[
            "not an array",
        ]),
        (DEVICE, "name = \"pc0\"\naddresses = [\"224.0.0.1/24\"]", "7:13: [device]", &[
            "of a host",
        ]),
        (DEVICE, "name = \"pc0\"\naddresses = [\"::/64\"]", "7:13: [device]", &["of a host"]),
        (DEVICE, "name = \"pc0\"\naddresses = [\"10.0.0.1/33\"]", "7:13: [device]", &["PREFIX"]),
        (DEVICE, "name = \"pc0\"\naddresses = [\"10.0.0.1/8\", \"10.0.0.1/9\"]", "7:13: [dev", &[
            "twice",
        ]),
        (DEVICE, "name = \"pc0\"\naddresses = [\"10.0.0.255/24\"]", "7:13: [device] addresses:", &[
            "broadcast address",
        ]),
        (DEVICE, "name = \"pc0\"\nbridge = \"br0\"\naddresses = [\"10.0.0.1/24\"]", "8:13: [device] addresses:", &[
            "`ip address add 10.0.0.1/24 dev br0`",
        ]),
        (DEVICE, "name = \"pc0\"\nbackend = \"tun\"", "7:11: [device] backend:", &[
            "`auto` or `vnet` or `plain`",
        ]),
        (DEVICE, "name = \"pc0\"\n[pipeline]\nplan = \"fast\"", "8:8: [pipeline] plan:", &[
            "`auto` or `inline` or `staged`",
        ]),
        (DEVICE, "name = \"pc0\"\n[pipeline]\nlanes = 9", "8:9: [pipeline] lanes:", &["1 to 8"]),
        (DEVICE, "name = \"pc0\"\n[pipeline]\nnice = 20", "8:8: [pipeline] nice:", &["-20 to 19"]),
        (DEVICE, "name = \"pc0\"\n[pipeline]\nlatency = \"high\"", "8:11: [pipeline] latency:", &[
            "`auto` or `low`",
        ]),
        (DEVICE, "name = \"pc0\"\n[pipeline]\nlatency = 10001", "8:11: [pipeline] latency:", &["0 to 10000"]),
        (DEVICE, "name = \"pc0\"\n[pipeline]\nplan = \"staged\"\nlanes = 2", "9:9: [pipeline] lanes:", &[
            "the staged plan has one lane",
        ]),
        (DEVICE, "name = \"pc0\"\n[pipeline]\nudp-gso = true", "8:11: [pipeline] udp-gso:", &["`\"auto\"`"]),
        (DEVICE, "name = \"pc0\"\n[pipeline]\nworkers = 0", "8:11: [pipeline] workers:", &[
            "1 to 64",
        ]),
        (DEVICE, "name = \"pc0\"\n[pipeline]\npin = 1", "8:7: [pipeline] pin:", &["true or false"]),
    ]);
}

#[test]
#[rustfmt::skip] // one row, one refusal
fn refuses_values_of_the_switch() {
    let switch = |line: &str| format!("{DEVICE}\n[switch]\n{line}");
    let refused = [
        ("hub = \"yes\"", "8:7: [switch] hub: is a string", "`hub = true`"),
        ("hub = 1", "8:7: [switch] hub: is an integer", "true or false"),
        ("capacity = 7", "8:12: [switch] capacity: `7`", "8 to 1048576"),
        ("capacity = 1048577", "8:12: [switch] capacity:", "8 to 1048576"),
        ("ageing = \"25h\"", "8:10: [switch] ageing: `25h`", "1s to 1day"),
        ("ageing = \"0s\"", "8:10: [switch] ageing: `0s`", "1s to 1day"),
        ("ageing = 300", "8:10: [switch] ageing:", "`\"300s\"`"),
        ("dampening = \"61s\"", "8:13: [switch] dampening: `61s`", "0s to 1m"),
        ("max-addresses = 0", "8:17: [switch] max-addresses: `0`", "1 to 1048576"),
        ("max-addresses = 1048577", "8:17: [switch] max-addresses:", "1 to 1048576"),
        ("capacity = 8\nmax-addresses = 9", "9:17: [switch] max-addresses: 9", "which is 8; write a `capacity`"),
        ("loop-guard = \"off\"", "8:14: [switch] loop-guard:", "`loop-guard = true`"),
        ("querier = 0", "8:11: [switch] querier:", "`querier = true`"),
        ("hubb = true", "8:1: [switch] hubb: unknown key", "did you mean `hub`?"),
        ("aging = \"300s\"", "8:1: [switch] aging: unknown key", "did you mean `ageing`?"),
        ("trunk = 10", "8:1: [switch] trunk: is not a key of [switch]", "belongs in [device.port] or [peer.port]"),
    ];
    for (line, begin, part) in refused {
        refuses(&[(DEVICE, &switch(line), begin, &[part])]);
    }
}

#[test]
#[rustfmt::skip] // one row, one refusal
fn refuses_values_of_ports() {
    let port = "name = \"pc0\"\n[device.port]\n";
    for (lines, begin, part) in [
        ("trunk = \"10, 4095\"", "8:9: [device.port] trunk: `4095`", "1 to 4094"),
        ("trunk = 10\naccess = 42", "9:10: [device.port] access: the port has `trunk` already", "remove one"),
        ("native = 5", "8:10: [device.port] native: applies to a trunk only", "`trunk = \"10, 20-29\"`"),
        ("bpdu = \"no\"", "8:8: [device.port] bpdu:", "`pass` or `drop` or `guard`"),
        ("sources = [\"01:00:5e:00:00:01\"]", "8:11: [device.port] sources:", "not the address of a station"),
        ("stations = [\"01:00:5e:00:00:01\"]", "8:13: [device.port] stations: 01:00:5e:00:00:01 is the address of a group", "02:00:5e:10:00:01"),
        ("access = 42\nstations = [\n\"02:00:5e:10:00:01\",\n{ mac = \"02:00:5e:10:00:02\", vlan = 43 }]", "11:1: [device.port] stations: 02:00:5e:10:00:02 is in VLAN 43, which the port does not have", "leave `vlan` out"),
        ("acess = 42", "8:1: [device.port] acess: unknown key", "did you mean `access`?"),
        ("mtu = 1400", "8:1: [device.port] mtu: is not a key of [device.port]", "belongs in [device], above"),
    ] {
        refuses(&[(DEVICE, &format!("{port}{lines}"), begin, &[part])]);
    }
    let below_peer = |line: &str| format!("{PEER_KEY}\n{line}");
    for (line, begin, part) in [
        ("[peer.port]\ntunnel = 0", "12:10: [peer.port] tunnel: `0`", "1 to 4094"),
        ("[peer.port]\nkeepalive = \"1s\"", "12:1: [peer.port] keepalive:", "belongs in [[peer]], above"),
        ("[[peer.port]]", "11:1: [peer.port]: must be one section", "write `[peer.port]` once"),
        ("port = 10", "11:8: [peer.port]: must be one section", "write `[peer.port]` once"),
        ("[peer.ports]", "11:7: [[peer]] ports: unknown section", "did you mean `[peer.port]`?"),
        ("access = 42", "11:1: [[peer]] access: is not a key of [[peer]]", "belongs in [peer.port]"),
        ("spoofguard = true", "11:1: [[peer]] spoofguard: unknown key", "did you mean `spoof-guard` in [peer.port]?"),
        ("[port]\naccess = 42", "11:2: port: unknown section", "did you mean `[device.port]` or `[peer.port]`?"),
    ] {
        refuses(&[(PEER_KEY, &below_peer(line), begin, &[part])]);
    }
    refuses(&[
        (DEVICE, "name = \"pc0\"\nacces = 42", "7:1: [device] acces: unknown key", &["`access` in [device.port]"]),
        (DEVICE, "name = \"pc0\"\ntrunk = 42", "7:1: [device] trunk: is not a key of [device]", &["belongs in [device.port]"]),
        ("[tunnel]", "access = 42\n[tunnel]", "1:1: access: is outside", &["[device.port] or [peer.port]"]),
    ]);
}

#[test]
#[rustfmt::skip] // one row, one refusal
fn refuses_values_of_peers() {
    let own = format!("public-key = \"{OWN_PUBLIC}\"");
    let twice = format!("{PEER_KEY}\n[[peer]]\nname = \"site-c\"\n{PEER_KEY}");
    let same_name = format!("{PEER_KEY}\n[[peer]]\n{PEER_NAME}\npublic-key = \"{PRESHARED}\"");
    let low_order = "public-key = \"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\"";
    refuses(&[
        ("[[peer]]", "[pipeline]", "1:1: [[peer]]: there is no peer", &["`public-key`"]),
        (PEER_KEY, "", "8:1: [[peer]] public-key: is missing", &["patchcord pubkey"]),
        (PEER_KEY, "public-key = \"…\"", "10:14: [[peer]] public-key:", &["character 1"]),
        (PEER_KEY, "public-key = \"AAAA\"", "10:14: [[peer]]", &["3 bytes instead of 32"]),
        (PEER_KEY, low_order, "10:14: [[peer]] public-key:", &["the same secret"]),
        (PEER_KEY, &own, "10:14: [[peer]] public-key: is this tunnel's own public key", &[]),
        (PEER_KEY, &twice, "13:14: [[peer]] public-key:", &["earlier peer"]),
        (PEER_KEY, &same_name, "12:8: [[peer]] name: `site-b`", &["earlier peer; rename one"]),
        (PEER_NAME, "name = \"site b\"", "9:8: [[peer]] name:", &["without white space"]),
        (PEER_NAME, "name = \"\"", "9:8: [[peer]] name:", &["1 to 64 bytes"]),
        (PEER_NAME, "name = \"tap\"", "9:8: [[peer]] name: `tap`", &["another name"]),
        (PEER_NAME, "endpoint = \"site-b\"", "9:12: [[peer]] endpoint:", &["HOST:PORT"]),
        (PEER_NAME, "endpoint = \"site-b:0\"", "9:12: [[peer]] endpoint:", &["1 to 65535"]),
        (PEER_NAME, "endpoint = \"site-b:65536\"", "9:12: [[peer]] endpoint:", &["1 to 65535"]),
        (PEER_NAME, "endpoint = \"192.0.2.1:0\"", "9:12: [[peer]] endpoint:", &["1 to 65535"]),
        (PEER_NAME, "endpoint = \"192.0.2.1\"", "9:12: [[peer]]", &["`192.0.2.1:51830`"]),
        (PEER_NAME, "endpoint = \"2001:db8::1\"", "9:12: [[peer]]", &["`[2001:db8::1]:51830`"]),
        (PEER_NAME, "endpoint = \"2001:db8:0:0:0:0:0:0:1:5\"", "9:12: [[peer]]", &["brackets"]),
        (PEER_NAME, "endpoint = \"udp://site-b:1\"", "9:12: [[peer]] endpoint:", &[
            "is a URL", "without `udp://` in front",
        ]),
        (PEER_NAME, "endpoint = \"[2001:db8::1%eth0]:1\"", "9:12: [[peer]] endpoint:", &[
            "`[fe80::1%eth0]:51830`",
        ]),
        (PEER_NAME, "endpoint = \"[fe80::1%eth0]:0\"", "9:12: [[peer]] endpoint:", &["1 to 65535"]),
        (PEER_NAME, "endpoint = \":51830\"", "9:12: [[peer]] endpoint:", &["name of a host"]),
        (PEER_NAME, "endpoint = \"300.1.1.1:1\"", "9:12: [[peer]] endpoint:", &["name of a host"]),
        (PEER_NAME, "endpoint = \"a b:1\"", "9:12: [[peer]] endpoint:", &["name of a host"]),
        (PEER_NAME, "endpoint = \"0.0.0.0:1\"", "9:12: [[peer]] endpoint:", &["of one host"]),
        (PEER_NAME, "keepalive = \"off\"", "9:13: [[peer]] keepalive:", &["example `25s`"]),
        (PEER_NAME, "keepalive = 25", "9:13: [[peer]] keepalive:", &["`\"25s\"`"]),
        (PEER_NAME, "keepalive = \"61m\"", "9:13: [[peer]] keepalive:", &["1s to 1h"]),
        (PEER_NAME, "keepalive = \"999ms\"", "9:13: [[peer]] keepalive:", &["1s to 1h"]),
        (PEER_NAME, "preshared-key-file = \"no.psk\"", "9:22: [[peer]]", &["does not exist"]),
        (PEER_NAME, "preshared-key-file = \"bad.key\"", "9:22: [[peer]]", &["patchcord genpsk"]),
        (PEER_NAME, "preshared-key = \"x\"", "9:1: [[peer]] preshared-key: unknown key", &[
            "did you mean `preshared-key-file`?",
        ]),
    ]);
    let other_version = CONFIG
        .replace(LISTEN, "listen = \"0.0.0.0:51830\"")
        .replace(PEER_NAME, "endpoint = \"[2001:db8::1]:51830\"");
    let ran = Site::new().check(&other_version);
    assert!(
        ran.stderr.contains("a.toml:9:12: [[peer]] endpoint:"),
        "{}",
        ran.stderr
    );
    assert!(
        ran.stderr.contains("write `listen = \"[::]:51830\"`"),
        "{}",
        ran.stderr
    );
}

#[test]
fn refuses_key_files_that_others_can_use() {
    let site = Site::new();
    for (mode, fits) in [
        (0o600, true),
        (0o400, true),
        (0o700, true),
        (0o640, false),
        (0o604, false),
        (0o620, false),
        (0o602, false),
    ] {
        fs::set_permissions(site.path("a.key"), Permissions::from_mode(mode)).unwrap();
        let ran = site.check(CONFIG);
        assert_eq!(
            ran.code,
            if fits { 0 } else { 2 },
            "{mode:o}: {}",
            ran.stderr
        );
        let path = site.path("a.key").display().to_string();
        for expected in [
            format!("has mode {mode:o}"),
            format!("run `chmod 600 {path}`"),
        ] {
            assert_eq!(
                ran.stderr.contains(&expected),
                !fits,
                "{mode:o}: {}",
                ran.stderr
            );
        }
    }
}

#[test]
fn refuses_files_that_are_no_configuration() {
    let site = Site::new();
    site.write("not-utf8.toml", b"[tunnel]\n\xff");
    fs::create_dir(site.path("dir.toml")).unwrap();
    site.write(".toml", CONFIG.as_bytes());
    site.write("two words.toml", CONFIG.as_bytes());
    site.write("host.toml", CONFIG.as_bytes());
    for (name, expected) in [
        ("absent.toml", "absent.toml: no such file"),
        ("dir.toml", "dir.toml: is a directory"),
        ("not-utf8.toml", "not-utf8.toml:2:1: is not UTF-8"),
        (".toml", "rename the file"),
        ("two words.toml", "rename the file"),
        ("host.toml", "rename the file"),
    ] {
        for command in ["check", "up"] {
            let ran = run(&[command, site.path(name).to_str().unwrap()]);
            assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{command} {name}");
            assert!(
                ran.stderr.contains(expected),
                "{command} {name}: {}",
                ran.stderr
            );
        }
    }
    let ran = run(&["check", "no-such-tunnel"]);
    assert_eq!(ran.code, 2);
    assert!(
        ran.stderr
            .contains("/etc/patchcord/no-such-tunnel.toml: no such"),
        "{}",
        ran.stderr
    );
}

#[test]
fn reports_all_errors_of_a_file_at_once() {
    let text = CONFIG
        .replace(LISTEN, "listen = 1")
        .replace(DEVICE, "name = \"/\"\nmtu = 1");
    let ran = Site::new().check(&text);
    let lines: Vec<_> = ran.stderr.lines().collect();
    assert_eq!((ran.code, lines.len()), (2, 3), "{}", ran.stderr);
}

#[test]
fn secrets_are_never_in_output() {
    let site = Site::new();
    for key in [OWN_PRIVATE, &OWN_PRIVATE[..43], PRESHARED] {
        for (line, replacement) in [
            (KEY, format!("private-key-file = \"{key}\"")),
            (KEY, format!("private-key = \"{key}\"")),
            (KEY, format!("private-key-file = {key}")),
            (KEY, format!("private-key-file = \"{key}")),
            (LISTEN, format!("listen = \"{key}\"")),
            (DEVICE, format!("name = \"{key}\"")),
            (DEVICE, format!("name = \"pc0\"\nmac = \"{key}\"")),
            (DEVICE, format!("name = \"pc0\"\naddresses = [\"{key}\"]")),
            (PEER_NAME, format!("preshared-key-file = \"{key}\"")),
            (PEER_NAME, format!("preshared-key = \"{key}\"")),
            (PEER_NAME, format!("endpoint = \"{key}\"")),
            (PEER_NAME, format!("keepalive = \"{key}\"")),
            (PEER_KEY, format!("public-key = \"{key}!\"")),
            (PEER_KEY, format!("{PEER_KEY}\n{key}")),
            (PEER_KEY, format!("{PEER_KEY}\n{key} = bare")),
        ] {
            let ran = site.check(&CONFIG.replace(line, &replacement));
            assert_eq!(ran.code, 2, "{replacement}");
            let shown = ran.stdout + &ran.stderr;
            // Eight characters of a key in a row are no coincidence.
            for part in (0..key.len() - 8).map(|begin| &key[begin..begin + 8]) {
                assert!(!shown.contains(part), "{replacement}: {shown}");
            }
        }
    }
    let text = CONFIG.replace(PEER_NAME, "preshared-key-file = \"ab.psk\"");
    let ran = site.check(&text);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(
        !ran.stdout.contains(OWN_PRIVATE) && !ran.stdout.contains(PRESHARED),
        "{}",
        ran.stdout
    );
}

/// Every row is refused by `check` with exit code 2, on stderr only.
fn refuses(rows: &[Refusal<'_>]) {
    let site = Site::new();
    for (line, replacement, begin, parts) in rows {
        let text = CONFIG.replacen(line, replacement, 1);
        assert_ne!(text, CONFIG, "{line} is not in the file");
        let ran = site.check(&text);
        assert_eq!(
            (ran.code, ran.stdout.as_str()),
            (2, ""),
            "{replacement}: {}",
            ran.stderr
        );
        let begin = format!("{}:{begin}", site.path("a.toml").display());
        assert!(
            ran.stderr.starts_with(&begin),
            "{replacement}: no {begin}: {}",
            ran.stderr
        );
        for part in *parts {
            assert!(
                ran.stderr.contains(part),
                "{replacement}: no {part}: {}",
                ran.stderr
            );
        }
    }
}
