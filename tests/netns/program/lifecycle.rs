// SPDX-License-Identifier: MIT OR Apache-2.0
//! The start and the end of the device and the program, and the messages when they fail.

use std::net::UdpSocket;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Output;

use nix::fcntl::OFlag;
use nix::pty;
use nix::sys::signal::Signal;

use crate::kit::pair::{Pair, Plan};
use crate::kit::process::{eventually, secs};
use crate::kit::site::{BRIDGE, DEVICE, Settings, Site, UDP_PORT, binary};

fn waits_for_device(site: &Site) {
    eventually(secs(20), "the device is there", || {
        site.link(DEVICE).map(drop)
    });
}

fn waits_for_no_device(site: &Site) {
    eventually(secs(20), "the device is gone", || {
        site.link(DEVICE).is_none().then_some(())
    });
}

fn carrier_becomes(site: &Site, on: bool, limit: u64) {
    eventually(
        secs(limit),
        &format!("the carrier of {} is {on}", site.tunnel),
        || (site.carrier() == Some(on)).then_some(()),
    );
}

#[test]
fn the_carrier_follows_the_peer() {
    let mut pair = Pair::prepare(Plan::default());
    pair.b.up();
    waits_for_device(&pair.b);
    eventually(secs(20), "B answers", || pair.b.try_status().map(drop));
    carrier_becomes(&pair.b, false, 2);
    assert!(!pair.b.status().device.carrier, "show says the same");
    pair.a.up();
    carrier_becomes(&pair.b, true, 10);
    carrier_becomes(&pair.a, true, 10);
    pair.connect(secs(20));
    assert!(pair.b.status().device.carrier, "show says the same");
    pair.a.kill_9();
    carrier_becomes(&pair.b, false, 20);
    pair.a.up();
    carrier_becomes(&pair.b, true, 10);
    pair.connect(secs(20));
}

/// [`Pair::prepare`], with A a station that has these keys of `[device]` and no bridge.
fn with_station(device: &'static str) -> Pair {
    let pair = Pair::prepare(Plan::default());
    let settings = Settings {
        device,
        ..Settings::default()
    };
    let peer = pair.b.as_peer(Some(pair.b.uplink.v4.into()));
    pair.a.configure(&settings, &[peer]);
    pair.a.leave_bridge_out();
    pair
}

#[test]
fn the_device_is_made_as_configured() {
    let settings = Settings {
        overlay_mtu: 1600,
        device: "mac = \"02:00:5e:10:00:01\"",
        ..Settings::default()
    };
    let mut pair = Pair::prepare(Plan {
        settings,
        ..Plan::default()
    });
    pair.a.up().wait_for("ready", secs(20));
    let link = pair.a.link(DEVICE).expect("the device is there");
    assert_eq!(link["mtu"], 1600);
    assert_eq!(link["address"], "02:00:5e:10:00:01");
    assert_eq!(link["master"], BRIDGE);

    let mut pair = with_station("addresses = [\"10.99.0.1/24\", \"fd99::1/64\"]");
    pair.a.up().wait_for("ready", secs(20));
    assert_eq!(pair.a.master(), None);
    let addresses = addresses(&pair.a);
    assert!(
        addresses.contains("10.99.0.1/24") && addresses.contains("fd99::1/64"),
        "{addresses}"
    );
}

#[test]
fn addresses_of_a_port_of_a_bridge_are_refused_with_the_remedy() {
    let settings = Settings {
        device: "addresses = [\"10.99.0.1/24\"]",
        ..Settings::default()
    };
    let pair = Pair::prepare(Plan {
        settings,
        ..Plan::default()
    });
    let remedy = format!("ip address add 10.99.0.1/24 dev {BRIDGE}");
    let words = ["[device] addresses", &remedy];
    refusal(&failed_up(&pair.a, &[]), 2, &words);
    let check = ["check", &pair.a.config.display().to_string()];
    refusal(&pair.a.patchcord(&check), 2, &words);
    assert!(pair.a.link(DEVICE).is_none(), "nothing was made");
}

#[test]
fn the_mac_address_is_the_same_after_a_restart() {
    let mut pair = Pair::prepare(Plan::default());
    let mut seen = Vec::new();
    for _ in 0..2 {
        pair.a.up().wait_for("ready", secs(20));
        seen.push(pair.a.link(DEVICE).expect("the device is there")["address"].clone());
        pair.a.terminate();
    }
    assert_eq!(seen[0], seen[1]);
}

