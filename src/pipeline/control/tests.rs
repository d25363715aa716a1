// SPDX-License-Identifier: MIT OR Apache-2.0
use patchcord_bridge::{Switch, SwitchConfig};

use super::*;
use crate::pipeline::shared::ToControl;
use crate::{
    crypto::{
        aead::CipherOffer,
        keys::{PresharedKey, PrivateKey},
    },
    pipeline::notices::CONTROL_BYTES,
    proto::{guard::Mac1Check, node::NodeConfig, peer::PeerSettings},
    stats::DropReason,
    wire::SessionIndex,
};

const PEER: PortId = PortId(1);
const OTHER: PortId = PortId(2);

/// The task of a node with two peers, whose endpoints are names.
fn task() -> ControlTask {
    let private_key = PrivateKey::generate();
    let mac1 = Mac1Check::new(&private_key.public_key());
    let config = NodeConfig {
        private_key,
        ciphers: CipherOffer::auto(Instant::now),
        network_id: 0,
        lanes: 1.into(),
        max_frame: 1522,
        rekey_interval: Duration::from_secs(120),
    };
    let peer = || PeerSettings {
        public_key: PrivateKey::generate().public_key(),
        preshared_key: Some(PresharedKey::generate()),
        endpoint: None,
        has_name: true,
        keepalive: Duration::from_secs(10),
    };
    let label = |name: &str| (name.to_owned(), Some("name.invalid:1".to_owned()));
    let switch = Switch::new(SwitchConfig::with_ports(3), [0; 2]);
    let to_control = ToControl {
        handshakes: mpsc::channel(1).0,
        punted: mpsc::channel(1).0,
    };
    let (shared, _) = Shared::new(switch, false, mac1, 1522, to_control).unwrap();
    ControlTask::new(
        Node::new(config, vec![peer(), peer()], now()),
        vec![label("office"), label("lab")],
        Arc::new(shared),
        (
            UdpSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap(),
            None,
        ),
        mpsc::channel(16).0,
    )
}

/// The outcome of a lookup of the name that both peers have.
fn found(
    port: PortId,
    address: Result<SocketAddr, NameError>,
) -> Result<Lookup, tokio::task::JoinError> {
    Ok((port, "name.invalid:1".to_owned(), address))
}

fn block_on(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(test);
}

#[test]
fn a_name_is_looked_up_once_at_a_time() {
    block_on(async {
        let mut task = task();
        // An outage: attempts continue, and no answer arrives.
        for _ in 0..5 {
            task.look_up(PEER, Duration::from_secs(3600));
        }
        assert_eq!(task.lookups.len(), 1);
        task.lookups.abort_all();
        while task.lookups.join_next().await.is_some() {}
        task.handle_lookup(found(PEER, Err(NameError::Unavailable)));
        assert_eq!(task.lookups.len(), 1, "tried again");
    });
}

#[test]
fn each_peer_begins_with_the_first_address_of_its_name() {
    block_on(async {
        let mut task = task();
        let address = SocketAddr::from(([192, 0, 2, 1], 1));
        task.handle_lookup(found(OTHER, Err(NameError::NotFound)));
        task.handle_lookup(found(PEER, Ok(address)));
        assert_eq!(task.turns, [1, 0], "nothing was found for the other");
        task.handle_lookup(found(OTHER, Ok(address)));
        task.handle_lookup(found(PEER, Ok(address)));
        assert_eq!(task.turns, [2, 1]);
    });
}

#[test]
fn an_address_of_a_former_name_is_looked_up_again() {
    block_on(async {
        let mut task = task();
        task.labels[0].1 = Some("other.invalid:1".to_owned());
        let address = SocketAddr::from(([192, 0, 2, 1], 1));
        task.handle_lookup(found(PEER, Ok(address)));
        assert_eq!(task.node.configured_endpoint(PEER), None);
        assert_eq!(task.lookups.len(), 1, "the new name");
    });
}

/// Notices without end, as a peer that sends all the time causes them.
fn flood(task: &ControlTask) -> impl Future<Output = ()> + use<> {
    let shared = task.shared.clone();
    async move {
        loop {
            let control = Control {
                local: None,
                from: "192.0.2.1:1".parse().unwrap(),
                receiver: SessionIndex::from_low_bits(1),
                newest: true,
                bytes: [0; CONTROL_BYTES],
            };
            shared.notify_control(PEER, control);
            tokio::task::yield_now().await;
        }
    }
}

#[test]
fn a_flood_of_notices_holds_up_neither_commands_nor_handshakes() {
    block_on(async {
        let (commands, commands_out) = mpsc::channel(1);
        let (handshakes, handshakes_out) = mpsc::channel(1);
        let task = task();
        let (shared, drops) = (task.shared.clone(), task.drops.clone());
        let flood = tokio::spawn(flood(&task));
        let running = tokio::spawn(task.run(handshakes_out, commands_out));
        for _ in 0..100 {
            let from = ("192.0.2.2:1".parse().unwrap(), None);
            let handshake = Handshake::new(from, &[0; 4]).unwrap();
            handshakes.send(handshake).await.ok().unwrap();
        }
        let (reply, view) = oneshot::channel();
        commands.send(Command::View(reply)).await.ok().unwrap();
        view.await.unwrap();
        assert!(drops.total(DropReason::UnsupportedVersion) >= 99);
        assert!(drops.total(DropReason::UnknownSession) > 0, "no flood");
        drop(shared);
        flood.abort();
        running.abort();
    });
}

#[test]
fn an_owner_that_is_behind_hears_in_the_end_whether_a_peer_is_up() {
    block_on(async {
        let mut task = task();
        let (events, mut told) = mpsc::channel(1);
        events.try_send(EngineEvent::StationsMoved).unwrap();
        task.events = events;
        task.was_reachable = true;
        task.pump();
        assert!(matches!(told.try_recv(), Ok(EngineEvent::StationsMoved)));
        for _ in 0..2 {
            task.pump();
        }
        assert!(matches!(told.try_recv(), Ok(EngineEvent::Unreachable)));
        assert!(told.try_recv().is_err(), "once");
    });
}
