// SPDX-License-Identifier: MIT OR Apache-2.0
//! The FDB for the command line and for controllers: read in pages, summarised in counts, and
//! changed on request.
//!
//! Called by the control task, which alone assigns addresses; the data threads use the table
//! meanwhile. Nothing here takes long: a large table is read in pages.

use patchcord_bridge::{
    Fdb, MacAddr, ParseMacError, PortId, Vid,
    fdb::{Entry, InsertError, Origin},
};
use tracing::{debug, info};

use crate::control::message::{
    AddressCounts, Answer, Answered, Assigner, FdbAdd, FdbCounters, FdbDel, FdbFlush, FdbPage,
    FdbRequest, FdbShow, FdbStatus, MoveStatus, QueryError, SwitchStatus,
};

/// Addresses in a status, and in a page: some 150 KiB of JSON, which also fits a line of the host's
/// socket.
const PAGE: usize = 1000;
/// Buckets that are searched for a page.
const BUCKETS_AT_ONCE: usize = 8192;

/// The table, and the names of its ports.
pub(super) struct Addresses<'a> {
    pub(super) fdb: &'a Fdb,
    /// The names of the peers, in the order of their ports.
    pub(super) peers: Vec<&'a str>,
    pub(super) now_s: u32,
}

/// Why a request is refused; the text states the remedy.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Refusal {
    #[error("`{text}` is not an Ethernet address: {source}")]
    BadMac { text: String, source: ParseMacError },
    #[error(
        "{mac} is the address of a group, or null, and not of a station; write that of a network card"
    )]
    NoStation { mac: MacAddr },
    #[error("there is no VLAN {vid}; write 1 to 4094, or 0 for none")]
    NoVlan { vid: u16 },
    #[error("there is no port `{port}`; the ports are {}", ports.join(", "))]
    NoPort { port: String, ports: Vec<String> },
    #[error(
        "only a controller's address has a sequence number; leave it out, or ask for the origin `controller`"
    )]
    NumberedStatic,
    #[error(
        "the table is full: static addresses and those of controllers hold all slots for {address} ({}); delete one of them",
        taken.join(", ")
    )]
    Full { address: String, taken: Vec<String> },
    #[error("{address} is a static address on {port}, which outranks controllers; delete it first")]
    Static { address: String, port: String },
    #[error(
        "outdated: {address} was advertised under sequence number {known} before, and is on {port}; {remedy}"
    )]
    Outdated {
        address: String,
        port: String,
        known: u32,
        remedy: &'static str,
    },
    #[error("outdated: {address} is by now {origin} on {port}, and stays")]
    Superseded {
        address: String,
        origin: &'static str,
        port: String,
    },
    #[error(
        "{address} is not in the table; `patchcord fdb show` lists what is, and `--vlan` says in which VLAN to look"
    )]
    Unknown { address: String },
}

