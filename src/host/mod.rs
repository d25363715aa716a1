// SPDX-License-Identifier: MIT OR Apache-2.0
//! Many tunnels in one process (`NEProvider.startSystemExtensionMode` and `NETunnelProviderManager`).
//!
//! A [`Host`] knows kinds of providers, each a function that makes one, and the configurations of
//! tunnels. Each start makes a fresh provider and runs it as a [`Session`] of its own: a panic, a
//! failure or a hang in one leaves the others alone. What happens is told as [`Event`]s, in one order
//! for everybody.
//!
//! ```text
//!              register            configure, remove, start, stop, send_message
//!  factories ────────────┐             │                          events
//!                        v             v                            ^
//!              ┌──────────────────── Host ──────────────────────────┴───┐
//!              │  tunnel "office"            tunnel "lab"               │
//!              │  configuration              configuration              │
//!              │  Session ── provider        (disconnected)             │
//!              └────────────────────────────────────────────────────────┘
//! ```

pub mod client;
pub mod daemon;
mod event;
mod lines;
mod on_demand;
mod places;
pub mod protocol;
pub mod secrets;
mod sleep;
pub mod store;

use std::{
    collections::BTreeMap,
    error::Error,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use tokio::{
    sync::{Semaphore, broadcast, watch},
    task::JoinSet,
};
use tracing::warn;

pub use self::event::{Attempt, Event, EventKind, Events, Lagged};
use self::{
    secrets::{SECRETS_DIR, SecretStore},
    store::{MAX_NAME, is_name},
};
use crate::{
    machine::{
        bus::Bus,
        lock::{LockError, RunLock},
    },
    provider::{
        AppMessage, Deadlines, EthernetTunnelProvider, Hosting, ProviderContext, ProviderError,
        Secret, SecretError, Session, SessionEnd, SessionError, SessionHandle, SessionStatus,
        SleepWatch, StartOptions, StopReason, TunnelConfiguration,
    },
};

/// Events that a slow listener may be behind before it loses some.
const EVENTS: usize = 256;
/// Messages that a provider may have in hand. One that never answers must not hold more and more of them.
const MAX_MESSAGES: usize = 64;

/// Makes a provider for one session of a tunnel.
pub type Factory = dyn Fn(&str, &TunnelConfiguration) -> Result<Arc<dyn EthernetTunnelProvider>, ProviderError>
    + Send
    + Sync;

/// Runs tunnels. Clones are handles to the same host.
#[derive(Clone)]
pub struct Host {
    inner: Arc<Inner>,
}

/// Says what a [`Host`] can run.
pub struct HostBuilder {
    factories: BTreeMap<String, Box<Factory>>,
    run_dir: PathBuf,
    deadlines: Deadlines,
    secrets: SecretStore,
    sleep: SleepWatch,
}

struct Inner {
    factories: BTreeMap<String, Box<Factory>>,
    run_dir: PathBuf,
    deadlines: Deadlines,
    secrets: SecretStore,
    sleep: SleepWatch,
    tunnels: Mutex<BTreeMap<String, Tunnel>>,
    attempts: AtomicU64,
    events: broadcast::Sender<Event>,
}

#[derive(Default)]
struct Tunnel {
    /// `None` when it was removed and its session is not over yet.
    configuration: Option<Arc<TunnelConfiguration>>,
    generation: u64,
    session: Option<Running>,
    last_error: Option<String>,
}

#[derive(Clone)]
struct Running {
    attempt: Attempt,
    handle: SessionHandle,
    /// For messages that the provider has not answered.
    messages: Arc<Semaphore>,
    /// Closed when everything of the session is gone.
    ended: watch::Receiver<()>,
}

/// Why a host does not do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// There is no such tunnel.
    #[error("there is no tunnel `{0}`; `patchcord host list` shows those that there are")]
    NoTunnel(String),
    /// A tunnel cannot have this name: it is one of files.
    #[error(
        "`{0}` is no name for a tunnel: use letters, digits, `-`, `_` and `.`, {MAX_NAME} at most, the first a letter or digit"
    )]
    Name(String),
    /// It is configured not to be used.
    #[error("the tunnel `{0}` is disabled; set `enabled = true` in its configuration")]
    Disabled(String),
    /// It has a session already.
    #[error("the tunnel `{tunnel}` is {} already", status.name())]
    Running {
        /// The tunnel.
        tunnel: String,
        /// What its session is at.
        status: SessionStatus,
    },
    /// It has no session that could answer.
    #[error("the tunnel `{0}` is not running")]
    NotRunning(String),
    /// Its provider has as many messages in hand as it may, and answers none of them.
    #[error(
        "the provider of `{0}` has {MAX_MESSAGES} messages in hand that it has not answered; try again \
         later, or start the tunnel again"
    )]
    Busy(String),
    /// Another process runs it, or the run directory cannot be used.
    #[error(transparent)]
    Locked(#[from] LockError),
    /// No factory of this name was registered.
    #[error("there is no provider `{provider}`; this host has: {}", known.join(", "))]
    NoProvider {
        /// What the configuration names.
        provider: String,
        /// What there is.
        known: Vec<String>,
    },
    /// The provider cannot be made of the configuration.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// Somebody else changed the configuration since it was read.
    #[error("the configuration of `{tunnel}` is generation {current} by now; read it again")]
    Stale {
        /// The tunnel.
        tunnel: String,
        /// Its generation.
        current: u64,
    },
}

