// SPDX-License-Identifier: MIT OR Apache-2.0
//! Any text as a configuration: a value or errors that have a line and never show a secret.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use patchcord::config::{Config, KeyFileError};

const OWN: &str = "XasIfmJKikt54X+Lg4AO5m87sSkmGLb9HC+LJ/+I4Os=";
const SHARED: &str = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
/// The file of an invalid key.
const BROKEN: &str = "dwdtCnMY-SECRET-SECRET-SECRET";

fuzz_target!(|text: &str| {
    // A text that contains the secrets itself proves nothing.
    if [OWN, SHARED, "SECRET"]
        .iter()
        .any(|secret| text.contains(secret))
    {
        return;
    }
    let parsed = Config::parse(text, Path::new("/etc/patchcord/t.toml"), &|path| match path
        .file_name()
        .and_then(|name| name.to_str())
    {
        Some("a.key") => Ok(OWN.to_owned().into()),
        Some("a.psk") => Ok(SHARED.to_owned().into()),
        Some("broken.key") => Ok(BROKEN.to_owned().into()),
        _ => Err(KeyFileError::Missing(path.into())),
    });
    let shown = match &parsed {
        Ok(config) => {
            assert!(!config.peers.is_empty());
            format!("{config:?}")
        }
        Err(errors) => {
            assert!(errors.iter().count() > 0);
            let lines = text.lines().count() + 1;
            for error in errors.iter() {
                assert!(error.line().is_none_or(|line| (1..=lines).contains(&line)));
                assert!(!error.problem().is_empty());
            }
            errors.to_string()
        }
    };
    for secret in [OWN, SHARED, "SECRET"] {
        assert!(!shown.contains(secret), "{shown}");
    }
});
