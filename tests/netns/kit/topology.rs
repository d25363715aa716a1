// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sites, hosts and the underlay between them; `patchcord` itself is run by [`Site`].

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Uid;
use patchcord::control::message::{PeerStatus, Status};

use super::cable::Cable;
use super::frames::{self, Flow, Mac};
use super::namespace::Namespace;
use super::process::{Process, eventually, millis, secs};

pub(crate) const UDP_PORT: u16 = 51830;
pub(crate) const BRIDGE: &str = "br-lan";
pub(crate) const DEVICE: &str = "pc0";

/// The program under test; `PATCHCORD` names another one, an installed package for example.
pub(crate) fn binary() -> String {
    std::env::var("PATCHCORD").unwrap_or_else(|_| env!("CARGO_BIN_EXE_patchcord").to_owned())
}

/// One test's directory of keys, configurations and logs. A failing test prints the logs.
pub(crate) struct Sandbox {
    dir: tempfile::TempDir,
    id: String,
}

impl Sandbox {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        assert!(
            Uid::effective().is_root(),
            "these tests make network namespaces: run them as root"
        );
        let id = format!(
            "{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let dir = tempfile::Builder::new()
            .prefix("patchcord-netns-")
            .tempdir()
            .expect("a directory for the test");
        Self { dir, id }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn namespace(&self, role: &str) -> Arc<Namespace> {
        Arc::new(Namespace::new(&format!("{role}-{}", self.id)))
    }

    fn print_logs(&self) {
        let mut files: Vec<_> = fs::read_dir(self.path())
            .into_iter()
            .flatten()
            .flatten()
            .collect();
        files.sort_by_key(fs::DirEntry::file_name);
        for file in files
            .iter()
            .filter(|file| file.path().extension().is_some_and(|ext| ext == "log"))
        {
            let text = fs::read_to_string(file.path()).unwrap_or_default();
            let skipped = text.lines().count().saturating_sub(40);
            let tail: Vec<_> = text.lines().skip(skipped).collect();
            eprintln!(
                "--- {} ---\n{}",
                file.file_name().to_string_lossy(),
                tail.join("\n")
            );
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
        }
    }
}

/// A router of the underlay: the Internet, or a box that does NAT.
pub(crate) struct Router {
    pub(crate) ns: Arc<Namespace>,
    v4: [u8; 2],
    v6: u16,
}

/// Where something is plugged into a router. The router's own end is `.1` and `::1` of the same network.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Uplink {
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
    /// Ethernet addresses of the `wan` port and of the router's end of the cable.
    pub(crate) mac: Mac,
    pub(crate) router_mac: Mac,
    pub(crate) n: u8,
}

impl Uplink {
    /// The router's interface towards it.
    pub(crate) fn router_port(&self) -> String {
        format!("to{}", self.n)
    }

    /// Another address in the same network.
    pub(crate) fn other_v4(&self, last: u8) -> Ipv4Addr {
        let [a, b, c, _] = self.v4.octets();
        Ipv4Addr::new(a, b, c, last)
    }
}

impl Router {
    pub(crate) fn internet(sandbox: &Sandbox) -> Self {
        Self::new(sandbox.namespace("internet"), [198, 18], 0xfd18)
    }

    /// A router with its own uplink to `outside`; what it masquerades is up to the test.
    pub(crate) fn behind(sandbox: &Sandbox, outside: &Self, n: u8) -> (Self, Uplink) {
        let ns = sandbox.namespace("nat");
        let uplink = outside.attach(&ns, n, 1500);
        (Self::new(ns, [10, 200], 0xfd20), uplink)
    }

    fn new(ns: Arc<Namespace>, v4: [u8; 2], v6: u16) -> Self {
        ns.run(&["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding"]);
        Self { ns, v4, v6 }
    }

    /// Joins `ns` to this router as network `n`: a cable `wan`, addresses and a default route.
    pub(crate) fn attach(&self, ns: &Namespace, n: u8, mtu: u32) -> Uplink {
        let uplink = Uplink {
            v4: Ipv4Addr::new(self.v4[0], self.v4[1], n, 2),
            v6: Ipv6Addr::new(self.v6, n.into(), 0, 0, 0, 0, 0, 2),
            mac: [0x02, 0, self.v4[1], n, 0, 2],
            router_mac: [0x02, 0, self.v4[1], n, 0, 1],
            n,
        };
        self.plug(&uplink, ns, "wan", mtu);
        let (v4, v6, address) = (uplink.v4, uplink.v6, mac(uplink.mac));
        let (gateway_v4, gateway_v6) = (uplink.other_v4(1), self.gateway_v6(&uplink));
        ns.ip(&format!(
            "link set wan address {address} up\naddr add {v4}/24 dev wan\naddr add {v6}/64 dev wan nodad\n\
             route add default via {gateway_v4}\nroute add default via {gateway_v6}"
        ));
        uplink
    }