/// What there is to know of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TunnelView {
    /// Its name.
    pub tunnel: String,
    /// Its configuration.
    pub configuration: Arc<TunnelConfiguration>,
    /// Counts changes of the configuration.
    pub generation: u64,
    /// Its status.
    pub status: SessionStatus,
    /// Why the last session ended, if that was an error.
    pub last_disconnect_error: Option<String>,
}

impl HostBuilder {
    /// Providers that the configuration calls `kind` are made by `factory`: a fresh one for each
    /// session, from the tunnel's name and configuration.
    #[must_use]
    pub fn register<P: EthernetTunnelProvider>(
        mut self,
        kind: impl Into<String>,
        factory: impl Fn(&str, &TunnelConfiguration) -> Result<P, ProviderError> + Send + Sync + 'static,
    ) -> Self {
        let factory = move |tunnel: &str, configuration: &TunnelConfiguration| {
            let provider: Arc<dyn EthernetTunnelProvider> =
                Arc::new(factory(tunnel, configuration)?);
            Ok(provider)
        };
        self.factories.insert(kind.into(), Box::new(factory));
        self
    }

    /// How long callbacks may take.
    #[must_use]
    pub fn deadlines(mut self, deadlines: Deadlines) -> Self {
        self.deadlines = deadlines;
        self
    }

    /// Where secrets are, unless they are the credentials of this process and files in
    /// [`SECRETS_DIR`].
    #[must_use]
    pub fn secrets(mut self, secrets: SecretStore) -> Self {
        self.secrets = secrets;
        self
    }

    /// A host without tunnels.
    pub fn build(self) -> Host {
        let inner = Inner {
            factories: self.factories,
            run_dir: self.run_dir,
            deadlines: self.deadlines,
            secrets: self.secrets,
            sleep: self.sleep,
            tunnels: Mutex::default(),
            attempts: AtomicU64::new(0),
            events: broadcast::Sender::new(EVENTS),
        };
        Host {
            inner: Arc::new(inner),
        }
    }
}

impl Host {
    /// A host whose run-time state lies in `run_dir`.
    pub fn builder(run_dir: impl AsRef<Path>) -> HostBuilder {
        HostBuilder {
            factories: BTreeMap::new(),
            run_dir: run_dir.as_ref().to_owned(),
            deadlines: Deadlines::default(),
            secrets: SecretStore::new(SECRETS_DIR),
            sleep: SleepWatch::new(Bus::default(), "tunnels get ready"),
        }
    }

    /// Adds a tunnel, or replaces its configuration; a running provider sees it at once, and a
    /// session whose tunnel is disabled now ends with [`StopReason::ConfigurationDisabled`]. With
    /// `generation` only if nobody else changed it since. Returns the new generation. Equal
    /// configurations change nothing.
    ///
    /// # Errors
    /// [`HostError::Name`], [`HostError::Stale`].
    pub fn configure(
        &self,
        tunnel: &str,
        configuration: TunnelConfiguration,
        generation: Option<u64>,
    ) -> Result<u64, HostError> {
        let mut tunnels = self.tunnels();
        check_generation(&tunnels, tunnel, generation)?;
        if !is_name(tunnel) {
            return Err(HostError::Name(tunnel.to_owned()));
        }
        let entry = tunnels.entry(tunnel.to_owned()).or_default();
        if entry.configuration.as_deref() == Some(&configuration) {
            return Ok(entry.generation);
        }
        let configuration = Arc::new(configuration);
        entry.configuration = Some(configuration.clone());
        entry.generation += 1;
        let generation = entry.generation;
        if let Some(running) = &entry.session {
            running.handle.configure(configuration.clone());
            if !configuration.enabled {
                running.handle.stop(StopReason::ConfigurationDisabled);
            }
        }
        self.tell(tunnel, None, EventKind::Configured { generation });
        Ok(generation)
    }

