// SPDX-License-Identifier: MIT OR Apache-2.0
//! The keys that users handle: a tunnel's private key, a peer's public key, a preshared key.
//!
//! All are 32 bytes and are written as one line of base64, as WireGuard's are. Secrets are erased
//! when the last clone is dropped, cannot be displayed, and appear in no error: a [`KeyError`]
//! says where and how the text is wrong, never what it says. Reading files is `config`'s job.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use aws_lc_rs::agreement;
use base64::{DecodeError, Engine, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

/// Size of every key in bytes.
pub const KEY_BYTES: usize = 32;

/// An X25519 private key.
#[derive(Clone)]
pub struct PrivateKey(Secret);

impl PrivateKey {
    /// Makes a new key from the system's random numbers.
    pub fn generate() -> Self {
        let mut secret = Secret::random();
        // X25519 fixes these bits anyway; fixing them here makes the text the canonical one.
        let bytes = Arc::make_mut(&mut secret.0);
        bytes[0] &= 0b1111_1000;
        bytes[31] = (bytes[31] & 0b0111_1111) | 0b0100_0000;
        Self(secret)
    }

    /// The public key of this private key.
    pub fn public_key(&self) -> PublicKey {
        let key = agreement::PrivateKey::from_private_key(&agreement::X25519, self.as_bytes())
            .expect("every 32 bytes are an X25519 private key");
        let public = key
            .compute_public_key()
            .expect("X25519 multiplies any clamped scalar");
        let bytes = public
            .as_ref()
            .try_into()
            .expect("an X25519 public key has 32 bytes");
        // A clamped scalar never maps the base point to a low-order point: no check is needed.
        PublicKey(bytes)
    }

    /// Reads one line of base64; white space around it is ignored.
    ///
    /// # Errors
    /// Says what is wrong with the text without repeating it.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        Secret::from_base64(text).map(Self)
    }

    /// Writes it as base64, to a buffer that is erased when dropped.
    pub fn to_base64(&self) -> Zeroizing<String> {
        self.0.to_base64()
    }

    /// The key itself.
    pub fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0.0
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// A secret that two peers share in addition to their key pairs.
#[derive(Clone)]
pub struct PresharedKey(Secret);

impl PresharedKey {
    /// Makes a new key from the system's random numbers.
    pub fn generate() -> Self {
        Self(Secret::random())
    }

    /// Reads one line of base64; white space around it is ignored.
    ///
    /// # Errors
    /// Says what is wrong with the text without repeating it.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        Secret::from_base64(text).map(Self)
    }

    /// Writes it as base64, to a buffer that is erased when dropped.
    pub fn to_base64(&self) -> Zeroizing<String> {
        self.0.to_base64()
    }

    /// The key itself.
    pub fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0.0
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(..)")
    }
}

/// An X25519 public key: the identity of a peer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; KEY_BYTES]);

impl PublicKey {
    /// Checks 32 bytes from another source.
    ///
    /// # Errors
    /// [`KeyError::LowOrder`] for the points with which every key agrees on the same secret.
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Result<Self, KeyError> {
        if is_low_order(&bytes) {
            Err(KeyError::LowOrder)
        } else {
            Ok(Self(bytes))
        }
    }

    /// The key itself.
    pub fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::from_bytes(*decode(text)?)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

/// What is wrong with the text of a key. Never holds any of that text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Nothing but white space.
    #[error("is empty")]
    Empty,
    /// A character that base64 does not use.
    #[error("is not base64: character {position} does not belong there")]
    NotBase64 {
        /// Counted from 1.
        position: usize,
    },
    /// The number of characters or of `=` at the end does not fit.
    #[error("is not complete base64: a key has 44 characters and ends in `=`, this has {length}")]
    Incomplete {
        /// Characters that are there.
        length: usize,
    },
    /// Base64, but of something else.
    #[error("decodes to {bytes} bytes instead of 32")]
    WrongLength {
        /// Bytes that are there.
        bytes: usize,
    },
    /// 32 bytes as hexadecimal digits.
    #[error(
        "is in hexadecimal, and keys are in base64 (`xxd -r -p | base64` makes one of the other)"
    )]
    Hexadecimal,
    /// A secret of zeros: a placeholder or an erased file.
    #[error("consists of zeros only")]
    AllZero,
    /// A public key with which every private key agrees on the same, known secret.
    #[error("is one of the points that give every tunnel the same secret")]
    LowOrder,
}