impl Addresses<'_> {
    /// The answer to a request.
    pub(super) fn answer(&self, request: &FdbRequest) -> Answered {
        let answer = match request {
            FdbRequest::Show(show) => self.show(show).map(Answer::Fdb),
            FdbRequest::Add(add) => self.add(add).map(changed),
            FdbRequest::Del(del) => self.del(del).map(changed),
            FdbRequest::Flush(flush) => self.flush(flush).map(changed),
        };
        answer.map_err(|refusal| QueryError::Refused(refusal.to_string()))
    }

    /// The first addresses of the table, and how many others there are.
    pub(super) fn first(&self) -> (Vec<FdbStatus>, u64) {
        let entries = self.fdb.entries(self.now_s).take(PAGE);
        let first: Vec<_> = entries.map(|entry| self.status(entry)).collect();
        let omitted = match first.len() {
            PAGE => self.counts().total().saturating_sub(PAGE as u64),
            _ => 0,
        };
        (first, omitted)
    }

    /// The counts of the table.
    pub(super) fn summary(&self) -> SwitchStatus {
        let counters = self.fdb.counters();
        let moves = self.fdb.last_moves().into_iter().map(|seen| MoveStatus {
            vid: seen.vid.value(),
            mac: seen.mac.to_string(),
            from: self.name(seen.from),
            to: self.name(seen.to),
            // The clock of the data thread that saw it may be a little ahead.
            age_s: self.now_s.saturating_sub(seen.at_s),
        });
        SwitchStatus {
            addresses: self.counts(),
            counters: FdbCounters {
                learned: counters.learned,
                moved: counters.moved,
                dampened: counters.dampened,
                limited: counters.limited,
                full: counters.full,
            },
            moves: moves.collect(),
        }
    }

    fn show(&self, show: &FdbShow) -> Result<FdbPage, Refusal> {
        let mac = show.mac.as_deref().map(mac).transpose()?;
        let vid = show.vid.map(vlan).transpose()?;
        let port = show.port.as_deref().map(|port| self.port(port));
        let port = port.transpose()?;
        let is_meant = |entry: &Entry| {
            mac.is_none_or(|mac| mac == entry.mac)
                && vid.is_none_or(|vid| vid == entry.vid)
                && port.is_none_or(|port| port == entry.port)
        };
        let begin = (show.from as usize).min(self.fdb.buckets());
        let end = self.fdb.buckets().min(begin + BUCKETS_AT_ONCE);
        let mut entries = Vec::new();
        let mut bucket = begin;
        while bucket < end && entries.len() < PAGE {
            let found = self.fdb.entries_in(bucket..bucket + 1, self.now_s);
            entries.extend(found.filter(is_meant).map(|entry| self.status(entry)));
            bucket += 1;
        }
        let next = (bucket < self.fdb.buckets()).then_some(bucket as u32);
        Ok(FdbPage { entries, next })
    }

    fn add(&self, add: &FdbAdd) -> Result<usize, Refusal> {
        let (vid, mac, port) = (vlan(add.vid)?, mac(&add.mac)?, self.port(&add.port)?);
        if !mac.is_station() {
            return Err(Refusal::NoStation { mac });
        }
        if vid != Vid::UNTAGGED && !vid.is_assignable() {
            return Err(Refusal::NoVlan { vid: add.vid });
        }
        let assigned = match (add.origin, add.sequence) {
            (Assigner::Static, Some(_)) => return Err(Refusal::NumberedStatic),
            (Assigner::Static, None) => {
                let origin = Origin::Static;
                self.fdb.insert(vid, mac, port, origin, self.now_s)
            }
            (Assigner::Controller, sequence) => {
                // RFC 7432, section 15: an advertisement without a number has number 0.
                let sequence = sequence.unwrap_or(0);
                self.fdb.advertise(vid, mac, port, sequence, self.now_s)
            }
        };
        assigned.map_err(|error| self.refusal(error, vid, mac))?;
        debug!(%mac, vlan = vid.value(), port = add.port, origin = ?add.origin, "address assigned");
        Ok(1)
    }

    fn refusal(&self, error: InsertError, vid: Vid, mac: MacAddr) -> Refusal {
        let address = in_words(vid, mac);
        let found = self.fdb.find(vid, mac, self.now_s);
        let port = || found.map_or_else(|| "no port now".to_owned(), |entry| self.name(entry.port));
        match error {
            InsertError::Static => Refusal::Static {
                address,
                port: port(),
            },
            InsertError::Outdated { known } => Refusal::Outdated {
                address,
                port: port(),
                known,
                remedy: "only a higher one counts now",
            },
            // Full, or any reason that is added later: nothing fits.
            _ => {
                let bucket = self.fdb.bucket_of(vid, mac);
                let taken = self.fdb.entries_in(bucket..bucket + 1, self.now_s);
                let taken = taken.filter(|entry| entry.origin != Origin::Learned);
                Refusal::Full {
                    address,
                    taken: taken.map(|entry| in_words(entry.vid, entry.mac)).collect(),
                }
            }
        }
    }

    fn del(&self, del: &FdbDel) -> Result<usize, Refusal> {
        let (vid, mac) = (vlan(del.vid)?, mac(&del.mac)?);
        let address = in_words(vid, mac);
        let Some(entry) = self.fdb.find(vid, mac, self.now_s) else {
            return Err(Refusal::Unknown { address });
        };
        let Some(sequence) = del.sequence else {
            self.fdb.remove(vid, mac);
            debug!(%mac, vlan = vid.value(), "address deleted");
            return Ok(1);
        };
        if self.fdb.withdraw(vid, mac, sequence) {
            debug!(%mac, vlan = vid.value(), sequence, "address withdrawn");
            return Ok(1);
        }
        let port = self.name(entry.port);
        Err(match entry.sequence.filter(|known| *known > sequence) {
            Some(known) => Refusal::Outdated {
                address,
                port,
                known,
                remedy: "only that one or a higher one takes it back",
            },
            None => Refusal::Superseded {
                address,
                origin: origin_name(entry.origin),
                port,
            },
        })
    }

    fn flush(&self, flush: &FdbFlush) -> Result<usize, Refusal> {
        let vid = flush.vid.map(vlan).transpose()?;
        let port = flush.port.as_deref().map(|port| self.port(port));
        let forgotten = match (port.transpose()?, vid) {
            (Some(port), Some(vid)) => self.fdb.flush_port_in(port, vid),
            (Some(port), None) => self.fdb.flush_port(port),
            (None, Some(vid)) => self.fdb.flush_vlan(vid),
            (None, None) => self.fdb.flush_learned(),
        };
        info!(
            port = flush.port,
            vlan = flush.vid,
            forgotten,
            "FDB flushed"
        );
        Ok(forgotten)
    }

    fn counts(&self) -> AddressCounts {
        let occupancy = self.fdb.occupancy(self.now_s);
        AddressCounts {
            places: occupancy.places as u64,
            learned: occupancy.learned as u64,
            fixed: occupancy.fixed as u64,
            controller: occupancy.controller as u64,
        }
    }

    fn status(&self, entry: Entry) -> FdbStatus {
        FdbStatus {
            vid: entry.vid.value(),
            mac: entry.mac.to_string(),
            port: self.name(entry.port),
            age_s: entry.age_s,
            origin: origin_name(entry.origin).to_owned(),
            sequence: entry.sequence,
            dampened: entry.dampened,
            bound: entry.bound,
        }
    }

    /// The name of the port in `show`.
    fn name(&self, port: PortId) -> String {
        let mut ports = self.ports();
        ports.nth(port.0.into()).unwrap_or("?").to_owned()
    }

    fn port(&self, name: &str) -> Result<PortId, Refusal> {
        let found = (0..).zip(self.ports()).find(|(_, port)| *port == name);
        let (port, _) = found.ok_or_else(|| Refusal::NoPort {
            port: name.to_owned(),
            ports: self.ports().map(str::to_owned).collect(),
        })?;
        Ok(PortId(port))
    }

    fn ports(&self) -> impl Iterator<Item = &str> {
        [TAP].into_iter().chain(self.peers.iter().copied())
    }
}