#[test]
fn down_removes_the_device() {
    let mut pair = Pair::start(Plan::default());
    let output = pair.a.patchcord(&["down", &pair.a.tunnel]);
    assert!(
        output.status.success(),
        "down: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        pair.a.link(DEVICE).is_none(),
        "the device is gone when down returns"
    );
    let status = pair.a.process().wait_exit(secs(20));
    assert!(status.success(), "up ended with {status}");
    assert!(pair.a.try_status().is_none(), "nobody answers any more");
}

#[test]
fn a_signal_that_ends_a_program_removes_the_device() {
    let mut pair = Pair::prepare(Plan::default());
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT] {
        pair.a.up().wait_for("ready", secs(20));
        waits_for_device(&pair.a);
        pair.a.process().signal(signal);
        let status = pair.a.process().wait_exit(secs(20));
        assert!(status.success(), "{signal}: {status}");
        assert!(pair.a.link(DEVICE).is_none(), "{signal} removes the device");
    }
}

#[test]
fn other_signals_do_not_end_the_tunnel() {
    let mut pair = Pair::start(Plan::default());
    for (signal, word) in [
        (Signal::SIGHUP, "the configuration that is in force"),
        (Signal::SIGUSR1, "SIGUSR1"),
        (Signal::SIGUSR2, "SIGUSR2"),
    ] {
        pair.a.process().signal(signal);
        pair.a.process().wait_for(word, secs(20));
    }
    pair.a.process().signal(Signal::SIGPIPE);
    pair.connect(secs(20));
    assert_eq!(pair.a.carrier(), Some(true));
    pair.a.terminate();
}

#[test]
fn a_terminal_that_is_closed_ends_its_tunnel() {
    let pair = Pair::prepare(Plan::default());
    // No process of another test may hold it open.
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let terminal = pty::posix_openpt(flags).unwrap();
    pty::grantpt(&terminal).unwrap();
    pty::unlockpt(&terminal).unwrap();
    let mut options = std::fs::File::options();
    options.read(true).write(true).custom_flags(flags.bits());
    let screen = options.open(pty::ptsname_r(&terminal).unwrap()).unwrap();
    let config = pair.a.config.display().to_string();
    let log = std::fs::File::create(pair.sandbox.path().join("terminal.log")).unwrap();
    let env = ["env", "--default-signal=HUP"];
    let program = ["setsid", "--ctty", &binary(), "up", &config];
    let program = [&env[..], &program].concat();
    let mut command = pair.a.ns.command(&program);
    command.stdin(screen).stdout(log.try_clone().unwrap());
    let mut child = command.stderr(log).spawn().unwrap();
    // The command has one as well: the last one closes the terminal.
    drop(command);
    waits_for_device(&pair.a);
    eventually(secs(20), "it answers", || pair.a.try_status().map(drop));
    drop(terminal);
    let status = eventually(secs(20), "it ends", || child.try_wait().unwrap());
    assert!(status.success(), "{status}");
    assert!(pair.a.link(DEVICE).is_none(), "the device is gone");
}

#[test]
fn a_killed_program_leaves_nothing_in_the_way() {
    let mut pair = Pair::start(Plan::default());
    pair.a.kill_9();
    waits_for_no_device(&pair.a);
    pair.a.up();
    pair.connect(secs(20));
    pair.a.terminate();
    waits_for_no_device(&pair.a);
}

/// A TAP of another owner, with an address of its own.
fn make_tap(site: &Site) {
    site.ns.ip(&format!(
        "tuntap add mode tap name {DEVICE}\naddr add 192.168.7.1/24 dev {DEVICE}"
    ));
}

/// A adopts a TAP, as a port of the bridge or as a station.
fn adopting(is_port: bool) -> Pair {
    let pair = match is_port {
        true => Pair::prepare(Plan::default()),
        false => with_station("addresses = [\"10.99.0.1/24\"]"),
    };
    make_tap(&pair.a);
    pair
}

fn comes_up(pair: &Pair) {
    for site in [&pair.a, &pair.b] {
        site.wait_state("up", secs(20));
    }
}

fn assert_adopted(pair: &Pair, is_port: bool) {
    assert!(pair.a.status().device.adopted, "show says adopted");
    assert_eq!(pair.a.master().as_deref(), is_port.then_some(BRIDGE));
    let addresses = addresses(&pair.a);
    assert_eq!(addresses.contains("10.99.0.1/24"), !is_port, "{addresses}");
}

