// SPDX-License-Identifier: MIT OR Apache-2.0
//! The engine of a tunnel: the only place where `io` meets `proto` and the switch.
//!
//! ```text
//!             ┌── outbound ── switch ── pack ── seal ──┐
//!  TAP queue ─┤                  │                     ├─ UDP socket      pinned threads, one such
//!             └── inbound ─── unpack ── accept ── open ┘                  lane or several
//!                                │ notices    ^ tables
//!                            ┌───┴────────────┴───┐
//!                            │ control: proto::Node│                       async, one thread
//!                            └─────────────────────┘
//! ```
//! [`Engine::start`] takes the TAP's queues and the sockets, chooses the core plan and starts the
//! threads; it knows nothing of configuration files, interfaces or providers. Tables reach the data
//! threads as immutable snapshots, and observations of the data threads reach the control task
//! through a bounded channel.

mod burst;
pub(crate) mod clock;
mod control;
mod dispatch;
mod error_backoff;
mod express;
mod fdb_admin;
mod frame_buf;
#[cfg(fuzzing)]
pub mod fuzzing;
mod inbound;
mod lane_states;
mod lanes;
mod last_bulk;
mod log_rate;
mod meter;
mod notices;
mod offload;
mod outbound;
mod peer;
pub(crate) mod plan;
mod port_names;
mod presence;
mod recovery;
mod reply_sources;
mod reports;
mod shared;
mod slow_path;
mod supervision;
mod thread_priority;
mod threads;
mod unauthenticated;
mod underlay;
mod view;
pub(crate) mod watchdog;

use std::{io, net::SocketAddr, sync::Arc, thread::JoinHandle, time::Duration};

use patchcord_bridge::{Switch, SwitchConfig};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tracing::Instrument;

use self::{
    control::{Command, ControlTask},
    plan::{CorePlan, PlanRequest},
    shared::{HANDSHAKES, Handshake, InjectedFrames, Shared, ToControl},
    slow_path::{
        Probes, SlowPath, SlowPathConfig,
        event::{PUNTED_FRAMES, PuntedFrame},
    },
    supervision::{join_all, supervise, watch_over},
    threads::Threads,
    view::EVENTS,
    watchdog::Watchdog,
};
use crate::{
    control::message::{Answered, FdbRequest},
    crypto,
    io::{
        tap::TapQueue,
        udp::{Capabilities, SessionFilter, Spread, UdpSocket},
    },
    proto::{
        guard::Mac1Check,
        limits::MAX_LANES,
        node::{Node, NodeConfig},
    },
    stats::Traffic,
};

pub(crate) use self::peer::{EnginePeer, EngineUpdate};
pub(crate) use self::view::{EngineEvent, EngineView, PeerReport, PortView, Stopped};

/// The inputs of an engine.
pub(crate) struct EngineConfig {
    /// Identity and ciphers; the number of lanes is that of the queues.
    pub node: NodeConfig,
    /// The peers, in the order of their ports.
    pub peers: Vec<EnginePeer>,
    /// The switch between the TAP and the peers, with a port for each.
    pub switch: SwitchConfig,
    /// Whether to probe for loops, and to cut them.
    pub loop_guard: bool,
    /// Whether this node is an IGMP and MLD querier.
    pub querier: bool,
    /// Whether the engine is a wire instead of a switch: two ports, and each frame that arrives on
    /// one leaves by the other, whatever it is. For a single peer.
    pub wire: bool,
    /// Whether SYNs of TCP announce no larger segments than one datagram to the peer carries.
    pub lowers_mss: bool,
    /// How to use the cores.
    pub plan: PlanRequest,
}

/// A running engine. Dropped without [`Engine::stop`], it stops without closing its sessions.
pub(crate) struct Engine {
    plan: CorePlan,
    local_addr: SocketAddr,
    udp: Capabilities,
    shared: Arc<Shared>,
    /// The counters of the peers.
    traffic: Vec<Arc<Traffic>>,
    commands: mpsc::Sender<Command>,
    /// The supervised tasks, and the watchdog of all heartbeats.
    tasks: JoinSet<()>,
    threads: Vec<JoinHandle<()>>,
}

