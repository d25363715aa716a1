// SPDX-License-Identifier: MIT OR Apache-2.0
//! Any frames from any ports at any time, through the switch and through a model of it.
//!
//! The model reads headers and remembers addresses in the obvious way and without bounds. Both must
//! agree on every frame, until the table has no place for an address.
#![no_main]

use std::collections::HashMap;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use patchcord_bridge::{DropReason, Egress, PortId, Switch, SwitchConfig};

const AGEING_S: u32 = 300;

fuzz_target!(|input: Input| {
    let config = SwitchConfig {
        hub: input.hub,
        ageing_s: AGEING_S,
        ..SwitchConfig::default()
    };
    let switch = Switch::new(config, [0x5eed, 0xf00d]);
    let mut model = Model {
        hub: input.hub,
        now_s: u64::from(input.start_s),
        known: HashMap::new(),
    };
    for event in &input.events {
        match event {
            Event::Frame { port, bytes } => {
                let port = PortId(u16::from(*port));
                let decision = switch.forward(port, bytes, model.now_s as u32);
                if switch.fdb().counters().full > 0 {
                    return;
                }
                assert_eq!(
                    decision,
                    model.forward(port, bytes),
                    "{bytes:02x?} from {port:?}"
                );
            }
            Event::ForgetPort { port } => {
                let port = PortId(u16::from(*port));
                switch.fdb().forget_port(port);
                model.known.retain(|_, station| station.port != port);
            }
            Event::Wait { seconds } => model.wait(u64::from(*seconds)),
        }
    }
    assert_eq!(
        switch.fdb().entries(model.now_s as u32).count(),
        model.known.len()
    );
});

#[derive(Arbitrary, Debug)]
struct Input {
    hub: bool,
    start_s: u32,
    events: Vec<Event>,
}

#[derive(Arbitrary, Debug)]
enum Event {
    Frame { port: u8, bytes: Vec<u8> },
    ForgetPort { port: u8 },
    Wait { seconds: u16 },
}

/// What a switch knows, on a clock that does not wrap.
struct Model {
    hub: bool,
    now_s: u64,
    known: HashMap<(u16, [u8; 6]), Station>,
}

struct Station {
    port: PortId,
    seen_s: u64,
}

impl Model {
    fn forward(&mut self, ingress: PortId, frame: &[u8]) -> Result<Egress, DropReason> {
        let (vid, dst, src) = parse(frame).ok_or(DropReason::Runt)?;
        if src[0] & 1 == 1 || src == [0; 6] {
            return Err(DropReason::BadSource);
        }
        self.known.insert(
            (vid, src),
            Station {
                port: ingress,
                seen_s: self.now_s,
            },
        );
        let between_peers = |port| ingress != PortId::TAP && port != PortId::TAP && !self.hub;
        match self.known.get(&(vid, dst)) {
            Some(station) if dst[0] & 1 == 0 => match station.port {
                port if port == ingress => Err(DropReason::SamePort),
                port if between_peers(port) => Err(DropReason::NoPort),
                port => Ok(Egress::Port(port)),
            },
            _ if ingress == PortId::TAP || self.hub => Ok(Egress::Flood),
            _ => Ok(Egress::Port(PortId::TAP)),
        }
    }

    fn wait(&mut self, seconds: u64) {
        self.now_s += seconds;
        self.known
            .retain(|_, station| self.now_s - station.seen_s < u64::from(AGEING_S));
    }
}

fn parse(frame: &[u8]) -> Option<(u16, [u8; 6], [u8; 6])> {
    let dst = frame.get(..6)?.try_into().ok()?;
    let src = frame.get(6..12)?.try_into().ok()?;
    let vid = match frame.get(12..14)? {
        [0x81, 0x00] | [0x88, 0xa8] => {
            let tag = frame.get(14..18)?;
            u16::from(tag[0] & 0x0f) << 8 | u16::from(tag[1])
        }
        _ => 0,
    };
    Some((vid, dst, src))
}
