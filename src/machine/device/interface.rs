// SPDX-License-Identifier: MIT OR Apache-2.0
//! The device itself: created, changed, and undone. `ipv6` controls what IPv6 does by itself, `keep`
//! restores what other programs change.

mod ipv6;
mod keep;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use ipnet::IpNet;
use tracing::{debug, info, warn};

use crate::io::namespace_inode;
use crate::io::tap::{Backend, NicError, Offloads, Tap, TapError, TapOptions, TapQueue};

use super::drift::{Drift, Told, hex};
use super::error::{DeviceError, journal_error};
use super::report::DeviceInfo;
use super::request::{DeviceRequest, Ipv6Mode};
use crate::machine::journal::{Change, Journal, Record};
use crate::machine::link::{LinkError, LinkInfo, Links};
use crate::machine::lock::DeviceLock;

/// A TAP or a NIC in use, with everything around it. Dropping it without [`remove`](Self::remove) leaves an
/// adopted device changed, until the next [`create`](Self::create) of the same tunnel.
#[derive(Debug)]
pub(crate) struct Device {
    // Fields are dropped in this order: the locks last, when nothing of ours is left to protect.
    tap: Tap,
    info: DeviceInfo,
    links: Links,
    journal: Journal,
    record: Record,
    /// The administrative state that was last asked for.
    wanted_up: Option<bool>,
    /// Whether the tunnel can be used, so that the carrier should be on.
    wanted_carrier: AtomicBool,
    /// Whether a NIC is set down while the carrier is off, and whether it is so now.
    forwards_link_loss: bool,
    is_down_for_link_loss: bool,
    /// The changes of the latest steps.
    steps: Vec<Drift>,
    /// The last warnings about its bridge: a wider port, and what netfilter does.
    told_of: Told,
    /// Whether the configuration gives it VLANs in its bridge.
    has_vlans: bool,
    _device_lock: DeviceLock,
}

impl Device {
    /// Makes the device as `request` says, with the carrier off. Keeps its lock and the journal of
    /// `tunnel` in `run_dir`; the caller holds the tunnel's own lock. Must be called on a tokio
    /// runtime, in the network namespace where the device belongs.
    ///
    /// # Errors
    /// When any step fails; the earlier ones are undone.
    pub(crate) async fn create(
        request: DeviceRequest,
        run_dir: &Path,
        tunnel: &str,
    ) -> Result<(Self, Vec<TapQueue>), DeviceError> {
        let links = Links::connect()?;
        let journal = Journal::new(run_dir, tunnel);
        clear_leftovers(&journal, &links, run_dir).await?;
        let device_lock = DeviceLock::acquire(run_dir, &request.name)?;
        let before = links.find(&request.name).await?;
        // Any process may attach to a multi-queue TAP, and the kernel would give it a share of our
        // frames.
        if before
            .as_ref()
            .and_then(|link| link.tap_queues)
            .is_some_and(|open| open > 0)
        {
            return Err(TapError::Busy { name: request.name }.into());
        }
        if request.backend == Backend::Packet {
            check_is_no_port(before.as_ref(), &links).await?;
        }
        let options = TapOptions {
            name: request.name.clone(),
            backend: request.backend,
            express: request.express,
        };
        let (tap, queues) = Tap::open(&options, request.queues)?;
        check_frames_are_bare(&tap, &links).await?;
        let namespace = namespace_inode().map_err(journal_error(&journal))?;
        let mut device = Self {
            info: DeviceInfo {
                name: tap.name().to_owned(),
                index: tap.index(),
                mac: request.default_mac,
                mtu: request.mtu,
                bridge: None,
                backend: tap.backend(),
                adopted: tap.adopted(),
                up: false,
                carrier: false,
                waits_for: None,
                moved: false,
            },
            record: Record::new(namespace, tap.name(), tap.index()),
            tap,
            links,
            journal,
            wanted_up: None,
            wanted_carrier: AtomicBool::new(false),
            forwards_link_loss: request.link_loss_forwarding,
            is_down_for_link_loss: false,
            steps: Vec::new(),
            told_of: Told::default(),
            has_vlans: false,
            _device_lock: device_lock,
        };
        if let Err(error) = device.set_up(&request).await {
            drop(queues);
            device.remove().await;
            return Err(error);
        }
        device.log();
        device.warn_of_bridge().await;
        Ok((device, queues))
    }

    /// Undoes what an interrupted creation of a device left.
    ///
    /// # Errors
    /// When the kernel or the journal cannot be read.
    pub(crate) async fn undo_leftovers(run_dir: &Path, tunnel: &str) -> Result<(), DeviceError> {
        let journal = Journal::new(run_dir, tunnel);
        if !journal.path().exists() {
            return Ok(());
        }
        clear_leftovers(&journal, &Links::connect()?, run_dir).await
    }

