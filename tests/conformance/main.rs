// SPDX-License-Identifier: MIT OR Apache-2.0
//! The numbered promises of the provider API: providers of our own, hosted, on real TAPs, each check in
//! a network namespace of its own. Needs root.

#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

mod chaos;
mod daemon;
mod kit;
mod lifecycle;
mod on_demand;
mod routing;
mod secrets;
mod settings;
mod store;
