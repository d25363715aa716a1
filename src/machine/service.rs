// SPDX-License-Identifier: MIT OR Apache-2.0
//! The service manager: what it hands over, and what it is told (sd_listen_fds(3), sd_notify(3)).
//!
//! A process that no service manager started is told nothing and tells nobody. Called by the process
//! edge, `tunnel` and `cli`.

use std::{future::pending, io, os::unix::net::UnixListener};

use sd_notify::NotifyState;
use tokio::time::interval;
use tracing::warn;

use crate::io::sys;

/// The socket that the service manager listens on for this process, if it does.
///
/// # Errors
/// `InvalidInput` if what it handed over is no Unix socket that listens.
pub fn activation_listener() -> io::Result<Option<UnixListener>> {
    let Some(number) = sd_notify::listen_fds()?.next() else {
        return Ok(None);
    };
    let fd = sys::duplicate(number)?;
    let socket = socket2::SockRef::from(&fd);
    if socket.domain()? != socket2::Domain::UNIX || !socket.is_listener()? {
        let problem =
            "the service manager handed over something else than a Unix socket that listens";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
    }
    Ok(Some(fd.into()))
}

/// The service is up.
pub fn tell_ready() {
    tell(NotifyState::Ready);
}

/// What the service does, for `systemctl status`.
pub fn tell_status(text: &str) {
    tell(NotifyState::Status(text));
}

/// The service goes down.
pub fn tell_stopping() {
    tell(NotifyState::Stopping);
}

/// Says again and again that this runtime turns and all `is_well`, if the service manager wants to hear
/// it (`WatchdogSec=`), until it is dropped.
pub async fn tell_alive(is_well: impl Fn() -> bool) {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return pending().await;
    };
    let mut beat = interval(limit / 3);
    loop {
        beat.tick().await;
        if is_well() {
            tell(NotifyState::Watchdog);
        }
    }
}

fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!(%error, "cannot notify systemd");
    }
}
