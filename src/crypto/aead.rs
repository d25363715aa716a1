// SPDX-License-Identifier: MIT OR Apache-2.0
//! The data ciphers: one key for each lane and direction, seal and open in place.
//!
//! A nonce ends in the 64-bit [`Counter`], behind zero bytes or what was derived with the key; the lane
//! is part of the counter and of the key derivation, so no two lanes share a key or a nonce. The caller
//! uses each counter once (`proto::session`).

use aws_lc_rs::{
    aead::{
        AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey,
    },
    hkdf::{HKDF_SHA256, Prk},
};

use super::{aegis, noise::SplitKey};
use crate::{
    stats::DropReason,
    wire::{Counter, Lane, TAG_LEN},
};

/// A data cipher. The numbers are its bits in a handshake's offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Cipher {
    /// AES-256-GCM: the faster one of the first two where the CPU has AES and carry-less multiply
    /// instructions.
    Aes256Gcm = 1,
    /// ChaCha20-Poly1305 (RFC 8439): the fastest where the CPU has no AES instructions.
    ChaCha20Poly1305 = 2,
    /// AEGIS-128X4 (RFC 10032): keys of 128 bits, and the fastest where the CPU has AES
    /// instructions for several blocks at once. Only for CPUs with AES instructions.
    Aegis128X4 = 4,
}

impl Cipher {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Aes256Gcm, Self::ChaCha20Poly1305, Self::Aegis128X4];

    /// Its name in configuration and in `show`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes256Gcm => "aes-256-gcm",
            Self::ChaCha20Poly1305 => "chacha20-poly1305",
            Self::Aegis128X4 => "aegis-128x",
        }
    }

    /// The cipher with this bit, if there is one.
    pub const fn from_bit(bit: u8) -> Option<Self> {
        match bit {
            1 => Some(Self::Aes256Gcm),
            2 => Some(Self::ChaCha20Poly1305),
            4 => Some(Self::Aegis128X4),
            _ => None,
        }
    }

    /// Whether a tunnel on this machine may use it. Without AES instructions AEGIS is slower than
    /// the others, and the time that it takes may depend on secrets.
    pub fn is_available(self) -> bool {
        self != Self::Aegis128X4 || cpu_has_aes()
    }

    /// Those that a tunnel on this machine may use.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|cipher| cipher.is_available())
    }
}

/// The ciphers that one side allows, and which of them are fast for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CipherOffer {
    /// [`Cipher`] bits.
    pub allowed: u8,
    /// Whether the CPU has AES and carry-less multiply instructions.
    pub fast_aes: bool,
    /// Whether AEGIS was measured to be faster than AES-256-GCM.
    pub fast_aegis: bool,
}

impl CipherOffer {
    const FAST_AES: u8 = 1;
    const FAST_AEGIS: u8 = 2;

    /// Every cipher that is available. `CipherOffer::auto` measures whether AEGIS is fast.
    pub(super) fn all(fast_aegis: bool) -> Self {
        let allowed = Cipher::available().fold(0, |allowed, cipher| allowed | cipher as u8);
        Self {
            allowed,
            fast_aes: cpu_has_fast_aes(),
            fast_aegis,
        }
    }

    /// Only `cipher`.
    pub fn only(cipher: Cipher) -> Self {
        Self {
            allowed: cipher as u8,
            fast_aes: cpu_has_fast_aes(),
            fast_aegis: cipher == Cipher::Aegis128X4,
        }
    }

    /// An offer as a handshake carries it: the ciphers, and the flags.
    pub const fn from_wire(allowed: u8, flags: u8) -> Self {
        Self {
            allowed,
            fast_aes: flags & Self::FAST_AES != 0,
            fast_aegis: flags & Self::FAST_AEGIS != 0,
        }
    }

    /// The flags of the offer in a handshake.
    pub const fn flags(self) -> u8 {
        (self.fast_aes as u8 * Self::FAST_AES) | (self.fast_aegis as u8 * Self::FAST_AEGIS)
    }

    /// The cipher of a session between two sides: AEGIS where both found it the fastest, AES where
    /// it is fast on both, ChaCha20 otherwise; and whichever is the only one left. `None` if the
    /// sides have no cipher in common.
    pub fn choose(self, other: Self) -> Option<Cipher> {
        let common = self.allowed & other.allowed;
        let has = |cipher: Cipher| common & cipher as u8 != 0;
        let fast_aes = self.fast_aes && other.fast_aes;
        let fast_aegis = self.fast_aegis && other.fast_aegis;
        let best_first = [
            (Cipher::Aegis128X4, fast_aegis),
            (Cipher::Aes256Gcm, fast_aes),
            (Cipher::ChaCha20Poly1305, true),
            (Cipher::Aes256Gcm, true),
            (Cipher::Aegis128X4, true),
        ];
        best_first
            .into_iter()
            .find_map(|(cipher, is_wanted)| (is_wanted && has(cipher)).then_some(cipher))
    }
}

