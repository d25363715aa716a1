// SPDX-License-Identifier: MIT OR Apache-2.0
//! Bytes in JSON, as base64: messages of a provider, and secrets.

use std::borrow::Cow;

use base64::{Engine, engine::general_purpose::STANDARD};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use crate::provider::{NOT_BASE64, Secret};

/// Bytes, base64 in JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message(pub Vec<u8>);

impl Serialize for Message {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Message {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text).map_err(serde::de::Error::custom)?;
        Ok(Self(bytes))
    }
}

impl JsonSchema for Message {
    fn schema_name() -> Cow<'static, str> {
        "Message".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({
            "description": "Bytes, base64.",
            "type": "string",
            "contentEncoding": "base64"
        })
    }
}

/// Decodes a secret like any other field, but without copies of it on the way.
pub(super) fn secret_in_json<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Secret, D::Error> {
    let json = <&RawValue>::deserialize(deserializer)?;
    // The error does not quote the text.
    secret_from_json(json.get()).ok_or_else(|| D::Error::custom(NOT_BASE64))
}

/// Decodes a string of JSON with base64 in it. Some encoders write `/`, `+` and `=` as escapes, which
/// the JSON parser would undo in memory that is not wiped.
fn secret_from_json(json: &str) -> Option<Secret> {
    let mut rest = json.strip_prefix('"')?.strip_suffix('"')?.as_bytes();
    let mut text = Zeroizing::new(Vec::with_capacity(rest.len()));
    while let [first, after @ ..] = rest {
        let (byte, after) = match (first, after) {
            (b'\\', [b'/', after @ ..]) => (b'/', after),
            (b'\\', [b'u', b'0', b'0', high, low, after @ ..]) => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                ((digit(*high)? << 4 | digit(*low)?) as u8, after)
            }
            (&byte, after) => (byte, after),
        };
        text.push(byte);
        rest = after;
    }
    Secret::from_base64(&text)
}
