// SPDX-License-Identifier: MIT OR Apache-2.0
//! The reports of the program when a tunnel does not come up: the cause and the peer, in `show` and in
//! the log.

use nix::sys::signal::Signal;
use patchcord::control::message::LastErrorStatus;

use crate::kit::host::{ServiceManager, run_host};
use crate::kit::pair::{Pair, Plan};
use crate::kit::process::{eventually, secs};
use crate::kit::site::{
    DEVICE, Peer, Settings, Site, UDP_PORT, another_public_key, binary, patchcord,
};

/// Waits until `site` shows `cause`, and has logged it.
fn wait_for_cause(site: &mut Site, cause: &str) -> LastErrorStatus {
    let what = format!("{}: the cause is {cause}", site.tunnel);
    let error = eventually(secs(60), &what, || {
        let peer = site.try_status()?.peers.into_iter().next()?;
        peer.last_error.filter(|error| error.cause == cause)
    });
    let word = format!("cause=\"{cause}\"");
    site.process().wait_for(&word, secs(60));
    let log = site.process().log();
    let line = log.lines().find(|line| line.contains(&word));
    let line = line.unwrap_or_default();
    assert!(line.contains("WARN") && line.contains("peer=\""), "{line}");
    assert!(line.contains(&error.remedy), "{line}");
    error
}

/// The line of B's log about a refusal, once there is one.
fn refusal(site: &mut Site, reason: &str) -> String {
    let word = format!("reason=\"{reason}\"");
    site.process().wait_for(&word, secs(30));
    let log = site.process().log();
    let line = log.lines().find(|line| line.contains(&word));
    line.unwrap_or_default().to_owned()
}

#[test]
fn a_port_where_nothing_listens() {
    let mut pair = Pair::caller_and_waiter();
    pair.a.up();
    let error = wait_for_cause(&mut pair.a, "port-closed");
    let by = format!("(says {})", pair.b.uplink.v4);
    assert!(error.text.contains(&by), "{error:?}");
    // Once the other side runs, the tunnel comes up, and `show` still has the earlier cause.
    pair.b.up();
    pair.a.wait_state("up", secs(30));
    let known = pair.a.peer().last_error;
    assert_eq!(
        known.map(|error| error.cause).as_deref(),
        Some("port-closed")
    );
    let shown = pair.a.patchcord(&["show", &pair.a.tunnel]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("last error"), "{shown}");
}

#[test]
fn no_route_to_the_peer() {
    let mut pair = Pair::caller_and_waiter();
    pair.a.ns.ip("route del default");
    pair.a.up();
    let error = wait_for_cause(&mut pair.a, "no-route");
    assert!(!error.text.contains("says"), "it is our kernel: {error:?}");
}

#[test]
fn a_router_on_the_way_that_knows_no_route() {
    let mut pair = Pair::caller_and_waiter();
    let nowhere = Peer {
        endpoint: Some(format!("203.0.113.9:{UDP_PORT}")),
        ..pair.b.as_peer(None)
    };
    pair.a.configure(&pair.settings, &[nowhere]);
    pair.a.up();
    let error = wait_for_cause(&mut pair.a, "no-route");
    let router = format!("(says {})", pair.a.uplink.other_v4(1));
    assert!(error.text.contains(&router), "{error:?}");
}

#[test]
fn a_host_that_is_not_there() {
    let mut pair = Pair::caller_and_waiter();
    let nobody = Peer {
        endpoint: Some(format!("{}:{UDP_PORT}", pair.a.uplink.other_v4(77))),
        ..pair.b.as_peer(None)
    };
    pair.a.configure(&pair.settings, &[nobody]);
    pair.a.up();
    wait_for_cause(&mut pair.a, "no-host");
}

#[test]
fn a_packet_filter_that_says_so_and_one_that_does_not() {
    for (rule, cause) in [
        ("reject with icmp admin-prohibited", "forbidden"),
        ("drop", "no-answer"),
    ] {
        let mut pair = Pair::caller_and_waiter();
        pair.internet.ns.run(&["nft", "add table inet t"]);
        pair.internet.ns.run(&[
            "nft",
            "add chain inet t forward { type filter hook forward priority 0; }",
        ]);
        let rule = format!("add rule inet t forward udp dport {UDP_PORT} {rule}");
        pair.internet.ns.run(&["nft", &rule]);
        pair.up();
        wait_for_cause(&mut pair.a, cause);
    }
}

