// SPDX-License-Identifier: MIT OR Apache-2.0
//! Controls what IPv6 does by itself on the device, and what stations behind the tunnel may configure
//! there.
//!
//! An adopted device gets its options and addresses back: each step stores what it changes or removes
//! first.

use ipnet::IpNet;
use tracing::warn;

use super::Device;
use crate::machine::device::{error::DeviceError, request::Ipv6Mode};

use crate::machine::journal::{Change, set_option};
use crate::machine::link::ADDR_GEN_NONE;
use crate::machine::options;

/// The least MTU of IPv6 (RFC 8200, section 5).
const IPV6_MIN_MTU: u32 = 1280;

impl Ipv6Mode {
    /// The kernel options of this mode, for both families.
    ///
    /// `accept_ra = 0` turns off everything that a router advertisement (RFC 4861, RFC 4862) sets:
    /// default routers, prefixes and addresses, routes (RFC 4191), MTU, hop limit and timers; the
    /// options `accept_ra_*` and `autoconf` only say which of these an accepted one may set. Redirects
    /// are the other message by which a station on the link changes routes. Where
    /// `net.ipv4.conf.all.accept_redirects` is set on a machine that forwards nothing, the kernel
    /// takes those of IPv4 whatever the device says; they count for routes by a gateway on this link
    /// only.
    const fn options(self) -> &'static [(&'static str, i32)] {
        match self {
            Self::Silent | Self::LinkLocal => &[
                ("ipv6/accept_ra", 0),
                ("ipv6/accept_redirects", 0),
                ("ipv4/accept_redirects", 0),
            ],
            // 2: also where this machine forwards packets.
            Self::AcceptAdvertisements => &[("ipv6/accept_ra", 2)],
        }
    }
}

impl Device {
    pub(super) async fn set_ipv6(&mut self, wanted: Ipv6Mode) -> Result<(), DeviceError> {
        self.set_options(wanted.options())?;
        // Reads the link again: with an MTU below 1280 the device has no IPv6 any more, and needs
        // no options.
        let link = self.link().await?;
        let Some(mode) = link.addr_gen_mode else {
            return Ok(());
        };
        let earlier = self.record.addr_gen_mode;
        let to = match (wanted, earlier) {
            (Ipv6Mode::Silent, _) => ADDR_GEN_NONE,
            (_, Some(change)) => change.from,
            (_, None) => mode,
        };
        let Some(change) = Change::needed(mode, to) else {
            return Ok(());
        };
        self.step("addr_gen_mode", change.from, change.to);
        self.record.addr_gen_mode = Some(change.after(earlier));
        self.write_journal()?;
        if to == ADDR_GEN_NONE {
            self.links.set_addr_gen_mode(link.index, to).await?;
            self.remove_link_local_addresses().await
        } else {
            // Netlink would set the mode too, but the kernel would make the address at the next
            // "up" only.
            Ok(set_option(
                &self.info.name,
                "ipv6/addr_gen_mode",
                to.into(),
            )?)
        }
    }

    /// Sets these kernel options, and restores those of an earlier request.
    fn set_options(&mut self, wanted: &[(&'static str, i32)]) -> Result<(), DeviceError> {
        let is_wanted = |option: &str| wanted.iter().any(|(name, _)| *name == option);
        let earlier: Vec<_> = self.record.options.keys().cloned().collect();
        for option in earlier.into_iter().filter(|option| !is_wanted(option)) {
            if let Some(change) = self.record.options.remove(&option) {
                self.set_option(&option, change.from)?;
            }
        }
        for &(option, value) in wanted {
            self.set_option(option, value)?;
        }
        Ok(())
    }

    /// Sets a kernel option, if the device has it.
    fn set_option(&mut self, option: &str, to: i32) -> Result<(), DeviceError> {
        let name = &self.info.name;
        let Some(now) = options::read(name, option).unwrap_or_default() else {
            return Ok(());
        };
        let Some(change) = Change::needed(now, to) else {
            return Ok(());
        };
        let earlier = self.record.options.get(option).copied();
        self.record
            .options
            .insert(option.to_owned(), change.after(earlier));
        self.write_journal()?;
        let written = options::write(&self.info.name, option, to);
        if written.is_ok() {
            self.step(option, now, to);
        }
        // Logged once.
        if let (Err(error), None) = (written, earlier) {
            // Containers often have a read-only /proc/sys; the tunnel works without.
            let path = options::path(&self.info.name, option);
            warn!(
                device = self.info.name,
                option = %path.display(),
                value = to,
                %error,
                "cannot set a kernel option: stations behind the tunnel may configure this machine; \
                 set it by hand, or make /proc/sys/net writable"
            );
        }
        Ok(())
    }

    /// Removes those that the kernel made before the option forbade it.
    async fn remove_link_local_addresses(&mut self) -> Result<(), DeviceError> {
        for address in self.links.addresses(self.info.index).await? {
            let is_made = matches!(address, IpNet::V6(net) if net.addr().is_unicast_link_local());
            if is_made && !self.record.addresses.contains(&address) {
                self.note_lost_address(address)?;
                self.links.remove_address(self.info.index, address).await?;
            }
        }
        Ok(())
    }

    /// Records that a change removes an address of the device's owner.
    fn note_lost_address(&mut self, address: IpNet) -> Result<(), DeviceError> {
        if self.info.adopted && !self.record.lost_addresses.contains(&address) {
            self.record.lost_addresses.push(address);
            self.write_journal()?;
        }
        Ok(())
    }

    /// With an MTU below that of IPv6, the kernel drops all IPv6 state of the device.
    pub(super) async fn note_ipv6_before(
        &mut self,
        change: Change<u32>,
    ) -> Result<(), DeviceError> {
        if !self.info.adopted || change.from < IPV6_MIN_MTU || change.to >= IPV6_MIN_MTU {
            return Ok(());
        }
        self.record.ipv6_options = options::ipv6_of(&self.info.name);
        self.lose_ipv6_addresses().await
    }

    /// Records that the kernel will remove the IPv6 addresses of the device's owner.
    pub(super) async fn lose_ipv6_addresses(&mut self) -> Result<(), DeviceError> {
        for address in self.links.addresses(self.info.index).await? {
            if matches!(address, IpNet::V6(_)) && !self.record.addresses.contains(&address) {
                self.note_lost_address(address)?;
            }
        }
        self.write_journal()
    }
}
