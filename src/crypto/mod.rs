// SPDX-License-Identifier: MIT OR Apache-2.0
//! Keys and what is done with them; the only module that names a crate for cryptography.

pub mod aead;
pub mod keys;
pub mod mac;
pub mod noise;
pub mod speed;
