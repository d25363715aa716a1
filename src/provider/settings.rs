// SPDX-License-Identifier: MIT OR Apache-2.0
//! The settings that a provider asks for: its interface, and the machine's routing and names
//! (`NEEthernetTunnelNetworkSettings` and what belongs to it).
//!
//! Each value is the complete wanted state; there is no "add" and no "remove". Two things on Ethernet
//! differ from a tunnel of IP packets: addresses are optional, since a port of a bridge has none, and a
//! route needs a next hop, because neighbours are resolved for real.

mod names;
mod outcome;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use patchcord_bridge::MacAddr;

use self::outcome::invalid;
pub use self::{
    names::{DnsProtocol, DnsSettings, ProxyServer, ProxySettings},
    outcome::{Applied, DnsOutcome, ProxyOutcome, SettingsError},
};
use crate::io::tap::Backend;

/// The smallest and largest MTU of a TAP.
pub(super) const MTU_RANGE: std::ops::RangeInclusive<u32> = 68..=65_521;
/// Below this the kernel removes every IPv6 address (RFC 8200, section 5).
const IPV6_MIN_MTU: u32 = 1280;

/// The complete wanted state of the interface.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EthernetTunnelSettings {
    /// The address of the tunnel's other end, which is never routed into the tunnel; unspecified or
    /// loopback when there is no particular one.
    pub tunnel_remote_address: IpAddr,
    /// The interface's MAC address.
    pub ethernet_address: MacAddr,
    /// Leave the MAC address of an interface that exists already as it is.
    pub keep_existing_address: bool,
    /// Overlay MTU: the payload of a frame.
    pub mtu: u32,
    /// IPv4 of the interface; `None` for a pure port.
    pub ipv4: Option<Ipv4Settings>,
    /// IPv6 of the interface; with `None` the kernel sends no frame by itself.
    pub ipv6: Option<Ipv6Settings>,
    /// Take addresses, routes and routers of IPv6 from the far LAN in addition to fixed addresses
    /// ([`Addressing::Automatic`] does so by itself). Without it, stations behind the tunnel cannot
    /// configure this machine: router advertisements and redirects are ignored.
    pub accept_router_advertisements: bool,
    /// Name resolution while the tunnel is up.
    pub dns: Option<DnsSettings>,
    /// The proxy for programs while the tunnel is up.
    pub proxy: Option<ProxySettings>,
    /// The interface's name; created, or adopted if it is an existing TAP. With
    /// [`Backend::Packet`], the name of an existing NIC or other Ethernet interface.
    pub interface_name: String,
    /// The Linux bridge to make the interface a port of.
    pub bridge: Option<String>,
    /// The bridge need not exist yet: the interface waits for it, without carrier. An interface of
    /// its name that is no bridge is still a failure. A bridge that goes while the session lasts is
    /// waited for in any case.
    pub bridge_may_come_later: bool,
    /// The VLANs of that port, in a bridge that filters VLANs; none leaves the bridge's defaults.
    pub bridge_vlans: Option<BridgeVlans>,
    /// How the TAP is opened, or that a NIC is attached in its place. A NIC is brought up and
    /// otherwise stays as it is: neither its MAC address nor its MTU follow these settings, and it
    /// can have no addresses, routes or bridge. Only the first settings of a session use this, the
    /// name and the queues: later ones keep the interface.
    pub backend: Backend,
    /// Take a NIC down while the carrier is off, so that the other end of its cable sees it; the
    /// end of the session restores it. Has no effect with a TAP.
    pub link_loss_forwarding: bool,
    /// Queues of the TAP, at least one. There may be fewer than asked for; see
    /// [`ProviderContext::take_queues`](super::ProviderContext::take_queues).
    pub queues: usize,
    /// One queue more, the last, for flows that send little, so that they do not wait behind
    /// others: see [`TapQueue::is_express`](super::TapQueue::is_express). A TAP may have none.
    pub express_queue: bool,
}

/// The VLANs of a port of a Linux bridge: these and no others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BridgeVlans {
    /// Those whose frames have a tag at the port.
    pub tagged: Vec<u16>,
    /// The one whose frames have none, if untagged frames are to pass.
    pub native: Option<u16>,
}

