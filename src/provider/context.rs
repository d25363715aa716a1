// SPDX-License-Identifier: MIT OR Apache-2.0
//! The provider's side of the host: frames, states, failure; `network_settings` has the settings.

mod network_settings;

use std::{
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, AtomicUsize},
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
    hosting::Hosting,
    network::Network,
    secret::{Secret, SecretError},
    status::{SessionStatus, StopReason},
    watches::Watches,
};
use crate::{io::tap::TapQueue, machine::device::DeviceInfo};

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

    /// The TAP's queue itself, for a provider with an engine of its own; once per session, after the
    /// first settings, and instead of [`Self::take_reader`].
    pub fn take_queue(&self) -> Option<Arc<TapQueue>> {
        let mut taken = lock(&self.inner.reader_taken);
        let queue = self.inner.queue.borrow().clone()?;
        (!std::mem::replace(&mut *taken, true)).then_some(queue)
    }

    /// All queues of the TAP: as many as
    /// [`EthernetTunnelSettings::queues`](super::EthernetTunnelSettings::queues) says, or one where the
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
