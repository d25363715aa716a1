// SPDX-License-Identifier: MIT OR Apache-2.0
use std::path::Path;

use patchcord_bridge::{MacAddr, VidSet};

use super::*;
use crate::config::{error::ConfigErrors, model::Config};

// RFC 7748, section 6.1.
const OWN: &str = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
const PEER: &str = "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=";

#[test]
fn a_port_without_keys_takes_every_frame_as_it_is() {
    assert_eq!(parse("").unwrap(), PortConfig::default());
}

#[test]
fn every_kind_of_port_has_its_vlans() {
    let ten_and_twenties = trunk(&[10, 20, 21, 22], None, &[]);
    for (lines, vlans) in [
        ("trunk = '10, 20-22'", ten_and_twenties.clone()),
        ("trunk = ' 20 - 22,10 '", ten_and_twenties.clone()),
        ("trunk = [10, '20-22']", ten_and_twenties.clone()),
        ("trunk = ['10,20', 21, '22', 10]", ten_and_twenties),
        ("trunk = 10", trunk(&[10], None, &[])),
        ("trunk = 0x0a", trunk(&[10], None, &[])),
        ("trunk = '10-10'", trunk(&[10], None, &[])),
        (
            "trunk = '1-4094'",
            PortVlans::trunk(VidSet::all(), None, &[]).unwrap(),
        ),
        ("trunk = '10'\nnative = 5", trunk(&[10], Some(5), &[])),
        ("native = 0\ntrunk = [10]", trunk(&[10], Some(0), &[])),
        ("trunk = []\nnative = 5", trunk(&[], Some(5), &[])),
        ("trunk = ''\nnative = 5", trunk(&[], Some(5), &[])),
        (
            "trunk = 110\ntranslate = { 10 = 110 }",
            trunk(&[110], None, &[(10, 110)]),
        ),
        (
            "trunk = [10, 20]\ntranslate = { 10 = 20, 20 = 10 }",
            trunk(&[10, 20], None, &[(10, 20), (20, 10)]),
        ),
        (
            "trunk = 110\n[peer.port.translate]\n10 = 110",
            trunk(&[110], None, &[(10, 110)]),
        ),
        ("access = 42", PortVlans::access(of(42)).unwrap()),
        ("access = 0", PortVlans::access(Vid::UNTAGGED).unwrap()),
        (
            "tunnel = 200",
            PortVlans::tunnel(of(200), Tpid::Service).unwrap(),
        ),
        (
            "tunnel = 200\ntag = '802.1ad'",
            PortVlans::tunnel(of(200), Tpid::Service).unwrap(),
        ),
        (
            "tunnel = 200\ntag = '802.1q'",
            PortVlans::tunnel(of(200), Tpid::Customer).unwrap(),
        ),
    ] {
        assert_eq!(parse(lines).unwrap().vlans, vlans, "{lines}");
    }
}

#[test]
fn every_guard_and_limit_has_a_key() {
    let of = |change: fn(&mut PortConfig)| {
        let mut config = PortConfig::default();
        change(&mut config);
        config
    };
    for (line, config) in [
        ("max-broadcast = 0", of(|port| port.limits.broadcast = 0)),
        ("max-multicast = 1", of(|port| port.limits.multicast = 1)),
        (
            "max-unknown = 4294967295",
            of(|port| port.limits.unknown = u32::MAX),
        ),
        ("bpdu = 'pass'", of(|_| {})),
        ("bpdu = 'drop'", of(|port| port.bpdus = BpduPolicy::Drop)),
        ("bpdu = 'guard'", of(|port| port.bpdus = BpduPolicy::Guard)),
        ("dhcp-server = 'allow'", of(|_| {})),
        (
            "dhcp-server = 'drop'",
            of(|port| port.dhcp_server = Guard::Drop),
        ),
        ("router-advertisements = 'allow'", of(|_| {})),
        (
            "router-advertisements = 'drop'",
            of(|port| port.router_advertisements = Guard::Drop),
        ),
        ("spoof-guard = true", of(|port| port.spoof_guard = true)),
        ("spoof-guard = false", of(|_| {})),
        (
            "neighbour-suppression = true",
            of(|port| port.neighbour_suppression = true),
        ),
        (
            "multicast-snooping = true",
            of(|port| port.multicast_snooping = true),
        ),
        (
            "sources = ['2:0:0:0:0:1']",
            of(|port| {
                let macs = vec![MacAddr([2, 0, 0, 0, 0, 1])];
                port.allowed_sources = Some(Sources::new(macs).unwrap());
            }),
        ),
    ] {
        assert_eq!(parse(line).unwrap(), config, "{line}");
    }
}