/// No peer may have this name.
const TAP: &str = "tap";

fn changed(addresses: usize) -> Answer {
    Answer::Changed {
        addresses: addresses as u64,
    }
}

fn origin_name(origin: Origin) -> &'static str {
    match origin {
        Origin::Static => "static",
        Origin::Learned => "learned",
        Origin::Controller => "controller",
    }
}

fn in_words(vid: Vid, mac: MacAddr) -> String {
    match vid {
        Vid::UNTAGGED => mac.to_string(),
        vid => format!("{mac} in VLAN {vid}"),
    }
}

fn mac(text: &str) -> Result<MacAddr, Refusal> {
    text.parse().map_err(|source| Refusal::BadMac {
        text: text.to_owned(),
        source,
    })
}

fn vlan(vid: u16) -> Result<Vid, Refusal> {
    Vid::new(vid).ok_or(Refusal::NoVlan { vid })
}

#[cfg(test)]
mod tests {
    use patchcord_bridge::SwitchConfig;

    use super::*;

    const NOW_S: u32 = 100;
    const STATION: &str = "02:00:00:00:00:01";

    #[test]
    fn assigned_addresses_are_listed_with_who_assigned_them() {
        let fdb = table(8192);
        let table = addresses(&fdb);
        fdb.learn(Vid::UNTAGGED, station(2), PortId(1), NOW_S - 7);
        assert_eq!(table.answer(&add("untagged static on tap")), done(1));
        assert_eq!(table.answer(&add("vlan controller 3 on b")), done(1));
        let mut listed = all(&table, FdbShow::default());
        listed.sort_by_key(|entry| (entry.vid, entry.mac.clone()));
        let entry = |vid, mac: &str, port: &str, age_s, origin: &str, sequence| FdbStatus {
            vid,
            mac: mac.to_owned(),
            port: port.to_owned(),
            age_s,
            origin: origin.to_owned(),
            sequence,
            dampened: false,
            bound: false,
        };
        let expected = [
            entry(0, STATION, "tap", 0, "static", None),
            entry(0, "02:00:00:00:00:02", "a", 7, "learned", None),
            entry(10, STATION, "b", 0, "controller", Some(3)),
        ];
        assert_eq!(listed, expected);

        for (mac, vid, port, expected) in [
            (Some(STATION), None, None, 2),
            (Some(STATION), Some(10), None, 1),
            (None, Some(0), None, 2),
            (None, None, Some("a"), 1),
            (None, Some(4095), None, 0),
        ] {
            let show = FdbShow {
                from: 0,
                mac: mac.map(str::to_owned),
                vid,
                port: port.map(str::to_owned),
            };
            assert_eq!(all(&table, show.clone()).len(), expected, "{show:?}");
        }
        let counts = table.summary().addresses;
        assert_eq!(
            (
                counts.fixed,
                counts.learned,
                counts.controller,
                counts.places
            ),
            (1, 1, 1, 8192)
        );
    }

