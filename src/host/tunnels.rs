// SPDX-License-Identifier: MIT OR Apache-2.0
//! The [`Host`] itself: its tunnels and their sessions.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use tokio::sync::{Semaphore, broadcast, watch};
use tracing::{Instrument, Span, error_span, warn};

use super::{
    error::{HostError, MAX_MESSAGES, explain},
    event::{Attempt, Event, EventKind, Events},
    name::is_name,
    secrets::{SECRETS_DIR, SecretStore},
    tunnel::{
        Ending, Running, Successor, Tunnel, TunnelView, check_generation, known, run_to_end,
        startable, supersede,
    },
};
use crate::{
    control::message::{Answer, Query},
    machine::{bus::Bus, lock::RunLock},
    provider::{
        AppMessage, Deadlines, EthernetTunnelProvider, Hosting, ProviderContext, ProviderError,
        Secret, SecretError, Session, SessionHandle, SessionStatus, SleepWatch, StartOptions,
        StopReason, TunnelConfiguration,
    },
};

/// Events that a slow listener may lag behind before it loses some.
const EVENTS: usize = 256;

/// Creates a provider for one session of a tunnel.
pub type Factory = dyn Fn(&str, &TunnelConfiguration) -> Result<Arc<dyn EthernetTunnelProvider>, ProviderError>
    + Send
    + Sync;

/// Runs tunnels. Clones are handles to the same host.
#[derive(Clone)]
pub struct Host {
    pub(super) inner: Arc<Inner>,
}

/// Sets what a [`Host`] can run.
pub struct HostBuilder {
    factories: BTreeMap<String, Box<Factory>>,
    run_dir: PathBuf,
    deadlines: Deadlines,
    secrets: SecretStore,
    pub(crate) sleep: SleepWatch,
    /// Whether lines of the log name their tunnel; those of a process with one need not.
    pub(crate) logs_name_tunnels: bool,
}

pub(super) struct Inner {
    factories: BTreeMap<String, Box<Factory>>,
    run_dir: PathBuf,
    deadlines: Deadlines,
    secrets: SecretStore,
    pub(super) sleep: SleepWatch,
    logs_name_tunnels: bool,
    tunnels: Mutex<BTreeMap<String, Tunnel>>,
    attempts: AtomicU64,
    events: broadcast::Sender<Event>,
}

impl HostBuilder {
    /// `factory` creates the providers that a configuration calls `kind`: a fresh one for each
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

    /// The deadlines of callbacks.
    #[must_use]
    pub fn deadlines(mut self, deadlines: Deadlines) -> Self {
        self.deadlines = deadlines;
        self
    }

    /// The store of secrets, unless it is the credentials of this process and files in
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
            logs_name_tunnels: self.logs_name_tunnels,
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
    /// A host with its run-time state in `run_dir`.
    pub fn builder(run_dir: impl AsRef<Path>) -> HostBuilder {
        HostBuilder {
            factories: BTreeMap::new(),
            run_dir: run_dir.as_ref().to_owned(),
            deadlines: Deadlines::default(),
            secrets: SecretStore::new(SECRETS_DIR),
            sleep: SleepWatch::new(Bus::default(), "tunnels get ready"),
            logs_name_tunnels: true,
        }
    }

