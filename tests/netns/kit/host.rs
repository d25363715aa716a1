// SPDX-License-Identifier: MIT OR Apache-2.0
//! `patchcord host run`, and what programs tell the service manager (sd_notify(3)).

use std::fs;
use std::os::unix::net::UnixDatagram;

use super::pair::Pair;
use super::process::{Process, secs};
use super::site::binary;
use super::topology::Sandbox;

/// A host at A, ready, with its tunnel under the name `office`. Variables are `NAME=VALUE`.
pub(crate) fn run_host(pair: &Pair, environment: &[&str]) -> Process {
    let folder = pair.sandbox.path().join("host");
    let path = |name: &str| folder.join(name).display().to_string();
    let (tunnels, state, secrets) = (path("tunnels.d"), path("state"), path("secrets"));
    fs::create_dir_all(&tunnels).expect("a folder");
    let config = pair.a.config.display();
    let file = format!("provider = \"patchcord\"\nvendor.config = \"{config}\"\n");
    fs::write(format!("{tunnels}/office.toml"), file).expect("a file");
    let program = binary();
    let run = [&program, "host", "run", "--tunnels", &tunnels];
    let rest = ["--state", &state, "--secrets", &secrets];
    let words = [&["env"], environment, &run, &rest].concat();
    let log = pair.sandbox.path().join("host.log");
    let mut process = pair.a.ns.spawn(&log, &words);
    process.wait_for("host is ready", secs(20));
    process
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
