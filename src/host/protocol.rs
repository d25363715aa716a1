// SPDX-License-Identifier: MIT OR Apache-2.0
//! The client protocol: lines of JSON over a tunnel's or a host's Unix socket.
//!
//! ```text
//! host    {"hello":"patchcord-host","version":"0.1.0","protocols":[2]}
//! client  {"hello":"patchcord","version":"0.1.0","protocols":[2]}
//! client  {"id":1,"verb":{"start":{"tunnel":"office"}}}
//! host    {"id":1,"ok":{"started":{"attempt":7}}}
//! client  {"id":2,"verb":{"ask":{"tunnel":"office","query":"show"}}}
//! host    {"id":2,"ok":{"answer":{"status":{"tunnel":"office"}}}}
//! client  {"id":3,"verb":"subscribe"}
//! host    {"id":3,"ok":"done"}
//! host    {"event":{"tunnel":"office","attempt":7,"event":"status","value":"connected"}}
//! ```
//! Both sides begin with a hello and use the highest version that both support; neither waits for the
//! other's hello. Several requests may be pending; a reply carries the number of its request.
//!
//! A verb is a variant of [`Verb`], and its action an arm of `verbs::perform`. What only a tunnel can
//! answer is a [`Query`] instead, which `ask` passes on.
//!
//! A later version may add verbs, replies, fields and events. A request with an unknown field is
//! refused, so that none is half understood; an unknown verb or query gets the code `unknown-verb`, and
//! the connection goes on. Clients ignore unknown fields and events. `docs/control.schema.json` has all
//! of it. Pure data; the sockets are in `daemon` and [`client`](super::client).

use std::{borrow::Cow, collections::BTreeMap};

use base64::{Engine, engine::general_purpose::STANDARD};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, Error as _},
};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use super::event::{Attempt, Event};
pub use crate::control::message::Access;
use crate::{
    control::message::{Answer, Query},
    provider::{NOT_BASE64, Secret, SessionStatus, TunnelConfiguration},
};

/// The versions of the protocol that this program supports.
pub const PROTOCOLS: &[u32] = &[2];
/// The longest line of a client, in bytes. Bounds the memory that one client can occupy in a host.
pub const MAX_LINE: usize = 1 << 20;
/// The name of a host in its hello.
pub(super) const HOST: &str = "patchcord-host";
/// The name of this client in its hello.
pub(super) const CLIENT: &str = "patchcord";

/// The first line of either side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Hello {
    /// The program: `patchcord-host` is a host.
    pub hello: String,
    /// Its version, for messages.
    pub version: String,
    /// The versions of the protocol that it supports.
    #[serde(default)]
    pub protocols: Vec<u32>,
}

impl Hello {
    /// The hello of this version.
    pub(super) fn of(program: &str) -> Self {
        Self {
            hello: program.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocols: PROTOCOLS.to_vec(),
        }
    }

    /// The highest version that both support, if there is one.
    pub fn common(&self) -> Option<u32> {
        let known = PROTOCOLS.iter().copied();
        known.filter(|one| self.protocols.contains(one)).max()
    }
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The client's number for it, which the reply repeats.
    pub id: u64,
    /// The verb.
    pub verb: Verb,
}

