// SPDX-License-Identifier: MIT OR Apache-2.0
//! Times that the parts of a guard share, in microseconds.

pub(super) const MS: u64 = 1000;
pub(super) const S: u64 = 1000 * MS;

/// Between two rounds of probes on all ports.
pub(super) const INTERVAL_US: u64 = S;
