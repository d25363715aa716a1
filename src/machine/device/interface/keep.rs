// SPDX-License-Identifier: MIT OR Apache-2.0
//! The device in use: patchcord restores what other programs change, or leaves it to its owner.
//!
//! | Another program changes | Then patchcord |
//! |---|---|
//! | bridge, its VLANs, addresses, IPv6 options, MTU, a MAC address that was asked for | restores it |
//! | the bridge is deleted | waits for another one of its name, without carrier |
//! | MAC address or MTU, while the device is a port of a bond, or of a bridge that was not asked for | leaves it: it belongs to that interface |
//! | the device is set down | leaves it down |
//! | its name, or its network namespace | follows it; elsewhere, it sets only frames, carrier and offloads |
//!
//! The caller limits how often something is restored. This module logs what it leaves, and returns what
//! it restores.

use tracing::{info, warn};

use super::Device;
use crate::machine::device::{
    drift::{Drift, Told, hex},
    error::DeviceError,
    report::{DeviceInfo, DeviceReport},
    request::DeviceRequest,
};
use crate::machine::link::{LinkError, LinkInfo, forward_policies};
use crate::{io::tap::Whereabouts, machine::namespace::Namespace};

impl Device {
    /// Makes the device what `request` says, as far as that is ours to keep, and returns what was
    /// different. A device that another program set down stays down.
    ///
    /// # Errors
    /// [`LinkError::Missing`] when the device was deleted; or when a step fails, and the earlier ones stay
    /// made.
    pub(crate) async fn keep(
        &mut self,
        request: &DeviceRequest,
    ) -> Result<Vec<Drift>, DeviceError> {
        match self.keep_once(request).await {
            // Another program may have renamed or moved it between two of the steps.
            Err(DeviceError::Link(LinkError::Missing { .. })) => self.keep_once(request).await,
            kept => kept,
        }
    }

    async fn keep_once(&mut self, request: &DeviceRequest) -> Result<Vec<Drift>, DeviceError> {
        self.steps.clear();
        // A bridge that existed and went is no mistake of the request.
        let request = &DeviceRequest {
            waits_for_bridge: true,
            ..request.clone()
        };
        let before = self.info.clone();
        let came_back = self.find_again().await?;
        if self.info.moved {
            return Ok(Vec::new());
        }
        if !self.tap.is_nic() {
            self.keep_settings(request, came_back).await?;
        }
        let link = self.link().await?;
        self.refresh(&link).await?;
        self.log_what_stays(&before);
        let forward = self.info.bridge.as_ref().map(|it| forward_policies(it));
        let is_news = (&before.bridge, before.mtu) != (&self.info.bridge, self.info.mtu);
        if is_news || forward != self.told_of.forward {
            self.warn_of_bridge().await;
        }
        Ok(std::mem::take(&mut self.steps))
    }

    async fn keep_settings(
        &mut self,
        request: &DeviceRequest,
        came_back: bool,
    ) -> Result<(), DeviceError> {
        let link = self.link().await?;
        self.join_bridge(request, &link).await?;
        let link = self.link().await?;
        if !self.is_anothers(request, &link).await? {
            self.set_mtu(request, &link).await?;
            if request.mac.is_some() {
                self.set_mac(request, &link).await?;
            }
        }
        // The kernel sets a device down when it moves.
        if came_back {
            self.set_administrative_state(request.up, &link).await?;
        } else if !link.up {
            return Ok(());
        }
        self.set_ipv6(request.ipv6).await?;
        self.add_addresses(&request.addresses).await
    }

    /// Whether an upper interface that was not asked for, such as a bond, has the device.
    async fn is_anothers(
        &self,
        request: &DeviceRequest,
        link: &LinkInfo,
    ) -> Result<bool, LinkError> {
        let Some(controller) = link.controller else {
            return Ok(false);
        };
        let controller = self.links.find_index(controller).await?;
        Ok(controller.is_some_and(|it| Some(&it.name) != request.bridge.as_ref()))
    }

    /// Follows the device to another name or network namespace. True when it came back from another
    /// namespace.
    pub(super) async fn find_again(&mut self) -> Result<bool, DeviceError> {
        let missing = || LinkError::Missing {
            name: self.info.name.clone(),
        };
        match self.tap.whereabouts() {
            None => {
                let link = self.links.find_index(self.info.index).await?;
                link.map(|_| false).ok_or_else(|| missing().into())
            }
            Some(Whereabouts::Gone) => Err(missing().into()),
            Some(Whereabouts::Elsewhere { name, inode }) => {
                self.note_moved(name, inode);
                Ok(false)
            }
            Some(Whereabouts::Here(name)) => self.note_here(name).await,
        }
    }

    fn note_moved(&mut self, name: String, inode: Option<u64>) {
        self.info.name = name;
        self.info.bridge = None;
        if !std::mem::replace(&mut self.info.moved, true) {
            let device = &self.info.name;
            let to = inode.map_or(Namespace::Unknown, Namespace::with_inode);
            let back = to.command_to_move(device, &Namespace::own());
            warn!(
                device,
                %to,
                "the interface was moved to another network namespace: frames still cross, and its \
                 carrier follows the peers; set addresses, MTU, bridge and up there, or move it back \
                 (`{back}`)"
            );
        }
    }

    async fn note_here(&mut self, name: String) -> Result<bool, DeviceError> {
        let came_back = std::mem::take(&mut self.info.moved);
        if !came_back && name == self.info.name {
            return Ok(false);
        }
        if name != self.info.name {
            let (from, to) = (&self.info.name, &name);
            info!(from, to, "another program renamed the interface");
        }
        let link = self.links.find(&name).await?;
        let link = link.ok_or_else(|| LinkError::Missing { name: name.clone() })?;
        if came_back {
            info!(
                device = name,
                "the interface is back in this network namespace"
            );
        }
        self.record.device.clone_from(&name);
        (self.info.name, self.info.index) = (name, link.index);
        self.record.index = link.index;
        self.write_journal()?;
        Ok(came_back)
    }

