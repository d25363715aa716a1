// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the tests are made of: sites and hosts in namespaces, cables, traffic, and their turns at the
//! cores. It tests nothing itself; `tests/hostile` and `tests/examples.rs` use it too.
//!
//! | Module | Has |
//! |---|---|
//! | `topology` | sites that run the program, hosts, and routers between them; `Pair` is two sites |
//! | `mesh` | any number of sites, and Ethernet links beside their tunnels |
//! | `namespace`, `process` | network namespaces; child processes, and `eventually`, the one way of waiting |
//! | `cable`, `frames` | a bare cable in a bridge, and the frames that tests send and recognise |
//! | `traffic` | TCP, UDP and ping between hosts |
//! | `wiretap`, `splice` | a tap on the underlay, and a relay that loses, delays and reorders there |
//! | `load` | turns at the cores for tests that load the machine |

pub(crate) mod cable;
pub(crate) mod frames;
pub(crate) mod load;
pub(crate) mod mesh;
pub(crate) mod namespace;
pub(crate) mod process;
pub(crate) mod splice;
pub(crate) mod topology;
pub(crate) mod traffic;
pub(crate) mod wiretap;
