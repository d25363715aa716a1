// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hard path: the work of a provider besides moving frames.
//!
//! ```text
//!  stdin: status, mtu N, sleep, wake ──> host ── app message ───────────────┐
//!  the machine's way out changes ──> host ── default_path ─────────────┐    │
//!  a timer: the peer is silent ──> reassert, give up ──────────────┐   │    │
//!  Ctrl-C, SIGTERM, SIGHUP ──> host ── stop(reason) ───────────┐   │   │    │
//!                                                              v   v   v    v
//!  hard0 ═ TAP ═ frames ───────────────────────────────────── the provider ─── UDP ─── peer
//! ```
//! It shows a start that waits for the peer and can be stopped meanwhile; settings with a router,
//! routes and name servers; new settings while frames flow; a session that is `reasserting` while the
//! peer is silent, and cancelled with a reason when it stays so; a path that changes under the tunnel;
//! messages with and without an answer; sleep and wake; a goodbye that depends on the stop's reason.
//! Both ends run the same program. **It does not encrypt**; see `link.rs` for the frames' part alone,
//! in batches.
//!
//! ```text
//! a$ sudo target/debug/examples/hard_path --peer 192.0.2.2:47900 --address 10.90.0.1/24
//! b$ sudo target/debug/examples/hard_path --peer 192.0.2.1:47900 --address 10.90.0.2/24 \
//!        --router 10.90.0.1 --route 198.51.100.0/24 --dns 10.90.0.1 --match-domain lab.example
//! hard0: connecting
//! hard0: connected
//! status
//! {"frames-in":0,"frames-out":0,"mtu":1400,"peer":"192.0.2.1:47900","status":"connected"}
//! mtu 1300
//! {"mtu":1300}
//! hard0: reasserting                                   # the peer is silent
//! hard0: connected                                     # it is back
//! ^Chard0: disconnecting
//! hard0: disconnected
//! hard0: stopped: UserInitiated
//! ```
//! `--peer` can be repeated, for a peer with several addresses: datagrams go to the one that was heard
//! last, and to all while it is silent. SIGHUP ends this end without a goodbye, for another process
//! that takes its place. Exit codes: 0 stopped, 1 failed at run time, 2 bad usage.

// It is a program: its output goes to stdout, its errors to stderr. It measures silence by the clock.
#![allow(clippy::disallowed_methods, clippy::print_stderr, clippy::print_stdout)]

use std::{
    io,
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Result, anyhow};
use bytes::Bytes;
use clap::Parser;
use ipnet::IpNet;
use patchcord::{
    control::RUN_DIR,
    host::{EventKind, Host},
    provider::{
        AppMessage, BoxFut, Deadlines, DnsSettings, EthernetTunnelProvider, EthernetTunnelSettings,
        FlowError, IpSettings, Path, PathStatus, ProviderContext, ProviderError, Route,
        StartOptions, StopReason, TunnelConfiguration,
    },
};
use patchcord_bridge::MacAddr;
use serde_json::json;
use tokio::{
    net::UdpSocket,
    signal::unix::{SignalKind, signal},
    sync::{Notify, mpsc},
    task::JoinSet,
    time::{Instant, interval, timeout},
};

/// The interval of each end's hellos.
const HELLO_INTERVAL: Duration = Duration::from_millis(200);

