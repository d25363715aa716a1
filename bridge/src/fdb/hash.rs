// SPDX-License-Identifier: MIT OR Apache-2.0
//! SipHash-1-3 of one 64-bit word: which bucket an address belongs to.
//!
//! Keyed and strong, because senders choose their addresses: a sender that could aim at a bucket
//! could fill it and have frames to the addresses of others flooded. It costs a few nanoseconds per
//! look-up.

/// The hash of `word` under a secret key.
#[inline]
pub(super) fn siphash13([k0, k1]: [u64; 2], word: u64) -> u64 {
    let mut state = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    // The message is one word and the block that pads it, which holds its length in bytes.
    for block in [word, 8 << 56] {
        state[3] ^= block;
        round(&mut state);
        state[0] ^= block;
    }
    state[2] ^= 0xff;
    for _ in 0..3 {
        round(&mut state);
    }
    state[0] ^ state[1] ^ state[2] ^ state[3]
}

fn round([a, b, c, d]: &mut [u64; 4]) {
    *a = a.wrapping_add(*b);
    *c = c.wrapping_add(*d);
    *b = b.rotate_left(13) ^ *a;
    *d = d.rotate_left(16) ^ *c;
    *a = a.rotate_left(32);
    *c = c.wrapping_add(*b);
    *a = a.wrapping_add(*d);
    *b = b.rotate_left(17) ^ *c;
    *d = d.rotate_left(21) ^ *a;
    *c = c.rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_the_siphash_of_the_standard_library() {
        use core::hash::Hasher;
        use std::collections::hash_map::DefaultHasher;

        for word in [0, 1, u64::MAX, 0x0123_4567_89ab_cdef] {
            // The default hasher is SipHash-1-3 with the key 0, 0.
            let mut oracle = DefaultHasher::new();
            oracle.write(&word.to_le_bytes());
            assert_eq!(siphash13([0, 0], word), oracle.finish(), "{word:#x}");
        }
    }

    #[test]
    fn each_half_of_the_key_matters() {
        let hashes = [[0, 0], [1, 0], [0, 1], [1, 1]].map(|key| siphash13(key, 42));
        for (at, hash) in hashes.iter().enumerate() {
            assert!(!hashes[..at].contains(hash), "key {at} of {hashes:x?}");
        }
    }
}
