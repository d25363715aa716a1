// SPDX-License-Identifier: MIT OR Apache-2.0
//! The JSON Schema of the protocol.

use schemars::JsonSchema;

use super::message::{Hello, HostLine, Request};

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

    #[test]
    fn descriptions_have_names_for_links() {
        for (text, plain) in [
            ("nothing", "nothing"),
            ("a [`List`], [`Of`](super::Of) [x]", "a `List`, `Of` [x]"),
        ] {
            assert_eq!(without_links(text), plain);
        }
    }
}
