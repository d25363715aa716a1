// SPDX-License-Identifier: MIT OR Apache-2.0
//! The data ciphers: one key for each lane and direction, seal and open in place.
//!
//! A nonce is four zero bytes and the 64-bit [`Counter`]; the lane is part of the counter and of
//! the key derivation, so no two lanes share a key or a nonce. The caller uses each counter once
//! (`proto::session`).

use aws_lc_rs::{
    aead::{
        AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey,
    },
    hkdf::{HKDF_SHA256, Prk},
};

use super::noise::SplitKey;
use crate::{
    stats::DropReason,
    wire::{Counter, Lane, TAG_LEN},
};

/// A data cipher. The numbers are its bits in a handshake's offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Cipher {
    /// AES-256-GCM: the faster one where the CPU has AES and carry-less multiply instructions.
    Aes256Gcm = 1,
    /// ChaCha20-Poly1305 (RFC 8439): the faster one everywhere else.
    ChaCha20Poly1305 = 2,
}

impl Cipher {
    /// Its name in configuration and in `show`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes256Gcm => "aes-256-gcm",
            Self::ChaCha20Poly1305 => "chacha20-poly1305",
        }
    }

    /// The cipher with this bit, if there is one.
    pub const fn from_bit(bit: u8) -> Option<Self> {
        match bit {
            1 => Some(Self::Aes256Gcm),
            2 => Some(Self::ChaCha20Poly1305),
            _ => None,
        }
    }

    fn algorithm(self) -> &'static Algorithm {
        match self {
            Self::Aes256Gcm => &AES_256_GCM,
            Self::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        }
    }
}

/// The ciphers that one side allows, and whether AES is cheap for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CipherOffer {
    /// [`Cipher`] bits.
    pub allowed: u8,
    /// Whether the CPU has AES and carry-less multiply instructions.
    pub fast_aes: bool,
}

impl CipherOffer {
    /// Both ciphers; which one is fast is read from the CPU.
    pub fn auto() -> Self {
        let allowed = Cipher::Aes256Gcm as u8 | Cipher::ChaCha20Poly1305 as u8;
        Self {
            allowed,
            fast_aes: cpu_has_fast_aes(),
        }
    }

    /// Only `cipher`.
    pub fn only(cipher: Cipher) -> Self {
        Self {
            allowed: cipher as u8,
            fast_aes: cpu_has_fast_aes(),
        }
    }

    /// The cipher of a session between two sides: AES where it is fast on both or the only one
    /// left, ChaCha20 otherwise. `None` if the sides have no cipher in common.
    pub fn choose(self, other: Self) -> Option<Cipher> {
        let common = self.allowed & other.allowed;
        let aes = common & Cipher::Aes256Gcm as u8 != 0;
        let chacha = common & Cipher::ChaCha20Poly1305 as u8 != 0;
        match (aes, chacha) {
            (true, true) if self.fast_aes && other.fast_aes => Some(Cipher::Aes256Gcm),
            (_, true) => Some(Cipher::ChaCha20Poly1305),
            (true, false) => Some(Cipher::Aes256Gcm),
            (false, false) => None,
        }
    }
}

fn cpu_has_fast_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes")
        && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes")
        && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    false
}

/// The key of one lane in one direction.
pub struct LaneKey(LessSafeKey);

impl std::fmt::Debug for LaneKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LaneKey(..)")
    }
}

impl LaneKey {
    /// Derives the key of `lane` from one direction's key of the handshake: HKDF-Expand (RFC 5869)
    /// with SHA-256 and the info `"patchcord1 lane" || cipher || lane`.
    pub fn derive(split: &SplitKey, cipher: Cipher, lane: Lane) -> Self {
        let prk = Prk::new_less_safe(HKDF_SHA256, split.as_bytes());
        let info = [&b"patchcord1 lane"[..], &[cipher as u8, lane.0]];
        let okm = prk
            .expand(&info, cipher.algorithm())
            .expect("a key is shorter than 255 hashes");
        Self(LessSafeKey::new(UnboundKey::from(okm)))
    }

