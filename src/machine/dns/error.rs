// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why names cannot be resolved as requested.

use std::{
    io,
    path::{Path, PathBuf},
};

/// Why names cannot be resolved as requested.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NamesError {
    /// The resolver of this machine cannot do it.
    #[error(
        "{resolver} cannot do {what}; run systemd-resolved with /etc/resolv.conf linked to \
         /run/systemd/resolve/stub-resolv.conf, or ask for all names, in clear"
    )]
    Unsupported {
        /// The missing feature.
        what: &'static str,
        /// The resolver.
        resolver: &'static str,
    },
    /// One resolver, in another network namespace, resolves names for all of them.
    #[error(
        "systemd-resolved is in another network namespace; give this one an /etc/resolv.conf of its \
         own, as ip-netns(8) does with /etc/netns/NAME/resolv.conf"
    )]
    Elsewhere,
    /// Another tunnel has written the file.
    #[error(
        "another tunnel has {}: {by:?}; stop that, or start and stop it if it was killed",
        path.display()
    )]
    Taken {
        /// The file.
        path: PathBuf,
        /// Its first line.
        by: String,
    },
    /// systemd-resolved refuses.
    #[error("systemd-resolved cannot {action}")]
    Resolved {
        /// The requested action.
        action: &'static str,
        /// Its answer.
        source: Box<zbus::Error>,
    },
    /// The program failed.
    #[error("{} failed", program.display())]
    Resolvconf {
        /// The program.
        program: PathBuf,
        /// Its error.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot replace {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
}

pub(super) fn file_error(path: &Path) -> impl FnOnce(io::Error) -> NamesError {
    let path = path.to_owned();
    move |source| NamesError::File { path, source }
}
