// SPDX-License-Identifier: MIT OR Apache-2.0
//! AEGIS-128X4 (RFC 10032) with tags of 16 bytes, by `libaegis`: in C, with the AES instructions that
//! it finds when the program starts.
//!
//! Of the family, this is the fastest one for datagrams of 200 bytes and more: it works on 128 bytes
//! at a time, in registers of 512 bits where there are any.

use ::aegis::aegis128x4::{Aegis128X4, Nonce};
use aws_lc_rs::hkdf::{KeyType, Prk};
use zeroize::{Zeroizing, zeroize_stack};

use crate::{
    stats::DropReason,
    wire::{Counter, TAG_LEN},
};

const KEY_LEN: usize = 16;
/// The part of a nonce that belongs to the key.
const PREFIX_LEN: usize = 8;

/// A key, and the beginning of the nonces that are used with it. Boxed, so that moving it leaves no
/// copy.
pub(super) struct Key(Box<Zeroizing<[u8; KEY_LEN + PREFIX_LEN]>>);

/// The length of a [`Key`] for HKDF.
struct Length;

impl KeyType for Length {
    fn len(&self) -> usize {
        KEY_LEN + PREFIX_LEN
    }
}

impl Key {
    /// HKDF-Expand (RFC 5869) of 24 bytes.
    pub(super) fn expand(prk: &Prk, info: &[&[u8]]) -> Self {
        let mut key = Self(Box::default());
        prk.expand(info, Length)
            .and_then(|okm| okm.fill(&mut key.0[..]))
            .expect("a key is shorter than 255 hashes");
        key
    }

    fn key(&self) -> &[u8; KEY_LEN] {
        self.0.first_chunk().expect("it begins with the key")
    }

    /// A prefix of the key's own, and the counter: as two keys do not share nonces, who searches for
    /// one of many keys cannot try a candidate against all of them at once.
    fn nonce(&self, counter: Counter) -> Nonce {
        let mut nonce = [0; _];
        nonce[..PREFIX_LEN].copy_from_slice(&self.0[KEY_LEN..]);
        nonce[PREFIX_LEN..].copy_from_slice(&counter.value().to_be_bytes());
        nonce
    }

    /// As `LaneKey::seal`.
    pub(super) fn seal(&self, counter: Counter, aad: &[u8], in_out: &mut [u8]) -> [u8; TAG_LEN] {
        let tag = seal(self.key(), &self.nonce(counter), aad, in_out);
        wipe_copies();
        tag
    }

    /// As `LaneKey::open`.
    pub(super) fn open<'a>(
        &self,
        counter: Counter,
        aad: &[u8],
        in_out: &'a mut [u8],
    ) -> Result<&'a mut [u8], DropReason> {
        let (sealed, tag) = in_out
            .split_last_chunk_mut::<TAG_LEN>()
            .ok_or(DropReason::BadTag)?;
        let is_authentic = open(self.key(), &self.nonce(counter), aad, sealed, tag);
        wipe_copies();
        is_authentic.then_some(sealed).ok_or(DropReason::BadTag)
    }
}

/// The library copies the key to the stack. A copy there would outlive a session whose thread has no
/// more to do, so each use wipes the stack that it used.
fn wipe_copies() {
    /// More than the frames of [`seal`] and [`open`] take; 5 ns.
    const OURS: usize = 512;
    /// More than those and the frames of the C code; 20 ns.
    const ALL: usize = 2560;

    if has_wide_registers() {
        zeroize_stack::<OURS>();
    } else {
        zeroize_stack::<ALL>();
    }
}

/// Whether the C code has the 32 registers of AVX-512: then it keeps the key in one.
fn has_wide_registers() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512f")
        && std::arch::is_x86_feature_detected!("vaes");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

#[inline(never)]
fn seal(key: &[u8; KEY_LEN], nonce: &Nonce, aad: &[u8], in_out: &mut [u8]) -> [u8; TAG_LEN] {
    Aegis128X4::new(key, nonce).encrypt_in_place(in_out, aad)
}

#[inline(never)]
fn open(
    key: &[u8; KEY_LEN],
    nonce: &Nonce,
    aad: &[u8],
    in_out: &mut [u8],
    tag: &[u8; TAG_LEN],
) -> bool {
    Aegis128X4::new(key, nonce)
        .decrypt_in_place(in_out, tag, aad)
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{crypto::aead::Cipher, wire::Lane};

    fn bytes<const N: usize>(first: u8) -> [u8; N] {
        std::array::from_fn(|at| first + at as u8)
    }

    /// RFC 10032, appendix "AEGIS-128X4 Test Vectors".
    #[test]
    fn published_vectors() {
        let (key, nonce) = (bytes(0), bytes(0x10));
        let message: Vec<u8> = [4, 5, 6, 7].repeat(30);
        let sealed = concat!(
            "e836118562f4479c9d35c17356a833114c21f9aa39e4dda5e5c87f4152a00fce",
            "9a7c38f832eafe8b1c12f8a7cf12a81a1ad8a9c24ba9dedfbdaa586ffea67ddc",
            "801ea97d9ab4a872f42d0e352e2713dacd609f9442c17517c5a29daf3e2a3fac",
            "4ff6b1380c4e46df7b086af6ce6bc1ed594b8dd64aed2a7e",
        );
        for (aad, message, sealed, tag) in [
            (&[][..], &[][..], "", "5bef762d0947c00455b97bb3af30dfa3"),
            (
                &[1, 2, 3, 4, 1, 2, 3, 4],
                &message,
                sealed,
                "0e56ab94e2e85db80f9d54010caabfb4",
            ),
        ] {
            let mut ours = message.to_vec();
            let our_tag = seal(&key, &nonce, aad, &mut ours);
            assert_eq!((hex(&ours), hex(&our_tag)), (sealed.into(), tag.into()));
            assert!(open(&key, &nonce, aad, &mut ours, &our_tag));
            assert_eq!(ours, message);
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn what_was_not_authentic_is_not_readable() {
        let key = Key(Box::new(Zeroizing::new(bytes(0))));
        let counter = Counter::new(Lane(1), 1);
        let mut datagram = [0x5a; 100 + TAG_LEN];
        let (plaintext, tag) = datagram.split_last_chunk_mut::<TAG_LEN>().unwrap();
        *tag = key.seal(counter, b"header", plaintext);
        datagram[0] ^= 1;
        let opened = key.open(counter, b"header", &mut datagram);
        assert_eq!(opened.err(), Some(DropReason::BadTag));
        assert_eq!(datagram[..100], [0; 100]);
    }

    #[test]
    fn a_nonce_is_of_the_key_and_the_counter() {
        let key = Key(Box::new(Zeroizing::new(bytes(0))));
        let counter = Counter::new(Lane(0x12), 0x34_5678_9abc_def0);
        let expected = "1011121314151617123456789abcdef0";
        assert_eq!(hex(&key.nonce(counter)), expected);
        assert_eq!(*key.key(), bytes(0));
    }

    #[test]
    fn it_is_offered_where_the_processor_has_aes_instructions() {
        let has_aes = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let has_aes = has_aes.lines().any(|line| {
            let is_features = line.starts_with("flags") || line.starts_with("Features");
            is_features && line.split_whitespace().any(|word| word == "aes")
        });
        assert_eq!(Cipher::Aegis128X4.is_available(), has_aes);
    }
}
