// SPDX-License-Identifier: MIT OR Apache-2.0
//! Two and more sites on one machine, with real kernel objects and the real program. Needs root.
//!
//! ```text
//!  host 1 --+                                                            +-- host 1
//!  host 2 --+-- br-lan -- pc0 = patchcord      patchcord = pc0 -- br-lan --+-- host 2
//!  cable  --+                       |             |                      +-- cable
//!           site A                 wan           wan              site B
//!           198.18.1.2, fd18:1::2   |             |               198.18.2.2, fd18:2::2
//!                                   +-- router ---+
//! ```
//!
//! Every box is a network namespace that lives as long as its value ([`namespace`]). A `cable` is the
//! bare end of an Ethernet cable: the test itself reads and writes its frames ([`cable`]). The router
//! stands for the Internet; tests make its links narrow, its firewall rude, or put a NAT before it, and
//! splice a relay that loses frames into its cables ([`splice`]).
//!
//! Nothing here sleeps to synchronise: tests poll for what they wait for, with a deadline. Tests
//! run side by side, more of them than there are cores, as most of them wait; what loads the machine
//! takes its turn ([`load`]). Run
//! `PATCHCORD=/usr/bin/patchcord cargo test --test netns` to try an installed program.
// A test fails by panicking, waits by the real clock, and prints its logs.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stderr,
    clippy::print_stdout
)]

mod cable;
mod frames;
mod load;
mod logs;
mod mesh;
mod namespace;
mod process;
mod splice;
mod topology;
mod traffic;
mod wiretap;

mod addresses;
mod autoconf;
mod calls;
mod continuity;
mod guard;
mod hostile;
mod keep;
mod keys;
mod lan;
mod lanes;
mod lifecycle;
mod loops;
mod loss;
mod many;
mod mtu;
mod multicast;
mod names;
mod neighbours;
mod offload;
mod panics;
mod port_vlans;
mod segments;
mod slow_peer;
mod soak;
mod sources;
mod storm;
mod switch;
mod transparency;
mod trouble;
mod underlay;
mod verbs;
mod vlan;
mod wire;