#[test]
fn a_name_without_an_address() {
    let mut pair = Pair::caller_and_waiter();
    let unknown = Peer {
        endpoint: Some(format!("nobody.invalid:{UDP_PORT}")),
        ..pair.b.as_peer(None)
    };
    pair.a.configure(&pair.settings, &[unknown]);
    pair.a.up();
    // There is no name server in a namespace.
    eventually(secs(60), "the resolver's word is known", || {
        let peer = pair.a.try_status()?.peers.into_iter().next()?;
        let cause = peer.last_error?.cause;
        cause.starts_with("name-").then_some(())
    });
    let log = pair.a.process().log();
    assert!(log.contains("endpoint=\"nobody.invalid:51830\""), "{log}");
}

#[test]
fn another_network_id_is_reported_at_both_ends() {
    let mut pair = Pair::caller_and_waiter();
    let settings = Settings {
        tunnel: "network-id = 7",
        ..pair.settings.clone()
    };
    let b = pair.b.as_peer(Some(pair.b.uplink.v4.into()));
    pair.a.configure(&settings, &[b]);
    pair.up();
    wait_for_cause(&mut pair.a, "refused-network-id");
    let line = refusal(&mut pair.b, "incompatible");
    let whose = format!(
        "from={}:{UDP_PORT} key={} peer=\"site1\"",
        pair.a.uplink.v4, pair.a.public_key
    );
    assert!(line.contains(&whose), "{line}");
}

#[test]
fn ends_without_a_common_cipher_are_told_so() {
    let mut pair = Pair::caller_and_waiter();
    let only = |tunnel| Settings {
        tunnel,
        ..Settings::default()
    };
    let b = pair.b.as_peer(Some(pair.b.uplink.v4.into()));
    let a = pair.a.as_peer(None);
    pair.a.configure(&only("cipher = \"aegis-128x\""), &[b]);
    pair.b.configure(&only("cipher = \"aes-256-gcm\""), &[a]);
    pair.up();
    let error = wait_for_cause(&mut pair.a, "refused-cipher");
    assert!(error.text.contains("no cipher that we allow"), "{error:?}");
    assert!(error.remedy.contains("tunnel.cipher"), "{error:?}");
    refusal(&mut pair.b, "incompatible");
}

#[test]
fn another_preshared_key_is_reported_at_both_ends() {
    let mut pair = Pair::caller_and_waiter();
    let b = Peer {
        preshared_key: Some(patchcord(&["genpsk"], "")),
        ..pair.b.as_peer(Some(pair.b.uplink.v4.into()))
    };
    pair.a.configure(&pair.settings, &[b]);
    pair.up();
    wait_for_cause(&mut pair.a, "unreadable-answer");
    wait_for_cause(&mut pair.b, "answers-unused");
}

#[test]
fn a_stranger_gets_no_answer_and_is_logged_with_address_and_key() {
    let mut pair = Pair::caller_and_waiter();
    let stranger = Peer {
        public_key: another_public_key(),
        ..pair.a.as_peer(None)
    };
    pair.b.configure(&pair.settings, &[stranger]);
    pair.up();
    let line = refusal(&mut pair.b, "unknown-peer");
    let whose = format!(
        "from={}:{UDP_PORT} key={}",
        pair.a.uplink.v4, pair.a.public_key
    );
    assert!(line.contains(&whose), "{line}");
    wait_for_cause(&mut pair.a, "no-answer");
    assert_eq!(pair.a.drops("incompatible"), 0, "not a word");
}

#[test]
fn a_caller_with_a_wrong_public_key_of_ours_is_logged_with_its_address() {
    let mut pair = Pair::caller_and_waiter();
    let b = Peer {
        public_key: another_public_key(),
        ..pair.b.as_peer(Some(pair.b.uplink.v4.into()))
    };
    pair.a.configure(&pair.settings, &[b]);
    pair.up();
    let line = refusal(&mut pair.b, "bad-mac");
    let from = format!("from={}:{UDP_PORT}", pair.a.uplink.v4);
    assert!(line.contains(&from), "{line}");
}

