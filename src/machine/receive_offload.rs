// SPDX-License-Identifier: MIT OR Apache-2.0
//! Generic receive offload (GRO) of an interface: whether the kernel merges the packets that arrive
//! there, before it delivers them.

use std::{io, os::fd::BorrowedFd};

use crate::io::sys::ethtool;

/// The name of the interface `index`, if it merges nothing. `socket`: any, in the interface's
/// network namespace.
///
/// # Errors
/// When there is no such interface.
pub(crate) fn off_at(socket: BorrowedFd<'_>, index: u32) -> io::Result<Option<String>> {
    let name = ethtool::interface_name(index)?;
    let is_on = ethtool::has_gro(socket, &name)?;
    Ok((!is_on).then_some(name))
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, os::fd::AsFd, process::Command};

    use nix::net::if_::if_nametoindex;

    use super::*;
    use crate::testing::{in_namespace, ip};

    #[test]
    fn an_interface_is_named_while_it_merges_nothing() {
        in_namespace(|| {
            ip("link add west type veth peer name east");
            let index = if_nametoindex("west").unwrap();
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            for (state, expected) in [("on", None), ("off", Some("west")), ("on", None)] {
                let mut ethtool = Command::new("ethtool");
                let set = ethtool.args(["-K", "west", "gro", state]).output().unwrap();
                assert!(set.status.success(), "{set:?}");
                let found = off_at(socket.as_fd(), index).unwrap();
                assert_eq!(found.as_deref(), expected, "{state}");
            }
            assert!(off_at(socket.as_fd(), 4711).is_err());
        });
    }
}
