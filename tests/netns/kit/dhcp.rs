// SPDX-License-Identifier: MIT OR Apache-2.0
//! A DHCP server and a client.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::process::Process;
use super::topology::Host;

/// In the foreground, without the machine's own configuration.
pub(crate) const DNSMASQ: [&str; 12] = [
    "dnsmasq",
    "--keep-in-foreground",
    "--conf-file=/dev/null",
    "--port=0",
    "--interface=eth0",
    "--bind-dynamic",
    "--user=root",
    "--no-ping",
    "--no-resolv",
    "--no-hosts",
    "--log-facility=-",
    "--pid-file",
];

/// A DHCP server that leases 10.77.`third`.100 and more.
pub(crate) fn dhcp_server(host: &Host, dir: &Path, third: u8) -> Process {
    let lease_option = format!(
        "--dhcp-leasefile={}",
        dir.join(format!("leases{third}")).display()
    );
    let range = format!("--dhcp-range=10.77.{third}.100,10.77.{third}.199,255.255.0.0,5m");
    host.ns.spawn(
        &dir.join(format!("dnsmasq{third}.log")),
        &[&DNSMASQ[..], &[&lease_option, &range]].concat(),
    )
}

/// Asks for an address a few times: returns the leased address, and the server's.
pub(crate) fn dhcp_lease(client: &Host, dir: &Path) -> Option<(String, String)> {
    let (script, leased) = (dir.join("udhcpc.sh"), dir.join("leased"));
    // Replaces the system's script, which would rewrite this machine's resolv.conf.
    let text = format!(
        "#!/bin/sh\n[ \"$1\" = bound ] || exit 0\necho \"$ip $serverid\" > {}\n",
        leased.display()
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let _ = fs::remove_file(&leased);
    let script = script.display().to_string();
    let udhcpc = [
        "busybox", "udhcpc", "-i", "eth0", "-f", "-n", "-q", "-s", &script,
    ];
    let has_lease = client
        .ns
        .succeeds(&[&udhcpc[..], &["-t", "8", "-T", "1"]].concat());
    has_lease.then(|| {
        let leased = fs::read_to_string(&leased).expect("the client was given a lease");
        let (address, by) = leased.trim().split_once(' ').unwrap();
        (address.to_owned(), by.to_owned())
    })
}
