// SPDX-License-Identifier: MIT OR Apache-2.0
//! One site floods, with broadcasts or with addresses. The others hardly notice.
//!
//! ```text
//!   site 1 ==== 100 Mbit/s ==== router ==== 100 Mbit/s ==== site 2      a TCP flow
//!                                  |
//!                              100 Mbit/s
//!                                  |
//!                               site 3: 100,000 broadcasts a second
//! ```
//!
//! The links are narrow, because all sites share the cores of one machine: without them, the test would
//! measure the scheduler. `scripts/storm-bench` measures both.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use patchcord::control::message::Status;

use crate::kit::cable::Cable;
use crate::kit::frames::{BROADCAST, EXPERIMENTAL, Flow, frame};
use crate::kit::load;
use crate::kit::mesh::Mesh;
use crate::kit::process::{eventually, millis, secs};
use crate::kit::site::{DEVICE, Settings, Site};
use crate::kit::topology::Host;
use crate::kit::traffic::pings;

const STORM: u32 = 100_000;
/// The default flood limit of a port.
const LIMIT: f64 = 5000.0;

/// A TCP flow that sends as much as it can.
struct Bulk {
    received: Arc<AtomicU64>,
    stream: TcpStream,
    threads: Vec<JoinHandle<()>>,
}

impl Bulk {
    fn start(from: &Host, to: &Host) -> Self {
        let listener = to.ns.enter(|| TcpListener::bind((to.v4, 7400)).unwrap());
        let stream = from
            .ns
            .enter(|| TcpStream::connect((to.v4, 7400)))
            .expect("TCP connects");
        let (mut receiver, _) = listener.accept().unwrap();
        let received = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&received);
        let receive = move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(len @ 1..) = receiver.read(&mut buffer) {
                counter.fetch_add(len as u64, Ordering::Relaxed);
            }
        };
        let mut sender = stream.try_clone().unwrap();
        let send = move || while sender.write_all(&[0; 1 << 16]).is_ok() {};
        Self {
            received,
            stream,
            threads: vec![thread::spawn(receive), thread::spawn(send)],
        }
    }

    /// Mbit/s over so long a time.
    fn rate(&self, over: Duration) -> f64 {
        let count = || self.received.load(Ordering::Relaxed);
        let (begun, before) = (Instant::now(), count());
        thread::sleep(over);
        (count() - before) as f64 * 8e-6 / begun.elapsed().as_secs_f64()
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Frames at the rate of a storm until it is dropped.
struct Flood {
    begun: Instant,
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    sender: Option<JoinHandle<()>>,
}

impl Flood {
    /// `frame` gets the number of frames before it.
    fn start(from: &Cable, mut frame: impl FnMut(u64) -> Vec<u8> + Send + 'static) -> Self {
        const BURST: u64 = 100;
        let (stop, sent) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (tap, begun) = (from.tap(), Instant::now());
        let sender = thread::spawn({
            let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let first = sent.load(Ordering::Relaxed);
                    for number in first..first + BURST {
                        tap.send(&frame(number));
                    }
                    sent.store(first + BURST, Ordering::Relaxed);
                    let due = (first + BURST) as f64 / f64::from(STORM);
                    let due = begun + Duration::from_secs_f64(due);
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                }
            }
        });
        Self {
            begun,
            stop,
            sent,
            sender: Some(sender),
        }
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Frames per second so far.
    fn rate(&self) -> f64 {
        self.sent() as f64 / self.begun.elapsed().as_secs_f64()
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(sender) = self.sender.take() {
            let _ = sender.join();
        }
    }
}

/// A link of 100 Mbit/s in both directions.
fn narrow(mesh: &Mesh, site: &Site) {
    let port = site.uplink.router_port();
    for (ns, interface) in [(&site.ns, "wan"), (mesh.router(), port.as_str())] {
        ns.run(&[
            "tc", "qdisc", "add", "dev", interface, "root", "tbf", "rate", "100mbit", "burst",
            "128kb", "latency", "20ms",
        ]);
    }
}

