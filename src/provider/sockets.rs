// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a provider needs besides settings and frames: the machine's own path, sockets on either side of
//! the tunnel, the groups that the interface listens to.

use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    os::fd::AsFd,
    sync::{Mutex, PoisonError},
};

use patchcord_bridge::MacAddr;
use tokio::{
    net::{TcpStream, UdpSocket},
    sync::watch,
};
use tracing::warn;

use super::context::ProviderContext;
use crate::machine::{path::Path, sockets::SocketError};
use crate::{
    io::mark::Mark,
    machine::{
        groups, path,
        sockets::{self, Side},
    },
};

/// How frames are chosen for the tunnel; numbers as in `NETunnelProviderRoutingMethod`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[repr(u8)]
pub enum RoutingMethod {
    /// By the routes of the machine.
    DestinationIp = 1,
}

/// A rule that sends the traffic of a program into the tunnel. There are none on Linux, see
/// [`ProviderContext::app_rules`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppRule {}

impl ProviderContext {
    /// The machine's best path for sockets outside of the tunnel (`defaultPath`), never the tunnel
    /// itself. Its first value is [`PathStatus::Invalid`](super::PathStatus::Invalid) until the
    /// kernel has answered, which takes a moment; it stays so, with a warning in the log, where no
    /// netlink socket can be opened. Must be called on a tokio runtime, in the network namespace of
    /// the session.
    pub fn default_path(&self) -> watch::Receiver<Path> {
        let index = self.interface_index();
        let is_own = move |link| index() == Some(link);
        once(&self.watches().path, || {
            let (path, following) = path::watch(Mark::BYPASS, is_own)?;
            self.follow(following);
            Ok(path)
        })
    }

    /// The multicast groups that the interface listens to, within a second; none before the first
    /// settings. For providers that send frames for a group only to members. Must be called like
    /// [`Self::default_path`].
    ///
    /// They are those that sockets of this machine have joined on the interface itself. They do not
    /// include groups of hosts behind a bridge (the bridge knows those of IP if it snoops, `bridge
    /// mdb`), of sockets on a bridge that the interface is a port of, or of programs that listen to
    /// everything. A provider whose interface is in a bridge must forward all groups.
    pub fn multicast_groups(&self) -> watch::Receiver<BTreeSet<MacAddr>> {
        let index = self.interface_index();
        once(&self.watches().groups, || {
            let (mut groups, following) = groups::watch(index)?;
            let (sender, receiver) = watch::channel(BTreeSet::new());
            self.follow(following);
            self.follow(async move {
                loop {
                    let now = groups
                        .borrow_and_update()
                        .iter()
                        .copied()
                        .map(MacAddr)
                        .collect();
                    sender.send_replace(now);
                    tokio::select! {
                        change = groups.changed() => if change.is_err() { return },
                        () = sender.closed() => return,
                    }
                }
            });
            Ok(receiver)
        })
    }

    /// Runs this until the session is to end.
    fn follow(&self, following: impl Future<Output = ()> + Send + 'static) {
        let mut stopping = self.stopping();
        self.spawn(async move {
            tokio::select! {
                () = following => {}
                _ = stopping.wait_for(Option::is_some) => {}
            }
        });
    }

    /// A connection through the tunnel, whatever the routes say
    /// (`createTCPConnectionThroughTunnel`). A host that is not on the interface's own network needs
    /// a route over the interface.
    ///
    /// # Errors
    /// [`SocketError::NoInterface`] before the first settings; when `remote` does not answer.
    pub async fn tcp_through_tunnel(&self, remote: SocketAddr) -> Result<TcpStream, SocketError> {
        self.through()?.tcp(remote).await
    }

    /// A socket for datagrams to and from `remote` through the tunnel, whatever the routes say
    /// (`createUDPSessionThroughTunnel`). `remote` may be a group or the broadcast address: only
    /// this interface sends the frame, and it needs no address for it.
    ///
    /// # Errors
    /// [`SocketError::NoInterface`] before the first settings; when `local` is not an address of
    /// this machine.
    pub async fn udp_through_tunnel(
        &self,
        remote: SocketAddr,
        local: Option<SocketAddr>,
    ) -> Result<UdpSocket, SocketError> {
        self.through()?.udp(remote, local).await
    }

    fn through(&self) -> Result<Side, SocketError> {
        let interface = self.interface().ok_or(SocketError::NoInterface)?;
        Ok(Side::Through(interface.index))
    }

    /// A connection outside of the tunnel, also of a full one (`createTCPConnection`).
    ///
    /// # Errors
    /// [`SocketError::NotPermitted`] without CAP_NET_ADMIN; when `remote` does not answer.
    pub async fn tcp_outside(&self, remote: SocketAddr) -> Result<TcpStream, SocketError> {
        Side::Outside(Mark::BYPASS).tcp(remote).await
    }

    /// A socket for datagrams to and from `remote` outside of the tunnel, also of a full one
    /// (`createUDPSession`).
    ///
    /// # Errors
    /// [`SocketError::NotPermitted`] without CAP_NET_ADMIN; when there is no route to `remote`.
    pub async fn udp_outside(
        &self,
        remote: SocketAddr,
        local: Option<SocketAddr>,
    ) -> Result<UdpSocket, SocketError> {
        Side::Outside(Mark::BYPASS).udp(remote, local).await
    }

    /// Puts a provider's own socket outside of the tunnel, before it is connected: without this, a
    /// full tunnel would carry itself. Sets [`Mark::BYPASS`] and no other bit of the socket's mark.
    ///
    /// # Errors
    /// [`SocketError::NotPermitted`] without CAP_NET_ADMIN.
    pub fn protect(&self, socket: &impl AsFd) -> Result<(), SocketError> {
        sockets::protect(socket, Mark::BYPASS)
    }

    /// How frames are chosen for the tunnel (`routingMethod`).
    pub const fn routing_method(&self) -> RoutingMethod {
        RoutingMethod::DestinationIp
    }

    /// The rules of a per-app tunnel (`appRules`): always `None`, which is Apple's value for other
    /// tunnels. On Linux, routes cannot tell the program of a socket; to send only some programs
    /// through the tunnel, put them into a network namespace or a control group.
    pub const fn app_rules(&self) -> Option<&[AppRule]> {
        None
    }
}

/// The value of the first `start` that succeeded; before that, the default.
fn once<T: Default>(
    place: &Mutex<Option<watch::Receiver<T>>>,
    start: impl FnOnce() -> io::Result<watch::Receiver<T>>,
) -> watch::Receiver<T> {
    let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
    match place.take().map_or_else(start, Ok) {
        Ok(receiver) => place.insert(receiver).clone(),
        Err(error) => {
            warn!(%error, "no netlink socket: the machine's default route and multicast groups are unknown to the tunnel");
            watch::channel(T::default()).1
        }
    }
}