/// The verbs, and the [`Reply`] to each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Verb {
    /// All tunnels: [`Reply::Tunnels`].
    List,
    /// One tunnel: [`Reply::Tunnel`].
    View {
        /// The name of the tunnel.
        tunnel: String,
    },
    /// A query that only a running tunnel can answer: [`Reply::Answer`].
    Ask {
        /// The name of the tunnel.
        tunnel: String,
        /// The query.
        query: Query,
    },
    /// Starts a session; answered with [`Reply::Started`] at once.
    Start {
        /// The name of the tunnel.
        tunnel: String,
        /// Options for the provider.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        options: Option<BTreeMap<String, String>>,
    },
    /// Ends the session; answered when everything of it is removed.
    Stop {
        /// The name of the tunnel.
        tunnel: String,
    },
    /// A message for the provider: [`Reply::Message`].
    Send {
        /// The name of the tunnel.
        tunnel: String,
        /// The message.
        message: Message,
    },
    /// Events from now on.
    Subscribe,
    /// Adds a tunnel, or replaces its configuration: [`Reply::Configured`].
    Configure {
        /// The name of the tunnel.
        tunnel: String,
        /// The complete configuration.
        configuration: TunnelConfiguration,
        /// The generation that the client has read, if a later change by another client must not be
        /// overwritten.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        generation: Option<u64>,
    },
    /// Removes a tunnel.
    Remove {
        /// The name of the tunnel.
        tunnel: String,
    },
    /// Stores a secret, which no verb returns.
    KeepSecret {
        /// Its name.
        name: String,
        /// Its bytes, base64.
        #[serde(deserialize_with = "secret_in_json")]
        #[schemars(with = "String")]
        secret: Secret,
    },
    /// Deletes a secret.
    ForgetSecret {
        /// Its name.
        name: String,
    },
}

impl Verb {
    /// The permission that a client needs.
    pub const fn access(&self) -> Access {
        match self {
            Self::List | Self::View { .. } | Self::Subscribe => Access::Observe,
            Self::Ask { query, .. } => query.access(),
            Self::Start { .. } | Self::Stop { .. } | Self::Send { .. } => Access::Control,
            Self::Configure { .. }
            | Self::Remove { .. }
            | Self::KeepSecret { .. }
            | Self::ForgetSecret { .. } => Access::Configure,
        }
    }
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Reply {
    /// Done; the reply has no content.
    Done,
    /// Tunnels, by name.
    Tunnels(Vec<TunnelInfo>),
    /// A tunnel.
    Tunnel(Box<TunnelInfo>),
    /// The answer of a tunnel to a query.
    Answer(Answer),
    /// A session was started.
    Started {
        /// The number that its events carry.
        attempt: Attempt,
    },
    /// The answer of a provider to a message; null if it has none.
    Message(Option<Message>),
    /// The configuration is in force.
    Configured {
        /// Its generation.
        generation: u64,
    },
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

/// The state of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
    /// Why the last session ended, if it ended with an error.
    pub last_disconnect_error: Option<String>,
}

/// A line of the host after its hello.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum HostLine {
    /// The request was carried out.
    Done {
        /// The number of the request.
        id: u64,
        /// The answer.
        ok: Reply,
    },
    /// The request was refused.
    Refused {
        /// The number of the request; null if the line was no request at all, after which the host
        /// ends the connection.
        id: Option<u64>,
        /// The reason.
        error: Refusal,
    },
    /// An event.
    Event {
        /// The event.
        event: Event,
    },
    /// Events were lost, because the client did not read them in time.
    Lagged {
        /// Their number.
        lagged: u64,
    },
}

/// A line of the host as its client reads it: the task that waits for it decodes its content once.
#[derive(Debug, Deserialize)]
pub(super) struct Heard<'a> {
    pub(super) id: Option<u64>,
    #[serde(borrow)]
    pub(super) ok: Option<&'a RawValue>,
    pub(super) error: Option<Refusal>,
    #[serde(borrow)]
    pub(super) event: Option<&'a RawValue>,
    pub(super) lagged: Option<u64>,
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Refusal {
    /// For programs.
    pub code: RefusalCode,
    /// For users, with the remedy.
    pub message: String,
}

/// For programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
    /// The tunnel's provider does not support the query.
    NoQuery,
    /// The tunnel has no answer in its present state.
    NotNow,
    /// The tunnel refuses the query.
    Refused,
    /// Another client has changed the configuration.
    Stale,
    /// The configuration is unusable, or cannot be changed.
    Configuration,
    /// The secret is not stored.
    Secret,
    /// The client lacks the permission.
    NotAuthorised,
    /// The line is no request.
    Malformed,
    /// The host does not know the verb, or the query.
    UnknownVerb,
    /// The host and the client support no common version.
    UnknownProtocol,
    /// A code that this version does not know.
    #[serde(other)]
    Other,
}

