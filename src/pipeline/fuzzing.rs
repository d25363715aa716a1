// SPDX-License-Identifier: MIT OR Apache-2.0
//! The stages of the data path, between a device without a kernel and sealed datagrams, for fuzz
//! targets: [`Decryptor`], [`ShardQueues`], [`Delivery`] and [`Outbound`] as the threads run them, in one
//! thread. In no other build.
#![cfg(fuzzing)]

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use patchcord_bridge::{Kind, PortId, Switch, SwitchConfig};
use tokio::sync::mpsc;

use super::{
    clock,
    dispatch::{Kept, TrainSink},
    inbound::{Decryptor, Delivery, RxBatch},
    lanes::{Shard, ShardQueues},
    outbound::Outbound,
    recovery::Recovery,
    shared::{Handshake, Shared, ToControl},
    slow_path::event::{InjectedFrame, PUNTED_FRAMES, PuntedFrame, To},
};
use crate::{
    crypto::{
        aead::Cipher,
        keys::PrivateKey,
        noise::{SplitKey, SplitKeys},
    },
    io::{
        memory::{Described, Device, Refusals},
        tap::TapQueue,
    },
    proto::{
        guard::Mac1Check,
        session::{Agreement, Role, Route, Session, Tables},
        train::Train,
    },
    stats::DropReason,
    wire::{Counter, DATA_HEADER_LEN, DATA_OVERHEAD, Lane, MessageType, SessionIndex},
};

/// The most peers of a chain.
pub const MAX_PEERS: usize = 3;
/// Data lanes of each of them.
pub const LANES: u8 = 3;
const OUTBOUND: Lane = Lane::FIRST_DATA;
/// The lane on which each inbound thread of a hub sends.
const ONWARD: [Lane; 2] = [Lane(2), Lane(3)];
/// The largest UDP payload of IPv4.
const MAX_DATAGRAM: usize = 65_507;

/// The configuration of a node.
pub struct ChainConfig {
    /// The switch, with a port for the device and one for each peer.
    pub switch: SwitchConfig,
    /// No switch but a wire.
    pub wire: bool,
    /// SYNs of TCP are altered.
    pub lowers_mss: bool,
    /// The largest frame that goes to the device.
    pub max_frame: u32,
    /// Whether the device takes partial checksums and super-frames.
    pub takes_offloads: bool,
    /// The frames that it refuses.
    pub refusals: Refusals,
    /// The largest datagram on the path to each peer; without one there is no session.
    pub paths: Vec<Option<usize>>,
    /// The threads that received datagrams pass through.
    pub plan: Plan,
}

/// Which threads receive, decrypt and deliver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// One does all of it, datagram by datagram.
    Inline,
    /// A worker decrypts a batch, and another thread delivers it.
    Staged,
    /// Two have lanes of their own. The first receives everything and hands datagrams over.
    TwoLanes,
}

/// What happens to a sealed datagram on its way.
#[derive(Clone, Copy, Debug)]
pub enum Damage {
    /// Nothing.
    None,
    /// These bits of this byte, counted modulo the length, are inverted.
    Flip(u16, u8),
    /// Only this many bytes arrive.
    Cut(u16),
}

/// A datagram of a peer, before it is sealed.
pub struct Arriving<'a> {
    /// Its sender.
    pub peer: PortId,
    /// A frame, or chunks.
    pub message_type: MessageType,
    /// Lane and sequence number.
    pub counter: Counter,
    /// Its plaintext; cut off where no UDP datagram is longer.
    pub plaintext: &'a [u8],
    /// After it was sealed.
    pub damage: Damage,
}

impl Arriving<'_> {
    fn sealed(&self, sessions: &Sessions) -> Vec<u8> {
        let len = self.plaintext.len().min(MAX_DATAGRAM - DATA_OVERHEAD);
        let mut datagram = vec![0; DATA_HEADER_LEN];
        datagram.extend_from_slice(&self.plaintext[..len]);
        datagram.resize(len + DATA_OVERHEAD, 0);
        let session = &sessions[usize::from(self.peer.0) - 1];
        session.seal(self.message_type, self.counter, &mut datagram);
        match self.damage {
            Damage::None => {}
            Damage::Flip(at, bits) => {
                let at = usize::from(at) % datagram.len();
                datagram[at] ^= bits;
            }
            Damage::Cut(len) => datagram.truncate(len.into()),
        }
        datagram
    }
}

/// A datagram on its way to a peer, decrypted with the keys that the peer has.
pub struct Departed {
    /// Its destination.
    pub peer: PortId,
    /// Its size on the wire.
    pub sealed_len: usize,
    /// A frame, or chunks.
    pub message_type: MessageType,
    /// Lane and sequence number.
    pub counter: Counter,
    /// Its plaintext.
    pub plaintext: Vec<u8>,
}

/// The state of a receiving thread.
struct InboundThread {
    shard_queues: Option<ShardQueues>,
    rx_batch: RxBatch,
    decryptor: Decryptor,
    delivery: Delivery,
}

