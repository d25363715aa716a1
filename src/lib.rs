// SPDX-License-Identifier: MIT OR Apache-2.0
//! Encrypted Ethernet tunnels.
#![deny(unsafe_code)]
// Tests live in real time.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod config;
pub mod control;
pub mod crypto;
pub mod io;
pub mod pipeline;
pub mod proto;
pub mod provider;
pub mod queue;
pub mod stats;
pub mod tunnel;
pub mod wire;
