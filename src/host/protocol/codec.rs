// SPDX-License-Identifier: MIT OR Apache-2.0
//! Messages as lines of JSON, and back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use super::message::{Refusal, RefusalCode, Request, Verb};
use crate::control::message::Query;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        control::message::Access,
        host::{
            event::{Attempt, Event, EventKind},
            protocol::message::{Heard, HostLine, Reply},
        },
        provider::SessionStatus,
    };

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
