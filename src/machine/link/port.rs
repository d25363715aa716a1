// SPDX-License-Identifier: MIT OR Apache-2.0
//! How a bridge treats one of its ports: read from the kernel, never assumed, and explained.
//!
//! A port can exist and seem to be well while no frame passes it: spanning tree blocks it, its VLANs
//! are not those of the LAN, netfilter drops what crosses the bridge, or its MTU is below that of the
//! others. [`PortReport::remedies`] names the cause and the remedy. Called by `device`.

use std::collections::BTreeSet;
use std::fs;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::{
    BridgePortState, BridgeStpState, InfoBridge, InfoBridgePort, InfoData, InfoPortData,
    LinkAttribute, LinkInfo as LinkKind, LinkMessage,
};

use super::error::{LinkError, refused};
use super::netfilter::{ForwardChain, forward_chains};
use super::{info::LinkInfo, links::Links};

/// Whether netfilter sees frames that cross bridges, where the module `br_netfilter` is loaded.
const BRIDGE_NETFILTER: [&str; 2] = [
    "/proc/sys/net/bridge/bridge-nf-call-iptables",
    "/proc/sys/net/bridge/bridge-nf-call-ip6tables",
];

/// The counters of a device in the kernel, from the view of this machine: `tx` goes into the tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct KernelCounters {
    /// Frames from the tunnel that the network stack dropped.
    pub rx_dropped: u64,
    /// Frames for the tunnel that found no space in a queue, or no carrier.
    pub tx_dropped: u64,
    /// Frames from the tunnel that the kernel found malformed.
    pub rx_errors: u64,
    /// Frames for the tunnel that failed.
    pub tx_errors: u64,
}

/// The state of a port in its Linux bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortReport {
    /// The bridge.
    pub bridge: String,
    /// `forwarding`, `learning`, `listening`, `blocking` or `disabled` (IEEE 802.1D).
    pub state: &'static str,
    /// Whether the bridge runs the spanning tree protocol, or something runs it for the bridge.
    pub stp: bool,
    /// Seconds for which it blocks a port that came up.
    pub stp_delay_s: u32,
    /// The VLANs of the port; none where the bridge does not filter VLANs.
    pub vlans: Option<BTreeSet<u16>>,
    /// VLANs of other ports that this one does not have.
    pub other_vlans: BTreeSet<u16>,
    /// Whether the bridge forwards nothing from it to other isolated ports.
    pub isolated: bool,
    /// Whether netfilter sees frames that cross the bridge.
    pub netfilter: bool,
    /// The chains of netfilter that frames pass when the bridge forwards them; none where the
    /// kernel does not report them.
    pub forward: Option<Vec<ForwardChain>>,
    /// The bridge's port with the largest MTU, if that is larger.
    pub wider: Option<(String, u32)>,
}

impl PortReport {
    /// What keeps frames from passing, each with its remedy. `device` is the port's name,
    /// `has_carrier` whether its carrier is on.
    pub(crate) fn remedies(&self, device: &str, mtu: u32, has_carrier: bool) -> Vec<String> {
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
        texts.extend(self.netfilter_remedy(device));
        texts
    }

    /// What netfilter does, or may do, to frames that cross the bridge.
    pub(crate) fn netfilter_remedy(&self, device: &str) -> Option<String> {
        let bridge = &self.bridge;
        let chains = self.forward.as_deref().unwrap_or_default();
        let mut dropping = chains.iter().filter(|chain| chain.drops == Some(true));
        if let Some(chain) = dropping.clone().find(|chain| !chain.knows_bridge) {
            return Some(format!(
                "netfilter drops what crosses `{bridge}` unless a rule accepts it: the policy of {chain} \
                 is drop, as Docker sets it: `{}`",
                chain.accept_command(bridge, device)
            ));
        }
        let is_clear = self.forward.is_some() && chains.iter().all(|chain| chain.drops.is_some());
        if !self.netfilter || (is_clear && dropping.next().is_some()) {
            return None;
        }
        if is_clear {
            // Rules may drop as well; where there is no chain, there is no rule.
            let chain = chains.first()?;
            return Some(format!(
                "netfilter sees the frames of `{bridge}` (br_netfilter); if some do not cross, look for a \
                 rule that drops them: `nft list table {} {}`",
                chain.family, chain.table
            ));
        }
        Some(format!(
            "netfilter sees the frames of `{bridge}` (br_netfilter), and the kernel does not tell the \
             policy of FORWARD: where `iptables-legacy -S FORWARD` says DROP, `iptables-legacy -I FORWARD -i \
             {bridge} -o {bridge} -j ACCEPT`"
        ))
    }
}