/// Behind a pointer, so that moving or cloning a key leaves no copy of it in memory.
#[derive(Clone)]
struct Secret(Arc<Zeroizing<[u8; KEY_BYTES]>>);

impl Secret {
    fn random() -> Self {
        let mut secret = Self(Arc::new(Zeroizing::new([0; KEY_BYTES])));
        super::random(&mut Arc::make_mut(&mut secret.0)[..]);
        secret
    }

    fn from_base64(text: &str) -> Result<Self, KeyError> {
        let bytes = decode(text)?;
        if bytes.iter().all(|&byte| byte == 0) {
            return Err(KeyError::AllZero);
        }
        Ok(Self(Arc::new(bytes)))
    }

    fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(&self.0[..]))
    }
}

/// Decodes into a buffer that is erased on every return, errors included.
fn decode(text: &str) -> Result<Zeroizing<[u8; KEY_BYTES]>, KeyError> {
    // Some editors begin a file with a byte order mark.
    let text = text.trim_start_matches('\u{feff}').trim();
    if text.len() == 2 * KEY_BYTES && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(KeyError::Hexadecimal);
    }
    if text.is_empty() {
        return Err(KeyError::Empty);
    }
    let mut decoded = Zeroizing::new(vec![0; base64::decoded_len_estimate(text.len())]);
    let length = STANDARD
        .decode_slice_unchecked(text, &mut decoded)
        .map_err(|error| match error {
            DecodeError::InvalidByte(offset, b'=') if offset + 3 > text.len() => {
                KeyError::Incomplete { length: text.len() }
            }
            DecodeError::InvalidByte(offset, _) | DecodeError::InvalidLastSymbol(offset, _) => {
                KeyError::NotBase64 {
                    position: offset + 1,
                }
            }
            DecodeError::InvalidLength(_) | DecodeError::InvalidPadding => {
                KeyError::Incomplete { length: text.len() }
            }
        })?;
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    if length != KEY_BYTES {
        return Err(KeyError::WrongLength { bytes: length });
    }
    key.copy_from_slice(&decoded[..KEY_BYTES]);
    Ok(key)
}

fn is_low_order(bytes: &[u8; KEY_BYTES]) -> bool {
    // X25519 ignores the top bit, so each of these points exists twice, with and without that bit.
    let mut u = *bytes;
    u[31] &= 0x7f;
    LOW_ORDER.contains(&u)
}

/// The u-coordinates of small order on Curve25519 and its twist, little endian: 0, 1, two of order
/// 8, p - 1, p and p + 1 (cr.yp.to/ecdh.html#validate).
const LOW_ORDER: [[u8; KEY_BYTES]; 7] = [
    [0; KEY_BYTES],
    near(1, 0, 0),
    [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4,
        0x6a, 0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49,
        0xb8, 0x00,
    ],
    [
        0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef,
        0x5b, 0x04, 0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f,
        0x11, 0x57,
    ],
    near(0xec, 0xff, 0x7f),
    near(0xed, 0xff, 0x7f),
    near(0xee, 0xff, 0x7f),
];

/// Each of them, as X25519 takes it: with and without the top bit, which it ignores.
#[cfg(test)]
pub(crate) fn low_order_points() -> impl Iterator<Item = [u8; KEY_BYTES]> {
    let with_top_bit = |mut point: [u8; KEY_BYTES]| {
        point[31] |= 0x80;
        point
    };
    let points = LOW_ORDER.into_iter();
    points.flat_map(move |point| [point, with_top_bit(point)])
}

