// SPDX-License-Identifier: MIT OR Apache-2.0
//! `pipeline.latency`: while frames cross, and only then, idle cores of the machine wake up in time.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use patchcord::control::message::LatencyState;

use crate::kit::pair::{Pair, Plan};
use crate::kit::process::{eventually, secs};
use crate::kit::site::{Settings, Site};

const DEVICE: &str = "/dev/cpu_dma_latency";
/// That of the tunnel under test: one that no other program asks for.
const BOUND_US: u32 = 7777;

/// `lines`: further ones of `[tunnel]`, and whole sections.
fn with_lines(lines: &'static str) -> Pair {
    Pair::prepare(Plan {
        settings: Settings {
            tunnel: lines,
            ..Settings::default()
        },
        ..Plan::default()
    })
}

/// Whether the program has the device open.
fn has_it_open(site: &mut Site) -> bool {
    let files = format!("/proc/{}/fd", site.process().pid());
    let files = std::fs::read_dir(files).expect("a process that runs");
    let targets = files.filter_map(|file| file.ok()?.path().read_link().ok());
    targets.into_iter().any(|file| file == Path::new(DEVICE))
}

fn state(site: &Site) -> Option<LatencyState> {
    Some(site.try_status()?.latency?.state)
}

/// The least bound of all processes of the machine.
fn least_bound_us() -> i32 {
    let mut bytes = [0; 4];
    let mut device = File::open(DEVICE).expect("the device");
    device.read_exact(&mut bytes).expect("four bytes");
    i32::from_ne_bytes(bytes)
}

#[test]
fn idle_cores_are_bounded_while_frames_cross() {
    if !Path::new(DEVICE).exists() {
        return println!("skipped: this kernel has no {DEVICE}");
    }
    let mut pair = with_lines("[pipeline]\nlatency = 7777");
    pair.up();
    pair.connect(secs(20));
    for _ in 0..2 {
        eventually(secs(20), "hardly a frame crosses", || {
            (state(&pair.a)? == LatencyState::Idle).then_some(())
        });
        assert!(!has_it_open(&mut pair.a), "nothing is held without traffic");
        eventually(secs(20), "frames cross", || {
            (0..10).for_each(|_| pair.connect(secs(20)));
            (state(&pair.a)? == LatencyState::Held).then_some(())
        });
        // It is held a while longer than frames cross, and `show` may have taken that long.
        eventually(secs(20), "the kernel has the bound", || {
            (0..10).for_each(|_| pair.connect(secs(20)));
            (least_bound_us() <= BOUND_US as i32).then_some(())
        });
    }
    let (_, page) = pair.a.ran(&["show", &pair.a.tunnel]);
    let line = format!("idle cores wake up within {BOUND_US} us");
    assert!(page.contains(&line), "{page}");
}

#[test]
fn nothing_is_held_unless_asked_for() {
    let mut pair = with_lines("[pipeline]\nlatency = \"auto\"");
    pair.up();
    for _ in 0..20 {
        pair.connect(secs(20));
        assert!(!has_it_open(&mut pair.a));
    }
    assert_eq!(pair.a.status().latency, None);
}

#[test]
fn a_machine_without_the_device_is_told_so() {
    let mut pair = with_lines("[pipeline]\nlatency = \"low\"");
    // As that of a container.
    let devices = "mount -t tmpfs none /dev && mkdir /dev/net && mknod /dev/net/tun c 10 200 \
                   && mknod /dev/null c 1 3 && exec \"$@\"";
    let prefix = ["unshare", "--mount", "sh", "-c", devices, "sh"];
    let log = pair.a.up_in(&prefix);
    log.wait_for("cannot keep idle cores from halting", secs(20));
    log.wait_for("--device /dev/cpu_dma_latency", secs(20));
    pair.b.up();
    pair.connect(secs(20));
    let latency = pair.a.status().latency.expect("it was asked for");
    assert_eq!(latency.state, LatencyState::Unavailable);
    let problem = latency.problem.expect("a problem");
    assert!(problem.contains("this machine has no"), "{problem}");
}
