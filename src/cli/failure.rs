// SPDX-License-Identifier: MIT OR Apache-2.0
//! The end of a command that failed.

use std::io::{self, Write};
use std::process::ExitCode;

use patchcord::config::ConfigErrors;

/// Why a command failed, which decides the exit code.
pub(super) enum Failure {
    /// 1: the command line was valid.
    AtRunTime(anyhow::Error),
    /// 2: bad usage.
    Usage(String),
    /// 2: bad configuration.
    Config(ConfigErrors),
    /// 2: bad configuration, in the words of a running tunnel.
    Refused(String),
}

impl Failure {
    pub(super) fn report(self) -> ExitCode {
        let (text, code) = match self {
            // The reader of our output has closed it, as in `patchcord show | head`.
            Self::AtRunTime(error) if is_broken_pipe(&error) => return ExitCode::SUCCESS,
            Self::AtRunTime(error) => (format!("patchcord: {error:#}"), 1),
            Self::Usage(message) => (format!("patchcord: {message}"), 2),
            Self::Config(errors) => (errors.to_string(), 2),
            Self::Refused(errors) => (errors, 2),
        };
        // Without stderr, only the exit code is left.
        let _ = writeln!(io::stderr(), "{text}");
        ExitCode::from(code)
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::AtRunTime(error.into())
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}