#[test]
#[rustfmt::skip] // one row, one refusal
fn says_what_is_wrong_and_what_to_do() {
    for (lines, error) in [
        ("trunk = '10, x'", "9:9: [peer.port] trunk: `x` is neither a VLAN nor a range of them; write for example `10, 20-29`"),
        ("trunk = '10,,20'", "9:9: [peer.port] trunk: `` is neither a VLAN nor a range of them; write for example `10, 20-29`"),
        ("trunk = '+10'", "9:9: [peer.port] trunk: `+10` is neither a VLAN nor a range of them; write for example `10, 20-29`"),
        ("trunk = '10-'", "9:9: [peer.port] trunk: `10-` is neither a VLAN nor a range of them; write for example `10, 20-29`"),
        ("trunk = '10-20-30'", "9:9: [peer.port] trunk: `10-20-30` is neither a VLAN nor a range of them; write for example `10, 20-29`"),
        ("trunk = 'all'", "9:9: [peer.port] trunk: `all` is neither a VLAN nor a range of them; write for example `10, 20-29`"),
        ("trunk = '29-20'", "9:9: [peer.port] trunk: `29-20` runs backwards; write `20-29`"),
        ("trunk = '0-20'", "9:9: [peer.port] trunk: `0-20` is out of range; write 1 to 4094, and `native = 0` to let untagged frames pass"),
        ("trunk = '1-4095'", "9:9: [peer.port] trunk: `1-4095` is out of range; write 1 to 4094"),
        ("trunk = [10, 4095]", "9:9: [peer.port] trunk: `4095` is out of range; write 1 to 4094"),
        ("trunk = [10, 1.5]", "9:9: [peer.port] trunk: is a decimal fraction, not a list of VLANs; write for example `trunk = \"10, 20-29\"`"),
        ("trunk = true", "9:9: [peer.port] trunk: is true or false, not a list of VLANs; write for example `trunk = \"10, 20-29\"`"),
        ("trunk = []", "9:9: [peer.port] trunk: no VLAN is allowed and none is native; write for example `trunk = \"10, 20-29\"`"),
        ("trunk = []\nnative = 'x'", "10:10: [peer.port] native: is a string, not a number from 0 to 4094; write for example `native = 5`"),
        ("trunk = 10\nnative = 4095", "10:10: [peer.port] native: `4095` is out of range; write 0 to 4094"),
        ("native = 5", "9:10: [peer.port] native: applies to a trunk only; write for example `trunk = \"10, 20-29\"` too"),
        ("translate = { 10 = 110 }", "9:13: [peer.port] translate: applies to a trunk only; write for example `trunk = \"110\"` too"),
        ("trunk = 10\ntranslate = ['10:110']", "10:13: [peer.port] translate: is an array, not a table of numbers outside and inside; write for example `translate = { 10 = 110 }`"),
        ("trunk = 10\ntranslate = { 10 = 110 }", "10:13: [peer.port] translate: VLAN 110 is translated to but not allowed; add it to `trunk`, which has the numbers inside"),
        ("trunk = 110\ntranslate = { 10 = 110, 20 = 110 }", "10:13: [peer.port] translate: two VLANs are translated to 110 inside; write each number once on each side, `{ OUTSIDE = INSIDE, ... }`"),
        ("trunk = '110-120'\ntranslate = { 10 = 110, 010 = 120 }", "10:13: [peer.port] translate: VLAN 10 outside is translated twice; write each number once on each side, `{ OUTSIDE = INSIDE, ... }`"),
        ("trunk = 110\ntranslate = { 0 = 110 }", "10:13: [peer.port] translate: `0` is not a VLAN; write its number outside, 1 to 4094, before the `=`"),
        ("trunk = 110\ntranslate = { ten = 110 }", "10:13: [peer.port] translate: `ten` is not a VLAN; write its number outside, 1 to 4094, before the `=`"),
        ("trunk = 110\ntranslate = { 10 = 0 }", "10:13: [peer.port] translate: `0` is out of range; write 1 to 4094"),
        ("trunk = 110\ntranslate = { 10 = '110' }", "10:13: [peer.port] translate: is a string, not a number from 1 to 4094; write for example `translate = { 10 = 110 }`"),
        ("access = 4095", "9:10: [peer.port] access: `4095` is out of range; write 0 to 4094"),
        ("access = '42'", "9:10: [peer.port] access: is a string, not a number from 0 to 4094; write for example `access = 42`"),
        ("tunnel = 0", "9:10: [peer.port] tunnel: `0` is out of range; write 1 to 4094"),
        ("tunnel = 200\ntag = '88a8'", "10:7: [peer.port] tag: `88a8` is not a choice; write `802.1ad` or `802.1q`"),
        ("tag = '802.1q'", "9:7: [peer.port] tag: applies to a tunnel only; write for example `tunnel = 200` too"),
        ("access = 42\ntrunk = 10", "10:9: [peer.port] trunk: the port has `access` already; remove one of the two"),
        ("trunk = 10\naccess = 42", "10:10: [peer.port] access: the port has `trunk` already; remove one of the two"),
        ("tunnel = 10\naccess = 42", "10:10: [peer.port] access: the port has `tunnel` already; remove one of the two"),
        ("max-broadcast = -1", "9:17: [peer.port] max-broadcast: `-1` is out of range; write 0 to 4294967295"),
        ("max-multicast = '1k'", "9:17: [peer.port] max-multicast: is a string, not a number from 0 to 4294967295; write for example `max-multicast = 50000`"),
        ("max-unknown = 4294967296", "9:15: [peer.port] max-unknown: `4294967296` is out of range; write 0 to 4294967295"),
        ("bpdu = 'block'", "9:8: [peer.port] bpdu: `block` is not a choice; write `pass` or `drop` or `guard`"),
        ("dhcp-server = false", "9:15: [peer.port] dhcp-server: is true or false, not a string; write for example `\"allow\"`"),
        ("router-advertisements = 'no'", "9:25: [peer.port] router-advertisements: `no` is not a choice; write `allow` or `drop`"),
        ("spoof-guard = 'on'", "9:15: [peer.port] spoof-guard: is a string, not true or false; write for example `spoof-guard = true`"),
        ("sources = []", "9:11: [peer.port] sources: no address is allowed: no station could send; write for example `sources = [\"02:00:5e:10:00:01\"]`, or leave it out"),
        ("sources = ['ff:ff:ff:ff:ff:ff']", "9:11: [peer.port] sources: ff:ff:ff:ff:ff:ff is not the address of a station; write for example `sources = [\"02:00:5e:10:00:01\"]`, or leave it out"),
        ("sources = ['02:00']", "9:11: [peer.port] sources: `02:00`: an Ethernet address has six groups, as in 02:00:5e:10:00:01; write for example `sources = [\"02:00:5e:10:00:01\"]`, or leave it out"),
        ("sources = '02:00:00:00:00:01'", "9:11: [peer.port] sources: is a string, not an array; write for example `sources = [\"02:00:5e:10:00:01\"]`"),
        ("neighbour-suppression = 1", "9:25: [peer.port] neighbour-suppression: is an integer, not true or false; write for example `neighbour-suppression = true`"),
        ("trnk = 10", "9:1: [peer.port] trnk: unknown key; did you mean `trunk`?"),
        ("neighbor-suppression = true", "9:1: [peer.port] neighbor-suppression: unknown key; did you mean `neighbour-suppression`?"),
        ("endpoint = 'b:1'", "9:1: [peer.port] endpoint: is not a key of [peer.port]; it belongs in [[peer]], above this section"),
        ("name = 'b'", "9:1: [peer.port] name: is not a key of [peer.port]; it belongs in [[peer]], above this section"),
        ("mtu = 1500", "9:1: [peer.port] mtu: is not a key of [peer.port]; it belongs in [device]"),
    ] {
        let printed = parse(lines).unwrap_err().to_string();
        assert_eq!(printed, format!("t.toml:{error}"), "{lines}");
    }
}

