// SPDX-License-Identifier: MIT OR Apache-2.0
//! One session of one provider, from start to the removal of everything it set up.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tracing::{Instrument, error, warn};

use super::{
    callback::cancel,
    configuration::TunnelConfiguration,
    context::{ProviderContext, task_panicked},
    error::ProviderError,
    ethernet_tunnel::{AppMessage, EthernetTunnelProvider, StartOptions},
    hosting::Alone,
    interface_monitor,
    power::{self, SleepWatch},
    routing_monitor,
    status::{SessionStatus, StopReason},
};
use crate::{
    control::message::{Answered, Query, QueryError},
    machine::bus::Bus,
};

/// How long the host waits for a provider.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// For `start`, without its [waits](ProviderContext::wait_for).
    pub start: Duration,
    /// For `start` to return after the session was stopped meanwhile.
    pub abandon: Duration,
    /// For `stop`.
    pub stop: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        let start = Duration::from_secs(60);
        Self {
            start,
            abandon: Duration::from_secs(1),
            stop: Duration::from_secs(20),
        }
    }
}

/// One session of one provider, and the host of its callbacks.
pub struct Session {
    provider: Arc<dyn EthernetTunnelProvider>,
    context: ProviderContext,
    deadlines: Deadlines,
    /// Announces the machine's sleep.
    sleep: SleepWatch,
}

/// Stops a session, or calls its provider, from outside.
#[derive(Clone)]
pub struct SessionHandle {
    provider: Arc<dyn EthernetTunnelProvider>,
    context: ProviderContext,
}

/// The end of a session.
#[derive(Debug)]
pub struct SessionEnd {
    /// The reason.
    pub reason: StopReason,
    /// The error behind it, unless the stop was requested.
    pub error: Option<SessionError>,
}

/// Why a session failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The provider did not start, or cancelled the tunnel.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// The provider returned from `start` without an interface.
    #[error("the provider started without network settings")]
    NoSettings,
    /// The provider's `start` took too long.
    #[error("the provider did not start within {0:?}")]
    StartDeadline(Duration),
    /// The provider panicked.
    #[error("the provider panicked")]
    Panicked,
}

impl SessionError {
    const fn reason(&self) -> StopReason {
        match self {
            Self::NoSettings => StopReason::ConfigurationFailed,
            Self::StartDeadline(_) => StopReason::ConnectionFailed,
            Self::Provider(_) | Self::Panicked => StopReason::ProviderFailed,
        }
    }
}

impl Session {
    /// A session of `provider`, not started. Its run-time state is in `run_dir` under the name
    /// `tunnel`.
    pub fn new(
        provider: Arc<dyn EthernetTunnelProvider>,
        tunnel: impl Into<String>,
        run_dir: impl AsRef<Path>,
        deadlines: Deadlines,
    ) -> Self {
        let configuration = Arc::new(TunnelConfiguration::default());
        let tunnel = tunnel.into();
        let sleep = SleepWatch::new(Bus::default(), format!("tunnel {tunnel} gets ready"));
        let (run_dir, hosting) = (run_dir.as_ref(), Box::new(Alone));
        let context = ProviderContext::new(tunnel, run_dir, configuration, hosting);
        Self::hosted(provider, context, deadlines, sleep)
    }

    /// The same with this configuration; a session uses its routing policy and the action before
    /// sleep.
    #[must_use]
    pub fn with_configuration(self, configuration: TunnelConfiguration) -> Self {
        self.context.preset_configuration(configuration.into());
        self
    }

    /// The same for a tunnel of a host, which observes each change of its status, and watches over
    /// the machine's sleep for all its tunnels.
    pub(crate) fn hosted(
        provider: Arc<dyn EthernetTunnelProvider>,
        context: ProviderContext,
        deadlines: Deadlines,
        sleep: SleepWatch,
    ) -> Self {
        Self {
            provider,
            context,
            deadlines,
            sleep,
        }
    }

    /// A handle for other tasks.
    pub fn handle(&self) -> SessionHandle {
        SessionHandle {
            provider: self.provider.clone(),
            context: self.context.clone(),
        }
    }

    /// Makes the session count as connecting, while it waits for others to end before it runs.
    pub(crate) fn begin(&self) {
        self.context.set_status(SessionStatus::Connecting);
    }