#[test]
fn two_machines_with_one_key_are_reported() {
    let mut pair = Pair::start(Plan {
        b_knows_a: false,
        ..Plan::default()
    });
    let mut clone = Site::new(&pair.sandbox, &pair.internet, 3, 1500);
    clone.take_identity_of(&pair.a);
    clone.configure(
        &pair.settings,
        &[pair.b.as_peer(Some(pair.b.uplink.v4.into()))],
    );
    clone.up();
    let error = wait_for_cause(&mut pair.b, "shared-key");
    for site in [&pair.a, &clone] {
        let address = format!("{}:{UDP_PORT}", site.uplink.v4);
        assert!(error.text.contains(&address), "{error:?}");
    }
    assert!(error.remedy.contains("patchcord genkey"), "{error:?}");
    let moved = "peer=\"site1\" from=198.18.";
    let log = pair.b.process().log();
    assert!(log.contains(moved) && log.contains(" to=198.18."), "{log}");
}

#[test]
fn a_script_can_ask_whether_a_peer_is_up() {
    let mut pair = Pair::caller_and_waiter();
    let name = pair.a.tunnel.clone();
    assert_eq!(pair.a.ran(&["show", &name, "--check"]).0, Some(1));
    pair.a.up().wait_for("ready", secs(20));
    eventually(secs(20), "show answers", || pair.a.try_status());
    let (code, text) = pair.a.ran(&["show", &name]);
    assert_eq!(code, Some(0), "it runs: {text}");
    let (code, text) = pair.a.ran(&["show", &name, "--check"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("no peer is up"), "{text}");
    let (code, text) = pair.a.ran(&["show", &name, "--peer", "site2"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.starts_with("peer site2\n"), "{text}");
    let (code, text) = pair.a.ran(&["show", &name, "--peer", "nobody"]);
    assert_eq!(code, Some(1), "{text}");
    pair.b.up();
    pair.a.wait_state("up", secs(30));
    for args in [&["show", &name, "--check"][..], &["show", "--check"]] {
        let (code, text) = pair.a.ran(args);
        assert_eq!(code, Some(0), "{text}");
    }
}

#[test]
fn a_tunnel_of_the_host_is_seen_and_ended_like_any_other() {
    let mut pair = Pair::caller_and_waiter();
    pair.b.up();
    let systemd = ServiceManager::new(&pair.sandbox);
    let told = |expected: &str| drop(systemd.wait_for(|state| state == expected));
    let _host = run_host(&pair, &[&systemd.variable]);
    let (code, text) = pair.a.ran(&["show", "office"]);
    assert_eq!(code, Some(1), "it does not run: {text}");
    eventually(secs(20), "the host knows the tunnel", || {
        (pair.a.ran(&["host", "start", "office"]).0 == Some(0)).then_some(())
    });
    told("STATUS=1 of 1 tunnel connected");
    eventually(secs(30), "the peer is up", || {
        (pair.a.ran(&["show", "office", "--check"]).0 == Some(0)).then_some(())
    });
    let (_, list) = pair.a.ran(&["show"]);
    assert!(list.contains("1 of 1 peer up"), "{list}");
    let mac = "02:00:5e:10:00:01";
    let (code, text) = pair.a.ran(&["fdb", "add", "office", mac, "site2"]);
    assert_eq!(code, Some(0), "{text}");
    let (_, table) = pair.a.ran(&["fdb", "show", "office"]);
    assert!(table.contains(mac), "{table}");
    let (code, text) = pair.a.ran(&["down", "office"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(pair.a.link(DEVICE).is_none(), "it is gone");
    told("STATUS=0 of 1 tunnel connected");
}

#[test]
fn lines_for_the_journal_have_a_priority() {
    use std::os::unix::fs::MetadataExt;

    let pair = Pair::caller_and_waiter();
    let log = pair.sandbox.path().join("journal.log");
    let file = std::fs::File::create(&log).expect("a file");
    let it = file.metadata().expect("the file is there");
    let (program, config) = (binary(), pair.a.config.display().to_string());
    for (stream, is_journal) in [
        (format!("{}:{}", it.dev(), it.ino()), true),
        (format!("{}:{}", it.dev(), it.ino() + 1), false),
    ] {
        file.set_len(0).expect("the file can be emptied");
        let stream = format!("JOURNAL_STREAM={stream}");
        let mut process = pair
            .a
            .ns
            .spawn(&log, &["env", &stream, &program, "up", &config]);
        process.wait_for("cause=\"port-closed\"", secs(60));
        let text = process.log();
        let begins = |part: &str, with: &str| {
            let line = text.lines().find(|line| line.contains(part));
            line.unwrap_or_default().starts_with(with)
        };
        assert_eq!(begins("ready", "<6>"), is_journal, "{text}");
        assert_eq!(begins("cause=", "<4>"), is_journal, "{text}");
        process.signal(Signal::SIGTERM);
        process.wait_exit(secs(20));
    }
}

#[test]
fn entries_of_the_journal_have_fields() {
    let mut pair = Pair::caller_and_waiter();
    let folder = pair.sandbox.path().join("journald");
    std::fs::create_dir(&folder).expect("a folder");
    let journald = std::os::unix::net::UnixDatagram::bind(folder.join("socket")).expect("a socket");
    journald.set_read_timeout(Some(secs(60))).expect("a limit");
    let log = pair.sandbox.path().join("stderr.log");
    let (program, config) = (binary(), pair.a.config.display().to_string());
    // At the path where a program of a service finds journald, but for this program only.
    let script = format!(
        "mount -t tmpfs none /run && mkdir -p /run/systemd/journal && \
         mount --bind {} /run/systemd/journal && \
         export JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) && exec {program} up {config}",
        folder.display()
    );
    let argv = ["unshare", "--mount", "sh", "-c", &script];
    let mut process = pair.a.ns.spawn(&log, &argv);
    let wait_for = |message: &str, fields: &[&str]| {
        let mut bytes = [0; 1 << 16];
        loop {
            let length = journald.recv(&mut bytes).expect("an entry comes");
            let entry = String::from_utf8_lossy(&bytes[..length]).into_owned();
            let mut lines = entry.lines();
            let is_it = |line: &str| line.starts_with("MESSAGE=") && line.contains(message);
            if lines.any(is_it) {
                for field in fields {
                    assert!(entry.lines().any(|line| line == *field), "{field}: {entry}");
                }
                return;
            }
        }
    };
    let peer = "PATCHCORD_PEER=site2";
    wait_for(
        "cause=\"port-closed\"",
        &["PRIORITY=4", peer, "PATCHCORD_CAUSE=port-closed"],
    );
    pair.b.up();
    wait_for("peer is up", &["PRIORITY=6", peer]);
    assert_eq!(process.log(), "", "nothing goes to stderr");
    process.signal(Signal::SIGTERM);
    wait_for("stopped", &["PRIORITY=6"]);
    process.wait_exit(secs(20));
}

#[test]
fn systemd_shows_what_the_tunnel_waits_for() {
    let mut pair = Pair::caller_and_waiter();
    let systemd = ServiceManager::new(&pair.sandbox);
    pair.a.up_in(&[&systemd.variable]);
    let wait_for = |part: &str| {
        systemd.wait_for(|state| state.starts_with("STATUS=") && state.contains(part));
    };
    wait_for("0 of 1 peers up; site2: nothing listens on the endpoint's UDP port");
    pair.b.up();
    wait_for("STATUS=1 of 1 peers up");
}

#[test]
fn a_link_local_endpoint_names_its_interface() {
    let mut pair = Pair::prepare(Plan::default());
    // A cable between the two sites, with link-local addresses only.
    let pid = pair.b.ns.pid();
    pair.a.ns.ip(&format!(
        "link add direct type veth peer name direct netns {pid}\nlink set direct addrgenmode none up"
    ));
    pair.b.ns.ip("link set direct addrgenmode none up");
    pair.a.ns.ip("addr add fe80::a/64 dev direct nodad");
    pair.b.ns.ip("addr add fe80::b/64 dev direct nodad");
    let b = Peer {
        endpoint: Some(format!("[fe80::b%direct]:{UDP_PORT}")),
        ..pair.b.as_peer(None)
    };
    let a = pair.a.as_peer(None);
    pair.a.configure(&pair.settings, &[b]);
    pair.b.configure(&pair.settings, &[a]);
    pair.up();
    pair.connect(secs(30));
    let endpoint = pair.a.peer().endpoint.unwrap_or_default();
    assert!(endpoint.starts_with("[fe80::b%"), "{endpoint}");
}