    #[test]
    fn a_static_address_outranks_frames_and_controllers() {
        let fdb = table(8192);
        let table = addresses(&fdb);
        assert_eq!(table.answer(&add("untagged static on a")), done(1));
        fdb.learn(Vid::UNTAGGED, station(1), PortId(2), NOW_S);
        let port = || fdb.lookup(Vid::UNTAGGED, station(1), NOW_S);
        assert_eq!(port(), Some(PortId(1)));
        let text = refused(&table, &add("untagged controller 9 on b"));
        assert!(text.contains("static address on a"), "{text}");
        assert_eq!(table.answer(&add("untagged static on b")), done(1));
        assert_eq!(port(), Some(PortId(2)), "the administrator may move it");
    }

    #[test]
    fn an_earlier_advertisement_is_outdated() {
        let fdb = table(8192);
        let table = addresses(&fdb);
        for (said, refusal) in [
            ("vlan controller on a", None), // without a number it is 0
            (
                "vlan controller 0 on b",
                Some("number 0 before, and is on a"),
            ),
            ("vlan controller 7 on a", None),
            ("vlan controller 7 on a", None),
            (
                "vlan controller 7 on b",
                Some("number 7 before, and is on a"),
            ),
            ("vlan controller 6 on a", Some("number 7 before")),
            ("vlan controller 8 on b", None),
        ] {
            match refusal {
                None => assert_eq!(table.answer(&add(said)), done(1), "{said}"),
                Some(words) => {
                    let text = refused(&table, &add(said));
                    assert!(text.starts_with("outdated: 02:00:00:00:00:01 in VLAN 10 "));
                    assert!(text.contains(words), "{said}: {text}");
                }
            }
        }
        let text = refused(&table, &del(10, Some(7)));
        assert!(text.contains("number 8 before, and is on b"), "{text}");
        // The station moves here, so the controller's entry is outdated.
        let vid = Vid::new(10).unwrap();
        fdb.learn(vid, station(1), PortId::TAP, NOW_S);
        let text = refused(&table, &del(10, Some(8)));
        assert!(text.contains("by now learned on tap"), "{text}");
        assert_eq!(table.answer(&add("vlan controller 9 on b")), done(1));
        assert_eq!(table.answer(&del(10, Some(9))), done(1));
        assert_eq!(all(&table, FdbShow::default()), []);
    }

