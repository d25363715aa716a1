// SPDX-License-Identifier: MIT OR Apache-2.0
//! The route of packets in each mode, and the state after a kill.
//!
//! ```text
//! eth0   192.168.1.10/24, default by .1; 10.50.0.0/16 by .2
//! tap-a  10.2.0.1/24, router .254
//! ```

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use patchcord::{
    host::Host,
    provider::{
        Deadlines, EthernetTunnelSettings, Mark, Route, RoutingPolicy, SessionStatus, StartOptions,
        StopReason, TunnelConfiguration,
    },
};
use pnet::datalink::{self, Channel};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::kit::{DEADLINES, Script, connect, host, host_with, in_namespace, ip, port};

fn make_underlay() {
    let no_wait = "/proc/sys/net/ipv6/conf/default/accept_dad";
    std::fs::write(no_wait, "0").expect("a setting of this namespace");
    for arguments in [
        "link add eth0 type veth peer name eth0p",
        "addr add 192.168.1.10/24 dev eth0",
        "link set eth0 up",
        "link set eth0p up",
        "route add default via 192.168.1.1",
        "route add 10.50.0.0/16 via 192.168.1.2",
    ] {
        ip(arguments);
    }
    // The kernel's own addresses come with the carrier, a moment later.
    let own = || {
        ip("-6 route show table local")
            .matches("local fe80:")
            .count()
    };
    while own() < 2 {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The outgoing interface of packets to `destination`.
fn way(destination: &str, mark: u32) -> String {
    let mark = mark.to_string();
    let output = Command::new("ip")
        .args(["route", "get", destination, "mark", &mark])
        .output()
        .unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    let device = text
        .split_once(" dev ")
        .and_then(|(_, rest)| rest.split(' ').next());
    device.map_or_else(|| text.trim().to_owned(), str::to_owned)
}

fn everything(name: &str) -> EthernetTunnelSettings {
    let mut settings = port(name).with_addresses(&["10.2.0.1/24".parse().unwrap()]);
    settings.tunnel_remote_address = [198, 51, 100, 7].into();
    let ipv4 = settings.ipv4.as_mut().unwrap();
    ipv4.router = Some([10, 2, 0, 254].into());
    ipv4.excluded_routes.push("203.0.113.0/24".parse().unwrap());
    settings
}

fn configure(host: &Host, routing: RoutingPolicy) {
    let mut configuration = TunnelConfiguration::new("scripted");
    configuration.routing = routing;
    host.configure("a", configuration, None).unwrap();
}

const fn policy(enforce: bool, local: bool, all: bool) -> RoutingPolicy {
    RoutingPolicy {
        include_all_networks: all,
        exclude_local_networks: local,
        enforce_routes: enforce,
    }
}

/// The bypass mark, among bits of other programs.
const MARKED: u32 = Mark::BYPASS.apply_to(0x00ab_cdef);

#[test]
fn check_27_packets_go_where_the_mode_says() {
    // The remote address, an excluded one, a network with a route, the machine's own, and the rest.
    let destinations = [
        "198.51.100.7",
        "203.0.113.9",
        "10.50.0.1",
        "192.168.1.20",
        "8.8.8.8",
    ];
    let cases = [
        (
            policy(false, false, false),
            ["eth0", "eth0", "eth0", "eth0", "tap-a"],
        ),
        (
            policy(true, false, false),
            ["eth0", "eth0", "tap-a", "tap-a", "tap-a"],
        ),
        (
            policy(true, true, false),
            ["eth0", "eth0", "tap-a", "eth0", "tap-a"],
        ),
        (
            policy(false, false, true),
            ["eth0", "eth0", "tap-a", "tap-a", "tap-a"],
        ),
    ];
    for (policy, expected) in cases {
        in_namespace(|directory| async move {
            make_underlay();
            let script = Script::new(move |context, _| async move {
                let mut settings = everything("tap-a");
                if !policy.include_all_networks {
                    settings.ipv4.as_mut().unwrap().included_routes.push(Route {
                        destination: "0.0.0.0/0".parse().unwrap(),
                        gateway: None,
                    });
                }
                context.set_network_settings(Some(settings)).await?;
                context.set_carrier(true).await;
                Ok(())
            });
            let host = host(&directory, &Arc::new(script));
            configure(&host, policy);
            connect(&host, &mut host.events(), "a").await;
            assert_eq!(destinations.map(|to| way(to, 0)), expected, "{policy:?}");
            assert_eq!(
                destinations.map(|to| way(to, MARKED)),
                ["eth0"; 5],
                "{policy:?}"
            );
            // Another policy takes effect at once.
            configure(
                &host,
                RoutingPolicy {
                    enforce_routes: true,
                    ..RoutingPolicy::default()
                },
            );
            sleep(Duration::from_millis(200)).await;
            assert_eq!(
                way("10.50.0.1", 0),
                if policy.include_all_networks {
                    "eth0"
                } else {
                    "tap-a"
                }
            );
            host.stop("a", StopReason::UserInitiated).await.unwrap();
            assert_eq!(destinations.map(|to| way(to, 0)), ["eth0"; 5], "{policy:?}");
        });
    }
}

#[test]
fn check_28_the_kill_switch_holds_while_there_is_no_tunnel() {
    in_namespace(|directory| async move {
        make_underlay();
        let script = Script::new(|context, _| async move {
            sleep(Duration::from_millis(300)).await;
            context
                .set_network_settings(Some(everything("tap-a")))
                .await?;
            context.set_carrier(true).await;
            Ok(())
        });
        let script = Arc::new(script);
        let host = host(&directory, &script);
        configure(&host, policy(false, false, true));
        assert_eq!(way("8.8.8.8", 0), "eth0");
        host.start("a", StartOptions::default()).unwrap();
        while script.contexts.lock().unwrap().is_empty() {
            sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(host.status("a"), SessionStatus::Connecting);
        let is_shut = || {
            let way = way("8.8.8.8", 0);
            assert!(
                way.contains("unreachable") || way.contains("No route"),
                "{way}"
            );
            assert_eq!(self::way("8.8.8.8", MARKED), "eth0");
        };
        is_shut();
        while host.status("a") != SessionStatus::Connected {
            sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(way("8.8.8.8", 0), "tap-a");
        let context = script.context();
        context.set_reasserting(true);
        assert_eq!(way("8.8.8.8", 0), "tap-a", "no packet leaves otherwise");
        context.set_network_settings(None).await.unwrap();
        is_shut();
        host.stop("a", StopReason::UserInitiated).await.unwrap();
        assert_eq!(way("8.8.8.8", 0), "eth0");
    });
}

/// Waits until `look` returns its earlier result again.
async fn comes_back(what: &str, before: &str, look: impl Fn() -> String) {
    let end = Instant::now() + Duration::from_secs(15);
    while look() != before {
        let now = look();
        assert!(Instant::now() < end, "{what}:\n{before}\nbut now\n{now}");
        sleep(Duration::from_millis(20)).await;
    }
}

fn rules() -> String {
    ip("rule") + &ip("-6 rule")
}

/// The table of the tunnel, as its rules name it.
fn own_table() -> String {
    let rules = ip("rule");
    let mut own = rules.lines().filter(|rule| rule.contains("not from all"));
    let table = own.next().and_then(|rule| rule.split(' ').rev().nth(2));
    table.expect("the tunnel has rules").to_owned()
}

/// Tunnel `a` with everything included and the kill switch; it creates its interface when it receives a
/// value.
fn guarded(directory: &TempDir) -> (Host, tokio::sync::watch::Sender<()>) {
    let (sender, receiver) = tokio::sync::watch::channel(());
    let script = Script::new(move |context, _| {
        let mut receiver = receiver.clone();
        async move {
            receiver.changed().await.unwrap();
            let settings = Some(everything("tap-a"));
            context.set_network_settings(settings).await?;
            context.set_carrier(true).await;
            Ok(())
        }
    });
    // The check decides when it starts.
    let deadlines = Deadlines {
        start: Duration::from_secs(60),
        ..DEADLINES
    };
    let host = host_with(directory, &Arc::new(script), deadlines);
    configure(&host, policy(false, false, true));
    host.start("a", StartOptions::default()).unwrap();
    (host, sender)
}

#[test]
fn check_28_rules_and_routes_that_others_delete_come_back() {
    in_namespace(|directory| async move {
        make_underlay();
        ip("rule add pref 4711 from 192.0.2.1 lookup 99");
        ip("route add unreachable 192.0.2.0/24 table 99");
        let (host, make_interface) = guarded(&directory);
        while !rules().contains("not from all") {
            sleep(Duration::from_millis(5)).await;
        }
        let table = own_table();
        let own = |command: &str| ip(&command.replace("TABLE", &table));
        let routes = || {
            let shown = own("route show table TABLE") + &own("-6 route show table TABLE");
            // The kernel reports a carrier with some delay.
            shown.replace("linkdown ", "")
        };

        // The kill switch, before there is an interface.
        let (rules_before, routes_before) = (rules(), routes());
        own("rule delete lookup TABLE");
        comes_back("the rule", &rules_before, rules).await;
        own("-6 route flush table TABLE");
        comes_back("the table", &routes_before, routes).await;

        make_interface.send_replace(());
        while host.status("a") != SessionStatus::Connected {
            sleep(Duration::from_millis(5)).await;
        }
        ip("rule add pref 4712 from 192.0.2.2 lookup 99");
        let (rules_before, routes_before) = (rules(), routes());
        own("route delete throw 203.0.113.0/24 table TABLE");
        comes_back("the route", &routes_before, routes).await;
        own("-6 rule delete lookup TABLE");
        comes_back("the rule of IPv6", &rules_before, rules).await;
        // A route of another program does not come back.
        own("route add 192.0.2.0/24 dev eth0 table TABLE");
        ip("rule delete pref 4712");
        own("route flush table TABLE");
        comes_back("the table", &routes_before, routes).await;
        assert!(!rules().contains("4712") && rules().contains("4711"));
        host.stop("a", StopReason::UserInitiated).await.unwrap();
        assert!(!rules().contains(&table) && rules().contains("4711"));
    });
}

#[test]
fn check_28_the_kill_switch_outlives_its_interface_and_a_fight() {
    in_namespace(|directory| async move {
        make_underlay();
        let (host, make_interface) = guarded(&directory);
        make_interface.send_replace(());
        while host.status("a") != SessionStatus::Connected {
            sleep(Duration::from_millis(5)).await;
        }
        let (before, delete) = (rules(), format!("rule delete lookup {}", own_table()));
        ip("link set tap-a down");
        ip(&delete);
        comes_back("the rule", &before, rules).await;
        sleep(Duration::from_millis(300)).await;
        let link = ip("link show tap-a");
        assert!(!link.contains(",UP"), "who sets it down means it: {link}");

        // Four times more at once, then not until ten seconds after the first.
        let mut deleted = 0;
        let end = Instant::now() + Duration::from_secs(6);
        while Instant::now() < end {
            if rules() == before {
                ip(&delete);
                deleted += 1;
            }
            sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(deleted, 5);
        comes_back("the rule", &before, rules).await;
        host.stop("a", StopReason::UserInitiated).await.unwrap();
        assert_eq!(way("8.8.8.8", 0), "eth0");
    });
}

/// A process that hosts the built-in provider as tunnel `a`, all networks included.
struct Process {
    child: Child,
}

impl Process {
    async fn start(directory: &Path) -> Self {
        let path = |name: &str| directory.join(name);
        let child = Command::new(env!("CARGO_BIN_EXE_patchcord"))
            .args(["host", "run", "--socket"])
            .arg(path("host.sock"))
            .arg("--tunnels")
            .arg(path("tunnels.d"))
            .arg("--state")
            .arg(path("state"))
            .arg("--run-dir")
            .arg(directory)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let process = Self { child };
        while !process.client(directory, "list").await {
            sleep(Duration::from_millis(20)).await;
        }
        process
    }

    async fn client(&self, directory: &Path, verb: &'static str) -> bool {
        let mut command = Command::new(env!("CARGO_BIN_EXE_patchcord"));
        command.args(["host", verb]);
        if verb != "list" {
            command.arg("a");
        }
        command.arg("--socket").arg(directory.join("host.sock"));
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let status = tokio::task::spawn_blocking(move || command.status().unwrap()).await;
        status.unwrap().success()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn write_tunnel(directory: &TempDir) {
    let (path, run) = (
        |name: &str| directory.path().join(name),
        |arguments: &[&str], input: &[u8]| {
            let mut child = Command::new(env!("CARGO_BIN_EXE_patchcord"))
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            std::io::Write::write_all(&mut child.stdin.take().unwrap(), input).unwrap();
            child.wait_with_output().unwrap().stdout
        },
    );
    let key = run(&["genkey"], b"");
    std::fs::write(path("a.key"), &key).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(path("a.key"), mode).unwrap();
    let peer = String::from_utf8(run(&["pubkey"], &run(&["genkey"], b""))).unwrap();
    let tunnel = format!(
        "[tunnel]\nprivate-key-file = \"a.key\"\nlisten = \"192.168.1.10:5999\"\n\
         [device]\nname = \"tap-a\"\n[[peer]]\npublic-key = \"{}\"\nendpoint = \"192.168.1.20:5999\"\n",
        peer.trim()
    );
    std::fs::write(path("office.toml"), tunnel).unwrap();
    std::fs::create_dir(path("tunnels.d")).unwrap();
    configure_tunnel(directory, true);
}

fn configure_tunnel(directory: &TempDir, include_all_networks: bool) {
    let path = |name: &str| directory.path().join(name);
    let configuration = format!(
        "provider = \"patchcord\"\nvendor.config = \"{}\"\n\
         routing.include-all-networks = {include_all_networks}\n",
        path("office.toml").display()
    );
    std::fs::write(path("tunnels.d/a.toml"), configuration).unwrap();
}

/// Whether the tunnel calls its peer over `eth0`, from now on.
async fn is_heard_calling() -> bool {
    let listen = || {
        let mut found = datalink::interfaces().into_iter();
        let far = found.find(|found| found.name == "eth0p").unwrap();
        let config = datalink::Config {
            read_timeout: Some(Duration::from_millis(100)),
            ..datalink::Config::default()
        };
        let Ok(Channel::Ethernet(_, mut frames)) = datalink::channel(&far, config) else {
            panic!("no packet socket");
        };
        let udp_5999 = |frame: &[u8]| frame[12..14] == [8, 0] && frame[36..38] == [0x17, 0x6f];
        let end = Instant::now() + Duration::from_secs(12);
        while Instant::now() < end {
            if frames
                .next()
                .is_ok_and(|frame| frame.len() > 38 && udp_5999(frame))
            {
                return true;
            }
        }
        false
    };
    // In the namespace of this thread.
    tokio::task::spawn_blocking(listen).await.unwrap()
}

#[test]
fn check_30_a_policy_that_comes_later_leaves_the_tunnels_own_datagrams_outside() {
    in_namespace(|directory| async move {
        make_underlay();
        ip("neigh add 192.168.1.20 lladdr 02:00:00:00:00:20 dev eth0 nud permanent");
        write_tunnel(&directory);
        configure_tunnel(&directory, false);
        let process = Process::start(directory.path()).await;
        assert!(process.client(directory.path(), "start").await);
        assert!(is_heard_calling().await);
        configure_tunnel(&directory, true);
        while way("8.8.8.8", 0) == "eth0" {
            sleep(Duration::from_millis(20)).await;
        }
        sleep(Duration::from_millis(500)).await;
        assert!(is_heard_calling().await);
        assert!(process.client(directory.path(), "stop").await);
    });
}

#[test]
fn check_30_a_start_after_a_kill_purges_what_is_ours() {
    in_namespace(|directory| async move {
        make_underlay();
        write_tunnel(&directory);
        ip("rule add pref 4711 from 192.0.2.1 lookup 99");
        ip("route add unreachable 192.0.2.0/24 table 99");
        let look = || {
            ["rule", "-6 rule", "route show table all", "-o link"]
                .map(ip)
                .concat()
        };
        let before = look();
        let mut process = Process::start(directory.path()).await;
        assert!(process.client(directory.path(), "start").await);
        assert!(
            way("8.8.8.8", 0).contains("unreachable") || way("8.8.8.8", 0).contains("No route")
        );
        assert_eq!(
            way("192.168.1.20", MARKED),
            "eth0",
            "where the tunnel's own datagrams go"
        );
        process.child.kill().unwrap();
        process.child.wait().unwrap();
        assert_ne!(
            look(),
            before,
            "rules stay after a kill, and the machine stays shut"
        );
        let process = Process::start(directory.path()).await;
        assert!(process.client(directory.path(), "start").await);
        assert!(process.client(directory.path(), "stop").await);
        assert_eq!(look(), before, "and what is others' is untouched");
    });
}
