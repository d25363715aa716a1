// SPDX-License-Identifier: MIT OR Apache-2.0
//! `stations` of the ports: static entries of the FDB, which frames do not override. Pure.
//!
//! The list of a port is checked as it is read, against the lists of the ports before it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;

use patchcord_bridge::{Fdb, MacAddr, PortVlans, Vid};
use toml::de::{DeTable, DeValue};

use super::error::Report;
use super::section::Section;
use super::value::{Parsed, mac_address, string, wrong_type};
use super::vlan::vid;

const KEY: &str = "stations";
const EXAMPLE: &str = "stations = [\"02:00:5e:10:00:01\"]";
const IN_VLAN: &str = "{ mac = \"02:00:5e:10:00:01\", vlan = 10 }";

/// The stations read so far.
#[derive(Default)]
pub(super) struct Stations {
    /// With the number of its port, in the order in which they are read.
    homes: HashMap<(Vid, MacAddr), usize>,
    ports: usize,
    /// Where each is in the file, and what the key is called there.
    places: Vec<(Range<usize>, String)>,
}

impl Stations {
    /// Reads those of a port with these VLANs.
    pub(super) fn of_port(
        &mut self,
        section: &Section<'_, '_>,
        vlans: &PortVlans,
        report: &mut Report<'_>,
    ) -> Vec<(Vid, MacAddr)> {
        self.ports += 1;
        let items = section.read(KEY, report, |value| items(value, vlans));
        let mut stations = Vec::new();
        for (span, station) in items.unwrap_or_default() {
            let key = section.name_of(KEY);
            match station.and_then(|station| self.add(station)) {
                Ok(station) => {
                    stations.push(station);
                    self.places.push((span, key));
                }
                Err(problem) => report.add(&span, key, problem),
            }
        }
        stations
    }

    /// A station is in one place in each of its VLANs.
    fn add(&mut self, station: (Vid, MacAddr)) -> Parsed<(Vid, MacAddr)> {
        let home = match self.homes.entry(station) {
            Entry::Vacant(home) => {
                home.insert(self.ports);
                return Ok(station);
            }
            Entry::Occupied(home) => *home.get(),
        };
        let address = in_words(station);
        Err(if home == self.ports {
            format!("{address} is listed twice; remove one")
        } else {
            format!("{address} is behind another port already; leave it at one of them")
        })
    }

    /// The FDB must have room for all of them under any hash key: the key is secret, and drawn at each
    /// start.
    pub(super) fn check_room(&self, capacity: usize, report: &mut Report<'_>) {
        let room = capacity.max(LEAST_ROOM * SHARE) / SHARE;
        let Some((span, key)) = self.places.get(room) else {
            return;
        };
        let count = self.places.len();
        let needed = (count * SHARE).next_power_of_two();
        let remedy = match needed <= Fdb::MAX_CAPACITY {
            true => format!("write `capacity = {needed}` in [switch], or list fewer"),
            false => format!("list {} at most", Fdb::MAX_CAPACITY / SHARE),
        };
        let problem = format!(
            "there are {count} stations, and a `capacity` of {capacity} has room for {room}; {remedy}"
        );
        report.add(span, key.as_str(), problem);
    }
}

/// One entry in so many may be static. With more, a bucket would overflow under some key.
const SHARE: usize = 8;
/// The entries of one bucket.
const LEAST_ROOM: usize = 8;

type Item = (Range<usize>, Parsed<(Vid, MacAddr)>);

fn items(value: &DeValue<'_>, vlans: &PortVlans) -> Parsed<Vec<Item>> {
    let DeValue::Array(items) = value else {
        return Err(wrong_type(value, "an array", EXAMPLE));
    };
    let station = items
        .iter()
        .map(|item| (item.span(), station(item.get_ref(), vlans)));
    Ok(station.collect())
}

/// An address, or a table of an address and a VLAN.
fn station(value: &DeValue<'_>, vlans: &PortVlans) -> Parsed<(Vid, MacAddr)> {
    let (mac, vid) = match value {
        DeValue::Table(table) => in_vlan(table)?,
        _ => (mac(value)?, None),
    };
    let vid = vid.or_else(|| vlans.untagged_vid()).ok_or_else(|| {
        format!("{mac} is in no VLAN, and untagged frames do not pass here; write for example `{IN_VLAN}`")
    })?;
    if vlans.has(vid) {
        return Ok((vid, mac));
    }
    let remedy = match vlans.untagged_vid() {
        Some(own) if !vlans.is_trunk() => format!("its only one is {own}: leave `vlan` out"),
        _ => "write one of `trunk`, or add it there".to_owned(),
    };
    Err(format!(
        "{mac} is in VLAN {vid}, which the port does not have; {remedy}"
    ))
}

