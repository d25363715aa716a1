// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why a TAP or a NIC cannot be opened.

use std::io;

use crate::io::packet::NicError;
use crate::io::sys;

/// Why a TAP cannot be opened. Each message states the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TapError {
    /// Not a name that the kernel accepts.
    #[error("`{name}` cannot be an interface's name ({reason}): choose another device.name")]
    BadName {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The driver is missing.
    #[error(
        "no /dev/net/tun: {0}; load the driver with `modprobe tun`, or give the container \
         `--device /dev/net/tun`"
    )]
    NoDriver(io::Error),
    /// A rule about devices forbids it, even to root.
    #[error(
        "a device rule of this container or service forbids /dev/net/tun: {0}; give the container \
         `--device /dev/net/tun`, the unit `DeviceAllow=/dev/net/tun rw`"
    )]
    DeviceForbidden(io::Error),
    /// Not allowed.
    #[error(
        "opening the TAP `{name}` needs CAP_NET_ADMIN: {cause}; run as root or with that capability"
    )]
    NotPermitted {
        /// The device.
        name: String,
        /// The kernel's error.
        cause: io::Error,
    },
    /// Another process has the device.
    #[error(
        "another process holds the TAP `{name}`: stop it (`fuser -v /dev/net/tun` shows it) or \
         choose another device.name"
    )]
    Busy {
        /// The device.
        name: String,
    },
    /// An interface of another kind has the name.
    #[error("`{name}` exists and is not a TAP: choose another device.name")]
    NotATap {
        /// The interface.
        name: String,
    },
    /// The plain back-end cannot attach to a multi-queue TAP.
    #[error(
        "the plain back-end cannot open `{name}`: the interface is not a TAP, or one with several \
         queues; use device.backend = \"vnet\" or choose another device.name"
    )]
    NotPlain {
        /// The interface.
        name: String,
    },
    /// Another process holds it, and thereby determines the format of its frames.
    #[error(
        "another process holds the TAP `{name}` without vnet headers: have it use them \
         (`VNetHeader=yes` of systemd-networkd), or set device.backend = \"auto\""
    )]
    NoVnetHeader {
        /// The interface.
        name: String,
    },
    /// The same, with a header in front of the frames that no back-end supports.
    #[error(
        "another process holds the TAP `{name}` with packet information in front of its frames: have it \
         use none (IFF_NO_PI; `PacketInfo=no` of systemd-networkd)"
    )]
    PacketInformation {
        /// The interface.
        name: String,
    },
    /// A NIC cannot be attached.
    #[error(transparent)]
    Nic(#[from] NicError),
    /// Anything else.
    #[error("cannot {action} the TAP `{name}`")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The device.
        name: String,
        /// The kernel's error.
        source: io::Error,
    },
}

pub(super) fn open_error(name: &str) -> impl FnOnce(io::Error) -> TapError {
    move |error| match error.raw_os_error() {
        Some(sys::ENOENT | sys::ENXIO | sys::ENODEV) => TapError::NoDriver(error),
        // Every user may open the file, and the kernel requires no capability yet.
        Some(sys::EPERM) => TapError::DeviceForbidden(error),
        _ => attach_error("open /dev/net/tun for", name)(error),
    }
}

pub(super) fn attach_error(action: &'static str, name: &str) -> impl FnOnce(io::Error) -> TapError {
    move |error| match error.raw_os_error() {
        Some(sys::EBUSY) => TapError::Busy {
            name: name.to_owned(),
        },
        _ if error.kind() == io::ErrorKind::PermissionDenied => TapError::NotPermitted {
            name: name.to_owned(),
            cause: error,
        },
        _ => io_error(action, name)(error),
    }
}

pub(super) fn io_error(action: &'static str, name: &str) -> impl FnOnce(io::Error) -> TapError {
    move |source| TapError::Io {
        action,
        name: name.to_owned(),
        source,
    }
}

/// An error and its cause in one line.
pub(super) fn with_source(error: &TapError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
