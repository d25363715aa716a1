// SPDX-License-Identifier: MIT OR Apache-2.0
//! The whole file: from text to [`Config`], including what one key demands of another.
//!
//! Pure: the contents of key files come through a function that the caller passes in. Goes on after
//! an error wherever it can, so that one run shows them all.

use std::collections::HashSet;
use std::hash::Hash;
use std::net::Ipv6Addr;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use patchcord_bridge::VidSet;
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use zeroize::Zeroizing;

use super::error::Report;
use super::keys::{DEVICE, DEVICE_PORT, PEER, PEER_PORT, PIPELINE, SWITCH, TUNNEL};
use super::name::tunnel_name;
use super::section::{self, Section};
use super::stations::Stations;
use super::{combinations, port, syntax, value, vlan};
use super::{
    error::ConfigErrors,
    load::KeyFileError,
    model::{
        BridgeVlans, Config, DeviceConfig, Endpoint, Mode, PeerConfig, PipelineConfig, PlanChoice,
        SwitchSettings, TunnelConfig,
    },
};
use crate::crypto::keys::{KeyError, PresharedKey, PrivateKey};

/// Reads a key file, given its full path.
type ReadKeyFile<'a> = &'a dyn Fn(&Path) -> Result<Zeroizing<String>, KeyFileError>;

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
            // What was recovered would only yield errors that are not there.
            syntax::report_errors(text, syntax_errors, &mut report);
            return report.finish(None);
        }
        let mut parser = Parser {
            file,
            read_key_file,
            report,
            stations: Stations::default(),
        };
        let config = parser.config(document.get_ref());
        parser.report.finish(config)
    }
}

struct Parser<'a> {
    file: &'a Path,
    read_key_file: ReadKeyFile<'a>,
    report: Report<'a>,
    stations: Stations,
}

