// SPDX-License-Identifier: MIT OR Apache-2.0
//! `genkey`, `pubkey` and `genpsk`.

use std::io::{self, IsTerminal, Read, Write};

use clap::Args;
use patchcord::keys::{PresharedKey, PrivateKey};
use zeroize::Zeroizing;

use super::failure::Failure;
use super::output::print;

#[derive(Args)]
pub(super) struct PrintSecret {
    /// Print to a terminal too
    #[arg(long)]
    pub(super) force: bool,
}

pub(super) fn genkey(force: bool) -> Result<(), Failure> {
    print_secret(force, "genkey > a.key", || {
        PrivateKey::generate().to_base64()
    })
}

pub(super) fn genpsk(force: bool) -> Result<(), Failure> {
    print_secret(force, "genpsk > ab.psk", || {
        PresharedKey::generate().to_base64()
    })
}

pub(super) fn pubkey() -> Result<(), Failure> {
    let mut text = Zeroizing::new(String::with_capacity(MAX_INPUT_BYTES));
    io::stdin()
        .lock()
        .take(MAX_INPUT_BYTES as u64)
        .read_to_string(&mut text)
        .map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => Failure::Usage("pubkey: stdin is not text".into()),
            _ => error.into(),
        })?;
    let key = PrivateKey::from_base64(&text).map_err(|error| {
        let remedy = "give it a private key, for example `patchcord pubkey < a.key`";
        Failure::Usage(format!("pubkey: the key on stdin {error}; {remedy}"))
    })?;
    print(&format!("{}\n", key.public_key()))?;
    Ok(())
}

/// Generous: a key and its newline have 45.
const MAX_INPUT_BYTES: usize = 1024;

fn print_secret(
    force: bool,
    example: &str,
    secret: impl FnOnce() -> Zeroizing<String>,
) -> Result<(), Failure> {
    // Terminals keep what they show: in scrollback, in recordings, in the view of bystanders.
    if io::stdout().is_terminal() && !force {
        return Err(Failure::Usage(format!(
            "stdout is a terminal, which would show the key; write it to a file with \
             `umask 077; patchcord {example}`, or say --force"
        )));
    }
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{}", *secret())?;
    stdout.flush()?;
    Ok(())
}
