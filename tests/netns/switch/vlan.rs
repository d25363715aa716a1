// SPDX-License-Identifier: MIT OR Apache-2.0
//! VLANs of ports: which frames pass, with which tags, and that super-frames stay whole.

use std::sync::Arc;

use crate::kit::cable::{Cable, VlanHost};
use crate::kit::frames::{BROADCAST, DOT1AD as AD, DOT1Q as Q, EXPERIMENTAL, Mac, frame};
use crate::kit::pair::{Pair, Ports};
use crate::kit::process::{eventually, millis, secs};
use crate::kit::site::{BRIDGE, DEVICE, Site};
use crate::kit::topology::{Host, mac};
use crate::kit::traffic::{
    Ip, assert_checksums, assert_exact, assert_nothing_refused, assert_whole, iperf, transfer,
};

/// TPID, and priority, DEI and VID.
type Tag = (u16, u16);

/// Priority 5.
const PRIORITY: u16 = 0xa000;

/// The tags of a frame that goes in, and those with which it comes out, or the drop reason that A
/// counts. There is no reason for a flooded frame that skips a port.
type Row<'a> = (&'a [Tag], Result<&'a [Tag], &'a str>);

/// Ports of A, frames from A to B, and from B to A. B has default ports.
type Case<'a> = (Ports, &'a [Row<'a>], &'a [Row<'a>]);

const fn device(device: &'static str) -> Ports {
    Ports { device, peer: "" }
}

const fn peer(peer: &'static str) -> Ports {
    Ports { device: "", peer }
}

#[test]
fn access_ports_take_untagged_frames_and_no_others() {
    assert_case(&(
        device("access = 42"),
        &[
            (&[], Ok(&[(Q, 42)])),
            (&[(Q, PRIORITY)], Ok(&[(Q, PRIORITY | 42)])),
            (&[(Q, 42)], Err("tagged-refused")),
            (&[(AD, 42)], Err("tagged-refused")),
        ],
        &[
            (&[(Q, 42)], Ok(&[])),
            (&[(Q, PRIORITY | 42)], Ok(&[])),
            (&[(AD, 42)], Ok(&[])),
            (&[], Err("vlan-refused")),
            (&[(Q, 43)], Err("vlan-refused")),
            (&[(Q, 42), (Q, 7)], Err("vlan-refused")),
        ],
    ));
    // The same at the other end of the switch: untagged frames are untagged between the sites.
    assert_case(&(
        peer("access = 42"),
        &[(&[(Q, 42)], Ok(&[])), (&[], Err("")), (&[(Q, 43)], Err(""))],
        &[(&[], Ok(&[(Q, 42)])), (&[(Q, 42)], Err("tagged-refused"))],
    ));
}

#[test]
fn trunks_take_the_vlans_they_allow() {
    assert_case(&(
        device("trunk = \"10, 20-29\""),
        &[
            (&[(Q, 10)], Ok(&[(Q, 10)])),
            (&[(Q, PRIORITY | 25)], Ok(&[(Q, PRIORITY | 25)])),
            (&[(Q, 25), (Q, 99)], Ok(&[(Q, 25), (Q, 99)])),
            (&[(Q, 19)], Err("vlan-refused")),
            (&[(Q, 30)], Err("vlan-refused")),
            (&[], Err("untagged-refused")),
            (&[(Q, PRIORITY)], Err("untagged-refused")),
        ],
        &[
            (&[(Q, 20)], Ok(&[(Q, 20)])),
            (&[(Q, 29)], Ok(&[(Q, 29)])),
            (&[(Q, 30)], Err("vlan-refused")),
            (&[], Err("vlan-refused")),
        ],
    ));
    assert_case(&(
        device("trunk = 10\nnative = 5"),
        &[
            (&[(Q, 10)], Ok(&[(Q, 10)])),
            (&[], Ok(&[(Q, 5)])),
            (&[(Q, PRIORITY)], Ok(&[(Q, PRIORITY | 5)])),
            (&[(Q, 6)], Err("vlan-refused")),
        ],
        &[
            (&[(Q, 5)], Ok(&[])),
            (&[(Q, 10)], Ok(&[(Q, 10)])),
            (&[], Err("vlan-refused")),
        ],
    ));
    assert_case(&(
        device("trunk = 10\nnative = 0"),
        &[
            (&[], Ok(&[])),
            (&[(Q, 10)], Ok(&[(Q, 10)])),
            (&[(Q, 9)], Err("vlan-refused")),
        ],
        &[
            (&[], Ok(&[])),
            (&[(Q, 10)], Ok(&[(Q, 10)])),
            (&[(Q, 9)], Err("vlan-refused")),
        ],
    ));
}

#[test]
fn translated_vlans_have_two_numbers() {
    assert_case(&(
        device("trunk = [20, 110]\ntranslate = { 10 = 110 }"),
        &[
            (&[(Q, 10)], Ok(&[(Q, 110)])),
            (&[(AD, PRIORITY | 10)], Ok(&[(AD, PRIORITY | 110)])),
            (&[(Q, 20)], Ok(&[(Q, 20)])),
            (&[(Q, 110)], Err("vlan-refused")),
        ],
        &[
            (&[(Q, 110)], Ok(&[(Q, 10)])),
            (
                &[(Q, PRIORITY | 110), (Q, 7)],
                Ok(&[(Q, PRIORITY | 10), (Q, 7)]),
            ),
            (&[(Q, 20)], Ok(&[(Q, 20)])),
            (&[(Q, 10)], Err("vlan-refused")),
        ],
    ));
    assert_case(&(
        peer("trunk = \"10-20\"\ntranslate = { 20 = 10, 10 = 20 }"),
        &[
            (&[(Q, 10)], Ok(&[(Q, 20)])),
            (&[(Q, 20)], Ok(&[(Q, 10)])),
            (&[(Q, 30)], Err("")),
        ],
        &[(&[(Q, 10)], Ok(&[(Q, 20)])), (&[(Q, 15)], Ok(&[(Q, 15)]))],
    ));
}

#[test]
fn tunnels_carry_tags_as_payload() {
    assert_case(&(
        device("tunnel = 200"),
        &[
            (&[], Ok(&[(AD, 200)])),
            (&[(Q, PRIORITY | 7)], Ok(&[(AD, 200), (Q, PRIORITY | 7)])),
            (&[(Q, 200)], Ok(&[(AD, 200), (Q, 200)])),
        ],
        &[
            (&[(AD, 200)], Ok(&[])),
            (&[(AD, 200), (Q, PRIORITY | 7)], Ok(&[(Q, PRIORITY | 7)])),
            (&[(AD, 201), (Q, 7)], Err("vlan-refused")),
            (&[], Err("vlan-refused")),
        ],
    ));
    assert_case(&(
        peer("tunnel = 200\ntag = \"802.1q\""),
        &[
            (&[(Q, 200)], Ok(&[])),
            (&[(Q, 200), (Q, 7)], Ok(&[(Q, 7)])),
            (&[(Q, 7)], Err("")),
        ],
        &[(&[], Ok(&[(Q, 200)])), (&[(Q, 7)], Ok(&[(Q, 200), (Q, 7)]))],
    ));
}

/// The largest frame from the kernel has two tags; between the sites it has three.
#[test]
fn a_tunnel_has_room_for_its_tag_beside_those_of_the_frame() {
    let pair = Pair::start_with_ports([device("tunnel = 200"); 2]);
    pair.connect(secs(10));
    for (from, to) in [(&pair.at_a, &pair.at_b), (&pair.at_b, &pair.at_a)] {
        let row: Row<'_> = (&[(AD, 5), (Q, 7)], Ok(&[(AD, 5), (Q, 7)]));
        for dst in [BROADCAST, to.mac] {
            assert_row(from, to, dst, 1514, &row, "either way");
        }
    }
    for site in [&pair.a, &pair.b] {
        assert_eq!(vids_of(site, pair.at_a.mac), [200]);
        assert_eq!(site.drops("oversize"), 0);
    }
}

#[test]
fn a_frame_that_loses_its_tag_is_as_long_as_ethernet_wants_it() {
    // At the port where it leaves the tunnel, and at the one where it enters.
    for (ports, is_there) in [(device("access = 42"), false), (peer("access = 42"), true)] {
        let pair = Pair::start_with_ports([ports, Ports::default()]);
        let (from, to) = match is_there {
            true => (&pair.at_a, &pair.at_b),
            false => (&pair.at_b, &pair.at_a),
        };
        let sent = frame(BROADCAST, from.mac, &[(Q, 42)], EXPERIMENTAL, 60, 1);
        let expected = [&sent[..12], &sent[16..], &[0; 4]].concat();
        eventually(secs(20), "a frame of 60 bytes", || {
            from.send(&sent);
            to.receives(&expected, millis(100)).then_some(())
        });
    }
}

fn assert_case(case: &Case<'_>) {
    let (ports, there, back) = case;
    println!("{ports:?}");
    let pair = Pair::start_with_ports([*ports, Ports::default()]);
    let mut refused = vec![];
    for (rows, from, to, way) in [
        (there, &pair.at_a, &pair.at_b, "from A to B"),
        (back, &pair.at_b, &pair.at_a, "from B to A"),
    ] {
        wait_for(from, to, &rows[0]);
        for (dst, len) in [
            (BROADCAST, 100),
            (to.mac, 100),
            (BROADCAST, 1514),
            (to.mac, 1514),
        ] {
            for row in *rows {
                assert_row(from, to, dst, len, row, way);
                refused.extend(row.1.err().filter(|reason| !reason.is_empty()));
            }
        }
    }
    for &reason in &refused {
        let times = refused.iter().filter(|&&other| other == reason).count();
        assert_eq!(pair.a.drops(reason), times as u64, "{reason}");
    }
    assert_nothing_refused(&[&pair.a, &pair.b]);
}

/// A frame as it goes in, and with other tags.
fn with_tags(src: Mac, dst: Mac, len: usize, tags: &[Tag], seed: u64) -> Vec<u8> {
    frame(dst, src, tags, EXPERIMENTAL, len + 4 * tags.len(), seed)
}

/// The bridges may not forward yet: waits until the first row succeeds.
fn wait_for(from: &Cable, to: &Cable, row: &Row<'_>) {
    let tags = row.1.expect("the first row passes");
    let [sent, came] = [row.0, tags].map(|tags| with_tags(from.mac, BROADCAST, 60, tags, 999));
    eventually(secs(10), "a frame crosses", || {
        from.send(&sent);
        to.receives(&came, millis(50)).then_some(())
    });
    to.clear();
}

fn assert_row(from: &Cable, to: &Cable, dst: Mac, len: usize, row: &Row<'_>, way: &str) {
    let sent = with_tags(from.mac, dst, len, row.0, 1);
    let payload = &sent[14 + 4 * row.0.len()..];
    to.clear();
    from.send(&sent);
    if let Ok(tags) = row.1 {
        let expected = with_tags(from.mac, dst, len, tags, 1);
        to.receives(&expected, secs(20));
    } else {
        // Long enough for frames that pass, as tested above.
        to.wait(millis(100), |all| !all.is_empty());
    }
    let came: Vec<_> = to.with_arrivals(|all| {
        let ours = all
            .iter()
            .filter(|arrival| arrival.bytes.ends_with(payload));
        ours.map(|arrival| tags_of(&arrival.bytes)).collect()
    });
    let expected: Vec<_> = row.1.iter().map(|tags| tags.to_vec()).collect();
    assert_eq!(
        came, expected,
        "{way}, {len} bytes to {dst:02x?}, sent with {:?}",
        row.0
    );
}

fn tags_of(frame: &[u8]) -> Vec<Tag> {
    let pairs = frame[12..].chunks_exact(4).map(|tag| {
        let [a, b, c, d] = *tag.first_chunk().expect("four bytes");
        (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
    });
    pairs
        .take_while(|(tpid, _)| [Q, AD].contains(tpid))
        .collect()
}

/// The VLANs in which a site's switch has seen a station.
fn vids_of(site: &Site, station: Mac) -> Vec<u16> {
    let station = mac(station);
    let fdb = site.status().fdb.into_iter();
    fdb.filter(|entry| entry.mac == station)
        .map(|entry| entry.vid)
        .collect()
}

/// Untagged at both ends and tagged between: super-frames get tags and lose them again.
#[test]
fn super_frames_keep_their_checksums_and_segments_when_tags_change() {
    let translated = Ports {
        device: "access = 110",
        peer: "trunk = 110\ntranslate = { 10 = 110 }",
    };
    let (customer, service) = ("tunnel = 200\ntag = \"802.1q\"", "tunnel = 200");
    for (ports, vids) in [
        ([device("access = 42"); 2], [42; 2]),
        ([device("trunk = 10\nnative = 5"); 2], [5; 2]),
        ([translated, device("access = 10")], [110, 10]),
        ([device(service); 2], [200; 2]),
        ([device(customer); 2], [200; 2]),
    ] {
        println!("{ports:?}");
        let pair = Pair::start_with_ports(ports);
        pair.connect(secs(10));
        let (a, b) = (pair.a.host(1), pair.b.host(1));
        assert_whole(&a, &b, &pair.b);
        assert_whole(&b, &a, &pair.a);
        assert_exact(&a, &b, 16);
        for (site, vid) in [&pair.a, &pair.b].into_iter().zip(vids) {
            assert_eq!([&a, &b].map(|host| vids_of(site, host.mac)), [[vid], [vid]]);
        }
        for (from, to) in [(&a, &b), (&b, &a)] {
            let rate = iperf(pair.sandbox.path(), from, to, &[]);
            println!("{rate:.2e} bit/s");
            assert!(rate > 1e6, "{rate} bit/s");
        }
        assert_checksums(&[&pair.a.ns, &pair.b.ns, &a.ns, &b.ns]);
        assert_nothing_refused(&[&pair.a, &pair.b]);
    }
}

/// Untagged at A, in a VLAN at B, whose bridge gets tagged super-frames.
#[test]
fn an_access_port_joins_a_host_to_a_vlan_of_the_other_site() {
    for ports in [
        [device("access = 42"), Ports::default()],
        [
            device("access = 7"),
            peer("trunk = 42\ntranslate = { 7 = 42 }"),
        ],
        [Ports::default(), peer("access = 42")],
    ] {
        println!("{ports:?}");
        let pair = Pair::start_with_ports(ports);
        let (a, b) = (pair.a.host(1), pair.b.host(2));
        let _vlan = VlanHost::new(&b.ns, &pair.b.ns, BRIDGE, "trunk", 42);
        a.ns.ip("addr add 10.42.0.1/24 dev eth0\naddr add fd42::1/64 dev eth0 nodad");
        b.ns.ip("addr add 10.42.0.2/24 dev vlan\naddr add fd42::2/64 dev vlan nodad");
        let in_vlan = |host: &Host, n: u8| Host {
            ns: Arc::clone(&host.ns),
            v4: [10, 42, 0, n].into(),
            v6: format!("fd42::{n}").parse().unwrap(),
            mac: host.mac,
        };
        let (a, b) = (in_vlan(&a, 1), in_vlan(&b, 2));
        let dump = pair.sandbox.path().join("tcpdump.log");
        let filter = "vlan 42 and tcp and greater 3000";
        let tcpdump = ["tcpdump", "-l", "-nne", "-i", DEVICE, filter];
        let mut tcpdump = pair.b.ns.spawn(&dump, &tcpdump);
        tcpdump.wait_for("listening on", secs(20));
        eventually(secs(10), "the hosts reach each other", || {
            let ping = ["ping", "-c1", "-W1", "10.42.0.2"];
            a.ns.succeeds(&ping).then_some(())
        });
        for ip in [Ip::V4, Ip::V6] {
            transfer(&a, &b, ip, 64);
            transfer(&b, &a, ip, 64);
        }
        tcpdump.wait_for("vlan 42", secs(20));
        assert_checksums(&[&pair.a.ns, &pair.b.ns, &a.ns, &b.ns]);
        assert_nothing_refused(&[&pair.a, &pair.b]);
    }
}
