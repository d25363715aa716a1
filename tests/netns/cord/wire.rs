// SPDX-License-Identifier: MIT OR Apache-2.0
//! A wire from NIC to NIC: everything crosses, above all the frames that no bridge forwards, and
//! nothing is learned or altered.
//!
//! ```text
//!  cable or host -- eth7 = patchcord ~~~ router ~~~ patchcord = eth7 -- cable or host
//! ```

use std::path::Path;

use nix::sys::signal::Signal;

use crate::kit::cable::Cable;
use crate::kit::frames::{BROADCAST, DOT1AD, DOT1Q, EXPERIMENTAL, Mac, frame};
use crate::kit::host::ServiceManager;
use crate::kit::pair::connect;
use crate::kit::process::{Process, eventually, millis, secs};
use crate::kit::site::{Settings, Site};
use crate::kit::topology::{Host, Router, Sandbox, mac};
use crate::kit::traffic::{
    BLOCK, DATAGRAMS_AT_ONCE, Ip, assert_checksums, pings, shower, transfer,
};
use crate::kit::wire::{NIC, Wire, hosts};

/// Cables, and NICs, that take frames of these MTUs.
fn cables(mtu: [u32; 2]) -> Wire<Cable> {
    let plug = |site: &Site| {
        let n = site.uplink.v4.octets()[2];
        let mac = [0x02, 0xca, 0, 0, 0, n];
        Cable::to_nic(&site.ns, NIC, mac, mtu[usize::from(n) - 1])
    };
    let wire = Wire::start(plug);
    let [a, b] = &wire.at;
    connect(a, b, secs(10));
    connect(b, a, secs(10));
    wire
}

/// Sends a frame that must come out at the other end, unchanged and once, and not at its own end.
fn assert_crosses(from: &Cable, to: &Cable, sent: &[u8], what: &str) {
    to.clear();
    from.clear();
    from.send(sent);
    assert!(to.receives(sent, secs(20)), "{what} does not arrive");
    assert_eq!(to.count(sent), 1, "{what}: once");
    assert_eq!(from.count(sent), 0, "{what} comes back");
}

#[test]
fn frames_that_a_bridge_withholds_cross_a_wire() {
    let wire = cables([1500; 2]);
    let [a, b] = &wire.at;
    for (from, to) in [(a, b), (b, a)] {
        // IEEE 802.1Q, table 8-1: the addresses that a bridge never forwards.
        for last in 0..=0x0f {
            let group = [0x01, 0x80, 0xc2, 0, 0, last];
            let sent = frame(group, from.mac, &[], EXPERIMENTAL, 100, last.into());
            assert_crosses(from, to, &sent, &format!("a frame to {group:02x?}"));
        }
        for (what, last, ethertype, len) in [
            ("a BPDU of STP", 0x00, 39, 60),
            ("LACP", 0x02, 0x8809, 124),
            ("802.1X", 0x03, 0x888e, 64),
            ("LLDP", 0x0e, 0x88cc, 200),
        ] {
            let group = [0x01, 0x80, 0xc2, 0, 0, last];
            for tags in [&[][..], &[(DOT1Q, 42)]] {
                let sent = frame(group, from.mac, tags, ethertype, len, 1);
                assert_crosses(from, to, &sent, what);
            }
        }
    }
}

