// SPDX-License-Identifier: MIT OR Apache-2.0
//! The examples as their user runs them: each program on real TAPs, in network namespaces of its own.
//! Needs root, and `ip`, `ping`, `dnsmasq` and `busybox` for the traffic.

#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

#[allow(
    dead_code,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "shared with the tests in netns"
)]
#[path = "netns/kit/mod.rs"]
mod kit;

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, OnceLock},
    time::Duration,
};

use nix::sys::{signal::Signal, stat::Mode};
use pcap_file::{
    DataLink, TsResolution,
    pcap::{PcapHeader, PcapPacket, PcapReader, PcapWriter},
    pcapng::{
        PcapNgWriter,
        blocks::{
            enhanced_packet::EnhancedPacketBlock, interface_description::InterfaceDescriptionBlock,
        },
    },
};
use tempfile::TempDir;

use crate::kit::{
    cable::Cable,
    frames::{BROADCAST, EXPERIMENTAL, Mac, frame},
    mesh::wait_forwarding,
    namespace::Namespace,
    process::{Process, eventually, millis, secs},
};

const LONG: Duration = secs(20);
const ALICE: Mac = [2, 0, 0, 0, 0, 0xa1];
const BOB: Mac = [2, 0, 0, 0, 0, 0xb0];

/// A built example. Cargo builds those for `cargo test` only when no `--test` is named, so this
/// asks for them in any case; mostly they are there.
fn example(name: &str) -> String {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    let dir = DIR.get_or_init(|| {
        // target/PROFILE/deps/examples-HASH
        let test = std::env::current_exe().unwrap();
        let profile_dir = test.parent().and_then(Path::parent).unwrap();
        let profile = match profile_dir.file_name().and_then(|name| name.to_str()) {
            Some("debug") => "dev",
            Some(profile) => profile,
            None => panic!("{} is in no profile's directory", test.display()),
        };
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--locked", "--offline", "--examples"])
            .args(["--profile", profile])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status();
        assert!(built.unwrap().success(), "the examples can be built");
        profile_dir.join("examples")
    });
    let path = dir.join(name);
    path.to_str().expect("a plain path").to_owned()
}

/// A namespace with a directory for the logs of its processes.
struct Machine {
    ns: Arc<Namespace>,
    dir: TempDir,
}

