// SPDX-License-Identifier: MIT OR Apache-2.0
//! Drives [`Node`] on the control thread: notices and timers in, tables and datagrams out.
//!
//! The task carries out an event before it sends the datagrams that follow: when the peer uses a
//! new session, the data threads know it already.

mod names;
mod process_priority;
mod report;
mod single_datagrams;
#[cfg(test)]
mod tests;
mod update;

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
use tracing::{debug, info};

pub(super) use self::process_priority::follow_bulk;
use super::{
    clock::{now, wall},
    meter::{self, Meter},
    notices::{Control, Notice},
    peer::EngineUpdate,
    reply_sources::ReplySources,
    reports::{self, Reports},
    shared::{DatagramPath, Handshake, Shared},
    underlay::{Change, Underlay},
    view::{EngineEvent, EngineView},
};
use crate::{
    control::message::{Answered, FdbRequest},
    io::{
        icmp::{Icmp, Undelivered, Why},
        udp::{SendError, SendFailure, SessionFilter, UdpSocket},
    },
    proto::{
        node::{Event, Node, Transmit},
        trouble::{NameError, Unreachable},
    },
    stats::Drops,
    wire::local::Local,
};

use self::single_datagrams::SingleDatagrams;

/// From the engine's owner.
pub(super) enum Command {
    View(oneshot::Sender<EngineView>),
    Fdb(FdbRequest, oneshot::Sender<Answered>),
    Update(Box<EngineUpdate>, oneshot::Sender<()>),
    NetworkChanged,
    Close(oneshot::Sender<()>),
}

/// A host that was looked up for a peer, and its address.
type Lookup = (PortId, String, Result<SocketAddr, NameError>);

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
    lookups: JoinSet<Lookup>,
    /// Peers whose name is being looked up, or will be again, and since when.
    looking_up: HashMap<PortId, Instant>,
    /// How many addresses of each peer's name were tried, in the order of their ports: each lookup
    /// takes the next one, as the one before may be dead.
    turns: Vec<usize>,
    /// One for each peer, in the order of their ports.
    meters: Vec<Meter>,
    singles: Vec<SingleDatagrams>,
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
        let singles = labels.iter().map(|_| SingleDatagrams::default()).collect();
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
            singles,
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
                    self.note_interface(from, local);
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

    fn note_interface(&mut self, from: SocketAddr, local: Option<Local>) {
        let heard = self.node.endpoints().find(|(_, at)| *at == from);
        if let (Some((port, _)), Some(local)) = (heard, local)
            && let Some(singles) = self.singles.get_mut(usize::from(port.0) - 1)
        {
            singles.handle_heard(local.interface);
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
            Command::Update(update, done) => {
                self.update(*update);
                let _ = done.send(());
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
                    self.shared.switch().relearn_behind(port);
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

    // The name in `show` and in the log.
}

fn name(labels: &[Label], port: PortId) -> &str {
    labels
        .get(usize::from(port.0).wrapping_sub(1))
        .map_or("?", |(name, _)| name)
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