    /// Adds a tunnel, or replaces its configuration; a running provider sees it at once, and the
    /// session of a tunnel that is now disabled ends with [`StopReason::ConfigurationDisabled`].
    /// With `generation`, only if no other client has changed it since. Returns the new generation.
    /// Equal configurations change nothing.
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
        self.publish(tunnel, None, EventKind::Configured { generation });
        Ok(generation)
    }

    /// Whether [`configure`](Self::configure) would accept a change for this generation.
    pub(super) fn check_generation(
        &self,
        tunnel: &str,
        known: Option<u64>,
    ) -> Result<(), HostError> {
        check_generation(&self.tunnels(), tunnel, known)
    }

    /// Removes a tunnel; its session ends with [`StopReason::ConfigurationRemoved`].
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
        self.publish(tunnel, None, EventKind::Removed);
        Ok(())
    }

    /// Starts a session and returns at once, with the number that its events carry. The function
    /// that creates its provider may call the host.
    ///
    /// # Errors
    /// When it cannot be attempted.
    pub fn start(&self, tunnel: &str, options: StartOptions) -> Result<Attempt, HostError> {
        self.start_under(None, tunnel, options)
    }

    /// The same for a tunnel whose lock the caller has taken; it is held until the session is over.
    pub(crate) fn start_under(
        &self,
        lock: Option<Arc<RunLock>>,
        tunnel: &str,
        options: StartOptions,
    ) -> Result<Attempt, HostError> {
        let mut configuration = self.startable(tunnel)?;
        let (provider, lock, mut tunnels) = loop {
            // Not under the mutex: a function that creates providers may call the host.
            let provider = self.make_provider(tunnel, &configuration)?;
            let lock = match &lock {
                Some(lock) => lock.clone(),
                None => self.lock(tunnel)?,
            };
            let tunnels = self.tunnels();
            let now = startable(&tunnels, tunnel)?;
            if Arc::ptr_eq(&now, &configuration) {
                break (provider, lock, tunnels);
            }
            // A client has changed the configuration meanwhile.
            configuration = now;
        };
        let successor = Successor {
            provider,
            configuration,
        };
        self.begin(&mut tunnels, tunnel, lock, successor, options)
    }

    /// Starts a session whose provider is there. Returns its number.
    fn begin(
        &self,
        tunnels: &mut BTreeMap<String, Tunnel>,
        tunnel: &str,
        lock: Arc<RunLock>,
        successor: Successor,
        options: StartOptions,
    ) -> Result<Attempt, HostError> {
        let Successor {
            provider,
            configuration,
        } = successor;
        let attempt = Attempt(self.inner.attempts.fetch_add(1, Ordering::Relaxed) + 1);
        let superseded = supersede(tunnels, tunnel, &configuration);

        let hosting = Hosted {
            host: self.clone(),
            tunnel: tunnel.to_owned(),
            attempt,
            span: self.span(tunnel),
        };
        let span = hosting.span.clone();
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
        let (ending, ended) = watch::channel(None);
        let running = Running {
            attempt,
            handle: session.handle(),
            messages: Arc::new(Semaphore::new(MAX_MESSAGES)),
            ended,
        };
        let entry = known(tunnels, tunnel)?;
        entry.session = Some(running);
        entry.last_error = None;
        session.begin();
        let (host, tunnel) = (self.clone(), tunnel.to_owned());
        let running = async move {
            for other in superseded {
                other.gone().await;
            }
            let end = run_to_end(session, options.clone()).await;
            let successor = host.take_successor(&tunnel);
            // Another process may run the tunnel as soon as a client hears of the end.
            let lock = successor.is_some().then_some(lock);
            let end = Ending::of(&end);
            host.note_end(&tunnel, attempt, &end);
            if let (Some(successor), Some(lock)) = (successor, lock) {
                host.succeed(&tunnel, lock, successor, options);
            }
            ending.send_replace(Some(end));
        };
        tokio::spawn(running.instrument(span));
        Ok(attempt)
    }

    /// Ends the session of a tunnel, and starts another with its configuration as it is now. Returns
    /// when the other is started. If it cannot be made, nothing ends.
    ///
    /// # Errors
    /// [`HostError::NotRunning`], and those of [`start`](Self::start).
    pub async fn restart(&self, tunnel: &str) -> Result<Attempt, HostError> {
        let running = self.running(tunnel)?;
        let configuration = self.view(tunnel)?.configuration;
        let provider = self.make_provider(tunnel, &configuration)?;
        known(&mut self.tunnels(), tunnel)?.successor = Some(Successor {
            provider,
            configuration,
        });
        running.handle.stop(StopReason::UserInitiated);
        running.gone().await;
        Ok(self.running(tunnel)?.attempt)
    }

    fn take_successor(&self, tunnel: &str) -> Option<Successor> {
        self.tunnels().get_mut(tunnel)?.successor.take()
    }

    /// Starts the session that follows one that is over, unless its tunnel may not run any more.
    fn succeed(
        &self,
        tunnel: &str,
        lock: Arc<RunLock>,
        successor: Successor,
        options: StartOptions,
    ) {
        let mut tunnels = self.tunnels();
        let started = startable(&tunnels, tunnel)
            .and_then(|_| self.begin(&mut tunnels, tunnel, lock, successor, options));
        if let Err(error) = started {
            warn!(
                tunnel,
                error = explain(&error),
                "the tunnel is not started again"
            );
        }
    }

    /// What names a tunnel in the lines of its session, at every level.
    fn span(&self, tunnel: &str) -> Span {
        match self.inner.logs_name_tunnels {
            true => error_span!(parent: None, "host", tunnel),
            false => Span::none(),
        }
    }

    fn lock(&self, tunnel: &str) -> Result<Arc<RunLock>, HostError> {
        let lock = RunLock::acquire(&self.inner.run_dir, tunnel);
        // Another client may have started the tunnel meanwhile.
        let lock = lock.map_err(|error| {
            let refused = self.startable(tunnel).err();
            refused.unwrap_or_else(|| error.into())
        });
        lock.map(Arc::new)
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

    fn note_end(&self, tunnel: &str, attempt: Attempt, end: &Ending) {
        let Ending { reason, error } = end.clone();
        let mut tunnels = self.tunnels();
        let mut over = None;
        if let Some(entry) = tunnels.get_mut(tunnel) {
            over = entry.session.take();
            entry.last_error.clone_from(&error);
            if entry.configuration.is_none() {
                tunnels.remove(tunnel);
            }
        }
        self.publish(tunnel, Some(attempt), EventKind::Ended { reason, error });
        drop(tunnels);
        // The provider is dropped with it, and may call the host then.
        drop(over);
    }

    /// Ends the session of a tunnel and waits until everything of it is removed. Succeeds without a
    /// session.
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

    /// Waits for the end of a tunnel's session; `None` if it has none.
    ///
    /// # Errors
    /// [`HostError::NoTunnel`].
    pub async fn ended(&self, tunnel: &str) -> Result<Option<Ending>, HostError> {
        let running = known(&mut self.tunnels(), tunnel)?.session.clone();
        match running {
            Some(running) => Ok(running.gone().await),
            None => Ok(None),
        }
    }

    /// Begins to end the session of a tunnel, if it has one.
    pub(crate) fn begin_stop(&self, tunnel: &str, reason: StopReason) {
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
    /// At once: [`HostError::NotRunning`] when it has no session, [`HostError::Busy`] when 64
    /// messages wait for their answers.
    pub async fn send_message(
        &self,
        tunnel: &str,
        message: impl Into<AppMessage>,
    ) -> Result<Option<Bytes>, HostError> {
        let running = self.running(tunnel)?;
        let _permit = running.reserve_message(tunnel)?;
        Ok(running.handle.send_message(message).await)
    }

    /// The answer of a tunnel to a query.
    ///
    /// # Errors
    /// As for [`send_message`](Self::send_message), and the errors of the tunnel.
    pub async fn ask(&self, tunnel: &str, query: Query) -> Result<Answer, HostError> {
        let running = self.running(tunnel)?;
        let _permit = running.reserve_message(tunnel)?;
        let answer = running.handle.ask(query).await;
        let status = running.handle.status();
        answer.map_err(|error| HostError::no_answer(tunnel, status, error))
    }

    fn running(&self, tunnel: &str) -> Result<Running, HostError> {
        let running = known(&mut self.tunnels(), tunnel)?.session.clone();
        running.ok_or_else(|| HostError::NotRunning(tunnel.to_owned()))
    }

    /// Whether the providers of all tunnels make progress ([`EthernetTunnelProvider::is_well`]).
    pub fn is_well(&self) -> bool {
        let running: Vec<_> = {
            let tunnels = self.tunnels();
            let sessions = tunnels
                .values()
                .filter_map(|tunnel| tunnel.session.as_ref());
            sessions.map(|running| running.handle.clone()).collect()
        };
        // Not under the mutex: a provider may call the host.
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

    /// The status of a tunnel; [`SessionStatus::Invalid`] if it does not exist.
    pub fn status(&self, tunnel: &str) -> SessionStatus {
        self.tunnels()
            .get(tunnel)
            .map_or(SessionStatus::Invalid, Tunnel::status)
    }

    /// The secrets for tunnels.
    pub fn secrets(&self) -> &SecretStore {
        &self.inner.secrets
    }

    pub(super) fn has_interface(&self, index: u32) -> bool {
        self.tunnels()
            .values()
            .filter_map(|tunnel| tunnel.session.as_ref())
            .any(|running| running.handle.interface_index() == Some(index))
    }

    /// The events from now on.
    pub fn events(&self) -> Events {
        Events::new(self.inner.events.subscribe())
    }

    /// False if there is no listener.
    pub(super) fn publish(&self, tunnel: &str, attempt: Option<Attempt>, kind: EventKind) -> bool {
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

/// The services of the host for one session.
struct Hosted {
    host: Host,
    tunnel: String,
    attempt: Attempt,
    span: Span,
}

impl Hosting for Hosted {
    fn observe(&self, status: SessionStatus) {
        let kind = EventKind::Status(status);
        self.host.publish(&self.tunnel, Some(self.attempt), kind);
    }

    fn display(&self, text: &str) -> bool {
        let kind = EventKind::Message { text: text.into() };
        self.host.publish(&self.tunnel, Some(self.attempt), kind)
    }

    fn span(&self) -> Span {
        self.span.clone()
    }

    fn secret(&self, name: &str) -> Result<Secret, SecretError> {
        self.host.inner.secrets.get(name)
    }
}
