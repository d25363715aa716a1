// SPDX-License-Identifier: MIT OR Apache-2.0
//! One tunnel of a host: its configuration, its session and what is known of both. `tunnels` has the map of
//! all.

use std::{collections::BTreeMap, sync::Arc};

use tokio::{
    sync::{Semaphore, SemaphorePermit, watch},
    task::JoinSet,
};
use tracing::{Instrument, warn};

use super::{
    error::{HostError, explain},
    event::Attempt,
};
use crate::provider::{
    EthernetTunnelProvider, Session, SessionEnd, SessionError, SessionHandle, SessionStatus,
    StartOptions, StopReason, TunnelConfiguration,
};

#[derive(Default)]
pub(super) struct Tunnel {
    /// `None` after its removal, while its session is not over yet.
    pub(super) configuration: Option<Arc<TunnelConfiguration>>,
    pub(super) generation: u64,
    pub(super) session: Option<Running>,
    pub(super) last_error: Option<String>,
    /// Started as soon as the session is over.
    pub(super) successor: Option<Successor>,
}

/// A session that is yet to begin.
pub(super) struct Successor {
    pub(super) provider: Arc<dyn EthernetTunnelProvider>,
    pub(super) configuration: Arc<TunnelConfiguration>,
}

#[derive(Clone)]
pub(super) struct Running {
    pub(super) attempt: Attempt,
    pub(super) handle: SessionHandle,
    /// Permits for messages that the provider has not answered.
    pub(super) messages: Arc<Semaphore>,
    /// How it ended, once everything of the session is removed.
    pub(super) ended: watch::Receiver<Option<Ending>>,
}

/// The end of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ending {
    /// The reason.
    pub reason: StopReason,
    /// The error behind it, unless a user asked for the end.
    pub error: Option<String>,
}

/// The state of a tunnel.
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
    /// Why the last session ended, if it ended with an error.
    pub last_disconnect_error: Option<String>,
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

impl Tunnel {
    pub(super) fn status(&self) -> SessionStatus {
        match (&self.session, &self.configuration) {
            (Some(running), _) => running.handle.status(),
            (None, Some(_)) => SessionStatus::Disconnected,
            (None, None) => SessionStatus::Invalid,
        }
    }

    pub(super) fn view(&self, name: &str) -> Option<TunnelView> {
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
    pub(super) fn reserve_message(&self, tunnel: &str) -> Result<SemaphorePermit<'_>, HostError> {
        let in_hand = self.messages.try_acquire();
        in_hand.map_err(|_| HostError::Busy(tunnel.to_owned()))
    }

    /// Waits until everything of the session is removed.
    pub(super) async fn gone(mut self) -> Option<Ending> {
        let ended = self.ended.wait_for(Option::is_some).await;
        ended.ok().and_then(|ending| ending.clone())
    }
}

impl Ending {
    pub(super) fn of(end: &SessionEnd) -> Self {
        Self {
            reason: end.reason,
            error: end.error.as_ref().map(|error| explain(error)),
        }
    }
}

/// Runs a session to its end, even if that is a panic.
pub(super) async fn run_to_end(session: Session, options: StartOptions) -> SessionEnd {
    // Dropped with this one.
    let mut inner = JoinSet::new();
    inner.spawn(session.run(options, || {}).in_current_span());
    match inner.join_next().await {
        Some(Ok(end)) => end,
        _ => SessionEnd {
            reason: StopReason::InternalError,
            error: Some(SessionError::Panicked),
        },
    }
}

pub(super) fn known<'a>(
    tunnels: &'a mut BTreeMap<String, Tunnel>,
    name: &str,
) -> Result<&'a mut Tunnel, HostError> {
    tunnels
        .get_mut(name)
        .ok_or_else(|| HostError::NoTunnel(name.to_owned()))
}

/// The configuration of a tunnel, if it may be started.
pub(super) fn startable(
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

pub(super) fn check_generation(
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

/// Stops the other tunnels of an exclusive group, and returns their sessions, for the caller to wait
/// for.
pub(super) fn supersede(
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
        .filter_map(|(name, tunnel)| Some((name, tunnel.session.clone()?)))
        .collect();
    for (tunnel, other) in &running {
        warn!(
            tunnel,
            attempt = other.attempt.0,
            by = name,
            "stopping the session: another tunnel of its exclusive group replaces it"
        );
        other.handle.stop(StopReason::Superseded);
    }
    running.into_iter().map(|(_, other)| other).collect()
}
