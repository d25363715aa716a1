// SPDX-License-Identifier: MIT OR Apache-2.0
use std::collections::BTreeMap;

use patchcord::control::message::{
    AddressCounts, BridgePortStatus, CorePlanStatus, Counters, DeviceStatus, ExpressStatus,
    FdbCounters, FdbStatus, GroupStatus, KernelCountersStatus, LastErrorStatus, PeerStatus, Rates,
    SwitchStatus, ThreadStatus,
};

use super::*;

#[test]
fn a_wire_says_so_and_which_nic_it_ends_at() {
    let tap = DeviceStatus {
        mode: "wire".into(),
        bridge: None,
        adopted: false,
        ..status().device
    };
    let expected = "pc0, 02:00:5e:10:00:01, MTU 1500, carrier, vnet, wire";
    assert_eq!(device(&tap), expected);
    let nic = DeviceStatus {
        name: "eth1".into(),
        backend: "packet".into(),
        adopted: true,
        ..tap
    };
    let expected = "NIC eth1, 02:00:5e:10:00:01, MTU 1500, packet, wire";
    assert_eq!(device(&nic), expected);
}

#[test]
fn a_device_that_passes_nothing_says_why() {
    let port = BridgePortStatus {
        state: "learning".into(),
        stp: true,
        vlans: Some("1, 10-20".into()),
        isolated: false,
        netfilter: false,
    };
    let kernel = KernelCountersStatus {
        tx_dropped: 1200,
        rx_errors: 3,
        ..KernelCountersStatus::default()
    };
    let trouble = DeviceStatus {
        bridge_port: Some(port),
        remedies: vec!["spanning tree opens the port".into()],
        kernel,
        ..status().device
    };
    let text = device(&trouble);
    assert!(
        text.contains("port of br-lan (learning, VLAN 1, 10-20)"),
        "{text}"
    );
    let rows = device_trouble(&trouble);
    assert_eq!(rows[0][1], "spanning tree opens the port");
    let drops = "by the kernel: 1 200 for the tunnel dropped, 3 from the tunnel failed";
    assert_eq!(rows[1][1], drops);
    let waiting = DeviceStatus {
        bridge: None,
        carrier: false,
        waits_for: Some("br-lan".into()),
        ..status().device
    };
    let text = device(&waiting);
    assert!(
        text.contains("no carrier, vnet, waits for br-lan"),
        "{text}"
    );
    let down = DeviceStatus {
        up: false,
        ..status().device
    };
    assert!(device(&down).contains("MTU 1500, down, vnet"));
}

#[test]
fn the_page_of_a_tunnel() {
    let expected = "\
tunnel a
  state       connected, started 1h 1m 1s ago
  public key  own=
  listen      [::]:51830
  device      pc0, 02:00:5e:10:00:01, MTU 1500, carrier, vnet, port of br-lan, adopted
  core plan   inline, 1 lane on 2 cores: outbound on core 1, control
  express     frames of flows that send little: 1 200 out, 3 in
  outbound    1.50 KiB, 1 234 frames, 5 datagrams
  inbound     0 B, 0 frames, 0 datagrams
  process     42, patchcord 0.1.0

peer site-b
  state           up
  public key      theirs=
  endpoint        192.0.2.1:51830
  last handshake  2s ago
  last received   never
  handshakes      3
  cipher          aes-256-gcm
  round trip      1.234 ms
  path MTU        1500 bytes
  outbound        1.50 KiB, 1 234 frames, 5 datagrams
  inbound         0 B, 0 frames, 0 datagrams
  rate out        1.5 Mbit/s, 1 200 frames/s
  rate in         0.0 bit/s, 0 frames/s

drops
  bad-tag   7
  replayed  1 000

ports
  tap     refused: broadcast-limited 12 345
  site-b  blocked 1m 1s ago: a loop with tap in VLAN 10; 70 probes came back, opens in 9s if no more do

groups
  239.1.2.3  VID 10  tap, site-b

addresses
  02:00:00:00:00:01  untagged  tap     learned     3s ago
  02:00:00:00:00:02  VID 100   site-b  static      0s ago
  02:00:00:00:00:03  VID 4094  site-c  controller  1m ago, number 7
";
    assert_eq!(page(&status(), false), expected);
}

