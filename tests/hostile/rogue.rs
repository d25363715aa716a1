// SPDX-License-Identifier: MIT OR Apache-2.0
//! A hostile peer with a valid key.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use patchcord::internals::crypto::aead::CipherOffer;
use patchcord::internals::proto::limits::MAX_LANES;
use patchcord::internals::proto::node::{Node, NodeConfig};
use patchcord::internals::proto::partial_checksum::finish_checksum;
use patchcord::internals::proto::peer::PeerSettings;
use patchcord::internals::proto::reassembly::Reassembly;
use patchcord::internals::proto::session::Session;
use patchcord::internals::wire::{
    Counter, DATA_HEADER_LEN, DataHeader, Lane, MessageType, SessionIndex, TAG_LEN,
    chunk::{Chunk, Chunks, ControlChunk, push_control},
    offload::Checksum,
};
use patchcord::keys::{PrivateKey, PublicKey};

use crate::kit::frames::Mac;
use crate::kit::namespace::Namespace;
use crate::kit::process::{eventually, millis, secs};
use crate::kit::site::{Peer, Site, UDP_PORT};
use crate::kit::topology::{Router, Sandbox, Uplink};

/// How long a read of the socket waits: the node's timers are not finer.
const LOOK: Duration = millis(10);
/// The largest frame that it announces.
const MAX_FRAME: u16 = u16::MAX;

/// A datagram of a session, before it is sealed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sealed<'a> {
    pub(crate) message_type: MessageType,
    pub(crate) lane: Lane,
    /// The next one of the lane by default.
    pub(crate) sequence: Option<u64>,
    pub(crate) plaintext: &'a [u8],
}

impl<'a> Sealed<'a> {
    pub(crate) fn chunks(plaintext: &'a [u8]) -> Self {
        Self {
            message_type: MessageType::Chunks,
            lane: Lane::FIRST_DATA,
            sequence: None,
            plaintext,
        }
    }

    /// A datagram that is one frame.
    pub(crate) fn frame(plaintext: &'a [u8]) -> Self {
        Self {
            message_type: MessageType::Frame,
            ..Self::chunks(plaintext)
        }
    }
}

/// See the module.
pub(crate) struct Rogue {
    pub(crate) name: String,
    pub(crate) public_key: String,
    /// The address of a station behind it.
    pub(crate) mac: Mac,
    pub(crate) uplink: Uplink,
    key: String,
    namespace: Arc<Namespace>,
    line: Arc<Line>,
    keeper: Option<JoinHandle<()>>,
}

/// The program under test, from the view of its peers.
#[derive(Clone, Copy)]
struct Program {
    public_key: PublicKey,
    at: SocketAddr,
}

/// Shared with the thread that runs the protocol.
struct Line {
    socket: UdpSocket,
    program: Program,
    state: Mutex<State>,
    news: Condvar,
    is_muted: AtomicBool,
    is_over: AtomicBool,
}

struct State {
    node: Node,
    /// Frames from the program.
    inbox: Vec<Vec<u8>>,
    pieces: HashMap<(SessionIndex, Lane), Reassembly>,
}

impl Rogue {
    /// Number `n` of the network behind `router`, and a peer of the program at `site`. It is mute until
    /// it connects.
    pub(crate) fn new(sandbox: &Sandbox, router: &Router, site: &Site, n: u8, mtu: u32) -> Self {
        let key = PrivateKey::generate().to_base64();
        let namespace = sandbox.namespace(&format!("rogue{n}"));
        let uplink = router.attach(&namespace, n, mtu);
        // Every address of the network belongs to it, see `source`.
        let [a, b, c, _] = uplink.v4.octets();
        let all = format!("route add local {a}.{b}.{c}.128/25 dev lo");
        namespace.ip(&all);
        let program = Program {
            public_key: site.public_key.parse().expect("the program prints keys"),
            at: SocketAddrV4::new(site.uplink.v4, UDP_PORT).into(),
        };
        let node = node(&key, program);
        let public_key = node.public_key().to_string();
        let line = Arc::new(Line::new(&namespace, uplink.v4, program, node));
        let keeper = thread::spawn({
            let line = line.clone();
            move || line.keep()
        });
        Self {
            name: format!("rogue{n}"),
            public_key,
            mac: [0x02, 0xbd, 0, 0, 0, n],
            uplink,
            key: key.to_string(),
            namespace,
            line,
            keeper: Some(keeper),
        }
    }

    /// Its entry in the program's configuration.
    pub(crate) fn as_peer(&self, port: &'static str) -> Peer {
        Peer {
            name: self.name.clone(),
            public_key: self.public_key.clone(),
            port,
            ..Peer::default()
        }
    }