#[test]
fn no_error_shows_a_secret() {
    for line in [
        format!("trunk = '{OWN}'"),
        format!("trunk = ['10', '{OWN}-20']"),
        format!("trunk = 10\ntranslate = {{ '{OWN}' = 10 }}"),
        format!("sources = ['{OWN}']"),
        format!("bpdu = '{OWN}'"),
    ] {
        let printed = parse(&line).unwrap_err().to_string();
        assert!(!printed.contains(&OWN[..8]), "{printed}");
    }
}

fn parse(lines: &str) -> Result<PortConfig, ConfigErrors> {
    let text = format!(
        "[tunnel]\nprivate-key-file = 'a.key'\nlisten = '[::]:1'\n[device]\nname = 'pc0'\n\
         [[peer]]\npublic-key = '{PEER}'\n[peer.port]\n{lines}"
    );
    let config = Config::parse(&text, Path::new("t.toml"), &|_| Ok(OWN.to_owned().into()))?;
    assert_eq!(config.device.port, PortConfig::default());
    Ok(config.peers[0].port.clone())
}

fn of(vid: u16) -> Vid {
    Vid::new(vid).unwrap()
}

fn trunk(allowed: &[u16], native: Option<u16>, translate: &[(u16, u16)]) -> PortVlans {
    let allowed = allowed.iter().map(|&vid| of(vid)).collect();
    let translate: Vec<_> = translate
        .iter()
        .map(|&(out, inside)| (of(out), of(inside)))
        .collect();
    PortVlans::trunk(allowed, native.map(of), &translate).unwrap()
}