#[test]
fn the_page_says_whether_cores_are_kept_awake() {
    for (bound_us, state, problem, expected) in [
        (0, LatencyState::Held, None, "held: idle cores poll"),
        (
            20,
            LatencyState::Idle,
            None,
            "not held: idle cores wake up within 20 us only while frames cross",
        ),
        (
            0,
            LatencyState::Unavailable,
            Some("no device".to_owned()),
            "not available: no device",
        ),
    ] {
        let mut status = status();
        status.latency = Some(LatencyStatus {
            bound_us,
            state,
            problem,
        });
        let page = page(&status, false);
        let line = format!("  latency     {expected}\n");
        assert!(page.contains(&line), "{page}");
    }
}

#[test]
fn the_page_says_what_makes_a_peer_slow() {
    let mut status = status();
    status.peers[0].remedies = vec!["receives single datagrams".into()];
    let page = page(&status, false);
    let lines = "  inbound         0 B, 0 frames, 0 datagrams\n                  receives single datagrams\n";
    assert!(page.contains(lines), "{page}");
}

#[test]
fn many_peers_have_a_line_each_unless_all_is_wanted() {
    let mut status = status();
    let mut dead = status.peers[0].clone();
    dead.name = "site-with-a-long-name".into();
    dead.state = "connecting".into();
    dead.last_error = Some(LastErrorStatus {
        cause: "no-route".into(),
        text: "no route".into(),
        remedy: "make one".into(),
        since_s: 70.0,
        last_s: 4.0,
    });
    status.peers = vec![status.peers[0].clone(); 4];
    assert!(page(&status, false).contains("peer site-b\n"));
    status.peers.push(dead);
    let expected = "\
5 peers, 4 up; `patchcord show a --peer PEER` says all of one
  site-b                 up          192.0.2.1:51830  never  1.50 KiB out  0 B in  1.234 ms
  site-b                 up          192.0.2.1:51830  never  1.50 KiB out  0 B in  1.234 ms
  site-b                 up          192.0.2.1:51830  never  1.50 KiB out  0 B in  1.234 ms
  site-b                 up          192.0.2.1:51830  never  1.50 KiB out  0 B in  1.234 ms
  site-with-a-long-name  connecting  192.0.2.1:51830  never  1.50 KiB out  0 B in  for 1m 10s: no route
";
    let short = page(&status, false);
    assert!(short.contains(expected), "{short}");
    assert!(!short.contains("peer site-b\n"), "{short}");
    assert_eq!(page(&status, true).matches("peer site-").count(), 5);
}

#[test]
fn the_page_does_not_list_many_addresses() {
    let mut status = status();
    let one = status.fdb[0].clone();
    for (listed, omitted, learned, expected) in [
        (20, 0, 20, None),
        (21, 0, 21, Some("21 learned, 1 static, 1 by a controller")),
        (
            1000,
            1_047_576,
            1_048_574,
            Some("1 048 574 learned, 1 static, 1 by a controller"),
        ),
        (21, 0, 0, Some("1 static, 1 by a controller")),
    ] {
        status.fdb = vec![one.clone(); listed];
        status.fdb_omitted = omitted;
        status.switch.addresses.learned = learned;
        let page = page(&status, false);
        assert_eq!(page.contains("02:00:00:00:00:01"), expected.is_none());
        if let Some(expected) = expected {
            let line = format!("addresses  {expected}; `patchcord fdb show a` lists them\n");
            assert!(page.contains(&line), "{line}: {page}");
        }
    }
    // An older tunnel does not count them.
    status.switch = SwitchStatus::default();
    let page = page(&status, false);
    assert!(page.contains("addresses  21; `patchcord"), "{page}");
}