    /// Answers from now on, calls, and waits for a session.
    pub(crate) fn connect(&self) -> Arc<Session> {
        self.line.is_muted.store(false, Ordering::Relaxed);
        eventually(secs(20), &format!("{} has a session", self.name), || {
            self.line.state().session()
        })
    }

    /// Its present session.
    pub(crate) fn session(&self) -> Arc<Session> {
        let session = self.line.state().session();
        session.unwrap_or_else(|| panic!("{} has no session: connect first", self.name))
    }

    /// Starts anew, as after a restart: without a session, and so with a handshake.
    pub(crate) fn restart(&self) {
        *self.line.state() = State::new(node(&self.key, self.line.program));
    }

    /// Sends nothing, not even answers, until it connects again.
    pub(crate) fn mute(&self) {
        self.line.is_muted.store(true, Ordering::Relaxed);
    }

    /// Sends these chunks in one datagram.
    pub(crate) fn send(&self, chunks: &[u8]) {
        self.send_datagram(&self.seal(Sealed::chunks(chunks)));
    }

    /// Sends a frame as an honest peer would send a small one.
    pub(crate) fn send_frame(&self, frame: &[u8]) {
        self.send_datagram(&self.seal(Sealed::frame(frame)));
    }

    /// Sends chunks on the control lane.
    pub(crate) fn send_control(&self, chunks: &[ControlChunk]) {
        let mut plaintext = Vec::new();
        for &chunk in chunks {
            push_control(&mut plaintext, chunk);
        }
        let sealed = Sealed {
            lane: Lane::CONTROL,
            ..Sealed::chunks(&plaintext)
        };
        self.send_datagram(&self.seal(sealed));
    }

    /// Sends any bytes.
    pub(crate) fn send_datagram(&self, datagram: &[u8]) {
        self.line.send(&self.line.socket, datagram);
    }

    /// A sealed datagram of the present session.
    pub(crate) fn seal(&self, what: Sealed<'_>) -> Vec<u8> {
        seal(&self.session(), what)
    }

    /// A valid handshake message of a node that ignores the answer.
    pub(crate) fn initiation(&self) -> Vec<u8> {
        let mut node = node(&self.key, self.line.program);
        node.handle_timeout(Instant::now(), SystemTime::now());
        let initiation = node.poll_transmit().expect("a node calls at once");
        initiation.datagram
    }

    /// Another source: address `last` (128 to 254) of its network, and a port of its own.
    pub(crate) fn source(&self, last: u8) -> Source<'_> {
        assert!(
            (128..255).contains(&last),
            "the rogue has no address {last}"
        );
        let address = self.uplink.other_v4(last);
        let socket = self.namespace.enter(|| UdpSocket::bind((address, 0)));
        Source {
            line: &self.line,
            socket: socket.expect("every address of the network is local"),
        }
    }

    /// Waits for an identical frame; false after the limit.
    pub(crate) fn receives(&self, frame: &[u8], limit: Duration) -> bool {
        let is_there = |state: &mut State| state.inbox.iter().any(|came| came == frame);
        let (_state, waited) = self
            .line
            .news
            .wait_timeout_while(self.line.state(), limit, |state| !is_there(state))
            .expect("no keeper panics");
        !waited.timed_out()
    }

    /// The frames that came since the last call.
    pub(crate) fn take_frames(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.line.state().inbox)
    }
}

impl Drop for Rogue {
    fn drop(&mut self) {
        self.line.is_over.store(true, Ordering::Relaxed);
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }
}

/// Another source address of a rogue.
pub(crate) struct Source<'a> {
    line: &'a Line,
    socket: UdpSocket,
}

impl Source<'_> {
    pub(crate) fn send(&self, datagram: &[u8]) {
        self.line.send(&self.socket, datagram);
    }
}

impl Line {
    fn new(namespace: &Namespace, at: Ipv4Addr, program: Program, node: Node) -> Self {
        let socket = namespace.enter(|| UdpSocket::bind((at, 0)));
        let socket = socket.expect("the address is there");
        socket.set_read_timeout(Some(LOOK)).expect("it is not zero");
        Self {
            socket,
            program,
            state: Mutex::new(State::new(node)),
            news: Condvar::new(),
            is_muted: AtomicBool::new(true),
            is_over: AtomicBool::new(false),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no keeper panics")
    }

    fn send(&self, socket: &UdpSocket, datagram: &[u8]) {
        // An error is one of the network, about an earlier datagram.
        let _ = socket.send_to(datagram, self.program.at);
    }

    fn keep(&self) {
        let mut buffer = vec![0; 65_536];
        while !self.is_over.load(Ordering::Relaxed) {
            let came = self.socket.recv_from(&mut buffer);
            if self.is_muted.load(Ordering::Relaxed) {
                continue;
            }
            let mut state = self.state();
            if let Ok((len, from)) = came {
                state.handle(from, &mut buffer[..len]);
                self.news.notify_all();
            }
            state.node.handle_timeout(Instant::now(), SystemTime::now());
            while state.node.poll_event().is_some() {}
            while let Some(transmit) = state.node.poll_transmit() {
                self.send(&self.socket, &transmit.datagram);
            }
        }
    }
}

impl State {
    fn new(node: Node) -> Self {
        Self {
            node,
            inbox: Vec::new(),
            pieces: HashMap::new(),
        }
    }

