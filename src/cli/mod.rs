// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command line: what it takes, which function does it, and how it ends.
//!
//! Output goes to stdout, errors and logs to stderr. Exit codes: 0 done, 1 failed at run time,
//! 2 bad usage or configuration.

mod bench;
mod fdb;
mod host;
mod hosted;
mod journal;
mod keys;
mod logs;
mod manual;
mod show;
mod status;
mod tunnel;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use patchcord::config::ConfigErrors;
use patchcord::control::RUN_DIR;

/// Does what the arguments say.
pub(crate) fn run() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Genkey(options) => keys::genkey(options.force),
        Command::Pubkey => keys::pubkey(),
        Command::Genpsk(options) => keys::genpsk(options.force),
        Command::Up(target) => tunnel::up(&target.name_or_file),
        Command::Check(target) => tunnel::check(&target.name_or_file),
        Command::Show(options) => show::show(&options),
        Command::Fdb(command) => fdb::run(command),
        Command::Down(options) => tunnel::down(&options.target.name_or_file, &options.run_dir),
        Command::Bench(Bench::Crypto(options)) => bench::crypto(&options),
        Command::Host(command) => host::run(command),
        Command::Generate(what) => manual::generate(what),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// An encrypted patch cord between Ethernet segments.
///
/// Plug one end into a LAN, a VLAN or a lab switch on each site: everything an Ethernet cable
/// carries arrives on the other side, encrypted over UDP.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print a new private key
    #[command(after_help = "Example:\n  umask 077; patchcord genkey > /etc/patchcord/a.key")]
    Genkey(PrintSecret),
    /// Read a private key from stdin and print its public key
    #[command(after_help = "Example:\n  patchcord pubkey < /etc/patchcord/a.key")]
    Pubkey,
    /// Print a new preshared key
    #[command(after_help = "Example:\n  umask 077; patchcord genpsk > /etc/patchcord/ab.psk")]
    Genpsk(PrintSecret),
    /// Run a tunnel in the foreground
    #[command(after_help = UP_HELP)]
    Up(Target),
    /// Validate a configuration without touching the network
    Check(Target),
    /// Show running tunnels
    #[command(after_help = SHOW_HELP)]
    Show(ShowOptions),
    /// Look at the addresses that a running tunnel knows, and change them
    #[command(subcommand, after_help = fdb::HELP)]
    Fdb(fdb::FdbCommand),
    /// Stop a running tunnel; returns when it is gone
    Down(DownOptions),
    /// Measure this machine
    #[command(subcommand)]
    Bench(Bench),
    /// Run many tunnels in one process, and talk to it
    #[command(subcommand, after_help = host::HELP)]
    Host(host::HostCommand),
    /// Write manual pages, shell completions, or the reference of configuration keys
    #[command(subcommand, hide = true)]
    Generate(manual::Generate),
}

#[derive(Subcommand)]
enum Bench {
    /// Measure the data ciphers, by the code that tunnels run
    Crypto(BenchCryptoOptions),
}

#[derive(Args)]
struct PrintSecret {
    /// Print to a terminal too
    #[arg(long)]
    force: bool,
}

#[derive(Args)]
struct Target {
    /// NAME means /etc/patchcord/NAME.toml; a file has a `/` in it or ends in `.toml`
    #[arg(value_name = "NAME|FILE")]
    name_or_file: String,
}

#[derive(Args)]
struct ShowOptions {
    /// The tunnel, or its configuration file
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Print JSON: an object with NAME, an array without
    #[arg(long)]
    json: bool,
    /// Only this peer, with everything about it
    #[arg(long, value_name = "PEER", requires = "name", conflicts_with = "json")]
    peer: Option<String>,
    /// Everything about every peer, however many there are
    #[arg(short, long, conflicts_with = "json")]
    verbose: bool,
    /// Exit with 1 unless a peer is up: of this tunnel, or of every running one
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    run_dir: RunDir,
}

#[derive(Args)]
struct DownOptions {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    run_dir: RunDir,
}

#[derive(Args)]
struct BenchCryptoOptions {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// How long to measure
    #[arg(long, value_name = "N", default_value = "2.5", value_parser = bench::seconds)]
    seconds: Duration,
}

#[derive(Args)]
struct RunDir {
    /// Where the sockets of running tunnels are
    #[arg(id = "run-dir", long, value_name = "DIR", default_value = RUN_DIR, hide = true)]
    path: PathBuf,
}

const EXAMPLES: &str = "\
Examples:
  umask 077; patchcord genkey > /etc/patchcord/a.key   make a key
  patchcord pubkey < /etc/patchcord/a.key              print what the other site needs
  patchcord check a                                    validate /etc/patchcord/a.toml
  patchcord up a                                       run it
  patchcord show a --json                              look at it

Exit codes: 0 done, 1 failed at run time, 2 bad usage or configuration.";

const SHOW_HELP: &str = "\
Without NAME, lists the running tunnels, one line each. With it, everything about one, and its peers one
line each if there are more than four.

Exit codes: 0 the tunnel answered, whether a peer is up or not; with --check, 0 only if one is. 1 no such
tunnel runs, or with --check, no peer is up.

Examples:
  patchcord show office                    what is up, and what is wrong
  patchcord show office --peer site-b      everything about one peer
  patchcord show office --check || ...     for scripts and monitoring";

const UP_HELP: &str = "\
Logs go to stderr; RUST_LOG selects them (default: info). Tells systemd when it is ready.

Examples:
  patchcord up a                  run /etc/patchcord/a.toml
  RUST_LOG=debug patchcord up ./a.toml";

/// Why a command did not do its work, which decides the exit code.
enum Failure {
    /// 1: it was asked for properly.
    AtRunTime(anyhow::Error),
    /// 2: bad usage.
    Usage(String),
    /// 2: bad configuration.
    Config(ConfigErrors),
}

impl Failure {
    fn report(self) -> ExitCode {
        let (text, code) = match self {
            // The reader of our output has seen enough, as in `patchcord show | head`.
            Self::AtRunTime(error) if is_broken_pipe(&error) => return ExitCode::SUCCESS,
            Self::AtRunTime(error) => (format!("patchcord: {error:#}"), 1),
            Self::Usage(message) => (format!("patchcord: {message}"), 2),
            Self::Config(errors) => (errors.to_string(), 2),
        };
        // When even stderr is gone, the exit code is all that is left to say.
        let _ = writeln!(io::stderr(), "{text}");
        ExitCode::from(code)
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::AtRunTime(error.into())
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// Writes to stdout, without the panic of `println!` when nobody reads.
fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}
