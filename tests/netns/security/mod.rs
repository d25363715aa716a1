// SPDX-License-Identifier: MIT OR Apache-2.0
//! An attacker gains nothing: without the right keys no session opens, and replayed, mangled and
//! flooded datagrams have no effect on a session.

mod hostile;
mod keys;
