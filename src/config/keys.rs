// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table of keys: every section of a tunnel's file, and every key in it.
//!
//! Hints about unknown keys, `man patchcord.toml` and `docs/configuration.md` are made from this table, and
//! the parser reads no key that is not in it. A new key takes one row here, one field of
//! [`Config`](super::Config), and the line of [`parse`](super::parse) that fills that field.

/// One key of a section.
#[derive(Debug)]
pub struct Key {
    /// As it is written.
    pub name: &'static str,
    /// The type of its value.
    pub kind: &'static str,
    /// What holds where the key is absent.
    pub default: &'static str,
    /// The values that are taken; empty where the type or `about` says all.
    pub range: &'static str,
    /// What it does, in one paragraph. Keys and values stand between backquotes.
    pub about: &'static str,
}

/// One section of the file.
#[derive(Debug)]
pub struct Schema {
    /// Its name, without brackets.
    pub name: &'static str,
    /// As it is written.
    pub header: &'static str,
    /// What it is about.
    pub about: &'static str,
    /// Its keys, in the order of the documents.
    pub keys: &'static [Key],
    /// The section within it.
    pub(super) port: Option<&'static Self>,
}

impl Schema {
    /// Whether it has a key of this name.
    pub(super) fn has(&self, key: &str) -> bool {
        self.keys.iter().any(|known| known.name == key)
    }

    /// The names of its keys.
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.keys.iter().map(|key| key.name)
    }
}

/// All sections, in the order of the documents.
pub const SECTIONS: [&Schema; 7] = [
    &TUNNEL,
    &DEVICE,
    &DEVICE_PORT,
    &PEER,
    &PEER_PORT,
    &SWITCH,
    &PIPELINE,
];

pub(super) const TUNNEL: Schema = Schema {
    name: "tunnel",
    header: "[tunnel]",
    about: "This node on the underlay.",
    keys: TUNNEL_KEYS,
    port: None,
};
pub(super) const DEVICE: Schema = Schema {
    name: "device",
    header: "[device]",
    about: "The interface that carries the frames: a TAP, or a network card.",
    keys: DEVICE_KEYS,
    port: Some(&DEVICE_PORT),
};
pub(super) const DEVICE_PORT: Schema = Schema {
    name: "port",
    header: "[device.port]",
    about: PORT_ABOUT,
    keys: PORT_KEYS,
    port: None,
};
pub(super) const PEER: Schema = Schema {
    name: "peer",
    header: "[[peer]]",
    about: "One or more.",
    keys: PEER_KEYS,
    port: Some(&PEER_PORT),
};
pub(super) const PEER_PORT: Schema = Schema {
    name: "port",
    header: "[peer.port]",
    about: PORT_ABOUT,
    keys: PORT_KEYS,
    port: None,
};
pub(super) const SWITCH: Schema = Schema {
    name: "switch",
    header: "[switch]",
    about: "For all ports. Not in wire mode.",
    keys: SWITCH_KEYS,
    port: None,
};
pub(super) const PIPELINE: Schema = Schema {
    name: "pipeline",
    header: "[pipeline]",
    about: "The defaults suit nearly every machine.",
    keys: PIPELINE_KEYS,
    port: None,
};

const PORT_ABOUT: &str = "The port of the switch to the device, or to the `[[peer]]` above; both have the same \
                          keys. A port has at most one of `trunk`, `access` and `tunnel`; without any, \
                          every frame passes unaltered. Not in wire mode.";

const TUNNEL_KEYS: &[Key] = &[
    Key {
        name: "private-key-file",
        kind: "path",
        default: "required",
        range: "",
        about: "File with the key of `patchcord genkey`; refused if group or others have any \
                access.",
    },
    Key {
        name: "listen",
        kind: "address",
        default: "`\"[::]:0\"`",
        range: "`ADDRESS:PORT`",
        about: "UDP socket for IPv4 and IPv6; port 0 is any. The tunnel waits for an address that \
                this machine does not have yet. Required unless a peer has an `endpoint`.",
    },
    Key {
        name: "cipher",
        kind: "string",
        default: "`\"auto\"`",
        range: "`auto`, `aes-256-gcm`, `chacha20-poly1305`",
        about: "AEAD for data; `auto` is AES-256-GCM if both ends have instructions for it.",
    },
    Key {
        name: "network-id",
        kind: "integer",
        default: "`0`",
        range: "0 to 16777215",
        about: "Both ends must have the same.",
    },
    Key {
        name: "rekey-interval",
        kind: "duration",
        default: "`\"120s\"`",
        range: "1 s to 120 s",
        about: "Age at which session keys are replaced.",
    },
];

