// SPDX-License-Identifier: MIT OR Apache-2.0
//! Multicast snooping: groups go to the sites that joined them. Real hosts join, and their kernels
//! answer the querier; the test sends frames to groups and looks for them at the cables.
//!
//! Hosts have ten seconds to answer, so each scenario takes half a minute. All run at once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use socket2::{Domain, Protocol, Socket, Type};

use crate::kit::cable::{Cable, VlanHost};
use crate::kit::frames::Mac;
use crate::kit::mesh::{Mesh, hello};
use crate::kit::process::{eventually, millis, secs};
use crate::kit::site::{BRIDGE, Settings, Site};
use crate::kit::sites::Sites;
use crate::kit::topology::Host;

/// Joined at the second site only.
const AT_B: [IpAddr; 2] = [v4(1), v6(1)];
/// Joined at the second and the third.
const AT_B_AND_C: [IpAddr; 2] = [v4(2), v6(2)];
/// Without members.
const UNWANTED: [IpAddr; 2] = [v4(3), v6(3)];
/// Without members, and flooded to all.
const LINK_LOCAL: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(224, 0, 0, 251)),
    IpAddr::V4(Ipv4Addr::new(224, 0, 0, 199)),
    IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb)),
    IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0x4242, 0x4242)),
];
/// The time until the querier has asked and hosts have answered.
const SETTLED: Duration = secs(20);
const MANY: u8 = 200;

const fn v4(n: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(239, 7, 1, n))
}

const fn v6(n: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0x7, n))
}

/// Groups of one host with a great many memberships.
fn many() -> impl Iterator<Item = IpAddr> {
    let both = |n: u8| {
        let v4 = Ipv4Addr::new(239, 7, 2, n);
        let v6 = Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0x8, n.into());
        [IpAddr::from(v4), v6.into()]
    };
    (0..MANY).flat_map(both)
}

/// Keeps its memberships until it is dropped.
struct Member {
    host: Host,
    sockets: [UdpSocket; 2],
    index: u32,
}

impl Member {
    fn at(site: &Site) -> Self {
        Self::on(site.host(1), "eth0")
    }

    fn on(host: Host, interface: &str) -> Self {
        host.ns
            .run(&["sysctl", "-qw", "net.ipv4.igmp_max_memberships=1000"]);
        let index = format!("/sys/class/net/{interface}/ifindex");
        let index = host.ns.run(&["cat", &index]);
        let sockets = host.ns.enter(|| {
            let six = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP)).unwrap();
            let four = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            [four, six.into()]
        });
        Self {
            host,
            sockets,
            index: index.trim().parse().unwrap(),
        }
    }

    fn join(&self, groups: impl IntoIterator<Item = IpAddr>) {
        let [four, six] = &self.sockets;
        for group in groups {
            let joined = match group {
                IpAddr::V4(group) => four.join_multicast_v4(&group, &self.host.v4),
                IpAddr::V6(group) => six.join_multicast_v6(&group, self.index),
            };
            joined.unwrap_or_else(|error| panic!("joining {group}: {error}"));
        }
    }

    fn leave(&self, groups: impl IntoIterator<Item = IpAddr>) {
        let [four, six] = &self.sockets;
        for group in groups {
            match group {
                IpAddr::V4(group) => four.leave_multicast_v4(&group, &self.host.v4).unwrap(),
                IpAddr::V6(group) => six.leave_multicast_v6(&group, self.index).unwrap(),
            }
        }
    }
}

/// A datagram to a group, as in RFC 1112 section 6.4 and RFC 2464 section 7.
fn datagram(source: Mac, group: IpAddr, number: u32) -> Vec<u8> {
    let payload = number.to_be_bytes();
    let mut bytes = Vec::new();
    match group {
        IpAddr::V4(group) => {
            let [_, b, c, d] = group.octets();
            PacketBuilder::ethernet2(source, [1, 0, 0x5e, b & 0x7f, c, d])
                .ipv4([10, 77, 9, source[5]], group.octets(), 8)
                .udp(7300, 7300)
                .write(&mut bytes, &payload)
        }
        IpAddr::V6(group) => {
            let octets = group.octets();
            let [.., w, x, y, z] = octets;
            let from = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 9, 0, source[5].into());
            PacketBuilder::ethernet2(source, [0x33, 0x33, w, x, y, z])
                .ipv6(from.octets(), octets, 8)
                .udp(7300, 7300)
                .write(&mut bytes, &payload)
        }
    }
    .unwrap();
    bytes.resize(bytes.len().max(60), 0);
    bytes
}

/// The sites, cables and members of a scenario.
struct Place {
    members: Vec<Member>,
    mesh: Mesh,
    sent: u32,
}