    /// The session for its datagrams.
    fn session(&self) -> Option<Arc<Session>> {
        let tables = self.node.tables();
        tables.routes.into_iter().next()?.session
    }

    /// Drops invalid datagrams: here the program is under attack, not the test.
    fn handle(&mut self, from: SocketAddr, datagram: &mut [u8]) {
        let now = Instant::now();
        match MessageType::of(datagram) {
            Ok(MessageType::Frame | MessageType::Chunks) => {
                self.open(now, from, datagram);
            }
            Ok(_) => {
                let _ = self.node.handle_handshake(now, from, datagram);
            }
            Err(_) => {}
        }
    }

    fn open(&mut self, now: Instant, from: SocketAddr, datagram: &mut [u8]) -> Option<()> {
        let message_type = MessageType::of(datagram).ok()?;
        let receiver = DataHeader::parse(datagram).ok()?.receiver();
        let session = self.node.tables().sessions.get(&receiver)?.clone();
        let (counter, plaintext) = session.open(datagram).ok()?;
        session.confirm();
        if counter.lane() == Lane::CONTROL {
            let _ = self
                .node
                .handle_control(now, from, receiver, false, plaintext);
        } else if message_type == MessageType::Frame {
            self.inbox.push(plaintext.to_vec());
        } else {
            self.unpack(receiver, counter, plaintext);
        }
        Some(())
    }

    fn unpack(&mut self, receiver: SessionIndex, counter: Counter, plaintext: &[u8]) {
        let pieces = self.pieces.entry((receiver, counter.lane()));
        let pieces = pieces.or_insert_with(|| Reassembly::new(MAX_FRAME.into()));
        for chunk in Chunks::new(plaintext).flatten() {
            let is_whole = match chunk {
                Chunk::Frame(frame) => {
                    self.inbox.push(frame.to_vec());
                    continue;
                }
                Chunk::PartialChecksum(checksum, frame) => {
                    self.inbox.push(finished(frame, Some(checksum)));
                    continue;
                }
                Chunk::Fragment(place, piece) => pieces.add(counter.sequence(), place, piece),
                Chunk::Offload(cut, offload, head) => {
                    pieces.describe(counter.sequence(), cut, offload, head)
                }
                _ => continue,
            };
            if is_whole == Ok(true) {
                let whole = pieces.take_whole().map(|whole| {
                    let open = whole.offload.filter(|open| open.segmentation.is_none());
                    finished(whole.frame, open.map(|open| open.checksum))
                });
                self.inbox.extend(whole);
            }
        }
    }
}

/// As the station sees it that receives the frame.
fn finished(frame: &[u8], open: Option<Checksum>) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if let Some(checksum) = open {
        // A checksum with an impossible position stays partial.
        let _ = finish_checksum(&mut frame, checksum);
    }
    frame
}

/// A sealed datagram of `session`.
pub(crate) fn seal(session: &Session, what: Sealed<'_>) -> Vec<u8> {
    let counter = match what.sequence {
        Some(sequence) => Counter::new(what.lane, sequence),
        None => session.next_counter(what.lane).expect("counters are left"),
    };
    let room = [0; DATA_HEADER_LEN + TAG_LEN];
    let (header, tag) = room.split_at(DATA_HEADER_LEN);
    let mut datagram = [header, what.plaintext, tag].concat();
    session.seal(what.message_type, counter, &mut datagram);
    datagram
}

/// A node with this key and one peer.
fn node(key: &str, program: Program) -> Node {
    let config = NodeConfig {
        private_key: PrivateKey::from_base64(key).expect("it was made here"),
        ciphers: CipherOffer::auto(Instant::now),
        network_id: 0,
        lanes: MAX_LANES.into(),
        max_frame: MAX_FRAME,
        rekey_interval: secs(120),
    };
    let peer = PeerSettings {
        public_key: program.public_key,
        preshared_key: None,
        endpoint: Some(program.at),
        has_name: false,
        keepalive: secs(10),
    };
    Node::new(config, vec![peer], Instant::now())
}
