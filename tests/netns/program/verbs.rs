// SPDX-License-Identifier: MIT OR Apache-2.0
//! Each verb of the command line reaches each tunnel, whether `patchcord up` or a host runs it, and
//! under each of its names.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use serde_json::Value;

use crate::kit::host::{lonely_tunnel, run_host};
use crate::kit::pair::{Pair, Plan};
use crate::kit::process::{Process, eventually, secs};
use crate::kit::site::{Site, binary};

const STATION: &str = "02:00:5e:10:00:01";

/// A site with the tunnel `office` of a host, and the tunnel `lab` of `patchcord up`.
struct Two {
    pair: Pair,
    host: Process,
    lab: Process,
    lab_file: PathBuf,
}

impl Two {
    fn start() -> Self {
        let pair = Pair::prepare(Plan::default());
        let dir = pair.sandbox.path();
        let lab_file = lonely_tunnel(&pair, "lab");
        let host = run_host(&pair, &[]);
        let (program, file) = (binary(), lab_file.display().to_string());
        let words = [program.as_str(), "up", &file];
        let mut lab = pair.a.ns.spawn(&dir.join("lab.log"), &words);
        lab.wait_for("ready", secs(20));
        eventually(secs(20), "the host starts its tunnel", || {
            (ran(&pair.a, "host start office").0 == Some(0)).then_some(())
        });
        Self {
            pair,
            host,
            lab,
            lab_file,
        }
    }

    /// The names of a tunnel on the command line, and its name in answers.
    fn names(&self) -> Vec<(String, &'static str)> {
        let office = &self.pair.a;
        vec![
            ("lab".to_owned(), "lab"),
            (self.lab_file.display().to_string(), "lab"),
            ("office".to_owned(), "office"),
            (office.tunnel.clone(), "office"),
            (office.config.display().to_string(), "office"),
        ]
    }
}

/// The exit code of a `patchcord` command and its output.
fn ran(site: &Site, words: &str) -> (Option<i32>, String) {
    site.ran(&words.split(' ').collect::<Vec<_>>())
}

/// The output of a command that must succeed.
fn done(site: &Site, words: &str) -> String {
    let (code, text) = ran(site, words);
    assert_eq!(code, Some(0), "{words}: {text}");
    text
}

fn json(site: &Site, words: &str) -> Value {
    let text = done(site, words);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{words}: {error}: {text}"))
}

fn names(list: &Value) -> Vec<&str> {
    let items = list.as_array().expect("a list").iter();
    items.filter_map(|item| item["tunnel"].as_str()).collect()
}

#[test]
fn each_verb_reaches_each_tunnel_however_it_was_started() {
    let mut two = Two::start();
    let site = &two.pair.a;
    for list in ["show --json", "fdb show --json", "host list --json"] {
        assert_eq!(names(&json(site, list)), ["lab", "office"], "{list}");
    }
    let list = done(site, "host list");
    assert_eq!(list.matches("no peer up").count(), 2, "{list}");
    for (called, name) in two.names() {
        assert!(done(site, &format!("show {called}")).starts_with(&format!("tunnel {name}\n")));
        assert_eq!(json(site, &format!("show {called} --json"))["tunnel"], name);
        let (code, text) = ran(site, &format!("show {called} --check"));
        assert!(code == Some(1) && text.contains("no peer is up"), "{text}");

        done(site, &format!("fdb add {called} {STATION} tap --vlan 7"));
        let table = json(site, &format!("fdb show {called} --json"));
        assert_eq!(
            (&table["tunnel"], &table["fdb"][0]["mac"]),
            (&name.into(), &STATION.into())
        );
        done(site, &format!("fdb del {called} {STATION} --vlan 7"));
        let (code, text) = ran(site, &format!("fdb add {called} {STATION} nowhere"));
        let refusal = format!("tunnel `{name}`: there is no port `nowhere`");
        assert!(code == Some(1) && text.contains(&refusal), "{text}");
        let flushed = done(site, &format!("fdb flush {called}"));
        assert!(flushed.contains("forgotten"), "{flushed}");
    }
    for name in ["lab", "office"] {
        let (code, text) = ran(site, &format!("host send {name} hello"));
        assert!(code == Some(1) && text.contains("has no answer"), "{text}");
        let (code, text) = ran(site, &format!("host start {name}"));
        assert!(code == Some(1) && text.contains("already"), "{text}");
    }

    done(site, &format!("down {}", site.tunnel));
    assert!(site.link("lab0").is_some(), "another tunnel stays");
    assert!(done(site, "host list").contains("disconnected"));
    assert_eq!(names(&json(site, "show --json")), ["lab"]);
    done(site, "host stop lab");
    assert!(site.link("lab0").is_none(), "gone when the command returns");
    assert!(two.lab.wait_exit(secs(20)).success());
    assert_eq!(names(&json(site, "show --json")), [""; 0]);
    assert_eq!(names(&json(site, "host list --json")), ["office"]);
    drop(two.host);
}

