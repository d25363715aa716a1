// SPDX-License-Identifier: MIT OR Apache-2.0
//! A test's directory, the routers of the underlay, and hosts.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::unistd::Uid;

use super::frames::Mac;
use super::namespace::Namespace;

/// One test's directory of keys, configurations and logs. A failing test prints the logs.
pub(crate) struct Sandbox {
    dir: tempfile::TempDir,
    pub(super) id: String,
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

/// A port of a router, and the site on it. The router's own end is `.1` and `::1` of the same network.
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
    /// The router's interface towards the site.
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

    /// A router with its own uplink to `outside`; the test chooses what it masquerades.
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
    /// The link-local address that the kernel generates from [`Host::mac`].
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
