// SPDX-License-Identifier: MIT OR Apache-2.0
//! Drives [`Node`] on the control thread: notices and timers in, tables and datagrams out.
//!
//! The task carries out an event before it sends the datagrams that follow: when the peer uses a
//! new session, the data threads know it already.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use patchcord_bridge::PortId;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::MissedTickBehavior,
};
use tracing::{debug, info, warn};

use super::{
    clock::{now, wall},
    fdb_admin::Addresses,
    meter::{self, Meter},
    notices::{Control, Notice},
    reply_sources::ReplySources,
    reports::{self, Reports},
    shared::{DatagramPath, Handshake, Shared},
    underlay::{Change, Underlay},
    view::{EngineEvent, EngineView, PortView},
};
use crate::{
    control::message::{Answered, FdbRequest},
    io::{
        icmp::{Icmp, Undelivered, Why},
        udp::{SendError, SendFailure, SessionFilter, UdpSocket},
    },
    machine::resolver,
    proto::{
        limits::FRAME_OVERHEAD,
        node::{Event, Node, Refused, Transmit},
        trouble::{NameError, Unreachable},
    },
    stats::{DropReason, Drops},
    tripwire,
};

/// How long a name lookup may take before the log says so, and how soon a failed one is tried
/// again.
const RESOLVE_PATIENCE: Duration = Duration::from_secs(5);
const RESOLVE_RETRY: Duration = Duration::from_secs(2);

/// From the engine's owner.
pub(super) enum Command {
    View(oneshot::Sender<EngineView>),
    Fdb(FdbRequest, oneshot::Sender<Answered>),
    NetworkChanged,
    Close(oneshot::Sender<()>),
}

/// A peer's name in `show` and logs, and the host to look up.
type Label = (String, Option<String>);

pub(super) struct ControlTask {
    node: Node,
    labels: Vec<Label>,
    shared: Arc<Shared>,
    drops: Arc<Drops>,
    socket: UdpSocket,
    /// Decides whose data gets to the lanes' sockets.
    filter: Option<SessionFilter>,
    events: mpsc::Sender<EngineEvent>,
    underlay: Underlay,
    reply_sources: ReplySources,
    /// The peer whose notice is next.
    turn: usize,
    /// The state that the owner was last told.
    was_reachable: bool,
    lookups: JoinSet<(PortId, Result<SocketAddr, NameError>)>,
    /// Peers whose name is being looked up, or will be again, and since when.
    looking_up: HashMap<PortId, Instant>,
    /// How many addresses of each peer's name were tried, in the order of their ports: each lookup
    /// takes the next one, as the one before may be dead.
    turns: Vec<usize>,
    /// One for each peer, in the order of their ports.
    meters: Vec<Meter>,
    reports: Reports,
    /// The summary that the owner was last told.
    summary: String,
    icmp: Icmp,
}

impl ControlTask {
    pub(super) fn new(
        node: Node,
        labels: Vec<Label>,
        shared: Arc<Shared>,
        (socket, filter): (UdpSocket, Option<SessionFilter>),
        events: mpsc::Sender<EngineEvent>,
    ) -> Self {
        let meters = labels.iter().map(|_| Meter::new(now())).collect();
        let icmp = Icmp::open(socket.local_addr().map_or(0, |address| address.port()));
        Self {
            node,
            turns: vec![0; labels.len()],
            labels,
            drops: shared.new_drops(),
            shared,
            socket,
            filter,
            underlay: Underlay::start(events.clone()),
            events,
            reply_sources: ReplySources::new(now()),
            turn: 0,
            was_reachable: false,
            lookups: JoinSet::new(),
            looking_up: HashMap::new(),
            meters,
            reports: Reports::default(),
            summary: String::new(),
            icmp,
        }
    }