impl Machine {
    fn new(name: &str) -> Self {
        Self {
            ns: Arc::new(Namespace::new(name)),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// Two machines, 192.0.2.1 and 192.0.2.2, with a wire between them.
    fn pair() -> (Self, Self) {
        let (a, b) = (Self::new("a"), Self::new("b"));
        let peer = b.ns.pid();
        a.ns.ip(&format!(
            "link add wire type veth peer name wire netns {peer}"
        ));
        for (machine, address) in [(&a, 1), (&b, 2)] {
            machine.ns.ip(&format!(
                "addr add 192.0.2.{address}/24 dev wire\nlink set wire up"
            ));
        }
        (a, b)
    }

    fn path(&self, name: &str) -> String {
        let path = self.dir.path().join(name);
        path.to_str().expect("a plain path").to_owned()
    }

    fn spawn(&self, name: &str, args: &[&str]) -> Process {
        let program = example(name);
        let argv = [&[&*program], args].concat();
        self.ns.spawn(&self.dir.path().join("log"), &argv)
    }

    /// A bridge that sends nothing by itself, with a cable in it.
    fn cable(&self, mac: Mac) -> Cable {
        self.ns
            .ip("link add br0 mtu 2000 type bridge mcast_snooping 0\n\
             link set br0 addrgenmode none\n\
             link set br0 up");
        Cable::plug(&self.ns, "br0", "cable0", mac, 2000)
    }

    fn has(&self, interface: &str) -> bool {
        self.ns.succeeds(&["ip", "link", "show", interface])
    }

    fn ping(&self, more: &[&str]) {
        let argv = [&["ping", "-c", "3", "-i", "0.2", "-W", "3"], more].concat();
        self.ns.run(&argv);
    }
}

/// Ends a session as its user does, and checks that it succeeds.
fn terminate(process: &mut Process) -> String {
    process.signal(Signal::SIGTERM);
    let status = process.wait_exit(LONG);
    assert_eq!(status.code(), Some(0), "{}", process.log());
    process.log()
}

/// Frames of several kinds, all different.
fn assorted(dst: Mac, src: Mac) -> Vec<Vec<u8>> {
    vec![
        frame(dst, src, &[], EXPERIMENTAL, 60, 1),
        frame(dst, src, &[], 0x0806, 60, 2),
        frame(dst, src, &[(0x8100, 7)], EXPERIMENTAL, 64, 3),
        frame(dst, src, &[(0x88a8, 7), (0x8100, 9)], EXPERIMENTAL, 1522, 4),
        frame(dst, src, &[], 0x86dd, 1514, 5),
        frame(BROADCAST, src, &[], 0x9000, 200, 6),
        frame([0x33, 0x33, 0, 0, 0, 1], src, &[], 0x86dd, 86, 7),
    ]
}

fn bytes_from(cable: &Cable, src: Mac) -> Vec<Vec<u8>> {
    cable.with_arrivals(|all| {
        let theirs = all.iter().filter(|arrival| arrival.bytes[6..12] == src);
        theirs.map(|arrival| arrival.bytes.clone()).collect()
    })
}

/// Asserts that the cable delivers exactly these frames of `src`, in this order.
fn assert_delivers(cable: &Cable, src: Mac, expected: &[Vec<u8>]) {
    cable.wait(LONG, |all| {
        let theirs = all.iter().filter(|arrival| arrival.bytes[6..12] == src);
        theirs.count() >= expected.len()
    });
    let arrived = bytes_from(cable, src);
    assert!(
        arrived == expected,
        "{} of {} frames, or others, or not in order: lengths {:?}",
        arrived.len(),
        expected.len(),
        arrived.iter().map(Vec::len).collect::<Vec<_>>()
    );
}

#[test]
fn echo_answers_arp_and_pings() {
    let machine = Machine::new("echo");
    let mut echo = machine.spawn("echo", &[]);
    echo.wait_for("echo0: 10.80.0.2 answers at 02:00:00:00:80:02", LONG);
    machine.ping(&["10.80.0.2"]);
    machine.ping(&["-s", "1472", "-M", "do", "10.80.0.2"]);
    let neighbours = machine.ns.run(&["ip", "neigh", "show", "10.80.0.2"]);
    assert!(neighbours.contains("02:00:00:00:80:02"), "{neighbours}");
    assert!(
        !machine
            .ns
            .succeeds(&["ping", "-c", "1", "-W", "1", "10.80.0.3"]),
        "it answers for its own address only"
    );
    let log = terminate(&mut echo);
    let summary = log.lines().last().unwrap();
    let answered = summary.rsplit(' ').nth(1).and_then(|n| n.parse().ok());
    assert!(answered >= Some(7), "one ARP, six pings: {summary}");
    assert!(!machine.has("echo0"));
}

#[test]
fn daemon_serves_clients_and_files() {
    let machine = Machine::new("daemon");
    let (socket, tunnels) = (machine.path("host.sock"), machine.path("tunnels"));
    std::fs::create_dir(&tunnels).unwrap();
    let args = ["--socket", &socket, "--tunnels", &tunnels, "--run-dir"];
    let run_dir = machine.path("run");
    let mut daemon = machine.spawn("daemon", &[&args[..], &[&run_dir]].concat());
    eventually(LONG, "it listens", || {
        Path::new(&socket).exists().then_some(())
    });
    let write = |name: &str, text: &str| {
        std::fs::write(Path::new(&tunnels).join(name), text).unwrap();
    };
    eventually(LONG, "its folders are watched", || {
        Path::new(&tunnels)
            .join("by-clients")
            .exists()
            .then_some(())
    });
    write("drain0.toml", "provider = \"drain\"\n");
    daemon.wait_for("drain0: configured", LONG);
    write("drain1.toml", "provder = \"drain\"\n");
    daemon.wait_for("drain1: not used", LONG);
    assert!(daemon.log().contains("provder"), "{}", daemon.log());
    let host = |verb: &[&str]| {
        let program = env!("CARGO_BIN_EXE_patchcord");
        let argv = [&[program, "host"], verb, &["--socket", &socket]].concat();
        machine.ns.run(&argv)
    };
    host(&["start", "drain0"]);
    assert!(host(&["list"]).contains("connected"), "{}", host(&["list"]));
    // At the least, IPv6 sends neighbour discovery.
    machine.ns.ip("addr add 10.80.0.1/24 dev drain0");
    let pinged = ["ping", "-c", "1", "-W", "1", "10.80.0.2"];
    assert!(!machine.ns.succeeds(&pinged), "nobody is there");
    let count = host(&["send", "drain0", "count"]);
    assert!(count.trim().parse::<u64>().unwrap() > 0, "{count}");
    host(&["stop", "drain0"]);
    assert!(!machine.has("drain0"));
    host(&["start", "drain0"]);
    terminate(&mut daemon);
    assert!(!machine.has("drain0") && !Path::new(&socket).exists());
}

#[test]
fn echo_sends_any_frame_back_with_its_tags() {
    let machine = Machine::new("echo");
    let cable = machine.cable(ALICE);
    let mut echo = machine.spawn("echo", &["--bridge", "br0", "--mac", "2:0:0:0:0:b0"]);
    echo.wait_for("answers at", LONG);
    wait_forwarding(&machine.ns, "echo0");
    let sent = assorted(BOB, ALICE);
    // The bridge learns the port of the station from its first answer; before, it floods.
    for frame in &sent {
        cable.send(frame);
    }
    let expected: Vec<_> = sent
        .iter()
        .filter(|frame| frame[..6] == BOB)
        .map(|frame| [&ALICE, &BOB, &frame[12..]].concat())
        .collect();
    assert_delivers(&cable, BOB, &expected);

    // Who has 10.80.0.2, in VLAN 7?
    cable.clear();
    let mut request = [&BROADCAST[..], &ALICE, &[0x81, 0, 0, 7]].concat();
    request.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    request.extend([&ALICE[..], &[10, 80, 0, 9], &[0; 6], &[10, 80, 0, 2]].concat());
    cable.send(&request);
    let mut reply = [&ALICE[..], &BOB, &[0x81, 0, 0, 7]].concat();
    reply.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
    reply.extend([&BOB[..], &[10, 80, 0, 2], &ALICE, &[10, 80, 0, 9]].concat());
    assert_delivers(&cable, BOB, &[reply]);
    terminate(&mut echo);
}

/// Writes a recording of `frames`, one every `interval`.
fn write_pcap(path: &str, frames: &[Vec<u8>], interval: Duration) {
    let header = PcapHeader {
        datalink: DataLink::ETHERNET,
        ts_resolution: TsResolution::MicroSecond,
        ..PcapHeader::default()
    };
    let mut writer = PcapWriter::with_header(File::create(path).unwrap(), header).unwrap();
    for (frame, at) in frames.iter().zip(times(interval)) {
        let len = frame.len() as u32;
        writer
            .write_packet(&PcapPacket::new(at, len, frame))
            .unwrap();
    }
}

fn write_pcapng(path: &str, frames: &[Vec<u8>], interval: Duration) {
    let mut writer = PcapNgWriter::new(File::create(path).unwrap()).unwrap();
    let interface = InterfaceDescriptionBlock::new(DataLink::ETHERNET, 0);
    writer.write_pcapng_block(interface).unwrap();
    for (frame, at) in frames.iter().zip(times(interval)) {
        let packet = EnhancedPacketBlock {
            interface_id: 0,
            // In units of the interface, by default microseconds.
            timestamp: Duration::from_nanos(at.as_micros() as u64),
            original_len: frame.len() as u32,
            data: frame.into(),
            options: Vec::new(),
        };
        writer.write_pcapng_block(packet).unwrap();
    }
}

fn times(interval: Duration) -> impl Iterator<Item = Duration> {
    (0..).map(move |number| secs(1_700_000_000) + interval * number)
}

#[test]
fn replay_waits_until_the_bridge_forwards() {
    let machine = Machine::new("replay");
    let cable = machine.cable(BOB);
    // Two seconds of listening, and two of learning.
    machine
        .ns
        .ip("link set br0 type bridge stp_state 1 forward_delay 200");
    wait_forwarding(&machine.ns, "cable0");
    let (input, frames) = (machine.path("in.pcap"), assorted(BOB, ALICE));
    write_pcap(&input, &frames, millis(1));
    let mut replay = machine.spawn("replay", &[&input, "--bridge", "br0", "--mtu", "1600"]);
    assert_delivers(&cable, ALICE, &frames);
    assert_eq!(replay.wait_exit(LONG).code(), Some(0), "{}", replay.log());
}

#[test]
fn replay_plays_every_frame_as_recorded_in_order_and_in_time() {
    type Write = fn(&str, &[Vec<u8>], Duration);
    for (write, file) in [
        (write_pcap as Write, "in.pcap"),
        (write_pcapng, "in.pcapng"),
    ] {
        let machine = Machine::new("replay");
        let cable = machine.cable(BOB);
        let (input, output) = (machine.path(file), machine.path("out.pcap"));
        let frames = assorted(BOB, ALICE);
        write(&input, &frames, millis(200));

        let args = [
            &*input, "--bridge", "br0", "--mtu", "1600", "--record", &output,
        ];
        let mut replay = machine.spawn("replay", &args);
        replay.wait_for("playing", LONG);
        wait_forwarding(&machine.ns, "replay0");
        let backwards = assorted(ALICE, BOB);
        for frame in &backwards {
            cable.send(frame);
        }
        assert_delivers(&cable, ALICE, &frames);
        let took = cable.with_arrivals(|all| {
            let theirs: Vec<_> = all.iter().filter(|a| a.bytes[6..12] == ALICE).collect();
            theirs[6].at - theirs[0].at
        });
        assert!(
            (millis(1100)..millis(2500)).contains(&took),
            "{file}: six times 200 ms took {took:?}"
        );
        assert_eq!(replay.wait_exit(LONG).code(), Some(0), "{}", replay.log());
        let summary = "7 frames played";
        assert!(replay.log().contains(summary), "{}", replay.log());
        let recorded = " 0 refused, 0 skipped, 7 recorded";
        assert!(replay.log().contains(recorded), "{}", replay.log());
        assert!(read_pcap(&output) == backwards, "recorded byte by byte");
        assert!(!machine.has("replay0"));
    }
}

fn read_pcap(path: &str) -> Vec<Vec<u8>> {
    let mut reader = PcapReader::new(File::open(path).unwrap()).unwrap();
    let mut frames = Vec::new();
    while let Some(packet) = reader.next_packet() {
        frames.push(packet.unwrap().data.into_owned());
    }
    frames
}

#[test]
fn replay_without_pauses_plays_many_frames_at_once() {
    let machine = Machine::new("replay");
    let cable = machine.cable(BOB);
    let input = machine.path("in.pcap");
    let frames: Vec<_> = (0..300)
        .map(|seed| frame(BOB, ALICE, &[], EXPERIMENTAL, 60 + seed as usize, seed))
        .collect();
    write_pcap(&input, &frames, secs(1));
    let args = [&*input, "--bridge", "br0", "--speed", "0", "--linger", "0s"];
    let mut replay = machine.spawn("replay", &args);
    assert_delivers(&cable, ALICE, &frames);
    assert_eq!(replay.wait_exit(LONG).code(), Some(0), "{}", replay.log());
}

#[test]
fn replay_reports_errors_in_a_recording() {
    let machine = Machine::new("replay");
    let frames = assorted(BOB, ALICE);
    let (text, empty) = (machine.path("text"), machine.path("empty"));
    std::fs::write(&text, "this is no recording at all").unwrap();
    std::fs::write(&empty, "").unwrap();
    let (cut, damaged) = (machine.path("cut.pcap"), machine.path("damaged.pcap"));
    write_pcap(&damaged, &frames, millis(1));
    let bytes = std::fs::read(&damaged).unwrap();
    std::fs::write(&damaged, &bytes[..bytes.len() - 3]).unwrap();
    // The first frame had one byte more on the wire, in the byte order that the writer chose.
    let mut bytes = bytes;
    bytes[36..40].copy_from_slice(&61_u32.to_ne_bytes());
    std::fs::write(&cut, &bytes).unwrap();

    for (input, code, says) in [
        (&*text, 2, "tcpdump -w"),
        (&empty, 2, "the file is empty"),
        ("/nowhere.pcap", 2, "No such file"),
        (&damaged, 1, "the recording is damaged"),
        (&cut, 0, "6 frames played in 0.0s, 0 refused, 1 skipped"),
    ] {
        let mut replay = machine.spawn("replay", &[input, "--linger", "0s"]);
        let status = replay.wait_exit(LONG);
        assert_eq!(status.code(), Some(code), "{input}: {}", replay.log());
        assert!(replay.log().contains(says), "{input}: {}", replay.log());
    }
}

fn link(machine: &Machine, own: u8, other: u8, more: &[&str]) -> Process {
    let peer = format!("192.0.2.{other}:47800");
    let mac = format!("2:0:0:0:81:{own}");
    let args = [&["--peer", &*peer, "--mac", &mac], more].concat();
    let mut link = machine.spawn("link", &args);
    link.wait_for("not encrypted", LONG);
    link
}

#[test]
fn link_joins_two_machines() {
    let (a, b) = Machine::pair();
    let mut at_a = link(&a, 1, 2, &["--address", "10.81.0.1/24"]);
    // No station is there yet, which must not end the program.
    a.ns.output(&["ping", "-c", "1", "-W", "1", "10.81.0.2"]);
    let mut at_b = link(&b, 2, 1, &["--address", "10.81.0.2/24"]);
    a.ping(&["10.81.0.2"]);
    b.ping(&["-s", "1472", "-M", "do", "10.81.0.1"]);

    // A station without an address gets one from the far end.
    let mut server = b.ns.spawn(
        &b.dir.path().join("dhcp"),
        &[
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--port=0",
            "--user=root",
            "--interface=link0",
            "--bind-interfaces",
            "--leasefile-ro",
            "--dhcp-range=10.81.0.50,10.81.0.60",
            "--log-facility=-",
        ],
    );
    server.wait_for("DHCP, IP range", LONG);
    let lease = a.ns.output(&[
        "busybox",
        "udhcpc",
        "-i",
        "link0",
        "-f",
        "-n",
        "-q",
        "-s",
        "/bin/true",
    ]);
    let said = String::from_utf8_lossy(&lease.stderr) + String::from_utf8_lossy(&lease.stdout);
    assert!(said.contains("lease of 10.81.0.5"), "{said}");

    for (machine, link) in [(&a, &mut at_a), (&b, &mut at_b)] {
        terminate(link);
        assert!(!machine.has("link0"));
    }
}

#[test]
fn link_joins_two_bridges_frame_by_frame() {
    let (a, b) = Machine::pair();
    let (alice, bob) = (a.cable(ALICE), b.cable(BOB));
    let more = ["--bridge", "br0", "--mtu", "1600"];
    let _links = [link(&a, 1, 2, &more), link(&b, 2, 1, &more)];
    for (from, to) in [(&alice, &bob), (&bob, &alice)] {
        let mut sent = assorted(to.mac, from.mac);
        // So many at once that a datagram holds several.
        sent.extend((0..200).map(|n| frame(to.mac, from.mac, &[], EXPERIMENTAL, 60, 100 + n)));
        for frame in &sent {
            from.send(frame);
        }
        assert_delivers(to, from.mac, &sent);
    }
}

/// One end of the hard path, with its standard input.
struct HardPath {
    process: Process,
    stdin: File,
}

impl HardPath {
    fn start(machine: &Machine, args: &[&str]) -> Self {
        let fifo = machine.path("stdin");
        nix::unistd::mkfifo(Path::new(&fifo), Mode::S_IRWXU).unwrap();
        let options = OpenOptions::new().read(true).write(true).open(&fifo);
        let (program, log) = (example("hard_path"), machine.dir.path().join("log"));
        let redirect = format!("exec \"$0\" \"$@\" < {fifo}");
        let shell = ["sh", "-c", &*redirect, &*program];
        Self {
            process: machine.ns.spawn(&log, &[&shell, args].concat()),
            stdin: options.unwrap(),
        }
    }

    /// The provider's answer to a message.
    fn ask(&mut self, message: &str) -> String {
        let before = self.process.log().len();
        writeln!(self.stdin, "{message}").unwrap();
        eventually(LONG, &format!("an answer to {message}"), || {
            let log = self.process.log();
            let lines = log[before..].split_inclusive('\n');
            let mut answers = lines.filter(|line| line.starts_with(['{', 'n']));
            answers.find(|line| line.ends_with('\n')).map(str::to_owned)
        })
    }

    /// Waits until the session was in `state` for the nth time.
    fn reaches(&mut self, state: &str, times: usize) {
        let line = format!("hard0: {state}\n");
        let what = format!("{state} for the {times}. time");
        eventually(LONG, &what, || {
            (self.process.log().matches(&line).count() >= times).then_some(())
        });
    }
}

/// Both ends, connected. The far one has a network behind it, 198.51.100.0/24.
fn hard_path(more: &[&str]) -> (Machine, Machine, HardPath, HardPath) {
    let (a, b) = Machine::pair();
    b.ns.ip("addr add 198.51.100.1/24 dev lo");
    let near = [
        "--peer",
        "192.0.2.2:47900",
        "--address",
        "10.90.0.1/24",
        "--router",
        "10.90.0.2",
        "--route",
        "198.51.100.0/24",
    ];
    let far = [
        "--peer",
        "192.0.2.1:47900",
        "--address",
        "10.90.0.2/24",
        "--dead-after",
        "1s",
    ];
    a.ns.ip("route add default via 192.0.2.2");
    let mut near = HardPath::start(&a, &[&near, more].concat());
    near.reaches("connecting", 1);
    assert!(!a.has("hard0"), "no interface while the peer is silent");
    let mut far = HardPath::start(&b, &far);
    near.reaches("connected", 1);
    far.reaches("connected", 1);
    (a, b, near, far)
}

#[test]
fn hard_path_answers_messages_and_changes_settings_under_traffic() {
    let (a, _b, mut near, mut far) = hard_path(&[]);
    a.ping(&["10.90.0.2"]);
    let status: serde_json::Value = serde_json::from_str(&near.ask("status")).unwrap();
    assert_eq!(status["status"], "connected");
    assert_eq!(status["peer"], "192.0.2.2:47900");
    assert!(status["frames-in"].as_u64() >= Some(4), "{status}");

    assert_eq!(near.ask("mtu 1300"), "{\"mtu\":1300}\n");
    let link = a.ns.run(&["ip", "link", "show", "hard0"]);
    assert!(link.contains("mtu 1300"), "{link}");
    assert!(near.ask("mtu 1").contains("1 is not within 68 to 65521"));
    assert!(near.ask("mtu x").contains("an MTU is a number"));
    assert_eq!(near.ask("sing"), "no answer to \"sing\"\n");
    assert!(
        near.ask("status").contains("\"mtu\":1300"),
        "the last that took effect"
    );
    a.ping(&["10.90.0.2"]);

    // After a goodbye, the other end notices the absence at once.
    assert!(terminate(&mut far.process).ends_with("hard0: stopped: UserInitiated\n"));
    near.reaches("reasserting", 1);
    terminate(&mut near.process);
    assert!(!a.has("hard0"));
}

#[test]
fn hard_path_leads_to_the_network_behind_the_router() {
    let (a, _b, _near, _far) = hard_path(&[]);
    let route = a.ns.run(&["ip", "route", "get", "198.51.100.1"]);
    assert!(route.contains("via 10.90.0.2 dev hard0"), "{route}");
    a.ping(&["198.51.100.1"]);
}

#[test]
fn hard_path_reasserts_while_the_path_is_gone() {
    let (a, _b, mut near, mut far) = hard_path(&["--dead-after", "30s"]);
    a.ns.ip("link set wire down");
    near.reaches("reasserting", 1); // its path changed, which it sees before any silence
    far.reaches("reasserting", 1); // its peer is silent
    let carrier = a.ns.run(&["ip", "link", "show", "hard0"]);
    assert!(carrier.contains("NO-CARRIER"), "{carrier}");
    assert!(near.ask("status").contains("\"status\":\"reasserting\""));
    a.ns.ip("link set wire up\nroute add default via 192.0.2.2");
    near.reaches("connected", 2);
    far.reaches("connected", 2);
    a.ping(&["10.90.0.2"]);
}

#[test]
fn hard_path_says_goodbye_only_when_it_does_not_come_back() {
    for (signal, stopped, is_told) in [
        (Signal::SIGTERM, "UserInitiated", true),
        (Signal::SIGHUP, "AppUpdate", false),
    ] {
        let (_a, b, mut near, _far) = hard_path(&[]);
        near.process.signal(signal);
        assert_eq!(near.process.wait_exit(LONG).code(), Some(0));
        let line = format!("hard0: stopped: {stopped}\n");
        assert!(
            near.process.log().ends_with(&line),
            "{}",
            near.process.log()
        );
        std::thread::sleep(millis(500)); // half of the silence that counts
        let log = std::fs::read_to_string(b.path("log")).unwrap();
        let reasserts = log.contains("hard0: reasserting");
        assert_eq!(reasserts, is_told, "{stopped}: {log}");
    }
}

#[test]
fn hard_path_sleeps_and_wakes() {
    let (a, _b, mut near, mut far) = hard_path(&["--give-up-after", "2s"]);
    assert_eq!(near.ask("sleep"), "{\"asleep\":true}\n");
    near.reaches("reasserting", 1);
    far.reaches("reasserting", 1); // it was told, and does not wait for silence
    std::thread::sleep(millis(2500)); // more than the patience of an end that is awake
    let log = far.process.log();
    assert_eq!(log.matches("hard0: connected\n").count(), 1, "{log}");
    assert_eq!(near.ask("wake"), "{\"asleep\":false}\n");
    near.reaches("connected", 2); // what was slept through is not counted
    far.reaches("connected", 2);
    a.ping(&["10.90.0.2"]);
}

#[test]
fn hard_path_gives_up_with_a_reason() {
    let (a, _b, mut near, mut far) = hard_path(&["--dead-after", "1s", "--give-up-after", "2s"]);
    far.process.kill_9();
    near.reaches("reasserting", 1);
    let status = near.process.wait_exit(LONG);
    assert_eq!(status.code(), Some(1));
    let log = near.process.log();
    let reason = "hard_path: 192.0.2.2:47900 is silent for 2s: is it running";
    assert!(log.contains(reason), "{log}");
    let line = "hard0: stopped: ProviderFailed\n";
    assert!(log.contains(line), "{log}");
    assert!(!a.has("hard0"));
}

#[test]
fn hard_path_can_be_stopped_while_it_starts() {
    let (a, _b) = Machine::pair();
    let args = ["--peer", "192.0.2.2:47900", "--address", "10.90.0.1/24"];
    let mut path = HardPath::start(&a, &args);
    path.reaches("connecting", 1);
    terminate(&mut path.process);

    let mut path = a.spawn("hard_path", &args[..2]);
    assert_eq!(path.wait_exit(LONG).code(), Some(2), "{}", path.log());
    let mut path = a.spawn("hard_path", &[&args[..], &["--router", "fd00::1"]].concat());
    assert_eq!(path.wait_exit(LONG).code(), Some(1), "{}", path.log());
    let says = "--router fd00::1 without an --address";
    assert!(path.log().contains(says), "{}", path.log());
}
