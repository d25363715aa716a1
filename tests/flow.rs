// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames, sockets and paths of the provider API, on real TAPs. A packet socket on the TAP acts as the
//! kernel's users: frames that it sends come out of the reader, frames that it receives were written.
//!
//! One test at a time, as they count descriptors. Needs root.

#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd},
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use nix::sched::{CloneFlags, unshare};
use patchcord::provider::{
    BoxFut, Deadlines, EthernetTunnelProvider, EthernetTunnelSettings, FlowError, FrameReader,
    Mark, PathStatus, ProviderContext, ProviderError, RoutingMethod, Session, SessionEnd,
    SessionHandle, SessionStatus, SocketError, StartOptions, StopReason,
};
use patchcord_bridge::MacAddr;
use pnet::datalink::{self, Channel, Config, DataLinkReceiver, DataLinkSender};
use tempfile::TempDir;
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};

const TAP: &str = "flow0";
const MTU: usize = 1500;
/// As documented for `recv_batch`.
const BATCH: usize = 64;

/// Runs an async test in a fresh network namespace, alone.
fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("network namespaces need root");
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.unwrap().block_on(async {
                timeout(Duration::from_secs(20), test())
                    .await
                    .expect("no test hangs");
            });
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn settings(tap: &str, mtu: usize) -> EthernetTunnelSettings {
    let mac = MacAddr([2, 0, 0, 0, 0, tap.as_bytes()[tap.len() - 1]]);
    EthernetTunnelSettings::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), mac, mtu as u32, tap)
}

/// A provider that applies settings and hands its context to the test.
struct Simple {
    settings: EthernetTunnelSettings,
    context: tokio::sync::Mutex<Option<ProviderContext>>,
    stops: AtomicU32,
}

impl EthernetTunnelProvider for Simple {
    fn start<'a>(
        &'a self,
        context: &'a ProviderContext,
        _: StartOptions,
    ) -> BoxFut<'a, Result<(), ProviderError>> {
        Box::pin(async move {
            let early = context.writer().send_batch(&[frame(60, 0)]).await;
            assert!(matches!(early, Err(FlowError::NotReady)), "{early:?}");
            let early = context
                .udp_through_tunnel(address("192.0.2.1:9"), None)
                .await;
            assert!(matches!(early, Err(SocketError::NoInterface)), "{early:?}");
            let early = context.tcp_through_tunnel(address("192.0.2.1:9")).await;
            assert!(matches!(early, Err(SocketError::NoInterface)), "{early:?}");
            assert!(context.multicast_groups().borrow().is_empty());
            context
                .set_network_settings(Some(self.settings.clone()))
                .await?;
            context.set_carrier(true).await;
            *self.context.lock().await = Some(context.clone());
            Ok(())
        })
    }

    fn stop<'a>(&'a self, _: &'a ProviderContext, _: StopReason) -> BoxFut<'a, ()> {
        self.stops.fetch_add(1, Ordering::Relaxed);
        Box::pin(async {})
    }
}

/// A running session.
struct Running {
    provider: Arc<Simple>,
    context: Option<ProviderContext>,
    handle: SessionHandle,
    host: JoinHandle<SessionEnd>,
    _dir: TempDir,
}

impl Running {
    async fn start(settings: EthernetTunnelSettings) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tap = settings.interface_name.clone();
        let provider = Arc::new(Simple {
            settings,
            context: tokio::sync::Mutex::default(),
            stops: AtomicU32::new(0),
        });
        let host = Session::new(provider.clone(), &tap, dir.path(), Deadlines::default());
        let handle = host.handle();
        let host = tokio::spawn(host.run(StartOptions::default(), || {}));
        while handle.status() != SessionStatus::Connected {
            sleep(Duration::from_millis(5)).await;
        }
        while !ip(&format!("link show {tap}")).contains("LOWER_UP") {
            sleep(Duration::from_millis(5)).await;
        }
        let context = provider.context.lock().await.take();
        Self {
            provider,
            context,
            handle,
            host,
            _dir: dir,
        }
    }

    fn context(&self) -> &ProviderContext {
        self.context.as_ref().unwrap()
    }

    async fn stop(self) -> SessionEnd {
        self.handle.stop(StopReason::UserInitiated);
        self.host.await.unwrap()
    }
}