/// A node's data path.
pub struct Chain {
    shared: Arc<Shared>,
    device: Device,
    is_staged: bool,
    inbound: Vec<InboundThread>,
    outbound: Outbound,
    /// A panic aborts a fuzz target before it gets there.
    recovery: Recovery,
    sessions: Sessions,
    kept: Kept,
    _handshakes: mpsc::Receiver<Handshake>,
    punted: mpsc::Receiver<PuntedFrame>,
}

impl Chain {
    /// A node whose peers are up.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn new(config: ChainConfig) -> io::Result<Self> {
        let (handshakes_in, handshakes) = mpsc::channel(1);
        let (punted_in, punted) = mpsc::channel(PUNTED_FRAMES);
        let to_control = ToControl {
            handshakes: handshakes_in,
            punted: punted_in,
        };
        let switch = Switch::new(config.switch, [1, 2]);
        let is_hub = switch.is_hub();
        let max_frame = config.max_frame;
        let (mut shared, injected) =
            Shared::new(switch, config.wire, mac1(), max_frame, to_control)?;
        shared.lowers_mss = config.lowers_mss;
        let shared = Arc::new(shared);
        let sessions = sessions();
        shared
            .tables
            .store(Arc::new(tables(&sessions, &config.paths)));
        let device = Device::new(config.refusals)?;
        let tap = Arc::new(TapQueue::in_memory(device.clone(), config.takes_offloads));
        let kept = Kept::default();
        let sink = || TrainSink::Kept {
            kept: kept.clone(),
            empties: config.paths.iter().map(|_| Train::default()).collect(),
        };
        let inbound = |(shard_queues, lane): (Option<ShardQueues>, Lane)| {
            let shard = shard_queues.as_ref().map_or(Shard::ALL, ShardQueues::shard);
            InboundThread {
                shard_queues,
                rx_batch: RxBatch::default(),
                decryptor: Decryptor::new(shared.clone(), shard),
                delivery: Delivery::new(
                    shared.clone(),
                    tap.clone(),
                    is_hub.then(|| (lane, sink())),
                ),
            }
        };
        let all_queues = match config.plan {
            Plan::Inline | Plan::Staged => vec![None],
            Plan::TwoLanes => {
                let between = ShardQueues::between(2, || shared.new_drops())?;
                between.into_iter().map(Some).collect()
            }
        };
        Ok(Self {
            inbound: all_queues.into_iter().zip(ONWARD).map(inbound).collect(),
            is_staged: config.plan == Plan::Staged,
            outbound: Outbound::new(shared.clone(), tap, Some(injected), OUTBOUND, sink()),
            recovery: Recovery::new(shared.clone()),
            shared,
            device,
            sessions,
            kept,
            _handshakes: handshakes,
            punted,
        })
    }

    /// Datagrams off the wire, as many to a batch as its buffers take.
    pub fn receive<'a>(&mut self, datagrams: impl IntoIterator<Item = Arriving<'a>>) {
        let sessions = self.sessions.clone();
        let sealed = datagrams.into_iter().map(|it| it.sealed(&sessions));
        let trains = trains(sealed);
        let mut trains = trains.iter().peekable();
        while trains.peek().is_some() {
            let batch = &mut self.inbound[0].rx_batch.batch;
            batch.clear();
            while batch.has_room()
                && let Some((stride, train)) = trains.next()
            {
                batch.push((endpoint(), None), *stride, train);
            }
            self.take_batch();
            self.run_slow_path();
        }
    }

    /// Received datagrams go to the thread that owns them, are decrypted, and are delivered.
    fn take_batch(&mut self) {
        for place in 0..self.inbound.len() {
            let thread = &mut self.inbound[place];
            let (rx_batch, decryptor) = (&mut thread.rx_batch, &mut thread.decryptor);
            let is_full = match (&thread.shard_queues, place) {
                (None, _) => Some(false),
                (Some(shard_queues), 0) => {
                    shard_queues.send_others(&mut rx_batch.batch);
                    Some(false)
                }
                (Some(shard_queues), _) => {
                    if !shard_queues.receive(&mut rx_batch.batch) {
                        continue;
                    }
                    None
                }
            };
            if self.is_staged {
                decryptor.open(rx_batch, &mut self.recovery);
                thread.delivery.deliver(rx_batch, &mut self.recovery);
            } else {
                let delivery = &mut thread.delivery;
                delivery.open_and_deliver(decryptor, rx_batch, is_full, &mut self.recovery);
            }
        }
    }

    /// Nothing arrived for a while.
    pub fn give_up_waiting(&mut self) {
        for thread in &mut self.inbound {
            thread.delivery.forward_incomplete(&mut self.recovery);
        }
        self.run_slow_path();
    }

    /// Reads one burst of frames from the device; frames that do not fit wait for the next call.
    pub fn read(&mut self, frames: impl IntoIterator<Item = Described>) {
        for frame in frames {
            self.device.put(frame);
        }
        // The device has no way to end.
        let _ = self.outbound.forward_burst(&mut self.recovery);
        self.run_slow_path();
    }

    /// The queues are standing: the next bulk flow is signalled, in both directions.
    pub fn keep_queues_standing(&mut self) {
        for thread in &mut self.inbound {
            thread.delivery.insist_on_signal();
        }
        self.outbound.insist_on_signal();
    }

    /// The frames that were written to the device since the last call.
    pub fn take_written(&self) -> Vec<Described> {
        self.device.take_written()
    }

    /// How often the device has refused a frame.
    pub fn refused(&self) -> u64 {
        self.device.refused()
    }

    /// The datagrams that were sent since the last call.
    ///
    /// # Panics
    /// When a datagram cannot be decrypted with the keys of its destination.
    pub fn take_departed(&self) -> Vec<Departed> {
        let kept = std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner));
        let opened = |(peer, datagram)| opened(&self.sessions, peer, datagram);
        kept.into_iter().map(opened).collect()
    }

    /// The counted drops.
    pub fn drops(&self) -> Vec<(DropReason, u64)> {
        self.shared.total_drops()
    }

    /// Frames that were read from the device and written to it.
    pub fn device_frames(&self) -> [u64; 2] {
        [&self.shared.tap.outbound, &self.shared.tap.inbound].map(|way| way.frames())
    }

    /// The part of the slow path that moves frames: it knows no answer and passes requests on.
    fn run_slow_path(&mut self) {
        while let Ok(punted) = self.punted.try_recv() {
            let PuntedFrame {
                kind,
                ingress,
                inside,
                frame,
            } = punted;
            if kind == Kind::Neighbour {
                let to = To::Peers(Some(ingress));
                self.shared.inject(InjectedFrame { to, inside, frame });
            }
        }
        self.outbound.send_injected(&mut self.recovery);
    }
}

