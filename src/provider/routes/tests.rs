// SPDX-License-Identifier: MIT OR Apache-2.0
//! The state of each mode as data, and the route of packets in a namespace:
//!
//! ```text
//! eth0  192.168.1.10/24, 2001:db8:1::10/64   default by .1 and ::1; 10.50.0.0/16 by .2
//! pc0   10.0.0.1/24, fd00::1/64              router .254 and ::ff
//! ```
#![cfg(test)]

use std::{process::Command, sync::Arc};

use tempfile::TempDir;
use tokio::sync::watch;

use super::*;
use crate::{
    io::mark::Mark,
    provider::{
        configuration::TunnelConfiguration,
        network::Network,
        settings::{IpSettings, Route as IncludedRoute, SettingsError},
    },
    testing::{block_on, in_namespace, ip},
};
use patchcord_bridge::MacAddr;

const INTERFACE: u32 = 7;

const USUAL: RoutingPolicy = policy(false, false, false);
const ENFORCED: RoutingPolicy = policy(false, false, true);
const ENFORCED_BUT_LOCAL: RoutingPolicy = policy(false, true, true);
const ALL: RoutingPolicy = policy(true, false, false);
const ALL_BUT_LOCAL: RoutingPolicy = policy(true, true, false);

const fn policy(all: bool, local: bool, enforce: bool) -> RoutingPolicy {
    RoutingPolicy {
        include_all_networks: all,
        exclude_local_networks: local,
        enforce_routes: enforce,
    }
}

fn net<N: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> N {
    text.parse().unwrap()
}

/// Addresses, routers, and nothing to route.
fn addressed(remote: &str) -> EthernetTunnelSettings {
    let mac = MacAddr([2, 0, 0, 0, 0, 7]);
    let mut settings = EthernetTunnelSettings::new(net(remote), mac, 1500, "pc0")
        .with_addresses(&[net("10.0.0.1/24"), net("fd00::1/64")]);
    settings.ipv4.as_mut().unwrap().router = Some(net("10.0.0.254"));
    settings.ipv6.as_mut().unwrap().router = Some(net("fd00::ff"));
    settings
}

/// The same with included and excluded routes of either family.
fn routed(included: &[&str], excluded: &[&str]) -> EthernetTunnelSettings {
    let mut settings = addressed("198.51.100.7");
    for text in included {
        match net::<IpNet>(text) {
            IpNet::V4(net) => include(&mut settings.ipv4, net, None),
            IpNet::V6(net) => include(&mut settings.ipv6, net, None),
        }
    }
    for text in excluded {
        match net::<IpNet>(text) {
            IpNet::V4(net) => settings.ipv4.as_mut().unwrap().excluded_routes.push(net),
            IpNet::V6(net) => settings.ipv6.as_mut().unwrap().excluded_routes.push(net),
        }
    }
    settings
}

fn include<N, A>(settings: &mut Option<IpSettings<N, A>>, destination: N, gateway: Option<A>) {
    let included_routes = &mut settings.as_mut().unwrap().included_routes;
    included_routes.push(IncludedRoute {
        destination,
        gateway,
    });
}

/// A state as lines in the style of `ip`.
fn lines(state: &RoutingState) -> Vec<String> {
    let routes = state.routes.iter().map(|route| {
        let target = match route.target {
            Target::Throw => "throw".to_owned(),
            Target::Unreachable => format!("unreachable metric {}", route.metric),
            Target::Interface {
                gateway, onlink, ..
            } => {
                let by = gateway.map_or_else(|| "direct".to_owned(), |by| format!("by {by}"));
                by + if onlink { " onlink" } else { "" }
            }
        };
        format!("{} {target}", route.destination)
    });
    let rules = state.rules.iter().map(|rule| match rule {
        Rule::MainButDefault(family) => format!("{family:?} main"),
        Rule::Unmarked(family) => format!("{family:?} table"),
    });
    rules.chain(routes).collect()
}

fn lines_of(policy: RoutingPolicy, settings: &EthernetTunnelSettings) -> Vec<String> {
    let local = ["192.168.1.0/24", "2001:db8:1::/64"].map(net).into();
    lines(&routing_state(policy, Some((settings, INTERFACE)), &local))
}

const FULL: [&str; 2] = ["0.0.0.0/0", "::/0"];

