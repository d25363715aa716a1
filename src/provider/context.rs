// SPDX-License-Identifier: MIT OR Apache-2.0
//! The provider's side of the host: settings, frames, states, failure.

use std::{
    io,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::{Instrument, Span, debug, warn};

use super::{
    configuration::TunnelConfiguration,
    error::ProviderError,
    flow::{Flow, FrameReader, FrameWriter},
    interface::Interface,
    network::{Kept, Network},
    secret::{Secret, SecretError},
    settings::{Addressing, Applied, EthernetTunnelSettings, SettingsError},
    status::{SessionStatus, StopReason},
    watches::Watches,
};
use crate::{
    io::tap::{Offloads, TapQueue},
    machine::{
        device::{DeviceInfo, DeviceReport},
        namespace::Namespace,
        routing::RoutingChanges,
    },
};

/// The longest text that is displayed, in bytes.
pub const MAX_DISPLAYED: usize = 1024;

/// How long a request for the interface's state waits while settings are applied, and how long the loss
/// of the interface waits for the kernel to give the reason.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long the end of a session waits for the session's tasks to finish their work.
const TASKS_PATIENCE: Duration = Duration::from_secs(5);

/// A provider's handle to its host. Clones are handles to the same session.
#[derive(Clone)]
pub struct ProviderContext {
    inner: Arc<Inner>,
}

struct Inner {
    tunnel: String,
    configuration: watch::Sender<Arc<TunnelConfiguration>>,
    /// Held while settings are applied, so that calls take effect one after the other.
    network: tokio::sync::Mutex<Network>,
    /// Counts calls of `set_network_settings`: a newer one cancels an older one.
    settings_calls: AtomicU64,
    info: Mutex<Option<DeviceInfo>>,
    /// That of `info`, for writers.
    mtu: Arc<AtomicU32>,
    /// The first queue, for readers and writers.
    queue: watch::Sender<Option<Arc<TapQueue>>>,
    /// All queues, the first included, until they are taken.
    queues: Mutex<Vec<Arc<TapQueue>>>,
    reader_taken: Mutex<bool>,
    /// Pending calls of `recv_batch`.
    readers_waiting: Arc<AtomicUsize>,
    status: watch::Sender<SessionStatus>,
    /// Whether `start` waits for something that may come at any time.
    waits: watch::Sender<bool>,
    hosting: Box<dyn Hosting>,
    stopping: watch::Sender<Option<StopReason>>,
    failure: Mutex<Option<ProviderError>>,
    carrier: Mutex<bool>,
    watches: Watches,
    /// Tasks of the session; see [`ProviderContext::spawn`].
    tasks: Mutex<JoinSet<()>>,
}

/// The services of a host of many tunnels for one session. A session without a host has none of them.
pub(crate) trait Hosting: Send + Sync {
    /// Receives each new status, in order; no status changes during the call.
    fn observe(&self, status: SessionStatus);

    /// Shows a text to the host's listeners; false if there are none.
    fn display(&self, text: &str) -> bool;

    /// What names the tunnel in the lines of its session.
    fn span(&self) -> Span;

    /// The secret that the host has by this name.
    fn secret(&self, name: &str) -> Result<Secret, SecretError>;
}

/// No host.
pub(crate) struct Alone;

impl Hosting for Alone {
    fn observe(&self, _: SessionStatus) {}

    fn display(&self, _: &str) -> bool {
        false
    }

    fn span(&self) -> Span {
        Span::none()
    }

    fn secret(&self, _: &str) -> Result<Secret, SecretError> {
        Err(SecretError::NoStore)
    }
}

/// A wait of `start`, which ends however its future ends.
struct Wait<'a>(&'a watch::Sender<bool>);

impl<'a> Wait<'a> {
    fn begin(waits: &'a watch::Sender<bool>) -> Self {
        waits.send_replace(true);
        Self(waits)
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.0.send_replace(false);
    }
}

