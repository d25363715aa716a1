// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which TAP or NIC to open.

/// The kernel interface that a TAP uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// [`Vnet`](Self::Vnet), or [`Plain`](Self::Plain) where the kernel does not support it.
    #[default]
    Auto,
    /// Multi-queue, with a [`VnetHeader`](super::VnetHeader) on every frame.
    Vnet,
    /// One queue of bare frames, through the `tun-tap` crate.
    Plain,
    /// No TAP: the frames that a network card, or another existing Ethernet interface, has on its
    /// wire. This program does not set its carrier, MTU and addresses, and the kernel decides which
    /// frames it leaves unfinished ([`VnetHeader::is_finished`](super::VnetHeader::is_finished)).
    Packet,
}

/// What to open.
#[derive(Clone, Debug)]
pub(crate) struct TapOptions {
    /// The name of the interface.
    pub name: String,
    /// The kernel interface.
    pub backend: Backend,
    /// One queue more, the last one, for flows that send little.
    pub express: bool,
}
