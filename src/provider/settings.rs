// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a provider asks of its interface (`NEEthernetTunnelNetworkSettings`).

use std::net::IpAddr;

use ipnet::IpNet;
use patchcord_bridge::MacAddr;

use super::Interface;
use crate::io::{device::DeviceError, tap::Backend};

/// The smallest and largest MTU that a TAP takes.
const MTU_RANGE: std::ops::RangeInclusive<u32> = 68..=65_521;
/// Below this the kernel removes every IPv6 address (RFC 8200, section 5).
const IPV6_MIN_MTU: u32 = 1280;

/// The complete state that the interface should be in.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EthernetTunnelSettings {
    /// The address of the tunnel's other end; unspecified when there is none in particular.
    pub tunnel_remote_address: IpAddr,
    /// The interface's MAC address.
    pub ethernet_address: MacAddr,
    /// Leave the MAC address of an interface that exists already as it is.
    pub keep_existing_address: bool,
    /// Overlay MTU: the payload of a frame.
    pub mtu: u32,
    /// Addresses of the interface; none for a pure port.
    pub addresses: Vec<IpNet>,
    /// The interface's name; created, or adopted if it is a TAP that exists.
    pub interface_name: String,
    /// The Linux bridge to make the interface a port of.
    pub bridge: Option<String>,
    /// How the TAP is opened.
    pub backend: Backend,
    /// Queues of the TAP, at least one. There may be fewer than asked for; see
    /// [`ProviderContext::take_queues`](super::ProviderContext::take_queues).
    pub queues: usize,
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
            addresses: Vec::new(),
            interface_name: interface_name.into(),
            bridge: None,
            backend: Backend::Auto,
            queues: 1,
        }
    }

    /// Checks everything that can be told without the kernel.
    ///
    /// # Errors
    /// [`SettingsError::Invalid`].
    pub(super) fn validate(&self) -> Result<(), SettingsError> {
        let invalid = |field, problem: String| Err(SettingsError::Invalid { field, problem });
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
        if self.queues == 0 {
            return invalid("queues", "a TAP has at least one".to_owned());
        }
        let has_ipv6 = self
            .addresses
            .iter()
            .any(|address| matches!(address, IpNet::V6(_)));
        if has_ipv6 && self.mtu < IPV6_MIN_MTU {
            return invalid(
                "mtu",
                format!("{} is below the {IPV6_MIN_MTU} of IPv6", self.mtu),
            );
        }
        Ok(())
    }
}

/// What took effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The interface.
    pub interface: Interface,
}

/// Why settings were not applied; codes as in `NETunnelProviderError`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// They make no sense. Nothing was changed.
    #[error("invalid setting {field}: {problem}")]
    Invalid {
        /// Which one.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The session is being stopped.
    #[error("the session is being stopped")]
    Canceled,
    /// The kernel refused. What had been done was undone.
    #[error(transparent)]
    Failed(#[from] DeviceError),
}

impl SettingsError {
    /// Apple's number.
    pub const fn code(&self) -> u8 {
        match self {
            Self::Invalid { .. } => 1,
            Self::Canceled => 2,
            Self::Failed(_) => 3,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

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
        let ipv6 = EthernetTunnelSettings {
            mtu: 1279,
            addresses: vec!["2001:db8::1/64".parse().unwrap()],
            ..good.clone()
        };
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
            (no_queue, "queues"),
        ] {
            match settings.validate() {
                Err(error @ SettingsError::Invalid { field, .. }) => {
                    assert_eq!((field, error.code()), (expected, 1));
                }
                other => panic!("{settings:?}: {other:?}"),
            }
        }
    }
}