const fn near(first: u8, middle: u8, last: u8) -> [u8; KEY_BYTES] {
    let mut bytes = [middle; KEY_BYTES];
    bytes[0] = first;
    bytes[31] = last;
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 7748, section 6.1.
    const ALICE_PRIVATE: &str = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
    const ALICE_PUBLIC: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
    const BOB_PRIVATE: &str = "XasIfmJKikt54X+Lg4AO5m87sSkmGLb9HC+LJ/+I4Os=";
    const BOB_PUBLIC: &str = "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=";

    #[test]
    fn derives_the_public_keys_of_rfc_7748() {
        for (private, public) in [(ALICE_PRIVATE, ALICE_PUBLIC), (BOB_PRIVATE, BOB_PUBLIC)] {
            let key = PrivateKey::from_base64(private).unwrap();
            assert_eq!(key.public_key().to_string(), public);
            assert_eq!(*key.to_base64(), private);
        }
        let hex = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a";
        let bytes = ALICE_PUBLIC.parse::<PublicKey>().unwrap().0;
        let printed: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(printed, hex);
    }

    #[test]
    fn generated_keys_differ_and_are_clamped() {
        let (one, two) = (PrivateKey::generate(), PrivateKey::generate());
        assert_ne!(one.as_bytes(), two.as_bytes());
        assert_eq!(
            (one.as_bytes()[0] & 7, one.as_bytes()[31] & 0xc0),
            (0, 0x40)
        );
        assert_ne!(
            PresharedKey::generate().as_bytes(),
            PresharedKey::generate().as_bytes()
        );
        let again = PrivateKey::from_base64(&one.to_base64()).unwrap();
        assert_eq!(again.as_bytes(), one.as_bytes());
    }

    #[test]
    fn says_what_is_wrong_with_a_text() {
        let zeros = STANDARD.encode([0; KEY_BYTES]);
        for (text, error) in [
            ("", KeyError::Empty),
            ("\u{feff}\r\n", KeyError::Empty),
            (&"0fA9".repeat(16), KeyError::Hexadecimal),
            (" \n", KeyError::Empty),
            (
                "dwdtCnMY!X08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=",
                KeyError::NotBase64 { position: 9 },
            ),
            // Two lines, as in a file to which a line was appended.
            ("dwdt\ndwdt", KeyError::NotBase64 { position: 5 }),
            (&ALICE_PRIVATE[..43], KeyError::Incomplete { length: 43 }),
            (&ALICE_PRIVATE[..41], KeyError::Incomplete { length: 41 }),
            (&ALICE_PRIVATE[..40], KeyError::WrongLength { bytes: 30 }),
            ("AAAA", KeyError::WrongLength { bytes: 3 }),
            // The spare bits of the last character must be zero: one key, one text.
            (
                "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCp=",
                KeyError::NotBase64 { position: 43 },
            ),
            (&zeros, KeyError::AllZero),
        ] {
            assert_eq!(
                PrivateKey::from_base64(text).unwrap_err(),
                error,
                "{text:?}"
            );
            assert_eq!(
                PresharedKey::from_base64(text).unwrap_err(),
                error,
                "{text:?}"
            );
        }
        assert!(PrivateKey::from_base64(&format!("  {ALICE_PRIVATE}\r\n")).is_ok());
    }

    #[test]
    fn refuses_exactly_the_public_keys_that_agree_on_nothing() {
        for bytes in low_order_points() {
            assert_eq!(
                PublicKey::from_bytes(bytes),
                Err(KeyError::LowOrder),
                "{bytes:02x?}"
            );
            assert!(!agrees(&bytes), "not of low order: {bytes:02x?}");
        }
        for point in [near(2, 0, 0), near(0xeb, 0xff, 0x7f), near(9, 0, 0)] {
            assert!(
                PublicKey::from_bytes(point).is_ok() && agrees(&point),
                "{point:02x?}"
            );
        }
    }

    #[test]
    fn no_secret_in_debug_output() {
        let private = PrivateKey::from_base64(ALICE_PRIVATE).unwrap();
        assert_eq!(format!("{private:?}"), "PrivateKey(..)");
        assert_eq!(
            format!("{:#?}", PresharedKey(private.0)),
            "PresharedKey(..)"
        );
    }

    /// Whether a key agreement with `public` succeeds: the library refuses a secret of zeros.
    fn agrees(public: &[u8; KEY_BYTES]) -> bool {
        let key = PrivateKey::from_base64(BOB_PRIVATE).unwrap();
        let key = agreement::PrivateKey::from_private_key(&agreement::X25519, key.as_bytes());
        let public = agreement::UnparsedPublicKey::new(&agreement::X25519, public);
        agreement::agree(&key.unwrap(), public, (), |_| Ok(())).is_ok()
    }
}
