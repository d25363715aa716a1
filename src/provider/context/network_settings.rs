// SPDX-License-Identifier: MIT OR Apache-2.0
//! The settings of a session: how they take effect, and the state of its interface.

use std::{io, sync::Arc, sync::atomic::Ordering};

use tokio::time::timeout;

use super::{PATIENCE, ProviderContext, lock};
use crate::{
    io::tap::Offloads,
    machine::{
        device::{DeviceInfo, DeviceReport},
        namespace::Namespace,
        routing::RoutingChanges,
    },
    provider::{
        error::ProviderError,
        interface::Interface,
        network::{Kept, Network},
        settings::{Addressing, Applied, EthernetTunnelSettings, SettingsError},
        status::StopReason,
    },
};

impl ProviderContext {
    /// Makes these the complete settings. The first call creates the interface; later calls change
    /// only what differs, so that connections through the tunnel survive. `None` removes everything
    /// except the interface itself, which stays, down, with its reader and writers.
    ///
    /// A later call, or a stop, cancels one that is still at work with [`SettingsError::Canceled`].
    ///
    /// # Errors
    /// [`SettingsError::Invalid`] if nothing was changed, or [`SettingsError::Failed`] or
    /// [`SettingsError::Unroutable`] if every change was undone.
    pub async fn set_network_settings(
        &self,
        settings: Option<EthernetTunnelSettings>,
    ) -> Result<Option<Applied>, SettingsError> {
        if let Some(settings) = &settings {
            settings.validate()?;
            self.check_addressing(settings)?;
        }
        let call = self.inner.settings_calls.fetch_add(1, Ordering::Relaxed) + 1;
        let is_overtaken =
            || self.inner.settings_calls.load(Ordering::Relaxed) != call || self.is_stopping();
        let mut network = self.inner.network.lock().await;
        if is_overtaken() {
            return Err(SettingsError::Canceled);
        }
        let Some(settings) = settings else {
            network.clear().await?;
            self.publish(&network);
            return Ok(None);
        };
        let outcome = network.apply(settings, is_overtaken).await;
        self.publish(&network);
        if let (Some(queues), Some(_)) = (network.take_new_queues(), self.interface()) {
            self.inner.queue.send_replace(queues.first().cloned());
            *lock(&self.inner.queues) = queues;
        }
        outcome.map(Some)
    }

    /// Router advertisements arrive through the provider itself.
    fn check_addressing(&self, settings: &EthernetTunnelSettings) -> Result<(), SettingsError> {
        let is_automatic = settings
            .ipv6
            .as_ref()
            .is_some_and(|ipv6| ipv6.addressing == Addressing::Automatic);
        if is_automatic && self.inner.readers_waiting.load(Ordering::Relaxed) == 0 {
            return Err(SettingsError::Invalid {
                field: "ipv6",
                problem: "automatic addresses come through the tunnel: take the reader and call \
                          recv_batch first"
                    .to_owned(),
            });
        }
        Ok(())
    }

    fn publish(&self, network: &Network) {
        let mtu = network.info().map_or(0, |info| info.mtu);
        self.inner.mtu.store(mtu, Ordering::Relaxed);
        *lock(&self.inner.info) = network.info().cloned();
    }

    /// Returns when there is an interface.
    pub(in crate::provider) async fn until_interface(&self) {
        let mut queue = self.inner.queue.subscribe();
        // The sender lives as long as this handle.
        let _ = queue.wait_for(Option::is_some).await;
    }

    pub(in crate::provider) async fn keep_interface(
        &self,
        came_up: bool,
    ) -> Result<Kept, SettingsError> {
        let mut network = self.inner.network.lock().await;
        let kept = network.keep(came_up).await;
        self.publish(&network);
        kept
    }

    /// Follows the networks that this machine is in, if the policy depends on them.
    pub(in crate::provider) async fn follow_local_networks(&self) {
        let mut network = self.inner.network.lock().await;
        network.follow_local_networks().await;
    }