#[test]
fn usually_the_machines_own_routes_go_first() {
    let settings = routed(
        &["10.0.0.0/8", "0.0.0.0/0"],
        &["203.0.113.9/24", "2001:db8::/32"],
    );
    let expected = [
        "V4 main",
        "V4 table",
        "0.0.0.0/0 by 10.0.0.254",
        "10.0.0.0/8 by 10.0.0.254",
        "198.51.100.7/32 throw",
        "203.0.113.0/24 throw",
    ];
    assert_eq!(lines_of(USUAL, &settings), expected);
    let settings = routed(&["::/0"], &["2001:db8::/32"]);
    let expected = [
        "V6 main",
        "V6 table",
        "::/0 by fd00::ff",
        "2001:db8::/32 throw",
    ];
    assert_eq!(lines_of(USUAL, &settings), expected);
}

#[test]
fn enforced_routes_leave_the_interfaces_own_networks_on_the_link() {
    let expected = [
        "V4 table",
        "V6 table",
        "0.0.0.0/0 by 10.0.0.254",
        "10.0.0.0/24 direct",
        "198.51.100.7/32 throw",
        "203.0.113.0/24 throw",
        "::/0 by fd00::ff",
        "fd00::/64 direct",
        "fe80::/10 throw",
    ];
    let settings = routed(&FULL, &["203.0.113.0/24"]);
    assert_eq!(lines_of(ENFORCED, &settings), expected);
    let local = ["192.168.1.0/24 throw", "2001:db8:1::/64 throw"];
    let mut with_local = lines_of(ENFORCED_BUT_LOCAL, &settings);
    with_local.retain(|line| !local.contains(&line.as_str()));
    assert_eq!(with_local, expected);
    assert_eq!(
        lines_of(ENFORCED_BUT_LOCAL, &settings).len(),
        expected.len() + local.len()
    );
    let ipv6_only = routed(&["fd00:9::/32"], &[]);
    let expected = [
        "V6 table",
        "fd00::/64 direct",
        "fd00:9::/32 by fd00::ff",
        "fe80::/10 throw",
    ];
    let mut seen = lines_of(ENFORCED, &ipv6_only);
    seen.sort();
    let mut expected = expected.map(str::to_owned).to_vec();
    expected.sort();
    assert_eq!(seen, expected);
}

#[test]
fn all_networks_use_the_tunnel_or_are_unreachable() {
    let nobody = [
        "V4 table",
        "V6 table",
        "0.0.0.0/0 unreachable metric 4294967295",
        "::/0 unreachable metric 4294967295",
        "fe80::/10 throw",
    ];
    let nothing = BTreeSet::new();
    assert_eq!(lines(&routing_state(ALL, None, &nothing)), nobody);
    let port = EthernetTunnelSettings::new(net("0.0.0.0"), MacAddr([2; 6]), 1500, "pc0");
    assert_eq!(lines_of(ALL, &port), nobody);
    let with_enforce = policy(true, false, true);
    assert_eq!(lines(&routing_state(with_enforce, None, &nothing)), nobody);

    let seen = lines_of(ALL, &routed(&FULL, &[]));
    for line in nobody
        .iter()
        .chain(&["0.0.0.0/0 by 10.0.0.254", "::/0 by fd00::ff"])
    {
        assert!(seen.contains(&(*line).to_owned()), "{line} in {seen:?}");
    }
    let local = lines_of(ALL_BUT_LOCAL, &port);
    assert!(
        local.contains(&"192.168.1.0/24 throw".to_owned()),
        "{local:?}"
    );
}

#[test]
fn nothing_to_route_is_nothing_to_do() {
    let port = EthernetTunnelSettings::new(net("198.51.100.7"), MacAddr([2; 6]), 1500, "pc0");
    let only_excluded = routed(&[], &["203.0.113.0/24", "2001:db8::/32"]);
    for settings in [&port, &addressed("198.51.100.7"), &only_excluded] {
        for policy in [USUAL, ENFORCED, ENFORCED_BUT_LOCAL] {
            assert_eq!(lines_of(policy, settings), [""; 0]);
        }
    }
    assert!(routing_state(ENFORCED_BUT_LOCAL, None, &[net("192.168.1.0/24")].into()).is_empty());
}