#[test]
fn tags_and_sizes_cross_a_wire_unchanged() {
    let wire = cables([9000; 2]);
    let [a, b] = &wire.at;
    for (from, to) in [(a, b), (b, a)] {
        for (what, tags) in [
            ("untagged", &[][..]),
            ("802.1Q", &[(DOT1Q, 42)]),
            ("802.1Q with priority and DEI", &[(DOT1Q, 0xf000 | 4094)]),
            ("a priority tag, VID 0", &[(DOT1Q, 0xa000)]),
            ("802.1ad", &[(DOT1AD, 7)]),
            ("QinQ", &[(DOT1AD, 7), (DOT1Q, 42)]),
            ("802.1Q twice", &[(DOT1Q, 7), (DOT1Q, 42)]),
            ("old QinQ", &[(0x9100, 7), (DOT1Q, 42)]),
        ] {
            for len in [60, 1514, 1518, 1522, 4000, 9006] {
                let sent = frame(to.mac, from.mac, tags, EXPERIMENTAL, len, 1);
                assert_crosses(from, to, &sent, &format!("{what}, {len} bytes"));
            }
        }
        let jumbo = frame(to.mac, from.mac, &[], EXPERIMENTAL, 9014, 1);
        assert_crosses(from, to, &jumbo, "9014 bytes");
        let jumbo = frame(to.mac, from.mac, &[(DOT1Q, 42)], EXPERIMENTAL, 9018, 1);
        assert_crosses(from, to, &jumbo, "9018 bytes, tagged");
    }
    for reason in ["oversize", "nic-mtu", "tap-write-failed", "bad-offload"] {
        assert_eq!(wire.drops(reason), 0, "{reason}");
    }
}

#[test]
fn a_tunnel_over_the_nic_that_it_carries_does_not_carry_itself() {
    let sandbox = Sandbox::new();
    let internet = Router::internet(&sandbox);
    let mut sites = [1, 2].map(|n| Site::new(&sandbox, &internet, n, 1500));
    let settings = Settings {
        nic: Some("wan"),
        ..Settings::default()
    };
    let [a, b] = &sites;
    for (site, other) in [(a, b), (b, a)] {
        let peer = other.as_peer(Some(other.uplink.v4.into()));
        site.configure(&settings, &[peer]);
    }
    for site in &mut sites {
        site.up();
    }
    for site in &sites {
        site.wait_state("up", secs(10));
    }
    // Other frames of the uplink are carried, such as ARP requests.
    std::thread::sleep(secs(2));
    for site in &sites {
        let frames = site.status().counters.outbound_frames;
        assert!(frames < 100, "{frames} frames");
    }
}

#[test]
fn a_wire_learns_no_addresses() {
    let wire = cables([1500; 2]);
    let [a, b] = &wire.at;
    let twin: Mac = [0x02, 0x7e, 0, 0, 0, 1];
    let other: Mac = [0x02, 0x7e, 0, 0, 0, 2];
    let none: Mac = [0; 6];
    for (seed, dst, src, what) in [
        (1, BROADCAST, twin, "a station of this side"),
        (2, other, twin, "one that is at both sides"),
        (3, twin, other, "to a station that is at this side"),
        (4, twin, twin, "to itself"),
        (5, BROADCAST, BROADCAST, "from a group"),
        (6, BROADCAST, none, "from no station"),
    ] {
        let there = frame(dst, src, &[], EXPERIMENTAL, 100, seed);
        let back = frame(dst, src, &[], EXPERIMENTAL, 100, seed + 100);
        assert_crosses(a, b, &there, what);
        assert_crosses(b, a, &back, what);
    }
    for site in &wire.sites {
        let status = site.status();
        assert!(status.fdb.is_empty(), "{:?}", status.fdb);
        let device = &status.device;
        let seen = (
            device.name.as_str(),
            device.mode.as_str(),
            device.backend.as_str(),
        );
        assert_eq!(seen, (NIC, "wire", "packet"));
        let shown = site.patchcord(&["show", &site.tunnel]);
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert!(
            shown.contains("NIC eth7, ") && shown.contains(", packet, wire"),
            "{shown}"
        );
    }
}

#[test]
fn frames_that_the_far_nic_does_not_take_are_counted() {
    let wire = cables([9000, 1500]);
    let [a, b] = &wire.at;
    for (len, reason) in [(1519, "nic-mtu"), (5000, "oversize")] {
        let before = wire.sites[1].drops(reason);
        a.send(&frame(b.mac, a.mac, &[], EXPERIMENTAL, len, 1));
        eventually(secs(20), "the frame is counted", || {
            (wire.sites[1].drops(reason) == before + 1).then_some(())
        });
    }
    let sent = frame(b.mac, a.mac, &[], EXPERIMENTAL, 1514, 1);
    assert_crosses(a, b, &sent, "one that fits, afterwards");
}

