// SPDX-License-Identifier: MIT OR Apache-2.0
//! `show`, `fdb`, `down` and `host`: without a tunnel, with one of a host of the library, and with one
//! of another version.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use patchcord::control::message::{
    Answer, Answered, Assigner, FdbFlush, FdbPage, FdbRequest, FdbStatus, Query, QueryError,
};
use patchcord::control::socket_path;
use patchcord::host::daemon::{self, Policy};
use patchcord::host::{Host, socket};
use patchcord::provider::{
    BoxFut, EthernetTunnelProvider, ProviderContext, ProviderError, StartOptions, StopReason,
    TunnelConfiguration,
};

use crate::kit::{Ran, STATION, Site, patchcord, run};

#[test]
fn show_and_down_say_that_a_tunnel_is_not_running() {
    let site = Site::new();
    let run_dir = site.path("run").display().to_string();
    let socket = format!("no socket {run_dir}/ghost.sock");
    for args in [
        &["show", "ghost"][..],
        &["show", "ghost", "--json"],
        &["down", "x/ghost.toml"],
        &["fdb", "show", "ghost"],
        &["fdb", "show", "x/ghost.toml", "--json"],
        &["fdb", "add", "ghost", STATION, "tap"],
        &["fdb", "del", "ghost", STATION],
        &["fdb", "flush", "ghost"],
    ] {
        let name = args.iter().find(|arg| arg.contains("ghost")).unwrap();
        for stale in [false, true] {
            if stale {
                leave_stale_socket(&socket_path(Path::new(&run_dir), "ghost"));
            }
            let ran = run(&[args, &["--run-dir", &run_dir]].concat());
            assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{args:?}");
            for expected in [
                "tunnel `ghost` is not running",
                &socket,
                &format!("`patchcord up {name}`"),
            ] {
                assert!(ran.stderr.contains(expected), "{args:?}: {}", ran.stderr);
            }
        }
        let list = run(&["show", "--run-dir", &run_dir]);
        assert_eq!(
            (list.code, list.stdout.as_str()),
            (0, "no tunnel is running\n")
        );
        let list = run(&["fdb", "show", "--run-dir", &run_dir]);
        assert_eq!(
            (list.code, list.stdout.as_str()),
            (0, "no tunnel is running\n")
        );
        for command in [&["show"][..], &["fdb", "show"]] {
            let list = run(&[command, &["--json", "--run-dir", &run_dir]].concat());
            assert_eq!((list.code, list.stdout.as_str()), (0, "[]\n"));
        }
        fs::remove_dir_all(&run_dir).unwrap();
    }
}

#[test]
fn clients_of_a_host_say_that_none_listens_and_how_to_start_one() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("host.sock");
    let ran = run(&["host", "list", "--socket", socket.to_str().unwrap()]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    let socket = socket.display();
    assert_eq!(
        ran.stderr,
        format!(
            "patchcord: no host listens on {socket}: No such file or directory (os error 2); \
             start it with `patchcord host run`\n"
        )
    );
}

#[test]
fn a_host_deletes_no_file_that_is_in_the_place_of_its_socket() {
    let site = Site::new();
    site.write("precious", b"precious");
    let path = |name: &str| site.path(name).display().to_string();
    let (socket, folder) = (path("precious"), path("none"));
    let mut host = patchcord(&["host", "run", "--socket", &socket])
        .args(["--tunnels", &folder, "--state", &folder])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut errors = BufReader::new(host.stderr.take().unwrap()).lines();
    let error = errors.next().unwrap().unwrap();
    // In case it runs after all.
    let _ = host.kill();
    host.wait().unwrap();
    assert!(error.contains("not a socket; remove it"), "{error}");
    assert_eq!(fs::read(&socket).unwrap(), b"precious");
}