    #[test]
    fn refusals_say_what_to_do() {
        let fdb = table(8);
        let table = addresses(&fdb);
        let of_mac = |mac: &str| {
            let FdbRequest::Add(mut add) = add("untagged static on a") else {
                panic!()
            };
            add.mac = mac.to_owned();
            FdbRequest::Add(add)
        };
        let vlan = |vid| {
            let FdbRequest::Add(mut add) = add("untagged static on a") else {
                panic!()
            };
            add.vid = vid;
            FdbRequest::Add(add)
        };
        let flush = |port: Option<&str>, vid| {
            FdbRequest::Flush(FdbFlush {
                port: port.map(str::to_owned),
                vid,
            })
        };
        for (request, words) in [
            (
                add("untagged static on c"),
                "no port `c`; the ports are tap, a, b",
            ),
            (flush(Some("c"), None), "the ports are tap, a, b"),
            (flush(None, Some(4096)), "no VLAN 4096; write 1 to 4094"),
            (vlan(4095), "no VLAN 4095"),
            (vlan(u16::MAX), "no VLAN 65535"),
            (of_mac("01:00:5e:00:00:01"), "address of a group"),
            (of_mac("ff:ff:ff:ff:ff:ff"), "address of a group"),
            (of_mac("00:00:00:00:00:00"), "or null"),
            (of_mac("02:00:00"), "`02:00:00` is not an Ethernet address"),
            (
                add("untagged static 7 on a"),
                "ask for the origin `controller`",
            ),
            (
                del(0, None),
                "02:00:00:00:00:01 is not in the table; `patchcord fdb show`",
            ),
            (
                del(10, Some(7)),
                "02:00:00:00:00:01 in VLAN 10 is not in the table",
            ),
        ] {
            let text = refused(&table, &request);
            assert!(text.contains(words), "{request:?}: {text}");
            assert_eq!(fdb.entries(NOW_S).count(), 0, "{request:?}");
        }

        // A learned address is evicted for an assigned one; the ninth assigned one finds no slot.
        fdb.learn(Vid::UNTAGGED, station(99), PortId(1), NOW_S);
        for name in 2..10 {
            let mac = format!("02:00:00:00:00:{name:02x}");
            assert_eq!(table.answer(&of_mac(&mac)), done(1), "{mac}");
        }
        let text = refused(&table, &of_mac(STATION));
        assert!(text.contains("the table is full"), "{text}");
        assert!(text.contains("02:00:00:00:00:02") && text.contains("02:00:00:00:00:09"));
        assert_eq!(table.answer(&of_mac("02:00:00:00:00:02")), done(1));
    }

    #[test]
    fn a_flush_is_of_what_was_learned() {
        for (port, vid, forgotten) in [
            (None, None, 4),
            (Some("a"), None, 2),
            (None, Some(10), 2),
            (Some("a"), Some(10), 1),
            (Some("tap"), None, 0),
        ] {
            let fdb = table(8192);
            let table = addresses(&fdb);
            for vid in [0, 10] {
                for (name, port) in [(2, PortId(1)), (3, PortId(2))] {
                    fdb.learn(Vid::new(vid).unwrap(), station(name), port, NOW_S);
                }
            }
            assert_eq!(table.answer(&add("untagged static on a")), done(1));
            assert_eq!(table.answer(&add("vlan controller 1 on a")), done(1));
            let flush = FdbRequest::Flush(FdbFlush {
                port: port.map(str::to_owned),
                vid,
            });
            assert_eq!(table.answer(&flush), done(forgotten), "{port:?} {vid:?}");
            let left = fdb.entries(NOW_S).count() as u64;
            assert_eq!(left, 6 - forgotten, "{port:?} {vid:?}");
        }
    }

