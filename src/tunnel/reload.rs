// SPDX-License-Identifier: MIT OR Apache-2.0
//! A reload of the file of a running tunnel: all of its changes take effect, or none.
//!
//! What can fail comes first: the file, then the machine's settings, which restore themselves if they
//! fail. The changes of the engine cannot fail.

use patchcord_bridge::{PortConfig, PortId};

use super::provider::{
    Running, TunnelProvider, check_cipher, ciphers, engine_peer, max_frame, settings,
};
use crate::{
    config::{self, Config, Effect},
    control::message::{
        Answer, Answered, ConfigChange, Difference, QueryError, ReloadMode, ReloadOutcome, Reloaded,
    },
    crypto::keys::PublicKey,
    pipeline::EngineUpdate,
    proto::node::NodeUpdate,
    provider::ProviderContext,
};

impl TunnelProvider {
    /// None while there is nothing to reload.
    pub(super) async fn reload(
        &self,
        context: &ProviderContext,
        mode: ReloadMode,
    ) -> Option<Answered> {
        let mut running = self.running.lock().await;
        let running = running.as_mut()?;
        let new = match Config::load(&running.config.file) {
            Ok(new) => new,
            Err(errors) => return Some(Err(QueryError::Configuration(errors.to_string()))),
        };
        let changes: Vec<_> = running.config.changes_to(&new).iter().map(told).collect();
        let outcome = match mode {
            ReloadMode::Compare => ReloadOutcome::Compared,
            _ if changes.is_empty() => ReloadOutcome::Unchanged,
            _ if changes.iter().any(|change| change.needs_restart) => ReloadOutcome::NeedsRestart,
            ReloadMode::Apply => match running.apply(context, new).await {
                Ok(()) => ReloadOutcome::Applied,
                Err(error) => return Some(Err(error)),
            },
        };
        Some(Ok(Answer::Reloaded(Reloaded { outcome, changes })))
    }
}

impl Running {
    /// Changes between them only what needs no restart.
    async fn apply(&mut self, context: &ProviderContext, new: Config) -> Result<(), QueryError> {
        let refused = |error: &dyn std::error::Error| {
            let mut text = format!("nothing was changed: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                text.push_str(&format!(": {error}"));
                cause = error.source();
            }
            QueryError::Refused(text)
        };
        check_cipher(new.tunnel.cipher).map_err(|error| refused(&error))?;
        let wanted = settings(&new);
        if wanted != settings(&self.config) {
            let applied = context.set_network_settings(Some(wanted)).await;
            applied.map_err(|error| refused(&error))?;
        }
        let update = update(&self.config, &new, &self.ports);
        if self.engine.update(update).await.is_none() {
            // Its supervisor ends the tunnel, with the reason.
            return Err(QueryError::Refused(
                "the control task does not answer; the log has the reason".to_owned(),
            ));
        }
        self.carrier.send_if_modified(|carrier| {
            let before = std::mem::replace(carrier, new.device.carrier);
            before != *carrier
        });
        self.ports = ports_after(&self.config, &new, &self.ports);
        self.config = new;
        Ok(())
    }
}

/// What the engine has to do.
fn update(old: &Config, new: &Config, ports: &[PublicKey]) -> EngineUpdate {
    let (was, is) = (&old.tunnel, &new.tunnel);
    let mtus = (old.device.mtu, new.device.mtu);
    let node = NodeUpdate {
        ciphers: (was.cipher != is.cipher).then(|| ciphers(is.cipher)),
        max_frame: (mtus.0 != mtus.1 && !new.device.is_nic).then(|| max_frame(mtus.1)),
        rekey_interval: Some(is.rekey_interval),
    };
    let (matched, _) = old.matched_peers(new);
    let pairs = matched.into_iter().zip(&new.peers);
    let peers = pairs.filter_map(|(former, peer)| {
        let former = &old.peers[former?];
        let place = ports.iter().position(|key| *key == former.public_key)?;
        let port = PortId(u16::try_from(place).ok()? + 1);
        (!former.is_like(peer)).then(|| (port, engine_peer(peer)))
    });
    let [before, after] = [
        ports_of(old, ports),
        ports_of(new, &ports_after(old, new, ports)),
    ];
    let pairs = (0..).map(PortId).zip(before.iter().zip(&after));
    let moved = pairs.filter(|(_, (one, other))| one.vlans != other.vlans);
    EngineUpdate {
        peers: peers.collect(),
        node,
        moved: moved.map(|(port, _)| port).collect(),
        ports: (before != after).then_some(after),
    }
}

/// The ports of the switch, that of the device first; the peers have these keys.
fn ports_of(config: &Config, keys: &[PublicKey]) -> Vec<PortConfig> {
    let of_peer = |key: &PublicKey| {
        let found = config.peers.iter().find(|peer| peer.public_key == *key);
        found.map(|peer| peer.port.clone()).unwrap_or_default()
    };
    let device = config.device.port.clone();
    [device]
        .into_iter()
        .chain(keys.iter().map(of_peer))
        .collect()
}

/// The keys of the peers by their ports, which stay as they are.
fn ports_after(old: &Config, new: &Config, ports: &[PublicKey]) -> Vec<PublicKey> {
    let (matched, _) = old.matched_peers(new);
    let key_of = |former: &PublicKey| {
        let mut pairs = matched.iter().zip(&new.peers);
        let continues = |place: &Option<usize>| {
            place.is_some_and(|place| old.peers[place].public_key == *former)
        };
        let found = pairs.find(|(place, _)| continues(place));
        found.map_or(*former, |(_, peer)| peer.public_key)
    };
    ports.iter().map(key_of).collect()
}

fn told(change: &config::ConfigChange) -> ConfigChange {
    ConfigChange {
        section: change.section.to_owned(),
        peer: change.peer.clone(),
        difference: match &change.difference {
            config::Difference::Added => Difference::Added,
            config::Difference::Removed => Difference::Removed,
            config::Difference::Value { key, old, new } => Difference::Value {
                key: (*key).to_owned(),
                old: old.clone(),
                new: new.clone(),
            },
        },
        needs_restart: change.effect == Effect::Restart,
    }
}