    pub(super) async fn run(
        mut self,
        mut handshakes: mpsc::Receiver<Handshake>,
        mut commands: mpsc::Receiver<Command>,
    ) {
        for place in 0..self.labels.len() {
            self.look_up(PortId(place as u16 + 1), Duration::ZERO);
        }
        let mut meter_tick = tokio::time::interval(meter::INTERVAL);
        meter_tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let heartbeat = self.shared.watchdog.heartbeat("control");
        loop {
            heartbeat.work();
            self.pump();
            let due = self.node.poll_timeout();
            tokio::select! {
                // Work that arrives at its own pace goes before work that a peer can send without
                // end, and that before work that anyone can send.
                biased;
                () = sleep_until(due) => self.node.handle_timeout(now(), wall()),
                Some(command) = commands.recv() => self.handle_command(command),
                Some(found) = self.lookups.join_next() => self.handle_lookup(found),
                _ = meter_tick.tick() => self.handle_tick(),
                changes = self.underlay.concerned() => self.handle_underlay_changes(&changes),
                notice = self.shared.notices.next(&mut self.turn) => {
                    self.handle_notice(notice);
                    // Peers that send without end must not keep out one that initiates a handshake
                    // either.
                    if let Ok(handshake) = handshakes.try_recv() {
                        self.handle_handshake(&handshake);
                    }
                }
                Some(handshake) = handshakes.recv() => self.handle_handshake(&handshake),
                undelivered = self.icmp.next() => self.handle_undelivered(undelivered),
            }
        }
    }

    fn handle_notice(&mut self, notice: Notice) {
        let now = now();
        match notice {
            Notice::Control(Control {
                from,
                local,
                receiver,
                newest,
                bytes,
            }) => {
                let handled = self
                    .node
                    .handle_control(now, from, receiver, newest, &bytes);
                handled.unwrap_or_else(|reason| self.drops.count(reason));
                if newest && handled.is_ok() {
                    self.note_reply_source(now, (from, local));
                }
            }
            Notice::Roamed { receiver, from } => self.node.handle_roamed(now, receiver, from),
            Notice::TooBig { port } => self.node.handle_too_big(now, port),
            Notice::LocalLost { port } => self.forget_reply_source(port),
        }
    }

    fn handle_handshake(&mut self, handshake: &Handshake) {
        let (from, message) = (handshake.from(), handshake.message());
        self.reply_sources
            .begin_answer(now(), from, handshake.local());
        if let Err(reason) = self.node.handle_handshake(now(), from, message) {
            self.drops.count(reason);
        }
        self.pump();
        self.reply_sources.end_answer();
    }

    /// A peer was heard by a control datagram, which is authentic.
    fn note_reply_source(&mut self, now: Instant, (from, local): DatagramPath) {
        if !self.reply_sources.has(from, local)
            && self.node.endpoints().any(|(_, at)| at == from)
            && self.reply_sources.handle_heard(now, from, local)
        {
            self.publish_tables();
        }
    }

    /// Until the peer is heard again.
    fn forget_reply_source(&mut self, port: PortId) {
        if let Some(endpoint) = self.node.endpoint(port)
            && self.reply_sources.forget(endpoint)
        {
            self.publish_tables();
        }
    }

    fn handle_undelivered(&mut self, undelivered: Undelivered) {
        let Undelivered { to, why, by } = undelivered;
        let why = match why {
            Why::Network => Unreachable::NoRoute,
            Why::Host => Unreachable::NoHost,
            Why::Port => Unreachable::PortClosed,
            Why::Prohibited => Unreachable::Forbidden,
        };
        self.node.handle_unreachable(now(), to, why, by);
    }

    fn handle_command(&mut self, command: Command) {
        match command {
            // Fails if the client has disconnected, which is no fault.
            Command::View(reply) => {
                let _ = reply.send(self.view());
            }
            Command::Fdb(request, reply) => {
                let _ = reply.send(self.addresses().answer(&request));
            }
            Command::NetworkChanged => self.underlay.handle_change(),
            Command::Close(done) => {
                self.node.close();
                self.pump();
                let _ = done.send(());
            }
        }
    }

    fn handle_underlay_changes(&mut self, changes: &[(PortId, Change)]) {
        for &(port, change) in changes {
            match change {
                Change::Route => {
                    self.forget_reply_source(port);
                    self.node.handle_route_change(now(), port);
                }
                Change::LinkMtu => self.node.handle_link_mtu_change(now(), port),
            }
        }
    }