impl Parser<'_> {
    /// None only after an error was reported; but with errors reported there may be a value.
    fn config(&mut self, document: &DeTable<'_>) -> Option<Config> {
        for (name, _) in document {
            let known = [TUNNEL, DEVICE, PEER, SWITCH, PIPELINE].map(|schema| schema.name);
            if !known.contains(&name.get_ref().as_ref()) {
                let problem = section::unknown_section(name.get_ref());
                self.report
                    .add(&name.span(), name.get_ref().as_ref(), problem);
            }
        }
        let name = tunnel_name(self.file)
            .map_err(|error| self.report.add(&(0..0), "", error.problem().to_owned()))
            .ok();
        let tunnel = Section::within(document, &TUNNEL, &mut self.report);
        let peers = self.peer_sections(document);
        let device = Section::within(document, &DEVICE, &mut self.report);
        let switch = Section::within(document, &SWITCH, &mut self.report);
        let pipeline = Section::within(document, &PIPELINE, &mut self.report);

        let tunnel_config = self.tunnel(&tunnel);
        let device_config = self.device(&device, peers.len());
        if let Some(device_config) = &device_config
            && device_config.mode == Mode::Wire
        {
            let switch = document.get(SWITCH.name);
            self.refuse_beside_wire(device_config.is_nic, switch, &device, &peers);
        }
        let switch = self.switch(&switch);
        let pipeline = self.pipeline(&pipeline);
        let peer_configs: Vec<_> = peers.iter().filter_map(|peer| self.peer(peer)).collect();
        let room = switch.room(1 + peers.len());
        self.stations.check_room(room, &mut self.report);
        self.check_someone_can_begin(&tunnel, &peers);
        self.check_peers_differ(&peer_configs);
        if let Some(tunnel) = &tunnel_config {
            self.check_peers_fit(tunnel, &peer_configs);
        }
        if let Some(device) = &device_config
            && !switch.hub
        {
            self.check_ports_meet(device, &peer_configs);
        }
        Some(Config {
            name: name?,
            tunnel: tunnel_config?,
            device: device_config?,
            peers: peer_configs.into_iter().map(|(_, peer)| peer).collect(),
            switch,
            pipeline,
        })
    }

    /// Whoever asks for a guard must not believe that there is one.
    fn refuse_beside_wire(
        &mut self,
        is_nic: bool,
        switch: Option<&Spanned<DeValue<'_>>>,
        device: &Section<'_, '_>,
        peers: &[Section<'_, '_>],
    ) {
        let other = match is_nic {
            true => "make a TAP with `name` instead of `nic`",
            false => "write `mode = \"switch\"`",
        };
        let problem =
            format!("a wire looks at no frame, and has nothing of this; remove it, or {other}");
        if let Some(switch) = switch {
            self.report
                .add(&switch.span(), SWITCH.header, problem.clone());
        }
        let ends = std::iter::once(device).chain(peers);
        for end in ends.filter(|end| end.holds("port")) {
            end.refuse("port", &mut self.report, problem.clone());
        }
    }

    fn peer_sections<'t, 'i>(&mut self, document: &'t DeTable<'i>) -> Vec<Section<'t, 'i>> {
        let header = PEER.header;
        let Some(value) = document.get(PEER.name) else {
            let problem = "there is no peer; add a section `[[peer]]` with its `public-key`";
            self.report.add(&(0..0), header, problem.into());
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
            self.report.add(&value.span(), header, problem.into());
        }
        let report = &mut self.report;
        tables
            .into_iter()
            .map(|(table, span)| Section::new(&PEER, table, span, report))
            .collect()
    }

    fn tunnel(&mut self, section: &Section<'_, '_>) -> Option<TunnelConfig> {
        let remedy = "make a key with `umask 077; patchcord genkey > a.key` and name the file here";
        let report = &mut self.report;
        let key_path = section.require("private-key-file", report, remedy, value::key_path);
        let listen = section.read("listen", report, value::listen);
        let cipher = section.read("cipher", report, value::cipher);
        let network_id = section.read("network-id", report, value::network_id);
        let rekey_interval = section.read("rekey-interval", report, value::rekey_interval);
        let private_key = self.key(section, "private-key-file", &key_path?, |text| {
            PrivateKey::from_base64(text).map_err(|error| (error, "patchcord genkey"))
        });
        Some(TunnelConfig {
            private_key: private_key?,
            listen: listen.unwrap_or_else(|| (Ipv6Addr::UNSPECIFIED, 0).into()),
            cipher: cipher.unwrap_or_default(),
            network_id: network_id.unwrap_or(0),
            rekey_interval: rekey_interval.unwrap_or(Duration::from_secs(120)),
        })
    }

    fn device(&mut self, section: &Section<'_, '_>, peers: usize) -> Option<DeviceConfig> {
        let report = &mut self.report;
        let is_nic = section.holds("nic");
        let name = if is_nic {
            section.read("nic", report, value::interface_name)
        } else {
            let remedy = "name the interface, for example `name = \"pc0\"`, or a network card that \
                          is one end of a wire, for example `nic = \"eth1\"`";
            section.require("name", report, remedy, value::interface_name)
        };
        let mode = section.read("mode", report, value::mode);
        let overlay_mtu = section
            .read("mtu", report, value::overlay_mtu)
            .unwrap_or(1500);
        let bridge = section.read("bridge", report, value::interface_name);
        let bridge_vlans = bridge_vlans(section, report);
        let mac = section.read("mac", report, value::mac);
        let addresses = section
            .read("addresses", report, value::addresses)
            .unwrap_or_default();
        let accept_router_advertisements =
            section.read_flag("accept-router-advertisements", report);
        let carrier = section
            .read("carrier", report, value::carrier)
            .unwrap_or_default();
        let link_loss_forwarding = section.read_flag("link-loss-forwarding", report);
        let backend = section
            .read("backend", report, value::backend)
            .unwrap_or_default();
        let port = port::port(
            &section.nested(&DEVICE_PORT, report),
            report,
            &mut self.stations,
        );

        let device = DeviceConfig {
            name: name.clone().unwrap_or_default(),
            is_nic,
            mode: mode.unwrap_or(if is_nic { Mode::Wire } else { Mode::Switch }),
            mtu: overlay_mtu,
            bridge,
            bridge_vlans,
            mac,
            addresses,
            accept_router_advertisements: accept_router_advertisements.unwrap_or(false),
            carrier,
            link_loss_forwarding: link_loss_forwarding.unwrap_or(false),
            backend,
            port,
        };
        combinations::check_device(section, report, &device, peers);
        name.map(|_| device)
    }

    fn switch(&mut self, section: &Section<'_, '_>) -> SwitchSettings {
        let report = &mut self.report;
        let default = SwitchSettings::default();
        let most = 1 << 20;
        let capacity = section.read("capacity", report, |value| {
            value::stations(value, 8..=most, "capacity = 8192")
        });
        let max_addresses = section.read("max-addresses", report, |value| {
            value::stations(value, 1..=most, "max-addresses = 4096")
        });
        if let (Some(max_addresses), Some(room)) = (max_addresses, capacity)
            && max_addresses > room
        {
            let problem = format!(
                "{max_addresses} is more than there is room for in all, which is {room}; write a \
                 `capacity` of twice as many as there are stations"
            );
            section.refuse("max-addresses", report, problem);
        }
        SwitchSettings {
            hub: section.read_flag("hub", report).unwrap_or(default.hub),
            capacity,
            ageing: section
                .read("ageing", report, value::ageing)
                .unwrap_or(default.ageing),
            dampening: section
                .read("dampening", report, value::dampening)
                .unwrap_or(default.dampening),
            max_addresses: max_addresses.unwrap_or(default.max_addresses),
            loop_guard: section
                .read_flag("loop-guard", report)
                .unwrap_or(default.loop_guard),
            querier: section
                .read_flag("querier", report)
                .unwrap_or(default.querier),
        }
    }

    fn pipeline(&mut self, section: &Section<'_, '_>) -> PipelineConfig {
        let report = &mut self.report;
        let plan = section
            .read("plan", report, value::plan)
            .unwrap_or_default();
        let lanes = section.read("lanes", report, value::lanes);
        if plan == PlanChoice::Staged && lanes.is_some_and(|lanes| lanes > 1) {
            let problem = "the staged plan has one lane; write `plan = \"inline\"`, or `lanes = 1`";
            section.refuse("lanes", report, problem.into());
        }
        PipelineConfig {
            plan,
            lanes,
            workers: section.read("workers", report, value::workers),
            pin: section.read_flag("pin", report),
            nice: section.read("nice", report, value::nice),
            udp_gso: section
                .read("udp-gso", report, value::offload)
                .unwrap_or_default(),
            udp_gro: section
                .read("udp-gro", report, value::offload)
                .unwrap_or_default(),
        }
    }

    /// With the position of its public key, for the checks between peers.
    fn peer(&mut self, section: &Section<'_, '_>) -> Option<(PeerSpans, PeerConfig)> {
        let report = &mut self.report;
        let remedy = "write what `patchcord pubkey` printed at the peer";
        let public_key = section.require("public-key", report, remedy, value::public_key);
        let name = section.read("name", report, value::peer_name);
        let endpoint = section.read("endpoint", report, value::endpoint);
        let keepalive = section.read("keepalive", report, value::keepalive);
        let port = port::port(
            &section.nested(&PEER_PORT, report),
            report,
            &mut self.stations,
        );
        let preshared_path = section.read("preshared-key-file", report, value::key_path);
        let preshared_key = preshared_path.and_then(|path| {
            self.key(section, "preshared-key-file", &path, |text| {
                PresharedKey::from_base64(text).map_err(|error| (error, "patchcord genpsk"))
            })
        });
        let spans = PeerSpans {
            name: section.span_of("name"),
            public_key: section.span_of("public-key"),
            endpoint: section.span_of("endpoint"),
            port: section.span_of("port"),
        };
        let public_key = public_key?;
        Some((
            spans,
            PeerConfig {
                name: name.unwrap_or_else(|| public_key.to_string()),
                public_key,
                endpoint,
                keepalive: keepalive.unwrap_or(Duration::from_secs(10)),
                preshared_key,
                port,
            },
        ))
    }

    /// Reads the key file at `path`, relative to the configuration file.
    fn key<T>(
        &mut self,
        section: &Section<'_, '_>,
        key: &str,
        path: &Path,
        decode: impl FnOnce(&str) -> Result<T, (KeyError, &'static str)>,
    ) -> Option<T> {
        let path = self.file.with_file_name(path);
        let decoded = (self.read_key_file)(&path)
            .map_err(|error| error.to_string())
            .and_then(|text| {
                decode(&text).map_err(|(error, command)| {
                    format!("{} {error}; make a key with `{command}`", path.display())
                })
            });
        decoded
            .map_err(|problem| section.refuse(key, &mut self.report, problem))
            .ok()
    }

    fn check_someone_can_begin(&mut self, tunnel: &Section<'_, '_>, peers: &[Section<'_, '_>]) {
        if peers.is_empty() || tunnel.has("listen") || peers.iter().any(|p| p.has("endpoint")) {
            return;
        }
        let problem = "is missing and no peer has an `endpoint`, so neither side can begin; \
                       write `listen = \"[::]:51830\"` or give a peer an `endpoint`";
        tunnel.refuse("listen", &mut self.report, problem.into());
    }

    fn check_peers_fit(&mut self, tunnel: &TunnelConfig, peers: &[(PeerSpans, PeerConfig)]) {
        let own = tunnel.private_key.public_key();
        for (spans, peer) in peers {
            if peer.public_key == own {
                let problem = "is this tunnel's own public key; write the peer's, which \
                               `patchcord pubkey` prints there";
                self.report
                    .add(&spans.public_key, "[[peer]] public-key", problem.into());
            }
            if let Some(Endpoint::Addr(endpoint)) = peer.endpoint
                && !value::is_reachable(tunnel.listen, endpoint)
            {
                let listen = tunnel.listen;
                let problem = format!(
                    "`{endpoint}` cannot be reached from `listen = \"{listen}\"`, which is of the \
                     other IP version; write `listen = \"[::]:{}\"`",
                    listen.port()
                );
                self.report
                    .add(&spans.endpoint, "[[peer]] endpoint", problem);
            }
            if let Some(Endpoint::Addr(endpoint)) = peer.endpoint
                && value::is_own(tunnel.listen, endpoint)
            {
                let problem =
                    format!("`{endpoint}` is where this tunnel listens; write the peer's");
                self.report
                    .add(&spans.endpoint, "[[peer]] endpoint", problem);
            }
        }
    }

    /// Without a hub, a peer's frames go to the device only.
    fn check_ports_meet(&mut self, device: &DeviceConfig, peers: &[(PeerSpans, PeerConfig)]) {
        for (spans, peer) in peers {
            if !combinations::share_a_vlan(&device.port.vlans, &peer.port.vlans) {
                let problem = format!(
                    "peer `{}` has no VLAN that [device.port] has too, so no frame passes between \
                     them; give both the same one, which is its number inside the switch",
                    peer.name
                );
                self.report.add(&spans.port, "[peer.port]", problem);
            }
        }
    }

    fn check_peers_differ(&mut self, peers: &[(PeerSpans, PeerConfig)]) {
        let keys = peers
            .iter()
            .map(|(spans, peer)| (&peer.public_key, &spans.public_key));
        for (span, _) in repeated(keys) {
            let problem = "is also the key of an earlier peer; each peer has its own key pair";
            self.report
                .add(&span, "[[peer]] public-key", problem.into());
        }
        let names = peers.iter().map(|(spans, peer)| (&peer.name, &spans.name));
        for (span, name) in repeated(names) {
            let problem = format!("`{name}` is also the name of an earlier peer; rename one");
            self.report.add(&span, "[[peer]] name", problem);
        }
    }
}