#[test]
fn a_route_has_the_next_hop_that_reaches_it() {
    let first = |mut settings: EthernetTunnelSettings, destination: &str, gateway: Option<&str>| {
        match net::<IpNet>(destination) {
            IpNet::V4(net) => include(&mut settings.ipv4, net, gateway.map(self::net)),
            IpNet::V6(net) => include(&mut settings.ipv6, net, gateway.map(self::net)),
        }
        let lines = lines_of(USUAL, &settings);
        lines
            .into_iter()
            .find(|line| !line.starts_with('V'))
            .unwrap()
    };
    let routerless = || {
        let mut settings = addressed("0.0.0.0");
        settings.ipv4.as_mut().unwrap().router = None;
        settings.ipv6.as_mut().unwrap().router = None;
        settings
    };
    for (settings, destination, gateway, expected) in [
        // Host bits do not count.
        (
            addressed("0.0.0.0"),
            "10.1.2.3/8",
            None,
            "10.0.0.0/8 by 10.0.0.254",
        ),
        (
            addressed("0.0.0.0"),
            "10.1.2.0/24",
            Some("10.0.0.9"),
            "10.1.2.0/24 by 10.0.0.9",
        ),
        // On the link, with and without a gateway of its own.
        (
            addressed("0.0.0.0"),
            "10.0.0.128/25",
            None,
            "10.0.0.128/25 direct",
        ),
        (
            addressed("0.0.0.0"),
            "10.0.0.128/25",
            Some("10.0.0.9"),
            "10.0.0.128/25 by 10.0.0.9",
        ),
        // A gateway outside of the networks of our addresses.
        (
            addressed("0.0.0.0"),
            "10.1.2.0/24",
            Some("10.7.7.7"),
            "10.1.2.0/24 by 10.7.7.7 onlink",
        ),
        (
            addressed("0.0.0.0"),
            "fd01::/64",
            Some("fd77::7"),
            "fd01::/64 by fd77::7 onlink",
        ),
        // Every link has this one.
        (
            addressed("0.0.0.0"),
            "fd01::/64",
            Some("fe80::7"),
            "fd01::/64 by fe80::7",
        ),
        (
            addressed("0.0.0.0"),
            "fd01::1/64",
            None,
            "fd01::/64 by fd00::ff",
        ),
        (routerless(), "10.1.2.0/24", None, "10.1.2.0/24 direct"),
        (routerless(), "fd01::/64", None, "fd01::/64 direct"),
    ] {
        assert_eq!(first(settings, destination, gateway), expected);
    }
}

#[test]
fn a_remote_address_counts_if_it_is_one() {
    for (remote, expected) in [
        ("198.51.100.7", Some("198.51.100.7/32 throw")),
        ("2001:db8::7", Some("2001:db8::7/128 throw")),
        ("0.0.0.0", None),
        ("127.0.0.1", None),
        ("::", None),
        ("::1", None),
    ] {
        let settings = EthernetTunnelSettings {
            tunnel_remote_address: net(remote),
            ..routed(&FULL, &[])
        };
        let lines = lines_of(USUAL, &settings);
        let thrown = lines.iter().find(|line| line.ends_with("throw"));
        assert_eq!(thrown.map(String::as_str), expected);
    }
}

#[test]
fn an_exception_wins_over_its_rule() {
    let lines = lines_of(USUAL, &routed(&["10.0.0.0/8"], &["10.0.0.0/8"]));
    assert!(lines.contains(&"10.0.0.0/8 throw".to_owned()), "{lines:?}");
}

/// Runs `test` in the namespace that the head of this file describes, before there is a `pc0`.
fn test<F: Future<Output = ()>>(
    policy: RoutingPolicy,
    test: impl FnOnce(Network, TempDir) -> F + Send,
) {
    in_namespace(|| {
        for arguments in [
            "link set lo up",
            "link add eth0 type veth peer name far0",
            "address add 192.168.1.10/24 dev eth0",
            "address add 2001:db8:1::10/64 dev eth0 nodad",
            "link set eth0 up",
            "link set far0 up",
            "route add default via 192.168.1.1",
            "route add 10.50.0.0/16 via 192.168.1.2",
            "-6 route add default via 2001:db8:1::1",
        ] {
            ip(arguments);
        }
        block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let configuration = TunnelConfiguration {
                routing: policy,
                ..TunnelConfiguration::default()
            };
            let (_, configuration) = watch::channel(Arc::new(configuration));
            let network = Network::new(dir.path(), "office", configuration);
            test(network, dir).await;
        });
    });
}