    /// Runs the session. Calls `ready` when it is connected. Returns when everything is removed.
    pub async fn run(self, options: StartOptions, ready: impl FnOnce()) -> SessionEnd {
        self.begin();
        // Dropped with the session, and with it the last delay of a sleep.
        let mut background = JoinSet::new();
        let (provider, context) = (self.provider.clone(), self.context.clone());
        let power = power::follow(self.sleep.events(), provider, context);
        background.spawn(power.in_current_span());
        background.spawn(routing_monitor::follow(self.context.clone()).in_current_span());
        background.spawn(interface_monitor::follow(self.context.clone()).in_current_span());
        let start_error = self.start(options).await.err();
        match &start_error {
            Some(error) => drop(self.context.begin_stop(error.reason())),
            // After a stop, `ready` is not called any more.
            None if self.context.is_stopping() => {}
            None => {
                self.context.set_status(SessionStatus::Connected);
                ready();
            }
        }
        let reason = self.until_stopped(&mut background).await;
        self.context.set_status(SessionStatus::Disconnecting);
        self.stop(reason).await;
        self.context.tear_down().await;
        self.context.set_status(SessionStatus::Disconnected);
        let error = start_error.or_else(|| self.context.take_failure().map(SessionError::from));
        SessionEnd { reason, error }
    }

    /// Waits for the reason to stop; a panic of a background task is one.
    async fn until_stopped(&self, background: &mut JoinSet<()>) -> StopReason {
        loop {
            tokio::select! {
                reason = self.context.cancelled() => return reason,
                Some(ended) = background.join_next() => {
                    if ended.is_err_and(|end| end.is_panic()) {
                        self.context.cancel_tunnel(Some(task_panicked()));
                    }
                }
            }
        }
    }

    /// A stop that came meanwhile is no error.
    async fn start(&self, options: StartOptions) -> Result<(), SessionError> {
        self.context
            .engage_kill_switch()
            .await
            .map_err(ProviderError::from)?;
        let (provider, context) = (self.provider.clone(), self.context.clone());
        let start = async move { provider.start(&context, options).await };
        let mut start = tokio::spawn(start.in_current_span());
        let outcome = tokio::select! {
            biased; // a `start` that a stop ends has not failed
            _ = self.context.cancelled() => return self.abandon(start).await,
            outcome = &mut start => outcome,
            () = self.context.until_overdue(self.deadlines.start) => {
                cancel(&mut start, "start").await;
                return Err(SessionError::StartDeadline(self.deadlines.start));
            }
        };
        outcome.map_err(|_| SessionError::Panicked)??;
        if self.context.interface().is_none() {
            return Err(SessionError::NoSettings);
        }
        Ok(())
    }

    /// Gives a `start` that a stop overtook a moment to notice.
    async fn abandon(
        &self,
        mut start: JoinHandle<Result<(), ProviderError>>,
    ) -> Result<(), SessionError> {
        if timeout(self.deadlines.abandon, &mut start).await.is_err() {
            cancel(&mut start, "start").await;
        }
        Ok(())
    }

    async fn stop(&self, reason: StopReason) {
        let (provider, context) = (self.provider.clone(), self.context.clone());
        let stop = async move { provider.stop(&context, reason).await };
        let mut stop = tokio::spawn(stop.in_current_span());
        match timeout(self.deadlines.stop, &mut stop).await {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => error!(%failure, "the provider's stop failed"),
            Err(_) => {
                warn!("the provider did not stop in time");
                cancel(&mut stop, "stop").await;
            }
        }
    }
}

impl SessionHandle {
    /// Whether the provider makes progress.
    pub(crate) fn is_well(&self) -> bool {
        self.provider.is_well()
    }

    /// Stops the session; the first reason counts.
    pub fn stop(&self, reason: StopReason) {
        self.context.begin_stop(reason);
    }

    /// The provider's answer to a message; `None` if it has none, or panicked over it.
    pub async fn send_message(&self, message: impl Into<AppMessage>) -> Option<Bytes> {
        let message = message.into();
        let (provider, context) = (self.provider.clone(), self.context.clone());
        let answer = async move { provider.handle_app_message(&context, message).await };
        // Dropped at the end of this call.
        let mut handling = JoinSet::new();
        handling.spawn(answer.instrument(self.context.span()));
        let answer = handling.join_next().await?;
        answer.unwrap_or_else(|failure| {
            error!(%failure, "the provider panicked while handling a message; please report this");
            None
        })
    }

