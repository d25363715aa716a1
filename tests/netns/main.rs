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
//! | Group | Promises |
//! |---|---|
//! | `cord` | frames cross byte for byte, once, in order: bridged, from NIC to NIC, over many lanes |
//! | `switch` | each frame goes where it belongs: FDB, VLANs, multicast, neighbours, storms, loops, guards |
//! | `path` | the underlay may be narrow, lossy or slow: MTU, loss, offload, super-frames |
//! | `session` | peers find each other and stay in touch: names, NAT, roaming, restarts, rekeying |
//! | `device` | the device keeps its configuration, and stations behind the tunnel change none |
//! | `program` | how the program starts, ends and fails, its verbs, and what it says about trouble |
//! | `security` | an attacker gains nothing: keys, replays, mangled datagrams, floods |
//! | `kit` | no tests: what the others are made of |
//!
//! A name on the command line selects tests by a part of `group::module::test`: `cargo test --test netns
//! -- switch::` runs a group, `-- keep` a module.
//!
//! Every box is a network namespace that lives as long as its value ([`kit::namespace`]). A `cable` is the
//! bare end of an Ethernet cable: the test itself reads and writes its frames ([`kit::cable`]). The router
//! stands for the Internet; tests make its links narrow, its firewall rude, or put a NAT before it, and
//! splice a relay that loses frames into its cables ([`kit::splice`]).
//!
//! Nothing here sleeps to synchronise: tests poll for an event, with a deadline. Tests run side by
//! side, more of them than there are cores, as most of them wait; a test that loads the machine takes
//! its turn ([`kit::load`]). Run `PATCHCORD=/usr/bin/patchcord cargo test --test netns` to try an
//! installed program.
// A test fails by panicking, waits by the real clock, and prints its logs.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stderr,
    clippy::print_stdout
)]

mod cord;
mod device;
mod kit;
mod path;
mod program;
mod security;
mod session;
mod switch;
