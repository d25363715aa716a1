// SPDX-License-Identifier: MIT OR Apache-2.0
//! Changes of the configuration while frames cross: sessions of peers that it does not name stay.

use std::time::Duration;

use patchcord_bridge::PortId;

use super::{ControlTask, SingleDatagrams};
use crate::pipeline::{
    clock::now,
    peer::{EnginePeer, EngineUpdate},
};

impl ControlTask {
    pub(super) fn update(&mut self, update: EngineUpdate) {
        let EngineUpdate {
            node,
            peers,
            ports,
            moved,
        } = update;
        if let Some(ports) = ports {
            let switch = self.shared.switch().with_ports(ports);
            self.shared.set_switch(switch);
        }
        let switch = self.shared.switch();
        moved
            .into_iter()
            .for_each(|port| switch.relearn_behind(port));
        if let Some(max_frame) = node.max_frame {
            self.shared.set_max_frame(max_frame.into());
        }
        // First, so that a new session of a peer is made by it.
        self.node.update(now(), node);
        for (port, peer) in peers {
            self.update_peer(port, peer);
        }
        self.pump();
    }

    fn update_peer(&mut self, port: PortId, peer: EnginePeer) {
        let place = usize::from(port.0) - 1;
        let ranked = peer.ranked();
        let EnginePeer {
            mut settings,
            name,
            host,
        } = peer;
        let Some(label) = self.labels.get_mut(place) else {
            return;
        };
        let is_new_host = host.is_some() && label.1 != host;
        if host.is_some() && !is_new_host {
            // The address of the same name is known.
            settings.endpoint = self.node.configured_endpoint(port);
        }
        *label = (name, host);
        self.shared.names.set_one(port, ranked);
        self.singles[place] = SingleDatagrams::default();
        self.node.update_peer(now(), port, settings);
        if is_new_host {
            self.turns[place] = 0;
            self.look_up(port, Duration::ZERO);
        }
    }
}