#[test]
fn hosts_talk_over_a_wire_and_super_frames_cross_whole() {
    let wire = hosts("");
    let [a, b] = &wire.at;
    pings(a, &b.v4.to_string(), 20, 1472);
    pings(b, &a.v6.to_string(), 20, 1452);
    for (from, to) in [(a, b), (b, a)] {
        for ip in [Ip::V4, Ip::V6] {
            let sent = |site: &Site| site.status().counters.inbound_frames;
            let before: u64 = wire.sites.iter().map(sent).sum();
            transfer(from, to, ip, 256);
            let frames = wire.sites.iter().map(sent).sum::<u64>() - before;
            let segments = 256 * BLOCK as u64 / 1448;
            println!("{segments} segments of TCP and their answers crossed in {frames} frames");
            assert!(frames * 2 < segments, "{frames} for {segments}");
            let numbers = shower(from, to, ip, 20);
            let (came, sent) = (numbers.len(), 20 * DATAGRAMS_AT_ONCE);
            let drops = [0, 1].map(|site| wire.sites[site].status().drops);
            let all_in_order = numbers.iter().copied().eq(0..sent);
            let missing: Vec<_> = (0..sent).filter(|it| !numbers.contains(it)).collect();
            assert!(
                all_in_order,
                "{came} of {sent}, once each, {missing:?} are missing: {drops:?}"
            );
        }
    }
    // As a network card without offloads delivers them: finished segments, joined by the kernel or
    // not.
    for gro in ["on", "off"] {
        for host in [a, b] {
            host.ns.turn_offloads_off("eth0");
        }
        for site in &wire.sites {
            site.ns.run(&["ethtool", "-K", NIC, "gro", gro]);
        }
        transfer(a, b, Ip::V4, 64);
        transfer(b, a, Ip::V6, 64);
    }
    assert_checksums(&[&a.ns, &b.ns]);
    for reason in ["bad-offload", "nic-mtu", "oversize", "tap-write-failed"] {
        assert_eq!(wire.drops(reason), 0, "{reason}");
    }
}

#[test]
fn several_lanes_share_a_nic() {
    let wire = hosts("[pipeline]\nlanes = 3");
    let [a, b] = &wire.at;
    for (from, to) in [(a, b), (b, a)] {
        for ip in [Ip::V4, Ip::V6] {
            transfer(from, to, ip, 64);
            let numbers = shower(from, to, ip, 10);
            let all_in_order = numbers.into_iter().eq(0..10 * DATAGRAMS_AT_ONCE);
            assert!(all_in_order, "every datagram, in order, once");
        }
    }
    assert_checksums(&[&a.ns, &b.ns]);
    for site in &wire.sites {
        assert_eq!(site.status().core_plan.lanes, 3);
    }
}

#[test]
fn frames_between_bridges_arrive_at_the_far_end() {
    // The kernel's own spanning tree, at one end.
    let plug = |site: &Site| match site.uplink.v4.octets()[2] {
        1 => {
            let host = site.host_at(1, NIC);
            host.ns.ip(
                "addr flush dev eth0\nlink add br0 type bridge stp_state 1 hello_time 100\n\
                 link set eth0 master br0\nlink set br0 up",
            );
            (Some(host), None)
        }
        _ => (None, Some(Cable::to_nic(&site.ns, NIC, [2; 6], 1500))),
    };
    let wire = Wire::start(plug);
    let [(Some(host), _), (_, Some(cable))] = &wire.at else {
        unreachable!("a host and a cable")
    };
    let eth0: String = host.ns.run(&["cat", "/sys/class/net/eth0/address"]);
    let arrived = cable.wait(secs(10), |all| {
        all.iter().any(|arrival| {
            let bytes = &arrival.bytes;
            // IEEE 802.1Q, 8.13.5: to the bridge group address, LLC 42 42 03, protocol 0.
            bytes.starts_with(&[0x01, 0x80, 0xc2, 0, 0, 0])
                && mac(*bytes[6..].first_chunk().unwrap()) == eth0.trim()
                && bytes[14..19] == [0x42, 0x42, 0x03, 0, 0]
        })
    });
    assert!(arrived, "a BPDU");
}