    /// Whether [`configure`](Self::configure) would take a change for this generation.
    fn check_generation(&self, tunnel: &str, known: Option<u64>) -> Result<(), HostError> {
        check_generation(&self.tunnels(), tunnel, known)
    }

    /// Forgets a tunnel; its session ends with [`StopReason::ConfigurationRemoved`].
    ///
    /// # Errors
    /// [`HostError::NoTunnel`].
    pub fn remove(&self, tunnel: &str) -> Result<(), HostError> {
        let mut tunnels = self.tunnels();
        let entry = known(&mut tunnels, tunnel)?;
        if entry.configuration.take().is_none() {
            return Err(HostError::NoTunnel(tunnel.to_owned()));
        }
        match &entry.session {
            Some(running) => running.handle.stop(StopReason::ConfigurationRemoved),
            None => drop(tunnels.remove(tunnel)),
        }
        self.tell(tunnel, None, EventKind::Removed);
        Ok(())
    }

    /// Starts a session and returns at once, with the number that its events carry. The function that
    /// makes its provider may call the host.
    ///
    /// # Errors
    /// When it cannot even be tried.
    pub fn start(&self, tunnel: &str, options: StartOptions) -> Result<Attempt, HostError> {
        let mut configuration = self.startable(tunnel)?;
        let (provider, lock, mut tunnels) = loop {
            // Without a lock: whoever makes providers may ask the host.
            let provider = self.make_provider(tunnel, &configuration)?;
            let lock = RunLock::acquire(&self.inner.run_dir, tunnel);
            // Somebody may have started it meanwhile.
            let lock = lock.map_err(|error| {
                let refused = self.startable(tunnel).err();
                refused.unwrap_or_else(|| error.into())
            })?;
            let tunnels = self.tunnels();
            let now = startable(&tunnels, tunnel)?;
            if Arc::ptr_eq(&now, &configuration) {
                break (provider, lock, tunnels);
            }
            // Somebody has configured it meanwhile.
            configuration = now;
        };
        let attempt = Attempt(self.inner.attempts.fetch_add(1, Ordering::Relaxed) + 1);
        let superseded = supersede(&tunnels, tunnel, &configuration);

        let hosting = Hosted {
            host: self.clone(),
            tunnel: tunnel.to_owned(),
            attempt,
        };
        let context = ProviderContext::new(
            tunnel.to_owned(),
            &self.inner.run_dir,
            configuration,
            Box::new(hosting),
        );
        let session = Session::hosted(
            provider,
            context,
            self.inner.deadlines,
            self.inner.sleep.clone(),
        );
        let (ending, ended) = watch::channel(());
        let running = Running {
            attempt,
            handle: session.handle(),
            messages: Arc::new(Semaphore::new(MAX_MESSAGES)),
            ended,
        };
        let entry = known(&mut tunnels, tunnel)?;
        entry.session = Some(running);
        entry.last_error = None;
        session.begin();
        let (host, tunnel) = (self.clone(), tunnel.to_owned());
        tokio::spawn(async move {
            for other in superseded {
                other.gone().await;
            }
            let end = run_to_end(session, options).await;
            drop(lock);
            host.note_end(&tunnel, attempt, &end);
            drop(ending);
        });
        Ok(attempt)
    }

    fn startable(&self, tunnel: &str) -> Result<Arc<TunnelConfiguration>, HostError> {
        startable(&self.tunnels(), tunnel)
    }

    fn make_provider(
        &self,
        tunnel: &str,
        configuration: &TunnelConfiguration,
    ) -> Result<Arc<dyn EthernetTunnelProvider>, HostError> {
        let Some(factory) = self.inner.factories.get(&configuration.provider) else {
            return Err(HostError::NoProvider {
                provider: configuration.provider.clone(),
                known: self.inner.factories.keys().cloned().collect(),
            });
        };
        let make = std::panic::AssertUnwindSafe(|| factory(tunnel, configuration));
        let provider = std::panic::catch_unwind(make)
            .unwrap_or_else(|_| Err(ProviderError::new("making the provider panicked")))?;
        Ok(provider)
    }

    fn note_end(&self, tunnel: &str, attempt: Attempt, end: &SessionEnd) {
        let error = end.error.as_ref().map(|error| explain(error));
        let mut tunnels = self.tunnels();
        let mut over = None;
        if let Some(entry) = tunnels.get_mut(tunnel) {
            over = entry.session.take();
            entry.last_error.clone_from(&error);
            if entry.configuration.is_none() {
                tunnels.remove(tunnel);
            }
        }
        let reason = end.reason;
        self.tell(tunnel, Some(attempt), EventKind::Ended { reason, error });
        drop(tunnels);
        // The provider goes with it, and may call the host as it does.
        drop(over);
    }