/// The interface and the next hop of a packet, or `no` and the reason.
fn way(destination: &str, mark: Option<u32>) -> String {
    let mut command = Command::new("ip");
    command.args(["route", "get", destination]);
    if let Some(mark) = mark {
        command.args(["mark", &mark.to_string()]);
    }
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let after = |word: &str| {
        let mut words = text.split_whitespace().skip_while(|&other| other != word);
        words.nth(1).map(str::to_owned)
    };
    match (output.status.success(), after("dev"), after("via")) {
        (true, Some(device), Some(gateway)) => format!("{device} {gateway}"),
        (true, Some(device), None) => device,
        _ => format!("no: {}", String::from_utf8_lossy(&output.stderr).trim()),
    }
}

fn rules() -> String {
    ip("-4 rule") + &ip("-6 rule")
}

const TUNNEL: &str = "pc0 10.0.0.254";
const TUNNEL6: &str = "pc0 fd00::ff";
const OUTSIDE: &str = "eth0 192.168.1.1";
const OUTSIDE6: &str = "eth0 2001:db8:1::1";
const NOWHERE: &str = "no: RTNETLINK answers: No route to host";

#[test]
fn packets_take_the_way_of_the_mode() {
    // Destination, the route of marked packets, and that of others in each mode.
    let modes = [USUAL, ENFORCED, ENFORCED_BUT_LOCAL, ALL, ALL_BUT_LOCAL];
    let ways = [
        ("8.8.8.8", OUTSIDE, [TUNNEL; 5]),
        ("2001:4860::8", OUTSIDE6, [TUNNEL6; 5]),
        // A network that this machine is in.
        (
            "192.168.1.20",
            "eth0",
            ["eth0", TUNNEL, "eth0", TUNNEL, "eth0"],
        ),
        (
            "2001:db8:1::20",
            "eth0",
            ["eth0", TUNNEL6, "eth0", TUNNEL6, "eth0"],
        ),
        // A network that it has a route to.
        (
            "10.50.0.1",
            "eth0 192.168.1.2",
            ["eth0 192.168.1.2", TUNNEL, TUNNEL, TUNNEL, TUNNEL],
        ),
        // Excluded, and the tunnel's other end.
        ("203.0.113.5", OUTSIDE, [OUTSIDE; 5]),
        ("2001:db8:5::5", OUTSIDE6, [OUTSIDE6; 5]),
        ("198.51.100.7", OUTSIDE, [OUTSIDE; 5]),
        // Neighbours in the tunnel's own network.
        ("10.0.0.5", "pc0", ["pc0"; 5]),
        ("fd00::5", "pc0", ["pc0"; 5]),
    ];
    for (mode, policy) in modes.into_iter().enumerate() {
        test(policy, |mut network, dir| async move {
            let before = rules();
            let settings = routed(&FULL, &["203.0.113.0/24", "2001:db8:5::/48"]);
            network.apply(settings, || false).await.unwrap();
            let mark = Mark::BYPASS;
            for (destination, marked, unmarked) in ways {
                let context = format!("{destination} with {policy:?}");
                assert_eq!(way(destination, None), unmarked[mode], "{context}");
                assert_eq!(
                    way(destination, Some(mark.apply_to(0))),
                    marked,
                    "marked, {context}"
                );
                let shared = Some(mark.apply_to(0x00ab_cdef));
                assert_eq!(
                    way(destination, shared),
                    marked,
                    "marked by others, {context}"
                );
                let foreign = Some(0x00ab_cdef);
                assert_eq!(
                    way(destination, foreign),
                    unmarked[mode],
                    "not ours, {context}"
                );
            }
            network.tear_down().await;
            assert_eq!(rules(), before);
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        });
    }
}

