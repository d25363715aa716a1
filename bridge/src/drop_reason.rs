// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why the switch does not pass a frame on.

/// Makes the enum, with the name under which each reason is counted.
macro_rules! reasons {
    ($(#[$about:meta])* $name:ident, $($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$doc])* $variant,)* }

        impl $name {
            /// Every reason, in the order of their discriminants.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name in logs and metrics; it never changes.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

reasons! {
    /// Why the switch does not pass a frame on. Each doc says who is at fault.
    DropReason,
    /// Sender: the frame ends before its Ethernet header or its outermost tag does.
    Runt = "runt",
    /// Sender: the source is a group or null address, which no station has.
    BadSource = "bad-source",
    /// No fault: the destination is behind the ingress port, whose segment has seen the frame
    /// already.
    SamePort = "same-port",
    /// No fault: split horizon; the destination is behind another peer, which the sender reaches
    /// directly. If the sender cannot, this node's configuration is at fault: it should be a hub.
    /// Or no port has this number.
    NoPort = "no-port",
    /// A loop, or a bridge behind a port that should have none: the port is blocked.
    PortBlocked = "port-blocked",
    /// Sender, or configuration: an untagged frame on a trunk without a native VLAN.
    UntaggedRefused = "untagged-refused",
    /// Sender, or configuration: a tagged frame on an access port.
    TaggedRefused = "tagged-refused",
    /// Sender, or configuration: the port is not in the VLAN.
    VlanRefused = "vlan-refused",
    /// Policy: a BPDU on a port that drops them.
    BpduRefused = "bpdu-refused",
    /// Sender: a bridge behind a port where none is expected; the port is blocked for a while.
    BpduGuard = "bpdu-guard",
    /// Sender: a DHCP server where none is allowed.
    DhcpServerRefused = "dhcp-server-refused",
    /// Sender: a router that advertises itself where none is allowed.
    RouterAdvertisementRefused = "router-advertisement-refused",
    /// Sender: a fragment that hides its upper layer from the guards.
    UpperLayerHidden = "upper-layer-hidden",
    /// Sender: the source is known behind another port, and this port guards against spoofing.
    SourceSpoofed = "source-spoofed",
    /// Sender, or configuration: the port does not allow this source.
    SourceNotAllowed = "source-not-allowed",
    /// Local limit: more broadcasts than the port may send.
    BroadcastLimited = "broadcast-limited",
    /// Local limit: more multicasts than the port may send.
    MulticastLimited = "multicast-limited",
    /// Local limit: more frames to unknown stations than the port may send.
    UnknownLimited = "unknown-limited",
    /// Local limit: more loop probes than there can be nodes.
    ProbeLimited = "probe-limited",
}