    /// Ends the session of a tunnel and waits until everything of it is gone. A tunnel without one
    /// is fine.
    ///
    /// # Errors
    /// [`HostError::NoTunnel`].
    pub async fn stop(&self, tunnel: &str, reason: StopReason) -> Result<(), HostError> {
        let running = known(&mut self.tunnels(), tunnel)?.session.clone();
        if let Some(running) = running {
            running.handle.stop(reason);
            running.gone().await;
        }
        Ok(())
    }

    fn begin_stop(&self, tunnel: &str, reason: StopReason) {
        let tunnels = self.tunnels();
        let session = tunnels.get(tunnel).and_then(|entry| entry.session.as_ref());
        if let Some(running) = session {
            running.handle.stop(reason);
        }
    }

    /// Ends all sessions and waits for them.
    pub async fn stop_all(&self, reason: StopReason) {
        let running: Vec<_> = {
            let tunnels = self.tunnels();
            tunnels
                .values()
                .filter_map(|tunnel| tunnel.session.clone())
                .collect()
        };
        for running in &running {
            running.handle.stop(reason);
        }
        for running in running {
            running.gone().await;
        }
    }

    /// The answer of a tunnel's provider; `None` if it has none.
    ///
    /// # Errors
    /// At once: [`HostError::NotRunning`] when it has no session, [`HostError::Busy`] when 64 messages
    /// wait for their answers.
    pub async fn send_message(
        &self,
        tunnel: &str,
        message: impl Into<AppMessage>,
    ) -> Result<Option<Bytes>, HostError> {
        let running = known(&mut self.tunnels(), tunnel)?.session.clone();
        let running = running.ok_or_else(|| HostError::NotRunning(tunnel.to_owned()))?;
        let in_hand = running.messages.try_acquire();
        let _in_hand = in_hand.map_err(|_| HostError::Busy(tunnel.to_owned()))?;
        Ok(running.handle.send_message(message).await)
    }

    /// Whether the providers of all tunnels get on with their work
    /// ([`EthernetTunnelProvider::is_well`]).
    pub fn is_well(&self) -> bool {
        let running: Vec<_> = {
            let tunnels = self.tunnels();
            let sessions = tunnels
                .values()
                .filter_map(|tunnel| tunnel.session.as_ref());
            sessions.map(|running| running.handle.clone()).collect()
        };
        // Without the lock: a provider may ask the host.
        running.iter().all(SessionHandle::is_well)
    }

    /// All tunnels, by name.
    pub fn list(&self) -> Vec<TunnelView> {
        let tunnels = self.tunnels();
        tunnels
            .iter()
            .filter_map(|(name, tunnel)| tunnel.view(name))
            .collect()
    }

    /// One tunnel.
    ///
    /// # Errors
    /// [`HostError::NoTunnel`].
    pub fn view(&self, tunnel: &str) -> Result<TunnelView, HostError> {
        let no_tunnel = || HostError::NoTunnel(tunnel.to_owned());
        self.tunnels()
            .get(tunnel)
            .and_then(|entry| entry.view(tunnel))
            .ok_or_else(no_tunnel)
    }

    /// The status of a tunnel; [`SessionStatus::Invalid`] for one that there is not.
    pub fn status(&self, tunnel: &str) -> SessionStatus {
        self.tunnels()
            .get(tunnel)
            .map_or(SessionStatus::Invalid, Tunnel::status)
    }

    /// The secrets that there are for tunnels.
    pub fn secrets(&self) -> &SecretStore {
        &self.inner.secrets
    }

    fn has_interface(&self, index: u32) -> bool {
        self.tunnels()
            .values()
            .filter_map(|tunnel| tunnel.session.as_ref())
            .any(|running| running.handle.interface_index() == Some(index))
    }

    /// What happens from now on.
    pub fn events(&self) -> Events {
        Events::new(self.inner.events.subscribe())
    }

    /// False if nobody listens.
    fn tell(&self, tunnel: &str, attempt: Option<Attempt>, kind: EventKind) -> bool {
        let tunnel = tunnel.into();
        let event = Event {
            tunnel,
            attempt,
            kind,
        };
        self.inner.events.send(event).is_ok()
    }

