// SPDX-License-Identifier: MIT OR Apache-2.0
//! The socket itself: how it is opened, its capabilities, and how it receives.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::batch::RecvBatch;
use super::error::{BindError, has_code, is_passing, is_without_ipv6};
use super::pauses::Pauses;
use crate::io::sys::{self, SocketOption};

#[cfg(test)]
mod tests;

/// The buffer that the socket requests in each direction; enough for 8 ms at 8 Gbit/s.
pub(super) const BUFFER_BYTES: usize = 8 << 20;

/// The offloads that a kernel has for UDP; probed when a socket is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capabilities {
    /// Cuts a train into datagrams (UDP_SEGMENT).
    pub gso: bool,
    /// Merges received datagrams into trains (UDP_GRO).
    pub gro: bool,
}

/// An unconnected, non-blocking UDP socket. All methods take `&self`; threads may share it.
#[derive(Debug)]
pub(crate) struct UdpSocket {
    pub(super) socket: Socket,
    pub(super) is_ipv6: bool,
    pub(super) capabilities: Capabilities,
    /// The time to live of its datagrams, if it is not the kernel's default.
    pub(super) hops: Option<u8>,
    /// Destinations for which GSO does not work now. Shared by clones: the finding of one holds for
    /// all.
    pub(super) pauses: Arc<Pauses>,
}

impl UdpSocket {
    /// Opens a socket at `listen`. `[::]` receives IPv4 as well, and means `0.0.0.0` on a machine
    /// without IPv6.
    ///
    /// # Errors
    /// When the port is taken, the address is not ours, or the kernel refuses.
    pub(crate) fn bind(listen: SocketAddr) -> Result<Self, BindError> {
        match Self::bind_one(listen, false) {
            Err(error) if listen.ip() == Ipv6Addr::UNSPECIFIED && is_without_ipv6(&error) => {
                let listen = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), listen.port());
                Self::bind_one(listen, false)
            }
            result => result,
        }
    }

    /// Opens a socket at `listen` as it is; `shares_port` with others that do.
    pub(super) fn bind_one(listen: SocketAddr, shares_port: bool) -> Result<Self, BindError> {
        let io = |action| {
            move |source| BindError::Io {
                action,
                listen,
                source,
            }
        };
        let socket = Socket::new(
            Domain::for_address(listen),
            Type::DGRAM,
            Some(Protocol::UDP),
        )
        .map_err(io("open"))?;
        if listen.is_ipv6() {
            socket.set_only_v6(false).map_err(io("open to IPv4"))?;
        }
        socket.set_nonblocking(true).map_err(io("configure"))?;
        if shares_port {
            socket.set_reuse_port(true).map_err(io("share"))?;
        }
        set_probing(&socket, listen.is_ipv6()).map_err(io("set DF on"))?;
        ask_for_local_addresses(&socket, listen.is_ipv6());
        grow_buffers(&socket);
        let bound = match socket.bind(&listen.into()) {
            Err(error) if has_code(&error, sys::EADDRNOTAVAIL) => bind_ahead(&socket, listen),
            bound => bound,
        };
        bound.map_err(|source| match source.raw_os_error() {
            Some(sys::EADDRINUSE) => BindError::InUse(listen),
            Some(sys::EADDRNOTAVAIL) => BindError::NotLocal(listen),
            _ if source.kind() == io::ErrorKind::PermissionDenied => BindError::Forbidden(listen),
            _ => BindError::Io {
                action: "bind",
                listen,
                source,
            },
        })?;
        // Segment size 0 means "no segmentation unless a message asks for it": a probe without
        // effect.
        let gso = sys::set_option(socket.as_fd(), SocketOption::UdpSegment, 0).is_ok();
        let gro = sys::set_option(socket.as_fd(), SocketOption::UdpGro, 1).is_ok();
        Ok(Self {
            socket,
            is_ipv6: listen.is_ipv6(),
            capabilities: Capabilities { gso, gro },
            hops: None,
            pauses: Arc::new(Pauses::new(now())),
        })
    }

    /// The address to which the socket is bound.
    ///
    /// # Errors
    /// Never on a socket that is open.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        let address = self.socket.local_addr()?;
        address
            .as_socket()
            .ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Another handle to the same socket and the same port.
    ///
    /// # Errors
    /// When the process has too many open files.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            socket: self.socket.try_clone()?,
            is_ipv6: self.is_ipv6,
            capabilities: self.capabilities,
            hops: self.hops,
            pauses: Arc::clone(&self.pauses),
        })
    }

    /// The offloads of this socket.
    pub(crate) fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// Gives up the capabilities that `allowed` lacks, although the kernel has them.
    ///
    /// # Errors
    /// Never on a socket that is open.
    pub(crate) fn restrict(&mut self, allowed: Capabilities) -> io::Result<()> {
        self.capabilities.gso &= allowed.gso;
        if self.capabilities.gro && !allowed.gro {
            sys::set_option(self.socket.as_fd(), SocketOption::UdpGro, 0)?;
            self.capabilities.gro = false;
        }
        Ok(())
    }

    /// The sizes in bytes of the kernel's receive and send buffer, as granted.
    ///
    /// # Errors
    /// Never on a socket that is open.
    #[cfg(test)]
    pub(crate) fn buffer_bytes(&self) -> io::Result<(usize, usize)> {
        Ok((
            self.socket.recv_buffer_size()?,
            self.socket.send_buffer_size()?,
        ))
    }

    /// Fills `batch` with the datagrams that have arrived, without waiting. Returns how many trains
    /// it holds now, 0 when there are none.
    ///
    /// # Errors
    /// Only those that make the socket useless; errors about single datagrams are skipped.
    pub(crate) fn recv_batch(&self, batch: &mut RecvBatch) -> io::Result<usize> {
        // Bounded, so that a flood of ICMP errors cannot hold the thread here.
        for _ in 0..16 {
            match batch.receive(self.socket.as_fd()) {
                Ok(filled) => return Ok(filled),
                Err(error) if has_code(&error, sys::EAGAIN) => return Ok(0),
                Err(error) if has_code(&error, sys::EINTR) || is_passing(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(0)
    }

    /// The form of an address that this socket takes: an IPv6 socket wants IPv4 mapped.
    pub(super) fn kernel_address(&self, to: SocketAddr) -> SockAddr {
        match to {
            SocketAddr::V4(v4) if self.is_ipv6 => {
                SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()
            }
            _ => to.into(),
        }
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Binds to an address that may be added later. Until then nothing arrives, and nothing can be
/// sent.
fn bind_ahead(socket: &Socket, listen: SocketAddr) -> io::Result<()> {
    // The unspecified address exists already, or never will.
    if listen.ip().is_unspecified() {
        return Err(io::Error::from_raw_os_error(sys::EADDRNOTAVAIL));
    }
    match listen {
        SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
    }
    socket.bind(&listen.into())
}

/// Whether this machine has the address now.
#[expect(
    clippy::disallowed_methods,
    reason = "asks the kernel by a socket that nothing is sent by"
)]
pub(crate) fn is_here(address: SocketAddr) -> bool {
    let mut any_port = address;
    any_port.set_port(0);
    std::net::UdpSocket::bind(any_port).is_ok()
}

/// Read when a socket is opened, and while GSO fails somewhere.
#[expect(
    clippy::disallowed_methods,
    reason = "what the kernel refused is tried again after a while; tests bring a clock of their own"
)]
pub(super) fn now() -> Instant {
    Instant::now()
}

