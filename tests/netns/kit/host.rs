// SPDX-License-Identifier: MIT OR Apache-2.0
//! `patchcord host run`, and what programs tell the service manager (sd_notify(3)).

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use super::pair::Pair;
use super::process::{Process, secs};
use super::site::{binary, patchcord, write_secret};
use super::topology::Sandbox;

/// A host at A, ready, with its tunnel under the name `office`. Variables are `NAME=VALUE`.
pub(crate) fn run_host(pair: &Pair, environment: &[&str]) -> Process {
    let folder = pair.sandbox.path().join("host");
    let path = |name: &str| folder.join(name).display().to_string();
    let (tunnels, state, secrets) = (path("tunnels.d"), path("state"), path("secrets"));
    fs::create_dir_all(&tunnels).expect("a folder");
    add_to_host(pair, "office", &pair.a.config);
    let program = binary();
    let run = [&program, "host", "run", "--tunnels", &tunnels];
    let rest = ["--state", &state, "--secrets", &secrets];
    let words = [&["env"], environment, &run, &rest].concat();
    let log = pair.sandbox.path().join("host.log");
    let mut process = pair.a.ns.spawn(&log, &words);
    process.wait_for("host is ready", secs(20));
    process
}

/// The file of a tunnel at A whose only peer never calls.
pub(crate) fn lonely_tunnel(pair: &Pair, name: &str) -> PathBuf {
    let dir = pair.sandbox.path();
    write_secret(
        &dir.join(format!("{name}.key")),
        &patchcord(&["genkey"], ""),
    );
    let far = patchcord(&["pubkey"], &patchcord(&["genkey"], ""));
    let text = format!(
        "[tunnel]\nprivate-key-file = \"{name}.key\"\nlisten = \"[::]:0\"\n[device]\nname = \"{name}0\"\n\
         [[peer]]\nname = \"far\"\npublic-key = \"{}\"\n",
        far.trim()
    );
    let file = dir.join(format!("{name}.toml"));
    fs::write(&file, text).expect("a file");
    file
}

/// Gives the host of [`run_host`] a further tunnel.
pub(crate) fn add_to_host(pair: &Pair, name: &str, config: &Path) {
    let text = host_file(config);
    let tunnels = pair.sandbox.path().join("host/tunnels.d");
    fs::write(tunnels.join(format!("{name}.toml")), text).expect("a file");
}

fn host_file(config: &Path) -> String {
    let config = config.display();
    format!("provider = \"patchcord\"\nvendor.config = \"{config}\"\n")
}

/// Stands for systemd: hears what programs tell it.
pub(crate) struct ServiceManager {
    socket: UnixDatagram,
    /// For the environment of a program.
    pub(crate) variable: String,
}

impl ServiceManager {
    pub(crate) fn new(sandbox: &Sandbox) -> Self {
        let path = sandbox.path().join("notify.sock");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_read_timeout(Some(secs(60))).expect("a limit");
        Self {
            socket,
            variable: format!("NOTIFY_SOCKET={}", path.display()),
        }
    }

    /// What it is told until `is_awaited`, that included.
    pub(crate) fn wait_for(&self, is_awaited: impl Fn(&str) -> bool) -> Vec<String> {
        let mut told = Vec::new();
        loop {
            let mut bytes = [0; 4096];
            let len = self.socket.recv(&mut bytes).expect("systemd is told");
            told.push(String::from_utf8_lossy(&bytes[..len]).trim_end().to_owned());
            if told.last().is_some_and(|last| is_awaited(last)) {
                return told;
            }
        }
    }
}