/// Decodes a secret like any other field, but without copies of it on the way.
fn secret_in_json<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
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

/// A line, newline included.
pub fn to_line(message: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).expect("messages hold nothing that JSON lacks");
    line.push(b'\n');
    line
}

/// Parses a line.
///
/// # Errors
/// The error in it.
pub fn from_line<T: DeserializeOwned>(line: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(line)
}

/// Parses a request. A request of a later version still has its number.
///
/// # Errors
/// The refusal to send, and the number of the request if it has one.
pub fn request_from_line(line: &[u8]) -> Result<Request, (Option<u64>, Refusal)> {
    serde_json::from_slice(line).map_err(|error| {
        let refusal = |code, message| Refusal { code, message };
        let Ok(Named { id, verb }) = serde_json::from_slice(line) else {
            let message = r#"not a request: it is like {"id":1,"verb":"list"}"#.to_owned();
            return (None, refusal(RefusalCode::Malformed, message));
        };
        let refusal = match unknown_name(verb) {
            Some(name) => {
                let message =
                    format!("this host does not know the verb `{name}`; it is of another version");
                refusal(RefusalCode::UnknownVerb, message)
            }
            None => {
                let name = name_of(verb).map(|(name, _)| format!("`{name}`: "));
                let message = format!("{}{error}", name.unwrap_or_default());
                refusal(RefusalCode::Malformed, message)
            }
        };
        (Some(id), refusal)
    })
}

/// The fields of a request that every version has.
#[derive(Deserialize)]
struct Named<'a> {
    id: u64,
    #[serde(borrow)]
    verb: &'a RawValue,
}

/// The name of the verb, or of the query in it, that this version does not know.
fn unknown_name(verb: &RawValue) -> Option<String> {
    let (name, fields) = name_of(verb)?;
    if !is_known::<Verb>(&name) {
        return Some(name);
    }
    #[derive(Deserialize)]
    struct Ask<'a> {
        #[serde(borrow)]
        query: &'a RawValue,
    }
    let ask: Ask<'_> = serde_json::from_str(fields?.get()).ok()?;
    let (query, _) = name_of(ask.query)?;
    (name == "ask" && !is_known::<Query>(&query)).then_some(query)
}

/// A variant without content is its name; with content, it is the only key of an object.
fn name_of(json: &RawValue) -> Option<(String, Option<&RawValue>)> {
    let alone = serde_json::from_str::<String>(json.get());
    alone.map(|name| (name, None)).ok().or_else(|| {
        let object: BTreeMap<String, &RawValue> = serde_json::from_str(json.get()).ok()?;
        let (name, fields) = object.into_iter().next()?;
        Some((name, Some(fields)))
    })
}

/// Whether this version has a variant of this name: without content, it only lacks fields.
fn is_known<T: DeserializeOwned>(name: &str) -> bool {
    let alone = serde_json::from_value::<T>(name.into());
    !alone.is_err_and(|error| error.to_string().starts_with("unknown variant"))
}

/// The JSON Schema of everything that is sent over a socket, for programs in other languages.
pub fn schema() -> serde_json::Value {
    /// Everything that is sent over a socket: one line of JSON each.
    #[derive(JsonSchema)]
    #[schemars(title = "patchcord control protocol", deny_unknown_fields)]
    #[expect(dead_code, reason = "for its schema")]
    struct Lines {
        /// The first line of either side.
        hello: Hello,
        /// Each further line of a client.
        request: Request,
        /// Each further line of a host.
        line: HostLine,
    }
    let mut schema = schemars::schema_for!(Lines).to_value();
    leave_links_out(&mut schema);
    schema
}