    /// A cable from the router, whose end has the router's addresses, to a bare `end` in `ns`.
    pub(crate) fn plug(&self, uplink: &Uplink, ns: &Namespace, end: &str, mtu: u32) {
        let (port, address, pid) = (uplink.router_port(), mac(uplink.router_mac), ns.pid());
        let (v4, v6) = (uplink.other_v4(1), self.gateway_v6(uplink));
        self.ns.ip(&format!(
            "link add {port} address {address} mtu {mtu} type veth peer name {end} netns {pid} mtu {mtu}\n\
             link set {port} up\naddr add {v4}/24 dev {port}\naddr add {v6}/64 dev {port} nodad"
        ));
    }

    fn gateway_v6(&self, uplink: &Uplink) -> Ipv6Addr {
        Ipv6Addr::new(self.v6, uplink.n.into(), 0, 0, 0, 0, 0, 1)
    }
}

pub(crate) fn mac(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// A machine behind a site's bridge.
pub(crate) struct Host {
    pub(crate) ns: Arc<Namespace>,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
    pub(crate) mac: Mac,
}

impl Host {
    /// The link-local address that the kernel makes from [`Host::mac`].
    pub(crate) fn link_local(&self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.mac.map(u16::from);
        Ipv6Addr::new(
            0xfe80,
            0,
            0,
            0,
            (a ^ 2) << 8 | b,
            c << 8 | 0xff,
            0xfe00 | d,
            e << 8 | f,
        )
    }
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

/// What a test wants in a configuration, besides keys and peers.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) listen: String,
    pub(crate) overlay_mtu: u32,
    /// The NIC that is attached, and no TAP in the bridge.
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
    /// Those of a site that passes on what one peer sends to another.
    pub(crate) fn hub() -> Self {
        Self {
            // `[tunnel]` is followed by `[device]`; a section of its own may stand in between.
            tunnel: "[switch]\nhub = true",
            ..Self::default()
        }
    }
}

/// A place with a bridge, an uplink, and a patchcord that joins the two.
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

    /// A second tunnel of the same place, into the same bridge.
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

    /// Has the private key of `other`, as the copy of a machine's image has.
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

    /// `patchcord up`, without waiting for anything. Each run has a log of its own.
    /// Takes the bridge out of the configuration that there is.
    pub(crate) fn leave_bridge_out(&self) {
        let text = fs::read_to_string(&self.config).expect("the configuration is there");
        let text = text.replace(&format!("bridge = \"{BRIDGE}\"\n"), "");
        fs::write(&self.config, text).expect("it can be written");
    }

    pub(crate) fn up(&mut self) -> &mut Process {
        self.up_in(&[])
    }

    /// The same with these variables, `NAME=VALUE`, in its environment.
    pub(crate) fn up_in(&mut self, environment: &[&str]) -> &mut Process {
        self.runs += 1;
        let log = self
            .dir
            .join(format!("{}-run{}.log", self.tunnel, self.runs));
        let config = self.config.display().to_string();
        let program = binary();
        // Whoever runs the tests may have it ignored, as `nohup` does.
        let env = ["env", "--default-signal=HUP"];
        let words = [&env[..], environment, &[&program, "up", &config]].concat();
        let process = self.ns.spawn(&log, &words);
        self.process.insert(process)
    }

    /// The same, with its log to `out`, which may be no file, and be read by nobody.
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
        let status = self.process().wait_exit(secs(5));
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

    /// Whether the device has a carrier, none when there is no device.
    pub(crate) fn carrier(&self) -> Option<bool> {
        let flags = self.link(DEVICE)?["flags"].clone();
        Some(flags.as_array()?.iter().any(|flag| flag == "LOWER_UP"))
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
    // A command that needs no input may be gone already.
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

/// What a [`Pair`] is made of.
pub(crate) struct Plan {
    pub(crate) settings: Settings,
    pub(crate) underlay_mtu: u32,
    pub(crate) ipv6: bool,
    /// Which sides know where the other is.
    pub(crate) a_knows_b: bool,
    pub(crate) b_knows_a: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            settings: Settings::default(),
            underlay_mtu: 1500,
            ipv6: false,
            a_knows_b: true,
            b_knows_a: true,
        }
    }
}