    /// Makes the link of a NIC follow the carrier, if that was asked for: sets it down while the
    /// carrier is off. A NIC that its owner set down stays down.
    pub(crate) async fn forward_link_loss(&mut self, on: bool) {
        if !self.forwards_link_loss || !self.tap.is_nic() || self.is_down_for_link_loss != on {
            return;
        }
        if let Err(error) = self.set_down_for_link_loss(!on).await {
            let device = &self.info.name;
            warn!(
                device,
                on,
                ?error,
                "cannot forward the loss of the link to the NIC"
            );
        }
    }

    async fn set_down_for_link_loss(&mut self, down: bool) -> Result<(), DeviceError> {
        let link = self.link().await?;
        if down && !link.up {
            return Ok(());
        }
        self.is_down_for_link_loss = down;
        self.set_administrative_state(!down, &link).await?;
        let link = self.link().await?;
        self.refresh(&link).await
    }

    /// Logs what another program changed and patchcord leaves.
    fn log_what_stays(&self, before: &DeviceInfo) {
        let (device, now) = (&self.info.name, &self.info);
        let is_ours = |what: &str| self.steps.iter().any(|step| step.what == what);
        if before.up && !now.up && !self.is_down_for_link_loss {
            warn!(
                device,
                "another program set the interface down; leaving it: no frame crosses until `ip link set \
                 {device} up`"
            );
        }
        if !before.up && now.up {
            info!(device, "the interface is up again");
        }
        if before.bridge != now.bridge && !is_ours("bridge") {
            let from = &before.bridge;
            match &now.bridge {
                // The beginning and the end of the wait were logged.
                Some(_) if before.waits_for == now.bridge => {}
                None if now.waits_for.is_some() => {}
                Some(to) => info!(
                    device,
                    from, to, "the interface is a port of another interface now"
                ),
                None => info!(
                    device,
                    from, "the interface is no longer a port of another interface"
                ),
            }
        }
        if before.mac != now.mac && !is_ours("MAC address") {
            let (from, to) = (hex(before.mac), hex(now.mac));
            info!(
                device,
                from, to, "another program changed the MAC address; leaving it"
            );
        }
        if before.mtu != now.mtu && !is_ours("MTU") {
            let (from, to) = (before.mtu, now.mtu);
            info!(
                device,
                from, to, "another program changed the MTU; leaving it"
            );
        }
    }

    /// The state of the device in the kernel now.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub(crate) async fn report(&mut self) -> Result<DeviceReport, DeviceError> {
        self.find_again().await?;
        if self.info.moved {
            let name = self.info.name.clone();
            return Ok(DeviceReport {
                remedies: vec![LinkError::Elsewhere { name }.to_string()],
                ..DeviceReport::of(self.info.clone())
            });
        }
        let link = self.link().await?;
        self.refresh(&link).await?;
        let port = self.links.port_report(self.info.index).await?;
        let counters = self.links.counters(self.info.index).await?;
        let mut remedies = Vec::new();
        let info = &self.info;
        if let Some(bridge) = &info.waits_for {
            remedies.push(format!(
                "waits for the bridge `{bridge}`, without carrier: make it with `ip link add {bridge} \
                 type bridge`"
            ));
        }
        if self.is_down_for_link_loss {
            let text = "down while the peer cannot be reached (link-loss-forwarding)";
            remedies.push(text.to_owned());
        } else if !info.up {
            remedies.push(format!("down: `ip link set {} up`", info.name));
        }
        if self.has_vlans
            && let Some(port) = port.as_ref().filter(|port| port.vlans.is_none())
        {
            let bridge = &port.bridge;
            remedies.push(format!(
                "`{bridge}` filters no VLANs, so `bridge-vlans` and `bridge-native` have no effect: `ip \
                 link set {bridge} type bridge vlan_filtering 1`"
            ));
        }
        if let Some(port) = &port {
            remedies.extend(port.remedies(&info.name, info.mtu, info.carrier));
        }
        Ok(DeviceReport {
            info: self.info.clone(),
            port,
            counters,
            remedies,
        })
    }

    /// Logs what keeps frames from passing the bridge, when that is new.
    pub(super) async fn warn_of_bridge(&mut self) {
        let Some(bridge) = &self.info.bridge else {
            self.told_of = Told::default();
            return;
        };
        self.told_of.forward = Some(forward_policies(bridge));
        // This asks for all links of the machine, of which there may be thousands.
        let Ok(Some(port)) = self.links.port_report(self.info.index).await else {
            return;
        };
        let (device, mtu, bridge) = (&self.info.name, self.info.mtu, &port.bridge);
        if let Some((other, other_mtu)) = &port.wider
            && port.wider != self.told_of.wider
        {
            warn!(
                device,
                mtu,
                bridge,
                other,
                other_mtu,
                "the interface has a smaller MTU than another port of its bridge: larger frames are \
                 lost there, uncounted; raise `mtu` in [device], at both ends"
            );
        }
        let remedy = port.netfilter_remedy(device);
        if let Some(remedy) = &remedy
            && self.told_of.netfilter.as_ref() != Some(remedy)
        {
            warn!(device, bridge, "{remedy}");
        }
        self.told_of.wider.clone_from(&port.wider);
        self.told_of.netfilter = remedy;
    }
}
