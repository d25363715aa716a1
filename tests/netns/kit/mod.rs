// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kit of the tests: sites and hosts in namespaces, cables, traffic, and their turns at the cores.
//! It tests nothing itself; `tests/hostile` and `tests/examples.rs` use it too.
//!
//! | Module | Has |
//! |---|---|
//! | `site` | a site: a bridge, an uplink, and the program that joins them |
//! | `pair`, `sites`, `mesh` | two sites; three, as a star or a mesh; any number, and Ethernet links beside their tunnels |
//! | `wire` | two sites that attach a NIC each |
//! | `topology` | a test's directory, routers of the underlay, hosts |
//! | `namespace`, `process` | network namespaces; child processes, and `eventually`, the one way of waiting |
//! | `host` | `patchcord host run`, and what programs tell the service manager |
//! | `cable`, `frames`, `packets` | a bare cable in a bridge, and what tests send and recognise there |
//! | `vnet` | frames that leave checksum and segments to the kernel |
//! | `traffic`, `dhcp` | TCP, UDP and ping between hosts; a DHCP server and client |
//! | `wiretap`, `splice` | a tap on the underlay, and a relay that loses, delays and reorders there |
//! | `load` | turns at the cores for tests that load the machine |

pub(crate) mod cable;
pub(crate) mod dhcp;
pub(crate) mod frames;
pub(crate) mod host;
pub(crate) mod load;
pub(crate) mod mesh;
pub(crate) mod namespace;
pub(crate) mod packets;
pub(crate) mod pair;
pub(crate) mod process;
pub(crate) mod site;
pub(crate) mod sites;
pub(crate) mod splice;
pub(crate) mod topology;
pub(crate) mod traffic;
pub(crate) mod vnet;
pub(crate) mod wire;
pub(crate) mod wiretap;
