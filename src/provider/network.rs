// SPDX-License-Identifier: MIT OR Apache-2.0
//! Brings the machine to the state that settings describe, and back.
//!
//! Each part (device, routes, names, proxy) compares the present state with the wanted one and changes
//! only the difference. So equal settings change nothing, settings after changes of another program
//! restore what was lost, and a rollback after a failure is the same with the earlier settings.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use ipnet::IpNet;
use tokio::sync::watch;
use tracing::{debug, warn};

use super::{
    configuration::{RoutingPolicy, TunnelConfiguration},
    dns_proxy,
    interface::Interface,
    routes::{needs_local_networks, routing_state},
    settings::{
        Applied, BridgeVlans, DnsOutcome, EthernetTunnelSettings, ProxyOutcome, SettingsError,
    },
};
use crate::{
    io::tap::{Offloads, TapQueue},
    machine::{
        device::{Device, DeviceError, DeviceInfo, DeviceReport, DeviceRequest, Drift, Ipv6Mode},
        dns::{Names, ResolverPaths},
        link::{LinkError, Links, PortVlans},
        proxy::Proxy,
        routing::{Routing, RoutingChanges},
    },
};

/// The state that one session has set up.
pub(super) struct Network {
    run_dir: PathBuf,
    tunnel: String,
    device: Option<Device>,
    new_queues: Option<Queues>,
    surroundings: Surroundings,
    /// The settings in force; `None` before the first settings and after they were cleared.
    settings: Option<EthernetTunnelSettings>,
}

/// What settings change besides the device itself.
struct Surroundings {
    configuration: watch::Receiver<Arc<TunnelConfiguration>>,
    routing: Routing,
    names: Names,
    proxy: Proxy,
}

/// The queues that the first settings of a session open.
pub(super) type Queues = Vec<Arc<TapQueue>>;

/// The state of the interface after a check.
pub(super) enum Kept {
    /// It is as wanted; these things were not.
    Well(Vec<Drift>),
    /// Another program deleted it, or moved it where patchcord cannot follow.
    Lost,
}

impl Network {
    pub(super) fn new(
        run_dir: &Path,
        tunnel: &str,
        configuration: watch::Receiver<Arc<TunnelConfiguration>>,
    ) -> Self {
        Self {
            run_dir: run_dir.to_owned(),
            tunnel: tunnel.to_owned(),
            device: None,
            new_queues: None,
            surroundings: Surroundings {
                configuration,
                routing: Routing::new(run_dir, tunnel),
                names: Names::new(run_dir, tunnel, ResolverPaths::default()),
                proxy: Proxy::new(run_dir, tunnel),
            },
            settings: None,
        }
    }

    /// Makes `wanted` the state. Asks `is_overtaken` between steps.
    ///
    /// # Errors
    /// A failure ([`SettingsError::is_failure`]), after everything was restored;
    /// [`SettingsError::Canceled`], after which the newer call takes over the state.
    pub(super) async fn apply(
        &mut self,
        wanted: EthernetTunnelSettings,
        is_overtaken: impl Fn() -> bool,
    ) -> Result<Applied, SettingsError> {
        // Another program may have renamed it since.
        let asked = self.settings.as_ref().map(|it| &it.interface_name);
        if let Some(device) = &self.device
            && *asked.unwrap_or_else(|| &device.info().name) != wanted.interface_name
        {
            return Err(SettingsError::Invalid {
                field: "interface_name",
                problem: format!("the session has {} already", device.info().name),
            });
        }
        let was_new = self.device.is_none();
        let device = match self.device.take() {
            Some(device) => device,
            None => {
                let request = device_request(&wanted);
                let (device, queues) = Device::create(request, &self.run_dir, &self.tunnel).await?;
                self.new_queues = Some(queues.into_iter().map(Arc::new).collect());
                device
            }
        };
        let device = self.device.insert(device);
        let outcome = converge(device, &mut self.surroundings, &wanted, is_overtaken).await;
        if outcome.as_ref().is_err_and(SettingsError::is_failure) {
            self.roll_back(was_new).await;
        }
        let applied = outcome?;
        self.settings = Some(wanted);
        Ok(applied)
    }

    /// The interface's queues, once after it was created; also when the settings were overtaken.
    pub(super) fn take_new_queues(&mut self) -> Option<Queues> {
        self.new_queues.take()
    }

    /// Does again what another program undid of routes, names, proxy and the interface.
    pub(super) async fn restore(&mut self) {
        if let Err(error) = self.keep(true).await {
            warn!(%error, "cannot set the interface up again after another program changed it");
        }
    }

