// SPDX-License-Identifier: MIT OR Apache-2.0
//! A [`Site`] runs `patchcord`, with the keys and the configuration that a test wants.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use patchcord::control::message::{DeviceStatus, PeerStatus, Status};

use super::cable::Cable;
use super::namespace::Namespace;
use super::process::{Process, eventually, secs};
use super::topology::{Host, Router, Sandbox, Uplink, mac};

pub(crate) const UDP_PORT: u16 = 51830;
pub(crate) const BRIDGE: &str = "br-lan";
pub(crate) const DEVICE: &str = "pc0";

/// The program under test; `PATCHCORD` names another one, an installed package for example.
pub(crate) fn binary() -> String {
    std::env::var("PATCHCORD").unwrap_or_else(|_| env!("CARGO_BIN_EXE_patchcord").to_owned())
}

/// A `[[peer]]` of a configuration.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) public_key: String,
    pub(crate) endpoint: Option<String>,
    /// Base64.
    pub(crate) preshared_key: Option<String>,
    /// Lines of `[peer.port]`.
    pub(crate) port: &'static str,
}

/// A test's configuration, besides keys and peers.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) listen: String,
    pub(crate) overlay_mtu: u32,
    /// The NIC that is attached, instead of a TAP in the bridge.
    pub(crate) nic: Option<&'static str>,
    /// Further lines of `[tunnel]` and `[device]`.
    pub(crate) tunnel: &'static str,
    pub(crate) device: &'static str,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: format!("[::]:{UDP_PORT}"),
            overlay_mtu: 1500,
            nic: None,
            tunnel: "",
            device: "",
        }
    }
}

impl Settings {
    /// The settings of a site that forwards frames from peer to peer.
    pub(crate) fn hub() -> Self {
        Self {
            // `[tunnel]` is followed by `[device]`; a section of its own may stand in between.
            tunnel: "[switch]\nhub = true",
            ..Self::default()
        }
    }
}

/// A site with a bridge, an uplink, and a patchcord that joins the two.
pub(crate) struct Site {
    pub(crate) tunnel: String,
    pub(crate) device: &'static str,
    udp_port: u16,
    pub(crate) public_key: String,
    pub(crate) config: PathBuf,
    pub(crate) uplink: Uplink,
    process: Option<Process>,
    runs: u32,
    pub(crate) n: u8,
    dir: PathBuf,
    id: String,
    pub(crate) ns: Arc<Namespace>,
}

impl Site {
    pub(crate) fn new(sandbox: &Sandbox, router: &Router, n: u8, underlay_mtu: u32) -> Self {
        let ns = sandbox.namespace(&format!("site{n}"));
        let uplink = router.attach(&ns, n, underlay_mtu);
        ns.ip(&format!(
            "link add {BRIDGE} type bridge mcast_snooping 0 group_fwd_mask 0xfff8\n\
             link set {BRIDGE} addrgenmode none\nlink set {BRIDGE} up"
        ));
        let tunnel = format!("t{n}-{}", sandbox.id);
        Self::with_tunnel(sandbox, tunnel, DEVICE, UDP_PORT, uplink, n, ns)
    }

    /// A second tunnel of the same site, into the same bridge.
    pub(crate) fn beside(&self, sandbox: &Sandbox) -> Self {
        let tunnel = format!("t{}b-{}", self.n, sandbox.id);
        let (uplink, ns) = (self.uplink, Arc::clone(&self.ns));
        Self::with_tunnel(sandbox, tunnel, "pc1", UDP_PORT + 1, uplink, self.n, ns)
    }

    fn with_tunnel(
        sandbox: &Sandbox,
        tunnel: String,
        device: &'static str,
        udp_port: u16,
        uplink: Uplink,
        n: u8,
        ns: Arc<Namespace>,
    ) -> Self {
        let private_key = patchcord(&["genkey"], "");
        let public_key = patchcord(&["pubkey"], &private_key).trim().to_owned();
        let dir = sandbox.path().to_owned();
        write_secret(&dir.join(format!("{tunnel}.key")), &private_key);
        let config = dir.join(format!("{tunnel}.toml"));
        Self {
            tunnel,
            device,
            udp_port,
            public_key,
            config,
            uplink,
            process: None,
            runs: 0,
            n,
            dir,
            id: sandbox.id.clone(),
            ns,
        }
    }

    /// Takes the private key of `other`, as a copied machine image would have it.
    pub(crate) fn take_identity_of(&mut self, other: &Self) {
        let key = |site: &Self| site.dir.join(format!("{}.key", site.tunnel));
        let text = fs::read_to_string(key(other)).expect("the key can be read");
        write_secret(&key(self), &text);
        self.public_key.clone_from(&other.public_key);
    }

    /// A machine on the bridge, with addresses of its own.
    pub(crate) fn host(&self, k: u8) -> Host {
        let port = format!("host{k}");
        let host = self.host_at(k, &port);
        self.ns.ip(&format!(
            "link set {port} addrgenmode none\nlink set {port} master {BRIDGE} up"
        ));
        host
    }

