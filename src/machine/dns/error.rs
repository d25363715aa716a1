// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why names are not resolved as asked for.

use std::{
    io,
    path::{Path, PathBuf},
};

/// Why names are not resolved as asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NamesError {
    /// The resolver of this machine is not able to.
    #[error(
        "{resolver} cannot do {what}; run systemd-resolved with /etc/resolv.conf linked to \
         /run/systemd/resolve/stub-resolv.conf, or ask for all names, in clear"
    )]
    Unsupported {
        /// What it would have to do.
        what: &'static str,
        /// Who.
        resolver: &'static str,
    },
    /// Names are resolved for all network namespaces by one that is not this one.
    #[error(
        "systemd-resolved is in another network namespace; give this one an /etc/resolv.conf of its \
         own, as ip-netns(8) does with /etc/netns/NAME/resolv.conf"
    )]
    Elsewhere,
    /// Another tunnel has the file.
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
        /// What it was asked to do.
        action: &'static str,
        /// What it said.
        source: Box<zbus::Error>,
    },
    /// The program failed.
    #[error("{} failed", program.display())]
    Resolvconf {
        /// The program.
        program: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// A file cannot be kept.
    #[error("cannot replace {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

pub(super) fn file_error(path: &Path) -> impl FnOnce(io::Error) -> NamesError {
    let path = path.to_owned();
    move |source| NamesError::File { path, source }
}
