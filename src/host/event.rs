// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a host tells (`NEVPNStatusDidChange`, `NEVPNConfigurationChange`).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::{self, error::RecvError};

use crate::provider::{SessionStatus, StopReason};

/// The number of a start: all events of one session carry the same.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct Attempt(pub u64);

/// Something that happened to a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Event {
    /// Which.
    pub tunnel: String,
    /// In which of its sessions; `None` if it was to the tunnel itself.
    pub attempt: Option<Attempt>,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", content = "value", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum EventKind {
    /// The status is another one.
    Status(SessionStatus),
    /// The session is over, and everything of it gone.
    Ended {
        /// Why.
        reason: StopReason,
        /// The error behind it, unless a user asked for the end.
        error: Option<String>,
    },
    /// The provider has a message for the user.
    Message {
        /// That.
        text: String,
    },
    /// The configuration is another one.
    Configured {
        /// Its number.
        generation: u64,
    },
    /// A file of the [`Store`](super::store::Store) cannot be used; what was in force before stays. The
    /// tunnel is the one that the file would be, and has no name if it is about a whole folder.
    NotUsed {
        /// What is wrong with which file.
        problem: String,
    },
    /// The tunnel was removed.
    Removed,
}

/// Events, from when it was asked for.
pub struct Events {
    receiver: broadcast::Receiver<Event>,
}

/// The listener was too slow: this many events are lost. Look at the states again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} events were lost; look at the states again")]
pub struct Lagged(pub u64);

impl Events {
    pub(super) fn new(receiver: broadcast::Receiver<Event>) -> Self {
        Self { receiver }
    }

    /// The next event; `None` when the host is gone.
    ///
    /// # Errors
    /// [`Lagged`] once after events were lost.
    pub async fn next(&mut self) -> Option<Result<Event, Lagged>> {
        match self.receiver.recv().await {
            Ok(event) => Some(Ok(event)),
            Err(RecvError::Lagged(lost)) => Some(Err(Lagged(lost))),
            Err(RecvError::Closed) => None,
        }
    }
}
