// SPDX-License-Identifier: MIT OR Apache-2.0
//! The built-in provider: thin, it turns configuration into settings and an engine.

use std::{
    collections::HashMap,
    iter,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use patchcord_bridge::{MacAddr, SwitchConfig, Vid};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tracing::{Instrument, debug, info, warn};

use super::{
    latency::WakeBound,
    status::{self, Snapshot},
};
use crate::{
    config::{
        Backend, Carrier, CipherChoice, Config, DeviceConfig, Endpoint, Mode, OffloadChoice,
        PeerConfig, PipelineConfig, PlanChoice, SwitchSettings, TcpMss,
    },
    control::message::{Answer, Answered, FdbRequest, Query, QueryError},
    crypto::{
        aead::{Cipher, CipherOffer},
        keys::PublicKey,
        mac,
    },
    io::{
        tap::{self, Offloads},
        udp::{Capabilities, UdpSocket, is_here},
    },
    machine::link::{LinkEvent, Links},
    pipeline::{
        Engine, EngineConfig, EngineEvent, EnginePeer, Stopped, clock,
        plan::{CorePlan, PlanRequest},
        watchdog::Watchdog,
    },
    proto::{limits::FRAME_OVERHEAD, node::NodeConfig, peer::PeerSettings},
    provider::{
        Addressing, BoxFut, BridgeVlans, EthernetTunnelProvider, EthernetTunnelSettings,
        Ipv6Settings, ProviderContext, ProviderError, StartOptions, StopReason,
    },
    wire::Lane,
};

/// The least MTU of IPv6 (RFC 8200, section 5).
const IPV6_MIN_MTU: u32 = 1280;

/// A tunnel as a configuration file describes it.
pub struct TunnelProvider {
    public_key: PublicKey,
    mode: Mode,
    started: Instant,
    /// Taken by `start`.
    config: Mutex<Option<Config>>,
    pub(super) running: Arc<tokio::sync::Mutex<Option<Running>>>,
    /// Of the engine, while it runs.
    watchdog: Mutex<Option<Arc<Watchdog>>>,
    summary: watch::Sender<String>,
    /// What `start` waits for, in words.
    awaited: Mutex<Option<String>>,
}

pub(super) struct Running {
    /// The configuration in force.
    pub(super) config: Config,
    /// The keys of the peers by their ports, whatever their order in the file is now.
    pub(super) ports: Vec<PublicKey>,
    pub(super) engine: Engine,
    /// When the interface has carrier.
    pub(super) carrier: watch::Sender<Carrier>,
    wake_bound: Option<Arc<WakeBound>>,
    watchers: JoinSet<()>,
}

impl TunnelProvider {
    /// A tunnel that is not started.
    pub fn new(config: Config) -> Self {
        Self {
            public_key: config.tunnel.private_key.public_key(),
            mode: config.device.mode,
            started: clock::now(),
            config: Mutex::new(Some(config)),
            running: Arc::default(),
            watchdog: Mutex::default(),
            summary: watch::Sender::new(String::new()),
            awaited: Mutex::default(),
        }
    }

    pub(super) fn summary_sender(&self) -> watch::Sender<String> {
        self.summary.clone()
    }

    /// The same, with the summary of a tunnel that it follows.
    #[must_use]
    pub(super) fn reporting_to(mut self, summary: watch::Sender<String>) -> Self {
        self.summary = summary;
        self
    }

    /// How many peers are up, and the trouble of the others, as text; before that, what the tunnel waits for.
    pub fn summary(&self) -> watch::Receiver<String> {
        self.summary.subscribe()
    }

    fn set_watchdog(&self, watchdog: Option<Arc<Watchdog>>) {
        *self.watchdog.lock().unwrap_or_else(PoisonError::into_inner) = watchdog;
    }

    async fn start(&self, context: &ProviderContext) -> Result<(), ProviderError> {
        let config = self
            .config
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let config = config.ok_or_else(|| ProviderError::new("a session starts once"))?;
        for warning in config.warnings() {
            warn!(tunnel = context.tunnel(), "{warning}");
        }
        check_cipher(config.tunnel.cipher)?;
        if config.device.is_nic {
            self.wait_for_nic(context, &config.device.name).await?;
        }
        // The socket first: a UDP port in use must not disturb an interface.
        let plan = CorePlan::choose(plan_request(&config));
        let mut sockets = UdpSocket::bind_lanes(config.tunnel.listen, plan.receivers)
            .map_err(|error| ProviderError::with_source("cannot open the UDP socket", error))?;
        let listen = config.tunnel.listen;
        if !is_here(listen) {
            warn!(
                tunnel = context.tunnel(),
                %listen,
                "the address in `listen` is not on this machine yet: no peer is reached until it is; \
                 `ip address` shows those that are"
            );
        }
        let allowed = allowed_offloads(&config.pipeline);
        for socket in &mut sockets {
            let restricted = socket.restrict(allowed);
            restricted.map_err(|error| {
                ProviderError::with_source("cannot turn UDP offloads off", error)
            })?;
            // The tunnel's own datagrams must not go through it.
            let marked = context.protect(socket);
            marked.map_err(|error| ProviderError::with_source("no way past the tunnel", error))?;
        }
        let settings = settings(&config);
        context.set_network_settings(Some(settings)).await?;
        let queues = context
            .take_queues()
            .ok_or_else(|| ProviderError::new("the interface has no queue"))?;
        if queues.len() < plan.lanes {
            info!(
                asked = plan.lanes,
                queues = queues.len(),
                "the interface has fewer queues than asked for: using as many lanes"
            );
        }
        let port = sockets[0].local_addr().map(|address| address.port());
        let filtered = port.and_then(|port| {
            let mut queues = queues.iter();
            queues.try_for_each(|queue| queue.leave_out_tunnel(port))
        });
        filtered.map_err(|error| {
            ProviderError::with_source("cannot keep the tunnel's own datagrams out", error)
        })?;
        let offloads = context
            .set_offloads(Offloads::ALL)
            .await
            .map_err(|error| ProviderError::with_source("cannot set offloads", error))?;

        // The MTU of a NIC is known only now.
        let mtu = context.device_info().map_or(config.device.mtu, |it| it.mtu);
        let peers = config.peers.len();
        let wake_bound = config.pipeline.latency;
        let wake_bound = wake_bound.map(|bound_us| Arc::new(WakeBound::new(bound_us, peers)));
        let mut running = self.running.lock().await;
        let (engine, events) = Engine::start(engine_config(&config, mtu), queues, sockets)
            .map_err(|error| ProviderError::with_source("cannot start the data threads", error))?;
        info!(
            listen = %engine.local_addr(),
            plan = engine.plan().name(),
            lanes = engine.plan().lanes,
            express = engine.plan().express,
            %offloads,
            udp_gso = engine.udp().gso,
            udp_gro = engine.udp().gro,
            public_key = %self.public_key,
            "engine started"
        );
        let mut watchers = JoinSet::new();
        let (carrier, follows) = watch::channel(config.device.carrier);
        let reports = watch_engine(context.clone(), events, follows, self.summary.clone());
        watchers.spawn(supervise(context.clone(), reports).in_current_span());
        let addresses = watch_addresses(self.running.clone());
        watchers.spawn(supervise(context.clone(), addresses).in_current_span());
        if let Some(bound) = wake_bound.clone() {
            let frames = engine.frame_counter();
            let bound = async move { bound.follow(frames).await };
            watchers.spawn(supervise(context.clone(), bound).in_current_span());
        }
        self.set_watchdog(Some(engine.watchdog()));
        *running = Some(Running {
            ports: config.peers.iter().map(|peer| peer.public_key).collect(),
            config,
            engine,
            carrier,
            wake_bound,
            watchers,
        });
        Ok(())
    }

    /// A network card may come later than the tunnel: on USB, or by a driver that loads slowly.
    async fn wait_for_nic(
        &self,
        context: &ProviderContext,
        nic: &str,
    ) -> Result<(), ProviderError> {
        let cannot_look =
            |error| ProviderError::with_source("cannot look for the network card", error);
        let links = Links::connect().map_err(cannot_look)?;
        let mut events = Links::watch();
        if links.find(nic).await.map_err(cannot_look)?.is_some() {
            return Ok(());
        }
        warn!(
            tunnel = context.tunnel(),
            nic,
            "the tunnel waits for its network card: there is no interface of this name yet, and `ip link` \
             shows those that are"
        );
        self.set_awaited(Some(nic));
        let comes = async {
            while !matches!(links.find(nic).await, Ok(Some(_))) {
                events.next().await;
            }
        };
        let outcome = context.wait_for(comes).await;
        self.set_awaited(None);
        outcome
    }

    fn set_awaited(&self, nic: Option<&str>) {
        let text = nic.map(|nic| format!("waits for the network card `{nic}`"));
        if let Some(text) = &text {
            self.summary.send_replace(text.clone());
        }
        *self.awaited.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }

    /// Why there is nothing to answer from.
    fn no_answer(&self) -> QueryError {
        let awaited = self.awaited.lock().unwrap_or_else(PoisonError::into_inner);
        match &*awaited {
            Some(awaited) => QueryError::Refused(format!(
                "the tunnel {awaited}, and starts when it is there; `ip link` shows those that are"
            )),
            None => QueryError::NotNow,
        }
    }

    async fn show(&self, context: &ProviderContext) -> Option<Answer> {
        let running = self.running.lock().await;
        let Running {
            engine, wake_bound, ..
        } = running.as_ref()?;
        let state = *context.status().borrow();
        let snapshot = Snapshot {
            tunnel: context.tunnel(),
            state,
            uptime: clock::now().saturating_duration_since(self.started),
            public_key: self.public_key,
            listen: engine.local_addr(),
            udp: engine.udp(),
            device: context.device_report().await?,
            mode: self.mode,
            plan: engine.plan(),
            latency: wake_bound.as_ref().map(|bound| bound.status()),
            engine: engine.view().await?,
        };
        Some(Answer::Status(Box::new(status::status(snapshot))))
    }

    async fn fdb(&self, request: FdbRequest) -> Option<Answered> {
        let running = self.running.lock().await;
        running.as_ref()?.engine.fdb(request).await
    }
}

impl EthernetTunnelProvider for TunnelProvider {
    fn start<'a>(
        &'a self,
        context: &'a ProviderContext,
        _options: StartOptions,
    ) -> BoxFut<'a, Result<(), ProviderError>> {
        Box::pin(self.start(context))
    }

    fn stop<'a>(&'a self, _context: &'a ProviderContext, reason: StopReason) -> BoxFut<'a, ()> {
        Box::pin(async move {
            debug!(?reason, "stopping");
            let running = self.running.lock().await.take();
            self.set_watchdog(None);
            if let Some(running) = running {
                let Running {
                    engine,
                    mut watchers,
                    ..
                } = running;
                watchers.shutdown().await;
                engine.stop().await;
            }
        })
    }

    fn handle_query<'a>(
        &'a self,
        context: &'a ProviderContext,
        query: Query,
    ) -> BoxFut<'a, Answered> {
        Box::pin(async move {
            let answer = match query {
                Query::Show => self.show(context).await.map(Ok),
                Query::Fdb(request) => self.fdb(request).await,
                Query::Reload(mode) => self.reload(context, mode).await,
            };
            answer.unwrap_or_else(|| Err(self.no_answer()))
        })
    }

    fn is_well(&self) -> bool {
        let watchdog = self.watchdog.lock().unwrap_or_else(PoisonError::into_inner);
        watchdog
            .as_ref()
            .is_none_or(|watchdog| watchdog.is_healthy())
    }
}

