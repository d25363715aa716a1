// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why the device cannot be set up as requested.

use std::{io, path::PathBuf};

use crate::{
    io::tap::TapError,
    machine::{journal::Journal, link::LinkError, lock::LockError},
};

/// Why the device cannot be set up as requested. Nothing of it is left then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// Another process uses the tunnel or the device.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The TAP cannot be opened, or the NIC cannot be attached.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// A link cannot be changed.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The journal cannot be written.
    #[error("cannot keep a journal in {}", path.display())]
    Journal {
        /// The journal file.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
}

pub(super) fn journal_error(journal: &Journal) -> impl FnOnce(io::Error) -> DeviceError {
    let path = journal.path().to_owned();
    move |source| DeviceError::Journal { path, source }
}
