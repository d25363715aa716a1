// SPDX-License-Identifier: MIT OR Apache-2.0
//! Kinds of underlay: IPv6, NAT, and more than two sites.

use std::time::Instant;

use crate::kit::cable::Cable;
use crate::kit::frames::{BROADCAST, EXPERIMENTAL, Flow, Tally, frame, longest_gap};
use crate::kit::pair::{Pair, Plan, connect};
use crate::kit::process::{eventually, millis, secs};
use crate::kit::site::{Peer, Settings, Site};
use crate::kit::topology::{Router, Sandbox, Uplink, mac};
use crate::kit::wiretap::Wiretap;

#[test]
fn an_ipv6_underlay_carries_full_frames() {
    let pair = Pair::start(Plan {
        ipv6: true,
        ..Plan::default()
    });
    for number in 0..100 {
        pair.at_a.send(&pair.there().frame(number, 1514));
        pair.at_b.send(&pair.back().frame(number, 1514));
        pair.there().wait_number(&pair.at_b, number, secs(1));
        pair.back().wait_number(&pair.at_a, number, secs(1));
    }
    assert_eq!(pair.there().tally(&pair.at_b, 100), Tally::perfect(100));
    assert_eq!(pair.back().tally(&pair.at_a, 100), Tally::perfect(100));
    let endpoint = pair.a.peer().endpoint.expect("A knows where B is");
    assert!(endpoint.contains("fd18:2::2"), "the endpoint is {endpoint}");
}

#[test]
fn a_name_that_is_not_found_is_logged_once_for_many_attempts() {
    let mut pair = Pair::prepare(Plan::default());
    let b = Peer {
        endpoint: Some("site-b.invalid:51830".to_owned()),
        ..pair.b.as_peer(None)
    };
    pair.a.configure(&pair.settings, &[b]);
    pair.a.up().wait_for("site-b.invalid:51830", secs(15));
    // Two more attempts.
    std::thread::sleep(secs(5));
    let log = pair.a.process().log();
    assert_eq!(log.matches("cannot be resolved").count(), 1, "{log}");
}

#[test]
fn a_side_that_listens_on_ipv4_only_works() {
    let settings = Settings {
        listen: "0.0.0.0:51830".to_owned(),
        ..Settings::default()
    };
    Pair::start(Plan {
        settings,
        ..Plan::default()
    });
}

#[test]
fn a_tunnel_whose_way_leads_through_itself_does_not_carry_itself() {
    let pair = Pair::start(Plan::default());
    let (peer, station) = (pair.b.uplink.v4, mac(pair.at_b.mac));
    // As if A had learned in its LAN that B's address is behind the tunnel.
    let route = format!("{peer}/32 dev br-lan");
    pair.a.ns.ip(&format!(
        "neigh replace {peer} lladdr {station} dev br-lan\nroute add {route}"
    ));
    std::thread::sleep(secs(1));
    let before = pair.a.status().counters.outbound_frames;
    std::thread::sleep(secs(1));
    let frames = pair.a.status().counters.outbound_frames - before;
    assert!(frames < 100, "{frames} frames in a second");
    pair.a.ns.ip(&format!("route del {route}"));
    pair.connect(secs(15));
}

/// A hub in the open, and sites behind one NAT box that call it.
///
/// ```text
///  site 11 --+
///            nat (198.18.9.2) -- internet -- hub, site 2 (198.18.2.2)
///  site 12 --+
/// ```
struct Natted {
    callers: Vec<(Cable, Site)>,
    at_hub: Cable,
    hub: Site,
    nat: Router,
    outside: Uplink,
    _internet: Router,
    _sandbox: Sandbox,
}