#[test]
fn a_list_and_a_page_call_the_state_of_a_tunnel_alike() {
    let mut two = Two::start();
    let condition = |two: &Two, list: &str, name: &str| {
        let list = json(&two.pair.a, list);
        let mut tunnels = list.as_array().expect("a list").iter();
        let found = tunnels.find(|tunnel| tunnel["tunnel"] == name);
        found.expect("each list has it")["condition"].clone()
    };
    let agree = |two: &Two, expected: [&str; 2]| {
        for (name, expected) in ["lab", "office"].into_iter().zip(expected) {
            for list in ["show --json", "host list --json"] {
                assert_eq!(condition(two, list, name), expected, "{name} in {list}");
            }
            let page = done(&two.pair.a, &format!("show {name}"));
            assert!(
                page.contains(&format!("state       {expected}, ")),
                "{page}"
            );
            let list = done(&two.pair.a, "host list");
            let mut lines = list.lines();
            let line = lines.find(|line| line.starts_with(name)).expect("a line");
            assert_eq!(line[name.len()..].trim(), expected, "{list}");
        }
    };
    agree(&two, ["no peer up", "no peer up"]);
    two.pair.b.up();
    eventually(secs(30), "the peer of one is up", || {
        (condition(&two, "show --json", "office") == "connected").then_some(())
    });
    agree(&two, ["no peer up", "connected"]);
    two.pair.b.terminate();
    done(&two.pair.a, "host stop office");
    let list = json(&two.pair.a, "host list --json");
    assert_eq!(list[1]["condition"], "disconnected", "{list}");
}

#[test]
fn a_tunnel_that_has_no_socket_yet_or_any_more_starts_no_host() {
    let mut pair = Pair::prepare(Plan::default());
    pair.a.up().wait_for("engine started", secs(20));
    let pid = pair.a.process().pid();
    let run_dir = PathBuf::from(format!("/proc/{pid}/root/run/patchcord"));
    let own = run_dir.join(format!("{}.sock", pair.a.tunnel));
    eventually(secs(20), "a socket", || own.exists().then_some(()));
    // As systemd listens for a host: a client that connects starts it.
    let host = UnixListener::bind(run_dir.join("host.sock")).expect("a socket");
    host.set_nonblocking(true).expect("a flag");
    // As it is before `patchcord up` has made its socket, and after it has removed it.
    fs::remove_file(&own).expect("it was there");
    assert!(own.with_extension("lock").exists(), "it runs");

    let site = &pair.a;
    assert_eq!(names(&json(site, "show --json")), [""; 0]);
    assert_eq!(names(&json(site, "fdb show --json")), [""; 0]);
    for verb in ["show", "fdb show", "down"] {
        let (code, text) = ran(site, &format!("{verb} {}", site.tunnel));
        assert!(code == Some(1) && text.contains("is not running"), "{text}");
    }
    let connected = host.accept().map(drop).map_err(|error| error.kind());
    assert_eq!(connected, Err(ErrorKind::WouldBlock), "nobody connected");
}