fn addresses(site: &Site) -> String {
    site.ns
        .run(&["ip", "-brief", "addr", "show", "dev", DEVICE])
}

/// The device exists, without what patchcord added, and otherwise unchanged.
fn assert_given_back(site: &Site) {
    assert!(site.link(DEVICE).is_some(), "an adopted device stays");
    assert_eq!(site.master(), None, "it is no port of the bridge any more");
    let addresses = addresses(site);
    assert!(
        !addresses.contains("10.99.0.1"),
        "what was added is gone: {addresses}"
    );
    assert!(
        addresses.contains("192.168.7.1/24"),
        "what was there stays: {addresses}"
    );
}

#[test]
fn an_adopted_device_stays() {
    for is_port in [true, false] {
        let mut pair = adopting(is_port);
        pair.up();
        comes_up(&pair);
        assert_adopted(&pair, is_port);
        let output = pair.a.patchcord(&["down", &pair.a.tunnel]);
        assert!(
            output.status.success(),
            "down: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert_given_back(&pair.a);
    }
}

#[test]
fn an_adopted_device_is_given_back_even_after_a_crash() {
    for is_port in [true, false] {
        let mut pair = adopting(is_port);
        pair.up();
        comes_up(&pair);
        pair.a.kill_9();
        assert!(
            pair.a.link(DEVICE).is_some(),
            "an adopted device survives its user"
        );
        pair.a.up();
        comes_up(&pair);
        assert_adopted(&pair, is_port);
        pair.a.terminate();
        assert_given_back(&pair.a);
    }
}

/// Checks the message of a failed start.
fn refusal(output: &Output, code: i32, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(
        output.status.code(),
        Some(code),
        "exit code; it said: {text}"
    );
    for word in words {
        assert!(
            text.to_lowercase().contains(&word.to_lowercase()),
            "`{word}` is missing in: {text}"
        );
    }
}

/// `patchcord up` that must end by itself.
fn failed_up(site: &Site, prefix: &[&str]) -> Output {
    let (program, config) = (binary(), site.config.display().to_string());
    let mut argv = vec!["timeout", "10"];
    argv.extend(prefix);
    argv.extend([program.as_str(), "up", config.as_str()]);
    site.ns.output(&argv)
}

#[test]
fn a_second_up_of_the_same_tunnel_is_refused() {
    let mut pair = Pair::start(Plan::default());
    let pid = pair.a.process().pid().to_string();
    refusal(&failed_up(&pair.a, &[]), 1, &["already up", &pid]);
    assert!(
        pair.a.link(DEVICE).is_some(),
        "the first one keeps its device"
    );
    pair.connect(secs(20));
}

#[test]
fn a_port_in_use_is_named() {
    let pair = Pair::prepare(Plan::default());
    let _taken = pair
        .a
        .ns
        .enter(|| UdpSocket::bind(("::", UDP_PORT)).expect("the port is free"));
    refusal(&failed_up(&pair.a, &[]), 1, &["51830", "in use"]);
    assert!(pair.a.link(DEVICE).is_none(), "no device is left behind");
}

#[test]
fn the_address_in_listen_is_waited_for() {
    let mut pair = Pair::prepare(Plan::default());
    let v4 = pair.a.uplink.v4;
    let settings = Settings {
        listen: format!("{v4}:{UDP_PORT}"),
        ..Settings::default()
    };
    let peer = pair.b.as_peer(Some(pair.b.uplink.v4.into()));
    pair.a.configure(&settings, &[peer]);
    let routes = pair.a.ns.run(&["ip", "-4", "route", "show", "default"]);
    pair.a.ns.ip(&format!("addr del {v4}/24 dev wan"));
    pair.up();
    let told = "the address in `listen` is not on this machine yet";
    pair.a.process().wait_for(told, secs(20));
    eventually(secs(20), "show says so", || {
        let status = pair.a.try_status()?;
        (!status.listen_is_here && !status.device.carrier).then_some(())
    });
    pair.a.ns.ip(&format!(
        "addr add {v4}/24 dev wan\nroute replace {}",
        routes.trim()
    ));
    pair.a.wait_state("up", secs(40));
    assert!(pair.a.status().listen_is_here);
    pair.connect(secs(20));
}

/// Runs a command in a cgroup where a device rule forbids every device, as that of a container, or of a
/// unit without `DeviceAllow=`, does. The first argument is the folder of the cgroup.
const WITHOUT_DEVICES: &str = r#"
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
BPF, LOAD, ATTACH = 321 if os.uname().machine == "x86_64" else 280, 5, 8
CGROUP_DEVICE_PROGRAM, CGROUP_DEVICE = 15, 6

def bpf(command, attributes):
    buffer = ctypes.create_string_buffer(attributes, 128)
    result = libc.syscall(BPF, command, buffer, 128)
    if result < 0:
        sys.exit(f"bpf: {os.strerror(ctypes.get_errno())}")
    return result

# r0 = 0; exit
code = ctypes.create_string_buffer(struct.pack("<BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0))
licence = ctypes.create_string_buffer(b"MIT")
pointers = ctypes.addressof(code), ctypes.addressof(licence)
program = bpf(LOAD, struct.pack("<IIQQ", CGROUP_DEVICE_PROGRAM, 2, *pointers))
cgroup = os.open(sys.argv[1], os.O_RDONLY)
bpf(ATTACH, struct.pack("<IIII", cgroup, program, CGROUP_DEVICE, 0))
with open(sys.argv[1] + "/cgroup.procs", "w") as processes:
    processes.write(str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"#;

#[test]
fn a_device_rule_that_forbids_taps_is_named_with_the_remedy() {
    let pair = Pair::prepare(Plan::default());
    let script = pair.sandbox.path().join("without_devices.py");
    std::fs::write(&script, WITHOUT_DEVICES).expect("a file");
    let cgroups = pair.sandbox.path().join("cgroups");
    std::fs::create_dir(&cgroups).expect("a folder");
    let (script, cgroups) = (script.display(), cgroups.display());
    let own = format!("{cgroups}/{}", pair.a.tunnel);
    let shell = format!(
        "mount -t cgroup2 none {cgroups} && mkdir {own} && python3 {script} {own} \"$@\"; code=$?; \
         rmdir {own}; exit $code"
    );
    let prefix = ["unshare", "--mount", "sh", "-c", &shell, "sh"];
    let output = failed_up(&pair.a, &prefix);
    let words = [
        "a device rule of this container or service forbids /dev/net/tun",
        "`--device /dev/net/tun`",
        "`DeviceAllow=/dev/net/tun rw`",
    ];
    refusal(&output, 1, &words);
    assert!(pair.a.link(DEVICE).is_none(), "nothing was made");
}

#[test]
fn a_missing_capability_is_named_with_the_remedy() {
    let pair = Pair::prepare(Plan::default());
    let without = [
        "setpriv",
        "--bounding-set",
        "-net_admin",
        "--inh-caps",
        "-net_admin",
        "--",
    ];
    refusal(&failed_up(&pair.a, &without), 1, &["CAP_NET_ADMIN"]);
}

#[test]
fn a_device_in_use_by_another_tunnel_is_named() {
    let mut pair = Pair::start(Plan::default());
    let other = pair
        .a
        .config
        .with_file_name(format!("other-{}.toml", pair.a.tunnel));
    let text = std::fs::read_to_string(&pair.a.config).expect("the configuration is there");
    std::fs::write(&other, text.replace("51830\"\n", "51831\"\n")).expect("it can be written");
    let argv = [
        "timeout",
        "10",
        &binary(),
        "up",
        &other.display().to_string(),
    ];
    let pid = pair.a.process().pid().to_string();
    refusal(&pair.a.ns.output(&argv), 1, &[DEVICE, &pid]);
    pair.connect(secs(20));
}

#[test]
fn a_mistake_in_the_configuration_is_a_usage_error() {
    let pair = Pair::prepare(Plan::default());
    let text = std::fs::read_to_string(&pair.a.config).expect("the configuration is there");
    std::fs::write(&pair.a.config, text.replace("bridge =", "brigde ="))
        .expect("it can be written");
    refusal(&failed_up(&pair.a, &[]), 2, &["brigde", "bridge"]);
    let check = pair
        .a
        .patchcord(&["check", &pair.a.config.display().to_string()]);
    refusal(&check, 2, &["brigde", "bridge"]);
    assert!(pair.a.link(DEVICE).is_none(), "nothing was made");
}

#[test]
fn show_and_down_of_a_tunnel_that_is_not_up_fail() {
    let pair = Pair::prepare(Plan::default());
    for verb in ["show", "down"] {
        refusal(
            &pair.a.patchcord(&[verb, &pair.a.tunnel]),
            1,
            &[&pair.a.tunnel],
        );
    }
}
