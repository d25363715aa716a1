// SPDX-License-Identifier: MIT OR Apache-2.0
//! Attaches packet sockets to a NIC.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use socket2::SockRef;

use super::error::NicError;
use super::socket::PacketSocket;
use crate::io::sys::faults::{self, Call};
use crate::io::sys::{self, SocketOption, packet};

#[cfg(test)]
mod tests;

/// Bytes of frames that may wait to be read: some milliseconds of a fast network.
const RECEIVE_BUFFER: i32 = 4 << 20;
/// Bytes of frames that may wait for the NIC. Beyond that the writer waits, so that the queue
/// stands where CoDel watches its length.
const SEND_BUFFER: i32 = 1 << 20;
/// The result of [`open`].
pub(in crate::io) struct Opened {
    pub(in crate::io) index: u32,
    /// At least one.
    pub(in crate::io) sockets: Vec<PacketSocket>,
    /// Why there are no [`VnetHeader`](crate::io::vnet::VnetHeader)s, although newer kernels have them.
    pub(in crate::io) no_vnet_header: Option<io::Error>,
    /// Why there is one socket, although several were asked for.
    pub(in crate::io) one_because: Option<io::Error>,
}

/// Opens `count` sockets for the frames of the interface, each flow at one of them, or a single one.
pub(in crate::io) fn open(name: &str, count: usize) -> Result<Opened, NicError> {
    let failed = |action| {
        move |source: io::Error| match source.kind() {
            io::ErrorKind::PermissionDenied => NicError::NotPermitted {
                name: name.to_owned(),
                cause: source,
            },
            _ => NicError::Io {
                action,
                name: name.to_owned(),
                source,
            },
        }
    };
    let index = sys::interface_index(name).map_err(|_| NicError::Missing {
        name: name.to_owned(),
    })?;
    let mut no_vnet_header = None;
    let mut files = Vec::new();
    for _ in 0..count.max(1) {
        let file = packet::open().map_err(failed("read the frames of"))?;
        let socket = file.as_fd();
        sys::set_option(socket, SocketOption::PacketIgnoreOutgoing, 1).map_err(failed(
            "keep own frames (Linux 4.20 can) apart from those of",
        ))?;
        sys::set_option(socket, SocketOption::PacketAuxdata, 1)
            .map_err(failed("read the VLAN tags of"))?;
        no_vnet_header = offer_vnet_header(socket).err();
        // Needs CAP_NET_ADMIN; without it there is less room, up to net.core.[rw]mem_max.
        let _ = sys::set_option(socket, SocketOption::ReceiveBufferForce, RECEIVE_BUFFER);
        let _ = sys::set_option(socket, SocketOption::SendBufferForce, SEND_BUFFER);
        packet::bind(socket, index).map_err(failed("attach to"))?;
        let hardware = packet::binding(socket)
            .map_err(failed("attach to"))?
            .hardware;
        if hardware != packet::ETHERNET {
            return Err(NicError::NotEthernet {
                name: name.to_owned(),
            });
        }
        packet::make_promiscuous(socket, index).map_err(failed("see all frames of"))?;
        // The socket is in error when the interface is down, and the first frame sent would get
        // that error.
        let _ = SockRef::from(&file).take_error();
        files.push(file);
    }
    let mut one_because = None;
    if files.len() > 1
        && let Err(error) = packet::share(&files)
    {
        one_because = Some(error);
        files.truncate(1);
    }
    let has_vnet_header = no_vnet_header.is_none();
    let sockets = files.into_iter().map(|file| PacketSocket {
        file,
        index,
        has_vnet_header,
    });
    Ok(Opened {
        index,
        sockets: sockets.collect(),
        no_vnet_header,
        one_because,
    })
}

fn offer_vnet_header(socket: BorrowedFd<'_>) -> io::Result<()> {
    faults::before(Call::OfferVnetHeader, 1)?;
    sys::set_option(socket, SocketOption::PacketVnetHeader, 1)
}
