// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a host and its clients say to each other, over a Unix socket: lines of JSON.
//!
//! ```text
//! host    {"hello":"patchcord-host","version":"0.1.0","protocols":[1]}
//! client  {"hello":"patchcord","version":"0.1.0","protocol":1}
//! client  {"id":1,"verb":"start","tunnel":"office"}
//! host    {"id":1,"ok":{"attempt":7}}
//! client  {"id":2,"verb":"subscribe"}
//! host    {"id":2,"ok":null}
//! host    {"event":{"tunnel":"office","attempt":7,"event":"status","value":"connected"}}
//! ```
//! Several requests may be under way; replies carry the number of theirs. A later version may add
//! verbs, fields and events: fields that are not known are ignored, but for those of a configuration,
//! which nobody shall half understand, and an unknown verb is refused with the code `unknown-verb` on
//! a connection that goes on. Pure data; the sockets are in `daemon` and [`client`](super::client).

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, Error as _},
};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use super::{Attempt, Event};
use crate::provider::{NOT_BASE64, Secret, SessionStatus, TunnelConfiguration};

/// The versions of the protocol that this one speaks.
pub const PROTOCOLS: &[u32] = &[1];
/// The longest line, in bytes. Bounds what one client can make a host hold.
pub const MAX_LINE: usize = 1 << 20;

/// The host's first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostHello {
    /// The program.
    pub hello: String,
    /// Its version, for people.
    pub version: String,
    /// What it speaks.
    pub protocols: Vec<u32>,
}

/// The client's first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientHello {
    /// The program.
    pub hello: String,
    /// Its version, for people.
    pub version: String,
    /// One of those that the host speaks.
    pub protocol: u32,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The client's number for it, which the reply repeats.
    pub id: u64,
    /// What is asked for.
    #[serde(flatten)]
    pub verb: Verb,
}

/// What can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Verb {
    /// All tunnels: a list of [`TunnelInfo`].
    List,
    /// One tunnel: a [`TunnelInfo`].
    View {
        /// Which.
        tunnel: String,
    },
    /// Starts a session; answered with its [`Started`] at once.
    Start {
        /// Which.
        tunnel: String,
        /// For the provider.
        #[serde(default)]
        options: Option<BTreeMap<String, String>>,
    },
    /// Ends the session; answered when everything of it is gone.
    Stop {
        /// Which.
        tunnel: String,
    },
    /// A message for the provider; answered with its [`Message`], or null.
    Send {
        /// Which.
        tunnel: String,
        /// The message.
        message: Message,
    },
    /// Events from now on.
    Subscribe,
    /// Adds a tunnel, or replaces its configuration; answered with the [`Generation`].
    Configure {
        /// Which.
        tunnel: String,
        /// The complete configuration.
        configuration: TunnelConfiguration,
        /// The generation that the client knows, if somebody else's change matters.
        #[serde(default)]
        generation: Option<u64>,
    },
    /// Forgets a tunnel.
    Remove {
        /// Which.
        tunnel: String,
    },
    /// Keeps a secret, which no verb gives back.
    KeepSecret {
        /// Its name.
        name: String,
        /// What it is.
        secret: Secret,
    },
    /// Forgets a secret.
    ForgetSecret {
        /// Its name.
        name: String,
    },
}

impl Verb {
    /// What a client must be allowed to.
    pub const fn access(&self) -> Access {
        match self {
            Self::List | Self::View { .. } | Self::Subscribe => Access::Observe,
            Self::Start { .. } | Self::Stop { .. } | Self::Send { .. } => Access::Control,
            Self::Configure { .. }
            | Self::Remove { .. }
            | Self::KeepSecret { .. }
            | Self::ForgetSecret { .. } => Access::Configure,
        }
    }
}

/// What somebody may be allowed to; each one separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To look.
    Observe,
    /// To start, stop and talk to tunnels.
    Control,
    /// To add, change and remove them, and their secrets.
    Configure,
}

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

/// What there is to know of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TunnelInfo {
    /// Its name.
    pub tunnel: String,
    /// Its configuration.
    pub configuration: TunnelConfiguration,
    /// Counts changes of the configuration.
    pub generation: u64,
    /// Its status.
    pub status: SessionStatus,
    /// Why the last session ended, if that was an error.
    pub last_disconnect_error: Option<String>,
}

/// The answer to [`Verb::Start`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// What the session's events carry.
    pub attempt: Attempt,
}

/// The answer to [`Verb::Configure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// The new one.
    pub generation: u64,
}

/// A line of the host after its hello.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum HostLine {
    /// The request was done.
    Done {
        /// Which.
        id: u64,
        /// The answer.
        ok: serde_json::Value,
    },
    /// The request was not done.
    Refused {
        /// Which; null if the line was no request at all, after which the host hangs up.
        id: Option<u64>,
        /// Why.
        error: Refusal,
    },
    /// Something happened.
    Event {
        /// What.
        event: Event,
    },
    /// So many events were lost, because they were not read in time.
    Lagged {
        /// How many.
        lagged: u64,
    },
    /// Something of a later version.
    Unknown(serde_json::Value),
}

/// Why a request was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// For programs.
    pub code: RefusalCode,
    /// For people, with the remedy.
    pub message: String,
}

/// For programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RefusalCode {
    /// There is no such tunnel.
    NoTunnel,
    /// The tunnel is disabled.
    Disabled,
    /// The tunnel is running already.
    Running,
    /// The tunnel is not running.
    NotRunning,
    /// The tunnel's provider does not answer.
    Busy,
    /// The configuration was changed by somebody else.
    Stale,
    /// The configuration is unusable.
    Configuration,
    /// The secret is not kept.
    Secret,
    /// The client may not do this.
    NotAuthorised,
    /// The line is no request.
    Malformed,
    /// The host does not know the verb.
    UnknownVerb,
    /// The host and the client speak no common version.
    UnknownProtocol,
    /// Something that this version has no word for.
    #[serde(other)]
    Other,
}

