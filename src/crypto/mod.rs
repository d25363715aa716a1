// SPDX-License-Identifier: MIT OR Apache-2.0
//! Keys and what is done with them; the only module that names a crate for cryptography.

pub mod aead;
pub mod keys;
pub mod mac;
pub mod noise;
pub mod speed;

/// Fills `out` with random bytes of the kernel.
///
/// # Panics
/// When the system call fails, which a kernel that has seeded its generator never does.
pub fn random(out: &mut [u8]) {
    getrandom::fill(out).expect("the kernel gives random numbers");
}
