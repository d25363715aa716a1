// SPDX-License-Identifier: MIT OR Apache-2.0
//! The log of the program, with a reader that does not read.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::kit::host::{add_to_host, lonely_tunnel, run_host};
use crate::kit::pair::{Pair, Plan};
use crate::kit::process::{eventually, secs};

/// A full pipe, both ends open.
fn full_pipe(path: &Path) -> File {
    mkfifo(path, Mode::S_IRWXU).expect("a pipe can be made");
    let mut pipe = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .expect("a pipe can be opened");
    // The last bytes one by one: with less than a page left, larger writes do not fit.
    for size in [4096, 1] {
        while pipe.write(&vec![b'.'; size]).is_ok() {}
    }
    pipe
}

#[test]
fn a_tunnel_goes_on_without_a_reader_of_its_log() {
    let mut pair = Pair::prepare(Plan::default());
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("stderr");
    let mut pipe = full_pipe(&path);
    pair.a.up_with_log_to(&path);
    pair.b.up();
    pair.connect(secs(30));
    assert_eq!(pair.a.peer().state, "up");
    for _ in 0..3 {
        pair.b.kill_9();
        pair.b.up();
        pair.connect(secs(30));
    }
    let mut text = String::new();
    eventually(secs(20), "its log comes once it is read", || {
        let mut some = vec![0; 1 << 16];
        match pipe.read(&mut some) {
            Ok(len) => text.push_str(&String::from_utf8_lossy(&some[..len])),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        text.contains("peer is up").then_some(())
    });
    pair.a.terminate();
}

#[test]
fn each_line_of_a_host_names_its_tunnel() {
    let mut pair = Pair::prepare(Plan::default());
    let mut host = run_host(&pair, &[]);
    add_to_host(&pair, "lab", &lonely_tunnel(&pair, "lab"));
    for name in ["office", "lab"] {
        eventually(secs(20), "the host starts its tunnel", || {
            (pair.a.ran(&["host", "start", name]).0 == Some(0)).then_some(())
        });
    }
    pair.b.up();
    host.wait_for("peer is up", secs(30));
    pair.b.terminate();
    host.signal(Signal::SIGTERM);
    assert!(host.wait_exit(secs(20)).success());
    let log = host.log();
    let lines: Vec<_> = log
        .lines()
        .filter(|line| !line.contains("host is ready"))
        .collect();
    let names = |line: &str, name: &str| line.contains(&format!(r#"tunnel="{name}""#));
    for (name, message) in [
        ("office", "device is ready"),
        ("office", "engine started"),
        ("office", "peer is up"),
        ("lab", "device is ready"),
        ("lab", "engine started"),
    ] {
        let mut lines = lines.iter().filter(|line| line.contains(message));
        assert!(lines.any(|line| names(line, name)), "{message}: {log}");
    }
    for line in lines {
        assert!(names(line, "office") != names(line, "lab"), "{line}");
    }
}

#[test]
fn the_lines_of_a_process_with_one_tunnel_have_no_prefix() {
    let mut pair = Pair::prepare(Plan::default());
    pair.a.up().wait_for("engine started", secs(20));
    let log = pair.a.process().log();
    let mut lines = log.lines();
    let line = lines.find(|line| line.contains("engine started"));
    assert!(
        line.is_some_and(|line| line.contains("INFO engine started listen=")),
        "{log}"
    );
}
