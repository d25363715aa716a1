// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reads links and addresses from the kernel, and changes them.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridgePort, InfoPortData, InfoPortKind,
    LinkAttribute, LinkMessage,
};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

use super::error::{LinkError, io_error, refused};
use super::info::LinkInfo;
use crate::io::sys;
use crate::machine::netlink::Netlink;

/// A connection to the kernel's link and address tables.
#[derive(Clone, Debug)]
pub(crate) struct Links {
    pub(super) netlink: Arc<Netlink>,
}

impl Links {
    /// Connects; must be called on a tokio runtime. The task behind it ends with the last clone.
    ///
    /// # Errors
    /// When no netlink socket can be opened.
    pub(crate) fn connect() -> Result<Self, LinkError> {
        let netlink = Netlink::connect().map_err(LinkError::Connect)?.into();
        Ok(Self { netlink })
    }

    /// The link of this name, or None.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) async fn find(&self, name: &str) -> Result<Option<LinkInfo>, LinkError> {
        let request = self
            .netlink
            .handle()
            .link()
            .get()
            .match_name(name.to_owned());
        self.one(request, || format!("look up `{name}`")).await
    }

    /// The link of this index, or None.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) async fn find_index(&self, index: u32) -> Result<Option<LinkInfo>, LinkError> {
        let request = self.netlink.handle().link().get().match_index(index);
        self.one(request, || format!("look up link {index}")).await
    }

    async fn one(
        &self,
        request: rtnetlink::LinkGetRequest,
        action: impl FnOnce() -> String,
    ) -> Result<Option<LinkInfo>, LinkError> {
        let found = std::pin::pin!(request.execute()).try_next().await;
        match self.netlink.whole(found) {
            Ok(message) => Ok(message.as_ref().map(LinkInfo::parse)),
            Err(error) => match io_error(error) {
                error if error.raw_os_error() == Some(sys::ENODEV) => Ok(None),
                source => Err(LinkError::Refused {
                    action: action(),
                    source,
                }),
            },
        }
    }

    /// The names of all bridges, sorted.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) async fn bridges(&self) -> Result<Vec<String>, LinkError> {
        let links = self.messages().await?;
        let links = links.iter().map(LinkInfo::parse);
        let bridges = links.filter(LinkInfo::is_bridge).map(|link| link.name);
        let mut bridges: Vec<_> = bridges.collect();
        bridges.sort();
        Ok(bridges)
    }

    /// All links.
    pub(super) async fn messages(&self) -> Result<Vec<LinkMessage>, LinkError> {
        let messages = self
            .netlink
            .handle()
            .link()
            .get()
            .execute()
            .try_collect()
            .await;
        let messages = self.netlink.whole(messages);
        messages.map_err(refused(|| "list links".into()))
    }

    /// Changes the MAC address, also while the link is up.
    ///
    /// # Errors
    /// When the link is gone or the address is not one for an interface.
    pub(crate) async fn set_mac(&self, index: u32, mac: [u8; 6]) -> Result<(), LinkError> {
        let message = LinkUnspec::new_with_index(index).address(mac.to_vec());
        self.change(message, || {
            format!("set the MAC address of link {index} to {mac:02x?}")
        })
        .await
    }

    /// Changes the MTU.
    ///
    /// # Errors
    /// When the link is gone or cannot have this MTU.
    pub(crate) async fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), LinkError> {
        let message = LinkUnspec::new_with_index(index).mtu(mtu);
        self.change(message, || format!("set the MTU of link {index} to {mtu}"))
            .await
    }

    /// Brings the link up or down. When it goes down, the kernel deletes its IPv6 addresses and the
    /// routes over it.
    ///
    /// # Errors
    /// When the link is gone.
    pub(crate) async fn set_up(&self, index: u32, up: bool) -> Result<(), LinkError> {
        let message = LinkUnspec::new_with_index(index);
        let message = if up { message.up() } else { message.down() };
        let direction = if up { "up" } else { "down" };
        self.change(message, || format!("bring link {index} {direction}"))
            .await
    }

    /// Sets how IPv6 generates addresses by itself; [`ADDR_GEN_NONE`](super::ADDR_GEN_NONE) for a
    /// port that only forwards.
    ///
    /// # Errors
    /// When the link is gone, or has no IPv6.
    pub(crate) async fn set_addr_gen_mode(&self, index: u32, mode: u8) -> Result<(), LinkError> {
        let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::from(mode));
        let families = vec![AfSpecUnspec::Inet6(vec![mode])];
        let message = LinkUnspec::new_with_index(index)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(families));
        self.change(message, || {
            format!("stop IPv6 from making addresses on link {index}")
        })
        .await
    }

    /// The bridge of this name.
    ///
    /// # Errors
    /// When there is none, or the interface is of another kind; both name the bridges that exist.
    pub(crate) async fn bridge(&self, name: &str) -> Result<LinkInfo, LinkError> {
        let (name, link) = (name.to_owned(), self.find(name).await?);
        match link {
            Some(link) if link.is_bridge() => Ok(link),
            Some(LinkInfo { kind, .. }) => Err(LinkError::NotABridge {
                name,
                kind,
                existing: self.bridges().await?,
            }),
            None => Err(LinkError::NoBridge {
                name,
                existing: self.bridges().await?,
            }),
        }
    }

    /// Puts the link into the bridge or bond with index `controller`, out of any other one; 0 only
    /// takes it out.
    ///
    /// The MTUs need not agree. A bridge without a configured MTU takes the smallest of its ports,
    /// and returns to the earlier one when the link leaves. Otherwise the port that cannot send a
    /// larger frame from the tunnel drops it; other ports are not affected. A bridge without a
    /// configured MAC address takes the numerically lowest of its ports: a MAC address below those
    /// of the other ports would change the bridge's own.
    ///
    /// # Errors
    /// When one of the links is gone, or this one cannot be a port.
    pub(crate) async fn set_controller(
        &self,
        index: u32,
        controller: u32,
    ) -> Result<(), LinkError> {
        let message = LinkUnspec::new_with_index(index).controller(controller);
        self.change(message, || {
            format!("put link {index} into bridge {controller}")
        })
        .await
    }

    /// Makes the bridge of the link flush the addresses that it has learned there.
    ///
    /// # Errors
    /// When the link is gone, or in no bridge.
    pub(crate) async fn forget_learned(&self, index: u32) -> Result<(), LinkError> {
        let message = LinkUnspec::new_with_index(index)
            .set_port_kind(InfoPortKind::Bridge)
            .set_port_data(InfoPortData::BridgePort(vec![InfoBridgePort::Flush]));
        self.change(message, || {
            format!("have the bridge of link {index} forget what it learned there")
        })
        .await
    }

    async fn change(
        &self,
        message: LinkMessageBuilder<LinkUnspec>,
        action: impl FnOnce() -> String,
    ) -> Result<(), LinkError> {
        let request = self.netlink.handle().link().change(message.build());
        let outcome = request.execute().await;
        self.netlink.whole(outcome).map_err(refused(action))
    }

    /// The addresses of a link.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) async fn addresses(&self, index: u32) -> Result<Vec<IpNet>, LinkError> {
        let messages = self.address_messages(index).await?;
        Ok(messages.iter().filter_map(local_address).collect())
    }

    /// The networks that this machine is in by links other than `except`, without those of loopback
    /// and link-local addresses.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) async fn connected_networks(
        &self,
        except: Option<u32>,
    ) -> Result<BTreeSet<IpNet>, LinkError> {
        let messages = self
            .netlink
            .handle()
            .address()
            .get()
            .execute()
            .try_collect()
            .await;
        let messages = self.netlink.whole(messages);
        let messages: Vec<_> = messages.map_err(refused(|| "list addresses".into()))?;
        let others = messages
            .iter()
            .filter(|message| Some(message.header.index) != except);
        let addresses = others.filter_map(local_address);
        let is_network = |net: &IpNet| match net {
            IpNet::V4(net) => !net.addr().is_loopback(),
            IpNet::V6(net) => !net.addr().is_loopback() && !net.addr().is_unicast_link_local(),
        };
        Ok(addresses
            .filter(is_network)
            .map(|net| net.trunc())
            .collect())
    }

    async fn address_messages(&self, index: u32) -> Result<Vec<AddressMessage>, LinkError> {
        let request = self
            .netlink
            .handle()
            .address()
            .get()
            .set_link_index_filter(index);
        let messages = request.execute().try_collect().await;
        let messages = self.netlink.whole(messages);
        messages.map_err(refused(|| format!("list the addresses of link {index}")))
    }

    /// Adds an address with its prefix length. Returns false when the link already has it.
    ///
    /// # Errors
    /// When the link is gone, or the kernel refuses the address.
    pub(crate) async fn add_address(&self, index: u32, address: IpNet) -> Result<bool, LinkError> {
        let mut request =
            self.netlink
                .handle()
                .address()
                .add(index, address.addr(), address.prefix_len());
        if address.max_prefix_len() - address.prefix_len() <= 1 {
            // A network of one or two addresses has no address left for broadcasts.
            let attributes = &mut request.message_mut().attributes;
            attributes.retain(|attribute| !matches!(attribute, AddressAttribute::Broadcast(_)));
        }
        match request.execute().await.map_err(io_error) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(source) => {
                let action = format!("add address {address} to link {index}");
                Err(LinkError::Refused { action, source })
            }
        }
    }

    /// Removes an address. Returns false when the link does not have it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) async fn remove_address(
        &self,
        index: u32,
        address: IpNet,
    ) -> Result<bool, LinkError> {
        let messages = self.address_messages(index).await?;
        let ours = messages
            .into_iter()
            .find(|message| local_address(message) == Some(address));
        let Some(message) = ours else {
            return Ok(false);
        };
        let action = || format!("remove address {address} from link {index}");
        self.netlink
            .handle()
            .address()
            .del(message)
            .execute()
            .await
            .map_err(refused(action))?;
        Ok(true)
    }

    /// Deletes a link; succeeds if it is gone already.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) async fn delete(&self, index: u32) -> Result<(), LinkError> {
        match self
            .netlink
            .handle()
            .link()
            .del(index)
            .execute()
            .await
            .map_err(io_error)
        {
            Err(error) if error.raw_os_error() != Some(sys::ENODEV) => Err(LinkError::Refused {
                action: format!("delete link {index}"),
                source: error,
            }),
            _ => Ok(()),
        }
    }
}

