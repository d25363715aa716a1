// SPDX-License-Identifier: MIT OR Apache-2.0
//! Nodes over a virtual underlay, on a virtual clock: hours of protocol in moments, with the same
//! random decisions of the network in every run.
//!
//! ```text
//!  Host: Node, tables, trains, replay windows        Net: latency, loss, duplication, reordering, MTU
//!  +-------+   Sent { from, to, bytes }   +--------------------+   +-------+
//!  | host 0| ---------------------------> | filter, dice, queue| ->| host 1|
//!  +-------+                              +--------------------+   +-------+
//!                                            | recorded         ^ injected
//!                                            +--- eavesdropper -+
//! ```
//!
//! A host ([`host`]) does what `pipeline` does with a node, without threads; the network ([`net`])
//! moves its datagrams. Only keys, tokens and the jitter of retries differ between runs.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod host;
mod net;

mod calls;
mod clock;
mod delivery;
mod handshake;
mod hostile;
mod liveness;
mod path;
mod rekey;