/// Runs a task as long as the tunnel runs, and ends the tunnel if it panics.
async fn supervise(context: ProviderContext, task: impl Future<Output = ()> + Send + 'static) {
    // Dropped with this one.
    let mut inner = JoinSet::new();
    inner.spawn(task.in_current_span());
    if let Some(Err(end)) = inner.join_next().await
        && end.is_panic()
    {
        let problem = "a task of the tunnel panicked; please report this with the lines above";
        context.cancel_tunnel(Some(ProviderError::new(problem)));
    }
}

/// The state follows the peers: up while at least one of them is. So does the carrier, unless it is
/// always on.
async fn watch_engine(
    context: ProviderContext,
    mut events: mpsc::Receiver<EngineEvent>,
    mut carrier: watch::Receiver<Carrier>,
    summary: watch::Sender<String>,
) {
    let mut is_reachable = false;
    let is_on = |carrier: &watch::Receiver<Carrier>, is_reachable| {
        is_reachable || *carrier.borrow() == Carrier::Always
    };
    // A NIC that forwards the loss of the link begins without carrier.
    context.set_carrier(is_on(&carrier, is_reachable)).await;
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            Ok(()) = carrier.changed() => {
                context.set_carrier(is_on(&carrier, is_reachable)).await;
                continue;
            }
        };
        let Some(event) = event else { return };
        match event {
            EngineEvent::Reachable => {
                is_reachable = true;
                context.set_carrier(true).await;
                context.set_reasserting(false);
            }
            EngineEvent::Unreachable => {
                is_reachable = false;
                context.set_carrier(is_on(&carrier, is_reachable)).await;
                context.set_reasserting(true);
            }
            EngineEvent::StationsMoved => context.forget_stations().await,
            EngineEvent::Summary(text) => drop(summary.send_replace(text)),
            EngineEvent::Broken(Stopped::TapLost) => context.handle_lost_interface().await,
            EngineEvent::Broken(Stopped::Failed(error)) => {
                let error =
                    ProviderError::with_source("a thread or task of the tunnel failed", error);
                context.cancel_tunnel(Some(error));
            }
            EngineEvent::Broken(Stopped::Asked) => {}
        }
    }
}

