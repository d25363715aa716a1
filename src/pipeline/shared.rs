// SPDX-License-Identifier: MIT OR Apache-2.0
//! State that the threads of one tunnel share: immutable tables, the lock-free switch, counters,
//! and the queues to the control thread. No lock is taken per frame.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, Cache};
use patchcord_bridge::{
    Decision, Headers, Inside, Kind, PortId, PortSet, Switch,
    fdb::Fdb,
    loops::Blocked,
    membership::{GroupEntry, GroupTable},
};
use tokio::sync::mpsc;

use super::{
    clock::SwitchClock,
    last_bulk::LastBulk,
    notices::{Control, Notices},
    port_names::PortNames,
    presence::Presence,
    slow_path::event::{INJECTED_PER_PORT, InjectedFrame, PUNTED_FRAMES, PuntedFrame, QUESTIONS},
    watchdog::Watchdog,
};
use crate::{
    io::waker::Waker,
    proto::{guard::Mac1Check, session::Tables},
    queue::{Mailbox, MailboxSender, mailbox},
    stats::{DropReason, Drops, Traffic},
    wire::{handshake::INITIATION_LEN, local::Local},
};

/// The source of a datagram, and the local address at which it arrived.
pub(super) type DatagramPath = (SocketAddr, Option<Local>);

/// Handshake messages that wait for the control thread. A flood fills this and nothing else.
pub(super) const HANDSHAKES: usize = 128;

/// A handshake message on its way to the control thread.
pub(super) struct Handshake {
    from: SocketAddr,
    local: Option<Local>,
    len: usize,
    bytes: [u8; INITIATION_LEN],
}

impl Handshake {
    /// `None` if it is longer than any handshake message.
    pub(super) fn new((from, local): DatagramPath, message: &[u8]) -> Option<Self> {
        let (mut bytes, len) = ([0; INITIATION_LEN], message.len());
        bytes.get_mut(..len)?.copy_from_slice(message);
        Some(Self {
            from,
            local,
            len,
            bytes,
        })
    }

    pub(super) fn from(&self) -> SocketAddr {
        self.from
    }

    /// The local address at which it arrived.
    pub(super) fn local(&self) -> Option<Local> {
        self.local
    }