    /// Restores what another program changed of the interface; routes, names and proxy too if it
    /// changed, or `came_up` again.
    pub(super) async fn keep(&mut self, came_up: bool) -> Result<Kept, SettingsError> {
        let (Some(device), Some(settings)) = (&mut self.device, &self.settings) else {
            return Ok(Kept::Well(Vec::new()));
        };
        let drifts = match device.keep(&device_request(settings)).await {
            Err(DeviceError::Link(LinkError::Missing { .. })) => return Ok(Kept::Lost),
            drifts => drifts?,
        };
        // Nothing on this machine leads to an interface in another namespace.
        if (came_up || !drifts.is_empty()) && !device.info().moved {
            surround(device, &mut self.surroundings, settings, || false).await?;
        }
        Ok(Kept::Well(drifts))
    }

    /// The state of the interface in the kernel.
    pub(super) async fn report(&mut self) -> Option<DeviceReport> {
        let report = self.device.as_mut()?.report().await;
        report
            .inspect_err(|error| debug!(?error, "cannot read the interface"))
            .ok()
    }

    /// Changes of the routes and rules by any program, from now on.
    pub(super) fn routing_changes(&self) -> RoutingChanges {
        self.surroundings.routing.changes()
    }

    /// Restores routes and rules that another program deleted; false if there was nothing to do.
    /// Does not touch the interface itself: an interface that is set down stays down.
    pub(super) async fn restore_routing(&mut self) -> Result<bool, SettingsError> {
        let is_up = match &self.device {
            Some(device) => is_up(device.info()).await?,
            None => false,
        };
        Ok(self.surroundings.routing.restore(is_up).await?)
    }

    /// Blocks traffic that may leave the machine through the tunnel only, if the policy requires
    /// it, while there is no tunnel.
    pub(super) async fn engage_kill_switch(&mut self) -> Result<(), SettingsError> {
        self.surroundings.route(None).await
    }

    /// Follows a routing policy that changed.
    pub(super) async fn follow_policy(&mut self) {
        if self.settings.is_some() {
            return self.restore().await;
        }
        if let Err(error) = self.engage_kill_switch().await {
            warn!(%error, "the routing policy is not in force: the kernel refused a route or rule");
        }
    }

    /// Follows the networks that this machine is in, if the policy depends on them.
    pub(super) async fn follow_local_networks(&mut self) {
        if needs_local_networks(self.surroundings.policy()) {
            self.restore().await;
        }
    }

    /// Removes everything except the interface, and sets that down.
    pub(super) async fn clear(&mut self) -> Result<(), SettingsError> {
        self.engage_kill_switch().await?;
        if let (Some(device), Some(settings)) = (&mut self.device, self.settings.take()) {
            let withdrawn = self.surroundings.withdraw(device).await;
            device.change(&cleared(&settings)).await?;
            withdrawn?;
        }
        Ok(())
    }

    /// Removes everything. Holders of queues of the interface keep useless descriptors.
    pub(super) async fn tear_down(&mut self) {
        self.settings = None;
        if let Err(error) = self.surroundings.routing.clear().await {
            warn!(%error, "cannot delete the tunnel's routes and rules; the next start of the tunnel tries again");
        }
        if self.device.is_some() {
            return self.remove_device().await;
        }
        // The creation of one may have been cancelled halfway.
        if let Err(error) = Device::undo_leftovers(&self.run_dir, &self.tunnel).await {
            warn!(
                %error,
                "cannot restore the interface; the next start of the tunnel tries again"
            );
        }
    }

    async fn remove_device(&mut self) {
        self.new_queues = None;
        if let Some(device) = self.device.take() {
            if let Err(error) = self.surroundings.withdraw(&device).await {
                warn!(
                    %error,
                    "cannot restore the name servers and the proxy; the next start of the tunnel tries again"
                );
            }
            device.remove().await;
        }
    }

    async fn roll_back(&mut self, was_new: bool) {
        if was_new {
            self.remove_device().await;
        }
        let outcome = match (&mut self.device, &self.settings) {
            (Some(device), Some(settings)) => {
                let surroundings = &mut self.surroundings;
                let outcome = converge(device, surroundings, settings, || false).await;
                outcome.map(drop)
            }
            (Some(device), None) => {
                let withdrawn = self.surroundings.withdraw(device).await;
                self.engage_kill_switch().await.and(withdrawn)
            }
            (None, _) => self.engage_kill_switch().await,
        };
        if let Err(error) = outcome {
            warn!(%error, "cannot restore the settings before the failed ones; the interface has parts of both");
        }
    }

    pub(super) fn info(&self) -> Option<&DeviceInfo> {
        self.device.as_ref().map(Device::info)
    }

