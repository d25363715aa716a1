// SPDX-License-Identifier: MIT OR Apache-2.0
//! One session of one provider, from start to the removal of everything it set up.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{task::JoinHandle, time::timeout};
use tracing::{error, warn};

use super::{
    EthernetTunnelProvider, ProviderContext, ProviderError, SessionStatus, StartOptions,
    StopReason, TunnelConfiguration,
};

/// How long the host waits for a provider.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// For `start`.
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
}

/// Stops a session, or talks to its provider, from outside.
#[derive(Clone)]
pub struct SessionHandle {
    provider: Arc<dyn EthernetTunnelProvider>,
    context: ProviderContext,
}

/// How a session ended.
#[derive(Debug)]
pub struct SessionEnd {
    /// Why.
    pub reason: StopReason,
    /// The error behind it, unless somebody just asked.
    pub error: Option<SessionError>,
}

/// Why a session failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The provider did not start, or gave up.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// The provider said that it is ready without having an interface.
    #[error("the provider started without network settings")]
    NoSettings,
    /// The provider's `start` took too long.
    #[error("the provider did not start within {0:?}")]
    StartDeadline(Duration),
    /// The provider panicked.
    #[error("the provider panicked")]
    Panicked,
    /// The provider gave up and did not say why.
    #[error("the provider gave the tunnel up")]
    GaveUp,
}

impl SessionError {
    const fn reason(&self) -> StopReason {
        match self {
            Self::NoSettings => StopReason::ConfigurationFailed,
            Self::StartDeadline(_) => StopReason::ConnectionFailed,
            Self::Provider(_) | Self::Panicked | Self::GaveUp => StopReason::ProviderFailed,
        }
    }
}

impl Session {
    /// A session of `provider`, not started. Run-time state lies in `run_dir` under the name
    /// `tunnel`.
    pub fn new(
        provider: Arc<dyn EthernetTunnelProvider>,
        tunnel: impl Into<String>,
        run_dir: impl AsRef<Path>,
        deadlines: Deadlines,
    ) -> Self {
        let configuration = Arc::new(TunnelConfiguration::default());
        let observer = Box::new(|_| {});
        let context =
            ProviderContext::new(tunnel.into(), run_dir.as_ref(), configuration, observer);
        Self {
            provider,
            context,
            deadlines,
        }
    }

    /// The same for a tunnel of a host, which follows each change of its status.
    pub(crate) fn hosted(
        provider: Arc<dyn EthernetTunnelProvider>,
        context: ProviderContext,
        deadlines: Deadlines,
    ) -> Self {
        Self {
            provider,
            context,
            deadlines,
        }
    }

    /// A handle for others.
    pub fn handle(&self) -> SessionHandle {
        SessionHandle {
            provider: self.provider.clone(),
            context: self.context.clone(),
        }
    }

    /// Runs the session. Calls `ready` when it is connected. Returns when everything is removed.
    pub async fn run(self, options: StartOptions, ready: impl FnOnce()) -> SessionEnd {
        self.context.set_status(SessionStatus::Connecting);
        let start_error = self.start(options).await.err();
        match &start_error {
            Some(error) => drop(self.context.begin_stop(error.reason())),
            // Whoever stopped it meanwhile does not hear that it is up.
            None if self.context.is_stopping() => {}
            None => {
                self.context.set_status(SessionStatus::Connected);
                ready();
            }
        }
        let reason = self.context.cancelled().await;
        self.context.set_status(SessionStatus::Disconnecting);
        self.stop(reason).await;
        self.context.tear_down().await;
        self.context.set_status(SessionStatus::Disconnected);
        let error = start_error.or_else(|| self.failure(reason));
        SessionEnd { reason, error }
    }

    /// A stop that came meanwhile is no error.
    async fn start(&self, options: StartOptions) -> Result<(), SessionError> {
        self.context.hold().await.map_err(ProviderError::from)?;
        let (provider, context) = (self.provider.clone(), self.context.clone());
        let mut start = tokio::spawn(async move { provider.start(&context, options).await });
        let outcome = tokio::select! {
            outcome = &mut start => outcome,
            _ = self.context.cancelled() => return self.abandon(start).await,
            () = tokio::time::sleep(self.deadlines.start) => {
                start.abort();
                return Err(SessionError::StartDeadline(self.deadlines.start));
            }
        };
        outcome.map_err(|_| SessionError::Panicked)??;
        if self.context.interface().is_none() {
            return Err(SessionError::NoSettings);
        }
        Ok(())
    }

    /// Gives a `start` that is overtaken by a stop a moment to notice.
    async fn abandon(
        &self,
        mut start: JoinHandle<Result<(), ProviderError>>,
    ) -> Result<(), SessionError> {
        if timeout(self.deadlines.abandon, &mut start).await.is_err() {
            start.abort();
        }
        Ok(())
    }

    async fn stop(&self, reason: StopReason) {
        let (provider, context) = (self.provider.clone(), self.context.clone());
        let mut stop = tokio::spawn(async move { provider.stop(&context, reason).await });
        match timeout(self.deadlines.stop, &mut stop).await {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => error!(%failure, "the provider's stop failed"),
            Err(_) => {
                warn!("the provider did not stop in time");
                stop.abort();
            }
        }
    }

    fn failure(&self, reason: StopReason) -> Option<SessionError> {
        match (self.context.take_failure(), reason) {
            (Some(error), _) => Some(error.into()),
            (None, StopReason::ProviderFailed) => Some(SessionError::GaveUp),
            (None, _) => None,
        }
    }
}

impl SessionHandle {
    /// Stops the session; the first reason counts.
    pub fn stop(&self, reason: StopReason) {
        self.context.begin_stop(reason);
    }

    /// The provider's answer to a message; `None` if it has none, or panicked over it.
    pub async fn send_message(&self, message: Bytes) -> Option<Bytes> {
        let (provider, context) = (self.provider.clone(), self.context.clone());
        let answer =
            tokio::spawn(async move { provider.handle_app_message(&context, message).await });
        answer.await.unwrap_or_else(|failure| {
            error!(%failure, "the provider failed over a message");
            None
        })
    }

    /// The configuration is another one now; the provider sees it at once.
    pub fn configure(&self, configuration: Arc<TunnelConfiguration>) {
        self.context.set_configuration(configuration);
    }

    /// The state of the session.
    pub fn status(&self) -> SessionStatus {
        *self.context.status().borrow()
    }
}