    /// A machine with addresses of its own, at the far end of a cable from the new interface `port`,
    /// which is down.
    pub(crate) fn host_at(&self, k: u8, port: &str) -> Host {
        let n = self.n;
        let ns = Arc::new(Namespace::new(&format!("host{n}{k}-{}", self.id)));
        let host = Host {
            ns,
            v4: Ipv4Addr::new(10, 77, n, k),
            v6: Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, n.into(), k.into()),
            mac: [0x02, 0x77, 0, 0, n, k],
        };
        let (pid, address, v4, v6) = (host.ns.pid(), mac(host.mac), host.v4, host.v6);
        self.ns.ip(&format!(
            "link add {port} type veth peer name eth0 netns {pid} address {address}"
        ));
        host.ns.ip(&format!(
            "link set eth0 up\naddr add {v4}/16 brd + dev eth0\naddr add {v6}/64 dev eth0 nodad\nroute add default dev eth0"
        ));
        host
    }

    /// The bare end of a cable in the bridge.
    pub(crate) fn cable(&self, k: u8, mtu: u32) -> Cable {
        Cable::plug(
            &self.ns,
            BRIDGE,
            &format!("cable{k}"),
            [0x02, 0xca, 0, 0, self.n, k],
            mtu,
        )
    }

    /// This site as a peer of another one.
    pub(crate) fn as_peer(&self, endpoint: Option<IpAddr>) -> Peer {
        Peer {
            name: format!("site{}", self.n),
            public_key: self.public_key.clone(),
            endpoint: endpoint.map(|ip| std::net::SocketAddr::new(ip, self.udp_port).to_string()),
            preshared_key: None,
            port: "",
        }
    }

    pub(crate) fn configure(&self, settings: &Settings, peers: &[Peer]) {
        let Settings {
            listen,
            overlay_mtu,
            nic,
            tunnel,
            device,
        } = settings;
        let end = match nic {
            Some(nic) => format!("nic = \"{nic}\""),
            None => format!(
                "name = \"{}\"\nmtu = {overlay_mtu}\nbridge = \"{BRIDGE}\"",
                self.device
            ),
        };
        let mut text = format!(
            "[tunnel]\nprivate-key-file = \"{}.key\"\nlisten = \"{listen}\"\n{tunnel}\n\
             [device]\n{end}\n{device}\n",
            self.tunnel
        );
        for peer in peers {
            text += &format!(
                "[[peer]]\nname = \"{}\"\npublic-key = \"{}\"\n",
                peer.name, peer.public_key
            );
            if let Some(endpoint) = &peer.endpoint {
                text += &format!("endpoint = \"{endpoint}\"\n");
            }
            if let Some(key) = &peer.preshared_key {
                let file = format!("{}-{}.psk", self.tunnel, peer.name);
                write_secret(&self.dir.join(&file), key);
                text += &format!("preshared-key-file = \"{file}\"\n");
            }
            if !peer.port.is_empty() {
                text += &format!("[peer.port]\n{}\n", peer.port);
            }
        }
        fs::write(&self.config, text).expect("the configuration can be written");
    }

    /// Removes the bridge from the present configuration.
    pub(crate) fn leave_bridge_out(&self) {
        let text = fs::read_to_string(&self.config).expect("the configuration is there");
        let text = text.replace(&format!("bridge = \"{BRIDGE}\"\n"), "");
        fs::write(&self.config, text).expect("it can be written");
    }

    /// `patchcord up`, without waiting for anything. Each run has a log of its own.
    pub(crate) fn up(&mut self) -> &mut Process {
        self.up_in(&[])
    }

    /// The same, as the leader of a session, as a service is. The process is the one that waits for it.
    pub(crate) fn up_in_own_session(&mut self) -> &mut Process {
        let own = ["setsid", "--wait", "setpriv", "--pdeathsig", "KILL", "--"];
        self.up_behind(&own)
    }

    /// The same with these variables, `NAME=VALUE`, in its environment.
    pub(crate) fn up_in(&mut self, environment: &[&str]) -> &mut Process {
        // The parent process of the tests may ignore SIGHUP, as `nohup` does.
        self.up_behind(&[&["env", "--default-signal=HUP"], environment].concat())
    }

    fn up_behind(&mut self, words: &[&str]) -> &mut Process {
        self.runs += 1;
        let log = self
            .dir
            .join(format!("{}-run{}.log", self.tunnel, self.runs));
        let config = self.config.display().to_string();
        let program = binary();
        let words = [words, &[&program, "up", &config]].concat();
        let process = self.ns.spawn(&log, &words);
        self.process.insert(process)
    }

    /// The same, with its log to `out`, which may be a pipe that no process reads.
    pub(crate) fn up_with_log_to(&mut self, out: &Path) -> &mut Process {
        self.runs += 1;
        let unused = self
            .dir
            .join(format!("{}-run{}.log", self.tunnel, self.runs));
        let (config, out) = (self.config.display(), out.display());
        let command = format!("exec {} up {config} 2>{out}", binary());
        let process = self.ns.spawn(&unused, &["sh", "-c", &command]);
        self.process.insert(process)
    }

    pub(crate) fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("up was called")
    }

    pub(crate) fn kill_9(&mut self) {
        self.process().kill_9();
        self.process = None;
    }

    /// SIGTERM, and a clean end.
    pub(crate) fn terminate(&mut self) {
        self.process().signal(Signal::SIGTERM);
        let status = self.process().wait_exit(secs(20));
        assert!(status.success(), "SIGTERM ends patchcord with {status}");
        self.process = None;
    }

    /// Runs the program inside the site, with `PATCHCORD`'s words as arguments.
    pub(crate) fn patchcord(&self, args: &[&str]) -> Output {
        let program = binary();
        self.ns.output(&[&[program.as_str()], args].concat())
    }

    /// `patchcord show --json`, none while the tunnel does not answer.
    pub(crate) fn try_status(&self) -> Option<Status> {
        let output = self.patchcord(&["show", &self.tunnel, "--json"]);
        let status = output
            .status
            .success()
            .then(|| serde_json::from_slice(&output.stdout))?;
        Some(status.unwrap_or_else(|error| {
            panic!(
                "show --json: {error}: {}",
                String::from_utf8_lossy(&output.stdout)
            )
        }))
    }

    pub(crate) fn status(&self) -> Status {
        eventually(secs(20), "patchcord show answers", || self.try_status())
    }

    /// The first, usually only, peer.
    pub(crate) fn peer(&self) -> PeerStatus {
        self.status()
            .peers
            .into_iter()
            .next()
            .expect("a peer is configured")
    }

    pub(crate) fn drops(&self, reason: &str) -> u64 {
        self.status().drops.get(reason).copied().unwrap_or(0)
    }

    pub(crate) fn wait_state(&self, state: &str, limit: Duration) {
        eventually(
            limit,
            &format!("{}: the peer is {state}", self.tunnel),
            || {
                self.try_status()?
                    .peers
                    .iter()
                    .all(|peer| peer.state == state)
                    .then_some(())
            },
        );
    }

    /// A link of the site as `ip -j -d link` shows it.
    pub(crate) fn link(&self, name: &str) -> Option<serde_json::Value> {
        let output = self
            .ns
            .output(&["ip", "-j", "-d", "link", "show", "dev", name]);
        let links: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).ok()?;
        links.into_iter().next()
    }

    /// Whether the device has a carrier; none when there is no device.
    pub(crate) fn carrier(&self) -> Option<bool> {
        let flags = self.link(DEVICE)?["flags"].clone();
        Some(flags.as_array()?.iter().any(|flag| flag == "LOWER_UP"))
    }

    /// The exit code of the program with these arguments, and its output to stdout and stderr.
    pub(crate) fn ran(&self, args: &[&str]) -> (Option<i32>, String) {
        let output = self.patchcord(args);
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.code(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    }

    pub(crate) fn device_status(&self) -> DeviceStatus {
        self.status().device
    }

    /// The bridge of the device.
    pub(crate) fn master(&self) -> Option<String> {
        Some(self.link(DEVICE)?["master"].as_str()?.to_owned())
    }
}

