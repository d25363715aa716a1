// SPDX-License-Identifier: MIT OR Apache-2.0
//! Keys and the operations on them; the only module that names a crate for cryptography.

pub mod aead;
mod aegis;
pub mod keys;
pub mod mac;
pub mod noise;
mod primitives;
pub mod speed;

/// Fills `out` with random bytes of the kernel.
///
/// # Panics
/// When the system call fails, which a kernel that has seeded its generator never does.
pub(crate) fn random(out: &mut [u8]) {
    getrandom::fill(out).expect("the kernel gives random numbers");
}

/// Runs `work` and then wipes the part of the stack that it used: computing with a secret leaves
/// copies of it there. The returned value must hold no secret except behind a pointer.
pub(crate) fn leaving_no_trace<T>(work: impl FnOnce() -> T) -> T {
    /// More than any of it needs, also in a debug build.
    const STACK: usize = 64 * 1024;

    #[inline(never)]
    fn apart<T>(work: impl FnOnce() -> T) -> T {
        work()
    }

    let result = apart(work);
    zeroize::zeroize_stack::<STACK>();
    result
}
