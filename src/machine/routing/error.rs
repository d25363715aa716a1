// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why routing is not as asked for.

use std::{io, path::PathBuf};

use super::slot::Slot;
use crate::machine::lock::LockError;

/// Why routing is not as asked for. It is as it was before then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RoutingError {
    /// No netlink socket.
    #[error("cannot talk to the kernel about routes (rtnetlink)")]
    Connect(#[source] io::Error),
    /// The kernel refused.
    #[error("cannot {action}")]
    Refused {
        /// What was attempted, with the values.
        action: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The run directory takes no lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The journal cannot be kept.
    #[error("cannot keep a journal in {}", path.display())]
    Journal {
        /// The journal file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Every slot is taken.
    #[error(
        "no routing table is left for this tunnel: {} run already, or other programs use their \
         numbers (see `ip rule`)",
        Slot::COUNT
    )]
    NoSlot,
}
