// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sockets that use one side of the tunnel, whatever the routes say.
//!
//! *Through* it, a socket is bound to the interface before it is connected, TCP and UDP alike.
//! *Outside* of it, a socket has the bypass mark, which the rules of a full tunnel exempt. A tunnel's
//! own sockets must be outside, or it would carry itself. Sockets belong to the network namespace of
//! the thread that opens them; `provider` calls this.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

use super::link::{LinkError, Links};
use crate::io::mark::Mark;

/// Why a socket cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// There is no interface before the first settings, or it was deleted.
    #[error("the tunnel has no interface yet: apply network settings first")]
    NoInterface,
    /// The process lacks the permission.
    #[error(
        "marking a socket as outside of the tunnel needs CAP_NET_ADMIN: {0}; run as root or with \
         that capability"
    )]
    NotPermitted(io::Error),
    /// The interface cannot be looked up.
    #[error("cannot look up the interface")]
    Link(#[from] LinkError),
    /// Anything else.
    #[error("cannot {action}")]
    Io {
        /// The attempted action, with the address.
        action: String,
        /// The kernel's error.
        source: io::Error,
    },
}

/// For callers with I/O errors: the kind stays.
impl From<SocketError> for io::Error {
    fn from(error: SocketError) -> Self {
        let kind = match &error {
            SocketError::NoInterface => io::ErrorKind::NotFound,
            SocketError::NotPermitted(_) => io::ErrorKind::PermissionDenied,
            SocketError::Link(_) => io::ErrorKind::Other,
            SocketError::Io { source, .. } => source.kind(),
        };
        Self::new(kind, error)
    }
}

/// The side of the tunnel that a socket uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Through the interface with this index.
    Through(u32),
    /// Outside of every tunnel whose rules exempt this mark.
    Outside(Mark),
}

impl Side {
    /// A connection to `remote`.
    ///
    /// # Errors
    /// When there is no such interface, the mark is not permitted, or `remote` does not answer.
    pub(crate) async fn tcp(self, remote: SocketAddr) -> Result<TcpStream, SocketError> {
        let what = || format!("connect to {remote}");
        let socket = match remote {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        };
        let socket = socket.map_err(failed(what))?;
        self.take(&socket).await?;
        socket.connect(remote).await.map_err(failed(what))
    }

    /// A socket for datagrams to and from `remote` only, with `local` or an address that the kernel
    /// chooses as its source. `remote` may be a group or the broadcast address, on an interface
    /// without addresses too.
    ///
    /// # Errors
    /// When there is no such interface, the mark is not permitted, or there is no route to
    /// `remote`.
    pub(crate) async fn udp(
        self,
        remote: SocketAddr,
        local: Option<SocketAddr>,
    ) -> Result<UdpSocket, SocketError> {
        let what = || format!("open a socket to {remote}");
        let any = match remote {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let open = || {
            let socket = Socket::new(
                Domain::for_address(remote),
                Type::DGRAM,
                Some(Protocol::UDP),
            )?;
            socket.set_nonblocking(true)?;
            socket.set_broadcast(true)?;
            Ok(socket)
        };
        let socket = open().map_err(failed(what))?;
        self.take(&socket).await?;
        let connect = || {
            socket.bind(&local.unwrap_or(any).into())?;
            socket.connect(&remote.into())?;
            UdpSocket::from_std(socket.into())
        };
        connect().map_err(failed(what))
    }

    /// Puts a socket on this side, before it is connected.
    async fn take(self, socket: &impl AsFd) -> Result<(), SocketError> {
        let index = match self {
            Self::Through(index) => index,
            Self::Outside(mark) => return protect(socket, mark),
        };
        // The index identifies it; another program may have changed the name.
        let link = Links::connect()?.find_index(index).await?;
        let name = link.ok_or(SocketError::NoInterface)?.name;
        let bound = SockRef::from(socket).bind_device(Some(name.as_bytes()));
        bound.map_err(failed(|| format!("bind a socket to {name}")))
    }
}

/// Puts any socket outside of the tunnel. Existing connections keep their route.
///
/// # Errors
/// [`SocketError::NotPermitted`] without CAP_NET_ADMIN.
pub(crate) fn protect(socket: &impl AsFd, mark: Mark) -> Result<(), SocketError> {
    let socket = SockRef::from(socket);
    let set = || socket.set_mark(mark.apply_to(socket.mark()?));
    set().map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => SocketError::NotPermitted(error),
        _ => failed(|| "mark a socket".to_owned())(error),
    })
}

fn failed(action: impl FnOnce() -> String) -> impl FnOnce(io::Error) -> SocketError {
    move |source| SocketError::Io {
        action: action(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{block_on, in_namespace, ip};

    #[test]
    fn a_protected_socket_keeps_the_other_bits_of_its_mark() {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        socket.set_mark(0x1234_5678).unwrap();
        protect(&socket, Mark::BYPASS).unwrap();
        assert_eq!(socket.mark().unwrap(), 0x1534_5678);
    }

    #[test]
    fn sockets_take_the_interface_of_the_index() {
        in_namespace(|| {
            block_on(async {
                ip("link add east type veth peer name far");
                ip("link set far up");
                ip("link set east up");
                let index = nix::net::if_::if_nametoindex("east").unwrap();
                ip("link set east name renamed");
                let remote = "192.0.2.1:9".parse().unwrap();
                let socket = Side::Through(index).udp(remote, None).await.unwrap();
                let device = SockRef::from(&socket).device().unwrap().unwrap();
                assert_eq!(device, b"renamed");
                let error = Side::Through(4711).udp(remote, None).await.unwrap_err();
                assert!(matches!(error, SocketError::NoInterface), "{error:?}");
                assert_eq!(io::Error::from(error).kind(), io::ErrorKind::NotFound);
                let error = Side::Outside(Mark::BYPASS).tcp(remote).await.unwrap_err();
                assert_eq!(error.to_string(), "cannot connect to 192.0.2.1:9");
            });
        });
    }
}