    /// Carries out what the node asks for.
    fn pump(&mut self) {
        let mut tables_changed = false;
        while let Some(event) = self.node.poll_event() {
            match event {
                Event::TablesChanged => tables_changed = true,
                Event::TrainsArrive(port) => {
                    info!(
                        peer = self.name(port),
                        "trains of datagrams arrive at the peer again"
                    );
                }
                Event::PeerUp(port) => {
                    self.log_up(port);
                    self.shared.presence.peer_up(port);
                }
                Event::PeerDown(port) => {
                    info!(peer = self.name(port), "peer is down");
                    self.forget_reply_source(port);
                    self.shared.switch.relearn_behind(port);
                    self.shared.presence.peer_down(port);
                }
                Event::PeerFlaps(port) => {
                    let name = name(&self.labels, port);
                    self.reports.flaps(port, name, now());
                }
                Event::PeerMoved { port, from, to } => {
                    let name = name(&self.labels, port);
                    self.reports.moved(port, name, (from, to), now());
                }
                Event::Trouble(port) => self.log_trouble(port),
                Event::Refused(refused) => self.log_refusal(&refused),
                Event::Resolve(port) => self.look_up(port, Duration::ZERO),
            }
        }
        if tables_changed {
            self.publish_tables();
            let endpoints = self.node.endpoints().collect();
            self.underlay.set_endpoints(endpoints);
        }
        self.send_all();
        self.report_reachability();
    }

    fn publish_tables(&mut self) {
        let mut tables = self.node.tables();
        if self.reply_sources.has_any() {
            let endpoints = tables.routes.iter().filter_map(|route| route.endpoint);
            self.reply_sources.retain(&endpoints.collect());
            for route in &mut tables.routes {
                route.local = route.endpoint.and_then(|to| self.reply_sources.kept(to));
            }
        }
        let tables = Arc::new(tables);
        self.shared.tables.store(tables.clone());
        if let Some(filter) = &mut self.filter {
            filter.admit(tables.sessions.keys().map(|index| index.value()));
        }
    }

    fn send_all(&mut self) {
        while let Some(mut transmit) = self.node.poll_transmit() {
            let len = transmit.datagram.len();
            let joins_next = transmit.joins_next;
            if let Some(next) = joins_next.then(|| self.node.poll_transmit()).flatten() {
                if (next.to, next.datagram.len()) == (transmit.to, len) {
                    transmit.datagram.extend(next.datagram);
                } else {
                    self.send(&next, next.datagram.len());
                }
            }
            self.send(&transmit, len);
        }
    }

    /// Sends a datagram, or a train of datagrams of this length.
    fn send(&mut self, transmit: &Transmit, len: usize) {
        // A probe that is too big is an answer in itself; a lost datagram is sent again in time.
        let local = self.reply_sources.to(transmit.to);
        let sent = self
            .socket
            .send_train_from(local, transmit.to, &transmit.datagram, len);
        let Err(SendFailure { error, .. }) = sent else {
            return;
        };
        if let SendError::TooBig { .. } = error {
            // The error for a train says nothing about the size that was probed.
            if transmit.datagram.len() == len {
                self.node.handle_refused(now(), transmit);
            }
        } else {
            debug!(to = %transmit.to, %error, "control datagram not sent");
            if let Some(why) = reports::unreachable(&error) {
                self.node.handle_unreachable(now(), transmit.to, why, None);
            }
        }
    }

    /// Again with the next tick at the latest if the owner is behind: the carrier depends on it.
    fn report_reachability(&mut self) {
        let is_reachable = self.node.is_any_up();
        if is_reachable == self.was_reachable {
            return;
        }
        let event = match is_reachable {
            true => EngineEvent::Reachable,
            false => EngineEvent::Unreachable,
        };
        match self.events.try_send(event) {
            Ok(()) => self.was_reachable = is_reachable,
            Err(_) => debug!(
                "the event queue of the engine is full; the change of reachability is reported with the next tick"
            ),
        }
    }

    // Names.

