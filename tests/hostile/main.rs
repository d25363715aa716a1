// SPDX-License-Identifier: MIT OR Apache-2.0
//! A hostile peer with a valid key, against the real program. Needs root.
//!
//! ```text
//!  cable -- br-lan -- pc0 = patchcord -- wan --- router --- namespace of rogue 1
//!            the program under test                   \---- namespace of rogue 2, ...
//! ```
//!
//! A [`Stage`](stage::Stage) is one site with the program, and as many [`Rogue`](rogue::Rogue)s as it
//! has peers. A rogue implements the project's own protocol (`proto::Node`, `Session`), so that
//! handshakes, echoes and keys are right for as long as the test needs them. Besides, it seals any
//! content, and sends from any address:
//!
//! ```text
//! let stage = Stage::start(&Mode::HUB, 2);             // the program, and two peers of it
//! let [rogue, other] = stage.rogues() else { .. };
//! rogue.connect();                                     // an honest handshake
//! rogue.send(&chunk::frame(&bytes));                   // sealed, next counter, first data lane
//! rogue.send(&[chunk::offload(..), chunk::fragment(..)].concat());
//! let datagram = rogue.seal(Sealed { lane: Lane(3), sequence: Some(7), ..Sealed::chunks(&plaintext) });
//! rogue.source(9).send(&datagram);                     // from another address
//! rogue.send_datagram(&datagram);                      // the same bytes again, or any others
//! rogue.send_control(&[ControlChunk::Close]);                 // session down ...
//! rogue.connect();                                     // ... and up again: a flap
//! rogue.mute();                                        // sends nothing any more
//! rogue.restart();                                     // knows of no session any more, and calls
//! rogue.initiation();                                  // a good handshake message, to send as one likes
//! other.receives(&bytes, secs(5));                     // what the program sent to a peer
//! stage.cable.receives(&bytes, secs(5));               // what it wrote to its TAP
//! stage.assert_well();                                 // it lives, its memory is bounded, frames cross
//! ```
//!
//! `packet` builds frames with headers of any length. A new topic is a new file with its tests;
//! `random` draws from a seed, which it prints when it fails.
// A test fails by panicking, waits by the real clock, and prints its logs.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stderr,
    clippy::print_stdout
)]

// The kit of the end-to-end tests, of which these use a part.
#[allow(dead_code)]
#[path = "../netns/kit/mod.rs"]
mod kit;

// No topic needs all of it.
#[allow(dead_code)]
mod chunk;
#[allow(dead_code)]
mod packet;
#[allow(dead_code)]
mod rogue;
#[allow(dead_code)]
mod stage;

mod flaps;
mod honest;
mod long_headers;
mod random;