fn mac1() -> Mac1Check {
    static MAC1: OnceLock<crate::crypto::keys::PublicKey> = OnceLock::new();
    Mac1Check::new(MAC1.get_or_init(|| PrivateKey::generate().public_key()))
}

/// Neighbours of one length in a train, as GRO makes them; the last may be shorter.
fn trains(datagrams: impl Iterator<Item = Vec<u8>>) -> Vec<(usize, Vec<u8>)> {
    let mut trains: Vec<(usize, Vec<u8>)> = Vec::new();
    for datagram in datagrams {
        match trains.last_mut() {
            Some((stride, train))
                if train.len().is_multiple_of(*stride)
                    && (1..=*stride).contains(&datagram.len())
                    && train.len() + datagram.len() <= MAX_DATAGRAM =>
            {
                train.extend(datagram);
            }
            _ => trains.push((datagram.len().max(1), datagram)),
        }
    }
    trains
}

fn endpoint() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 1))
}

fn index_of(peer: PortId) -> SessionIndex {
    SessionIndex::from_low_bits(peer.0.into())
}

fn tables(sessions: &Sessions, paths: &[Option<usize>]) -> Tables {
    let route = |(session, path): (&Arc<Session>, &Option<usize>)| Route {
        session: path.map(|_| session.clone()),
        endpoint: Some(endpoint()),
        local: None,
        takes_trains: true,
        datagram_len: path.unwrap_or_default(),
    };
    let sessions = sessions.iter().take(paths.len());
    Tables {
        routes: sessions.clone().zip(paths).map(route).collect(),
        sessions: sessions
            .map(|session| (session.agreement.local, session.clone()))
            .collect(),
        ..Tables::default()
    }
}

/// Each is a session with itself: what is sealed under it can be opened under it.
type Sessions = [Arc<Session>; MAX_PEERS];

/// Keys cost time, and a session has no state but its counters: it lasts until it is too old.
fn sessions() -> Sessions {
    const OLD: Duration = Duration::from_secs(60);
    static SESSIONS: Mutex<Option<Sessions>> = Mutex::new(None);
    let mut sessions = SESSIONS.lock().unwrap_or_else(PoisonError::into_inner);
    let young = sessions
        .take()
        .filter(|[first, ..]| first.age(clock::now()) < OLD);
    let made = || [1, 2, 3].map(|port| Arc::new(session(PortId(port))));
    sessions.insert(young.unwrap_or_else(made)).clone()
}

fn session(port: PortId) -> Session {
    let agreement = Agreement {
        local: index_of(port),
        remote: index_of(port),
        role: Role::Initiator,
        cipher: Cipher::Aes256Gcm,
        local_lanes: LANES.into(),
        remote_lanes: LANES.into(),
    };
    let keys = SplitKeys {
        seal: SplitKey::from_bytes([1; 32]),
        open: SplitKey::from_bytes([1; 32]),
    };
    Session::new(agreement, &keys, port, clock::now(), Arc::default())
}

fn opened(sessions: &Sessions, peer: PortId, mut datagram: Vec<u8>) -> Departed {
    let session = &sessions[usize::from(peer.0) - 1];
    let sealed_len = datagram.len();
    let message_type = MessageType::of(&datagram).expect("it was sealed");
    let (counter, plaintext) = session.open(&mut datagram).expect("it was sealed");
    Departed {
        peer,
        sealed_len,
        message_type,
        counter,
        plaintext: plaintext.to_vec(),
    }
}