    /// The interface takes no frames any more. The link watch learns in a moment whether it was
    /// deleted or moved, and ends the session.
    pub(crate) async fn handle_lost_interface(&self) {
        if timeout(PATIENCE, self.cancelled()).await.is_err() {
            self.lose_interface(None).await;
        }
    }

    /// `moved_to`: the number of the network namespace where it is now.
    pub(in crate::provider) async fn lose_interface(&self, moved_to: Option<i32>) {
        let name = self.interface().map_or_else(String::new, |it| it.name);
        let message = match moved_to {
            Some(id) => {
                let to = Namespace::with_id(id).await;
                let back = to.command_to_move(&name, &Namespace::own());
                format!(
                    "the interface `{name}` was moved to {to}, where a wire cannot follow it; move it \
                     back (`{back}`) and start the tunnel again, or start the tunnel there"
                )
            }
            None => {
                format!("another program deleted the interface `{name}`; start the tunnel again")
            }
        };
        self.fail(StopReason::InternalError, Some(ProviderError::new(message)));
    }

    /// The state of the interface in the kernel, or the last known one while its settings are
    /// changed; `None` before the first settings.
    pub(crate) async fn device_report(&self) -> Option<DeviceReport> {
        // Settings are being applied, and a resolver or another service does not answer.
        let Ok(mut network) = timeout(PATIENCE, self.inner.network.lock()).await else {
            return self.device_info().map(DeviceReport::of);
        };
        let report = network.report().await;
        self.publish(&network);
        report
    }

    /// The interface; `None` before the first settings.
    pub fn interface(&self) -> Option<Interface> {
        lock(&self.inner.info).as_ref().map(Interface::of)
    }

    /// Everything that is known about the interface.
    pub fn device_info(&self) -> Option<DeviceInfo> {
        lock(&self.inner.info).clone()
    }

    /// Asks the kernel to leave checksums and segmentation to the holder of the queue, and returns
    /// what it grants. For holders of [`Self::take_queue`] only: a
    /// [`FrameReader`](crate::provider::FrameReader) returns finished frames.
    ///
    /// # Errors
    /// When there is no interface, or it was deleted.
    pub async fn set_offloads(&self, wanted: Offloads) -> io::Result<Offloads> {
        self.inner.network.lock().await.set_offloads(wanted)
    }

    /// Switches the interface's carrier on or off, as its users see it.
    pub async fn set_carrier(&self, on: bool) {
        if self.inner.network.lock().await.set_carrier(on).await {
            *lock(&self.inner.carrier) = on;
        }
    }

    /// Stations behind this interface may have moved: the bridge of the interface, if any, flushes
    /// those that it has learned there.
    pub async fn forget_stations(&self) {
        self.inner.network.lock().await.forget_stations().await;
    }

    /// Whether the carrier is on.
    pub fn carrier(&self) -> bool {
        *lock(&self.inner.carrier)
    }

    /// Returns the index of the interface, if there is one, without keeping the session alive.
    pub(in crate::provider) fn interface_index(
        &self,
    ) -> impl Fn() -> Option<u32> + Send + Sync + use<> {
        let inner = Arc::downgrade(&self.inner);
        move || lock(&inner.upgrade()?.info).as_ref().map(|info| info.index)
    }

    // For the host.

    /// Blocks the machine's traffic until there is a tunnel, if the policy requires it.
    pub(in crate::provider) async fn engage_kill_switch(&self) -> Result<(), SettingsError> {
        self.inner.network.lock().await.engage_kill_switch().await
    }

    pub(in crate::provider) async fn routing_changes(&self) -> RoutingChanges {
        self.inner.network.lock().await.routing_changes()
    }

    /// Restores routes and rules that another program deleted; false if there was nothing to do.
    pub(in crate::provider) async fn restore_routing(&self) -> Result<bool, SettingsError> {
        self.inner.network.lock().await.restore_routing().await
    }
}