/// IPv4 of the interface (`NEIPv4Settings`).
pub type Ipv4Settings = IpSettings<Ipv4Net, Ipv4Addr>;
/// IPv6 of the interface (`NEIPv6Settings`).
pub type Ipv6Settings = IpSettings<Ipv6Net, Ipv6Addr>;

/// Addresses and routes of one family: `N` is a network or an address with its prefix length, `A`
/// an address.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct IpSettings<N, A> {
    /// Where addresses come from.
    pub addressing: Addressing<N>,
    /// The next hop in the far LAN for routes that name none and are not on-link.
    pub router: Option<A>,
    /// Destinations that go through the tunnel.
    pub included_routes: Vec<Route<N, A>>,
    /// Destinations that do not, although an included route covers them.
    pub excluded_routes: Vec<N>,
}

/// The origin of addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addressing<N> {
    /// These.
    Manual(Vec<N>),
    /// The kernel generates a link-local one (IPv6 only, RFC 4862, section 5.3).
    LinkLocal,
    /// From the far LAN by router advertisements (IPv6 only, RFC 4862). Needs a provider that reads
    /// frames: the advertisements arrive through the tunnel.
    Automatic,
}

/// A route through the tunnel (`NEIPv4Route`, `NEIPv6Route`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route<N, A> {
    /// The destination; host bits do not count.
    pub destination: N,
    /// The next hop; without one, the settings' router where the destination is not on-link.
    pub gateway: Option<A>,
}

impl<N, A> IpSettings<N, A> {
    /// Fixed addresses, without routes besides those that they imply.
    pub fn manual(addresses: impl Into<Vec<N>>) -> Self {
        Self::with_addressing(Addressing::Manual(addresses.into()))
    }

    /// No routes besides those that the addresses imply.
    pub fn with_addressing(addressing: Addressing<N>) -> Self {
        Self {
            addressing,
            router: None,
            included_routes: Vec::new(),
            excluded_routes: Vec::new(),
        }
    }

    /// The same with this next hop in the far LAN.
    #[must_use]
    pub fn with_router(mut self, router: A) -> Self {
        self.router = Some(router);
        self
    }

    /// The same with a route through the tunnel, by the router where it is not on-link.
    #[must_use]
    pub fn with_route(mut self, destination: N) -> Self {
        self.included_routes.push(Route {
            destination,
            gateway: None,
        });
        self
    }

    /// The fixed addresses.
    pub fn addresses(&self) -> &[N] {
        match &self.addressing {
            Addressing::Manual(addresses) => addresses,
            Addressing::LinkLocal | Addressing::Automatic => &[],
        }
    }
}

impl EthernetTunnelSettings {
    /// A pure port without addresses.
    pub fn new(
        tunnel_remote_address: IpAddr,
        ethernet_address: MacAddr,
        mtu: u32,
        interface_name: impl Into<String>,
    ) -> Self {
        Self {
            tunnel_remote_address,
            ethernet_address,
            keep_existing_address: false,
            mtu,
            ipv4: None,
            ipv6: None,
            accept_router_advertisements: false,
            dns: None,
            proxy: None,
            interface_name: interface_name.into(),
            bridge: None,
            bridge_may_come_later: false,
            bridge_vlans: None,
            backend: Backend::Auto,
            link_loss_forwarding: false,
            queues: 1,
            express_queue: false,
        }
    }

    /// The same with fixed addresses of either family.
    #[must_use]
    pub fn with_addresses(mut self, addresses: &[IpNet]) -> Self {
        for address in addresses {
            match *address {
                IpNet::V4(address) => add_address(&mut self.ipv4, address),
                IpNet::V6(address) => add_address(&mut self.ipv6, address),
            }
        }
        self
    }

    /// The same as a port of this Linux bridge.
    #[must_use]
    pub fn with_bridge(mut self, bridge: impl Into<String>) -> Self {
        self.bridge = Some(bridge.into());
        self
    }

