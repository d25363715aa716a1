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
//! [`Engine::start`] is given the TAP's queues and the sockets, chooses the core plan and starts the
//! threads; it knows nothing of configuration files, interfaces or providers. Tables reach the data
//! threads as immutable snapshots, and what they notice reaches the control task through a bounded
//! channel.

mod addresses;
pub(crate) mod clock;
mod control;
mod dispatch;
#[cfg(fuzzing)]
pub mod fuzzing;
mod inbound;
mod lane_states;
mod lanes;
mod limit_log;
mod log_rate;
mod meter;
mod notices;
mod offload;
mod outbound;
pub mod plan;
mod portion;
mod precedence;
mod presence;
mod recovery;
mod reports;
mod shared;
mod slow_path;
mod supervision;
mod survey;
mod trouble;
mod underlay;
pub(crate) mod vitals;
mod ways_back;

use std::{
    io,
    net::SocketAddr,
    panic::{self, AssertUnwindSafe},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use patchcord_bridge::{Switch, SwitchConfig, loops::Blocked, membership::GroupEntry};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};

use self::{
    control::{Command, ControlTask},
    dispatch::{Departures, Outlet},
    inbound::{Arrivals, Delivery, Inbound, Inlet, Opener},
    lanes::{Handover, Share},
    outbound::Outbound,
    plan::{CorePlan, PlanRequest, numbered},
    shared::{Emissions, HANDSHAKES, Shared, ToControl},
    slow_path::{Duties, Probes, SIGHTINGS, SlowPath},
    supervision::{join_all, supervise, watch_over},
    vitals::{Pulse, Vitals},
};
use crate::{
    control::message::{FdbRequest, FdbStatus, Rates, Reply, SwitchStatus},
    crypto,
    io::{
        set_thread_niceness,
        tap::TapQueue,
        udp::{Capabilities, Senders, UdpSocket},
    },
    proto::{
        guard::Mac1Check,
        limits::MAX_LANES,
        node::{Node, NodeConfig, PeerView},
        peer::PeerSettings,
        train::Train,
    },
    queue,
    stats::DropReason,
    wire::Lane,
};

pub use self::shared::Stopped;

/// A data thread that has nothing to do looks at the tables this often, so that the keys of a session
/// that has ended are not kept by who would have used them.
const IDLE: Duration = Duration::from_secs(30);
/// Events that wait for the engine's owner.
const EVENTS: usize = 16;

/// What an engine works with.
pub struct EngineConfig {
    /// Identity and ciphers; the number of lanes is that of the queues.
    pub node: NodeConfig,
    /// The peers, in the order of their ports.
    pub peers: Vec<EnginePeer>,
    /// The switch between the TAP and the peers, with a port for each.
    pub switch: SwitchConfig,
    /// Whether loops are looked for with probes, and cut.
    pub loop_guard: bool,
    /// Whether this node asks the stations for the multicast groups that they want.
    pub querier: bool,
    /// Whether there is no switch but a wire: two ports, and what comes in by one leaves by the other,
    /// whatever it is. For a single peer.
    pub wire: bool,
    /// How to use the cores.
    pub plan: PlanRequest,
}

/// A peer, with what only people and the resolver need.
pub struct EnginePeer {
    /// What the protocol needs.
    pub settings: PeerSettings,
    /// For logs and `show`.
    pub name: String,
    /// `name:port`, looked up at start and when the peer does not answer.
    pub host: Option<String>,
}

impl EnginePeer {
    /// With a rank that every node gives it.
    fn ranked(&self) -> (String, u64) {
        let (rank, _) = self.settings.public_key.as_bytes().split_at(8);
        let rank = rank
            .iter()
            .fold(0, |rank, byte| rank << 8 | u64::from(*byte));
        (self.name.clone(), rank)
    }
}

/// What the engine tells its owner.
#[derive(Debug)]
pub enum EngineEvent {
    /// The first peer became reachable.
    Reachable,
    /// The last reachable peer was lost.
    Unreachable,
    /// A loop was cut, or a port opened again, here or at another node: stations may be behind other
    /// ports than before, also as others know them.
    StationsMoved,
    /// How many peers are up, and what is wrong with the others, in words. When it changes.
    Summary(String),
    /// A thread or task ended unasked, or does not get on: the tunnel is broken.
    Broken(Stopped),
}

