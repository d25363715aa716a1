// SPDX-License-Identifier: MIT OR Apache-2.0
//! The primitives of the key exchange: each of these wipes its secrets when it is dropped, and the
//! key agreement refuses a result that the other side could have chosen.
//!
//! The algorithms are those of the libraries; this module only owns the bytes.

use aws_lc_rs::agreement;
use blake2::{Blake2s256, Digest};
use chacha20poly1305::{AeadInPlace, ChaCha20Poly1305, KeyInit, Tag};
use snow::{
    Error,
    params::{CipherChoice, DHChoice, HashChoice},
    resolvers::CryptoResolver,
    types::{Cipher, Dh, Hash, Random},
};
use zeroize::{Zeroizing, optimization_barrier};

const KEY_LEN: usize = 32;
const TAG_LEN: usize = 16;
const HASH_LEN: usize = 32;
const BLOCK_LEN: usize = 64;

/// Gives `snow` the primitives of this module.
pub(super) struct Primitives;

impl CryptoResolver for Primitives {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Kernel))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        match choice {
            DHChoice::Curve25519 => Some(Box::<X25519>::default()),
            DHChoice::Curve448 => None,
        }
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        match choice {
            HashChoice::Blake2s => Some(Box::<Blake2s>::default()),
            _ => None,
        }
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        match choice {
            CipherChoice::ChaChaPoly => Some(Box::<ChaChaPoly>::default()),
            _ => None,
        }
    }
}

/// The kernel's random numbers.
struct Kernel;

impl Random for Kernel {
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Error> {
        super::random(out);
        Ok(())
    }
}

/// A key pair.
#[derive(Default)]
struct X25519 {
    private: Zeroizing<[u8; KEY_LEN]>,
    public: [u8; KEY_LEN],
}

impl X25519 {
    fn key(&self) -> Result<agreement::PrivateKey, Error> {
        agreement::PrivateKey::from_private_key(&agreement::X25519, &self.private[..])
            .map_err(|_| Error::Dh)
    }

    fn compute_public(&mut self) -> Result<(), Error> {
        let public = self.key()?.compute_public_key().map_err(|_| Error::Dh)?;
        self.public = public.as_ref().try_into().map_err(|_| Error::Dh)?;
        Ok(())
    }
}

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        KEY_LEN
    }

    fn priv_len(&self) -> usize {
        KEY_LEN
    }

    fn set(&mut self, private: &[u8]) {
        self.private.copy_from_slice(private);
        self.compute_public()
            .expect("every 32 bytes are an X25519 private key");
    }

    fn generate(&mut self, random: &mut dyn Random) -> Result<(), Error> {
        random.try_fill_bytes(&mut self.private[..])?;
        self.compute_public()
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        &self.private[..]
    }

    /// Fails for each of the few points with which every private key gives zero (RFC 7748, section
    /// 6.1): the sender of such a point, as a static or as an ephemeral key, would know the result,
    /// whatever our key is.
    fn dh(&self, public: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let public = public.get(..KEY_LEN).ok_or(Error::Dh)?;
        let public = agreement::UnparsedPublicKey::new(&agreement::X25519, public);
        agreement::agree(&self.key()?, public, Error::Dh, |secret| {
            // The library has checked already; a second check costs nothing beside the
            // multiplication.
            if secret.iter().fold(0, |any, byte| any | byte) == 0 {
                return Err(Error::Dh);
            }
            out[..KEY_LEN].copy_from_slice(secret);
            Ok(())
        })
    }
}

/// ChaCha20-Poly1305 with the nonces of Noise.
#[derive(Default)]
struct ChaChaPoly {
    key: Zeroizing<[u8; KEY_LEN]>,
}

impl ChaChaPoly {
    /// Wipes its copy of the key when it is dropped.
    fn cipher(&self) -> ChaCha20Poly1305 {
        ChaCha20Poly1305::new((&*self.key).into())
    }
}

/// Four zero bytes and the number, least byte first (Noise, section 12.3).
fn nonce(number: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&number.to_le_bytes());
    nonce
}