/// An Ethernet link over plain UDP with everything around it. It does not encrypt
#[derive(Clone, Parser)]
#[command(name = "hard_path")]
struct Args {
    /// Where the other end is; can be repeated for one with several addresses
    #[arg(long, value_name = "ADDRESS:PORT", required = true)]
    peer: Vec<SocketAddr>,
    /// Where this end listens
    #[arg(long, default_value = "[::]:47900")]
    listen: SocketAddr,
    /// Name of the interface
    #[arg(long, default_value = "hard0")]
    name: String,
    /// MAC address of the interface, different at each end [default: a random one]
    #[arg(long)]
    mac: Option<MacAddr>,
    /// MTU of the interface, the same at each end
    #[arg(long, default_value_t = 1400)]
    mtu: u32,
    /// Address of the interface; can be repeated
    #[arg(long, value_name = "ADDRESS/LENGTH", required = true)]
    address: Vec<IpNet>,
    /// Next hop in the far LAN for routes that are not on-link; one for each family
    #[arg(long, value_name = "ADDRESS")]
    router: Vec<IpAddr>,
    /// Network that goes through the tunnel; can be repeated
    #[arg(long, value_name = "NETWORK")]
    route: Vec<IpNet>,
    /// Network that does not, although a --route covers it; can be repeated
    #[arg(long, value_name = "NETWORK")]
    exclude: Vec<IpNet>,
    /// Name server in the far LAN; can be repeated
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<IpAddr>,
    /// Ask those servers for names in this domain only; can be repeated
    #[arg(long, value_name = "DOMAIN", requires = "dns")]
    match_domain: Vec<String>,
    /// Reassert when the peer is silent for so long
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    dead_after: Duration,
    /// Give up when it is silent for so long, or does not answer at the start
    #[arg(long, default_value = "1m", value_parser = humantime::parse_duration)]
    give_up_after: Duration,
}

// The program: it hosts one session and relays messages to it.

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hard_path: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn run(args: Args) -> Result<()> {
    let name = args.name.clone();
    let deadlines = Deadlines {
        // The provider gives up earlier by itself, with a better reason.
        start: args.give_up_after + Duration::from_secs(10),
        ..Deadlines::default()
    };
    // Each session has a provider of its own, made here.
    let host = Host::builder(RUN_DIR)
        .register("hard-path", move |_, _| Ok(HardPath::new(args.clone())))
        .deadlines(deadlines)
        .build();
    let mut events = host.events();
    host.configure(&name, TunnelConfiguration::new("hard-path"), None)?;
    host.start(&name, StartOptions::default())?;
    tokio::spawn(stop_on_signal(host.clone(), name.clone()));
    tokio::spawn(pass_on_messages(host.clone(), name.clone()));
    while let Some(event) = events.next().await {
        match event?.kind {
            EventKind::Status(status) => println!("{name}: {}", status.name()),
            EventKind::Ended { reason, error } => {
                println!("{name}: stopped: {reason:?}");
                return error.map_or(Ok(()), |error| Err(anyhow!(error)));
            }
            _ => {}
        }
    }
    Ok(())
}

/// SIGHUP means that another process takes the tunnel over, the other signals that it ends.
async fn stop_on_signal(host: Host, name: String) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let reason = tokio::select! {
        _ = terminate.recv() => StopReason::UserInitiated,
        _ = tokio::signal::ctrl_c() => StopReason::UserInitiated,
        _ = hangup.recv() => StopReason::AppUpdate,
    };
    Ok(host.stop(&name, reason).await?)
}

/// Each line of stdin is a message.
async fn pass_on_messages(host: Host, name: String) -> Result<()> {
    let (lines_in, mut lines) = mpsc::channel(1);
    // A thread of its own, because a runtime would wait for the pending read before it ends.
    thread::spawn(move || {
        for line in io::stdin().lines().map_while(Result::ok) {
            if lines_in.blocking_send(line).is_err() {
                return;
            }
        }
    });
    while let Some(line) = lines.recv().await {
        match host.send_message(&name, Bytes::from(line.clone())).await? {
            Some(answer) => println!("{}", String::from_utf8_lossy(&answer)),
            None => println!("no answer to {line:?}"),
        }
    }
    Ok(())
}

// The provider: thin. It turns arguments into settings and callbacks into calls of the engine.

struct HardPath {
    args: Args,
    /// The settings in force; changed by messages.
    settings: tokio::sync::Mutex<Option<EthernetTunnelSettings>>,
    engine: Mutex<Option<Arc<Engine>>>,
    tasks: Mutex<JoinSet<()>>,
}

