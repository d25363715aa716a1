// SPDX-License-Identifier: MIT OR Apache-2.0
//! The VLANs of a bridge's port, as a bridge with `vlan_filtering` has them: read and set.

use std::collections::BTreeMap;
use std::{fmt, io};

use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::link::{
    AfSpecBridge, BridgeVlanInfo, BridgeVlanInfoFlags as Flags, LinkAttribute, LinkExtentMask,
    LinkMessage,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use serde::{Deserialize, Serialize};

use super::error::{LinkError, io_error, refused};
use super::links::Links;
use crate::io::sys;

/// The flags of a port's VLAN that are restored: untagged ingress frames belong to it, and its frames
/// leave untagged.
const KEPT: Flags = Flags::Pvid.union(Flags::Untagged);

/// The VLANs of a port of a bridge, each with its kernel flags.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PortVlans(BTreeMap<u16, u16>);

impl PortVlans {
    /// Frames of `tagged` have their tag at the port, those of `native` have none.
    pub(crate) fn new(tagged: impl IntoIterator<Item = u16>, native: Option<u16>) -> Self {
        let tagged = tagged.into_iter().map(|vid| (vid, 0));
        let native = native.map(|vid| (vid, KEPT.bits()));
        Self(tagged.chain(native).collect())
    }

    /// Those in a message of the bridge family, in which a range has its two ends.
    pub(super) fn of(message: &LinkMessage) -> Self {
        let (mut vlans, mut begin) = (BTreeMap::new(), None);
        let attributes = message.attributes.iter();
        let specs = attributes.filter_map(|attribute| match attribute {
            LinkAttribute::AfSpecBridge(specs) => Some(specs),
            _ => None,
        });
        for spec in specs.flatten() {
            let AfSpecBridge::VlanInfo(info) = spec else {
                continue;
            };
            if info.flags.contains(Flags::RangeBegin) {
                begin = Some(info.vid);
            } else {
                let flags = (info.flags & KEPT).bits();
                let vids = begin.take().unwrap_or(info.vid)..=info.vid;
                vlans.extend(vids.map(|vid| (vid, flags)));
            }
        }
        Self(vlans)
    }

    /// Their numbers.
    pub(crate) fn vids(&self) -> impl Iterator<Item = u16> {
        self.0.keys().copied()
    }

    /// Those that `other` lacks, or has with other flags.
    fn difference(&self, other: &Self) -> Self {
        let differs = |(vid, flags): &(&u16, &u16)| other.0.get(vid) != Some(flags);
        let differing = self.0.iter().filter(differs);
        Self(differing.map(|(&vid, &flags)| (vid, flags)).collect())
    }

    /// A message that names them, to set or to remove them.
    fn message(&self, index: u32) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.interface_family = AddressFamily::Bridge;
        message.header.index = index;
        let specs = self.runs().into_iter().flat_map(|(first, last, flags)| {
            let info = |vid, more: Flags| {
                let flags = Flags::from_bits_retain(flags) | more;
                AfSpecBridge::VlanInfo(BridgeVlanInfo { flags, vid })
            };
            match first == last {
                true => vec![info(first, Flags::empty())],
                false => vec![info(first, Flags::RangeBegin), info(last, Flags::RangeEnd)],
            }
        });
        message.attributes = vec![LinkAttribute::AfSpecBridge(specs.collect())];
        message
    }

    /// First, last and flags. The kernel has no ranges of VLANs with the PVID flag.
    fn runs(&self) -> Vec<(u16, u16, u16)> {
        let mut runs: Vec<(u16, u16, u16)> = Vec::new();
        for (&vid, &flags) in &self.0 {
            match runs.last_mut() {
                Some((_, last, of_run)) if *last + 1 == vid && (*of_run, flags) == (0, 0) => {
                    *last = vid;
                }
                _ => runs.push((vid, vid, flags)),
            }
        }
        runs
    }
}

impl fmt::Display for PortVlans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (nth, (first, last, flags)) in self.runs().into_iter().enumerate() {
            let comma = if nth > 0 { ", " } else { "" };
            write!(f, "{comma}{first}")?;
            if last != first {
                write!(f, "-{last}")?;
            }
            if flags != 0 {
                write!(f, " untagged")?;
            }
        }
        Ok(())
    }
}

impl Links {
    /// The VLANs of all ports of bridges, with their indices.
    pub(super) async fn all_port_vlans(&self) -> Result<Vec<(u32, PortVlans)>, LinkError> {
        let request = self
            .netlink
            .handle()
            .link()
            .get()
            .set_filter_mask(AddressFamily::Bridge, vec![LinkExtentMask::Brvlan]);
        let messages: Vec<_> = request
            .execute()
            .try_collect()
            .await
            .map_err(refused(|| "list the VLANs of bridges".into()))?;
        let vlans = |message: &LinkMessage| (message.header.index, PortVlans::of(message));
        Ok(messages.iter().map(vlans).collect())
    }