#[test]
fn show_and_down_reach_a_running_tunnel() {
    let site = Site::new();
    let run_dir = site.path("run").display().to_string();
    let tunnel = serve(socket_path(Path::new(&run_dir), "a"));
    // The socket belongs to another host: a connection would start that host, where systemd
    // listens.
    let host = socket_path(Path::new(&run_dir), "host");
    let host = std::os::unix::net::UnixListener::bind(host).unwrap();

    let page = run(&["show", "a", "--run-dir", &run_dir]);
    assert_eq!((page.code, page.stderr.as_str()), (0, ""));
    assert!(
        page.stdout.starts_with("tunnel a\n  state "),
        "{}",
        page.stdout
    );
    let list = run(&["show", "--run-dir", &run_dir]);
    assert!(
        list.stdout.starts_with("a  connected  pc0"),
        "{}",
        list.stdout
    );
    for (args, pointer) in [(&["show", "a"][..], "/tunnel"), (&["show"], "/0/tunnel")] {
        let ran = run(&[args, &["--json", "--run-dir", &run_dir]].concat());
        let json: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(
            json.pointer(pointer).and_then(|name| name.as_str()),
            Some("a"),
            "{args:?}"
        );
    }

    let down = run(&["down", "a", "--run-dir", &run_dir]);
    assert_eq!(
        (down.code, down.stdout.as_str(), down.stderr.as_str()),
        (0, "", "")
    );
    tunnel.join().unwrap();
    assert_eq!(run(&["show", "a", "--run-dir", &run_dir]).code, 1);
    host.set_nonblocking(true).unwrap();
    assert!(host.accept().is_err(), "nobody called the host");
}