    /// Encrypts `in_out` in place and returns the tag; `aad` is authenticated with it.
    pub fn seal(&self, counter: Counter, aad: &[u8], in_out: &mut [u8]) -> [u8; TAG_LEN] {
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce(counter), Aad::from(aad), in_out)
            .expect("a datagram is shorter than an AEAD's limit");
        tag.as_ref()
            .try_into()
            .expect("both ciphers have tags of 16 bytes")
    }

    /// Checks the tag at the end of `in_out` and decrypts the rest in place.
    ///
    /// # Errors
    /// [`DropReason::BadTag`]; the contents of `in_out` are then worthless.
    pub fn open<'a>(
        &self,
        counter: Counter,
        aad: &[u8],
        in_out: &'a mut [u8],
    ) -> Result<&'a mut [u8], DropReason> {
        self.0
            .open_in_place(nonce(counter), Aad::from(aad), in_out)
            .map_err(|_| DropReason::BadTag)
    }
}

fn nonce(counter: Counter) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[4..].copy_from_slice(&counter.value().to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

#[cfg(test)]
mod tests {
    use chacha20poly1305::{ChaCha20Poly1305, KeyInit, aead::AeadInPlace};

    use super::*;

    const BOTH: u8 = 3;

    #[test]
    fn aes_is_chosen_only_where_it_is_fast_or_alone() {
        let offer = |allowed, fast_aes| CipherOffer { allowed, fast_aes };
        for (ours, theirs, chosen) in [
            (
                offer(BOTH, true),
                offer(BOTH, true),
                Some(Cipher::Aes256Gcm),
            ),
            (
                offer(BOTH, true),
                offer(BOTH, false),
                Some(Cipher::ChaCha20Poly1305),
            ),
            (offer(BOTH, true), offer(1, false), Some(Cipher::Aes256Gcm)),
            (
                offer(2, true),
                offer(BOTH, true),
                Some(Cipher::ChaCha20Poly1305),
            ),
            (offer(1, true), offer(2, true), None),
            (offer(BOTH, true), offer(0x80, true), None),
        ] {
            assert_eq!(ours.choose(theirs), chosen, "{ours:?} {theirs:?}");
            assert_eq!(theirs.choose(ours), chosen, "both sides choose alike");
        }
    }

    #[test]
    fn open_undoes_seal_and_refuses_everything_else() {
        for cipher in [Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305] {
            let split = SplitKey::from_bytes([7; 32]);
            let key = LaneKey::derive(&split, cipher, Lane(1));
            let other_lane = LaneKey::derive(&split, cipher, Lane(2));
            let counter = Counter::new(Lane(1), 5);
            let mut sealed = b"an Ethernet frame".to_vec();
            let tag = key.seal(counter, b"header", &mut sealed);
            sealed.extend(tag);

            let open = |key: &LaneKey, counter, aad: &[u8], sealed: &[u8]| {
                let mut datagram = sealed.to_vec();
                key.open(counter, aad, &mut datagram)
                    .map(|plaintext| plaintext.to_vec())
            };
            assert_eq!(
                open(&key, counter, b"header", &sealed).unwrap(),
                b"an Ethernet frame"
            );
            let mut mangled = sealed.clone();
            mangled[3] ^= 1;
            for refused in [
                open(&key, counter, b"header", &mangled),
                open(&key, counter, b"headex", &sealed),
                open(&key, Counter::new(Lane(1), 6), b"header", &sealed),
                open(&other_lane, counter, b"header", &sealed),
                open(&key, counter, b"header", &sealed[..10]),
            ] {
                assert_eq!(refused, Err(DropReason::BadTag));
            }
        }
    }

    #[test]
    fn agrees_with_an_independent_implementation() {
        let split = SplitKey::from_bytes([9; 32]);
        let prk = Prk::new_less_safe(HKDF_SHA256, split.as_bytes());
        let mut key = [0; 32];
        struct Raw;
        impl aws_lc_rs::hkdf::KeyType for Raw {
            fn len(&self) -> usize {
                32
            }
        }
        prk.expand(&[b"patchcord1 lane", &[2, 1]], Raw)
            .unwrap()
            .fill(&mut key)
            .unwrap();

        let counter = Counter::new(Lane(1), 77);
        let mut ours = b"payload".to_vec();
        let lane_key = LaneKey::derive(&split, Cipher::ChaCha20Poly1305, Lane(1));
        let our_tag = lane_key.seal(counter, b"aad", &mut ours);

        let mut theirs = b"payload".to_vec();
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&counter.value().to_be_bytes());
        let their_tag = ChaCha20Poly1305::new(&key.into())
            .encrypt_in_place_detached(&nonce.into(), b"aad", &mut theirs)
            .unwrap();
        assert_eq!((ours, our_tag.as_slice()), (theirs, their_tag.as_slice()));
    }
}
