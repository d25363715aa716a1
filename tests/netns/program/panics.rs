// SPDX-License-Identifier: MIT OR Apache-2.0
//! A fault in the program itself: its cost, and its reports. Needs a debug build, in which tests can
//! arm such faults.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::kit::frames::{EXPERIMENTAL, frame};
use crate::kit::host::run_host;
use crate::kit::pair::{Pair, Plan};
use crate::kit::process::{eventually, millis, secs};
use crate::kit::site::{DEVICE, Settings, Site, binary};

const REASON: &str = "internal-error";

/// A frame from the cable at A to the one at B that an armed thread trips over.
fn trip(pair: &Pair, says: &[u8; 16]) -> Vec<u8> {
    let mut trip = frame(pair.at_b.mac, pair.at_a.mac, &[], EXPERIMENTAL, 200, 7);
    trip[14..30].copy_from_slice(says);
    trip
}

fn started(armed: [&[&str]; 2], plan: Plan) -> Pair {
    let mut pair = Pair::prepare(plan);
    pair.a.up_in(armed[0]);
    pair.b.up_in(armed[1]);
    pair.connect(secs(20));
    pair
}

/// Sends `n` frames that trip, with other frames before and after them, which arrive.
fn assert_costs_a_frame(pair: &Pair, site: &Site, n: u64) {
    let bad = trip(pair, b"tripwire: panic!");
    for sent in 0..n {
        let [before, after] = [0, 1].map(|half| {
            let seed = 1000 + 2 * sent + half;
            frame(pair.at_b.mac, pair.at_a.mac, &[], EXPERIMENTAL, 300, seed)
        });
        pair.at_a.send(&before);
        pair.at_a.send(&bad);
        eventually(secs(20), "the frame is counted", || {
            (site.drops(REASON) > sent).then_some(())
        });
        pair.at_a.send(&after);
        for good in [&before, &after] {
            assert!(pair.at_b.receives(good, secs(20)), "frames around it");
        }
    }
    assert_eq!(site.drops(REASON), n, "once each");
    assert!(!pair.at_b.receives(&bad, millis(1)));
}

const ARMED: &[&str] = &["PATCHCORD_TRIPWIRE=frame"];

fn plans() -> [&'static str; 2] {
    ["", "[pipeline]\nplan = \"staged\"\nworkers = 1"]
}

fn with_plan(pipeline: &'static str) -> Plan {
    let settings = Settings {
        tunnel: pipeline,
        ..Settings::default()
    };
    Plan {
        settings,
        ..Plan::default()
    }
}

#[test]
fn a_panic_over_a_frame_of_the_device_costs_that_frame() {
    for plan in plans() {
        let mut pair = started([ARMED, &[]], with_plan(plan));
        assert_costs_a_frame(&pair, &pair.a, 5);
        pair.a.process().wait_for("from=\"the device\"", secs(20));
    }
}

#[test]
fn a_panic_over_a_frame_of_a_peer_costs_that_frame_and_then_the_peer_for_a_while() {
    for plan in plans() {
        let mut pair = started([&[], ARMED], with_plan(plan));
        assert_costs_a_frame(&pair, &pair.b, 2);
        pair.b.process().wait_for("from=\"site1\"", secs(20));
        pair.at_a.send(&trip(&pair, b"tripwire: panic!"));
        let good = frame(pair.at_b.mac, pair.at_a.mac, &[], EXPERIMENTAL, 300, 1);
        eventually(secs(20), "its other frames are refused and counted", || {
            pair.at_a.send(&good);
            (pair.b.drops(REASON) > 3).then_some(())
        });
        assert_eq!(pair.b.peer().state, "up", "it may come back");
        assert_eq!(pair.b.process().log().matches("panicked at").count(), 3);
        let back = frame(pair.at_a.mac, pair.at_b.mac, &[], EXPERIMENTAL, 300, 2);
        eventually(secs(20), "the other direction works", || {
            pair.at_b.send(&back);
            pair.at_a.receives(&back, millis(200)).then_some(())
        });
    }
}

