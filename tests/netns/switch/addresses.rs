// SPDX-License-Identifier: MIT OR Apache-2.0
//! The FDB from outside: assigned, deleted and flushed addresses decide where real frames go.
//!
//! ```text
//!   cable ── br-lan ── A ─┬── B ── br-lan ── cable
//!                         └── C ── br-lan ── cable
//! ```
//! All commands run at A. B and C do not know each other: a unicast that C receives was flooded by A,
//! or sent there on purpose.

use std::net::IpAddr;

use crate::kit::cable::Cable;
use crate::kit::frames::{self, BROADCAST, EXPERIMENTAL, Mac};
use crate::kit::pair::{Pair, Plan, connect};
use crate::kit::process::{eventually, millis, secs};
use crate::kit::site::{Peer, Settings, Site};
use crate::kit::topology::{Router, Sandbox, mac};

struct Star {
    at: [Cable; 3],
    sites: [Site; 3],
    seed: u64,
    _internet: Router,
    _sandbox: Sandbox,
}

const A: usize = 0;
const B: usize = 1;
const C: usize = 2;

impl Star {
    fn start() -> Self {
        Self::start_with("")
    }

    /// With these lines for the port that A has for C.
    fn start_with(port: &'static str) -> Self {
        let sandbox = Sandbox::new();
        let internet = Router::internet(&sandbox);
        let mut sites = [1, 2, 3].map(|n| Site::new(&sandbox, &internet, n, 1500));
        let peer = |of: usize| sites[of].as_peer(Some(IpAddr::V4(sites[of].uplink.v4)));
        let settings = Settings::default();
        let to_c = Peer { port, ..peer(C) };
        sites[A].configure(&settings, &[peer(B), to_c]);
        sites[B].configure(&settings, &[peer(A)]);
        sites[C].configure(&settings, &[peer(A)]);
        let at = [A, B, C].map(|site| sites[site].cable(1, 1500));
        for site in &mut sites {
            site.up();
        }
        let star = Self {
            at,
            sites,
            seed: 0,
            _internet: internet,
            _sandbox: sandbox,
        };
        star.connect();
        star
    }

    fn connect(&self) {
        for site in [B, C] {
            connect(&self.at[A], &self.at[site], secs(10));
            connect(&self.at[site], &self.at[A], secs(10));
        }
    }

    /// Runs `patchcord fdb` at A, and returns its output.
    fn fdb(&self, words: &str) -> Result<String, String> {
        fdb(&self.sites[A], words)
    }

    /// Sends one frame from A to this station; returns whether B and C received it.
    fn unicast(&mut self, to: Mac) -> [bool; 2] {
        // The arrival of a broadcast means that earlier frames should have arrived; it may overtake
        // a frame to another station, but not by much.
        self.seed += 2;
        let frame = |to, seed| frames::frame(to, self.at[A].mac, &[], EXPERIMENTAL, 60, seed);
        let unicast = frame(to, self.seed);
        let end = frame(BROADCAST, self.seed + 1);
        self.at[A].send(&unicast);
        self.at[A].send(&end);
        [B, C].map(|site| {
            assert!(
                self.at[site].receives(&end, secs(20)),
                "a broadcast crosses"
            );
            self.at[site].receives(&unicast, millis(200))
        })
    }

    /// Sends a frame of this station at a site, and waits until it arrives at A.
    fn appears(&mut self, station: Mac, site: usize) {
        self.seed += 2;
        let hello = frames::frame(BROADCAST, station, &[], EXPERIMENTAL, 60, self.seed);
        self.at[site].send(&hello);
        assert!(self.at[A].receives(&hello, secs(20)), "a broadcast crosses");
    }
}

fn fdb(site: &Site, words: &str) -> Result<String, String> {
    let words = words.replace("TUNNEL", &site.tunnel);
    let words: Vec<_> = ["fdb"].into_iter().chain(words.split(' ')).collect();
    let output = site.patchcord(&words);
    let text = |bytes| String::from_utf8(bytes).expect("text");
    match output.status.code() {
        Some(0) => Ok(text(output.stdout)),
        Some(1) => Err(text(output.stderr)),
        code => panic!("{words:?}: {code:?}: {}", text(output.stderr)),
    }
}

const STATION: Mac = [0x02, 0x55, 0, 0, 0, 1];