/// Announces a new address of ours to the peers at once, and sends larger datagrams as soon as the
/// underlay's link takes them.
async fn watch_addresses(running: Arc<tokio::sync::Mutex<Option<Running>>>) {
    let mut events = Links::watch();
    let mut mtus = HashMap::new();
    loop {
        if is_of_the_underlay(&events.next().await, &mut mtus)
            && let Some(running) = &*running.lock().await
        {
            running.engine.handle_network_change().await;
        }
    }
}

/// Whether datagrams may take another path, or have another size. `mtus`: the links seen so far.
fn is_of_the_underlay(event: &LinkEvent, mtus: &mut HashMap<u32, u32>) -> bool {
    match *event {
        LinkEvent::AddressesChanged => true,
        LinkEvent::LinkChanged { index, deleted, .. } if deleted => {
            mtus.remove(&index);
            false
        }
        LinkEvent::LinkChanged { index, mtu, .. } => mtus.insert(index, mtu) != Some(mtu),
    }
}

/// What the configuration asks of the machine.
pub(super) fn settings(config: &Config) -> EthernetTunnelSettings {
    let plan = CorePlan::choose(plan_request(config));
    let public_key = config.tunnel.private_key.public_key();
    let mut settings = device_settings(&config.device, &public_key);
    settings.queues = plan.lanes;
    settings.express_queue = plan.express;
    settings
}

