// SPDX-License-Identifier: MIT OR Apache-2.0
//! The atomics of the crate: those of the machine, or those of a model that tries everything that
//! other threads and a weak memory may do. `tests/models` builds the crate with `cfg(loom)`;
//! nothing else does.

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{AtomicI32, AtomicU8, AtomicU32, AtomicU64, fence};

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicI32, AtomicU8, AtomicU32, AtomicU64, fence};

/// Whether tables are small enough for a model.
pub(crate) const IS_MODEL: bool = cfg!(loom);