impl HardPath {
    fn new(args: Args) -> Self {
        Self {
            args,
            settings: tokio::sync::Mutex::default(),
            engine: Mutex::default(),
            tasks: Mutex::default(),
        }
    }

    async fn start(&self, context: &ProviderContext) -> Result<(), ProviderError> {
        // In this order: steps that fail without a trace, steps that take long, steps that change
        // the machine. The host drops this at an await when the session is stopped meanwhile.
        let settings = self.settings()?;
        let engine = Arc::new(Engine::new(&self.args).await?);
        // Whatever the routes say: a tunnel must not carry its own datagrams.
        context
            .protect(&engine.socket)
            .map_err(|error| ProviderError::with_source("no way around the tunnel", error))?;
        *lock(&self.engine) = Some(engine.clone());
        engine.find_peer(self.args.give_up_after).await?;
        let applied = context.set_network_settings(Some(settings.clone())).await?;
        if let Some(applied) = applied {
            let (interface, dns) = (applied.interface.name, applied.dns);
            tracing::debug!(interface, ?dns, "settings in force");
        }
        *self.settings.lock().await = Some(settings);
        context.set_carrier(true).await;

        let args = &self.args;
        let patience = (args.dead_after, args.give_up_after);
        self.spawn(cancel_on_error(
            context.clone(),
            "the interface gives no frames",
            outbound(context.clone(), engine.clone()),
        ));
        self.spawn(cancel_on_error(
            context.clone(),
            "the interface takes no frames",
            inbound(context.clone(), engine.clone()),
        ));
        self.spawn(watch_peer(context.clone(), engine.clone(), patience));
        self.spawn(watch_path(context.clone(), engine));
        Ok(())
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        lock(&self.tasks).spawn(task);
    }

    fn engine(&self) -> Option<Arc<Engine>> {
        lock(&self.engine).clone()
    }

    fn settings(&self) -> Result<EthernetTunnelSettings, ProviderError> {
        let args = &self.args;
        let mac = match args.mac {
            Some(mac) => mac,
            None => random_mac()?,
        };
        // As a second measure, no route covers the peer's address.
        let remote = args.peer[0].ip();
        let mut settings = EthernetTunnelSettings::new(remote, mac, args.mtu, &args.name)
            .with_addresses(&args.address);
        for router in &args.router {
            let wrong = || ProviderError::new(format!("--router {router} without an --address"));
            match *router {
                IpAddr::V4(ip) => settings.ipv4.as_mut().ok_or_else(wrong)?.router = Some(ip),
                IpAddr::V6(ip) => settings.ipv6.as_mut().ok_or_else(wrong)?.router = Some(ip),
            }
        }
        for (networks, is_included) in [(&args.route, true), (&args.exclude, false)] {
            for network in networks {
                let wrong = || ProviderError::new(format!("{network} without an --address"));
                match *network {
                    IpNet::V4(to) => {
                        add(settings.ipv4.as_mut().ok_or_else(wrong)?, to, is_included)
                    }
                    IpNet::V6(to) => {
                        add(settings.ipv6.as_mut().ok_or_else(wrong)?, to, is_included)
                    }
                }
            }
        }
        if !args.dns.is_empty() {
            let mut dns = DnsSettings::new(args.dns.clone());
            dns.match_domains = (!args.match_domain.is_empty()).then(|| args.match_domain.clone());
            settings.dns = Some(dns);
        }
        Ok(settings)
    }

    /// Complete settings again, with one difference: the host changes nothing else.
    async fn set_mtu(&self, context: &ProviderContext, mtu: u32) -> serde_json::Value {
        let mut in_force = self.settings.lock().await;
        let Some(mut settings) = in_force.clone() else {
            return json!({ "error": "not connected yet" });
        };
        settings.mtu = mtu;
        match context.set_network_settings(Some(settings.clone())).await {
            Ok(_) => {
                *in_force = Some(settings);
                json!({ "mtu": mtu })
            }
            Err(error) => json!({ "error": error.to_string() }),
        }
    }