    /// The VLANs of a port; empty where the kernel's bridges do not filter VLANs.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) async fn port_vlans(&self, index: u32) -> Result<PortVlans, LinkError> {
        let all = self.all_port_vlans().await?;
        let own = all.into_iter().find(|&(of, _)| of == index);
        Ok(own.map(|(_, vlans)| vlans).unwrap_or_default())
    }

    /// Gives a port these VLANs and no others, and removes those that it has.
    ///
    /// # Errors
    /// [`LinkError::NoVlans`] where the kernel's bridges do not filter VLANs, and when it refuses.
    pub(crate) async fn set_port_vlans(
        &self,
        index: u32,
        now: &PortVlans,
        wanted: &PortVlans,
    ) -> Result<(), LinkError> {
        let refused = |source: io::Error| match source.raw_os_error() {
            Some(sys::EOPNOTSUPP) => LinkError::NoVlans,
            _ => LinkError::Refused {
                action: format!("give link {index} the VLANs {wanted} in its bridge"),
                source,
            },
        };
        let more = wanted.difference(now);
        if !more.0.is_empty() {
            let message = RouteNetlinkMessage::SetLink(more.message(index));
            self.request(message).await.map_err(refused)?;
        }
        let mut less = now.clone();
        less.0.retain(|vid, _| !wanted.0.contains_key(vid));
        if less.0.is_empty() {
            return Ok(());
        }
        let message = RouteNetlinkMessage::DelLink(less.message(index));
        self.request(message).await.map_err(refused)
    }

    async fn request(&self, message: RouteNetlinkMessage) -> io::Result<()> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
        let answers = self.netlink.handle().request(request).map_err(io_error)?;
        let mut answers = std::pin::pin!(answers);
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return Err(error.to_io());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_core::Emitable;

    use super::*;
    use crate::testing::{block_on, in_namespace, ip};

    #[test]
    fn vlans_are_encoded_as_by_iproute2() {
        let vlans = PortVlans::new([10, 11, 12, 20], Some(5));
        assert_eq!(vlans.to_string(), "5 untagged, 10-12, 20");
        let message = vlans.message(7);
        assert_eq!(PortVlans::of(&message), vlans);
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        // struct ifinfomsg: AF_BRIDGE, and the index.
        assert_eq!((bytes[0], &bytes[4..8]), (7, &7_u32.to_ne_bytes()[..]));
        // IFLA_AF_SPEC (26), and in it IFLA_BRIDGE_VLAN_INFO (2), each with flags and number: PVID (2) and
        // untagged (4), begin (8) and end (16) of a range, and none.
        let words = [(6, 5), (8, 10), (16, 12), (0, 20)];
        let mut expected: Vec<u16> = vec![4 + 4 * 8, 26];
        expected.extend(words.iter().flat_map(|&(flags, vid)| [8, 2, flags, vid]));
        let expected: Vec<u8> = expected.into_iter().flat_map(u16::to_ne_bytes).collect();
        let nested = |bytes: &mut [u8]| bytes[19] &= 0x7f;
        nested(&mut bytes);
        assert_eq!(bytes[16..], expected);
    }

    #[test]
    fn only_differences_are_changed() {
        let now = PortVlans::new([10, 11], Some(1));
        let wanted = PortVlans::new([1, 11, 12], Some(10));
        assert_eq!(wanted.difference(&now), PortVlans::new([1, 12], Some(10)));
        assert_eq!(now.difference(&now), PortVlans::default());
        assert_eq!(PortVlans::default().to_string(), "none");
    }

    /// Either the kernel has VLAN filtering, and then the port has these VLANs, or the error says
    /// that it has none.
    #[test]
    fn a_port_has_the_vlans_that_it_is_given() {
        in_namespace(|| {
            ip("link add br0 type bridge");
            ip("link add veth0 type veth peer name veth1");
            ip("link set veth0 master br0 up");
            block_on(async {
                let links = Links::connect().unwrap();
                let index = links.find("veth0").await.unwrap().unwrap().index;
                let mut now = links.port_vlans(index).await.unwrap();
                for wanted in [
                    PortVlans::new([10, 11, 12, 20], Some(5)),
                    PortVlans::new([5, 12], None),
                ] {
                    match links.set_port_vlans(index, &now, &wanted).await {
                        Ok(()) => {
                            now = links.port_vlans(index).await.unwrap();
                            assert_eq!(now, wanted);
                        }
                        Err(error) => {
                            assert!(matches!(error, LinkError::NoVlans), "{error:?}");
                            let text = error.to_string();
                            assert!(text.contains("CONFIG_BRIDGE_VLAN_FILTERING"), "{text}");
                            assert_eq!(now, PortVlans::default(), "there are none");
                        }
                    }
                }
            });
        });
    }
}