/// A user of the interface.
struct Station {
    sender: Box<dyn DataLinkSender>,
    receiver: Box<dyn DataLinkReceiver>,
}

impl Station {
    fn on(tap: &str) -> Self {
        let config = Config {
            read_timeout: Some(Duration::from_millis(200)),
            read_buffer_size: 65_536,
            write_buffer_size: 65_536,
            ..Config::default()
        };
        let found = datalink::interfaces()
            .into_iter()
            .find(|found| found.name == tap);
        match datalink::channel(&found.unwrap(), config).unwrap() {
            Channel::Ethernet(sender, receiver) => Self { sender, receiver },
            _ => unreachable!("pnet opens Ethernet channels on Linux"),
        }
    }

    fn send(&mut self, frame: &[u8]) {
        // The kernel counts frames that a full queue drops.
        let _ = self.sender.send_to(frame, None).unwrap();
    }

    /// The next frame, or none within a moment.
    fn next(&mut self) -> Option<Vec<u8>> {
        self.receiver.next().ok().map(<[u8]>::to_vec)
    }
}

/// A broadcast frame of an experimental type, with a number.
fn frame(len: usize, number: u32) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 0x99, 0x88, 0xb5]);
    frame.extend(number.to_be_bytes());
    frame.extend((frame.len()..len).map(|at| at as u8));
    frame.truncate(len);
    frame
}

fn number(frame: &[u8]) -> u32 {
    u32::from_be_bytes(frame[14..18].try_into().unwrap())
}

/// One frame of each kind that an Ethernet carries.
fn kinds() -> Vec<Vec<u8>> {
    let with = |dst: [u8; 6], ethertype: &[u8], len: usize| {
        let mut frame = dst.to_vec();
        frame.extend([2, 0, 0, 0, 0, 0x99]);
        frame.extend(ethertype);
        frame.extend((frame.len()..len).map(|at| (at * 7) as u8));
        frame
    };
    vec![
        with([0xff; 6], &[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1], 60), // ARP
        with([2, 0, 0, 0, 0, 9], &[0x81, 0, 0x20, 100, 0x88, 0xb5], 64), // VLAN
        with(
            [2, 0, 0, 0, 0, 9],
            &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6, 0x88, 0xb5],
            1522,
        ), // two tags
        with([1, 0x80, 0xc2, 0, 0, 0x0e], &[0x88, 0xcc], 100),      // LLDP
        with([2, 0, 0, 0, 0, 9], &[0x88, 0xb5], 9014),              // jumbo
        with([0xff; 6], &[0x88, 0xb5], 42),                         // broadcast, without padding
        with(
            [0x33, 0x33, 0xff, 0, 0, 1],
            &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 24, 58, 255],
            86,
        ), // IPv6 neighbour discovery
    ]
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Reads until no more frames come; returns them, and the number of calls.
async fn read_all(reader: &mut FrameReader) -> (Vec<Bytes>, usize) {
    let (mut batch, mut calls) = (Vec::new(), 0);
    while let Ok(read) = timeout(Duration::from_millis(100), reader.recv_batch(&mut batch)).await {
        assert!((1..=BATCH).contains(&read.unwrap()));
        calls += 1;
    }
    (batch, calls)
}

#[test]
fn check_21_queued_frames_come_in_few_calls_in_order_and_byte_by_byte() {
    in_namespace(|| async {
        let session = Running::start(settings(TAP, 9000)).await;
        let mut reader = session.context().take_reader().unwrap();
        let mut station = Station::on(TAP);
        let numbered = (0..300).map(|number| frame(60 + number as usize, number));
        let sent: Vec<_> = kinds().into_iter().chain(numbered).collect();
        sent.iter().for_each(|frame| station.send(frame));
        let (read, calls) = read_all(&mut reader).await;
        assert!(read == sent, "{} of {} frames", read.len(), sent.len());
        assert!(calls <= sent.len().div_ceil(BATCH), "{calls} calls");
        session.stop().await;
    });
}

#[test]
fn check_21_the_largest_frame_comes_whole() {
    in_namespace(|| async {
        let session = Running::start(settings(TAP, 65_521)).await;
        let mut reader = session.context().take_reader().unwrap();
        let mut tagged = frame(65_521 + 14 + 4, 0);
        tagged[12..14].copy_from_slice(&[0x81, 0]);
        Station::on(TAP).send(&tagged);
        let (read, _) = read_all(&mut reader).await;
        let lens: Vec<_> = read.iter().map(Bytes::len).collect();
        assert_eq!(lens, [tagged.len()]);
        assert!(read[0] == tagged);
        session.stop().await;
    });
}

