// SPDX-License-Identifier: MIT OR Apache-2.0
//! Any frames as announcements and requests, from any ports at any time.
//!
//! Bounds hold for any input, and an answer has the learned address, and goes to the host that asked.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use patchcord_bridge::inspect::{Content, inspect};
use patchcord_bridge::neighbours::{Learned, Neighbours, NeighboursConfig};
use patchcord_bridge::{Headers, PortId, Vid};

#[path = "../frames.rs"]
mod frames;
use frames::Frame;

const MAX: usize = 20;
const MAX_PER_PORT: usize = 8;

fuzz_target!(|input: Input| {
    let config = NeighboursConfig {
        mesh: input.mesh,
        ageing_s: 300,
        max: MAX,
        max_per_port: MAX_PER_PORT,
    };
    let mut net = Neighbours::new(config);
    let mut now_s = input.start_s;
    for event in &input.events {
        match event {
            Event::Learn { port, tags, frame } => {
                if let Ok(headers) = Headers::parse(&frame.bytes(tags)) {
                    net.learn(port_id(*port), Vid::UNTAGGED, &headers, now_s);
                }
            }
            Event::Ask { port, tags, frame } => {
                ask(&mut net, port_id(*port), &frame.bytes(tags), now_s);
            }
            Event::FlushPort { port } => net.flush_port(port_id(*port)),
            Event::Wait { seconds } => now_s = now_s.wrapping_add(u32::from(*seconds)),
        }
        assert!(net.entries(now_s).count() <= MAX);
    }
});

fn ask(net: &mut Neighbours, port: PortId, question: &[u8], now_s: u32) {
    let headers = Headers::parse(question).ok();
    let answer = headers.and_then(|headers| net.answer(port, Vid::UNTAGGED, &headers, now_s));
    let Some(answer) = answer else {
        return;
    };
    let expected = match inspect(question) {
        Content::ArpRequest => Content::ArpReply,
        Content::NeighbourSolicitation => Content::NeighbourAdvertisement,
        other => panic!("answered {other:?}"),
    };
    assert_eq!(inspect(&answer), expected);
    assert_eq!(answer[..6], question[6..12]);
    let mut asker = Neighbours::new(NeighboursConfig::default());
    let headers = Headers::parse(&answer).expect("an answer is a frame");
    let learned = asker.learn(PortId(1), Vid::UNTAGGED, &headers, now_s);
    assert_eq!(learned, Learned::New);
    let told = asker.entries(now_s).next().expect("just learned");
    let mut known = net.entries(now_s);
    let owner = known
        .find(|entry| entry.address == told.address)
        .expect("a known address");
    assert_eq!(owner.mac, told.mac);
    assert!(owner.port != port && !owner.is_contested && !owner.is_doubted);
}

#[derive(Arbitrary, Debug)]
struct Input {
    start_s: u32,
    mesh: bool,
    events: Vec<Event>,
}

#[derive(Arbitrary, Debug)]
enum Event {
    Learn {
        port: u8,
        tags: Vec<[u8; 2]>,
        frame: Frame,
    },
    Ask {
        port: u8,
        tags: Vec<[u8; 2]>,
        frame: Frame,
    },
    FlushPort {
        port: u8,
    },
    Wait {
        seconds: u16,
    },
}

fn port_id(port: u8) -> PortId {
    PortId(u16::from(port % 4))
}
