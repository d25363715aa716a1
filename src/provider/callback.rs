// SPDX-License-Identifier: MIT OR Apache-2.0
//! Cancels a callback of a provider that takes too long.

use std::time::Duration;

use tokio::{task::JoinHandle, time::timeout};
use tracing::error;

/// Cancels a task of the provider: it ends at its next await.
pub(super) async fn cancel<T>(task: &mut JoinHandle<T>, callback: &str) {
    const PATIENCE: Duration = Duration::from_secs(1);
    task.abort();
    if timeout(PATIENCE, task).await.is_err() {
        error!(
            callback,
            "the provider's callback cannot be cancelled; abandoning it"
        );
    }
}