    /// Looks the peer's name up, and again until it resolves. One lookup at a time is enough:
    /// failed attempts ask for one every few seconds, in an outage for hours.
    fn look_up(&mut self, port: PortId, delay: Duration) {
        let place = usize::from(port.0) - 1;
        let Some((_, Some(host))) = self.labels.get(place) else {
            return;
        };
        if self.looking_up.contains_key(&port) {
            return;
        }
        self.looking_up.insert(port, now() + delay);
        let (host, turn) = (host.clone(), self.turns[place]);
        self.lookups.spawn(async move {
            tokio::time::sleep(delay).await;
            // For as long as it takes: with a dead name server before one that works, longer than a
            // user would wait.
            let found = match resolver::look_up(&host).await {
                Ok(all) => {
                    let address = all.get(turn % all.len().max(1)).copied();
                    address.ok_or(NameError::NotFound)
                }
                Err(error) => Err(name_error(&error)),
            };
            (port, found)
        });
    }

    fn handle_lookup(
        &mut self,
        found: Result<(PortId, Result<SocketAddr, NameError>), tokio::task::JoinError>,
    ) {
        match &found {
            Ok((port, _)) => drop(self.looking_up.remove(port)),
            // A task that panicked does not say which peer it was for.
            Err(_) => self.looking_up.clear(),
        }
        match found {
            Ok((port, Ok(address))) => {
                self.turns[usize::from(port.0) - 1] += 1;
                self.node.handle_resolved(now(), port, address);
            }
            Ok((port, Err(error))) => {
                self.node.handle_unresolved(now(), port, error);
                self.look_up(port, RESOLVE_RETRY);
            }
            Err(error) => warn!(%error, "looking up a name failed"),
        }
    }

    // The name in `show` and in the log.

    fn name(&self, port: PortId) -> &str {
        name(&self.labels, port)
    }

    /// Once per second.
    fn handle_tick(&mut self) {
        tripwire::task("control");
        let now = now();
        self.shared.notices.report_late_moves();
        // The data threads only count these; the log must explain them.
        if let Some(from) = self.shared.take_bad_mac() {
            self.log_refusal(&Refused {
                reason: DropReason::BadMac,
                from,
                key: None,
                port: None,
            });
        }
        self.note_late_names(now);
        let views = self.node.views(now);
        for (meter, view) in self.meters.iter_mut().zip(&views) {
            meter.read(now, &view.traffic);
        }
        let names = self.labels.iter().map(|(name, _)| name.as_str());
        let summary = reports::summary(&names.zip(&views).collect::<Vec<_>>());
        if summary != self.summary {
            // Reported with the next tick if the owner is behind.
            let event = EngineEvent::Summary(summary.clone());
            if self.events.try_send(event).is_ok() {
                self.summary = summary;
            }
        }
    }

    fn log_up(&self, port: PortId) {
        let views = self.node.views(now());
        let Some(view) = views.get(usize::from(port.0) - 1) else {
            return;
        };
        let cipher = view.cipher.map_or("none", |cipher| cipher.name());
        info!(peer = self.name(port), cipher, "peer is up");
        if view.max_frame != 0 && u32::from(view.max_frame) < self.shared.max_frame {
            warn!(
                peer = self.name(port),
                their_mtu = u32::from(view.max_frame).saturating_sub(FRAME_OVERHEAD),
                our_mtu = self.shared.max_frame.saturating_sub(FRAME_OVERHEAD),
                "the peer's device has a smaller MTU than ours, so larger frames are lost there; give both ends the same device.mtu"
            );
        }
    }

    /// Name servers that do not answer delay the failure of a lookup, for up to a minute.
    fn note_late_names(&mut self, now: Instant) {
        let is_late = |since: &Instant| now.saturating_duration_since(*since) >= RESOLVE_PATIENCE;
        let late = self.looking_up.iter().filter(|(_, since)| is_late(since));
        let late: Vec<_> = late.map(|(&port, _)| port).collect();
        for port in late {
            let silent = NameError::Unavailable;
            self.node.handle_unresolved(now, port, silent);
        }
    }

