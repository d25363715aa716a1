// SPDX-License-Identifier: MIT OR Apache-2.0
//! An attacker on the path: sees every datagram of the underlay, and can send any.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use etherparse::{NetHeaders, PacketBuilder, PacketHeaders, TransportHeader};
use pnet::datalink::{self, Channel, Config, DataLinkReceiver, DataLinkSender};

use super::namespace::Namespace;
use super::process::millis;
use super::site::Site;
use super::topology::Router;

/// A UDP datagram of the underlay (IPv4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Datagram {
    pub(crate) src: SocketAddrV4,
    pub(crate) dst: SocketAddrV4,
    pub(crate) payload: Vec<u8>,
}

/// A raw socket on one interface of a router.
pub(crate) struct Wiretap {
    seen: Arc<Mutex<Vec<Datagram>>>,
    stop: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
    injector: Injector,
    /// Bytes by claimed source; the raw socket itself may lose some under a flood.
    injected: HashMap<SocketAddrV4, u64>,
}

impl Wiretap {
    /// Listens between `router` and `site`: every datagram from and to the site passes once.
    pub(crate) fn before(router: &Router, site: &Site) -> Self {
        let port = site.uplink.router_port();
        router.ns.turn_offloads_off(&port);
        site.ns.turn_offloads_off("wan");
        let (sender, receiver) = open(&router.ns, &port);
        let (seen, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let reader = thread::spawn({
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            move || listen(receiver, &seen, &stop)
        });
        let injector = Injector {
            sender,
            src: site.uplink.router_mac,
            dst: site.uplink.mac,
        };
        Self {
            seen,
            stop,
            reader: Some(reader),
            injector,
            injected: HashMap::new(),
        }
    }

    /// The datagrams from `src` so far.
    pub(crate) fn from(&self, src: Ipv4Addr) -> Vec<Datagram> {
        let seen = self.seen.lock().expect("the reader does not panic");
        seen.iter()
            .filter(|datagram| *datagram.src.ip() == src)
            .cloned()
            .collect()
    }

    /// Bytes of UDP payload that were injected in each stranger's name, and that the stranger got
    /// from `site`.
    pub(crate) fn exchanged_with(&self, site: Ipv4Addr) -> HashMap<SocketAddrV4, (u64, u64)> {
        let mut bytes: HashMap<_, (u64, u64)> = self
            .injected
            .iter()
            .map(|(&src, &sent)| (src, (sent, 0)))
            .collect();
        for datagram in self.from(site) {
            bytes.entry(datagram.dst).or_default().1 += datagram.payload.len() as u64;
        }
        bytes
    }

    /// Puts a datagram on the cable towards the site, with any claimed source.
    pub(crate) fn inject(&mut self, datagram: &Datagram) {
        *self.injected.entry(datagram.src).or_default() += datagram.payload.len() as u64;
        self.injector.send(datagram);
    }
}

impl Drop for Wiretap {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

struct Injector {
    sender: Box<dyn DataLinkSender>,
    src: [u8; 6],
    dst: [u8; 6],
}

impl Injector {
    fn send(&mut self, datagram: &Datagram) {
        let Datagram { src, dst, payload } = datagram;
        let builder = PacketBuilder::ethernet2(self.src, self.dst)
            .ipv4(src.ip().octets(), dst.ip().octets(), 64)
            .udp(src.port(), dst.port());
        let mut bytes = Vec::with_capacity(builder.size(payload.len()));
        builder
            .write(&mut bytes, payload)
            .expect("a datagram that was on a wire fits a packet");
        // A full queue of the interface drops it, as a wire would.
        let _ = self
            .sender
            .send_to(&bytes, None)
            .expect("pnet sends on Linux");
    }
}

fn open(ns: &Namespace, interface: &str) -> (Box<dyn DataLinkSender>, Box<dyn DataLinkReceiver>) {
    let config = Config {
        read_timeout: Some(millis(50)),
        read_buffer_size: 65_536,
        write_buffer_size: 65_536,
        ..Config::default()
    };
    let channel = ns.enter(|| {
        let found = datalink::interfaces()
            .into_iter()
            .find(|found| found.name == interface);
        datalink::channel(&found.expect("the interface is there"), config)
    });
    match channel.expect("root may open a raw socket") {
        Channel::Ethernet(sender, receiver) => (sender, receiver),
        _ => unreachable!("pnet opens Ethernet channels on Linux"),
    }
}

fn listen(mut receiver: Box<dyn DataLinkReceiver>, seen: &Mutex<Vec<Datagram>>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        match receiver.next() {
            Ok(bytes) => {
                if let Some(datagram) = parse(bytes) {
                    seen.lock()
                        .expect("no test panics while it looks")
                        .push(datagram);
                }
            }
            Err(error) if error.kind() == ErrorKind::TimedOut => {}
            Err(_) => return,
        }
    }
}

fn parse(bytes: &[u8]) -> Option<Datagram> {
    let headers = PacketHeaders::from_ethernet_slice(bytes).ok()?;
    let (Some(NetHeaders::Ipv4(ip, _)), Some(TransportHeader::Udp(udp))) =
        (headers.net, headers.transport)
    else {
        return None;
    };
    Some(Datagram {
        src: SocketAddrV4::new(ip.source.into(), udp.source_port),
        dst: SocketAddrV4::new(ip.destination.into(), udp.destination_port),
        payload: headers.payload.slice().to_vec(),
    })
}
