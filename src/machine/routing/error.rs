// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why routing cannot be set as requested.

use std::{io, path::PathBuf};

use super::slot::Slot;
use crate::machine::lock::LockError;

/// Why routing cannot be set as requested. The earlier state stays in force.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RoutingError {
    /// No netlink socket.
    #[error("cannot talk to the kernel about routes (rtnetlink)")]
    Connect(#[source] io::Error),
    /// The kernel refused.
    #[error("cannot {action}")]
    Refused {
        /// The attempted action, with its values.
        action: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// A lock in the run directory cannot be taken.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The journal cannot be written.
    #[error("cannot keep a journal in {}", path.display())]
    Journal {
        /// The journal file.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// All slots are in use.
    #[error(
        "no routing table is left for this tunnel: {} run already, or other programs use their \
         numbers (see `ip rule`)",
        Slot::COUNT
    )]
    NoSlot,
}