/// Whether there was a storm, and the flow kept its rate.
fn is_storm_weathered(mesh: &Mesh, flow: &Bulk) -> bool {
    let from = &mesh.cables[mesh.cables.len() - 1];
    let storm = frame(BROADCAST, from.mac, &[], EXPERIMENTAL, 60, 1);
    mesh.cables.iter().for_each(Cable::clear);
    flow.rate(secs(1));
    let before = flow.rate(secs(2));
    let bytes = storm.clone();
    let flood = Flood::start(from, move |_| bytes.clone());
    flow.rate(millis(500));
    let (begun, before_it) = (Instant::now(), mesh.cables[1].count(&storm));
    let during = flow.rate(secs(3));
    let heard = (mesh.cables[1].count(&storm) - before_it) as f64 / begun.elapsed().as_secs_f64();
    let sent = flood.rate();
    drop(flood);
    let after = flow.rate(secs(1));
    println!(
        "{sent:.0} broadcasts/s, {heard:.0} elsewhere; TCP {before:.1} Mbit/s before, {during:.1} during ({:.0} %), {after:.1} after",
        100.0 * during / before
    );
    assert!(heard < 1.2 * LIMIT, "{heard} broadcasts/s elsewhere");
    heard > 0.0 && sent > 0.5 * f64::from(STORM) && during > 0.6 * before
}

/// The flow goes from the first site to the second one, the storm comes from the last.
///
/// All sites share the cores of this machine with its other work. So there are several tries; a storm
/// that does slow the flow does so in all of them.
fn weather_a_storm(mesh: &mut Mesh) {
    const TRIES: u32 = 6;
    mesh.wait_connected();
    for site in &mesh.sites {
        narrow(mesh, site);
    }
    let last = mesh.sites.len() - 1;
    let hosts = [0, 1].map(|at| mesh.sites[at].host(1));
    pings(&hosts[0], &hosts[1].v4.to_string(), 3, 56);
    let turn = load::all();
    let flow = Bulk::start(&hosts[0], &hosts[1]);
    let begun = Instant::now();
    let is_weathered = (0..TRIES).any(|_| is_storm_weathered(mesh, &flow));
    assert!(is_weathered, "the flow did not keep its rate in any storm");
    drop((flow, turn));
    let port = |site: &Site, name: &str| {
        let mut ports = site.status().ports.into_iter();
        let port = ports.find(|port| port.port == name);
        port.expect("a port of the switch")
    };
    let refused = port(&mesh.sites[last], "tap").refused;
    println!("refused at the storm's site: {refused:?}");
    assert!(refused["broadcast-limited"] > 50_000, "{refused:?}");
    let log = eventually(secs(20), "the limit in the log", || {
        let log = mesh.sites[last].process().log();
        log.contains("broadcast-limited").then_some(log)
    });
    let told = log
        .lines()
        .filter(|line| line.contains("broadcast-limited"));
    let minutes = 1 + begun.elapsed().as_secs() / 60;
    assert!(told.count() as u64 <= minutes, "{log}");
    assert!(log.contains("max-broadcast"), "{log}");
    assert!(mesh.blocked().is_empty(), "{:?}", mesh.blocked());
}

