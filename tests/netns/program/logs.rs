// SPDX-License-Identifier: MIT OR Apache-2.0
//! The log of the program, with a reader that does not read.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

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