fn in_vlan(table: &DeTable<'_>) -> Parsed<(MacAddr, Option<Vid>)> {
    let unknown = table
        .keys()
        .find(|key| !["mac", "vlan"].contains(&key.get_ref().as_ref()));
    if unknown.is_some() {
        return Err(format!(
            "a station has the keys `mac` and `vlan` only; write `{IN_VLAN}`"
        ));
    }
    let mac = match table.get("mac") {
        Some(value) => mac(value.get_ref())?,
        None => return Err(format!("has no `mac`; write `{IN_VLAN}`")),
    };
    let vid = table
        .get("vlan")
        .map(|value| vid(value.get_ref(), 0, "vlan = 10"));
    Ok((mac, vid.transpose()?))
}

fn mac(value: &DeValue<'_>) -> Parsed<MacAddr> {
    let remedy = format!("write for example `{EXAMPLE}`");
    let mac = mac_address(string(value, EXAMPLE)?, &remedy)?;
    if mac.is_station() {
        Ok(mac)
    } else {
        Err(format!(
            "{mac} is the address of a group, or zero, and not of a station; {remedy}"
        ))
    }
}

fn in_words((vid, mac): (Vid, MacAddr)) -> String {
    match vid {
        Vid::UNTAGGED => mac.to_string(),
        vid => format!("{mac} in VLAN {vid}"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{error::ConfigErrors, model::Config};

    // RFC 7748, section 6.1.
    const OWN: &str = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
    const PEERS: [&str; 2] = [
        "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=",
        "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmw=",
    ];

    #[test]
    fn stations_live_in_vlans_of_their_ports() {
        for (lines, expected) in [
            ("stations = []", &[][..]),
            ("stations = ['02:00:00:00:00:01']", &[(0, 1)]),
            (
                "stations = ['02:00:00:00:00:01', { mac = '02:00:00:00:00:01', vlan = 10 }]",
                &[(0, 1), (10, 1)],
            ),
            (
                "stations = [{ mac = '02:00:00:00:00:01', vlan = 0 }, { mac = '02:00:00:00:00:02' }]",
                &[(0, 1), (0, 2)],
            ),
            ("access = 42\nstations = ['02:00:00:00:00:01']", &[(42, 1)]),
            (
                "access = 42\nstations = [{ mac = '02:00:00:00:00:01', vlan = 42 }]",
                &[(42, 1)],
            ),
            (
                "tunnel = 200\nstations = ['02:00:00:00:00:01']",
                &[(200, 1)],
            ),
            (
                "trunk = [10, 20]\nnative = 5\nstations = ['02:00:00:00:00:01', \
                 { mac = '02:00:00:00:00:01', vlan = 20 }]",
                &[(5, 1), (20, 1)],
            ),
            (
                "trunk = 110\ntranslate = { 10 = 110 }\n\
                 stations = [{ mac = '02:00:00:00:00:01', vlan = 110 }]",
                &[(110, 1)],
            ),
        ] {
            let config = parse("", ["", lines]).unwrap();
            let stations = &config.peers[1].port.stations;
            let expected: Vec<_> = expected.iter().map(|&(vid, name)| of(vid, name)).collect();
            assert_eq!(*stations, expected, "{lines}");
        }
        // One that is known in several VLANs may be in several places.
        let config = parse(
            "[device.port]\nstations = ['02:00:00:00:00:01']",
            ["", "access = 10\nstations = ['02:00:00:00:00:01']"],
        );
        let config = config.unwrap();
        assert_eq!(config.device.port.stations, [of(0, 1)]);
        assert_eq!(config.peers[1].port.stations, [of(10, 1)]);
    }

    #[test]
    #[rustfmt::skip] // one row, one error
    fn what_is_wrong_with_a_station_is_said_with_its_place() {
        let example = "write for example `stations = [\"02:00:5e:10:00:01\"]`";
        let in_vlan = "write `{ mac = \"02:00:5e:10:00:01\", vlan = 10 }`";
        for (lines, error) in [
            ("stations = '02:00:00:00:00:01'", format!("12:12: [peer.port] stations: is a string, not an array; {example}")),
            ("stations = [\n  '02:00:00:00:00:01',\n  '02:00',\n]", format!("14:3: [peer.port] stations: `02:00`: an Ethernet address has six groups, as in 02:00:5e:10:00:01; {example}")),
            ("stations = ['ff:ff:ff:ff:ff:ff']", format!("12:13: [peer.port] stations: ff:ff:ff:ff:ff:ff is the address of a group, or zero, and not of a station; {example}")),
            ("stations = [{ mac = '00:00:00:00:00:00' }]", format!("12:13: [peer.port] stations: 00:00:00:00:00:00 is the address of a group, or zero, and not of a station; {example}")),
            ("stations = [1]", format!("12:13: [peer.port] stations: is an integer, not a string; {example}")),
            ("stations = [{ vlan = 10 }]", format!("12:13: [peer.port] stations: has no `mac`; {in_vlan}")),
            ("stations = [{ mac = '02:00:00:00:00:01', vid = 10 }]", format!("12:13: [peer.port] stations: a station has the keys `mac` and `vlan` only; {in_vlan}")),
            ("stations = [{ mac = '02:00:00:00:00:01', vlan = 4095 }]", "12:13: [peer.port] stations: `4095` is out of range; write 0 to 4094".to_owned()),
            ("access = 42\nstations = [{ mac = '02:00:00:00:00:01', vlan = 43 }]", "13:13: [peer.port] stations: 02:00:00:00:00:01 is in VLAN 43, which the port does not have; its only one is 42: leave `vlan` out".to_owned()),
            ("trunk = 10\nstations = [{ mac = '02:00:00:00:00:01', vlan = 20 }]", "13:13: [peer.port] stations: 02:00:00:00:00:01 is in VLAN 20, which the port does not have; write one of `trunk`, or add it there".to_owned()),
            ("trunk = 10\nstations = ['02:00:00:00:00:01']", "13:13: [peer.port] stations: 02:00:00:00:00:01 is in no VLAN, and untagged frames do not pass here; write for example `{ mac = \"02:00:5e:10:00:01\", vlan = 10 }`".to_owned()),
            ("stations = ['02:00:00:00:00:01', '02:00:00:00:00:01']", "12:34: [peer.port] stations: 02:00:00:00:00:01 is listed twice; remove one".to_owned()),
            ("stations = [{ mac = '02:00:00:00:00:09', vlan = 10 }]", "12:13: [peer.port] stations: 02:00:00:00:00:09 in VLAN 10 is behind another port already; leave it at one of them".to_owned()),
        ] {
            let first = "stations = [{ mac = '02:00:00:00:00:09', vlan = 10 }]";
            let printed = parse("", [first, lines]).unwrap_err().to_string();
            assert_eq!(printed, format!("t.toml:{error}"), "{lines}");
        }
    }

    #[test]
    fn the_table_must_have_room_for_all_stations() {
        let list = |from: usize, count: usize| {
            let macs = from..from + count;
            let macs =
                macs.map(|name| format!("'02:00:00:00:{:02x}:{:02x}'", name >> 8, name & 0xff));
            format!("stations = [{}]", macs.collect::<Vec<_>>().join(",\n"))
        };
        for (capacity, count, remedy) in [
            (8192, 1024, None),
            (
                8192,
                1025,
                Some("has room for 1024; write `capacity = 16384` in [switch], or list fewer"),
            ),
            (8, 8, None),
            (
                8,
                9,
                Some("has room for 8; write `capacity = 128` in [switch], or list fewer"),
            ),
            (1 << 20, 3000, None),
        ] {
            let ports = [list(0, 5), list(5, count - 5)];
            let switch = format!("[switch]\ncapacity = {capacity}\nmax-addresses = 8");
            let parsed = parse(&switch, [&ports[0], &ports[1]]);
            match remedy {
                None => assert!(parsed.is_ok(), "{count} in {capacity}"),
                Some(remedy) => {
                    let printed = parsed.unwrap_err().to_string();
                    let expected = format!(
                        "there are {count} stations, and a `capacity` of {capacity} {remedy}"
                    );
                    assert!(printed.ends_with(&expected), "{printed}");
                    assert!(printed.contains("[peer.port] stations: "), "{printed}");
                }
            }
        }
    }

    /// With further sections, and lines of the peers' ports, of which the second begins in line 12.
    fn parse(sections: &str, ports: [&str; 2]) -> Result<Config, ConfigErrors> {
        let [a, b] = PEERS;
        let text = format!(
            "[tunnel]\nprivate-key-file = 'a.key'\nlisten = '[::]:1'\n[device]\nname = 'pc0'\n\
             [[peer]]\npublic-key = '{a}'\nport = {{ {} }}\n[[peer]]\npublic-key = '{b}'\n\
             [peer.port]\n{}\n{sections}",
            ports[0].replace('\n', " "),
            ports[1],
        );
        Config::parse(&text, Path::new("t.toml"), &|_| Ok(OWN.to_owned().into()))
    }

    fn of(vid: u16, name: u8) -> (Vid, MacAddr) {
        (Vid::new(vid).unwrap(), MacAddr([2, 0, 0, 0, 0, name]))
    }
}