/// Sets DF and ignores learnt path MTUs. An IPv6 socket carries IPv4 too and needs both options.
fn set_probing(socket: &Socket, is_ipv6: bool) -> io::Result<()> {
    let fd = socket.as_fd();
    let set = |option| sys::set_option(fd, option, sys::PMTUDISC_PROBE);
    if !is_ipv6 {
        return set(SocketOption::Ipv4MtuDiscover);
    }
    set(SocketOption::Ipv6MtuDiscover)?;
    // Refused where the kernel has no IPv4, and then not needed.
    match set(SocketOption::Ipv4MtuDiscover) {
        Err(error) if !has_code(&error, sys::ENOPROTOOPT) => Err(error),
        _ => Ok(()),
    }
}

/// Makes the kernel report the local address and interface of each datagram. An IPv6 socket gets
/// those of IPv4 datagrams in the same form. Without this the kernel chooses the source of answers.
fn ask_for_local_addresses(socket: &Socket, is_ipv6: bool) {
    let option = match is_ipv6 {
        true => SocketOption::Ipv6PacketInfo,
        false => SocketOption::Ipv4PacketInfo,
    };
    let _ = sys::set_option(socket.as_fd(), option, 1);
}

/// Asks for large buffers. Without CAP_NET_ADMIN in the first user namespace the kernel grants what
/// `net.core.rmem_max` and `wmem_max` allow, and the tunnel works with that.
fn grow_buffers(socket: &Socket) {
    let (fd, bytes) = (socket.as_fd(), BUFFER_BYTES as i32);
    if sys::set_option(fd, SocketOption::ReceiveBufferForce, bytes).is_err() {
        let _ = socket.set_recv_buffer_size(BUFFER_BYTES);
    }
    if sys::set_option(fd, SocketOption::SendBufferForce, bytes).is_err() {
        let _ = socket.set_send_buffer_size(BUFFER_BYTES);
    }
}