#[test]
fn a_million_addresses_take_no_memory_and_evict_no_station() {
    const ADDRESSES: u64 = 1_000_000;
    let mut mesh = Mesh::start(3);
    mesh.wait_connected();
    // The bridges of the kernel have no limit of their own, and are not under test here.
    for site in &mesh.sites {
        let ports = [DEVICE, "cable1"].into_iter();
        let ports = ports.filter(|&port| port == DEVICE || site.tunnel == mesh.sites[2].tunnel);
        for port in ports {
            let file = format!("/sys/class/net/{port}/brport/learning");
            site.ns.run(&["sh", "-c", &format!("echo 0 > {file}")]);
        }
    }
    let memory = |mesh: &mut Mesh| -> Vec<_> {
        let sites = mesh.sites.iter_mut();
        sites.map(|site| site.process().memory_kib()).collect()
    };
    let before = memory(&mut mesh);

    let turn = load::all();
    let known = [0, 1].map(|at| mesh.cables[at].mac);
    let flood = Flood::start(&mesh.cables[2], move |number| {
        let [.., a, b, c, d] = number.to_be_bytes();
        let (src, stranger) = ([0x02, 0xf1, a, b, c, d], [0x02, 0xf2, a, b, c, d]);
        // Some go straight to known stations, so that they reach the other sites past every limit.
        let dst = match number % 8 {
            0 => known[0],
            1 => known[1],
            2 => BROADCAST,
            _ => stranger,
        };
        frame(dst, src, &[], EXPERIMENTAL, 60, 0)
    });
    let flows = [[0, 1], [1, 0], [0, 2], [2, 1]].map(|[from, to]| {
        let id = 70 + 10 * from as u16 + to as u16;
        let flow = Flow::between(&mesh.cables[from], &mesh.cables[to], id);
        (
            flow,
            [from, to],
            mesh.cables[from].stream(flow, millis(20), |_| 100),
        )
    });
    eventually(secs(60), "a million addresses", || {
        (flood.sent() >= ADDRESSES).then_some(())
    });
    println!("{:.0} addresses/s", flood.rate());
    drop(flood);
    for (flow, [from, to], stream) in flows {
        let sent = stream.stop();
        flow.wait_number(&mesh.cables[to], sent - 1, secs(5));
        let tally = flow.tally(&mesh.cables[to], sent);
        let elsewhere = flow.count(&mesh.cables[3 - from - to]);
        println!("from {from} to {to}: {tally:?}, {elsewhere} at the other one");
        // A busy machine may lose some in the queue of a TAP.
        assert!(tally.lost <= sent / 2, "{tally:?}");
        assert_eq!((tally.duplicates, elsewhere), (0, 0), "from {from} to {to}");
    }

    drop(turn);
    let after = memory(&mut mesh);
    println!("KiB of memory: {before:?} before, {after:?} after");
    for (before, after) in before.iter().zip(&after) {
        assert!(
            after - before.min(after) < 8 << 10,
            "{before} to {after} KiB"
        );
    }
    for site in &mesh.sites {
        let begun = Instant::now();
        let Status { switch, .. } = site.status();
        println!("{switch:?}, shown in {:.2?}", begun.elapsed());
        assert!(switch.counters.limited > 100_000, "{switch:?}");
        assert!(
            (4096..8192).contains(&switch.addresses.learned),
            "{switch:?}"
        );
        let port = if site.tunnel == mesh.sites[2].tunnel {
            "tap"
        } else {
            "site3"
        };
        let shown = site.patchcord(&["fdb", "show", &site.tunnel, "--port", port, "--json"]);
        let of_port = String::from_utf8_lossy(&shown.stdout)
            .matches(r#""mac""#)
            .count();
        assert!((4000..4200).contains(&of_port), "{of_port}");
    }
    for site in &mut mesh.sites {
        let log = site.process().log();
        assert!(
            log.contains("the limit of learned addresses is reached"),
            "{log}"
        );
        assert!(log.contains("max-addresses"), "{log}");
    }
    mesh.assert_each_broadcast_arrives_once();
}

#[test]
fn a_storm_at_one_site_of_a_mesh_does_not_slow_the_others() {
    weather_a_storm(&mut Mesh::start(3));
}

#[test]
fn a_storm_at_one_site_of_a_star_does_not_slow_the_others() {
    let settings = |site| match site {
        2 => Settings::hub(),
        _ => Settings::default(),
    };
    // The third one is the hub; the flow passes it, too.
    weather_a_storm(&mut Mesh::start_with(4, settings, |one, two| {
        one == 2 || two == 2
    }));
}