#[test]
fn the_end_of_a_task_is_the_end_of_the_tunnel_and_an_error() {
    for name in ["control", "slow path", "underlay"] {
        let mut pair = Pair::prepare(Plan::default());
        pair.a.up_in(&[&format!("PATCHCORD_TRIPWIRE={name}")]);
        let status = pair.a.process().wait_exit(secs(60));
        assert_eq!(status.code(), Some(1), "{name}");
        let log = pair.a.process().log();
        assert!(log.contains(&format!("`{name}` panicked")), "{log}");
        assert!(pair.a.link(DEVICE).is_none(), "the device is gone");
    }
}

#[test]
fn a_thread_that_is_stuck_ends_the_tunnel() {
    let mut pair = started([ARMED, &[]], Plan::default());
    pair.at_a.send(&trip(&pair, b"tripwire: hangs!"));
    let status = pair.a.process().wait_exit(secs(120));
    assert_eq!(status.code(), Some(1));
    let log = pair.a.process().log();
    assert!(log.contains("makes no progress"), "{log}");
    assert!(log.contains("leaving it behind thread=\"outbound"), "{log}");
    assert!(pair.a.link(DEVICE).is_none(), "the device is gone");
}

#[test]
fn the_end_of_a_task_of_the_session_is_the_end_of_the_tunnel_and_an_error() {
    let mut pair = Pair::prepare(Plan::default());
    pair.a.up_in(&["PATCHCORD_TRIPWIRE=keep"]);
    let status = pair.a.process().wait_exit(secs(60));
    assert_eq!(status.code(), Some(1));
    let log = pair.a.process().log();
    assert!(log.contains("a task of the session panicked"), "{log}");
    assert!(pair.a.link(DEVICE).is_none(), "the device is gone");
}

#[test]
fn the_end_of_a_task_of_the_host_is_its_end_and_an_error() {
    let pair = Pair::prepare(Plan::default());
    let mut host = run_host(&pair, &["PATCHCORD_TRIPWIRE=rules"]);
    assert_eq!(host.wait_exit(secs(60)).code(), Some(1));
    let log = host.log();
    assert!(log.contains("a task of the host panicked"), "{log}");
}

/// The times when the service manager got a watchdog notification.
fn beats(socket: &Path) -> Arc<Mutex<Vec<Instant>>> {
    let socket = UnixDatagram::bind(socket).expect("a socket");
    let beats = Arc::<Mutex<Vec<_>>>::default();
    let heard = beats.clone();
    thread::spawn(move || {
        let mut message = [0; 256];
        while let Ok(length) = socket.recv(&mut message) {
            if message[..length].starts_with(b"WATCHDOG=1") {
                heard.lock().unwrap().push(Instant::now());
            }
        }
    });
    beats
}

#[test]
fn the_watchdog_gets_nothing_while_a_tunnel_of_the_host_is_stuck_which_ends() {
    let mut pair = Pair::prepare(Plan::default());
    let socket = pair.sandbox.path().join("notify");
    let beats = beats(&socket);
    let notify = format!("NOTIFY_SOCKET={}", socket.display());
    let environment = [ARMED, &[&notify, "WATCHDOG_USEC=3000000"]].concat();
    let _host = run_host(&pair, &environment);
    pair.b.up();
    let asked = |words: &[&str]| {
        let program = binary();
        let words = [&[program.as_str(), "host"][..], words].concat();
        pair.a.ns.run(&words)
    };
    eventually(secs(20), "the host knows the tunnel", || {
        asked(&["list"]).contains("office").then_some(())
    });
    asked(&["start", "office"]);
    pair.connect(secs(20));
    let count = || beats.lock().unwrap().len();
    eventually(secs(20), "it is well", || (count() > 0).then_some(()));
    pair.at_a.send(&trip(&pair, b"tripwire: hangs!"));
    let list = eventually(secs(120), "the tunnel ends", || {
        let list = asked(&["list"]);
        list.contains("disconnected").then_some(list)
    });
    assert!(list.contains("makes no progress"), "{list}");
    let so_far = count();
    eventually(secs(20), "the host is well again", || {
        (count() > so_far).then_some(())
    });
    let beats = beats.lock().unwrap();
    let pauses = beats.windows(2).map(|two| two[1] - two[0]);
    let longest = pauses.max().unwrap_or_default();
    assert!(longest > Duration::from_secs(12), "it was fed: {longest:?}");
}
