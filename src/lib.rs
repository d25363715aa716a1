// SPDX-License-Identifier: MIT OR Apache-2.0
//! Encrypted Ethernet tunnels.
#![deny(unsafe_code)]

pub mod control;
pub mod crypto;
pub mod proto;
pub mod stats;
pub mod wire;