/// Lines of `[device.port]` and of `[peer.port]`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ports {
    pub(crate) device: &'static str,
    pub(crate) peer: &'static str,
}

/// Two sites with a cable in each bridge, joined over a router; see the picture in `main.rs`.
pub(crate) struct Pair {
    pub(crate) at_a: Cable,
    pub(crate) at_b: Cable,
    pub(crate) a: Site,
    pub(crate) b: Site,
    pub(crate) internet: Router,
    pub(crate) settings: Settings,
    pub(crate) sandbox: Sandbox,
}

impl Pair {
    /// Everything but a running patchcord.
    pub(crate) fn prepare(plan: Plan) -> Self {
        let sandbox = Sandbox::new();
        let internet = Router::internet(&sandbox);
        let a = Site::new(&sandbox, &internet, 1, plan.underlay_mtu);
        let b = Site::new(&sandbox, &internet, 2, plan.underlay_mtu);
        let address = |site: &Site| {
            if plan.ipv6 {
                IpAddr::V6(site.uplink.v6)
            } else {
                IpAddr::V4(site.uplink.v4)
            }
        };
        a.configure(
            &plan.settings,
            &[b.as_peer(plan.a_knows_b.then(|| address(&b)))],
        );
        b.configure(
            &plan.settings,
            &[a.as_peer(plan.b_knows_a.then(|| address(&a)))],
        );
        let overlay_mtu = plan.settings.overlay_mtu;
        let (at_a, at_b) = (a.cable(1, overlay_mtu), b.cable(1, overlay_mtu));
        Self {
            at_a,
            at_b,
            a,
            b,
            internet,
            settings: plan.settings,
            sandbox,
        }
    }

    /// Both sides up, and frames flow.
    pub(crate) fn start(plan: Plan) -> Self {
        let mut pair = Self::prepare(plan);
        pair.up();
        pair.connect(secs(10));
        pair
    }

    /// Both sites up, with these ports of their switches at A and B.
    pub(crate) fn start_with_ports(ports: [Ports; 2]) -> Self {
        let mut pair = Self::prepare(Plan::default());
        let sides = [(&pair.a, &pair.b), (&pair.b, &pair.a)];
        for ((site, other), ports) in sides.into_iter().zip(ports) {
            let settings = Settings {
                device: format!("[device.port]\n{}", ports.device).leak(),
                ..pair.settings.clone()
            };
            let peer = Peer {
                port: ports.peer,
                ..other.as_peer(Some(other.uplink.v4.into()))
            };
            site.configure(&settings, &[peer]);
        }
        pair.up();
        for site in [&pair.a, &pair.b] {
            site.wait_state("up", secs(10));
        }
        pair
    }

    pub(crate) fn up(&mut self) {
        self.a.up();
        self.b.up();
    }

    /// Waits until a broadcast crosses in each direction, which also tells the switches who is where.
    pub(crate) fn connect(&self, limit: Duration) {
        connect(&self.at_a, &self.at_b, limit);
        connect(&self.at_b, &self.at_a, limit);
    }

    /// The flow from the cable at A to the one at B, and the way back.
    pub(crate) fn there(&self) -> Flow {
        Flow::between(&self.at_a, &self.at_b, 1)
    }

    pub(crate) fn back(&self) -> Flow {
        Flow::between(&self.at_b, &self.at_a, 2)
    }
}

/// Sends broadcasts from one cable until the other gets one, of this call and not of an earlier one.
pub(crate) fn connect(from: &Cable, to: &Cable, limit: Duration) {
    // Far from the seeds that tests choose for frames of their own.
    static CALLS: AtomicU64 = AtomicU64::new(1 << 32);
    let seed = CALLS.fetch_add(1, Ordering::Relaxed);
    let hello = frames::frame(
        frames::BROADCAST,
        from.mac,
        &[],
        frames::EXPERIMENTAL,
        60,
        seed,
    );
    eventually(limit, "a broadcast crosses", || {
        from.send(&hello);
        to.receives(&hello, millis(50)).then_some(())
    });
}
