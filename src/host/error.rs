// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why a host refuses a request.

use std::error::Error;

use super::name::MAX_NAME;
use crate::{
    control::message::QueryError,
    machine::lock::LockError,
    provider::{ProviderError, SessionStatus},
};

/// The limit of pending messages and queries of a provider: one that never answers must not accumulate
/// them.
pub(super) const MAX_MESSAGES: usize = 64;

/// Why a host refuses a request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// There is no such tunnel.
    #[error(
        "there is no tunnel `{0}`; `patchcord host list` lists all, and the host's log says which files it cannot use"
    )]
    NoTunnel(String),
    /// A tunnel cannot have this name: it becomes the name of files.
    #[error(
        "`{0}` is not a valid name for a tunnel: use letters, digits, `-`, `_` and `.`, {MAX_NAME} at most, the first a letter or digit"
    )]
    Name(String),
    /// Its configuration disables it.
    #[error("the tunnel `{0}` is disabled; set `enabled = true` in its configuration")]
    Disabled(String),
    /// It has a session already.
    #[error("the tunnel `{tunnel}` is {} already", status.name())]
    Running {
        /// The tunnel.
        tunnel: String,
        /// The status of its session.
        status: SessionStatus,
    },
    /// Its provider does not support the query.
    #[error(
        "the provider of `{0}` does not support this query: it is of another kind, or of an older version"
    )]
    NoQuery(String),
    /// There is no answer while it is in this state.
    #[error("nothing to show while {}; try again", status.name())]
    NotNow {
        /// The status of its session.
        status: SessionStatus,
    },
    /// The tunnel refused; the text has the reason and the remedy.
    #[error("{0}")]
    Refused(String),
    /// Its file is not valid; the text has each error.
    #[error("{0}")]
    Configuration(String),
    /// It has no session to answer.
    #[error("the tunnel `{0}` is not running")]
    NotRunning(String),
    /// Its provider has as many pending messages as it may, and answers none of them.
    #[error(
        "the provider of `{0}` has {MAX_MESSAGES} pending messages that it does not answer; try again \
         later, or start the tunnel again"
    )]
    Busy(String),
    /// Another process runs it, or the run directory cannot be used.
    #[error(transparent)]
    Locked(#[from] LockError),
    /// No factory of this name was registered.
    #[error("there is no provider `{provider}`; choose one of: {}", known.join(", "))]
    NoProvider {
        /// The name in the configuration.
        provider: String,
        /// The registered names.
        known: Vec<String>,
    },
    /// The provider cannot be created from the configuration.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// Another client has changed the configuration since it was read.
    #[error(
        "another client changed the configuration of `{tunnel}`, now generation {current}; read it again"
    )]
    Stale {
        /// The tunnel.
        tunnel: String,
        /// Its generation.
        current: u64,
    },
}

impl HostError {
    pub(super) fn no_answer(tunnel: &str, status: SessionStatus, error: QueryError) -> Self {
        match error {
            QueryError::Unknown => Self::NoQuery(tunnel.to_owned()),
            QueryError::NotNow => Self::NotNow { status },
            QueryError::Refused(message) => Self::Refused(message),
            QueryError::Configuration(message) => Self::Configuration(message),
        }
    }
}

/// The error with its causes, as text for users.
pub(super) fn explain(error: &dyn Error) -> String {
    let (mut text, mut last) = (error.to_string(), error.source());
    while let Some(cause) = last {
        text = format!("{text}: {cause}");
        last = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::{
        host::client::ClientError,
        io::tap::{NicError, TapError},
        machine::sockets::SocketError,
    };

    /// A cause behind the remedy would read as a part of it.
    #[test]
    fn each_error_with_a_remedy_names_its_cause_in_front_of_it() {
        const CAUSE: &str = "the kernel says no";
        let (cause, path, name) = (
            || io::Error::new(io::ErrorKind::PermissionDenied, CAUSE),
            || "run/office".into(),
            || "tap7".to_owned(),
        );
        let errors: [(Box<dyn Error>, &str); 9] = [
            (
                Box::new(ClientError::NotRunning {
                    path: path(),
                    cause: cause(),
                }),
                "; start it with `patchcord host run`",
            ),
            (
                Box::new(ClientError::PermissionDenied {
                    path: path(),
                    cause: cause(),
                }),
                "; run as root",
            ),
            (
                Box::new(ClientError::NoHello {
                    path: path(),
                    cause: serde_json::Error::io(cause()),
                }),
                "; start the tunnel again with this version",
            ),
            (
                Box::new(LockError::Io {
                    path: path(),
                    cause: cause(),
                }),
                "; run as root, or let this user write to that directory",
            ),
            (
                Box::new(NicError::NotPermitted {
                    name: name(),
                    cause: cause(),
                }),
                "; run as root or with these capabilities",
            ),
            (
                Box::new(TapError::NotPermitted {
                    name: name(),
                    cause: cause(),
                }),
                "; run as root or with that capability",
            ),
            (
                Box::new(TapError::NoDriver(cause())),
                "; load the driver with `modprobe tun`, or give the container `--device /dev/net/tun`",
            ),
            (
                Box::new(TapError::DeviceForbidden(cause())),
                "; give the container `--device /dev/net/tun`, the unit `DeviceAllow=/dev/net/tun rw`",
            ),
            (
                Box::new(SocketError::NotPermitted(cause())),
                "; run as root or with that capability",
            ),
        ];
        for (error, remedy) in errors {
            let text = explain(&*error);
            assert!(text.ends_with(&format!("{CAUSE}{remedy}")), "{text}");
            assert_eq!(text.matches(CAUSE).count(), 1, "{text}");
        }
    }
}