/// lldpd without the machine's own state: `/run` is the namespace's, and it stays in the foreground.
fn lldpd(host: &Host, dir: &Path, n: usize) -> Process {
    // The default interval between announcements is 30 seconds, too long for a test. Set by a file,
    // as a daemon that gets the setting just after its start may forget to announce anything.
    let script = "mkdir -p /run/lldpd && echo configure lldp tx-interval 1 > /run/lldpd.conf && \
                  exec lldpd -d -u /run/lldpd.socket -O /run/lldpd.conf -I eth0 -S \"$0\" \
                  -P 'patchcord test'";
    let name = format!("switch {n}");
    host.ns.spawn(
        &dir.join(format!("lldpd{n}.log")),
        &["sh", "-c", script, &name],
    )
}

#[test]
fn lldpd_sees_the_neighbour_at_the_far_end() {
    let wire = Wire::start(|site| site.host_at(1, NIC));
    let dir = wire.sandbox.path();
    let [a, b] = &wire.at;
    let _daemons = [(a, 1), (b, 2)].map(|(host, n)| lldpd(host, dir, n));
    for (host, other, n) in [(a, b, 2), (b, a, 1)] {
        let seen = eventually(secs(20), "lldpd has a neighbour", || {
            let cli = "lldpcli -u /run/lldpd.socket -f keyvalue show neighbors";
            let output = host.ns.output(&cli.split(' ').collect::<Vec<_>>());
            let shown = String::from_utf8_lossy(&output.stdout).into_owned();
            shown.contains(".chassis.").then_some(shown)
        });
        for line in [
            format!("lldp.eth0.chassis.descr=switch {n}"),
            format!("lldp.eth0.port.mac={}", mac(other.mac)),
        ] {
            assert!(seen.lines().any(|shown| shown == line), "{line}: {seen}");
        }
        let neighbours = seen.lines().filter(|line| line.contains(".rid=")).count();
        assert_eq!(neighbours, 1, "only the far end: {seen}");
    }
}

#[test]
fn the_bridges_at_both_ends_hear_the_spanning_tree_of_the_other() {
    // Linux 6.18 receives LLC frames in every namespace. Older kernels may do so in the first one
    // only, so that a bridge elsewhere sends and does not receive: the test looks for the arriving
    // frames in front of it.
    let plug = |site: &Site| {
        let host = site.host_at(1, NIC);
        host.ns.ip(
            "addr flush dev eth0\nlink add br0 type bridge stp_state 1 hello_time 100\n\
             link set eth0 master br0\nlink set br0 up",
        );
        host
    };
    let wire = Wire::start(plug);
    let [a, b] = &wire.at;
    let id_of = |host: &Host, what: &str| {
        let file = format!("/sys/class/net/br0/bridge/{what}");
        host.ns.run(&["cat", &file]).trim().to_owned()
    };
    for (host, other) in [(a, b), (b, a)] {
        // The root bridge goes on sending, whether others receive it or not.
        for (bridge, priority) in [(host, 8), (other, 1)] {
            let priority = format!("priority {}", priority * 4096);
            let set = format!("link set br0 type bridge {priority}");
            bridge.ns.ip(&set);
        }
        let from = mac(other.mac);
        let filter = format!("ether dst 01:80:c2:00:00:00 and ether src {from}");
        let log = wire.sandbox.path().join(format!("tcpdump-{from}.log"));
        let capture = [
            "tcpdump", "-l", "-nne", "-c3", "-Q", "in", "-i", "eth0", &filter,
        ];
        let mut tcpdump = host.ns.spawn(&log, &capture);
        assert!(tcpdump.wait_exit(secs(15)).success());
        let heard = tcpdump.log();
        // The identifier of the other one: priority 4096, and its own address.
        let id = format!("bridge-id 1000.{from}");
        for part in ["STP 802.1d, Config", &id] {
            let lines = heard.lines().filter(|line| line.contains(part));
            assert_eq!(lines.count(), 3, "{part}: {heard}");
        }
        let roots = [host, other].map(|bridge| id_of(bridge, "root_id"));
        println!("kernels think that the roots are {roots:?}");
        let expected = [id_of(host, "bridge_id"), id_of(other, "bridge_id")];
        assert!(roots[0] == roots[1] || roots == expected, "{roots:?}");
        assert_eq!(roots[1], expected[1]);
    }
}

