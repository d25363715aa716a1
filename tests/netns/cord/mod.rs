// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames cross: every frame that enters one end leaves the other, byte for byte, once and in order,
//! between bridges or between NICs, and over any number of lanes.

mod express;
mod lan;
mod lanes;
mod soak;
mod transparency;
mod wire;