/// A snapshot for `show`.
#[derive(Debug)]
pub struct EngineView {
    /// The peers, in the order of their ports.
    pub peers: Vec<(String, PeerView, Rates)>,
    /// Frames and bytes read off the TAP, then those written to it.
    pub tap: [(u64, u64); 2],
    /// What did not arrive.
    pub drops: Vec<(DropReason, u64)>,
    /// The ports of the switch, the TAP first, then the peers.
    pub ports: Vec<PortView>,
    /// The multicast groups that somebody wants, of which there may be more.
    pub groups: Vec<GroupEntry>,
    /// What the switch has counted.
    pub switch: SwitchStatus,
    /// The first of the addresses that it knows.
    pub fdb: Vec<FdbStatus>,
    /// How many others it knows.
    pub fdb_omitted: u64,
}

/// A port of the switch.
#[derive(Debug)]
pub struct PortView {
    /// The loop that it is blocked for.
    pub blocked_by_loop: Option<Blocked>,
    /// A bridge protocol data unit came, where none may.
    pub blocked_by_bpdu: bool,
    /// Frames from it that the switch refused, by reason.
    pub refused: Vec<(patchcord_bridge::DropReason, u64)>,
    /// The clock of `blocked_by_loop`.
    pub now_us: u64,
}

/// A running engine. Dropped without [`Engine::stop`], it stops without saying good-bye to peers.
pub struct Engine {
    plan: CorePlan,
    local_addr: SocketAddr,
    udp: Capabilities,
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    /// Supervised, and the look at all pulses.
    tasks: JoinSet<()>,
    threads: Vec<JoinHandle<()>>,
}

impl Engine {
    /// Starts the threads and the control task. Must be called inside a tokio runtime.
    ///
    /// Each queue is a lane; the staged plan takes one. The sockets are those of
    /// [`UdpSocket::bind_lanes`]. Those that no lane has are closed; if there is one for all, so is the
    /// inbound thread.
    ///
    /// # Errors
    /// When the kernel has no threads or descriptors left, without a queue or a socket, and for a wire
    /// with another number of peers than one.
    pub fn start(
        mut config: EngineConfig,
        queues: Vec<Arc<TapQueue>>,
        mut sockets: Vec<UdpSocket>,
    ) -> io::Result<(Self, mpsc::Receiver<EngineEvent>)> {
        let lanes = if config.switch.hub {
            MAX_LANES / 2
        } else {
            MAX_LANES
        };
        let most = if config.plan.staged { 1 } else { lanes };
        if queues.is_empty() || queues.len() > usize::from(most) || sockets.is_empty() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if config.wire && config.peers.len() != 1 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // From the end: the place of a socket in its group says which lanes it gets.
        while sockets.len() > queues.len() {
            sockets.pop();
        }
        let mut plan = CorePlan::choose(PlanRequest {
            lanes: Some(queues.len()),
            ..config.plan
        });
        plan.receivers = sockets.len();
        // What a hub passes on goes out on lanes of its own.
        let onward = if config.switch.hub { sockets.len() } else { 0 };
        config.node.lanes = (queues.len() + onward) as u8;
        let (handshakes_in, handshakes) = mpsc::channel(HANDSHAKES);
        let (sightings_in, sightings) = mpsc::channel(SIGHTINGS);
        let (events_in, events) = mpsc::channel(EVENTS);
        let (commands, commands_out) = mpsc::channel(8);
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
        let mut duties = Duties::of(&config.switch, config.querier, !config.wire);
        let switch = new_switch(&config.switch);
        let to_control = ToControl {
            handshakes: handshakes_in,
            sightings: sightings_in,
        };
        let (shared, emissions) = Shared::new(switch, config.wire, mac1, max_frame, to_control)?;
        let shared = Arc::new(shared);
        shared.name_peers(labels.iter().map(|(name, _)| name.clone()).collect());
        let local_addr = sockets[0].local_addr()?;
        let udp = sockets[0].capabilities();
        let socket = sockets[0].try_clone()?;
        let senders = UdpSocket::bind_senders(&sockets, labels.len());

        duties.loops = probes;
        let slow_path = SlowPath::new(
            shared.clone(),
            queues[0].clone(),
            ranked,
            duties,
            events_in.clone(),
        );
        let mut threads = Threads {
            plan: &plan,
            shared: &shared,
            events: &events_in,
            peers: labels.len(),
            senders: senders.into(),
            emissions: Some(emissions),
            is_hub: shared.switch.is_hub(),
            spawned: Vec::new(),
        };
        threads.spawn_all(&queues, sockets)?;
        let threads = threads.spawned;
        let control = ControlTask::new(node, labels, shared.clone(), socket, events_in.clone());
        let control = control.run(handshakes, commands_out);
        let mut tasks = JoinSet::new();
        tasks.spawn(supervise("control", control, events_in.clone()));
        let slow_path = slow_path.run(sightings);
        tasks.spawn(supervise("slow path", slow_path, events_in.clone()));
        tasks.spawn(watch_over(shared.vitals.clone(), events_in));
        Ok((
            Self {
                plan,
                local_addr,
                udp,
                shared,
                commands,
                tasks,
                threads,
            },
            events,
        ))
    }

