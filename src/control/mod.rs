// SPDX-License-Identifier: MIT OR Apache-2.0
//! The control socket: how `show` and `down` reach a running tunnel.

pub mod message;
