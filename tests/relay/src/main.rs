// SPDX-License-Identifier: MIT OR Apache-2.0
//! The relay as a program, for scripts and by hand. Prints `ready` to stderr when frames pass, ends on
//! SIGTERM and SIGINT with one line of JSON on stdout: the counters.
#![forbid(unsafe_code)]
// Output is the purpose of a program.
#![allow(clippy::print_stderr, clippy::print_stdout)]

use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;

use clap::Parser;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use patchcord_relay::{Harm, Relay};

/// Joins two Ethernet interfaces by a cable that loses, delays, repeats and reorders frames.
///
/// Both directions are harmed alike, each by dice of its own. ARP, IPv6 neighbour discovery and all
/// that is not IP pass untouched. Turn segmentation and checksum offloads off at both far ends.
#[derive(Parser)]
#[command(name = "patchcord-relay", version)]
struct Options {
    /// One interface
    port_a: String,
    /// The other one
    port_b: String,
    #[command(flatten)]
    harm: Harm,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("patchcord-relay: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> io::Result<()> {
    // Blocked before the threads begin, which inherit this: signals arrive through the descriptor
    // only.
    let ends = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    ends.thread_block()?;
    let signals = SignalFd::with_flags(&ends, SfdFlags::SFD_CLOEXEC)?;
    let relay = Relay::start(&options.port_a, &options.port_b, &options.harm)?;
    eprintln!("ready");
    while !relay.has_failed() && !is_readable(&signals)? {}
    println!("{}", serde_json::to_string(&relay.stop()?)?);
    Ok(())
}

/// Waits for a while.
fn is_readable(signals: &SignalFd) -> io::Result<bool> {
    let mut entry = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
    match poll(&mut entry, PollTimeout::from(100_u8)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
