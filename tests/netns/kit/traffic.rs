// SPDX-License-Identifier: MIT OR Apache-2.0
//! TCP and UDP between hosts, checked byte for byte, and the counters of their kernels.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::socket::{setsockopt, sockopt};

use super::frames::{Mac, fill};
use super::load;
use super::namespace::Namespace;
use super::process::{eventually, millis, secs};
use super::site::{DEVICE, Site};
use super::topology::{Host, mac};

/// Which addresses of the hosts are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ip {
    V4,
    V6,
}

impl Ip {
    pub(crate) fn of(self, host: &Host, udp_or_tcp_port: u16) -> SocketAddr {
        let address = match self {
            Self::V4 => IpAddr::V4(host.v4),
            Self::V6 => IpAddr::V6(host.v6),
        };
        SocketAddr::new(address, udp_or_tcp_port)
    }
}

pub(crate) const BLOCK: usize = 1 << 16;

fn block(number: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK);
    fill(&mut bytes, BLOCK, number);
    bytes
}

/// Sends blocks over one connection and compares each arrival with the original.
pub(crate) fn transfer(from: &Host, to: &Host, ip: Ip, blocks: u64) {
    // A few blocks end before their turn would come.
    let _turn = (blocks >= 64).then(load::some);
    let listener = to.ns.enter(|| TcpListener::bind(ip.of(to, 7200)).unwrap());
    let mut sender = from
        .ns
        .enter(|| TcpStream::connect(ip.of(to, 7200)))
        .expect("TCP connects");
    let (mut receiver, _) = listener.accept().unwrap();
    for stream in [&sender, &receiver] {
        stream.set_read_timeout(Some(secs(20))).unwrap();
        stream.set_write_timeout(Some(secs(20))).unwrap();
    }
    thread::scope(|scope| {
        scope.spawn(move || {
            for number in 0..blocks {
                sender.write_all(&block(number)).expect("TCP goes on");
            }
        });
        let mut bytes = vec![0; BLOCK];
        for number in 0..blocks {
            receiver.read_exact(&mut bytes).expect("TCP goes on");
            assert!(bytes == block(number), "block {number} was changed");
        }
        assert_eq!(receiver.read(&mut bytes).expect("TCP ends"), 0);
    });
}

/// Runs iperf3, for 16 MiB of TCP or a second of UDP, with its logs in `dir`; returns the received rate
/// in bit/s.
pub(crate) fn iperf(dir: &Path, from: &Host, to: &Host, arguments: &[&str]) -> f64 {
    let _turn = load::half();
    let log = dir.join("iperf3.log");
    let mut server = to
        .ns
        .spawn(&log, &["iperf3", "--server", "--one-off", "--forceflush"]);
    server.wait_for("listening", secs(20));
    let target = to.v4.to_string();
    let amount = if arguments.contains(&"--udp") {
        ["--time", "1"]
    } else {
        ["--bytes", "16M"]
    };
    let argv = [
        &["iperf3", "--client", &target, "--json"][..],
        &amount,
        arguments,
    ];
    let output = from.ns.output(&argv.concat());
    let result: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("iperf3 prints JSON");
    assert!(output.status.success(), "iperf3: {}", result["error"]);
    // A server prints only two lines at its end; the next one has a log of its own.
    server.wait_exit(secs(20));
    let _ = std::fs::remove_file(&log);
    let rate = |sum: &str| result["end"][sum]["bits_per_second"].as_f64();
    let rate = rate("sum_received").or_else(|| rate("sum"));
    rate.expect("iperf3 says how fast it was")
}

/// Counters of the kernel by name, since the namespace began.
pub(crate) fn nstat(ns: &Namespace, names: &[&str]) -> BTreeMap<String, u64> {
    let shown = ns.run(&[&["nstat", "-asz"], names].concat());
    let fields = shown.lines().filter(|line| !line.starts_with('#'));
    let counters: BTreeMap<_, _> = fields
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
        })
        .collect();
    assert_eq!(counters.len(), names.len(), "{shown}");
    counters
}

/// No kernel saw a wrong checksum, neither inside nor outside of the tunnel.
pub(crate) fn assert_checksums(namespaces: &[&Namespace]) {
    let names = ["TcpInCsumErrors", "UdpInCsumErrors", "Udp6InCsumErrors"];
    for ns in namespaces {
        let errors = nstat(ns, &names);
        assert!(
            errors.values().all(|&count| count == 0),
            "{}: {errors:?}",
            ns.name
        );
    }
}

/// The size of datagrams that the kernel passes on as super-frames if the device takes them.
pub(crate) const DATAGRAM: usize = 1200;
pub(crate) const DATAGRAMS_AT_ONCE: u64 = 40;

fn datagram(number: u64) -> Vec<u8> {
    let mut bytes = number.to_be_bytes().to_vec();
    fill(&mut bytes, DATAGRAM, number);
    bytes
}

/// Echo requests of `size` bytes of payload, with DF; all are answered, in their order.
///
/// `ping -c` waits for the last answer only as long as two round trips took, and on a busy machine
/// declares it lost. With `-w` it waits for the requested number of answers, and sends on meanwhile:
/// some more may arrive together with the last one.
pub(crate) fn pings(from: &Host, target: &str, count: u16, size: u16) {
    let (answers, size) = (count.to_string(), size.to_string());
    let printed = from.ns.run(&[
        "ping", "-n", "-c", &answers, "-i", "0.02", "-w", "5", "-M", "do", "-s", &size, target,
    ]);
    let came: Vec<u16> = printed
        .lines()
        .filter_map(|line| {
            line.split_once("icmp_seq=")?
                .1
                .split(' ')
                .next()?
                .parse()
                .ok()
        })
        .collect();
    let is_complete = came.len() >= usize::from(count);
    assert!(
        is_complete && (1..).zip(&came).all(|(nth, &came)| nth == came),
        "{size} bytes: {printed}"
    );
}

