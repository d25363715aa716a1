// SPDX-License-Identifier: MIT OR Apache-2.0
//! Secrets of a tunnel, which its configuration refers to but does not contain (`passwordReference`).

use std::{fmt, io, path::PathBuf};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, Visitor},
};
use zeroize::Zeroizing;

/// A password or a key: wiped from memory when it is dropped, and never logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// A secret of these bytes.
    pub fn new(bytes: impl Into<Zeroizing<Vec<u8>>>) -> Self {
        Self(bytes.into())
    }

    /// The secret with this base64 text.
    pub(crate) fn from_base64(text: &[u8]) -> Option<Self> {
        let mut bytes = Zeroizing::new(vec![0; base64::decoded_len_estimate(text.len())]);
        let len = STANDARD.decode_slice(text, &mut bytes).ok()?;
        bytes.truncate(len);
        Some(Self(bytes))
    }

    /// Its bytes. The caller must wipe a copy of them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

/// The error for text that is no secret.
pub(crate) const NOT_BASE64: &str = "a secret that is not base64";

/// Base64, in requests to a host. A JSON parser copies text with escapes in it; a host reads secrets in
/// another way.
impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(STANDARD.encode(&self.0)))
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Base64;

        impl Visitor<'_> for Base64 {
            type Value = Secret;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a secret in base64")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Secret, E> {
                // A decoder's error quotes its input.
                Secret::from_base64(text.as_bytes()).ok_or_else(|| E::custom(NOT_BASE64))
            }
        }
        deserializer.deserialize_str(Base64)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Secret(…)")
    }
}

/// Why a secret is not available.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// The session does not belong to a host, which stores the secrets.
    #[error("this session has no store of secrets: run the tunnel in a host")]
    NoStore,
    /// The configuration gives the tunnel no secret of this name.
    #[error("the configuration has no secret `{0}`; add `secrets.{0} = \"NAME\"` to it")]
    NotConfigured(String),
    /// The store does not have it.
    #[error(
        "there is no secret `{0}`; keep one with `patchcord host keep-secret {0} < FILE`, or pass it as a credential of the unit"
    )]
    NotKept(String),
    /// The text cannot be the name of a secret.
    #[error(
        "`{0}` is not a valid name for a secret: use letters, digits, `-`, `_` and `.`, 64 at most, the first a letter or digit"
    )]
    Name(String),
    /// It is larger than the limit.
    #[error("a secret has {max} bytes at most")]
    TooLarge {
        /// The limit.
        max: usize,
    },
    /// Other users may read the file.
    #[error("{} can be read by other users; chmod 600 it, and replace the secret", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be read, written or deleted.
    #[error("{}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
}