/// As any other request would be read, but without copies of the secret on the way.
fn keep_secret_from_line(line: &[u8]) -> Result<Request, serde_json::Error> {
    #[derive(Deserialize)]
    struct KeepSecret<'a> {
        id: u64,
        name: String,
        #[serde(borrow)]
        secret: &'a RawValue,
    }
    let KeepSecret { id, name, secret } = serde_json::from_slice(line)?;
    let secret = secret_from_json(secret.get()).ok_or_else(|| {
        // Does not quote what it was.
        serde_json::Error::custom(NOT_BASE64)
    })?;
    let verb = Verb::KeepSecret { name, secret };
    Ok(Request { id, verb })
}

/// Reads a string of JSON with base64 in it. Some write `/`, `+` and `=` as escapes, which the reader of
/// JSON would undo in memory that nobody wipes.
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

/// A line, newline included.
pub fn to_line(message: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).expect("messages hold nothing that JSON lacks");
    line.push(b'\n');
    line
}

/// Reads a line.
///
/// # Errors
/// What is wrong with it.
pub fn from_line<T: DeserializeOwned>(line: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(line)
}

/// Reads a request. One with a verb of a later version still has its number.
///
/// # Errors
/// The refusal to send, and the number of the request if it has one.
pub fn request_from_line(line: &[u8]) -> Result<Request, (Option<u64>, Refusal)> {
    #[derive(Deserialize)]
    struct Numbered {
        id: u64,
        verb: String,
    }
    let Ok(Numbered { id, verb }) = from_line(line) else {
        let message = r#"not a request: it is like {"id":1,"verb":"list"}"#.to_owned();
        let code = RefusalCode::Malformed;
        return Err((None, Refusal { code, message }));
    };
    let request = match verb.as_str() {
        "keep-secret" => keep_secret_from_line(line),
        _ => from_line(line),
    };
    request.map_err(|error| {
        let (code, message) = match is_known(&verb) {
            true => (RefusalCode::Malformed, format!("`{verb}`: {error}")),
            false => (
                RefusalCode::UnknownVerb,
                format!("this host does not know the verb `{verb}`; it is of another version"),
            ),
        };
        (Some(id), Refusal { code, message })
    })
}

/// Whether this version has the verb: by itself, it lacks fields at most.
fn is_known(verb: &str) -> bool {
    let alone = serde_json::from_value::<Verb>(serde_json::json!({ "verb": verb }));
    !alone.is_err_and(|error| error.to_string().starts_with("unknown variant"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::EventKind;

    #[test]
    fn lines_are_as_documented() {
        let line = |text: &str| from_line::<HostLine>(text.as_bytes()).unwrap();
        let event =
            r#"{"event":{"tunnel":"office","attempt":7,"event":"status","value":"connected"}}"#;
        let expected = Event {
            tunnel: "office".to_owned(),
            attempt: Some(Attempt(7)),
            kind: EventKind::Status(SessionStatus::Connected),
        };
        assert_eq!(
            line(event),
            HostLine::Event {
                event: expected.clone()
            }
        );
        let written = to_line(&HostLine::Event { event: expected });
        assert_eq!(String::from_utf8(written).unwrap().trim_end(), event);
        assert!(matches!(
            line(r#"{"id":1,"ok":{"attempt":7}}"#),
            HostLine::Done { id: 1, .. }
        ));
        assert!(matches!(
            line(r#"{"lagged":3}"#),
            HostLine::Lagged { lagged: 3 }
        ));
        assert!(matches!(
            line(r#"{"weather":"fine"}"#),
            HostLine::Unknown(_)
        ));
        let refused = r#"{"id":2,"error":{"code":"made-up-later","message":"no"}}"#;
        let HostLine::Refused { error, .. } = line(refused) else {
            panic!()
        };
        assert_eq!(error.code, RefusalCode::Other);
    }

    #[test]
    fn requests_of_other_versions_are_told_apart() {
        let request = |text: &str| request_from_line(text.as_bytes());
        let start =
            request(r#"{"id":1,"verb":"start","tunnel":"office","new-in-2":true}"#).unwrap();
        assert_eq!(start.verb.access(), Access::Control);
        let code = |text: &str| {
            let (id, refusal) = request(text).unwrap_err();
            (id, refusal.code)
        };
        assert_eq!(
            code(r#"{"id":4,"verb":"teleport"}"#),
            (Some(4), RefusalCode::UnknownVerb)
        );
        assert_eq!(
            code(r#"{"id":5,"verb":"start"}"#),
            (Some(5), RefusalCode::Malformed)
        );
        // The verb is known, and something in it is not.
        let action = r#"{"on-demand-rules":[{"action":"teleport"}]}"#;
        let configure =
            format!(r#"{{"id":7,"verb":"configure","tunnel":"a","configuration":{action}}}"#);
        assert_eq!(code(&configure), (Some(7), RefusalCode::Malformed));
        for garbage in ["", "{", "[]", "{}", r#"{"id":-1,"verb":"list"}"#, "\u{0}"] {
            assert_eq!(code(garbage), (None, RefusalCode::Malformed), "{garbage}");
        }
        let send = request(r#"{"id":6,"verb":"send","tunnel":"a","message":"cGluZw=="}"#).unwrap();
        let Verb::Send { message, .. } = send.verb else {
            panic!()
        };
        assert_eq!(message.0, b"ping");
    }
}
