// SPDX-License-Identifier: MIT OR Apache-2.0
//! Many tunnels in one process (`NEProvider.startSystemExtensionMode` and `NETunnelProviderManager`).
//!
//! A [`Host`] knows kinds of providers, each with a function that creates one, and the configurations
//! of tunnels. Each start creates a fresh provider and runs it as a
//! [`Session`](crate::provider::Session) of its own: a panic, a failure or a hang in one does not
//! affect the others. [`Event`]s report each change, in the same order for every listener.
//!
//! ```text
//!              register            configure, remove, start, stop, send_message
//!  factories ────────────┐             │                          events
//!                        v             v                            ^
//!              ┌──────────────────── Host ──────────────────────────┴───┐
//!              │  tunnel "office"            tunnel "lab"               │
//!              │  configuration              configuration              │
//!              │  Session ── provider        (disconnected)             │
//!              └────────────────────────────────────────────────────────┘
//! ```
//!
//! Arrows are imports inside this module:
//!
//! ```text
//!  daemon ─> verbs ─┬─> store, secrets ─┐
//!    │              └─────────────> tunnels ─> tunnel ─> event, error
//!    └─> protocol <─ client
//! ```

pub mod client;
pub mod daemon;
mod error;
mod event;
mod limits;
mod lines;
mod name;
mod on_demand;
mod policy;
pub mod protocol;
pub mod secrets;
mod sleep;
pub mod socket;
pub mod store;
mod tunnel;
mod tunnels;
mod verbs;

pub use self::{
    error::HostError,
    event::{Attempt, Event, EventKind, Events, Lagged},
    tunnel::{Ending, TunnelView},
    tunnels::{Factory, Host, HostBuilder},
};
