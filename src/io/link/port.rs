// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a bridge does with one of its ports: read from the kernel, never assumed, and put into words.
//!
//! A port can be there and healthy to look at while nothing passes it: spanning tree holds it, its VLANs
//! are not those of the LAN, netfilter drops what crosses the bridge, or its MTU is below that of the
//! others. [`PortReport::remedies`] says so, with what to do. Called by `device`.

use std::collections::BTreeSet;
use std::fs;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{
    AfSpecBridge, BridgePortState, BridgeStpState, BridgeVlanInfoFlags, InfoBridge, InfoBridgePort,
    InfoData, InfoPortData, LinkAttribute, LinkExtentMask, LinkInfo as LinkKind, LinkMessage,
};

use super::{LinkError, LinkInfo, Links, refused};

/// Whether netfilter sees what crosses bridges, where the module `br_netfilter` is loaded.
const BRIDGE_NETFILTER: [&str; 2] = [
    "/proc/sys/net/bridge/bridge-nf-call-iptables",
    "/proc/sys/net/bridge/bridge-nf-call-ip6tables",
];

/// What the kernel counted at a device, seen from this machine: `tx` goes into the tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelCounters {
    /// Frames from the tunnel that the network stack did not take.
    pub rx_dropped: u64,
    /// Frames for the tunnel that found no room, or no carrier.
    pub tx_dropped: u64,
    /// Frames from the tunnel that were malformed for the kernel.
    pub rx_errors: u64,
    /// Frames for the tunnel that failed.
    pub tx_errors: u64,
}

/// A port of a Linux bridge, as the bridge has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortReport {
    /// The bridge.
    pub bridge: String,
    /// `forwarding`, `learning`, `listening`, `blocking` or `disabled` (IEEE 802.1D).
    pub state: &'static str,
    /// Whether the bridge runs the spanning tree protocol, or something runs it for the bridge.
    pub stp: bool,
    /// Seconds that a port which came up is held by it.
    pub stp_delay_s: u32,
    /// The VLANs of the port; none where the bridge does not look at VLANs.
    pub vlans: Option<BTreeSet<u16>>,
    /// VLANs of other ports that this one does not have.
    pub other_vlans: BTreeSet<u16>,
    /// Whether it reaches no other isolated port.
    pub isolated: bool,
    /// Whether netfilter looks at what crosses the bridge.
    pub netfilter: bool,
    /// The bridge's port with the largest MTU, if that is larger.
    pub wider: Option<(String, u32)>,
}

impl PortReport {
    /// What keeps frames from passing, with what to do. `device` is the port's name, `has_carrier`
    /// whether its cable is in.
    pub fn remedies(&self, device: &str, mtu: u32, has_carrier: bool) -> Vec<String> {
        let bridge = &self.bridge;
        let mut texts = Vec::new();
        match self.state {
            "forwarding" => {}
            _ if !has_carrier => {}
            "listening" | "learning" if self.stp => texts.push(format!(
                "spanning tree of `{bridge}` opens the port within {} s, after each cut of the path: \
                 `carrier = \"always\"` in [device] avoids that",
                self.stp_delay_s
            )),
            "blocking" if self.stp => texts.push(format!(
                "spanning tree of `{bridge}` blocks the port: there is another way to its root"
            )),
            state => texts.push(format!(
                "the port is {state}: `bridge link set dev {device} state 3` opens it"
            )),
        }
        if let Some((name, wider)) = &self.wider {
            texts.push(format!(
                "MTU {mtu}, but `{name}` in `{bridge}` has {wider}: larger frames are lost at the \
                 port, uncounted; set `mtu = {wider}` in [device], at both ends"
            ));
        }
        if !self.other_vlans.is_empty() {
            let missing = ranges(&self.other_vlans);
            texts.push(format!(
                "`{bridge}` filters VLANs, and other ports have VLAN {missing}, which {device} has \
                 not: `bridge vlan add dev {device} vid {}`",
                self.other_vlans.first().copied().unwrap_or_default()
            ));
        }
        if self.isolated {
            texts.push(format!(
                "isolated from the isolated ports of `{bridge}`: `bridge link set dev {device} \
                 isolated off`"
            ));
        }
        if self.netfilter {
            texts.push(format!(
                "netfilter sees the frames of `{bridge}` (br_netfilter): where its FORWARD policy is \
                 DROP, as Docker sets it, `iptables -I FORWARD -i {bridge} -o {bridge} -j ACCEPT`"
            ));
        }
        texts
    }
}

