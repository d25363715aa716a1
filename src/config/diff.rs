// SPDX-License-Identifier: MIT OR Apache-2.0
//! The difference between two configurations of a tunnel: what `patchcord reload` changes. Pure.
//!
//! Two values are equal if they are spelled alike, an absent key being its default. Keys in files are
//! compared themselves, and never shown. Peers are told apart by their public keys, then by their names;
//! their order in the file means nothing.

use super::model::Config;
use super::peer::{self, PeerConfig};
use super::schema::{Effect, Key, Schema};
use super::written::Values;
use super::{device, pipeline, port, switch, tunnel};
use crate::crypto::keys::PresharedKey;

/// One change of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigChange {
    /// The header of its section.
    pub section: &'static str,
    /// The name of the peer in whose section it is.
    pub peer: Option<String>,
    /// What differs.
    pub difference: Difference,
    /// When it takes effect.
    pub effect: Effect,
}

/// What differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// The whole section is new.
    Added,
    /// The whole section is gone.
    Removed,
    /// The value of one key. A secret is described, not shown.
    Value {
        /// The key.
        key: &'static str,
        /// Its value so far.
        old: String,
        /// Its value from now on.
        new: String,
    },
}

/// A pair of values, the one so far first.
type Pair<T> = (T, T);

impl Config {
    /// What is different in `new`, in the order of the documents.
    pub fn changes_to(&self, new: &Self) -> Vec<ConfigChange> {
        let mut changes = Vec::new();
        for (name, schema) in [
            ("tunnel", &tunnel::SCHEMA),
            ("device", &device::SCHEMA),
            ("device port", &port::OF_DEVICE),
            ("switch", &switch::SCHEMA),
            ("pipeline", &pipeline::SCHEMA),
        ] {
            let [one, other] = [self, new].map(|it| it.written.sections.get(name));
            let secrets = |key: &Key| (key.name == "private-key-file").then(|| self.own_keys(new));
            changes.extend(values(schema, None, (one, other), secrets));
        }
        changes.extend(self.changes_of_peers(new));
        changes
    }

    /// The peers of `new`, each with the one here that it continues, and those here that are gone. By
    /// their positions.
    pub(crate) fn matched_peers(&self, new: &Self) -> (Vec<Option<usize>>, Vec<usize>) {
        let mut left: Vec<_> = (0..self.peers.len()).collect();
        let mut matched = vec![None; new.peers.len()];
        let by_key = |one: &PeerConfig, other: &PeerConfig| one.public_key == other.public_key;
        let by_name = |one: &PeerConfig, other: &PeerConfig| one.name == other.name;
        for is_same in [by_key as fn(&_, &_) -> _, by_name] {
            for (place, peer) in new.peers.iter().enumerate() {
                let found = left.iter().position(|&old| is_same(&self.peers[old], peer));
                if let (None, Some(found)) = (matched[place], found) {
                    matched[place] = Some(left.remove(found));
                }
            }
        }
        (matched, left)
    }

    fn changes_of_peers(&self, new: &Self) -> Vec<ConfigChange> {
        let (matched, removed) = self.matched_peers(new);
        let mut changes = Vec::new();
        for (place, old) in matched.into_iter().enumerate() {
            match old {
                Some(old) => changes.extend(self.changes_of_peer(old, new, place)),
                None => changes.push(whole(&new.peers[place], Difference::Added)),
            }
        }
        let removed = removed.into_iter().map(|old| &self.peers[old]);
        changes.extend(removed.map(|peer| whole(peer, Difference::Removed)));
        changes
    }

    fn changes_of_peer(&self, old: usize, new: &Self, place: usize) -> Vec<ConfigChange> {
        let peers = (&self.peers[old], &new.peers[place]);
        let mut changes = Vec::new();
        for (name, schema) in [("peer", &peer::SCHEMA), ("peer port", &port::OF_PEER)] {
            let one = self.written.peers.get(old).and_then(|it| it.get(name));
            let other = new.written.peers.get(place).and_then(|it| it.get(name));
            let secrets =
                |key: &Key| (key.name == "preshared-key-file").then(|| preshared_keys(peers));
            changes.extend(values(schema, Some(&peers.0.name), (one, other), secrets));
        }
        changes
    }

    fn own_keys(&self, new: &Self) -> Pair<String> {
        let public = |config: &Self| config.tunnel.private_key.public_key();
        let [one, other] = [self, new].map(|config| format!("the key of {}", public(config)));
        (one, other)
    }
}

fn whole(peer: &PeerConfig, difference: Difference) -> ConfigChange {
    ConfigChange {
        section: peer::SCHEMA.header,
        peer: Some(peer.name.clone()),
        difference,
        effect: Effect::Restart,
    }
}

/// Words for both keys, which are equal if the keys are.
fn preshared_keys((one, other): Pair<&PeerConfig>) -> Pair<String> {
    let text = |is_there: bool, text: &str| if is_there { text } else { "none" }.to_owned();
    let [before, now] = [one, other].map(|peer| peer.preshared_key.is_some());
    let [old, new] =
        [one, other].map(|peer| peer.preshared_key.as_ref().map(PresharedKey::as_bytes));
    let is_same = old == new;
    let new = if before && !is_same {
        "another key"
    } else {
        "a key"
    };
    (text(before, "a key"), text(now, new))
}

/// The changes of the keys of a section. `secrets`: words for the values of a key in a file.
fn values(
    schema: &'static Schema,
    peer: Option<&str>,
    (one, other): Pair<Option<&Values>>,
    secrets: impl Fn(&Key) -> Option<Pair<String>>,
) -> Vec<ConfigChange> {
    let keys = schema.keys.iter();
    let differences = keys.filter_map(|key| {
        let value = |values: Option<&Values>| {
            let written = values.and_then(|values| values.get(key.name));
            written.cloned().unwrap_or_else(|| default(key))
        };
        let (old, new) = secrets(key).unwrap_or_else(|| (value(one), value(other)));
        (old != new).then(|| ConfigChange {
            section: schema.header,
            peer: peer.map(str::to_owned),
            difference: Difference::Value {
                key: key.name,
                old,
                new,
            },
            effect: key.effect,
        })
    });
    differences.collect()
}

/// The value of an absent key: a TOML value, or words.
fn default(key: &Key) -> String {
    let literal = key
        .default
        .strip_prefix('`')
        .and_then(|it| it.strip_suffix('`'));
    literal
        .filter(|literal| !literal.contains('`'))
        .unwrap_or(key.default)
        .to_owned()
}

#[cfg(test)]
mod tests;
