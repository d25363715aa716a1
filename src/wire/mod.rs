// SPDX-License-Identifier: MIT OR Apache-2.0
//! Byte layouts of our datagrams: parse and emit, no state (PROTOCOL.md, "Messages").
//!
//! Every datagram starts with four bytes: format version and message type, then the 24-bit index of
//! a session. All integers are in network byte order. Sizes are checked at compile time; a datagram
//! that does not fit its layout has one outcome, a [`DropReason`](crate::stats::DropReason).

pub mod chunk;
pub mod handshake;
pub mod local;
mod message;
pub mod offload;

pub use self::handshake::{CookieReply, Initiation, InitiationPayload, Response, ResponsePayload};
pub use self::message::{
    Counter, DATA_HEADER_LEN, DATA_OVERHEAD, DataHeader, Lane, LaneSet, MessageType, SessionIndex,
    TAG_LEN, VERSION, index_of,
};
