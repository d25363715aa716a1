// SPDX-License-Identifier: MIT OR Apache-2.0
//! The program, and a site with a configuration and its keys.

use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

// RFC 7748, section 6.1.
pub(crate) const OWN_PRIVATE: &str = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
pub(crate) const OWN_PUBLIC: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
pub(crate) const PRESHARED: &str = "XasIfmJKikt54X+Lg4AO5m87sSkmGLb9HC+LJ/+I4Os=";

pub(crate) const STATION: &str = "02:00:5e:10:00:01";

/// The least configuration of two sites. Rows of the tables below change one line of it.
pub(crate) const CONFIG: &str = r#"[tunnel]
private-key-file = "a.key"
listen = "[::]:51830"

[device]
name = "pc0"

[[peer]]
name = "site-b"
public-key = "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08="
"#;

pub(crate) const KEY: &str = r#"private-key-file = "a.key""#;
pub(crate) const LISTEN: &str = r#"listen = "[::]:51830""#;
pub(crate) const DEVICE: &str = r#"name = "pc0""#;
pub(crate) const PEER_KEY: &str = r#"public-key = "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=""#;
pub(crate) const PEER_NAME: &str = r#"name = "site-b""#;

/// A directory with `a.toml` and its keys, as an administrator keeps them.
pub(crate) struct Site(pub(crate) tempfile::TempDir);

impl Site {
    pub(crate) fn new() -> Self {
        let site = Self(tempfile::tempdir().unwrap());
        site.write("a.key", format!("{OWN_PRIVATE}\n").as_bytes());
        site.write("ab.psk", format!("{PRESHARED}\n").as_bytes());
        site.write("empty.key", b"\n");
        site.write("bad.key", b"not a key\n");
        site.write("binary.key", b"\xff\xfe\n");
        site
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, contents: &[u8]) {
        fs::write(self.path(name), contents).unwrap();
        fs::set_permissions(self.path(name), Permissions::from_mode(0o600)).unwrap();
    }

    pub(crate) fn check(&self, text: &str) -> Ran {
        self.write("a.toml", text.as_bytes());
        run(&["check", self.path("a.toml").to_str().unwrap()])
    }
}

pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().expect("not killed by a signal"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

pub(crate) fn patchcord(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_patchcord"));
    command.args(args).stdin(Stdio::null());
    command
}

pub(crate) fn run(args: &[&str]) -> Ran {
    patchcord(args).output().unwrap().into()
}

pub(crate) fn run_with_stdin(args: &[&str], input: &str) -> Ran {
    let mut command = patchcord(args);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap().into()
}

/// Runs with a terminal for stdout: exit code, stderr, and the content of the screen.
pub(crate) fn run_on_terminal(args: &[&str]) -> (i32, String, String) {
    let terminal = nix::pty::openpty(None, None).unwrap();
    let mut command = patchcord(args);
    command.stdout(terminal.slave).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    // The command's copy of the slave must be closed, or reading the screen would never end.
    drop(command);
    let ran = Ran::from(child.wait_with_output().unwrap());
    let mut screen = Vec::new();
    // Linux ends the screen of a closed terminal with EIO.
    let _ = File::from(terminal.master).read_to_end(&mut screen);
    (ran.code, ran.stderr, String::from_utf8(screen).unwrap())
}