/// Descriptions come from the documentation of the types, where names are links.
fn leave_links_out(schema: &mut serde_json::Value) {
    match schema {
        serde_json::Value::Object(fields) => {
            if let Some(serde_json::Value::String(text)) = fields.get_mut("description") {
                *text = without_links(text);
            }
            fields.values_mut().for_each(leave_links_out);
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(leave_links_out),
        _ => {}
    }
}

fn without_links(text: &str) -> String {
    let mut parts = text.split("[`");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once("`]").unwrap_or((part, ""));
        let target = rest.strip_prefix('(').and_then(|rest| rest.split_once(')'));
        plain += &format!("`{name}`{}", target.map_or(rest, |(_, rest)| rest));
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::EventKind;

    #[test]
    fn lines_are_as_documented() {
        let event = Event {
            tunnel: "office".to_owned(),
            attempt: Some(Attempt(7)),
            kind: EventKind::Status(SessionStatus::Connected),
        };
        let attempt = Attempt(7);
        let error = Refusal {
            code: RefusalCode::Busy,
            message: "no".to_owned(),
        };
        for (line, text) in [
            (
                HostLine::Event { event },
                r#"{"event":{"tunnel":"office","attempt":7,"event":"status","value":"connected"}}"#,
            ),
            (
                HostLine::Done {
                    id: 1,
                    ok: Reply::Started { attempt },
                },
                r#"{"id":1,"ok":{"started":{"attempt":7}}}"#,
            ),
            (
                HostLine::Done {
                    id: 3,
                    ok: Reply::Done,
                },
                r#"{"id":3,"ok":"done"}"#,
            ),
            (
                HostLine::Refused { id: Some(2), error },
                r#"{"id":2,"error":{"code":"busy","message":"no"}}"#,
            ),
            (HostLine::Lagged { lagged: 3 }, r#"{"lagged":3}"#),
        ] {
            let written = to_line(&line);
            assert_eq!(String::from_utf8(written).unwrap().trim_end(), text);
            let heard: Heard<'_> = serde_json::from_str(text).unwrap();
            let ok = heard.ok.map(|ok| serde_json::from_str(ok.get()).unwrap());
            let event = heard
                .event
                .map(|event| serde_json::from_str(event.get()).unwrap());
            let read = match (ok, heard.error, event, heard.lagged) {
                (Some(ok), ..) => HostLine::Done {
                    id: heard.id.unwrap(),
                    ok,
                },
                (_, Some(error), ..) => HostLine::Refused {
                    id: heard.id,
                    error,
                },
                (_, _, Some(event), _) => HostLine::Event { event },
                (_, _, _, lagged) => HostLine::Lagged {
                    lagged: lagged.unwrap(),
                },
            };
            assert_eq!(read, line);
        }
        let later = r#"{"code":"made-up-later","message":"no"}"#;
        let later: Refusal = serde_json::from_str(later).unwrap();
        assert_eq!(later.code, RefusalCode::Other);
        assert!(serde_json::from_str::<Heard<'_>>(r#"{"weather":"fine"}"#).is_ok());
    }

    #[test]
    fn requests_are_as_documented() {
        for (verb, access) in [
            (r#""list""#, Access::Observe),
            (r#""subscribe""#, Access::Observe),
            (r#"{"view":{"tunnel":"office"}}"#, Access::Observe),
            (
                r#"{"ask":{"tunnel":"office","query":"show"}}"#,
                Access::Observe,
            ),
            (
                r#"{"ask":{"tunnel":"office","query":{"fdb":{"show":{}}}}}"#,
                Access::Observe,
            ),
            (
                r#"{"ask":{"tunnel":"office","query":{"fdb":{"flush":{}}}}}"#,
                Access::Control,
            ),
            (r#"{"start":{"tunnel":"office"}}"#, Access::Control),
            (
                r#"{"start":{"tunnel":"office","options":{"a":"b"}}}"#,
                Access::Control,
            ),
            (r#"{"stop":{"tunnel":"office"}}"#, Access::Control),
            (
                r#"{"send":{"tunnel":"office","message":"cGluZw=="}}"#,
                Access::Control,
            ),
            (r#"{"remove":{"tunnel":"office"}}"#, Access::Configure),
            (
                r#"{"keep-secret":{"name":"psk","secret":"aHVudGVyMg=="}}"#,
                Access::Configure,
            ),
            (r#"{"forget-secret":{"name":"psk"}}"#, Access::Configure),
        ] {
            let line = format!("{{\"id\":7,\"verb\":{verb}}}\n");
            let request = request_from_line(line.as_bytes()).unwrap();
            assert_eq!((request.id, request.verb.access()), (7, access), "{verb}");
            assert_eq!(String::from_utf8(to_line(&request)).unwrap(), line);
        }
    }

    #[test]
    fn descriptions_have_names_for_links() {
        for (text, plain) in [
            ("nothing", "nothing"),
            ("a [`List`], [`Of`](super::Of) [x]", "a `List`, `Of` [x]"),
        ] {
            assert_eq!(without_links(text), plain);
        }
    }

    #[test]
    fn requests_of_other_versions_are_distinguished() {
        use RefusalCode::{Malformed, UnknownVerb};
        for (line, expected, named) in [
            (
                r#"{"id":4,"verb":"teleport"}"#,
                (Some(4), UnknownVerb),
                "`teleport`",
            ),
            (
                r#"{"id":4,"verb":{"teleport":{"to":"b"}}}"#,
                (Some(4), UnknownVerb),
                "`teleport`",
            ),
            (
                r#"{"id":4,"verb":{"ask":{"tunnel":"a","query":"taste"}}}"#,
                (Some(4), UnknownVerb),
                "`taste`",
            ),
            (
                r#"{"id":4,"verb":{"ask":{"tunnel":"a","query":{"taste":{"it":1}}}}}"#,
                (Some(4), UnknownVerb),
                "`taste`",
            ),
            (
                r#"{"id":5,"verb":{"start":{}}}"#,
                (Some(5), Malformed),
                "`tunnel`",
            ),
            (r#"{"id":5,"verb":"start"}"#, (Some(5), Malformed), "start"),
            (
                r#"{"id":5,"verb":{"view":{"tunnel":"a","depth":3}}}"#,
                (Some(5), Malformed),
                "`depth`",
            ),
            (
                r#"{"id":5,"verb":"list","colour":"red"}"#,
                (Some(5), Malformed),
                "`colour`",
            ),
            // The verb is known, and something in it is not.
            (
                r#"{"id":7,"verb":{"configure":{"tunnel":"a","configuration":{"on-demand-rules":[{"action":"teleport"}]}}}}"#,
                (Some(7), Malformed),
                "`teleport`",
            ),
            (
                r#"{"id":8,"verb":{"ask":{"tunnel":"a","query":{"fdb":{"explode":{}}}}}}"#,
                (Some(8), Malformed),
                "`explode`",
            ),
            // Of the first version.
            (
                r#"{"id":9,"verb":"view","tunnel":"a"}"#,
                (Some(9), Malformed),
                "view",
            ),
            (r#"{"verb":"show"}"#, (None, Malformed), "not a request"),
            ("", (None, Malformed), "not a request"),
            ("{", (None, Malformed), "not a request"),
            ("[]", (None, Malformed), "not a request"),
            ("{}", (None, Malformed), "not a request"),
            (
                r#"{"id":-1,"verb":"list"}"#,
                (None, Malformed),
                "not a request",
            ),
            ("\u{0}", (None, Malformed), "not a request"),
        ] {
            let (id, refusal) = request_from_line(line.as_bytes()).unwrap_err();
            assert_eq!((id, refusal.code), expected, "{line}: {refusal:?}");
            assert!(refusal.message.contains(named), "{line}: {refusal:?}");
        }
    }
}