impl Natted {
    fn start(callers: u8) -> Self {
        let sandbox = Sandbox::new();
        let internet = Router::internet(&sandbox);
        let mut hub = Site::new(&sandbox, &internet, 2, 1500);
        let (nat, outside) = Router::behind(&sandbox, &internet, 9);
        masquerade(&nat, "");
        let settings = Settings::default();
        let mut sites: Vec<_> = (0..callers)
            .map(|k| Site::new(&sandbox, &nat, 11 + k, 1500))
            .collect();
        let waited_for: Vec<_> = sites.iter().map(|site| site.as_peer(None)).collect();
        hub.configure(&settings, &waited_for);
        hub.up().wait_for("ready", secs(20));
        let at_hub = hub.cable(1, 1500);
        for site in &mut sites {
            site.configure(&settings, &[hub.as_peer(Some(hub.uplink.v4.into()))]);
            site.up();
        }
        let callers: Vec<_> = sites
            .into_iter()
            .map(|site| (site.cable(1, 1500), site))
            .collect();
        for (cable, _) in &callers {
            connect(cable, &at_hub, secs(10));
        }
        for (cable, _) in &callers {
            connect(&at_hub, cable, secs(10));
        }
        Self {
            callers,
            at_hub,
            hub,
            nat,
            outside,
            _internet: internet,
            _sandbox: sandbox,
        }
    }
}

/// Source NAT on the box's uplink; `ports` may narrow the ports that it uses.
fn masquerade(nat: &Router, ports: &str) {
    nat.ns.nft(&format!(
        "table ip nat {{
            chain out {{
                type nat hook postrouting priority srcnat
                oifname wan ip protocol udp masquerade {ports}
            }}
        }}"
    ));
}

/// Probes both ways between the only caller and the hub while `change` happens; the gaps must be short.
fn assert_survives(natted: &Natted, change: impl FnOnce(&Natted)) {
    let (cable, _) = &natted.callers[0];
    let ways = [(cable, &natted.at_hub, 31), (&natted.at_hub, cable, 32)];
    let ways = ways.map(|(from, to, id)| {
        let flow = Flow::between(from, to, id);
        (flow, to, from.stream(flow, millis(10), |_| 200))
    });
    for (flow, to, _) in &ways {
        assert!(
            flow.wait_number(to, 20, secs(20)),
            "the probes of flow {} arrive",
            flow.id
        );
    }
    let since = Instant::now();
    change(natted);
    for (flow, to, _) in &ways {
        eventually(
            secs(10),
            &format!("the probes of flow {} arrive again", flow.id),
            || {
                let arrivals = flow.arrivals(to);
                arrivals
                    .get(arrivals.len().checked_sub(100)?)
                    .filter(|&&(at, _)| at > since)
                    .map(drop)
            },
        );
    }
    for (flow, to, stream) in ways {
        stream.stop();
        let gap = longest_gap(&flow.arrivals(to), since, Instant::now());
        println!("flow {}: longest gap {gap:?}", flow.id);
        assert!(gap < secs(2), "flow {} had a gap of {gap:?}", flow.id);
    }
}

#[test]
fn a_nat_that_forgets_its_mapping_is_survived() {
    let natted = Natted::start(1);
    let before = natted.hub.peer().endpoint.expect("the caller has called");
    assert_survives(&natted, |natted| {
        natted.nat.ns.nft("flush ruleset");
        masquerade(&natted.nat, "to :40000-40999");
        natted.nat.ns.run(&["conntrack", "-F"]);
    });
    let after = natted.hub.peer().endpoint;
    assert!(
        after.as_ref() != Some(&before),
        "the NAT did rebind: {before} before, {after:?} after"
    );
}

#[test]
fn a_nat_that_gets_another_address_is_survived() {
    let natted = Natted::start(1);
    assert_survives(&natted, |natted| {
        let (old, new, gateway) = (
            natted.outside.v4,
            natted.outside.other_v4(50),
            natted.outside.other_v4(1),
        );
        natted.nat.ns.ip(&format!(
            "addr del {old}/24 dev wan\naddr add {new}/24 dev wan\nroute replace default via {gateway}"
        ));
    });
    let endpoint = natted.hub.peer().endpoint.expect("the caller is known");
    assert!(
        endpoint.contains("198.18.9.50"),
        "the endpoint is {endpoint}"
    );
}