impl Place {
    /// Hosts at the second and third site have joined before the tunnels come up, so that no switch
    /// sees their reports.
    fn prepare(querier: bool, hub: bool) -> Self {
        let settings = move |site: usize| Settings {
            tunnel: match (site, querier, hub) {
                (0, true, false) => "[switch]\nquerier = true",
                (0, true, true) => "[switch]\nquerier = true\nhub = true",
                _ => "",
            },
            device: "[device.port]\nmulticast-snooping = true",
            ..Settings::default()
        };
        let mut mesh = Mesh::prepare_with_ports(
            3,
            settings,
            move |a, _| !hub || a == 0,
            "multicast-snooping = true",
        );
        let members: Vec<_> = mesh.sites.iter().map(Member::at).collect();
        members[1].join(AT_B.into_iter().chain(AT_B_AND_C).chain(many()));
        members[2].join(AT_B_AND_C);
        for site in &mut mesh.sites {
            site.up();
        }
        Self {
            members,
            mesh,
            sent: 0,
        }
    }

    fn connect(&self) {
        for site in &self.mesh.sites {
            site.wait_state("up", secs(20));
        }
        self.mesh.wait_connected();
    }

    /// Sends a frame to each group.
    fn send(&mut self, from: usize, groups: &[IpAddr]) -> Vec<Vec<u8>> {
        let cable = &self.mesh.cables[from];
        let first = self.sent;
        self.sent += groups.len() as u32;
        let frames = groups.iter().zip(first..);
        let frames: Vec<_> = frames
            .map(|(&group, number)| datagram(cable.mac, group, number))
            .collect();
        for frame in &frames {
            cable.send(frame);
        }
        frames
    }

    /// For each group, the other sites that a frame from a site reaches.
    fn reached(&mut self, from: usize, groups: &[IpAddr]) -> Vec<BTreeSet<usize>> {
        let frames = self.send(from, groups);
        let cables = &self.mesh.cables;
        fence(cables, from);
        let reached = |frame: &Vec<u8>| {
            let counts = cables.iter().map(|cable| cable.count(frame)).enumerate();
            let came = counts.inspect(|&(at, count)| assert!(count <= 1, "{count} at site {at}"));
            came.filter(|&(_, count)| count > 0)
                .map(|(at, _)| at)
                .collect()
        };
        frames.iter().map(reached).collect()
    }

    /// Frames from a site reach these.
    fn assert_reached(&mut self, from: usize, groups: &[IpAddr], sites: &[usize]) {
        let expected: BTreeSet<_> = sites.iter().copied().filter(|&at| at != from).collect();
        let reached = self.reached(from, groups);
        for (group, reached) in groups.iter().zip(reached) {
            assert_eq!(reached, expected, "{group} from site {from}");
        }
    }

    /// Waits until groups reach these sites and no others.
    fn wait_reached(&mut self, from: usize, groups: &[IpAddr], sites: &[usize], limit: Duration) {
        let expected: BTreeSet<_> = sites.iter().copied().filter(|&at| at != from).collect();
        let what = format!("{groups:?} from site {from} reach {sites:?}");
        eventually(limit, &what, || {
            let reached = self.reached(from, groups);
            reached
                .iter()
                .all(|reached| *reached == expected)
                .then_some(())
        });
    }

    /// Joined groups keep arriving for so long, whatever else arrives.
    fn assert_wanted_arrives(&mut self, from: usize, time: Duration) {
        let (end, wanted) = (Instant::now() + time, wanted());
        while Instant::now() < end {
            let frames = self.send(from, &wanted.map(|(group, _)| group));
            for ((group, sites), frame) in wanted.into_iter().zip(&frames) {
                for &site in sites.iter().filter(|&&site| site != from) {
                    self.assert_arrives(frame, site, &format!("{group} from {from} to {site}"));
                }
            }
            thread::sleep(millis(200));
        }
    }

    fn assert_arrives(&self, frame: &[u8], site: usize, what: &str) {
        if !self.mesh.cables[site].receives(frame, secs(20)) {
            let sites = self.mesh.sites.iter();
            panic!("{what}: {:#?}", sites.map(shown).collect::<Vec<_>>());
        }
    }

    fn assert_pruned(&mut self) {
        for from in 0..3 {
            self.assert_reached(from, &AT_B, &[1]);
            self.assert_reached(from, &AT_B_AND_C, &[1, 2]);
            self.assert_reached(from, &UNWANTED, &[]);
            self.assert_reached(from, &LINK_LOCAL, &[0, 1, 2]);
        }
    }
}