    /// All fixed addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpNet> + '_ {
        let v4 = self.ipv4.iter().flat_map(IpSettings::addresses).copied();
        let v6 = self.ipv6.iter().flat_map(IpSettings::addresses).copied();
        v4.map(IpNet::V4).chain(v6.map(IpNet::V6))
    }

    /// Whether everything goes through the tunnel, in one route or in two halves, of either family.
    pub(super) fn has_default_route(&self) -> bool {
        let v4 = self.ipv4.iter().flat_map(|ipv4| &ipv4.included_routes);
        let v6 = self.ipv6.iter().flat_map(|ipv6| &ipv6.included_routes);
        covers_everything(v4.map(|route| IpNet::V4(route.destination)))
            || covers_everything(v6.map(|route| IpNet::V6(route.destination)))
    }

    /// Checks everything that can be checked without the kernel.
    ///
    /// # Errors
    /// [`SettingsError::Invalid`].
    pub(super) fn validate(&self) -> Result<(), SettingsError> {
        let mac = self.ethernet_address;
        if mac.is_group() || mac.is_zero() {
            return invalid("ethernet_address", format!("{mac} is no unicast address"));
        }
        if !MTU_RANGE.contains(&self.mtu) {
            let (least, most) = (MTU_RANGE.start(), MTU_RANGE.end());
            return invalid(
                "mtu",
                format!("{} is not within {least} to {most}", self.mtu),
            );
        }
        if self.ipv6.is_some() && self.mtu < IPV6_MIN_MTU {
            return invalid(
                "mtu",
                format!("{} is below the {IPV6_MIN_MTU} of IPv6", self.mtu),
            );
        }
        if self.queues == 0 {
            return invalid("queues", "a TAP has at least one".to_owned());
        }
        if self.backend == Backend::Packet {
            let remedy = "a NIC at the end of a wire has none of ours";
            for (field, is_set) in [
                ("ipv4", self.ipv4.is_some()),
                ("ipv6", self.ipv6.is_some()),
                ("bridge", self.bridge.is_some()),
            ] {
                if is_set {
                    return invalid(field, remedy.to_owned());
                }
            }
        }
        if let Some(vlans) = &self.bridge_vlans {
            vlans.validate(self.bridge.is_some())?;
        }
        if let Some(ipv4) = &self.ipv4 {
            if !matches!(ipv4.addressing, Addressing::Manual(_)) {
                let remedy = "IPv4 addresses are given, or a DHCP client gets them";
                return invalid("ipv4", format!("no automatic addressing; {remedy}"));
            }
            validate_routes("ipv4", ipv4)?;
        }
        if let Some(ipv6) = &self.ipv6 {
            validate_routes("ipv6", ipv6)?;
        }
        self.dns.as_ref().map_or(Ok(()), DnsSettings::validate)?;
        self.proxy.as_ref().map_or(Ok(()), ProxySettings::validate)
    }
}

impl BridgeVlans {
    fn validate(&self, has_bridge: bool) -> Result<(), SettingsError> {
        if !has_bridge {
            return invalid("bridge_vlans", "there is no bridge".to_owned());
        }
        let mut vids = self.tagged.iter().chain(&self.native);
        match vids.find(|vid| !(1..=4094).contains(*vid)) {
            Some(vid) => invalid("bridge_vlans", format!("{vid} is not within 1 to 4094")),
            None => Ok(()),
        }
    }
}

fn covers_everything(destinations: impl Iterator<Item = IpNet>) -> bool {
    let destinations: Vec<_> = destinations.collect();
    IpNet::aggregate(&destinations)
        .iter()
        .any(|destination| destination.prefix_len() == 0)
}

fn add_address<N, A>(settings: &mut Option<IpSettings<N, A>>, address: N) {
    let settings = settings.get_or_insert_with(|| IpSettings::manual([]));
    if let Addressing::Manual(addresses) = &mut settings.addressing {
        addresses.push(address);
    }
}