#[test]
fn check_21_written_frames_arrive_byte_by_byte() {
    in_namespace(|| async {
        let session = Running::start(settings(TAP, 9000)).await;
        let mut station = Station::on(TAP);
        let writer = session.context().writer();
        let sent = kinds();
        let report = writer.send_batch(&sent).await.unwrap();
        assert_eq!((report.accepted, report.rejected), (sent.len(), 0));
        for sent in &sent {
            let received = station.next().unwrap();
            // The kernel keeps the outer tag of a received frame apart from its bytes.
            let tag = if sent[12..14] == [0x81, 0] || sent[12..14] == [0x88, 0xa8] {
                4
            } else {
                0
            };
            assert_eq!(received[..12], sent[..12]);
            assert!(received[12..] == sent[12 + tag..], "{:02x?}", &sent[..20]);
        }
        session.stop().await;
    });
}

#[test]
fn check_23_oversize_frames_and_runts_are_refused_one_by_one() {
    in_namespace(|| async {
        let session = Running::start(settings(TAP, MTU)).await;
        let (context, mut station) = (session.context(), Station::on(TAP));
        let writer = context.writer();
        let longest = MTU + 14 + 2 * 4;
        let lens = [60, 13, 0, 14, longest, longest + 1, 65_535, 70_000, 61];
        let batch: Vec<_> = lens.iter().map(|&len| frame(len, 1)).collect();
        for report in [
            writer.try_send_batch(&batch).unwrap(),
            writer.send_batch(&batch).await.unwrap(),
        ] {
            assert_eq!((report.accepted, report.rejected), (4, 5));
            for len in [60, 14, longest, 61] {
                assert_eq!(station.next().unwrap().len(), len);
            }
        }
        // The limit of the settings in force.
        let wider = settings(TAP, MTU + 1);
        context.set_network_settings(Some(wider)).await.unwrap();
        let report = writer.try_send_batch(&[frame(longest + 1, 1)]).unwrap();
        assert_eq!(report.accepted, 1);
        session.stop().await;
    });
}

#[test]
fn a_batch_waits_for_room_where_there_is_a_limit() {
    in_namespace(|| async {
        let session = Running::start(settings(TAP, MTU)).await;
        ip("link add br0 type bridge");
        ip("link add slow type veth peer name far");
        for link in ["br0", "slow", "far"] {
            ip(&format!("link set {link} up"));
        }
        for port in ["slow", TAP] {
            ip(&format!("link set {port} master br0"));
        }
        let shaper = "qdisc add dev slow root tbf rate 400kbit burst 2000 limit 1000000";
        let shaped = Command::new("tc").args(shaper.split(' ')).status();
        assert!(shaped.unwrap().success());
        let writer = session.context().writer();
        limit_room(&writer.tap().unwrap(), 4000);
        let mut far = Station::on("far");
        let mut batch: Vec<_> = (0..20).map(|number| frame(1000, number)).collect();
        // To one station: a copy of a broadcast would not count against the limit.
        for frame in &mut batch {
            frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
        }

        let report = writer.send_batch(&batch).await.unwrap();
        assert_eq!((report.accepted, report.rejected), (20, 0));
        let report = writer.try_send_batch(&batch).unwrap();
        assert!(report.rejected > 10, "{report:?}");
        let mut seen = Vec::new();
        while seen.len() < batch.len() {
            let received = far.next().unwrap();
            if received[12..14] == [0x88, 0xb5] {
                seen.push(received);
            }
        }
        assert!(seen == batch);
        session.stop().await;
    });
}

/// Sets how many `bytes` of frames may be on their way through the kernel.
fn limit_room(tap: &impl AsFd, bytes: libc::c_int) {
    const TUNSETSNDBUF: libc::Ioctl = 0x4004_54d4;
    // SAFETY: the kernel reads one number from the pointer, and keeps none.
    let set = unsafe { libc::ioctl(tap.as_fd().as_raw_fd(), TUNSETSNDBUF, &raw const bytes) };
    assert_eq!(set, 0);
}