#[test]
fn with_all_networks_nothing_leaves_without_a_tunnel() {
    test(ALL, |mut network, _dir| async move {
        let destinations = ["8.8.8.8", "2001:4860::8", "192.168.1.20", "10.50.0.1"];
        let ways = || destinations.map(|destination| way(destination, None));
        let marked = |mark| destinations.map(|destination| way(destination, Some(mark)));
        let open = ways();
        network.engage_kill_switch().await.unwrap();
        let mark = Mark::BYPASS.apply_to(0);
        assert_eq!(ways(), [NOWHERE; 4], "while connecting");
        assert_eq!(marked(mark), open);

        let mut wrong = routed(&FULL, &[]);
        include(&mut wrong.ipv6, net("fd09::/64"), Some(net("fd00::1")));
        network.apply(wrong, || false).await.unwrap_err();
        assert!(network.info().is_none());
        assert_eq!(ways(), [NOWHERE; 4], "after settings that failed");

        // The tunnel does not carry the rest of the world, as it has no router for it.
        let mut some = addressed("198.51.100.7");
        include(&mut some.ipv4, net("10.0.0.0/8"), Some(net("10.0.0.254")));
        some.ipv4.as_mut().unwrap().router = None;
        some.ipv6.as_mut().unwrap().router = None;
        network.apply(some, || false).await.unwrap();
        assert_eq!(ways(), [NOWHERE, NOWHERE, NOWHERE, TUNNEL]);
        network.apply(routed(&[], &[]), || false).await.unwrap();
        assert_eq!(ways(), [TUNNEL, TUNNEL6, TUNNEL, TUNNEL], "by the router");
        network.apply(routed(&FULL, &[]), || false).await.unwrap();
        assert_eq!(ways(), [TUNNEL, TUNNEL6, TUNNEL, TUNNEL]);
        assert_eq!(marked(mark), open);
        ip("link set pc0 down");
        assert_eq!(ways(), [NOWHERE; 4], "while the interface is down");
        ip("link set pc0 up");
        network.restore().await;
        assert_eq!(ways(), [TUNNEL, TUNNEL6, TUNNEL, TUNNEL]);
        network.clear().await.unwrap();
        assert_eq!(ways(), [NOWHERE; 4], "without settings");
        network.tear_down().await;
        assert_eq!(ways(), open);
    });
}

#[test]
fn local_networks_are_followed() {
    test(ENFORCED_BUT_LOCAL, |mut network, _dir| async move {
        network.apply(routed(&FULL, &[]), || false).await.unwrap();
        assert_eq!(way("192.168.2.20", None), TUNNEL);
        ip("address add 192.168.2.10/24 dev eth0");
        network.follow_local_networks().await;
        assert_eq!(way("192.168.2.20", None), "eth0");
        ip("address delete 192.168.2.10/24 dev eth0");
        network.follow_local_networks().await;
        assert_eq!(way("192.168.2.20", None), TUNNEL);
    });
}

#[test]
fn a_tunnel_without_routes_adds_no_rule() {
    for policy in [USUAL, ENFORCED, ENFORCED_BUT_LOCAL] {
        test(policy, |mut network, _dir| async move {
            let before = rules();
            let port =
                EthernetTunnelSettings::new(net("198.51.100.7"), MacAddr([2; 6]), 1500, "pc0");
            network.engage_kill_switch().await.unwrap();
            for settings in [port, addressed("198.51.100.7")] {
                network.apply(settings, || false).await.unwrap();
                assert_eq!(rules(), before);
            }
        });
    }
}

#[test]
fn settings_with_an_impossible_gateway_change_nothing() {
    test(ENFORCED, |mut network, _dir| async move {
        network.apply(routed(&FULL, &[]), || false).await.unwrap();
        let look = || rules() + &ip("-4 route show table all") + &ip("-6 route show table all");
        let before = look();
        let mut wrong = routed(&["10.0.0.0/8"], &["203.0.113.0/24"]);
        // A group of hosts.
        include(&mut wrong.ipv4, net("10.9.0.0/16"), Some(net("224.0.0.1")));
        let error = network.apply(wrong, || false).await.unwrap_err();
        assert!(
            matches!(error, SettingsError::Unroutable(_)) && error.code() == 3,
            "{error:?}"
        );
        assert!(
            error.to_string().contains("add route 10.9.0.0/16"),
            "{error}"
        );
        assert_eq!(look(), before);
    });
}

#[test]
fn a_router_can_move_to_another_network() {
    for policy in [USUAL, ENFORCED, ALL] {
        test(policy, |mut network, _dir| async move {
            network.engage_kill_switch().await.unwrap();
            network.apply(routed(&FULL, &[]), || false).await.unwrap();
            let mut moved = EthernetTunnelSettings::new(
                net("198.51.100.7"),
                MacAddr([2, 0, 0, 0, 0, 7]),
                1500,
                "pc0",
            )
            .with_addresses(&[net("10.7.0.1/24"), net("fd07::1/64")]);
            moved.ipv4.as_mut().unwrap().router = Some(net("10.7.0.254"));
            moved.ipv6.as_mut().unwrap().router = Some(net("fd07::ff"));
            include(&mut moved.ipv4, net("0.0.0.0/0"), None);
            include(&mut moved.ipv6, net("::/0"), None);
            network.apply(moved, || false).await.unwrap();
            assert_eq!(way("8.8.8.8", None), "pc0 10.7.0.254");
            assert_eq!(way("2001:4860::8", None), "pc0 fd07::ff");
        });
    }
}