/// `1, 10-20`.
pub fn ranges(numbers: &BTreeSet<u16>) -> String {
    let mut runs: Vec<(u16, u16)> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some((_, end)) if *end + 1 == number => *end = number,
            _ => runs.push((number, number)),
        }
    }
    let texts = runs.iter().map(|&(start, end)| match start == end {
        true => start.to_string(),
        false => format!("{start}-{end}"),
    });
    texts.collect::<Vec<_>>().join(", ")
}

impl Links {
    /// What the bridge does with this port; none if it is in no bridge.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn port_report(&self, index: u32) -> Result<Option<PortReport>, LinkError> {
        let links = self.messages().await?;
        let find = |index: u32| links.iter().find(|message| message.header.index == index);
        let Some(port) = find(index) else {
            return Ok(None);
        };
        let info = LinkInfo::parse(port);
        let Some(bridge) = info.controller.and_then(find) else {
            return Ok(None);
        };
        let bridge_info = LinkInfo::parse(bridge);
        if !bridge_info.is_bridge() {
            return Ok(None);
        }
        let settings = BridgeSettings::of(bridge);
        let others = links.iter().map(LinkInfo::parse).filter(|other| {
            other.controller == Some(bridge_info.index) && other.index != index && other.up
        });
        let widest = others.max_by_key(|other| other.mtu);
        let wider = widest.filter(|widest| widest.mtu > info.mtu);
        let (vlans, other_vlans) = match settings.filters_vlans {
            true => self.vlans(index, bridge_info.index, &links).await?,
            false => (None, BTreeSet::new()),
        };
        let (state, isolated) = port_state(port);
        Ok(Some(PortReport {
            bridge: bridge_info.name,
            state,
            stp: settings.stp,
            stp_delay_s: settings.stp_delay_s,
            vlans,
            other_vlans,
            isolated,
            netfilter: settings.netfilter || is_netfilter_on(),
            wider: wider.map(|it| (it.name, it.mtu)),
        }))
    }

    /// The VLANs of a port, and those of other ports of the bridge that it lacks.
    async fn vlans(
        &self,
        index: u32,
        bridge: u32,
        links: &[LinkMessage],
    ) -> Result<(Option<BTreeSet<u16>>, BTreeSet<u16>), LinkError> {
        let request = self
            .handle
            .link()
            .get()
            .set_filter_mask(AddressFamily::Bridge, vec![LinkExtentMask::Brvlan]);
        let messages: Vec<_> = request
            .execute()
            .try_collect()
            .await
            .map_err(refused(|| "list the VLANs of a bridge".into()))?;
        let (mut own, mut others) = (BTreeSet::new(), BTreeSet::new());
        for message in &messages {
            let at = message.header.index;
            let is_port = links.iter().any(|link| {
                link.header.index == at && LinkInfo::parse(link).controller == Some(bridge)
            });
            match is_port {
                _ if at == index => own.extend(vlans_of(message)),
                true => others.extend(vlans_of(message)),
                false => {}
            }
        }
        let missing = others.difference(&own).copied().collect();
        Ok((Some(own), missing))
    }

    /// What the kernel counted at a device.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn counters(&self, index: u32) -> Result<KernelCounters, LinkError> {
        let request = self.handle.link().get().match_index(index);
        let message = std::pin::pin!(request.execute()).try_next().await;
        let message = message.map_err(refused(|| format!("look up link {index}")))?;
        let stats = message.iter().flat_map(|message| &message.attributes);
        let mut stats = stats.filter_map(|attribute| match attribute {
            LinkAttribute::Stats64(stats) => Some(KernelCounters {
                rx_dropped: stats.rx_dropped,
                tx_dropped: stats.tx_dropped,
                rx_errors: stats.rx_errors,
                tx_errors: stats.tx_errors,
            }),
            _ => None,
        });
        Ok(stats.next().unwrap_or_default())
    }
}