    /// The attributes of the device.
    pub(crate) fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// The TAP or the NIC, for its offloads.
    pub(crate) fn tap(&self) -> &Tap {
        &self.tap
    }

    /// Switches the carrier on or off; it stays off while the device waits for its bridge.
    pub(crate) fn set_carrier(&self, on: bool) {
        self.wanted_carrier.store(on, Ordering::Relaxed);
        let on = on && self.info.waits_for.is_none();
        if let Err(error) = self.tap.set_carrier(on) {
            // Only a deleted device refuses; its queues report that to their readers.
            debug!(device = self.info.name, on, %error, "cannot switch the carrier");
        }
    }

    /// Stations behind the device may have moved: flushes what the bridge of the device, if any,
    /// has learned about them.
    pub(crate) async fn forget_stations(&self) {
        let index = self.info.index;
        let outcome = match self.links.find_index(index).await {
            Ok(Some(link)) if link.controller.is_some() => self.links.forget_learned(index).await,
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            // The bridge forgets them anyway, after they have been silent for long enough.
            debug!(device = self.info.name, %error, "cannot flush the bridge's learned addresses");
        }
    }

    /// Makes the device as `request` says, from any state, and changes only what differs. Name,
    /// back-end and queues stay as they were created.
    ///
    /// # Errors
    /// When a step fails; the earlier ones stay made.
    pub(crate) async fn change(&mut self, request: &DeviceRequest) -> Result<(), DeviceError> {
        self.find_again().await?;
        self.remove_addresses_except(&request.addresses).await?;
        self.set_up(request).await
    }

    /// Undoes [`create`](Self::create). Other programs may have deleted the device meanwhile, and
    /// may still have its queues open.
    pub(crate) async fn remove(self) {
        self.set_carrier(false);
        if self.info.adopted {
            self.tap.stop_steering();
            if let Err(error) = self.tap.set_offloads(Offloads::NONE) {
                debug!(device = self.info.name, %error, "cannot turn the offloads off");
            }
            self.restore_adopted().await;
        } else if self.info.moved {
            debug!(
                device = self.info.name,
                "the kernel deletes the device with its last queue"
            );
        } else if let Err(error) = self.delete().await {
            let name = &self.info.name;
            warn!(device = name, %error, "cannot delete the device: it stays until its last queue is closed");
        }
        if let Err(error) = self.journal.clear() {
            warn!(path = %self.journal.path().display(), %error, "cannot delete the journal: the next start undoes it again");
        }
        debug!(device = self.info.name, "device removed");
    }

    async fn restore_adopted(&self) {
        if self.info.moved {
            warn!(
                device = self.info.name,
                "leaving the device as it is: it is in another network namespace; undo there what patchcord \
                 set"
            );
        }
        self.record.undo(&self.links).await;
    }

    /// Deletes the device, unless another one has its index now.
    async fn delete(&self) -> Result<(), LinkError> {
        match self.links.find_index(self.info.index).await? {
            Some(link) if link.name == self.info.name => self.links.delete(link.index).await,
            _ => Ok(()),
        }
    }

    /// The steps after the TAP is open. Each is written to the journal before it is made.
    async fn set_up(&mut self, request: &DeviceRequest) -> Result<(), DeviceError> {
        let link = self.link().await?;
        if self.tap.is_nic() {
            self.forwards_link_loss = request.link_loss_forwarding;
            // If the owner sets it down later, it stays down until a request asks for another
            // state.
            if self.wanted_up.replace(request.up) == Some(request.up) {
                return self.refresh(&link).await;
            }
            // An unused device must get no address by being set up; a device in use keeps its
            // addresses.
            if !link.up && self.record.up.is_none() {
                self.set_ipv6(Ipv6Mode::Silent).await?;
            }
        } else {
            self.set_mac(request, &link).await?;
            self.set_mtu(request, &link).await?;
            self.set_ipv6(request.ipv6).await?;
            self.join_bridge(request, &link).await?;
            self.add_addresses(&request.addresses).await?;
        }
        self.set_administrative_state(request.up, &link).await?;
        let link = self.link().await?;
        self.refresh(&link).await
    }

    /// Stores the state of the device.
    async fn refresh(&mut self, link: &LinkInfo) -> Result<(), DeviceError> {
        self.info.mac = link.mac.unwrap_or(self.info.mac);
        self.info.mtu = link.mtu;
        self.info.up = link.up;
        self.info.carrier = link.carrier;
        self.info.bridge = match link.controller {
            Some(index) => self.links.find_index(index).await?,
            None => None,
        }
        .map(|bridge| bridge.name);
        Ok(())
    }