impl Engine {
    /// Starts the threads and the control task. Must be called inside a tokio runtime.
    ///
    /// Each queue is a lane, and the last may be that of the express lane; the staged plan takes one.
    /// The sockets are those of [`UdpSocket::bind_lanes`] for the same lanes. Sockets without a lane
    /// are closed; if there is one socket for all lanes, there is also one inbound thread.
    ///
    /// # Errors
    /// When the kernel has no threads or descriptors left, without a queue or a socket, and for a
    /// wire with another number of peers than one.
    pub(crate) fn start(
        mut config: EngineConfig,
        queues: Vec<Arc<TapQueue>>,
        mut sockets: Vec<UdpSocket>,
    ) -> io::Result<(Self, mpsc::Receiver<EngineEvent>)> {
        check(&config, &queues, &sockets)?;
        let plan = choose_plan(&mut config, &queues, &mut sockets);
        let (events_in, events) = mpsc::channel(EVENTS);
        let (commands, commands_out) = mpsc::channel(8);
        let (parts, injected) = Parts::new(config)?;
        let shared = parts.shared.clone();
        let local_addr = sockets[0].local_addr()?;
        let udp = sockets[0].capabilities();
        let socket = sockets[0].try_clone()?;
        let peers = parts.labels.len();
        // The staged plan has one thread that receives everything.
        let gate = match plan.workers {
            None => UdpSocket::bind_gate(&sockets, most_sessions(peers)),
            Some(_) => None,
        };
        let senders = UdpSocket::bind_senders(&sockets, plan.receivers, peers);
        let gate = gate.and_then(|gate| gate.restrict_to_sessions(plan.receivers));
        let (gate, filter) = gate.map(|gate| (gate.sockets, gate.filter)).unzip();

        let threads = Threads {
            plan: &plan,
            shared: &shared,
            events: &events_in,
            peers,
            senders: senders.into(),
            gate,
            injected: Some(injected),
            is_hub: shared.switch().is_hub(),
            spawned: Vec::new(),
        };
        let threads = threads.spawn_all(&queues, sockets)?;
        let views = parts.node.views(clock::now()).into_iter();
        let traffic = views.map(|view| view.traffic).collect();
        let mut tasks = parts.spawn_tasks(&queues[0], (socket, filter), commands_out, &events_in);
        let priority = control::follow_bulk(shared.clone(), plan.nice);
        tasks.spawn(supervise("priority", priority, events_in).in_current_span());
        Ok((
            Self {
                plan,
                local_addr,
                udp,
                shared,
                traffic,
                commands,
                tasks,
                threads,
            },
            events,
        ))
    }

    /// The plan in use.
    pub(crate) fn plan(&self) -> &CorePlan {
        &self.plan
    }

    /// The UDP address in use.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The offloads that the kernel supports for the UDP sockets.
    pub(crate) fn udp(&self) -> Capabilities {
        self.udp
    }