/// The error of a session when one of its tasks panics.
pub(super) fn task_panicked() -> ProviderError {
    ProviderError::new("a task of the session panicked; please report this with the lines above")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ProviderContext {
    pub(crate) fn new(
        tunnel: String,
        run_dir: &Path,
        configuration: Arc<TunnelConfiguration>,
        hosting: Box<dyn Hosting>,
    ) -> Self {
        let configuration = watch::Sender::new(configuration);
        let network = Network::new(run_dir, &tunnel, configuration.subscribe());
        let inner = Inner {
            network: tokio::sync::Mutex::new(network),
            tunnel,
            configuration,
            settings_calls: AtomicU64::new(0),
            info: Mutex::default(),
            mtu: Arc::default(),
            queue: watch::Sender::new(None),
            queues: Mutex::default(),
            reader_taken: Mutex::default(),
            readers_waiting: Arc::default(),
            status: watch::Sender::new(SessionStatus::Disconnected),
            waits: watch::Sender::new(false),
            hosting,
            stopping: watch::Sender::new(None),
            failure: Mutex::default(),
            carrier: Mutex::default(),
            watches: Watches::default(),
            tasks: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The name of the tunnel.
    pub fn tunnel(&self) -> &str {
        &self.inner.tunnel
    }

    /// The configuration, which may change while the session lasts (`protocolConfiguration`).
    pub fn configuration(&self) -> watch::Receiver<Arc<TunnelConfiguration>> {
        self.inner.configuration.subscribe()
    }

    /// Makes these the complete settings. The first call creates the interface; later calls change
    /// only what differs, so that connections through the tunnel survive. `None` removes everything
    /// except the interface itself, which stays, down, with its reader and writers.
    ///
    /// A later call, or a stop, cancels one that is still at work with [`SettingsError::Canceled`].
    ///
    /// # Errors
    /// [`SettingsError::Invalid`] if nothing was changed, or [`SettingsError::Failed`] or
    /// [`SettingsError::Unroutable`] if every change was undone.
    pub async fn set_network_settings(
        &self,
        settings: Option<EthernetTunnelSettings>,
    ) -> Result<Option<Applied>, SettingsError> {
        if let Some(settings) = &settings {
            settings.validate()?;
            self.check_addressing(settings)?;
        }
        let call = self.inner.settings_calls.fetch_add(1, Ordering::Relaxed) + 1;
        let is_overtaken =
            || self.inner.settings_calls.load(Ordering::Relaxed) != call || self.is_stopping();
        let mut network = self.inner.network.lock().await;
        if is_overtaken() {
            return Err(SettingsError::Canceled);
        }
        let Some(settings) = settings else {
            network.clear().await?;
            self.publish(&network);
            return Ok(None);
        };
        let outcome = network.apply(settings, is_overtaken).await;
        self.publish(&network);
        if let (Some(queues), Some(_)) = (network.take_new_queues(), self.interface()) {
            self.inner.queue.send_replace(queues.first().cloned());
            *lock(&self.inner.queues) = queues;
        }
        outcome.map(Some)
    }

    /// Router advertisements arrive through the provider itself.
    fn check_addressing(&self, settings: &EthernetTunnelSettings) -> Result<(), SettingsError> {
        let is_automatic = settings
            .ipv6
            .as_ref()
            .is_some_and(|ipv6| ipv6.addressing == Addressing::Automatic);
        if is_automatic && self.inner.readers_waiting.load(Ordering::Relaxed) == 0 {
            return Err(SettingsError::Invalid {
                field: "ipv6",
                problem: "automatic addresses come through the tunnel: take the reader and call \
                          recv_batch first"
                    .to_owned(),
            });
        }
        Ok(())
    }

    fn publish(&self, network: &Network) {
        let mtu = network.info().map_or(0, |info| info.mtu);
        self.inner.mtu.store(mtu, Ordering::Relaxed);
        *lock(&self.inner.info) = network.info().cloned();
    }

    /// Returns when there is an interface.
    pub(super) async fn until_interface(&self) {
        let mut queue = self.inner.queue.subscribe();
        // The sender lives as long as this handle.
        let _ = queue.wait_for(Option::is_some).await;
    }

    pub(super) async fn keep_interface(&self, came_up: bool) -> Result<Kept, SettingsError> {
        let mut network = self.inner.network.lock().await;
        let kept = network.keep(came_up).await;
        self.publish(&network);
        kept
    }

    /// Follows the networks that this machine is in, if the policy depends on them.
    pub(super) async fn follow_local_networks(&self) {
        let mut network = self.inner.network.lock().await;
        network.follow_local_networks().await;
    }

    /// The interface takes no frames any more. The link watch learns in a moment whether it was
    /// deleted or moved, and ends the session.
    pub(crate) async fn handle_lost_interface(&self) {
        if timeout(PATIENCE, self.cancelled()).await.is_err() {
            self.lose_interface(None).await;
        }
    }

    /// `moved_to`: the number of the network namespace where it is now.
    pub(super) async fn lose_interface(&self, moved_to: Option<i32>) {
        let name = self.interface().map_or_else(String::new, |it| it.name);
        let message = match moved_to {
            Some(id) => {
                let to = Namespace::with_id(id).await;
                let back = to.command_to_move(&name, &Namespace::own());
                format!(
                    "the interface `{name}` was moved to {to}, where a wire cannot follow it; move it \
                     back (`{back}`) and start the tunnel again, or start the tunnel there"
                )
            }
            None => {
                format!("another program deleted the interface `{name}`; start the tunnel again")
            }
        };
        self.fail(StopReason::InternalError, Some(ProviderError::new(message)));
    }

    /// The state of the interface in the kernel, or the last known one while its settings are
    /// changed; `None` before the first settings.
    pub(crate) async fn device_report(&self) -> Option<DeviceReport> {
        // Settings are being applied, and a resolver or another service does not answer.
        let Ok(mut network) = timeout(PATIENCE, self.inner.network.lock()).await else {
            return self.device_info().map(DeviceReport::of);
        };
        let report = network.report().await;
        self.publish(&network);
        report
    }

    /// The interface; `None` before the first settings.
    pub fn interface(&self) -> Option<Interface> {
        lock(&self.inner.info).as_ref().map(Interface::of)
    }

    /// Everything that is known about the interface.
    pub fn device_info(&self) -> Option<DeviceInfo> {
        lock(&self.inner.info).clone()
    }

    /// Frames from the interface; once per session, and instead of [`Self::take_queue`].
    pub fn take_reader(&self) -> Option<FrameReader> {
        let mut taken = lock(&self.inner.reader_taken);
        (!std::mem::replace(&mut *taken, true))
            .then(|| FrameReader::new(self.flow(), self.inner.readers_waiting.clone()))
    }

    /// Frames to the interface.
    pub fn writer(&self) -> FrameWriter {
        FrameWriter::new(self.flow())
    }

    fn flow(&self) -> Flow {
        Flow {
            queue: self.inner.queue.subscribe(),
            stopping: self.inner.stopping.subscribe(),
            mtu: self.inner.mtu.clone(),
        }
    }

    pub(super) fn watches(&self) -> &Watches {
        &self.inner.watches
    }

    /// Returns the index of the interface, if there is one, without keeping the session alive.
    pub(super) fn interface_index(&self) -> impl Fn() -> Option<u32> + Send + Sync + use<> {
        let inner = Arc::downgrade(&self.inner);
        move || lock(&inner.upgrade()?.info).as_ref().map(|info| info.index)
    }

    /// The TAP's queue itself, for a provider with an engine of its own; once per session, after the
    /// first settings, and instead of [`Self::take_reader`].
    pub fn take_queue(&self) -> Option<Arc<TapQueue>> {
        let mut taken = lock(&self.inner.reader_taken);
        let queue = self.inner.queue.borrow().clone()?;
        (!std::mem::replace(&mut *taken, true)).then_some(queue)
    }

    /// All queues of the TAP: as many as [`EthernetTunnelSettings::queues`] says, or one where the
    /// back-end or an adopted device has no more; and behind them the express queue, if the
    /// settings ask for it and the device can have it. Each frame comes out of one of them, those of
    /// a flow always out of the same one, or of the express queue while the flow sends little
    /// ([`TapQueue::moved_flows`]). Otherwise as [`Self::take_queue`], and instead of it: a
    /// caller that requests several queues must read all of them.
    pub fn take_queues(&self) -> Option<Vec<Arc<TapQueue>>> {
        let mut taken = lock(&self.inner.reader_taken);
        if *taken || self.inner.queue.borrow().is_none() {
            return None;
        }
        *taken = true;
        Some(std::mem::take(&mut *lock(&self.inner.queues)))
    }

    /// Asks the kernel to leave checksums and segmentation to the holder of the queue, and returns
    /// what it grants. For holders of [`Self::take_queue`] only: a [`FrameReader`] returns finished
    /// frames.
    ///
    /// # Errors
    /// When there is no interface, or it was deleted.
    pub async fn set_offloads(&self, wanted: Offloads) -> io::Result<Offloads> {
        self.inner.network.lock().await.set_offloads(wanted)
    }

    /// Reports that the provider is trying to re-establish the tunnel, or has done so. False,
    /// without effect, unless the session is connected.
    pub fn set_reasserting(&self, reasserting: bool) -> bool {
        let wanted = if reasserting {
            SessionStatus::Reasserting
        } else {
            SessionStatus::Connected
        };
        self.change_status(wanted, |status| {
            matches!(
                status,
                SessionStatus::Connected | SessionStatus::Reasserting
            )
        })
    }

    /// Switches the interface's carrier on or off, as its users see it.
    pub async fn set_carrier(&self, on: bool) {
        if self.inner.network.lock().await.set_carrier(on).await {
            *lock(&self.inner.carrier) = on;
        }
    }

    /// Stations behind this interface may have moved: the bridge of the interface, if any, flushes
    /// those that it has learned there.
    pub async fn forget_stations(&self) {
        self.inner.network.lock().await.forget_stations().await;
    }

    /// Whether the carrier is on.
    pub fn carrier(&self) -> bool {
        *lock(&self.inner.carrier)
    }

    /// Ends the tunnel: the provider cannot go on, or, with `None`, has nothing left to do, which
    /// is no error. The first call counts; the host then stops the session.
    pub fn cancel_tunnel(&self, error: Option<ProviderError>) {
        self.fail(StopReason::ProviderFailed, error);
    }

    fn fail(&self, reason: StopReason, error: Option<ProviderError>) {
        // Stored first: every receiver of the stop reads it.
        let mut failure = lock(&self.inner.failure);
        if self.begin_stop(reason) {
            *failure = error;
        }
    }

    /// Shows a text to users, through the listeners to the host's events (`displayMessage`). False
    /// if there are none. Text beyond [`MAX_DISPLAYED`] bytes is cut off.
    pub fn display_message(&self, text: &str) -> bool {
        let ends = text
            .char_indices()
            .map(|(start, char)| start + char.len_utf8());
        let end = ends.take_while(|end| *end <= MAX_DISPLAYED).last();
        self.inner.hosting.display(&text[..end.unwrap_or(0)])
    }

    /// A secret that the configuration names (`secrets`) and the host stores. It is read anew each
    /// time, and wiped when it is dropped.
    ///
    /// # Errors
    /// The configuration does not name it, the host has none, or the session has no host.
    pub fn secret(&self, name: &str) -> Result<Secret, SecretError> {
        let configuration = self.inner.configuration.borrow().clone();
        let kept_as = configuration.secrets.get(name);
        let kept_as = kept_as.ok_or_else(|| SecretError::NotConfigured(name.to_owned()))?;
        self.inner.hosting.secret(kept_as)
    }

    /// Waits until the session is to end, and returns the reason.
    pub async fn cancelled(&self) -> StopReason {
        let mut stopping = self.inner.stopping.subscribe();
        match stopping.wait_for(Option::is_some).await {
            Ok(reason) => reason.unwrap_or(StopReason::None),
            Err(_) => StopReason::InternalError,
        }
    }

    /// Waits within `start` for something that may come at any time, such as a network card. The deadline
    /// of `start` begins anew afterwards.
    ///
    /// # Errors
    /// When the session is stopped meanwhile; `start` returns this error.
    pub async fn wait_for<T>(&self, event: impl Future<Output = T>) -> Result<T, ProviderError> {
        let _wait = Wait::begin(&self.inner.waits);
        tokio::select! {
            outcome = event => Ok(outcome),
            _ = self.cancelled() => Err(ProviderError::new("the session was stopped")),
        }
    }

    /// Returns when `start` has worked for `limit` without a [wait](Self::wait_for).
    pub(super) async fn until_overdue(&self, limit: Duration) {
        let mut waits = self.inner.waits.subscribe();
        loop {
            // The sender lives as long as this handle.
            let _ = waits.wait_for(|waits| !waits).await;
            tokio::select! {
                () = sleep(limit) => return,
                _ = waits.wait_for(|waits| *waits) => {}
            }
        }
    }

    /// The state of the session.
    pub fn status(&self) -> watch::Receiver<SessionStatus> {
        self.inner.status.subscribe()
    }

    // For the host.

    /// Stores the reason for the session's end. False if it was ending already.
    pub(super) fn begin_stop(&self, reason: StopReason) -> bool {
        self.inner.stopping.send_if_modified(|stopping| {
            let first = stopping.is_none();
            if first {
                *stopping = Some(reason);
            }
            first
        })
    }

    pub(super) fn stopping(&self) -> watch::Receiver<Option<StopReason>> {
        self.inner.stopping.subscribe()
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.inner.stopping.borrow().is_some()
    }

    /// Blocks the machine's traffic until there is a tunnel, if the policy requires it.
    pub(super) async fn engage_kill_switch(&self) -> Result<(), SettingsError> {
        self.inner.network.lock().await.engage_kill_switch().await
    }

    pub(super) async fn routing_changes(&self) -> RoutingChanges {
        self.inner.network.lock().await.routing_changes()
    }

    /// Restores routes and rules that another program deleted; false if there was nothing to do.
    pub(super) async fn restore_routing(&self) -> Result<bool, SettingsError> {
        self.inner.network.lock().await.restore_routing().await
    }

    pub(super) fn set_status(&self, status: SessionStatus) {
        self.change_status(status, |_| true);
    }

    /// False if the present status does not `allow` another one.
    fn change_status(&self, wanted: SessionStatus, allow: impl Fn(SessionStatus) -> bool) -> bool {
        let mut allowed = false;
        self.inner.status.send_if_modified(|status| {
            allowed = allow(*status);
            let changes = allowed && *status != wanted;
            if changes {
                *status = wanted;
                let (tunnel, status) = (&self.inner.tunnel, wanted.name());
                debug!(tunnel, status, "session status");
                self.inner.hosting.observe(wanted);
            }
            changes
        });
        allowed
    }

    /// The configuration with which the session begins.
    pub(super) fn preset_configuration(&self, configuration: Arc<TunnelConfiguration>) {
        self.inner.configuration.send_replace(configuration);
    }

    /// A new routing policy takes effect at once.
    pub(crate) fn set_configuration(&self, configuration: Arc<TunnelConfiguration>) {
        let policy = configuration.routing;
        let before = self.inner.configuration.send_replace(configuration);
        if before.routing != policy {
            let inner = Arc::downgrade(&self.inner);
            self.spawn(async move {
                let Some(inner) = inner.upgrade() else { return };
                let mut network = inner.network.lock().await;
                if inner.stopping.borrow().is_none() {
                    network.follow_policy().await;
                }
            });
        }
    }

    pub(super) fn take_failure(&self) -> Option<ProviderError> {
        lock(&self.inner.failure).take()
    }

    /// What names the tunnel in the lines of its session, for tasks of it.
    pub(super) fn span(&self) -> Span {
        self.inner.hosting.span()
    }

    /// Runs a task of the session, which ends with it at the latest. A panic in the task ends the
    /// session.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let inner = Arc::downgrade(&self.inner);
        let task = async move {
            // Dropped with this task.
            let mut inner_task = JoinSet::new();
            inner_task.spawn(task.in_current_span());
            if let Some(Err(end)) = inner_task.join_next().await
                && end.is_panic()
                && let Some(inner) = inner.upgrade()
            {
                Self { inner }.fail(StopReason::InternalError, Some(task_panicked()));
            }
        };
        let mut tasks = lock(&self.inner.tasks);
        // Removes the tasks that have ended.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task.instrument(self.span()));
    }

    /// Waits for the session's tasks for a while, so that one that is at work can finish.
    async fn join_tasks(&self) {
        let mut tasks = std::mem::take(&mut *lock(&self.inner.tasks));
        let ended = async { while tasks.join_next().await.is_some() {} };
        if timeout(TASKS_PATIENCE, ended).await.is_err() {
            let tunnel = self.tunnel();
            warn!(
                tunnel,
                "a task of the session did not end in time; abandoning it"
            );
            let _ = timeout(TASKS_PATIENCE, tasks.shutdown()).await;
        }
    }

    /// Removes what the settings made, whatever state the provider left.
    pub(super) async fn tear_down(&self) {
        self.join_tasks().await;
        let mut network = self.inner.network.lock().await;
        self.inner.queue.send_replace(None);
        lock(&self.inner.queues).clear();
        *lock(&self.inner.info) = None;
        *lock(&self.inner.carrier) = false;
        network.tear_down().await;
    }
}
