// SPDX-License-Identifier: MIT OR Apache-2.0
//! Peers find each other and stay in touch: names, NAT, IPv6, roaming, restarts, rekeying, and how
//! often a peer that does not answer is called.

mod calls;
mod continuity;
mod names;
mod sources;
mod underlay;