    async fn status(&self, context: &ProviderContext) -> serde_json::Value {
        let engine = self.engine();
        let frames = |read: fn(&Engine) -> &AtomicU64| {
            let count = |engine: &Arc<Engine>| read(engine).load(Ordering::Relaxed);
            engine.as_ref().map_or(0, count)
        };
        json!({
            "status": context.status().borrow().name(),
            "peer": engine.as_ref().map(|engine| engine.peer().to_string()),
            "mtu": context.device_info().map(|device| device.mtu),
            "frames-out": frames(|engine| &engine.frames_out),
            "frames-in": frames(|engine| &engine.frames_in),
        })
    }
}

impl EthernetTunnelProvider for HardPath {
    fn start<'a>(
        &'a self,
        context: &'a ProviderContext,
        _options: StartOptions,
    ) -> BoxFut<'a, Result<(), ProviderError>> {
        Box::pin(self.start(context))
    }

    /// Called once, whatever ended the session, even after a start that failed: so it must not rely
    /// on what `start` makes.
    fn stop<'a>(&'a self, context: &'a ProviderContext, reason: StopReason) -> BoxFut<'a, ()> {
        Box::pin(async move {
            context.set_carrier(false).await;
            let mut tasks = std::mem::take(&mut *lock(&self.tasks));
            tasks.shutdown().await;
            let Some(engine) = self.engine() else {
                return;
            };
            match reason {
                // The tunnel comes back at once, or the peer cannot be reached: it notices by
                // itself.
                StopReason::AppUpdate
                | StopReason::NoNetworkAvailable
                | StopReason::UnrecoverableNetworkChange => {}
                _ => engine.send_to_all(&[Kind::Bye as u8]).await,
            }
        })
    }

    fn handle_app_message<'a>(
        &'a self,
        context: &'a ProviderContext,
        message: AppMessage,
    ) -> BoxFut<'a, Option<Bytes>> {
        Box::pin(async move {
            let message = str::from_utf8(&message.body).ok()?;
            let words: Vec<_> = message.split_whitespace().collect();
            let answer = match words[..] {
                ["status"] => self.status(context).await,
                ["mtu", mtu] => match mtu.parse() {
                    Ok(mtu) => self.set_mtu(context, mtu).await,
                    Err(_) => json!({ "error": "an MTU is a number, for example `mtu 1400`" }),
                },
                // `patchcord host` does not announce the machine's sleep; these messages stand in
                // for it.
                ["sleep"] => {
                    self.sleep(context).await;
                    json!({ "asleep": true })
                }
                ["wake"] => {
                    self.wake(context);
                    json!({ "asleep": false })
                }
                _ => return None,
            };
            Some(Bytes::from(answer.to_string()))
        })
    }

    /// The time of the sleep is no silence of the peer, and frames would be lost.
    fn sleep<'a>(&'a self, context: &'a ProviderContext) -> BoxFut<'a, ()> {
        Box::pin(async move {
            if let Some(engine) = self.engine() {
                engine.hear(Hearing::Asleep);
                context.set_reasserting(true);
                context.set_carrier(false).await;
                engine.send_to_all(&[Kind::Bye as u8]).await;
            }
        })
    }

    fn wake(&self, _: &ProviderContext) {
        if let Some(engine) = self.engine() {
            engine.hear(Hearing::Doubted(Instant::now()));
        }
    }
}

fn add<N, A>(settings: &mut IpSettings<N, A>, destination: N, is_included: bool) {
    match is_included {
        true => settings.included_routes.push(Route {
            destination,
            gateway: None,
        }),
        false => settings.excluded_routes.push(destination),
    }
}