#[test]
fn the_table_of_addresses_is_shown_and_changed() {
    let site = Site::new();
    let run_dir = site.path("run").display().to_string();
    let tunnel = serve(socket_path(Path::new(&run_dir), "a"));
    let fdb = |args: &[&str]| run(&[&["fdb"], args, &["--run-dir", &run_dir]].concat());

    let lines = "\
02:00:00:00:00:01  untagged  tap     learned     3s ago
02:00:00:00:00:03  untagged  site-b  controller  0s ago, number 7
02:00:00:00:00:02  VID 10    site-b  static      1m ago
";
    let indented: String = lines.lines().map(|line| format!("  {line}\n")).collect();
    for (args, expected) in [
        (&["show", "a"][..], lines),
        (&["show", "x/a.toml"], lines),
        (&["show"], &format!("tunnel a\n{indented}")),
        (
            &["show", "a", "--vlan", "10"],
            "02:00:00:00:00:02  VID 10    site-b  static  1m ago\n",
        ),
        (
            &["show", "a", "--port", "tap"],
            "02:00:00:00:00:01  untagged  tap  learned  3s ago\n",
        ),
        (&["show", "a", "--mac", STATION], "no address is known\n"),
        (&["add", "a", STATION, "site-b"], ""),
        (&["add", "a", "2:0:5E:10:0:1", "tap", "--vlan", "4094"], ""),
        (
            &[
                "add",
                "a",
                STATION,
                "tap",
                "--origin",
                "controller",
                "--sequence",
                "8",
            ],
            "",
        ),
        (&["del", "a", STATION], ""),
        (&["del", "a", STATION, "--vlan", "7", "--sequence", "8"], ""),
        (&["flush", "a"], "3 learned addresses forgotten\n"),
        (
            &["flush", "a", "--port", "site-b", "--vlan", "10"],
            "1 learned address forgotten\n",
        ),
    ] {
        let ran = fdb(args);
        assert_eq!(
            (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
            (0, expected, ""),
            "{args:?}"
        );
    }
    for (args, pointer) in [
        (&["show", "a", "--json"][..], "/fdb/2"),
        (&["show", "--json"], "/0/fdb/2"),
    ] {
        let json: serde_json::Value = serde_json::from_str(&fdb(args).stdout).unwrap();
        let expected = serde_json::json!({
            "vid": 10, "mac": "02:00:00:00:00:02", "port": "site-b", "age_s": 60,
            "origin": "static", "sequence": null, "dampened": false, "bound": false
        });
        assert_eq!(json.pointer(pointer), Some(&expected), "{args:?}");
        let tunnel = json.pointer(pointer.strip_suffix("/fdb/2").unwrap());
        assert_eq!(tunnel.unwrap()["tunnel"], "a", "{args:?}");
    }
    let ran = fdb(&["add", "a", STATION, "site-x"]);
    assert_eq!(
        (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
        (1, "", "patchcord: tunnel `a`: there is no port `site-x`\n")
    );

    assert_eq!(run(&["down", "a", "--run-dir", &run_dir]).code, 0);
    tunnel.join().unwrap();
}

/// The table of the stub comes in two parts.
fn fdb_answer(request: FdbRequest) -> Answered {
    let changed = |addresses| Ok(Answer::Changed { addresses });
    match request {
        FdbRequest::Show(show) => {
            let entry = |vid, mac: &str, port: &str, origin: &str, age_s| FdbStatus {
                vid,
                mac: mac.to_owned(),
                port: port.to_owned(),
                age_s,
                origin: origin.to_owned(),
                sequence: (origin == "controller").then_some(7),
                dampened: false,
                bound: false,
            };
            let parts = [
                vec![
                    entry(10, "02:00:00:00:00:02", "site-b", "static", 60),
                    entry(0, "02:00:00:00:00:03", "site-b", "controller", 0),
                ],
                vec![entry(0, "02:00:00:00:00:01", "tap", "learned", 3)],
            ];
            let mut entries = parts[usize::from(show.from > 0)].clone();
            entries.retain(|entry| {
                show.mac.as_ref().is_none_or(|mac| *mac == entry.mac)
                    && show.vid.is_none_or(|vid| vid == entry.vid)
                    && show.port.as_ref().is_none_or(|port| *port == entry.port)
            });
            let next = (show.from == 0).then_some(100);
            Ok(Answer::Fdb(FdbPage { entries, next }))
        }
        FdbRequest::Add(add) if add.port == "site-x" => {
            Err(QueryError::Refused("there is no port `site-x`".to_owned()))
        }
        FdbRequest::Add(add) => {
            assert_eq!(add.mac, STATION);
            assert_eq!(add.vid == 4094, add.port == "tap" && add.sequence.is_none());
            let is_controller = add.origin == Assigner::Controller;
            assert_eq!(add.sequence, is_controller.then_some(8));
            changed(1)
        }
        FdbRequest::Del(del) => {
            assert!(matches!((del.vid, del.sequence), (0, None) | (7, Some(8))));
            changed(1)
        }
        FdbRequest::Flush(FdbFlush { port, vid }) => {
            assert_eq!(port.as_deref(), vid.map(|_| "site-b"));
            changed(if vid == Some(10) { 1 } else { 3 })
        }
    }
}

#[test]
fn a_tunnel_of_another_version_is_called_that() {
    let site = Site::new();
    let run_dir = site.path("run").display().to_string();
    let socket = socket_path(Path::new(&run_dir), "a");
    fs::create_dir_all(&run_dir).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for answer in [
        // The answer of tunnels before they shared a protocol with hosts.
        r#"{"reply":"refused","message":"the request is not one that this version knows: unknown variant"}"#,
        // The hello of hosts then, and a possible one of later versions.
        r#"{"hello":"patchcord-host","version":"0.1.0","protocols":[1]}"#,
        r#"{"hello":"patchcord-host","version":"9.0.0","protocols":[9,10],"motto":"x"}"#,
    ] {
        for args in [
            &["show", "a"][..],
            &["down", "a"],
            &["fdb", "show", "a"],
            &["fdb", "add", "a", STATION, "tap"],
        ] {
            let ran = std::thread::scope(|scope| {
                scope.spawn(|| {
                    let (mut stream, _) = listener.accept().unwrap();
                    let mut hello = String::new();
                    let mut reader = BufReader::new(stream.try_clone().unwrap());
                    reader.read_line(&mut hello).unwrap();
                    stream.write_all(format!("{answer}\n").as_bytes()).unwrap();
                });
                run(&[args, &["--run-dir", &run_dir]].concat())
            });
            assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{args:?}");
            for expected in ["tunnel `a`", "another version", "start the tunnel again"] {
                assert!(ran.stderr.contains(expected), "{args:?}: {}", ran.stderr);
            }
        }
    }
}

#[test]
fn clients_of_another_version_and_other_programs_get_an_error() {
    let site = Site::new();
    let run_dir = site.path("run").display().to_string();
    let socket = socket_path(Path::new(&run_dir), "a");
    let tunnel = serve(socket.clone());
    let ours = r#"{"hello":"script","version":"1","protocols":[2]}"#;
    for (lines, expected) in [
        // Clients of the earlier versions.
        (&[r#"{"verb":"show"}"#][..], "install the same version"),
        (
            &[r#"{"hello":"patchcord","version":"0.1.0","protocol":1}"#],
            "unknown-protocol",
        ),
        (
            &[r#"{"hello":"patchcord","version":"9","protocols":[9]}"#],
            "unknown-protocol",
        ),
        (&["GET / HTTP/1.1"], "malformed"),
        (&[ours, "show"], "not a request"),
        (&[ours, r#"{"verb":"list"}"#], "not a request"),
        (&[ours, r#"{"id":1,"verb":"teleport"}"#], "unknown-verb"),
        (
            &[ours, r#"{"id":1,"verb":{"view":{"tunnel":"b"}}}"#],
            "no-tunnel",
        ),
        (
            &[
                ours,
                r#"{"id":1,"verb":{"ask":{"tunnel":"a","query":"show"}}}"#,
            ],
            r#"{"id":1,"ok":{"answer":{"status":{"tunnel":"a""#,
        ),
    ] {
        let heard = say(&socket, lines);
        assert!(heard[1].contains(expected), "{lines:?}: {heard:?}");
    }
    // None of them disturbed the tunnel.
    assert_eq!(run(&["down", "a", "--run-dir", &run_dir]).code, 0);
    tunnel.join().unwrap();
}

/// Sends these lines; returns the answers.
fn say(socket: &Path, lines: &[&str]) -> Vec<String> {
    let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    for line in lines {
        // The tunnel may close the connection halfway.
        let _ = stream.write_all(format!("{line}\n").as_bytes());
    }
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let heard = BufReader::new(stream).lines();
    heard.map_while(Result::ok).collect()
}

#[test]
fn others_are_kept_out_by_the_file_and_by_the_server() {
    if !nix::unistd::geteuid().is_root() {
        return; // only root can call as somebody else
    }
    let site = Site::new();
    fs::set_permissions(site.0.path(), Permissions::from_mode(0o755)).unwrap();
    let run_dir = site.path("run").display().to_string();
    let socket = socket_path(Path::new(&run_dir), "a");
    let tunnel = serve(socket.clone());
    for (mode, expected) in [
        (0o600, "run as root"),
        (0o666, "run as root, or as the owner"),
    ] {
        fs::set_permissions(&socket, Permissions::from_mode(mode)).unwrap();
        for verb in ["show", "down"] {
            let mut command = patchcord(&[verb, "a", "--run-dir", &run_dir]);
            let ran: Ran = command.uid(NOBODY).gid(NOBODY).output().unwrap().into();
            assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{verb} {mode:o}");
            assert!(
                ran.stderr.contains("tunnel `a`"),
                "{verb} {mode:o}: {}",
                ran.stderr
            );
            assert!(
                ran.stderr.contains(expected),
                "{verb} {mode:o}: {}",
                ran.stderr
            );
        }
    }
    assert_eq!(run(&["down", "a", "--run-dir", &run_dir]).code, 0);
    tunnel.join().unwrap();
}

const NOBODY: u32 = 65534;

#[test]
fn silent_clients_keep_no_other_client_out_and_do_not_hold_up_the_end() {
    let site = Site::new();
    let run_dir = site.path("run").display().to_string();
    let socket = socket_path(Path::new(&run_dir), "a");
    let tunnel = serve(socket.clone());
    let silent: Vec<_> = (0..32)
        .map(|_| std::os::unix::net::UnixStream::connect(&socket).unwrap())
        .collect();
    assert_eq!(run(&["show", "a", "--run-dir", &run_dir]).code, 0);
    assert_eq!(run(&["down", "a", "--run-dir", &run_dir]).code, 0);
    tunnel.join().unwrap();
    drop(silent);
}

fn leave_stale_socket(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    drop(std::os::unix::net::UnixListener::bind(path).unwrap());
}

/// A stub of a tunnel that never comes up, and answers all the same.
struct Fake;

impl EthernetTunnelProvider for Fake {
    fn start<'a>(
        &'a self,
        _: &'a ProviderContext,
        _: StartOptions,
    ) -> BoxFut<'a, Result<(), ProviderError>> {
        Box::pin(std::future::pending())
    }

    fn stop<'a>(&'a self, _: &'a ProviderContext, _: StopReason) -> BoxFut<'a, ()> {
        Box::pin(async {})
    }

    fn handle_query<'a>(&'a self, _: &'a ProviderContext, query: Query) -> BoxFut<'a, Answered> {
        Box::pin(async {
            match query {
                Query::Show => Ok(Answer::Status(serde_json::from_str(STATUS).unwrap())),
                Query::Fdb(request) => fdb_answer(request),
                _ => Err(QueryError::Unknown),
            }
        })
    }
}

/// Answers at `path` as a tunnel would, until `down`.
fn serve(path: PathBuf) -> std::thread::JoinHandle<()> {
    let (bound, is_bound) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let host = Host::builder(path.parent().unwrap())
                .register("fake", |_, _| Ok(Fake))
                .build();
            let configuration = TunnelConfiguration::new("fake");
            host.configure("a", configuration, None).unwrap();
            let (listener, _file) = socket::bind(&path, 0o600).unwrap();
            host.start("a", StartOptions::default()).unwrap();
            bound.send(()).unwrap();
            let (ending, policy) = (host.clone(), Policy::default());
            let over = async move { drop(ending.ended("a").await) };
            daemon::serve_until(host, listener, policy, None, over).await;
        });
    });
    is_bound.recv().unwrap();
    thread
}

/// Scripts rely on the names of these fields.
const STATUS: &str = r#"{
  "tunnel": "a", "version": "0.1.0", "state": "connected", "pid": 42, "uptime_s": 1.5,
  "public_key": "own=", "listen": "[::]:51830", "listen_is_here": true, "udp_gso": true, "udp_gro": true,
  "device": {
    "name": "pc0", "index": 7, "mac": "02:00:5e:10:00:01", "mtu": 1500, "bridge": null,
    "up": true, "carrier": true, "waits_for": null, "moved": false, "bridge_port": null,
    "kernel": { "rx_dropped": 0, "tx_dropped": 0, "rx_errors": 0, "tx_errors": 0 }, "remedies": [], "backend": "vnet", "mode": "switch", "adopted": false
  },
  "core_plan": { "plan": "inline", "lanes": 1, "cores": 2, "threads": [{ "name": "control", "core": null }] },
  "peers": [{
    "name": "site-b", "public_key": "theirs=", "endpoint": "192.0.2.1:51830", "state": "up",
    "cipher": "aes-256-gcm", "handshake_age_s": 2.0, "last_received_s": 0.5, "rtt_us": 1234,
    "path_mtu": 1500, "handshakes": 1,
    "counters": {
      "outbound_frames": 1, "outbound_bytes": 60, "outbound_datagrams": 1,
      "inbound_frames": 0, "inbound_bytes": 0, "inbound_datagrams": 0
    },
    "rates": {"outbound_bits_per_s": 0, "outbound_frames_per_s": 0,
              "inbound_bits_per_s": 0, "inbound_frames_per_s": 0}
  }],
  "counters": {
    "outbound_frames": 1, "outbound_bytes": 60, "outbound_datagrams": 1,
    "inbound_frames": 0, "inbound_bytes": 0, "inbound_datagrams": 0
  },
  "drops": { "no-session": 1 }, "ports": [], "groups": [],
  "switch": {
    "addresses": { "places": 8192, "learned": 1, "static": 0, "controller": 0 },
    "counters": { "learned": 1, "moved": 0, "dampened": 0, "limited": 0, "full": 0 }, "moves": []
  },
  "fdb": [{
    "vid": 0, "mac": "02:00:00:00:00:01", "port": "tap", "age_s": 3,
    "origin": "learned", "sequence": null, "dampened": false, "bound": false
  }],
  "fdb_omitted": 0
}"#;