    /// The state of peers, counters and switch. `None` if the control task has ended or is stuck.
    pub(crate) async fn view(&self) -> Option<EngineView> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::View(reply), answer).await
    }

    /// Changes the configuration while frames cross. `None` as of [`Engine::view`].
    pub(crate) async fn update(&self, update: EngineUpdate) -> Option<()> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Update(Box::new(update), reply), answer)
            .await
    }

    /// Reads the FDB, or changes it. `None` as of [`Engine::view`].
    pub(crate) async fn fdb(&self, request: FdbRequest) -> Option<Answered> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Fdb(request, reply), answer).await
    }

    async fn ask<T>(&self, command: Command, answer: oneshot::Receiver<T>) -> Option<T> {
        const PATIENCE: Duration = Duration::from_secs(10);
        let asked = async {
            self.commands.send(command).await.ok()?;
            answer.await.ok()
        };
        tokio::time::timeout(PATIENCE, asked).await.ok().flatten()
    }

    /// Links, addresses or routes of this machine changed: peers to which the route has changed get
    /// a datagram now, and datagrams by a link with another MTU get another size.
    pub(crate) async fn handle_network_change(&self) {
        // Fails if the control task has ended, which its supervisor reports.
        let _ = self.commands.send(Command::NetworkChanged).await;
    }

    /// Closes the sessions with the peers and ends all threads and tasks. One that does not end in
    /// time is left behind.
    pub(crate) async fn stop(mut self) {
        const PATIENCE: Duration = Duration::from_secs(2);
        let (reply, done) = oneshot::channel();
        let farewell = async {
            if self.commands.send(Command::Close(reply)).await.is_ok() {
                let _ = done.await;
            }
        };
        let _ = tokio::time::timeout(PATIENCE, farewell).await;
        self.shared.stop.wake();
        let _ = tokio::time::timeout(PATIENCE, self.tasks.shutdown()).await;
        join_all(&mut self.threads, PATIENCE).await;
    }

    /// Counts the frames that came from the device and from the peers so far.
    pub(crate) fn frame_counter(&self) -> impl Fn() -> u64 + Send + use<> {
        let (shared, peers) = (self.shared.clone(), self.traffic.clone());
        move || {
            let from_peers = peers.iter().map(|traffic| traffic.inbound.frames());
            shared.tap.outbound.frames() + from_peers.sum::<u64>()
        }
    }

    /// The watchdog of its threads and tasks.
    pub(crate) fn watchdog(&self) -> Arc<Watchdog> {
        self.shared.watchdog.clone()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.stop.wake();
        self.tasks.abort_all();
    }
}

/// Refuses a configuration that no core plan can use.
fn check(config: &EngineConfig, queues: &[Arc<TapQueue>], sockets: &[UdpSocket]) -> io::Result<()> {
    let most = match (config.plan.staged, config.switch.hub) {
        (true, _) => 1,
        (false, true) => MAX_LANES / 2,
        (false, false) => MAX_LANES,
    };
    let express = has_express(queues);
    // A hub forwards by two of them, beside those of the lanes.
    let taken = usize::from(express && config.switch.hub);
    let lanes = queues.len() - usize::from(express);
    let has_lanes = (1..=usize::from(most) - taken).contains(&lanes) && !sockets.is_empty();
    if has_lanes && (!config.wire || config.peers.len() == 1) {
        Ok(())
    } else {
        Err(io::ErrorKind::InvalidInput.into())
    }
}

/// Whether the last queue is for flows that send little.
fn has_express(queues: &[Arc<TapQueue>]) -> bool {
    queues.last().is_some_and(|queue| queue.is_express())
}

/// Gives each queue a lane, closes the sockets without a lane, and returns the plan of threads.
fn choose_plan(
    config: &mut EngineConfig,
    queues: &[Arc<TapQueue>],
    sockets: &mut Vec<UdpSocket>,
) -> CorePlan {
    // From the end: the position of a socket in its group determines its lanes.
    while sockets.len() > queues.len() {
        sockets.pop();
    }
    let express = has_express(queues);
    let mut plan = CorePlan::choose(PlanRequest {
        lanes: Some(queues.len() - usize::from(express)),
        express,
        ..config.plan
    });
    if sockets.len() < queues.len() {
        plan.receivers = Spread::ONE;
        sockets.truncate(1);
    }
    config.node.lanes = plan.lane_set(config.switch.hub);
    plan
}

/// The parts of the two tasks of an engine, and the state that they share with the data threads.
struct Parts {
    node: Node,
    /// Names and hosts of the peers, in the order of their ports.
    labels: Vec<(String, Option<String>)>,
    slow_path: SlowPathConfig,
    shared: Arc<Shared>,
    handshakes: mpsc::Receiver<Handshake>,
    punted: mpsc::Receiver<PuntedFrame>,
}

