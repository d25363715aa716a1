// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command line: its arguments, the function of each command, and its exit code.
//!
//! Output goes to stdout, errors and logs to stderr. Exit codes: 0 done, 1 failed at run time,
//! 2 bad usage or configuration.
//!
//! Each command has a file: its arguments, its help and its work. This one only lists them.

mod bench;
mod failure;
mod fdb;
mod host;
mod journal;
mod keys;
mod logs;
mod manual;
mod output;
mod reload;
mod show;
mod status;
mod target;
mod tunnel;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use self::target::Target;

/// Carries out the command line.
pub(crate) fn run() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Genkey(options) => keys::genkey(options.force),
        Command::Pubkey => keys::pubkey(),
        Command::Genpsk(options) => keys::genpsk(options.force),
        Command::Up(target) => tunnel::up(&target),
        Command::Check(options) => tunnel::check(&options),
        Command::Show(options) => show::show(&options),
        Command::Fdb(command) => fdb::run(command),
        Command::Reload(options) => reload::reload(&options),
        Command::Down(options) => tunnel::down(&options),
        Command::Bench(Bench::Crypto(options)) => bench::crypto(&options),
        Command::Host(command) => host::run(command),
        Command::Generate(what) => manual::generate(what, Cli::command()),
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
    Genkey(keys::PrintSecret),
    /// Read a private key from stdin and print its public key
    #[command(after_help = "Example:\n  patchcord pubkey < /etc/patchcord/a.key")]
    Pubkey,
    /// Print a new preshared key
    #[command(after_help = "Example:\n  umask 077; patchcord genpsk > /etc/patchcord/ab.psk")]
    Genpsk(keys::PrintSecret),
    /// Run a tunnel in the foreground
    #[command(after_help = tunnel::UP_HELP)]
    Up(Target),
    /// Validate a configuration without touching the network
    Check(tunnel::CheckOptions),
    /// Show running tunnels
    #[command(after_help = show::HELP)]
    Show(show::ShowOptions),
    /// Show the addresses that a running tunnel knows, and change them
    #[command(subcommand, after_help = fdb::HELP)]
    Fdb(fdb::FdbCommand),
    /// Apply what has changed in the file of a running tunnel
    #[command(after_help = reload::HELP)]
    Reload(reload::ReloadOptions),
    /// Stop a running tunnel; returns when it is gone
    Down(tunnel::DownOptions),
    /// Measure this machine
    #[command(subcommand)]
    Bench(Bench),
    /// Run many tunnels in one process, and control it
    #[command(subcommand, after_help = host::HELP)]
    Host(host::HostCommand),
    /// Write manual pages, shell completions, or the reference of configuration keys
    #[command(subcommand, hide = true)]
    Generate(manual::Generate),
}

#[derive(Subcommand)]
enum Bench {
    /// Measure the data ciphers, with the code that tunnels run
    Crypto(bench::CryptoOptions),
}

const EXAMPLES: &str = "\
Examples:
  umask 077; patchcord genkey > /etc/patchcord/a.key   make a key
  patchcord pubkey < /etc/patchcord/a.key              print the key that the other site needs
  patchcord check a                                    validate /etc/patchcord/a.toml
  patchcord up a                                       run it
  patchcord show a --json                              show its state

Exit codes: 0 done, 1 failed at run time, 2 bad usage or configuration.";
