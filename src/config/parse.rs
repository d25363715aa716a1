// SPDX-License-Identifier: MIT OR Apache-2.0
//! The whole file: from text to [`Config`]. Each section is read by the file of its name.
//!
//! Pure: the contents of key files come through a function that the caller passes in. Goes on after
//! an error wherever it can, so that one run shows them all.

use std::path::Path;

use toml::de::DeTable;

use super::device::{DeviceConfig, Mode};
use super::error::{ConfigErrors, Report};
use super::key_files::{KeyFiles, ReadKeyFile};
use super::model::Config;
use super::name::tunnel_name;
use super::section::Section;
use super::stations::Stations;
use super::written::Written;
use super::{combinations, syntax, unknown};
use super::{device, peer, pipeline, switch, tunnel};

impl Config {
    /// Reads the text of the file at `file`, whose stem is the tunnel's name.
    ///
    /// `file` is not opened: it goes into errors, and key files are relative to its directory.
    ///
    /// # Errors
    /// Everything that is wrong with the text and with the key files that it names.
    pub fn parse(
        text: &str,
        file: &Path,
        read_key_file: ReadKeyFile<'_>,
    ) -> Result<Self, ConfigErrors> {
        let mut report = Report::new(file, text);
        let (document, syntax_errors) = DeTable::parse_recoverable(text);
        if !syntax_errors.is_empty() {
            // The recovered part of the document would yield errors that are not there.
            syntax::report_errors(text, syntax_errors, &mut report);
            return report.finish(None);
        }
        let key_files = KeyFiles {
            file,
            read: read_key_file,
        };
        let config = read(document.get_ref(), &key_files, &mut report);
        report.finish(config)
    }
}

/// None only after an error was reported; but with errors reported there may be a value.
fn read(
    document: &DeTable<'_>,
    key_files: &KeyFiles<'_>,
    report: &mut Report<'_>,
) -> Option<Config> {
    unknown::report_unknown(document, report);
    let name = tunnel_name(key_files.file)
        .map_err(|error| report.add(&(0..0), "", error.problem().to_owned()))
        .ok();
    let sections = Sections::of(document, report);

    let mut stations = Stations::default();
    let tunnel = tunnel::read(&sections.tunnel, key_files, report);
    let device = device::read(&sections.device, &mut stations, report);
    let switch = switch::read(&sections.switch, report);
    let pipeline = pipeline::read(&sections.pipeline, report);
    let peers = sections.peers.iter();
    let peers: Vec<_> = peers
        .filter_map(|peer| peer::read(peer, key_files, &mut stations, report))
        .collect();

    sections.check(&device, report);
    let room = switch.room(1 + sections.peers.len());
    stations.check_room(room, report);
    combinations::check_peers_differ(&peers, report);
    if let Some(tunnel) = &tunnel {
        combinations::check_peers_fit(tunnel, &peers, report);
    }
    if !switch.hub {
        combinations::check_ports_meet(&device, &peers, report);
    }
    Some(Config {
        file: key_files.file.to_owned(),
        written: Written::of(document),
        name: name?,
        tunnel: tunnel?,
        device,
        peers: peers.into_iter().map(|(_, peer)| peer).collect(),
        switch,
        pipeline,
    })
}

/// All sections but those of ports, which are within others.
struct Sections<'t, 'i> {
    tunnel: Section<'t, 'i>,
    device: Section<'t, 'i>,
    peers: Vec<Section<'t, 'i>>,
    switch: Section<'t, 'i>,
    pipeline: Section<'t, 'i>,
}

impl<'t, 'i> Sections<'t, 'i> {
    fn of(document: &'t DeTable<'i>, report: &mut Report<'_>) -> Self {
        Self {
            tunnel: Section::within(document, &tunnel::SCHEMA, report),
            device: Section::within(document, &device::SCHEMA, report),
            peers: peer_sections(document, report),
            switch: Section::within(document, &switch::SCHEMA, report),
            pipeline: Section::within(document, &pipeline::SCHEMA, report),
        }
    }

    /// Checks sections against each other, by the keys that are in them.
    fn check(&self, device: &DeviceConfig, report: &mut Report<'_>) {
        combinations::check_device(&self.device, device, self.peers.len(), report);
        if device.mode == Mode::Wire {
            let Self {
                switch,
                device: section,
                peers,
                ..
            } = self;
            combinations::refuse_beside_wire(device.is_nic, switch, section, peers, report);
        }
        combinations::check_initiator(&self.tunnel, &self.peers, report);
    }
}