    async fn set_mac(
        &mut self,
        request: &DeviceRequest,
        link: &LinkInfo,
    ) -> Result<(), DeviceError> {
        let default = (!self.info.adopted).then_some(request.default_mac);
        let wanted = request.mac.or(default);
        let change = wanted.and_then(|mac| Change::needed(link.mac.unwrap_or_default(), mac));
        let Some(change) = change else { return Ok(()) };
        self.step("MAC address", hex(change.from), hex(change.to));
        self.record.mac = Some(change.after(self.record.mac));
        self.write_journal()?;
        Ok(self.links.set_mac(link.index, change.to).await?)
    }

    async fn set_mtu(
        &mut self,
        request: &DeviceRequest,
        link: &LinkInfo,
    ) -> Result<(), DeviceError> {
        let Some(change) = Change::needed(link.mtu, request.mtu) else {
            return Ok(());
        };
        self.step("MTU", change.from, change.to);
        self.note_ipv6_before(change).await?;
        self.record.mtu = Some(change.after(self.record.mtu));
        self.write_journal()?;
        Ok(self.links.set_mtu(link.index, change.to).await?)
    }

    async fn join_bridge(
        &mut self,
        request: &DeviceRequest,
        link: &LinkInfo,
    ) -> Result<(), DeviceError> {
        let now = link.controller.unwrap_or(0);
        let wanted = match (&request.bridge, self.record.controller) {
            (Some(name), _) => match self.links.bridge(name).await {
                Err(error @ LinkError::NoBridge { .. }) if request.waits_for_bridge => {
                    self.wait_for_bridge(name, &error);
                    return Ok(());
                }
                bridge => bridge?.index,
            },
            // The bridge that an earlier request joined.
            (None, Some(joined)) if joined.to == now => joined.from,
            (None, _) => now,
        };
        if let Some(change) = Change::needed(now, wanted) {
            let found = self.name_of(change.from).await?;
            let bridge = self.name_of(change.to).await?;
            self.record.controller = Some(change.after(self.record.controller));
            self.write_journal()?;
            self.links.set_controller(link.index, change.to).await?;
            // A bridge that appears later is no change by another program.
            if self.info.waits_for.is_none() {
                self.step("bridge", found, bridge);
            }
        }
        self.wait_no_more();
        self.set_vlans(request, link.index).await
    }

    async fn set_vlans(&mut self, request: &DeviceRequest, index: u32) -> Result<(), DeviceError> {
        let wanted = request.bridge_vlans.as_ref();
        let wanted = wanted.filter(|_| request.bridge.is_some());
        self.has_vlans = wanted.is_some();
        let Some(wanted) = wanted else { return Ok(()) };
        let now = self.links.port_vlans(index).await?;
        let Some(change) = Change::needed(now.clone(), wanted.clone()) else {
            return Ok(());
        };
        // The bridge forgets them when the device leaves it.
        if self.record.controller.is_none() {
            self.record.vlans = Some(change.after(self.record.vlans.take()));
            self.write_journal()?;
        }
        self.links.set_port_vlans(index, &now, wanted).await?;
        self.step("VLANs", now, wanted);
        Ok(())
    }

    /// The name of a bridge, or that there is none.
    async fn name_of(&self, controller: u32) -> Result<String, LinkError> {
        let link = match controller {
            0 => None,
            index => self.links.find_index(index).await?,
        };
        Ok(link.map_or_else(|| "none".to_owned(), |link| link.name))
    }

    /// The bridge does not exist: the carrier goes off, so that no frame is sent nowhere.
    fn wait_for_bridge(&mut self, bridge: &str, error: &LinkError) {
        let device = &self.info.name;
        if self.info.waits_for.as_deref() != Some(bridge) {
            warn!(device, bridge, %error, "the interface waits for its bridge, without carrier");
        }
        self.info.waits_for = Some(bridge.to_owned());
        self.set_carrier(self.wanted_carrier.load(Ordering::Relaxed));
    }

    fn wait_no_more(&mut self) {
        let device = &self.info.name;
        if let Some(bridge) = self.info.waits_for.take() {
            info!(
                device,
                bridge, "the bridge exists, and the interface is its port"
            );
            self.set_carrier(self.wanted_carrier.load(Ordering::Relaxed));
        }
    }

    async fn add_addresses(&mut self, wanted: &[IpNet]) -> Result<(), DeviceError> {
        let present = self.links.addresses(self.info.index).await?;
        // An address that is there already belongs to another program, and stays when patchcord
        // ends.
        for &address in wanted.iter().filter(|address| !present.contains(address)) {
            // Ours may have gone when another program set the link down.
            if !self.record.addresses.contains(&address) {
                self.record.addresses.push(address);
            }
            self.write_journal()?;
            self.links.add_address(self.info.index, address).await?;
            self.step("address", "none", address);
        }
        Ok(())
    }

