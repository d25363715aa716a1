// SPDX-License-Identifier: MIT OR Apache-2.0
//! Any frames by any ports, in any VLANs, through ageing, moves, blocks and limits: through the switch,
//! and through the model of the crate's own tests. Both must agree on every frame.
#![no_main]

#[path = "../../../bridge/tests/model/mod.rs"]
mod model;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| model::run(bytes));
