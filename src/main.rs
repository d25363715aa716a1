// SPDX-License-Identifier: MIT OR Apache-2.0
//! The process edge: arguments, output for users, logs and exit codes. The tunnel is in the library.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