/// The address of the link itself; on a point-to-point link IFA_ADDRESS is that of the other end.
fn local_address(message: &AddressMessage) -> Option<IpNet> {
    let mut found: Option<IpAddr> = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(local) => found = Some(*local),
            AddressAttribute::Address(address) => found = found.or(Some(*address)),
            _ => {}
        }
    }
    IpNet::new(found?, message.header.prefix_len).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::link::ADDR_GEN_NONE;
    use crate::testing::{block_on, in_namespace, ip};

    /// Runs `test` in a namespace of its own.
    fn test<F: Future<Output = ()>>(test: impl FnOnce(Links) -> F + Send) {
        in_namespace(|| block_on(async { test(Links::connect().unwrap()).await }));
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn a_link_is_described_as_it_is() {
        test(|links| async move {
            ip("link add br0 type bridge");
            ip("link add veth0 address 02:00:00:00:00:01 mtu 1400 type veth peer name veth1");
            ip("link set veth0 master br0 up");
            ip("tuntap add tap7 mode tap multi_queue");
            let bridge = links.find("br0").await.unwrap().unwrap();
            assert!(bridge.is_bridge() && !bridge.up);
            let port = links.find("veth0").await.unwrap().unwrap();
            assert_eq!(
                links.find_index(port.index).await.unwrap().as_ref(),
                Some(&port)
            );
            assert_eq!((port.mac, port.mtu), (Some([2, 0, 0, 0, 0, 1]), 1400));
            assert_eq!((port.controller, port.up), (Some(bridge.index), true));
            assert_eq!(
                (port.kind.as_deref(), port.addr_gen_mode),
                (Some("veth"), Some(0))
            );
            let tap = links.find("tap7").await.unwrap().unwrap();
            assert_eq!(
                (tap.kind.as_deref(), tap.tap_queues),
                (Some("tun"), Some(0))
            );
            assert_eq!(links.find("lo").await.unwrap().unwrap().kind, None);
            assert_eq!(links.find("nobody").await.unwrap(), None);
            assert_eq!(links.find_index(4711).await.unwrap(), None);
        });
    }

    #[test]
    fn changes_take_effect_while_the_link_is_up() {
        test(|links| async move {
            ip("link add br0 type bridge");
            ip("tuntap add tap7 mode tap");
            let index = links.find("tap7").await.unwrap().unwrap().index;
            links.set_up(index, true).await.unwrap();
            links.set_mac(index, [2, 1, 2, 3, 4, 5]).await.unwrap();
            links.set_mtu(index, 9000).await.unwrap();
            links.set_addr_gen_mode(index, ADDR_GEN_NONE).await.unwrap();
            let bridge = links.bridge("br0").await.unwrap().index;
            links.set_controller(index, bridge).await.unwrap();
            let link = links.find_index(index).await.unwrap().unwrap();
            assert_eq!(
                (link.up, link.mtu, link.addr_gen_mode),
                (true, 9000, Some(ADDR_GEN_NONE))
            );
            assert_eq!(
                (link.mac, link.controller),
                (Some([2, 1, 2, 3, 4, 5]), Some(bridge))
            );
            links.set_controller(index, 0).await.unwrap();
            links.set_up(index, false).await.unwrap();
            let link = links.find_index(index).await.unwrap().unwrap();
            assert_eq!((link.up, link.controller), (false, None));
            links.delete(index).await.unwrap();
            links.delete(index).await.unwrap();
            let error = links.set_mtu(index, 1500).await.unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("cannot set the MTU of link {index} to 1500")
            );
        });
    }

    #[test]
    fn addresses_come_and_go_once() {
        test(|links| async move {
            ip("tuntap add tap7 mode tap");
            let index = links.find("tap7").await.unwrap().unwrap().index;
            for text in [
                "10.0.0.1/24",
                "10.1.0.0/31",
                "10.2.0.1/32",
                "fd00::1/64",
                "fd01::/127",
            ] {
                assert!(links.add_address(index, net(text)).await.unwrap(), "{text}");
                assert!(
                    !links.add_address(index, net(text)).await.unwrap(),
                    "{text}"
                );
                assert!(
                    links.addresses(index).await.unwrap().contains(&net(text)),
                    "{text}"
                );
            }
            let seen = ip("address show tap7");
            assert!(seen.contains("10.0.0.1/24 brd 10.0.0.255"), "{seen}");
            assert_eq!(seen.matches(" brd 10.").count(), 1, "{seen}");
            assert!(
                links
                    .remove_address(index, net("10.0.0.1/24"))
                    .await
                    .unwrap()
            );
            assert!(
                !links
                    .remove_address(index, net("10.0.0.1/24"))
                    .await
                    .unwrap()
            );
            assert!(
                !links
                    .remove_address(index, net("fd00::1/65"))
                    .await
                    .unwrap()
            );
            assert_eq!(links.addresses(index).await.unwrap().len(), 4);
        });
    }

    #[test]
    fn a_bridge_that_is_not_there_is_an_error_with_the_choices() {
        test(|links| async move {
            let error = links.bridge("br0").await.unwrap_err().to_string();
            assert!(
                error.contains("make it with `ip link add br0 type bridge`"),
                "{error}"
            );
            assert!(error.ends_with("(there is none)"), "{error}");
            ip("link add lan type bridge");
            ip("link add br1 type bridge");
            let error = links.bridge("br0").await.unwrap_err().to_string();
            assert!(error.ends_with("(there are: br1, lan)"), "{error}");
            ip("link add veth0 type veth peer name veth1");
            let error = links.bridge("veth0").await.unwrap_err().to_string();
            assert!(
                error.starts_with("`veth0` is a veth device and not a bridge"),
                "{error}"
            );
        });
    }
}