fn validate_routes<N, A>(
    field: &'static str,
    settings: &IpSettings<N, A>,
) -> Result<(), SettingsError> {
    let has_addresses = match &settings.addressing {
        Addressing::Manual(addresses) => !addresses.is_empty(),
        Addressing::LinkLocal | Addressing::Automatic => true,
    };
    if !has_addresses && !settings.included_routes.is_empty() {
        return invalid(field, "routes need an address to send from".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_settings_are_refused_by_field() {
        let good = EthernetTunnelSettings::new(
            Ipv4Addr::UNSPECIFIED.into(),
            MacAddr([2, 0, 0, 0, 0, 1]),
            1500,
            "pc0",
        );
        assert!(good.validate().is_ok());
        let mac = |bytes| EthernetTunnelSettings {
            ethernet_address: MacAddr(bytes),
            ..good.clone()
        };
        let mtu = |mtu| EthernetTunnelSettings {
            mtu,
            ..good.clone()
        };
        let ipv6 = mtu(1279).with_addresses(&["2001:db8::1/64".parse().unwrap()]);
        let ipv4 = |change: fn(&mut Ipv4Settings)| {
            let mut ipv4 = Ipv4Settings::manual(["192.0.2.1/24".parse::<Ipv4Net>().unwrap()]);
            change(&mut ipv4);
            EthernetTunnelSettings {
                ipv4: Some(ipv4),
                ..good.clone()
            }
        };
        let dns = |change: fn(&mut DnsSettings)| {
            let mut dns = DnsSettings::new([IpAddr::from([192, 0, 2, 53])]);
            change(&mut dns);
            EthernetTunnelSettings {
                dns: Some(dns),
                ..good.clone()
            }
        };
        let proxy = |address: &str| EthernetTunnelSettings {
            proxy: Some(ProxySettings {
                http: Some(ProxyServer {
                    address: address.to_owned(),
                    port: 3128,
                }),
                ..ProxySettings::default()
            }),
            ..good.clone()
        };
        for settings in [
            ipv4(|ipv4| ipv4.included_routes.push(default_route())),
            dns(|dns| dns.match_domains = Some(vec![String::new(), "corp.example.".to_owned()])),
            proxy("proxy.example"),
        ] {
            settings.validate().unwrap();
        }
        let nic = |change: fn(&mut EthernetTunnelSettings)| {
            let mut settings = EthernetTunnelSettings {
                backend: Backend::Packet,
                ..good.clone()
            };
            change(&mut settings);
            settings
        };
        assert!(nic(|_| {}).validate().is_ok());
        let vlans = |bridge: Option<&str>, vid| EthernetTunnelSettings {
            bridge: bridge.map(str::to_owned),
            bridge_vlans: Some(BridgeVlans {
                tagged: vec![10],
                native: Some(vid),
            }),
            ..good.clone()
        };
        vlans(Some("br0"), 1).validate().unwrap();
        let no_queue = EthernetTunnelSettings {
            queues: 0,
            ..good.clone()
        };
        for (settings, expected) in [
            (mac([0; 6]), "ethernet_address"),
            (mac([1, 0, 0x5e, 0, 0, 1]), "ethernet_address"),
            (mac([0xff; 6]), "ethernet_address"),
            (mtu(67), "mtu"),
            (mtu(65_522), "mtu"),
            (ipv6, "mtu"),
            (vlans(None, 1), "bridge_vlans"),
            (vlans(Some("br0"), 4095), "bridge_vlans"),
            (no_queue, "queues"),
            (nic(|nic| nic.bridge = Some("br0".to_owned())), "bridge"),
            (nic(|nic| nic.ipv4 = Some(Ipv4Settings::manual([]))), "ipv4"),
            (nic(|nic| nic.ipv6 = Some(Ipv6Settings::manual([]))), "ipv6"),
            (ipv4(|ipv4| ipv4.addressing = Addressing::Automatic), "ipv4"),
            (
                ipv4(|ipv4| {
                    ipv4.addressing = Addressing::Manual(Vec::new());
                    ipv4.included_routes.push(default_route());
                }),
                "ipv4",
            ),
            (dns(|dns| dns.servers.clear()), "dns"),
            (dns(|dns| dns.search_domains.push("a..b".to_owned())), "dns"),
            (dns(|dns| dns.search_domains.push("a b".to_owned())), "dns"),
            (
                dns(|dns| {
                    dns.protocol = DnsProtocol::Https {
                        server_url: "https://dns.example/dns-query".to_owned(),
                    };
                }),
                "dns",
            ),
            (proxy("a b"), "proxy"),
            (proxy("$(reboot)"), "proxy"),
        ] {
            match settings.validate() {
                Err(error @ SettingsError::Invalid { field, .. }) => {
                    assert_eq!((field, error.code()), (expected, 1));
                }
                other => panic!("{settings:?}: {other:?}"),
            }
        }
    }

    fn default_route() -> Route<Ipv4Net, Ipv4Addr> {
        Route {
            destination: Ipv4Net::default(),
            gateway: None,
        }
    }
}