    fn log_trouble(&mut self, port: PortId) {
        let label = self.labels.get(usize::from(port.0).wrapping_sub(1));
        let host = label.and_then(|(_, host)| host.clone());
        let address = || Some(self.node.endpoint(port)?.to_string());
        let endpoint = host.or_else(address);
        let Some(last) = self.node.last_trouble(port) else {
            return;
        };
        let peer = (name(&self.labels, port), endpoint.as_deref());
        self.reports.trouble(port, peer, last, now());
    }

    fn log_refusal(&mut self, refused: &Refused) {
        let peer = refused.port.map(|port| name(&self.labels, port));
        self.reports.refused(refused, peer, now());
    }

    fn ports(&self) -> Vec<PortView> {
        let now_us = self.shared.clock.now().micros;
        let loops = self.shared.slow_view().loops;
        let switch = &self.shared.switch;
        let view = |port: PortId| PortView {
            blocked_by_loop: loops.iter().find(|blocked| blocked.port == port).copied(),
            blocked_by_bpdu: switch.blocks(port).by_bpdu,
            refused: switch.refusals(port).collect(),
            now_us,
        };
        switch.ports().map(view).collect()
    }

    fn view(&self) -> EngineView {
        let names = self.labels.iter().map(|(name, _)| name.clone());
        let flow = |flow: &crate::stats::Flow| (flow.frames(), flow.bytes());
        let addresses = self.addresses();
        let (fdb, fdb_omitted) = addresses.first();
        EngineView {
            peers: names
                .zip(self.node.views(now()))
                .zip(&self.meters)
                .map(|((name, view), meter)| (name, view, meter.rates()))
                .collect(),
            tap: [
                flow(&self.shared.tap.outbound),
                flow(&self.shared.tap.inbound),
            ],
            drops: self.shared.total_drops(),
            ports: self.ports(),
            groups: self.shared.slow_view().groups,
            switch: addresses.summary(),
            fdb,
            fdb_omitted,
        }
    }

    fn addresses(&self) -> Addresses<'_> {
        Addresses {
            fdb: self.shared.switch.fdb(),
            peers: self.labels.iter().map(|(name, _)| name.as_str()).collect(),
            now_s: self.shared.clock.now().seconds,
        }
    }
}

fn name(labels: &[Label], port: PortId) -> &str {
    labels
        .get(usize::from(port.0).wrapping_sub(1))
        .map_or("?", |(name, _)| name)
}