#[test]
fn a_static_address_keeps_its_place() {
    let mut star = Star::start();
    let station = mac(STATION);
    assert_eq!(star.unicast(STATION), [true, true], "unknown: flooded");

    star.fdb(&format!("add TUNNEL {station} site3")).unwrap();
    assert_eq!(star.unicast(STATION), [false, true], "assigned to C");
    star.appears(STATION, B);
    assert_eq!(star.unicast(STATION), [false, true], "and stays there");
    let shown = star.fdb(&format!("show TUNNEL --mac {station}")).unwrap();
    assert!(
        shown.starts_with(&format!("{station}  untagged  site3  static ")),
        "{shown}"
    );

    star.fdb(&format!("add TUNNEL {station} tap")).unwrap();
    assert_eq!(star.unicast(STATION), [false, false], "it lives here");
    star.fdb(&format!("del TUNNEL {station}")).unwrap();
    assert_eq!(star.unicast(STATION), [true, true], "unknown again");
    let refused = star.fdb(&format!("del TUNNEL {station}")).unwrap_err();
    assert!(refused.contains("is not in the table"), "{refused}");
    star.appears(STATION, B);
    assert_eq!(star.unicast(STATION), [true, false], "learned");
    let refused = star.fdb(&format!("add TUNNEL {station} site9"));
    let ports = "there is no port `site9`; the ports are tap, site2, site3";
    assert!(refused.unwrap_err().contains(ports));
}

#[test]
fn a_station_that_moves_too_often_is_found_where_it_talks() {
    let mut star = Star::start();
    let station = mac(STATION);
    let show = format!("show TUNNEL --mac {station}");
    eventually(secs(60), "it moves too often", || {
        for site in [B, C, B, C, B, C, B, C] {
            star.appears(STATION, site);
        }
        let shown = star.fdb(&show).unwrap();
        shown.contains("moved too often").then_some(())
    });
    let log = "a station moves between ports too often";
    star.sites[A].process().wait_for(log, secs(10));
    assert!(star.sites[A].process().log().contains(&station));
    // Far less than a minute.
    for (site, port) in [(B, "site2"), (C, "site3"), (B, "site2")] {
        eventually(secs(20), "it is where it talks", || {
            star.appears(STATION, site);
            star.fdb(&show).unwrap().contains(port).then_some(())
        });
        assert_eq!(star.unicast(STATION), [site == B, site == C]);
    }
}

#[test]
fn stations_of_the_configuration_are_there_after_each_start() {
    let mut star = Star::start_with(
        "stations = [\"02:55:00:00:00:01\", { mac = \"02:55:00:00:00:02\", vlan = 10 }]",
    );
    let in_vlan: Mac = [0x02, 0x55, 0, 0, 0, 2];
    for start in 1..=2 {
        assert_eq!(star.unicast(STATION), [false, true], "start {start}");
        star.appears(STATION, B);
        assert_eq!(star.unicast(STATION), [false, true], "and stays there");
        assert_eq!(star.unicast(in_vlan), [true, true], "of another VLAN");
        for (station, vlan) in [(STATION, "untagged"), (in_vlan, "VID 10")] {
            let station = mac(station);
            let shown = star.fdb(&format!("show TUNNEL --mac {station}")).unwrap();
            let words: Vec<_> = shown.split_whitespace().collect();
            let expected = format!("{station} {vlan} site3 static ");
            assert!(words.join(" ").starts_with(&expected), "{shown}");
        }
        // A deleted entry of the configuration is back after the next start.
        star.fdb(&format!("del TUNNEL {}", mac(STATION))).unwrap();
        assert_eq!(star.unicast(STATION), [true, true], "unknown");
        star.sites[A].terminate();
        star.sites[A].up();
        star.connect();
    }
}