    fn tunnels(&self) -> MutexGuard<'_, BTreeMap<String, Tunnel>> {
        self.inner
            .tunnels
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl TunnelView {
    /// Whether it has a session.
    pub fn is_running(&self) -> bool {
        !matches!(
            self.status,
            SessionStatus::Disconnected | SessionStatus::Invalid
        )
    }
}

/// What a session has of its host.
struct Hosted {
    host: Host,
    tunnel: String,
    attempt: Attempt,
}

impl Hosting for Hosted {
    fn observe(&self, status: SessionStatus) {
        let kind = EventKind::Status(status);
        self.host.tell(&self.tunnel, Some(self.attempt), kind);
    }

    fn display(&self, text: &str) -> bool {
        let kind = EventKind::Message { text: text.into() };
        self.host.tell(&self.tunnel, Some(self.attempt), kind)
    }

    fn secret(&self, name: &str) -> Result<Secret, SecretError> {
        self.host.inner.secrets.get(name)
    }
}

impl Tunnel {
    fn status(&self) -> SessionStatus {
        match (&self.session, &self.configuration) {
            (Some(running), _) => running.handle.status(),
            (None, Some(_)) => SessionStatus::Disconnected,
            (None, None) => SessionStatus::Invalid,
        }
    }

    fn view(&self, name: &str) -> Option<TunnelView> {
        Some(TunnelView {
            tunnel: name.to_owned(),
            configuration: self.configuration.clone()?,
            generation: self.generation,
            status: self.status(),
            last_disconnect_error: self.last_error.clone(),
        })
    }
}

impl Running {
    async fn gone(mut self) {
        // An error is what is waited for: the other end is dropped.
        while self.ended.changed().await.is_ok() {}
    }
}

/// Runs a session, also if that panics.
async fn run_to_end(session: Session, options: StartOptions) -> SessionEnd {
    // Ends with this one.
    let mut inner = JoinSet::new();
    inner.spawn(session.run(options, || {}));
    match inner.join_next().await {
        Some(Ok(end)) => end,
        _ => SessionEnd {
            reason: StopReason::InternalError,
            error: Some(SessionError::Panicked),
        },
    }
}

/// The error with what is behind it, for people.
fn explain(error: &dyn Error) -> String {
    let (mut text, mut last) = (error.to_string(), error.source());
    while let Some(cause) = last {
        text = format!("{text}: {cause}");
        last = cause.source();
    }
    text
}

fn known<'a>(
    tunnels: &'a mut BTreeMap<String, Tunnel>,
    name: &str,
) -> Result<&'a mut Tunnel, HostError> {
    tunnels
        .get_mut(name)
        .ok_or_else(|| HostError::NoTunnel(name.to_owned()))
}

/// The configuration of a tunnel that may be started.
fn startable(
    tunnels: &BTreeMap<String, Tunnel>,
    name: &str,
) -> Result<Arc<TunnelConfiguration>, HostError> {
    let no_tunnel = || HostError::NoTunnel(name.to_owned());
    let entry = tunnels.get(name).ok_or_else(no_tunnel)?;
    if let Some(running) = &entry.session {
        let (tunnel, status) = (name.to_owned(), running.handle.status());
        return Err(HostError::Running { tunnel, status });
    }
    let configuration = entry.configuration.clone().ok_or_else(no_tunnel)?;
    match configuration.enabled {
        true => Ok(configuration),
        false => Err(HostError::Disabled(name.to_owned())),
    }
}

fn check_generation(
    tunnels: &BTreeMap<String, Tunnel>,
    name: &str,
    known: Option<u64>,
) -> Result<(), HostError> {
    let current = tunnels.get(name).map_or(0, |tunnel| tunnel.generation);
    if known.is_some_and(|known| known != current) {
        let tunnel = name.to_owned();
        return Err(HostError::Stale { tunnel, current });
    }
    Ok(())
}

/// Stops the other tunnels of an exclusive group, and returns their sessions to be waited for.
fn supersede(
    tunnels: &BTreeMap<String, Tunnel>,
    name: &str,
    configuration: &TunnelConfiguration,
) -> Vec<Running> {
    let Some(group) = &configuration.exclusive_group else {
        return Vec::new();
    };
    let others = tunnels.iter().filter(|(other, tunnel)| {
        let configuration = tunnel.configuration.as_ref();
        *other != name
            && configuration.is_some_and(|other| other.exclusive_group.as_ref() == Some(group))
    });
    let running: Vec<_> = others
        .filter_map(|(_, tunnel)| tunnel.session.clone())
        .collect();
    for other in &running {
        warn!(attempt = other.attempt.0, by = name, "superseded");
        other.handle.stop(StopReason::Superseded);
    }
    running
}