/// The C library says only in words why a name was not found (gai_strerror(3)).
fn name_error(error: &std::io::Error) -> NameError {
    let words = error.to_string();
    let is_unknown = [
        "not known",
        "No address",
        "does not resolve",
        "non-recoverable",
    ]
    .iter()
    .any(|part| words.contains(part));
    match is_unknown {
        true => NameError::NotFound,
        false => NameError::Unavailable,
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use patchcord_bridge::{Switch, SwitchConfig};

    use super::*;
    use crate::pipeline::shared::ToControl;
    use crate::{
        crypto::{
            aead::CipherOffer,
            keys::{PresharedKey, PrivateKey},
        },
        pipeline::notices::CONTROL_BYTES,
        proto::{guard::Mac1Check, node::NodeConfig, peer::PeerSettings},
        wire::SessionIndex,
    };

    const PEER: PortId = PortId(1);
    const OTHER: PortId = PortId(2);

    /// The task of a node with two peers, whose endpoints are names.
    fn task() -> ControlTask {
        let private_key = PrivateKey::generate();
        let mac1 = Mac1Check::new(&private_key.public_key());
        let config = NodeConfig {
            private_key,
            ciphers: CipherOffer::auto(),
            network_id: 0,
            lanes: 1,
            max_frame: 1522,
            rekey_interval: Duration::from_secs(120),
        };
        let peer = || PeerSettings {
            public_key: PrivateKey::generate().public_key(),
            preshared_key: Some(PresharedKey::generate()),
            endpoint: None,
            has_name: true,
            keepalive: Duration::from_secs(10),
        };
        let label = |name: &str| (name.to_owned(), Some("name.invalid:1".to_owned()));
        let switch = Switch::new(SwitchConfig::with_ports(3), [0; 2]);
        let to_control = ToControl {
            handshakes: mpsc::channel(1).0,
            punted: mpsc::channel(1).0,
        };
        let (shared, _) = Shared::new(switch, false, mac1, 1522, to_control).unwrap();
        ControlTask::new(
            Node::new(config, vec![peer(), peer()], now()),
            vec![label("office"), label("lab")],
            Arc::new(shared),
            (
                UdpSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap(),
                None,
            ),
            mpsc::channel(16).0,
        )
    }

    fn block_on(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(test);
    }

    #[test]
    fn a_name_is_looked_up_once_at_a_time() {
        block_on(async {
            let mut task = task();
            // An outage: attempts continue, and no answer arrives.
            for _ in 0..5 {
                task.look_up(PEER, Duration::from_secs(3600));
            }
            assert_eq!(task.lookups.len(), 1);
            task.lookups.abort_all();
            while task.lookups.join_next().await.is_some() {}
            task.handle_lookup(Ok((PEER, Err(NameError::Unavailable))));
            assert_eq!(task.lookups.len(), 1, "tried again");
        });
    }

    #[test]
    fn each_peer_begins_with_the_first_address_of_its_name() {
        block_on(async {
            let mut task = task();
            let address = SocketAddr::from(([192, 0, 2, 1], 1));
            task.handle_lookup(Ok((OTHER, Err(NameError::NotFound))));
            task.handle_lookup(Ok((PEER, Ok(address))));
            assert_eq!(task.turns, [1, 0], "nothing was found for the other");
            task.handle_lookup(Ok((OTHER, Ok(address))));
            task.handle_lookup(Ok((PEER, Ok(address))));
            assert_eq!(task.turns, [2, 1]);
        });
    }

    /// Notices without end, as a peer that sends all the time causes them.
    fn flood(task: &ControlTask) -> impl Future<Output = ()> + use<> {
        let shared = task.shared.clone();
        async move {
            loop {
                let control = Control {
                    local: None,
                    from: "192.0.2.1:1".parse().unwrap(),
                    receiver: SessionIndex::from_low_bits(1),
                    newest: true,
                    bytes: [0; CONTROL_BYTES],
                };
                shared.notify_control(PEER, control);
                tokio::task::yield_now().await;
            }
        }
    }

    #[test]
    fn a_flood_of_notices_holds_up_neither_commands_nor_handshakes() {
        block_on(async {
            let (commands, commands_out) = mpsc::channel(1);
            let (handshakes, handshakes_out) = mpsc::channel(1);
            let task = task();
            let (shared, drops) = (task.shared.clone(), task.drops.clone());
            let flood = tokio::spawn(flood(&task));
            let running = tokio::spawn(task.run(handshakes_out, commands_out));
            for _ in 0..100 {
                let from = ("192.0.2.2:1".parse().unwrap(), None);
                let handshake = Handshake::new(from, &[0; 4]).unwrap();
                handshakes.send(handshake).await.ok().unwrap();
            }
            let (reply, view) = oneshot::channel();
            commands.send(Command::View(reply)).await.ok().unwrap();
            view.await.unwrap();
            assert!(drops.total(DropReason::UnsupportedVersion) >= 99);
            assert!(drops.total(DropReason::UnknownSession) > 0, "no flood");
            drop(shared);
            flood.abort();
            running.abort();
        });
    }

    #[test]
    fn an_owner_that_is_behind_hears_in_the_end_whether_a_peer_is_up() {
        block_on(async {
            let mut task = task();
            let (events, mut told) = mpsc::channel(1);
            events.try_send(EngineEvent::StationsMoved).unwrap();
            task.events = events;
            task.was_reachable = true;
            task.pump();
            assert!(matches!(told.try_recv(), Ok(EngineEvent::StationsMoved)));
            for _ in 0..2 {
                task.pump();
            }
            assert!(matches!(told.try_recv(), Ok(EngineEvent::Unreachable)));
            assert!(told.try_recv().is_err(), "once");
        });
    }
}