#[test]
fn a_nic_that_goes_down_comes_back_and_one_that_is_gone_ends_the_tunnel() {
    let mut wire = hosts("");
    let [a, b] = &wire.at;
    for _ in 0..2 {
        wire.sites[0].ns.ip("link set eth7 down");
        assert!(!a.ns.succeeds(&["ping", "-c1", "-W1", &b.v4.to_string()]));
        wire.sites[0].ns.ip("link set eth7 up");
        eventually(secs(20), "pings are answered again", || {
            a.ns.succeeds(&["ping", "-c1", "-W1", &b.v4.to_string()])
                .then_some(())
        });
        wire.sites[0].wait_state("up", secs(20));
    }
    // The end of the program restores the NIC's state: down, and not promiscuous.
    let promiscuity = |site: &Site| site.link(NIC).unwrap()["promiscuity"].clone();
    assert_eq!(promiscuity(&wire.sites[1]), 1);
    wire.sites[1].terminate();
    assert_eq!(promiscuity(&wire.sites[1]), 0);
    let flags = wire.sites[1].link(NIC).unwrap()["flags"].to_string();
    assert!(!flags.contains("\"UP\""), "{flags}");

    wire.sites[0].ns.ip("link delete eth7");
    let status = wire.sites[0].process().wait_exit(secs(20));
    assert_eq!(status.code(), Some(1));
    let log = wire.sites[0].process().log();
    assert!(
        log.contains("another program deleted the interface `eth7`"),
        "{log}"
    );
}

#[test]
fn a_nic_that_comes_later_is_waited_for_and_show_and_systemd_are_told() {
    let mut wire = Wire::prepare("", |_| ());
    let systemd = ServiceManager::new(&wire.sandbox);
    let plug = |site: &Site, n| Cable::to_nic(&site.ns, NIC, [2, 0xca, 0, 0, 0, n], 1500);
    let b = plug(&wire.sites[1], 2);
    wire.sites[1].up();
    wire.sites[0].up_in(&[&systemd.variable]);
    let told = systemd.wait_for(|state| state == "READY=1");
    let waits = "waits for the network card `eth7`";
    assert!(told.iter().any(|state| state.contains(waits)), "{told:?}");
    let shown = wire.sites[0].patchcord(&["show", &wire.sites[0].tunnel]);
    let text = String::from_utf8_lossy(&shown.stderr);
    assert!(!shown.status.success() && text.contains(waits), "{text}");
    // Another interface is none.
    wire.sites[0]
        .ns
        .ip("link add other type veth peer name another");
    let a = plug(&wire.sites[0], 1);
    connect(&a, &b, secs(60));
    for site in &wire.sites {
        site.wait_state("up", secs(20));
    }
}

#[test]
fn a_tunnel_that_waits_for_its_nic_can_be_stopped() {
    let mut wire = Wire::prepare("", |_| ());
    let process = wire.sites[0].up();
    process.wait_for("waits for its network card", secs(20));
    process.signal(Signal::SIGTERM);
    let status = process.wait_exit(secs(20));
    assert_eq!(status.code(), Some(0), "{}", process.log());
}