#[test]
fn two_callers_behind_one_address_share_a_hub_but_not_each_other() {
    let natted = Natted::start(2);
    let [(first, _), (second, _)] = &natted.callers[..] else {
        unreachable!("two were started")
    };
    let endpoints: Vec<_> = natted
        .hub
        .status()
        .peers
        .into_iter()
        .map(|peer| peer.endpoint)
        .collect();
    assert_ne!(endpoints[0], endpoints[1], "each has a port of its own");
    for endpoint in endpoints {
        let endpoint = endpoint.expect("both have called");
        assert!(
            endpoint.contains("198.18.9.2"),
            "the endpoint is {endpoint}"
        );
    }

    // The hub's frames reach both, and theirs reach the hub.
    let from_hub = frame(BROADCAST, natted.at_hub.mac, &[], EXPERIMENTAL, 200, 1);
    natted.at_hub.send(&from_hub);
    for (from, other) in [(first, second), (second, first)] {
        assert!(
            from.receives(&from_hub, secs(20)),
            "a broadcast of the hub reaches both"
        );
        let unknown = [0x02, 0xde, 0xad, 0, 0, 1];
        for (dst, seed) in [
            (BROADCAST, 2),
            (unknown, 3),
            (natted.at_hub.mac, 4),
            (other.mac, 5),
        ] {
            let sent = frame(dst, from.mac, &[], EXPERIMENTAL, 200, seed);
            from.send(&sent);
            if dst == other.mac {
                // The hub knows this address behind another peer: split horizon drops it there.
                assert!(
                    !natted.at_hub.receives(&sent, millis(300)),
                    "known elsewhere, so not at the hub"
                );
            } else {
                assert!(
                    natted.at_hub.receives(&sent, secs(20)),
                    "a frame to {dst:02x?} reaches the hub"
                );
            }
            assert!(
                !other.receives(&sent, millis(300)),
                "a frame to {dst:02x?} stays away from the other peer"
            );
        }
    }
}

#[test]
fn a_frame_to_a_known_address_goes_to_its_peer_only() {
    let natted = Natted::start(2);
    let [(first, first_site), (second, second_site)] = &natted.callers[..] else {
        unreachable!("two were started")
    };
    let inbound = |site: &Site| site.peer().counters.inbound_frames;
    let (to_first, to_second) = (inbound(first_site), inbound(second_site));
    let flow = Flow::between(&natted.at_hub, first, 7);
    for number in 0..200 {
        natted.at_hub.send(&flow.frame(number, 300));
        flow.wait_number(first, number, secs(1));
    }
    assert_eq!(flow.tally(first, 200), Tally::perfect(200));
    assert_eq!(flow.count(second), 0, "frames at the other site");
    assert!(
        inbound(first_site) >= to_first + 200,
        "show counts them at the first site"
    );
    assert!(
        inbound(second_site) < to_second + 50,
        "show counts none at the second"
    );
}

#[test]
fn the_payload_cannot_be_read_on_the_underlay() {
    let pair = Pair::start(Plan::default());
    let wiretap = Wiretap::before(&pair.internet, &pair.b);
    let marker = b"a marker that nobody on the path should see";
    let mut sent = frame(pair.at_b.mac, pair.at_a.mac, &[], EXPERIMENTAL, 14, 0);
    sent.extend(marker.repeat(8));
    pair.at_a.send(&sent);
    assert!(pair.at_b.receives(&sent, secs(20)), "the frame crosses");
    let datagrams = eventually(secs(20), "the wiretap sees datagrams", || {
        let seen = wiretap.from(pair.a.uplink.v4);
        (!seen.is_empty()).then_some(seen)
    });
    for datagram in datagrams {
        for needle in [&marker[..], &pair.at_a.mac, &pair.at_b.mac] {
            let readable = datagram
                .payload
                .windows(needle.len())
                .any(|window| window == needle);
            assert!(!readable, "{needle:02x?} can be read on the underlay");
        }
    }
}