    /// Removes those of our addresses that are not wanted any more.
    async fn remove_addresses_except(&mut self, wanted: &[IpNet]) -> Result<(), DeviceError> {
        let ours = self.record.addresses.clone();
        for address in ours.into_iter().filter(|address| !wanted.contains(address)) {
            self.links.remove_address(self.info.index, address).await?;
            self.record.addresses.retain(|&kept| kept != address);
            self.write_journal()?;
        }
        Ok(())
    }

    async fn set_administrative_state(
        &mut self,
        up: bool,
        link: &LinkInfo,
    ) -> Result<(), DeviceError> {
        let Some(change) = Change::needed(link.up, up) else {
            return Ok(());
        };
        if !change.to || self.record.up.is_none() {
            // The kernel drops them now, or when the device goes down again after patchcord ends.
            self.lose_ipv6_addresses().await?;
        }
        self.record.up = Some(change.after(self.record.up));
        self.write_journal()?;
        Ok(self.links.set_up(link.index, up).await?)
    }

    async fn link(&self) -> Result<LinkInfo, LinkError> {
        let name = || self.info.name.clone();
        if self.info.moved {
            return Err(LinkError::Elsewhere { name: name() });
        }
        let link = self.links.find_index(self.info.index).await?;
        link.ok_or_else(|| LinkError::Missing { name: name() })
    }

    /// Records a change.
    fn step(&mut self, what: &str, found: impl ToString, wanted: impl ToString) {
        self.steps.push(Drift {
            what: what.to_owned(),
            found: found.to_string(),
            wanted: wanted.to_string(),
        });
    }

    /// Writes the journal; a device that patchcord created needs none.
    fn write_journal(&self) -> Result<(), DeviceError> {
        if !self.info.adopted {
            return Ok(());
        }
        self.journal
            .write(&self.record)
            .map_err(journal_error(&self.journal))
    }

    fn log(&self) {
        let DeviceInfo {
            name,
            index,
            mtu,
            bridge,
            backend,
            adopted,
            ..
        } = &self.info;
        info!(
            device = name,
            index, mtu, bridge, backend, adopted, "device is ready"
        );
        if let Some(reason) = self.tap.fallback() {
            warn!(device = name, reason, "using the slower plain back-end");
        }
        if let Some(reason) = self.tap.one_queue_because() {
            warn!(
                device = name,
                reason,
                "using one queue and one lane: the kernel rejected the eBPF steering program (needs root, or CAP_BPF with CAP_NET_ADMIN)"
            );
        }
        if let Some(reason) = self.tap.no_express_because() {
            info!(
                device = name,
                reason,
                "flows that send little share the queues of those that send much: the kernel rejected the eBPF program for an express queue (needs Linux 5.5, and root or CAP_BPF with CAP_NET_ADMIN)"
            );
        }
    }
}

/// Another process that has a TAP open decides whether its frames begin with packet information.
/// TUNGETIFF does not report this: in its answer the bit of IFF_NO_PI says that the queue has no
/// filter.
async fn check_frames_are_bare(tap: &Tap, links: &Links) -> Result<(), DeviceError> {
    match links.find_index(tap.index()).await? {
        Some(link) if link.tap_packet_information => {
            let name = tap.name().to_owned();
            Err(TapError::PacketInformation { name }.into())
        }
        _ => Ok(()),
    }
}

/// If a bridge or a bond takes the frames of the NIC, each frame would go to two receivers.
async fn check_is_no_port(nic: Option<&LinkInfo>, links: &Links) -> Result<(), DeviceError> {
    let Some((nic, controller)) = nic.and_then(|nic| Some((nic, nic.controller?))) else {
        return Ok(());
    };
    let controller = links.find_index(controller).await?;
    let error = NicError::IsPort {
        name: nic.name.clone(),
        controller: controller.map_or_else(|| "another interface".to_owned(), |it| it.name),
    };
    Err(TapError::Nic(error).into())
}

/// Undoes what a killed process left, if the device is still the same one, in this namespace.
async fn clear_leftovers(
    journal: &Journal,
    links: &Links,
    run_dir: &Path,
) -> Result<(), DeviceError> {
    let Some(record) = journal.read().map_err(journal_error(journal))? else {
        return Ok(());
    };
    let here = namespace_inode().map_err(journal_error(journal))?;
    let device = &record.device;
    if record.namespace != here {
        warn!(
            device,
            "leaving leftovers of an earlier run: they are in another network namespace"
        );
    } else if let Ok(_lock) = DeviceLock::acquire(run_dir, device) {
        info!(device, "undoing what an earlier run left behind");
        record.undo(links).await;
    } else {
        warn!(
            device,
            "leaving leftovers of an earlier run: another tunnel uses the device now"
        );
    }
    journal.clear().map_err(journal_error(journal))
}

#[cfg(test)]
mod tests;