const DEVICE_KEYS: &[Key] = &[
    Key {
        name: "name",
        kind: "string",
        default: "required, or `nic`",
        range: "1 to 15 bytes",
        about: "TAP interface; made, or adopted if it exists.",
    },
    Key {
        name: "nic",
        kind: "string",
        default: "none",
        range: "1 to 15 bytes",
        about: "In place of `name`: a network card that is one end of a wire. It keeps its MTU, \
                addresses and so on; only `mode` and `link-loss-forwarding` go with it.",
    },
    Key {
        name: "mode",
        kind: "string",
        default: "`\"switch\"`; with `nic` `\"wire\"`",
        range: "`switch`, `wire`",
        about: "`wire`: no switch; every frame goes to the one peer that is allowed, and none is \
                inspected.",
    },
    Key {
        name: "mtu",
        kind: "integer",
        default: "`1500`",
        range: "68 to 65521; with IPv6 1280 and more",
        about: "Overlay MTU; two VLAN tags fit in addition up to 65513. Give both ends the same.",
    },
    Key {
        name: "bridge",
        kind: "string",
        default: "none",
        range: "1 to 15 bytes",
        about: "Linux bridge to become a port of; the tunnel waits for one that does not exist.",
    },
    Key {
        name: "bridge-vlans",
        kind: "integer, string or array",
        default: "what the bridge gives its ports",
        range: "1 to 4094, ranges",
        about: "VLANs that have a tag at that port, in a bridge with `vlan_filtering 1`: \
                `\"10, 20-29\"`. The port has these, and that of `bridge-native`, and no others.",
    },
    Key {
        name: "bridge-native",
        kind: "integer",
        default: "none beside `bridge-vlans`",
        range: "1 to 4094",
        about: "VLAN that has no tag at that port.",
    },
    Key {
        name: "mac",
        kind: "string",
        default: "derived from key and name",
        range: "unicast",
        about: "Ethernet address, the same at each start; an adopted device keeps its own unless \
                this is set.",
    },
    Key {
        name: "addresses",
        kind: "array",
        default: "none",
        range: "`ADDRESS/PREFIX`",
        about: "IP addresses of the interface, for example `[\"10.99.0.1/24\", \"fd00::1/64\"]`.",
    },
    Key {
        name: "accept-router-advertisements",
        kind: "boolean",
        default: "`false`",
        range: "",
        about: "Whether routers of the far LAN configure this machine by IPv6: addresses, routes, \
                a default router. Without it the interface ignores router advertisements and \
                redirects.",
    },
    Key {
        name: "carrier",
        kind: "string",
        default: "`\"peer\"`",
        range: "`peer`, `always`",
        about: "When the interface has carrier: while a peer can be reached, or always. With \
                `always`, a bridge with spanning tree does not hold the port for 30 s after each \
                cut of the path.",
    },
    Key {
        name: "link-loss-forwarding",
        kind: "boolean",
        default: "`false`",
        range: "with `nic`",
        about: "Set the card down while the peer cannot be reached.",
    },
    Key {
        name: "backend",
        kind: "string",
        default: "`\"auto\"`",
        range: "`auto`, `vnet`, `plain`",
        about: "How the TAP is opened: `vnet` has offloads and several queues, `plain` runs on any \
                kernel, `auto` takes `vnet` where the kernel can.",
    },
];

const PEER_KEYS: &[Key] = &[
    Key {
        name: "public-key",
        kind: "string",
        default: "required",
        range: "",
        about: "What `patchcord pubkey` prints at the peer.",
    },
    Key {
        name: "name",
        kind: "string",
        default: "the public key",
        range: "1 to 64 bytes, not `tap`",
        about: "For logs, `show` and `fdb`.",
    },
    Key {
        name: "endpoint",
        kind: "string",
        default: "none",
        range: "`HOST:PORT`, `ADDRESS:PORT`",
        about: "Where to call the peer; a link-local address has its interface, \
                `[fe80::1%eth0]:51830`. Without it, this side waits for the peer. A name is looked \
                up again while the peer does not answer.",
    },
    Key {
        name: "keepalive",
        kind: "duration",
        default: "`\"10s\"`",
        range: "1 s to 1 h",
        about: "Interval at which an idle link is probed.",
    },
    Key {
        name: "preshared-key-file",
        kind: "path",
        default: "none",
        range: "",
        about: "File with the key of `patchcord genpsk`, the same at both ends.",
    },
];