/// `1, 10-20`.
pub(crate) fn ranges(numbers: &BTreeSet<u16>) -> String {
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

/// What netfilter does by default to frames that cross the bridge, where it sees the frames of all
/// bridges. Cheap where it does not.
pub(crate) fn forward_policies(bridge: &str) -> Vec<ForwardChain> {
    match is_netfilter_on() {
        true => forward_chains(bridge, true).unwrap_or_default(),
        false => Vec::new(),
    }
}

impl Links {
    /// The state of this port in its bridge; none if it is in no bridge.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) async fn port_report(&self, index: u32) -> Result<Option<PortReport>, LinkError> {
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
        let netfilter = settings.netfilter || is_netfilter_on();
        let forward = match netfilter || has_nf_tables() {
            true => forward_chains(&bridge_info.name, netfilter).ok(),
            false => Some(Vec::new()),
        };
        Ok(Some(PortReport {
            bridge: bridge_info.name,
            state,
            stp: settings.stp,
            stp_delay_s: settings.stp_delay_s,
            vlans,
            other_vlans,
            isolated,
            netfilter,
            forward,
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
        let (mut own, mut others) = (BTreeSet::new(), BTreeSet::new());
        for (at, vlans) in self.all_port_vlans().await? {
            let is_port = links.iter().any(|link| {
                link.header.index == at && LinkInfo::parse(link).controller == Some(bridge)
            });
            match is_port {
                _ if at == index => own.extend(vlans.vids()),
                true => others.extend(vlans.vids()),
                false => {}
            }
        }
        let missing = others.difference(&own).copied().collect();
        Ok((Some(own), missing))
    }

    /// The counters of a device in the kernel.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) async fn counters(&self, index: u32) -> Result<KernelCounters, LinkError> {
        let request = self.netlink.handle().link().get().match_index(index);
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

/// The settings of a bridge for all its ports.
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
                // In hundredths of a second; a port passes two states, and a little more.
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

/// Whether the module is loaded already: a request would load it.
fn has_nf_tables() -> bool {
    fs::exists("/sys/module/nf_tables").unwrap_or(false)
}

fn is_netfilter_on() -> bool {
    let is_on = |path: &&str| fs::read_to_string(path).is_ok_and(|value| value.trim() == "1");
    BRIDGE_NETFILTER.iter().any(is_on)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{block_on, eventually, in_namespace, ip, wait_for_carrier};

    fn bridge(arguments: &str) {
        let mut command = std::process::Command::new("bridge");
        let output = command.args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "bridge {arguments}: {output:?}");
    }

    /// The port `veth0` of `br0`, with its carrier on, beside `veth2`.
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

    /// A bridge need not filter by VLAN, as not every kernel supports it.
    #[test]
    fn vlans_that_the_port_lacks_are_named() {
        let report = PortReport {
            bridge: "br0".to_owned(),
            state: "forwarding",
            stp: false,
            stp_delay_s: 0,
            vlans: Some([1].into()),
            other_vlans: [10, 11, 12].into(),
            isolated: false,
            netfilter: false,
            forward: None,
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
    fn each_obstacle_at_a_port_is_named_with_the_remedy() {
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
            ip("link set veth0 mtu 1420");
            let said = report().remedies("veth0", 1420, true).join("\n");
            assert!(
                said.contains("MTU 1420, but `veth2` in `br0` has 1500"),
                "{said}"
            );
        });
    }

    fn nft(arguments: &str) {
        let mut command = std::process::Command::new("nft");
        let output = command.arg(arguments).output().unwrap();
        assert!(output.status.success(), "nft {arguments}: {output:?}");
    }

    #[test]
    fn a_policy_of_netfilter_that_drops_is_said_with_the_remedy() {
        in_namespace(|| {
            make_port("");
            eventually(|| (report().state == "forwarding").then_some(())).unwrap();
            nft("add table ip filter");
            nft(
                "add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }",
            );
            nft("add chain ip filter INPUT { type filter hook input priority 0; policy drop; }");
            assert_eq!(remedies(), "", "netfilter does not see the frames");
            ip("link set br0 type bridge nf_call_iptables 1");
            let said = remedies();
            let dropped = "the policy of chain `FORWARD` of table `ip filter` is drop";
            assert!(said.contains(dropped), "{said}");
            let remedy = "`iptables -I FORWARD -i br0 -o br0 -j ACCEPT`";
            assert!(said.contains(remedy), "{said}");
            // Another bridge is not this one.
            nft("insert rule ip filter FORWARD iifname br01 oifname br01 accept");
            assert!(remedies().contains(dropped));
            nft("insert rule ip filter FORWARD iifname br0 oifname br0 accept");
            assert_eq!(remedies(), "", "somebody has thought of it");
            nft("flush chain ip filter FORWARD");
            nft("chain ip filter FORWARD { policy accept; }");
            assert!(
                remedies().contains("`nft list table ip filter`"),
                "{}",
                remedies()
            );
            nft("delete table ip filter");
            assert_eq!(remedies(), "", "there is nothing that could drop");
            nft("add table inet t");
            nft("add chain inet t f { type filter hook forward priority 0; policy drop; }");
            let said = remedies();
            let remedy = "`nft insert rule inet t f iifname br0 oifname br0 accept`";
            assert!(said.contains(remedy), "{said}");
        });
    }

    #[test]
    fn unknown_policies_of_netfilter_are_reported_as_unknown() {
        let known = |forward| PortReport {
            bridge: "br0".to_owned(),
            state: "forwarding",
            stp: false,
            stp_delay_s: 0,
            vlans: None,
            other_vlans: BTreeSet::new(),
            isolated: false,
            netfilter: true,
            forward,
            wider: None,
        };
        let legacy = ForwardChain {
            family: "ip",
            table: "filter".to_owned(),
            name: "FORWARD".to_owned(),
            drops: None,
            knows_bridge: false,
        };
        for forward in [None, Some(vec![legacy])] {
            let said = known(forward).netfilter_remedy("veth0").unwrap();
            assert!(said.contains("the kernel does not tell"), "{said}");
            assert!(said.contains("`iptables-legacy -S FORWARD`"), "{said}");
        }
        assert_eq!(known(Some(Vec::new())).netfilter_remedy("veth0"), None);
    }
}
