// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reads what netfilter does by default with frames that a bridge forwards: the policies of the chains
//! at its `forward` hook, from nf_tables through nfnetlink.
//!
//! These are the chains of `nft` and of today's `iptables`. The kernel reports the policies of the
//! older `iptables-legacy` through another interface, which this module does not read: its chains count
//! as unknown. Called by `port`.

use std::collections::BTreeSet;
use std::{fmt, fs, io};

use rtnetlink::packet_core::{NLA_HEADER_SIZE, NlasIterator};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

// <linux/netfilter/nfnetlink.h>, <linux/netfilter/nf_tables.h>
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_GETCHAIN: u16 = 4;
const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_GETRULE: u16 = 7;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
/// Of all IP families and of bridges.
const HOOK_FORWARD: u32 = 2;
const NF_DROP: u32 = 0;

// <linux/netlink.h>
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER_BYTES: usize = 16;
/// Family, version and resource.
const FAMILY_BYTES: usize = 4;

/// The family of chains that see a bridge's frames without br_netfilter.
const BRIDGE_FAMILY: &str = "bridge";

/// The tables of `iptables-legacy`, for IPv4 and IPv6.
const LEGACY_TABLES: [(&str, &str); 2] = [
    ("ip", "/proc/net/ip_tables_names"),
    ("ip6", "/proc/net/ip6_tables_names"),
];

/// A chain that frames pass when a bridge forwards them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ForwardChain {
    /// `ip`, `ip6`, `inet` or `bridge`.
    pub family: &'static str,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Whether its policy is to drop what no rule accepts; none where the kernel does not report
    /// it.
    pub drops: Option<bool>,
    /// Whether a rule of its table names the bridge, so that the ruleset handles its frames.
    pub knows_bridge: bool,
}

impl fmt::Display for ForwardChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            family,
            table,
            name,
            ..
        } = self;
        write!(f, "chain `{name}` of table `{family} {table}`")
    }
}

impl ForwardChain {
    /// The command that accepts all traffic that stays within the bridge.
    pub(super) fn accept_command(&self, bridge: &str, device: &str) -> String {
        let Self {
            family,
            table,
            name,
            ..
        } = self;
        match (*family, table.as_str(), name.as_str()) {
            ("ip", "filter", "FORWARD") => {
                format!("iptables -I FORWARD -i {bridge} -o {bridge} -j ACCEPT")
            }
            ("ip6", "filter", "FORWARD") => {
                format!("ip6tables -I FORWARD -i {bridge} -o {bridge} -j ACCEPT")
            }
            (BRIDGE_FAMILY, ..) => ["iifname", "oifname"]
                .map(|side| {
                    format!("nft insert rule {family} {table} {name} {side} {device} accept")
                })
                .join("; "),
            _ => format!(
                "nft insert rule {family} {table} {name} iifname {bridge} oifname {bridge} accept"
            ),
        }
    }
}

/// The chains at the `forward` hook that see frames of `bridge`; those of IP only where br_netfilter
/// `hands_over` its frames.
///
/// # Errors
/// When the kernel has no nf_tables, or refuses.
pub(super) fn forward_chains(bridge: &str, hands_over: bool) -> io::Result<Vec<ForwardChain>> {
    let chains = dump(NFT_MSG_GETCHAIN, NFT_MSG_NEWCHAIN)?;
    let chains = chains.iter().filter_map(|message| chain(message));
    let mut chains: Vec<_> = chains
        .filter(|chain| hands_over || chain.family == BRIDGE_FAMILY)
        .collect();
    if chains.iter().any(|chain| chain.drops == Some(true)) {
        let rules = dump(NFT_MSG_GETRULE, NFT_MSG_NEWRULE)?;
        let tables: BTreeSet<_> = rules
            .iter()
            .filter_map(|message| table_of_rule_about(message, bridge))
            .collect();
        for chain in &mut chains {
            chain.knows_bridge = tables.contains(&(chain.family, chain.table.clone()));
        }
    }
    if hands_over {
        chains.extend(LEGACY_TABLES.into_iter().filter_map(legacy_chain));
    }
    Ok(chains)
}

