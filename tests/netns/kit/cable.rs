// SPDX-License-Identifier: MIT OR Apache-2.0
//! The bare end of an Ethernet cable that is plugged into a bridge of a site.
//!
//! It is a TAP: frames that the test writes to it enter the bridge as if from a wire, and frames that
//! the bridge sends out of the port are read here byte for byte, VLAN tags in their place.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tun_tap::{Iface, Mode};

use super::frames::{Flow, Mac};
use super::namespace::Namespace;

/// Room for any frame that a TAP can deliver.
const FRAME_MAX: usize = 65_536;

/// A TAP inside a namespace, removed with its value.
pub(crate) struct Tap {
    iface: Iface,
    namespace: Arc<Namespace>,
}

impl Tap {
    pub(crate) fn new(namespace: &Arc<Namespace>, name: &str) -> Self {
        let iface = namespace
            .enter(|| Iface::without_packet_info(name, Mode::Tap))
            .unwrap_or_else(|error| panic!("TAP {name} in {}: {error}", namespace.name));
        Self {
            iface,
            namespace: Arc::clone(namespace),
        }
    }

    pub(crate) fn send(&self, frame: &[u8]) {
        self.iface.send(frame).expect("the TAP is up");
    }

    /// The next frame, or none once the device is gone.
    fn recv(&self, buffer: &mut [u8]) -> Option<usize> {
        self.iface.recv(buffer).ok()
    }

    /// Removes the device, which ends a blocked [`Tap::recv`].
    fn remove(&self) {
        self.namespace
            .output(&["ip", "link", "del", self.iface.name()]);
    }
}

/// A frame that came out of a cable.
#[derive(Clone)]
pub(crate) struct Arrival {
    pub(crate) at: Instant,
    pub(crate) bytes: Vec<u8>,
}

/// Makes the queue as long as the kernel allows, so that the test itself loses no frames on a busy
/// machine.
fn lengthen_queue(namespace: &Namespace, name: &str) {
    let lengthen = |frames| namespace.succeeds(&["ip", "link", "set", name, "txqueuelen", frames]);
    assert!(["50000", "10000"].into_iter().any(lengthen), "{name}");
}

/// How many frames streams may be ahead of their receiver: a path that delays frames by 200 ms holds 400 of
/// them, and a TAP's queue 500.
const WINDOW: u64 = 500;

#[derive(Default)]
struct Inbox {
    arrivals: Mutex<Vec<Arrival>>,
    news: Condvar,
}

pub(crate) struct Cable {
    pub(crate) mac: Mac,
    tap: Arc<Tap>,
    inbox: Arc<Inbox>,
    reader: Option<JoinHandle<()>>,
}

impl Cable {
    /// Plugs a cable into `bridge`; `mac` is only the source address of the test's frames.
    pub(crate) fn plug(
        namespace: &Arc<Namespace>,
        bridge: &str,
        name: &str,
        mac: Mac,
        mtu: u32,
    ) -> Self {
        let tap = Arc::new(Tap::new(namespace, name));
        namespace.ip(&format!(
            "link set {name} mtu {mtu} addrgenmode none\nlink set {name} master {bridge} up"
        ));
        lengthen_queue(namespace, name);
        Self::of(tap, mac)
    }

    /// The far end of a veth cable whose other end is `nic`, which is in no bridge.
    pub(crate) fn to_nic(namespace: &Arc<Namespace>, nic: &str, mac: Mac, mtu: u32) -> Self {
        let (far, name) = (format!("{nic}-far"), format!("{nic}-tap"));
        let tap = Arc::new(Tap::new(namespace, &name));
        namespace.ip(&format!(
            "link add {nic} mtu {mtu} type veth peer name {far} mtu {mtu}\n\
             link set {far} addrgenmode none up\n\
             link set {name} mtu {mtu} addrgenmode none up"
        ));
        lengthen_queue(namespace, &name);
        // Neither end looks at what the other one has.
        for (from, to) in [(&far, &name), (&name, &far)] {
            namespace.run(&["tc", "qdisc", "add", "dev", from, "clsact"]);
            let filter = format!(
                "tc filter add dev {from} ingress protocol all u32 match u32 0 0 \
                 action mirred egress redirect dev {to}"
            );
            namespace.run(&filter.split(' ').collect::<Vec<_>>());
        }
        Self::of(tap, mac)
    }

    fn of(tap: Arc<Tap>, mac: Mac) -> Self {
        let inbox = Arc::new(Inbox::default());
        let reader = thread::spawn({
            let (tap, inbox) = (Arc::clone(&tap), Arc::clone(&inbox));
            move || read(&tap, &inbox)
        });
        Self {
            mac,
            tap,
            inbox,
            reader: Some(reader),
        }
    }

    pub(crate) fn send(&self, frame: &[u8]) {
        self.tap.send(frame);
    }

