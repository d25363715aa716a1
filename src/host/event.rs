// SPDX-License-Identifier: MIT OR Apache-2.0
//! The events of a host (`NEVPNStatusDidChange`, `NEVPNConfigurationChange`).

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

/// An event of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Event {
    /// The tunnel.
    pub tunnel: String,
    /// The attempt of its session; `None` if the event is about the tunnel itself.
    pub attempt: Option<Attempt>,
    /// The kind of event.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// The kind of an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", content = "value", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum EventKind {
    /// The status changed.
    Status(SessionStatus),
    /// The session is over, and everything of it is removed.
    Ended {
        /// The reason.
        reason: StopReason,
        /// The error behind it, unless a user asked for the end.
        error: Option<String>,
    },
    /// The provider has a message for the user.
    Message {
        /// The text.
        text: String,
    },
    /// The configuration changed.
    Configured {
        /// Its generation.
        generation: u64,
    },
    /// A file of the [`Store`](super::store::Store) cannot be used; the earlier configuration stays
    /// in force. The tunnel is the one of that file, and has no name if the event is about a whole
    /// folder.
    NotUsed {
        /// The file and its error.
        problem: String,
    },
    /// The tunnel was removed.
    Removed,
}

/// Events from the time of the subscription.
pub struct Events {
    receiver: broadcast::Receiver<Event>,
}

/// The listener was too slow: so many events are lost. Read the states again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} events were lost; read the states again")]
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