/// What counts for all ports of a bridge.
#[derive(Default)]
struct BridgeSettings {
    stp: bool,
    stp_delay_s: u32,
    filters_vlans: bool,
    netfilter: bool,
}

impl BridgeSettings {
    fn of(message: &LinkMessage) -> Self {
        let mut settings = Self::default();
        let data = kinds(message).filter_map(|kind| match kind {
            LinkKind::Data(InfoData::Bridge(attributes)) => Some(attributes),
            _ => None,
        });
        for attribute in data.flatten() {
            match attribute {
                InfoBridge::StpState(state) => settings.stp = *state != BridgeStpState::Disabled,
                // In hundredths of a second; two states are passed, and a little.
                InfoBridge::ForwardDelay(delay) => settings.stp_delay_s = delay / 50 + 1,
                InfoBridge::VlanFiltering(on) => settings.filters_vlans = *on,
                InfoBridge::NfCallIpTables(on) | InfoBridge::NfCallIp6Tables(on) => {
                    settings.netfilter |= on;
                }
                _ => {}
            }
        }
        settings
    }
}

fn kinds(message: &LinkMessage) -> impl Iterator<Item = &LinkKind> {
    let attributes = message.attributes.iter();
    let infos = attributes.filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(kinds) => Some(kinds),
        _ => None,
    });
    infos.flatten()
}

/// The state of a port, and whether it is isolated.
fn port_state(message: &LinkMessage) -> (&'static str, bool) {
    let (mut state, mut isolated) = ("unknown", false);
    let data = kinds(message).filter_map(|kind| match kind {
        LinkKind::PortData(InfoPortData::BridgePort(attributes)) => Some(attributes),
        _ => None,
    });
    for attribute in data.flatten() {
        match attribute {
            InfoBridgePort::State(now) => {
                state = match now {
                    BridgePortState::Disabled => "disabled",
                    BridgePortState::Listening => "listening",
                    BridgePortState::Learning => "learning",
                    BridgePortState::Forwarding => "forwarding",
                    BridgePortState::Blocking => "blocking",
                    _ => "unknown",
                };
            }
            InfoBridgePort::Isolated(on) => isolated = *on,
            _ => {}
        }
    }
    (state, isolated)
}

/// The VLANs in a message of the bridge family; a range has its two ends.
fn vlans_of(message: &LinkMessage) -> BTreeSet<u16> {
    let mut vlans = BTreeSet::new();
    let mut begin = None;
    let attributes = message.attributes.iter();
    let specs = attributes.filter_map(|attribute| match attribute {
        LinkAttribute::AfSpecBridge(specs) => Some(specs),
        _ => None,
    });
    for spec in specs.flatten() {
        let AfSpecBridge::VlanInfo(info) = spec else {
            continue;
        };
        if info.flags.contains(BridgeVlanInfoFlags::RangeBegin) {
            begin = Some(info.vid);
        } else {
            vlans.extend(begin.take().unwrap_or(info.vid)..=info.vid);
        }
    }
    vlans
}