    #[test]
    fn a_full_table_comes_in_portions() {
        let config = SwitchConfig {
            fdb_capacity: 1 << 17,
            max_per_port: usize::MAX,
            ..SwitchConfig::default()
        };
        let fdb = Fdb::new(&config, [1, 2]);
        let table = addresses(&fdb);
        let (first, omitted) = table.first();
        assert_eq!((first.len(), omitted), (0, 0));
        for name in 0..10_000u32 {
            let [_, b, c, d] = name.to_be_bytes();
            fdb.learn(Vid::UNTAGGED, MacAddr([2, 0, 0, b, c, d]), PortId(1), NOW_S);
        }
        let (first, omitted) = table.first();
        assert_eq!((first.len(), omitted), (PAGE, 9000));
        let bytes = serde_json::to_vec(&first).unwrap().len();
        assert!(bytes < 200_000, "{bytes}");

        let mut macs: Vec<_> = all(&table, FdbShow::default())
            .into_iter()
            .map(|entry| entry.mac)
            .collect();
        macs.sort();
        macs.dedup();
        assert_eq!(macs.len(), 10_000, "each once");
        // However few addresses match, no request takes long.
        let rare = FdbShow {
            vid: Some(7),
            ..FdbShow::default()
        };
        let Ok(Answer::Fdb(page)) = table.answer(&FdbRequest::Show(rare)) else {
            panic!()
        };
        let expected = FdbPage {
            entries: Vec::new(),
            next: Some(BUCKETS_AT_ONCE as u32),
        };
        assert_eq!(page, expected);
        // A position that does not exist.
        let beyond = FdbShow {
            from: u32::MAX,
            ..FdbShow::default()
        };
        let reply = table.answer(&FdbRequest::Show(beyond));
        assert_eq!(reply, Ok(Answer::Fdb(FdbPage::default())));
    }

    #[test]
    fn moves_are_told_with_the_names_of_ports() {
        let fdb = table(8192);
        fdb.learn(Vid::UNTAGGED, station(1), PortId::TAP, 90);
        fdb.learn(Vid::UNTAGGED, station(1), PortId(2), 95);
        // A data thread that has read the clock after the control task has.
        fdb.learn(Vid::UNTAGGED, station(1), PortId(7), NOW_S + 1);
        let summary = addresses(&fdb).summary();
        let seen = |from: &str, to: &str, age_s| MoveStatus {
            vid: 0,
            mac: STATION.to_owned(),
            from: from.to_owned(),
            to: to.to_owned(),
            age_s,
        };
        assert_eq!(summary.moves, [seen("tap", "b", 5), seen("b", "?", 0)]);
        assert_eq!((summary.counters.learned, summary.counters.moved), (1, 2));
    }

    fn table(fdb_capacity: usize) -> Fdb {
        let config = SwitchConfig {
            fdb_capacity,
            ..SwitchConfig::default()
        };
        Fdb::new(&config, [1, 2])
    }

    fn addresses(fdb: &Fdb) -> Addresses<'_> {
        Addresses {
            fdb,
            peers: vec!["a", "b"],
            now_s: NOW_S,
        }
    }

    fn station(name: u8) -> MacAddr {
        MacAddr([2, 0, 0, 0, 0, name])
    }

    fn done(addresses: u64) -> Answered {
        Ok(Answer::Changed { addresses })
    }

    /// `untagged` or `vlan`, the origin, perhaps a number, and the port: what to do with [`STATION`].
    fn add(words: &str) -> FdbRequest {
        let words: Vec<_> = words.split(' ').collect();
        FdbRequest::Add(FdbAdd {
            vid: if words[0] == "vlan" { 10 } else { 0 },
            mac: STATION.to_owned(),
            port: words[words.len() - 1].to_owned(),
            origin: match words[1] {
                "static" => Assigner::Static,
                _ => Assigner::Controller,
            },
            sequence: words[2].parse().ok(),
        })
    }

    fn del(vid: u16, sequence: Option<u32>) -> FdbRequest {
        FdbRequest::Del(FdbDel {
            vid,
            mac: STATION.to_owned(),
            sequence,
        })
    }

    fn refused(table: &Addresses<'_>, request: &FdbRequest) -> String {
        match table.answer(request) {
            Err(QueryError::Refused(message)) => message,
            reply => panic!("{request:?}: {reply:?}"),
        }
    }

    /// As `patchcord fdb show` collects them.
    fn all(table: &Addresses<'_>, mut show: FdbShow) -> Vec<FdbStatus> {
        let mut entries = Vec::new();
        loop {
            match table.answer(&FdbRequest::Show(show.clone())) {
                Ok(Answer::Fdb(page)) => {
                    assert!(page.entries.len() < PAGE + 8);
                    entries.extend(page.entries);
                    match page.next {
                        Some(next) => show.from = next,
                        None => return entries,
                    }
                }
                reply => panic!("{reply:?}"),
            }
        }
    }
}
