// SPDX-License-Identifier: MIT OR Apache-2.0
//! The service manager: the socket that it hands over, and notifications to it (sd_listen_fds(3),
//! sd_notify(3)).
//!
//! A process that no service manager started receives nothing and notifies nothing. Called by the
//! process edge, `tunnel` and `cli`.

use std::{future::pending, io, os::unix::net::UnixListener};

use sd_notify::NotifyState;
use tokio::time::interval;
use tracing::warn;

use crate::io::sys;

/// The socket that the service manager listens on for this process, if it does.
///
/// # Errors
/// `InvalidInput` if the descriptor that it handed over is no listening Unix socket.
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

/// Notifies the service manager that the service is up.
pub fn notify_ready() {
    notify(NotifyState::Ready);
}

/// Sets the text of `systemctl status`.
pub fn notify_status(text: &str) {
    notify(NotifyState::Status(text));
}

/// Notifies the service manager that the service goes down.
pub fn notify_stopping() {
    notify(NotifyState::Stopping);
}

/// Notifies the watchdog as long as this runtime turns and all `is_well`, if the service manager asks
/// for it (`WatchdogSec=`), until it is dropped.
pub async fn notify_watchdog(is_well: impl Fn() -> bool) {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return pending().await;
    };
    let mut beat = interval(limit / 3);
    loop {
        beat.tick().await;
        if is_well() {
            notify(NotifyState::Watchdog);
        }
    }
}

fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!(%error, "cannot notify systemd");
    }
}