/// What the fast code of the AEGIS library needs.
fn cpu_has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes")
        && std::arch::is_x86_feature_detected!("avx");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    false
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
pub struct LaneKey(Key);

enum Key {
    /// AES-256-GCM or ChaCha20-Poly1305.
    AwsLc(LessSafeKey),
    Aegis(aegis::Key),
}

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
        Self(match cipher {
            Cipher::Aes256Gcm => Key::AwsLc(expand(&prk, &info, &AES_256_GCM)),
            Cipher::ChaCha20Poly1305 => Key::AwsLc(expand(&prk, &info, &CHACHA20_POLY1305)),
            Cipher::Aegis128X4 => Key::Aegis(aegis::Key::expand(&prk, &info)),
        })
    }

    /// Encrypts `in_out` in place and returns the tag; `aad` is authenticated with it.
    pub fn seal(&self, counter: Counter, aad: &[u8], in_out: &mut [u8]) -> [u8; TAG_LEN] {
        match &self.0 {
            Key::AwsLc(key) => {
                let tag = key
                    .seal_in_place_separate_tag(nonce(counter), Aad::from(aad), in_out)
                    .expect("a datagram is shorter than an AEAD's limit");
                tag.as_ref()
                    .try_into()
                    .expect("every cipher has tags of 16 bytes")
            }
            Key::Aegis(key) => key.seal(counter, aad, in_out),
        }
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
        match &self.0 {
            Key::AwsLc(key) => key
                .open_in_place(nonce(counter), Aad::from(aad), in_out)
                .map_err(|_| DropReason::BadTag),
            Key::Aegis(key) => key.open(counter, aad, in_out),
        }
    }
}

fn expand(prk: &Prk, info: &[&[u8]], algorithm: &'static Algorithm) -> LessSafeKey {
    let okm = prk
        .expand(info, algorithm)
        .expect("a key is shorter than 255 hashes");
    LessSafeKey::new(UnboundKey::from(okm))
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
    const ALL: u8 = 7;

    #[test]
    fn each_pair_of_offers_has_its_cipher() {
        let aes = Some(Cipher::Aes256Gcm);
        let chacha = Some(Cipher::ChaCha20Poly1305);
        let aegis = Some(Cipher::Aegis128X4);
        // What is allowed, and the flags.
        let offer = CipherOffer::from_wire;
        for (ours, theirs, chosen) in [
            (offer(BOTH, 1), offer(BOTH, 1), aes),
            (offer(BOTH, 1), offer(BOTH, 0), chacha),
            (offer(BOTH, 1), offer(1, 0), aes),
            (offer(2, 1), offer(BOTH, 1), chacha),
            (offer(1, 1), offer(2, 1), None),
            (offer(BOTH, 1), offer(0x80, 1), None),
            // AEGIS where both found it the fastest, or where there is no other.
            (offer(ALL, 3), offer(ALL, 3), aegis),
            (offer(ALL, 3), offer(ALL, 1), aes),
            (offer(ALL, 3), offer(ALL, 0), chacha),
            (offer(ALL, 1), offer(4, 3), aegis),
            (offer(ALL, 3), offer(1, 1), aes),
            (offer(4, 3), offer(1, 1), None),
            // A peer that does not know it.
            (offer(ALL, 3), offer(BOTH, 1), aes),
            (offer(4, 3), offer(BOTH, 1), None),
        ] {
            assert_eq!(ours.choose(theirs), chosen, "{ours:?} {theirs:?}");
            assert_eq!(theirs.choose(ours), chosen, "both sides choose alike");
        }
    }

    #[test]
    fn an_offer_survives_the_wire() {
        for flags in 0..4 {
            let offer = CipherOffer::from_wire(ALL, flags);
            assert_eq!(offer.flags(), flags);
        }
        let only = CipherOffer::only(Cipher::Aegis128X4);
        assert_eq!(CipherOffer::from_wire(only.allowed, only.flags()), only);
    }

    #[test]
    fn open_undoes_seal_and_refuses_everything_else() {
        for cipher in Cipher::available() {
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
