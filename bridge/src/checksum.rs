// SPDX-License-Identifier: MIT OR Apache-2.0
//! The Internet checksum, RFC 1071.
//!
//! Sums are taken in 64 bits and folded at the end, so parts may be added up in between, each part
//! from an even place on.

use core::net::Ipv6Addr;

/// The sum of the 16-bit words of at most 64 KiB, not folded. An odd last byte is the upper half of a
/// word.
pub fn sum(bytes: &[u8]) -> u64 {
    // 32 bits at a time: the carry of the lower half ends up where folding puts it.
    let words = bytes.chunks_exact(4);
    let rest = words.remainder();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    words
        .map(|word| u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]])))
        .sum::<u64>()
        + u64::from(u32::from_be_bytes(last))
}

/// The sum in 16 bits, with the carries added in.
pub const fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

/// The value of the checksum field, given the sum of all the rest.
pub const fn finish(sum: u64) -> u16 {
    !fold(sum)
}

/// Whether a sum that includes the checksum shows that nothing was altered.
pub const fn is_right(sum: u64) -> bool {
    fold(sum) == 0xffff
}

/// The sum of the pseudo-header, RFC 8200 section 8.1.
pub(crate) fn pseudo_header(src: Ipv6Addr, dst: Ipv6Addr, protocol: u8, len: usize) -> u64 {
    sum(&src.octets()) + sum(&dst.octets()) + len as u64 + u64::from(protocol)
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sums_as_rfc_1071_does() {
        for (name, bytes, folded) in [
            (
                "the example of section 3",
                &[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7][..],
                0xddf2,
            ),
            ("an odd byte is the upper half of a word", &[0, 1, 2], 0x201),
            ("nothing", &[], 0),
        ] {
            assert_eq!(fold(sum(bytes)), folded, "{name}");
            let mut whole = bytes.to_vec();
            if !whole.len().is_multiple_of(2) {
                whole.push(0);
            }
            whole.extend(finish(sum(bytes)).to_be_bytes());
            assert!(is_right(sum(&whole)), "{name}");
        }
    }

    proptest! {
        #[test]
        fn is_the_sum_of_16_bit_words(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let words = bytes.chunks(2);
            let words: Vec<_> = words
                .map(|word| u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)]))
                .collect();
            let plain = words.into_iter().fold(0, |sum: u16, word| {
                let (sum, is_carry) = sum.overflowing_add(word);
                sum + u16::from(is_carry)
            });
            prop_assert_eq!(fold(sum(&bytes)), plain);
        }
    }
}