fn is_netfilter_on() -> bool {
    let is_on = |path: &&str| fs::read_to_string(path).is_ok_and(|value| value.trim() == "1");
    BRIDGE_NETFILTER.iter().any(is_on)
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::link::BridgeVlanInfo;

    use super::*;
    use crate::io::testing::{block_on, eventually, in_namespace, ip, wait_for_carrier};

    fn bridge(arguments: &str) {
        let mut command = std::process::Command::new("bridge");
        let output = command.args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "bridge {arguments}: {output:?}");
    }

    /// The port `veth0` of `br0`, with a cable that is in, beside `veth2`.
    fn make_port(bridge: &str) {
        ip(&format!("link add br0 type bridge {bridge}"));
        for (name, other) in [("veth0", "veth1"), ("veth2", "veth3")] {
            ip(&format!("link add {name} type veth peer name {other}"));
            ip(&format!("link set {other} up"));
            ip(&format!("link set {name} master br0 up"));
        }
        ip("link set br0 up");
        for name in ["veth0", "veth2"] {
            wait_for_carrier(name);
        }
        for path in BRIDGE_NETFILTER {
            let _ = fs::write(path, "0");
        }
    }

    fn report() -> PortReport {
        block_on(async {
            let links = Links::connect().unwrap();
            let index = links.find("veth0").await.unwrap().unwrap().index;
            links.port_report(index).await.unwrap().unwrap()
        })
    }

    /// A bridge need not filter by VLAN, as not every kernel can.
    #[test]
    fn vlans_that_the_port_lacks_are_named() {
        let vlan = |vid, flags| {
            let info = BridgeVlanInfo { flags, vid };
            AfSpecBridge::VlanInfo(info)
        };
        let none = BridgeVlanInfoFlags::empty();
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::AfSpecBridge(vec![
            vlan(1, BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged),
            vlan(10, BridgeVlanInfoFlags::RangeBegin),
            vlan(12, BridgeVlanInfoFlags::RangeEnd),
            vlan(20, none),
        ])];
        let vlans = vlans_of(&message);
        assert_eq!(ranges(&vlans), "1, 10-12, 20");
        let report = PortReport {
            bridge: "br0".to_owned(),
            state: "forwarding",
            stp: false,
            stp_delay_s: 0,
            vlans: Some([1].into()),
            other_vlans: [10, 11, 12].into(),
            isolated: false,
            netfilter: false,
            wider: None,
        };
        let said = report.remedies("veth0", 1500, true).join("\n");
        assert!(said.contains("other ports have VLAN 10-12"), "{said}");
        assert!(
            said.contains("`bridge vlan add dev veth0 vid 10`"),
            "{said}"
        );
    }

    fn remedies() -> String {
        report().remedies("veth0", 1500, true).join("\n")
    }

    #[test]
    fn a_port_that_passes_everything_needs_no_remedy() {
        in_namespace(|| {
            make_port("");
            eventually(|| (report().state == "forwarding").then_some(())).unwrap();
            assert_eq!(remedies(), "");
            ip("link set veth0 nomaster");
            let links = || Links::connect().unwrap();
            let none = block_on(async {
                let index = links().find("veth0").await.unwrap().unwrap().index;
                links().port_report(index).await.unwrap()
            });
            assert_eq!(none, None);
        });
    }

    #[test]
    fn what_stops_frames_at_a_port_is_said_with_the_remedy() {
        in_namespace(|| {
            make_port("stp_state 1 forward_delay 1500");
            let state = report();
            assert!(state.stp && state.stp_delay_s == 31, "{state:?}");
            assert!(matches!(state.state, "listening" | "blocking"), "{state:?}");
            assert_eq!(state.vlans, None);
            let said = state.remedies("veth0", 1500, true).join("\n");
            assert!(said.contains("`br0`"), "{said}");
        });
        in_namespace(|| {
            make_port("");
            eventually(|| (report().state == "forwarding").then_some(())).unwrap();
            bridge("link set dev veth0 isolated on");
            let said = remedies();
            assert!(said.contains("isolated off"), "{said}");
            bridge("link set dev veth0 isolated off");
            ip("link set br0 type bridge nf_call_iptables 1");
            let said = remedies();
            assert!(said.contains("-I FORWARD -i br0 -o br0"), "{said}");
            ip("link set br0 type bridge nf_call_iptables 0");
            ip("link set veth0 mtu 1420");
            let said = report().remedies("veth0", 1420, true).join("\n");
            assert!(
                said.contains("MTU 1420, but `veth2` in `br0` has 1500"),
                "{said}"
            );
        });
    }
}