/// The VLANs of the port of the bridge, none if nothing is said of them.
fn bridge_vlans(section: &Section<'_, '_>, report: &mut Report<'_>) -> Option<BridgeVlans> {
    let tagged = section.read("bridge-vlans", report, vlan::vids);
    let native = section.read("bridge-native", report, |value| {
        vlan::vid(value, 1, "bridge-native = 1")
    });
    (tagged.is_some() || native.is_some()).then(|| BridgeVlans {
        tagged: tagged.unwrap_or(VidSet::EMPTY),
        native,
    })
}

struct PeerSpans {
    name: Range<usize>,
    public_key: Range<usize>,
    endpoint: Range<usize>,
    port: Range<usize>,
}

/// Every value but the first of those that are equal.
fn repeated<'a, T: Eq + Hash>(
    values: impl Iterator<Item = (&'a T, &'a Range<usize>)>,
) -> Vec<(Range<usize>, &'a T)> {
    let mut seen = HashSet::new();
    values
        .filter(|(value, _)| !seen.insert(*value))
        .map(|(value, span)| (span.clone(), value))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use patchcord_bridge::{PortConfig, PortVlans, Vid};

    use super::*;
    use crate::config::model::{Backend, Carrier, CipherChoice, OffloadChoice};

    // RFC 7748, section 6.1.
    const OWN: &str = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
    const PEER_A: &str = "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=";
    const PEER_C: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmw=";
    const PRESHARED: &str = "XasIfmJKikt54X+Lg4AO5m87sSkmGLb9HC+LJ/+I4Os=";

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
        // What all the keys of a port mean is tested beside them.
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

    /// A file whose `[device]` begins in line 5, with this many peers.
    fn with_device(device: &str, peers: usize) -> Result<Config, ConfigErrors> {
        let keys = [PEER_A, "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8="];
        let peers: String = keys[..peers]
            .iter()
            .map(|key| format!("[[peer]]\npublic-key = '{key}'\n"))
            .collect();
        parse(&format!(
            "[tunnel]\nprivate-key-file = 'a.key'\nlisten = '0.0.0.0:51830'\n\n\
             [device]\n{device}\n{peers}"
        ))
    }

    #[test]
    fn a_nic_is_one_end_of_a_wire() {
        for (device, mode, is_nic) in [
            ("nic = 'eth1'", Mode::Wire, true),
            ("nic = 'eth1'\nmode = 'wire'", Mode::Wire, true),
            ("name = 'eth1'\nmode = 'wire'", Mode::Wire, false),
            ("name = 'eth1'\nmode = 'switch'", Mode::Switch, false),
        ] {
            let device = with_device(device, 1).unwrap().device;
            assert!(!device.link_loss_forwarding);
            let seen = (device.name.as_str(), device.mode, device.is_nic);
            assert_eq!(seen, ("eth1", mode, is_nic));
        }
    }

    #[test]
    fn a_port_of_a_bridge_may_have_vlans_of_its_own() {
        for (keys, expected) in [
            ("", None),
            (
                "bridge-vlans = '10, 20-22'",
                Some((vec![10, 20, 21, 22], None)),
            ),
            ("bridge-native = 5", Some((vec![], Some(5)))),
            (
                "bridge-vlans = [10]\nbridge-native = 5",
                Some((vec![10], Some(5))),
            ),
        ] {
            let device = with_device(&format!("name = 'pc0'\nbridge = 'br0'\n{keys}"), 1);
            let vlans = device.unwrap().device.bridge_vlans;
            let seen = vlans.map(|vlans| {
                let tagged: Vec<_> = vlans.tagged.iter().map(Vid::value).collect();
                (tagged, vlans.native.map(Vid::value))
            });
            assert_eq!(seen, expected, "{keys}");
        }
    }

    #[test]
    fn a_tap_is_a_port_of_a_bridge_or_a_station() {
        let device = with_device("name = 'pc0'\nbridge = 'br-lan'", 1)
            .unwrap()
            .device;
        assert_eq!(device.bridge.as_deref(), Some("br-lan"));
        assert!(device.addresses.is_empty());
    }

    #[test]
    fn link_loss_is_forwarded_by_a_nic_only() {
        let nic = with_device("nic = 'eth1'\nlink-loss-forwarding = true", 1);
        assert!(nic.unwrap().device.link_loss_forwarding);
        let tap = with_device(
            "name = 'pc0'\nmode = 'wire'\nlink-loss-forwarding = true",
            1,
        );
        let text = tap.unwrap_err().to_string();
        assert!(text.contains("goes with `nic` only"), "{text}");
    }

    #[test]
    fn what_does_not_go_with_a_nic_or_a_wire_is_said_with_its_remedy() {
        let nic = "does not go with `nic`: ";
        for (device, peers, key, problem) in [
            ("nic = 'eth1'\nname = 'pc0'", 1, "name", format!("{nic}the device is the NIC; remove one of the two")),
            ("nic = 'eth1'\nbridge = 'br0'", 1, "bridge", format!("{nic}its frames go to the peer alone; remove it, or make a TAP with `name`")),
            ("nic = 'eth1'\naddresses = []", 1, "addresses", format!("{nic}this machine is no station of the wire; remove them, or make a TAP with `name`")),
            ("nic = 'eth1'\nmac = '02:00:5e:10:00:01'", 1, "mac", format!("{nic}a NIC keeps its own; remove it")),
            ("nic = 'eth1'\nmtu = 1500", 1, "mtu", format!("{nic}a NIC keeps its own; remove it, and use `ip link set NIC mtu …`")),
            ("nic = 'eth1'\ncarrier = 'always'", 1, "carrier", format!("{nic}a NIC has a cable of its own; remove it, or make a TAP with `name`")),
            ("nic = 'eth1'\naccept-router-advertisements = true", 1, "accept-router-advertisements", format!("{nic}this machine is no station of the wire; remove it, or make a TAP with `name`")),
            ("name = 'pc0'\nbridge = 'br0'\naccept-router-advertisements = true", 1, "accept-router-advertisements", "needs a station, and a port of a bridge is none; remove it, or set `net.ipv6.conf.BRIDGE.accept_ra` of the bridge".to_owned()),
            ("name = 'pc0'\nbridge = 'br0'\naddresses = ['10.0.0.1/24', 'fd00::1/64']", 1, "addresses", "this machine does not answer at an address of a port of a bridge; give it to the bridge (`ip address add 10.0.0.1/24 dev br0`, or in what configures the network) and remove it, or remove `bridge`".to_owned()),
            ("name = 'pc0'\nbridge-vlans = '10'", 1, "bridge-vlans", "is about a port of a bridge; write `bridge` too, or remove it".to_owned()),
            ("name = 'pc0'\nbridge = 'br0'\nbridge-native = 0", 1, "bridge-native", "`0` is out of range; write 1 to 4094".to_owned()),
            ("nic = 'eth1'\nbridge-native = 1", 1, "bridge-native", format!("{nic}its frames go to the peer alone; remove it, or make a TAP with `name`")),
            ("name = 'pc0'\naddresses = ['10.0.0.1/24']\nport.trunk = '10'", 1, "addresses", "this machine speaks at `pc0` without tags, which the trunk of [device.port] refuses; write `native` there, or give the address to an interface of the VLAN (`ip link add link pc0 name pc0.10 type vlan id 10`) and remove it".to_owned()),
            ("name = 'pc0'\nmac = '02:00:00:00:00:01'\naddresses = ['10.0.0.1/24']\nport.sources = ['02:00:00:00:00:02']", 1, "mac", "`02:00:00:00:00:01` is not among the `sources` of [device.port], so nothing that this machine sends passes; add it there".to_owned()),
            ("name = 'pc0'\nmtu = 1000\naccept-router-advertisements = true", 1, "accept-router-advertisements", "needs IPv6, which needs an MTU of 1280, not 1000; remove it".to_owned()),
            ("nic = 'eth1'\nbackend = 'vnet'", 1, "backend", format!("{nic}that is how a TAP is opened; remove it")),
            ("nic = 'eth1'\nmode = 'switch'", 1, "mode", "does not go with `nic`, which is one end of a wire; write `wire`, or leave it out".to_owned()),
            ("name = 'pc0'\nmode = 'wire'", 2, "mode", "a wire has two ends, and there are 2 peers; leave one `[[peer]]`, or write `mode = \"switch\"`".to_owned()),
            ("mode = 'wire'\nnic = 'eth1'", 2, "mode", "a wire has two ends, and there are 2 peers; leave one `[[peer]]`, or write `mode = \"switch\"`".to_owned()),
            ("mtu = 1500\nname = 'pc0'\nmode = 'cord'", 1, "mode", "`cord` is not a choice; write `switch` or `wire`".to_owned()),
        ] {
            let errors = with_device(device, peers).unwrap_err();
            let seen: Vec<_> = errors.iter().map(|error| (error.key(), error.problem())).collect();
            let key = format!("[device] {key}");
            assert_eq!(seen, [(key.as_str(), problem.as_str())], "{device}");
        }
        for (device, other) in [
            ("nic = 'eth1'", "make a TAP with `name` instead of `nic`"),
            ("name = 'pc0'\nmode = 'wire'", "write `mode = \"switch\"`"),
        ] {
            let policy = "[device.port]\nspoof-guard = true\n[switch]\nhub = false";
            let errors = with_device(&format!("{device}\n{policy}"), 1).unwrap_err();
            let problem =
                format!("a wire looks at no frame, and has nothing of this; remove it, or {other}");
            let seen: Vec<_> = errors
                .iter()
                .map(|error| (error.key(), error.problem()))
                .collect();
            let expected = ["[device] port", "[switch]"].map(|key| (key, problem.as_str()));
            assert_eq!(seen, expected, "{device}");
        }
        let errors = with_device("nic = 'eth1'", 2).unwrap_err();
        let expected = "/etc/patchcord/site-a.toml:6:7: [device] nic: a wire has two ends, and there \
                        are 2 peers; leave one `[[peer]]`, or make a TAP with `name` instead of `nic`";
        assert_eq!(errors.to_string(), expected);
    }

    #[test]
    fn a_peer_without_a_vlan_of_the_device_is_refused_unless_there_is_a_hub() {
        let file = |device: &str, peer: &str, hub: bool| {
            parse(&format!(
                "[tunnel]\nprivate-key-file = 'a.key'\nlisten = '[::]:1'\n\
                 [device]\nname = 'pc0'\n{device}\n[[peer]]\nname = 'b'\npublic-key = '{PEER_A}'\n\
                 {peer}\n[switch]\nhub = {hub}"
            ))
        };
        for (device, peer, is_refused) in [
            ("port.access = 10", "port.trunk = '20-29'", true),
            (
                "port.access = 10",
                "port.trunk = '20-29'\nport.native = 10",
                false,
            ),
            ("port.tunnel = 200", "port.access = 100", true),
            ("port.trunk = '10'", "port.access = 0", true),
            ("port.trunk = '10'", "", false),
            ("", "port.trunk = '10'", false),
            (
                "port.trunk = '10'\nport.translate = { 110 = 10 }",
                "port.access = 110",
                true,
            ),
        ] {
            assert!(file(device, peer, true).is_ok(), "{device}, {peer}");
            let seen = file(device, peer, false).map_err(|errors| errors.to_string());
            let expected = "[peer.port]: peer `b` has no VLAN that [device.port] has too";
            match seen {
                Ok(_) => assert!(!is_refused, "{device}, {peer}"),
                Err(errors) => assert!(is_refused && errors.contains(expected), "{errors}"),
            }
        }
    }

    #[test]
    fn there_is_room_for_twice_what_all_ports_may_have_unless_the_file_says_otherwise() {
        for (line, ports, room) in [
            ("", 2, 16_384),
            ("", 3, 32_768),
            ("", 4, 32_768),
            ("", 1000, 1 << 20),
            ("max-addresses = 5", 4, 8192),
            ("max-addresses = 10_000", 2, 65_536),
            ("max-addresses = 1048576", 2, 1 << 20),
            ("capacity = 64\nmax-addresses = 60", 4, 64),
            ("capacity = 100000", 2, 100_000),
        ] {
            let text = format!("{}\n[switch]\n{line}", minimal());
            let config = parse(&text).unwrap();
            assert_eq!(config.switch.room(ports), room, "{line}, {ports} ports");
        }
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

    fn minimal() -> String {
        format!(
            "[tunnel]\nprivate-key-file = 'a.key'\nlisten = '0.0.0.0:51830'\n\
             [device]\nname = 'pc0'\n[[peer]]\npublic-key = '{PEER_A}'"
        )
    }

    fn everything() -> String {
        format!(
            r#"
[tunnel]
private-key-file = "a.key"
listen = "[::]:51830"
cipher = "chacha20-poly1305"
network-id = 0xffffff
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
udp-gso = "off"
udp-gro = "off"
"#
        )
    }

    fn parse(text: &str) -> Result<Config, ConfigErrors> {
        Config::parse(
            text,
            Path::new("/etc/patchcord/site-a.toml"),
            &|path| match path.to_str() {
                Some("/etc/patchcord/a.key") => Ok(OWN.to_owned().into()),
                Some("/keys/ab.psk") => Ok(PRESHARED.to_owned().into()),
                _ => Err(KeyFileError::Missing(path.into())),
            },
        )
    }
}
