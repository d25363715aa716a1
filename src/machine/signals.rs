// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which signals end the program, and what the others do.
//!
//! SIGTERM, SIGINT and SIGQUIT end it in good order. So does SIGHUP when its terminal was closed; from
//! another sender it asks a service to read its configuration again.
//! SIGUSR1 and SIGUSR2 do nothing. The Rust runtime ignores SIGPIPE. Called by the process edge,
//! `tunnel` and `cli`.

use std::{fs::File, io};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::info;

/// Waits for a signal that ends the program; each that asks for it calls `reload`. Catches the others,
/// whose default action would end it, from the first poll until the process ends.
///
/// # Errors
/// When signals cannot be caught.
pub async fn until_end<F: Future<Output = ()>>(mut reload: impl FnMut() -> F) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut quit = signal(SignalKind::quit())?;
    let mut user_1 = signal(SignalKind::user_defined1())?;
    let mut user_2 = signal(SignalKind::user_defined2())?;
    let mut hangup = Hangup::catch()?;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = quit.recv() => return Ok(()),
            _ = user_1.recv() => info!("ignoring SIGUSR1: it has no meaning here"),
            _ = user_2.recv() => info!("ignoring SIGUSR2: it has no meaning here"),
            is_end = hangup.is_end() => {
                if is_end {
                    return Ok(());
                }
                reload().await;
            }
        }
    }
}

struct Hangup {
    /// `None` if the parent process had it ignored, as `nohup` does: a handler would undo that.
    signal: Option<Signal>,
    had_terminal: bool,
}

impl Hangup {
    fn catch() -> io::Result<Self> {
        let signal = match is_hangup_ignored() {
            true => None,
            false => Some(signal(SignalKind::hangup())?),
        };
        Ok(Self {
            signal,
            had_terminal: has_terminal(),
        })
    }

    /// Waits for the next one: whether it means that the terminal was closed.
    async fn is_end(&mut self) -> bool {
        match &mut self.signal {
            Some(signal) => signal.recv().await,
            None => std::future::pending().await,
        };
        self.had_terminal && !has_terminal()
    }
}

/// The kernel detaches a closed terminal from its processes before it signals them (`/dev/tty` is that
/// of the process).
fn has_terminal() -> bool {
    File::open("/dev/tty").is_ok()
}

/// As in `/proc/self/status`.
fn is_hangup_ignored() -> bool {
    const SIGHUP_BIT: u64 = 1;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & SIGHUP_BIT != 0)
}