#[test]
fn after_a_flush_the_next_frame_floods() {
    let mut star = Star::start();
    let kept: Mac = [0x02, 0x55, 0, 0, 0, 2];
    star.fdb(&format!("add TUNNEL {} site2", mac(kept)))
        .unwrap();
    for (flush, floods) in [
        ("flush TUNNEL", true),
        ("flush TUNNEL --port site2", true),
        ("flush TUNNEL --port site2 --vlan 0", true),
        ("flush TUNNEL --port site3", false),
        ("flush TUNNEL --port site2 --vlan 10", false),
        ("flush TUNNEL --vlan 10", false),
    ] {
        star.appears(STATION, B);
        assert_eq!(star.unicast(STATION), [true, false], "before {flush}");
        let said = star.fdb(flush).unwrap();
        assert!(said.contains(" forgotten"), "{flush}: {said}");
        assert_eq!(star.unicast(STATION), [true, floods], "after {flush}");
        assert_eq!(star.unicast(kept), [true, false], "after {flush}");
    }
}

#[test]
fn a_controller_is_followed_by_its_numbers() {
    let mut star = Star::start();
    let station = mac(STATION);
    let advertise = |star: &Star, site: &str, number: u32| {
        let words = format!("add TUNNEL {station} {site} --origin controller --sequence {number}");
        star.fdb(&words)
    };
    advertise(&star, "site3", 5).unwrap();
    assert_eq!(star.unicast(STATION), [false, true]);
    let refused = advertise(&star, "site2", 4).unwrap_err();
    assert!(refused.contains("outdated"), "{refused}");
    assert_eq!(star.unicast(STATION), [false, true]);
    advertise(&star, "site2", 6).unwrap();
    assert_eq!(star.unicast(STATION), [true, false]);

    // The station moves, and earlier assignments no longer apply.
    star.appears(STATION, C);
    assert_eq!(star.unicast(STATION), [false, true]);
    assert!(advertise(&star, "site2", 6).is_err());
    let withdrawn = star.fdb(&format!("del TUNNEL {station} --sequence 6"));
    assert!(withdrawn.unwrap_err().contains("by now learned on site3"));
    let json = star.fdb(&format!("show TUNNEL --mac {station} --json"));
    let json: serde_json::Value = serde_json::from_str(&json.unwrap()).unwrap();
    assert_eq!(json["tunnel"], star.sites[A].tunnel);
    assert_eq!(json["fdb"][0]["origin"], "learned");
    assert_eq!(json["fdb"][0]["sequence"], 6);
    let status = star.sites[A].status().switch;
    assert_eq!(status.counters.moved, 1);
    let last = status.moves.last().expect("a move");
    assert_eq!(
        (last.mac.as_str(), last.from.as_str(), last.to.as_str()),
        (station.as_str(), "site2", "site3")
    );

    advertise(&star, "site2", 7).unwrap();
    assert_eq!(star.unicast(STATION), [true, false]);
    star.fdb(&format!("del TUNNEL {station} --sequence 7"))
        .unwrap();
    assert_eq!(star.unicast(STATION), [true, true]);
}

#[test]
fn a_full_table_is_counted_by_show_and_listed_by_fdb_show() {
    const STATIONS: u16 = 2000;
    // Some buckets get more than eight of them for their eight slots.
    const ENOUGH: u64 = 1980;
    let pair = Pair::start(Plan::default());
    for name in 0..STATIONS {
        let [high, low] = name.to_be_bytes();
        let station = [0x02, 0x56, 0, 0, high, low];
        // To a station that B knows, so that no flood limit applies.
        let frame = frames::frame(pair.at_b.mac, station, &[], EXPERIMENTAL, 60, 0);
        pair.at_a.send(&frame);
        if name % 100 == 0 {
            std::thread::sleep(millis(1));
        }
    }
    let addresses = || pair.a.status().switch.addresses.learned;
    eventually(secs(20), "they have been learned", || {
        (addresses() >= ENOUGH).then_some(())
    });
    let status = pair.a.status();
    assert_eq!(status.fdb.len(), 1000, "show stays bounded");
    let counts = status.switch.addresses;
    assert_eq!(counts.places, 16_384, "twice what two ports may have");
    assert_eq!(status.fdb_omitted, counts.learned - 1000);
    let output = pair.a.patchcord(&["show", &pair.a.tunnel]);
    let page = String::from_utf8_lossy(&output.stdout);
    assert!(page.lines().count() < 60, "{page}");
    assert!(
        page.contains(&format!("`patchcord fdb show {}`", pair.a.tunnel)),
        "{page}"
    );
    let shown = fdb(&pair.a, "show TUNNEL").unwrap();
    assert_eq!(shown.lines().count() as u64, counts.total());
}