impl Cipher for ChaChaPoly {
    fn name(&self) -> &'static str {
        "ChaChaPoly"
    }

    fn set(&mut self, key: &[u8; KEY_LEN]) {
        self.key.copy_from_slice(key);
    }

    fn encrypt(&self, number: u64, covered: &[u8], plaintext: &[u8], out: &mut [u8]) -> usize {
        let (sealed, rest) = out.split_at_mut(plaintext.len());
        sealed.copy_from_slice(plaintext);
        let tag = self
            .cipher()
            .encrypt_in_place_detached(&nonce(number).into(), covered, sealed)
            .expect("a handshake message is not too long for the cipher");
        rest[..TAG_LEN].copy_from_slice(&tag);
        plaintext.len() + TAG_LEN
    }

    fn decrypt(
        &self,
        number: u64,
        covered: &[u8],
        sealed: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Error> {
        let (sealed, tag) = sealed.split_last_chunk::<TAG_LEN>().ok_or(Error::Decrypt)?;
        let out = out.get_mut(..sealed.len()).ok_or(Error::Decrypt)?;
        out.copy_from_slice(sealed);
        self.cipher()
            .decrypt_in_place_detached(&nonce(number).into(), covered, out, Tag::from_slice(tag))
            .map_err(|_| Error::Decrypt)?;
        Ok(out.len())
    }
}

/// The hash, which has processed chaining keys.
#[derive(Default)]
struct Blake2s {
    state: Blake2s256,
}

impl Hash for Blake2s {
    fn name(&self) -> &'static str {
        "BLAKE2s"
    }

    fn block_len(&self) -> usize {
        BLOCK_LEN
    }

    fn hash_len(&self) -> usize {
        HASH_LEN
    }

    fn reset(&mut self) {
        self.state = Blake2s256::new();
    }

    fn input(&mut self, data: &[u8]) {
        self.state.update(data);
    }

    fn result(&mut self, out: &mut [u8]) {
        let state = std::mem::take(&mut self.state);
        out[..HASH_LEN].copy_from_slice(&state.finalize());
    }
}

impl Drop for Blake2s {
    fn drop(&mut self) {
        self.reset();
        optimization_barrier(&self.state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::keys;

    fn pair(private: [u8; KEY_LEN]) -> X25519 {
        let mut pair = X25519::default();
        pair.set(&private);
        pair
    }

    #[test]
    fn both_sides_of_an_agreement_get_the_same() {
        let (alice, bob) = (pair([1; 32]), pair([2; 32]));
        let (mut alices, mut bobs) = ([0; 32], [0; 32]);
        alice.dh(bob.pubkey(), &mut alices).unwrap();
        bob.dh(alice.pubkey(), &mut bobs).unwrap();
        assert_eq!(alices, bobs);
        assert_ne!(alices, [0; 32]);
    }

    #[test]
    fn no_agreement_is_made_with_a_point_of_low_order() {
        let mut ephemeral = X25519::default();
        ephemeral.generate(&mut Kernel).unwrap();
        for point in keys::low_order_points() {
            for key in [&ephemeral, &pair([7; 32])] {
                let mut out = [9; 32];
                assert_eq!(key.dh(&point, &mut out), Err(Error::Dh), "{point:02x?}");
                assert_eq!(out, [9; 32]);
            }
        }
    }

    #[test]
    fn the_cipher_opens_what_it_sealed_and_nothing_else() {
        let mut cipher = ChaChaPoly::default();
        cipher.set(&[3; 32]);
        let mut sealed = [0; 20 + TAG_LEN];
        assert_eq!(cipher.encrypt(5, b"ad", &[7; 20], &mut sealed), 36);
        let mut out = [0; 20];
        assert_eq!(cipher.decrypt(5, b"ad", &sealed, &mut out), Ok(20));
        assert_eq!(out, [7; 20]);
        assert!(cipher.decrypt(6, b"ad", &sealed, &mut out).is_err());
        assert!(cipher.decrypt(5, b"da", &sealed, &mut out).is_err());
        assert!(cipher.decrypt(5, b"ad", &sealed[..15], &mut out).is_err());
        assert!(cipher.decrypt(5, b"ad", &sealed, &mut out[..19]).is_err());
    }
}
