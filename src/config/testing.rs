// SPDX-License-Identifier: MIT OR Apache-2.0
//! Shared by the tests of sections: keys, and files that are valid without the lines of the test.

use std::path::Path;

use super::error::ConfigErrors;
use super::key_files::KeyFileError;
use super::model::Config;

// RFC 7748, section 6.1.
pub(super) const OWN: &str = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
pub(super) const PEER_A: &str = "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=";
pub(super) const PEER_C: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmw=";
pub(super) const PRESHARED: &str = "XasIfmJKikt54X+Lg4AO5m87sSkmGLb9HC+LJ/+I4Os=";

/// A file whose `[device]` begins in line 5, with this many peers.
pub(super) fn with_device(device: &str, peers: usize) -> Result<Config, ConfigErrors> {
    let keys = [PEER_A, "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8="];
    let peers: String = keys[..peers]
        .iter()
        .map(|key| format!("[[peer]]\npublic-key = '{key}'\n"))
        .collect();
    parse(&format!(
        "[tunnel]\nprivate-key-file = 'a.key'\nlisten = '0.0.0.0:51830'\n\n\
         [device]\n{device}\n{peers}"
    ))
}

pub(super) fn minimal() -> String {
    format!(
        "[tunnel]\nprivate-key-file = 'a.key'\nlisten = '0.0.0.0:51830'\n\
         [device]\nname = 'pc0'\n[[peer]]\npublic-key = '{PEER_A}'"
    )
}

pub(super) fn parse(text: &str) -> Result<Config, ConfigErrors> {
    Config::parse(
        text,
        Path::new("/etc/patchcord/site-a.toml"),
        &|path| match path.to_str() {
            Some("/etc/patchcord/a.key") => Ok(OWN.to_owned().into()),
            Some("/keys/ab.psk") => Ok(PRESHARED.to_owned().into()),
            _ => Err(KeyFileError::Missing(path.into())),
        },
    )
}