fn legacy_chain((family, path): (&'static str, &str)) -> Option<ForwardChain> {
    let tables = fs::read_to_string(path).ok()?;
    tables
        .lines()
        .any(|table| table == "filter")
        .then(|| ForwardChain {
            family,
            table: "filter".to_owned(),
            name: "FORWARD".to_owned(),
            drops: None,
            knows_bridge: false,
        })
}

/// The base chain at the `forward` hook that the message describes, if it does.
fn chain(message: &[u8]) -> Option<ForwardChain> {
    let (family, attributes) = split(message)?;
    let find = |kind| attribute(attributes, kind);
    let hook = attribute(find(NFTA_CHAIN_HOOK)?, NFTA_HOOK_HOOKNUM)?;
    (number(hook)? == HOOK_FORWARD).then_some(())?;
    Some(ForwardChain {
        family,
        table: text(find(NFTA_CHAIN_TABLE)?),
        name: text(find(NFTA_CHAIN_NAME)?),
        drops: find(NFTA_CHAIN_POLICY)
            .and_then(number)
            .map(|policy| policy == NF_DROP),
        knows_bridge: false,
    })
}

/// The table of a rule that compares something with the bridge's name.
fn table_of_rule_about(message: &[u8], bridge: &str) -> Option<(&'static str, String)> {
    let (family, attributes) = split(message)?;
    let expressions = attribute(attributes, NFTA_RULE_EXPRESSIONS)?;
    let name = [bridge.as_bytes(), &[0]].concat();
    let is_named = expressions.windows(name.len()).any(|part| part == name);
    is_named.then_some((family, text(attribute(attributes, NFTA_RULE_TABLE)?)))
}

/// The family of a message and its attributes.
fn split(message: &[u8]) -> Option<(&'static str, &[u8])> {
    let family = match message.first()? {
        1 => "inet",
        2 => "ip",
        7 => BRIDGE_FAMILY,
        10 => "ip6",
        _ => return None,
    };
    Some((family, message.get(FAMILY_BYTES..)?))
}

fn attribute(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    let mut all = NlasIterator::new(attributes).map_while(Result::ok);
    let found = all.find(|it| it.kind() == kind)?;
    // The first element has the length of the whole, and all others follow it.
    found
        .into_inner()
        .get(NLA_HEADER_SIZE..found.length().into())
}

fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value)
        .trim_end_matches('\0')
        .to_owned()
}

/// All answers to a dump request: family and attributes. The kernel answers within the call, so this
/// does not block.
fn dump(request: u16, answer: u16) -> io::Result<Vec<Vec<u8>>> {
    let socket = Socket::new(NETLINK_NETFILTER)?;
    socket.set_non_blocking(true)?;
    let kind = |message: u16| NFNL_SUBSYS_NFTABLES << 8 | message;
    let mut message = Vec::with_capacity(HEADER_BYTES + FAMILY_BYTES);
    message.extend(((HEADER_BYTES + FAMILY_BYTES) as u32).to_ne_bytes());
    message.extend(kind(request).to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    // Sequence and sender; then every family, and version 0.
    message.extend([0; 8 + FAMILY_BYTES]);
    socket.send_to(&message, &SocketAddr::new(0, 0), 0)?;
    let mut answers = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        for (found, payload) in Messages(&bytes) {
            match found {
                NLMSG_DONE => return Ok(answers),
                NLMSG_ERROR => {
                    let code = payload.first_chunk().copied().map_or(0, i32::from_ne_bytes);
                    return Err(io::Error::from_raw_os_error(-code));
                }
                _ if found == kind(answer) => answers.push(payload.to_vec()),
                _ => {}
            }
        }
    }
}

/// The messages in what one call has received: kind and payload.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = u32::from_ne_bytes(*self.0.first_chunk()?) as usize;
        let (kind, payload) = (self.0.get(4..6)?, self.0.get(HEADER_BYTES..length)?);
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([kind[0], kind[1]]), payload))
    }
}
