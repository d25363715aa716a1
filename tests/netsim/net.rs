// SPDX-License-Identifier: MIT OR Apache-2.0
//! The underlay: moves datagrams between hosts, and the clock.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant, SystemTime},
};

use patchcord::{
    internals::{
        proto::node::{Event, PeerView},
        stats::DropReason,
        wire::MessageType,
    },
    keys::PrivateKey,
};
use patchcord_bridge::PortId;

use crate::host::{Host, Setup, peer_settings};

pub(crate) const A: usize = 0;
pub(crate) const B: usize = 1;
pub(crate) const C: usize = 2;
/// The first peer of a host.
pub(crate) const FIRST: PortId = PortId(1);

const DICE: u64 = 0x9e37_79b9_7f4a_7c15;

pub(crate) const fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub(crate) const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A datagram on its way.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) bytes: Vec<u8>,
}

impl Sent {
    /// With IP and UDP headers.
    pub(crate) fn packet_len(&self) -> usize {
        self.bytes.len() + if self.to.is_ipv6() { 48 } else { 28 }
    }

    pub(crate) fn is(&self, message_type: MessageType) -> bool {
        MessageType::of(&self.bytes) == Ok(message_type)
    }

    pub(crate) fn is_handshake(&self) -> bool {
        !self.is(MessageType::Frame) && !self.is(MessageType::Chunks)
    }
}

/// How the underlay treats datagrams.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    pub(crate) latency: Duration,
    /// Up to this much is added to the latency of each datagram: reordering.
    pub(crate) jitter: Duration,
    pub(crate) loss_percent: u64,
    /// For handshake messages only.
    pub(crate) handshake_loss_percent: u64,
    pub(crate) duplicate_percent: u64,
    /// Larger IP packets are lost.
    pub(crate) mtu: u16,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            latency: millis(10),
            jitter: Duration::ZERO,
            loss_percent: 0,
            handshake_loss_percent: 0,
            duplicate_percent: 0,
            mtu: 1500,
        }
    }
}

/// False: the datagram is lost.
type Filter = Box<dyn FnMut(&Sent) -> bool>;

pub(crate) struct Net {
    pub(crate) link: Link,
    pub(crate) hosts: Vec<Host>,
    pub(crate) setups: Vec<Setup>,
    /// All datagrams, while they are recorded.
    pub(crate) recorded: Vec<Sent>,
    pub(crate) records: bool,
    filter: Filter,
    keys: Vec<String>,
    began: Instant,
    elapsed: Duration,
    /// How far the wall clocks were set back.
    behind: Duration,
    /// By arrival; the number keeps simultaneous datagrams in order.
    flying: BTreeMap<(Duration, u64), Sent>,
    launched: u64,
    dice: u64,
}

impl Net {
    /// Hosts that were not started yet.
    pub(crate) fn new(setups: Vec<Setup>) -> Self {
        let now = Instant::now();
        let keys: Vec<_> = setups
            .iter()
            .map(|_| PrivateKey::generate().to_base64().to_string())
            .collect();
        let hosts = (0..setups.len())
            .map(|at| Host::new(&keys[at], address(at), &setups[at], Vec::new(), now))
            .collect();
        Self {
            link: Link::default(),
            hosts,
            setups,
            recorded: Vec::new(),
            records: false,
            filter: Box::new(|_| true),
            keys,
            began: now,
            elapsed: Duration::ZERO,
            behind: Duration::ZERO,
            flying: BTreeMap::new(),
            launched: 0,
            dice: DICE,
        }
    }

    /// A calls B; B waits.
    pub(crate) fn pair() -> Self {
        Self::pair_with(Setup::default(), Setup::default())
    }

    /// As [`Self::pair`], with these settings.
    pub(crate) fn pair_with(a: Setup, b: Setup) -> Self {
        let a = Setup {
            peers: vec![(B, true)],
            ..a
        };
        let b = Setup {
            peers: vec![(A, false)],
            ..b
        };
        Self::new(vec![a, b])
    }

    /// A pair that has connected.
    pub(crate) fn connected() -> Self {
        let mut net = Self::pair();
        net.start_all();
        net.run_for(secs(3));
        assert!(net.is_up(A) && net.is_up(B));
        net
    }

    pub(crate) fn start_all(&mut self) {
        for at in 0..self.hosts.len() {
            self.start(at);
        }
    }

    /// Starts a host; if it was running, its state is lost.
    pub(crate) fn start(&mut self, at: usize) {
        let setup = &self.setups[at];
        let peers = setup.peers.iter().map(|&(peer, knows_address)| {
            let endpoint = knows_address.then(|| self.hosts[peer].address);
            peer_settings(setup, &self.keys[peer], endpoint)
        });
        let address = self.hosts[at].address;
        let host = Host::new(&self.keys[at], address, setup, peers.collect(), self.now());
        self.hosts[at] = host;
        self.pump(at);
    }

    pub(crate) fn now(&self) -> Instant {
        self.began + self.elapsed
    }

