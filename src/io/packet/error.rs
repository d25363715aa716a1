// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why a NIC cannot be attached.

use std::io;

/// Why a NIC cannot be attached. Each message states the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NicError {
    /// No such interface.
    #[error("there is no interface `{name}`: `ip link` lists them; choose another device.nic")]
    Missing {
        /// The interface.
        name: String,
    },
    /// An interface of another kind has the name.
    #[error("`{name}` is not an Ethernet interface: choose another device.nic")]
    NotEthernet {
        /// The interface.
        name: String,
    },
    /// It is a port of a bridge or a bond.
    #[error(
        "`{name}` is a port of `{controller}`, which takes its frames as well: take it out with \
         `ip link set {name} nomaster`, or choose another device.nic"
    )]
    IsPort {
        /// The interface.
        name: String,
        /// The bridge or bond.
        controller: String,
    },
    /// Not allowed.
    #[error(
        "reading the frames of `{name}` needs CAP_NET_RAW, and CAP_NET_ADMIN to bring it up: {cause}; run as \
         root or with these capabilities"
    )]
    NotPermitted {
        /// The interface.
        name: String,
        /// The kernel's error.
        cause: io::Error,
    },
    /// Anything else.
    #[error("cannot {action} the interface `{name}`")]
    Io {
        /// The attempted action.
        action: &'static str,
        /// The interface.
        name: String,
        /// The kernel's error.
        source: io::Error,
    },
}