/// A locally administered address of one station.
fn random_mac() -> Result<MacAddr, ProviderError> {
    let mut mac = [0; 6];
    getrandom::fill(&mut mac)
        .map_err(|error| ProviderError::with_source("no random MAC address: give --mac", error))?;
    mac[0] = mac[0] & 0xfc | 0x02;
    Ok(MacAddr(mac))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// The tasks.

/// An error of a task ends the session, with the reason.
async fn cancel_on_error(
    context: ProviderContext,
    problem: &'static str,
    task: impl Future<Output = Result<(), FlowError>>,
) {
    if let Err(error) = task.await {
        context.cancel_tunnel(Some(ProviderError::with_source(problem, error)));
    }
}

async fn outbound(context: ProviderContext, engine: Arc<Engine>) -> Result<(), FlowError> {
    let Some(mut reader) = context.take_reader() else {
        return Ok(());
    };
    let mut frames: Vec<Bytes> = Vec::new();
    let mut datagram = Vec::new();
    loop {
        reader.recv_batch(&mut frames).await?;
        for frame in frames.drain(..) {
            datagram.clear();
            datagram.push(Kind::Frame as u8);
            datagram.extend(&frame);
            engine.send(&datagram).await;
            engine.frames_out.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn inbound(context: ProviderContext, engine: Arc<Engine>) -> Result<(), FlowError> {
    let writer = context.writer();
    let mut datagram = vec![0; usize::from(u16::MAX)];
    loop {
        let len = engine.recv(&mut datagram).await?;
        if let [kind, frame @ ..] = &datagram[..len]
            && *kind == Kind::Frame as u8
        {
            let report = writer.try_send_batch(&[frame])?;
            let accepted = report.accepted as u64;
            engine.frames_in.fetch_add(accepted, Ordering::Relaxed);
        }
    }
}

/// Sends hellos, and derives the session's state from the peer's silence: reasserting and without
/// carrier, so that users of the interface notice, and after too long an end.
async fn watch_peer(
    context: ProviderContext,
    engine: Arc<Engine>,
    (dead_after, give_up_after): (Duration, Duration),
) {
    let mut tick = interval(HELLO_INTERVAL);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = engine.turned.notified() => {}
        }
        let (silent_for, is_dead) = match engine.hearing() {
            Hearing::Heard(at) => (at.elapsed(), at.elapsed() >= dead_after),
            Hearing::Doubted(since) => (since.elapsed(), true),
            Hearing::Asleep => continue,
        };
        if silent_for >= give_up_after {
            return context.cancel_tunnel(Some(silence(engine.peer(), give_up_after)));
        }
        // A repeated call costs nothing, and before the session is connected it has no effect: so
        // it is made at each tick.
        context.set_reasserting(is_dead);
        if context.carrier() == is_dead {
            context.set_carrier(!is_dead).await;
        }
        if is_dead {
            engine.send_to_all(&[Kind::Hello as u8]).await;
        } else {
            engine.send(&[Kind::Hello as u8]).await;
        }
    }
}

/// When the machine's default path changes or goes, earlier answers prove nothing about the peer any
/// more: all its addresses are asked at once.
async fn watch_path(context: ProviderContext, engine: Arc<Engine>) {
    let mut path = context.default_path();
    // Until the kernel has answered, the path is unknown, which is no change.
    let is_known = |path: &Path| path.status != PathStatus::Invalid;
    if path.wait_for(is_known).await.is_err() {
        return; // the peer's silence will tell
    }
    while path.changed().await.is_ok() {
        engine.doubt_peer();
        engine.send_to_all(&[Kind::Hello as u8]).await;
    }
}

// The engine: datagrams and the peer's state. It knows nothing of providers and sessions.

/// The first byte of a datagram.
#[derive(Clone, Copy)]
enum Kind {
    /// The sender is alive, and asks whether the receiver is.
    Hello = 0,
    /// The answer to a hello.
    Welcome = 1,
    /// A frame follows.
    Frame = 2,
    /// The sender will be silent from now on.
    Bye = 3,
}

struct Engine {
    socket: UdpSocket,
    peers: Vec<SocketAddr>,
    /// The address where the peer was heard last, as an index into `peers`.
    current: AtomicUsize,
    hearing: Mutex<Hearing>,
    /// `hearing` has another variant.
    turned: Notify,
    frames_out: AtomicU64,
    frames_in: AtomicU64,
}

/// Whether the peer is believed to be alive.
#[derive(Clone, Copy)]
enum Hearing {
    /// It was heard at this time.
    Heard(Instant),
    /// At this time it said goodbye, or the path changed, or this end woke up.
    Doubted(Instant),
    /// This end sleeps.
    Asleep,
}

impl Engine {
    async fn new(args: &Args) -> Result<Self, ProviderError> {
        let listen = args.listen;
        let socket = UdpSocket::bind(listen).await.map_err(|error| {
            let remedy = "give --listen a free port, and 0.0.0.0 on a machine without IPv6";
            ProviderError::with_source(format!("no UDP socket on {listen}: {remedy}"), error)
        })?;
        Ok(Self {
            socket,
            peers: args.peer.clone(),
            current: AtomicUsize::default(),
            hearing: Mutex::new(Hearing::Doubted(Instant::now())),
            turned: Notify::new(),
            frames_out: AtomicU64::default(),
            frames_in: AtomicU64::default(),
        })
    }

    fn peer(&self) -> SocketAddr {
        self.peers[self.current.load(Ordering::Relaxed)]
    }

    fn hearing(&self) -> Hearing {
        *lock(&self.hearing)
    }

    fn hear(&self, now: Hearing) {
        let before = std::mem::replace(&mut *lock(&self.hearing), now);
        if std::mem::discriminant(&before) != std::mem::discriminant(&now) {
            self.turned.notify_one();
        }
    }

    /// The path may have changed.
    fn doubt_peer(&self) {
        if let Hearing::Heard(_) = self.hearing() {
            self.hear(Hearing::Doubted(Instant::now()));
        }
    }

    /// Sends hellos until the peer answers.
    async fn find_peer(&self, limit: Duration) -> Result<(), ProviderError> {
        let mut datagram = vec![0; usize::from(u16::MAX)];
        let begin = Instant::now();
        while begin.elapsed() < limit {
            self.send_to_all(&[Kind::Hello as u8]).await;
            let answer = timeout(HELLO_INTERVAL, self.recv(&mut datagram)).await;
            if let Ok(Err(error)) = answer {
                return Err(ProviderError::with_source("the UDP socket failed", error));
            }
            if let Hearing::Heard(_) = self.hearing() {
                return Ok(());
            }
        }
        Err(silence(self.peer(), limit))
    }

    /// A path that fails now may work later; lost frames are lost, as on any cable.
    async fn send(&self, datagram: &[u8]) {
        let _ = self.socket.send_to(datagram, self.peer()).await;
    }

    async fn send_to_all(&self, datagram: &[u8]) {
        for peer in &self.peers {
            let _ = self.socket.send_to(datagram, peer).await;
        }
    }

    /// The length of the next datagram of the peer, after its meaning for the peer's state was
    /// stored.
    async fn recv(&self, datagram: &mut [u8]) -> io::Result<usize> {
        loop {
            let (len, from) = self.socket.recv_from(datagram).await?;
            let from = SocketAddr::new(from.ip().to_canonical(), from.port());
            let known = self.peers.iter().position(|peer| *peer == from);
            let (Some(place), Some(&kind)) = (known, datagram[..len].first()) else {
                continue;
            };
            if let Hearing::Asleep = self.hearing() {
                continue;
            }
            self.current.store(place, Ordering::Relaxed);
            let now = Instant::now();
            if kind == Kind::Bye as u8 {
                self.hear(Hearing::Doubted(now));
            } else {
                self.hear(Hearing::Heard(now));
            }
            if kind == Kind::Hello as u8 {
                self.send(&[Kind::Welcome as u8]).await;
            }
            return Ok(len);
        }
    }
}

fn silence(peer: SocketAddr, limit: Duration) -> ProviderError {
    let limit = humantime::format_duration(limit);
    let question = "is it running, and is its UDP port open?";
    ProviderError::new(format!("{peer} is silent for {limit}: {question}"))
}