const PORT_KEYS: &[Key] = &[
    Key {
        name: "trunk",
        kind: "VLANs",
        default: "none",
        range: "1 to 4094",
        about: "Tagged VLANs that pass: `\"10, 20-29\"`, or `[10, \"20-29\"]`.",
    },
    Key {
        name: "native",
        kind: "integer",
        default: "none",
        range: "0 to 4094, with `trunk`",
        about: "VLAN of the untagged frames of a trunk; 0 lets them stay untagged. If absent, they \
                do not pass.",
    },
    Key {
        name: "translate",
        kind: "table",
        default: "none",
        range: "1 to 4094, with `trunk`",
        about: "VLAN outside and inside, `{ 10 = 110 }`; `trunk` and `native` have the numbers \
                inside.",
    },
    Key {
        name: "access",
        kind: "integer",
        default: "none",
        range: "0 to 4094",
        about: "VLAN of all frames, which are untagged outside; tagged frames do not pass.",
    },
    Key {
        name: "tunnel",
        kind: "integer",
        default: "none",
        range: "1 to 4094",
        about: "VLAN of all frames, whatever tags they have (QinQ).",
    },
    Key {
        name: "tag",
        kind: "string",
        default: "`\"802.1ad\"`",
        range: "`802.1ad`, `802.1q`, with `tunnel`",
        about: "Tag that the VLAN of a `tunnel` has at other ports.",
    },
    Key {
        name: "max-broadcast",
        kind: "integer",
        default: "`5000`",
        range: "0 to 4294967295",
        about: "Broadcasts per second from the port; 0 is no limit, here and below.",
    },
    Key {
        name: "max-multicast",
        kind: "integer",
        default: "`50000`",
        range: "0 to 4294967295",
        about: "Frames per second to groups.",
    },
    Key {
        name: "max-unknown",
        kind: "integer",
        default: "`10000`",
        range: "0 to 4294967295",
        about: "Frames per second to addresses that the switch does not know.",
    },
    Key {
        name: "bpdu",
        kind: "string",
        default: "`\"pass\"`",
        range: "`pass`, `drop`, `guard`",
        about: "Spanning tree frames from the port; `guard` drops them and blocks the port for 30 \
                s.",
    },
    Key {
        name: "dhcp-server",
        kind: "string",
        default: "`\"allow\"`",
        range: "`allow`, `drop`",
        about: "What DHCP servers behind the port send.",
    },
    Key {
        name: "router-advertisements",
        kind: "string",
        default: "`\"allow\"`",
        range: "`allow`, `drop`",
        about: "What IPv6 routers behind the port advertise.",
    },
    Key {
        name: "spoof-guard",
        kind: "boolean",
        default: "`false`",
        range: "",
        about: "Refuse frames from addresses that live behind another port.",
    },
    Key {
        name: "sources",
        kind: "array",
        default: "any",
        range: "one unicast address or more",
        about: "The only addresses that may send, for example `[\"02:00:5e:10:00:01\"]`.",
    },
    Key {
        name: "stations",
        kind: "array",
        default: "none",
        range: "up to an eighth of `capacity`",
        about: "static entries: addresses, or tables `{ mac = \"...\", vlan = 10 }`. Without \
                `vlan`, the VLAN of the port's untagged frames.",
    },
    Key {
        name: "neighbour-suppression",
        kind: "boolean",
        default: "`false`",
        range: "",
        about: "Answer ARP and neighbour discovery from what is known.",
    },
    Key {
        name: "multicast-snooping",
        kind: "boolean",
        default: "`false`",
        range: "",
        about: "Send groups only to ports that asked for them.",
    },
];

const SWITCH_KEYS: &[Key] = &[
    Key {
        name: "hub",
        kind: "boolean",
        default: "`false`",
        range: "",
        about: "Whether frames pass from peer to peer: for the centre of a star, never inside a \
                mesh.",
    },
    Key {
        name: "capacity",
        kind: "integer",
        default: "twice what all ports may have by `max-addresses`",
        range: "8 to 1048576",
        about: "Addresses that the FDB has room for: without the key 16384 with one peer, 32768 with \
                two or three, and so on. Write twice as many as there are stations; rounded up to a power of two. \
                Each takes 32 bytes, used or not: 8 MiB with 30 peers, 32 MiB at most.",
    },
    Key {
        name: "ageing",
        kind: "duration",
        default: "`\"300s\"`",
        range: "1 s to 1 d",
        about: "How long the FDB remembers an address that sends nothing.",
    },
    Key {
        name: "dampening",
        kind: "duration",
        default: "`\"1s\"`",
        range: "0 s to 60 s",
        about: "An address that moved more than 5 times in 10 s moves at most once in this time, \
                until it has stayed on one port for 10 s.",
    },
    Key {
        name: "max-addresses",
        kind: "integer",
        default: "`4096`",
        range: "1 to 1048576, at most `capacity`",
        about: "Addresses that the FDB learns for one port.",
    },
    Key {
        name: "loop-guard",
        kind: "boolean",
        default: "`true`",
        range: "",
        about: "Find loops and cut them.",
    },
    Key {
        name: "querier",
        kind: "boolean",
        default: "`false`",
        range: "",
        about: "Ask the stations, in each VLAN that has some, which multicast groups they want.",
    },
];