fn device_settings(device: &DeviceConfig, public_key: &PublicKey) -> EthernetTunnelSettings {
    let anywhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let mac = device
        .mac
        .unwrap_or_else(|| stable_mac(public_key, &device.name));
    let mut settings = EthernetTunnelSettings::new(anywhere, mac, device.mtu, &device.name)
        .with_addresses(&device.addresses);
    if device.is_nic {
        settings.backend = tap::Backend::Packet;
        settings.link_loss_forwarding = device.link_loss_forwarding;
        return settings;
    }
    if device.bridge.is_none() && device.mtu >= IPV6_MIN_MTU {
        // An interface like any other, whatever assigns its addresses.
        let link_local = || Ipv6Settings::with_addressing(Addressing::LinkLocal);
        settings.ipv6.get_or_insert_with(link_local);
    }
    settings.accept_router_advertisements = device.accept_router_advertisements;
    settings.keep_existing_address = device.mac.is_none();
    settings.bridge.clone_from(&device.bridge);
    settings.bridge_may_come_later = true;
    settings.bridge_vlans = device.bridge_vlans.as_ref().map(|vlans| BridgeVlans {
        tagged: vlans.tagged.iter().map(Vid::value).collect(),
        native: vlans.native.map(Vid::value),
    });
    settings.backend = match device.backend {
        Backend::Auto => tap::Backend::Auto,
        Backend::Vnet => tap::Backend::Vnet,
        Backend::Plain => tap::Backend::Plain,
    };
    settings
}

/// A locally administered address that is the same at each start and differs between the ends.
fn stable_mac(public_key: &PublicKey, device: &str) -> MacAddr {
    let message = [public_key.as_bytes(), device.as_bytes()].concat();
    let hash = mac::mac(b"patchcord device address", &message);
    let [first, rest @ ..] = hash;
    MacAddr([
        (first | 0x02) & 0xfe,
        rest[0],
        rest[1],
        rest[2],
        rest[3],
        rest[4],
    ])
}

