// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why a socket cannot be opened, why a train cannot be sent, and the meaning of the kernel's
//! errors.

use std::io;
use std::net::SocketAddr;

use crate::io::sys;

/// Why a socket cannot be opened. Each message states the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum BindError {
    /// Another socket has the port.
    #[error(
        "UDP port {} is in use at {}: stop the program that uses it (`ss -lunp` shows it) or \
         choose another tunnel.listen", .0.port(), .0.ip()
    )]
    InUse(SocketAddr),
    /// No interface has the address.
    #[error(
        "address {} is not on this machine: choose one that `ip address` shows, or `[::]:{}` for \
         all of them, as tunnel.listen", .0.ip(), .0.port()
    )]
    NotLocal(SocketAddr),
    /// Ports below 1024 belong to root.
    #[error(
        "UDP port {} needs CAP_NET_BIND_SERVICE: run as root or choose a tunnel.listen above 1023",
        .0.port()
    )]
    Forbidden(SocketAddr),
    /// Anything else.
    #[error("cannot {action} a UDP socket at {listen}")]
    Io {
        /// The attempted action.
        action: &'static str,
        /// The address.
        listen: SocketAddr,
        /// The kernel's error.
        source: io::Error,
    },
}

/// A train of which only the beginning was sent, if anything.
#[derive(Debug, thiserror::Error)]
#[error("a train ended after {sent} datagrams")]
pub(crate) struct SendFailure {
    /// Datagrams of it that the kernel accepted before.
    pub sent: usize,
    /// Why the rest was not sent.
    #[source]
    pub error: SendError,
}

/// Why the rest of a train was not sent. None of these harms the socket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum SendError {
    /// The datagrams are larger than the MTU of the outgoing interface.
    #[error("datagrams of {datagram_bytes} bytes are too big for the interface to {to}")]
    TooBig {
        /// The destination.
        to: SocketAddr,
        /// The size of the datagrams, without UDP and IP headers.
        datagram_bytes: usize,
    },
    /// There is no route to the destination now, or a packet filter forbids it.
    #[error("{to} cannot be reached")]
    Unreachable {
        /// The destination.
        to: SocketAddr,
        /// The kernel's error.
        source: io::Error,
    },
    /// Anything else.
    #[error("cannot send to {to}")]
    Io {
        /// The destination.
        to: SocketAddr,
        /// The kernel's error.
        source: io::Error,
    },
}

pub(super) fn has_code(error: &io::Error, code: i32) -> bool {
    error.raw_os_error() == Some(code)
}

/// Whether an error is about one datagram, or about the network at this moment.
pub(super) fn is_passing(error: &io::Error) -> bool {
    use sys::{ECONNREFUSED, EHOSTDOWN, EHOSTUNREACH, EMSGSIZE, ENETDOWN, ENETUNREACH, EPERM};
    let codes = [
        ECONNREFUSED,
        EHOSTDOWN,
        EHOSTUNREACH,
        EMSGSIZE,
        ENETDOWN,
        ENETUNREACH,
        EPERM,
    ];
    codes.iter().any(|&code| has_code(error, code))
}

/// Whether the local address may be gone, or its interface, or have no route to the destination.
pub(super) fn is_about_local(error: &io::Error) -> bool {
    use sys::{EADDRNOTAVAIL, EHOSTUNREACH, EINVAL, ENETDOWN, ENETUNREACH, ENODEV};
    let codes = [
        EADDRNOTAVAIL,
        EHOSTUNREACH,
        EINVAL,
        ENETDOWN,
        ENETUNREACH,
        ENODEV,
    ];
    codes.iter().any(|&code| has_code(error, code))
}

/// Whether a bind failed because this machine has no IPv6 at all.
pub(super) fn is_without_ipv6(error: &BindError) -> bool {
    match error {
        BindError::NotLocal(_) => true,
        BindError::Io { source, .. } => has_code(source, sys::EAFNOSUPPORT),
        _ => false,
    }
}

pub(super) fn send_error(to: SocketAddr, datagram_bytes: usize, source: io::Error) -> SendError {
    match source.raw_os_error() {
        Some(sys::EMSGSIZE) => SendError::TooBig { to, datagram_bytes },
        _ if is_passing(&source) => SendError::Unreachable { to, source },
        // No address to send from, or an IPv6 destination on a machine without IPv6.
        Some(sys::EADDRNOTAVAIL | sys::EAFNOSUPPORT) => SendError::Unreachable { to, source },
        _ => SendError::Io { to, source },
    }
}