    pub(crate) fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + secs(1_800_000_000) + self.elapsed - self.behind
    }

    pub(crate) fn set_wall_back(&mut self, by: Duration) {
        self.behind += by;
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.elapsed
    }

    pub(crate) fn view(&self, at: usize) -> PeerView {
        self.hosts[at].view(FIRST.0, self.now())
    }

    pub(crate) fn is_up(&self, at: usize) -> bool {
        self.view(at).is_up
    }

    /// Drops datagrams that `passes` refuses.
    pub(crate) fn filter(&mut self, passes: impl FnMut(&Sent) -> bool + 'static) {
        self.filter = Box::new(passes);
    }

    pub(crate) fn heal(&mut self) {
        self.filter(|_| true);
    }

    /// Sends a frame to the first peer; the host counts it if it cannot be sent.
    pub(crate) fn send(&mut self, at: usize, frame: &[u8]) -> Result<(), DropReason> {
        self.send_to(at, FIRST, frame)
    }

    pub(crate) fn send_to(
        &mut self,
        at: usize,
        port: PortId,
        frame: &[u8],
    ) -> Result<(), DropReason> {
        let now = self.now();
        let sent = self.hosts[at].send(now, port, frame)?;
        self.launch(sent);
        self.pump(at);
        Ok(())
    }

    /// Puts a datagram on the underlay, from any sender.
    pub(crate) fn inject(&mut self, sent: Sent) {
        let arrival = self.elapsed + self.link.latency;
        self.fly(arrival, sent);
    }

    /// Frames that a host received, taken out.
    pub(crate) fn take_received(&mut self, at: usize) -> Vec<Vec<u8>> {
        let received = std::mem::take(&mut self.hosts[at].received);
        received.into_iter().map(|(_, frame)| frame).collect()
    }

    pub(crate) fn take_events(&mut self, at: usize) -> Vec<Event> {
        std::mem::take(&mut self.hosts[at].events)
    }

    /// Runs an action of a host, and sends its output.
    pub(crate) fn act(&mut self, at: usize, action: impl FnOnce(&mut Host, Instant)) {
        let now = self.now();
        action(&mut self.hosts[at], now);
        self.pump(at);
    }

    pub(crate) fn run_for(&mut self, duration: Duration) {
        self.run_until(duration, |_| false);
    }

    /// Runs until `done`, at most for `limit`. True if it is done.
    pub(crate) fn run_until(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) -> bool {
        let end = self.elapsed + limit;
        let mut steps_at_once = 0;
        loop {
            if done(self) {
                return true;
            }
            let next = self.next_moment();
            if next.is_none_or(|next| next > end) {
                self.elapsed = end;
                return done(self);
            }
            let next = next.unwrap_or(end).max(self.elapsed);
            steps_at_once = if next == self.elapsed {
                steps_at_once + 1
            } else {
                0
            };
            assert!(
                steps_at_once < 10_000,
                "the clock stands still: a timer is due again and again"
            );
            self.elapsed = next;
            self.step();
        }
    }

    fn next_moment(&self) -> Option<Duration> {
        let timers = self
            .hosts
            .iter()
            .filter(|host| !host.is_stalled)
            .filter_map(|host| host.node.poll_timeout());
        let timers = timers.map(|due| due.saturating_duration_since(self.began));
        let arrival = self.flying.keys().next().map(|&(arrival, _)| arrival);
        timers.chain(arrival).min()
    }

    /// One arrival, else every timer that is due.
    fn step(&mut self) {
        let (now, wall) = (self.now(), self.wall());
        let due = self
            .flying
            .first_entry()
            .filter(|entry| entry.key().0 <= self.elapsed);
        if let Some(entry) = due {
            let sent = entry.remove();
            let to = self.hosts.iter().position(|host| host.address == sent.to);
            if let Some(at) = to {
                self.hosts[at].handle_datagram(now, sent.from, sent.bytes);
                self.pump(at);
            }
            return;
        }
        for at in 0..self.hosts.len() {
            if self.hosts[at].is_stalled {
                continue;
            }
            let due = self.hosts[at].node.poll_timeout();
            if due.is_some_and(|due| due <= now) {
                self.hosts[at].node.handle_timeout(now, wall);
                self.pump(at);
            }
        }
    }

    fn pump(&mut self, at: usize) {
        let now = self.now();
        let sent = self.hosts[at].pump(now);
        self.launch(sent);
    }

    fn launch(&mut self, all: Vec<Sent>) {
        for sent in all {
            if self.records {
                self.recorded.push(sent.clone());
            }
            let lost = self.roll(self.link.loss_percent)
                || sent.is_handshake() && self.roll(self.link.handshake_loss_percent)
                || sent.packet_len() > usize::from(self.link.mtu);
            if lost || !(self.filter)(&sent) {
                continue;
            }
            if self.roll(self.link.duplicate_percent) {
                let arrival = self.arrival();
                self.fly(arrival, sent.clone());
            }
            let arrival = self.arrival();
            self.fly(arrival, sent);
        }
    }

    fn arrival(&mut self) -> Duration {
        let jitter = self.link.jitter.as_micros() as u64;
        let jitter = Duration::from_micros(self.random() % (jitter + 1));
        self.elapsed + self.link.latency + jitter
    }

    fn fly(&mut self, arrival: Duration, sent: Sent) {
        self.launched += 1;
        self.flying.insert((arrival, self.launched), sent);
    }

    fn roll(&mut self, percent: u64) -> bool {
        percent > 0 && self.random() % 100 < percent
    }

    /// Restarts the dice: from here on, every run throws the same.
    pub(crate) fn reset_dice(&mut self) {
        self.dice = DICE;
    }

    /// xorshift64 (Marsaglia).
    pub(crate) fn random(&mut self) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice
    }
}

pub(crate) fn address(at: usize) -> SocketAddr {
    let [.., high, low] = (1 + at).to_be_bytes();
    SocketAddr::from(([192, 0, 2 + high, low], 51830))
}

/// A frame with a number.
pub(crate) fn frame(number: u64, len: usize) -> Vec<u8> {
    let mut frame = vec![number as u8; len.max(8)];
    frame[..8].copy_from_slice(&number.to_be_bytes());
    frame
}

/// The numbers of frames.
pub(crate) fn numbers(frames: &[Vec<u8>]) -> Vec<u64> {
    frames
        .iter()
        .map(|frame| {
            let (number, _) = frame.split_first_chunk().unwrap();
            u64::from_be_bytes(*number)
        })
        .collect()
}