fn wanted() -> [(IpAddr, &'static [usize]); 4] {
    [
        (AT_B[0], &[1]),
        (AT_B[1], &[1]),
        (AT_B_AND_C[0], &[1, 2]),
        (AT_B_AND_C[1], &[1, 2]),
    ]
}

/// Every frame that was sent before has come out where it does.
fn fence(cables: &[Cable], from: usize) {
    let mark = hello(&cables[from], &[]);
    cables[from].send(&mark);
    for (at, cable) in cables.iter().enumerate() {
        assert!(at == from || cable.receives(&mark, secs(20)), "a broadcast");
    }
    // Lanes may overtake each other.
    thread::sleep(millis(50));
}

/// The ports of each group in `show`.
fn shown(site: &Site) -> BTreeMap<String, BTreeSet<String>> {
    let groups = site.status().groups.into_iter();
    let untagged = groups.filter(|it| it.vid == 0);
    untagged
        .map(|it| (it.group, it.ports.into_iter().collect()))
        .collect()
}

fn assert_shown(site: &Site, groups: impl IntoIterator<Item = IpAddr>, ports: &[&str]) {
    let ports: BTreeSet<_> = ports.iter().map(|&port| port.to_owned()).collect();
    let shown = shown(site);
    for group in groups.into_iter().map(|group| group.to_string()) {
        assert_eq!(shown.get(&group), Some(&ports), "{group}");
    }
}

fn groups_reach_their_members_in_a_mesh() {
    let mut place = Place::prepare(true, false);
    place.connect();
    // Before and while the querier asks, no frame is missed.
    place.assert_wanted_arrives(0, secs(2));
    for from in [2, 0, 1] {
        place.wait_reached(from, &UNWANTED, &[], SETTLED);
    }
    place.assert_pruned();
    let many: Vec<_> = many().collect();
    for from in [0, 2] {
        place.assert_reached(from, &many, &[1]);
    }
    let [a, b, c] = [0, 1, 2].map(|at| &place.mesh.sites[at]);
    let only_b = || many.iter().copied().chain(AT_B);
    assert_shown(a, only_b(), &["site2"]);
    assert_shown(b, only_b(), &["tap"]);
    assert_shown(a, AT_B_AND_C, &["site2", "site3"]);
    assert_shown(c, AT_B_AND_C, &["site2", "tap"]);
    assert!(!shown(a).contains_key(&UNWANTED[0].to_string()));

    // One leaves, one joins: with the next report, and without a query.
    place.members[1].leave(AT_B);
    place.members[1].leave(AT_B_AND_C);
    place.members[0].join(UNWANTED);
    for from in [0, 2] {
        place.wait_reached(from, &AT_B, &[], secs(8));
        place.wait_reached(from, &AT_B_AND_C, &[2], secs(8));
    }
    for from in [1, 2] {
        place.wait_reached(from, &UNWANTED, &[0], secs(3));
    }
    assert!(!shown(&place.mesh.sites[0]).contains_key(&AT_B[0].to_string()));
}

fn a_site_that_comes_back_misses_nothing() {
    let mut place = Place::prepare(true, false);
    place.connect();
    place.wait_reached(0, &UNWANTED, &[], SETTLED);
    place.assert_wanted_arrives(0, millis(1));
    // The querier first, then a site without one. No host joins anew.
    for site in [0, 1] {
        place.mesh.sites[site].terminate();
        place.mesh.sites[site].up();
        place.connect();
        for from in [0, 2] {
            place.assert_wanted_arrives(from, millis(1));
        }
    }
    // Until the switch knows only what the hosts' answers say.
    place.assert_wanted_arrives(0, secs(15));
    place.assert_wanted_arrives(2, millis(1));
}

fn groups_reach_their_members_over_a_hub() {
    let mut place = Place::prepare(true, true);
    place.connect();
    place.assert_wanted_arrives(2, secs(2));
    for from in [2, 0, 1] {
        place.wait_reached(from, &UNWANTED, &[], SETTLED);
    }
    place.assert_pruned();
    assert_shown(&place.mesh.sites[0], AT_B_AND_C, &["site2", "site3"]);
    place.members[1].leave(AT_B_AND_C);
    for from in [0, 2] {
        place.wait_reached(from, &AT_B_AND_C, &[2], secs(8));
    }
}

fn groups_flood_without_a_querier() {
    let mut place = Place::prepare(false, false);
    place.connect();
    let end = Instant::now() + secs(16);
    while Instant::now() < end {
        for from in 0..3 {
            for groups in [AT_B, AT_B_AND_C, UNWANTED] {
                place.assert_reached(from, &groups, &[0, 1, 2]);
            }
        }
        thread::sleep(secs(1));
    }
}

/// The first site has the querier. VLAN 42 is untagged at the second, where the host does not know of
/// it, and tagged at the others.
fn hosts_of_a_vlan_are_asked_too() {
    const VID: u16 = 42;
    const TAG: [u8; 4] = [0x81, 0, 0, VID as u8];
    let snooping = "multicast-snooping = true";
    let settings = |tunnel, device| Settings {
        tunnel,
        device,
        ..Settings::default()
    };
    let sites = Sites::start(
        [
            settings(
                "[switch]\nquerier = true",
                "[device.port]\nmulticast-snooping = true",
            ),
            settings("", "[device.port]\naccess = 42\nmulticast-snooping = true"),
            settings("", "[device.port]\nmulticast-snooping = true"),
        ],
        [
            &[(1, snooping), (2, snooping)],
            &[(0, snooping), (2, snooping)],
            &[(0, snooping), (1, snooping)],
        ],
    );
    let cables = &sites.cables;
    let untagged = Member::at(&sites.sites[1]);
    let host = sites.sites[2].host(1);
    let _vlan = VlanHost::new(&host.ns, &sites.sites[2].ns, BRIDGE, "trunk", VID);
    host.ns
        .ip("addr add 10.42.0.3/24 dev vlan\naddr add fd42::3/64 dev vlan nodad");
    let v4 = Ipv4Addr::new(10, 42, 0, 3);
    let tagged = Member::on(Host { v4, ..host }, "vlan");
    untagged.join(AT_B);
    untagged.join(AT_B_AND_C);
    tagged.join(AT_B_AND_C);

    let in_vlan = |frame: &[u8]| [&frame[..12], &TAG, &frame[12..]].concat();
    let mut number = 0;
    // The sites that a frame of the first one in the VLAN reaches, with a tag or without.
    let mut reached = |group: IpAddr| -> BTreeSet<usize> {
        number += 1;
        let frame = datagram(cables[0].mac, group, number);
        cables[0].send(&in_vlan(&frame));
        let mark = hello(&cables[0], &[]);
        cables[0].send(&in_vlan(&mark));
        let seen = |at: usize, frame: &[u8]| match at {
            1 => frame.to_vec(),
            _ => in_vlan(frame),
        };
        for (at, cable) in cables.iter().enumerate().skip(1) {
            assert!(cable.receives(&seen(at, &mark), secs(20)), "a broadcast");
        }
        thread::sleep(millis(50));
        let sites = cables.iter().enumerate();
        let came = sites.filter(|&(at, cable)| cable.count(&seen(at, &frame)) > 0);
        came.map(|(at, _)| at).collect()
    };
    let wanted = [(AT_B, [1].into()), (AT_B_AND_C, [1, 2].into())];
    let end = Instant::now() + SETTLED;
    let mut is_pruned = false;
    while !is_pruned {
        assert!(Instant::now() < end, "nobody is asked in the VLAN");
        for (groups, sites) in &wanted {
            for group in *groups {
                assert!(reached(group).is_superset(sites), "{group}");
            }
        }
        is_pruned = UNWANTED.iter().all(|&group| reached(group).is_empty());
    }
    for (groups, sites) in wanted {
        for group in groups {
            assert_eq!(reached(group), sites, "{group}");
        }
    }
    for group in LINK_LOCAL {
        assert_eq!(reached(group), [1, 2].into(), "{group}");
    }
    // The querier asks again after a leave, in the VLAN.
    untagged.leave(AT_B_AND_C);
    for group in AT_B_AND_C {
        eventually(secs(8), "the last member has left", || {
            (reached(group) == [2].into()).then_some(())
        });
    }
    // Each site ages its own table: the last one may have withheld the frames before this one does.
    let of_c = AT_B_AND_C.map(|group| (group.to_string(), "site3".to_owned()));
    eventually(secs(20), "the first site knows it too", || {
        let groups = sites.sites[0].status().groups.into_iter();
        let in_vlan = groups.filter(|it| it.vid == VID);
        let in_vlan: BTreeSet<_> = in_vlan.map(|it| (it.group, it.ports.join(" "))).collect();
        of_c.iter()
            .all(|group| in_vlan.contains(group))
            .then_some(())
    });
}

#[test]
fn multicast_goes_where_it_is_wanted() {
    let scenarios: [(&str, fn()); 5] = [
        ("mesh", groups_reach_their_members_in_a_mesh),
        ("return", a_site_that_comes_back_misses_nothing),
        ("hub", groups_reach_their_members_over_a_hub),
        ("no querier", groups_flood_without_a_querier),
        ("VLAN", hosts_of_a_vlan_are_asked_too),
    ];
    let named = |(name, run): (&str, fn())| {
        let thread = thread::Builder::new().name(name.to_owned());
        (name.to_owned(), thread.spawn(run).unwrap())
    };
    let running = scenarios.map(named);
    let ended = running.map(|(name, thread)| (name, thread.join().is_ok()));
    let failed: Vec<_> = ended.into_iter().filter(|(_, is_ok)| !is_ok).collect();
    assert!(failed.is_empty(), "{failed:?}");
}
