// SPDX-License-Identifier: MIT OR Apache-2.0
//! A provider's own error.

use std::error::Error;

use super::settings::SettingsError;

/// A provider's own error: it cannot start, or cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ProviderError {
    /// What failed, for a user, with the remedy if there is one.
    pub message: String,
    /// The cause.
    #[source]
    pub source: Option<Box<dyn Error + Send + Sync>>,
}

impl ProviderError {
    /// An error without a source.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            source: None,
        }
    }

    /// An error with its source.
    pub fn with_source(
        message: impl Into<String>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self {
            message: message.into(),
            source: Some(source.into()),
        }
    }
}

impl From<SettingsError> for ProviderError {
    fn from(error: SettingsError) -> Self {
        Self::with_source("the interface could not be set up", error)
    }
}