const PIPELINE_KEYS: &[Key] = &[
    Key {
        name: "plan",
        kind: "string",
        default: "`\"auto\"`",
        range: "`auto`, `inline`, `staged`",
        about: "`inline`: one thread for each direction of a lane; `staged`: one lane, in which \
                workers seal and open; `auto`: inline.",
    },
    Key {
        name: "lanes",
        kind: "integer",
        default: "half of the cores, at most 8; 1 on up to 3 cores",
        range: "1 to 8; 1 if `staged`",
        about: "RX/TX queue pairs, over which flows are spread. The ends may differ.",
    },
    Key {
        name: "workers",
        kind: "integer",
        default: "(cores - 4) / 2, 1 to 8",
        range: "1 to 64",
        about: "Workers for each direction, if `staged`.",
    },
    Key {
        name: "pin",
        kind: "boolean",
        default: "`true` if there is a core for each thread and one to spare",
        range: "",
        about: "Pin threads to cores.",
    },
    Key {
        name: "nice",
        kind: "integer",
        default: "`-20`",
        range: "-20 (first) to 19 (last)",
        about: "Priority of the data threads while they carry bulk traffic; needs CAP_SYS_NICE, \
                and stays unchanged without it.",
    },
    Key {
        name: "udp-gso",
        kind: "string",
        default: "`\"auto\"`",
        range: "`auto`, `off`",
        about: "`off`: send datagrams one by one, without UDP_SEGMENT. For a card or driver that \
                segments wrongly: with `auto` the peer counts `bad-tag` or loses datagrams, and \
                with `off` it does not.",
    },
    Key {
        name: "udp-gro",
        kind: "string",
        default: "`\"auto\"`",
        range: "`auto`, `off`",
        about: "`off`: receive datagrams one by one, without UDP_GRO.",
    },
];

#[cfg(test)]
mod tests {
    use std::path::Path;

    use zeroize::Zeroizing;

    use super::*;
    use crate::config::model::Config;

    // RFC 7748, section 6.1.
    const OWN: &str = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
    const PEER_KEY: &str = "public-key = '3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08='";
    /// No key takes a date.
    const ABSURD: &str = "1979-05-27";

    #[test]
    fn the_parser_reads_every_key() {
        for section in SECTIONS {
            for key in section.keys {
                let text = file_with(section, key.name);
                let file = Path::new("/etc/patchcord/a.toml");
                let read = |_: &Path| Ok(Zeroizing::new(OWN.to_owned()));
                let errors = Config::parse(&text, file, &read).unwrap_err().to_string();
                let name = format!("{} {}", section.header, key.name);
                assert!(errors.contains(&name), "{name}: {errors}");
                let is_unknown = errors.contains(&format!("{name}: unknown key"));
                assert!(!is_unknown, "{errors}");
            }
        }
    }

    #[test]
    fn every_row_says_something() {
        for section in SECTIONS {
            for key in section.keys {
                let cells = [key.kind, key.default, key.range, key.about];
                let is_whole = [key.kind, key.default, key.about]
                    .iter()
                    .all(|it| !it.is_empty());
                assert!(is_whole, "{}", key.name);
                // They go into a table of Markdown.
                let is_table_safe = cells.iter().all(|cell| !cell.contains(['|', '\n']));
                assert!(is_table_safe, "{}", key.name);
                assert!(key.about.ends_with('.'), "{}", key.name);
            }
        }
    }

    /// Every section, with what is required, and one absurd value.
    fn file_with(section: &Schema, key: &str) -> String {
        let required = [
            ("[tunnel]", "private-key-file = 'a.key'"),
            ("[device]", "name = 'pc0'"),
            ("[device.port]", ""),
            ("[[peer]]", PEER_KEY),
            ("[peer.port]", ""),
            ("[switch]", ""),
            ("[pipeline]", ""),
        ];
        let lines = required.map(|(header, line)| {
            let is_here = header == section.header;
            let is_replaced =
                is_here && line.starts_with(key) && line[key.len()..].starts_with(' ');
            let line = if is_replaced { "" } else { line };
            let absurd = if is_here {
                format!("{key} = {ABSURD}")
            } else {
                String::new()
            };
            format!("{header}\n{line}\n{absurd}\n")
        });
        lines.concat()
    }
}