    /// The provider's answer to a query.
    ///
    /// # Errors
    /// The error of the provider, or a panic over the query.
    pub async fn ask(&self, query: Query) -> Answered {
        let (provider, context) = (self.provider.clone(), self.context.clone());
        let answer = async move { provider.handle_query(&context, query).await };
        // Dropped at the end of this call.
        let mut handling = JoinSet::new();
        handling.spawn(answer.instrument(self.context.span()));
        let answer = handling.join_next().await.ok_or(QueryError::NotNow)?;
        answer.unwrap_or_else(|failure| {
            error!(%failure, "the provider panicked while handling a query; please report this");
            Err(QueryError::Refused("the provider panicked".to_owned()))
        })
    }

    /// Replaces the configuration; the provider sees the new one at once.
    pub fn configure(&self, configuration: Arc<TunnelConfiguration>) {
        self.context.set_configuration(configuration);
    }

    /// The state of the session.
    pub fn status(&self) -> SessionStatus {
        *self.context.status().borrow()
    }

    /// The state of the session, and each next one.
    pub fn statuses(&self) -> watch::Receiver<SessionStatus> {
        self.context.status()
    }

    /// The index of its interface, while there is one.
    pub(crate) fn interface_index(&self) -> Option<u32> {
        self.context.interface().map(|interface| interface.index)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::{
        machine::power::testing::TestLogind,
        provider::{ethernet_tunnel::BoxFut, settings::EthernetTunnelSettings},
        testing::{block_on, in_namespace},
    };

    const SOON: Duration = Duration::from_secs(20);

    /// Records its callbacks; sleeps until it is allowed to return.
    #[derive(Default)]
    struct Sleeper {
        calls: Mutex<Vec<String>>,
        hangs_in_sleep: bool,
        panics_in_sleep: bool,
    }

    impl Sleeper {
        fn note(&self, call: impl Into<String>) {
            self.calls.lock().unwrap().push(call.into());
        }

        async fn wait_for(&self, calls: &[&str]) {
            let wait = async {
                while *self.calls.lock().unwrap() != calls {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            let outcome = timeout(SOON, wait).await;
            outcome.unwrap_or_else(|_| panic!("{:?}", self.calls.lock().unwrap()));
        }
    }

    impl EthernetTunnelProvider for Sleeper {
        fn start<'a>(
            &'a self,
            context: &'a ProviderContext,
            _options: StartOptions,
        ) -> BoxFut<'a, Result<(), ProviderError>> {
            Box::pin(async {
                let mac = patchcord_bridge::MacAddr([2, 0, 0, 0, 0, 7]);
                let nowhere = std::net::Ipv4Addr::UNSPECIFIED.into();
                let settings = EthernetTunnelSettings::new(nowhere, mac, 1400, "tap7");
                context.set_network_settings(Some(settings)).await?;
                Ok(())
            })
        }

        fn stop<'a>(&'a self, _: &'a ProviderContext, reason: StopReason) -> BoxFut<'a, ()> {
            Box::pin(async move { self.note(format!("stop {}", reason as u8)) })
        }

        fn sleep<'a>(&'a self, _: &'a ProviderContext) -> BoxFut<'a, ()> {
            Box::pin(async {
                self.note("sleep");
                assert!(!self.panics_in_sleep);
                if self.hangs_in_sleep {
                    std::future::pending().await
                }
            })
        }

        fn wake(&self, _: &ProviderContext) {
            self.note("wake");
        }
    }

    struct Running {
        logind: TestLogind,
        provider: Arc<Sleeper>,
        handle: SessionHandle,
        end: JoinHandle<SessionEnd>,
    }

    /// A connected session on a machine that is awake.
    async fn session(
        provider: Sleeper,
        configuration: TunnelConfiguration,
        delay: Duration,
        run_dir: &Path,
    ) -> Running {
        let logind = TestLogind::start(delay).await;
        let provider = Arc::new(provider);
        let mut session = Session::new(provider.clone(), "office", run_dir, Deadlines::default())
            .with_configuration(configuration);
        session.sleep = SleepWatch::new(logind.bus(), "a test");
        let handle = session.handle();
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let end = tokio::spawn(session.run(StartOptions::default(), move || {
            let _ = ready.send(());
        }));
        is_ready.await.unwrap();
        logind.wait_for_taken(1).await;
        Running {
            logind,
            provider,
            handle,
            end,
        }
    }

    fn test<F: Future<Output = ()>>(test: impl FnOnce(std::path::PathBuf) -> F + Send) {
        in_namespace(|| {
            let dir = tempfile::tempdir().unwrap();
            block_on(test(dir.path().to_owned()));
        });
    }

    #[test]
    fn check_36_a_provider_gets_sleep_and_wake() {
        test(async |dir| {
            let delay = Duration::from_secs(60);
            let configuration = TunnelConfiguration::default();
            let session = session(Sleeper::default(), configuration, delay, &dir).await;
            let (logind, provider) = (session.logind, session.provider);
            for begins in [true, false, true] {
                logind.announce(begins).await;
            }
            provider.wait_for(&["sleep", "wake", "sleep"]).await;
            timeout(SOON, logind.wait_for_release()).await.unwrap();
            logind.announce(false).await;
            provider.wait_for(&["sleep", "wake", "sleep", "wake"]).await;
            session.handle.stop(StopReason::UserInitiated);
            let end = session.end.await.unwrap();
            assert_eq!(end.reason, StopReason::UserInitiated);
            timeout(SOON, logind.wait_for_release()).await.unwrap();
        });
    }

    #[test]
    fn check_36_a_provider_that_hangs_delays_sleep_no_longer_than_it_may() {
        test(async |dir| {
            let provider = Sleeper {
                hangs_in_sleep: true,
                ..Sleeper::default()
            };
            let delay = Duration::from_millis(300);
            let configuration = TunnelConfiguration::default();
            let session = session(provider, configuration, delay, &dir).await;
            session.logind.announce(true).await;
            session.provider.wait_for(&["sleep"]).await;
            timeout(SOON, session.logind.wait_for_release())
                .await
                .unwrap();
            session.logind.announce(false).await;
            session.provider.wait_for(&["sleep", "wake"]).await;
        });
    }

    #[test]
    fn check_36_a_provider_that_panics_over_sleep_ends_its_session() {
        test(async |dir| {
            let provider = Sleeper {
                panics_in_sleep: true,
                ..Sleeper::default()
            };
            let delay = Duration::from_secs(60);
            let configuration = TunnelConfiguration::default();
            let session = session(provider, configuration, delay, &dir).await;
            session.logind.announce(true).await;
            let end = timeout(SOON, session.end).await.unwrap().unwrap();
            assert_eq!(end.reason, StopReason::ProviderFailed);
            session.provider.wait_for(&["sleep", "stop 2"]).await;
        });
    }

    #[test]
    fn check_36_a_session_that_disconnects_on_sleep_is_gone_before_the_machine_sleeps() {
        test(async |dir| {
            let configuration = TunnelConfiguration {
                disconnect_on_sleep: true,
                ..TunnelConfiguration::default()
            };
            let delay = Duration::from_secs(60);
            let session = session(Sleeper::default(), configuration, delay, &dir).await;
            session.logind.announce(true).await;
            timeout(SOON, session.logind.wait_for_release())
                .await
                .unwrap();
            assert_eq!(session.handle.status(), SessionStatus::Disconnected);
            let end = session.end.await.unwrap();
            assert_eq!(end.reason, StopReason::Sleep);
            assert!(end.error.is_none());
            session.provider.wait_for(&["stop 15"]).await;
        });
    }

    /// Waits in `start` for longer than `start` may take, then fails.
    struct Patient;

    const LIMIT: Duration = Duration::from_millis(50);

    impl EthernetTunnelProvider for Patient {
        fn start<'a>(
            &'a self,
            context: &'a ProviderContext,
            _options: StartOptions,
        ) -> BoxFut<'a, Result<(), ProviderError>> {
            Box::pin(async {
                context.wait_for(tokio::time::sleep(LIMIT * 5)).await?;
                Err(ProviderError::new("it came"))
            })
        }

        fn stop<'a>(&'a self, _: &'a ProviderContext, _: StopReason) -> BoxFut<'a, ()> {
            Box::pin(async {})
        }
    }

    #[test]
    fn what_start_waits_for_does_not_count_against_its_deadline() {
        test(async |dir| {
            let deadlines = Deadlines {
                start: LIMIT,
                ..Deadlines::default()
            };
            let session = Session::new(Arc::new(Patient), "office", dir, deadlines);
            let end = session.run(StartOptions::default(), || {}).await;
            let error = end.error.map(|error| error.to_string());
            assert_eq!(error.as_deref(), Some("it came"));
        });
    }
}