#[test]
fn a_large_batch_lets_other_tasks_work() {
    in_namespace(|| async {
        let session = Running::start(settings(TAP, MTU)).await;
        let turns = Arc::new(AtomicU32::new(0));
        let other = turns.clone();
        let other = tokio::spawn(async move {
            loop {
                other.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        });
        tokio::task::yield_now().await;
        let before = turns.load(Ordering::Relaxed);
        let batch = vec![frame(60, 1); 10 * BATCH];
        let report = session.context().writer().send_batch(&batch).await.unwrap();
        assert_eq!(report.accepted, batch.len());
        assert!(turns.load(Ordering::Relaxed) - before >= 9);
        other.abort();
        session.stop().await;
    });
}

#[test]
fn check_22_a_wait_that_is_given_up_loses_nothing() {
    in_namespace(|| async {
        let session = Running::start(settings(TAP, MTU)).await;
        let mut reader = session.context().take_reader().unwrap();
        let mut station = Station::on(TAP);
        let mut read = Vec::new();
        for number in 0..200u32 {
            // Cancelled at once, while it waits, and when it is about to return.
            let soon = Duration::from_micros(u64::from(number % 5) * 300);
            let waiting = timeout(soon, reader.recv_batch(&mut read));
            let sending = async {
                tokio::task::yield_now().await;
                station.send(&frame(60, number));
            };
            let (outcome, ()) = tokio::join!(waiting, sending);
            assert!(outcome.is_err() || outcome.unwrap().is_ok());
        }
        read.extend(read_all(&mut reader).await.0);
        let numbers: Vec<_> = read.iter().map(|frame| number(frame)).collect();
        assert_eq!(numbers, (0..200).collect::<Vec<_>>());
        session.stop().await;
    });
}

#[test]
fn check_24_a_stalled_reader_costs_the_kernels_queue_and_no_more() {
    in_namespace(|| async {
        let session = Running::start(settings(TAP, MTU)).await;
        let mut reader = session.context().take_reader().unwrap();
        let mut station = Station::on(TAP);
        (0..3000).for_each(|number| station.send(&frame(60, number)));
        let (read, _) = read_all(&mut reader).await;
        let numbers: Vec<_> = read.iter().map(|frame| number(frame)).collect();
        assert!((500..=1100).contains(&numbers.len()), "{}", numbers.len());
        assert!(
            numbers.is_sorted() && numbers[0] == 0,
            "the oldest stay, in order"
        );
        let counters = ip(&format!("-s -s link show {TAP}"));
        let sent = counters
            .split("TX:")
            .nth(1)
            .unwrap()
            .lines()
            .nth(1)
            .unwrap();
        let dropped = sent
            .split_whitespace()
            .nth(3)
            .unwrap()
            .parse::<usize>()
            .unwrap();
        assert_eq!(numbers.len() + dropped, 3000, "{counters}");
        station.send(&frame(60, 4711));
        let (read, _) = read_all(&mut reader).await;
        assert_eq!(read.len(), 1, "it recovers");
        session.stop().await;
    });
}

#[test]
fn check_25_a_deleted_interface_is_lost_and_ends_the_session_once() {
    in_namespace(|| async {
        let session = Running::start(settings(TAP, MTU)).await;
        let mut reader = session.context().take_reader().unwrap();
        let writer = session.context().writer();
        let waiting = tokio::spawn(async move {
            let outcome = reader.recv_batch(&mut Vec::new()).await;
            (outcome, reader)
        });
        sleep(Duration::from_millis(50)).await;
        ip(&format!("link delete {TAP}"));
        let written = writer.try_send_batch(&[frame(60, 1)]);
        assert!(
            matches!(written, Err(FlowError::InterfaceLost)),
            "{written:?}"
        );
        let (outcome, mut reader) = waiting.await.unwrap();
        assert!(
            matches!(outcome, Err(FlowError::InterfaceLost)),
            "{outcome:?}"
        );
        let provider = session.provider.clone();
        let end = session.host.await.unwrap();
        assert_eq!(end.reason, StopReason::InternalError);
        assert_eq!(provider.stops.load(Ordering::Relaxed), 1);
        let closed = |error| matches!(error, FlowError::Closed(StopReason::InternalError));
        assert!(closed(
            reader.recv_batch(&mut Vec::new()).await.unwrap_err()
        ));
        assert!(closed(
            writer.send_batch(&[frame(60, 1)]).await.unwrap_err()
        ));
    });
}

#[test]
fn a_stop_ends_a_read_with_its_reason() {
    in_namespace(|| async {
        let session = Running::start(settings(TAP, MTU)).await;
        let mut reader = session.context().take_reader().unwrap();
        let waiting = tokio::spawn(async move {
            let outcome = reader.recv_batch(&mut Vec::new()).await;
            (outcome, reader.tap().is_some())
        });
        sleep(Duration::from_millis(50)).await;
        assert_eq!(session.stop().await.reason, StopReason::UserInitiated);
        let (outcome, _) = timeout(Duration::from_secs(1), waiting)
            .await
            .unwrap()
            .unwrap();
        let expected = matches!(outcome, Err(FlowError::Closed(StopReason::UserInitiated)));
        assert!(expected, "{outcome:?}");
    });
}

#[test]
fn check_26_reader_writer_and_context_go_in_any_order_without_a_descriptor_left() {
    /// Reader, writer, context, and the end of the session.
    const PARTS: [usize; 4] = [0, 1, 2, 3];
    let orders = || {
        let mut orders = Vec::new();
        for a in PARTS {
            for b in PARTS {
                for c in PARTS {
                    for d in PARTS {
                        if BTreeSet::from([a, b, c, d]).len() == 4 {
                            orders.push([a, b, c, d]);
                        }
                    }
                }
            }
        }
        orders
    };
    in_namespace(|| async move {
        let before = descriptors();
        for order in orders() {
            let mut session = Some(Running::start(settings(TAP, MTU)).await);
            let mut context = session.as_mut().unwrap().context.take();
            let mut reader = context.as_ref().unwrap().take_reader();
            let mut writer = context.as_ref().map(ProviderContext::writer);
            context.as_ref().unwrap().default_path();
            let waiting = reader.as_mut().unwrap();
            let _ = timeout(
                Duration::from_millis(1),
                waiting.recv_batch(&mut Vec::new()),
            )
            .await;
            assert!(descriptors() > before);
            for part in order {
                match part {
                    0 => drop(reader.take()),
                    1 => drop(writer.take()),
                    2 => drop(context.take()),
                    _ => drop(session.take().unwrap().stop().await),
                }
            }
            let mut now = descriptors();
            for _ in 0..100 {
                if now <= before {
                    break;
                }
                sleep(Duration::from_millis(10)).await;
                now = descriptors();
            }
            assert_eq!(now, before, "{order:?}");
        }
    });
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn check_33_a_broadcast_reaches_the_chosen_tap_only() {
    in_namespace(|| async {
        let bare = Running::start(settings("flow0", MTU)).await;
        let addressed = settings("flow1", MTU).with_addresses(&["192.0.2.1/24".parse().unwrap()]);
        let addressed = Running::start(addressed).await;
        let mut readers =
            [&bare, &addressed].map(|session| session.context().take_reader().unwrap());
        let remote = address("255.255.255.255:4711");
        for (chosen, session) in [&bare, &addressed].into_iter().enumerate() {
            let socket = session
                .context()
                .udp_through_tunnel(remote, None)
                .await
                .unwrap();
            socket.send(b"to whom it may concern").await.unwrap();
            for (at, reader) in readers.iter_mut().enumerate() {
                let (read, _) = read_all(reader).await;
                let ours = |frame: &&Bytes| frame.ends_with(b"to whom it may concern");
                let seen: Vec<_> = read.iter().filter(ours).collect();
                assert_eq!(
                    seen.len(),
                    usize::from(at == chosen),
                    "chosen {chosen}, at {at}"
                );
                assert!(seen.iter().all(|frame| frame.starts_with(&[0xff; 6])));
            }
        }
        bare.stop().await;
        addressed.stop().await;
    });
}

#[test]
fn check_29_a_socket_outside_never_shows_on_a_full_tunnel() {
    in_namespace(|| async {
        ip("link add wan0 type veth peer name far");
        ip("address add 198.51.100.2/24 dev wan0");
        ip("link set far up");
        ip("link set wan0 up");
        ip("route add default via 198.51.100.1");
        ip("neighbour add 198.51.100.1 lladdr 02:00:00:00:00:01 dev wan0");
        let tunnel = settings(TAP, MTU).with_addresses(&["192.0.2.1/24".parse().unwrap()]);
        let session = Running::start(tunnel).await;
        let context = session.context();
        ip(&format!("route add default dev {TAP} table 4711"));
        ip(&format!(
            "rule add pref 100 not fwmark {} lookup 4711",
            Mark::BYPASS
        ));
        ip(&format!(
            "neighbour add 203.0.113.9 lladdr 02:00:00:00:00:09 dev {TAP}"
        ));
        let mut reader = context.take_reader().unwrap();
        let mut wan = Station::on("far");
        let remote = address("203.0.113.9:4711");

        let mut path = context.default_path();
        path.wait_for(|path| path.status != PathStatus::Invalid)
            .await
            .unwrap();
        let seen = path.borrow().clone();
        assert_eq!(seen.status, PathStatus::Satisfied);
        assert_eq!(seen.interface.unwrap().name, "wan0");

        let plain = tokio::net::UdpSocket::bind("0.0.0.0:0").await.unwrap();
        plain.send_to(b"inside", remote).await.unwrap();
        let through = context.udp_through_tunnel(remote, None).await.unwrap();
        through.send(b"through").await.unwrap();
        let outside = context.udp_outside(remote, None).await.unwrap();
        outside.send(b"outside").await.unwrap();
        let protected = tokio::net::UdpSocket::bind("0.0.0.0:0").await.unwrap();
        context.protect(&protected).unwrap();
        protected.send_to(b"protected", remote).await.unwrap();
        let tcp = timeout(Duration::from_millis(50), context.tcp_outside(remote)).await;
        assert!(tcp.is_err(), "nobody answers");
        let tcp = timeout(
            Duration::from_millis(50),
            context.tcp_through_tunnel(remote),
        )
        .await;
        assert!(tcp.is_err(), "nobody answers");

        let (read, _) = read_all(&mut reader).await;
        let tap: Vec<_> = read.iter().filter_map(|frame| payload(frame)).collect();
        assert_eq!(tap, ["inside", "through", "TCP"]);
        let mut seen = Vec::new();
        while let Some(frame) = wan.next() {
            seen.extend(payload(&frame));
        }
        assert_eq!(seen, ["outside", "protected", "TCP"]);
        session.stop().await;
    });
}

/// The payload of a frame to 203.0.113.9, "TCP" for the start of a connection.
fn payload(frame: &[u8]) -> Option<String> {
    let is_ours = frame[12..14] == [8, 0] && frame[30..34] == [203, 0, 113, 9];
    match frame[23] {
        6 if is_ours => Some("TCP".to_owned()),
        17 if is_ours => Some(String::from_utf8(frame[42..].to_vec()).unwrap()),
        _ => None,
    }
}

#[test]
fn a_socket_outside_needs_a_capability_and_says_which() {
    in_namespace(|| async {
        let session = Running::start(settings(TAP, MTU)).await;
        let context = session.context().clone();
        let outcome = std::thread::spawn(move || {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
            // SAFETY: takes numbers and no pointers. The C library would change every thread of the
            // process; the system call changes this one, which ends here.
            let changed = unsafe { libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534) };
            assert_eq!(changed, 0);
            context.protect(&socket)
        });
        let error = outcome.join().unwrap().unwrap_err();
        assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
        assert_eq!(
            io::Error::from(error).kind(),
            io::ErrorKind::PermissionDenied
        );
        session.stop().await;
    });
}

#[test]
fn groups_are_those_of_the_interface() {
    in_namespace(|| async {
        let session = Running::start(settings(TAP, MTU)).await;
        let mut groups = session.context().multicast_groups();
        let lldp = MacAddr([1, 0x80, 0xc2, 0, 0, 0x0e]);
        for joined in [true, false] {
            let verb = if joined { "add" } else { "delete" };
            ip(&format!("maddress {verb} 01:80:c2:00:00:0e dev {TAP}"));
            let seen = groups.wait_for(|groups| groups.contains(&lldp) == joined);
            timeout(Duration::from_secs(3), seen)
                .await
                .unwrap()
                .unwrap();
        }
        assert_eq!(
            session.context().routing_method(),
            RoutingMethod::DestinationIp
        );
        assert_eq!(RoutingMethod::DestinationIp as u8, 1);
        assert_eq!(session.context().app_rules(), None);
        session.stop().await;
    });
}