/// Sends numbered UDP datagrams and returns the numbers of the received ones, in their order.
pub(crate) fn shower(from: &Host, to: &Host, ip: Ip, times: u64) -> Vec<u64> {
    // The kernel drops datagrams that wait for ARP before they reach the tunnel.
    let address = ip.of(to, 0).ip().to_string();
    eventually(secs(10), "neighbours know each other", || {
        let ping = ["ping", "-c1", "-W1", &address];
        from.ns.succeeds(&ping).then_some(())
    });
    let receiver = to.ns.enter(|| UdpSocket::bind(ip.of(to, 7300)).unwrap());
    setsockopt(&receiver, sockopt::RcvBufForce, &(16 << 20)).unwrap();
    receiver.set_read_timeout(Some(millis(500))).unwrap();
    let sender = from.ns.enter(|| UdpSocket::bind(ip.of(from, 0)).unwrap());
    setsockopt(&sender, sockopt::UdpGsoSegment, &(DATAGRAM as i32)).unwrap();
    sender.connect(ip.of(to, 7300)).unwrap();
    let is_sent = &AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(move || {
            for first in (0..times).map(|time| time * DATAGRAMS_AT_ONCE) {
                let numbers = first..first + DATAGRAMS_AT_ONCE;
                sender
                    .send(&numbers.map(datagram).collect::<Vec<_>>().concat())
                    .unwrap();
                thread::sleep(millis(10));
            }
            is_sent.store(true, Ordering::Relaxed);
        });
        let mut buffer = [0; 2048];
        let received = std::iter::from_fn(|| {
            let len = loop {
                let is_last = is_sent.load(Ordering::Relaxed);
                match receiver.recv(&mut buffer) {
                    Ok(len) => break len,
                    // The kernel does not restart a call with a time-out (signal(7)), and a sender
                    // may have to wait for its turn on a busy machine.
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock && !is_last => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                    Err(error) => panic!("the receiver fails: {error}"),
                }
            };
            let number = u64::from_be_bytes(*buffer.first_chunk().unwrap());
            assert!(
                buffer[..len] == datagram(number),
                "datagram {number} was changed"
            );
            Some(number)
        });
        // A duplicate takes the place of the last.
        let most = times * DATAGRAMS_AT_ONCE;
        received.take(most as usize).collect()
    })
}

/// Whether the kernel's TAPs take UDP super-frames. Before Linux 6.2 they do not: the kernel cuts those
/// of hosts on their way into the TAP, and datagrams leave it one by one.
pub(crate) fn has_udp_super_frames() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("Linux");
    let mut numbers = release
        .split(['.', '-'])
        .map(|it| it.parse().expect("a number"));
    let version: (u32, u32) = (numbers.next().unwrap(), numbers.next().unwrap());
    version >= (6, 2)
}

/// Packets that the tunnel's device has passed to the kernel, or got from it.
pub(crate) fn packets(site: &Site, counter: &str) -> u64 {
    let path = format!("/sys/class/net/{DEVICE}/statistics/{counter}");
    site.ns.run(&["cat", &path]).trim().parse().unwrap()
}

/// TCP and UDP both ways, every byte exact.
pub(crate) fn assert_exact(a: &Host, b: &Host, blocks: u64) {
    for (from, to) in [(a, b), (b, a)] {
        for ip in [Ip::V4, Ip::V6] {
            transfer(from, to, ip, blocks);
            let numbers = shower(from, to, ip, blocks / 4);
            assert!(
                numbers.into_iter().eq(0..blocks / 4 * DATAGRAMS_AT_ONCE),
                "every datagram, in order, once"
            );
        }
    }
}

pub(crate) fn assert_nothing_refused(sites: &[&Site]) {
    for site in sites {
        for reason in [
            "bad-offload",
            "segment-lost",
            "reassembly-evicted",
            "malformed",
        ] {
            assert_eq!(site.drops(reason), 0, "{}: {reason}", site.tunnel);
        }
        assert_eq!(site.drops("tap-write-failed"), 0, "{}", site.tunnel);
    }
}

/// TCP comes out of the tunnel at `site` in far fewer packets than segments.
pub(crate) fn assert_whole(from: &Host, to: &Host, site: &Site) {
    for ip in [Ip::V4, Ip::V6] {
        let before = packets(site, "rx_packets");
        transfer(from, to, ip, 256);
        let segments = 256 * BLOCK as u64 / 1448;
        let came = packets(site, "rx_packets") - before;
        println!("{segments} segments came in {came} packets");
        assert!(came * 4 < segments, "{came} of {segments}");
    }
}

/// The MAC address that `host` has resolved `address` to.
fn neighbour(host: &Host, address: &str) -> Option<String> {
    let shown = host
        .ns
        .run(&["ip", "-j", "neigh", "show", "to", address, "dev", "eth0"]);
    let entries: serde_json::Value = serde_json::from_str(&shown).ok()?;
    entries[0]["lladdr"].as_str().map(str::to_owned)
}

pub(crate) fn resolves(from: &Host, address: &str, owner: Mac) {
    from.ns.ip("neigh flush dev eth0");
    from.ns
        .run(&["ping", "-c", "1", "-W", "2", "-I", "eth0", address]);
    assert_eq!(neighbour(from, address), Some(mac(owner)), "{address}");
}
