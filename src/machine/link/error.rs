// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why a link cannot be set as requested.

use std::io;

/// Why a link cannot be set as requested. Each message names the remedy, where there is one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// No netlink socket.
    #[error("cannot talk to the kernel about links (rtnetlink)")]
    Connect(#[source] io::Error),
    /// No such interface.
    #[error("there is no interface `{name}`")]
    Missing {
        /// The interface.
        name: String,
    },
    /// No such bridge.
    #[error(
        "there is no bridge `{name}`: make it with `ip link add {name} type bridge`, or choose \
         another device.bridge ({})",
        bridges(existing)
    )]
    NoBridge {
        /// The bridge.
        name: String,
        /// The bridges that exist.
        existing: Vec<String>,
    },
    /// The interface exists, but is of another kind.
    #[error(
        "`{name}` is {} and not a bridge: choose another device.bridge ({})",
        kind_in_words(kind.as_deref()), bridges(existing)
    )]
    NotABridge {
        /// The interface.
        name: String,
        /// Its kind, as `ip -d link` shows it; physical interfaces have none.
        kind: Option<String>,
        /// The bridges that exist.
        existing: Vec<String>,
    },
    /// The kernel was built without VLAN filtering.
    #[error(
        "the kernel's bridges cannot filter VLANs (CONFIG_BRIDGE_VLAN_FILTERING is not set): remove \
         device.bridge-vlans and device.bridge-native"
    )]
    NoVlans,
    /// Another program moved the interface to another namespace.
    #[error(
        "`{name}` is in another network namespace: set it up there, or move it back with `ip link set \
         {name} netns PID`"
    )]
    Elsewhere {
        /// The interface.
        name: String,
    },
    /// The kernel refused.
    #[error("cannot {action}")]
    Refused {
        /// The attempted action, with its values.
        action: String,
        /// The kernel's error.
        source: io::Error,
    },
}

fn bridges(existing: &[String]) -> String {
    match existing {
        [] => "there is none".to_owned(),
        names => format!("there are: {}", names.join(", ")),
    }
}

fn kind_in_words(kind: Option<&str>) -> String {
    kind.map_or_else(
        || "an interface without a kind".to_owned(),
        |kind| format!("a {kind} device"),
    )
}

pub(super) fn refused(
    action: impl FnOnce() -> String,
) -> impl FnOnce(rtnetlink::Error) -> LinkError {
    move |error| LinkError::Refused {
        action: action(),
        source: io_error(error),
    }
}

pub(in crate::machine) fn io_error(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        error => io::Error::other(error),
    }
}