#[test]
fn the_page_names_trouble_of_the_fdb() {
    let mut status = status();
    status.switch.counters = FdbCounters {
        learned: 9,
        moved: 1234,
        dampened: 5,
        limited: 1,
        full: 2,
    };
    let expected = "\
switch
  moved        1 234, 5 of them too often: a loop, or two stations with one address
  not learned  1 frame: more addresses than a port may have
  not learned  2 frames: no place in the table
";
    assert!(
        page(&status, false).contains(expected),
        "{}",
        page(&status, false)
    );
}

#[test]
fn the_table_of_addresses() {
    const LINES: &str = "  \
  02:00:00:00:00:01  untagged  tap     learned     3s ago, moved too often
  02:00:00:00:00:02  VID 100   site-b  static      0s ago
  02:00:00:00:00:03  VID 4094  site-c  controller  1m ago, number 7, kept from guarded ports while its own is down
";
    let mut table = table_of_three();
    table[0].dampened = true;
    table[2].bound = true;
    for (indent, of, expected) in [
        ("", &[][..], "no address is known\n"),
        ("  ", &table, LINES),
    ] {
        let mut out = Vec::new();
        addresses(&mut out, indent, of).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}

#[test]
fn the_list_of_tunnels() {
    let connecting = Status {
        tunnel: "longer".into(),
        condition: "connecting".into(),
        peers: Vec::new(),
        ..status()
    };
    let expected = "\
a       connected   pc0  1 of 1 peer up   1.50 KiB out  0 B in  for 1h 1m 1s
longer  connecting  pc0  0 of 0 peers up  1.50 KiB out  0 B in  for 1h 1m 1s
";
    assert_eq!(list(&[status(), connecting]), expected);
    assert_eq!(list(&[]), "no tunnel is running\n");
}

#[test]
fn the_page_says_why_a_peer_cannot_be_reached() {
    let mut status = status();
    status.peers[0].last_error = Some(LastErrorStatus {
        cause: "port-closed".into(),
        text: "nothing listens".into(),
        remedy: "start it".into(),
        since_s: 70.0,
        last_s: 4.0,
    });
    for (state, expected) in [
        ("up", "last error      4s ago: nothing listens\n"),
        (
            "connecting",
            "last error      for 1m 10s: nothing listens; start it\n",
        ),
    ] {
        status.peers[0].state = state.into();
        let page = page(&status, false);
        assert!(page.contains(expected), "{page}");
    }
}

#[test]
fn the_page_says_that_a_path_is_too_narrow_while_it_is() {
    let mut status = status();
    let peer = &mut status.peers[0];
    peer.last_error = Some(LastErrorStatus {
        cause: "narrow-path".into(),
        text: "no room".into(),
        remedy: "widen it".into(),
        since_s: 70.0,
        last_s: 4.0,
    });
    assert!(page(&status, false).contains("last error      4s ago: no room\n"));
    status.peers[0].path_mtu = None;
    let page = page(&status, false);
    for expected in [
        "last error      for 1m 10s: no room; widen it\n",
        "path MTU        below 576 bytes\n",
    ] {
        assert!(page.contains(expected), "{page}");
    }
    assert!(peers(&status).contains("for 1m 10s: no room\n"));
}

#[test]
fn a_tunnel_without_a_reachable_peer_does_not_look_connected() {
    let mut status = status();
    assert!(page(&status, false).contains("state       connected, started "));
    status.condition = "no peer up".into();
    status.peers[0].state = "connecting".into();
    status.peers[0].handshake_age_s = None;
    assert!(page(&status, false).contains("state       no peer up, started "));
    assert!(page(&status, false).contains("last handshake  no session now"));
    assert!(list(&[status]).starts_with("a  no peer up  pc0  0 of 1 peer up"));
}

#[test]
fn a_tunnel_of_an_older_version_has_the_state_of_its_session() {
    let status = Status {
        state: "reasserting".into(),
        condition: String::new(),
        ..status()
    };
    assert!(list(&[status]).starts_with("a  reasserting  pc0  "));
}

fn status() -> Status {
    let counters = Counters {
        outbound_frames: 1234,
        outbound_bytes: 1536,
        outbound_datagrams: 5,
        ..Counters::default()
    };
    let thread = |name: &str, core| ThreadStatus {
        name: name.into(),
        core,
    };
    Status {
        tunnel: "a".into(),
        version: "0.1.0".into(),
        state: "connected".into(),
        condition: "connected".into(),
        pid: 42,
        uptime_s: 3661.5,
        public_key: "own=".into(),
        listen: "[::]:51830".into(),
        listen_is_here: true,
        udp_gso: true,
        udp_gro: true,
        device: DeviceStatus {
            name: "pc0".into(),
            index: 7,
            mac: "02:00:5e:10:00:01".into(),
            mtu: 1500,
            bridge: Some("br-lan".into()),
            up: true,
            carrier: true,
            waits_for: None,
            moved: false,
            bridge_port: None,
            kernel: KernelCountersStatus::default(),
            remedies: Vec::new(),
            backend: "vnet".into(),
            mode: "switch".into(),
            adopted: true,
        },
        core_plan: CorePlanStatus {
            plan: "inline".into(),
            lanes: 1,
            express: Some(ExpressStatus {
                outbound_frames: 1200,
                inbound_frames: 3,
            }),
            cores: 2,
            threads: vec![thread("outbound", Some(1)), thread("control", None)],
        },
        latency: None,
        peers: vec![PeerStatus {
            name: "site-b".into(),
            public_key: "theirs=".into(),
            endpoint: Some("192.0.2.1:51830".into()),
            state: "up".into(),
            cipher: Some("aes-256-gcm".into()),
            handshake_age_s: Some(2.0),
            last_received_s: None,
            rtt_us: Some(1234),
            path_mtu: Some(1500),
            handshakes: 3,
            last_error: None,
            remedies: Vec::new(),
            counters,
            rates: Rates {
                outbound_bits_per_s: 1_540_000.0,
                outbound_frames_per_s: 1200.4,
                ..Rates::default()
            },
        }],
        counters,
        ports: vec![
            PortStatus {
                port: "tap".into(),
                blocked: None,
                refused: BTreeMap::from([("broadcast-limited".into(), 12_345)]),
            },
            PortStatus {
                port: "site-b".into(),
                blocked: Some(BlockStatus::Loop {
                    other: "tap".into(),
                    vlan: 10,
                    for_s: 61.0,
                    opens_in_s: 9.5,
                    probes: 70,
                }),
                refused: BTreeMap::new(),
            },
            PortStatus {
                port: "site-c".into(),
                blocked: None,
                refused: BTreeMap::new(),
            },
        ],
        drops: BTreeMap::from([("bad-tag".into(), 7), ("replayed".into(), 1000)]),
        groups: vec![GroupStatus {
            vid: 10,
            group: "239.1.2.3".into(),
            ports: vec!["tap".into(), "site-b".into()],
        }],
        switch: SwitchStatus {
            addresses: AddressCounts {
                places: 8192,
                learned: 1,
                fixed: 1,
                controller: 1,
            },
            counters: FdbCounters {
                learned: 9,
                moved: 3,
                ..FdbCounters::default()
            },
            moves: Vec::new(),
        },
        fdb: table_of_three(),
        fdb_omitted: 0,
    }
}

fn table_of_three() -> Vec<FdbStatus> {
    let entry = |vid, mac: &str, port: &str, origin: &str, age_s| FdbStatus {
        vid,
        mac: mac.into(),
        port: port.into(),
        age_s,
        origin: origin.into(),
        sequence: (origin == "controller").then_some(7),
        dampened: false,
        bound: false,
    };
    vec![
        entry(0, "02:00:00:00:00:01", "tap", "learned", 3),
        entry(100, "02:00:00:00:00:02", "site-b", "static", 0),
        entry(4094, "02:00:00:00:00:03", "site-c", "controller", 60),
    ]
}