fn peer_sections<'t, 'i>(
    document: &'t DeTable<'i>,
    report: &mut Report<'_>,
) -> Vec<Section<'t, 'i>> {
    let header = peer::SCHEMA.header;
    let Some(value) = document.get(peer::SCHEMA.name) else {
        let problem = "there is no peer; add a section `[[peer]]` with its `public-key`";
        report.add(&(0..0), header, problem.into());
        return Vec::new();
    };
    let tables = value.get_ref().as_array().map(|items| {
        items
            .iter()
            .map(|item| Some((item.get_ref().as_table()?, item.span())))
            .collect()
    });
    let tables: Vec<_> = tables.flatten().unwrap_or_default();
    if tables.is_empty() {
        let problem = "must be a list of sections; write `[[peer]]`, with two brackets";
        report.add(&value.span(), header, problem.into());
    }
    tables
        .into_iter()
        .map(|(table, span)| Section::new(&peer::SCHEMA, table, span))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use patchcord_bridge::{PortConfig, PortVlans, Vid};

    use super::*;
    use crate::config::device::{Backend, Carrier};
    use crate::config::pipeline::{OffloadChoice, PipelineConfig, PlanChoice};
    use crate::config::switch::SwitchSettings;
    use crate::config::testing::{OWN, PEER_A, PEER_C, PRESHARED, minimal, parse};
    use crate::config::tunnel::{CipherChoice, TcpMss};

    #[test]
    fn fills_in_defaults() {
        let config = parse(&minimal()).unwrap();
        assert_eq!(config.name, "site-a");
        assert_eq!(*config.tunnel.private_key.to_base64(), OWN);
        assert_eq!(config.tunnel.listen, "0.0.0.0:51830".parse().unwrap());
        assert_eq!(config.tunnel.cipher, CipherChoice::Auto);
        assert_eq!(config.tunnel.network_id, 0);
        assert_eq!(config.tunnel.rekey_interval, Duration::from_secs(120));
        assert_eq!(
            (config.device.name.as_str(), config.device.mtu),
            ("pc0", 1500)
        );
        assert_eq!((&config.device.bridge, config.device.mac), (&None, None));
        assert_eq!(
            (config.device.is_nic, config.device.mode),
            (false, Mode::Switch)
        );
        assert!(config.device.addresses.is_empty());
        assert!(!config.device.accept_router_advertisements);
        assert_eq!(config.device.carrier, Carrier::Peer);
        assert_eq!(config.device.backend, Backend::Auto);
        assert_eq!(config.device.port, PortConfig::default());
        assert_eq!(config.pipeline, PipelineConfig::default());
        assert_eq!(
            config.switch,
            SwitchSettings {
                hub: false,
                capacity: None,
                ageing: Duration::from_secs(300),
                dampening: Duration::from_secs(1),
                max_addresses: 4096,
                loop_guard: true,
                querier: false,
            }
        );
        let [peer] = &config.peers[..] else {
            panic!("one peer: {:?}", config.peers)
        };
        assert_eq!(
            (peer.name.as_str(), peer.public_key.to_string()),
            (PEER_A, PEER_A.into())
        );
        assert_eq!(
            (&peer.endpoint, peer.keepalive),
            (&None, Duration::from_secs(10))
        );
        assert!(peer.preshared_key.is_none());
        assert_eq!(peer.port, PortConfig::default());
    }

    #[test]
    fn takes_every_key() {
        let config = parse(&everything()).unwrap();
        assert_eq!(config.tunnel.listen, "[::]:51830".parse().unwrap());
        assert_eq!(config.tunnel.cipher, CipherChoice::ChaCha20Poly1305);
        assert_eq!(config.tunnel.network_id, 0xff_ffff);
        assert_eq!(config.tunnel.tcp_mss, TcpMss::Path);
        assert_eq!(config.tunnel.rekey_interval, Duration::from_secs(1));
        assert_eq!(config.device.mtu, 9216);
        assert_eq!(config.device.mac.unwrap().to_string(), "02:00:5e:10:00:01");
        let addresses: Vec<_> = config
            .device
            .addresses
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(addresses, ["10.99.0.1/24", "fd00::1/64"]);
        assert!(config.device.accept_router_advertisements);
        assert_eq!(config.device.carrier, Carrier::Always);
        assert_eq!(config.device.backend, Backend::Plain);
        assert_eq!(config.device.mode, Mode::Switch);
        assert_eq!(
            config.pipeline,
            PipelineConfig {
                plan: PlanChoice::Staged,
                lanes: Some(1),
                workers: Some(2),
                pin: Some(false),
                nice: Some(-5),
                latency: Some(20),
                express: true,
                udp_gso: OffloadChoice::Off,
                udp_gro: OffloadChoice::Off,
            }
        );
        assert_eq!(
            config.switch,
            SwitchSettings {
                hub: true,
                capacity: Some(1 << 20),
                ageing: Duration::from_secs(24 * 3600),
                dampening: Duration::from_secs(60),
                max_addresses: 1 << 20,
                loop_guard: false,
                querier: true,
            }
        );
        // Beside the keys of a port are tests of each.
        assert!(config.device.port.neighbour_suppression);
        let [peer] = &config.peers[..] else {
            panic!("one peer: {:?}", config.peers)
        };
        assert_eq!(peer.name, "site-b");
        assert_eq!(
            peer.endpoint.as_ref().unwrap().to_string(),
            "site-b.example.net:51830"
        );
        assert_eq!(peer.keepalive, Duration::from_secs(25));
        assert_eq!(*peer.preshared_key.as_ref().unwrap().to_base64(), PRESHARED);
        assert!(peer.port.spoof_guard);
    }

    #[test]
    fn each_peer_has_a_port_of_its_own() {
        let text = format!(
            "[tunnel]\nprivate-key-file = 'a.key'\nlisten = '[::]:1'\n[device]\nname = 'pc0'\n\
             [[peer]]\npublic-key = '{PEER_A}'\n[peer.port]\naccess = 10\n\
             [[peer]]\npublic-key = '{PRESHARED}'\nport.access = 20\n\
             [[peer]]\npublic-key = '{PEER_C}'\n"
        );
        let config = parse(&text).unwrap();
        let access = |vid| PortVlans::access(Vid::new(vid).unwrap()).unwrap();
        let ports: Vec<_> = config.peers.iter().map(|peer| &peer.port.vlans).collect();
        assert_eq!(ports, [&access(10), &access(20), &PortVlans::default()]);
    }

    #[test]
    fn reports_every_error_in_the_order_of_the_file() {
        let text = "[tunnel]\nlisten = 51830\n\n[device]\nname = 'a-very-long-name'\n\
                    \tmtu = 67 # ä\nlisten = '[::]:1'\n[[peer]]\nendpoint = 'b'\nfoo = 1\n";
        let errors = parse(text).unwrap_err();
        let seen: Vec<_> = errors
            .iter()
            .map(|error| (error.line(), error.key()))
            .collect();
        assert_eq!(
            seen,
            [
                (Some(1), "[tunnel] private-key-file"),
                (Some(2), "[tunnel] listen"),
                (Some(5), "[device] name"),
                (Some(6), "[device] mtu"),
                (Some(7), "[device] listen"),
                (Some(8), "[[peer]] public-key"),
                (Some(9), "[[peer]] endpoint"),
                (Some(10), "[[peer]] foo"),
            ]
        );
        let printed = errors.to_string();
        let mtu = "/etc/patchcord/site-a.toml:6:8: [device] mtu: `67` is out of range; \
                   write 68 to 65521";
        assert!(printed.lines().any(|line| line == mtu), "{printed}");
    }

    #[test]
    fn no_secret_in_debug_output() {
        let printed = format!("{:?}", parse(&everything()).unwrap());
        for secret in [OWN, PRESHARED] {
            assert!(!printed.contains(secret), "{printed}");
        }
    }

    proptest! {
        /// Every cut and every replaced character of a full file ends in a value or in errors.
        #[test]
        fn survives_damage(cut in 0usize..1500, at in 0usize..1500, with in any::<char>()) {
            let whole = everything();
            let damaged: String = whole
                .chars()
                .enumerate()
                .map(|(index, c)| if index == at { with } else { c })
                .take(cut)
                .collect();
            if let Err(errors) = parse(&damaged) {
                prop_assert!(errors.iter().count() > 0);
            }
        }

        #[test]
        fn survives_garbage(text in any::<String>()) {
            prop_assert!(parse(&text).is_err());
        }
    }

    fn everything() -> String {
        format!(
            r#"
[tunnel]
private-key-file = "a.key"
listen = "[::]:51830"
cipher = "chacha20-poly1305"
network-id = 0xffffff
tcp-mss = "path"
rekey-interval = "1s"
[device]
name = "pc0"
mtu = 9216
mac = "02:00:5e:10:00:01"
addresses = ["10.99.0.1/24", "fd00::1/64"]
accept-router-advertisements = true
carrier = "always"
backend = "plain"
mode = "switch"
[device.port]
trunk = [10, "20-29"]
native = 5
translate = {{ 110 = 10, 120 = 20 }}
max-broadcast = 100
max-multicast = 1000
max-unknown = 0
neighbour-suppression = true
multicast-snooping = true
[[peer]]
name = "site-b"
public-key = "{PEER_A}"
endpoint = "site-b.example.net:51830"
keepalive = "25s"
preshared-key-file = "/keys/ab.psk"
[peer.port]
tunnel = 200
tag = "802.1q"
stations = ["02:00:00:00:00:01", {{ mac = "02:00:00:00:00:02", vlan = 200 }}]
bpdu = "guard"
dhcp-server = "drop"
router-advertisements = "drop"
spoof-guard = true
sources = ["02:00:00:00:00:01", "02:00:00:00:00:02"]
[switch]
hub = true
capacity = 1048576
ageing = "1d"
dampening = "60s"
max-addresses = 1048576
loop-guard = false
querier = true
[pipeline]
plan = "staged"
lanes = 1
workers = 2
pin = false
nice = -5
latency = 20
express = true
udp-gso = "off"
udp-gro = "off"
"#
        )
    }
}