    /// For a thread that sends on its own.
    pub(crate) fn tap(&self) -> Arc<Tap> {
        Arc::clone(&self.tap)
    }

    /// Passes all arrivals so far to `look`.
    pub(crate) fn with_arrivals<T>(&self, look: impl FnOnce(&[Arrival]) -> T) -> T {
        look(&self.inbox.arrivals.lock().expect("no reader panics"))
    }

    /// Waits until the arrivals satisfy `done`; false after the limit.
    pub(crate) fn wait(&self, limit: Duration, mut done: impl FnMut(&[Arrival]) -> bool) -> bool {
        let arrivals = self.inbox.arrivals.lock().expect("no reader panics");
        let (_arrivals, waited) = self
            .inbox
            .news
            .wait_timeout_while(arrivals, limit, |arrivals| !done(arrivals))
            .expect("no reader panics");
        !waited.timed_out()
    }

    /// Waits for an identical frame.
    pub(crate) fn receives(&self, frame: &[u8], limit: Duration) -> bool {
        self.wait(limit, |all| {
            all.iter().any(|arrival| arrival.bytes == frame)
        })
    }

    /// The number of copies of this frame that came out.
    pub(crate) fn count(&self, frame: &[u8]) -> usize {
        self.with_arrivals(|all| all.iter().filter(|arrival| arrival.bytes == frame).count())
    }

    /// Drops all arrivals.
    pub(crate) fn clear(&self) {
        self.inbox
            .arrivals
            .lock()
            .expect("no reader panics")
            .clear();
    }

    /// Sends numbered frames in the background until it is stopped.
    pub(crate) fn stream(
        &self,
        flow: Flow,
        interval: Duration,
        len: impl Fn(u64) -> usize + Send + 'static,
    ) -> Stream {
        self.stream_behind(None, flow, interval, len)
    }

    /// The same, never more than [`WINDOW`] frames ahead of what comes out of `to`: a busy machine makes the
    /// stream slower, and overflows no queue.
    pub(crate) fn stream_to(
        &self,
        to: &Self,
        flow: Flow,
        interval: Duration,
        len: impl Fn(u64) -> usize + Send + 'static,
    ) -> Stream {
        self.stream_one_of(1, to, flow, interval, len)
    }

    /// The same, one of `count` streams that go side by side and share the window.
    pub(crate) fn stream_one_of(
        &self,
        count: u8,
        to: &Self,
        flow: Flow,
        interval: Duration,
        len: impl Fn(u64) -> usize + Send + 'static,
    ) -> Stream {
        let ahead = Ahead {
            of: Arc::clone(&to.inbox),
            frames: WINDOW / u64::from(count),
        };
        self.stream_behind(Some(ahead), flow, interval, len)
    }

    fn stream_behind(
        &self,
        ahead: Option<Ahead>,
        flow: Flow,
        interval: Duration,
        len: impl Fn(u64) -> usize + Send + 'static,
    ) -> Stream {
        let (tap, progress) = (Arc::clone(&self.tap), Arc::new(Progress::default()));
        let sender = thread::spawn({
            let progress = Arc::clone(&progress);
            move || send_numbered(&tap, ahead.as_ref(), flow, interval, &progress, len)
        });
        Stream {
            progress,
            sender: Some(sender),
        }
    }
}

fn read(tap: &Tap, inbox: &Inbox) {
    let mut buffer = vec![0; FRAME_MAX];
    while let Some(len) = tap.recv(&mut buffer) {
        let arrival = Arrival {
            at: Instant::now(),
            bytes: buffer[..len].to_vec(),
        };
        inbox
            .arrivals
            .lock()
            .expect("no test panics while it looks")
            .push(arrival);
        inbox.news.notify_all();
    }
}

/// How far a stream may be ahead of its receiver.
struct Ahead {
    of: Arc<Inbox>,
    frames: u64,
}

impl Ahead {
    /// Waits until the frame so many before `number` has come out, or a newer one. If all of them are
    /// lost, a second is enough. Returns the number of the first frame that would wait again.
    fn wait(&self, flow: Flow, number: u64) -> u64 {
        let mut end = 0;
        let is_full = |all: &mut Vec<Arrival>| {
            let newest = flow.newest(all).map_or(0, |newest| newest + 1);
            end = newest + self.frames;
            number >= end
        };
        let arrivals = self.of.arrivals.lock().expect("no reader panics");
        let limit = Duration::from_secs(1);
        drop(self.of.news.wait_timeout_while(arrivals, limit, is_full));
        end
    }
}

