// SPDX-License-Identifier: MIT OR Apache-2.0
//! A network namespace that exists as long as its value does.
//!
//! The namespace has no name in the file system: a sleeping process holds it open, and dies with the
//! thread that made it. So nothing stays behind after a panic, Ctrl-C or `kill -9`; the kernel removes
//! devices, addresses and firewall rules with the last process. Each namespace also has its own `/sys`
//! and an empty `/run`, like a machine of its own.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use nix::sched::{CloneFlags, setns};

use super::process::Process;

/// The initial state of every namespace. Bridges are plain cables here: netfilter does not see their
/// frames, and IPv6 addresses work at once.
const SETUP: &str = r#"
set -e
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
for f in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e "$f" ] || echo 0 > "$f"; done
for f in all default; do
    echo 0 > /proc/sys/net/ipv6/conf/$f/accept_dad
    echo 0 > /proc/sys/net/ipv6/conf/$f/router_solicitations
done
ip link set lo up
echo up
exec sleep infinity
"#;

pub(crate) struct Namespace {
    pub(crate) name: String,
    holder: Child,
    net: File,
}

impl Namespace {
    pub(crate) fn new(name: &str) -> Self {
        let mut holder = Command::new("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                "--",
                "unshare",
                "--net",
                "--mount",
                "sh",
                "-c",
                SETUP,
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("setpriv (util-linux) can be run");
        let mut line = String::new();
        BufReader::new(holder.stdout.take().expect("stdout is piped"))
            .read_line(&mut line)
            .expect("the holder's output can be read");
        assert_eq!(line, "up\n", "namespace {name} could not be set up");
        let net = File::open(format!("/proc/{}/ns/net", holder.id())).expect("the holder lives");
        Self {
            name: name.to_owned(),
            holder,
            net,
        }
    }

    /// The name of this namespace for `ip link add ... netns`.
    pub(crate) fn pid(&self) -> String {
        self.holder.id().to_string()
    }

    /// Runs `f` on a thread inside the namespace: sockets and devices that it opens stay there.
    pub(crate) fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.net, CloneFlags::CLONE_NEWNET).expect("root may enter the namespace");
                f()
            });
            inside
                .join()
                .expect("the thread inside the namespace does not panic")
        })
    }

    /// A command that will run inside.
    pub(crate) fn command(&self, argv: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.pid(), "--net", "--mount", "--"])
            .args(argv);
        command
    }

    /// Runs a command to its end, successful or not.
    pub(crate) fn output(&self, argv: &[&str]) -> Output {
        self.command(argv)
            .stdin(Stdio::null())
            .output()
            .expect("nsenter can be run")
    }

    pub(crate) fn succeeds(&self, argv: &[&str]) -> bool {
        self.output(argv).status.success()
    }

    /// Runs a command that must succeed, and returns its output.
    pub(crate) fn run(&self, argv: &[&str]) -> String {
        let output = self.output(argv);
        assert!(
            output.status.success(),
            "`{}` failed in {}: {}{}",
            argv.join(" "),
            self.name,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs `ip` commands, one a line, without the word `ip`.
    pub(crate) fn ip(&self, lines: &str) {
        self.feed(&["ip", "-batch", "-"], lines);
    }

    /// Loads an nftables script.
    pub(crate) fn nft(&self, script: &str) {
        self.feed(&["nft", "-f", "-"], script);
    }

    /// Makes frames leave `interface` as on a wire: no trains, checksums filled in.
    pub(crate) fn turn_offloads_off(&self, interface: &str) {
        let off = ["tx-udp-segmentation", "tso", "gso", "gro", "tx", "rx"]
            .map(|feature| [feature, "off"])
            .concat();
        self.run(&[&["ethtool", "-K", interface], &off[..]].concat());
    }

    /// Starts a process that writes its log to `log` and dies with the calling thread.
    pub(crate) fn spawn(&self, log: &Path, argv: &[&str]) -> Process {
        let guarded = [&["setpriv", "--pdeathsig", "KILL", "--"], argv].concat();
        Process::spawn(self.command(&guarded), log)
    }

    fn feed(&self, argv: &[&str], input: &str) {
        let mut child = self
            .command(argv)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("nsenter can be run");
        let mut stdin = child.stdin.take().expect("stdin is piped");
        stdin
            .write_all(input.as_bytes())
            .expect("the command reads its input");
        drop(stdin);
        let output = child.wait_with_output().expect("the command ends");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{argv:?} failed in {}: {stderr}\n{input}",
            self.name
        );
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