#[test]
fn a_nic_that_is_moved_ends_the_tunnel_which_says_where_it_is_and_how_to_get_it_back() {
    let mut wire = hosts("");
    let container = wire.sandbox.namespace("container");
    let pid = container.pid();
    wire.sites[0].ns.ip(&format!("link set {NIC} netns {pid}"));
    let status = wire.sites[0].process().wait_exit(secs(20));
    assert_eq!(status.code(), Some(1));
    let log = wire.sites[0].process().log();
    let home = wire.sites[0].ns.pid();
    let told = format!(
        "the interface `{NIC}` was moved to the network namespace of process {pid}, where a wire \
         cannot follow it; move it back (`nsenter -t {pid} -n ip link set {NIC} netns {home}`)"
    );
    assert!(log.contains(&told), "{log}");
    // Carries out the command in the message.
    container.ip(&format!("link set {NIC} netns {home}"));
    wire.sites[0].up();
    let [a, b] = &wire.at;
    eventually(secs(20), "pings are answered again", || {
        a.ns.succeeds(&["ping", "-c1", "-W1", &b.v4.to_string()])
            .then_some(())
    });
}

#[test]
fn the_loss_of_the_link_is_forwarded_where_the_file_says_so() {
    let mut wire = hosts("link-loss-forwarding = true");
    let has_link = |host: &Host| {
        let shown = host.ns.run(&["ip", "link", "show", "dev", "eth0"]);
        shown.contains("LOWER_UP")
    };
    let follows = |wire: &Wire<Host>, on: bool| {
        eventually(secs(30), &format!("the link is {on}"), || {
            (has_link(&wire.at[0]) == on).then_some(())
        });
    };
    follows(&wire, true);
    wire.sites[1].kill_9();
    follows(&wire, false);
    let status = wire.sites[0].status().device;
    assert!(!status.up && status.remedies[0].contains("link-loss-forwarding"));
    wire.sites[1].up();
    follows(&wire, true);
    let there = wire.at[1].v4.to_string();
    eventually(secs(20), "hosts talk again", || {
        let ping = ["ping", "-c", "1", "-W", "1", &there];
        wire.at[0].ns.succeeds(&ping).then_some(())
    });
}

#[test]
fn a_wire_between_taps_passes_frames_that_a_switch_drops() {
    let sandbox = Sandbox::new();
    let internet = Router::internet(&sandbox);
    let mut sites = [1, 2].map(|n| Site::new(&sandbox, &internet, n, 1500));
    let settings = Settings {
        device: "mode = \"wire\"",
        ..Settings::default()
    };
    let [a, b] = &sites;
    for (site, other) in [(a, b), (b, a)] {
        site.configure(&settings, &[other.as_peer(Some(other.uplink.v4.into()))]);
    }
    let cables = [a.cable(1, 1500), b.cable(1, 1500)];
    for site in &mut sites {
        site.up();
    }
    let [at_a, at_b] = &cables;
    connect(at_a, at_b, secs(10));
    connect(at_b, at_a, secs(10));
    // By now a switch would have learned this address at the peer, and would not send the frame
    // back there.
    let sent = frame(at_a.mac, BROADCAST, &[], EXPERIMENTAL, 100, 1);
    at_b.send(&sent);
    assert!(
        !at_a.receives(&sent, millis(300)),
        "the bridge drops it: no source"
    );
    let sent = frame(
        [0x02, 0x7e, 0, 0, 0, 1],
        at_b.mac,
        &[],
        EXPERIMENTAL,
        100,
        1,
    );
    assert_crosses(at_b, at_a, &sent, "an unknown station");
    for site in &sites {
        assert!(site.status().fdb.is_empty());
        assert_eq!(site.status().device.mode, "wire");
    }
}
