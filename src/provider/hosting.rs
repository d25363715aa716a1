// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a session has from its host.

use tracing::Span;

use super::{
    secret::{Secret, SecretError},
    status::SessionStatus,
};

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