/// Runs a command of the program that needs no network.
pub(crate) fn patchcord(args: &[&str], input: &str) -> String {
    let mut child = Command::new(binary())
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("patchcord can be run");
    let mut stdin = child.stdin.take().expect("stdin is piped");
    // A command that needs no input may have ended already.
    let _ = std::io::Write::write_all(&mut stdin, input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().expect("patchcord ends");
    assert!(output.status.success(), "patchcord {args:?} failed");
    String::from_utf8(output.stdout).expect("keys are text")
}

pub(crate) fn write_secret(path: &Path, text: &str) {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .expect("a key file");
    std::io::Write::write_all(&mut file, text.as_bytes()).expect("a key can be written");
}

pub(crate) fn another_public_key() -> String {
    patchcord(&["pubkey"], &patchcord(&["genkey"], ""))
        .trim()
        .to_owned()
}

/// Replaces a site's address, as a DHCP client or a mobile link would.
pub(crate) fn move_to(site: &Site, last: u8) -> Ipv4Addr {
    let (old, new) = (site.uplink.v4, site.uplink.other_v4(last));
    let gateway = site.uplink.other_v4(1);
    site.ns.ip(&format!(
        "addr del {old}/24 dev wan\naddr add {new}/24 dev wan\nroute replace default via {gateway}"
    ));
    new
}

pub(crate) fn assert_followed(follower: &Site, address: Ipv4Addr) {
    let expected = format!("{address}:{UDP_PORT}");
    eventually(
        secs(5),
        &format!("show names the new endpoint {expected}"),
        || {
            // An IPv4 address may be shown as such or mapped into IPv6.
            follower
                .peer()
                .endpoint
                .is_some_and(|shown| shown.replace(['[', ']'], "").ends_with(&expected))
                .then_some(())
        },
    );
}