    /// The plan in use.
    pub fn plan(&self) -> &CorePlan {
        &self.plan
    }

    /// The UDP address in use.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// What the kernel does for the UDP sockets.
    pub fn udp(&self) -> Capabilities {
        self.udp
    }

    /// The state of peers, counters and switch. `None` if the control task has ended or is stuck.
    pub async fn view(&self) -> Option<EngineView> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::View(reply), answer).await
    }

    /// Looks at the switch's table of addresses, or changes it. `None` as of [`Engine::view`].
    pub async fn fdb(&self, request: FdbRequest) -> Option<Reply> {
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

    /// Links, addresses or routes of this machine changed: peers to whom the way is another now hear from
    /// us, and datagrams to those by a link of another MTU have another size.
    pub async fn handle_network_change(&self) {
        // A control task that has ended has nobody to tell.
        let _ = self.commands.send(Command::NetworkChanged).await;
    }

    /// Says good-bye to the peers and ends all threads and tasks. One that does not end in time is left
    /// behind.
    pub async fn stop(mut self) {
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

    /// Whether its threads and tasks get on with their work.
    pub(crate) fn vitals(&self) -> Arc<Vitals> {
        self.shared.vitals.clone()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.stop.wake();
        self.tasks.abort_all();
    }
}

/// A switch whose table has places for all stations of the configuration: which of them are in each
/// other's way is up to the key.
fn new_switch(config: &SwitchConfig) -> Switch {
    /// The configuration lists so few that most attempts are the last.
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

/// A random key for the switch's table, so that nobody can aim at one of its buckets.
fn hash_key() -> [u64; 2] {
    std::array::from_fn(|_| {
        let mut word = [0; 8];
        crypto::random(&mut word);
        u64::from_ne_bytes(word)
    })
}

fn spawn_inline(
    threads: &mut Threads<'_>,
    queues: &[Arc<TapQueue>],
    sockets: Vec<UdpSocket>,
) -> io::Result<()> {
    let shared = threads.shared;
    for (place, queue) in queues.iter().enumerate() {
        let departures = threads.departures(&sockets[place % sockets.len()])?;
        let outlet = Outlet::inline(departures, threads.peers);
        let outbound = Outbound::new(
            shared.clone(),
            queue.clone(),
            threads.emissions.take(),
            lane(place),
            outlet,
        );
        let name = numbered("outbound", place, queues.len());
        let nice = threads.plan.nice;
        threads.spawn(&name, move |pulse| outbound.run(nice, pulse))?;
    }

    let receivers = sockets.len();
    let mut handovers = if receivers > 1 {
        Handover::between(receivers, || shared.new_drops())?
    } else {
        Vec::new()
    }
    .into_iter();
    for (place, (socket, queue)) in sockets.into_iter().zip(queues).enumerate() {
        let handover = handovers.next();
        let share = handover.as_ref().map_or(Share::ALL, Handover::share);
        let onward = threads.onward(queues.len() + place, &socket)?;
        let inlet = Inlet::Inline {
            arrivals: Box::default(),
            opener: Opener::new(shared.clone(), share),
            delivery: Box::new(Delivery::new(shared.clone(), queue.clone(), onward)),
        };
        let inbound = Inbound::new(shared.clone(), socket, handover, inlet);
        let name = numbered("inbound", place, receivers);
        let nice = threads.plan.nice;
        threads.spawn(&name, move |pulse| inbound.run(nice, pulse))?;
    }
    Ok(())
}

fn spawn_staged(
    threads: &mut Threads<'_>,
    workers: usize,
    queue: &Arc<TapQueue>,
    socket: &UdpSocket,
) -> io::Result<()> {
    let shared = threads.shared;
    let (dealer, sealers, sealed) = queue::ordered::<Train>(workers);
    let outlet = Outlet::Staged(dealer);
    let outbound = Outbound::new(
        shared.clone(),
        queue.clone(),
        threads.emissions.take(),
        Lane::FIRST_DATA,
        outlet,
    );
    let nice = threads.plan.nice;
    threads.spawn("tap-rx", move |pulse| outbound.run(nice, pulse))?;
    for (number, worker) in (1..).zip(sealers) {
        let shared = shared.clone();
        let seal = move |pulse: &Pulse| dispatch::seal(shared, worker, pulse);
        threads.spawn_worker(&format!("seal-{number}"), seal)?;
    }
    let departures = threads.departures(socket)?;
    threads.spawn_worker("udp-tx", |pulse| departures.run(sealed, pulse))?;

    let (dealer, openers, opened) = queue::ordered::<Arrivals>(workers);
    let receiver = socket.try_clone()?;
    let inbound = Inbound::new(shared.clone(), receiver, None, Inlet::Staged(dealer));
    threads.spawn_first("udp-rx", move |pulse| inbound.run(nice, pulse))?;
    for (number, worker) in (1..).zip(openers) {
        let opener = Opener::new(shared.clone(), Share::ALL);
        let open = move |pulse: &Pulse| opener.run(worker, pulse);
        threads.spawn_worker(&format!("open-{number}"), open)?;
    }
    let onward = threads.onward(1, socket)?;
    let delivery = Delivery::new(shared.clone(), queue.clone(), onward);
    threads.spawn_worker("tap-tx", |pulse| delivery.run(opened, pulse))
}

/// The data lane of this place.
fn lane(place: usize) -> Lane {
    Lane(Lane::FIRST_DATA.0 + place as u8)
}

struct Threads<'a> {
    plan: &'a CorePlan,
    shared: &'a Arc<Shared>,
    events: &'a mpsc::Sender<EngineEvent>,
    peers: usize,
    /// A socket for each of them, if they have some.
    senders: Arc<[UdpSocket]>,
    /// For the first outbound thread.
    emissions: Option<Emissions>,
    is_hub: bool,
    spawned: Vec<JoinHandle<()>>,
}

impl Threads<'_> {
    fn spawn_all(&mut self, queues: &[Arc<TapQueue>], sockets: Vec<UdpSocket>) -> io::Result<()> {
        let result = match self.plan.workers {
            None => spawn_inline(self, queues, sockets),
            Some(workers) => spawn_staged(self, workers, &queues[0], &sockets[0]),
        };
        if result.is_err() {
            self.shared.stop.wake();
        }
        result
    }

    /// The way from an inbound thread to other peers, in a hub, on the lane of this place.
    fn onward(&self, place: usize, socket: &UdpSocket) -> io::Result<Option<(Lane, Outlet)>> {
        if !self.is_hub {
            return Ok(None);
        }
        let outlet = Outlet::inline(self.departures(socket)?, self.peers);
        Ok(Some((lane(place), outlet)))
    }

    /// The way out for a thread whose lane has `socket`.
    fn departures(&self, socket: &UdpSocket) -> io::Result<Departures> {
        let senders = Senders::new(socket.try_clone()?, self.senders.clone());
        Ok(Departures::new(self.shared.clone(), senders))
    }

    /// A thread that ends when its queue does, which is when the one before it has.
    fn spawn_worker(
        &mut self,
        name: &str,
        work: impl FnOnce(&Pulse) + Send + 'static,
    ) -> io::Result<()> {
        self.spawn_first(name, move |pulse| {
            work(pulse);
            Stopped::Asked
        })
    }

    /// A thread that goes before the programs of the machine, if that is allowed.
    fn spawn_first(
        &mut self,
        name: &str,
        work: impl FnOnce(&Pulse) -> Stopped + Send + 'static,
    ) -> io::Result<()> {
        let nice = self.plan.nice;
        self.spawn(name, move |pulse| {
            if let Err(error) = set_thread_niceness(nice) {
                tracing::debug!(%error, nice, "a data thread keeps its precedence");
            }
            work(pulse)
        })
    }

    /// The engine's owner hears of the thread's end, even if it panics.
    fn spawn(
        &mut self,
        name: &str,
        work: impl FnOnce(&Pulse) -> Stopped + Send + 'static,
    ) -> io::Result<()> {
        let core = self.plan.core_of(name);
        let events = self.events.clone();
        let pulse = self.shared.vitals.pulse(name);
        let its_name = name.to_owned();
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                if let Some(core) = core
                    && !core_affinity::set_for_current(core)
                {
                    tracing::warn!(core = core.id, "cannot pin a thread to its core");
                }
                let work = AssertUnwindSafe(|| work(&pulse));
                let stopped = panic::catch_unwind(work)
                    .unwrap_or_else(|payload| Stopped::of_panic(&its_name, &*payload));
                pulse.rest();
                if !matches!(stopped, Stopped::Asked) {
                    // Waits for the owner, and fails when that is gone.
                    let _ = events.blocking_send(EngineEvent::Broken(stopped));
                }
            })?;
        self.spawned.push(thread);
        Ok(())
    }
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
