// SPDX-License-Identifier: MIT OR Apache-2.0
//! The underlay may be narrow, lossy, late or slow: full frames and super-frames cross it, with no MTU
//! to configure, and it costs no more than the frames that it loses.

mod loss;
mod merging;
mod mtu;
mod offload;
mod segment_size;
mod segments;
mod slow_peer;
