// SPDX-License-Identifier: MIT OR Apache-2.0
//! One running tunnel. Placeholder for the engine's entry point.

use crate::config::Config;

/// Why a tunnel did not start, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// There is no engine in this build.
    #[error("tunnel `{0}`: this build cannot carry frames")]
    NotBuilt(String),
}

/// Runs the tunnel until it is told to stop.
///
/// # Errors
/// Says what failed and the remedy.
pub fn run(config: Config) -> Result<(), RunError> {
    Err(RunError::NotBuilt(config.name))
}