/// The only cipher that a configuration allows, if it names one.
fn pinned(choice: CipherChoice) -> Option<Cipher> {
    match choice {
        CipherChoice::Auto => None,
        CipherChoice::Aes256Gcm => Some(Cipher::Aes256Gcm),
        CipherChoice::ChaCha20Poly1305 => Some(Cipher::ChaCha20Poly1305),
        CipherChoice::Aegis128X4 => Some(Cipher::Aegis128X4),
    }
}

pub(super) fn check_cipher(choice: CipherChoice) -> Result<(), ProviderError> {
    match pinned(choice).filter(|cipher| !cipher.is_available()) {
        None => Ok(()),
        Some(cipher) => Err(ProviderError::new(format!(
            "`cipher = \"{}\"` needs AES instructions, which this processor does not have: set \
             `cipher = \"auto\"` at both ends",
            cipher.name()
        ))),
    }
}

/// What a configuration allows.
pub(super) fn ciphers(choice: CipherChoice) -> CipherOffer {
    match pinned(choice) {
        Some(cipher) => CipherOffer::only(cipher),
        None => CipherOffer::auto(clock::now),
    }
}

/// Bytes of the largest frame of an interface with this MTU.
pub(super) fn max_frame(mtu: u32) -> u16 {
    u16::try_from(mtu + FRAME_OVERHEAD).unwrap_or(u16::MAX)
}

fn engine_config(config: &Config, mtu: u32) -> EngineConfig {
    let Config {
        tunnel,
        device,
        peers,
        switch,
        ..
    } = config;
    EngineConfig {
        node: NodeConfig {
            private_key: tunnel.private_key.clone(),
            ciphers: ciphers(tunnel.cipher),
            network_id: tunnel.network_id,
            lanes: Lane::FIRST_DATA.0.into(),
            max_frame: max_frame(mtu),
            rekey_interval: tunnel.rekey_interval,
        },
        switch: switch_config(switch, device, peers),
        peers: peers.iter().map(engine_peer).collect(),
        loop_guard: switch.loop_guard,
        querier: switch.querier,
        wire: device.mode == Mode::Wire,
        lowers_mss: tunnel.tcp_mss == TcpMss::Path,
        plan: plan_request(config),
    }
}

/// The device has the first port; the peers follow in the order of the file.
fn switch_config(
    settings: &SwitchSettings,
    device: &DeviceConfig,
    peers: &[PeerConfig],
) -> SwitchConfig {
    let peers = peers.iter().map(|peer| &peer.port);
    let ports: Vec<_> = iter::once(&device.port).chain(peers).cloned().collect();
    SwitchConfig {
        fdb_capacity: settings.room(ports.len()),
        ports,
        // Rounded up: an ageing time of 0 would forget each address at once.
        ageing_s: settings.ageing.as_secs_f64().ceil() as u32,
        dampening_s: settings.dampening.as_secs_f64().ceil() as u32,
        max_per_port: settings.max_addresses,
        hub: settings.hub,
        own_probe_mac: None,
    }
}

pub(super) fn engine_peer(peer: &PeerConfig) -> EnginePeer {
    let (endpoint, host) = match &peer.endpoint {
        Some(Endpoint::Addr(address)) => (Some(*address), None),
        Some(host @ Endpoint::Host { .. }) => (None, Some(host.to_string())),
        None => (None, None),
    };
    let settings = PeerSettings {
        public_key: peer.public_key,
        preshared_key: peer.preshared_key.clone(),
        endpoint,
        has_name: host.is_some(),
        keepalive: peer.keepalive,
    };
    EnginePeer {
        settings,
        name: peer.name.clone(),
        host,
    }
}

fn allowed_offloads(pipeline: &PipelineConfig) -> Capabilities {
    Capabilities {
        gso: pipeline.udp_gso == OffloadChoice::Auto,
        gro: pipeline.udp_gro == OffloadChoice::Auto,
    }
}

fn plan_request(config: &Config) -> PlanRequest {
    let pipeline = &config.pipeline;
    PlanRequest {
        express: pipeline.express && !config.device.is_nic,
        hub: config.switch.hub,
        staged: pipeline.plan == PlanChoice::Staged,
        lanes: pipeline.lanes,
        workers: pipeline.workers,
        pin: pipeline.pin,
        nice: pipeline.nice,
    }
}