fn send_numbered(
    tap: &Tap,
    ahead: Option<&Ahead>,
    flow: Flow,
    interval: Duration,
    progress: &Progress,
    len: impl Fn(u64) -> usize,
) {
    let begun = Instant::now();
    let (mut number, mut end) = (0, 0);
    while !progress.stop.load(Ordering::Relaxed) {
        if let Some(ahead) = ahead.filter(|_| number >= end) {
            end = ahead.wait(flow, number);
        }
        tap.send(&flow.frame(number, len(number)));
        number += 1;
        progress.sent.store(number, Ordering::Relaxed);
        // Against the clock, not frame by frame: a late wake-up must not slow the whole stream.
        let due = begun + interval * u32::try_from(number).expect("a test sends fewer frames");
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.tap.remove();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

#[derive(Default)]
struct Progress {
    sent: AtomicU64,
    stop: AtomicBool,
}

/// A flow that is being sent.
pub(crate) struct Stream {
    progress: Arc<Progress>,
    sender: Option<JoinHandle<()>>,
}

impl Stream {
    /// How many frames were sent so far.
    pub(crate) fn sent(&self) -> u64 {
        self.progress.sent.load(Ordering::Relaxed)
    }

    /// Stops sending; returns how many frames were sent.
    pub(crate) fn stop(mut self) -> u64 {
        self.end().expect("the sender does not panic");
        self.sent()
    }

    fn end(&mut self) -> thread::Result<()> {
        self.progress.stop.store(true, Ordering::Relaxed);
        self.sender.take().map_or(Ok(()), JoinHandle::join)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// A host's VLAN interface: untagged inside the host, tagged on a trunk port of the site's bridge.
///
/// Two TAPs instead of an 802.1Q device, which not every kernel has.
pub(crate) struct VlanHost {
    taps: [Arc<Tap>; 2],
    relays: Vec<JoinHandle<()>>,
}

impl VlanHost {
    pub(crate) fn new(
        host: &Arc<Namespace>,
        site: &Arc<Namespace>,
        bridge: &str,
        trunk: &str,
        vid: u16,
    ) -> Self {
        let inner = Arc::new(Tap::new(host, "vlan"));
        let outer = Arc::new(Tap::new(site, trunk));
        site.ip(&format!(
            "link set {trunk} addrgenmode none\nlink set {trunk} master {bridge} up"
        ));
        host.ip("link set vlan up");
        let tag = [[0x81, 0x00], vid.to_be_bytes()].concat();
        let relays = vec![
            relay(&inner, &outer, {
                let tag = tag.clone();
                move |frame| Some([&frame[..12], &tag, &frame[12..]].concat())
            }),
            relay(&outer, &inner, move |frame| {
                let untagged = frame[12..].strip_prefix(&tag[..])?;
                Some([&frame[..12], untagged].concat())
            }),
        ];
        Self {
            taps: [inner, outer],
            relays,
        }
    }
}

/// A cable between two bridges, or two ports of one, that passes only some frames, such as a trunk with
/// one VLAN. Slower than any wire, so that a loop over it does not occupy the whole machine.
pub(crate) struct Patch {
    taps: [Arc<Tap>; 2],
    relays: Vec<JoinHandle<()>>,
}

impl Patch {
    /// Plugs it into the bridge of each place, as `name` and a digit.
    pub(crate) fn plug(
        places: [&Arc<Namespace>; 2],
        bridge: &str,
        name: &str,
        passes: impl Fn(&[u8]) -> bool + Clone + Send + 'static,
    ) -> Self {
        const PACE: Duration = Duration::from_micros(100);
        let ports = [format!("{name}1"), format!("{name}2")];
        let taps = [0, 1].map(|end| Arc::new(Tap::new(places[end], &ports[end])));
        let relays = [[0, 1], [1, 0]].map(|[from, to]| {
            let passes = passes.clone();
            relay(&taps[from], &taps[to], move |frame| {
                let passed = passes(frame).then(|| frame.to_vec());
                if passed.is_some() {
                    thread::sleep(PACE);
                }
                passed
            })
        });
        for (place, port) in places.into_iter().zip(&ports) {
            place.ip(&format!(
                "link set {port} addrgenmode none\nlink set {port} master {bridge} up"
            ));
        }
        Self {
            taps,
            relays: relays.into(),
        }
    }
}

impl Drop for Patch {
    fn drop(&mut self) {
        for tap in &self.taps {
            tap.remove();
        }
        for relay in self.relays.drain(..) {
            let _ = relay.join();
        }
    }
}

fn relay(
    from: &Arc<Tap>,
    to: &Arc<Tap>,
    change: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + 'static,
) -> JoinHandle<()> {
    let (from, to) = (Arc::clone(from), Arc::clone(to));
    thread::spawn(move || {
        let mut buffer = vec![0; FRAME_MAX];
        while let Some(len) = from.recv(&mut buffer) {
            if let Some(frame) = change(&buffer[..len]) {
                // Fails only when the other device is being removed.
                let _ = to.iface.send(&frame);
            }
        }
    })
}

impl Drop for VlanHost {
    fn drop(&mut self) {
        for tap in &self.taps {
            tap.remove();
        }
        for relay in self.relays.drain(..) {
            let _ = relay.join();
        }
    }
}