    pub(super) fn message(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// A thread's view of the present tables: reading them is one atomic load unless they changed.
pub(super) struct TablesCache {
    cache: Cache<Arc<ArcSwap<Tables>>, Arc<Tables>>,
    /// The tables of the last [`take`](Self::take). All threads count references to the tables in
    /// one place, so none is made or dropped while the tables stay the same.
    returned: Option<Arc<Tables>>,
    have_changed: bool,
}

impl TablesCache {
    pub(super) fn present(&mut self) -> &Tables {
        self.cache.load()
    }

    /// The present tables, for the time of a batch: [give](Self::give_back) them back afterwards.
    pub(super) fn take(&mut self) -> Arc<Tables> {
        let present = self.cache.load();
        let returned = self.returned.take();
        let returned = returned.filter(|returned| Arc::ptr_eq(returned, present));
        self.have_changed = returned.is_none();
        returned.unwrap_or_else(|| present.clone())
    }

    /// Whether the tables that were taken last differ from those before them.
    pub(super) fn have_changed(&self) -> bool {
        self.have_changed
    }

    pub(super) fn give_back(&mut self, tables: Arc<Tables>) {
        self.returned = Some(tables);
    }
}

/// An idle data thread reloads the tables this often, so that the keys of a session that has ended
/// do not stay in its cache.
pub(super) const IDLE: Duration = Duration::from_secs(30);

/// Shared by all threads of a tunnel.
pub(super) struct Shared {
    pub(super) tables: Arc<ArcSwap<Tables>>,
    switch: Arc<ArcSwap<Switch>>,
    /// That of the switch.
    pub(super) fdb: Arc<Fdb>,
    /// Frames from the TAP go to the only peer, and the other way round, past the switch.
    pub(super) wire: bool,
    /// SYNs of TCP are altered, so that segments fit datagrams.
    pub(super) lowers_mss: bool,
    pub(super) clock: SwitchClock,
    pub(super) mac1: Mac1Check,
    max_frame: AtomicU32,
    /// Frames over the TAP.
    pub(super) tap: Traffic,
    /// Raises the priority of the data threads.
    pub(super) last_bulk: LastBulk,
    /// Wakes every data thread, for good.
    pub(super) stop: Waker,
    /// Names of the ports, for logs, and their ranks.
    pub(super) names: PortNames,
    /// Watches whether all threads and tasks make progress.
    pub(super) watchdog: Arc<Watchdog>,
    drops: Mutex<Vec<Arc<Drops>>>,
    /// Counted where the queue to the control thread or the slow path was full.
    unheard: Drops,
    /// One of the lost frames bound an address to a station.
    missed_binding: AtomicBool,
    /// The notices of data threads to the control thread.
    pub(super) notices: Notices,
    /// The source of a handshake message with a bad mac1 since the control thread last asked.
    bad_mac: Mutex<Option<SocketAddr>>,
    has_bad_mac: AtomicBool,
    to_control: ToControl,
    /// For the slow path.
    pub(super) presence: Presence,
    injected: MailboxSender<InjectedFrame, Waker>,
    groups: Arc<ArcSwap<GroupTable>>,
    slow_view: Mutex<SlowView>,
}

/// The state of the slow path, for `show`.
#[derive(Clone, Default)]
pub(super) struct SlowView {
    /// The ports that are blocked for loops.
    pub(super) loops: Vec<Blocked>,
    pub(super) groups: Vec<GroupEntry>,
}

/// A thread's view of the switch: reading it is one atomic load unless its ports changed.
pub(super) struct SwitchCache(Cache<Arc<ArcSwap<Switch>>, Arc<Switch>>);

impl SwitchCache {
    pub(super) fn present(&mut self) -> &Switch {
        self.0.load()
    }
}

/// A thread's view of the group table.
pub(super) struct GroupsCache(Cache<Arc<ArcSwap<GroupTable>>, Arc<GroupTable>>);

impl GroupsCache {
    /// The ports by which a flooded frame may leave, `None` for all. This node neither snoops in a
    /// customer's VLANs nor queries in a provider's.
    pub(super) fn egress(&mut self, inside: &Inside, headers: &Headers<'_>) -> Option<&PortSet> {
        let is_group = headers.dst().is_group();
        let table =
            (is_group && !inside.is_nested() && !inside.is_service()).then(|| self.0.load())?;
        table.egress(inside.vid, headers)
    }
}

/// The queues from the data threads to the control thread.
pub(super) struct ToControl {
    pub(super) handshakes: mpsc::Sender<Handshake>,
    pub(super) punted: mpsc::Sender<PuntedFrame>,
}

/// Frames that this node originates, on their way to the thread that sends them.
pub(super) type InjectedFrames = Mailbox<InjectedFrame, Waker>;

impl Shared {
    pub(super) fn new(
        switch: Switch,
        wire: bool,
        mac1: Mac1Check,
        max_frame: u32,
        to_control: ToControl,
    ) -> io::Result<(Self, InjectedFrames)> {
        let ports = switch.ports().count();
        let (room, peers) = (2 * QUESTIONS + INJECTED_PER_PORT * ports, ports - 1);
        let (injected_in, injected) = mailbox(room, Waker::new()?);
        let shared = Self {
            tables: Arc::default(),
            fdb: switch.shared_fdb(),
            switch: Arc::new(ArcSwap::from_pointee(switch)),
            wire,
            lowers_mss: false,
            clock: SwitchClock::start(),
            mac1,
            max_frame: max_frame.into(),
            tap: Traffic::default(),
            last_bulk: LastBulk::default(),
            stop: Waker::new()?,
            names: PortNames::default(),
            watchdog: Arc::default(),
            drops: Mutex::default(),
            unheard: Drops::default(),
            missed_binding: AtomicBool::new(false),
            presence: Presence::default(),
            notices: Notices::new(peers),
            bad_mac: Mutex::default(),
            has_bad_mac: AtomicBool::new(false),
            to_control,
            injected: injected_in,
            groups: Arc::default(),
            slow_view: Mutex::default(),
        };
        Ok((shared, injected))
    }

    /// The name of a port in logs.
    pub(super) fn port_name(&self, port: PortId) -> String {
        match port {
            PortId::TAP => "the device".to_owned(),
            _ => self.names.name(port),
        }
    }

    /// Bytes of the largest frame that goes to the TAP.
    pub(super) fn max_frame(&self) -> u32 {
        self.max_frame.load(Ordering::Relaxed)
    }

    /// From now on; frames of present sessions are reassembled up to the former size.
    pub(super) fn set_max_frame(&self, max_frame: u32) {
        self.max_frame.store(max_frame, Ordering::Relaxed);
    }

    /// Punts a frame, in two parts, to the slow path. True if the slow path handles it from now on;
    /// it misses the frame if it is behind.
    pub(super) fn punt(
        &self,
        ingress: PortId,
        decision: &Decision,
        front: &[u8],
        rest: &[u8],
    ) -> bool {
        let inside = &decision.inside;
        let is_foreign = match decision.kind {
            // In a customer VLAN, whose addresses and groups are not those of others.
            Kind::Neighbour | Kind::Binding => inside.is_nested(),
            // The same number with another kind of tag is not the same VLAN either.
            Kind::Membership => inside.is_nested() || inside.is_service(),
            Kind::Data | Kind::OwnProbe | Kind::Probe => false,
        };
        if is_foreign {
            return false;
        }
        let punted = &self.to_control.punted;
        // No station may crowd out, by what it sends, the probes that show a loop.
        let kept_free = match decision.kind {
            Kind::OwnProbe => 0,
            Kind::Probe => PUNTED_FRAMES / 8,
            Kind::Membership => PUNTED_FRAMES / 4,
            Kind::Neighbour | Kind::Binding | Kind::Data => PUNTED_FRAMES - QUESTIONS,
        };
        let is_group = front.first().is_some_and(|first| first & 1 == 1);
        // A frame that is held must be able to continue.
        let is_way_free = decision.kind != Kind::Neighbour || self.injected.waiting() < QUESTIONS;
        let place = punted.try_reserve().ok();
        let place = place.filter(|_| is_way_free && punted.capacity() >= kept_free);
        let Some(place) = place else {
            self.unheard.count(DropReason::SlowPathFull);
            if matches!(decision.kind, Kind::Neighbour | Kind::Binding) {
                self.missed_binding.store(true, Ordering::Relaxed);
            }
            return false;
        };
        place.send(PuntedFrame {
            kind: decision.kind,
            ingress,
            inside: decision.inside,
            frame: [front, rest].concat().into(),
        });
        // A request that may be answered here.
        decision.kind == Kind::Neighbour && is_group
    }

    /// Whether the slow path has missed a binding of an address since the last call.
    pub(super) fn take_missed_binding(&self) -> bool {
        self.missed_binding.swap(false, Ordering::Relaxed)
    }

    /// Sends a frame that this node originates to one or more peers.
    pub(super) fn inject(&self, frame: InjectedFrame) {
        if !self.injected.send(frame) {
            self.unheard.count(DropReason::SlowPathFull);
        }
    }

    pub(super) fn set_slow_view(&self, view: SlowView) {
        *self
            .slow_view
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = view;
    }

    pub(super) fn slow_view(&self) -> SlowView {
        let view = self.slow_view.lock();
        view.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_groups(&self, groups: GroupTable) {
        self.groups.store(Arc::new(groups));
    }

    /// The switch, for those who use it once in a while.
    pub(super) fn switch(&self) -> Arc<Switch> {
        self.switch.load_full()
    }

    /// The data threads use this one from their next frame on.
    pub(super) fn set_switch(&self, switch: Switch) {
        self.switch.store(Arc::new(switch));
    }

    pub(super) fn subscribe_switch(&self) -> SwitchCache {
        SwitchCache(Cache::new(self.switch.clone()))
    }

    pub(super) fn subscribe_groups(&self) -> GroupsCache {
        GroupsCache(Cache::new(self.groups.clone()))
    }

    pub(super) fn subscribe(&self) -> TablesCache {
        TablesCache {
            cache: Cache::new(self.tables.clone()),
            returned: None,
            have_changed: false,
        }
    }

    /// Counters for one thread's own use.
    pub(super) fn new_drops(&self) -> Arc<Drops> {
        let drops = Arc::new(Drops::default());
        self.drops
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(drops.clone());
        drops
    }

    /// The sum over all threads.
    pub(super) fn total_drops(&self) -> Vec<(DropReason, u64)> {
        let sum = Drops::default();
        let threads = self.drops.lock().unwrap_or_else(PoisonError::into_inner);
        for drops in threads.iter().map(Arc::as_ref).chain([&self.unheard]) {
            for (reason, count) in drops.nonzero() {
                sum.add(reason, count);
            }
        }
        sum.nonzero().collect()
    }

    /// Passes on a control datagram of a peer; the control thread misses it if the peer's room is
    /// full.
    pub(super) fn notify_control(&self, port: PortId, control: Control) {
        if !self.notices.push_control(port, control) {
            self.unheard.count(DropReason::ControlQueueFull);
        }
    }

    /// A handshake message with a bad mac1 arrived. Anyone can send them, so one is kept for the
    /// control thread, which asks once in a second.
    pub(super) fn note_bad_mac(&self, from: SocketAddr) {
        if !self.has_bad_mac.swap(true, Ordering::Relaxed)
            && let Ok(mut kept) = self.bad_mac.try_lock()
        {
            *kept = Some(from);
        }
    }

    /// The source of such a message since the last call.
    pub(super) fn take_bad_mac(&self) -> Option<SocketAddr> {
        let mut kept = self.bad_mac.lock().unwrap_or_else(PoisonError::into_inner);
        self.has_bad_mac.store(false, Ordering::Relaxed);
        kept.take()
    }

    /// Passes on a handshake message.
    pub(super) fn notify_handshake(
        &self,
        from: DatagramPath,
        datagram: &[u8],
    ) -> Result<(), DropReason> {
        let handshake = Handshake::new(from, datagram).ok_or(DropReason::Truncated)?;
        self.to_control
            .handshakes
            .try_send(handshake)
            .map_err(|_| DropReason::ControlQueueFull)
    }
}

#[cfg(test)]
impl Shared {
    /// For one thread under test, with a device, one peer and no receiver of events.
    pub(super) fn alone() -> Arc<Self> {
        use crate::crypto::keys::PrivateKey;

        let to_control = ToControl {
            handshakes: mpsc::channel(1).0,
            punted: mpsc::channel(1).0,
        };
        let mac1 = Mac1Check::new(&PrivateKey::generate().public_key());
        let config = patchcord_bridge::SwitchConfig::with_ports(2);
        let switch = Switch::new(config, [0; 2]);
        let (shared, _) = Self::new(switch, false, mac1, 1522, to_control).unwrap();
        Arc::new(shared)
    }
}

#[cfg(test)]
mod tests {
    use patchcord_bridge::{Egress, Now, PortConfig, SwitchConfig};

    use super::*;
    use crate::{crypto::keys::PrivateKey, pipeline::slow_path::event::To};

    const PEERS: usize = 32;
    const QUESTION: &[u8] = &[0xff; 60];

    struct Bench {
        shared: Shared,
        punted: mpsc::Receiver<PuntedFrame>,
        _injected: InjectedFrames,
    }

    fn bench() -> Bench {
        let port = PortConfig {
            neighbour_suppression: true,
            multicast_snooping: true,
            ..PortConfig::default()
        };
        let switch = SwitchConfig {
            ports: vec![port; 1 + PEERS],
            ..SwitchConfig::default()
        };
        let (punted_in, punted) = mpsc::channel(PUNTED_FRAMES);
        let to_control = ToControl {
            handshakes: mpsc::channel(1).0,
            punted: punted_in,
        };
        let switch = Switch::new(switch, [0; 2]);
        let mac1 = Mac1Check::new(&PrivateKey::generate().public_key());
        let (shared, injected) = Shared::new(switch, false, mac1, 1522, to_control).unwrap();
        Bench {
            shared,
            punted,
            _injected: injected,
        }
    }

    fn decision(kind: Kind) -> Decision {
        Decision {
            egress: Egress::Flood,
            inside: Inside::untagged(patchcord_bridge::Vid::UNTAGGED),
            kind,
        }
    }

    fn unheard(shared: &Shared) -> u64 {
        shared.unheard.total(DropReason::SlowPathFull)
    }

    #[test]
    fn a_batch_refers_to_the_present_tables_and_no_longer_to_former_ones() {
        let Bench { shared, .. } = bench();
        let mut tables = shared.subscribe();
        for _ in 0..3 {
            let present = Arc::new(Tables::default());
            shared.tables.store(present.clone());
            let references: Vec<_> = (0..3)
                .map(|_| {
                    let taken = tables.take();
                    assert!(Arc::ptr_eq(&taken, &present));
                    tables.give_back(taken);
                    Arc::strong_count(&present)
                })
                .collect();
            // Ours, that of all threads, that of the cache, and the one for the next batch.
            assert_eq!(references, [4; 3]);
            shared.tables.store(Arc::default());
            let taken = tables.take();
            assert_eq!(Arc::strong_count(&present), 1, "its keys are gone");
            tables.give_back(taken);
        }
    }

    #[test]
    fn frames_of_stations_do_not_keep_probes_out() {
        let Bench { shared, punted, .. } = bench();
        for (kind, others) in [
            (Kind::Binding, 0),
            (Kind::Neighbour, QUESTIONS),
            (Kind::Membership, QUESTIONS),
            (Kind::Probe, PUNTED_FRAMES * 3 / 4),
            (Kind::OwnProbe, PUNTED_FRAMES * 7 / 8),
        ] {
            assert_eq!(punted.len(), others, "{kind:?}");
            for _ in 0..2 * PUNTED_FRAMES {
                shared.punt(PortId::TAP, &decision(kind), QUESTION, &[]);
            }
        }
        assert_eq!(punted.len(), PUNTED_FRAMES);
    }

    #[test]
    fn a_word_of_an_address_that_is_not_heard_is_known_to_be_missing() {
        let mut bench = bench();
        for (kind, is_missed) in [
            (Kind::Binding, true),
            (Kind::Neighbour, true),
            (Kind::Membership, false),
            (Kind::Probe, false),
        ] {
            while bench.punted.try_recv().is_ok() {}
            bench
                .shared
                .punt(PortId::TAP, &decision(kind), QUESTION, &[]);
            assert!(!bench.shared.take_missed_binding(), "{kind:?}");
            for _ in 0..PUNTED_FRAMES {
                let is_held = bench
                    .shared
                    .punt(PortId::TAP, &decision(kind), QUESTION, &[]);
                assert!(!is_held || kind == Kind::Neighbour, "{kind:?}");
            }
            assert_eq!(bench.shared.take_missed_binding(), is_missed, "{kind:?}");
            assert!(!bench.shared.take_missed_binding(), "told once");
        }
    }

    #[test]
    fn a_question_that_is_held_finds_its_way_on() {
        let mut bench = bench();
        let shared = &bench.shared;
        let mut held = 0;
        for _ in 0..1000 {
            let question = decision(Kind::Neighbour);
            held += usize::from(shared.punt(PortId::TAP, &question, QUESTION, &[]));
            // The control thread is quick, and the thread that sends is not.
            if held % 100 == 0 {
                while bench.punted.try_recv().is_ok() {
                    flood(shared);
                }
            }
        }
        let refused = unheard(shared);
        assert_eq!(held as u64 + refused, 1000, "the others go on at once");
        while bench.punted.try_recv().is_ok() {
            flood(shared);
        }
        for port in 1..=PEERS as u16 {
            for _ in 0..INJECTED_PER_PORT {
                let to = To::Peer(PortId(port));
                shared.inject(frame(to));
            }
        }
        assert_eq!(unheard(shared), refused, "nothing is lost");
    }

    fn flood(shared: &Shared) {
        shared.inject(frame(To::Peers(Some(PortId::TAP))));
    }

    fn frame(to: To) -> InjectedFrame {
        let inside = decision(Kind::Data).inside;
        let frame = QUESTION.into();
        InjectedFrame { to, inside, frame }
    }

    #[test]
    fn messages_in_customer_vlans_are_ignored() {
        let Bench { shared, punted, .. } = bench();
        let arp = [0x08, 6, 0, 1, 8, 0, 6, 4, 0, 1];
        for (tags, is_shown) in [
            (&[][..], true),
            (&[0x81, 0, 0, 7], true),
            (&[0x88, 0xa8, 0, 9, 0x81, 0, 0, 7], false),
            (&[0x81, 0, 0, 0, 0x81, 0, 0, 7], false),
        ] {
            let before = punted.len();
            let frame = [&[0xff; 6], &[2; 6], tags, &arp, &[0; 40]].concat();
            let decision = shared
                .switch()
                .forward_frame(PortId::TAP, &frame, 1, Now::default())
                .unwrap();
            assert_eq!(decision.kind, Kind::Neighbour);
            let is_held = shared.punt(PortId::TAP, &decision, &frame, &[]);
            assert_eq!(is_held, is_shown, "{tags:x?}");
            assert_eq!(punted.len() - before, usize::from(is_shown));
        }
        assert_eq!(unheard(&shared), 0);
    }
    #[test]
    fn groups_of_a_providers_vlan_are_not_those_of_the_same_number() {
        use patchcord_bridge::{
            MacAddr, Vid,
            membership::{Querier, Snooping, SnoopingConfig},
        };

        let Bench { shared, punted, .. } = bench();
        let querier = Querier {
            mac: MacAddr([2; 6]),
            ipv4: [0; 4].into(),
            ipv6: [0; 16].into(),
            vlans: vec![Vid::new(7).unwrap()],
            interval_s: 125,
        };
        let config = SnoopingConfig {
            querier: Some(querier),
            ..SnoopingConfig::default()
        };
        let mut snooping = Snooping::new(config, 0);
        let query = snooping.poll(0).remove(0).frame;
        snooping.poll(30);
        shared.set_groups(snooping.table());
        let mut groups = shared.subscribe_groups();
        for (tags, is_ours) in [
            (&[0x81, 0, 0, 7][..], true),
            (&[0x88, 0xa8, 0, 7], false),
            (&[0x81, 0, 0, 7, 0x81, 0, 0, 9], false),
        ] {
            let before = punted.len();
            let query = [&query[..12], tags, &query[16..]].concat();
            let decision = shared
                .switch()
                .forward_frame(PortId::TAP, &query, 1, Now::default())
                .unwrap();
            shared.punt(PortId::TAP, &decision, &query, &[]);
            assert_eq!(punted.len() - before, usize::from(is_ours), "{tags:x?}");

            let mut data = query;
            data[3..6].copy_from_slice(&[1, 2, 3]);
            let behind = 12 + tags.len() + 2;
            data[behind..behind + 20].copy_from_slice(&[
                0x45, 0, 0, 24, 0, 0, 0, 0, 8, 17, 0, 0, 10, 0, 0, 1, 239, 1, 2, 3,
            ]);
            let egress = groups.egress(&decision.inside, &Headers::parse(&data).unwrap());
            assert_eq!(egress.is_some(), is_ours, "{tags:x?}");
        }
    }
}