    pub(super) fn set_offloads(&self, wanted: Offloads) -> io::Result<Offloads> {
        match &self.device {
            Some(device) => device.tap().set_offloads(wanted),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// False when there is no interface.
    pub(super) async fn set_carrier(&mut self, on: bool) -> bool {
        if let Some(device) = &mut self.device {
            device.set_carrier(on);
            device.forward_link_loss(on).await;
        }
        self.device.is_some()
    }

    pub(super) async fn forget_stations(&self) {
        if let Some(device) = &self.device {
            device.forget_stations().await;
        }
    }
}

/// The steps, each of which may find nothing to do.
async fn converge(
    device: &mut Device,
    surroundings: &mut Surroundings,
    wanted: &EthernetTunnelSettings,
    is_overtaken: impl Fn() -> bool,
) -> Result<Applied, SettingsError> {
    if is_overtaken() {
        return Err(SettingsError::Canceled);
    }
    device.change(&device_request(wanted)).await?;
    surround(device, surroundings, wanted, is_overtaken).await
}

/// The steps around the device.
async fn surround(
    device: &Device,
    surroundings: &mut Surroundings,
    wanted: &EthernetTunnelSettings,
    is_overtaken: impl Fn() -> bool,
) -> Result<Applied, SettingsError> {
    let go_on = || match is_overtaken() {
        true => Err(SettingsError::Canceled),
        false => Ok(()),
    };
    go_on()?;
    let info = device.info();
    surroundings.route(Some((wanted, info.index))).await?;
    go_on()?;
    let names = dns_proxy::names_request(wanted, surroundings.policy());
    let names = surroundings
        .names
        .apply(info.index, &info.name, names.as_ref());
    let dns = names.await?;
    go_on()?;
    let proxy = dns_proxy::proxy_request(wanted);
    let proxy = surroundings.proxy.apply(proxy.as_ref())?;
    Ok(Applied {
        interface: Interface::of(info),
        dns: DnsOutcome::of(dns),
        proxy: ProxyOutcome::of(proxy),
    })
}

impl Surroundings {
    fn policy(&self) -> RoutingPolicy {
        self.configuration.borrow().routing
    }

    /// Brings the routes to what the settings of an interface, or of none, and the policy say.
    async fn route(
        &mut self,
        tunnel: Option<(&EthernetTunnelSettings, u32)>,
    ) -> Result<(), SettingsError> {
        let policy = self.policy();
        let interface = tunnel.map(|(_, index)| index);
        let local_networks = local_networks(policy, interface).await?;
        let wanted = routing_state(policy, tunnel, &local_networks);
        Ok(self.routing.apply(&wanted).await?)
    }

    /// Removes names and proxy.
    async fn withdraw(&mut self, device: &Device) -> Result<(), SettingsError> {
        let info = device.info();
        let unpublished = self.proxy.apply(None);
        self.names.apply(info.index, &info.name, None).await?;
        unpublished?;
        Ok(())
    }
}

async fn is_up(device: &DeviceInfo) -> Result<bool, DeviceError> {
    let link = Links::connect()?.find_index(device.index).await?;
    Ok(link.is_some_and(|link| link.up))
}

/// The networks of this machine, where the policy depends on them.
async fn local_networks(
    policy: RoutingPolicy,
    interface: Option<u32>,
) -> Result<BTreeSet<IpNet>, DeviceError> {
    if !needs_local_networks(policy) {
        return Ok(BTreeSet::new());
    }
    Ok(Links::connect()?.connected_networks(interface).await?)
}

fn device_request(settings: &EthernetTunnelSettings) -> DeviceRequest {
    use super::settings::Addressing::{Automatic, LinkLocal, Manual};
    let mac = settings.ethernet_address.0;
    DeviceRequest {
        name: settings.interface_name.clone(),
        backend: settings.backend,
        queues: settings.queues,
        express: settings.express_queue,
        mac: (!settings.keep_existing_address).then_some(mac),
        default_mac: mac,
        mtu: settings.mtu,
        bridge: settings.bridge.clone(),
        waits_for_bridge: settings.bridge_may_come_later,
        bridge_vlans: settings.bridge_vlans.as_ref().map(|vlans| {
            let BridgeVlans { tagged, native } = vlans;
            PortVlans::new(tagged.iter().copied(), *native)
        }),
        addresses: settings.addresses().collect(),
        link_loss_forwarding: settings.link_loss_forwarding,
        ipv6: match settings.ipv6.as_ref().map(|ipv6| &ipv6.addressing) {
            None => Ipv6Mode::Silent,
            Some(Automatic) => Ipv6Mode::AcceptAdvertisements,
            Some(_) if settings.accept_router_advertisements => Ipv6Mode::AcceptAdvertisements,
            Some(Manual(_) | LinkLocal) => Ipv6Mode::LinkLocal,
        },
        up: true,
    }
}

/// The interface without any configuration, and down.
fn cleared(settings: &EthernetTunnelSettings) -> DeviceRequest {
    DeviceRequest {
        addresses: Vec::new(),
        ipv6: Ipv6Mode::Silent,
        up: false,
        ..device_request(settings)
    }
}