impl Parts {
    fn new(mut config: EngineConfig) -> io::Result<(Self, InjectedFrames)> {
        let (handshakes_in, handshakes) = mpsc::channel(HANDSHAKES);
        let (punted_in, punted) = mpsc::channel(PUNTED_FRAMES);
        let to_control = ToControl {
            handshakes: handshakes_in,
            punted: punted_in,
        };
        let max_frame = config.node.max_frame.into();
        let ranked = config.peers.iter().map(EnginePeer::ranked).collect();
        let (settings, labels): (_, Vec<_>) = config
            .peers
            .into_iter()
            .map(|peer| (peer.settings, (peer.name, peer.host)))
            .unzip();
        let node = Node::new(config.node, settings, clock::now());
        let mac1 = Mac1Check::new(&node.public_key());
        let probes = (config.loop_guard && !config.wire).then(Probes::random);
        config.switch.own_probe_mac = probes.as_ref().map(|probes| probes.source);
        let mut slow_path = SlowPathConfig::of(&config.switch, config.querier, !config.wire);
        slow_path.loops = probes;
        let switch = new_switch(&config.switch);
        let (mut shared, injected) = Shared::new(switch, config.wire, mac1, max_frame, to_control)?;
        shared.lowers_mss = config.lowers_mss;
        shared.names.set(ranked);
        let parts = Self {
            node,
            labels,
            slow_path,
            shared: Arc::new(shared),
            handshakes,
            punted,
        };
        Ok((parts, injected))
    }

    /// Starts the control task, the slow path, and the watchdog of all threads and tasks.
    fn spawn_tasks(
        self,
        tap: &Arc<TapQueue>,
        socket: (UdpSocket, Option<SessionFilter>),
        commands: mpsc::Receiver<Command>,
        events: &mpsc::Sender<EngineEvent>,
    ) -> JoinSet<()> {
        let shared = self.shared;
        let slow_path = SlowPath::new(shared.clone(), tap.clone(), self.slow_path, events.clone());
        let slow_path = slow_path.run(self.punted);
        let control = ControlTask::new(
            self.node,
            self.labels,
            shared.clone(),
            socket,
            events.clone(),
        );
        let control = control.run(self.handshakes, commands);
        let mut tasks = JoinSet::new();
        tasks.spawn(supervise("control", control, events.clone()).in_current_span());
        tasks.spawn(supervise("slow path", slow_path, events.clone()).in_current_span());
        tasks.spawn(watch_over(shared.watchdog.clone(), events.clone()));
        tasks
    }
}

/// A switch whose table has slots for all stations of the configuration: which of them collide
/// depends on the key.
fn new_switch(config: &SwitchConfig) -> Switch {
    /// The configuration has so few of them that most attempts are the last.
    const ATTEMPTS: usize = 32;
    let mut left = ATTEMPTS;
    loop {
        let switch = Switch::new(config.clone(), hash_key());
        left -= 1;
        let left_out = switch.stations_left_out();
        if left_out == 0 {
            return switch;
        }
        if left == 0 {
            tracing::warn!(
                left_out,
                "FDB capacity too small for the configured static stations; raise switch.capacity"
            );
            return switch;
        }
    }
}

/// The largest number of sessions: each peer has one that ends, one in use and one to come, and
/// some of handshakes that were never completed.
fn most_sessions(peers: usize) -> u32 {
    u32::try_from(peers * 4).unwrap_or(u32::MAX).max(64)
}

/// A random key for the switch's table, so that no station can aim at one of its buckets.
fn hash_key() -> [u64; 2] {
    std::array::from_fn(|_| {
        let mut word = [0; 8];
        crypto::random(&mut word);
        u64::from_ne_bytes(word)
    })
}

#[cfg(test)]
mod tests {
    use patchcord_bridge::{MacAddr, PortConfig, Vid};

    use super::*;

    #[test]
    fn as_many_stations_as_a_configuration_may_list_have_places() {
        for (capacity, count) in [(8, 8_u32), (64, 8), (8192, 1024), (1 << 17, 1 << 14)] {
            let station = |name: u32| {
                let [_, _, c, d] = name.to_be_bytes();
                (Vid::UNTAGGED, MacAddr([2, 0, 0, 0, c, d]))
            };
            let port = PortConfig {
                stations: (0..count).map(station).collect(),
                ..PortConfig::default()
            };
            let config = SwitchConfig {
                ports: vec![port],
                fdb_capacity: capacity,
                ..SwitchConfig::default()
            };
            for _ in 0..10 {
                let switch = new_switch(&config);
                assert_eq!(switch.stations_left_out(), 0, "{count} in {capacity}");
                assert_eq!(switch.fdb().entries(0).count(), count as usize);
            }
        }
    }
}
